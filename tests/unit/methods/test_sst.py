"""What SST-Merge claims: dials, monotonicity, projections, scopes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from pydantic import ValidationError
from torch import Tensor

from sst_merge.adapter import Update, Updates, squared_norm
from sst_merge.errors import NumericalError
from sst_merge.linalg import patch_coordinates
from sst_merge.methods import ModuleInputs, ModuleResult, module_generator
from sst_merge.methods.sst import SMALLEST_DAMPING, Keep, Sst
from sst_merge.statistics import SampleGradients
from tiny import gradients_from_rows, random_gradients, random_update

SHAPES = {"a": (6, 9), "b": (11, 5)}  # output side and input side
UTILITY: Updates = {name: random_update(shape, 3, seed=number) for number, (name, shape) in enumerate(SHAPES.items())}
SAFETY: Updates = {name: random_update(shape, 2, seed=10 + n) for n, (name, shape) in enumerate(SHAPES.items())}
NOTHING: Updates = {name: update.scaled(0.0) for name, update in UTILITY.items()}
COORDINATES = {"a": 12, "b": 10}
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}  # updates of order 0.1 in float32

both_fishers = pytest.mark.parametrize("fisher", ["exact", "diagonal"])
exact_and_diagonal_and_global = pytest.mark.parametrize(
    "structure",
    [{"fisher": "exact"}, {"fisher": "diagonal"}, {"fisher": "exact", "scope": "global"}],
    ids=["exact", "diagonal", "global"],
)
few_and_many_samples = pytest.mark.parametrize("samples", [6, 60], ids=["fewer samples than p", "more samples than p"])


def merge(
    method: Sst, gradients: SampleGradients, utility: Updates = UTILITY, safety: Updates = SAFETY
) -> dict[str, ModuleResult]:
    modules = [ModuleInputs(name, utility[name], safety[name], gradients) for name in sorted(utility)]
    state = method.prepare(iter(modules))
    return {each.name: method.merge_module(each, state, module_generator(0, each.name)) for each in modules}


def dense(results: dict[str, ModuleResult]) -> dict[str, Tensor]:
    return {name: result.update.dense() for name, result in results.items()}


@exact_and_diagonal_and_global
@few_and_many_samples
def test_keeping_everything_gives_the_sum_of_both_updates(
    structure: dict[str, Any], samples: int, tmp_path: Path
) -> None:
    gradients = random_gradients(tmp_path, SAFETY, samples=samples)
    expected = {name: UTILITY[name].dense() + SAFETY[name].dense() for name in SHAPES}
    for keep in (Keep(soft=0.0), Keep(directions=10_000), Keep(threshold=0.0), Keep(energy=1.0)):
        found = dense(merge(Sst(keep=keep, **structure), gradients))
        torch.testing.assert_close(found, expected, **FLOAT32)


@exact_and_diagonal_and_global
def test_keeping_nothing_gives_the_utility_update(structure: dict[str, Any], tmp_path: Path) -> None:
    gradients = random_gradients(tmp_path, SAFETY)
    for keep in (Keep(directions=0), Keep(threshold=1e9), Keep(energy=0.0)):
        found = dense(merge(Sst(keep=keep, **structure), gradients))
        torch.testing.assert_close(found, {name: update.dense() for name, update in UTILITY.items()}, **FLOAT32)


@exact_and_diagonal_and_global
def test_strength_and_utility_weight_are_factors(structure: dict[str, Any], tmp_path: Path) -> None:
    gradients = random_gradients(tmp_path, SAFETY)
    patch = dense(merge(Sst(utility_weight=0.0, **structure), gradients))
    found = dense(merge(Sst(utility_weight=0.5, strength=1.7, **structure), gradients))
    expected = {name: 0.5 * UTILITY[name].dense() + 1.7 * patch[name] for name in SHAPES}
    torch.testing.assert_close(found, expected, **FLOAT32)


@exact_and_diagonal_and_global
@few_and_many_samples
@pytest.mark.parametrize("keep", [Keep(directions=4), Keep(threshold=1.0)], ids=["directions", "threshold"])
@pytest.mark.parametrize("damping_safety", [0.0, 0.1])
def test_projecting_twice_is_projecting_once(
    structure: dict[str, Any], samples: int, keep: Keep, damping_safety: float, tmp_path: Path
) -> None:
    gradients = random_gradients(tmp_path, SAFETY, samples=samples)
    method = Sst(keep=keep, damping_safety=damping_safety, utility_weight=0.0, **structure)
    once = {name: result.update for name, result in merge(method, gradients).items()}
    twice = dense(merge(method, gradients, safety=once))
    torch.testing.assert_close(twice, {name: update.dense() for name, update in once.items()}, **FLOAT32)
    change = sum(squared_norm(SAFETY[name]) for name in SHAPES) - sum(squared_norm(once[name]) for name in SHAPES)
    assert abs(change) > 1e-3  # it does project


def energies(method: Sst, gradients: SampleGradients) -> dict[str, float]:
    """Energies kept of module ``a``, with the damped ones that the rules order."""
    found = merge(method, gradients)["a"].diagnostics
    basis = gradients.basis("a")
    rows, is_safety = gradients.rows("a").double(), gradients.is_safety()
    p = rows.shape[1]
    gamma = method.damping_safety * float(rows[is_safety].square().sum()) / p
    eps = method.damping_utility * float(rows[~is_safety].square().sum()) / p
    assert patch_coordinates(SAFETY["a"], basis.q, basis.side).numel() == p
    return {
        "safety": found["safety_energy_kept"],
        "utility": found["utility_energy_kept"],
        "damped safety": found["safety_energy_kept"] + gamma * found["squared_norm_kept"],
        "damped utility": found["utility_energy_kept"] + eps * found["squared_norm_kept"],
    }


def rises(values: list[float]) -> bool:
    """Up to rounding of sums of order 1, and not constant."""
    return all(after >= before - 1e-9 for before, after in itertools.pairwise(values)) and (
        values[-1] > values[0] + 1e-6
    )


@both_fishers
@few_and_many_samples
@pytest.mark.parametrize("damping_safety", [0.0, 0.1])
def test_more_directions_keep_more_energy(fisher: str, samples: int, damping_safety: float, tmp_path: Path) -> None:
    gradients = random_gradients(tmp_path, SAFETY, samples=samples)
    found = [
        energies(Sst(fisher=fisher, keep=Keep(directions=k), damping_safety=damping_safety), gradients)
        for k in range(COORDINATES["a"] + 1)
    ]
    # v_i are orthogonal in F_s + gamma I and in F_u + eps I; in F_s itself only where gamma = 0.
    assert rises([each["damped safety"] for each in found])
    assert rises([each["damped utility"] for each in found])
    if damping_safety == 0 or fisher == "diagonal":
        assert rises([each["safety"] for each in found])


@both_fishers
@few_and_many_samples
@pytest.mark.parametrize("damping_safety", [0.0, 0.1])
def test_an_energy_is_reached_by_as_few_directions_as_possible(
    fisher: str, samples: int, damping_safety: float, tmp_path: Path
) -> None:
    gradients = random_gradients(tmp_path, SAFETY, samples=samples)
    fractions = (0.0, 0.2, 0.5, 0.8, 0.95, 1.0)

    def found(keep: Keep) -> dict[str, float]:
        return energies(Sst(fisher=fisher, keep=keep, damping_safety=damping_safety), gradients)

    whole = found(Keep(soft=0.0))["damped safety"]
    by_count = [found(Keep(directions=k))["damped safety"] / whole for k in range(COORDINATES["a"] + 1)]
    kept = [found(Keep(energy=fraction)) for fraction in fractions]
    for fraction, each in zip(fractions, kept, strict=True):
        expected = next(value for value in by_count if value >= fraction - 1e-9)
        assert each["damped safety"] / whole == pytest.approx(expected, abs=1e-9)
    assert rises([each["damped safety"] for each in kept])
    assert rises([each["damped utility"] for each in kept])


@both_fishers
@few_and_many_samples
@pytest.mark.parametrize("damping_safety", [0.0, 0.1])
def test_a_lower_price_keeps_more_energy(fisher: str, samples: int, damping_safety: float, tmp_path: Path) -> None:
    gradients = random_gradients(tmp_path, SAFETY, samples=samples)
    found = [
        energies(Sst(fisher=fisher, keep=Keep(soft=price), damping_safety=damping_safety), gradients)
        for price in (1e4, 100.0, 10.0, 1.0, 0.1, 0.01, 0.0)
    ]
    assert rises([each["utility"] for each in found])
    if damping_safety == 0 and fisher == "exact" and samples < COORDINATES["a"]:
        # Undamped, with fewer samples than coordinates, some patch has the response of the old one on every safety
        # sample and none on the utility samples: it costs nothing, and no positive price makes a difference.
        assert [each["safety"] for each in found] == pytest.approx([found[-1]["safety"]] * len(found))
        assert [each["utility"] for each in found[:-1]] == pytest.approx([0.0] * (len(found) - 1), abs=1e-9)
        return
    assert rises([each["damped safety"] for each in found])
    if damping_safety == 0 or fisher == "diagonal":
        assert rises([each["safety"] for each in found])


@both_fishers
def test_every_dial_changes_the_output(fisher: str, tmp_path: Path) -> None:
    gradients = random_gradients(tmp_path, SAFETY)
    reference = dense(merge(Sst(fisher=fisher), gradients))
    hard = dense(merge(Sst(fisher=fisher, keep=Keep(threshold=1.0)), gradients))
    for method, other in (
        (Sst(fisher=fisher, keep=Keep(soft=1.0)), reference),
        (Sst(fisher=fisher, damping_safety=0.5), reference),
        (Sst(fisher=fisher, keep=Keep(threshold=1.0), damping_utility=2.0), hard),
        (Sst(fisher=fisher, keep=Keep(directions=2)), hard),
    ):
        assert not torch.allclose(dense(merge(method, gradients))["a"], other["a"], atol=1e-4)


def test_with_equal_fishers_the_soft_rule_scales_the_patch(tmp_path: Path) -> None:
    """No direction is better than another: weight 1 / (1 + price) everywhere, up to the damping."""
    rng = torch.Generator().manual_seed(3)
    rows = {name: torch.randn(40, p, generator=rng) for name, p in COORDINATES.items()}
    same = {name: torch.cat([values, values]) for name, values in rows.items()}
    gradients = gradients_from_rows(tmp_path, SAFETY, same, safety_samples=40)
    for fisher in ("exact", "diagonal"):
        found = dense(merge(Sst(fisher=fisher, keep=Keep(soft=3.0), damping_safety=0.0), gradients, utility=NOTHING))
        expected = {name: SAFETY[name].dense() / 4 for name in SHAPES}
        torch.testing.assert_close(found, expected, **FLOAT32)


@pytest.mark.parametrize("keep", [Keep(soft=5.0), Keep(directions=4), Keep(threshold=1.0)], ids=str)
def test_global_scope_is_module_scope_where_there_is_one_module(keep: Keep, tmp_path: Path) -> None:
    for name in SHAPES:
        only = {name: SAFETY[name]}
        gradients = random_gradients(tmp_path / name, only)
        module, whole = (
            dense(merge(Sst(keep=keep, scope=scope), gradients, {name: UTILITY[name]}, only))
            for scope in ("module", "global")
        )
        torch.testing.assert_close(whole, module, rtol=0, atol=1e-7)  # the same operations


@pytest.mark.parametrize("damping_safety", [0.05, 0.3])
def test_global_scope_is_one_problem_over_the_coordinates_of_all_modules(damping_safety: float, tmp_path: Path) -> None:
    gradients = random_gradients(tmp_path, SAFETY)
    found = dense(merge(Sst(scope="global", keep=Keep(soft=4.0), damping_safety=damping_safety), gradients, NOTHING))
    rows = torch.cat([gradients.rows(name).double() for name in SHAPES], dim=1)
    bases = {name: gradients.basis(name) for name in SHAPES}
    starts = {name: patch_coordinates(SAFETY[name], bases[name].q, bases[name].side).double() for name in SHAPES}
    start = torch.cat([starts[name].flatten() for name in SHAPES])
    is_safety = gradients.is_safety()
    f_s, f_u = (rows[part].T @ rows[part] for part in (is_safety, ~is_safety))
    safety = f_s + damping_safety * f_s.trace() / len(start) * torch.eye(len(start), dtype=torch.float64)
    solution = torch.linalg.solve(safety + 4.0 * f_u, safety @ start)
    parts = dict(zip(SHAPES, solution.split([starts[name].numel() for name in SHAPES]), strict=True))
    for name, basis in bases.items():
        c = parts[name].view_as(starts[name]).float()
        expected = c @ basis.q if basis.side == "output" else basis.q.T @ c
        torch.testing.assert_close(found[name], expected, **FLOAT32)
    module = dense(merge(Sst(keep=Keep(soft=4.0), damping_safety=damping_safety), gradients, NOTHING))
    assert not torch.allclose(module["a"], found["a"], atol=1e-4)  # curvature across modules matters


@pytest.mark.parametrize("price", [0.5, 4.0])
def test_one_price_spends_a_common_budget_best(price: float, tmp_path: Path) -> None:
    """No other prices of the modules do better: a solver finds the same patch from the utility energy of all alone."""
    gradients = random_gradients(tmp_path, SAFETY)
    method = Sst(keep=Keep(soft=price), damping_safety=0.2)
    found = dense(merge(method, gradients, NOTHING))
    is_safety = gradients.is_safety()
    starts, found_c, damped, utility = [], [], [], []
    for name in SHAPES:
        basis, rows = gradients.basis(name), gradients.rows(name).double()
        f_s, f_u = (rows[part].T @ rows[part] for part in (is_safety, ~is_safety))
        damped.append(f_s + 0.2 * f_s.trace() / len(f_s) * torch.eye(len(f_s), dtype=torch.float64))
        utility.append(f_u)
        starts.append(patch_coordinates(SAFETY[name], basis.q, basis.side).double().flatten())
        found_c.append(
            (found[name] @ basis.q.T if basis.side == "output" else basis.q @ found[name]).double().flatten()
        )
    f_s, f_u = (torch.block_diag(*blocks).numpy() for blocks in (damped, utility))
    start, expected = torch.cat(starts).numpy(), torch.cat(found_c).numpy()
    budget = expected @ f_u @ expected
    assert budget < 0.9 * (start @ f_u @ start)  # it binds
    solution = scipy.optimize.minimize(
        lambda c: (c - start) @ f_s @ (c - start),
        start,
        jac=lambda c: 2 * f_s @ (c - start),
        constraints={"type": "ineq", "fun": lambda c: budget - c @ f_u @ c, "jac": lambda c: -2 * f_u @ c},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert solution.success, solution.message
    np.testing.assert_allclose(solution.x, expected, atol=1e-4 * np.abs(expected).max())


def test_without_safety_damping_what_no_sample_touches_is_dropped_and_with_it_kept(tmp_path: Path) -> None:
    start = {name: patch_coordinates(SAFETY[name], *_basis(name, tmp_path)).flatten() for name in SHAPES}
    rng = torch.Generator().manual_seed(1)
    rows = {}
    for name, patch in start.items():  # gradients that are orthogonal to the patch
        drawn = torch.randn(6, patch.numel(), generator=rng)
        rows[name] = drawn - (drawn @ patch)[:, None] * patch / patch.square().sum()
    gradients = gradients_from_rows(tmp_path, SAFETY, rows, safety_samples=3)
    kept = dense(merge(Sst(damping_safety=0.1), gradients, NOTHING))
    dropped = dense(merge(Sst(damping_safety=0.0), gradients, NOTHING))
    for name in SHAPES:
        torch.testing.assert_close(kept[name], SAFETY[name].dense(), **FLOAT32)
        torch.testing.assert_close(dropped[name], torch.zeros_like(kept[name]), **FLOAT32)


def _basis(name: str, folder: Path) -> tuple[Tensor, Any]:
    basis = random_gradients(folder, SAFETY).basis(name)
    return basis.q, basis.side


def test_a_sample_given_twice_with_half_the_weight_changes_nothing(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(2)
    rows = {name: torch.randn(6, p, generator=rng) for name, p in COORDINATES.items()}
    plain = gradients_from_rows(tmp_path / "plain", SAFETY, rows, safety_samples=3)
    twice = {name: torch.cat([values[:1], values]) for name, values in rows.items()}
    weights = [0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    double = gradients_from_rows(tmp_path / "double", SAFETY, twice, safety_samples=4, weights=weights)
    for keep in (Keep(soft=5.0), Keep(directions=3)):
        for damping_safety in (0.0, 0.1):
            method = Sst(keep=keep, damping_safety=damping_safety)
            torch.testing.assert_close(dense(merge(method, double)), dense(merge(method, plain)), **FLOAT32)


@pytest.mark.parametrize("noise", [1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("damping_safety", [1e-4, 0.1])
def test_samples_that_are_nearly_alike_in_both_data_sets_give_the_dense_solution(
    noise: float, damping_safety: float, tmp_path: Path
) -> None:
    rng = torch.Generator().manual_seed(2)
    rows = {}
    for name, p in COORDINATES.items():
        drawn = torch.randn(4, p, generator=rng)
        rows[name] = torch.cat([drawn, drawn + noise * torch.randn(4, p, generator=rng)])
    gradients = gradients_from_rows(tmp_path, SAFETY, rows, safety_samples=4)
    method = Sst(keep=Keep(soft=10.0), damping_safety=damping_safety)
    found = dense(merge(method, gradients, NOTHING))
    for name in SHAPES:
        j, is_safety = gradients.rows(name).double(), gradients.is_safety()
        basis = gradients.basis(name)
        start = patch_coordinates(SAFETY[name], basis.q, basis.side).double()
        f_s, f_u = (j[part].T @ j[part] for part in (is_safety, ~is_safety))
        safety = f_s + damping_safety * f_s.trace() / start.numel() * torch.eye(start.numel(), dtype=torch.float64)
        c = torch.linalg.solve(safety + 10.0 * f_u, safety @ start.flatten()).view_as(start).float()
        expected = c @ basis.q if basis.side == "output" else basis.q.T @ c
        # float32 results; the dense solve loses 1e-16 times its condition
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("data", "ones"), [("utility", slice(0, 3)), ("safety", slice(3, 6))])
@pytest.mark.parametrize(
    ("settings", "where"),
    [({}, "module 'a'"), ({"fisher": "diagonal"}, "module 'a'"), ({"scope": "global"}, "the network")],
    ids=str,
)
def test_data_without_gradient_are_an_error_and_not_a_patch(
    tmp_path: Path, data: str, ones: slice, settings: dict[str, Any], where: str
) -> None:
    rows = {name: torch.zeros(6, p) for name, p in COORDINATES.items()}
    for values in rows.values():
        values[ones] = 1.0
    gradients = gradients_from_rows(tmp_path, SAFETY, rows, safety_samples=3)
    with pytest.raises(NumericalError, match=f"the {data} Fisher of {where} is zero"):
        merge(Sst.model_validate(settings), gradients)


def test_a_module_whose_patch_is_zero_keeps_its_utility_update_beside_others(tmp_path: Path) -> None:
    safety = {"a": SAFETY["a"], "b": SAFETY["b"].scaled(0.0)}
    gradients = random_gradients(tmp_path, safety)
    for scope in ("module", "global"):
        found = merge(Sst(scope=scope), gradients, safety=safety)
        assert found["b"].update.dense().equal(UTILITY["b"].dense())
        assert not torch.allclose(found["a"].update.dense(), UTILITY["a"].dense(), atol=1e-3)


def test_the_spectrum_and_the_number_of_kept_directions_are_reported(tmp_path: Path) -> None:
    found = merge(Sst(keep=Keep(directions=3)), random_gradients(tmp_path, SAFETY, samples=6))["a"].diagnostics
    assert found["directions_kept"] == 3
    assert len(found["spectrum"]) + found["neutral_directions"] == COORDINATES["a"]
    assert found["spectrum"] == sorted(found["spectrum"], reverse=True)


@pytest.mark.parametrize(
    "values",
    [{}, {"soft": 1.0, "directions": 3}, {"threshold": -1.0}, {"directions": -1}, {"energy": 1.1}, {"energy": -0.1}],
    ids=str,
)
def test_exactly_one_rule_is_needed(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Keep(**values)


def test_global_scope_with_diagonals_is_refused() -> None:
    with pytest.raises(ValidationError, match="scope global needs fisher exact"):
        Sst(scope="global", fisher="diagonal")


def test_the_untouched_directions_tie_and_are_kept_together_or_not_at_all() -> None:
    values = torch.tensor([5.0, 2.0, 0.5], dtype=torch.float64)
    keep = {k: Keep(directions=k).hard_weights(values, 1.0, 4, energies=values) for k in range(8)}
    assert [int(weights.sum()) for weights, _ in keep.values()] == [0, 1, 2, 2, 2, 2, 2, 3]
    assert [neutral for _, neutral in keep.values()] == [0, 0, 0, 0, 0, 0, 1, 1]


def test_directions_that_tie_with_the_untouched_ones_go_with_them() -> None:
    values = torch.tensor([1.0, 5.0, 1.0, 0.5], dtype=torch.float64)
    for k, kept, neutral in ((1, 1, 0), (3, 1, 0), (6, 1, 0), (7, 3, 1), (8, 4, 1)):  # one above, a block of 2 + 4
        weights, rest = Keep(directions=k).hard_weights(values, 1.0, 4, energies=values)
        assert (int(weights.sum()), rest) == (kept, neutral)
    for fraction, kept, neutral in ((0.2, 1, 0), (0.6, 3, 1), (1.0, 4, 1)):  # energies 5, then 2 + 2, then 0.5
        weights, rest = Keep(energy=fraction).hard_weights(values, 1.0, 4, energies=values, neutral_energy=2.0)
        assert (int(weights.sum()), rest) == (kept, neutral)


def test_directions_that_tie_but_for_rounding_are_kept_together_or_not_at_all() -> None:
    rounding = 1 + 1e-13 * torch.tensor([2.0, -3.0, 1.0], dtype=torch.float64)
    values = torch.cat([torch.tensor([9.0], dtype=torch.float64), 2.0 * rounding, torch.tensor([1.0, 1.0 - 1e-6])])
    for k, kept in ((0, 0), (1, 1), (2, 1), (3, 1), (4, 4), (5, 5), (6, 6), (99, 6)):
        weights, rest = Keep(directions=k).hard_weights(values, -1.0, 0, energies=torch.ones_like(values))
        assert (int(weights.sum()), rest) == (kept, 0)
    for fraction, kept in ((1 / 6, 1), (0.2, 4), (0.5, 4), (0.7, 5), (1.0, 6)):
        weights, _ = Keep(energy=fraction).hard_weights(values, -1.0, 0, energies=torch.ones_like(values))
        assert int(weights.sum()) == kept


def test_a_difference_of_two_equal_adapters_keeps_no_share_of_nothing() -> None:
    utility = random_update((24, 16), 4, seed=0)
    method = Sst(fisher="none", patch="interpolate", span="joint", keep=Keep(soft=5.0), utility_weight=0.5)
    other = Update(utility.b * 3.0, utility.a / 3.0)  # the same but for rounding
    found = method.merge_module(ModuleInputs("a", utility, other), None, module_generator(0, "a"))
    assert found.diagnostics == {"squared_norm": 0.0}
    torch.testing.assert_close(found.update.dense(), 0.5 * utility.dense())


@pytest.mark.parametrize(
    "settings", [{"strength": True}, {"damping_safety": True}, {"keep": {"directions": True}}, {"keep": {"soft": True}}]
)
def test_yes_is_no_number(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Input should be a number, not yes or no"):
        Sst.model_validate(settings)
    assert Sst.model_validate({"strength": 1, "keep": {"soft": "1e2"}}).keep.soft == 100.0  # YAML reads 1e2 as a string


@pytest.mark.parametrize("rule", ["soft", "directions", "threshold", "energy"])
def test_a_rule_without_a_value_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="give exactly one of soft, directions, threshold, energy"):
        Keep.model_validate({rule: None})
    with pytest.raises(ValueError, match=r"finite number|valid integer"):
        Keep.model_validate({rule: float("inf")})


@pytest.mark.parametrize("difference", [1e-4, 1e-6, 0.0])
def test_adapters_that_are_nearly_alike_can_be_interpolated(difference: float) -> None:
    utility, change = random_update((24, 16), 4, seed=0), random_update((24, 16), 4, seed=1)
    safety = Update(utility.b + difference * change.b, utility.a)
    method = Sst(fisher="none", patch="interpolate", span="joint", keep=Keep(soft=0))
    inputs = ModuleInputs("a", utility, safety)
    merged = method.merge_module(inputs, None, module_generator(0, "a")).update
    torch.testing.assert_close(merged.dense(), safety.dense(), rtol=1e-5, atol=1e-6)


def test_a_damping_that_rounding_would_swallow_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"damping_safety must be 0 or at least 1e-10, got 1e-12: less is lost"):
        Sst(damping_safety=1e-12)
    assert Sst(damping_safety=0.0).damping_safety == 0
    assert Sst(damping_safety=SMALLEST_DAMPING).damping_safety == 1e-10


def test_a_number_is_no_keep_rule() -> None:
    with pytest.raises(ValidationError, match=r"expected a rule, such as \{soft: 100\}"):
        Sst(keep=100)
