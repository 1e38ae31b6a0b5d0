"""The contract of a merge method."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from sst_merge.adapter import Update
from sst_merge.linalg import PatchForm, Span
from sst_merge.section import Label, Number
from sst_merge.statistics import Gradients, KroneckerFactors, Request, Statistics


@dataclass(frozen=True)
class ModuleInputs:
    """What a method sees of one module: both updates, and the statistics it asked for."""

    name: str
    utility: Update
    safety: Update
    gradients: Gradients | None = None
    factors: KroneckerFactors | None = None


@dataclass(frozen=True)
class ModuleResult:
    """The merged update of one module, and what the method has to say about it."""

    update: Update
    diagnostics: dict[str, Any] = field(default_factory=dict)


class MergeMethod(BaseModel, ABC):
    """A merge method. Its fields are its config, its CLI help and its sweep axes.

    A method sees updates and statistics; never a path, a model or a device. It does not change its inputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    title: ClassVar[str]
    """Readable name for reports."""
    source: ClassVar[str]
    """Paper and place in it."""
    is_low_rank: ClassVar[bool] = True
    """Whether the merged update has at most the rank of both adapters together."""
    is_random: ClassVar[bool] = False
    """Whether the result depends on the seed."""
    keeps_utility_at_strength_zero: ClassVar[bool] = True
    """Whether strength 0 with utility weight 1 gives the utility adapter itself."""

    name: Any
    """Name of the method: a literal in each."""
    utility_weight: Number = Field(default=1.0, ge=0, le=2)
    """Factor on the utility update, in [0, 2]; 1 leaves the utility adapter untouched."""
    strength: Number = Field(default=1.0, ge=0, le=16)
    """Factor on the safety update after the method has treated it, in [0, 16]."""
    label: Label | None = Field(default=None, exclude_if=lambda label: label is None)
    """Name of its arm, for `comparisons` in which one method stands twice; the method's name when left out."""

    @property
    def arm(self) -> str:
        """Name of its arm among the comparisons, of its files and of its entries in the results."""
        return self.label or str(self.name)

    def requires(self) -> frozenset[str]:
        """Names of the statistics that the method reads with these parameters."""
        return frozenset()

    def coordinates(self) -> tuple[Span, PatchForm]:
        """Which adapters span the coordinates of the statistics, and which patch they are for.

        The patch decides where the midpoint of ``calibration.point`` is.
        """
        return "safety", "add"

    def requests(self) -> list[Request]:
        """What calibration has to measure for this method."""
        return [Request(name, *self.coordinates()) for name in sorted(self.requires())]

    def inputs(self, name: str, utility: Update, safety: Update, statistics: Statistics) -> ModuleInputs:
        """One module's inputs with the statistics that the method asks for, as far as they were measured."""
        span_and_form = self.coordinates()
        return ModuleInputs(
            name, utility, safety, statistics.gradients(*span_and_form), statistics.factors(*span_and_form)
        )

    def notes(self, where: str) -> list[str]:
        """What a user should hear of these parameters before the run; ``where`` is their place in the run file."""
        return [f"{where}.strength is 0: nothing of the safety adapter is added"] if self.strength == 0 else []

    def patch_alone(self) -> "MergeMethod | None":
        """What makes ``P`` where this method makes ``utility_weight * U + strength * P``; ``None`` for other sums.

        Merges that differ in these two factors alone then need the patch once.
        """
        return None

    def without_spectrum(self) -> "MergeMethod":
        """The same merge without the diagnostics that may take longer than it does: where nobody reads them."""
        return self

    def prepare(self, modules: Iterable[ModuleInputs]) -> Any:
        """Look at all modules once; the result reaches every :meth:`merge_module`. By default nothing."""
        del modules

    def whole(self, state: Any) -> dict[str, Any]:
        """Diagnostics of all modules together, from what ``prepare`` returned.

        Nothing where modules are problems of their own: then their sums are taken.
        """
        return {}

    @abstractmethod
    def merge_module(self, inputs: ModuleInputs, state: Any, rng: torch.Generator) -> ModuleResult:
        """Merge one module.

        Args:
            inputs: Both updates, and statistics if required.
            state: What :meth:`prepare` returned.
            rng: Seeded by the run's seed and the module's name; the only source of randomness.
        """


def module_generator(seed: int, name: str) -> torch.Generator:
    """Random generator of one module: independent between modules, the same whatever their order."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=False) >> 1)
