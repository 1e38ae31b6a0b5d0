"""Per-sample gradients against the obvious way: one sample at a time, autograd through an explicit LoRA probe."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from families import other_base
from sst_merge.errors import ModelError
from sst_merge.inference import Encoded, collate
from sst_merge.models import Base, module_shape
from sst_merge.statistics import SampleGradients
from sst_merge.statistics.sample_gradients import batch_gradients, chosen_draws, patch_bases
from sst_merge.statistics.stored import PatchBasis
from sst_merge.weights import applied
from tiny import FAMILIES, Family, encoded_conversations, random_adapter, tiny_base

# Two ways of summing the same float64 terms; gradients are of order 1 to 100.
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}


def gradients_one_by_one(
    base: Base, bases: dict[str, PatchBasis], sample: Encoded, labels: Sequence[int] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradient of one unpadded sample's log-likelihood with respect to a LoRA probe that is zero.

    The answer's own tokens are its labels unless others are given.
    """
    labels = labels or sample.ids[sample.answer_start :]
    probes: dict[str, Tensor] = {}

    def attach(name: str, basis: PatchBasis) -> Callable[..., Tensor]:
        q = basis.q.to(base.dtype)
        d_out, d_in = module_shape(base.modules[name])
        shape = (d_out, len(q)) if basis.side == "output" else (len(q), d_in)
        probes[name] = torch.zeros(shape, dtype=base.dtype, requires_grad=True)

        def with_probe(_module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            update = probes[name] @ q if basis.side == "output" else q.T @ probes[name]
            return output + inputs[0] @ update.T

        return with_probe

    handles = [base.modules[name].register_forward_hook(attach(name, basis)) for name, basis in bases.items()]
    try:
        logits = base.model(input_ids=torch.tensor([sample.ids])).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    log_likelihood = torch.zeros((), dtype=base.dtype)
    for position in range(sample.answer_start, len(sample.ids)):
        label = labels[position - sample.answer_start]
        log_likelihood = log_likelihood + logits[position - 1].log_softmax(dim=0)[label]
    gradients = torch.autograd.grad(log_likelihood, [probes[name] for name in bases])
    return dict(zip(bases, gradients, strict=True)), log_likelihood.detach()


def batched(
    base: Base, bases: dict[str, PatchBasis], samples: Sequence[Encoded], order: Sequence[int], batch_size: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The production code over batches in a given order; rows come back in the order of the samples."""
    gradients: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(samples) for name in bases}
    likelihoods = torch.empty(len(samples), dtype=base.dtype)
    for start in range(0, len(order), batch_size):
        positions = list(order[start : start + batch_size])
        found, values = batch_gradients(base, bases, collate(base, [samples[position] for position in positions]))
        likelihoods[positions] = values
        for name, rows in found.items():
            for position, row in zip(positions, rows, strict=True):
                gradients[name][position] = row
    return {name: torch.stack(rows) for name, rows in gradients.items()}, likelihoods


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_gradients_equal_a_loop_with_a_lora_probe(family: Family) -> None:
    base = tiny_base(family, seed=3, dtype=torch.float64)
    bases = patch_bases(random_adapter(base, rank=3, seed=1))
    assert {basis.side for basis in bases.values()} == {"output", "input"}
    samples = encoded_conversations(base)
    with applied(base, random_adapter(base, rank=2, seed=2), "utility"):  # the point of linearisation
        loop = [gradients_one_by_one(base, bases, sample) for sample in samples]
        gradients, likelihoods = batched(base, bases, samples, range(len(samples)), batch_size=len(samples))
    assert set(gradients) == set(base.modules)
    for index, (expected, log_likelihood) in enumerate(loop):
        torch.testing.assert_close(likelihoods[index], log_likelihood, **ROUNDING)
        for name in bases:
            torch.testing.assert_close(gradients[name][index].view_as(expected[name]), expected[name], **ROUNDING)


@pytest.mark.parametrize(
    ("kind", "batch_size"),
    [
        ("ctrl", 3),
        ("gpt2", 3),
        ("opt", 1),
        ("qwen2_moe", 1),
    ],  # CTRL scales its embeddings in place; OPT lists all tokens
)
def test_gradients_of_other_models_equal_the_loop(kind: str, batch_size: int) -> None:
    base = other_base(kind)  # float32: transformers' experts know no other precision on a CPU than the usual ones
    bases = patch_bases(random_adapter(base, rank=3, seed=1))
    samples = encoded_conversations(base)[:3]
    gradients, _ = batched(base, bases, samples, range(3), batch_size)
    for index, sample in enumerate(samples):
        expected, _ = gradients_one_by_one(base, bases, sample)
        for name in bases:
            found = gradients[name][index].view_as(expected[name])
            assert float((found - expected[name]).norm()) <= 1e-5 * float(expected[name].norm())


@pytest.mark.parametrize("kind", ["opt", "qwen2_moe"])
def test_tokens_in_one_list_are_refused_in_batches(kind: str) -> None:
    base = other_base(kind)
    bases = patch_bases(random_adapter(base, rank=3, seed=1))
    with pytest.raises(ModelError, match=r"module '.*(fc1|gate_proj)' reads the tokens of a batch as .*batch_size: 1"):
        batched(base, bases, encoded_conversations(base)[:3], range(3), batch_size=2)


@pytest.mark.parametrize(("batch_size", "reverse"), [(1, False), (3, False), (3, True), (8, True)])
def test_batch_size_padding_and_order_do_not_matter(llama64: Base, batch_size: int, reverse: bool) -> None:
    bases = patch_bases(random_adapter(llama64, rank=3, seed=1))
    samples = encoded_conversations(llama64)
    order = list(range(len(samples)))
    expected, expected_likelihoods = batched(llama64, bases, samples, order, batch_size=2)
    found, likelihoods = batched(llama64, bases, samples, order[::-1] if reverse else order, batch_size)
    torch.testing.assert_close(likelihoods, expected_likelihoods, **ROUNDING)
    torch.testing.assert_close(found, expected, **ROUNDING)


def test_fisher_of_measured_rows_is_the_weighted_mean_of_outer_products(llama64: Base, tmp_path: Path) -> None:
    bases = patch_bases(random_adapter(llama64, rank=2, seed=1))
    samples = encoded_conversations(llama64)
    weights = [1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0, 0.25]
    measured = SampleGradients.measure(
        llama64, bases, samples, tmp_path / "statistics", safety_samples=3, weights=weights, batch_size=3
    )
    name = "model.layers.1.self_attn.k_proj"
    one_by_one = [gradients_one_by_one(llama64, {name: bases[name]}, sample)[0][name].flatten() for sample in samples]
    rows = measured.rows(name).double()
    for is_safety, positions in ((True, range(3)), (False, range(3, 8))):
        total = sum(weights[position] for position in positions)
        fisher = sum(
            weights[position] / total * torch.outer(one_by_one[position], one_by_one[position])
            for position in positions
        )
        part = rows[measured.is_safety() == is_safety]
        # the file holds float32
        torch.testing.assert_close(part.T @ part, fisher, rtol=1e-5, atol=1e-6 * float(fisher.abs().max()))


def test_squaring_the_batch_mean_gradient_is_another_quantity(llama64: Base) -> None:
    """The mistake that method.md warns of would not pass the tests above."""
    bases = patch_bases(random_adapter(llama64, rank=2, seed=1))
    samples = encoded_conversations(llama64)
    gradients, _ = batch_gradients(llama64, bases, collate(llama64, samples))
    rows = gradients["model.layers.0.mlp.up_proj"]
    per_sample, of_mean = rows.square().mean(dim=0).sum(), rows.mean(dim=0).square().sum()
    assert float(per_sample) > 1.5 * float(of_mean)


def walked(logits: Tensor, draw: float) -> int:
    """The first token at which the cumulative probability exceeds the draw."""
    reached = 0.0
    for token, probability in enumerate(logits.double().softmax(dim=0).tolist()):
        reached += probability
        if reached > draw:
            return token
    raise AssertionError("the draw is not below 1")


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_true_fisher_takes_labels_from_the_model_and_contexts_from_the_data(llama64: Base, batch_size: int) -> None:
    bases = patch_bases(random_adapter(llama64, rank=2, seed=1))
    samples = encoded_conversations(llama64)
    rng = torch.Generator().manual_seed(5)
    draws = [torch.rand(sample.answer_length, generator=rng, dtype=torch.float64) for sample in samples]
    changed = 0
    for start in range(0, len(samples), batch_size):
        positions = list(range(start, min(start + batch_size, len(samples))))
        batch = collate(llama64, [samples[i] for i in positions])
        gradients, likelihoods = batch_gradients(llama64, bases, batch, chosen_draws(draws, positions))
        for row, i in enumerate(positions):
            sample = samples[i]
            logits = llama64.model(input_ids=torch.tensor([sample.ids])).logits[0]
            places = range(sample.answer_start, len(sample.ids))
            labels = [walked(logits[t - 1], float(draw)) for t, draw in zip(places, draws[i], strict=True)]
            changed += sum(label != sample.ids[t] for label, t in zip(labels, places, strict=True))
            expected, log_likelihood = gradients_one_by_one(llama64, bases, sample, labels)
            torch.testing.assert_close(likelihoods[row], log_likelihood, **ROUNDING)
            for name in bases:
                torch.testing.assert_close(gradients[name][row].view_as(expected[name]), expected[name], **ROUNDING)
    assert changed > 50


def test_over_all_labels_the_true_score_has_mean_zero(llama64: Base) -> None:
    """``E[grad log p(y)] = 0`` under the model: draws in the middle of equal shares stand for the distribution."""
    name = "model.layers.1.mlp.down_proj"
    bases = patch_bases({name: random_adapter(llama64, rank=2, seed=1)[name]})
    (sample,) = encoded_conversations(llama64)[:1]
    short = Encoded(sample.ids[: sample.answer_start + 1], sample.answer_start)
    count = 2000
    draws = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count
    gradients, _ = batch_gradients(llama64, bases, collate(llama64, [short] * count), draws)
    mean, size = gradients[name].mean(dim=0).norm(), gradients[name].norm(dim=1).mean()
    assert float(mean) < 0.02 * float(size)  # shares of 1/2000
