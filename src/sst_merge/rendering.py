"""The report of a run, as one HTML page and as Markdown: pure functions of the contents of ``results.json``.

Nothing is computed here that a reader could quote: every number, interval and verdict comes in with the results.
This module decides how it is said. Rates are shown in per cent, differences of rates in points (pp), log-odds in
nats; an undefined value is a dash with its reason, never a zero. The templates lie beside it, in ``templates/``.
"""
# ruff: noqa: RUF001  (the report has typeset dashes and minus signs)

import base64
import functools
import hashlib
import html
import json
import math
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sst_merge.errors import RunFolderError

SCHEMA = "sst-merge/report/1"
DASH = "–"

# Pixels: plot areas the labels are placed for, and the size of their text.
WIDE, NARROW, HEIGHT, FONT = 500, 264, 330, 13

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


@dataclass(frozen=True)
class Cell:
    """One number of a table, ready to be shown.

    Args:
        text: The value with its unit, or a dash.
        interval: ``[lo, hi]`` in the same unit, or nothing.
        notes: Counts, test and reading, in small print.
        reason: Why the value is undefined; empty when it is defined.
        detail: How it was computed; shown on hover.
    """

    text: str
    interval: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Axis:
    """One measure as the axis of a picture."""

    task: dict[str, Any]
    measure: dict[str, Any]
    title: str
    is_reversed: bool = False


@dataclass(frozen=True)
class Point:
    """One arm in a picture: position and interval in the units of the axes."""

    label: str
    colour: str
    symbol: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    hover: str
    is_merged: bool


def render_html(results: dict[str, Any]) -> str:
    """Render the report as one HTML file that needs nothing else and never asks the network.

    Args:
        results: The contents of a report's results, schema ``sst-merge/report/1``.

    Returns:
        The page, with Plotly's code and all styles in it.
    """
    view = _view(results)
    view["figures"], view["figure_notes"] = _figures(results)
    view["plotly_js"] = Markup(get_plotlyjs())  # our own dependency's code, not a value of the run
    return _environment(is_html=True).get_template("report.html.j2").render(view)


def render_markdown(results: dict[str, Any]) -> str:
    """Render the verdict, the tables, the gates and the provenance as Markdown.

    Args:
        results: The contents of a report's results, schema ``sst-merge/report/1``.

    Returns:
        GitHub-flavoured Markdown without plots.
    """
    return _environment(is_html=False).get_template("report.md.j2").render(_view(results))


@functools.cache
def _environment(*, is_html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=is_html,  # answers are written by a language model: every value is escaped
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["script_hash"] = _script_hash
    environment.filters["md"] = _markdown_text
    environment.filters["unbroken"] = _unbroken
    return environment


def _script_hash(source: str) -> str:
    """Name a script in a content security policy by its hash, so that no other script can run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(source).encode()).digest()).decode()


def _unbroken(text: str) -> str:
    """Keep an interval, and a number and its unit, on one line."""
    text = re.sub(r"\[[^\[\]]{1,40}\]", lambda match: match[0].replace(" ", "\u00a0"), text)
    return re.sub(r"(?<=\d) (?=(?:pt|pp|%|nats)\b|%)", "\u00a0", text)


def _markdown_text(text: object) -> str:
    """Keep a value from being read as Markdown or HTML, on one line."""
    escaped = re.sub(r"([\\|*`])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", escaped.replace("&", "&amp;")).replace("](", "]\\(")


# Numbers


def _finite(value: Any) -> float | None:
    """Return the value as a float, or None where it is not a number one can draw or quote."""
    if value is None or isinstance(value, (bool, str)) or not math.isfinite(value):
        return None
    return float(value)


def _digits(unit: str) -> int:
    return {"pp": 1, "nats": 2}.get(unit, 3)


def _plain(value: float, unit: str, *, signed: bool = False) -> str:
    """Format a number in its unit's usual rounding, with a real minus sign and no negative zero."""
    text = f"{value * (100 if unit == 'pp' else 1):.{_digits(unit)}f}"
    if float(text) == 0:
        return text.lstrip("-")
    if text.startswith("-"):
        return "−" + text[1:]
    return "+" + text if signed else text


def _with_unit(text: str, unit: str, *, is_difference: bool) -> str:
    word = ("pp" if is_difference else "%") if unit == "pp" else unit
    return f"{text} {word}".rstrip()


def _interval(bounds: Any, unit: str, *, signed: bool = False) -> str:
    low, high = (_finite(bound) for bound in bounds or (None, None))
    if low is None or high is None:
        return ""
    return f"[{_plain(low, unit, signed=signed)}, {_plain(high, unit, signed=signed)}]"


def _p_value(p: Any) -> str:
    number = _finite(p)
    if number is None:
        return ""
    if number < 0.001:
        return "p < 0.001"
    return f"p = {number:.3f}" if number < 0.1 else f"p = {number:.2f}"


def _probability(value: Any) -> str:
    number = float(value)
    if number > 0.995:
        return "> 0.99"
    return "< 0.01" if number < 0.005 else f"= {number:.2f}"


def _fraction(value: Any) -> str:
    number = _finite(value)
    return DASH if number is None else f"{100 * number:.1f} %"


def _seconds(value: float) -> str:
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _short_hashes(text: str) -> str:
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1…", text)


def _summary(value: Any) -> str:
    """Say a piece of evidence in one line: numbers rounded, hashes shortened, nothing left out but digits."""
    if value is None or value in ({}, ""):
        return DASH
    if isinstance(value, dict):
        parts = [f"{str(key).replace('_', ' ')}: {_summary(item)}" for key, item in value.items()]
        return "; ".join(parts)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_summary(item) for item in value) + "]" if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return _short_hashes(str(value))


