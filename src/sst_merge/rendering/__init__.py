"""The report of a run, as one HTML page and as Markdown: pure functions of the contents of ``results.json``.

Nothing is computed here that a reader could quote: every number, interval and verdict comes in with the results.
This module decides how it is said. Rates are shown in per cent, differences of rates in points (pp), log-odds in
nats; an undefined value is a dash with its reason, never a zero. The templates lie in ``../templates/``.
"""

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sst_merge.rendering.figures import draw_figures
from sst_merge.rendering.page import SCHEMA, report_view

__all__ = ["SCHEMA", "render_html", "render_markdown"]


def render_html(results: dict[str, Any]) -> str:
    """Render the report as one HTML file that needs nothing else and never asks the network.

    Args:
        results: The contents of a report's results, schema ``sst-merge/report/1``.

    Returns:
        The page, with Plotly's code and all styles in it.
    """
    view = report_view(results)
    view["figures"], view["figure_notes"] = draw_figures(results)
    view["plotly_js"] = Markup(get_plotlyjs())  # our own dependency's code, not a value of the run
    return _environment(is_html=True).get_template("report.html.j2").render(view)


def render_markdown(results: dict[str, Any]) -> str:
    """Render the verdict, the tables, the gates and the provenance as Markdown.

    Args:
        results: The contents of a report's results, schema ``sst-merge/report/1``.

    Returns:
        GitHub-flavoured Markdown without plots.
    """
    return _environment(is_html=False).get_template("report.md.j2").render(report_view(results))


@functools.cache
def _environment(*, is_html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
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
