"""SST-Merge: keep the directions of the safety update that buy safety cheaply, add them to the utility adapter."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from sst_merge.adapter import concatenate
from sst_merge.errors import StatisticsError
from sst_merge.linalg import (
    Combination,
    SampleSpace,
    eigendirections,
    patch_coordinates,
    patch_from_coordinates,
    steer_softly,
)
from sst_merge.methods.base import MergeMethod, ModuleInputs, ModuleResult


ENERGY_ROUNDING = 1e-12
"""Sums of shares of energy in float64 may miss the whole by this fraction; it must not ask for one more direction."""


class Keep(BaseModel):
    """Which directions of the patch are kept; exactly one rule."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    soft: float | None = Field(default=None, ge=0)
    """Price of utility sensitivity in units of safety sensitivity: weights lambda / (lambda + price). 0 keeps all."""
    directions: int | None = Field(default=None, ge=0)
    """Keep this many directions per module (per model in global scope), those with the largest lambda."""
    threshold: float | None = Field(default=None, ge=0)
    """Keep the directions with lambda at or above this value."""
    energy: float | None = Field(default=None, ge=0, le=1)
    """Keep as few of the directions with the largest lambda as hold this fraction of the patch's safety energy."""

    @model_validator(mode="after")
    def _one_rule(self) -> "Keep":
        if len(self.model_fields_set & {"soft", "directions", "threshold", "energy"}) != 1:
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
        above = int((values > neutral).sum())
        if self.energy is not None:
            parts = torch.cat([energies[order[:above]], energies.new_tensor([neutral_energy]), energies[order[above:]]])
            wanted = self.energy * (1 - ENERGY_ROUNDING) * float(parts.sum())
            count = int((parts.cumsum(dim=0) < wanted).sum()) + 1 if wanted > 0 else 0
            with_neutral = count > above
            chosen = order[: count - with_neutral]
        else:
            wanted = self.directions or 0
            with_neutral = wanted >= above + neutral_count
            chosen = order[: wanted - neutral_count] if with_neutral else order[: min(wanted, above)]
        weights = torch.zeros_like(values)
        weights[chosen] = 1.0
        return weights, float(with_neutral)


@dataclass(frozen=True)
class GlobalState:
    """One combination for the whole network."""

    combination: Combination
    diagnostics: dict[str, Any]


