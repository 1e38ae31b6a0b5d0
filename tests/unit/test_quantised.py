"""A base that bitsandbytes has quantised: updates act beside its weights, and gradients are those of its weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sst_merge import models
from sst_merge.errors import ModelError
from sst_merge.inference import collate
from sst_merge.models import Base, load_base
from sst_merge.statistics.sample_gradients import batch_gradients, patch_bases
from sst_merge.weights import applied, weights_sha256
from tiny import encoded_conversations, random_adapter, tiny_base, zero_adapter
from tiny_run import run_tiny

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra quantized)")


@pytest.fixture(scope="module")
def four(inputs: Path) -> Base:
    return load_base(str(inputs / "base"), device="cpu", dtype="4bit")


@pytest.fixture
def dequantised(four: Base, inputs: Path) -> Base:
    """A plain model whose weights are what the quantised ones stand for."""
    plain = load_base(str(inputs / "base"), device="cpu", dtype="float32")
    with torch.no_grad():
        for name, module in four.modules.items():
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert not torch.equal(weight.float(), plain.modules[name].weight)  # it was really quantised
            plain.modules[name].weight.copy_(weight)
    return plain


def logits(base: Base) -> torch.Tensor:
    batch = collate(base, encoded_conversations(base))
    with torch.no_grad():
        return base.model(input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions).logits


def test_an_update_acts_beside_a_quantised_weight_and_goes_without_a_trace(four: Base, dequantised: Base) -> None:
    assert (four.precision, dequantised.precision) == ("4bit", "float32")
    updates = random_adapter(tiny_base(), seed=1)
    before = logits(four)
    torch.testing.assert_close(before, logits(dequantised), rtol=1e-4, atol=1e-4)
    with applied(four, updates, "update") as found, applied(dequantised, updates, "update") as expected:
        during = logits(four)
        torch.testing.assert_close(during, logits(dequantised), rtol=1e-4, atol=1e-4)
        assert found.update_norm == pytest.approx(expected.update_norm, rel=1e-5)
        assert found.unchanged_modules == ()
    assert not torch.allclose(during, before, atol=1e-3)
    assert torch.equal(logits(four), before)


def test_what_acts_beside_the_weights_is_in_their_hash(four: Base) -> None:
    plain = weights_sha256(four.model)
    with applied(four, random_adapter(tiny_base(), seed=1), "a") as first:
        pass
    with applied(four, random_adapter(tiny_base(), seed=2), "b") as second:
        pass
    with applied(four, zero_adapter(tiny_base()), "zeros") as zeros:
        pass
    assert len({plain, first.weights_sha256, second.weights_sha256}) == 3
    assert zeros.weights_sha256 == plain
    assert len(zeros.unchanged_modules) == len(four.modules)


def test_a_forward_pass_repacks_no_weight(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bitsandbytes does on processors with AVX512-BF16, which this one may not be."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    base = load_base(str(inputs / "base"), device="cpu", dtype="4bit")
    before = weights_sha256(base.model)
    logits(base)
    assert weights_sha256(base.model) == before


def test_gradients_are_those_of_the_weights_that_it_stands_for(four: Base, dequantised: Base) -> None:
    utility, safety = random_adapter(tiny_base(), seed=1), random_adapter(tiny_base(), seed=2)
    bases = patch_bases(safety)
    found = []
    for base in (four, dequantised):
        with applied(base, utility, "utility"):
            found.append(batch_gradients(base, bases, collate(base, encoded_conversations(base)))[0])
    assert found[0].keys() == found[1].keys() == four.modules.keys()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4)


def test_in_8_bit_gradients_and_updates_are_those_of_the_weights_up_to_8_bits(inputs: Path) -> None:
    eight = load_base(str(inputs / "base"), device="cpu", dtype="8bit")
    plain = load_base(str(inputs / "base"), device="cpu", dtype="float32")
    utility, safety = random_adapter(tiny_base(), seed=1), random_adapter(tiny_base(), seed=2)
    found = []
    for base in (eight, plain):
        without = logits(base)
        with applied(base, utility, "utility"):
            gradients, _ = batch_gradients(base, patch_bases(safety), collate(base, encoded_conversations(base)))
            found.append({**gradients, "change of logits": logits(base) - without})
    assert eight.precision == "8bit"
    for name, value in found[1].items():
        assert 0 < float((found[0][name] - value).norm() / value.norm()) < 0.1


@pytest.mark.parametrize("dtype", ["4bit", "8bit"])
def test_a_run_on_a_quantised_base_says_so(inputs: Path, tmp_path: Path, dtype: str) -> None:
    base = load_base(str(inputs / "base"), device="cpu", dtype=dtype)
    run_tiny(inputs, tmp_path / "run", base, dtype=dtype, device="cpu")
    for name in ("report.html", "report.md"):
        (line,) = (
            x for x in (tmp_path / "run" / name).read_text(encoding="utf-8").split("\n") if "Device and type" in x
        )
        assert f", {dtype}" in line
    arms = [json.loads(file.read_text(encoding="utf-8")) for file in (tmp_path / "run" / "scores").glob("*/arm.json")]
    assert {arm["dtype"] for arm in arms} == {dtype}
    identity = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["placement"]
    assert identity == {"device": "cpu", "dtype": dtype, "bitsandbytes": bitsandbytes.__version__}


def test_a_model_that_is_quantised_already_must_be_called_so(four: Base, tmp_path: Path) -> None:
    four.model.save_pretrained(tmp_path)
    four.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is quantised \(4bit\), and dtype is float32.*Set dtype: 4bit"):
        load_base(str(tmp_path), device="cpu", dtype="float32")
    again = load_base(str(tmp_path), device="cpu", dtype="4bit")
    torch.testing.assert_close(logits(again), logits(four))


def test_another_quantisation_is_refused(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny_base()
    shutil.copytree(inputs / "base", tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}), encoding="utf-8"
    )
    nothing_wrong: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: (plain.model, nothing_wrong))
    with pytest.raises(ModelError, match=r"stored in a quantised form that is not bitsandbytes' 4 or 8 bit"):
        load_base(str(tmp_path / "base"), device="cpu")


def test_without_bitsandbytes_the_error_says_what_to_install(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"dtype: 4bit needs bitsandbytes.*pip install 'sst-merge\[quantized\]'"):
        load_base(str(inputs / "base"), device="cpu", dtype="4bit")
