"""Exact match against a reference answer: the utility task for any prompts with short answers."""

import re

from sst_merge.data import Row
from sst_merge.tasks.base import AnswerTask, Continuous, Family, Measure, Score
from sst_merge.tasks.judges import refusal_label


class ExactMatch(AnswerTask):
    """Share of prompts whose answer is the reference, case, white space and outer punctuation ignored."""

    name: str = "exact_match"
    title: str = "Exact match"
    family: Family = "utility"
    source: str = "normalisation after SQuAD's exact match (Rajpurkar et al. 2016, arXiv:1606.05250), articles kept"
    needs_answer: bool = True
    max_new_tokens: int = 16
    primary: Measure = Measure("correct", "accuracy", "pp", is_binary=True, higher_is_better=True)
    secondary: Measure | None = Measure(
        "answer_nll", "NLL of the reference answer", "nats/token", is_binary=False, higher_is_better=False
    )
    continuous: Continuous = "answer_nll"

    def score(self, row: Row, answer: str) -> Score:
        """1 if the normalised answer is the reference; a refusal or an empty answer is wrong, not unscored."""
        assert row.answer is not None
        if normalise(answer) == normalise(row.answer):
            return Score(1.0, "match")
        label = refusal_label(answer)
        return Score(0.0, "other answer" if label == "compliance" else label)


def normalise(text: str) -> str:
    """Fold case and white space, strip punctuation at both ends; a number keeps its sign, an answer of symbols itself.

    Example:
        >>> normalise("  Aunt. ") == normalise("aunt"), normalise("**-4.**")
        (True, '-4')
    """
    folded = " ".join(text.split()).casefold()
    return re.sub(r"^(?:(?![-\u2212]?\.?\d)\W)+|\W+$", "", folded) or folded
