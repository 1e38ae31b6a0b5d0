"""Shapes in which data sets hold a prompt and its answer, each as one row of ``prompt`` and ``answer``."""

import reprlib
from typing import Any

from sst_merge.errors import DataError

Table = list[dict[str, Any]]
ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of who speaks."""


def as_prompts(table: Table, where: str) -> Table:
    """Rows of a known shape as prompts with answers; a table of another shape is returned as it is.

    Known are the chat format (``messages`` of ``role`` and ``content``), ShareGPT (``conversations`` of ``from`` and
    ``value``), TRL's conversational ``prompt`` and ``completion``, and Alpaca (``instruction``, ``input``, ``output``).

    Args:
        table: All rows of one data set.
        where: Names it in messages.

    Raises:
        DataError: If a conversation is not one user turn and at most one assistant turn.
    """
    for shape in (_chat, _share_gpt, _trl, _alpaca):
        if table and all(shape(row, "") is not None for row in table):
            found = [shape(row, f"{where}: row {number}") for number, row in enumerate(table, start=1)]
            return [row for row in found if row is not None]
    return table


def _chat(row: dict[str, Any], where: str) -> dict[str, Any] | None:
    if "messages" not in row or "prompt" in row:
        return None
    return _one_exchange(row, row["messages"], "messages", where) if where else row


def _share_gpt(row: dict[str, Any], where: str) -> dict[str, Any] | None:
    if "conversations" not in row or "prompt" in row:
        return None
    if not where:
        return row
    turns = _turns(row["conversations"], "conversations", where, ("from", "value"))
    named = [
        {"role": ROLES.get(str(turn.get("from")), turn.get("from")), "content": turn.get("value")} for turn in turns
    ]
    return _one_exchange(row, named, "conversations", where)


def _trl(row: dict[str, Any], where: str) -> dict[str, Any] | None:
    if not isinstance(row.get("prompt"), list):
        return None
    if not where:
        return row
    said = _turns(row.get("completion") or [], "completion", where, ("role", "content"))
    return _one_exchange(row, [*_turns(row["prompt"], "prompt", where, ("role", "content")), *said], "prompt", where)


def _alpaca(row: dict[str, Any], where: str) -> dict[str, Any] | None:
    if not {"instruction", "output"} <= row.keys() or "prompt" in row:
        return None
    parts = [row["instruction"], row.get("input")]
    text = "\n\n".join(part for part in parts if isinstance(part, str) and part.strip())
    return {**row, "prompt": text or row["instruction"], "answer": row["output"]} if where else row


def _one_exchange(row: dict[str, Any], messages: Any, column: str, where: str) -> dict[str, Any]:
    """A conversation as one prompt and one answer."""
    messages = _turns(messages, column, where, ("role", "content"))
    turns = [turn for turn in messages if turn.get("role") != "system"]
    roles = [turn.get("role") for turn in turns]
    if roles not in (["user"], ["user", "assistant"]):
        raise DataError(f"{where}: {column} must be one user turn and at most one assistant turn, got {roles}.")
    if any(str(turn.get("content") or "").strip() for turn in messages if turn.get("role") == "system"):
        raise DataError(f"{where}: {column} has a system turn, which this version cannot put to a model.")
    prompt, *answer = (turn.get("content") for turn in turns)
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: the user turn of {column} has no text as content ({prompt!r}).")
    return {"prompt": prompt, "cluster": row.get("cluster"), **({"answer": answer[0]} if answer else {})}


def _turns(messages: Any, column: str, where: str, keys: tuple[str, str]) -> list[dict[str, Any]]:
    """The turns of a conversation.

    Raises:
        DataError: If it is no list of objects.
    """
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise DataError(
            f"{where}: {column} must be a list of turns with {' and '.join(keys)}, got {reprlib.repr(messages)}."
        )
    return messages
