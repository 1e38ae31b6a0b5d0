"""The eigenproblem in sample space against dense p x p algebra with scipy, and the diagonal rule against loops."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch

from sst_merge.linalg import (
    Combination,
    Eigendirections,
    SampleSpace,
    Spectrum,
    eigendirections,
    patch_coordinates,
    spectrum,
    steer_softly,
)
from sst_merge.methods import ModuleInputs, module_generator
from sst_merge.methods.sst import SMALLEST_DAMPING, Keep, Sst
from sst_merge.statistics import PooledGradients
from sst_merge.statistics.sample_gradients import patch_bases
from tiny import gradients_from_rows, random_update

EPS_FRACTION = 0.1
# float64 on both sides; whitening by F_u + eps I costs its condition number, up to 1e4 here.
ROUNDING = {"rtol": 1e-8, "atol": 1e-9}


@dataclass(frozen=True)
class Case:
    """Random per-sample gradients with more coordinates than samples, or fewer, or dependent rows."""

    name: str
    safety_samples: int
    utility_samples: int
    coordinates: int
    rank: int | None = None
    """Rank of all rows together, where they are dependent."""

    def build(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, SampleSpace]:
        """``J_s``, ``J_u``, ``C_0``, and the same as a problem in sample space."""
        rng = np.random.default_rng(7)
        count = self.safety_samples + self.utility_samples
        if self.rank is None:
            rows = rng.normal(size=(count, self.coordinates))
        else:
            rows = rng.normal(size=(count, self.rank)) @ rng.normal(size=(self.rank, self.coordinates))
        rows[self.safety_samples :] *= rng.uniform(0.2, 2.0, size=(self.utility_samples, 1))
        patch = rng.normal(size=self.coordinates)
        j = torch.from_numpy(rows)
        c = torch.from_numpy(patch)
        is_safety = torch.arange(count) < self.safety_samples
        problem = SampleSpace(j @ j.T, j @ c, is_safety, self.coordinates, float(c @ c))
        return rows[: self.safety_samples], rows[self.safety_samples :], patch, problem


CASES = [
    Case("more coordinates than samples", 5, 6, 30),
    Case("fewer coordinates than samples", 20, 25, 8),
    Case("as many coordinates as samples", 6, 6, 12),
    Case("rank-deficient with many coordinates", 8, 9, 30, rank=6),
    Case("rank-deficient with few coordinates", 20, 20, 12, rank=5),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
both_dampings = pytest.mark.parametrize("damping_safety", [0.0, 0.1])


def dense(case: Case, damping_safety: float) -> tuple[np.ndarray, ...]:
    """``F_s``, ``F_u``, ``C_0``, ``gamma``, ``eps``, and the solution: values (falling), vectors, ``F_u + eps I``."""
    j_s, j_u, patch, _ = case.build()
    f_s, f_u = j_s.T @ j_s, j_u.T @ j_u
    gamma = damping_safety * np.trace(f_s) / case.coordinates
    eps = EPS_FRACTION * np.trace(f_u) / case.coordinates
    identity = np.eye(case.coordinates)
    damped = f_u + eps * identity
    values, vectors = scipy.linalg.eigh(f_s + gamma * identity, damped)
    return f_s, f_u, patch, gamma, eps, values[::-1], vectors[:, ::-1], damped


def projected(case: Case, combination: Combination) -> np.ndarray:
    """``C'`` in coordinates."""
    j_s, j_u, patch, _ = case.build()
    return combination.neutral * patch + np.vstack([j_s, j_u]).T @ combination.weights.numpy()


def hard_weights(keep: Keep, found: Eigendirections) -> tuple[torch.Tensor, float]:
    """The rule as the method asks for it."""
    return keep.hard_weights(
        found.values,
        found.neutral_value,
        found.neutral_directions,
        energies=found.values * found.patch.square(),
        neutral_energy=found.neutral_energy,
    )


