"""What both templates show, in the order of the page: a pure function of the results."""
# ruff: noqa: RUF001  (the report has typeset dashes and minus signs)

import json
from typing import Any

from sst_merge.errors import RunFolderError
from sst_merge.rendering.cells import (
    DASH,
    Cell,
    difference_cell,
    duration_text,
    estimate_cell,
    evidence_text,
    finite,
    fraction_text,
    quantity_cell,
    ratio_text,
    undefined_cell,
)
from sst_merge.rendering.gate_evidence import gate_evidence

SCHEMA = "sst-merge/report/1"

FLAG_NOTES = {
    "JUDGE_NOT_VALIDATED": "The judge that counted refusals was not checked against human labels of these answers; "
    "its mistakes may differ from model to model.",
    "SELECTED_ON_TEST": "The settings of the merge were chosen on the samples shown here, which flatters it. "
    "Confirm it on samples nobody has looked at.",
    "ONE_SEED": "The merge has a random step and was run with one seed; another seed may give another result.",
    "UNDERPOWERED": "The gain is smaller than what this number of prompts can be expected to detect, "
    "so its size may be exaggerated.",
    "NO_CLUSTERS": "No clusters are known, so every prompt counts as independent. "
    "If prompts share templates, the true intervals are wider.",
    "OVER_REFUSAL_UP": "The merged model also refuses more everyday prompts than the utility model does.",
    "OTHER_TASK_WORSE": "A task that the verdict does not count (the first of each family does) became worse.",
    "UTILITY_NO_SIGNAL": "The utility measure does not tell the utility adapter from the base model, "
    "so a loss of utility cannot be read from it.",
}

GATE_QUESTIONS = {
    "G0": "Did every step run without error or fallback, and was every answer scored?",
    "G1": "Are the weights of the evaluated models really different?",
    "G2": "Do the models compute different outputs, beyond noise?",
    "G3": "Is the gain larger than the noise of evaluating one model twice?",
    "G4": "Does the merged model still write coherent text?",
    "G5": "Was the judge checked against human labels for every model?",
    "G6": "Is the gain detectable: interval above zero, and test below its limit?",
    "G7": "Is the interval of the tax bounded?",
    "G8": "Is the gain at least as large as this many prompts can detect with 80 % power?",
    "G9": "Were the settings chosen on other samples, in one look, with enough seeds?",
    "G10": "Does the utility measure carry signal?",
}

STATUSES = {"pass": ("✓", "pass"), "fail": ("✕", "fail"), "unknown": ("?", "unknown")}

FAMILIES = {
    "safety": "What it gained: harmful prompts",
    "utility": "What it cost: the task",
    "over_refusal": "Over-refusal: everyday prompts",
}

# Okabe and Ito's colours, made to hold on white and on near-black; the marker repeats what the colour says.
ARM_STYLES = {
    "base": ("#838b94", "circle"),
    "utility": ("#2f86c9", "square"),
    "safety": ("#d98a00", "diamond"),
    "merged": ("#0a9c78", "star"),
}
SPARE_COLOURS = ("#c767a0", "#d55e00", "#46a8dc", "#8f7ad6", "#a08a1f")
SPARE_SYMBOLS = ("triangle-up", "cross", "x", "triangle-down")

# The same shapes as Plotly's markers, for legends and tables, in a box from -8 to 8.
MARKER_PATHS = {
    "circle": "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0Z",
    "square": "M-5.5,-5.5H5.5V5.5H-5.5Z",
    "diamond": "M0,-7.5L7.5,0L0,7.5L-7.5,0Z",
    "star": "M0,-8L2.2,-2.7L7.8,-2.5L3.4,1.1L4.9,6.6L0,3.5L-4.9,6.6L-3.4,1.1L-7.8,-2.5L-2.2,-2.7Z",
    "triangle-up": "M0,-7L7,5.5H-7Z",
    "triangle-down": "M0,7L7,-5.5H-7Z",
    "cross": "M-2.4,-7H2.4V-2.4H7V2.4H2.4V7H-2.4V2.4H-7V-2.4H-2.4Z",
    "x": "M-5,-7.5L0,-2.5L5,-7.5L7.5,-5L2.5,0L7.5,5L5,7.5L0,2.5L-5,7.5L-7.5,5L-2.5,0L-7.5,-5Z",
}

ENERGIES = {
    "safety_energy_kept": ("Safety energy", "#d98a00", "diamond", "effect of the safety update on the safety data"),
    "utility_energy_kept": ("Utility energy", "#2f86c9", "square", "effect of the safety update on the utility data"),
    "patch_norm_kept": ("Patch norm", "#838b94", "circle", "size of the safety update"),
}


