"""Reading and repairing the files that hold samples."""

import json
from pathlib import Path

import pytest

from sst_merge.data import Row
from sst_merge.errors import NumericalError, RunFolderError
from sst_merge.methods.sst import Sst
from sst_merge.models import Base
from sst_merge.run_folder import RunFolder
from sst_merge.stages.evaluate import _probe, _whole_batches, relative_distance
from sst_merge.stages.report import _read_lines
from tiny import random_adapter, tiny_base, zero_adapter
from tiny_run import copied, run_tiny

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
    assert _read_lines(file, "id", "Run again.") == [{"id": name, "answer": NASTY} for name in "abc"]


@pytest.mark.parametrize("content", [b"{", b"[]\n", b'{"no": 1}\n', b"\xff\xfe\n", b"1\n", whole("ab")[:-9]])
def test_a_damaged_file_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"x.jsonl is damaged. Run again."):
        _read_lines(file, "id", "Run again.")


def test_weights_without_likelihoods_stop_the_evaluation(inputs: Path, base: Base, tmp_path: Path) -> None:
    own = copied(inputs, tmp_path / "inputs")
    file = own / "safety" / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "lora_alpha": 1e38}), encoding="utf-8")
    with pytest.raises(NumericalError) as caught:
        run_tiny(own, tmp_path / "run", base, method={"name": "linear"}, comparisons=None, calibration=None)
    assert str(caught.value) == (
        "arm 'safety', task refusal: the likelihoods of 4 of 4 samples in a batch are NaN or infinite; none of them "
        "was kept. The arm's weights overflow or hold NaN: look at the files of base_model and at lora_alpha of the "
        "adapters, or set dtype: float32."
    )
    assert (tmp_path / "run" / "scores" / "safety" / "refusal.jsonl").read_bytes() == b""


def test_a_probe_without_likelihoods_stops_the_evaluation(tmp_path: Path) -> None:
    broken = tiny_base()
    broken.model.model.norm.weight[0] = float("nan")
    rows = {"refusal": [Row(str(number), "Hi. " * number) for number in range(1, 4)]}
    with pytest.raises(NumericalError, match=r"arm 'base', probe: the likelihoods of 3 of 3 samples"):
        _probe("base", broken, rows, RunFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_distance_to_the_reference_is_relative_to_it() -> None:
    base = tiny_base()
    one = random_adapter(base, seed=1)
    assert relative_distance({}, one) == 1.0
    assert relative_distance(one, one) == pytest.approx(0.0, abs=1e-6)
    doubled = {name: update.scaled(2.0) for name, update in one.items()}
    assert relative_distance(doubled, one) == pytest.approx(1.0)
    assert relative_distance(one, zero_adapter(base)) is None


def test_comparisons_that_differ_in_strength_and_weight_alone_are_steered_once(
    inputs: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steered: list[str] = []
    whole = Sst.merge_module
    monkeypatch.setattr(
        Sst, "merge_module", lambda self, part, *more: steered.append(part.name) or whole(self, part, *more)
    )
    soft = {"name": "sst", "keep": {"soft": 10}}
    settings = [{"strength": 2}, {"strength": 1.5}, {"strength": 0.5, "utility_weight": 0.8}]
    compared = [{**soft, **dials, "label": f"number_{number}"} for number, dials in enumerate(settings)]
    results = run_tiny(inputs, tmp_path / "run", base, comparisons=compared)
    assert len(steered) == 2 * len(set(steered))  # for the adapter that is written, and for all comparisons
    by_itself = run_tiny(inputs, tmp_path / "second", base, comparisons=None, method={**soft, **settings[2]})
    first, second = ({arm["name"]: arm["weights_sha256"] for arm in found["arms"]} for found in (results, by_itself))
    assert first["number_2"] == second["merged"]
    assert len({first[arm] for arm in ("merged", "number_0", "number_1", "number_2")}) == 4
