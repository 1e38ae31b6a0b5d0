"""Reading and repairing the files that hold samples."""

import json
from pathlib import Path

import pytest

from sst_merge.errors import RunFolderError
from sst_merge.stages.evaluate import _whole_batches, relative_distance
from sst_merge.stages.report import _read_samples
from tiny import random_adapter, tiny_base, zero_adapter

BATCHES = [["a", "b"], ["c", "d"], ["e"]]
NASTY = "one\u2028two\u0085three\u2029\x0b\x1c\x00 \r\n \U0001f600 é \\"  # splitlines() splits at eight of these


def line(name: str, answer: str = NASTY) -> bytes:
    return (json.dumps({"id": name, "answer": answer}, ensure_ascii=False) + "\n").encode()


def whole(names: str) -> bytes:
    return b"".join(line(name) for name in names)


def test_a_file_that_is_not_there_has_no_batch(tmp_path: Path) -> None:
    assert _whole_batches(tmp_path / "x.jsonl", BATCHES) == 0


@pytest.mark.parametrize(
    ("content", "done", "kept"),
    [
        (b"", 0, ""),
        (whole("a"), 0, ""),
        (whole("ab"), 1, "ab"),
        (whole("abc"), 1, "ab"),
        (whole("abcd"), 2, "abcd"),
        (whole("abcde"), 3, "abcde"),
        (whole("abcde")[:-1], 2, "abcd"),  # the line end alone is lacking
        (whole("abc") + line("d")[:9], 1, "ab"),
        (whole("ab") + b"\x00" * 40 + b"\n", 1, "ab"),  # what some file systems leave after a power cut
        (whole("ab") + b'{"id": "c"}\n{"no": 1}\n', 1, "ab"),
        (whole("ab") + b"[]\n", 1, "ab"),
        (whole("ba"), 0, ""),
        (whole("abxd"), 1, "ab"),
        (whole("abcdef"), 3, "abcde"),
    ],
)
def test_whole_batches_are_kept_and_the_rest_is_cut_off(tmp_path: Path, content: bytes, done: int, kept: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    assert _whole_batches(file, BATCHES) == done
    assert file.read_bytes() == whole(kept)


def test_a_file_may_be_torn_at_any_byte(tmp_path: Path) -> None:
    file, content = tmp_path / "x.jsonl", whole("abcde")
    two, four = len(whole("ab")), len(whole("abcd"))
    for size in range(len(content) + 1):  # inside a character of four bytes, too
        file.write_bytes(content[:size])
        expected = (size >= two) + (size >= four) + (size == len(content))
        assert _whole_batches(file, BATCHES) == expected
        assert file.read_bytes() == whole(["", "ab", "abcd", "abcde"][expected])


def test_samples_are_read_whatever_their_answers_hold(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(whole("abc"))
    assert _read_samples(file) == [{"id": name, "answer": NASTY} for name in "abc"]


@pytest.mark.parametrize("content", [b"{", b"[]\n", b'{"no": 1}\n', b"\xff\xfe\n", b"1\n", whole("ab")[:-9]])
def test_a_damaged_file_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"x.jsonl is damaged"):
        _read_samples(file)


def test_the_distance_to_the_reference_is_relative_to_it() -> None:
    base = tiny_base()
    one = random_adapter(base, seed=1)
    assert relative_distance({}, one) == 1.0
    assert relative_distance(one, one) == pytest.approx(0.0, abs=1e-6)
    doubled = {name: update.scaled(2.0) for name, update in one.items()}
    assert relative_distance(doubled, one) == pytest.approx(1.0)
    assert relative_distance(one, zero_adapter(base)) is None
