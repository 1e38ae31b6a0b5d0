"""BeaverTails: which of its prompts are harmful, and which of its answers may be learnt.

The data set (Ji et al. 2023, arXiv:2307.04657; hub ``PKU-Alignment/BeaverTails``) has several answers to each prompt,
and ``is_safe`` judges prompt and answer together. Many prompts are harmless and many answers harmful, so:

* a prompt is *harmful* if at least half of its answers were labelled unsafe, *harmless* if none was; what lies between
  is left out;
* an answer that was labelled unsafe is never an answer of ours.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sst_merge.atomic import replace_file
from sst_merge.data import content_id, read_table
from sst_merge.errors import DataError

HUB = "hub:PKU-Alignment/BeaverTails@330k_train"
NEEDED = ("prompt", "response", "is_safe")
TRUE, FALSE = {"true", "1", "yes"}, {"false", "0", "no"}


@dataclass(frozen=True)
class Prepared:
    """Files made from a copy of BeaverTails, and what was left out."""

    harmful: Path
    """Harmful prompts, each once."""
    safe_answers: Path
    """Harmful prompts with their first answer that was labelled safe."""
    harmless: Path
    """Harmless prompts with their first answer."""
    counts: dict[str, int]
    """Rows and prompts read, used and left out, by reason."""

    def told(self) -> str:
        """The counts in a sentence."""
        return "BeaverTails: " + ", ".join(f"{number} {what}" for what, number in self.counts.items()) + "."


def prepare(reference: str, folder: Path, *, root: Path) -> Prepared:
    """Read a copy of BeaverTails and write what an experiment needs.

    Args:
        reference: A file, or ``hub:<id>``; see :func:`sst_merge.data.read_table`.
        folder: Where the files go; they depend on the copy alone.
        root: Folder that relative paths start from.

    Raises:
        DataError: If a column is missing (the message lists those found), a label is neither true nor false, or there
            is no harmful prompt.
    """
    try:
        table = read_table(reference, root, "data.beavertails")
    except DataError as error:
        if reference != HUB:
            raise
        raise DataError(f"{error}\n  Without the hub, give a local copy: --data beavertails=PATH") from error
    columns = sorted({str(column) for row in table for column in row})
    if missing := [column for column in NEEDED if column not in columns]:
        raise DataError(
            f"data.beavertails: {reference} has no column {', '.join(missing)}. "
            f"Columns found: {', '.join(columns) or 'none'}.\n"
            "  BeaverTails has prompt, response, category and is_safe. For harmful prompts without labelled answers, "
            "give --data harmful=PATH."
        )
    counts: Counter[str] = Counter({"rows": len(table)})
    prompts: dict[str, list[tuple[str, str, bool]]] = {}
    for number, row in enumerate(table, start=1):
        prompt, answer = (str(row.get(column) or "").strip() for column in ("prompt", "response"))
        if not prompt:
            counts["rows without a prompt left out"] += 1
            continue
        safe = _label(row.get("is_safe"), f"data.beavertails: {reference}: row {number}")
        prompts.setdefault(content_id(prompt), []).append((prompt, answer, safe))
    return _written(prompts, counts, folder, reference)


def _written(
    prompts: dict[str, list[tuple[str, str, bool]]], counts: Counter[str], folder: Path, reference: str
) -> Prepared:
    files: dict[str, list[dict[str, Any]]] = {"harmful": [], "safe_answers": [], "harmless": []}
    for entries in prompts.values():
        unsafe = sum(not safe for _, _, safe in entries)
        answer = next((answer for _, answer, safe in entries if safe and answer), None)
        counts["answers labelled unsafe, never used"] += unsafe
        prompt = entries[0][0]
        if unsafe == 0:
            if answer:
                files["harmless"].append({"prompt": prompt, "answer": answer})
            else:
                counts["harmless prompts without an answer left out"] += 1
        elif 2 * unsafe < len(entries):
            counts["ambiguous prompts left out"] += 1
        else:
            files["harmful"].append({"prompt": prompt})
            if answer:
                files["safe_answers"].append({"prompt": prompt, "answer": answer})
            else:
                counts["harmful prompts without a safe answer (evaluated only)"] += 1
    if not files["harmful"]:
        raise DataError(f"data.beavertails: {reference} has no harmful prompt: no row has is_safe = false.")
    counts["different prompts"] = len(prompts)
    counts["harmful prompts"] = len(files["harmful"])
    counts["harmless prompts"] = len(files["harmless"])
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        replace_file(folder / f"{name}.jsonl", text)
    made = {name: folder / f"{name}.jsonl" for name in files}
    return Prepared(**made, counts=dict(counts))


def _label(value: Any, where: str) -> bool:
    """A label as data frames, JSON and CSV write it."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower().removesuffix(".0")
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise DataError(f"{where}: is_safe must be true or false, got {value!r}.")
