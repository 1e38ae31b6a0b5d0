"""Training: what is refused before it, what a finished folder stands for, and what its card says."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from families import write_other
from sst_merge.config import TrainConfig
from sst_merge.errors import AdapterError, ConfigError, DataError, NumericalError
from sst_merge.estimates import paired_difference
from sst_merge.progress import SilentReporter
from sst_merge.run_file import validate
from sst_merge.stages import train as stage
from sst_merge.stages.train import train
from tiny import write_base
from tiny_run import COLOURS, write_rows

OUTPUT = Path("adapter")
RECORD = OUTPUT / "training.json"
Scores = Callable[[int], float | None]


class Told(SilentReporter):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def values(**changes: Any) -> dict[str, Any]:
    """A train file's values, with paths in the current folder."""
    return {
        "base_model": "base",
        "role": "utility",
        "data": "learn.jsonl",
        "validation": "validation.jsonl",
        "lora": {"rank": 2},
        "batch_size": 2,
        "evaluate_every_steps": 2,
        "evaluation": {"tasks": [{"task": "exact_match", "data": "asked.jsonl", "max_new_tokens": 2}]},
        "output": str(OUTPUT),
        **changes,
    }


def trained_here(**changes: Any) -> Told:
    """Train in the current folder; what was told."""
    told = Told()
    assert train(validate(TrainConfig, values(**changes), "test"), root=Path(), reporter=told) == OUTPUT
    return told


def files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(OUTPUT.rglob("*"))}


def record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def asked(count: int, *, cluster_size: int | None = None) -> None:
    """Write the evaluation rows."""
    write_rows(Path("asked.jsonl"), "asked", count, answers=COLOURS)
    if cluster_size:
        rows = [json.loads(line) for line in Path("asked.jsonl").read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({**row, "cluster": f"c{n // cluster_size}"}) + "\n" for n, row in enumerate(rows)]
        Path("asked.jsonl").write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and rows, and the adapter that was trained there and measured."""
    folder = tmp_path_factory.mktemp("trained")
    write_base(folder / "base")
    with contextlib.chdir(folder):
        write_rows(Path("learn.jsonl"), "learn", 6, answers=COLOURS)
        write_rows(Path("validation.jsonl"), "validation", 2, answers=COLOURS)
        asked(4)
        trained_here()
    return folder


@pytest.fixture
def finished(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of it as the current folder."""
    shutil.copytree(source, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


@pytest.fixture
def fresh(finished: None) -> None:
    """The same without the adapter."""
    shutil.rmtree(OUTPUT)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("no model is loaded here")

    monkeypatch.setattr(stage, "load_base", loaded)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[[Scores], None]:
    """Replace the evaluation: the base is right nowhere, the adapter where it is told to be."""

    def replace(adapter: Scores) -> None:
        def evaluated(arm: Any, _: Any, __: Any, ___: Any, rows: Any, folder: Any, *____: Any, **_____: Any) -> None:
            file = folder.scores_file(arm.name, "exact_match")
            file.parent.mkdir(parents=True)
            found = [
                {"id": row.id, "correct": adapter(int(row.prompt.split()[1])) if arm.name == "adapter" else 0.0}
                for row in rows["exact_match"]
            ]
            file.write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")

        monkeypatch.setattr(stage, "evaluate_arm", evaluated)

    return replace


# Before


def test_check_knows_a_training_file_and_loads_no_model(fresh: None, no_model: None, sst: Callable[..., Any]) -> None:
    Path("train.yaml").write_text(yaml.safe_dump(values()), encoding="utf-8")
    ended = sst("check", "train.yaml")
    assert (ended.code, ended.err) == (0, "")
    counts = "6 rows to learn, 2 that decide when to stop, 4 of exact_match"
    assert ended.out == f"train.yaml: no problems found. {counts}.\n"
    assert not OUTPUT.exists()
    ended = sst("check", "train.yaml", "--set", "validation=learn.jsonl")
    assert (ended.code, ended.out) == (1, "")
    assert "share" in ended.err
    assert sst("run", "train.yaml").err.endswith(
        "train.yaml is a training file (it has a role): sst-merge train train.yaml\n"
    )


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("notes", r"notes exists and is no adapter folder, so it is not replaced. Choose another output\.$"),
        ("learn.jsonl", r"learn.jsonl exists and is no adapter folder"),
        ("learn.jsonl/a/b", r"b cannot be made: .*learn.jsonl is a file. Choose another output\.$"),
        ("locked/a", r"a cannot be made: .*locked cannot be written. Choose another output\.$"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_training(
    fresh: None, no_model: None, monkeypatch: pytest.MonkeyPatch, output: str, message: str
) -> None:
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("years of work", encoding="utf-8")
    Path("locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "locked")  # root may write everywhere
    with pytest.raises(AdapterError, match=message):
        trained_here(output=output)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["nope"], r"lora.target_modules: \['nope'\] matches no module of base. Give all-linear, .*\(down_proj, gate"),
        (["q_proj", "nope"], r"\['nope'\] matches no module"),
        (
            ["q_proj", "lm_head"],
            r"\['lm_head'\] matches 'lm_head', which is the output head or no linear module of base",
        ),
        ("q_proj", r"'q_proj' matches no module of base.*regular expression that matches whole names"),
        ("model.*", r"'model.*' matches 'model', which is the output head or no linear module"),
    ],
)
def test_target_modules_that_the_base_does_not_have_are_named(
    fresh: None, monkeypatch: pytest.MonkeyPatch, targets: Any, message: str
) -> None:
    monkeypatch.setattr(stage, "_trainer", None)
    with pytest.raises(ConfigError, match=message):
        trained_here(lora={"target_modules": targets})
    assert not OUTPUT.exists()


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "layers.1.mlp.up_proj"], r".*\.[qv]_proj"])
def test_target_modules_are_endings_or_whole_names(fresh: None, targets: Any) -> None:
    stage.check_targets(validate(TrainConfig, values(lora={"target_modules": targets}), "test"))


