"""Calibrate: measure the statistics that a merge method asks for, once for any number of merges."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from jaxtyping import Float64
from torch import Tensor

from sst_merge.adapter import Updates, concatenate
from sst_merge.config import Point
from sst_merge.data import Row
from sst_merge.inference import Encoded, encode
from sst_merge.linalg import PatchForm
from sst_merge.methods import module_generator
from sst_merge.methods.sst import Sst
from sst_merge.models import Base
from sst_merge.processes import Processes
from sst_merge.progress import Reporter
from sst_merge.run_folder import canonical_sha256, require_free_space, versions
from sst_merge.stages.merge import merge_updates
from sst_merge.stages.plan import Plan, missing_statistics_bytes
from sst_merge.stages.rows import rows_sha256
from sst_merge.statistics import (
    STATISTICS,
    Gradients,
    KroneckerFactors,
    PooledGradients,
    Request,
    SampleGradients,
    Statistics,
)
from sst_merge.statistics.sample_gradients import patch_bases
from sst_merge.statistics.stored import ALONE
from sst_merge.weights import added, check_modules

TITLES = {"sample_gradients": "per-sample gradients", "kronecker_factors": "Kronecker factors"}

MEASURED = {"sample_gradients": 4, "kronecker_factors": 6}
"""Raised when what is measured, or how it is stored, changes."""


@dataclass(frozen=True)
class LazyBase:
    """The base model, loaded when it is first needed: a finished run never loads it."""

    load: Any

    def __call__(self) -> Base:
        """The loaded model."""
        return self.load()


def statistics_folders(made: Plan) -> list[Path]:
    """Where the statistics of a run are: a folder for each that its methods ask for, two where there are two points."""
    calibration = made.config.calibration
    if calibration is None:
        return []
    places = (False, True) if calibration.has_two_points else (False,)
    found = [
        statistics_folder(made, request, is_second=second) for request in made.config.requests() for second in places
    ]
    return [folder for folder in found if folder is not None]


def statistics_folder(made: Plan, request: Request | None = None, *, is_second: bool = False) -> Path | None:
    """Where a statistic is: named by the hash of everything it depends on; none if no method needs any.

    That is: base model and chat template, both adapters, the rows and their weights, the point of linearisation, the
    labels (and the seed, where they are drawn), the coordinates, the batch size,
    precision and the versions of the libraries. Not: price, keep rule, damping, strength and utility weight, which any
    number of merges may change.

    Args:
        made: The run.
        request: Which statistic; the first one that the run needs when left out.
        is_second: Of two points the second one, which depends on the statistic at the first. That one is the statistic
            of ``point: utility``, in the same folder.
    """
    calibration = made.config.calibration
    request = request or next(iter(made.config.requests()), None)
    if calibration is None or request is None:
        return None
    key = canonical_sha256(
        {
            "statistic": f"{request.statistic}/{MEASURED[request.statistic]}",
            "versions": versions(),
            "base_model": made.identity["inputs"]["base_model"],
            "chat_template": made.config.chat_template,
            "utility": made.identity["inputs"]["utility"],
            "safety": made.identity["inputs"]["safety"],
            "safety_rows": rows_sha256(made.inputs.calibration_safety),
            "utility_rows": rows_sha256(made.inputs.calibration_utility),
            "batch_size": calibration.batch_size,
            "span": request.span,
            "point": point_weights(calibration.point, request.form),
            "labels": "data" if calibration.labels == "data" else ["model", made.config.seed],
            **made.identity["placement"],
            **({"merged_by": second_point_method(request).model_dump(mode="json")} if is_second else {}),
        }
    )
    return (made.root / calibration.store if calibration.store else made.folder.statistics) / key[:16]


def second_point_method(request: Request) -> Sst:
    """What merges the adapters at the second of two points: the default settings, whatever the run's method has.

    So price, keep rule, damping, strength and utility weight of a run can change without another calibration.
    """
    return Sst(span=request.span, patch=request.form)


def second_point(
    request: Request, first: SampleGradients, utility: Updates, safety: Updates, reporter: Reporter
) -> Updates:
    """What is added to the base at the second of two points, by the gradients at the first."""
    method = second_point_method(request).without_spectrum()  # draws no random numbers: any seed will do
    return merge_updates(method, utility, safety, Statistics({request: first}), seed=0, reporter=reporter).updates


def point_weights(point: Point, form: PatchForm) -> tuple[float, float]:
    """Factors on the utility and on the safety update at the point of linearisation, the first one of two.

    ``midpoint`` is half way from the utility model to the whole patch at strength 1: ``U + S/2`` for the patch ``S``,
    and ``U + (S - U)/2`` for ``S - U``.
    """
    if point == "midpoint":
        return (1.0, 0.5) if form == "add" else (0.5, 0.5)
    return (0.0, 0.0) if point == "base" else (1.0, 0.0)


def calibrate(made: Plan, base: LazyBase, reporter: Reporter, processes: Processes = ALONE) -> Statistics:
    """Measure every statistic that the run's methods ask for; resumed if interrupted, reused if finished.

    Args:
        made: The run; its folder is open.
        base: The model.
        reporter: Shows progress.
        processes: Those that share the work; every one of them calls this.

    Returns:
        The statistics; empty if no method reads any.

    Raises:
        AdapterError: If an adapter cannot be read.
        ModelError: If the adapters do not fit the model.
    """
    calibration = made.config.calibration
    found: dict[Request, Gradients | KroneckerFactors] = {}
    for request in made.config.requests():
        first = found[request] = _measured(made, base, request, None, reporter, processes)
        if calibration is not None and calibration.has_two_points:
            assert isinstance(first, SampleGradients)  # the configuration refuses other statistics here
            second = _measured(made, base, request, first, reporter, processes)
            assert isinstance(second, SampleGradients)
            found[request] = PooledGradients((first, second))
    return Statistics(found)


def _measured(
    made: Plan,
    base: LazyBase,
    request: Request,
    first: SampleGradients | None,
    reporter: Reporter,
    processes: Processes,
) -> SampleGradients | KroneckerFactors:
    """One statistic at one point, the second one where that at the ``first`` is given; what is finished is kept."""
    folder = statistics_folder(made, request, is_second=first is not None)
    assert folder is not None  # the configuration has a calibration section where a method needs one
    kind = STATISTICS[request.statistic]
    if not processes.from_first(kind.is_complete(folder)):
        with _only_writer(made, folder, processes, reporter):
            if not processes.from_first(kind.is_complete(folder)):  # another run may have finished it meanwhile
                with made.folder.timed("calibrate") if processes.is_first else nullcontext():
                    _measure(made, base(), request, first, folder, reporter, processes)
    return kind.load(folder)


@contextmanager
def _only_writer(made: Plan, folder: Path, processes: Processes, reporter: Reporter) -> Iterator[None]:
    """One run at a time measures a statistic; others that share its store wait, and find it. Freed if killed.

    Raises:
        RunFolderError: If the store's disk is too small for the statistics.
    """
    if not processes.is_first:
        yield
        return
    is_shared = made.config.calibration is not None and made.config.calibration.store is not None
    if is_shared:
        require_free_space(folder, missing_statistics_bytes(made, statistics_folders(made)), "the statistics")
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        reporter.say(f"note: another run is measuring {folder}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        if os.name == "posix":  # elsewhere a held file cannot be removed
            Path(lock.lock_file).unlink(missing_ok=True)  # who waits for the removed file makes a new one
            if not is_shared and not any(folder.parent.iterdir()):  # nothing was measured: no model could be loaded
                folder.parent.rmdir()
        lock.release()


def _measure(
    made: Plan,
    base: Base,
    request: Request,
    first: SampleGradients | None,
    folder: Path,
    reporter: Reporter,
    processes: Processes,
) -> None:
    """Fill the folder of one statistic at one point."""
    calibration = made.config.calibration
    assert calibration is not None
    rows = [*made.inputs.calibration_safety, *made.inputs.calibration_utility]
    utility, safety = made.updates("utility"), made.updates("safety")
    check_modules(base, safety, made.where("safety"))
    samples, sample_weights = encode_rows(base, rows), [row.weight for row in rows]
    safety_samples, draws = len(made.inputs.calibration_safety), None
    if calibration.labels == "model":
        draws = label_draws(rows, samples, made.config.seed)
    else:
        samples, sample_weights, safety_samples = distinct(samples, sample_weights, safety_samples)
    title = f"Calibrating: {TITLES[request.statistic]}"
    if first is None:
        point = _point(utility, safety, point_weights(calibration.point, request.form))
    else:
        title += ", second point"
        point = second_point(request, first, utility, safety, reporter)
    with added(base, point, made.where("utility")), reporter.task(title, len(samples)) as advance:
        STATISTICS[request.statistic].measure(
            base,
            patch_bases(safety, utility if request.span == "joint" else None),
            samples,
            folder,
            safety_samples=safety_samples,
            weights=sample_weights,
            batch_size=calibration.batch_size,
            draws=draws,
            on_batch=advance,
            processes=processes,
        )


def _point(utility: Updates, safety: Updates, weights: tuple[float, float]) -> Updates:
    """What is added to the base at the point of linearisation."""
    sources = [(updates, weight) for updates, weight in zip((utility, safety), weights, strict=True) if weight]
    if len(sources) == 1 and sources[0][1] == 1.0:
        return sources[0][0]
    return {name: concatenate(updates[name].scaled(w) for updates, w in sources) for name in utility if sources}


def label_draws(rows: Sequence[Row], samples: Sequence[Encoded], seed: int) -> list[Float64[Tensor, " _"]]:
    """One number in [0, 1) per answer token, by seed and row: the same whatever other rows or batches there are."""

    def drawn(row: Row, sample: Encoded) -> Float64[Tensor, " _"]:
        several = "" if row.answer_tokens is None else f":{row.answer_tokens}:{row.answer}"
        generator = module_generator(seed, f"labels:{row.id}{several}")
        return torch.rand(sample.answer_length, dtype=torch.float64, generator=generator)

    return [drawn(row, sample) for row, sample in zip(rows, samples, strict=True)]


def distinct(
    samples: Sequence[Encoded], weights: Sequence[float], safety_samples: int
) -> tuple[list[Encoded], list[float], int]:
    """Samples that are the same tokens, as refusals by their first ones can be, measured once with all their weight.

    Args:
        samples: Safety samples first, then utility samples; a safety and a utility sample are never one.
        weights: Of each sample.
        safety_samples: How many of the samples are safety samples.

    Returns:
        The samples in the order of their first place, their weights, and how many of them are safety samples.

    Example:
        >>> one, other = Encoded((5, 6), answer_start=1), Encoded((5, 7), answer_start=1)
        >>> distinct([one, other, one, one], [1.0, 1.0, 2.0, 1.0], safety_samples=3)[1:]
        ([3.0, 1.0, 1.0], 2)
    """
    totals: dict[tuple[bool, Encoded], float] = {}
    for place, (sample, weight) in enumerate(zip(samples, weights, strict=True)):
        key = (place < safety_samples, sample)
        totals[key] = totals.get(key, 0.0) + weight
    return (
        [sample for _, sample in totals],
        list(totals.values()),
        sum(is_safety for is_safety, _ in totals),
    )


def encode_rows(base: Base, rows: list[Row]) -> list[Encoded]:
    """Token ids of prompt and answer of each row; of the answer's first tokens, if the row says how many count."""
    samples = [(encode(base, row.prompt, row.answer, row.before), row.answer_tokens) for row in rows]
    return [sample if tokens is None else sample.shortened(tokens) for sample, tokens in samples]
