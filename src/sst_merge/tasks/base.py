"""The contract of an evaluation task."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

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
    unit: Literal["pp", "nats", "nats/token"]
    is_binary: bool
    higher_is_better: bool


class Task(ABC):
    """A way to score answers; the rows come from the run file."""

    name: ClassVar[str]
    title: ClassVar[str]
    family: ClassVar[Family]
    source: ClassVar[str]
    needs_answer: ClassVar[bool]
    """Whether rows must carry a reference answer."""
    max_new_tokens: ClassVar[int]
    """Default limit of generated tokens."""
    primary: ClassVar[Measure]
    """What :meth:`score` gives."""
    secondary: ClassVar[Measure]
    """The continuous measure beside it, from likelihoods."""
    continuous: ClassVar[Continuous]
    """How the continuous measure is taken: log-odds of refusal openings, or the reference answer's likelihood."""
    judge: ClassVar[Judge | None] = None

    @abstractmethod
    def score(self, row: Row, answer: str) -> Score:
        """Score an answer; pure, and blind to everything but the reference and the answer."""
