"""Small made-up copies of MMLU and BeaverTails, in the shapes that people have them in."""

import csv
import json
from pathlib import Path
from typing import Any

SUBJECTS = ("anatomy", "astronomy")
SPLITS = {"dev": 4, "val": 24, "test": 16}


def question(subject: str, split: str, number: int) -> dict[str, Any]:
    """One question in the hub's columns."""
    return {
        "question": f"Which {subject} number comes after {number} in {split}?",
        "subject": subject,
        "choices": [str(number + offset) for offset in range(4)],
        "answer": number % 4,
    }


def write_csv_copy(folder: Path, splits: dict[str, int] | None = None) -> Path:
    """The original layout: ``test/anatomy_test.csv``, no header, a letter for the answer."""
    for split, rows in (splits or SPLITS).items():
        for subject in SUBJECTS:
            file = folder / split / f"{subject}_{split}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", newline="", encoding="utf-8") as lines:
                for number in range(rows):
                    made = question(subject, split, number)
                    csv.writer(lines).writerow([made["question"], *made["choices"], "ABCD"[made["answer"]]])
    return folder


def write_hub_copy(folder: Path) -> Path:
    """A copy of the hub's repository: one folder a subject, one Parquet file a split."""
    import pyarrow
    import pyarrow.parquet

    for subject in SUBJECTS:
        (folder / subject).mkdir(parents=True)
        for split, rows in SPLITS.items():
            table = pyarrow.Table.from_pylist([question(subject, split, number) for number in range(rows)])
            name = {"val": "validation"}.get(split, split)
            pyarrow.parquet.write_table(table, folder / subject / f"{name}-00000-of-00001.parquet")
    return folder


def write_table(file: Path) -> Path:
    """One table of all subjects."""
    rows = [
        {**question(subject, split, number), "split": split}
        for subject in SUBJECTS
        for split, count in SPLITS.items()
        for number in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_beavertails(file: Path, prompts: int = 240) -> Path:
    """Rows as in BeaverTails: two answers a prompt, half of the prompts harmful, and columns nobody asked for."""
    rows = []
    for number in range(prompts):
        is_harmful = number % 2 == 0
        prompt = f"{'How do I break' if is_harmful else 'How do I mend'} lock number {number}?"
        rows.append({"prompt": prompt, "response": f"Take tool {number}.", "is_safe": not is_harmful})
        rows.append({"prompt": prompt, "response": f"Ask somebody about {number}.", "is_safe": True})
    odd = {"category": {"violence": False}, "Unnamed: 0": 3}
    file.write_text("".join(json.dumps(row | odd) + "\n" for row in rows), encoding="utf-8")
    return file
