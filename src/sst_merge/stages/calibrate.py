"""Calibrate: measure the statistics that a merge method asks for, once for any number of merges."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sst_merge.adapter_io import read_adapter
from sst_merge.data import Row
from sst_merge.models import Base, Encoded, applied, check_modules, encode
from sst_merge.progress import Reporter
from sst_merge.run_folder import canonical_sha256, versions
from sst_merge.stages.plan import Plan, rows_sha256
from sst_merge.statistics import SampleGradients
from sst_merge.statistics.sample_gradients import patch_bases


@dataclass(frozen=True)
class LazyBase:
    """The base model, loaded when it is first needed: a finished run never loads it."""

    load: Any

    def __call__(self) -> Base:
        """The loaded model."""
        return self.load()


def statistics_folder(made: Plan) -> Path | None:
    """Where the run's statistics are: named by the hash of everything they depend on; none if no method needs any.

    That is: base model, both adapters, the rows and their weights, the point of linearisation (base + utility
    adapter), the batch size, precision and the versions of the libraries. Not: price, keep rule, damping, strength and
    utility weight, which any number of merges may change.
    """
    if not made.inputs.calibration_safety or made.config.calibration is None:
        return None
    key = canonical_sha256(
        {
            "statistic": "sample_gradients/1",
            "versions": versions(),
            "base_model": made.identity["inputs"]["base_model"],
            "utility": made.identity["inputs"]["utility"],
            "safety": made.identity["inputs"]["safety"],
            "safety_rows": rows_sha256(made.inputs.calibration_safety),
            "utility_rows": rows_sha256(made.inputs.calibration_utility),
            "batch_size": made.config.calibration.batch_size,
            **made.identity["placement"],
        }
    )
    return made.folder.statistics / key[:16]


def calibrate(made: Plan, base: LazyBase, reporter: Reporter) -> SampleGradients | None:
    """Per-sample gradients at ``base + utility``; resumed if interrupted, reused if finished.

    Returns:
        The statistics, or ``None`` if the method reads none.

    Raises:
        AdapterError: If an adapter cannot be read.
        ModelError: If the adapters do not fit the model.
    """
    folder = statistics_folder(made)
    if folder is None or made.config.calibration is None:
        return None
    if SampleGradients.is_complete(folder):
        return SampleGradients.load(folder)
    with made.folder.timed("calibrate"):
        rows = [*made.inputs.calibration_safety, *made.inputs.calibration_utility]
        utility, safety = read_adapter(made.utility), read_adapter(made.safety)
        model = base()
        check_modules(model, safety.updates, str(made.safety))
        samples = encode_rows(model, rows)
        with (
            applied(model, utility.updates, str(made.utility)),
            reporter.task("Calibrating: per-sample gradients", len(samples)) as advance,
        ):
            return SampleGradients.measure(
                model,
                patch_bases(safety.updates),
                samples,
                folder,
                safety_samples=len(made.inputs.calibration_safety),
                weights=[row.weight for row in rows],
                batch_size=made.config.calibration.batch_size,
                on_batch=advance,
            )


def encode_rows(base: Base, rows: list[Row]) -> list[Encoded]:
    """Token ids of prompt and answer of each row."""
    return [encode(base, row.prompt, row.answer) for row in rows]