class Sst(MergeMethod):
    """``utility_weight * U + strength * P(S)``, with ``P`` from ``F_safety v = lambda F_utility v``.

    The utility adapter is untouched. ``exact`` works in sample space with the full empirical Fisher matrices;
    ``diagonal`` keeps their diagonals only.
    """

    title: ClassVar[str] = "SST-Merge"
    source: ClassVar[str] = "this project, docs/method.md"

    name: Literal["sst"] = "sst"
    """Name of the method."""
    fisher: Literal["exact", "diagonal"] = "exact"
    """Structure of the Fisher matrices: exact (sample space) or diagonal (elementwise)."""
    scope: Literal["module", "global"] = "module"
    """One eigenproblem per module, or one for the whole network (exact Fisher only)."""
    keep: Keep = Keep(soft=10.0)
    """Rule that chooses directions."""
    damping_safety: float = Field(default=0.1, ge=0)
    """gamma as a fraction of tr(F_safety)/p. Above 0 the soft rule keeps directions that neither data set touches."""
    damping_utility: float = Field(default=0.1, gt=0)
    """eps as a fraction of tr(F_utility)/p, in the denominator of lambda (hard rules and diagonal Fisher)."""

    @model_validator(mode="after")
    def _scope_fits(self) -> "Sst":
        if self.scope == "global" and self.fisher != "exact":
            raise ValueError("scope global needs fisher exact")
        return self

    def requires(self) -> frozenset[str]:
        """Per-sample gradients, from which both Fisher structures follow."""
        return frozenset({"sample_gradients"})

    def prepare(self, modules: Iterable[ModuleInputs]) -> GlobalState | None:
        """In global scope, add up the Gram matrices of all modules and solve once."""
        if self.scope == "module":
            return None
        total: SampleSpace | None = None
        for inputs in modules:
            problem = _Patch.of(inputs).problem()
            if problem is not None:
                total = problem if total is None else total + problem
        if total is None:
            return None
        combination, diagnostics = self._solve(total)
        return GlobalState(combination, diagnostics)

    def merge_module(self, inputs: ModuleInputs, state: Any, rng: torch.Generator) -> ModuleResult:
        """Project the safety update and concatenate it with the utility update."""
        patch = _Patch.of(inputs)
        if patch.rows is None:  # a patch of zeros has no direction to keep
            return ModuleResult(inputs.utility.scaled(self.utility_weight), {"squared_norm": 0.0})
        if self.fisher == "diagonal":
            projected, diagnostics = self._diagonal(patch)
        else:
            problem = patch.problem()
            assert problem is not None
            if self.scope == "global" and state is None:
                raise StatisticsError("scope global: prepare has not seen the modules, so there is no common solution.")
            combination, diagnostics = (state.combination, {}) if state is not None else self._solve(problem)
            diagnostics = {**diagnostics, **combination.energies(problem)}
            moved = combination.weights @ patch.rows.double()  # large weights cancel where samples are alike
            projected = (combination.neutral * patch.coordinates.double() + moved.view_as(patch.coordinates)).float()
        steered = patch_from_coordinates(projected, patch.basis.q, patch.basis.side)
        parts = [inputs.utility.scaled(self.utility_weight), steered.scaled(self.strength)]
        return ModuleResult(concatenate(parts), diagnostics)

    def _solve(self, problem: SampleSpace) -> tuple[Combination, dict[str, Any]]:
        """The combination that the keep rule asks for, and the spectrum."""
        directions = eigendirections(problem, damping_safety=self.damping_safety, damping_utility=self.damping_utility)
        spectrum = {
            "spectrum": [float(f"{value:.6g}") for value in directions.values],
            "neutral_value": directions.neutral_value,
            "neutral_directions": directions.neutral_directions,
        }
        if self.keep.soft is not None:
            return steer_softly(problem, price=self.keep.soft, damping_safety=self.damping_safety), spectrum
        weights, neutral = self.keep.hard_weights(
            directions.values,
            directions.neutral_value,
            directions.neutral_directions,
            energies=directions.values * directions.patch.square(),
            neutral_energy=directions.neutral_energy,
        )
        kept = int(weights.sum()) + int(neutral) * directions.neutral_directions
        if kept == problem.coordinates:  # everything is kept: the patch itself, without a round trip
            everything = Combination(1.0, torch.zeros_like(problem.response))
            return everything, {**spectrum, "directions_kept": kept}
        return directions.combine(problem, weights, neutral), {**spectrum, "directions_kept": kept}

    def _diagonal(self, patch: "_Patch") -> tuple[Tensor, dict[str, Any]]:
        """Elementwise rule with the diagonals of both Fisher matrices."""
        assert patch.rows is not None
        squares = patch.rows.double().square()  # (samples, p)
        safety, utility = squares[patch.is_safety].sum(dim=0), squares[~patch.is_safety].sum(dim=0)
        before = patch.coordinates.double().flatten()
        gamma = self.damping_safety * float(safety.mean())
        eps = self.damping_utility * float(utility.mean())
        values = (safety + gamma) / (utility + eps).clamp(min=torch.finfo(torch.float64).tiny)
        if self.keep.soft == 0:
            weights = torch.ones_like(values)
        elif self.keep.soft is not None:
            weights = (safety + gamma) / (safety + gamma + self.keep.soft * utility).clamp(
                min=torch.finfo(torch.float64).tiny
            )
        else:
            energies = (safety + gamma) * before.square()
            weights, _ = self.keep.hard_weights(values, neutral=-1.0, neutral_count=0, energies=energies)
        after = weights * before
        energies = {
            "squared_norm": float(before.square().sum()),
            "squared_norm_kept": float(after.square().sum()),
            "safety_energy": float((safety * before.square()).sum()),
            "safety_energy_kept": float((safety * after.square()).sum()),
            "utility_energy": float((utility * before.square()).sum()),
            "utility_energy_kept": float((utility * after.square()).sum()),
        }
        return after.float().view_as(patch.coordinates), energies


@dataclass(frozen=True)
class _Patch:
    """The safety update of one module in its coordinates, with the gradients there."""

    basis: Any
    coordinates: Float[Tensor, "rows columns"]
    rows: Float[Tensor, "samples p"] | None
    is_safety: Tensor

    @staticmethod
    def of(inputs: ModuleInputs) -> "_Patch":
        if inputs.gradients is None:
            raise StatisticsError(f"method 'sst' needs the statistics sample_gradients for module '{inputs.name}'.")
        basis = inputs.gradients.basis(inputs.name)
        coordinates = patch_coordinates(inputs.safety, basis.q, basis.side)
        rows = inputs.gradients.rows(inputs.name) if basis.q.shape[0] else None
        return _Patch(basis, coordinates, rows, inputs.gradients.is_safety())

    def problem(self) -> SampleSpace | None:
        """The eigenproblem of this module in sample space; none for a patch of zeros."""
        if self.rows is None:
            return None
        rows = self.rows.double()
        flat = self.coordinates.double().flatten()
        return SampleSpace(rows @ rows.T, rows @ flat, self.is_safety, flat.numel(), float(flat.square().sum()))
