"""TIES-Merging (Yadav et al. 2023, arXiv:2306.01708)."""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sst_merge.adapter import from_dense
from sst_merge.methods.base import MergeMethod, ModuleInputs, ModuleResult
from sst_merge.section import Number


class Ties(MergeMethod):
    """Trim small entries, elect a sign per entry, average the updates that agree with it.

    The weights enter before the election: an update of weight 0 has no vote. Averaging shrinks what only one of the
    two knows less than what both know; at density 1 and weight 1 it is neither the sum nor the average.
    """

    title: ClassVar[str] = "TIES"
    source: ClassVar[str] = "Yadav et al. 2023, arXiv:2306.01708, Algorithm 1 (trimmed per module)"
    is_low_rank: ClassVar[bool] = False
    keeps_utility_at_strength_zero: ClassVar[bool] = False  # trimming changes the utility update itself

    name: Literal["ties"] = "ties"
    """Name of the method."""
    density: Number = Field(default=0.5, gt=0, le=1)
    """Fraction of the entries kept per module and adapter, by magnitude, in (0, 1]."""

    def merge_module(self, inputs: ModuleInputs, state: Any, rng: torch.Generator) -> ModuleResult:
        """Trim, elect, merge disjointly."""
        weighted = torch.stack(
            [
                self.utility_weight * trim(inputs.utility.dense(), self.density),
                self.strength * trim(inputs.safety.dense(), self.density),
            ]
        )  # (adapters, d_out, d_in)
        elected = torch.sign(weighted.sum(dim=0))
        agrees = (torch.sign(weighted) == elected) & (weighted != 0)
        merged = (weighted * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
        return ModuleResult(from_dense(merged))


def trim(matrix: Float[Tensor, "d_out d_in"], density: float) -> Float[Tensor, "d_out d_in"]:
    """Keep the ``ceil(density * size)`` entries of largest magnitude, of equal ones the first; the others become 0.

    Example:
        >>> trim(torch.tensor([[3.0, -1.0], [0.5, -2.0]]), 0.5).tolist()
        [[3.0, 0.0], [0.0, -2.0]]
    """
    size = matrix.numel()
    count = -int(-density * size // 1)  # ceiling
    if count >= size:
        return matrix
    flat = matrix.flatten()
    magnitudes = flat.abs()
    smallest = magnitudes.kthvalue(size - count + 1).values
    is_kept = magnitudes > smallest
    ties = (magnitudes == smallest).nonzero()[: count - int(is_kept.sum()), 0]
    is_kept[ties] = True
    return torch.where(is_kept, flat, 0.0).view_as(matrix)
