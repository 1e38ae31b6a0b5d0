"""Kronecker-factored Fisher matrices against dense Kronecker products with scipy, and against one token at a time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from sst_merge.errors import NumericalError
from sst_merge.inference import Encoded, encode
from sst_merge.kronecker import KroneckerFisher, kronecker_eigendirections, steer_kronecker_softly
from sst_merge.methods.keep import Keep
from sst_merge.methods.sst import Sst
from sst_merge.models import Base
from sst_merge.progress import SilentReporter
from sst_merge.stages.merge import merge_updates
from sst_merge.statistics import KroneckerFactors, Request, SampleGradients, Statistics, kronecker_factors
from sst_merge.statistics.sample_gradients import patch_bases
from sst_merge.statistics.stored import PatchBasis
from sst_merge.weights import applied
from tiny import FAMILIES, Family, encoded_conversations, random_adapter, tiny_base

ROWS, COLUMNS = 7, 4
ROUNDING = {"rtol": 1e-8, "atol": 1e-9}  # float64; whitening costs the condition of the factors
both_dampings = pytest.mark.parametrize("damping_safety", [0.0, 0.1])


@dataclass(frozen=True)
class Dense:
    """Both Fishers as ``p x p`` matrices that act on ``C.flatten()``, and the pencil's solution."""

    safety: np.ndarray
    utility: np.ndarray
    damped_safety: np.ndarray
    damped_utility: np.ndarray
    values: np.ndarray
    vectors: np.ndarray


def factor(rng: np.random.Generator, size: int, rank: int | None = None) -> np.ndarray:
    drawn = rng.normal(size=(size, rank or 3 * size)) * rng.uniform(0.3, 2.0, size=(size, 1))
    return drawn @ drawn.T / drawn.shape[1]


def problem(seed: int = 0) -> tuple[KroneckerFisher, KroneckerFisher, Tensor]:
    rng = np.random.default_rng(seed)
    safety, utility = (
        KroneckerFisher(torch.from_numpy(factor(rng, ROWS)), torch.from_numpy(factor(rng, COLUMNS))) for _ in range(2)
    )
    return safety, utility, torch.from_numpy(rng.normal(size=(ROWS, COLUMNS)))


def with_diagonal(matrix: Tensor, fraction: float) -> np.ndarray:
    return matrix.numpy() + fraction**0.5 * np.trace(matrix.numpy()) / len(matrix) * np.eye(len(matrix))


def dense(safety: KroneckerFisher, utility: KroneckerFisher, damping_safety: float, damping_utility: float) -> Dense:
    damped_safety = np.kron(with_diagonal(safety.left, damping_safety), with_diagonal(safety.right, damping_safety))
    damped_utility = np.kron(
        with_diagonal(utility.left, damping_utility), with_diagonal(utility.right, damping_utility)
    )
    values, vectors = scipy.linalg.eigh(damped_safety, damped_utility)
    return Dense(
        np.kron(safety.left.numpy(), safety.right.numpy()),
        np.kron(utility.left.numpy(), utility.right.numpy()),
        damped_safety,
        damped_utility,
        values[::-1],
        vectors[:, ::-1],
    )


@both_dampings
def test_eigenvalues_of_the_product_are_products_of_eigenvalues(damping_safety: float) -> None:
    safety, utility, patch = problem()
    expected = dense(safety, utility, damping_safety, 0.2)
    found = kronecker_eigendirections(safety.damped(damping_safety), utility.damped(0.2), patch)
    np.testing.assert_allclose(np.sort(found.values.numpy().ravel())[::-1], expected.values, **ROUNDING)
    vectors = np.kron(found.left.numpy(), found.right.numpy())
    np.testing.assert_allclose(vectors.T @ expected.damped_utility @ vectors, np.eye(ROWS * COLUMNS), **ROUNDING)
    np.testing.assert_allclose(
        vectors.T @ expected.damped_safety @ vectors, np.diag(found.values.numpy().ravel()), **ROUNDING
    )


