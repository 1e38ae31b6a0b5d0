"""Evaluation tasks: one explicit list that the CLI, the configuration and the contract tests read."""

from sst_merge.tasks.base import Measure, Score, Task
from sst_merge.tasks.exact_match import ExactMatch
from sst_merge.tasks.refusal import OverRefusal, Refusal

TASKS: dict[str, type[Task]] = {"refusal": Refusal, "over_refusal": OverRefusal, "exact_match": ExactMatch}

__all__ = ["TASKS", "Measure", "Score", "Task"]
