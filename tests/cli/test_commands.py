"""Every command: its exit code, what goes to stdout and to stderr, and which files it leaves."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sst_merge import __version__, cli
from sst_merge.adapter_io import read_adapter
from sst_merge.cli import listings, runs
from sst_merge.errors import ConfigError
from sst_merge.methods import METHODS
from sst_merge.methods.sst import Sst
from sst_merge.models import Base
from sst_merge.stages import run as run_stage
from sst_merge.tasks import TASKS
from tiny_run import run_file

COMMANDS = ("demo", "run", "check", "plan", "calibrate", "merge", "evaluate", "report", "train")
COMMANDS += ("methods", "tasks", "data", "models", "experiment", "audit", "compare")
Command = Callable[..., Any]


def copy_of(finished: Path, folder: Path, inputs: Path) -> Path:
    """A finished run that a test may change; its run file."""
    shutil.copytree(finished, folder / "run")
    return run_file(folder / "run.yaml", inputs, folder / "run")


def test_a_merge_without_data_reads_of_its_base_nothing_but_the_configuration(
    sst: Callable[..., Any], inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_bytes((inputs / "base" / "config.json").read_bytes())
    adapters = ("--utility", inputs / "utility", "--safety", inputs / "safety")
    ended = sst("merge", "--base", tmp_path / "base", *adapters, "--method", "ties", "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    whole = sst("merge", "--base", inputs / "base", *adapters, "--method", "ties", "--output", tmp_path / "whole")
    assert whole.code == 0, whole.err
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_commands_are_the_ones_that_are_tested_here() -> None:
    assert {command.callback.__name__ for command in cli.app.registered_commands if command.callback} == set(COMMANDS)


def test_help_of_every_command_imports_no_torch() -> None:
    script = """
import sys
from sst_merge import cli
for words in ([], *[[name] for name in sys.argv[1:]]):
    try:
        cli.app([*words, "--help"])
    except SystemExit as ended:
        assert not ended.code, words
heavy = {"torch", "transformers", "peft", "datasets", "scipy", "plotly", "numpy"} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *COMMANDS], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"Usage: -c {name}" in done.stdout or f" {name} [OPTIONS]" in done.stdout