@both_dampings
@pytest.mark.parametrize(
    "keep",
    [Keep(directions=0), Keep(directions=5), Keep(directions=28), Keep(threshold=1.0), Keep(energy=0.6)],
    ids=lambda keep: keep.model_dump_json(exclude_none=True),
)
def test_the_kept_patch_equals_the_dense_oblique_projection(damping_safety: float, keep: Keep) -> None:
    safety, utility, patch = problem()
    expected = dense(safety, utility, damping_safety, 0.2)
    flat = patch.numpy().ravel()
    coordinates = expected.vectors.T @ expected.damped_utility @ flat
    shares = np.cumsum(expected.values * coordinates**2)
    if keep.directions is not None:
        count = keep.directions
    elif keep.threshold is not None:
        count = int((expected.values >= keep.threshold).sum())
    else:
        count = int(np.argmax(shares >= 0.6 * flat @ expected.damped_safety @ flat)) + 1
    found = kronecker_eigendirections(safety.damped(damping_safety), utility.damped(0.2), patch)
    values = found.values.flatten()
    weights, _ = keep.hard_weights(
        values, neutral=-1.0, neutral_count=0, energies=values * found.patch.flatten().square()
    )
    assert int(weights.sum()) == count
    kept = expected.vectors[:, :count]
    np.testing.assert_allclose(
        found.combine(weights.view_as(patch)).numpy().ravel(),
        kept @ kept.T @ expected.damped_utility @ flat,
        **ROUNDING,
    )


@both_dampings
@pytest.mark.parametrize("price", [0.0, 0.1, 1.0, 30.0])
def test_the_soft_rule_equals_a_dense_solve(damping_safety: float, price: float) -> None:
    safety, utility, patch = problem()
    expected = dense(safety, utility, damping_safety, 0.2)
    found = steer_kronecker_softly(safety.damped(damping_safety), utility, patch, price=price)
    flat = patch.numpy().ravel()
    solved = np.linalg.solve(expected.damped_safety + price * expected.utility, expected.damped_safety @ flat)
    np.testing.assert_allclose(found.numpy().ravel(), solved, **ROUNDING)


