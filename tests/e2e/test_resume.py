"""A killed run goes on where it was and ends with the same bytes; a full disk is such a kill with a message."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from sst_merge import adapter_io, cli, run_folder
from sst_merge.errors import AdapterError, RunFolderError
from sst_merge.models import Base
from sst_merge.progress import SilentReporter
from sst_merge.run_folder import RunFolder
from sst_merge.stages import evaluate as evaluate_stage
from sst_merge.stages import report as report_stage
from sst_merge.stages import run as run_stage
from sst_merge.stages.plan import plan
from sst_merge.statistics import stored
from sst_merge.wheels import file_sha256
from tiny_run import artefacts, numbers, run_config, run_file, run_tiny


class KilledError(BaseException):
    """Like KeyboardInterrupt, nobody's to catch."""


def assert_same_run(output: Path, finished: Path) -> None:
    assert numbers(output) == numbers(finished)
    assert artefacts(output) == artefacts(finished)


def test_a_run_that_is_interrupted_at_every_few_writes_ends_with_the_same_bytes(
    inputs: Path, base: Base, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    left = 0
    fsync, replace = os.fsync, Path.replace

    def count_down() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError

    def counted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        count_down()

    def counted_replace(self: Path, target: Path) -> Path:
        count_down()
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", counted_fsync)
    monkeypatch.setattr(Path, "replace", counted_replace)
    kills = 0
    while kills < 100:
        left = rng.randrange(6, 14)
        try:
            run_tiny(inputs, tmp_path / "run", base)
            break
        except KilledError:
            kills += 1
    assert 5 < kills < 100
    assert_same_run(tmp_path / "run", finished)


def test_every_file_is_on_the_disk_before_it_gets_its_name(
    inputs: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: set[int] = set()
    named: set[str] = set()
    fsync, replace = os.fsync, Path.replace

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        written.add(os.fstat(descriptor).st_ino)

    def checked(self: Path, target: Path) -> Path:
        files = self.iterdir() if self.is_dir() else [self]
        assert {file.stat().st_ino for file in files} <= written, target
        named.add(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", checked)
    run_tiny(inputs, tmp_path / "run", base)
    assert {"adapter", "basis.safetensors", "index.json", "probe.safetensors", "arm.json", "results.json"} <= named


@pytest.mark.parametrize("stage", ["statistics", "scores"])
def test_a_run_that_is_killed_with_sigkill_ends_with_the_same_bytes(
    inputs: Path, base: Base, finished: Path, tmp_path: Path, stage: str
) -> None:
    """The process kills itself in the middle of a write; half a batch file or half a line is left behind."""
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "run")
    script = tmp_path / "killed.py"
    script.write_text(
        {
            "statistics": """
import os, signal, sys
from sst_merge import cli
from sst_merge.statistics import stored
real, calls = stored.save_file, []
def save_file(tensors, path, metadata):
    calls.append(path)
    real(tensors, path, metadata)
    if len(calls) == 3:  # the coordinates and one batch are whole
        os.truncate(path, 100)
        os.kill(os.getpid(), signal.SIGKILL)
stored.save_file = save_file
cli.main()
""",
            "scores": """
import os, signal, sys
from sst_merge import cli
from sst_merge.stages import evaluate
real = evaluate._score_batch
def score_batch(base, task, config, rows, prompts):
    lines = real(base, task, config, rows, prompts)
    if task.name == "over_refusal" and evaluate.seen:
        with open(evaluate.output, "a") as file:
            file.write('{"id": "torn')
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    evaluate.seen = task.name == "over_refusal"
    return lines
evaluate._score_batch = score_batch
evaluate.seen = False
evaluate.output = os.environ["TORN_FILE"]
cli.main()
""",
        }[stage],
        encoding="utf-8",
    )
    torn = tmp_path / "run" / "scores" / "base" / "over_refusal.jsonl"
    done = subprocess.run(
        [sys.executable, str(script), "run", str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORN_FILE": str(torn)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (stage == "scores") == torn.is_file()
    if stage == "scores":
        assert torn.read_text(encoding="utf-8").endswith('{"id": "torn')
    run_tiny(inputs, tmp_path / "run", base)
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("cut", [1, 20, 400])
def test_a_torn_last_line_is_repaired(inputs: Path, base: Base, finished: Path, tmp_path: Path, cut: int) -> None:
    run_tiny(inputs, tmp_path / "run", base, until="evaluate")
    file = tmp_path / "run" / "scores" / "merged" / "refusal.jsonl"
    os.truncate(file, file.stat().st_size - cut)
    (tmp_path / "run" / "scores" / "merged" / "arm.json").unlink()  # written last, so a torn file has none
    run_tiny(inputs, tmp_path / "run", base)
    assert_same_run(tmp_path / "run", finished)


def test_what_a_message_says_to_remove_is_made_again(inputs: Path, base: Base, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for damaged in ("diagnostics.json", "scores/utility/arm.json"):
        (tmp_path / "run" / damaged).unlink()
    run_tiny(inputs, tmp_path / "run", base)
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("lost", ["exact_match.jsonl", "probe.safetensors"])
def test_an_evaluation_that_lost_a_file_makes_it_again(
    inputs: Path, base: Base, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    folder = tmp_path / "run" / "scores" / "utility"
    (folder / lost).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_stage, "_probe", lambda *_: killed())
        with pytest.raises(KilledError):
            run_tiny(inputs, tmp_path / "run", base, until="evaluate")
    assert not (folder / "arm.json").exists()  # else what a killed repair left would count as complete
    run_tiny(inputs, tmp_path / "run", base)
    assert_same_run(tmp_path / "run", finished)


def killed() -> None:
    raise KilledError


def test_a_second_run_loads_no_model_and_changes_no_number(
    inputs: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tiny(inputs, tmp_path / "run", base)
    before = (numbers(tmp_path / "run"), artefacts(tmp_path / "run"))
    times = {str(file): file.stat().st_mtime_ns for file in (tmp_path / "run" / "scores").rglob("*.*")}

    def refuses(*_: Any, **__: Any) -> Base:
        raise AssertionError("a finished run loads no model")

    monkeypatch.setattr(run_stage, "load_base", refuses)
    config = run_config(inputs, tmp_path / "run")
    run_stage.run(config, root=Path(), reporter=SilentReporter(), command="again")
    assert (numbers(tmp_path / "run"), artefacts(tmp_path / "run")) == before
    assert {str(file): file.stat().st_mtime_ns for file in (tmp_path / "run" / "scores").rglob("*.*")} == times


def test_a_run_is_refused_while_another_works_in_its_folder(inputs: Path, base: Base, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").held(), pytest.raises(RunFolderError, match="another run is working in"):
        run_tiny(inputs, tmp_path / "run", base, until="plan")
    assert list((tmp_path / "run").iterdir()) == []
    run_tiny(inputs, tmp_path / "run", base, until="plan")


class FullDisk:
    """Makes one write of a run fail as a full disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def at_file(self, module: Any, name: str) -> None:
        """``replace_file`` of ``module`` fails for files of this name."""
        real = module.replace_file

        def replace_file(path: Path, text: str) -> None:
            if path.name == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            real(path, text)

        self.monkeypatch.setattr(module, "replace_file", replace_file)

    def at_tensors(self, module: Any, after: int) -> None:
        """``save_file`` of ``module`` works so many times, then leaves half a file and fails in its own way."""
        real, calls = module.save_file, 0

        def save_file(tensors: Any, path: Path, **others: Any) -> None:
            nonlocal calls
            real(tensors, path, **others)
            calls += 1
            if calls > after:
                os.truncate(path, 50)
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        self.monkeypatch.setattr(module, "save_file", save_file)

    def at_samples(self, output: Path, after: int) -> None:
        """A batch of samples is written in part."""
        real, calls = os.fsync, 0

        def fsync(descriptor: int) -> None:
            nonlocal calls
            real(descriptor)
            is_samples = os.fstat(descriptor).st_ino in {file.stat().st_ino for file in output.rglob("*.jsonl")}
            calls += is_samples
            if is_samples and calls > after:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - 30)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    "where",
    ["manifest", "plan", "statistics", "index", "adapter", "diagnostics", "samples", "probe", "arm", "results", "page"],
)
def test_a_full_disk_is_told_in_one_message_and_the_run_goes_on_afterwards(
    inputs: Path,
    base: Base,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    output = tmp_path / "run"
    is_early = where in {"manifest", "plan", "statistics", "index", "adapter", "diagnostics"}
    if not is_early:  # what is not tested here was done before
        shutil.copytree(finished, output)
        for name in ("results.json", "safety_tax.json", "report.html", "report.md", "looks.jsonl"):
            (output / name).unlink()
    if where in {"samples", "probe", "arm"}:
        shutil.rmtree(output / "scores")
    file = run_file(tmp_path / "run.yaml", inputs, output)
    monkeypatch.setattr(sys, "argv", ["sst-merge", "run", str(file)])
    with monkeypatch.context() as patch:
        patch.setattr(run_stage, "load_base", lambda *_, **__: base)
        disk = FullDisk(patch)
        {
            "manifest": lambda: disk.at_file(run_folder, "manifest.json"),
            "plan": lambda: disk.at_file(run_folder, "plan.json"),
            "statistics": lambda: disk.at_tensors(stored, after=2),
            "index": lambda: disk.at_file(stored, "index.json"),
            "adapter": lambda: disk.at_tensors(adapter_io, after=0),
            "diagnostics": lambda: disk.at_file(run_folder, "diagnostics.json"),
            "samples": lambda: disk.at_samples(output, after=4),
            "probe": lambda: disk.at_tensors(stored, after=1),
            "arm": lambda: disk.at_file(run_folder, "arm.json"),
            "results": lambda: disk.at_file(run_folder, "results.json"),
            "page": lambda: disk.at_file(report_stage, "report.html"),
        }[where]()
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert "no space left on the disk" in message
    assert "run the same command again" in message
    assert "Traceback" not in message
    run_tiny(inputs, output, base, until="merge" if is_early else "report")
    if is_early:
        expected = artefacts(finished)
        assert artefacts(output) == {name: expected[name] for name in expected if not name.startswith("scores")}
    else:
        assert_same_run(output, finished)


def remove_sample(output: Path) -> None:
    file = output / "scores" / "merged" / "refusal.jsonl"
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")


def rename_sample(output: Path) -> None:
    file = output / "scores" / "merged" / "refusal.jsonl"
    first, *others = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text(json.dumps({**json.loads(first), "id": "0" * 16}) + "\n" + "".join(others), encoding="utf-8")


def double_sample(output: Path) -> None:
    file = output / "scores" / "safety" / "exact_match.jsonl"
    text = file.read_text(encoding="utf-8")
    file.write_text(text + text.splitlines(keepends=True)[0], encoding="utf-8")


def remove_id(output: Path) -> None:
    file = output / "scores" / "base" / "refusal.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"id":', '"name":', 1), encoding="utf-8")


def break_line(output: Path) -> None:
    file = output / "scores" / "base" / "refusal.jsonl"
    file.write_bytes(file.read_bytes()[5:])


def change_prompt(output: Path) -> None:
    file = output / "scores" / "merged" / "refusal.jsonl"
    first, *others = file.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = {**json.loads(first), "prompt_tokens_sha256": "0" * 64}
    file.write_text(json.dumps(changed) + "\n" + "".join(others), encoding="utf-8")


def change_adapter(output: Path) -> None:
    file = output / "adapter" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def change_scaling(output: Path) -> None:
    file = output / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "lora_alpha": 1}), encoding="utf-8")


def remove_weights(output: Path) -> None:
    (output / "adapter" / "adapter_model.safetensors").unlink()


def remove_arm(output: Path) -> None:
    (output / "scores" / "utility" / "arm.json").unlink()


def remove_scores(output: Path) -> None:
    (output / "scores" / "utility" / "exact_match.jsonl").unlink()


def change_score(output: Path) -> None:
    file = output / "scores" / "merged" / "refusal.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"refused": 0', '"refused": 1', 1), encoding="utf-8")


def exchange_file(output: Path) -> None:
    shutil.copyfile(output / "scores" / "safety" / "refusal.jsonl", output / "scores" / "merged" / "refusal.jsonl")


def exchange_arms(output: Path) -> None:
    scores = output / "scores"
    (scores / "utility").rename(scores / "other")
    (scores / "safety").rename(scores / "utility")
    (scores / "other").rename(scores / "safety")


def cut_probe(output: Path) -> None:
    file = output / "scores" / "merged" / "probe.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def hash_again(output: Path) -> None:
    """As if other scores had been evaluated."""
    for file in (output / "scores").glob("*/arm.json"):
        summary = json.loads(file.read_text(encoding="utf-8"))
        summary["files"] = {name: file_sha256(file.parent / name) for name in summary["files"]}
        file.write_text(json.dumps(summary), encoding="utf-8")


def damage(place: str, text: str) -> Any:
    def tamper(output: Path) -> None:
        (output / place).write_text(text, encoding="utf-8")

    return tamper


WRITTEN = "{} is not what was written when the arm was evaluated. Remove .*, and evaluate this arm again: sst-merge run"


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        *((each, WRITTEN.format(r"merged/refusal.jsonl")) for each in (remove_sample, rename_sample, change_prompt)),
        *((each, WRITTEN.format(r"merged/refusal.jsonl")) for each in (change_score, exchange_file)),
        *((each, WRITTEN.format(r"base/refusal.jsonl")) for each in (remove_id, break_line)),
        (double_sample, WRITTEN.format(r"safety/exact_match.jsonl")),
        (cut_probe, WRITTEN.format(r"merged/probe.safetensors")),
        (exchange_arms, r"scores/utility/arm.json is of the arm 'safety', not 'utility'. Remove .*scores/utility, and"),
        (change_adapter, r"adapter is not the adapter that was evaluated"),
        (change_scaling, r"adapter is not the adapter that was evaluated"),
        (remove_weights, r"adapter_model.safetensors is missing"),
        (remove_arm, r"utility/arm.json is missing"),
        (remove_scores, r"utility/exact_match.jsonl is missing"),
        (
            damage("manifest.json", "{"),
            r"manifest.json is damaged: .* Throw the run away: sst-merge run FILE --replace",
        ),
        (
            damage("diagnostics.json", ""),
            r"diagnostics.json is damaged: .* Remove it, and make it again: sst-merge run",
        ),
        (damage("scores/merged/arm.json", "{}"), r"merged/arm.json is damaged: it has no artefact_sha256. Remove it"),
        (damage("scores/base/arm.json", "{}"), r"base/arm.json is damaged: it has no arm. Remove it"),
        (damage("looks.jsonl", '{"items"'), r"looks.jsonl is damaged. Remove the damaged line; the look"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_report_refuses_records_that_were_changed_after_the_evaluation(
    inputs: Path, finished: Path, tmp_path: Path, tamper: Any, message: str
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    tamper(output)
    before = (output / "results.json").read_bytes()
    with pytest.raises(RunFolderError, match=message):
        report_stage.report(plan(run_config(inputs, output), root=Path()))
    assert (output / "results.json").read_bytes() == before


def test_a_report_can_be_made_again_from_the_records(inputs: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    report_stage.report(plan(run_config(inputs, tmp_path / "run"), root=Path()))
    assert numbers(tmp_path / "run") == numbers(finished)


def test_a_run_refuses_an_adapter_that_was_changed_after_it_was_written(
    inputs: Path, base: Base, tmp_path: Path
) -> None:
    run_tiny(inputs, tmp_path / "run", base, until="merge")
    change_adapter(tmp_path / "run")
    with pytest.raises(AdapterError, match=r"not the adapter that this run wrote.*\n.*--replace"):
        run_tiny(inputs, tmp_path / "run", base)
    assert not (tmp_path / "run" / "scores").exists()


def test_a_report_refuses_a_run_file_with_other_settings(inputs: Path, finished: Path) -> None:
    made = plan(run_config(inputs, finished, method={"name": "sst", "strength": 0.5}), root=Path())
    with pytest.raises(RunFolderError, match=r"config.method.strength   1.0 then, 0.5 now"):
        report_stage.report(made)


def test_the_same_inputs_give_the_same_run_anywhere(inputs: Path, base: Base, finished: Path, tmp_path: Path) -> None:
    run_tiny(inputs, tmp_path / "elsewhere", base)
    assert_same_run(tmp_path / "elsewhere", finished)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (remove_sample, r"refusal.jsonl has 6 samples, expected 7"),
        (rename_sample, r"refusal.jsonl has 7 samples, expected 7, or other prompts"),
        (double_sample, r"exact_match.jsonl has 7 samples, expected 6"),
        (remove_id, r"base/refusal.jsonl is damaged"),
        (break_line, r"base/refusal.jsonl is damaged"),
        (change_prompt, r"merged/refusal.jsonl: the prompts were tokenised differently"),
    ],
)
def test_a_report_refuses_samples_that_are_not_the_same_in_every_arm(
    inputs: Path, finished: Path, tmp_path: Path, tamper: Any, message: str
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    tamper(output)
    hash_again(output)
    with pytest.raises(RunFolderError, match=message):
        report_stage.report(plan(run_config(inputs, output), root=Path()))


def test_an_arm_that_was_changed_is_evaluated_again_by_the_remedy_of_the_message(
    inputs: Path, base: Base, finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    change_score(output)
    with pytest.raises(RunFolderError, match="is not what was written"):
        run_tiny(inputs, output, base)
    shutil.rmtree(output / "scores" / "merged")
    run_tiny(inputs, output, base)
    assert_same_run(output, finished)


def test_what_a_killed_run_left_unfinished_is_swept(inputs: Path, base: Base, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    hidden = (".arm.json-0123456789abcdef", ".tmpa1B2c3")
    for place in (".adapter-ab12_x9z", ".adapter-0123456789abcdef", *(f"scores/merged/{name}" for name in hidden)):
        if place.startswith("scores"):
            (output / place).write_text("{", encoding="utf-8")
        else:
            shutil.copytree(output / "adapter", output / place / "old")
    kept = {".notes", ".my-settings", ".index.json-0123456789abcdef"}
    for name in (".notes", ".my-settings", "statistics/.index.json-0123456789abcdef"):
        (output / name).write_text("the user's own, or another run's", encoding="utf-8")
    run_tiny(inputs, output, base)
    assert {path.name for path in output.rglob(".*")} == kept
    for path in output.rglob(".*"):
        path.unlink()
    assert_same_run(output, finished)


def test_a_replacement_that_is_killed_leaves_no_half_of_an_adapter(
    inputs: Path, base: Base, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)

    def kill(folder: Path) -> None:
        (Path(folder) / "adapter_config.json").unlink()
        raise KilledError

    monkeypatch.setattr(run_folder.shutil, "rmtree", kill)
    with pytest.raises(KilledError):
        run_tiny(inputs, output, base, replace_run=True, method={"name": "linear"})
    monkeypatch.undo()
    assert not (output / "adapter").exists()
    run_tiny(inputs, output, base)  # the run that was to be replaced goes on
    assert_same_run(output, finished)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_lacks_a_file_is_told(
    inputs: Path, base: Base, finished: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    (output / "adapter" / name).unlink()
    with pytest.raises(AdapterError, match=rf"{name} is missing from the adapter that this run wrote.\n  Remove"):
        run_tiny(inputs, output, base)
    shutil.rmtree(output / "adapter")
    run_tiny(inputs, output, base)
    assert_same_run(output, finished)
