"""What holds in every structure, span and patch of SST-Merge: docs/method.md, what is exact."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sst_merge.adapter import Updates
from sst_merge.errors import NumericalError, StatisticsError
from sst_merge.kronecker import KroneckerFisher
from sst_merge.linalg import patch_coordinates
from sst_merge.methods import ModuleInputs, ModuleResult, module_generator
from sst_merge.methods.sst import Keep, Sst
from sst_merge.statistics import KroneckerFactors, Request, Statistics
from sst_merge.statistics.sample_gradients import patch_bases
from sst_merge.statistics.stored import PatchBasis
from tiny import random_gradients, random_statistics, random_update

SHAPES = {"a": (8, 11), "b": (11, 7)}  # output side and input side
UTILITY: Updates = {name: random_update(shape, 3, seed=number) for number, (name, shape) in enumerate(SHAPES.items())}
SAFETY: Updates = {name: random_update(shape, 2, seed=10 + n) for n, (name, shape) in enumerate(SHAPES.items())}
FLOAT32 = {"rtol": 1e-5, "atol": 2e-6}  # updates of order 0.1 in float32, once through an orthonormal basis

STRUCTURES: dict[str, dict[str, Any]] = {
    "exact": {"fisher": "exact"},
    "global": {"fisher": "exact", "scope": "global"},
    "kfac": {"fisher": "kfac"},
    "diagonal": {"fisher": "diagonal"},
    "none": {"fisher": "none"},
}
PATCHES: dict[str, dict[str, Any]] = {
    "safety": {},
    "joint": {"span": "joint"},
    "interpolate": {"span": "joint", "patch": "interpolate"},
}
every_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
every_patch = pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES.keys())
fisher_structure = pytest.mark.parametrize("fisher", ["exact", "kfac", "diagonal"])


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    return random_statistics(tmp_path_factory.mktemp("statistics"), UTILITY, SAFETY)


def merge(
    method: Sst, statistics: Statistics, utility: Updates = UTILITY, safety: Updates = SAFETY
) -> dict[str, ModuleResult]:
    modules = [method.inputs(name, utility[name], safety[name], statistics) for name in sorted(utility)]
    state = method.prepare(iter(modules))
    return {each.name: method.merge_module(each, state, module_generator(0, each.name)) for each in modules}


def dense(results: dict[str, ModuleResult]) -> dict[str, Tensor]:
    return {name: result.update.dense() for name, result in results.items()}


@every_structure
@every_patch
def test_keeping_everything_at_strength_one_gives_the_target_exactly(
    structure: dict[str, Any], patch: dict[str, Any], statistics: Statistics
) -> None:
    """``U + S`` without cross terms; for ``interpolate`` the safety model itself."""
    is_between = patch.get("patch") == "interpolate"
    for keep in (Keep(soft=0.0), Keep(directions=10_000), Keep(threshold=0.0)):
        found = dense(merge(Sst(keep=keep, **structure, **patch), statistics))
        for name in SHAPES:
            expected = SAFETY[name].dense() + (0 if is_between else UTILITY[name].dense())
            torch.testing.assert_close(found[name], expected, **FLOAT32)


@every_structure
@every_patch
def test_strength_zero_gives_the_utility_update_to_the_last_bit(
    structure: dict[str, Any], patch: dict[str, Any], statistics: Statistics
) -> None:
    found = merge(Sst(strength=0.0, **structure, **patch), statistics)
    for name in SHAPES:
        compact = found[name].update.without_zero_components()
        assert compact.b.equal(UTILITY[name].b)
        assert compact.a.equal(UTILITY[name].a)


@every_structure
@every_patch
def test_keeping_nothing_gives_the_utility_update(
    structure: dict[str, Any], patch: dict[str, Any], statistics: Statistics
) -> None:
    for keep in (Keep(directions=0), Keep(threshold=1e12)):
        found = dense(merge(Sst(keep=keep, **structure, **patch), statistics))
        torch.testing.assert_close(found, {name: update.dense() for name, update in UTILITY.items()}, **FLOAT32)


@every_structure
@every_patch
def test_strength_and_utility_weight_are_factors_and_the_rank_is_bounded(
    structure: dict[str, Any], patch: dict[str, Any], statistics: Statistics
) -> None:
    change = dense(merge(Sst(utility_weight=0.0, **structure, **patch), statistics))
    found = merge(Sst(utility_weight=0.5, strength=1.7, **structure, **patch), statistics)
    for name, result in found.items():
        expected = 0.5 * UTILITY[name].dense() + 1.7 * change[name]
        torch.testing.assert_close(result.update.dense(), expected, **FLOAT32)
        assert result.update.rank <= UTILITY[name].rank + SAFETY[name].rank


@fisher_structure
@every_patch
@pytest.mark.parametrize("damping_safety", [0.0, 0.1])
def test_more_directions_more_energy_and_a_lower_price_keep_more_energy(
    fisher: str, patch: dict[str, Any], damping_safety: float, statistics: Statistics
) -> None:
    def kept(keep: Keep) -> dict[str, float]:
        method = Sst(fisher=fisher, keep=keep, damping_safety=damping_safety, **patch)
        return {key: value for key, value in merge(method, statistics)["a"].diagnostics.items() if "kept" in key}

    counts = [Keep(directions=k) for k in range(0, 8 * 5 + 1, 4)]
    fractions = [Keep(energy=f) for f in (0.0, 0.3, 0.6, 0.9, 1.0)]
    prices = [Keep(soft=price) for price in (1e4, 100.0, 10.0, 1.0, 0.1, 0.0)]
    for rules in (counts, fractions, prices):
        found = [kept(rule) for rule in rules]
        assert found[-1]["safety_energy_kept"] > 0
        # Undamped safety energy falls with no step where directions are orthogonal in F_s, that is without damping.
        if damping_safety == 0 or fisher == "diagonal":
            energies = [each["safety_energy_kept"] for each in found]
            assert all(after >= before * (1 - 1e-6) - 1e-9 for before, after in itertools.pairwise(energies))
    whole = kept(Keep(soft=0.0))
    utility = [kept(rule)["utility_energy_kept"] for rule in prices]
    assert utility[0] < 0.2 * whole["utility_energy_kept"]
    assert utility[-1] == pytest.approx(whole["utility_energy_kept"])


@every_structure
@every_patch
def test_every_dial_changes_the_output(
    structure: dict[str, Any], patch: dict[str, Any], statistics: Statistics
) -> None:
    def found(**changes: Any) -> Tensor:
        return dense(merge(Sst(**{**structure, **patch, **changes}), statistics))["a"]

    soft, hard = found(), found(keep=Keep(directions=3))
    for changed, other in (
        (found(keep=Keep(soft=1.0)), soft),
        (found(damping_safety=0.9), soft),
        (found(keep=Keep(directions=6)), hard),
    ):
        assert not torch.allclose(changed, other, atol=1e-4)


@pytest.mark.parametrize("structure", ["exact", "global", "kfac", "diagonal"])
@pytest.mark.parametrize("span", ["safety", "joint"])
def test_a_hard_rule_is_idempotent(structure: str, span: str, statistics: Statistics) -> None:
    """Not ``none`` and ``interpolate``: there lambda or the patch depend on the updates that a merge changes."""
    method = Sst(keep=Keep(directions=6), utility_weight=0.0, span=span, **STRUCTURES[structure])
    once = {name: result.update for name, result in merge(method, statistics).items()}
    twice = dense(merge(method, statistics, safety=once))
    torch.testing.assert_close(twice, {name: update.dense() for name, update in once.items()}, **FLOAT32)
    assert not torch.allclose(once["a"].dense(), SAFETY["a"].dense(), atol=1e-3)


@pytest.mark.parametrize(("place", "data"), [(0, "safety"), (1, "utility")])
def test_kronecker_factors_without_gradient_are_an_error_and_not_a_patch(
    place: int, data: str, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = KroneckerFactors.fishers

    def without(self: KroneckerFactors, name: str) -> tuple[KroneckerFisher, ...]:
        found = list(whole(self, name))
        found[place] = KroneckerFisher(0 * found[place].left, 0 * found[place].right)
        return tuple(found)

    monkeypatch.setattr(KroneckerFactors, "fishers", without)
    with pytest.raises(NumericalError, match=f"the {data} Fisher of module 'a' is zero"):
        merge(Sst(fisher="kfac"), statistics)


@every_patch
def test_the_soft_rule_in_any_span_equals_a_dense_solve(patch: dict[str, Any], statistics: Statistics) -> None:
    method = Sst(keep=Keep(soft=4.0), damping_safety=0.2, utility_weight=0.6, strength=1.3, **patch)
    gradients = statistics.gradients(*method.coordinates())
    assert gradients is not None
    found = dense(merge(method, statistics))
    for name in SHAPES:
        basis, rows = gradients.basis(name), gradients.rows(name).double().numpy()
        q, u, s = (each.double().numpy() for each in (basis.q, UTILITY[name].dense(), SAFETY[name].dense()))
        target = s - u if "patch" in patch else s
        start = target @ q.T if basis.side == "output" else q @ target
        f_s, f_u = rows[:6].T @ rows[:6], rows[6:].T @ rows[6:]
        damped = f_s + 0.2 * np.trace(f_s) / start.size * np.eye(start.size)
        c = np.linalg.solve(damped + 4.0 * f_u, damped @ start.ravel()).reshape(start.shape)
        expected = 0.6 * u + 1.3 * (c @ q if basis.side == "output" else q.T @ c)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-5, atol=2e-6)


def test_fisher_merging_is_the_soft_rule_at_price_one_between_the_adapters(statistics: Statistics) -> None:
    """``(F_s + F_u)^{-1} (F_s theta_s + F_u theta_u)``, diagonal (Matena and Raffel 2022, arXiv:2111.09832)."""
    method = Sst(fisher="diagonal", patch="interpolate", span="joint", keep=Keep(soft=1.0), damping_safety=0.0)
    gradients = statistics.gradients(*method.coordinates())
    assert gradients is not None
    found = dense(merge(method, statistics))
    for name in SHAPES:
        basis, squares = gradients.basis(name), gradients.rows(name).double().square()
        f_s, f_u = squares[:6].sum(dim=0), squares[6:].sum(dim=0)
        theta_s, theta_u = (
            patch_coordinates(update, basis.q, basis.side).double().flatten()
            for update in (SAFETY[name], UTILITY[name])
        )
        shape = patch_coordinates(SAFETY[name], basis.q, basis.side).shape
        c = ((f_s * theta_s + f_u * theta_u) / (f_s + f_u)).view(shape).float()
        expected = c @ basis.q if basis.side == "output" else basis.q.T @ c
        torch.testing.assert_close(found[name], expected, **FLOAT32)


def test_the_joint_coordinates_hold_both_updates_in_orthonormal_rows() -> None:
    for name, basis in patch_bases(SAFETY, UTILITY).items():
        assert len(basis.q) == 5
        torch.testing.assert_close(basis.q @ basis.q.T, torch.eye(5), rtol=0, atol=1e-6)
        for update in (UTILITY[name], SAFETY[name]):
            c = patch_coordinates(update, basis.q, basis.side)
            back = c @ basis.q if basis.side == "output" else basis.q.T @ c
            torch.testing.assert_close(back, update.dense(), **FLOAT32)


def _own_basis(name: str) -> PatchBasis:
    return patch_bases({name: SAFETY[name]})[name]


@pytest.mark.parametrize("keep", [Keep(soft=2.0), Keep(directions=5), Keep(threshold=0.8)], ids=str)
def test_without_data_the_rule_is_a_loop_over_squared_entries(keep: Keep) -> None:
    method = Sst(fisher="none", keep=keep, damping_safety=0.0, damping_utility=0.3, utility_weight=0.0)
    found = merge(method, Statistics())
    for name in SHAPES:
        basis = _own_basis(name)
        q = basis.q.double()
        s, u = (
            update.dense().double() @ q.T if basis.side == "output" else q @ update.dense().double()
            for update in (SAFETY[name], UTILITY[name])
        )
        eps = 0.3 * float(u.square().mean())
        expected = torch.zeros_like(s)
        lambdas = {(i, j): float(s[i, j] ** 2 / (u[i, j] ** 2 + eps)) for i in range(len(s)) for j in range(s.shape[1])}
        first = sorted(lambdas, key=lambda place: -lambdas[place])[: keep.directions or 0]
        for place, value in lambdas.items():
            if keep.soft is not None:
                weight = float(s[place] ** 2 / (s[place] ** 2 + keep.soft * u[place] ** 2))
            else:
                weight = float(place in first if keep.directions else value >= 0.8)
            expected[place] = weight * s[place]
        patch = expected @ q if basis.side == "output" else q.T @ expected
        torch.testing.assert_close(found[name].update.dense().double(), patch, **FLOAT32)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("keep", "kept"), [(Keep(directions=7), 7), (Keep(threshold=1e9), None)], ids=str)
def test_where_the_utility_adapter_is_zero_all_is_free_and_the_largest_comes_first(
    size: float, keep: Keep, kept: int | None
) -> None:
    name = next(iter(SHAPES))
    safety, zero = SAFETY[name].scaled(size), UTILITY[name].scaled(0.0)
    method = Sst(fisher="none", keep=keep, utility_weight=0.0)
    result = method.merge_module(ModuleInputs(name, zero, safety), None, torch.Generator())
    basis = _own_basis(name)
    before, after = (patch_coordinates(each, basis.q, basis.side).flatten() for each in (safety, result.update))
    is_kept = after.abs() > 1e-5 * before.abs().max()
    expected = torch.zeros_like(is_kept)
    expected[before.abs().argsort(descending=True)[:kept]] = True
    assert torch.equal(is_kept, expected & (before.abs() > 1e-5 * before.abs().max()))


def test_without_data_no_energy_is_predicted_and_nothing_is_asked_for() -> None:
    method = Sst(fisher="none")
    assert method.requires() == frozenset()
    assert set(merge(method, Statistics())["a"].diagnostics) == {"squared_norm", "squared_norm_kept"}


def test_each_structure_asks_for_its_statistic_in_its_coordinates() -> None:
    assert Sst(fisher="kfac", span="joint").requests() == [Request("kronecker_factors", "joint", "add")]
    assert Sst(fisher="diagonal").requests() == [Request("sample_gradients")]
    assert Sst(span="joint", patch="interpolate").requests() == [Request("sample_gradients", "joint", "interpolate")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch": "interpolate"}, "patch interpolate needs span joint"),
        ({"fisher": "none", "keep": {"energy": 0.5}}, "keep energy needs a Fisher matrix"),
        ({"fisher": "kfac", "scope": "global"}, "scope global needs fisher exact"),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Sst(**values)


def test_statistics_in_foreign_coordinates_are_refused(tmp_path: Path) -> None:
    method = Sst(span="joint")
    foreign = Statistics({method.requests()[0]: random_gradients(tmp_path, SAFETY)})
    with pytest.raises(StatisticsError, match="do not span its updates"):
        merge(method, foreign)
