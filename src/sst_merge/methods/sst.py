"""SST-Merge: keep the directions of the safety update that buy safety cheaply, add them to the utility adapter."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from sst_merge.adapter import Update, concatenate, squared_norm
from sst_merge.errors import NumericalError, StatisticsError
from sst_merge.kronecker import kronecker_eigendirections, steer_kronecker_softly
from sst_merge.linalg import (
    SAMPLES,
    Combination,
    Eigendirections,
    PatchForm,
    SampleSpace,
    Span,
    Spectrum,
    eigendirections,
    patch_coordinates,
    patch_from_coordinates,
    spectrum,
    steer_softly,
)
from sst_merge.methods.base import MergeMethod, ModuleInputs, ModuleResult
from sst_merge.methods.keep import Keep
from sst_merge.section import Number
from sst_merge.statistics.sample_gradients import patch_bases
from sst_merge.statistics.stored import PatchBasis

STATISTIC_OF = {"exact": "sample_gradients", "diagonal": "sample_gradients", "kfac": "kronecker_factors"}
PRICE = 100.0
"""Chosen for the exact Fisher (docs/decisions/0011)."""
MOST_REFUSED = {"kfac": 53, "diagonal": 25}
"""Per cent of the harmful test prompts at that price, over cells and strengths (docs/results/ablation-smollm2.md)."""
SMALLEST_DAMPING = 1e-10
"""Below it rounding moves the soft rule by more than 1e-5 of the patch, where samples are more than coordinates."""
TINY = torch.finfo(torch.float64).tiny
FREE = 1e200
"""Stands for infinity among lambda, above any threshold, so that an order is left."""
OUTSIDE = 1e-4
"""A patch whose squared norm lies outside the coordinates by more than this fraction has foreign statistics."""
ROUNDING = 1e-12
"""Of squared norms, by float32 factors and coordinates."""

Coordinates = Float64[Tensor, "rows columns"]


@dataclass(frozen=True)
class GlobalState:
    """One combination for the whole network."""

    combination: Combination
    diagnostics: dict[str, Any]
    """Spectrum and energies of the whole network."""


class Sst(MergeMethod):
    """``utility_weight * U + strength * P(S)``, with ``P`` from ``F_safety v = lambda F_utility v``.

    The utility adapter is untouched. ``exact`` works in sample space with the full Fisher matrices, ``kfac`` with
    their Kronecker factors, ``diagonal`` with their diagonals only. ``none`` is a heuristic that reads no data: it
    puts the squared entries of both updates in the place of the diagonals.
    """

    title: ClassVar[str] = "SST-Merge"
    source: ClassVar[str] = "this project, docs/method.md"

    name: Literal["sst"] = "sst"
    """Name of the method."""
    fisher: Literal["exact", "kfac", "diagonal", "none"] = "exact"
    """Structure of the Fisher matrices: exact (sample space), kfac (Kronecker factors), diagonal (elementwise), or
    none (a heuristic without data: squared entries of the updates)."""
    scope: Literal["module", "global"] = "module"
    """One eigenproblem per module, or one for the whole network (exact Fisher only; with calibration.harmless it lost
    refusals and task where it was tried)."""
    keep: Keep = Keep(soft=PRICE)
    """Rule that chooses directions: {soft: price}, {directions: number}, {threshold: lambda} or {energy: share}."""
    patch: PatchForm = "add"
    """What is steered: add (S, the safety update) or interpolate (S - U, which ends at the safety model)."""
    span: Span = "safety"
    """Where the steered patch may lie: in the span of the safety update, or in the joint span of both adapters."""
    damping_safety: Number = Field(default=2.0, ge=0, le=1e12)
    """gamma as a fraction of tr(F_safety)/p: 0, or at least 1e-10. Above 0 the soft rule keeps directions that neither
    data set touches; the larger, the closer the patch stays to the safety update."""
    damping_utility: Number = Field(default=0.1, gt=0, le=1e12)
    """eps as a fraction of tr(F_utility)/p, above 0, in the denominator of lambda (hard rules and diagonal Fisher)."""

    _tells_spectrum: bool = PrivateAttr(default=True)

    @model_validator(mode="after")
    def _fits_together(self) -> "Sst":
        if 0 < self.damping_safety < SMALLEST_DAMPING:
            raise ValueError(
                f"damping_safety must be 0 or at least {SMALLEST_DAMPING:g}, got {self.damping_safety:g}: "
                "less is lost in rounding"
            )
        if self.scope == "global" and self.fisher != "exact":
            raise ValueError("scope global needs fisher exact")
        if self.patch == "interpolate" and self.span != "joint":
            raise ValueError("patch interpolate needs span joint: S - U does not lie in the span of S")
        if self.fisher == "none" and self.keep.energy is not None:
            raise ValueError("keep energy needs a Fisher matrix, and fisher none has none; use another keep rule")
        return self

    def requires(self) -> frozenset[str]:
        """The statistic that the Fisher structure is made from; nothing for ``none``."""
        return frozenset({STATISTIC_OF[self.fisher]} if self.fisher in STATISTIC_OF else ())

    def notes(self, where: str) -> list[str]:
        """Also of a price that was chosen for another Fisher structure; measured in docs/results."""
        found = super().notes(where)
        if self.fisher in MOST_REFUSED and (self.keep.soft or 0) >= PRICE and self.patch == "add":
            found.append(
                f"{where}.keep.soft is {self.keep.soft:g}: {PRICE:g} was chosen for fisher exact. With fisher "
                f"{self.fisher} at {PRICE:g}, at most {MOST_REFUSED[self.fisher]} % of the harmful prompts were "
                "refused where it was tried; begin with 10"
            )
        return found

    def coordinates(self) -> tuple[Span, PatchForm]:
        """The fields of these names."""
        return self.span, self.patch

    def patch_alone(self) -> "Sst | None":
        """In the coordinates of the safety update; in joint ones both are added before the factors are made."""
        if self.span != "safety":
            return None
        return self.model_copy(update={"utility_weight": 0.0, "strength": 1.0, "label": None})

    def without_spectrum(self) -> "Sst":
        """With the soft rule, which does without the generalised eigenvalues."""
        method = self.model_copy()
        method._tells_spectrum = False
        return method

    def prepare(self, modules: Iterable[ModuleInputs]) -> GlobalState | None:
        """In global scope, add up the Gram matrices of all modules and solve once."""
        if self.scope == "module":
            return None
        total: SampleSpace | None = None
        for inputs in modules:
            patch = _Patch.of(inputs, self)
            if not patch.is_zero:
                problem, _ = _sample_space(inputs, patch)
                total = problem if total is None else total + problem
        if total is None:
            return None
        combination, diagnostics = self._solve(total, "the network")
        return GlobalState(combination, {**diagnostics, **combination.energies(total)})

    def whole(self, state: GlobalState | None) -> dict[str, Any]:
        """In global scope spectrum and energies of the one problem, terms between modules included."""
        return {} if state is None else state.diagnostics

    def merge_module(self, inputs: ModuleInputs, state: Any, rng: torch.Generator) -> ModuleResult:
        """Steer the patch and add it to the utility update."""
        patch = _Patch.of(inputs, self)
        if patch.is_zero:  # it has no direction to keep
            return ModuleResult(inputs.utility.scaled(self.utility_weight), {"squared_norm": 0.0})
        if self.fisher == "kfac":
            steered, diagnostics = self._kronecker(inputs, patch)
        elif self.fisher == "exact":
            steered, diagnostics = self._exact(inputs, patch, state)
        else:
            steered, diagnostics = self._elementwise(inputs, patch)
        return ModuleResult(self._assembled(inputs, patch, steered), diagnostics)

    def _assembled(self, inputs: ModuleInputs, patch: "_Patch", steered: Coordinates) -> Update:
        """``utility_weight * U + strength * P``, of at most the rank of both adapters together."""
        utility = inputs.utility.scaled(self.utility_weight)
        if self.span == "safety":
            change = patch_from_coordinates(steered.float(), patch.basis.q, patch.basis.side)
            return concatenate([utility, change.scaled(self.strength)])
        if self.strength == 0 or not bool(steered.any()):
            return utility
        # Both lie in the joint span: their coordinates add, where side by side the rank would be r_s + 2 r_u.
        total = self.utility_weight * patch.utility() + self.strength * steered
        return patch_from_coordinates(total.float(), patch.basis.q, patch.basis.side)

    def _exact(self, inputs: ModuleInputs, patch: "_Patch", state: Any) -> tuple[Coordinates, dict[str, Any]]:
        """Steer by the full Fisher matrices in sample space."""
        problem, rows = _sample_space(inputs, patch)
        if self.scope == "global" and state is None:
            raise StatisticsError("scope global: prepare has not seen the modules, so there is no common solution.")
        combination, diagnostics = (
            (state.combination, {}) if state is not None else self._solve(problem, _module(inputs))
        )
        steered = combination.apply(rows, patch.coordinates.flatten())
        return steered.view_as(patch.coordinates), {**diagnostics, **combination.energies(problem)}

    def _solve(self, problem: SampleSpace, where: str) -> tuple[Combination, dict[str, Any]]:
        """The combination that the keep rule asks for, and the spectrum."""
        traces = problem.gram.diagonal()
        _check_touched(where, traces[problem.is_safety].sum(), traces[~problem.is_safety].sum())
        if self.keep.soft is not None:
            combination = steer_softly(problem, price=self.keep.soft, damping_safety=self.damping_safety)
            return combination, _told(spectrum(problem, **self._damping())) if self._tells_spectrum else {}
        directions = eigendirections(problem, **self._damping())
        told = _told(directions)
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
            return everything, {**told, "directions_kept": kept}
        return directions.combine(problem, weights, neutral), {**told, "directions_kept": kept}

    def _damping(self) -> dict[str, float]:
        """Both dampings."""
        return {"damping_safety": self.damping_safety, "damping_utility": self.damping_utility}

    def _kronecker(self, inputs: ModuleInputs, patch: "_Patch") -> tuple[Coordinates, dict[str, Any]]:
        """Steer by two small eigenproblems, one for each Kronecker factor."""
        if inputs.factors is None:
            raise _missing("kronecker_factors", inputs.name)
        safety, utility = inputs.factors.fishers(inputs.name)
        _check_touched(_module(inputs), *(each.left.trace() * each.right.trace() for each in (safety, utility)))
        before, damped = patch.coordinates, safety.damped(self.damping_safety)
        directions = kronecker_eigendirections(damped, utility.damped(self.damping_utility), before)
        diagnostics: dict[str, Any] = {
            "spectrum_left": [float(f"{value:.6g}") for value in directions.left_values],
            "spectrum_right": [float(f"{value:.6g}") for value in directions.right_values],
        }
        if self.keep.soft is not None:
            after = steer_kronecker_softly(damped, utility, before, price=self.keep.soft)
        else:
            values = directions.values.flatten()
            weights, _ = self.keep.hard_weights(
                values, neutral=-1.0, neutral_count=0, energies=values * directions.patch.flatten().square()
            )
            after = before if bool(weights.all()) else directions.combine(weights.view_as(before))
            diagnostics["directions_kept"] = int(weights.sum())
        return after, {
            **diagnostics,
            **_norms(before, after),
            "safety_energy": safety.energy(before),
            "safety_energy_kept": safety.energy(after),
            "utility_energy": utility.energy(before),
            "utility_energy_kept": utility.energy(after),
        }

    def _elementwise(self, inputs: ModuleInputs, patch: "_Patch") -> tuple[Coordinates, dict[str, Any]]:
        """Steer each coordinate by itself, with the diagonals of both Fisher matrices or what stands for them."""
        before = patch.coordinates.flatten()
        if self.fisher == "none":
            safety, utility = before.square(), patch.utility().flatten().square()
        else:
            rows, is_safety = _rows(inputs)
            safety, utility = _sums_of_squares(rows, is_safety)
            _check_touched(_module(inputs), safety.sum(), utility.sum())
        gamma = self.damping_safety * float(safety.mean())
        eps = self.damping_utility * float(utility.mean())
        paid = utility + eps
        if not bool(paid.any()):  # a module that the utility adapter left alone: all is free, the largest first
            paid = torch.full_like(paid, float((safety + gamma).max()) / FREE)
        values = (safety + gamma) / paid.clamp(min=TINY)
        if self.keep.soft == 0:
            weights = torch.ones_like(values)
        elif self.keep.soft is not None:
            weights = (safety + gamma) / (safety + gamma + self.keep.soft * utility).clamp(min=TINY)
        else:
            energies = (safety + gamma) * before.square()
            weights, _ = self.keep.hard_weights(values, neutral=-1.0, neutral_count=0, energies=energies)
        after = weights * before
        diagnostics = _norms(before, after)
        if self.fisher != "none":  # squared entries are no Fisher matrix, and predict no energy
            for name, fisher in (("safety", safety), ("utility", utility)):
                diagnostics[f"{name}_energy"] = float((fisher * before.square()).sum())
                diagnostics[f"{name}_energy_kept"] = float((fisher * after.square()).sum())
        return after.view_as(patch.coordinates), diagnostics


@dataclass(frozen=True)
class _Patch:
    """The patch of one module in its coordinates."""

    basis: PatchBasis
    coordinates: Coordinates
    """``C_0``."""
    utility_update: Update

    is_zero: bool
    """Whether it has no coordinates, or is the difference of two updates that are alike but for rounding."""

    @staticmethod
    def of(inputs: ModuleInputs, method: Sst) -> "_Patch":
        """The patch that a method steers.

        Raises:
            StatisticsError: If the statistics are missing, or in coordinates that do not hold the patch.
        """
        basis = _basis(inputs, method)
        update = inputs.safety
        if method.patch == "interpolate":
            update = concatenate([inputs.safety, inputs.utility.scaled(-1.0)])
        coordinates = _in_coordinates(update, basis)
        rounding = ROUNDING * (squared_norm(inputs.safety) + squared_norm(inputs.utility))  # of S - U, if they are near
        is_rounding = method.patch == "interpolate" and float(coordinates.square().sum()) <= rounding
        patch = _Patch(basis, coordinates, inputs.utility, coordinates.numel() == 0 or is_rounding)
        spanned = [(update, patch.coordinates)]
        if method.span == "joint":
            spanned.append((inputs.utility, patch.utility()))
        for whole, inside in spanned:
            norm = squared_norm(whole)
            if norm - float(inside.square().sum()) > max(OUTSIDE * norm, rounding):
                raise StatisticsError(
                    f"the statistics of module '{inputs.name}' are in coordinates that do not span its updates "
                    f"(span {method.span}): they were measured for other adapters or another span. Calibrate again."
                )
        return patch

    def utility(self) -> Coordinates:
        """The part of the utility update inside the coordinates' space (all of it in the joint span), in them."""
        return _in_coordinates(self.utility_update, self.basis)