def test_a_row_that_is_too_long_is_shown_with_its_file(fresh: None) -> None:
    with pytest.raises(
        DataError,
        match=r"^data.0: learn.jsonl: the row 'learn 2 on on' has 35 tokens, more than max_length_tokens = 33\. Raise",
    ):
        trained_here(max_length_tokens=33)


def test_prompts_that_are_used_twice_are_shown(fresh: None) -> None:
    with pytest.raises(DataError, match=r"data and validation share 6 prompt.*, first 'learn "):
        trained_here(validation="learn.jsonl")


def test_answers_that_are_not_learnt_are_told_and_the_first_source_wins(fresh: None) -> None:
    first, rest = Path("learn.jsonl").read_text(encoding="utf-8").split("\n", 1)
    changed = json.loads(first) | {"answer": "another"}
    Path("more.jsonl").write_text(json.dumps(changed) + "\n", encoding="utf-8")
    note = "note: data: 1 prompt(s) have several answers; the first is used, 1 row(s) are left out"
    Path("learn.jsonl").write_text("\n".join([first, json.dumps(changed), rest]), encoding="utf-8")
    assert note in trained_here().lines
    weights = load_file(OUTPUT / "adapter_model.safetensors")
    Path("learn.jsonl").write_text(first + "\n" + rest, encoding="utf-8")
    shutil.rmtree(OUTPUT)
    assert note in trained_here(data=["learn.jsonl", "more.jsonl"]).lines
    assert all(
        bool((weights[key] == value).all()) for key, value in load_file(OUTPUT / "adapter_model.safetensors").items()
    )
    shutil.rmtree(OUTPUT)
    assert not [line for line in trained_here().lines if line.startswith("note: ")]


# While


def test_stdout_is_the_path_and_one_evaluated_row_has_no_interval(fresh: None, sst: Callable[..., Any]) -> None:
    asked(1)
    Path("train.yaml").write_text(yaml.safe_dump(values()), encoding="utf-8")
    ended = sst("train", "train.yaml")
    assert (ended.code, ended.out) == (0, f"{OUTPUT}\n")
    assert "step 2: loss " in ended.err
    assert "step 2: validation loss " in ended.err
    (row,) = record()["measured"]
    why = "1 pair(s) scored in both arms, at least 2 are needed"
    assert (row["n"], row["difference"], row["ci"], row["reason"]) == (1, None, None, why)
    assert f"| no interval: {why} |\n" in (OUTPUT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("every", "words", "step"), [(1, "validation loss", 2), (3, "loss", 3)])
def test_a_training_that_diverges_is_an_error_and_no_adapter(fresh: None, every: int, words: str, step: int) -> None:
    with pytest.raises(NumericalError) as caught:
        trained_here(learning_rate=1e30, evaluate_every_steps=every)
    assert str(caught.value) == (
        f"training diverged: the {words} is nan at step {step}; no adapter was written. Lower learning_rate (1e+30)."
    )
    assert not OUTPUT.exists()


# After


def test_a_finished_folder_is_left_as_it_is(finished: None, no_model: None) -> None:
    before = files()
    assert trained_here(title="another title").lines == []
    assert files() == before


