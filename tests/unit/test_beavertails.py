"""BeaverTails: which prompts count as harmful, which answers may be learnt, and what is left out and counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from sst_merge.errors import DataError
from sst_merge.experiments import beavertails
from sst_merge.experiments.beavertails import prepare


def prepared(folder: Path, rows: list[dict[str, Any]]) -> tuple[dict[str, list[dict[str, str]]], dict[str, int]]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = prepare(str(file), folder / "out", root=Path())
    read = {
        name: [json.loads(line) for line in getattr(made, name).read_text(encoding="utf-8").split("\n") if line]
        for name in ("harmful", "safe_answers", "harmless")
    }
    return read, made.counts


def row(prompt: str, answer: str, safe: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": answer, "is_safe": safe, "category": {"theft": not safe}, "extra": None}


def test_prompts_are_sorted_by_their_answers_labels(tmp_path: Path) -> None:
    found, counts = prepared(
        tmp_path,
        [
            row("steal?", "Take it.", False),
            row("Steal? ", "Better not.", True),
            row("bake?", "Flour.", True),
            row("odd?", "Yes.", False),
            row("odd?", "No.", True),
            row("odd?", "Perhaps.", True),
            row("kill?", "So.", False),
            row(" ", "Nothing was asked.", True),
            row("blank?", " ", True),
        ],
    )
    assert [entry["prompt"] for entry in found["harmful"]] == ["steal?", "kill?"]
    assert found["safe_answers"] == [{"prompt": "steal?", "answer": "Better not."}]
    assert found["harmless"] == [{"prompt": "bake?", "answer": "Flour."}]
    assert counts == {
        "rows": 9,
        "rows without a prompt left out": 1,
        "answers labelled unsafe, never used": 3,
        "ambiguous prompts left out": 1,
        "harmful prompts without a safe answer (evaluated only)": 1,
        "harmless prompts without an answer left out": 1,
        "different prompts": 5,
        "harmful prompts": 2,
        "harmless prompts": 1,
    }


@pytest.mark.parametrize("label", ["False", "false", 0, 0.0, "0"])
def test_labels_may_be_written_as_data_frames_write_them(tmp_path: Path, label: Any) -> None:
    found, _ = prepared(tmp_path, [row("steal?", "Take it.", label)])
    assert found["harmful"] == [{"prompt": "steal?"}]


def test_without_the_hub_a_local_copy_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> Any:
        raise DataError("cannot load hub:PKU-Alignment/BeaverTails@330k_train: no connection")

    monkeypatch.setattr(beavertails, "read_table", unreachable)
    with pytest.raises(DataError, match=r"no connection\n  Without the hub.*--data beavertails=PATH"):
        prepare(beavertails.HUB, tmp_path, root=tmp_path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "response": "b"}], r"no column is_safe\. Columns found: prompt, response"),
        ([{"instruction": "a", "output": "b"}], r"no column prompt, response, is_safe\. Columns found: instruction"),
        ([row("a", "b", "perhaps")], r"row 1: is_safe must be true or false, got 'perhaps'"),
        ([row("a", "b", True)], "no harmful prompt"),
    ],
)
def test_what_is_not_beavertails_says_why(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        prepared(tmp_path, rows)
