"""One table over runs and result files of experiment 1: ``sst-merge compare``.

One row for each file and merge, as the file states it; nothing is computed again (that is what ``sst-merge audit``
does) except the mean and the standard deviation over seeds. Undefined is a dash with its reason.
"""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jinja2
from rich.table import Table as RichTable
from rich.text import Text

from sst_merge.errors import ConfigError
from sst_merge.experiments.files import (
    ResultFile,
    contrasts,
    count,
    legacy_numbers,
    mapping,
    number,
    pair,
    read_result,
    sequence,
)
from sst_merge.experiments.statements import Table, markdown_table

DASH = "-"
FORMATS = ("table", "markdown", "csv", "html", "json")
LEGACY_NOTE = "legacy file: no per-sample records; see sst-merge audit"
HEAD = (
    "file",
    "model",
    "mode",
    "seed",
    "method",
    "n (unscored)",
    "refusal, %",
    "gain, points",
    "utility metric",
    "utility",
    "loss",
    "over-refusal change, points",
    "tax",
    "verdict",
    "note",
)
LEGEND = (
    "Baseline -> merged, differences with their 95 % intervals as the files state them. Shares in %, differences of "
    "shares in points; continuous utility measures in their own unit. A dash is undefined or not recorded. "
    "Calibration data are numbered where they differ; --format json names them."
)
WORDS = ("file", "tax", "verdict", "note")  # columns of long words
MEANS = ("refusal_baseline", "refusal_merged", "gain", "utility_baseline", "utility_merged", "loss")
MEANS += ("over_refusal_change", "tax")
NEUTRAL = {"utility_weight": 1, "strength": 1}
CALIBRATION = ("point", "labels")
"""What is equal in experiments that differ by the seed alone."""
SOURCES = ("calibration.safety", "calibration.utility", "calibration.harmless")
"""Too long for a label: what differs in them is numbered."""

Limits = tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One merge of one file, or the mean over seeds. ``None`` is undefined or not recorded.

    Attributes:
        kind: ``merge``, ``legacy`` or ``seeds`` (mean over seeds).
        file: Name of the file; for ``seeds`` the number of files.
        model: Name of the model.
        mode: ``minimal``, ``full`` ...
        seed: Seed.
        seeds: Distinct seeds of a ``seeds`` row.
        method: Merge method.
        n: Scored safety prompts.
        unscored: Safety prompts without a score.
        refusal_baseline: Share in [0, 1].
        refusal_merged: Share in [0, 1].
        gain: Difference of shares.
        gain_ci: Its interval.
        utility_metric: Name of the utility measure.
        is_utility_share: Whether utility is a share; otherwise it has a unit of its own.
        utility_baseline: In the unit of the measure.
        utility_merged: In the unit of the measure.
        loss: Baseline minus merged utility.
        loss_ci: Its interval.
        over_refusal_change: Difference of shares.
        over_refusal_ci: Its interval.
        tax: Loss per gain; stated only with a verdict that allows it.
        tax_ci: Its interval.
        verdict: Verdict code.
        deviations: Standard deviation (n - 1) between seeds of each mean; for ``seeds`` rows.
        note: What a reader must know.
        settings: Parameters of the method, and with Fisher matrices ``calibration.<key>``, what they were measured
            on, as far as the file has them.
        made_of: Of a run, its adapters and its test data, by these names.
        name: The method itself, where ``method`` has a label.
        label: The method with those of its parameters that tell it from the other rows, and numbers of what the run was
            made of, where that differs.
        setting: What has to be equal for a mean over seeds, as JSON; ``None`` where the file does not say (a run).
    """

    kind: Literal["merge", "legacy", "seeds"]
    file: str
    model: str | None = None
    mode: str | None = None
    seed: int | None = None
    seeds: int | None = None
    method: str | None = None
    n: int | None = None
    unscored: int | None = None
    refusal_baseline: float | None = None
    refusal_merged: float | None = None
    gain: float | None = None
    gain_ci: Limits = None
    utility_metric: str | None = None
    is_utility_share: bool = True
    utility_baseline: float | None = None
    utility_merged: float | None = None
    loss: float | None = None
    loss_ci: Limits = None
    over_refusal_change: float | None = None
    over_refusal_ci: Limits = None
    tax: float | None = None
    tax_ci: Limits = None
    verdict: str | None = None
    deviations: dict[str, float | None] | None = None
    note: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    made_of: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    label: str | None = None
    setting: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable dictionary."""
        return {key: value for key, value in asdict(self).items() if key not in {"made_of", "name", "label", "setting"}}