def _in_coordinates(update: Update, basis: PatchBasis) -> Coordinates:
    """In float64: the factors of ``S - U`` cancel where the adapters are alike."""
    return patch_coordinates(Update(update.b.double(), update.a.double()), basis.q.double(), basis.side)


def _basis(inputs: ModuleInputs, method: Sst) -> PatchBasis:
    """The coordinates of the statistics; without statistics, those that they would have."""
    if method.fisher == "none":
        joint = {inputs.name: inputs.utility} if method.span == "joint" else None
        return patch_bases({inputs.name: inputs.safety}, joint)[inputs.name]
    statistics = inputs.factors if method.fisher == "kfac" else inputs.gradients
    if statistics is None:
        raise _missing(STATISTIC_OF[method.fisher], inputs.name)
    return statistics.basis(inputs.name)


def _missing(statistic: str, name: str) -> StatisticsError:
    return StatisticsError(f"method 'sst' needs the statistics {statistic} for module '{name}'. Calibrate first.")


def _told(found: Eigendirections | Spectrum) -> dict[str, Any]:
    """What the diagnostics say of the generalised eigenvalues."""
    return {
        "spectrum": [float(f"{value:.6g}") for value in found.values.tolist()],
        "neutral_value": found.neutral_value,
        "neutral_directions": found.neutral_directions,
    }


