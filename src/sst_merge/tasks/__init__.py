"""Evaluation tasks: one explicit list that the CLI, the configuration and the contract tests read."""

from collections.abc import Sequence
from pathlib import Path

from sst_merge.tasks.base import AnswerTask, Measure, Score, Task
from sst_merge.tasks.exact_match import ExactMatch
from sst_merge.tasks.lm_eval_task import LmEval, is_lm_eval, lm_eval_entry
from sst_merge.tasks.refusal import OverRefusal, Refusal

TASKS: dict[str, type[AnswerTask]] = {"refusal": Refusal, "over_refusal": OverRefusal, "exact_match": ExactMatch}


def build_task(
    name: str,
    *,
    subtasks: Sequence[str] | None = None,
    fewshot: int | None = None,
    copy: Path | None = None,
    allow_code_execution: bool = False,
) -> AnswerTask | LmEval:
    """A task by name: one of :data:`TASKS`, or ``lm_eval:<task>`` with the further arguments of :class:`LmEval`."""
    if is_lm_eval(name):
        return LmEval(name, subtasks=subtasks, fewshot=fewshot, copy=copy, allow_code_execution=allow_code_execution)
    return TASKS[name]()


__all__ = ["TASKS", "AnswerTask", "LmEval", "Measure", "Score", "Task", "build_task", "is_lm_eval", "lm_eval_entry"]