@every_case
@both_dampings
@pytest.mark.parametrize("solve", [eigendirections, spectrum], ids=lambda solve: solve.__name__)
def test_eigenvalues_and_the_untouched_block_equal_the_dense_ones(
    solve: Callable[..., Eigendirections | Spectrum], case: Case, damping_safety: float
) -> None:
    _, _, _, gamma, eps, values, _, _ = dense(case, damping_safety)
    problem = case.build()[3]
    found = solve(problem, damping_safety=damping_safety, damping_utility=EPS_FRACTION)
    rank = case.rank or min(case.coordinates, case.safety_samples + case.utility_samples)
    assert found.neutral_directions == case.coordinates - rank
    assert found.neutral_value == pytest.approx(gamma / eps)
    together = np.sort(np.append(found.values.numpy(), [found.neutral_value] * found.neutral_directions))[::-1]
    np.testing.assert_allclose(together, values, **ROUNDING)
    assert (found.values.diff() <= 0).all()


@every_case
@both_dampings
def test_directions_are_orthonormal_in_the_damped_utility_fisher_and_diagonalise_the_safety_fisher(
    case: Case, damping_safety: float
) -> None:
    f_s, _, _, gamma, _, _, _, damped = dense(case, damping_safety)
    j_s, j_u, _, problem = case.build()
    found = eigendirections(problem, damping_safety=damping_safety, damping_utility=EPS_FRACTION)
    vectors = np.vstack([j_s, j_u]).T @ found.to_samples.numpy()
    np.testing.assert_allclose(vectors.T @ damped @ vectors, np.eye(len(found.values)), **ROUNDING)
    damped_safety = f_s + gamma * np.eye(case.coordinates)
    np.testing.assert_allclose(vectors.T @ damped_safety @ vectors, np.diag(found.values.numpy()), **ROUNDING)


@pytest.mark.parametrize("fisher", ["exact", "diagonal"])
def test_two_points_steer_by_the_mean_of_their_dense_fisher_matrices(
    tmp_path: Path, fisher: Literal["exact", "diagonal"]
) -> None:
    rng = torch.Generator().manual_seed(3)
    utility, safety = random_update((6, 9), 2, seed=1), random_update((6, 9), 2, seed=2)
    basis = patch_bases({"m": safety})["m"]
    patch = patch_coordinates(safety, basis.q, basis.side).double().flatten().numpy()
    points, dense_points = [], []
    for number, scale in enumerate((1.0, 3.0)):
        rows = scale * torch.randn(7, len(patch), generator=rng)
        folder = tmp_path / f"{number}"
        points.append(gradients_from_rows(folder, {"m": safety}, {"m": rows}, safety_samples=4))
        j = rows.double().numpy()
        dense_points.append((j[:4].T @ j[:4] / 4, j[4:].T @ j[4:] / 3))
    f_s, f_u = (np.mean([point[side] for point in dense_points], axis=0) for side in (0, 1))
    if fisher == "diagonal":
        f_s, f_u = np.diag(np.diag(f_s)), np.diag(np.diag(f_u))
    damped = f_s + 0.1 * np.trace(f_s) / len(patch) * np.eye(len(patch))
    expected = np.linalg.solve(damped + 5.0 * f_u, damped @ patch)
    method = Sst(fisher=fisher, keep=Keep(soft=5.0), damping_safety=0.1, utility_weight=0.0)
    inputs = ModuleInputs("m", utility, safety, PooledGradients(tuple(points)))
    merged = method.merge_module(inputs, None, module_generator(0, "m")).update
    found = patch_coordinates(merged, basis.q, basis.side).double().flatten().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@every_case
@both_dampings
@pytest.mark.parametrize("directions", [0, 1, 3, "all"])
def test_the_patch_on_the_first_directions_equals_the_dense_projection(
    case: Case, damping_safety: float, directions: int | str
) -> None:
    _, _, patch, _, _, _, vectors, damped = dense(case, damping_safety)
    k = case.coordinates if directions == "all" else int(directions)
    expected = vectors[:, :k] @ vectors[:, :k].T @ damped @ patch
    problem = case.build()[3]
    found = eigendirections(problem, damping_safety=damping_safety, damping_utility=EPS_FRACTION)
    weights, neutral = hard_weights(Keep(directions=k), found)
    np.testing.assert_allclose(projected(case, found.combine(problem, weights, neutral)), expected, **ROUNDING)