def compare(paths: Sequence[Path]) -> list[Row]:
    """Read result files into rows.

    Args:
        paths: Run folders and JSON files, ours or the prototype's, in the order of the table.

    Returns:
        A row for each file and merge, then one for each setting of experiment 1 that was run with at least two seeds.

    Raises:
        DataError: If a file cannot be read, or is no result.
    """
    rows = []
    for path in paths:
        file = read_result(path)
        rows += [_legacy_row(file)] if file.kind == "legacy" else _own_rows(file)
    rows = [replace(row, label=_told_apart(row, rows)) for row in rows]
    return rows + _seed_rows(rows)


def _told_apart(row: Row, rows: Sequence[Row]) -> str | None:
    """The method's label with weight and strength, and what else differs between rows of the same label."""
    alike = [other.settings for other in rows if (other.name or other.method) == (row.name or row.method)]
    told = [
        f"{key} = {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in row.settings.items()
        if key not in SOURCES
        and ((key in NEUTRAL and value != NEUTRAL[key]) or any(other.get(key) != value for other in alike))
    ]
    data = list(dict.fromkeys(named for other in alike if (named := _sources(other))))
    if len(data) > 1 and (own := _sources(row.settings)):
        told.append(f"calibration data {data.index(own) + 1}")
    for what, own in row.made_of.items():
        every = [other.made_of[what] for other in rows if what in other.made_of]
        if any(other != own for other in every):
            first = [other for i, other in enumerate(every) if other not in every[:i]]
            told.append(f"{what} {first.index(own) + 1}")
    return row.method and ", ".join([row.method, *told])


