"""Any task of lm-evaluation-harness, by name: ``lm_eval:mmlu``, ``lm_eval:gsm8k`` (extra ``eval``).

lm-eval loads the questions, writes the prompts, reads the likelihoods or the generated text and scores them; this
module only hands it the one loaded model whose weights the arms exchange, and keeps a record of every sample, so that
arms can be paired. A group such as ``mmlu`` is its leaf tasks side by side.
"""

import contextlib
import hashlib
import io
import json
import math
import numbers
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sst_merge.data import Row, content_id
from sst_merge.errors import ConfigError, DataError
from sst_merge.models import Base
from sst_merge.tasks.base import Family, Measure, Task
from sst_merge.tasks.local_copy import dataset_of

PREFIX = "lm_eval:"
FEWSHOT_SEED = 1234
"""Of the examples before a question; lm-eval's own default."""
BINARY = frozenset({"acc", "acc_norm", "acc_bytes", "exact_match", "pass@1", "pass_at_1"})


class LmEval(Task):
    """A task of lm-evaluation-harness; its utility is the task's first metric under its first filter."""

    family: Family = "utility"

    def __init__(
        self,
        name: str,
        *,
        subtasks: Sequence[str] | None = None,
        fewshot: int | None = None,
        copy: Path | None = None,
        allow_code_execution: bool = False,
    ) -> None:
        """Load the task's data.

        Args:
            name: ``lm_eval:<task or group>``.
            subtasks: Leaf tasks of a group to keep; all of them when left out.
            fewshot: Examples before each question, ``>= 0``; the task's own number when left out.
            copy: A local copy of the data, instead of the hub.
            allow_code_execution: Let tasks run code that the model wrote.

        Raises:
            ConfigError: If lm-eval is not installed, knows no such task, or the task runs code and may not.
            DataError: If the data cannot be loaded.
        """
        self.name = name
        manager = _manager()
        known = _leaves(manager, name.removeprefix(PREFIX))
        self.leaves = _chosen(known, subtasks, name)
        for leaf in self.leaves:
            if manager.task_index[leaf].cfg.get("unsafe_code"):
                if not allow_code_execution:
                    raise ConfigError(
                        f"{name} runs code that the model wrote, on this machine and without a sandbox. If that is "
                        "wanted, give --allow-code-execution (evaluation.allow_code_execution: true in a run file)."
                    )
                os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # what the metric itself asks for
        self.tasks = {leaf: _loaded(manager, leaf, copy) for leaf in self.leaves}
        for task in self.tasks.values():
            if fewshot is not None:
                task.set_config("num_fewshot", fewshot)
            task.set_fewshot_seed(FEWSHOT_SEED)
        self.allow_code_execution = allow_code_execution
        first = next(iter(self.tasks.values()))
        if not first.config.metric_list:
            raise ConfigError(f"{name} names no metric, so nothing can be compared on it.")
        metric = first.config.metric_list[0]
        self.metric = metric["metric"] if isinstance(metric["metric"], str) else "pass@1"  # HumanEval's is a function
        better = bool(metric.get("higher_is_better", True))
        is_binary = self.metric in BINARY
        self.primary = Measure(self.metric, self.metric, "pp" if is_binary else "score", is_binary, better)
        chosen = "choice_log_probability"
        is_choice = first.OUTPUT_TYPE == "multiple_choice"
        self.secondary = (
            Measure(chosen, "log-probability of the right choice", "nats", False, True) if is_choice else None
        )
        splits = sorted({str(task.config.test_split or task.config.validation_split) for task in self.tasks.values()})
        shots = first.config.num_fewshot or 0
        self.title = f"{name.removeprefix(PREFIX)} ({shots}-shot, {' and '.join(splits)} questions)"
        self.notes: list[str] = []
        self.source = f"lm-evaluation-harness {_lm_eval_version()}, task {name.removeprefix(PREFIX)}"
        examples = {
            leaf: list(task.fewshot_docs() or ()) for leaf, task in self.tasks.items() if task.config.num_fewshot
        }
        self.asked_by = {
            "lm_eval": _lm_eval_version(),
            "examples": hashlib.sha256(json.dumps(examples, sort_keys=True, default=str).encode()).hexdigest(),
        }
        """What of the questions' words, of the metric and of the examples before a question is not in the rows."""

    def rows(self, *, seed: int, samples: int | None) -> list[Row]:
        """Questions of all leaf tasks, ``samples`` of each at most; an equal question is taken once.

        The id is the hash of the question's text as the task writes it, so that training rows of the same text show.
        """
        found: dict[str, Row] = {}
        self.notes = []
        self._places: dict[str, tuple[str, int]] = {}
        for leaf, task in self.tasks.items():
            documents = [(index, _text(task, document)) for index, document in enumerate(task.eval_docs)]
            documents.sort(key=lambda entry: content_id(f"{seed}:{leaf}:{entry[1]}"))
            if samples is not None and len(documents) < samples:
                self.notes.append(f"{leaf} has {len(documents)} questions, {samples} were asked for; all are used")
            for index, text in documents[:samples]:
                row = Row(content_id(text), text, _target(task, task.eval_docs[index]))
                if row.id in found:
                    self.notes.append(f"{leaf}: question {index} is asked twice with the same words; taken once")
                    continue
                found[row.id] = row
                self._places[row.id] = (leaf, index)
        return list(found.values())

    def training_rows(self) -> list[Row]:
        """Questions with answers from every split that is not evaluated."""
        rows: dict[str, Row] = {}
        for task in self.tasks.values():
            used = task.config.test_split or task.config.validation_split
            for split in sorted(set(task.dataset) - {used}):
                for document in task.dataset[split]:
                    text, answer = _text(task, document), _answer(task, document)
                    if answer:
                        rows.setdefault(content_id(text), Row(content_id(text), text, answer))
        return list(rows.values())

    def batches(self, rows: Sequence[Row], batch_size: int) -> list[list[int]]:
        """Positions of the rows in batches of one leaf task each."""
        by_leaf: dict[str, list[int]] = defaultdict(list)
        for position, row in enumerate(rows):
            by_leaf[self._places[row.id][0]].append(position)
        size = max(batch_size, 32)
        return [places[i : i + size] for places in by_leaf.values() for i in range(0, len(places), size)]

    def harness_model(self, base: Base, batch_size: int) -> Any:
        """lm-eval's view of the loaded model; it reads whatever weights the model has when it is asked."""
        from lm_eval.models.huggingface import HFLM

        # The chat template writes all special tokens itself: without this, some tokenizers add a second BOS.
        settings: dict[str, Any] = {"backend": "causal", "batch_size": batch_size, "add_bos_token": False}
        settings |= {"max_length": base.context} if base.context is not None else {}
        model: Any = HFLM
        return model(pretrained=base.model, tokenizer=base.tokenizer, **settings)

    def evaluate(self, model: Any, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Records of one batch of rows of one leaf task.

        Args:
            model: What :meth:`harness_model` gave.
            rows: Rows of one leaf task.

        Returns:
            One record per row, in their order.
        """
        from lm_eval.evaluator import evaluate

        (leaf,) = {self._places[row.id][0] for row in rows}
        # The default sampler draws from one stream: begun anew with each batch, examples are the same in every arm, and
        # after an interruption.
        self.tasks[leaf].set_fewshot_seed(FEWSHOT_SEED)
        indices = sorted(self._places[row.id][1] for row in rows)  # lm-eval reads them in this order
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars; ours counts the samples
            results: Any = evaluate(
                model,
                {"tasks": {leaf: self.tasks[leaf]}, "groups": {}, "group_map": {}},  # pyright: ignore[reportArgumentType]
                samples={leaf: indices},
                bootstrap_iters=0,
                apply_chat_template=True,
                confirm_run_unsafe_code=self.allow_code_execution,
            )
        samples: dict[int, dict[str, Any]] = {}
        for sample in results["samples"][leaf]:
            samples.setdefault(sample["doc_id"], sample)  # the first filter's
        return [self._record(row, leaf, samples[self._places[row.id][1]]) for row in rows]

    def _record(self, row: Row, leaf: str, sample: Mapping[str, Any]) -> dict[str, Any]:
        task = self.tasks[leaf]
        responses = _plain(sample["filtered_resps"])
        record = {
            "id": row.id,
            "cluster": row.cluster,
            "prompt": str(sample["arguments"][0][0]),
            "answer": _said(task, sample["doc"], responses),
            "tokens": None,
            "is_truncated": None,
            self.metric: self._value(sample, leaf),
            "reason": f"{leaf}, filter {sample['filter']}",
            "responses": responses,
        }
        if self.secondary is not None:
            record[self.secondary.name] = _right_choice(task, sample["doc"], responses)
        return record

    def _value(self, metrics: Mapping[str, Any], leaf: str) -> float:
        """The primary metric of one sample.

        Raises:
            ConfigError: If lm-eval gave no single number under this name.
        """
        value = metrics.get(self.metric)
        if not isinstance(value, numbers.Real):
            raise ConfigError(
                f"lm_eval:{leaf} gives no number called {self.metric} for each sample (got {value!r}), so arms cannot "
                "be compared sample by sample on it. Use another task."
            )
        return float(value)

    def score_against(self, row: Row, sample: Mapping[str, Any]) -> float | None:
        """A recorded response scored by lm-eval against another row's target."""
        leaf, index = self._places[row.id]
        task = self.tasks[leaf]
        responses = [tuple(r) if isinstance(r, list) else r for r in sample["responses"]]
        return self._value(task.process_results(task.eval_docs[index], responses), leaf)


def is_lm_eval(name: str) -> bool:
    """Whether a task's name is one of lm-eval's."""
    return name.startswith(PREFIX)


def lm_eval_entry(name: str) -> dict[str, Any]:
    """What a task of lm-eval is, from lm-eval's index; its data are not loaded.

    Raises:
        ConfigError: If lm-eval is not installed, or knows no such task.
    """
    manager, task = _manager(), name.removeprefix(PREFIX)
    leaves = _leaves(manager, task)
    settings = manager.task_index[leaves[0]].cfg or {}
    metric = (settings.get("metric_list") or [{}])[0].get("metric")
    return {
        "about": f"Task {task} of lm-evaluation-harness" + ("" if leaves == [task] else f", {len(leaves)} tasks"),
        "family": LmEval.family,
        "measures": metric if isinstance(metric, str) else "the task's first metric",
        "judge": "none",
        "source": f"lm-evaluation-harness {_lm_eval_version()}, data {settings.get('dataset_path') or 'of its own'}",
        "needs answers": "no: lm-eval brings its questions, from the hub or from a local copy given as data",
        **({} if leaves == [task] else {"subtasks": ", ".join(leaves)}),
    }


@cache
def _manager() -> Any:
    """lm-eval's index of its tasks; reading it takes seconds."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            "lm_eval: tasks need the extra 'eval'. Run: pip install 'sst-merge[eval]'  (in a checkout: "
            "pip install -e '.[eval]' -c constraints.txt)"
        ) from error
    return TaskManager()


def _lm_eval_version() -> str:
    from importlib.metadata import version

    return version("lm-eval")


def _leaves(manager: Any, name: str) -> list[str]:
    """Leaf tasks of a task, group or tag, in sorted order."""
    index = manager.task_index
    if name not in index:
        import difflib

        near = difflib.get_close_matches(name, list(index), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"lm-eval knows no task '{name}'.{hint} List them: lm-eval ls tasks")
    entry = index[name]
    kind = entry.kind.name
    if kind in {"TASK", "PY_TASK"}:
        return [name]
    members = sorted(entry.tags) if kind == "TAG" else entry.cfg.get("task") or []
    if not all(isinstance(member, str) for member in members):
        raise ConfigError(f"lm-eval's group '{name}' defines tasks inside itself; name one of its tasks instead.")
    return sorted({leaf for member in members for leaf in _leaves(manager, member)})


def _chosen(known: list[str], subtasks: Sequence[str] | None, name: str) -> list[str]:
    if subtasks is None:
        return known
    unknown = [task for task in subtasks if task not in known]
    if unknown:
        raise ConfigError(f"subtasks: {', '.join(unknown)} is not in {name}. It has: {', '.join(known)}.")
    return list(subtasks)


def _loaded(manager: Any, leaf: str, copy: Path | None) -> Any:
    """One leaf task with its data."""
    spec: dict[str, Any] = {"task": leaf}
    if copy is not None:
        config = manager.task_index[leaf].cfg
        made = dataset_of(copy, config)
        spec["custom_dataset"] = lambda **_: made
        if config.get("test_split") and config["test_split"] not in made:
            spec["test_split"] = "validation"
    from datasets.exceptions import DatasetsError

    try:
        loaded = manager.load([{"group": "sst_merge", "task": [spec]}])
    except (OSError, ValueError, DatasetsError, ImportError) as error:
        where = copy or manager.task_index[leaf].cfg.get("dataset_path")
        raise DataError(
            f"lm_eval:{leaf}: cannot load {where}: {error}\n"
            "  Without the hub, give a local copy: --data NAME=PATH (data: PATH in a run file)."
        ) from error
    (task,) = loaded["tasks"].values()
    return task


def _text(task: Any, document: Mapping[str, Any]) -> str:
    """The question as the task writes it, without description and examples."""
    text = task.doc_to_text(document)
    return text if isinstance(text, str) else json.dumps(document, sort_keys=True, default=str)


def _target(task: Any, document: Mapping[str, Any]) -> str:
    return str(task.doc_to_target(document))


def _answer(task: Any, document: Mapping[str, Any]) -> str | None:
    """The right answer in words; ``None`` where the task does not say."""
    target = task.doc_to_target(document)
    if task.OUTPUT_TYPE == "multiple_choice" and isinstance(target, int):
        choices = task.doc_to_choice(document)
        target = choices[target] if 0 <= target < len(choices) else None
    return target.strip() or None if isinstance(target, str) else None


def _said(task: Any, document: Mapping[str, Any], responses: list[Any]) -> str:
    """What the model answered: the likeliest choice, or the text."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return str(responses[0])
    values = [response[0] for response in responses]
    choices = task.doc_to_choice(document)
    return str(choices[max(range(len(choices)), key=lambda index: values[index])])


def _right_choice(task: Any, document: Mapping[str, Any], responses: list[Any]) -> float | None:
    """Log-probability of the right choice among all choices, in nats."""
    target = task.doc_to_target(document)
    choices = task.doc_to_choice(document)
    if isinstance(target, str):
        target = choices.index(target)
    values = [float(response[0]) for response in responses][: len(choices)]
    top = max(values)
    return values[int(target)] - top - math.log(sum(math.exp(value - top) for value in values))


def _plain(value: Any) -> Any:
    """Responses as JSON types."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | bool | int | float) or value is None else float(value)