@every_case
@both_dampings
@pytest.mark.parametrize("above", [0.3, 0.6])
def test_the_patch_above_a_threshold_equals_the_dense_projection(
    case: Case, damping_safety: float, above: float
) -> None:
    _, _, patch, _, _, values, vectors, damped = dense(case, damping_safety)
    distinct = np.unique(values.round(9))
    position = max(1, int(above * len(distinct)))
    threshold = float(distinct[position - 1] + distinct[position]) / 2  # between two eigenvalues: no tie decides
    kept = vectors[:, values >= threshold]
    problem = case.build()[3]
    found = eigendirections(problem, damping_safety=damping_safety, damping_utility=EPS_FRACTION)
    weights, neutral = hard_weights(Keep(threshold=threshold), found)
    combination = found.combine(problem, weights, neutral)
    np.testing.assert_allclose(projected(case, combination), kept @ kept.T @ damped @ patch, **ROUNDING)


@every_case
@both_dampings
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8, 0.99])
def test_the_patch_of_an_energy_is_the_first_dense_projection_that_holds_it(
    case: Case, damping_safety: float, fraction: float
) -> None:
    f_s, _, patch, gamma, eps, values, vectors, damped = dense(case, damping_safety)
    energy = f_s + gamma * np.eye(case.coordinates)
    neutral = np.isclose(values, gamma / eps, rtol=1e-9, atol=1e-9)  # one block: no sample touches these
    after, kept = np.zeros_like(patch), np.zeros(case.coordinates, dtype=bool)
    while after @ energy @ after < fraction * (1 - 1e-9) * (patch @ energy @ patch):
        first = int(np.argmin(kept))  # the largest lambda that is left
        kept |= neutral if neutral[first] else np.arange(case.coordinates) == first
        after = vectors[:, kept] @ vectors[:, kept].T @ damped @ patch
    problem = case.build()[3]
    found = eigendirections(problem, damping_safety=damping_safety, damping_utility=EPS_FRACTION)
    weights, with_neutral = hard_weights(Keep(energy=fraction), found)
    np.testing.assert_allclose(projected(case, found.combine(problem, weights, with_neutral)), after, **ROUNDING)


@every_case
@both_dampings
@pytest.mark.parametrize("price", [0.1, 1.0, 30.0])
def test_the_soft_rule_equals_a_dense_solve(case: Case, damping_safety: float, price: float) -> None:
    f_s, f_u, patch, gamma, *_ = dense(case, damping_safety)
    safety = f_s + gamma * np.eye(case.coordinates)
    # With gamma = 0 the solution of least norm: what neither data set touches is dropped.
    expected = np.linalg.pinv(safety + price * f_u, rcond=1e-12, hermitian=True) @ safety @ patch
    found = steer_softly(case.build()[3], price=price, damping_safety=damping_safety)
    np.testing.assert_allclose(projected(case, found), expected, **ROUNDING)


@every_case
def test_soft_weights_are_lambda_over_lambda_plus_price_in_the_undamped_pencil(case: Case) -> None:
    f_s, f_u, patch, gamma, *_ = dense(case, 0.1)
    safety, price = f_s + gamma * np.eye(case.coordinates), 3.0
    inverse_values, vectors = scipy.linalg.eigh(f_u, safety)  # 1 / lambda; F_u itself may be singular
    weights = 1.0 / (1.0 + price * inverse_values)
    expected = vectors @ (weights * (vectors.T @ safety @ patch))
    found = steer_softly(case.build()[3], price=price, damping_safety=0.1)
    np.testing.assert_allclose(projected(case, found), expected, **ROUNDING)


