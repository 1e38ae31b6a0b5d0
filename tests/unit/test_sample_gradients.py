"""Calibration statistics on disk: coordinates, restarts, weights."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from families import other_base
from sst_merge.errors import ModelError, NumericalError, StatisticsError
from sst_merge.inference import collate
from sst_merge.linalg import patch_coordinates
from sst_merge.models import Base
from sst_merge.statistics import STATISTICS, KroneckerFactors, SampleGradients, sample_gradients, stored
from sst_merge.statistics.sample_gradients import batch_gradients, capture_gradients, choose_side, patch_bases
from sst_merge.statistics.stored import TensorFile, save_tensors, writing_behind
from sst_merge.weights import applied
from tiny import encoded_conversations, in_another_gauge, random_adapter, random_update, tiny_base, zero_adapter


def measure(base: Base, folder: Path, batch_size: int = 4, **changed: object) -> SampleGradients:
    samples = encoded_conversations(base)
    arguments = {"safety_samples": 3, "weights": [1.0] * len(samples), **changed}
    return SampleGradients.measure(
        base, patch_bases(random_adapter(base, 2, seed=1)), samples, folder, batch_size=batch_size, **arguments
    )


def test_the_side_with_fewer_coordinates_is_chosen() -> None:
    assert choose_side((16, 32)) == "output"
    assert choose_side((48, 32)) == "input"
    assert choose_side((32, 32)) == "output"


def test_rows_come_in_the_order_of_the_samples_whatever_the_batches(llama64: Base, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj"
    one = measure(llama64, tmp_path / "one", batch_size=1)
    three = measure(llama64, tmp_path / "three", batch_size=3)
    assert one.batches != three.batches
    # computed in float64, kept in float32: the last bit may fall either way
    torch.testing.assert_close(one.rows(name), three.rows(name), rtol=1e-6, atol=1e-9)


def test_no_module_is_skipped(llama: Base, tmp_path: Path) -> None:
    measured = measure(llama, tmp_path / "statistics")
    assert set(measured.sides) == set(llama.modules)
    for name, module in llama.modules.items():
        assert measured.rows(name).shape == (8, 2 * min(module.weight.shape))
        assert bool(measured.rows(name).any())


def test_a_killed_calibration_goes_on_where_it_stopped(llama: Base, tmp_path: Path) -> None:
    whole = measure(llama, tmp_path / "whole")
    done: list[int] = []

    def stop_after_the_first(samples: int) -> None:
        done.append(samples)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(llama, tmp_path / "killed", on_batch=stop_after_the_first)
    assert done == [4]
    assert not SampleGradients.is_complete(tmp_path / "killed")
    first = tmp_path / "killed" / "batch-0000.safetensors"
    written = first.stat().st_mtime_ns
    (first.parent / ".tmpa1B2c3").write_bytes(b"half a file of safetensors")
    resumed = measure(llama, tmp_path / "killed")
    assert {file.name for file in first.parent.iterdir()} == {file.name for file in (tmp_path / "whole").iterdir()}
    assert first.stat().st_mtime_ns == written
    assert SampleGradients.is_complete(tmp_path / "killed")
    for name in llama.modules:
        assert resumed.rows(name).equal(whole.rows(name))


def test_the_same_measurement_twice_has_equal_bytes(llama: Base, tmp_path: Path) -> None:
    first, second = (tmp_path / name / "key" for name in ("first", "second"))
    for folder in (first, second):
        measure(llama, folder)
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (second / file.name).read_bytes()
    assert SampleGradients.load(first).batches == SampleGradients.load(second).batches


def test_a_batch_is_computed_while_the_one_before_is_written(
    llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = threading.Event()

    def once_another_is_computed(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if path.name == "batch-0000.safetensors":
            assert computed.wait(timeout=20), "the first batch was waited for"
        save_tensors(path, tensors)

    def computing(*arguments: Any) -> Any:
        found = batch_gradients(*arguments)
        batches.append(found)
        if len(batches) == 2:
            assert not (tmp_path / "statistics" / "batch-0000.safetensors").exists()
            computed.set()
        return found

    batches: list[Any] = []
    monkeypatch.setattr(stored, "save_tensors", once_another_is_computed)
    monkeypatch.setattr(sample_gradients, "batch_gradients", computing)
    measured = measure(llama, tmp_path / "statistics")
    assert (
        len(batches) == len(measured.batches) == len(list((tmp_path / "statistics").glob("batch-*.safetensors"))) == 2
    )


@pytest.mark.parametrize("others", [0, 1])
def test_what_could_not_be_written_behind_is_an_error(tmp_path: Path, others: int) -> None:
    def write() -> None:
        with writing_behind() as save:
            save(tmp_path / "absent" / "one.safetensors", {"a": torch.ones(2)})
            for number in range(others):
                save(tmp_path / f"{number}.safetensors", {"a": torch.ones(2)})

    with pytest.raises(SafetensorError, match=r"No such file or directory.*absent"):
        write()
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_is_being_written_when_the_caller_raises_is_written_or_an_error(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        with writing_behind() as save:
            save(folder / "one.safetensors", {"a": torch.ones(2)})
            raise ModelError("the next batch")

    with pytest.raises(ModelError, match="the next batch"):
        write(tmp_path)
    assert TensorFile(tmp_path / "one.safetensors").tensor("a").equal(torch.ones(2))
    with pytest.raises(SafetensorError, match="absent") as caught:
        write(tmp_path / "absent")
    assert isinstance(caught.value.__context__, ModelError)


def flip(file: Path) -> None:
    """The last bit of the last number but a few."""
    whole = bytearray(file.read_bytes())
    whole[-20] ^= 1
    file.write_bytes(whole)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def exchange(file: Path) -> None:
    """With another batch."""
    other = file.with_name("batch-0001.safetensors")
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)


def of_other_statistics(file: Path) -> None:
    """As it would be in a folder of another name."""
    tensors = TensorFile(file).tensors()
    other = file.parent.with_name("other")
    other.mkdir()
    save_tensors(other / file.name, tensors)
    (other / file.name).replace(file)


def other_weights(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace("1.0", "1.5", 1), encoding="utf-8")


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("batch-0000.safetensors", cut, "cut off"),
    ("batch-0000.safetensors", empty, "Expecting value"),
    ("batch-0000.safetensors", flip, "the numbers of '.*' are not those that were written"),
    ("batch-0000.safetensors", exchange, "it was written as batch-0001.safetensors"),
    ("basis.safetensors", flip, "the numbers of '.*' are not those that were written"),
    ("batch-0000.safetensors", of_other_statistics, "it was written into a folder other"),
    ("basis.safetensors", of_other_statistics, "it was written into a folder other"),
]
OF_FINISHED: list[tuple[str, Callable[[Path], None], str]] = [  # an interrupted one measures what is not there
    ("batch-0000.safetensors", Path.unlink, "No such file or directory"),
    ("basis.safetensors", Path.unlink, "No such file or directory"),
    ("index.json", cut, "Unterminated|Expecting|delimiter"),
    ("index.json", other_weights, "it is not what was written"),
]


@pytest.mark.parametrize(
    ("is_finished", "name", "damage", "why"),
    [(True, *case) for case in DAMAGES + OF_FINISHED] + [(False, *case) for case in DAMAGES],
)
def test_damaged_statistics_are_an_error_that_names_the_file_and_the_way_out(
    llama: Base, tmp_path: Path, is_finished: bool, name: str, damage: Callable[[Path], None], why: str
) -> None:
    folder = tmp_path / "statistics"
    measure(llama, folder)
    if not is_finished:
        (folder / "index.json").unlink()
    damage(folder / name)
    message = rf"{name} is missing or damaged \((.*: )?({why}).*\)\. Remove the folder .*statistics; the next run"

    def use() -> None:
        found = SampleGradients.load(folder) if is_finished else measure(llama, folder)
        for module in llama.modules:
            found.basis(module)
            found.rows(module)

    with pytest.raises(StatisticsError, match=message):
        use()


def test_statistics_of_another_writer_need_no_sums(llama: Base, tmp_path: Path) -> None:
    expected = measure(llama, tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        save_file(load_file(file), file)
    index = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    del index["crc32"]
    (tmp_path / "index.json").write_text(json.dumps(index), encoding="utf-8")
    found = SampleGradients.load(tmp_path)
    for name in llama.modules:
        assert found.rows(name).equal(expected.rows(name))
        assert found.basis(name).q.equal(expected.basis(name).q)


def test_files_hold_float32_whatever_the_model(llama64: Base, tmp_path: Path) -> None:
    measure(llama64, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "batch-0000.safetensors").values()} == {torch.float32}


def test_weights_count_relative_to_their_own_data_set(llama: Base, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    plain = measure(llama, tmp_path / "plain").rows(name)
    weights = [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 6.0]
    weighted = measure(llama, tmp_path / "weighted", weights=weights).rows(name)
    torch.testing.assert_close(weighted[:3], plain[:3])  # all safety samples weigh the same
    torch.testing.assert_close(weighted[3], plain[3] * (5 / 10) ** 0.5)  # 1 of 10 instead of 1 of 5
    torch.testing.assert_close(weighted[7], plain[7] * (5 * 6 / 10) ** 0.5)


def test_the_response_to_the_patch_does_not_depend_on_its_gauge(llama64: Base, tmp_path: Path) -> None:
    safety = random_adapter(llama64, 3, seed=1)
    samples = collate(llama64, encoded_conversations(llama64))
    responses = []
    for updates in (safety, in_another_gauge(safety)):
        bases = patch_bases(updates)
        gradients, _ = batch_gradients(llama64, bases, samples)
        responses.append(
            {
                name: gradients[name] @ patch_coordinates(updates[name], basis.q, basis.side).double().flatten()
                for name, basis in bases.items()
            }
        )
    torch.testing.assert_close(responses[0], responses[1], rtol=1e-4, atol=1e-4)  # float32 factors


def test_the_response_predicts_the_change_of_likelihood_to_first_order(llama64: Base) -> None:
    """Independent of every convention: a small step along the patch against the difference of two likelihoods."""
    safety = random_adapter(llama64, 3, seed=1)
    batch = collate(llama64, encoded_conversations(llama64))
    bases = patch_bases(safety)
    gradients, before = batch_gradients(llama64, bases, batch)
    predicted = sum(
        gradients[name] @ patch_coordinates(safety[name], basis.q, basis.side).double().flatten()
        for name, basis in bases.items()
    )
    step = 1e-4
    with applied(llama64, {name: update.scaled(step) for name, update in safety.items()}, "step"):
        _, after = batch_gradients(llama64, bases, batch)
    torch.testing.assert_close(
        (after - before) / step, predicted, rtol=0.02, atol=0.02
    )  # second order: step * curvature


def test_an_adapter_of_zeros_has_no_coordinates_and_no_rows(llama: Base, tmp_path: Path) -> None:
    samples = encoded_conversations(llama)[:2]
    bases = patch_bases(zero_adapter(llama))
    measured = SampleGradients.measure(
        llama, bases, samples, tmp_path, safety_samples=1, weights=[1.0, 1.0], batch_size=2
    )
    assert all(len(measured.basis(name).q) == 0 for name in llama.modules)


def test_capturing_leaves_no_hook_and_no_gradient_behind(llama: Base) -> None:
    bases = patch_bases({"model.layers.0.mlp.up_proj": random_update((48, 32), 2, seed=0)})
    with pytest.raises(RuntimeError, match="on purpose"), capture_gradients(llama, bases):
        raise RuntimeError("on purpose")
    assert not any(module._forward_hooks for module in llama.model.modules())
    batch_gradients(llama, bases, collate(llama, encoded_conversations(llama)[:2]))
    assert not any(module._forward_hooks for module in llama.model.modules())
    assert all(parameter.grad is None for parameter in llama.model.parameters())


def test_a_gradient_that_is_not_finite_names_its_module(llama: Base) -> None:
    name = "model.layers.1.mlp.down_proj"
    bases = patch_bases({name: random_update((32, 48), 2, seed=0)})
    weight = llama.modules[name].weight
    with torch.no_grad(), applied(llama, {name: random_update((32, 48), 1, seed=0)}, "broken"):
        weight.fill_(float("nan"))  # `applied` puts the old weights back
        with pytest.raises(NumericalError, match=name):
            batch_gradients(llama, bases, collate(llama, encoded_conversations(llama)[:2]))
    assert bool(torch.isfinite(weight).all())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("phimoe", r"module 'model.layers.0.mlp.router' does more than multiply .* \(target_modules\)"),
        ("mamba", r"module 'backbone.layers.0.mixer.dt_proj' takes no part .* \(2 such module\(s\) of 8\)"),
    ],
)
@pytest.mark.parametrize("statistic", list(STATISTICS.values()), ids=list(STATISTICS))
def test_modules_that_are_not_called_as_linear_ones_are_refused_at_the_first_batch(
    tmp_path: Path, kind: str, message: str, statistic: type[SampleGradients] | type[KroneckerFactors]
) -> None:
    base, done = other_base(kind), []
    samples, bases = encoded_conversations(base), patch_bases(random_adapter(base, 2, seed=1))
    with pytest.raises(ModelError, match=message):
        statistic.measure(
            base, bases, samples, tmp_path, safety_samples=4, weights=[1.0] * 8, batch_size=4, on_batch=done.append
        )
    assert not done


def test_a_module_that_is_used_twice_for_a_text_is_refused() -> None:
    base = tiny_base()
    first, second = base.model.model.layers
    second.mlp.up_proj = first.mlp.up_proj
    bases = patch_bases({"model.layers.0.mlp.up_proj": random_update((48, 32), 2, seed=0)})
    with pytest.raises(ModelError, match=r"module 'model.layers.0.mlp.up_proj' is used more than once"):
        batch_gradients(base, bases, collate(base, encoded_conversations(base)[:2]))
