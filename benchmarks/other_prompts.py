"""What merges of the ablation refuse of prompts of other people, beside plain addition.

    python benchmarks/other_prompts.py --cell kinship/balanced/0 --harmful FILE ... --harmless FILE ...

The files have a column ``prompt``; their names head the columns. The methods go along their strengths with the rows
that the ablation calibrates on; adapters, calibration and statistics are those of ``--output``, where
``benchmarks/ablation.py`` left them (a calibration that is missing is measured). Answers are greedy, of twelve tokens,
and refusals are told by their opening words.

One line a merge goes to ``<scores>/<cell>.jsonl`` with every prompt's score and the hash of the evaluated weights; what
is there of the same prompts, adapters, versions and calibration data is kept. Printed: the share refused of each file,
and at equal refusals of the harmful prompts the share refused of the harmless ones, by straight lines between
strengths, with 95 % intervals of a paired bootstrap over prompts ("in 77%": only so many of its draws reach it).
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ablation import (
    BASE_MODEL,
    OWN_REFUSALS,
    ROOT,
    SIZES,
    TWO_POINTS,
    Patches,
    append,
    cells_of,
    merged,
    recorded,
    scored,
    trials,
)
from ablation_report import ARMS, DRAWS, OURS, Matched, interval, matched, path_keys, rate

from sst_merge.adapter import Updates
from sst_merge.allocator import keep_freed_memory
from sst_merge.data import DataSource, Row, load_rows
from sst_merge.models import load_base
from sst_merge.stages.rows import rows_sha256
from sst_merge.weights import applied

BASELINE = "task arithmetic"
METHODS = (OURS, "SST damping 20", TWO_POINTS, OWN_REFUSALS, BASELINE)
TARGETS = (0.6, 0.7, 0.8, 0.95)
BEYOND = (2.5, 3.0)
"""Strengths beside those of the ablation, whose highest, 2, need not be enough for prompts unlike the calibration's."""
Lines = dict[str, dict[str, Any]]


def rows_of(files: Sequence[str]) -> list[list[Row]]:
    """Prompts of each file."""
    sources = [DataSource(data=file) for file in files]
    return [load_rows(source, seed=0, root=ROOT, needs_answer=False, key="other prompts") for source in sources]


def at_equal_refusals(lines: Lines, method: str, target: float, draws: dict[str, np.ndarray]) -> Matched:
    """Over-refusals where a method's path first refuses this share of the harmful prompts."""

    def mean(task: str, cells: Sequence[dict[str, Any]]) -> np.ndarray:
        if task not in draws:  # no task is measured on these prompts
            return np.zeros(1 + DRAWS)
        (line,) = cells
        return np.array(line["scores"][task])[draws[task]].mean(axis=1)

    return matched([[lines[key]] for key in ("utility", *path_keys(lines, method))], target, mean)


def told(lines: Lines, names: dict[str, list[tuple[str, int]]]) -> Iterator[str]:
    """The tables; ``names`` are title and number of prompts of each file by task."""
    titles = [
        f"{task} ({sum(n for _, n in names[key])})"
        for key, task in (("refusal", "harmful"), ("over_refusal", "harmless"))
    ]
    heads = [
        head
        for title, key in zip(titles, names, strict=True)
        for head in (title, *(f"{t} ({n})" for t, n in names[key]))
    ]
    yield "| merge | " + " | ".join(heads) + " |\n|" + "---|" * (1 + len(heads)) + "\n"
    keys = [*ARMS, *(key for method in METHODS for key in path_keys(lines, method))]
    for key in keys:
        line = lines[key]
        cells = [f"{line['variant']} {line['settings']['strength']:g}" if "variant" in line else key]
        for task, parts in names.items():
            cells.append(f"{100 * rate(line, task):.1f}")
            ends = np.cumsum([n for _, n in parts])
            cells += [f"{100 * np.mean(part):.0f}" for part in np.split(np.array(line["scores"][task]), ends[:-1])]
        yield "| " + " | ".join(cells) + " |\n"
    rng = np.random.default_rng(0)
    draws = {
        task: np.vstack([np.arange(n), rng.integers(n, size=(DRAWS, n))])
        for task, n in ((task, sum(n for _, n in parts)) for task, parts in names.items())
    }
    tried = [method for method in METHODS if path_keys(lines, method)]
    for ours in tried[:-1]:
        others = [BASELINE] if ours == OURS else [BASELINE, OURS]
        yield f"\n| harmful refused | {ours}: harmless refused | {BASELINE}: harmless refused | "
        yield " | ".join(f"minus {other}, points" for other in others) + " |\n"
        yield "|---|---|---|" + "---|" * len(others) + "\n"
        for target in TARGETS:
            found = {method: at_equal_refusals(lines, method, target, draws) for method in (ours, *others)}
            cells = [
                f"{100 * each.rates['over_refusal'][0]:.1f}"
                + ("" if each.is_known else f" in {each.is_reached.mean():.0%}")
                if each.is_reached[0]
                else "not reached"
                for each in (found[ours], found[BASELINE])
            ]
            for other in others:
                a, b = (found[method].rates["over_refusal"] for method in (ours, other))
                cells.append(interval(a - b, 100, 1) if found[ours].is_known and found[other].is_known else "")
            yield f"| {target:.0%} | " + " | ".join(cells) + " |\n"