# Cells


def _undefined(reason: Any, notes: tuple[str, ...] = (), fallback: str = "not measured") -> Cell:
    return Cell(DASH, notes=notes, reason=str(reason or fallback))


def _estimate_cell(estimate: dict[str, Any] | None, unit: str) -> Cell:
    if estimate is None:
        return _undefined(None)
    notes = [f"n = {estimate['n']}"] if estimate.get("n") is not None else []
    if estimate.get("unscored"):
        notes.append(f"{estimate['unscored']} unscored")
    value = _finite(estimate.get("value"))
    if value is None:
        return _undefined(estimate.get("reason"), tuple(notes))
    return Cell(
        _with_unit(_plain(value, unit), unit, is_difference=False),
        _interval((estimate.get("low"), estimate.get("high")), unit),
        tuple(notes),
        detail=str(estimate.get("method") or ""),
    )


def _reading(estimate: float, bounds: Any, higher_is_better: bool | None) -> str:
    """Say in words what an interval of a difference shows, and nothing more."""
    low, high = (_finite(bound) for bound in bounds or (None, None))
    if low is None or high is None:
        return "no interval"
    if low <= 0 <= high:
        return "interval includes 0"
    if higher_is_better is None:
        return "higher" if estimate > 0 else "lower"
    return "better" if (estimate > 0) == higher_is_better else "worse"


def _difference_cell(difference: dict[str, Any] | None, measure: dict[str, Any]) -> Cell:
    if difference is None:
        return _undefined(None, fallback="not compared")
    unit = measure["unit"]
    counts = [f"n = {difference['n']}"] if difference.get("n") is not None else []
    value = _finite(difference.get("estimate"))
    if value is None:
        return _undefined(difference.get("reason"), tuple(counts))
    if difference.get("b") is not None and difference.get("c") is not None:
        counts.append(f"{difference['c']} up, {difference['b']} down")
    return Cell(
        _with_unit(_plain(value, unit, signed=True), unit, is_difference=True),
        _interval(difference.get("ci"), unit, signed=True),
        (
            ", ".join(counts),
            _p_value(difference.get("p")),
            _reading(value, difference.get("ci"), measure.get("higher_is_better")),
        ),
        detail=str(difference.get("method") or ""),
    )