def test_without_damping_the_soft_rule_drops_what_neither_data_set_touches() -> None:
    """Fewer tokens than rows: safety and utility see four and two directions of seven."""
    rng = np.random.default_rng(3)
    seen = rng.normal(size=(ROWS, 5))
    left = [seen[:, :4] @ seen[:, :4].T, seen[:, 3:] @ seen[:, 3:].T]
    right = [factor(rng, COLUMNS) for _ in range(2)]
    safety, utility = (
        KroneckerFisher(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(left, right, strict=True)
    )
    patch = rng.normal(size=(ROWS, COLUMNS))
    f_s, f_u = (np.kron(a, b) for a, b in zip(left, right, strict=True))
    expected = np.linalg.pinv(f_s + 3.0 * f_u, rcond=1e-11, hermitian=True) @ f_s @ patch.ravel()
    found = steer_kronecker_softly(safety, utility, torch.from_numpy(patch), price=3.0)
    np.testing.assert_allclose(found.numpy().ravel(), expected, rtol=1e-6, atol=1e-7)


def test_energies_equal_the_dense_ones() -> None:
    safety, utility, patch = problem()
    expected = dense(safety, utility, 0.0, 0.2)
    flat = patch.numpy().ravel()
    assert safety.energy(patch) == pytest.approx(flat @ expected.safety @ flat)
    assert utility.energy(patch) == pytest.approx(flat @ expected.utility @ flat)


def test_damping_adds_its_fraction_of_the_mean_eigenvalue_where_the_fisher_vanishes() -> None:
    safety, _, _ = problem()
    singular = KroneckerFisher(torch.diag(torch.tensor([2.0, 0.0, 0.0, 1.0]).double()), safety.right)
    added = singular.damped(0.25)
    smallest = torch.linalg.eigvalsh(added.left)[0]
    assert float(smallest) == pytest.approx(0.5 * 3.0 / 4)
    product = (added.left - singular.left).diagonal()[0] * (added.right - singular.right).diagonal()[0]
    p = 4 * COLUMNS
    trace = float(singular.left.diagonal().sum() * singular.right.diagonal().sum())
    assert float(product) == pytest.approx(0.25 * trace / p)


def test_equal_fishers_make_every_direction_tie() -> None:
    safety, _, patch = problem()
    found = kronecker_eigendirections(safety.damped(0.1), safety.damped(0.1), patch)
    torch.testing.assert_close(found.values, torch.ones_like(found.values), rtol=1e-9, atol=1e-9)
    halved = steer_kronecker_softly(safety, safety, patch, price=3.0)
    torch.testing.assert_close(halved, patch / 4, rtol=1e-9, atol=1e-9)


def test_the_first_direction_maximises_the_rayleigh_quotient() -> None:
    safety, utility, patch = problem()
    expected = dense(safety, utility, 0.1, 0.2)
    found = kronecker_eigendirections(safety.damped(0.1), utility.damped(0.2), patch)
    draws = np.random.default_rng(0).normal(size=(ROWS * COLUMNS, 2000))
    quotients = np.einsum("pd,pd->d", draws, expected.damped_safety @ draws) / np.einsum(
        "pd,pd->d", draws, expected.damped_utility @ draws
    )
    assert quotients.max() <= float(found.values[0, 0]) * (1 + 1e-9)


def test_a_utility_fisher_of_zeros_and_values_that_are_not_finite_are_refused() -> None:
    safety, utility, patch = problem()
    with pytest.raises(NumericalError, match="not positive definite"):
        kronecker_eigendirections(safety, KroneckerFisher(utility.left * 0, utility.right).damped(0.1), patch)
    broken = KroneckerFisher(safety.left * float("nan"), safety.right)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        kronecker_eigendirections(broken, utility, patch)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        steer_kronecker_softly(broken, utility, patch, price=1.0)


def test_regmean_is_the_soft_rule_with_one_factor_and_price_one() -> None:
    """``W = (W_s Z_s + W_u Z_u) (Z_s + Z_u)^{-1}`` (Jin et al. 2023, arXiv:2212.09849, in our layout ``W x``)."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, ROWS, COLUMNS))
    z_s, z_u = factor(rng, COLUMNS), factor(rng, COLUMNS)
    safety, utility = (
        KroneckerFisher(torch.eye(ROWS, dtype=torch.float64), torch.from_numpy(each)) for each in (z_s, z_u)
    )
    steered = steer_kronecker_softly(safety, utility, torch.from_numpy(first - second), price=1.0)
    expected = (first @ z_s + second @ z_u) @ np.linalg.inv(z_s + z_u)
    np.testing.assert_allclose(second + steered.numpy(), expected, **ROUNDING)


def tokens_one_by_one(base: Base, name: str, basis: PatchBasis, sample: Encoded) -> list[tuple[Tensor, Tensor]]:
    """``(l_t, r_t)`` of one unpadded sample at one module, by autograd with respect to the module's output."""
    seen: list[Tensor] = []

    def keep(_module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        probe = torch.zeros_like(output, requires_grad=True)
        seen.extend([inputs[0].detach()[0], probe])
        return output + probe

    handle = base.modules[name].register_forward_hook(keep)
    try:
        logits = base.model(input_ids=torch.tensor([sample.ids])).logits[0]
    finally:
        handle.remove()
    total = sum(
        (
            logits[position - 1].log_softmax(dim=0)[sample.ids[position]]
            for position in range(sample.answer_start, len(sample.ids))
        ),
        start=torch.zeros((), dtype=base.dtype),
    )
    x, probe = seen
    g = torch.autograd.grad(total, probe)[0][0]
    q = basis.q.to(base.dtype)
    return [(g_t, q @ x_t) if basis.side == "output" else (q @ g_t, x_t) for g_t, x_t in zip(g, x, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_measured_factors_equal_a_loop_over_tokens(
    family: Family, batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kronecker_factors, "PANEL_ROWS", 9)  # several panels, as of a large model's factors
    base = tiny_base(family, seed=3, dtype=torch.float64)
    bases = patch_bases(random_adapter(base, rank=3, seed=1))
    samples = encoded_conversations(base)
    weights = [1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0, 0.25]
    names = [
        "model.layers.0.mlp.up_proj",
        "model.layers.0.self_attn.q_proj",  # the first token's query gets a gradient of rounding only
        "model.layers.0.self_attn.k_proj",
        "model.layers.1.mlp.down_proj",
    ]
    with applied(base, random_adapter(base, rank=2, seed=2), "utility"):
        measured = KroneckerFactors.measure(
            base, bases, samples, tmp_path, safety_samples=3, weights=weights, batch_size=batch_size
        )
        loops = {name: [tokens_one_by_one(base, name, bases[name], sample) for sample in samples] for name in names}
    assert {bases[name].side for name in names} == {"output", "input"}
    for name in names:
        for found, positions in zip(measured.fishers(name), (range(3), range(3, 8)), strict=True):
            left, right, count = torch.zeros_like(found.left), torch.zeros_like(found.right), 0.0
            for i in positions:
                largest = max(float(l_t.norm()) for l_t, _ in loops[name][i])
                for l_t, r_t in loops[name][i]:
                    left += weights[i] * torch.outer(l_t, l_t)
                    if float(l_t.norm()) > 1e-5 * largest:
                        right += weights[i] * torch.outer(r_t, r_t)
                        count += weights[i]
            assert float(found.left.diagonal().sum()) > 0
            if name.endswith("q_proj"):  # neither the first nor the last token
                assert count == pytest.approx(sum(weights[i] * (len(samples[i].ids) - 2) for i in positions))
            torch.testing.assert_close(found.left, left / sum(weights[i] for i in positions), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found.right, right / count, rtol=1e-9, atol=1e-9)


def test_with_one_token_the_product_is_the_exact_fisher(llama64: Base, tmp_path: Path) -> None:
    """The last block's MLP is reached from one place by the loss of a one-token answer: nothing is neglected."""
    name = "model.layers.1.mlp.down_proj"
    bases = patch_bases({name: random_adapter(llama64, rank=2, seed=1)[name]})
    samples = [Encoded(one.ids[: one.answer_start + 1], one.answer_start) for one in encoded_conversations(llama64)[:2]]
    settings = {"safety_samples": 1, "weights": [1.0, 1.0], "batch_size": 2}
    factors = KroneckerFactors.measure(llama64, bases, samples, tmp_path / "factors", **settings)
    gradients = SampleGradients.measure(llama64, bases, samples, tmp_path / "gradients", **settings)
    rows = gradients.rows(name).double()
    for fisher, row in zip(factors.fishers(name), rows, strict=True):
        product, exact = torch.kron(fisher.left, fisher.right), torch.outer(row, row)
        # gradients are stored in float32
        torch.testing.assert_close(product, exact, rtol=1e-5, atol=1e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("keep", [Keep(directions=9), Keep(directions=40), Keep(energy=0.6)], ids=str)
def test_a_hard_rule_does_not_choose_by_rounding_among_directions_without_data(tmp_path: Path, keep: Keep) -> None:
    """Of the last output projection only tokens that predict an answer have a gradient: fewer than rows."""
    base = tiny_base("llama")
    name = "model.layers.1.mlp.down_proj"
    utility, safety = ({name: random_adapter(base, rank=3, seed=seed)[name]} for seed in (1, 2))
    samples = [encode(base, prompt, answer) for prompt, answer in (("Colour?", "Red"), ("2 + 2", "4"), ("Sum", "9"))]
    merged = []
    for batch_size in (1, 3):
        with applied(base, utility, "utility"):
            factors = KroneckerFactors.measure(
                base,
                patch_bases(safety),
                samples,
                tmp_path / str(batch_size),
                safety_samples=1,
                weights=[1.0] * 3,
                batch_size=batch_size,
            )
        statistics = Statistics({Request("kronecker_factors"): factors})
        found = merge_updates(
            Sst(fisher="kfac", keep=keep), utility, safety, statistics, seed=0, reporter=SilentReporter()
        )
        merged.append(found.updates[name].dense() - utility[name].dense())
    assert float((merged[0] - merged[1]).norm()) < 1e-5 * float(safety[name].dense().norm())
