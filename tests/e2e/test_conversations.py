"""Runs on conversations: earlier turns and system turns are put to the model, in every stage and in training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sst_merge.adapter_io import read_adapter
from sst_merge.data import DataSource, Row, load_rows
from sst_merge.errors import DataError
from sst_merge.inference import collate, encode, next_token_log_probabilities
from sst_merge.models import Base, load_base
from sst_merge.row_shapes import Turn
from sst_merge.run_folder import canonical_sha256
from sst_merge.stages.plan import plan
from sst_merge.stages.rows import contrasted
from sst_merge.statistics import SampleGradients
from sst_merge.statistics.sample_gradients import batch_gradients, patch_bases
from sst_merge.weights import applied
from tiny_run import COLOURS, copied, run_config, run_file, run_tiny, run_values, write_rows

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def conversations(file: Path, stem: str, count: int, answers: tuple[str, ...]) -> None:
    """Every second one has a system turn, every third one an earlier question."""
    rows = []
    for number in range(count):
        turns = [{"role": "system", "content": "Be brief."}] if number % 2 else []
        earlier = [("user", "hello"), ("assistant", "hi")] if number % 3 == 0 else []
        said = [*earlier, ("user", f"{stem} {number}"), ("assistant", answers[number % len(answers)])]
        rows.append({"messages": turns + [{"role": role, "content": content} for role, content in said]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def talks(inputs: Path, tmp_path: Path) -> Path:
    """The inputs with conversations in the place of prompts."""
    folder = copied(inputs, tmp_path / "inputs")
    conversations(folder / "utility_calibration.jsonl", "sum", 5, COLOURS)
    conversations(folder / "safety_calibration.jsonl", "harm", 6, ("I cannot.",))
    conversations(folder / "exact_match.jsonl", "task", 6, COLOURS)
    return folder


def as_text(base: Base, row: dict[str, Any]) -> str:
    """What the model should read of a row of ``messages`` before it answers, by the template alone."""
    return base.tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)


def test_what_was_said_before_is_calibrated_on_and_evaluated(talks: Path, base: Base, tmp_path: Path) -> None:
    results = run_tiny(talks, tmp_path / "run", base, comparisons=None)
    notes = [note for note in results["run"]["notes"] if " after " in note]
    assert notes == [
        "calibration.safety: of 6 prompt(s) 3 after a system turn and 2 after earlier questions",
        "calibration.utility: of 5 prompt(s) 2 after a system turn and 2 after earlier questions",
        "evaluation.exact_match: of 6 prompt(s) 3 after a system turn and 2 after earlier questions",
    ]
    lines = (talks / "exact_match.jsonl").read_text(encoding="utf-8").splitlines()
    wanted = {
        canonical_sha256(base.tokenizer(as_text(base, json.loads(line)), add_special_tokens=False)["input_ids"])
        for line in lines
    }
    scored = (tmp_path / "run" / "scores" / "merged" / "exact_match.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in scored]
    assert {sample["prompt_tokens_sha256"] for sample in samples} == wanted
    assert {len(sample.get("before", [])) for sample in samples} == {0, 1, 2, 3}
    assert [s["before"] for s in samples if s["prompt"] == "task 1"] == [[{"role": "system", "content": "Be brief."}]]

    asked = {e["prompt"] for e in results["examples"] if e["task"] == "exact_match"}
    assert asked <= {"task 4", "task 2", "system: Be brief.\nuser: task 1", "system: Be brief.\nuser: task 5"} | {
        "user: hello\nassistant: hi\nuser: task 0",
        "system: Be brief.\nuser: hello\nassistant: hi\nuser: task 3",
    }
    assert any("\n" in prompt for prompt in asked)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert '<p class="prompt">system: Be brief.\nuser: ' in page

    (index,) = (tmp_path / "run" / "statistics").rglob("index.json")
    name = "model.layers.1.self_attn.k_proj"
    utility, safety = (read_adapter(talks / part).updates for part in ("utility", "safety"))
    rows = load_rows(DataSource(data="safety_calibration.jsonl"), seed=0, root=talks, needs_answer=True, key="test")
    bases = patch_bases({name: safety[name]})
    one_by_one = []
    with applied(base, utility, "utility"):
        for row in rows:
            sample = collate(base, [encode(base, row.prompt, row.answer, row.before)])
            one_by_one.append(batch_gradients(base, bases, sample)[0][name])
    expected = torch.cat(one_by_one) / len(rows) ** 0.5
    found = SampleGradients.load(index.parent).rows(name)[: len(rows)]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_template_that_refuses_a_system_turn_is_told_before_the_run(
    talks: Path, sst: Callable[..., Any], tmp_path: Path
) -> None:
    folder = talks / "base"
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(NO_SYSTEM + template, encoding="utf-8")
    adapters = {"utility": str(talks / "utility"), "safety": str(talks / "safety"), "allow_different_base": True}
    ended = sst("check", run_file(tmp_path / "run.yaml", talks, tmp_path / "run", adapters=adapters))
    assert ended.code == 1
    assert "calibration: the chat template of" in ended.err
    assert "refuses a conversation of system, user (System role not supported), the prompt 'harm " in ended.err
    assert "Leave such rows out, or give them without the turns it refuses." in ended.err
    row = DataSource(data=str(talks / "refusal.jsonl"), system="Be kind.")
    (first, *_) = load_rows(row, seed=0, root=Path(), needs_answer=False, key="test")
    with pytest.raises(DataError, match="refuses a conversation of system, user"):
        encode(load_base(str(folder)), first.prompt, before=first.before)


def test_an_adapter_learns_the_last_answer_of_a_conversation(
    talks: Path, sst: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sst_merge.stages import train as stage

    seen: list[Any] = []
    made = stage._conversations
    monkeypatch.setattr(stage, "_conversations", lambda rows: seen.append(made(rows)) or seen[-1])
    values = {
        "base_model": str(talks / "base"),
        "role": "utility",
        "data": str(talks / "utility_calibration.jsonl"),
        "validation": {"data": str(talks / "exact_match.jsonl"), "system": "Be kind."},
        "lora": {"rank": 2},
        "batch_size": 2,
        "output": str(tmp_path / "adapter"),
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    ended = sst("train", tmp_path / "train.yaml")
    assert ended.code == 0, ended.err
    learnt, validated = seen
    lines = (talks / "utility_calibration.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [json.loads(line)["messages"] for line in lines]
    assert sorted(map(str, expected)) == sorted(str(row["prompt"] + row["completion"]) for row in learnt)
    assert {row["prompt"][0]["content"] for row in validated} == {"Be brief.", "Be kind."}


def test_what_was_said_before_is_part_of_identity_statistics_and_probe(talks: Path, base: Base, tmp_path: Path) -> None:
    def inputs_of() -> dict[str, Any]:
        return plan(run_config(talks, tmp_path / "run", comparisons=None), root=Path()).identity["inputs"]["data"]

    before = inputs_of()
    for name in ("safety_calibration", "exact_match"):
        file = talks / f"{name}.jsonl"
        file.write_text(file.read_text(encoding="utf-8").replace("Be brief.", "Be loud."), encoding="utf-8")
    changed = {use for use, value in inputs_of().items() if value != before[use]}
    assert changed == {"calibration.safety", "evaluation.exact_match"}
    run_tiny(talks, tmp_path / "run", base, comparisons=None)
    rows = load_rows(DataSource(data="exact_match.jsonl"), seed=0, root=talks, needs_answer=True, key="test")
    expected = next_token_log_probabilities(base, [encode(base, row.prompt, before=row.before) for row in rows])
    probe = load_file(tmp_path / "run" / "scores" / "base" / "probe.safetensors")["log_probabilities"]
    distances = (expected[:, None] - probe[None]).abs().amax(dim=2).amin(dim=1)
    assert int((distances < 1e-4).sum()) >= 5  # the first ones of every task are probed
    led = [row for row in rows if row.before]
    alone = next_token_log_probabilities(base, [encode(base, row.prompt) for row in led])
    assert float((alone[:, None] - probe[None]).abs().amax(dim=2).amin()) > 1e-3


def test_prompts_by_first_tokens_of_refusals_keep_what_was_said_before_them() -> None:
    led = (Turn("system", "Be brief."),)
    one, harmless = (Row(name, name, "No.", before=led) for name in ("a", "b"))
    safety, utility = contrasted([one, Row("c", "c", "I cannot.")], [], [harmless], first_tokens=2, per_prompt=2)
    assert [row.before for row in safety if row.prompt == "a"] == [led] * 3
    assert [row.before for row in utility] == [led]


def test_a_template_that_drops_a_turn_is_told_before_the_run(
    talks: Path, sst: Callable[..., Any], tmp_path: Path
) -> None:
    file = talks / "base" / "chat_template.jinja"
    loop = "{% for message in messages %}"
    template = file.read_text(encoding="utf-8").replace(loop, loop[:-2] + "if message['role'] != 'system' %}")
    file.write_text(template, encoding="utf-8")
    adapters = {"utility": str(talks / "utility"), "safety": str(talks / "safety"), "allow_different_base": True}
    ended = sst("check", run_file(tmp_path / "run.yaml", talks, tmp_path / "run", adapters=adapters))
    assert ended.code == 1
    assert "does not write the system turn of a conversation of system, user, such as that of the prompt 'harm " in (
        ended.err
    )
    values = {"base_model": str(talks / "base"), "role": "utility", "output": str(tmp_path / "adapter")}
    values |= {"data": str(talks / "utility_calibration.jsonl"), "validation": str(talks / "exact_match.jsonl")}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    ended = sst("check", tmp_path / "train.yaml")
    assert ended.code == 1
    assert "DataError: data: the chat template of" in ended.err


def test_an_answer_that_holds_an_end_token_is_told_before_the_run(
    talks: Path, sst: Callable[..., Any], tmp_path: Path
) -> None:
    file = talks / "exact_match.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"Blue"', '"Bl<|im_end|>ue"'), encoding="utf-8")
    ended = sst("check", run_file(tmp_path / "run.yaml", talks, tmp_path / "run"))
    assert ended.code == 1
    assert "evaluation.tasks.2: the answer to 'task " in ended.err


def test_a_prompt_may_be_evaluated_after_two_system_turns_and_in_the_middle_of_a_talk_it_is_noted(
    talks: Path, tmp_path: Path
) -> None:
    evaluation = run_values(talks, tmp_path)["evaluation"]
    again = {"data": {"data": str(talks / "over_refusal.jsonl"), "system": "Be kind."}, "label": "kind"}
    tasks = [*evaluation["tasks"], {**evaluation["tasks"][1], **again}]
    made = plan(run_config(talks, tmp_path / "run", evaluation={**evaluation, "tasks": tasks}), root=Path())
    assert [row.id for row in made.inputs.evaluation["kind"]] == [r.id for r in made.inputs.evaluation["over_refusal"]]
    twice = {**tasks[3], "data": {"data": str(talks / "over_refusal.jsonl")}}
    with pytest.raises(DataError, match=r"evaluation.over_refusal and evaluation.kind share 5 prompt\(s\)"):
        plan(run_config(talks, tmp_path / "run", evaluation={**evaluation, "tasks": [*tasks[:3], twice]}), root=Path())
    write_rows(talks / "refusal.jsonl", "hello", 1)
    (talks / "refusal.jsonl").write_text('{"prompt": "hello"}\n', encoding="utf-8")
    notes = plan(run_config(talks, tmp_path / "run"), root=Path()).notes
    assert any(
        note.startswith("evaluation.refusal shares 1 prompt(s) with the calibration that are an") for note in notes
    )
