"""Shapes in which data sets hold a conversation and its answer, each as one row of ``prompt`` and ``answer``."""

import math
import reprlib
from typing import Any, NamedTuple

from sst_merge.errors import DataError

Table = list[dict[str, Any]]
ANSWER_COLUMNS = ("answer", "response", "completion")
"""Columns that hold an answer by their name, the first that exists."""
ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of who speaks."""


class Turn(NamedTuple):
    """What somebody said in a conversation before the prompt."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


Turns = tuple[Turn, ...]
"""First an optional system turn, then user and assistant in turn."""


def as_prompts(table: Table, where: str) -> tuple[Table, list[Turns] | None]:
    """Rows of a known shape with a ``prompt``, and an ``answer`` where they have one; other columns stay.

    Known are the chat format (``messages`` of ``role`` and ``content``), ShareGPT (``conversations`` of ``from`` and
    ``value``), TRL's conversational ``prompt`` and ``completion``, and Alpaca (``instruction``, ``input``, ``output``;
    a column named for answers goes before ``output``). The prompt is the last user turn, the answer what follows it.
    A table of another shape is returned as it is.

    Args:
        table: All rows of one data set.
        where: Names it in messages.

    Returns:
        The rows, and of each the turns of its conversation before the prompt; ``None`` for a table of another shape.

    Raises:
        DataError: If user and assistant do not take turns, or a turn has no text.
    """
    for is_so, read in ((_is_chat, _chat), (_is_share_gpt, _share_gpt), (_is_trl, _trl), (_is_alpaca, _alpaca)):
        if table and all(map(is_so, table)):
            rows = [read(row, f"{where}: row {number}") for number, row in enumerate(table, start=1)]
            return [row for row, _ in rows], [before for _, before in rows]
    return table, None


def turns_before(said: Turns | None, row: dict[str, Any], system: str | None, where: str) -> Turns:
    """All turns before a prompt.

    Args:
        said: Those of its conversation; ``None`` in a table of no known shape, whose columns may be something else.
        row: Whose columns ``system``, a text, and ``history``, pairs of a prompt and an answer, are read.
        system: Content of a system turn where neither conversation nor column has one.
        where: Names the row in messages.

    Raises:
        DataError: If conversation and columns both have such turns, or a column holds something else.
    """
    if said is None:
        said, row = (), {key: value for key, value in row.items() if _is_turns(key, value)}
    own, given = said[:1] if said and said[0].role == "system" else (), row.get("system")
    if own and not _is_blank(given):
        raise DataError(f"{where} has two system turns, one of them in column 'system' ({reprlib.repr(given)}).")
    if not _is_blank(given):
        own = (_turn("system", given, "column 'system'", where),)
    elif not own and system is not None:
        own = (Turn("system", system),)
    talk, earlier = tuple(turn for turn in said if turn.role != "system"), _history(row.get("history"), where)
    if talk and earlier:
        raise DataError(f"{where} has earlier turns in column 'history' beside those of its conversation.")
    return (*own, *earlier, *talk)


def _is_turns(column: str, value: Any) -> bool:
    """Whether a column of a table of no known shape holds a system turn or earlier turns, and nothing else."""
    is_pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    is_said = isinstance(value, str) and not _is_blank(value)
    return (column == "system" and is_said) or (column == "history" and is_pairs)


def as_answer(value: Any) -> Any:
    """An answer that stands as one assistant turn, as TRL's preference data have it (``chosen``), is its text."""
    if (
        isinstance(value, list)
        and len(value) == 1
        and isinstance(value[0], dict)
        and value[0].get("role") == "assistant"
    ):
        return value[0].get("content")
    return value