def test_no_command_shows_the_help_and_version_the_version(sst: Command) -> None:
    bare = sst()
    assert bare.code in {0, 2}  # click 8.2 counts it as a usage error
    assert "Usage" in bare.out + bare.err
    version = sst("--version")
    assert (version.code, version.out.strip(), version.err) == (0, __version__, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("runn",),
        ("run",),
        ("run", "a.yaml", "--sett", "a=b"),
        ("run", "a.yaml", "b.yaml"),
        ("check",),
        ("run", "a.yaml", "--set"),
    ],
    ids=str,
)
def test_a_command_line_that_cannot_be_parsed_is_a_usage_error(sst: Command, arguments: tuple[str, ...]) -> None:
    ended = sst(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert "Usage" in ended.err or "requires an argument" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", ["methods", "tasks", "data", "models"])
def test_lists_go_to_stdout_as_text_or_json(sst: Command, command: str) -> None:
    text, table = sst(command), sst(command, "--json")
    assert (text.code, text.err, table.code, table.err) == (0, "", 0, "")
    entries = json.loads(table.out)
    for name, fields in entries.items():
        assert f"{name}\n" in text.out
        one = sst(command, name, "--json")
        assert json.loads(one.out) == {name: fields}
    wrong = sst(command, "nothing")
    assert (wrong.code, wrong.out) == (1, "")
    assert "ConfigError: unknown name 'nothing'. Known: " in wrong.err


def test_a_misspelt_name_is_told_what_was_meant(sst: Command) -> None:
    assert "unknown name 'tise'. Did you mean ties? Known: sst," in sst("methods", "tise").err


def test_a_task_of_lm_eval_is_described_without_its_data(sst: Command) -> None:
    entry = json.loads(sst("tasks", "lm_eval:mmlu", "--json").out)["lm_eval:mmlu"]
    assert entry.keys() >= json.loads(sst("tasks", "refusal", "--json").out)["refusal"].keys()
    assert (entry["about"], entry["measures"]) == ("Task mmlu of lm-evaluation-harness, 57 tasks", "acc")
    assert "mmlu_anatomy, mmlu_astronomy, " in entry["subtasks"]
    assert "\n  about: Task gsm8k of lm-evaluation-harness\n" in sst("tasks", "lm_eval:gsm8k").out
    assert "ConfigError: lm-eval knows no task 'mmlux'. Did you mean " in sst("tasks", "lm_eval:mmlux").err


def test_lists_hold_what_is_registered(sst: Command) -> None:
    assert list(json.loads(sst("methods", "--json").out)) == list(METHODS)
    assert list(json.loads(sst("tasks", "--json").out)) == list(TASKS)
    parameters = json.loads(sst("methods", "sst", "--json").out)["sst"]["parameters"]
    assert parameters.keys() == Sst.model_fields.keys() - {"name"}
    assert all("None" not in text.split("Default")[0] for text in parameters.values())  # each has a description


def test_check_loads_nothing_and_writes_nothing(
    sst: Command, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_stage, "load_base", _refuses)
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run")
    ended = sst("check", file)
    assert ended.code == 0
    assert ended.out == (
        f"{file}: no problems found. sst on 14 modules; calibration on 5 safety samples of 5 prompts and "
        "5 utility samples of 5 (0 MB of statistics); adapter of 0.0 M parameters; 18 samples to evaluate per arm. "
        "Detectable with 80 % power, if a tenth of the answers change: "
        "refusal 33 points, over_refusal 40 points, exact_match 36 points.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_stages_follow_each_other_and_each_leaves_its_files(sst: Command, inputs: Path, tmp_path: Path) -> None:
    file, output = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run"), tmp_path / "run"

    def present() -> set[str]:
        return {path.name for path in output.iterdir()}

    ended = sst("plan", file)
    assert (ended.code, ended.out.startswith(f"{output}: sst on 14 modules")) == (0, True)
    assert present() == {"manifest.json", "plan.json"}
    ended = sst("plan", file, "--json")
    assert json.loads(ended.out) == json.loads((output / "plan.json").read_text(encoding="utf-8"))
    ended = sst("calibrate", file)
    assert ended.code == 0
    assert Path(ended.out.strip()).parent == output / "statistics"
    assert "Calibrating" in ended.err
    assert present() == {"manifest.json", "plan.json", "statistics"}
    ended = sst("merge", file)
    assert ended.code == 0
    assert ended.out.startswith(f"14 modules merged -> {output / 'adapter'}\nkept of the safety update: ")
    assert present() == {"manifest.json", "plan.json", "statistics", "adapter", "diagnostics.json"}
    ended = sst("merge", file, "--json")
    assert json.loads(ended.out) == json.loads((output / "diagnostics.json").read_text(encoding="utf-8"))
    ended = sst("report", file)
    assert (ended.code, ended.out) == (1, "")
    assert "an earlier stage has not run" in ended.err
    ended = sst("evaluate", file)
    assert (ended.code, ended.out.strip()) == (0, str(output / "scores"))
    assert not (output / "results.json").exists()
    ended = sst("report", file)
    assert (ended.code, ended.err) == (0, "")
    assert f"report: {output / 'report.html'}   adapter: {output / 'adapter'}" in ended.out
    assert {"results.json", "safety_tax.json", "report.html", "report.md", "looks.jsonl"} < present()


def test_an_interruption_says_that_the_same_command_goes_on(
    sst: Command, finished: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sst_merge.stages.run.run", interrupted)
    ended = sst("run", copy_of(finished, tmp_path, inputs))
    assert (ended.code, ended.out) == (130, "")
    assert "Interrupted. What is finished is kept: the same command goes on from there" in ended.err


def test_a_reader_that_goes_away_is_no_wrong_input(sst: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(*_: Any, **__: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(listings, "_list", written)
    assert (sst("tasks").code, sst("data").code) == (141, 141)


def test_run_prints_results_on_stdout_and_progress_on_stderr(
    sst: Command, finished: Path, inputs: Path, tmp_path: Path
) -> None:
    file = copy_of(finished, tmp_path, inputs)
    ended = sst("run", file)
    assert ended.code == 0
    assert "merged: NO_DETECTABLE_GAIN. No detectable gain: tax undefined." in ended.out
    assert "task_arithmetic: NO_DETECTABLE_GAIN. No detectable gain" in ended.out
    assert "Evaluating" not in ended.out
    assert not re.search("Loading|Calibrating|Merging|Evaluating", ended.err)  # everything was there already
    taxes = json.loads(sst("run", file, "--json").out)
    assert taxes.keys() == {"merged", "task_arithmetic"}
    assert taxes["merged"] == json.loads((tmp_path / "run" / "safety_tax.json").read_text(encoding="utf-8"))


def test_output_and_set_change_the_run_file(sst: Command, inputs: Path, tmp_path: Path) -> None:
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "unused")
    changes = ("--set", "method.strength=0.5", "--set", "seed=7")
    ended = sst("plan", file, "--output", tmp_path / "with: colon", *changes)
    assert ended.code == 0
    manifest = json.loads((tmp_path / "with: colon" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["config"]["method"]["strength"], manifest["config"]["seed"]) == (0.5, 7)
    assert manifest["command"].startswith("sst-merge plan ")
    assert not (tmp_path / "unused").exists()


def test_a_result_that_is_invalid_ends_with_3_and_keeps_its_report(sst: Command, inputs: Path, tmp_path: Path) -> None:
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run", comparisons=None)
    ended = sst("run", file, "--set", "method.strength=0")
    assert ended.code == 3
    assert "InvalidResultError: merged: Invalid: " in ended.err
    assert "identical weights" in ended.err
    assert "Traceback" not in ended.err
    assert (tmp_path / "run" / "report.html").is_file()
    again = sst("report", file, "--set", "method.strength=0", "--json")
    assert again.code == 3
    assert json.loads(again.out)["merged"]["verdict"]["code"] == "INVALID_IDENTICAL_WEIGHTS"


def test_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, inputs: Path, finished: Path, tmp_path: Path
) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("input_ids")

    monkeypatch.setattr(Sst, "merge_module", fails)
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run")
    shutil.copytree(finished / "statistics", tmp_path / "run" / "statistics")
    shutil.copy(finished / "manifest.json", tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["sst-merge", "run", str(file)])
    with pytest.raises(KeyError, match="input_ids"):
        cli.main()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"manifest.json", "plan.json", "statistics"}


def test_a_run_without_evaluation_ends_with_the_adapter_and_says_so(sst: Command, inputs: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"method": {"name": "ties"}, "comparisons": None, "calibration": None, "evaluation": None}
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run", **given)
    ended = sst("run", file)
    assert (ended.code, ended.out) == (
        0,
        f"adapter: {tmp_path / 'run' / 'adapter'} (no evaluation section, so nothing was measured)\n",
    )
    for command in ("evaluate", "report"):
        ended = sst(command, file)
        assert (ended.code, ended.out) == (1, "")
        assert "no evaluation section" in ended.err
    ended = sst("calibrate", file)
    assert (ended.code, ended.out) == (0, "this method reads no statistics\n")


def test_merge_without_a_run_file_makes_the_same_adapter(sst: Command, inputs: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"method": {"name": "linear"}, "comparisons": None, "calibration": None, "evaluation": None}
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run", **given)
    assert sst("merge", file).code == 0
    options = ("--base", inputs / "base", "--utility", inputs / "utility", "--safety", inputs / "safety")
    ended = sst("merge", *options, "--method", "linear", "--output", tmp_path / "by options")
    assert ended.code == 0
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "by options" / weights).read_bytes() == (tmp_path / "run" / weights).read_bytes()


def test_merge_without_a_run_file_calibrates_for_sst(sst: Command, inputs: Path, tmp_path: Path) -> None:
    options = ("--base", inputs / "base", "--utility", inputs / "utility", "--safety", inputs / "safety")
    data = ("--calibration-utility", inputs / "utility_calibration.jsonl")
    data += ("--calibration-safety", inputs / "safety_calibration.jsonl")
    ended = sst("merge", *options, *data, "--output", tmp_path / "run", "--set", "method.keep={directions: 2}")
    assert ended.code == 0
    assert re.search(
        r"kept of the safety update: patch norm \d+%, safety energy .*%, utility energy .*% \(the less, the ch",
        ended.out,
    )
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
    harmless = tmp_path / "harmless.jsonl"
    harmless.write_text('{"prompt": "harmless 1"}\n{"prompt": "harmless 2"}\n', encoding="utf-8")
    told = sst("merge", *options, *data, "--calibration-harmless", harmless, "--output", tmp_path / "other")
    assert told.code == 0
    counts = [json.loads((tmp_path / run / "plan.json").read_text())["calibration_samples"] for run in ("run", "other")]
    assert counts[1]["utility"] == counts[0]["utility"] + 2
    assert counts[1]["safety"] > counts[0]["safety"]


def test_merge_takes_adapters_and_data_several_times_and_drops_none(sst: Command, inputs: Path, tmp_path: Path) -> None:
    adapters = ("--base", inputs / "base", "--utility", inputs / "utility", "--utility", inputs / "utility")
    adapters += ("--safety", inputs / "safety")
    assert sst("merge", *adapters[2:], "--method", "task_arithmetic", "--output", tmp_path / "twice").code == 0
    values = json.loads((tmp_path / "twice" / "manifest.json").read_text(encoding="utf-8"))["config"]["adapters"]
    assert [source["path"] for source in values["utility"]] == [str(inputs / "utility")] * 2
    merged, utility, safety = (
        read_adapter(folder).updates
        for folder in (tmp_path / "twice" / "adapter", inputs / "utility", inputs / "safety")
    )
    for name, update in merged.items():
        expected = 2 * utility[name].dense() + safety[name].dense()
        torch.testing.assert_close(update.dense(), expected, atol=1e-6, rtol=0)
    data = (
        "--calibration-utility",
        inputs / "utility_calibration.jsonl",
        "--calibration-utility",
        inputs / "exact_match.jsonl",
    )
    data += ("--calibration-safety", inputs / "safety_calibration.jsonl")
    assert sst("merge", *adapters, *data, "--output", tmp_path / "both").code == 0
    described = json.loads((tmp_path / "both" / "plan.json").read_text())
    assert described["calibration_samples"]["utility"] == described["calibration_prompts"]["utility"] == 11
    ended = sst("merge", *adapters, *data, "--method", "task_arithmetic", "--output", tmp_path / "no")
    assert ended.code == 1
    assert "method 'task_arithmetic' reads no calibration data; leave --calibration-... out." in ended.err


def test_check_looks_at_the_target_modules_of_a_training_file(sst: Command, inputs: Path, tmp_path: Path) -> None:
    values = {
        "base_model": str(inputs / "base"),
        "role": "utility",
        "data": str(inputs / "utility_calibration.jsonl"),
        "validation": str(inputs / "exact_match.jsonl"),
        "output": str(tmp_path / "out"),
    }
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert sst("check", file).code == 0
    ended = sst("check", file, "--set", "lora.target_modules=q_proj")
    assert ended.code == 1
    assert "ConfigError: lora.target_modules: 'q_proj' matches no module" in ended.err
    ended = sst("check", file, "--set", "lora.r=4")
    assert "lora.r: unknown key. Did you mean 'rank'?" in ended.err


def test_a_run_goes_on_after_the_setting_that_a_failed_calibration_asked_for(
    sst: Command, inputs: Path, tmp_path: Path
) -> None:
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run", comparisons=None, evaluation=None)
    assert sst("calibrate", file).code == 0
    assert sst("merge", file, "--set", "calibration.batch_size=1").code == 0
    ended = sst("merge", file, "--set", "calibration.batch_size=2")
    assert ended.code == 1
    assert "config.calibration.batch_size   1 then, 2 now" in ended.err


def test_the_public_names_are_there_and_run_a_file(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import sst_merge

    for name in sst_merge.__all__:
        assert getattr(sst_merge, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'marge'"):
        sst_merge.marge  # noqa: B018
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run", comparisons=None, evaluation=None)
    config = sst_merge.load_config(sst_merge.RunConfig, str(file), ["method.strength=0.5"])
    with pytest.raises(ConfigError, match=r"until: unknown stage 'merged'\. Known: plan, calibrate, merge"):
        sst_merge.run(config, until="merged")
    diagnostics = sst_merge.run(config, until="merge")
    assert diagnostics["method"]["strength"] == 0.5
    told = capfd.readouterr()
    assert (told.out, "note: calibration.harmless is not given" in told.err) == ("", True)
    assert sst_merge.read_adapter(tmp_path / "run" / "adapter").sha256 == diagnostics["adapter_sha256"]


def test_merge_says_which_options_it_lacks_and_takes_no_mixture(sst: Command, inputs: Path, tmp_path: Path) -> None:
    ended = sst("merge", "--base", "somewhere", "--output", tmp_path / "run")
    assert ended.code == 1
    assert "merge without a run file needs --utility, --safety." in ended.err
    own = shutil.copytree(inputs / "utility", tmp_path / "revised")
    config = json.loads((own / "adapter_config.json").read_text(encoding="utf-8"))
    (own / "adapter_config.json").write_text(json.dumps({**config, "revision": "abc"}), encoding="utf-8")
    values = runs._merge_values(None, [own], [own], "linear", {}, tmp_path / "out")
    assert (values["base_model"], values["revision"]) == (str(inputs / "base"), "abc")
    assert "revision" not in runs._merge_values("other", [own], [own], "linear", {}, tmp_path / "out")
    ended = sst("merge", "--utility", inputs / "utility")  # which names the base
    assert "merge without a run file needs --safety, --output." in ended.err
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run")
    ended = sst("merge", file, "--utility", inputs / "safety")
    assert ended.code == 1
    assert "not both" in ended.err
    ended = sst("merge", file, "--method", "ties")  # would be ignored
    assert ended.code == 1
    assert "To change the method of a run file: --set 'method={name: ties}'." in ended.err
    ended = sst("merge", file, "--set", "method={name: ties}", "--json")
    assert json.loads(ended.out)["method"]["name"] == "ties"
    shutil.rmtree(tmp_path / "run")
    options = ("--base", inputs / "base", "--utility", inputs / "utility", "--safety", inputs / "safety")
    ended = sst("merge", *options, "--output", tmp_path / "run")
    assert ended.code == 1
    assert "method 'sst' needs a calibration section" in ended.err
    assert "--calibration-utility and --calibration-safety" in ended.err
    assert not (tmp_path / "run").exists()


def test_a_full_disk_in_another_library_s_words_is_still_a_full_disk() -> None:
    from safetensors import SafetensorError

    assert cli._is_full_disk(SafetensorError("I/O error: No space left on device (os error 28)"))
    assert cli._is_full_disk(OSError(28, "No space left on device"))
    assert not cli._is_full_disk(SafetensorError("header too large"))
    assert not cli._is_full_disk(OSError(13, "Permission denied"))
    assert not cli._is_full_disk(KeyError("(os error 28)"))


def test_the_installed_program_is_this_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sst_merge.cli", "run", "no such file.yaml"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ConfigError: no such run file: no such file.yaml\n"


def _refuses(*_: Any, **__: Any) -> Base:
    raise AssertionError("nothing is loaded")


def test_a_source_that_stands_alone_is_changed_without_its_number(sst: Command, inputs: Path, tmp_path: Path) -> None:
    """As the README has it."""
    (tmp_path / "refusals.txt").write_text("I will not.\nNo.\n", encoding="utf-8")
    (tmp_path / "harmful.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n', encoding="utf-8")
    ended = sst(
        *("merge", "--base", inputs / "base", "--utility", inputs / "utility", "--safety", inputs / "safety"),
        *("--calibration-utility", inputs / "utility_calibration.jsonl"),
        *("--calibration-safety", tmp_path / "harmful.jsonl", "--output", tmp_path / "run"),
        *("--set", "calibration.utility.samples=3", "--set", f"calibration.safety.answers={tmp_path / 'refusals.txt'}"),
    )
    assert ended.code == 0, ended.err
    config = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["config"]["calibration"]
    assert config["utility"][0]["samples"] == 3
    assert config["safety"][0]["answers"] == str(tmp_path / "refusals.txt")


def test_a_base_without_weights_is_enough_for_adapters_that_say_what_they_were_trained_on(
    sst: Command, inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_bytes((inputs / "base" / "config.json").read_bytes())
    own = shutil.copytree(inputs / "utility", tmp_path / "utility")
    record = {"schema": "sst-merge/training/1", "config": {"role": "utility"}, "base": "folder sha256:0"}
    (own / "training.json").write_text(json.dumps(record | {"base_weights": "weights sha256:1"}), encoding="utf-8")
    given = ("--utility", own, "--safety", inputs / "safety", "--method", "ties")
    ended = sst("merge", "--base", tmp_path / "base", *given, "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "holds no weights: whether the adapters were trained on them is unchecked" in " ".join(ended.err.split())
    ended = sst("merge", "--base", inputs / "base", *given, "--output", tmp_path / "other")
    assert ended.code == 1
    assert "was trained on other weights" in ended.err


def test_an_invalid_comparison_is_told_and_the_merge_stands(sst: Command, inputs: Path, tmp_path: Path) -> None:
    same = [{"name": "task_arithmetic", "strength": 0.0}]
    ended = sst("run", run_file(tmp_path / "run.yaml", inputs, tmp_path / "run", comparisons=same))
    assert ended.code == 0, ended.err
    assert "task_arithmetic: INVALID_IDENTICAL_WEIGHTS." in ended.out


def test_a_run_folder_is_reported_on_with_the_settings_it_was_made_with(
    sst: Command, inputs: Path, tmp_path: Path
) -> None:
    file, folder = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run"), tmp_path / "run"
    assert sst("run", file, "--set", "method.strength=0.5").code == 0
    page = (folder / "report.md").read_bytes()
    (folder / "report.md").unlink()
    assert sst("report", file).code == 1  # another strength
    ended = sst("report", folder)
    assert ended.code == 0, ended.err
    assert (folder / "report.md").read_bytes() == page
    ended = sst("report", folder, "--set", "method.strength=1")
    assert ended.code == 1
    assert "is a run folder: its settings are its own. Leave --set and --output out." in ended.err
    ended = sst("report", inputs)
    assert ended.code == 1
    assert "is no run folder: it has no manifest.json" in ended.err
