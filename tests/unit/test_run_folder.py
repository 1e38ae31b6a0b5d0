"""Whose a run folder is, what may be reused, and that files are there whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sst_merge import run_folder
from sst_merge.errors import RunFolderError
from sst_merge.run_folder import RunFolder, canonical_sha256, differences, require_free_space, versions

IDENTITY = {
    "config": {"seed": 0, "method": {"name": "sst", "strength": 1.0}, "tasks": ["a", "b"]},
    "inputs": {"u": "1"},
}


def changed(**config: object) -> dict[str, object]:
    return {**IDENTITY, "config": {**IDENTITY["config"], **config}}


@pytest.fixture
def opened(tmp_path: Path) -> RunFolder:
    """A folder with a result in it."""
    folder = RunFolder(tmp_path / "run")
    folder.open(IDENTITY, command="sst-merge run a.yaml")
    folder.adapter.mkdir()
    return folder


def test_statistics_alone_stop_no_other_run_and_stay(tmp_path: Path) -> None:
    """What a failed calibration leaves: with the setting that its message names the same command goes on."""
    folder = RunFolder(tmp_path / "run")
    folder.open(IDENTITY, command="first")
    (folder.statistics / "key").mkdir(parents=True)
    with folder.timed("calibrate"):
        pass
    folder.open(IDENTITY, command="again")
    assert folder.manifest()["command"] == "first"
    assert "calibrate" in folder.manifest()["timings_seconds"]
    folder.refuse_foreign(changed(seed=1))
    folder.open(changed(seed=1), command="other")
    assert (folder.manifest()["command"], folder.manifest()["timings_seconds"]) == ("other", {})
    assert (folder.statistics / "key").is_dir()


def test_long_values_and_hashes_are_shortened_where_they_differ() -> None:
    found = differences({"a": "0" * 64, "b": None, "c": 1}, {"a": "1" * 64, "b": {"key": "x" * 200}, "c": 1})
    assert found[0] == "  a   000000000000 then, 111111111111 now"
    assert found[1] == f"  b   not given then, {str({'key': 'x' * 200})[:97]}... now"


def test_the_same_run_is_resumed_and_its_manifest_untouched(opened: RunFolder) -> None:
    before = opened.manifest_file.read_bytes()
    opened.open(IDENTITY, command="another command line")
    assert opened.manifest_file.read_bytes() == before
    assert opened.manifest()["command"] == "sst-merge run a.yaml"


def test_the_manifest_says_what_decides_the_numbers(opened: RunFolder) -> None:
    manifest = opened.manifest()
    assert manifest["schema"] == "sst-merge/manifest/1"
    assert manifest["config"] == IDENTITY["config"]
    assert manifest["versions"] == versions()
    assert manifest["fallbacks"] == []
    assert manifest["created"].endswith("+00:00")
    assert opened.identity_sha256() == canonical_sha256({**IDENTITY, "versions": versions()})


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (changed(seed=1), r"config.seed   0 then, 1 now"),
        (changed(method={"name": "sst", "strength": 0.5}), r"config.method.strength   1.0 then, 0.5 now"),
        (changed(tasks=["a", "c"]), r"config.tasks.1   b then, c now"),
        (changed(tasks=["a"]), r"config.tasks.1   b then, not given now"),
        (changed(extra=3), r"config.extra   not given then, 3 now"),
        ({**IDENTITY, "inputs": {"u": "2"}}, r"inputs.u   1 then, 2 now"),
    ],
)
def test_another_run_is_refused_by_name_and_nothing_is_overwritten(
    opened: RunFolder, identity: dict[str, object], message: str
) -> None:
    before = opened.manifest_file.read_bytes()
    with pytest.raises(RunFolderError, match=message):
        opened.open(identity, command="c")
    assert opened.manifest_file.read_bytes() == before


def test_another_version_of_the_program_is_another_run(opened: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "versions", lambda: {**versions(), "torch": "0.0"})
    with pytest.raises(RunFolderError, match=r"versions.torch   .* then, 0.0 now"):
        opened.open(IDENTITY, command="c")
    opened.check(IDENTITY)  # a report may be made with another version


def test_replace_throws_the_old_run_away(opened: RunFolder) -> None:
    opened.open(changed(seed=1), command="c", replace=True)
    assert [path.name for path in opened.path.iterdir()] == ["manifest.json"]
    assert opened.manifest()["config"]["seed"] == 1


def test_replace_keeps_the_statistics_that_the_new_run_would_measure_again_and_the_looks(opened: RunFolder) -> None:
    for name in ("same", "other"):
        (opened.statistics / name).mkdir(parents=True)
        (opened.statistics / name / "index.json").write_text(name, encoding="utf-8")
    opened.looks_file.write_text("{}\n", encoding="utf-8")
    reusable = [opened.statistics / "same", opened.statistics / "never measured"]
    opened.open(changed(seed=1), command="c", replace=True, reusable=reusable)
    left = sorted(str(path.relative_to(opened.path)) for path in opened.path.rglob("*") if path.is_file())
    assert left == ["looks.jsonl", "manifest.json", "statistics/same/index.json"]
    assert opened.manifest()["config"]["seed"] == 1


def test_replace_keeps_a_store_inside_of_the_folder_with_what_other_runs_left_there(opened: RunFolder) -> None:
    for place in ("store/of/mine/index.json", "store/of/another/index.json", "store/notes.txt", "adapter/model"):
        (opened.path / place).parent.mkdir(parents=True, exist_ok=True)
        (opened.path / place).write_text(place, encoding="utf-8")
    opened.open(changed(seed=1), command="c", replace=True, reusable=[opened.path / "store" / "of"])
    left = sorted(str(path.relative_to(opened.path)) for path in opened.path.rglob("*") if path.is_file())
    assert left == ["manifest.json", "store/of/another/index.json", "store/of/mine/index.json"]


def test_a_folder_that_holds_a_plan_only_is_planned_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(IDENTITY, command="first")
    folder.write_json(folder.plan_file, {})
    folder.open(changed(seed=1), command="second")
    assert (folder.manifest()["config"]["seed"], folder.manifest()["command"]) == (1, "second")


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_with_other_files_is_refused_even_to_be_replaced(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match="holds other files and no run"):
        RunFolder(tmp_path).open(IDENTITY, command="c", replace=replace)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_and_what_a_kill_left_of_the_first_file_are_taken(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json-0123456789abcdef").write_text('{"sch', encoding="utf-8")
    RunFolder(tmp_path).open(IDENTITY, command="c")
    assert RunFolder(tmp_path).manifest()["config"] == IDENTITY["config"]


def test_a_file_in_place_of_the_folder_or_above_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        RunFolder(tmp_path / "file").open(IDENTITY, command="c")
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").open(IDENTITY, command="c")


def test_one_run_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        folder.open(IDENTITY, command="c")
        with pytest.raises(RunFolderError, match=r"output: another run is working in .*run. Wait until"):
            folder.held().__enter__()
    with folder.held():
        folder.open(changed(seed=1), command="c", replace=True)
        with pytest.raises(RunFolderError, match="another run is working in"):
            folder.held().__enter__()  # --replace has not removed what keeps others out
    assert [path.name for path in folder.path.iterdir()] == ["manifest.json"]


def test_a_killed_run_frees_the_folder_and_an_unfinished_one_is_taken(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from sst_merge.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).held(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    with RunFolder(tmp_path / "run").held():
        RunFolder(tmp_path / "run").open(IDENTITY, command="c")


def test_a_folder_that_cannot_be_held_is_told_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for folder, message in ((tmp_path, "holds other files"), (tmp_path / "file" / "run", "cannot be written")):
        with pytest.raises(RunFolderError, match=message):
            RunFolder(folder).held().__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space left"):
        RunFolder(tmp_path / "run").held().__enter__()


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is no run folder.*sst-merge run FILE"):
        RunFolder(tmp_path).manifest()
    with pytest.raises(RunFolderError, match=r"plan.json is missing: an earlier stage has not run"):
        RunFolder(tmp_path).read_json(RunFolder(tmp_path).plan_file)


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        (b'{"schema": ', "Expecting value: line 1 column 12"),
        (b"", "Expecting value: line 1 column 1"),
        (b'"\xff"', "'utf-8' codec can't decode"),
        (b"[]", "it holds no keys and values"),
        (b'{"schema": {}}', "it has no identity_sha256"),
    ],
)
def test_a_damaged_file_is_named_with_the_damage_and_the_remedy(opened: RunFolder, content: bytes, damage: str) -> None:
    for file in (opened.manifest_file, opened.arm_file("base")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with pytest.raises(RunFolderError) as caught:
        opened.identity_sha256()
    assert str(caught.value).startswith(f"{opened.manifest_file} is damaged: {damage}")
    assert str(caught.value).endswith(". Throw the run away: sst-merge run FILE --replace")
    with pytest.raises(RunFolderError) as caught:
        opened.read_json(opened.arm_file("base"))["identity_sha256"]
    assert str(caught.value).startswith(f"{opened.arm_file('base')} is damaged: {damage}")
    assert str(caught.value).endswith(". Remove it, and make it again: sst-merge run FILE")


def test_a_run_with_a_damaged_manifest_is_refused_or_replaced(opened: RunFolder) -> None:
    opened.manifest_file.write_text("{", encoding="utf-8")
    for refused in (lambda: opened.refuse_foreign(IDENTITY), lambda: opened.open(IDENTITY, command="c")):
        with pytest.raises(RunFolderError, match=r"manifest.json is damaged: .* Throw the run away"):
            refused()
    opened.open(IDENTITY, command="new", replace=True)
    assert opened.manifest()["command"] == "new"


def test_numbers_that_json_has_not_are_refused(opened: RunFolder) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            opened.write_json(opened.plan_file, {"x": value})
    assert not opened.plan_file.exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    opened: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write_json(opened.plan_file, {"old": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        opened.write_json(opened.plan_file, {"new": 2})
    assert json.loads(opened.plan_file.read_text(encoding="utf-8")) == {"old": 1}
    assert {path.name for path in opened.path.iterdir()} == {"manifest.json", "plan.json", "adapter"}


def test_a_full_disk_stays_a_full_disk_when_the_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        RunFolder(tmp_path / "run").open(IDENTITY, command="c")


def test_time_is_added_up_and_interrupted_time_is_not_counted(
    opened: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 2.0, 10.0, 13.0, 20.0])
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: next(clock))
    for _ in range(2):
        with opened.timed("merge"):
            pass
    with pytest.raises(KeyError), opened.timed("merge"):
        raise KeyError
    assert opened.manifest()["timings_seconds"] == {"merge": 5.0}
    assert opened.identity_sha256() == canonical_sha256({**IDENTITY, "versions": versions()})


def test_too_little_space_is_told_in_gigabytes(tmp_path: Path) -> None:
    require_free_space(tmp_path / "not" / "yet" / "there", 1, "the statistics")
    with pytest.raises(RunFolderError, match=r"the statistics need 1000000000.00 GB, but .* has .* GB free"):
        require_free_space(tmp_path / "not" / "yet" / "there", 10**18, "the statistics")


def test_the_hash_of_a_value_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert canonical_sha256({"a": 1, "b": [1, 2]}) == canonical_sha256({"b": [1, 2], "a": 1})
    assert canonical_sha256({"a": [1, 2]}) != canonical_sha256({"a": [2, 1]})
    assert canonical_sha256({"a": 1}) != canonical_sha256({"a": "1"})
    assert canonical_sha256("é") != canonical_sha256("e\u0301")
