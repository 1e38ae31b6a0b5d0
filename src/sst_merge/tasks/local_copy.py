"""Local copies of the data sets that lm-eval's tasks load from the hub.

MMLU is read in each of the shapes it is passed around in: the original CSV folders (``dev/anatomy_dev.csv``; six
columns without a header), a copy of the hub's repository (``anatomy/test-00000-of-00001.parquet``), and one table of
all subjects. Any other task reads one file per split (``test.jsonl``, ``train.parquet``), or one file, its test split.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sst_merge.data import read_file
from sst_merge.errors import DataError

MMLU = "cais/mmlu"
SPLIT_NAMES = {"test": "test", "val": "validation", "validation": "validation", "dev": "dev", "train": "train"}
LETTERS = "ABCD"
READABLE = (".jsonl", ".json", ".csv", ".parquet")


def dataset_of(copy: Path, config: Mapping[str, Any]) -> Any:
    """The splits of a local copy, as lm-eval's task expects them.

    Args:
        copy: File or folder.
        config: The task's configuration; ``dataset_path`` and ``dataset_name`` say what it reads.

    Returns:
        A ``datasets.DatasetDict``.

    Raises:
        DataError: If there is no such copy, or it lacks the subject, a column or the split that is evaluated.
    """
    import datasets

    if not copy.exists():
        raise DataError(f"no such file or folder: {copy}")
    is_mmlu = config.get("dataset_path") == MMLU
    splits = _mmlu(copy, str(config["dataset_name"])) if is_mmlu else _split_files(copy)
    wanted = {config.get(key) for key in ("test_split", "validation_split")} - {None}
    if is_mmlu:
        wanted.add("validation")  # some copies have no test questions; the report names the split
    if not wanted & splits.keys():
        raise DataError(f"{copy} has no split {' or '.join(sorted(map(str, wanted)))}; found {', '.join(splits)}.")
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})


def subjects(copy: Path) -> list[str]:
    """Subjects of a local copy of MMLU, in sorted order.

    Raises:
        DataError: If there is no such copy.
    """
    if not copy.exists():
        raise DataError(f"no such file or folder: {copy}")
    if copy.is_file():
        return sorted({str(row.get("subject")) for row in read_file(copy, "mmlu")})
    tables = [file for file in copy.rglob("*") if file.suffix in READABLE]
    named = {_csv_subject(file) for file in tables} | {file.parent.name for file in tables if file.parent != copy}
    return sorted(name for name in named if name and name not in {*SPLIT_NAMES, "all", "auxiliary_train"})


def _csv_subject(file: Path) -> str | None:
    """``anatomy`` of ``test/anatomy_test.csv``."""
    name, _, split = file.stem.rpartition("_")
    return name if split in SPLIT_NAMES and file.suffix == ".csv" else None


def _mmlu(copy: Path, subject: str) -> dict[str, list[dict[str, Any]]]:
    """Questions of one subject by split: ``question``, ``subject``, ``choices`` (four), ``answer`` (0 to 3)."""
    splits: dict[str, list[dict[str, Any]]] = defaultdict(list)
    if copy.is_file():
        for row in read_file(copy, "mmlu"):
            if str(row.get("subject")) == subject:
                split = str(row.get("split") or "test")
                splits[SPLIT_NAMES.get(split, split)].append(_question(row, subject, copy))
    else:
        for file in sorted(copy.rglob(f"{subject}_*.csv")):
            if _csv_subject(file) == subject:
                split = SPLIT_NAMES[file.stem.rpartition("_")[2]]
                splits[split] = [_question(row, subject, file) for row in _headless(file)]
        for file in sorted(copy.rglob(f"{subject}/*")):
            split = file.stem.partition("-")[0]
            if file.suffix in READABLE and split in SPLIT_NAMES:
                rows = [_question(row, subject, file) for row in read_file(file, "mmlu")]
                splits[SPLIT_NAMES[split]].extend(rows)
    if not splits:
        found = subjects(copy)
        raise DataError(
            f"{copy} has no questions on '{subject}'. Subjects found: {', '.join(found[:60]) or 'none'}.\n"
            "  Known shapes: test/SUBJECT_test.csv, SUBJECT/test-*.parquet, or one table with the columns question, "
            "subject, choices, answer."
        )
    return dict(splits)


def _headless(file: Path) -> list[dict[str, Any]]:
    """MMLU's own CSV: question, four choices, letter; no header."""
    rows = []
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for number, values in enumerate(csv.reader(lines), start=1):
            if len(values) != 6:
                raise DataError(f"{file}:{number}: {len(values)} values, expected question, four choices and a letter.")
            rows.append({"question": values[0], "choices": values[1:5], "answer": values[5]})
    return rows


def _question(row: Mapping[str, Any], subject: str, file: Path) -> dict[str, Any]:
    """One question in the hub's shape."""
    choices = row.get("choices")
    if choices is None and all(letter in row for letter in LETTERS):
        choices = [row[letter] for letter in LETTERS]
    if row.get("question") is None or choices is None or row.get("answer") is None:
        raise DataError(
            f"{file}: a question needs the columns question, choices (or A, B, C, D) and answer. "
            f"Columns found: {', '.join(map(str, row))}."
        )
    answer = str(row["answer"]).strip()
    number = int(answer) if answer.isdecimal() else LETTERS.find(answer.upper() or "-")
    if len(choices) != 4 or not 0 <= number < 4:
        raise DataError(f"{file}: answer {row['answer']!r} with {len(choices)} choices; expected A to D, or 0 to 3.")
    return {"question": str(row["question"]), "subject": subject, "choices": list(map(str, choices)), "answer": number}


def _split_files(copy: Path) -> dict[str, list[dict[str, Any]]]:
    """One file per split, or one file that is the test split."""
    if copy.is_file():
        return {"test": read_file(copy, "data")}
    splits = {}
    for file in sorted(copy.iterdir()):
        name = file.name.partition(".")[0].partition("-")[0]
        if file.suffix in READABLE and name in SPLIT_NAMES:
            splits.setdefault(SPLIT_NAMES[name], []).extend(read_file(file, "data"))
    if not splits:
        raise DataError(f"{copy} holds no file named after a split (test.jsonl, train.parquet, ...).")
    return splits
