"""Which directions of a patch are kept: the rule, whatever the structure of the Fisher matrices."""

from typing import Any

import torch
from jaxtyping import Float64
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from sst_merge.section import Section

ENERGY_ROUNDING = 1e-12
"""Sums of shares of energy in float64 may miss the whole by this fraction; it must not ask for one more direction."""


class Keep(Section):
    """Which directions of the patch are kept; exactly one rule."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    soft: float | None = Field(default=None, ge=0, le=1e9)
    """Price of utility sensitivity in units of safety sensitivity: weights lambda / (lambda + price). 0 keeps all."""
    directions: int | None = Field(default=None, ge=0)
    """Keep this many directions per module (per model in global scope), those with the largest lambda."""
    threshold: float | None = Field(default=None, ge=0)
    """Keep the directions with lambda at or above this value."""
    energy: float | None = Field(default=None, ge=0, le=1)
    """Keep as few of the directions with the largest lambda as hold this fraction of the patch's safety energy."""

    @model_validator(mode="before")
    @classmethod
    def _is_a_rule(cls, value: Any) -> Any:
        if not isinstance(value, dict | Keep):
            raise ValueError("expected a rule, such as {soft: 100}")
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> "Keep":
        if sum(rule is not None for rule in (self.soft, self.directions, self.threshold, self.energy)) != 1:
            raise ValueError("give exactly one of soft, directions, threshold, energy")
        return self

    def hard_weights(
        self,
        values: Float64[Tensor, " directions"],
        neutral: float,
        neutral_count: int,
        *,
        energies: Float64[Tensor, " directions"],
        neutral_energy: float = 0.0,
    ) -> tuple[Float64[Tensor, " directions"], float]:
        """0/1 weight of each direction, and of the untouched ones, which tie at ``neutral`` and go together.

        Directions whose lambda is ``neutral`` go with them: nothing says which of the tied ones would come first.

        Args:
            values: lambda of each direction, in any order.
            neutral: lambda of the untouched directions; negative where there are none.
            neutral_count: How many untouched directions there are.
            energies: Each direction's share of the patch's safety energy ``C_0^T (F_s + gamma I) C_0``; the shares
                add up, since the directions are orthogonal in ``F_s + gamma I``.
            neutral_energy: Share of the untouched directions together.
        """
        if self.threshold is not None:
            return (values >= self.threshold).double(), float(neutral >= self.threshold)
        order = values.argsort(descending=True, stable=True)
        above, tied = int((values > neutral).sum()), int((values == neutral).sum())
        below = above + tied
        if self.energy is not None:
            block = neutral_energy + energies[order[above:below]].sum()
            parts = torch.cat([energies[order[:above]], block[None], energies[order[below:]]])
            wanted = self.energy * (1 - ENERGY_ROUNDING) * float(parts.sum())
            count = int((parts.cumsum(dim=0) < wanted).sum()) + 1 if wanted > 0 else 0
            with_neutral = count > above
            chosen = order[: count - 1 + tied] if with_neutral else order[:count]
        else:
            wanted = self.directions or 0
            with_neutral = wanted >= below + neutral_count
            chosen = order[: wanted - neutral_count] if with_neutral else order[: min(wanted, above)]
        weights = torch.zeros_like(values)
        weights[chosen] = 1.0
        return weights, float(with_neutral)
