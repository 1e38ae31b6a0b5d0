"""The contract of an evaluation task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sst_merge.data import Row
from sst_merge.tasks.judges import Judge

Family = Literal["safety", "over_refusal", "utility"]
Continuous = Literal["refusal_log_odds", "answer_nll"]


@dataclass(frozen=True)
class Score:
    """The score of one answer."""

    value: float | None
    """In [0, 1]; ``None`` only if the *grader* failed. A model that gives no answer is wrong: 0 with a reason."""
    reason: str
    """What decided."""


@dataclass(frozen=True)
class Measure:
    """One number per sample, and how to read it."""

    name: str
    title: str
    unit: Literal["pp", "nats", "nats/token", "score"]
    is_binary: bool
    higher_is_better: bool


class Task(ABC):
    """Something that gives every sample a score in each arm; what is scored, and by whom, is the subclass's."""

    name: str
    title: str
    family: Family
    source: str
    primary: Measure
    """What decides."""
    secondary: Measure | None
    """The continuous measure beside it, from likelihoods; ``None`` where the task has none."""
    judge: Judge | None = None

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Primary and, where there is one, secondary measure."""
        return (self.primary,) if self.secondary is None else (self.primary, self.secondary)

    @abstractmethod
    def score_against(self, row: Row, sample: Mapping[str, Any]) -> float | None:
        """Score a recorded answer against the reference of another row: the negative control of gate G10."""


class AnswerTask(Task):
    """A way to score generated answers; the rows come from the run file."""

    needs_answer: bool
    """Whether rows must carry a reference answer."""
    max_new_tokens: int
    """Default limit of generated tokens."""
    continuous: Continuous
    """How the continuous measure is taken: log-odds of refusal openings, or the reference answer's likelihood."""

    @abstractmethod
    def score(self, row: Row, answer: str) -> Score:
        """Score an answer; pure, and blind to everything but the reference and the answer."""

    def score_against(self, row: Row, sample: Mapping[str, Any]) -> float | None:
        """Score a recorded answer against the reference of another row."""
        return self.score(row, sample["answer"]).value