def main() -> None:
    """Score what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", default="kinship/balanced/0", help="utility/safety/seed of the ablation, size cpu")
    parser.add_argument("--harmful", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--harmless", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="where the ablation's results are")
    parser.add_argument("--scores", type=Path, default=Path("runs/other_prompts"))
    options = parser.parse_args()
    keep_freed_memory()
    known = {cell.name: cell for cell in cells_of(SIZES["cpu"], options.output / "cpu")}
    if options.cell not in known:
        parser.error(f"no such cell: {options.cell}. Cells: {', '.join(known)}")
    cell = known[options.cell]
    files = {"refusal": options.harmful, "over_refusal": options.harmless}
    parts = {task: rows_of(given) for task, given in files.items()}
    rows = {task: [row for part in found for row in part] for task, found in parts.items()} | {"utility": []}
    cell.check_disjoint(rows)
    data = {task: rows_sha256(found) for task, found in rows.items()} | {"cell": cell.folder().name}
    base = load_base(BASE_MODEL)
    utility, safety = cell.updates()
    arms: dict[str, Updates] = {"base": {}, "utility": utility, "safety": safety}
    wanted = [trial for trial in trials(METHODS) if trial.settings["utility_weight"] == 1]
    strongest = [t for t in wanted if t.settings["strength"] == 2 and t.variant in {OURS, OWN_REFUSALS, BASELINE}]
    wanted += [
        replace(trial, settings={**trial.settings, "strength": strength}) for trial in strongest for strength in BEYOND
    ]
    settings = {trial.key: {"variant": trial.variant, "settings": trial.settings} for trial in wanted}
    along = {key for method in METHODS for key in path_keys(settings, method)}
    statistics = cell.statistics(base, cell.folder() / "statistics", METHODS[:-1])
    patches: Patches = {}
    models: dict[str, Callable[[], Updates]] = {arm: lambda arm=arm: arms[arm] for arm in ARMS}
    for trial in wanted:
        if trial.key in along:
            models[trial.key] = lambda trial=trial: (
                merged(trial, utility, safety, statistics.get(trial.variant), cell.seed, patches).updates
            )
    file = options.scores / f"{cell.name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    made_of = {
        key: {**settings[key], "calibration": cell.calibration_sha256(settings[key]["variant"])} if key in along else {}
        for key in models
    }
    lines = {
        key: line
        for key, line in recorded(file).items()
        if key in models and line["data"] == data and line.get("calibration") == made_of[key].get("calibration")
    }
    for key, update in models.items():
        if key not in lines:
            with applied(base, update(), key) as weights:
                scores = scored(base, rows, {"text"})
                lines[key] = {
                    "key": key,
                    **made_of[key],
                    "data": data,
                    "weights_sha256": weights.weights_sha256,
                    "scores": scores,
                }
            append(file, lines[key])
            print(f"{cell.name}: {key}", flush=True)
    names = {
        task: [(Path(given).stem, len(part)) for given, part in zip(files[task], parts[task], strict=True)]
        for task in files
    }
    print("".join(told(lines, names)))


if __name__ == "__main__":
    main()