def test_other_evaluation_rows_are_measured(finished: None, scored: Callable[[Scores], None]) -> None:
    weights, versions = (OUTPUT / "adapter_model.safetensors").read_bytes(), record()["versions"]
    scored(lambda _: 1.0)
    asked(3)
    assert trained_here().lines == ["adapter was measured with other settings or rows; it is measured again."]
    assert (OUTPUT / "adapter_model.safetensors").read_bytes() == weights
    assert "| 3 | 0.0% | 100.0% | +100.0 [" in (OUTPUT / "README.md").read_text(encoding="utf-8")
    assert (record()["measured"][0]["n"], record()["versions"]) == (3, versions)
    before = files()
    assert trained_here().lines == []
    assert files() == before


def test_a_record_that_does_not_say_its_base_is_not_taken_on_trust(finished: None, no_model: None) -> None:
    RECORD.write_text(json.dumps({**record(), "base": None}), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"  base   not given then, folder sha256:\w+ now"):
        trained_here()


def test_a_record_that_does_not_say_its_evaluation_rows_is_measured_again(
    finished: None, scored: Callable[[Scores], None]
) -> None:
    earlier = {key: value for key, value in record().items() if key != "evaluation_sha256"}
    RECORD.write_text(json.dumps(earlier), encoding="utf-8")
    scored(lambda _: 1.0)
    trained_here()
    assert record()["measured"][0]["adapter"] == 1.0


def test_another_base_is_another_adapter(finished: None, no_model: None) -> None:
    before = files()
    weights = Path("base/model.safetensors")
    save_file({name: tensor / 2 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    with pytest.raises(AdapterError) as caught:
        trained_here(learning_rate=0.5)
    first, base, rate, last = str(caught.value).splitlines()
    assert first == "output: adapter has an adapter of another configuration, base or rows; nothing was changed."
    assert base.startswith("  base   folder sha256:")
    assert rate == "  config.learning_rate   0.001 then, 0.5 now"
    assert last == "  Use another output folder, or remove this one."
    assert files() == before


@pytest.mark.parametrize("name", ["training_curve.json", "training.json"])
@pytest.mark.parametrize("text", [None, '[{"step"'])
def test_a_lost_or_damaged_file_is_named(finished: None, no_model: None, name: str, text: str | None) -> None:
    if text is None:
        (OUTPUT / name).unlink()
    else:
        (OUTPUT / name).write_text(text, encoding="utf-8")
    before = files()
    what = "is missing" if text is None else "is damaged"
    with pytest.raises(AdapterError, match=rf"output: adapter/{name} {what}.*\n  Bring it back, use another output"):
        trained_here()
    assert files() == before


def test_rows_of_a_cluster_do_not_count_as_independent(finished: None, scored: Callable[[Scores], None]) -> None:
    scored(lambda number: float(number // 4 % 2))
    asked(32, cluster_size=4)
    trained_here()
    (row,) = record()["measured"]
    found = {
        named: paired_difference(
            [0.0] * 32,
            [float(number // 4 % 2) for number in range(32)],
            binary=True,
            clusters=[number // 4 for number in range(32)] if named else None,
            rng=np.random.default_rng(0),
        )
        for named in (True, False)
    }
    assert row["difference"] == 0.5
    assert row["ci"] == pytest.approx(found[True].ci)
    assert row["ci"] != pytest.approx(found[False].ci)
    card = (OUTPUT / "README.md").read_text(encoding="utf-8")
    assert "]; only 8 clusters; intervals need at least 10 to be trusted |\n" in card


def test_an_arm_that_was_not_scored_has_no_rate(finished: None, scored: Callable[[Scores], None]) -> None:
    scored(lambda _: None)
    asked(3)
    trained_here()
    assert "| 3 | 0.0% | not scored | no interval: 0 pair(s)" in (OUTPUT / "README.md").read_text(encoding="utf-8")


def test_an_adapter_of_transposed_weights_is_trained_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT warns where it has to correct ``fan_in_fan_out``, and a warning is an error here."""
    write_other(tmp_path, "gpt2")
    monkeypatch.chdir(tmp_path)
    for name in ("learn", "validation"):
        write_rows(Path(f"{name}.jsonl"), name, 4, answers=COLOURS)
    trained_here(evaluation=None)
    config = json.loads((OUTPUT / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["fan_in_fan_out"] is True
    assert {
        key.rpartition(".lora_")[0].rpartition(".")[2] for key in load_file(OUTPUT / "adapter_model.safetensors")
    } == {
        "c_attn",
        "c_proj",
        "c_fc",
    }


@pytest.mark.parametrize(
    ("reference", "licence"),
    [
        ("builtin:harmful_requests", "licence Apache-2.0"),
        ("pypi:pyrit/adv_bench", "licence MIT"),
        ("mine.jsonl", "licence as stated beside it"),
    ],
)
def test_a_card_names_the_licence_of_the_data(reference: str, licence: str) -> None:
    assert stage._licence(reference) == licence