def report_view(results: dict[str, Any]) -> dict[str, Any]:
    """Everything that both templates show.

    Raises:
        RunFolderError: If the results are of another version's schema.
    """
    if results.get("schema") != SCHEMA:
        message = (
            f"cannot render results with schema {results.get('schema')!r}: expected {SCHEMA!r}.\n"
            "  Make them again with this version: sst-merge report FILE"
        )
        raise RunFolderError(message)
    arms = styled_arms(results)
    labels = {arm["name"]: arm["label"] for arm in arms}
    tax = results.get("safety_tax") or {}
    contrasts = _contrasts(results["differences"])
    return {
        "title": results["title"],
        "verdict": _verdict(tax.get("merged")),
        "cards": _cards(tax.get("merged"), results["tasks"]),
        "arms": arms,
        "judge_notes": _judge_notes(results["tasks"]),
        "columns": [(task, _shown_measures(task)) for task in results["tasks"] if _shown_measures(task)],
        "estimates": _estimate_rows(results, arms),
        "contrasts": [f"{labels.get(one, one)} − {labels.get(other, other)}" for one, other in contrasts],
        "difference_groups": _difference_groups(results, contrasts),
        "difference_methods": sorted({str(row["method"]) for row in results["differences"] if row.get("method")}),
        "outcomes": _outcomes(tax, labels, results["tasks"]),
        "gates": _gates(tax, labels),
        "diagnostics": _diagnostics(results.get("diagnostics") or {}),
        "examples": _examples(results, arms),
        "provenance": _provenance(results["run"]),
        "timings": [
            (name, duration_text(float(value))) for name, value in (results["run"].get("timings_seconds") or {}).items()
        ],
        "versions": list((results["run"].get("versions") or {}).items()),
        "fallbacks": [evidence_text(item) for item in results["run"].get("fallbacks") or []],
        "tasks": results["tasks"],
        "markers": MARKER_PATHS,
    }


