"""Run: plan, calibrate, merge, evaluate, report; whatever is done already is kept."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from sst_merge.config import RunConfig, model_settings
from sst_merge.errors import ConfigError
from sst_merge.model_files import CONVERSION_STEPS, convert, needs_conversion
from sst_merge.models import Base, load_base
from sst_merge.processes import Processes, join_processes
from sst_merge.progress import Reporter, SilentReporter, TerminalReporter
from sst_merge.stages.calibrate import LazyBase, calibrate, statistics_folders
from sst_merge.stages.evaluate import evaluate
from sst_merge.stages.merge import merge
from sst_merge.stages.plan import Plan, plan, require_room, write_plan
from sst_merge.stages.report import report

STAGES = ("plan", "calibrate", "merge", "evaluate", "report")


def run(
    config: RunConfig,
    *,
    root: Path = Path(),
    reporter: Reporter | None = None,
    command: str = "sst_merge.run",
    until: str = "report",
    replace: bool = False,
    load: Callable[[], Base] | None = None,
) -> dict[str, Any]:
    """Carry out the stages up to ``until``.

    Args:
        config: The run file.
        root: Folder that relative input paths start from; the working directory when left out.
        reporter: Shows progress and notes; on stderr, as the command line does, when left out.
        command: What the user typed, for the manifest.
        until: Last stage, one of :data:`STAGES`. Under a launcher of several processes only the first one returns; the
            others share the calibration and end.
        replace: Throw an existing run in the same folder away; statistics that this one would measure again stay.
        load: Loads the base model; by default as the configuration says.

    Returns:
        ``plan.json``, ``diagnostics.json`` or ``results.json``, whichever the last stage wrote; after calibration,
        where the statistics are.
    """
    if until not in STAGES:
        raise ConfigError(f"until: unknown stage '{until}'. Known: {', '.join(STAGES)}.")
    reporter = reporter or TerminalReporter()
    processes = join_processes()
    if not processes.is_first:
        reporter = SilentReporter()
    else:
        fetch_model(config.base_model, reporter)
    processes.barrier()
    with reporter.task("Reading adapters and data", 1) as advance:
        made = plan(config, root=root)
        advance(1)
    store = config.calibration.store if config.calibration else None  # others' statistics may be there
    reusable = [root / store] if store else statistics_folders(made)
    if processes.is_first:
        require_room(made, replace=replace, reusable=reusable)
    with made.folder.held() if processes.is_first else nullcontext():
        description = (
            write_plan(made, command=command, replace=replace, reusable=reusable) if processes.is_first else {}
        )
        processes.barrier()
        for note in made.notes:
            reporter.say(f"note: {note}")
        if until == "plan":
            _go_on_alone(processes)
            return description
        base = _lazy(made, reporter, load, processes)
        statistics = calibrate(made, base, reporter, processes)
        _go_on_alone(processes)
        if until == "calibrate":
            return {"statistics": next((str(folder) for folder in statistics.folders()), None)}
        diagnostics = merge(made, statistics, reporter)
        if until == "merge" or config.evaluation is None:
            return diagnostics
        evaluate(made, base, statistics, reporter)
        if until == "evaluate":
            return {"scores": str(made.folder.scores)}
        return report(made)


def _go_on_alone(processes: Processes) -> None:
    """The first process does the rest; the others are done, and end without a word."""
    processes.leave()
    if not processes.is_first:
        sys.exit(0)


def fetch_model(reference: str, reporter: Reporter) -> None:
    """Download and convert a known model on first use, with a bar."""
    if needs_conversion(reference):
        with reporter.task(f"Fetching {reference} (first use)", CONVERSION_STEPS) as advance:
            convert(reference, advance)


def _lazy(made: Plan, reporter: Reporter, load: Callable[[], Base] | None, processes: Processes) -> LazyBase:
    """The base model, loaded at most once and only if a stage needs it."""

    @cache
    def loaded() -> Base:
        with reporter.task(f"Loading {made.config.base_model}", 1) as advance:
            config = made.config
            device = processes.own_device(made.identity["placement"]["device"])
            base = load() if load else load_base(**{**model_settings(config), "device": device})
            advance(1)
            return base

    return LazyBase(loaded)
