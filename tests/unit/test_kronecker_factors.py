"""Kronecker factors on disk: restarts, bytes, nothing skipped."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sst_merge.errors import NumericalError, StatisticsError
from sst_merge.methods import ModuleInputs, module_generator
from sst_merge.methods.keep import Keep
from sst_merge.methods.sst import Sst
from sst_merge.models import Base
from sst_merge.statistics import KroneckerFactors, kronecker_factors
from sst_merge.statistics.sample_gradients import patch_bases
from sst_merge.weights import applied
from tiny import encoded_conversations, random_adapter, random_update, zero_adapter


def measure(base: Base, folder: Path, batch_size: int = 3, **changed: object) -> KroneckerFactors:
    samples = encoded_conversations(base)
    arguments = {"safety_samples": 3, "weights": [1.0] * len(samples), **changed}
    bases = patch_bases(random_adapter(base, 2, seed=1))
    return KroneckerFactors.measure(base, bases, samples, folder, batch_size=batch_size, **arguments)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix != ".part"}


def test_no_module_is_skipped_and_no_factor_is_larger_than_the_smaller_dimension(llama: Base, tmp_path: Path) -> None:
    measured = measure(llama, tmp_path)
    assert set(measured.sides) == set(llama.modules)
    for name, module in llama.modules.items():
        for fisher in measured.fishers(name):
            sizes = {len(fisher.left), len(fisher.right)}
            assert sizes == {2, min(module.weight.shape)}
            assert bool(fisher.left.any())
            assert bool(fisher.right.any())


@pytest.mark.parametrize("every", [0.0, 1e9], ids=["written rarely", "written after every batch"])
def test_a_killed_calibration_ends_with_the_same_bytes(
    llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float
) -> None:
    whole = measure(llama, tmp_path / "whole" / "key")
    monkeypatch.setattr(kronecker_factors, "SAVING_SHARE", every)
    monkeypatch.setattr(kronecker_factors, "WRITTEN_PER_SECOND", math.inf)  # the first batch's sums are written
    done: list[int] = []

    def stop_after_the_second(samples: int) -> None:
        done.append(samples)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(llama, tmp_path / "killed" / "key", on_batch=stop_after_the_second)
    assert not KroneckerFactors.is_complete(tmp_path / "killed" / "key")
    assert int(load_file(tmp_path / "killed" / "key" / "sums.safetensors")["batches"]) == (2 if every else 1)
    measure(llama, tmp_path / "killed" / "key")
    assert contents(tmp_path / "killed" / "key") == contents(tmp_path / "whole" / "key")
    assert KroneckerFactors.load(tmp_path / "killed" / "key").weights == whole.weights


def test_sums_that_take_long_to_write_wait_for_more_batches(
    llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = kronecker_factors._Sums.write

    def counting(sums: kronecker_factors._Sums, path: Path) -> None:
        written.append(sums.batches)
        write(sums, path)

    monkeypatch.setattr(kronecker_factors._Sums, "write", counting)
    monkeypatch.setattr(kronecker_factors, "WRITTEN_PER_SECOND", 1.0)
    measure(llama, tmp_path)
    assert written == [3]  # eight samples in batches of three


def test_a_factor_is_stored_once_and_comes_back_symmetric(tmp_path: Path) -> None:
    sums = kronecker_factors._Sums()
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(4, 30, size, generator=rng) for size in (kronecker_factors.PANEL_ROWS * 5 + 1, 3))
    sums.add_tokens(
        "layer", left, right, torch.tensor([1.0, 0.5, 2.0, 1.0]).double(), torch.tensor([True, True, False, False])
    )
    kronecker_factors.save_tensors(tmp_path / "sums.safetensors", sums.tensors)
    factors = KroneckerFactors(tmp_path, 2, (1.0, 0.5, 2.0, 1.0), {"layer": "output"})
    size = left.shape[2]
    assert len(kronecker_factors.panels(size)) == kronecker_factors.PANELS
    stored = sum(value.numel() for key, value in sums.tensors.items() if key.startswith("layer/safety/left"))
    assert size * (size + 1) / 2 < stored < 0.66 * size**2
    for fisher, chosen, weights in zip(
        factors.fishers("layer"), ([0, 1], [2, 3]), ([1.0, 0.5], [2.0, 1.0]), strict=True
    ):
        weight = torch.tensor(weights).double()
        for found, tokens, total in ((fisher.left, left, sum(weights)), (fisher.right, right, 30 * sum(weights))):
            wanted = torch.einsum("s,sti,stj->ij", weight, tokens[chosen].double(), tokens[chosen].double()) / total
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
            assert torch.equal(found, found.T)


@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "interrupted"])
def test_damaged_sums_are_an_error_that_names_the_file(llama: Base, tmp_path: Path, is_finished: bool) -> None:
    measure(llama, tmp_path)
    file = tmp_path / "sums.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    if not is_finished:
        (tmp_path / "index.json").unlink()
    name = "model.layers.1.self_attn.v_proj"  # the last one in the file
    use = (lambda: KroneckerFactors.load(tmp_path).fishers(name)) if is_finished else (lambda: measure(llama, tmp_path))
    with pytest.raises(StatisticsError, match=r"sums.safetensors is missing or damaged \(cut off\). Remove the folder"):
        use()


def test_without_damping_a_merge_does_not_depend_on_the_batch_size(llama: Base, tmp_path: Path) -> None:
    """Few tokens leave directions that neither data set touches; float32 sums would fill them with rounding."""
    method = Sst(fisher="kfac", keep=Keep(soft=10.0), damping_safety=0.0)
    safety, utility = (random_adapter(llama, rank, seed=rank, scale=0.05) for rank in (2, 4))
    samples = encoded_conversations(llama)[:2]
    steered: list[dict[str, Tensor]] = []
    for batch_size in (1, 8):
        factors = KroneckerFactors.measure(
            llama, patch_bases(safety), samples, tmp_path / str(batch_size), safety_samples=1, weights=[1.0, 1.0],
            batch_size=batch_size,
        )  # fmt: skip
        inputs = [ModuleInputs(name, utility[name], safety[name], factors=factors) for name in safety]
        merged = {each.name: method.merge_module(each, None, module_generator(0, each.name)) for each in inputs}
        steered.append({name: found.update.dense() - utility[name].dense() for name, found in merged.items()})
    for name, one in steered[0].items():
        assert (one - steered[1][name]).norm() < 1e-3 * one.norm(), name


def test_weights_count_relative_to_their_own_data_set(llama64: Base, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    plain, _ = measure(llama64, tmp_path / "plain").fishers(name)
    same, heavier = measure(llama64, tmp_path / "same", weights=[2.0] * 3 + [1.0] * 5).fishers(name)
    torch.testing.assert_close(same.left, plain.left)
    torch.testing.assert_close(same.right, plain.right)
    _, other = measure(llama64, tmp_path / "other", weights=[1.0] * 7 + [4.0]).fishers(name)
    assert not torch.allclose(other.left, heavier.left)


def test_an_adapter_of_zeros_has_no_factors(llama: Base, tmp_path: Path) -> None:
    samples = encoded_conversations(llama)[:2]
    bases = patch_bases(zero_adapter(llama))
    measured = KroneckerFactors.measure(
        llama, bases, samples, tmp_path, safety_samples=1, weights=[1.0, 1.0], batch_size=2
    )
    assert all(len(measured.basis(name).q) == 0 for name in llama.modules)
    assert list(load_file(tmp_path / "sums.safetensors")) == ["batches"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_token_whose_gradient_is_not_finite_is_not_taken_for_rounding(value: float) -> None:
    left, right = torch.ones(2, 3, 4), torch.ones(2, 3, 5)
    left[0, 1, 2] = value
    sums = kronecker_factors._Sums()
    sums.add_tokens("layer", left, right, torch.ones(2).double(), torch.tensor([True, False]))
    assert not bool(sums.tensors["layer/safety/left/0"].isfinite().all())
    assert float(sums.tensors["layer/safety/tokens"]) == float(sums.tensors["layer/utility/tokens"]) == 3.0


def test_a_gradient_that_is_not_finite_names_a_module_and_writes_nothing(llama: Base, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj"
    weight = llama.modules[name].weight
    with torch.no_grad(), applied(llama, {name: random_update((32, 48), 1, seed=0)}, "broken"):
        weight.fill_(float("nan"))  # `applied` puts the old weights back
        with pytest.raises(NumericalError, match="NaN or infinite"):
            measure(llama, tmp_path)
    assert not (tmp_path / "sums.safetensors").exists()
    assert bool(torch.isfinite(weight).all())
