"""Exact match and what it ignores."""

import pytest

from sst_merge.data import Row
from sst_merge.tasks.exact_match import ExactMatch, normalise

TASK = ExactMatch()


def row(answer: str) -> Row:
    return Row(id="0" * 16, prompt="p", answer=answer)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("Aunt", "aunt"),
        ("Aunt", " Aunt.\n"),
        ("Aunt", '"AUNT!"'),
        ("New York", "new   york"),
        ("Straße", "STRASSE"),
        ("4", "4."),
        ("-4", "**-4.**"),
        ("4", "- 4"),
        ("東京", "東京。"),
        ("don't", "Don't"),
    ],
)
def test_case_white_space_and_outer_punctuation_are_ignored(reference: str, answer: str) -> None:
    assert TASK.score(row(reference), answer).value == 1.0


@pytest.mark.parametrize(
    ("reference", "answer", "reason"),
    [
        ("Aunt", "Uncle", "other answer"),
        ("Aunt", "The aunt", "other answer"),
        ("Aunt", "Aunt or uncle", "other answer"),
        ("Aunt", "Au nt", "other answer"),
        ("4", "-4.5", "other answer"),
        ("Aunt", "I cannot say.", "refusal"),
        ("Aunt", "", "empty"),
        ("Aunt", "...", "other answer"),
    ],
)
def test_anything_else_is_wrong_with_a_reason(reference: str, answer: str, reason: str) -> None:
    score = TASK.score(row(reference), answer)
    assert (score.value, score.reason) == (0.0, reason)


def test_a_reference_that_looks_like_a_refusal_is_right_when_it_is_given() -> None:
    assert TASK.score(row("No."), "no").value == 1.0
    assert TASK.score(row("I cannot"), "I cannot.").value == 1.0


@pytest.mark.parametrize(
    ("one", "other"), [("4", "-4"), ("4", "\u22124."), ("5", ".5"), ("-5", "-.5"), ("+", "-"), ("<", "...")]
)
def test_signs_and_symbols_are_no_punctuation_that_one_may_ignore(one: str, other: str) -> None:
    assert TASK.score(row(one), other).value == 0.0
    assert TASK.score(row(other), one).value == 0.0
    assert TASK.score(row(other), f" {other} ").value == 1.0


def test_normalising_twice_changes_nothing() -> None:
    for text in ("  Aunt. ", "«Oui»", "a - b", "", "...", "4."):
        assert normalise(normalise(text)) == normalise(text)
