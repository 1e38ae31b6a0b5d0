"""Per-sample gradients of the answer's log-likelihood in the coordinates of the safety patch.

One batched forward and backward pass gives every sample's own gradient: with ``g_t`` the gradient of the batch's
summed log-likelihood at a module's output and ``x_t`` its input, sample ``i``'s gradient is
``sum_t g_t (Q x_t)^T`` over its own tokens (output side; ``sum_t (Q g_t) x_t^T`` on the input side). Samples do not
interact, so the sum over the batch keeps them apart. No gradient of a base weight is formed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sst_merge.adapter import Updates
from sst_merge.errors import ModelError, NumericalError
from sst_merge.inference import Batch, Encoded, answer_log_likelihood, collate, length_sorted
from sst_merge.linalg import Side, joint_basis, patch_basis
from sst_merge.models import Base
from sst_merge.processes import Processes
from sst_merge.statistics.stored import (
    ALONE,
    PatchBasis,
    Stored,
    TensorFile,
    fixed_bases,
    read_index,
    write_index,
    writing_behind,
)

LEAVE_OUT = "Train both adapters without it (target_modules), or use a method that needs no calibration."


def choose_side(shape: tuple[int, int]) -> Side:
    """The side whose dense dimension is smaller, so that there are fewer coordinates."""
    d_out, d_in = shape
    return "output" if d_out <= d_in else "input"


def patch_bases(safety: Updates, utility: Updates | None = None) -> dict[str, PatchBasis]:
    """Coordinates of every module.

    Args:
        safety: Updates of the safety adapter, whose span the coordinates are.
        utility: Updates on the same modules; if given, the coordinates span both adapters (``joint``).
    """
    bases = {}
    for name, update in safety.items():
        side = choose_side(update.shape)
        q = patch_basis(update, side) if utility is None else joint_basis(update, utility[name], side)
        bases[name] = PatchBasis(side, q)
    return bases


@contextmanager
def capture_tokens(
    base: Base,
    bases: Mapping[str, PatchBasis],
    on_tokens: Callable[[str, Float[Tensor, "batch seq rows"], Float[Tensor, "batch seq columns"]], None],
) -> Iterator[None]:
    """While open, a backward pass through the model reports both factors of every token's gradient, module by module.

    A sample's gradient in the coordinates is ``sum_t left_t right_t^T``: ``left`` is ``g_t`` (output side) or
    ``Q g_t`` (input side), ``right`` is ``Q x_t`` or ``x_t``. Modules without coordinates are left out.

    Args:
        base: The model at the point of linearisation.
        bases: Coordinates per module.
        on_tokens: Called once per module and backward pass, with the module's name, ``left`` and ``right``; float32
            at least, float64 in a float64 model.

    Raises:
        ModelError: If a module's tokens cannot be told apart by sample, or it is used never or more than once.
    """
    precision = torch.promote_types(base.dtype, torch.float32)
    captured = {name: basis for name, basis in bases.items() if basis.q.shape[0]}
    tokens = torch.Size()  # (batch, seq), as the embeddings read it
    used, reported = set[str](), set[str]()

    def hook_for(name: str, basis: PatchBasis) -> Callable[..., None]:
        q = basis.q.to(device=base.modules[name].weight.device, dtype=precision)

        def on_forward(_module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            x = _by_sample(name, inputs, output, tokens)  # (batch, seq, d_in)
            if name in used:
                raise ModelError(
                    f"module '{name}' is used more than once for the same text, which cannot be calibrated. {LEAVE_OUT}"
                )
            if not x.numel() or not output.requires_grad:
                return
            used.add(name)
            # What is kept until the backward pass: few columns, or the input itself, which modules side by side share.
            kept = x.to(precision) @ q.T if basis.side == "output" else x

            def on_backward(g: Tensor) -> None:
                g = g.to(precision).reshape(*kept.shape[:2], -1)  # (batch, seq, d_out)
                reported.add(name)
                on_tokens(name, g if basis.side == "output" else g @ q.T, kept.to(precision))

            output.register_hook(on_backward)

        return on_forward

    # The embeddings' output starts the graph, since no weight requires a gradient.
    def start_graph(_module: torch.nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal tokens
        tokens = output.shape[:2]
        used.clear()
        return output.requires_grad_(True).clone()  # some models (CTRL) scale it in place, which a leaf forbids

    handles = [base.model.get_input_embeddings().register_forward_hook(start_graph)]
    handles += [base.modules[name].register_forward_hook(hook_for(name, basis)) for name, basis in captured.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if unused := sorted(captured.keys() - reported):
        raise ModelError(
            f"module '{unused[0]}' takes no part in what the model says to some of the texts ({len(unused)} such "
            f"module(s) of {len(captured)}), so that it has no gradient there. {LEAVE_OUT}"
        )


def _by_sample(name: str, inputs: tuple[Any, ...], output: Any, tokens: torch.Size) -> Float[Tensor, "batch seq d_in"]:
    """A module's input, sample by sample. In a batch of one all rows are the one sample's, whatever their order.

    Raises:
        ModelError: If rows cannot be told apart by sample for certain, or the module is not called as linear ones are.
    """
    x = inputs[0].detach() if inputs and isinstance(inputs[0], Tensor) else None
    if x is None or not isinstance(output, Tensor) or output.shape[:-1] != x.shape[:-1]:
        raise ModelError(f"module '{name}' does more than multiply its input by its weight. {LEAVE_OUT}")
    if x.ndim == 3 and x.shape[:2] == tokens:
        return x
    if tokens[0] == 1:
        return x.reshape(1, -1, x.shape[-1])
    raise ModelError(
        f"module '{name}' reads the tokens of a batch as {tuple(x.shape[:-1])}, not as (samples, tokens) = "
        f"{tuple(tokens)}: which are whose is uncertain. Set calibration.batch_size: 1."
    )


@contextmanager
def capture_gradients(
    base: Base, bases: Mapping[str, PatchBasis]
) -> Iterator[dict[str, Float[Tensor, "batch rows columns"]]]:
    """While open, a backward pass through the model fills the mapping with per-sample gradients of each module.

    The yielded mapping is overwritten by every backward pass.
    """
    gradients: dict[str, Tensor] = {}

    def on_tokens(name: str, left: Tensor, right: Tensor) -> None:
        gradients[name] = torch.einsum("bto,bti->boi", left, right)

    with capture_tokens(base, bases, on_tokens):
        yield gradients


def batch_gradients(
    base: Base, bases: Mapping[str, PatchBasis], batch: Batch, draws: Float[Tensor, "batch width"] | None = None
) -> tuple[dict[str, Float[Tensor, "batch coordinates"]], Float[Tensor, " batch"]]:
    """Per-sample gradients of ``log p(answer | prompt)`` of one batch, flattened per module, and the likelihoods.

    Args:
        base: The model at the point of linearisation.
        bases: Coordinates per module.
        batch: Prompts with answers.
        draws: If given, the answers' tokens are sampled from the model by these numbers; see
            :func:`sst_merge.inference.answer_log_likelihood`.

    Raises:
        NumericalError: If a gradient is NaN or infinite.
    """
    with torch.enable_grad(), capture_gradients(base, bases) as captured:
        log_likelihood = answer_log_likelihood(base, batch, draws)
        log_likelihood.sum().backward()
        gradients = {name: gradient.flatten(start_dim=1).cpu() for name, gradient in captured.items()}
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            raise NumericalError(f"the gradient at module '{name}' is NaN or infinite. Calibrate in float32.")
    return gradients, log_likelihood.detach()


def chosen_draws(
    draws: Sequence[Float64[Tensor, " _"]] | None, positions: Sequence[int]
) -> Float64[Tensor, "batch width"] | None:
    """The random numbers of some samples as one matrix, each row's in its last columns, where answers are."""
    if draws is None:
        return None
    width = max(len(draws[position]) for position in positions)
    return torch.stack([torch.nn.functional.pad(draws[i], (width - len(draws[i]), 0)) for i in positions])