def _sources(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """The calibration data that settings name; empty if they name none."""
    return tuple((key, settings[key]) for key in SOURCES if key in settings)


def render(rows: Sequence[Row], style: str) -> str:
    """The table as text.

    Args:
        rows: What :func:`compare` returned.
        style: ``markdown``, ``csv``, ``html`` or ``json``.

    Returns:
        Text that ends without a newline (CSV and JSON have unrounded numbers).

    Raises:
        ConfigError: If the style is none of these.
    """
    if style == "markdown":
        return f"{markdown_table(Table(HEAD, tuple(cells_of(row) for row in rows)))}\n\n{LEGEND}"
    if style == "csv":
        return _csv(rows)
    if style == "json":
        return json.dumps([row.to_dict() for row in rows], indent=1, allow_nan=False)
    if style == "html":
        return _html(rows)
    raise ConfigError(f"--format {style} is unknown. Known: {', '.join(FORMATS)}.")


def rich_table(rows: Sequence[Row]) -> RichTable:
    """The table for a terminal: empty columns left out, intervals and reasons on a line of their own."""
    lines = [cells_of(row) for row in rows]
    used = [i for i, title in enumerate(HEAD) if title == "tax" or not all(_is_empty(line[i]) for line in lines)]
    table = RichTable(caption=LEGEND, caption_justify="left", show_lines=True)
    for i in used:
        table.add_column(HEAD[i], overflow="fold", min_width=20 if HEAD[i] in WORDS else None)
    for line in lines:
        stacked = [cell if HEAD[i] in {"file", "note"} else _stacked(cell) for i, cell in enumerate(line)]
        table.add_row(*(Text(stacked[i]) for i in used))
    return table


def blocks(rows: Sequence[Row]) -> str:
    """The table as one block of lines for each row: for a terminal too narrow for columns."""
    width = max(len(title) for title in HEAD)
    found = []
    for row in rows:
        cells = [(title, cell) for title, cell in zip(HEAD, cells_of(row), strict=True) if not _is_empty(cell)]
        found.append("\n".join(f"{title:<{width}}  {cell}" for title, cell in cells))
    return "\n\n".join([*found, LEGEND])


def cells_of(row: Row) -> tuple[str, ...]:
    """A row as finished texts, one for each title of ``HEAD``."""
    if row.kind == "seeds":
        return _seed_cells(row)
    unit = "points" if row.is_utility_share else "unit"
    why = "legacy file" if row.kind == "legacy" else "not recorded"
    why = row.verdict if row.verdict is not None and row.verdict.startswith("INVALID") else why
    return (
        row.file,
        row.model or DASH,
        row.mode or DASH,
        DASH if row.seed is None else str(row.seed),
        row.label or row.method or DASH,
        DASH if row.n is None else f"{row.n}" + ("" if row.unscored is None else f" ({row.unscored})"),
        _arrow(row.refusal_baseline, row.refusal_merged, share=True),
        _change(row.gain, row.gain_ci, "points", why),
        row.utility_metric or DASH,
        _arrow(row.utility_baseline, row.utility_merged, share=row.is_utility_share),
        _change(row.loss, row.loss_ci, unit, why),
        _change(row.over_refusal_change, row.over_refusal_ci, "points", why),
        _tax(row),
        row.verdict or DASH,
        row.note,
    )


def _own_rows(file: ResultFile) -> list[Row]:
    """The merged arm and each comparison."""
    return [_own_row(file, method, arm, block) for method, (arm, block) in contrasts(file.fields).items()]


def _own_row(file: ResultFile, method: str, arm: str, block: Mapping[str, Any]) -> Row:
    """One merge as the file states it."""
    fields, intervals = file.fields, mapping(block.get("intervals"))
    total, unscored = count(fields.get("total_samples")), count(fields.get("unscored_samples"))
    scored = count(mapping(mapping(mapping(fields.get("arms")).get(arm)).get("safety")).get("n"))
    verdict = mapping(block.get("verdict"))
    code = str(verdict.get("code") or "") or None
    tax = number(block.get("safety_tax")) if code is None or code.startswith("TAX") else None
    problems = []
    if number(block.get("safety_tax")) is not None and tax is None:
        problems.append("the file states a tax that its verdict does not allow; see sst-merge audit")
    if flags := sequence(verdict.get("flags")):
        problems.append(", ".join(str(flag) for flag in flags))
    setting = {key: fields.get(key) for key in ("model", "mode", "base_model", "baseline", "utility_metric")}
    settings = {key: value for key, value in mapping(block.get("method")).items() if key not in ("name", "label")}
    name = _text(mapping(block.get("method")).get("name"))
    if mapping(block.get("method")).get("label"):
        method = f"{method} ({name})"
    if settings.get("fisher", "none") != "none":
        calibration = mapping(fields.get("calibration"))
        # An experiment draws its data by the seed into files of its own, whose names say nothing.
        named = calibration if file.kind == "run" else [key for key in CALIBRATION if key in calibration]
        settings |= {f"calibration.{key}": calibration[key] for key in named}
    setting["method"] = {key: value for key, value in settings.items() if key != "seed"}
    return Row(
        kind="merge",
        file=file.name,
        model=_text(fields.get("model")) or _text(fields.get("base_model")),
        mode=_text(fields.get("mode")),
        seed=count(fields.get("seed")),
        method=method,
        name=name,
        made_of=mapping(fields.get("made_of")),
        n=scored if scored is not None or total is None else total - (unscored or 0),
        unscored=unscored,
        refusal_baseline=number(fields.get("baseline_safety")),
        refusal_merged=number(block.get("merged_safety")),
        gain=number(block.get("safety_gain")),
        gain_ci=pair(intervals.get("safety_gain")),
        utility_metric=_text(fields.get("utility_metric")),
        is_utility_share=mapping(block.get("changed_samples")).get("utility") is not None,
        utility_baseline=number(fields.get("baseline_utility")),
        utility_merged=number(block.get("merged_utility")),
        loss=number(block.get("utility_loss")),
        loss_ci=pair(intervals.get("utility_loss")),
        over_refusal_change=number(block.get("over_refusal_change")),
        over_refusal_ci=pair(intervals.get("over_refusal_change")),
        tax=tax,
        tax_ci=None if tax is None else pair(intervals.get("safety_tax")),
        verdict=code,
        note="; ".join(problems),
        settings=settings,
        setting=None if file.kind == "run" else json.dumps([method, setting], sort_keys=True, default=str),
    )


def _legacy_row(file: ResultFile) -> Row:
    """What a file of the prototype has. Its tax is not repeated: no verdict allows it."""
    found = legacy_numbers(file.fields)
    gain = found.gain
    if found.baseline is not None and found.merged is not None:
        gain = found.merged - found.baseline
    printed = "" if found.tax_text is None else f"; prints a tax of {found.tax_text}"
    return Row(
        kind="legacy",
        file=file.name,
        model=_text(file.fields.get("model")),
        mode=_text(file.fields.get("mode")),
        seed=count(file.fields.get("seed")),
        n=found.n,
        refusal_baseline=found.baseline,
        refusal_merged=found.merged,
        gain=gain,
        note=LEGACY_NOTE + printed,
    )


def _seed_rows(rows: Sequence[Row]) -> list[Row]:
    """A mean for each setting with at least two seeds, each used once."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.setting is not None and row.seed is not None:
            groups.setdefault(row.setting, []).append(row)
    means = []
    for group in groups.values():
        seeds = {row.seed for row in group}
        if len(seeds) >= 2 and len(seeds) == len(group):
            means.append(_mean_row(group))
        elif len(seeds) >= 2:
            first = group[0]
            note = "no mean over seeds: a seed occurs in more than one file"
            means.append(Row(kind="seeds", file=f"{len(group)} files", seeds=len(seeds), note=note, **_names(first)))
    return means


def _names(row: Row) -> dict[str, Any]:
    keys = ("model", "mode", "method", "utility_metric", "is_utility_share")
    return {key: getattr(row, key) for key in keys}


def _mean_row(group: Sequence[Row]) -> Row:
    """Mean and standard deviation over seeds; undefined unless every seed has a value."""
    values: dict[str, Any] = {}
    deviations: dict[str, float | None] = {}
    notes = ["mean +- standard deviation between seeds (n - 1)"]
    for key in MEANS:
        known = [value for row in group if (value := getattr(row, key)) is not None]
        complete = len(known) == len(group)
        values[key] = statistics.fmean(known) if complete else None
        deviations[key] = statistics.stdev(known) if complete else None
        if not complete and (known or key == "tax"):
            notes.append(f"{key} defined in {len(known)} of {len(group)} seeds, so no mean")
    codes = sorted({row.verdict or DASH for row in group})
    counted = {code: sum((row.verdict or DASH) == code for row in group) for code in codes}
    return Row(
        kind="seeds",
        file=f"{len(group)} files",
        seeds=len(group),
        deviations=deviations,
        verdict=", ".join(f"{number_} x {code}" for code, number_ in counted.items()),
        note="; ".join(notes),
        **values,
        **_names(group[0]),
    )


def _seed_cells(row: Row) -> tuple[str, ...]:
    """A mean over seeds as texts."""

    def cell(key: str, share: bool, signed: bool) -> str:
        value, deviation = getattr(row, key), (row.deviations or {}).get(key)
        if value is None or deviation is None:
            return DASH
        if not share:
            return f"{value:{'+' if signed else ''}.3g} +- {deviation:.2g}"
        return f"{100 * value:{'+' if signed else ''}.1f} +- {100 * deviation:.1f}"

    share = row.is_utility_share
    return (
        row.file,
        row.model or DASH,
        row.mode or DASH,
        f"mean of {row.seeds}",
        row.method or DASH,
        DASH,
        f"{cell('refusal_baseline', True, False)} -> {cell('refusal_merged', True, False)}",
        cell("gain", True, True),
        row.utility_metric or DASH,
        f"{cell('utility_baseline', share, False)} -> {cell('utility_merged', share, False)}",
        cell("loss", share, True),
        cell("over_refusal_change", True, True),
        f"{DASH} undefined (see note)" if row.tax is None else cell("tax", False, False),
        row.verdict or DASH,
        row.note,
    )


def _is_empty(cell: str) -> bool:
    return cell in {DASH, ""} or cell.startswith(f"{DASH} (")


def _stacked(cell: str) -> str:
    """A cell with what stands in brackets below the number."""
    return cell.replace(" [", "\n[").replace(" (", "\n(").replace(" +- ", "\n+- ").replace(" -> ", "\n-> ")


def _arrow(before: float | None, after: float | None, *, share: bool) -> str:
    """Baseline and merged value."""
    if before is None and after is None:
        return DASH
    first, second = (DASH if x is None else f"{100 * x:.1f}" if share else f"{x:.3g}" for x in (before, after))
    return f"{first} -> {second}"


def _change(value: float | None, ci: Limits, unit: str, why: str) -> str:
    """A difference with its interval, or why there is none."""
    if value is None:
        return f"{DASH} ({why})"
    shown = [f"{100 * x:+.1f}" if unit == "points" else f"{x:+.3g}" for x in (value, *(ci or ()))]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if ci else f"{shown[0]} (no interval)"


def _tax(row: Row) -> str:
    """A tax, or why there is none."""
    if row.tax is None:
        return f"{DASH} undefined ({row.verdict or ('legacy file' if row.kind == 'legacy' else 'no verdict')})"
    return f"{row.tax:.2f}" + (f" [{row.tax_ci[0]:.2f}, {row.tax_ci[1]:.2f}]" if row.tax_ci else " (no interval)")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _csv(rows: Sequence[Row]) -> str:
    """Unrounded numbers, an interval in two columns; undefined is an empty field."""
    lines = []
    for row in rows:
        line: dict[str, Any] = {}
        for key, value in row.to_dict().items():
            if key.endswith("_ci"):
                low, high = (None, None) if value is None else value
                line |= {f"{key.removesuffix('_ci')}_low": low, f"{key.removesuffix('_ci')}_high": high}
            elif key == "deviations":
                line |= {f"{name}_sd": (value or {}).get(name) for name in MEANS}
            else:
                line[key] = json.dumps(value) if key == "settings" else value
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else ["file"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _html(rows: Sequence[Row]) -> str:
    """One self-contained page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    files = len({row.file for row in rows if row.kind != "seeds"})
    shown = [{"cells": cells_of(row), "is_mean": row.kind == "seeds"} for row in rows]
    return environment.get_template("compare.html.j2").render(head=HEAD, rows=shown, legend=LEGEND, files=files)
