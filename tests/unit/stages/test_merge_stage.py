"""The merge stage on updates: every module, the run's seed, and nothing that is not finite."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from sst_merge.adapter import Update, concatenate
from sst_merge.errors import AdapterError
from sst_merge.linalg import patch_coordinates
from sst_merge.methods import METHODS, ModuleInputs, ModuleResult
from sst_merge.methods.sst import Sst
from sst_merge.methods.task_arithmetic import TaskArithmetic
from sst_merge.models import Base
from sst_merge.progress import SilentReporter
from sst_merge.stages.merge import Merged, _kept, _spectrum, _sum, _written_loss, merge_reusing, merge_updates
from tiny import random_adapter, random_statistics


def test_every_module_is_merged(llama: Base) -> None:
    utility, safety = random_adapter(llama, seed=1), random_adapter(llama, seed=2)
    merged = merge_updates(TaskArithmetic(), utility, safety, None, seed=0, reporter=SilentReporter())
    assert merged.updates.keys() == merged.modules.keys() == utility.keys()
    for name, update in merged.updates.items():
        torch.testing.assert_close(update.dense(), utility[name].dense() + safety[name].dense())


def test_adapters_with_other_modules_are_refused(llama: Base) -> None:
    utility, safety = random_adapter(llama, seed=1), random_adapter(llama, seed=2)
    safety.popitem()
    with pytest.raises(AdapterError, match=r"differ in 1 module"):
        merge_updates(TaskArithmetic(), utility, safety, None, seed=0, reporter=SilentReporter())


def test_a_value_that_is_not_finite_stops_the_merge(llama: Base) -> None:
    utility, safety = random_adapter(llama, seed=1), random_adapter(llama, seed=2)
    name = sorted(safety)[3]
    safety[name] = Update(safety[name].b.clone().fill_(3e38), safety[name].a)
    with pytest.raises(AdapterError, match=rf"module '{name}' holds NaN or infinity; nothing was written"):
        merge_updates(TaskArithmetic(strength=4.0), utility, safety, None, seed=0, reporter=SilentReporter())


def test_a_random_method_follows_the_seed_and_not_the_order_of_modules(llama: Base) -> None:
    utility, safety = random_adapter(llama, seed=1), random_adapter(llama, seed=2)

    def merged(seed: int, *, backwards: bool = False) -> dict[str, Update]:
        first = dict(reversed(utility.items())) if backwards else utility
        return merge_updates(METHODS["dare"](), first, safety, None, seed=seed, reporter=SilentReporter()).updates

    def same(one: dict[str, Update], other: dict[str, Update]) -> bool:
        return all(torch.equal(one[name].dense(), other[name].dense()) for name in one)

    assert same(merged(0), merged(0, backwards=True))
    assert not same(merged(0), merged(1))


class Counting(TaskArithmetic):
    """Task arithmetic that looks at the threads it has, and fails on request."""

    title: ClassVar[str] = "counting"
    threads: ClassVar[list[int]] = []
    fails_at: ClassVar[str | None] = None

    def merge_module(self, inputs: ModuleInputs, state: Any, rng: torch.Generator) -> ModuleResult:
        self.threads.append(torch.get_num_threads())
        if inputs.name == self.fails_at:
            raise ValueError(f"no merge of {inputs.name}")
        return super().merge_module(inputs, state, rng)


def test_a_module_is_merged_in_one_thread_and_its_error_comes_through(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    utility, safety = random_adapter(llama, seed=1), random_adapter(llama, seed=2)
    before = torch.get_num_threads()
    monkeypatch.setattr(Counting, "threads", [])
    merge_updates(Counting(), utility, safety, None, seed=0, reporter=SilentReporter())
    assert Counting.threads == [1] * len(utility)
    failing = sorted(utility)[2]
    monkeypatch.setattr(Counting, "fails_at", failing)
    with pytest.raises(ValueError, match=f"no merge of {failing}"):
        merge_updates(Counting(), utility, safety, None, seed=0, reporter=SilentReporter())
    assert torch.get_num_threads() == before


def test_the_number_of_threads_changes_no_bit_and_is_put_back(llama: Base, tmp_path: Path) -> None:
    utility, safety = random_adapter(llama, seed=1), random_adapter(llama, seed=2)
    statistics = random_statistics(tmp_path, utility, safety)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            method = METHODS["sst"](fisher="exact", keep={"soft": 2.0})
            found.append(merge_updates(method, utility, safety, statistics, seed=0, reporter=SilentReporter()))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    alone, together = (each.updates for each in found)
    assert list(alone) == list(together) == sorted(utility)
    assert all(torch.equal(alone[n].b, together[n].b) and torch.equal(alone[n].a, together[n].a) for n in alone)
    assert found[0].modules == found[1].modules
    assert found[0].whole == found[1].whole


SPECTRUM = {"spectrum", "neutral_value", "neutral_directions"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scope": "global"},
        {"fisher": "diagonal", "keep": {"soft": 3.0}},
        {"fisher": "exact", "keep": {"directions": 2}},
        {"fisher": "none"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "default",
)
def test_one_patch_serves_all_strengths_and_weights(
    llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    utility, safety = random_adapter(llama, seed=1), random_adapter(llama, seed=2)
    statistics = random_statistics(tmp_path, utility, safety)
    dials = [(1.0, 1.0), (1.0, 0.5), (0.8, 1.25), (0.0, 2.0), (1.0, 0.0)]
    methods = [METHODS["sst"](**settings, utility_weight=w, strength=s, label=f"at_{s}") for w, s in dials]
    direct = [merge_updates(m, utility, safety, statistics, seed=0, reporter=SilentReporter()) for m in methods]
    calls: list[str] = []
    merge_module = Sst.merge_module
    monkeypatch.setattr(Sst, "merge_module", lambda self, *inputs: calls.append("") or merge_module(self, *inputs))
    monkeypatch.setattr("sst_merge.methods.sst.spectrum", lambda *_, **__: pytest.fail("nobody reads it"))
    patches: dict[str, Merged] = {}
    for method, expected in zip(methods, direct, strict=True):
        made = merge_reusing(patches, method, utility, safety, statistics, seed=0, reporter=SilentReporter())
        for told, whole in zip(
            (*made.modules.values(), made.whole), (*expected.modules.values(), expected.whole), strict=True
        ):
            shown = {key: value for key, value in whole.items() if key not in SPECTRUM}
            assert {key: value for key, value in told.items() if key not in SPECTRUM} == shown
        for name, update in expected.updates.items():  # as they are added to the weights
            one, other = update.without_zero_components(), made.updates[name].without_zero_components()
            assert torch.equal(one.b, other.b)
            assert torch.equal(one.a, other.a)
    assert len(calls) == len(utility)  # steered once
    assert len(patches) == 1


def test_a_patch_serves_no_other_price_and_no_sum_that_is_none(llama: Base, tmp_path: Path) -> None:
    utility, safety = random_adapter(llama, seed=1), random_adapter(llama, seed=2)
    statistics = random_statistics(tmp_path, utility, safety)
    patches: dict[str, Merged] = {}
    for method in (METHODS["sst"](keep={"soft": 2.0}), METHODS["sst"](keep={"soft": 3.0}), METHODS["dare"]()):
        made = merge_reusing(patches, method, utility, safety, statistics, seed=0, reporter=SilentReporter())
        direct = merge_updates(method, utility, safety, statistics, seed=0, reporter=SilentReporter())
        for name, update in direct.updates.items():
            torch.testing.assert_close(made.updates[name].dense(), update.dense(), rtol=0, atol=0)
    assert len(patches) == 2
    assert METHODS["sst"](span="joint").patch_alone() is None
    method = METHODS["sst"](fisher="none", keep={"soft": 0}, utility_weight=0.0)
    patch = merge_updates(method, utility, safety, None, seed=0, reporter=SilentReporter()).updates
    largest = max(float(update.b.abs().max()) for update in patch.values())
    large = {name: update.scaled(2e38 / largest) for name, update in safety.items()}
    found = merge_reusing(patches, method, utility, large, None, seed=0, reporter=SilentReporter())
    assert max(float(update.b.abs().max()) for update in found.updates.values()) > 1e38  # finite at strength 1
    stronger = method.model_copy(update={"strength": 4.0})
    with pytest.raises(AdapterError, match="holds NaN or infinity"):
        merge_reusing(patches, stronger, utility, large, None, seed=0, reporter=SilentReporter())


def test_in_global_scope_energies_and_spectrum_are_those_of_the_one_problem(llama: Base, tmp_path: Path) -> None:
    utility, safety = random_adapter(llama, seed=1), random_adapter(llama, seed=2)
    statistics = random_statistics(tmp_path, utility, safety)
    method = METHODS["sst"](scope="global", keep={"soft": 4.0}, utility_weight=0.0)
    merged = merge_updates(method, utility, safety, statistics, seed=0, reporter=SilentReporter())
    gradients = statistics.gradients("safety", "add")
    assert gradients is not None
    rows, before, after = [], [], []
    for name, update in safety.items():  # in the coordinates, module by module, then as one vector
        basis = gradients.basis(name)
        rows.append(gradients.rows(name).double())
        for parts, each in ((before, update), (after, merged.updates[name])):
            parts.append(patch_coordinates(each, basis.q, basis.side).double().flatten())
    responses = {"": torch.cat(rows, dim=1) @ torch.cat(before), "_kept": torch.cat(rows, dim=1) @ torch.cat(after)}
    for suffix, response in responses.items():
        for data, chosen in (("safety", gradients.is_safety()), ("utility", ~gradients.is_safety())):
            expected = float(response[chosen].square().sum())
            assert merged.whole[f"{data}_energy{suffix}"] == pytest.approx(expected, rel=1e-4)
    alone = sum(module["utility_energy_kept"] for module in merged.modules.values())
    assert merged.whole["utility_energy_kept"] != pytest.approx(alone, rel=0.1)  # terms between modules count
    assert len(merged.whole["spectrum"]) == len(gradients.weights)
    assert merged.whole["neutral_directions"] == torch.cat(before).numel() - len(gradients.weights)


def test_in_module_scope_they_are_sums_and_unions(llama: Base, tmp_path: Path) -> None:
    utility, safety = random_adapter(llama, seed=1), random_adapter(llama, seed=2)
    statistics = random_statistics(tmp_path, utility, safety)
    merged = merge_updates(METHODS["sst"](), utility, safety, statistics, seed=0, reporter=SilentReporter())
    kept = [module["safety_energy_kept"] for module in merged.modules.values()]
    assert merged.whole["safety_energy_kept"] == sum(kept)
    assert merged.whole["spectrum"] == _spectrum(merged.modules)
    assert "neutral_value" not in merged.whole


def test_totals_are_ratios_of_sums_and_nothing_is_kept_of_nothing() -> None:
    modules = {
        "a": {"squared_norm": 4.0, "squared_norm_kept": 1.0, "safety_energy": 0.0, "safety_energy_kept": 0.0},
        "b": {"squared_norm": 12.0, "squared_norm_kept": 3.0},
        "zeros": {"squared_norm": 0.0},
    }
    assert _kept(_sum(modules)) == {
        "patch_norm_kept": 0.5,
        "safety_energy_kept": None,
        "utility_energy_kept": None,
    }
    assert set(_kept({}).values()) == {None}
    assert _kept(_sum({"a": {}})) == _kept({})


def test_the_spectrum_of_all_modules_is_whole_and_falls() -> None:
    spectrum = _spectrum({str(n): {"spectrum": [float(n), float(-n)]} for n in range(5000)})
    assert len(spectrum) == 10000
    assert spectrum == sorted(spectrum, reverse=True)


def test_what_writing_costs_is_zero_for_the_same_factors_and_undefined_for_zeros() -> None:
    update = Update(torch.tensor([[1e-3], [7.0]]), torch.tensor([[3.0, 1e-5, 0.1]]))
    cast = Update(update.b.bfloat16().float(), update.a)
    assert _written_loss({"a": update}, {"a": update}) == 0.0
    assert _written_loss({"a": concatenate([update, update.scaled(0.0)])}, {"a": update}) == 0.0
    assert 0 < (_written_loss({"a": update}, {"a": cast}) or 0) < 0.01
    assert _written_loss({"a": update.scaled(0.0)}, {"a": update.scaled(0.0)}) is None