def _is_blank(value: Any) -> bool:
    """Nothing, white space, or NaN, which data frames write for what is missing."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value  # noqa: PLR0124


def as_text(value: Any) -> str | None:
    """The value where it is text that UTF-8 can hold (no half of a surrogate pair) and not blank."""
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value


def _turn(role: Any, content: Any, column: str, where: str) -> Turn:
    if as_text(content) is None:
        raise DataError(f"{where}: the {role} turn of {column} has no text as content ({content!r}).")
    return Turn(role, content)


def _is_chat(row: dict[str, Any]) -> bool:
    return "messages" in row and "prompt" not in row


def _is_share_gpt(row: dict[str, Any]) -> bool:
    return "conversations" in row and "prompt" not in row


def _is_trl(row: dict[str, Any]) -> bool:
    return isinstance(row.get("prompt"), list)


def _is_alpaca(row: dict[str, Any]) -> bool:
    return {"instruction", "output"} <= row.keys() and "prompt" not in row


def _chat(row: dict[str, Any], where: str) -> tuple[dict[str, Any], Turns]:
    return _conversation(row, _turns(row["messages"], "messages", where), "messages", where)


def _share_gpt(row: dict[str, Any], where: str) -> tuple[dict[str, Any], Turns]:
    turns = _turns(row["conversations"], "conversations", where, ("from", "value"))
    said = [
        {"role": ROLES.get(str(turn.get("from")), turn.get("from")), "content": turn.get("value")} for turn in turns
    ]
    return _conversation(row, said, "conversations", where)


def _trl(row: dict[str, Any], where: str) -> tuple[dict[str, Any], Turns]:
    said = _turns(row.get("completion") or [], "completion", where)
    without = {column: value for column, value in row.items() if column != "completion"}
    return _conversation(without, [*_turns(row["prompt"], "prompt", where), *said], "prompt", where)


def _alpaca(row: dict[str, Any], where: str) -> tuple[dict[str, Any], Turns]:
    given = row.get("input")
    if isinstance(given, int | float) and not isinstance(given, bool):
        given = str(given) if math.isfinite(given) else None  # data frames write NaN for what is missing
    if given is not None and not isinstance(given, str):
        raise DataError(f"{where} has no text in column 'input' ({reprlib.repr(given)}).")
    instruction = row["instruction"]
    prompt = f"{instruction}\n\n{given}" if isinstance(instruction, str) and given and given.strip() else instruction
    answer = {} if any(column in row for column in ANSWER_COLUMNS) else {"answer": row["output"]}
    return {**row, "prompt": prompt, **answer}, ()


def _history(pairs: Any, where: str) -> Turns:
    """Earlier turns as LLaMA-Factory's files have them."""
    if pairs == [] or _is_blank(pairs):
        return ()
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError(
            f"{where}: column 'history' must be a list of pairs of a prompt and an answer, got {reprlib.repr(pairs)}. "
            "Rename it if it is something else."
        )
    said = [zip(("user", "assistant"), pair, strict=True) for pair in pairs]
    return tuple(_turn(role, content, "column 'history'", where) for pair in said for role, content in pair)


def _conversation(
    row: dict[str, Any], messages: list[dict[str, Any]], column: str, where: str
) -> tuple[dict[str, Any], Turns]:
    """A conversation as its last prompt, the answer to it if there is one, and the turns before."""
    roles = [turn.get("role") for turn in messages]
    is_led = roles[:1] == ["system"]
    said = messages[is_led:]
    if not said or roles[is_led:] != [("user", "assistant")[number % 2] for number in range(len(said))]:
        raise DataError(
            f"{where}: {column} must be user and assistant in turn, the user first or after a system turn, got {roles}."
        )
    answer = {"answer": said[-1].get("content")} if len(said) % 2 == 0 else {}
    asked = messages[: len(messages) - len(answer)]
    turns = [turn for turn in asked if turn.get("role") != "system" or not _is_blank(turn.get("content"))]
    *before, last = [_turn(turn["role"], turn.get("content"), column, where) for turn in turns]
    return {**row, "prompt": last.content, **answer}, tuple(before)


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
