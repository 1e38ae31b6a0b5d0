"""Coordinates of a patch, and the claims that the eigenproblem in sample space makes. Dense twins: tests/reference."""

import dataclasses

import pytest
import torch

from sst_merge import linalg
from sst_merge.adapter import Update, concatenate
from sst_merge.errors import NumericalError
from sst_merge.linalg import (
    Combination,
    SampleSpace,
    eigendirections,
    joint_basis,
    patch_basis,
    patch_coordinates,
    patch_from_coordinates,
    spectrum,
    steer_softly,
    truncated,
)
from tiny import in_another_gauge, random_update

both_sides = pytest.mark.parametrize("side", ["output", "input"])
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}  # factors and bases are float32, entries of order 0.1 to 1
FLOAT64 = {"rtol": 1e-9, "atol": 1e-10}


def random_problem(seed: int = 0, *, safety: int = 5, utility: int = 6, coordinates: int = 20) -> SampleSpace:
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(safety + utility, coordinates, generator=rng, dtype=torch.float64)
    patch = torch.randn(coordinates, generator=rng, dtype=torch.float64)
    is_safety = torch.arange(safety + utility) < safety
    return SampleSpace(rows @ rows.T, rows @ patch, is_safety, coordinates, float(patch @ patch))


def test_a_problem_is_summed_in_blocks_and_a_combination_is_applied_in_blocks() -> None:
    rng = torch.Generator().manual_seed(0)
    rows, patch = torch.randn(150, 700, generator=rng), torch.randn(700, generator=rng, dtype=torch.float64)
    is_safety = torch.arange(150) % 3 == 0
    found, wide = SampleSpace.of(rows, is_safety, patch), rows.double()
    torch.testing.assert_close(found.gram, wide @ wide.T, **FLOAT64)
    assert torch.equal(found.gram, found.gram.T)
    torch.testing.assert_close(found.response, wide @ patch, **FLOAT64)
    assert found.coordinates == 700
    assert found.patch_squared_norm == pytest.approx(float(patch @ patch))
    weights = torch.randn(150, generator=rng, dtype=torch.float64)
    applied = Combination(0.25, weights).apply(rows, patch)
    torch.testing.assert_close(applied, 0.25 * patch + wide.T @ weights, **FLOAT64)


def problem_of(rows: torch.Tensor, is_safety: torch.Tensor) -> SampleSpace:
    return SampleSpace.of(rows, is_safety, torch.ones(rows.shape[1], dtype=torch.float64))


@pytest.mark.parametrize(("safety", "utility"), [(0.1, 0.1), (0.0, 0.1), (0.3, 1e-4)], ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "mixed order",
        "uneven norms",
        "fewer coordinates",
        "a sample twice",
        "all samples twice",
        "a sample in both data sets",
        "a zero",
        "small utility gradients",
        "uneven norms, fewer coordinates",
        "a Gram matrix rounded below zero",
    ],
)
def test_the_spectrum_is_that_of_the_directions(
    kind: str, safety: float, utility: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = torch.Generator().manual_seed(1)
    rows = torch.randn(12, 9 if "fewer coordinates" in kind else 40, generator=rng, dtype=torch.float64)
    is_safety = torch.arange(12) < 5
    if kind == "mixed order":
        is_safety = torch.arange(12) % 2 == 0
    if "uneven norms" in kind:
        rows *= torch.logspace(0, -3, 12, dtype=torch.float64)[:, None]
    if kind == "a sample twice":
        rows[7] = rows[6]
    if kind == "small utility gradients":
        rows[~is_safety] *= 1e-6
    if kind == "all samples twice":
        rows, is_safety = rows.repeat(2, 1), is_safety.repeat(2)
    if kind == "a sample in both data sets":
        rows[7] = rows[2]
    if kind == "a zero":
        rows[7] = 0
    if kind == "a Gram matrix rounded below zero":
        rows[7] = rows[6]
    problem = problem_of(rows, is_safety)
    if kind == "a Gram matrix rounded below zero":
        problem = dataclasses.replace(problem, gram=problem.gram - 1e-9 * torch.eye(12, dtype=torch.float64))
    wanted = eigendirections(problem, damping_safety=safety, damping_utility=utility)
    asked: list[str] = []
    monkeypatch.setattr(linalg, "eigendirections", lambda *_, **__: asked.append(kind) or wanted)
    found = spectrum(problem, damping_safety=safety, damping_utility=utility)
    assert bool(asked) == (kind == "a Gram matrix rounded below zero")  # there alone directions are needed
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-7, atol=1e-7 * float(wanted.values.max()))
    assert (found.neutral_value, found.neutral_directions) == (wanted.neutral_value, wanted.neutral_directions)


@both_sides
def test_a_basis_is_orthonormal_and_spans_the_patch(side: str) -> None:
    update = random_update((9, 7), 3, seed=1)
    basis = patch_basis(update, side)
    assert basis.shape == (3, 7 if side == "output" else 9)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3), **FLOAT32)
    back = patch_from_coordinates(patch_coordinates(update, basis, side), basis, side)
    torch.testing.assert_close(back.dense(), update.dense(), **FLOAT32)


