"""What an audit found, as text, as Markdown and as JSON."""

import textwrap
from dataclasses import dataclass
from typing import Any

WIDTH = 100


@dataclass(frozen=True)
class Table:
    """A small table of finished texts.

    Attributes:
        head: Column titles.
        rows: Cells, one tuple per row, as many as titles.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Statement:
    """One finding in plain words.

    Attributes:
        heading: Two to six words.
        text: Whole sentences.
        table: Numbers that belong to the text.
    """

    heading: str
    text: str
    table: Table | None = None


@dataclass(frozen=True)
class Audit:
    """What one result file supports.

    Attributes:
        file: Name of the file.
        kind: ``exp1`` or ``legacy``.
        statements: Findings in the order of reading; the first is the conclusion.
        numbers: What the statements rest on, JSON types; ``None`` is undefined, and a statement says why.
        claims: For each thing that the file states (``gain``, ``tax``, ``no_loss``, or the name of a merge), whether
            what it holds supports that.
    """

    file: str
    kind: str
    statements: tuple[Statement, ...]
    numbers: dict[str, Any]
    claims: dict[str, bool]

    @property
    def supported(self) -> bool:
        """Whether the file states something and everything that it states is supported."""
        return bool(self.claims) and all(self.claims.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as a JSON-serialisable dictionary; ``statements`` are texts, tables are in ``numbers``."""
        return {
            "file": self.file,
            "kind": self.kind,
            "supported": self.supported,
            "claims": self.claims,
            "statements": [f"{statement.heading}: {statement.text}" for statement in self.statements],
            "numbers": self.numbers,
        }


def as_text(audits: list[Audit]) -> str:
    """Audits as wrapped plain text, a section for each file."""
    parts = []
    for audit in audits:
        parts.append(f"{audit.file}\n{'=' * min(len(audit.file), WIDTH)}")
        for statement in audit.statements:
            block = f"{statement.heading}\n{textwrap.fill(statement.text, WIDTH, break_on_hyphens=False)}"
            parts.append(block if statement.table is None else f"{block}\n\n{_aligned(statement.table)}")
    return "\n\n".join(parts)


def as_markdown(audits: list[Audit]) -> str:
    """Audits as Markdown, a section for each file."""
    parts = []
    for audit in audits:
        parts.append(f"## `{audit.file}`")
        for statement in audit.statements:
            parts += [f"### {statement.heading}", statement.text.replace("|", "\\|")]
            if statement.table is not None:
                parts.append(markdown_table(statement.table))
    return "\n\n".join(parts)


def markdown_table(table: Table) -> str:
    """A table in Markdown; upright bars and tags in cells are escaped."""
    lines = [table.head, ("---",) * len(table.head), *table.rows]
    cells = [[cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _aligned(table: Table) -> str:
    """A table in columns of spaces."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    return "\n".join("  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def points(share: float, digits: int = 2) -> str:
    """A difference of shares in points, signed."""
    return f"{100 * share:+.{digits}f}"


def interval(ci: tuple[float, float], digits: int = 2) -> str:
    """An interval of a difference of shares in points."""
    return f"[{points(ci[0], digits)}, {points(ci[1], digits)}]"


def p_value(p: float) -> str:
    """A p-value with three decimals, without the leading zero."""
    if p < 0.001:
        return f"{p:.0e}"
    return f"{p:.3f}".removeprefix("0")


def percent(share: float) -> str:
    """A share in whole per cent."""
    return f"{100 * share:.0f} %"


def prompts(k: int) -> str:
    """A number of prompts in words up to twelve."""
    words = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    return f"{words[k] if k < len(words) else f'{k:,}'} prompt{'' if k == 1 else 's'}"
