"""The tables of the blunt safety adapter in docs/results/fresh-task.md, from the scores beside it.

    python benchmarks/fresh_task.py

Each line of the file is a merge with its settings, its calibration data and every prompt's score. Printed: the rates,
and at equal refusals of the harmful prompts the share refused of the harmless ones, by straight lines between
strengths (the first one from the utility adapter), with 95 % intervals of a paired bootstrap over prompts.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation_report import DRAWS, Matched, interval, matched, rate

SCORES = Path(__file__).parents[1] / "docs" / "results" / "fresh_task" / "scores_blunt.jsonl"
TARGETS = (0.2, 0.3, 0.5, 0.7, 0.8)
BASELINE = ("task arithmetic", None, {})
PATHS = (
    ("SST, narrow", "narrow", {}),
    ("SST, narrow, damping 20", "narrow", {"damping_safety": 20}),
    ("SST, wide", "wide", {}),
    ("SST, wide, damping 20", "wide", {"damping_safety": 20}),
)
"""Title, calibration data and settings of each path of strengths."""
DEFAULTS = {"price": 100, "damping_safety": 2}
Line = dict[str, Any]


def recorded() -> list[Line]:
    """The lines of the file."""
    return [json.loads(line) for line in SCORES.read_text(encoding="utf-8").splitlines()]


def rates(lines: Sequence[Line]) -> Iterator[str]:
    """A row for each merge; what was not measured is empty."""
    yield "| merge | calibrated | price | damping | strength | refuses harmful | refuses harmless | task right |\n"
    yield "|---|---|---|---|---|---|---|---|\n"
    for line in lines:
        settings = line["settings"]
        cells = [line["merge"].replace("_", " ").replace("sst", "SST"), line.get("calibration", "")]
        if "calibration" in line:
            cells += [f"{settings.get('keep', {}).get('soft', DEFAULTS['price'])}"]
            cells += [f"{settings.get('damping_safety', DEFAULTS['damping_safety'])}"]
        else:
            cells += ["", ""]
        cells.append(f"{settings['strength']:g}" if settings else "")
        cells += [f"{100 * rate(line, task):.1f}" for task in ("refusal", "over_refusal")]
        cells.append(f"{100 * rate(line, 'utility'):.0f}" if "utility" in line["scores"] else "")
        yield "| " + " | ".join(cells) + " |\n"


def at_equal_refusals(lines: Sequence[Line]) -> Iterator[str]:
    """Harmless prompts refused by each path, and minus plain addition's."""
    rng = np.random.default_rng(0)
    sizes = {task: len(lines[0]["scores"][task]) for task in ("refusal", "over_refusal")}
    draws = {task: np.vstack([np.arange(n), rng.integers(n, size=(DRAWS, n))]) for task, n in sizes.items()}
    (utility,) = (line for line in lines if line["merge"] == "utility")

    def mean(task: str, chosen: Sequence[Line]) -> np.ndarray:
        if task not in draws:  # not every merge was asked for the task
            return np.zeros(1 + DRAWS)
        return np.array(chosen[0]["scores"][task])[draws[task]].mean(axis=1)

    def point(title: str, calibration: str | None, settings: dict[str, Any], target: float) -> Matched:
        name = title.partition(",")[0].replace(" ", "_").lower()
        path = [
            line
            for line in lines
            if (line["merge"], line.get("calibration")) == (name, calibration)
            and {key: value for key, value in line["settings"].items() if key != "strength"} == settings
        ]
        path.sort(key=lambda line: line["settings"]["strength"])
        return matched([[utility], *([line] for line in path)], target, mean)

    yield "| harmful refused | task arithmetic | " + " | ".join(title for title, *_ in PATHS)
    yield " | narrow, damping 20 - 2 |\n|---|" + "---|" * (2 + len(PATHS)) + "\n"
    for target in TARGETS:
        theirs, *ours = (point(*path, target) for path in (BASELINE, *PATHS))
        over = [each.rates["over_refusal"] for each in ours]
        cells = [f"{100 * theirs.rates['over_refusal'][0]:.1f}"]
        for each, refused in zip(ours, over, strict=True):
            difference = interval(refused - theirs.rates["over_refusal"], 100, 1)
            reached = f"reached by {each.is_reached.mean():.0%} of the draws"
            cells.append(f"{100 * refused[0]:.1f}, {difference}" if each.is_known else reached)
        cells.append(interval(over[1] - over[0], 100, 1) if ours[0].is_known and ours[1].is_known else "")
        yield f"| {target:.0%} | " + " | ".join(cells) + " |\n"


if __name__ == "__main__":
    found = recorded()
    print("".join(rates(found)) + "\n" + "".join(at_equal_refusals(found)))