@both_sides
def test_a_basis_does_not_depend_on_the_gauge_up_to_signs(side: str) -> None:
    update = random_update((9, 7), 3, seed=1)
    other = in_another_gauge({"": update})[""]
    overlaps = patch_basis(update, side) @ patch_basis(other, side).T
    torch.testing.assert_close(overlaps.abs(), torch.eye(3), rtol=0, atol=1e-4)  # float32 factors / singular gaps


@both_sides
def test_rounding_of_a_rank_deficient_adapter_makes_no_coordinates(side: str) -> None:
    thin = random_update((9, 7), 3, seed=1)
    padded = Update(torch.cat([thin.b, torch.zeros(9, 2)], dim=1), torch.cat([thin.a, torch.ones(2, 7)]))
    for seed in range(8):
        other = in_another_gauge({"": padded}, seed)[""]
        assert (other.dense() - thin.dense()).abs().max() > 0  # rounding, of rank 5
        assert len(patch_basis(other, side)) == 3


@both_sides
@pytest.mark.parametrize("exponent", [9, 12, 16])
def test_a_gauge_that_rounds_nothing_takes_no_direction_away(side: str, exponent: int) -> None:
    scale = torch.tensor([2.0**exponent, 2.0**-exponent, 1.0])  # powers of two: the same product to the last bit
    weights = torch.tensor([1.0, 0.3, 0.008])
    update = random_update((9, 7), 3, seed=1)
    thin = Update(update.b * weights, update.a)
    other = Update(thin.b * scale, thin.a / scale[:, None])
    assert len(patch_basis(other, side)) == 3
    torch.testing.assert_close(patch_basis(other, side).abs(), patch_basis(thin, side).abs(), rtol=0, atol=1e-3)
    one, two = random_update((9, 7), 2, seed=2), random_update((9, 7), 2, seed=3)
    up, down = 2.0**exponent, 2.0**-exponent
    assert len(joint_basis(Update(one.b * up, one.a * down), Update(two.b * down, two.a * up), side)) == 4


@both_sides
def test_a_basis_has_as_many_rows_as_the_patch_has_rank(side: str) -> None:
    update = random_update((9, 7), 2, seed=1)
    assert len(patch_basis(concatenate([update, update.scaled(-0.5)]), side)) == 2
    assert len(patch_basis(update.scaled(0.0), side)) == 0
    assert len(patch_basis(random_update((4, 3), 8, seed=1), side)) == 3
    assert len(patch_basis(random_update((3, 4), 8, seed=1), side)) == 3


def test_gram_matrices_of_disjoint_coordinates_add_up_to_that_of_all() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 14, generator=rng, dtype=torch.float64)
    patch = torch.randn(14, generator=rng, dtype=torch.float64)
    is_safety = torch.arange(9) < 4

    def part(columns: slice) -> SampleSpace:
        j, c = rows[:, columns], patch[columns]
        return SampleSpace(j @ j.T, j @ c, is_safety, c.numel(), float(c @ c))

    total, whole = part(slice(0, 5)) + part(slice(5, 14)), part(slice(0, 14))
    for field in dataclasses.fields(SampleSpace):
        torch.testing.assert_close(getattr(total, field.name), getattr(whole, field.name), **FLOAT64)


def test_dampings_are_fractions_of_the_mean_eigenvalues() -> None:
    problem = random_problem()
    gamma, eps = problem.damping(safety=0.2, utility=0.4)
    diagonal = problem.gram.diagonal()
    assert gamma == pytest.approx(0.2 * float(diagonal[:5].sum()) / 20)
    assert eps == pytest.approx(0.4 * float(diagonal[5:].sum()) / 20)


