"""Numbers as the report shows them: with interval, counts and reading, or a dash with its reason."""
# ruff: noqa: RUF001  (the report has typeset dashes and minus signs)

import math
import re
from dataclasses import dataclass
from typing import Any

DASH = "–"


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


def finite(value: Any) -> float | None:
    """Return the value as a float, or None where it is not a number one can draw or quote."""
    if value is None or isinstance(value, (bool, str)) or not math.isfinite(value):
        return None
    return float(value)


def _digits(unit: str) -> int:
    return {"pp": 1, "nats": 2}.get(unit, 3)


def plain(value: float, unit: str, *, signed: bool = False) -> str:
    """Format a number in its unit's usual rounding, with a real minus sign and no negative zero."""
    text = f"{value * (100 if unit == 'pp' else 1):.{_digits(unit)}f}"
    if float(text) == 0:
        return text.lstrip("-")
    if text.startswith("-"):
        return "−" + text[1:]
    return "+" + text if signed else text


def with_unit(text: str, unit: str, *, is_difference: bool) -> str:
    """A number and its unit; shares are per cent, their differences points."""
    word = ("pp" if is_difference else "%") if unit == "pp" else unit
    return f"{text} {word}".rstrip()


def interval_text(bounds: Any, unit: str, *, signed: bool = False) -> str:
    """``[low, high]`` without the unit; nothing where a limit is missing."""
    low, high = (finite(bound) for bound in bounds or (None, None))
    if low is None or high is None:
        return ""
    return f"[{plain(low, unit, signed=signed)}, {plain(high, unit, signed=signed)}]"


def p_text(p: Any) -> str:
    """``p = ...``; nothing where there is none."""
    number = finite(p)
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


def ratio_text(value: float) -> str:
    """A ratio with two decimals, or three digits where those say more."""
    return (f"{value:.2f}" if 0.1 <= abs(value) < 100 else f"{value:.3g}").replace("-", "−")


def fraction_text(value: Any) -> str:
    """A fraction as a percentage."""
    number = finite(value)
    return DASH if number is None else f"{100 * number:.1f} %"


def duration_text(value: float) -> str:
    """Seconds as people say them."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _short_hashes(text: str) -> str:
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1…", text)


def evidence_text(value: Any) -> str:
    """Say a piece of evidence in one line: numbers rounded, hashes shortened, nothing left out but digits."""
    if value is None or value in ({}, ""):
        return DASH
    if isinstance(value, dict):
        parts = [f"{str(key).replace('_', ' ')}: {evidence_text(item)}" for key, item in value.items()]
        return "; ".join(parts)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(evidence_text(item) for item in value) + "]" if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return _short_hashes(str(value))


def undefined_cell(reason: Any, notes: tuple[str, ...] = (), fallback: str = "not measured") -> Cell:
    """A dash, with the reason."""
    return Cell(DASH, notes=notes, reason=str(reason or fallback))


def estimate_cell(estimate: dict[str, Any] | None, unit: str) -> Cell:
    """Show a value of one arm."""
    if estimate is None:
        return undefined_cell(None)
    notes = [f"n = {estimate['n']}"] if estimate.get("n") is not None else []
    if estimate.get("unscored"):
        notes.append(f"{estimate['unscored']} unscored")
    value = finite(estimate.get("value"))
    if value is None:
        return undefined_cell(estimate.get("reason"), tuple(notes))
    return Cell(
        with_unit(plain(value, unit), unit, is_difference=False),
        interval_text((estimate.get("low"), estimate.get("high")), unit),
        tuple(notes),
        detail=str(estimate.get("method") or ""),
    )


def _reading(difference: dict[str, Any], higher_is_better: bool | None) -> str:
    """Say in words what interval and test of a difference show together, and nothing more."""
    low, high = (finite(bound) for bound in difference.get("ci") or (None, None))
    if low is None or high is None:
        return "no interval"
    if low <= 0 <= high:
        return "interval includes 0"
    if difference.get("reason"):
        return f"not tested: {difference['reason']}"
    p = finite(difference.get("p"))
    if p is None or p >= 1 - difference.get("level", 0.95):
        return "interval and test disagree"
    if higher_is_better is None:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == higher_is_better else "worse"


def difference_cell(difference: dict[str, Any] | None, measure: dict[str, Any]) -> Cell:
    """Show a difference between two arms."""
    if difference is None:
        return undefined_cell(None, fallback="not compared")
    unit = measure["unit"]
    counts = [f"n = {difference['n']}"] if difference.get("n") is not None else []
    value = finite(difference.get("estimate"))
    if value is None:
        return undefined_cell(difference.get("reason"), tuple(counts))
    if difference.get("b") is not None and difference.get("c") is not None:
        counts.append(f"{difference['c']} up, {difference['b']} down")
    return Cell(
        with_unit(plain(value, unit, signed=True), unit, is_difference=True),
        interval_text(difference.get("ci"), unit, signed=True),
        (
            ", ".join(counts),
            p_text(difference.get("p")),
            _reading(difference, measure.get("higher_is_better")),
        ),
        detail=str(difference.get("method") or ""),
    )


def quantity_cell(quantity: dict[str, Any] | None, *, signed: bool = True, unit: str | None = None) -> Cell:
    """Show gain, loss, over-refusal or net benefit of a Safety Tax."""
    if not quantity:
        return undefined_cell(None)
    unit = str(unit or quantity.get("unit") or "pp")
    notes = (f"n = {quantity['n']}",) if quantity.get("n") is not None else ()
    value = finite(quantity.get("estimate"))
    if value is None:
        return undefined_cell(quantity.get("reason"), notes)
    text = with_unit(plain(value, unit, signed=signed), unit, is_difference=True)
    if finite(quantity.get("p_positive")) is not None:
        notes = (*notes, f"P(above 0) {_probability(quantity['p_positive'])}")
    interval = interval_text(quantity.get("ci"), unit, signed=signed)
    return Cell(text, interval, notes, detail=str(quantity.get("method") or ""))
