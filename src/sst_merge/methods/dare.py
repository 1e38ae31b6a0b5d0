"""DARE (Yu et al. 2024, arXiv:2311.03099): drop entries at random and rescale the rest."""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sst_merge.adapter import from_dense
from sst_merge.methods.base import MergeMethod, ModuleInputs, ModuleResult
from sst_merge.section import Number


class Dare(MergeMethod):
    """``utility_weight * drop(U) + strength * drop(S)``, each entry kept with probability ``density`` and rescaled.

    The expectation over seeds is task arithmetic; one seed is one draw.
    """

    title: ClassVar[str] = "DARE"
    source: ClassVar[str] = "Yu et al. 2024, arXiv:2311.03099 (drop and rescale by 1/(1-p), then task arithmetic)"
    is_low_rank: ClassVar[bool] = False
    is_random: ClassVar[bool] = True
    keeps_utility_at_strength_zero: ClassVar[bool] = False  # entries of the utility update are dropped, too

    name: Literal["dare"] = "dare"
    """Name of the method."""
    density: Number = Field(default=0.5, gt=0, le=1)
    """Probability that an entry is kept, in (0, 1]; the paper's 1 - p."""

    def merge_module(self, inputs: ModuleInputs, state: Any, rng: torch.Generator) -> ModuleResult:
        """Drop and rescale both updates, then add them."""
        utility = drop_and_rescale(inputs.utility.dense(), self.density, rng)
        safety = drop_and_rescale(inputs.safety.dense(), self.density, rng)
        return ModuleResult(from_dense(self.utility_weight * utility + self.strength * safety))


def drop_and_rescale(
    matrix: Float[Tensor, "d_out d_in"], density: float, rng: torch.Generator
) -> Float[Tensor, "d_out d_in"]:
    """Each entry times ``Bernoulli(density) / density``: the same expectation, fewer entries."""
    if density == 1:
        return matrix
    kept = torch.rand(matrix.shape, generator=rng) < density
    return matrix * kept / density