@pytest.mark.parametrize("coordinates", [4, 30])
def test_equal_fishers_and_dampings_make_every_direction_tie(coordinates: int) -> None:
    rows = torch.randn(6, coordinates, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    j = torch.cat([rows, rows.flip(0)])  # the same samples in another order
    problem = SampleSpace(j @ j.T, j.sum(dim=1), torch.arange(12) < 6, coordinates, float(coordinates))
    found = eigendirections(problem, damping_safety=0.3, damping_utility=0.3)
    torch.testing.assert_close(found.values, torch.ones_like(found.values), **FLOAT64)
    assert found.neutral_value == pytest.approx(1.0)
    undamped = eigendirections(problem, damping_safety=0.0, damping_utility=1e-6)
    torch.testing.assert_close(undamped.values, torch.ones_like(undamped.values), rtol=0, atol=1e-4)  # eps / eigenvalue


def test_equal_fishers_tie_in_directions_that_the_data_hardly_see() -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        scale = 10 ** (2 * (torch.rand(100, 1, generator=rng, dtype=torch.float64) - 0.5))
        rows = (torch.randn(100, 400, generator=rng, dtype=torch.float64) * scale).float().double()
        j = torch.cat([rows, rows])
        problem = SampleSpace(j @ j.T, j.sum(dim=1), torch.arange(200) < 100, 400, 400.0)
        found = eigendirections(problem, damping_safety=0.1, damping_utility=0.1)
        assert bool((found.values == found.neutral_value).all())


def test_strong_utility_damping_gives_the_plain_eigenproblem_of_the_safety_fisher() -> None:
    problem = random_problem(coordinates=5, safety=9, utility=9)
    found = eigendirections(problem, damping_safety=0.0, damping_utility=1e9)
    _, eps = problem.damping(safety=0.0, utility=1e9)
    plain = torch.linalg.eigvalsh(problem.gram[:9, :9])[-5:].flip(0)  # non-zero eigenvalues of J_s J_s^T
    torch.testing.assert_close(found.values * eps, plain, rtol=1e-6, atol=0)  # up to |F_u| / eps


def test_keeping_everything_gives_the_patch() -> None:
    problem = random_problem()
    found = eigendirections(problem, damping_safety=0.1, damping_utility=0.1)
    everything = found.combine(problem, torch.ones_like(found.values), 1.0)
    # J^T weights is zero: its norm is weights^T K weights
    assert everything.neutral == 1.0
    assert float(everything.weights @ problem.gram @ everything.weights) < 1e-18 * problem.patch_squared_norm


def test_keeping_nothing_gives_nothing() -> None:
    problem = random_problem()
    found = eigendirections(problem, damping_safety=0.1, damping_utility=0.1)
    nothing = found.combine(problem, torch.zeros_like(found.values), 0.0).energies(problem)
    assert nothing["squared_norm_kept"] == nothing["safety_energy_kept"] == nothing["utility_energy_kept"] == 0.0


def test_price_zero_keeps_the_patch() -> None:
    combination = steer_softly(random_problem(), price=0.0, damping_safety=0.0)
    assert combination.neutral == 1.0
    assert not combination.weights.any()


def test_a_huge_price_leaves_no_utility_energy() -> None:
    problem = random_problem()
    energies = steer_softly(problem, price=1e6, damping_safety=0.1).energies(problem)
    assert energies["utility_energy_kept"] < 1e-6 * energies["utility_energy"]


@pytest.mark.parametrize("damping_safety", [0.0, 0.1])
def test_the_scale_of_the_gradients_does_not_matter(damping_safety: float) -> None:
    """Damping is relative: likelihood in bits instead of nats gives the same patch and the same eigenvalues."""
    problem = random_problem()
    scaled = dataclasses.replace(problem, gram=problem.gram * 4.0, response=problem.response * 2.0)
    first, second = (
        eigendirections(each, damping_safety=damping_safety, damping_utility=0.1) for each in (problem, scaled)
    )
    torch.testing.assert_close(first.values, second.values, **FLOAT64)
    soft, soft_scaled = (steer_softly(each, price=3.0, damping_safety=damping_safety) for each in (problem, scaled))
    torch.testing.assert_close(soft.weights, 2.0 * soft_scaled.weights, **FLOAT64)


def test_utility_samples_without_gradient_are_refused_by_name() -> None:
    problem = random_problem()
    alive = problem.is_safety.double()
    silent = dataclasses.replace(problem, gram=problem.gram * alive * alive[:, None], response=problem.response * alive)
    with pytest.raises(NumericalError, match="utility Fisher has trace 0"):
        eigendirections(silent, damping_safety=0.1, damping_utility=0.1)


def test_gradients_that_are_not_finite_are_refused() -> None:
    problem = random_problem()
    broken = dataclasses.replace(problem, response=problem.response * float("nan"))
    with pytest.raises(NumericalError, match="NaN or infinite"):
        steer_softly(broken, price=1.0, damping_safety=0.1)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        eigendirections(broken, damping_safety=0.1, damping_utility=0.1)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_truncation_reaches_the_eckart_young_bound(rank: int) -> None:
    update = random_update((12, 9), 6, seed=1)
    values = torch.linalg.svdvals(update.dense().double())
    short = truncated(update, rank)
    assert short.rank == rank
    lost = float((update.dense() - short.dense()).double().square().sum())
    assert lost == pytest.approx(float(values[rank:].square().sum()), rel=1e-4)  # float32 factors


def test_truncation_to_the_own_rank_or_more_changes_nothing() -> None:
    update = random_update((12, 9), 3, seed=1)
    assert truncated(update, 3) is update
    assert truncated(update, 30) is update


def test_nothing_changes_its_inputs() -> None:
    problem, update = random_problem(), random_update((9, 7), 3, seed=1)
    before = (problem.gram.clone(), problem.response.clone(), update.b.clone(), update.a.clone())
    found = eigendirections(problem, damping_safety=0.1, damping_utility=0.1)
    found.combine(problem, torch.ones_like(found.values), 0.0).energies(problem)
    steer_softly(problem, price=2.0, damping_safety=0.0).energies(problem)
    basis = patch_basis(update, "output")
    patch_from_coordinates(patch_coordinates(update, basis, "output"), basis, "output")
    truncated(update, 1)
    for now, then in zip((problem.gram, problem.response, update.b, update.a), before, strict=True):
        assert now.equal(then)


def test_an_update_of_wrong_shape_is_refused_by_the_annotation() -> None:
    with pytest.raises(Exception, match="rank"):
        Update(torch.ones(3, 2), torch.ones(4, 5))
