"""Calibration statistics: what a merge method may ask for, one file each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sst_merge.linalg import PatchForm, Span
from sst_merge.statistics.kronecker_factors import KroneckerFactors
from sst_merge.statistics.sample_gradients import PooledGradients, SampleGradients

STATISTICS: dict[str, type[SampleGradients] | type[KroneckerFactors]] = {
    "sample_gradients": SampleGradients,
    "kronecker_factors": KroneckerFactors,
}


Gradients = SampleGradients | PooledGradients
"""Of every sample, at one point or at several."""


@dataclass(frozen=True)
class Request:
    """One statistic in the coordinates, and for the patch, of a method."""

    statistic: str
    """A key of :data:`STATISTICS`."""
    span: Span = "safety"
    form: PatchForm = "add"


@dataclass(frozen=True)
class Statistics:
    """What a calibration measured, by what was asked for."""

    found: Mapping[Request, Gradients | KroneckerFactors] = field(default_factory=dict)

    def gradients(self, span: Span, form: PatchForm) -> Gradients | None:
        """Per-sample gradients in these coordinates, if they were measured."""
        found = self.found.get(Request("sample_gradients", span, form))
        return None if isinstance(found, KroneckerFactors) else found

    def factors(self, span: Span, form: PatchForm) -> KroneckerFactors | None:
        """Kronecker factors in these coordinates, if they were measured."""
        found = self.found.get(Request("kronecker_factors", span, form))
        return found if isinstance(found, KroneckerFactors) else None

    def folders(self) -> list[Path]:
        """Where they are, each folder once."""
        parts = [
            part
            for each in self.found.values()
            for part in (each.points if isinstance(each, PooledGradients) else (each,))
        ]
        return list(dict.fromkeys(part.folder for part in parts))


__all__ = ["STATISTICS", "Gradients", "KroneckerFactors", "PooledGradients", "Request", "SampleGradients", "Statistics"]