def _quantity_cell(quantity: dict[str, Any] | None, *, signed: bool = True, unit: str | None = None) -> Cell:
    """Show gain, loss, over-refusal or net benefit of a Safety Tax."""
    if not quantity:
        return _undefined(None)
    unit = str(unit or quantity.get("unit") or "pp")
    notes = (f"n = {quantity['n']}",) if quantity.get("n") is not None else ()
    value = _finite(quantity.get("estimate"))
    if value is None:
        return _undefined(quantity.get("reason"), notes)
    text = _with_unit(_plain(value, unit, signed=signed), unit, is_difference=True)
    if _finite(quantity.get("p_positive")) is not None:
        notes = (*notes, f"P(above 0) {_probability(quantity['p_positive'])}")
    interval = _interval(quantity.get("ci"), unit, signed=signed)
    return Cell(text, interval, notes, detail=str(quantity.get("method") or ""))


# The view: what both templates show, in the order of the page


def _view(results: dict[str, Any]) -> dict[str, Any]:
    if results.get("schema") != SCHEMA:
        message = (
            f"cannot render results with schema {results.get('schema')!r}: expected {SCHEMA!r}.\n"
            "  Make them again with this version: sst-merge report FILE"
        )
        raise RunFolderError(message)
    arms = _arms(results)
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
            (name, _seconds(float(value))) for name, value in (results["run"].get("timings_seconds") or {}).items()
        ],
        "versions": list((results["run"].get("versions") or {}).items()),
        "fallbacks": [_summary(item) for item in results["run"].get("fallbacks") or []],
        "tasks": results["tasks"],
        "markers": MARKER_PATHS,
    }


