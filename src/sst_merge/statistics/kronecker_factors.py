"""Kronecker factors of both Fisher matrices (K-FAC) in the coordinates of the patch.

Martens and Grosse 2015, arXiv:1503.05671. A sample's gradient is ``sum_t l_t r_t^T`` over its tokens, with
``l_t = g_t`` and ``r_t = Q x_t`` (output side; ``Q g_t`` and ``x_t`` on the input side). For a layer that is used once
for every token, the tokens are taken as independent and ``l`` as independent of ``r`` ("K-FAC-expand", Eschenhagen et
al. 2023, arXiv:2311.00636)::

    F = E_samples[ vec(sum_t l_t r_t^T) vec(sum_t l_t r_t^T)^T ]
      ~ E_samples[ sum_t l_t l_t^T ] (x) E_tokens[ r_t r_t^T ]

so that the left factor carries the scale of a whole answer's gradient, as in the exact structure. Tokens are those
that the answer's likelihood depends on at this module: prompt and answer, but neither padding nor the last token nor
any other whose gradient is zero but for rounding. They are summed as they come; nothing is kept per token, and of the
sums, which are symmetric, little more than one triangle: panels of rows, each from the diagonal on.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sst_merge.errors import NumericalError
from sst_merge.inference import Encoded, answer_log_likelihood, collate, length_sorted
from sst_merge.kronecker import KroneckerFisher
from sst_merge.models import Base
from sst_merge.processes import Processes
from sst_merge.statistics.sample_gradients import capture_tokens, chosen_draws
from sst_merge.statistics.stored import (
    ALONE,
    PatchBasis,
    Stored,
    TensorFile,
    fixed_bases,
    read_index,
    save_tensors,
    write_index,
)

SUMS_FILE = "sums.safetensors"
BATCHES = "batches"
"""Key of the number of batches that the sums hold; no module has this name."""
SAVING_SHARE = 0.1
"""Sums are written no more often than takes this share of the time: for a 7B model they are some 28 to 38 GB."""
WRITTEN_PER_SECOND = 3e8
"""Bytes; what the first writing is taken to manage."""
PANELS = 4
"""Into how many panels a factor is cut: more come closer to one triangle, and multiply thinner matrices."""
PANEL_ROWS = 64
"""A panel has no fewer rows, but for the last one: a small factor is one panel."""
ROUNDING = 1e-5
"""A token whose gradient has no more than this share of the norm of its sample's largest does not count: gradients that
are zero come out at 1e-6 and less (the first token's query attends to one key), on some machines exactly zero."""


class _Sums:
    """Running sums over batches, by module, data set and factor."""

    def __init__(self, tensors: dict[str, Tensor] | None = None) -> None:
        self.tensors = tensors or {BATCHES: torch.zeros(1, dtype=torch.int64)}

    @property
    def batches(self) -> int:
        return int(self.tensors[BATCHES])

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def add(self, key: str, value: Tensor) -> None:
        if key in self.tensors:
            self.tensors[key].add_(value.cpu())
        else:
            self.tensors[key] = value.cpu()

    def write(self, path: Path) -> None:
        """Write the sums as they are, atomically.

        Raises:
            NumericalError: If one is NaN or infinite.
        """
        for key, value in self.tensors.items():
            if not bool(torch.isfinite(value.sum())):  # NaN and infinity stay what they are in a sum
                name = key.partition("/")[0]
                raise NumericalError(f"the gradient at module '{name}' is NaN or infinite. Calibrate in float32.")
        save_tensors(path, self.tensors)

    def add_tokens(
        self,
        name: str,
        left: Float[Tensor, "batch seq rows"],
        right: Float[Tensor, "batch seq columns"],
        weights: Float64[Tensor, " batch"],
        is_safety: Bool[Tensor, " batch"],
    ) -> None:
        """Add one module's tokens of one batch."""
        norms = left.norm(dim=2)  # (batch, seq)
        is_rounding = norms <= ROUNDING * norms.amax(dim=1, keepdim=True)
        reached = ~(is_rounding & norms.isfinite().all(dim=1, keepdim=True))  # NaN and infinity are found when written
        for data, chosen in (("safety", is_safety), ("utility", ~is_safety)):
            kept = (reached & chosen[:, None]).flatten().nonzero()[:, 0]  # positions of tokens in the batch
            weight = weights.repeat_interleave(left.shape[1])[kept]
            for factor, values in (("left", left), ("right", right)):
                # In float64: rounding of float32 products is a direction of its own where tokens have none.
                scaled = values.flatten(end_dim=1).index_select(0, kept).double().mul_(weight.sqrt()[:, None])
                for number, (start, end) in enumerate(panels(scaled.shape[1])):
                    self.add(f"{name}/{data}/{factor}/{number}", scaled[:, start:end].T @ scaled[:, start:])
            self.add(f"{name}/{data}/tokens", weight.sum(dim=0, keepdim=True))


@dataclass(frozen=True)
class KroneckerFactors(Stored):
    """Kronecker factors on disk: one file of sums, and the coordinates they are in."""

    @staticmethod
    def measure(
        base: Base,
        bases: Mapping[str, PatchBasis],
        samples: Sequence[Encoded],
        folder: Path,
        *,
        safety_samples: int,
        weights: Sequence[float],
        batch_size: int,
        draws: Sequence[Float64[Tensor, " _"]] | None = None,
        on_batch: Callable[[int], None] = lambda _: None,
        processes: Processes = ALONE,
    ) -> "KroneckerFactors":
        """Fill ``folder``; a measurement that was interrupted goes on after the last sums that were written.

        Memory: both factors of both data sets for every module in float64, ``10 (rows^2 + columns^2)`` bytes where
        they are large, up to ``16 (rows^2 + columns^2)`` where they are small.

        Args:
            base: The model at the point of linearisation.
            bases: Coordinates per module.
            samples: Safety samples first, then utility samples.
            folder: Where the files go; as in :meth:`SampleGradients.measure` its name answers for what is in it.
            safety_samples: How many of the samples are safety samples.
            weights: Of each sample within its data set, dimensionless.
            batch_size: Samples per backward pass; it changes the result by rounding only.
            draws: As in :meth:`SampleGradients.measure`.
            on_batch: Called with the number of samples done after each batch.
            processes: Those that measure together; each sums up its own batches, the first one adds the sums in
                order, so that the result depends on their number by rounding.

        Raises:
            NumericalError: If a sum is NaN or infinite.
        """
        folder.mkdir(parents=True, exist_ok=True)
        batches = length_sorted([len(sample.ids) for sample in samples], batch_size)
        bases = fixed_bases(folder, bases, processes)
        file = _sums_file(folder, processes.rank, processes.count)
        sums = _Sums(TensorFile(file).tensors() if file.is_file() else None)
        written, cost = time.monotonic(), None
        own = range(processes.rank, len(batches), processes.count)
        for number, positions in enumerate(batches):
            if number in own[sums.batches :]:
                _add_batch(base, bases, samples, positions, sums, safety_samples, weights, draws)
                start = time.monotonic()
                expected = sums.size / WRITTEN_PER_SECOND if cost is None else cost
                if expected <= SAVING_SHARE * (start - written) or number == own[-1]:
                    sums.write(file)
                    written = time.monotonic()
                    cost = written - start
            on_batch(len(positions))
        _put_together(folder, processes)
        index = {
            "safety_samples": safety_samples,
            "weights": list(weights),
            "sides": {name: basis.side for name, basis in bases.items()},
        }
        write_index(folder, index, processes)
        return KroneckerFactors.load(folder)

    @staticmethod
    def load(folder: Path) -> "KroneckerFactors":
        """Open finished statistics."""
        index = read_index(folder)
        return KroneckerFactors(folder, index["safety_samples"], tuple(index["weights"]), index["sides"])

    def fishers(self, name: str) -> tuple[KroneckerFisher, KroneckerFisher]:
        """The safety and the utility Fisher of one module, not damped."""
        totals = (sum(self.weights[: self.safety_samples]), sum(self.weights[self.safety_samples :]))
        file = TensorFile(self.folder / SUMS_FILE)
        safety, utility = (
            KroneckerFisher(
                _factor(file, f"{name}/{data}/left") / total,
                _factor(file, f"{name}/{data}/right") / max(float(file.tensor(f"{name}/{data}/tokens")), 1e-300),
            )
            for data, total in zip(("safety", "utility"), totals, strict=True)
        )
        return safety, utility


def panels(size: int) -> list[tuple[int, int]]:
    """First row, and the row after the last, of each panel of a symmetric matrix; a panel starts at the diagonal."""
    rows = max(PANEL_ROWS, -(-size // PANELS))
    return [(start, min(start + rows, size)) for start in range(0, size, rows)]


def stored_numbers(size: int) -> int:
    """How many numbers the panels of a symmetric matrix hold."""
    return sum((end - start) * (size - start) for start, end in panels(size))


def _add_batch(
    base: Base,
    bases: Mapping[str, PatchBasis],
    samples: Sequence[Encoded],
    positions: Sequence[int],
    sums: _Sums,
    safety_samples: int,
    weights: Sequence[float],
    draws: Sequence[Float64[Tensor, " _"]] | None,
) -> None:
    """One backward pass; every module's tokens go into the sums as soon as their gradient is there."""
    batch = collate(base, [samples[position] for position in positions])
    weight = torch.tensor([weights[position] for position in positions], dtype=torch.float64)
    is_safety = torch.tensor([position < safety_samples for position in positions], device=base.device)

    def on_tokens(name: str, left: Tensor, right: Tensor) -> None:
        sums.add_tokens(name, left, right, weight.to(left.device), is_safety.to(left.device))

    with torch.enable_grad(), capture_tokens(base, bases, on_tokens):
        answer_log_likelihood(base, batch, chosen_draws(draws, positions)).sum().backward()
    sums.add(BATCHES, torch.ones(1, dtype=torch.int64))


def _put_together(folder: Path, processes: Processes) -> None:
    """One file of sums out of those of all processes; what earlier starts with another number of them left goes."""
    processes.barrier()
    if not processes.is_first:
        return
    if processes.count > 1:
        total = _Sums()
        for rank in range(processes.count):
            file = _sums_file(folder, rank, processes.count)
            if file.is_file():  # there is none where there are more processes than batches
                for key, value in TensorFile(file).tensors().items():
                    total.add(key, value)
        total.write(folder / SUMS_FILE)
    for file in folder.glob("sums-*-of-*.safetensors"):
        file.unlink()


def _sums_file(folder: Path, rank: int, count: int) -> Path:
    return folder / (SUMS_FILE if count == 1 else f"sums-{rank}-of-{count}.safetensors")


def _factor(file: TensorFile, key: str) -> Float64[Tensor, "size size"]:
    """One factor's sum out of its panels, symmetric to the last bit."""
    first = file.tensor(f"{key}/0")
    size = first.shape[1]
    upper = first.new_zeros(size, size)
    for number, (start, end) in enumerate(panels(size)):
        upper[start:end, start:] = file.tensor(f"{key}/{number}")
    upper = upper.triu()
    return upper + upper.triu(1).T
