"""Which directions of a patch are kept: the rule, whatever the structure of the Fisher matrices."""

from typing import Any

import torch
from jaxtyping import Float64
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from sst_merge.section import Section

VALUE_ROUNDING = 1e-9
"""Values of lambda that differ by less than this fraction are one: they are computed in float64."""
ENERGY_ROUNDING = 1e-12
"""Sums of shares of energy in float64 may miss the whole by this fraction; it must not ask for one more direction."""


class Keep(Section):
    """Which directions of the patch are kept; exactly one rule."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    soft: float | None = Field(default=None, ge=0, le=1e9)
    """Price of utility sensitivity in units of safety sensitivity: weights lambda / (lambda + price). 0 keeps all."""
    directions: int | None = Field(default=None, ge=0)
    """Keep this many directions per module (per model in global scope), those with the largest lambda; fewer where
    directions that tie go beyond them."""
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
        """0/1 weight of each direction, and of the untouched ones, which tie at ``neutral``.

        Tied directions are kept together or not at all: nothing but rounding says which of them would come first. So
        ``directions`` keeps fewer than were asked for where a tie goes beyond them.

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
        every = torch.cat([values, values.new_tensor([neutral])])
        order = every.argsort(descending=True, stable=True)
        falling = every[order]
        is_new = falling[:-1] - falling[1:] > VALUE_ROUNDING * falling[:-1].abs()
        group = torch.cat([is_new.new_zeros(1, dtype=torch.int64), is_new.cumsum(dim=0)])  # of each, in falling order
        counts = torch.cat([torch.ones_like(values), values.new_tensor([neutral_count])])
        shares = torch.cat([energies, energies.new_tensor([neutral_energy])])

        def up_to(parts: Float64[Tensor, " all"]) -> Float64[Tensor, " groups"]:
            """Sums over the groups up to each."""
            return parts.new_zeros(int(group[-1]) + 1).index_add_(0, group, parts[order]).cumsum(dim=0)

        if self.energy is not None:
            sums = up_to(shares)
            wanted = self.energy * (1 - ENERGY_ROUNDING) * float(sums[-1])
            kept = int((sums < wanted).sum()) + 1 if wanted > 0 else 0
        else:
            kept = int((up_to(counts) <= (self.directions or 0)).sum())
        weights = torch.zeros_like(every)
        weights[order] = (group < kept).double()
        return weights[:-1], float(weights[-1]) if neutral >= 0 else 0.0
