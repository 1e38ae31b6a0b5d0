"""What the report says of a run beside its numbers."""

from sst_merge.data import DataSource
from sst_merge.stages.report import _named


def test_calibration_sources_are_named_with_what_makes_them_other_data() -> None:
    plain = DataSource(data="harmful.jsonl", split="calibration", samples=64)  # samples are counted beside it
    answered = DataSource(data="harmless.jsonl", answers="refusals.txt", weight=0.5)
    assert _named([plain]) == "harmful.jsonl (calibration)"
    assert (
        _named([plain, answered])
        == "harmful.jsonl (calibration), harmless.jsonl (all, answers refusals.txt, weight 0.5)"
    )
    assert _named(None) is None
