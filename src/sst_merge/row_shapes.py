"""Shapes in which data sets hold a prompt and its answer, each as one row of ``prompt`` and ``answer``."""

import math
import reprlib
from typing import Any

from sst_merge.errors import DataError

Table = list[dict[str, Any]]
ANSWER_COLUMNS = ("answer", "response", "completion")
"""Columns that hold an answer by their name, the first that exists."""
ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of who speaks."""
UNREAD = {"system": "a system turn", "history": "earlier turns"}
"""Columns beside a prompt that belong to it, and that are not put to a model."""


def as_prompts(table: Table, where: str) -> Table:
    """Rows of a known shape with a ``prompt``, and an ``answer`` where they have one; other columns stay.

    Known are the chat format (``messages`` of ``role`` and ``content``), ShareGPT (``conversations`` of ``from`` and
    ``value``), TRL's conversational ``prompt`` and ``completion``, and Alpaca (``instruction``, ``input``, ``output``;
    a column named for answers goes before ``output``). A table of another shape is returned as it is.

    Args:
        table: All rows of one data set.
        where: Names it in messages.

    Raises:
        DataError: If a conversation is not one user turn and at most one assistant turn, or has what is not read.
    """
    for is_so, read in ((_is_chat, _chat), (_is_share_gpt, _share_gpt), (_is_trl, _trl), (_is_alpaca, _alpaca)):
        if table and all(map(is_so, table)):
            return [_checked(read, row, f"{where}: row {number}") for number, row in enumerate(table, start=1)]
    return table


def _checked(read: Any, row: dict[str, Any], where: str) -> dict[str, Any]:
    for column, what in UNREAD.items():
        if value := row.get(column):
            raise DataError(f"{where} has {what} in column '{column}' ({reprlib.repr(value)}), which is not read.")
    return read(row, where)


def _is_chat(row: dict[str, Any]) -> bool:
    return "messages" in row and "prompt" not in row


def _is_share_gpt(row: dict[str, Any]) -> bool:
    return "conversations" in row and "prompt" not in row


def _is_trl(row: dict[str, Any]) -> bool:
    return isinstance(row.get("prompt"), list)


def _is_alpaca(row: dict[str, Any]) -> bool:
    return {"instruction", "output"} <= row.keys() and "prompt" not in row


def _chat(row: dict[str, Any], where: str) -> dict[str, Any]:
    return _one_exchange(row, _turns(row["messages"], "messages", where), "messages", where)


def _share_gpt(row: dict[str, Any], where: str) -> dict[str, Any]:
    turns = _turns(row["conversations"], "conversations", where, ("from", "value"))
    said = [
        {"role": ROLES.get(str(turn.get("from")), turn.get("from")), "content": turn.get("value")} for turn in turns
    ]
    return _one_exchange(row, said, "conversations", where)


def _trl(row: dict[str, Any], where: str) -> dict[str, Any]:
    said = _turns(row.get("completion") or [], "completion", where)
    without = {column: value for column, value in row.items() if column != "completion"}
    return _one_exchange(without, [*_turns(row["prompt"], "prompt", where), *said], "prompt", where)


def _alpaca(row: dict[str, Any], where: str) -> dict[str, Any]:
    given = row.get("input")
    if isinstance(given, int | float) and not isinstance(given, bool):
        given = str(given) if math.isfinite(given) else None  # data frames write NaN for what is missing
    if given is not None and not isinstance(given, str):
        raise DataError(f"{where} has no text in column 'input' ({reprlib.repr(given)}).")
    instruction = row["instruction"]
    prompt = f"{instruction}\n\n{given}" if isinstance(instruction, str) and given and given.strip() else instruction
    answer = {} if any(column in row for column in ANSWER_COLUMNS) else {"answer": row["output"]}
    return {**row, "prompt": prompt, **answer}


def _one_exchange(row: dict[str, Any], messages: list[dict[str, Any]], column: str, where: str) -> dict[str, Any]:
    """A conversation as one prompt and one answer."""
    turns = [turn for turn in messages if turn.get("role") != "system"]
    roles = [turn.get("role") for turn in turns]
    if roles not in (["user"], ["user", "assistant"]):
        raise DataError(f"{where}: {column} must be one user turn and at most one assistant turn, got {roles}.")
    if any(str(turn.get("content") or "").strip() for turn in messages if turn.get("role") == "system"):
        raise DataError(f"{where}: {column} has a system turn, which this version cannot put to a model.")
    prompt, *answer = (turn.get("content") for turn in turns)
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: the user turn of {column} has no text as content ({prompt!r}).")
    return {**row, "prompt": prompt, **({"answer": answer[0]} if answer else {})}


def _turns(messages: Any, column: str, where: str, keys: tuple[str, str] = ("role", "content")) -> list[dict[str, Any]]:
    """The turns of a conversation.

    Raises:
        DataError: If it is no list of objects.
    """
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise DataError(
            f"{where}: {column} must be a list of turns with {' and '.join(keys)}, got {reprlib.repr(messages)}."
        )
    return messages
