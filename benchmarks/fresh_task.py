"""Tables of docs/results/fresh-task.md, from the scores beside that page.

    python benchmarks/fresh_task.py

Each line of a file is a merge with its settings, its calibration data and every prompt's score. Printed: the rates,
and at equal refusals of the harmful prompts the share refused of the harmless ones, by straight lines between
strengths (the first one from the utility adapter), with 95 % intervals of a paired bootstrap over prompts. First, for
the blunt safety adapter, of the merges with dampings and prices, then of those with Fisher matrices of one point and
of two, for the blunt and for the balanced one; at last those of a third task, by the data they were calibrated on: a
first draw, and a second one with builtin prompts; and of a fourth task those with Fisher matrices of one point and of
two, for a safety adapter that never saw the builtin prompts, the blunt and the balanced one.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation_report import DRAWS, Matched, interval, matched, rate

SCORES = Path(__file__).parents[1] / "docs" / "results" / "fresh_task"
TARGETS = (0.2, 0.3, 0.5, 0.7, 0.8)
BASELINE = ("task arithmetic", None, {}, None)
DAMPINGS = (
    ("SST, narrow", "narrow", {}, None),
    ("SST, narrow, damping 20", "narrow", {"damping_safety": 20}, None),
    ("SST, wide", "wide", {}, None),
    ("SST, wide, damping 20", "wide", {"damping_safety": 20}, None),
)
POINTS = (
    ("SST, narrow, one point", "narrow", {}, "one"),
    ("SST, narrow, two points", "narrow", {}, "two"),
    ("SST, wide, one point", "wide", {}, "one"),
    ("SST, wide, two points", "wide", {}, "two"),
    ("SST, wide, any wording, one point", "wide, any wording", {}, "one"),
)
"""Title, calibration data, settings and points of each path of strengths."""
OWN_WORDING = POINTS[:4]
DATA = tuple((f"SST, {data}", data, {}, None) for data in ("narrow", "wide", "narrow and look-alikes"))
BUILTIN = (
    ("SST, narrow", "narrow", {}, None),
    ("SST, narrow and builtin harmless", "narrow and builtin harmless", {}, None),
    ("SST, narrow and builtin", "narrow and builtin", {}, None),
)
BLUNT_BUILTIN = (BUILTIN[0], BUILTIN[2])
FOURTH = (
    ("SST, one point", "builtin", {}, "one"),
    ("SST, two points", "builtin", {}, "two"),
)
OF_FOURTH = (("two - one", 1, 0),)
OF_DAMPINGS = (("narrow, damping 20 - 2", 1, 0),)
OF_POINTS = (("narrow, two - one", 1, 0), ("wide, two - one", 3, 2), ("any wording - wide", 4, 2))
OF_OWN_WORDING = OF_POINTS[:2]
OF_BUILTIN = (
    ("builtin harmless - narrow", 1, 0),
    ("builtin - narrow", 2, 0),
    ("builtin - builtin harmless", 2, 1),
)
OF_DATA = (("wide - narrow", 1, 0), ("look-alikes - narrow", 2, 0))
"""Differences that are shown: title, and the places of the two paths."""
DEFAULTS = {"price": 100, "damping_safety": 2}
Line = dict[str, Any]
PathOf = tuple[str, str | None, dict[str, Any], str | None]


def recorded(name: str) -> list[Line]:
    """The lines of a file."""
    return [json.loads(line) for line in (SCORES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def rates_by_points(lines: Sequence[Line]) -> Iterator[str]:
    """A row for each merge, by the points of its Fisher matrices."""
    yield "| merge | calibrated | points | strength | refuses harmful | refuses harmless | task right |\n"
    yield "|---|---|---|---|---|---|---|\n"
    for line in lines:
        settings = line["settings"]
        name = line["merge"].replace("_", " ").replace("sst", "SST")
        name += f", damping {settings['damping_safety']:g}" if "damping_safety" in settings else ""
        cells = [name, line.get("calibration", ""), line.get("points", "")]
        cells += [f"{settings['strength']:g}" if settings else "", *_rates_of(line)]
        yield "| " + " | ".join(cells) + " |\n"


def _rates_of(line: Line) -> list[str]:
    """Of harmful and of harmless prompts refused and of the task; empty where the task was not asked for."""
    cells = [f"{100 * rate(line, task):.1f}" for task in ("refusal", "over_refusal")]
    return [*cells, f"{100 * rate(line, 'utility'):.0f}" if "utility" in line["scores"] else ""]


def rates(lines: Sequence[Line]) -> Iterator[str]:
    """A row for each merge; what was not measured is empty."""
    yield "| merge | calibrated | price | damping | strength | refuses harmful | refuses harmless | task right |\n"
    yield "|---|---|---|---|---|---|---|---|\n"
    for line in lines:
        settings = line["settings"]
        name = line["merge"].replace("_", " ").replace("sst", "SST")
        if "task_and_everyday_weight" in line:
            name += f", task rows at {line['task_and_everyday_weight'] * settings['keep']['soft']}"
        cells = [name, line.get("calibration", "")]
        if "calibration" in line:
            cells += [f"{settings.get('keep', {}).get('soft', DEFAULTS['price'])}"]
            cells += [f"{settings.get('damping_safety', DEFAULTS['damping_safety'])}"]
        else:
            cells += ["", ""]
        cells += [f"{settings['strength']:g}" if settings else "", *_rates_of(line)]
        yield "| " + " | ".join(cells) + " |\n"


def at_equal_refusals(
    lines: Sequence[Line], paths: Sequence[PathOf], compared: Sequence[tuple[str, int, int]]
) -> Iterator[str]:
    """Harmless prompts refused by each path, and minus plain addition's.

    Args:
        lines: Of one file.
        paths: What goes along strengths.
        compared: Title of a difference, and the places of its two paths.
    """
    rng = np.random.default_rng(0)
    sizes = {task: len(lines[0]["scores"][task]) for task in ("refusal", "over_refusal")}
    draws = {task: np.vstack([np.arange(n), rng.integers(n, size=(DRAWS, n))]) for task, n in sizes.items()}
    (utility,) = (line for line in lines if line["merge"] == "utility")

    def mean(task: str, chosen: Sequence[Line]) -> np.ndarray:
        if task not in draws:  # not every merge was asked for the task
            return np.zeros(1 + DRAWS)
        return np.array(chosen[0]["scores"][task])[draws[task]].mean(axis=1)

    def point(
        title: str, calibration: str | None, settings: dict[str, Any], points: str | None, target: float
    ) -> Matched:
        name = title.partition(",")[0].replace(" ", "_").lower()
        path = [
            line
            for line in lines
            if (line["merge"], line.get("calibration"), line.get("points")) == (name, calibration, points)
            and {key: value for key, value in line["settings"].items() if key != "strength"} == settings
        ]
        path.sort(key=lambda line: line["settings"]["strength"])
        return matched([[utility], *([line] for line in path)], target, mean)

    def told(found: Matched) -> str:
        if not found.is_known:
            return f"reached by {found.is_reached.mean():.0%} of the draws"
        return f"{100 * found.rates['over_refusal'][0]:.1f}"

    heads = [*(title for title, *_ in paths), *(title for title, *_ in compared)]
    yield "| harmful refused | task arithmetic | " + " | ".join(heads)
    yield " |\n|---|---|" + "---|" * len(heads) + "\n"
    for target in TARGETS:
        theirs, *ours = (point(*path, target) for path in (BASELINE, *paths))
        over = [each.rates["over_refusal"] for each in ours]
        cells = [told(theirs)]
        for each, refused in zip(ours, over, strict=True):
            difference = interval(refused - theirs.rates["over_refusal"], 100, 1)
            cells.append(f"{told(each)}, {difference}" if each.is_known and theirs.is_known else told(each))
        for _, i, j in compared:
            is_known = ours[i].is_known and ours[j].is_known
            cells.append(interval(over[i] - over[j], 100, 1) if is_known else "")
        yield f"| {target:.0%} | " + " | ".join(cells) + " |\n"


if __name__ == "__main__":
    found = recorded("scores_blunt")
    print("".join(rates(found)) + "\n" + "".join(at_equal_refusals(found, DAMPINGS, OF_DAMPINGS)))
    found = recorded("scores_two_points")
    print("".join(rates_by_points(found)) + "\n" + "".join(at_equal_refusals(found, POINTS, OF_POINTS)))
    found = recorded("scores_two_points_balanced")
    print("".join(rates_by_points(found)) + "\n" + "".join(at_equal_refusals(found, OWN_WORDING, OF_OWN_WORDING)))
    found = recorded("scores_short_tasks")
    print("".join(rates(found)) + "\n" + "".join(at_equal_refusals(found, DATA, OF_DATA)))
    found = recorded("scores_builtin")
    print("".join(rates(found)) + "\n" + "".join(at_equal_refusals(found, BUILTIN, OF_BUILTIN)))
    found = recorded("scores_builtin_blunt")
    print("".join(rates(found)) + "\n" + "".join(at_equal_refusals(found, BLUNT_BUILTIN, ())))
    for safety in ("third", "blunt", "balanced"):
        found = recorded(f"scores_labels_{safety}")
        print("".join(rates_by_points(found)) + "\n" + "".join(at_equal_refusals(found, FOURTH, OF_FOURTH)))
