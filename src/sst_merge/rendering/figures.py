"""The pictures of the report as plain Plotly JSON; what cannot be drawn is said in words."""

import html
import math
import re
import textwrap
from dataclasses import dataclass
from typing import Any

from sst_merge.rendering.cells import estimate_cell, finite
from sst_merge.rendering.page import ARM_STYLES, ENERGIES, estimate_index, pictured_measure, styled_arms

# Pixels: plot areas the labels are placed for, and the size of their text.
WIDE, NARROW, HEIGHT, FONT = 500, 264, 330, 13


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


def draw_figures(results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
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
        notes[name] += [note for axis in (x, harmful) if (note := _left_out(results, axis))]
        if name == "tradeoff" and x.measure.get("higher_is_better") is False:
            notes[name].append("Lower is better on the horizontal axis, so it runs from high to low.")
            x = Axis(x.task, x.measure, x.title, is_reversed=True)  # noqa: PLW2901
        if points:
            figures[name] = _scatter(points, x, harmful, width, better)
    diagnostics = results.get("diagnostics") or {}
    spectrum = diagnostics.get("spectrum") or []
    drawn = [value for value in map(finite, spectrum) if value is not None and value > 0]
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
    measure = pictured_measure(tasks[0])
    unit = "%" if measure["unit"] == "pp" else measure["unit"]
    return Axis(tasks[0], measure, f"{tasks[0]['title']}: {measure['title']} ({unit})")


def _left_out(results: dict[str, Any], axis: Axis) -> str | None:
    """Say which tasks of the axis' family the picture does not show."""
    others = [
        task["title"]
        for task in results["tasks"]
        if task["family"] == axis.task["family"] and task["measures"] and task is not axis.task
    ]
    return f"Not in this picture, but in the tables: {', '.join(others)}." if others else None


def _points(results: dict[str, Any], x: Axis, y: Axis) -> tuple[list[Point], list[str]]:
    """Place every arm that has both values; name the others with the reason."""
    index = estimate_index(results)
    points, notes = [], []
    for arm in styled_arms(results):
        coordinates, lines = [], []
        for axis in (x, y):
            estimate = index.get((arm["name"], axis.task["name"], axis.measure["name"])) or {}
            value = finite(estimate.get("value"))
            if value is None:
                notes.append(f"{arm['label']} is not drawn: {estimate.get('reason') or 'not measured'}.")
                break
            scale = 100 if axis.measure["unit"] == "pp" else 1
            low, high = finite(estimate.get("low")), finite(estimate.get("high"))
            if low is None or high is None:
                notes.append(f"{arm['label']}, {axis.measure['title']}: no interval is known.")
            coordinates.append(
                (
                    scale * value,
                    scale * (value if low is None else low),
                    scale * (value if high is None else high),
                )
            )
            cell = estimate_cell(estimate, axis.measure["unit"])
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
        kept = [(layer, module["name"], finite(module.get(key))) for layer, module in zip(layers, modules, strict=True)]
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