def styled_arms(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Give every arm its name, label, colour and marker, the same in every table and picture."""
    spares = [arm["name"] for arm in results["arms"] if arm["name"] not in ARM_STYLES]
    styles = ARM_STYLES | {
        name: (SPARE_COLOURS[i % len(SPARE_COLOURS)], SPARE_SYMBOLS[i % len(SPARE_SYMBOLS)])
        for i, name in enumerate(spares)
    }
    arms = []
    for arm in results["arms"]:
        colour, symbol = styles[arm["name"]]
        norm = finite(arm.get("update_norm"))
        arms.append(
            {
                "name": arm["name"],
                "label": arm.get("label") or arm["name"],
                "colour": colour,
                "symbol": symbol,
                "weights": arm.get("weights_sha256") or DASH,
                "update_norm": DASH if norm is None else f"{norm:.4g}",
            }
        )
    return arms


def _verdict(tax: dict[str, Any] | None) -> dict[str, Any]:
    if not tax:
        text = "No verdict is among these results."
        return {"code": "NO_VERDICT", "text": text, "notes": [], "is_invalid": True}
    verdict = tax["verdict"]
    unknown = "This version of SST-Merge has no explanation for this flag."
    return {
        "code": verdict["code"],
        "text": verdict["text"],
        "notes": [(flag, FLAG_NOTES.get(flag, unknown)) for flag in verdict.get("flags") or []],
        "is_invalid": verdict["code"].startswith("INVALID"),
    }


def _cards(tax: dict[str, Any] | None, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gain, cost and over-refusal by the task that decides each, and below it what more tasks of its kind say."""
    tax = tax or {}
    families = {task["name"]: task["family"] for task in tasks}
    of = {"gain": "safety", "loss": "utility", "over_refusal": "over_refusal"}

    def beside(key: str) -> list[tuple[str, Cell]]:
        others = [
            each for each in tax.get("others") or [] if families.get(each["metric"].rpartition(".")[0]) == of[key]
        ]
        cells = (quantity_cell(each if key == "gain" else _turned(each), signed=key != "loss") for each in others)
        return [(_metric(each, tasks, ""), cell) for each, cell in zip(others, cells, strict=True)]

    return [
        {
            "title": title,
            "says": f"{_metric(tax.get(key), tasks, otherwise)}{sign}",
            "cell": cell,
            "beside": beside(key),
        }
        for key, title, otherwise, sign, cell in (
            ("gain", "Gain", "Safety", ", merged − utility", quantity_cell(tax.get("gain"))),
            ("loss", "Cost", "Utility", ", utility − merged", quantity_cell(tax.get("loss"), signed=False)),
            (
                "over_refusal",
                "Over-refusal",
                "Everyday prompts",
                ", merged − utility",
                quantity_cell(tax.get("over_refusal")),
            ),
        )
    ]


def _turned(quantity: dict[str, Any]) -> dict[str, Any]:
    """A difference with its sign turned: those of more tasks are positive where better."""
    estimate, ci = quantity.get("estimate"), quantity.get("ci")
    return {
        **quantity,
        "estimate": None if estimate is None else 0.0 - estimate,
        "ci": None if ci is None else [-ci[1], -ci[0]],
    }


def _metric(quantity: dict[str, Any] | None, tasks: list[dict[str, Any]], otherwise: str) -> str:
    """Name what a gain, cost or over-refusal was measured on, in the words of the tasks."""
    metric = str((quantity or {}).get("metric") or "")
    name, _, measure_name = metric.replace("/", ".").rpartition(".")  # a task's label may have points
    name, measure_name = (name, measure_name) if name else (measure_name, "")
    for task in tasks:
        if task["name"] == name:
            titles = [measure["title"] for measure in task["measures"] if measure["name"] == measure_name]
            return ": ".join([task["title"], *titles])
    return metric or otherwise


def _judge_notes(tasks: list[dict[str, Any]]) -> list[str]:
    judges: dict[str, list[str]] = {}
    for task in tasks:
        if task.get("judge_validated") is False:
            judges.setdefault(str(task.get("judge") or "unnamed"), []).append(task["title"])
    return [
        f"The judge {judge} ({', '.join(titles)}) is not validated: nobody compared its decisions with human labels "
        "of these answers."
        for judge, titles in judges.items()
    ]


def pictured_measure(task: dict[str, Any]) -> dict[str, Any]:
    """Choose the measure a picture draws: a rate where refusals are counted, else the primary measure."""
    counts_refusals = task["family"] in {"safety", "over_refusal"}
    return min(
        task["measures"],
        key=lambda measure: (counts_refusals and not measure.get("binary"), not measure.get("primary")),
    )


def _shown_measures(task: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        measure
        for measure in task["measures"]
        if measure.get("primary") or not measure.get("binary") or measure is pictured_measure(task)
    ]


def _estimate_rows(results: dict[str, Any], arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    index = estimate_index(results)
    return [
        {
            "arm": arm,
            "cells": [
                estimate_cell(index.get((arm["name"], task["name"], measure["name"])), measure["unit"])
                for task in results["tasks"]
                for measure in _shown_measures(task)
            ],
        }
        for arm in arms
    ]


def estimate_index(results: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Estimates by arm, task and measure."""
    return {(row["arm"], row["task"], row["measure"]): row for row in results["estimates"]}


def _contrasts(differences: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Order the contrasts: the question first, then the base model, then what others gain, then the rest."""
    pairs = list(dict.fromkeys((row["treatment"], row["reference"]) for row in differences))

    def rank(pair: tuple[str, str]) -> int:
        if pair == ("merged", "utility"):
            return 0
        if pair == ("merged", "base"):
            return 1
        return 2 if pair[1] == "utility" and pair[0] not in {"base", "safety"} else 3

    return sorted(pairs, key=rank)


def _difference_groups(results: dict[str, Any], contrasts: list[tuple[str, str]]) -> list[dict[str, Any]]:
    index = {(row["treatment"], row["reference"], row["task"], row["measure"]): row for row in results["differences"]}
    groups: dict[str, list[dict[str, Any]]] = {family: [] for family in FAMILIES}
    for task in results["tasks"]:
        for measure in _shown_measures(task):
            row = {
                "title": measure["title"],
                "task": task["title"],
                "better": {True: "higher is better", False: "lower is better"}.get(measure["higher_is_better"], ""),
                "cells": [
                    difference_cell(index.get((*pair, task["name"], measure["name"])), measure) for pair in contrasts
                ],
            }
            groups.setdefault(task["family"], []).append(row)
    return [{"title": FAMILIES.get(family, family), "rows": rows} for family, rows in groups.items() if rows]


def _outcomes(tax: dict[str, Any], labels: dict[str, str], tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """Gain, cost and net benefit of every arm that has a Safety Tax, one column each."""
    names = [name for name in ("merged", *tax) if name in tax]
    names = list(dict.fromkeys(names))
    taxes = [tax[name] for name in names]
    rows = []
    for key, title, otherwise in (
        ("gain", "Gain g", "safety"),
        ("loss", "Cost ℓ", "utility lost"),
        ("over_refusal", "Over-refusal", "everyday prompts refused"),
    ):
        says = next((_metric(item[key], tasks, otherwise) for item in taxes if item.get(key)), otherwise)
        rows.append((title, says, [quantity_cell(item.get(key), signed=key != "loss") for item in taxes]))
    prices = dict.fromkeys(row["lambda"] for item in taxes for row in item.get("net_benefit") or [])
    for price in prices:
        cells = []
        for item in taxes:
            by_price = {row["lambda"]: row for row in item.get("net_benefit") or []}
            cells.append(quantity_cell(by_price.get(price), unit=(item.get("loss") or {}).get("unit")))
        rows.append((f"Net benefit, λ = {price:g}", f"{price:g} · g − ℓ", cells))
    rows.append(("Safety Tax τ = ℓ / g", "only where the gates allow it", [_tax_cell(item) for item in taxes]))
    return {
        "arms": [labels.get(name, name) for name in names],
        "rows": rows,
        "verdicts": [item["verdict"] for item in taxes],
    }


def _tax_cell(tax: dict[str, Any]) -> Cell:
    value = tax.get("tax")
    number = finite(value.get("estimate") if isinstance(value, dict) else value)
    if number is None:
        return undefined_cell(None, fallback=f"undefined: {tax['verdict']['code']}")
    fieller = tax.get("fieller") or {}
    units = [(tax.get(name) or {}).get("unit") or "pp" for name in ("loss", "gain")]
    text = ratio_text(number) + ("" if units[0] == units[1] else f" {units[0]} per {units[1]}")
    low, high = finite(fieller.get("lo")), finite(fieller.get("hi"))
    interval = "" if low is None or high is None else f"[{ratio_text(low)}, {ratio_text(high)}]"
    return Cell(text, interval, ("Fieller",))


def _gates(tax: dict[str, Any], labels: dict[str, str]) -> list[dict[str, Any]]:
    tables = []
    for name, item in sorted(tax.items(), key=lambda pair: pair[0] != "merged"):
        rows = []
        for gate in item.get("gates") or []:
            symbol, word = STATUSES.get(gate.get("status"), STATUSES["unknown"])
            rows.append(
                {
                    "id": gate["id"],
                    "asks": GATE_QUESTIONS.get(gate["id"]) or gate.get("title") or DASH,
                    "symbol": symbol,
                    "word": word,
                    "evidence": gate_evidence(gate, item),
                }
            )
        counts = {word: sum(row["word"] == word for row in rows) for word in STATUSES}
        text = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        tables.append({"name": name, "label": labels.get(name, name), "rows": rows, "counts": text})
    return tables


def _diagnostics(diagnostics: dict[str, Any]) -> dict[str, Any]:
    kept = [
        {
            "title": title,
            "says": says,
            "colour": colour,
            "symbol": symbol,
            "value": fraction_text(diagnostics.get(key)),
            "width": 100 * min(max(finite(diagnostics.get(key)) or 0.0, 0.0), 1.0),
        }
        for key, (title, colour, symbol, says) in ENERGIES.items()
    ]
    return {"is_present": bool(diagnostics), "modules_merged": diagnostics.get("modules_merged"), "kept": kept}


def _examples(results: dict[str, Any], arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    titles = {task["name"]: task["title"] for task in results["tasks"]}
    return [
        {
            "task": titles.get(example["task"], example["task"]),
            "id": example["id"],
            "prompt": example["prompt"],
            "answers": [
                {"arm": arm, **_answer(example["answers"][arm["name"]])}
                for arm in arms
                if arm["name"] in example["answers"]
            ],
        }
        for example in results.get("examples") or []
    ]


def _answer(answer: dict[str, Any]) -> dict[str, str]:
    score = finite(answer.get("score"))
    return {
        "text": answer.get("text") or "",
        "score": "unscored" if score is None else f"score {score:g}".replace("-", "−"),
        "reason": answer.get("reason") or "",
    }


def _method(settings: dict[str, Any]) -> str:
    """Name and parameters."""
    name = str(settings.get("name", DASH))
    parameters = "; ".join(
        f"{key} = {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in settings.items()
        if key != "name"
    )
    return f"{name} ({parameters})" if parameters else name


def _calibration(settings: dict[str, Any]) -> str:
    """Samples, data sets and where the Fisher matrices were taken."""
    data = [f"{use}: {settings[use]}" for use in ("safety", "utility", "harmless") if settings.get(use)]
    samples = f"{settings.get('safety_samples')} + {settings.get('utility_samples')} samples"
    return "; ".join([samples, *data, *(f"{key} = {settings.get(key)}" for key in ("point", "labels"))])


def _provenance(run: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("Created", run.get("created")),
        ("Base model", run.get("base_model")),
        ("Utility adapter", run.get("utility")),
        ("Safety adapter", run.get("safety")),
        ("Method", _method(run.get("method") or {})),
        *(("Comparison", _method(settings)) for settings in run.get("comparisons") or []),
        *([("Calibration", _calibration(run["calibration"]))] if run.get("calibration") else []),
        ("Seed", run.get("seed")),
        ("Device and type", f"{run.get('device') or DASH}, {run.get('dtype') or DASH}"),
        ("Run folder", run.get("output")),
        ("Manifest sha256", run.get("manifest_sha256")),
        *(("Note", note) for note in run.get("notes") or []),
    ]
    return [(title, DASH if value is None else str(value)) for title, value in rows]
