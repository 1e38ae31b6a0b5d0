"""Atomic writing: whole files or none, and the names of what is unfinished."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sst_merge import atomic
from sst_merge.atomic import UNFINISHED, replace_file


def test_a_replaced_file_holds_the_text_and_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    replace_file(path, "é\n")
    replace_file(path, "ü\n")
    assert path.read_bytes() == "ü\n".encode()
    (tmp_path / "ordinary").write_text("")
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_an_interrupted_replacement_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.json"
    replace_file(path, "old")

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    text = "new"
    if step == "write":
        text = "new \ud800"  # no UTF-8
    elif step == "fsync":
        monkeypatch.setattr(atomic.os, "fsync", interrupt)
    else:
        monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises((KeyboardInterrupt, UnicodeEncodeError)):
        replace_file(path, text)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_safetensors_leaves_when_it_is_killed_counts_as_unfinished(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys, torch; from safetensors.torch import save_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "save_file({'a': torch.ones(10_000)}, sys.argv[1])"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.safetensors")], check=False)
    assert killed.returncode == -signal.SIGXFSZ
    (left,) = tmp_path.iterdir()
    assert UNFINISHED.fullmatch(left.name)