def _arms(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Give every arm its name, label, colour and marker, the same in every table and picture."""
    spares = [arm["name"] for arm in results["arms"] if arm["name"] not in ARM_STYLES]
    styles = ARM_STYLES | {
        name: (SPARE_COLOURS[i % len(SPARE_COLOURS)], SPARE_SYMBOLS[i % len(SPARE_SYMBOLS)])
        for i, name in enumerate(spares)
    }
    arms = []
    for arm in results["arms"]:
        colour, symbol = styles[arm["name"]]
        norm = _finite(arm.get("update_norm"))
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
        text = "No verdict: the merged model was not compared with the utility model."
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
    tax = tax or {}
    return [
        {"title": title, "says": f"{_metric(tax.get(key), tasks, otherwise)}{sign}", "cell": cell}
        for key, title, otherwise, sign, cell in (
            ("gain", "Gain", "Safety", ", merged − utility", _quantity_cell(tax.get("gain"))),
            ("loss", "Cost", "Utility", ", utility − merged", _quantity_cell(tax.get("loss"), signed=False)),
            (
                "over_refusal",
                "Over-refusal",
                "Everyday prompts",
                ", merged − utility",
                _quantity_cell(tax.get("over_refusal")),
            ),
        )
    ]


def _metric(quantity: dict[str, Any] | None, tasks: list[dict[str, Any]], otherwise: str) -> str:
    """Name what a gain, cost or over-refusal was measured on, in the words of the tasks."""
    metric = str((quantity or {}).get("metric") or "")
    name, _, measure_name = metric.replace("/", ".").partition(".")
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


def _pictured(task: dict[str, Any]) -> dict[str, Any]:
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
        if measure.get("primary") or not measure.get("binary") or measure is _pictured(task)
    ]


def _estimate_rows(results: dict[str, Any], arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    index = _estimate_index(results)
    return [
        {
            "arm": arm,
            "cells": [
                _estimate_cell(index.get((arm["name"], task["name"], measure["name"])), measure["unit"])
                for task in results["tasks"]
                for measure in _shown_measures(task)
            ],
        }
        for arm in arms
    ]


def _estimate_index(results: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
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
                    _difference_cell(index.get((*pair, task["name"], measure["name"])), measure) for pair in contrasts
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
        rows.append((title, says, [_quantity_cell(item.get(key), signed=key != "loss") for item in taxes]))
    prices = dict.fromkeys(row["lambda"] for item in taxes for row in item.get("net_benefit") or [])
    for price in prices:
        cells = []
        for item in taxes:
            by_price = {row["lambda"]: row for row in item.get("net_benefit") or []}
            cells.append(_quantity_cell(by_price.get(price), unit=(item.get("loss") or {}).get("unit")))
        rows.append((f"Net benefit, λ = {price:g}", f"{price:g} · g − ℓ", cells))
    rows.append(("Safety Tax τ = ℓ / g", "only where the gates allow it", [_tax_cell(item) for item in taxes]))
    return {
        "arms": [labels.get(name, name) for name in names],
        "rows": rows,
        "verdicts": [item["verdict"] for item in taxes],
    }


def _tax_cell(tax: dict[str, Any]) -> Cell:
    value = tax.get("tax")
    number = _finite(value.get("estimate") if isinstance(value, dict) else value)
    if number is None:
        return _undefined(None, fallback=f"undefined: {tax['verdict']['code']}")
    fieller = tax.get("fieller") or {}
    units = [(tax.get(name) or {}).get("unit") or "pp" for name in ("loss", "gain")]
    text = f"{number:.2f}" if units[0] == units[1] else f"{number:.2f} {units[0]} per {units[1]}"
    low, high = _finite(fieller.get("lo")), _finite(fieller.get("hi"))
    interval = "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]".replace("-", "−")
    return Cell(text.replace("-", "−"), interval, ("Fieller",))


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
                    "evidence": _summary(gate.get("evidence")),
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
            "value": _fraction(diagnostics.get(key)),
            "width": 100 * min(max(_finite(diagnostics.get(key)) or 0.0, 0.0), 1.0),
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
    score = _finite(answer.get("score"))
    return {
        "text": answer.get("text") or "",
        "score": "unscored" if score is None else f"score {score:g}".replace("-", "−"),
        "reason": answer.get("reason") or "",
    }


def _provenance(run: dict[str, Any]) -> list[tuple[str, str]]:
    method = dict(run.get("method") or {})
    name = str(method.pop("name", DASH))
    parameters = "; ".join(
        f"{key} = {value if isinstance(value, str) else json.dumps(value)}" for key, value in method.items()
    )
    rows = [
        ("Created", run.get("created")),
        ("Base model", run.get("base_model")),
        ("Utility adapter", run.get("utility")),
        ("Safety adapter", run.get("safety")),
        ("Method", f"{name} ({parameters})" if parameters else name),
        ("Seed", run.get("seed")),
        ("Device and type", f"{run.get('device') or DASH}, {run.get('dtype') or DASH}"),
        ("Run folder", run.get("output")),
        ("Manifest sha256", run.get("manifest_sha256")),
        *(("Note", note) for note in run.get("notes") or []),
    ]
    return [(title, DASH if value is None else str(value)) for title, value in rows]


# Pictures


def _figures(results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Make every picture as plain Plotly JSON, and say in words what could not be drawn."""
    harmful = _axis(results, "safety")
    everyday = _axis(results, "over_refusal")
    utility = _axis(results, "utility")
    figures: dict[str, Any] = {}
    notes: dict[str, list[str]] = {"tradeoff": [], "overrefusal": []}
    for name, x, width, better in (
        ("tradeoff", utility, WIDE, "better: up and right ↗"),
        ("overrefusal", everyday, NARROW, "better: up and left ↖"),
    ):
        if x is None or harmful is None:
            missing = "the refusal of harmful prompts" if harmful is None else "what the horizontal axis needs"
            notes[name].append(f"Not drawn: no task measures {missing}.")
            continue
        points, notes[name] = _points(results, x, harmful)
        if name == "tradeoff" and x.measure.get("higher_is_better") is False:
            notes[name].append("Lower is better on the horizontal axis, so it runs from high to low.")
            x = Axis(x.task, x.measure, x.title, is_reversed=True)  # noqa: PLW2901
        if points:
            figures[name] = _scatter(points, x, harmful, width, better)
    diagnostics = results.get("diagnostics") or {}
    spectrum = diagnostics.get("spectrum") or []
    drawn = [value for value in map(_finite, spectrum) if value is not None and value > 0]
    if drawn:
        figures["spectrum"] = _spectrum_figure(drawn)
        left_out = len(spectrum) - len(drawn)
        notes["spectrum"] = [f"{left_out} of {len(spectrum)} values are not above 0 and not drawn."] if left_out else []
    if diagnostics.get("modules"):
        figures["modules"] = _modules_figure(diagnostics["modules"])
    return figures, notes


def _axis(results: dict[str, Any], family: str) -> Axis | None:
    """Make the axis of a family: the pictured measure of its first task."""
    tasks = [task for task in results["tasks"] if task["family"] == family and task["measures"]]
    if not tasks:
        return None
    measure = _pictured(tasks[0])
    unit = "%" if measure["unit"] == "pp" else measure["unit"]
    return Axis(tasks[0], measure, f"{tasks[0]['title']}: {measure['title']} ({unit})")


def _points(results: dict[str, Any], x: Axis, y: Axis) -> tuple[list[Point], list[str]]:
    """Place every arm that has both values; name the others with the reason."""
    index = _estimate_index(results)
    points, notes = [], []
    for arm in _arms(results):
        coordinates, lines = [], []
        for axis in (x, y):
            estimate = index.get((arm["name"], axis.task["name"], axis.measure["name"])) or {}
            value = _finite(estimate.get("value"))
            if value is None:
                notes.append(f"{arm['label']} is not drawn: {estimate.get('reason') or 'not measured'}.")
                break
            scale = 100 if axis.measure["unit"] == "pp" else 1
            low, high = _finite(estimate.get("low")), _finite(estimate.get("high"))
            if low is None or high is None:
                notes.append(f"{arm['label']}, {axis.measure['title']}: no interval is known.")
            coordinates.append(
                (
                    scale * value,
                    scale * (value if low is None else low),
                    scale * (value if high is None else high),
                )
            )
            cell = _estimate_cell(estimate, axis.measure["unit"])
            lines.append(f"{axis.measure['title']}: {cell.text} {cell.interval} {', '.join(cell.notes)}")
        else:
            hover = "<br>".join(html.escape(line, quote=False) for line in (arm["label"], *lines))
            points.append(
                Point(
                    arm["label"],
                    arm["colour"],
                    arm["symbol"],
                    coordinates[0],
                    coordinates[1],
                    hover,
                    arm["name"] == "merged",
                )
            )
    return points, notes


def _range(axis: Axis, coordinates: list[tuple[float, float, float]]) -> list[float]:
    """Span all intervals with room for labels; a rate's axis covers 20 points or more and ends at 0 and 100."""
    low = min(low for _, low, _ in coordinates)
    high = max(high for _, _, high in coordinates)
    is_rate = axis.measure["unit"] == "pp"
    missing = max((20 if is_rate else 1e-6) - (high - low), 0)
    pad = missing / 2 + 0.14 * (high - low + missing)
    low, high = low - pad, high + pad
    if is_rate:
        low, high = max(low, -4.0), min(high, 104.0)
    return [high, low] if axis.is_reversed else [low, high]


def _scatter(points: list[Point], x: Axis, y: Axis, width: int, better: str) -> dict[str, Any]:
    """Draw the arms as points with both intervals, every label clear of the others."""
    ranges = _range(x, [point.x for point in points]), _range(y, [point.y for point in points])
    layout = _layout()
    layout["yaxis"] |= _titled(y.title, HEIGHT) | {"range": ranges[1]}
    variants = {
        name: {
            "xaxis": layout["xaxis"] | _titled(x.title, plot_width) | {"range": ranges[0]},
            "annotations": [*_labels(points, ranges, (float(plot_width), float(HEIGHT))), _corner(better)],
        }
        for name, plot_width in (("wide", width), ("narrow", NARROW))
    }
    return {
        "data": [_trace(point) for point in sorted(points, key=lambda point: point.is_merged)],
        "layout": layout,
        **variants,
    }


def _trace(point: Point) -> dict[str, Any]:
    def bars(coordinate: tuple[float, float, float]) -> dict[str, Any]:
        value, low, high = coordinate
        return {
            "type": "data",
            "symmetric": False,
            "array": [high - value],
            "arrayminus": [value - low],
            "color": point.colour,
            "thickness": 1.4,
            "width": 4,
        }

    return {
        "type": "scatter",
        "mode": "markers",
        "name": html.escape(point.label, quote=False),
        "x": [point.x[0]],
        "y": [point.y[0]],
        "error_x": bars(point.x),
        "error_y": bars(point.y),
        "marker": {"color": point.colour, "symbol": point.symbol, "size": 12},
        "hovertext": [point.hover],
        "hoverinfo": "text",
    }


def _layout() -> dict[str, Any]:
    """Give the layout that all pictures share; the page's CSS colours text and lines for light, dark and paper."""
    axis = {"zeroline": False, "automargin": True, "ticks": "", "fixedrange": True}
    return {
        "height": HEIGHT + 90,
        "margin": {"l": 58, "r": 14, "t": 32, "b": 58},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": FONT},
        "hoverlabel": {"bgcolor": "#22272d", "bordercolor": "#22272d", "font": {"color": "#ffffff"}, "align": "left"},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
    }


def _corner(text: str) -> dict[str, Any]:
    return {
        "text": text,
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": 1 if "right" in text else 0,
        "y": 1,
        "xanchor": "right" if "right" in text else "left",
        "yanchor": "bottom",
        "yshift": 6,
    }


def _titled(text: str, width: int) -> dict[str, Any]:
    """Title an axis, in lines that fit beside the plot area."""
    lines = textwrap.wrap(text, int(width / (0.56 * FONT)))
    broken = "<br>".join(html.escape(line, quote=False) for line in lines)
    return {"title": {"text": broken, "font": {"size": FONT}, "standoff": 10}}


def _labels(
    points: list[Point], ranges: tuple[list[float], list[float]], area: tuple[float, float]
) -> list[dict[str, Any]]:
    """Write the arms' names as annotations with a leader line each."""
    (left, right), (bottom, top) = ranges

    def pixel(x: float, y: float) -> tuple[float, float]:
        return (x - left) / (right - left) * area[0], (top - y) / (top - bottom) * area[1]

    centres = [pixel(point.x[0], point.y[0]) for point in points]
    bars = [(*pixel(point.x[i], point.y[0]), *pixel(point.x[j], point.y[0])) for point in points for i, j in [(1, 2)]]
    bars += [(*pixel(point.x[0], point.y[2]), *pixel(point.x[0], point.y[1])) for point in points]
    sizes = [(0.6 * FONT * len(point.label) + 6, 1.5 * FONT) for point in points]
    offsets = place_labels(centres, sizes, area, bars)
    return [
        {
            "text": html.escape(point.label, quote=False),
            "x": point.x[0],
            "y": point.y[0],
            "ax": round(dx, 1),
            "ay": round(dy, 1),
            "xanchor": "center",
            "yanchor": "middle",
            "showarrow": True,
            "arrowhead": 0,
            "arrowwidth": 1,
            "arrowcolor": point.colour,
            "standoff": 8,
            "borderpad": 1,
        }
        for point, (dx, dy) in zip(points, offsets, strict=True)
    ]


def place_labels(
    centres: list[tuple[float, float]],
    sizes: list[tuple[float, float]],
    area: tuple[float, float],
    bars: list[tuple[float, float, float, float]],
) -> list[tuple[float, float]]:
    """Choose where the label of every point goes, so that labels stay apart even where points coincide.

    Greedy: each label takes the cheapest of eight directions at growing distances. Lying on another label or
    marker, or outside the plot, costs most; then crossing an error bar; then distance.

    Args:
        centres: The points in pixels, x to the right and y down.
        sizes: Width and height of each label in pixels.
        area: Width and height of the plot in pixels.
        bars: Error bars as ``(left, top, right, bottom)``.

    Returns:
        The offset of each label's centre from its point.
    """
    markers = [(x - 8, y - 8, x + 8, y + 8) for x, y in centres]
    directions = [(1, -1), (-1, -1), (1, 1), (-1, 1), (0, -1), (0, 1), (1, 0), (-1, 0)]
    placed: list[tuple[float, float, float, float]] = []
    offsets = []
    for (x, y), (width, height) in zip(centres, sizes, strict=True):
        options = []
        for gap in (5, 16, 30, 46, 64, 84, 106):
            for order, (sx, sy) in enumerate(directions):
                dx, dy = sx * (width / 2 + gap), sy * (height / 2 + gap)
                box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
                outside = max(-box[0], 0) + max(-box[1], 0) + max(box[2] - area[0], 0) + max(box[3] - area[1], 0)
                cost = 100 * outside + gap + 0.1 * order
                cost += sum(5000 for other in placed if _overlap(box, other))
                cost += sum(1000 for marker in markers if _overlap(box, marker))
                cost += sum(25 for bar in bars if _overlap(box, bar))
                options.append((cost, dx, dy, box))
        _, dx, dy, box = min(options)
        placed.append(box)
        offsets.append((dx, dy))
    return offsets


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _spectrum_figure(values: list[float]) -> dict[str, Any]:
    layout = _layout()
    layout["height"] = 300
    layout["xaxis"] |= _titled("direction, best first", NARROW)
    layout["yaxis"] |= _titled("generalised eigenvalue λ", NARROW) | {"type": "log", "exponentformat": "power"}
    decades = math.log10(max(values) / min(values))
    if decades < 8:  # else Plotly thins the ticks itself
        layout["yaxis"]["dtick"] = "D2" if decades < 2 else 1
    step = -(-len(values) // 2000)  # a line of 2000 points looks like one of all; each keeps its true rank
    shown = sorted({*range(0, len(values), step), len(values) - 1})
    trace = {
        "type": "scatter",
        "mode": "lines+markers" if len(values) <= 200 else "lines",
        "x": [index + 1 for index in shown],
        "y": [float(f"{values[index]:.5g}") for index in shown],
        "line": {"color": ARM_STYLES["merged"][0], "width": 1.6},
        "marker": {"color": ARM_STYLES["merged"][0], "size": 4},
        "hovertemplate": "direction %{x}: λ = %{y:.3g}<extra></extra>",
    }
    return {"data": [trace], "layout": layout}


def _modules_figure(modules: list[dict[str, Any]]) -> dict[str, Any]:
    """Show what was kept in every module by layer, with the layers' means as lines."""
    layout = _layout()
    layout["height"] = 300
    layout["margin"] |= {"t": 14}  # the cards above the picture are its legend
    found = [re.search(r"\.(\d+)\.", module["name"]) for module in modules]
    layers = [int(match[1]) for match in found if match]
    if len(layers) != len(modules):
        layers = list(range(len(modules)))
    layout["xaxis"] |= _titled("layer" if all(found) else "module", NARROW)
    layout["yaxis"] |= _titled("share kept (%)", NARROW) | {"rangemode": "tozero"}
    data = []
    for key, (title, colour, symbol, _) in ENERGIES.items():
        kept = [
            (layer, module["name"], _finite(module.get(key))) for layer, module in zip(layers, modules, strict=True)
        ]
        points = [(layer, name, round(100 * value, 2)) for layer, name, value in kept if value is not None]
        if not points:
            continue
        xs, names, ys = (list(column) for column in zip(*points, strict=True))
        means = {layer: [y for x, y in zip(xs, ys, strict=True) if x == layer] for layer in sorted(set(xs))}
        shared = {"type": "scatter"}
        data.append(
            shared
            | {
                "mode": "markers",
                "x": xs,
                "y": ys,
                "marker": {"color": colour, "symbol": symbol, "size": 5, "opacity": 0.35},
                "hovertext": [
                    html.escape(f"{name}: {y:.1f} %", quote=False) for name, y in zip(names, ys, strict=True)
                ],
                "hoverinfo": "text",
            }
        )
        data.append(
            shared
            | {
                "mode": "lines+markers",
                "name": title,
                "x": list(means),
                "y": [round(sum(group) / len(group), 2) for group in means.values()],
                "line": {"color": colour, "width": 1.8},
                "marker": {"color": colour, "symbol": symbol, "size": 6},
                "hovertemplate": f"{title}, mean of layer %{{x}}: %{{y:.1f}} %<extra></extra>",
            }
        )
    return {"data": data, "layout": layout}