@dataclass(frozen=True)
class SampleGradients(Stored):
    """Per-sample gradients on disk: one file per batch, and the coordinates they are in.

    ``index.json`` says for every batch file which samples it holds (positions in the list of samples), so that a
    killed calibration goes on where it stopped.
    """

    batches: tuple[tuple[int, ...], ...]
    """Sample positions in each batch file."""
    _files: dict[int, TensorFile] = field(default_factory=dict, repr=False, compare=False)
    """The batch files, as far as they were opened."""

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
    ) -> "SampleGradients":
        """Fill ``folder``; batches that are there already are kept.

        The caller answers for the folder holding nothing that was measured otherwise (its name is a hash of
        everything the statistics depend on).

        Args:
            base: The model at the point of linearisation.
            bases: Coordinates per module.
            samples: Safety samples first, then utility samples.
            folder: Where the batch files go.
            safety_samples: How many of the samples are safety samples.
            weights: Of each sample within its data set, dimensionless.
            batch_size: Samples per backward pass; it changes the result by rounding only.
            draws: Of each sample one number in [0, 1) per answer token, by which labels are sampled from the model
                (the true Fisher); ``None`` takes the data's labels (the empirical Fisher).
            on_batch: Called with the number of samples done after each batch.
            processes: Those that measure together; each batch file is written by one of them, and is the same file
                whichever that is.
        """
        folder.mkdir(parents=True, exist_ok=True)
        batches = length_sorted([len(sample.ids) for sample in samples], batch_size)
        bases = fixed_bases(folder, bases, processes)
        with writing_behind() as save:
            for number, positions in enumerate(batches):
                file = _batch_file(folder, number)
                is_own = number % processes.count == processes.rank
                if is_own and file.exists():
                    TensorFile(file).tensors()  # damaged ones are found here, before the time of the others is spent
                elif is_own:
                    gradients, _ = batch_gradients(
                        base,
                        bases,
                        collate(base, [samples[position] for position in positions]),
                        chosen_draws(draws, positions),
                    )
                    save(file, {name: gradient.float() for name, gradient in gradients.items()})
                on_batch(len(positions))
        index = {
            "batches": batches,
            "safety_samples": safety_samples,
            "weights": list(weights),
            "sides": {name: basis.side for name, basis in bases.items()},
        }
        write_index(folder, index, processes)
        return SampleGradients.load(folder)

    @staticmethod
    def load(folder: Path) -> "SampleGradients":
        """Open finished statistics."""
        index = read_index(folder)
        return SampleGradients(
            folder,
            index["safety_samples"],
            tuple(index["weights"]),
            index["sides"],
            tuple(tuple(batch) for batch in index["batches"]),
        )

    def is_safety(self) -> Tensor:
        """Boolean per sample: whether it belongs to the safety data."""
        return torch.arange(len(self.weights)) < self.safety_samples

    def rows(self, name: str) -> Float[Tensor, "samples coordinates"]:
        """``J`` of one module, rows scaled so that each data set's ``J^T J`` is its Fisher matrix.

        Row ``i`` is the gradient times ``sqrt(weight_i / total weight of its data set)``; float32.
        """
        rows = torch.empty(0)
        for number, positions in enumerate(self.batches):
            part = self._part(number, name)
            if number == 0:
                rows = part.new_empty(len(self.weights), part.shape[1])
            rows[list(positions)] = part
        weights = torch.tensor(self.weights, dtype=torch.float64)
        is_safety = self.is_safety()
        totals = torch.where(is_safety, weights[is_safety].sum(), weights[~is_safety].sum())
        return rows.mul_((weights / totals).sqrt().float()[:, None])

    def _part(self, number: int, name: str) -> Float[Tensor, "batch coordinates"]:
        """One module's rows of one batch file."""
        if number not in self._files:
            self._files[number] = TensorFile(_batch_file(self.folder, number))
        return self._files[number].tensor(name)


@dataclass(frozen=True)
class PooledGradients:
    """Gradients of the same samples at several points: each Fisher matrix is the mean of those at the points."""

    points: tuple[SampleGradients, ...]
    """Of one list of samples, in the same coordinates."""

    def is_safety(self) -> Tensor:
        """Boolean per row: whether its sample belongs to the safety data."""
        return torch.cat([point.is_safety() for point in self.points])

    def rows(self, name: str) -> Float[Tensor, "rows coordinates"]:
        """``J`` of one module, point after point: those of each point divided by the root of their number; float32."""
        return torch.cat([point.rows(name) for point in self.points]).mul_(len(self.points) ** -0.5)

    def basis(self, name: str) -> PatchBasis:
        """Coordinates of one module."""
        return self.points[0].basis(name)


def _batch_file(folder: Path, number: int) -> Path:
    return folder / f"batch-{number:04d}.safetensors"