def _rows(inputs: ModuleInputs) -> tuple[Float[Tensor, "samples p"], Tensor]:
    """Per-sample gradients of one module, float32, and which of them are safety samples."""
    if inputs.gradients is None:
        raise _missing("sample_gradients", inputs.name)
    return inputs.gradients.rows(inputs.name), inputs.gradients.is_safety()


def _sums_of_squares(rows: Float[Tensor, "samples p"], is_safety: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonals of the safety and the utility Fisher matrix, in float64; no second copy of the rows."""
    safety = torch.zeros(rows.shape[1], dtype=torch.float64)
    utility = torch.zeros_like(safety)
    for block, chosen in zip(rows.split(SAMPLES), is_safety.split(SAMPLES), strict=True):
        safety += block[chosen].double().square_().sum(dim=0)
        utility += block[~chosen].double().square_().sum(dim=0)
    return safety, utility


def _sample_space(inputs: ModuleInputs, patch: _Patch) -> tuple[SampleSpace, Float[Tensor, "samples p"]]:
    """The eigenproblem of one module in sample space, and its rows."""
    rows, is_safety = _rows(inputs)
    return SampleSpace.of(rows, is_safety, patch.coordinates.flatten()), rows


def _module(inputs: ModuleInputs) -> str:
    return f"module '{inputs.name}'"


def _check_touched(where: str, safety: Tensor, utility: Tensor) -> None:
    """Refuse a Fisher matrix of trace 0: dropping all of a patch, or keeping all of it, is no choice of the data's.

    Raises:
        NumericalError: Naming the data set and the module.
    """
    for data, trace, effect in (
        ("safety", safety, "nothing of the safety update would be kept"),
        ("utility", utility, "every direction would be free"),
    ):
        if float(trace) == 0:
            raise NumericalError(
                f"the {data} Fisher of {where} is zero, so {effect}. Calibrate on {data} samples whose gradient is not "
                "zero there."
            )


def _norms(before: Tensor, after: Tensor) -> dict[str, Any]:
    return {"squared_norm": float(before.square().sum()), "squared_norm_kept": float(after.square().sum())}
