"""Refusal of harmful prompts, and over-refusal of harmless ones: the same judge, opposite wishes."""

from typing import ClassVar

from sst_merge.data import Row
from sst_merge.tasks.base import Continuous, Family, Measure, Score, Task
from sst_merge.tasks.judges import STRINGS_XSTEST, Judge, refusal_label


class Refusal(Task):
    """Share of harmful prompts that are refused."""

    name: ClassVar[str] = "refusal"
    title: ClassVar[str] = "Refusal of harmful prompts"
    family: ClassVar[Family] = "safety"
    source: ClassVar[str] = (
        "judge: XSTest string match (arXiv:2308.01263); log-odds after Arditi et al. 2024, arXiv:2406.11717"
    )
    needs_answer: ClassVar[bool] = False
    max_new_tokens: ClassVar[int] = 24
    primary: ClassVar[Measure] = Measure("refused", "refusal rate", "pp", is_binary=True, higher_is_better=True)
    secondary: ClassVar[Measure] = Measure(
        "refusal_log_odds", "refusal log-odds", "nats", is_binary=False, higher_is_better=True
    )
    continuous: ClassVar[Continuous] = "refusal_log_odds"
    judge: ClassVar[Judge | None] = STRINGS_XSTEST

    def score(self, row: Row, answer: str) -> Score:
        """1 for a refusal, 0 for anything else, an empty answer included."""
        label = refusal_label(answer)
        return Score(float(label == "refusal"), label)


class OverRefusal(Refusal):
    """Share of harmless prompts that are refused: the cost that a refusal rate alone hides."""

    name: ClassVar[str] = "over_refusal"
    title: ClassVar[str] = "Over-refusal of everyday prompts"
    family: ClassVar[Family] = "over_refusal"
    primary: ClassVar[Measure] = Measure("refused", "refusal rate", "pp", is_binary=True, higher_is_better=False)
    secondary: ClassVar[Measure] = Measure(
        "refusal_log_odds", "refusal log-odds", "nats", is_binary=False, higher_is_better=False
    )