@every_case
@both_dampings
@pytest.mark.parametrize("keep", [Keep(soft=2.0), Keep(directions=3)])
def test_energies_without_coordinates_equal_the_dense_ones(case: Case, damping_safety: float, keep: Keep) -> None:
    f_s, f_u, patch, *_ = dense(case, damping_safety)
    problem = case.build()[3]
    method = Sst(keep=keep, damping_safety=damping_safety, damping_utility=EPS_FRACTION)
    combination, _ = method._solve(problem, "the network")
    after = projected(case, combination)
    expected = {
        "squared_norm": patch @ patch,
        "squared_norm_kept": after @ after,
        "safety_energy": patch @ f_s @ patch,
        "safety_energy_kept": after @ f_s @ after,
        "utility_energy": patch @ f_u @ patch,
        "utility_energy_kept": after @ f_u @ after,
    }
    assert combination.energies(problem) == pytest.approx(expected, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("price", [1.0, 1e3, 1e6])
def test_the_smallest_damping_is_solved_to_a_fraction_of_the_patch(price: float) -> None:
    """More samples than coordinates, where the Gram matrix is singular: least squares never squares a condition."""
    rng = np.random.default_rng(4)
    j_s, j_u, patch = rng.normal(size=(10, 8)), rng.normal(size=(12, 8)), rng.normal(size=8)
    j, c = torch.from_numpy(np.vstack([j_s, j_u])), torch.from_numpy(patch)
    problem = SampleSpace(j @ j.T, j @ c, torch.arange(22) < 10, 8, float(c @ c))
    gamma = SMALLEST_DAMPING * np.trace(j_s.T @ j_s) / 8
    stacked = np.vstack([price**0.5 * j_u, j_s, gamma**0.5 * np.eye(8)])
    wanted = np.concatenate([np.zeros(12), j_s @ patch, gamma**0.5 * patch])
    expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    soft = steer_softly(problem, price=price, damping_safety=SMALLEST_DAMPING)
    found = soft.neutral * patch + j.numpy().T @ soft.weights.numpy()
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(patch)


def test_utility_samples_with_small_gradients_are_data_and_not_rounding() -> None:
    """A well-fitted utility sample's gradient may be 1e-4 of a refusal's: 1e-8 of it in the Gram matrix."""
    rng = np.random.default_rng(3)
    j_s, j_u, patch = rng.normal(size=(4, 20)), 1e-4 * rng.normal(size=(4, 20)), rng.normal(size=20)
    j = torch.from_numpy(np.vstack([j_s, j_u]))
    c = torch.from_numpy(patch)
    problem = SampleSpace(j @ j.T, j @ c, torch.arange(8) < 4, 20, float(c @ c))
    f_s, f_u = j_s.T @ j_s, j_u.T @ j_u
    eps = EPS_FRACTION * np.trace(f_u) / 20
    values = scipy.linalg.eigh(f_s, f_u + eps * np.eye(20), eigvals_only=True)[::-1]
    found = eigendirections(problem, damping_safety=0.0, damping_utility=EPS_FRACTION)
    assert found.neutral_directions == 12
    np.testing.assert_allclose(found.values.numpy()[:4], values[:4], rtol=1e-6)
    gamma = 1e-9 * np.trace(f_s) / 20
    safety = f_s + gamma * np.eye(20)
    soft = steer_softly(problem, price=10.0, damping_safety=1e-9)
    expected = np.linalg.solve(safety + 10.0 * f_u, safety @ patch)
    np.testing.assert_allclose(soft.neutral * patch + j.numpy().T @ soft.weights.numpy(), expected, atol=1e-5)


def test_without_damping_the_largest_eigenvalue_maximises_the_rayleigh_quotient() -> None:
    case = CASES[1]
    f_s, _, _, _, _, _, _, damped = dense(case, 0.0)
    found = eigendirections(case.build()[3], damping_safety=0.0, damping_utility=EPS_FRACTION)
    draws = np.random.default_rng(0).normal(size=(case.coordinates, 2000))
    quotients = np.einsum("pd,pd->d", draws, f_s @ draws) / np.einsum("pd,pd->d", draws, damped @ draws)
    assert quotients.max() <= float(found.values[0]) * (1 + 1e-9)
    j_s, j_u, *_ = case.build()
    best = np.vstack([j_s, j_u]).T @ found.to_samples[:, 0].numpy()
    assert (best @ f_s @ best) / (best @ damped @ best) == pytest.approx(float(found.values[0]))


@pytest.mark.parametrize("shape", [(5, 6), (7, 4)], ids=["output side", "input side"])
@pytest.mark.parametrize(
    "keep",
    [Keep(soft=0.0), Keep(soft=2.5), Keep(directions=4), Keep(threshold=1.0), Keep(energy=0.7)],
    ids=lambda keep: keep.model_dump_json(),
)
def test_the_diagonal_rule_equals_a_loop_over_coordinates(shape: tuple[int, int], keep: Keep, tmp_path: Path) -> None:
    name, safety_samples, samples = "module", 4, 9
    utility, safety = random_update(shape, 2, seed=1), random_update(shape, 2, seed=2)
    basis = patch_bases({name: safety})[name]
    start = patch_coordinates(safety, basis.q, basis.side)
    rows = torch.randn(samples, start.numel(), generator=torch.Generator().manual_seed(5))
    gradients = gradients_from_rows(tmp_path, {name: safety}, {name: rows}, safety_samples=safety_samples)
    method = Sst(fisher="diagonal", keep=keep, damping_safety=0.2, damping_utility=0.3, strength=0.7)
    merged = method.merge_module(ModuleInputs(name, utility, safety, gradients), None, module_generator(0, name))

    p = start.numel()
    f_s = [sum(float(rows[i, k]) ** 2 for i in range(safety_samples)) / safety_samples for k in range(p)]
    f_u = [
        sum(float(rows[i, k]) ** 2 for i in range(safety_samples, samples)) / (samples - safety_samples)
        for k in range(p)
    ]
    gamma, eps = 0.2 * sum(f_s) / p, 0.3 * sum(f_u) / p
    lambdas = [(f_s[k] + gamma) / (f_u[k] + eps) for k in range(p)]
    ranked = sorted(range(p), key=lambda k: -lambdas[k])
    start_values = start.flatten().tolist()
    shares = [(f_s[k] + gamma) * start_values[k] ** 2 for k in range(p)]
    enough = next(count for count in range(p + 1) if sum(shares[k] for k in ranked[:count]) >= 0.7 * sum(shares))
    weights = []
    for k in range(p):
        if keep.soft is not None:
            weights.append((f_s[k] + gamma) / (f_s[k] + gamma + keep.soft * f_u[k]))
        elif keep.directions is not None:
            weights.append(float(k in ranked[: keep.directions]))
        elif keep.energy is not None:
            weights.append(float(k in ranked[:enough]))
        else:
            weights.append(float(lambdas[k] >= 1.0))
    after = torch.tensor(weights).view_as(start) * start
    patch = after @ basis.q if basis.side == "output" else basis.q.T @ after
    expected = utility.dense() + 0.7 * patch
    torch.testing.assert_close(merged.update.dense(), expected, rtol=1e-5, atol=1e-6)  # float32 sums


@pytest.mark.parametrize("ratio", [1e-4, 1e-6])
def test_directions_do_not_depend_on_how_small_the_utility_gradients_are(ratio: float) -> None:
    """A scale of F_utility is a scale of every lambda: the same directions are kept."""
    rng = torch.Generator().manual_seed(0)
    rows, is_safety = torch.randn(12, 40, dtype=torch.float64, generator=rng), torch.arange(12) < 6
    patch = torch.randn(40, dtype=torch.float64, generator=rng)
    kept = []
    for scale in (1.0, ratio):
        scaled = torch.where(is_safety[:, None], rows, scale * rows)
        problem = SampleSpace(scaled @ scaled.T, scaled @ patch, is_safety, 40, float(patch @ patch))
        found = eigendirections(problem, damping_safety=0.0, damping_utility=0.1)
        assert found.neutral_directions == 28
        combination = found.combine(problem, (found.values >= found.values[5]).double(), 0.0)
        kept.append(combination.weights @ scaled)
    torch.testing.assert_close(kept[1], kept[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("price", [1.0, 100.0, 1e9])
@pytest.mark.parametrize("ratio", [1.0, 1e-4, 1e-6, 1e2])
def test_the_undamped_soft_rule_does_not_depend_on_how_small_the_utility_gradients_are(
    price: float, ratio: float
) -> None:
    """Each sample has a direction of its own: whatever the price, utility's responses go and safety's stay."""
    rng = torch.Generator().manual_seed(0)
    rows, is_safety = torch.randn(12, 40, dtype=torch.float64, generator=rng), torch.arange(12) < 6
    patch = torch.randn(40, dtype=torch.float64, generator=rng)
    scaled = torch.where(is_safety[:, None], rows, ratio * rows)
    problem = SampleSpace(scaled @ scaled.T, scaled @ patch, is_safety, 40, float(patch @ patch))
    found = steer_softly(problem, price=price, damping_safety=0.0).apply(scaled, patch)
    torch.testing.assert_close(rows @ found, torch.where(is_safety, rows @ patch, 0.0), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("ratio", [1e-4, 1e-2, 1e2])
def test_the_undamped_soft_rule_agrees_with_a_dense_solve_at_any_ratio_of_the_data_sets(ratio: float) -> None:
    rng = torch.Generator().manual_seed(1)
    rows, is_safety = torch.randn(60, 20, dtype=torch.float64, generator=rng), torch.arange(60) < 30
    patch = torch.randn(20, dtype=torch.float64, generator=rng)
    scaled = torch.where(is_safety[:, None], rows, ratio * rows)
    problem = SampleSpace(scaled @ scaled.T, scaled @ patch, is_safety, 20, float(patch @ patch))
    found = steer_softly(problem, price=3.0 / ratio**2, damping_safety=0.0).apply(scaled, patch)
    safety, utility = (scaled[chosen].T @ scaled[chosen] for chosen in (is_safety, ~is_safety))
    dense = torch.linalg.solve(safety + 3.0 / ratio**2 * utility, safety @ patch)
    torch.testing.assert_close(found, dense, rtol=1e-8, atol=1e-8)


def test_what_only_rounding_ranks_ties_with_the_untouched_directions() -> None:
    """Without damping, what no safety sample sees has lambda 0, whether utility sees it or not."""
    rng = torch.Generator().manual_seed(1)
    rows, is_safety = torch.randn(8, 40, dtype=torch.float64, generator=rng), torch.arange(8) < 3
    patch = torch.randn(40, dtype=torch.float64, generator=rng)
    problem = SampleSpace(rows @ rows.T, rows @ patch, is_safety, 40, float(patch @ patch))
    found = eigendirections(problem, damping_safety=0.0, damping_utility=0.1)
    assert found.values[3:].tolist() == [0.0] * 5
    weights, neutral = Keep(directions=4).hard_weights(
        found.values, found.neutral_value, found.neutral_directions, energies=found.values * found.patch.square()
    )
    assert (int(weights.sum()), neutral) == (3, 0.0)


def _softly_in_60_digits(safety: np.ndarray, utility: np.ndarray, patch: np.ndarray, price: float, damping: float):
    """``(F_s + gamma I + price F_u)^{-1} (F_s + gamma I) C_0`` as it stands, in 60 decimal digits."""
    with mpmath.workdps(60):
        a, b, c = (mpmath.matrix(values.tolist()) for values in (safety, utility, patch))
        fisher = a.T * a
        gamma = mpmath.mpf(damping) * sum(fisher[i, i] for i in range(len(patch))) / len(patch)
        stay = fisher + gamma * mpmath.eye(len(patch))
        return np.array([float(x) for x in mpmath.lu_solve(stay + mpmath.mpf(price) * (b.T * b), stay * c)])


@pytest.mark.parametrize("damping", [1e-6, 2.0])
@pytest.mark.parametrize("price", [1.0, 100.0, 1e9])
@pytest.mark.parametrize("ratio", [1e-4, 1.0, 1e5])
def test_the_soft_rule_holds_at_any_ratio_of_gradients_price_and_damping(
    ratio: float, price: float, damping: float
) -> None:
    rng = np.random.default_rng(1)
    for coordinates, safety_samples, utility_samples in ((12, 3, 4), (6, 5, 4), (14, 6, 1)):
        safety = rng.normal(size=(safety_samples, coordinates))
        utility = rng.normal(size=(utility_samples, coordinates)) * ratio
        utility = np.concatenate([utility, utility[:1]])  # one sample twice
        patch = rng.normal(size=coordinates)
        rows, c = torch.from_numpy(np.concatenate([safety, utility])), torch.from_numpy(patch)
        problem = SampleSpace.of(rows, torch.arange(len(rows)) < safety_samples, c)
        found = steer_softly(problem, price=price, damping_safety=damping).apply(rows, c).numpy()
        expected = _softly_in_60_digits(safety, utility, patch, price, damping)
        assert np.abs(found - expected).max() <= 1e-7 * np.abs(expected).max()
