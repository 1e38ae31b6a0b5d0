"""``audit`` and ``compare``: output, exit codes and messages."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exp1_files import LEGACY, MISTRAL, own, written
from sst_merge.experiments import statements
from sst_merge.experiments.audit import audit_files

Command = Callable[..., Any]


def test_audit_prints_text_markdown_or_json_and_ends_with_0(sst: Command) -> None:
    ended = sst("audit", *LEGACY)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == statements.as_text(audit_files(LEGACY)) + "\n"
    assert sst("audit", "--markdown", *LEGACY).out == statements.as_markdown(audit_files(LEGACY)) + "\n"
    found = json.loads(sst("audit", "--json", *LEGACY).out)
    assert [audit["file"] for audit in found] == [str(path) for path in LEGACY]
    assert [audit["supported"] for audit in found] == [False] * 3
    assert {"file", "kind", "statements", "numbers", "supported"} <= found[0].keys()


def test_audit_takes_a_seed_and_one_format(sst: Command) -> None:
    assert "numpy seed 7" in " ".join(sst("audit", "--seed", 7, MISTRAL).out.split())
    ended = sst("audit", "--json", "--markdown", MISTRAL)
    assert (ended.code, ended.out) == (1, "")
    assert "give --json or --markdown, not both" in ended.err


@pytest.mark.parametrize("command", ["audit", "compare"])
def test_a_bad_file_beside_a_good_one_is_one_message_and_no_output(sst: Command, tmp_path: Path, command: str) -> None:
    other = written(tmp_path / "other.json", {"loss": 1.0, "step": 3})
    for bad, message in ((tmp_path / "gone.json", "no such file"), (other, "Fields found: loss, step")):
        ended = sst(command, MISTRAL, bad)
        assert (ended.code, ended.out) == (1, "")
        assert message in ended.err
        assert str(bad) in ended.err
        assert len(ended.err.splitlines()) == 1
    assert sst(command).code == 2


def test_compare_prints_a_table_or_writes_a_file(sst: Command, tmp_path: Path) -> None:
    path = written(tmp_path / "own.json", own())
    ended = sst("compare", path, *LEGACY)
    assert ended.code == 0
    assert "(NO_DETECTABLE_GAIN)" in ended.out
    assert "(legacy file)" in ended.out
    page = tmp_path / "page.html"
    ended = sst("compare", path, "--format", "html", "--output", page)
    assert ended.out == f"2 rows -> {page}\n"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sst("compare", path, "--output", tmp_path / "table.txt").code == 0
    assert "undefined" in (tmp_path / "table.txt").read_text(encoding="utf-8")
    for style in ("markdown", "csv", "json"):
        assert sst("compare", path, "--format", style).code == 0


def test_compare_refuses_an_unknown_format_and_an_output_that_cannot_be_written(sst: Command, tmp_path: Path) -> None:
    ended = sst("compare", MISTRAL, "--format", "pdf")
    assert (ended.code, ended.out) == (1, "")
    assert "--format pdf is unknown" in ended.err
    for output in (tmp_path / "gone" / "table.txt", tmp_path):
        ended = sst("compare", MISTRAL, "--output", output)
        assert ended.code == 1
        assert f"--output {output} is no file in a folder that is there. Give a file to write." in ended.err


def test_compare_writes_the_file_that_a_link_leads_to_whole_or_not_at_all(
    sst: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "table.txt").write_text("old", encoding="utf-8")
    (tmp_path / "link.txt").symlink_to(tmp_path / "table.txt")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "no space left on the disk" in sst("compare", MISTRAL, "--output", tmp_path / "link.txt").err
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") == "old"
    assert sst("compare", MISTRAL, "--output", tmp_path / "link.txt").code == 0
    assert "undefined" in (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.txt", "table.txt"]
    assert (tmp_path / "link.txt").is_symlink()


@pytest.mark.parametrize("command", ["audit", "compare"])
def test_reading_results_needs_no_torch(command: str) -> None:
    script = (
        "import sys\nfrom sst_merge import cli\n"
        "try:\n    cli.main()\nfinally:\n    assert not {'torch', 'transformers', 'plotly'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, command, str(MISTRAL)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
