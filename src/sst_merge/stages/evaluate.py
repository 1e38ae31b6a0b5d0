"""Evaluate: every arm on the same samples, in the same batches, by generated text and by likelihood.

An arm is the base with an update added to its weights. The weights are hashed in the process that evaluates them.
Samples are appended batch by batch; a killed evaluation goes on at the first batch that is not there.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from sst_merge.adapter import Updates, concatenate, squared_norm, total_norm
from sst_merge.adapter_io import folder_sha256, read_adapter
from sst_merge.config import ARMS, EvaluationConfig, TaskConfig
from sst_merge.data import Row
from sst_merge.errors import NumericalError
from sst_merge.inference import (
    Completion,
    Encoded,
    ReadPrompts,
    check_room,
    continuation_log_likelihoods,
    encode,
    generate,
    length_sorted,
    messages,
    next_token_log_probabilities,
    prefix_log_likelihoods,
    read_prompts,
)
from sst_merge.models import Base
from sst_merge.progress import Reporter
from sst_merge.run_folder import RunFolder, canonical_sha256
from sst_merge.stages.calibrate import LazyBase
from sst_merge.stages.merge import Merged, merge_reusing, patch_key
from sst_merge.stages.plan import Plan, Role
from sst_merge.stages.rows import answer_room
from sst_merge.statistics import Statistics
from sst_merge.statistics.stored import save_tensors
from sst_merge.tasks import AnswerTask, LmEval
from sst_merge.tasks.judges import COMPLIANCE_OPENINGS, REFUSAL_OPENINGS
from sst_merge.weights import applied
from sst_merge.wheels import file_sha256

PROBES = 16


@dataclass(frozen=True)
class Arm:
    """One model to evaluate."""

    name: str
    updates: Updates
    artefact_sha256: str | None
    """Hash of the adapter folder the updates were read from; none for the base and for comparisons."""


def arm_names(made: Plan) -> list[str]:
    """Names of the arms, in the order of the report."""
    return [*ARMS, *(method.arm for method in made.config.comparisons)]


def evaluate(made: Plan, base: LazyBase, statistics: Statistics | None, reporter: Reporter) -> None:
    """Fill ``scores/``: one file per arm and task; what is complete is kept.

    Raises:
        AdapterError: If an adapter cannot be read or its values are not finite.
        ModelError: If an adapter does not fit the model.
        NumericalError: If a likelihood is NaN or infinite.
    """
    if made.config.evaluation is None:
        return
    patches: dict[str, Merged] = {}
    for name in arm_names(made):
        if is_complete(made, name):
            continue
        made.folder.arm_file(name).unlink(missing_ok=True)  # with it an arm counts as summarised
        with made.folder.timed(f"evaluate.{name}"):
            arm = _arm(made, name, statistics, patches, reporter)
            evaluate_arm(
                arm,
                base(),
                made.config.evaluation,
                made.inputs.tasks,
                made.inputs.evaluation,
                made.folder,
                reporter,
                reference=made.updates("utility"),
            )
        later = [patch_key(method) for method in made.config.comparisons if not is_complete(made, method.arm)]
        patches = {key: patch for key, patch in patches.items() if key in later}


def is_complete(made: Plan, name: str) -> bool:
    """Whether an arm was evaluated, its summary written last, and all its files are there."""
    folder = made.folder
    files = [folder.scores_file(name, task) for task in made.inputs.evaluation]
    return all(file.is_file() for file in (folder.arm_file(name), folder.probe_file(name), *files))


def _arm(made: Plan, name: str, statistics: Statistics | None, patches: dict[str, Merged], reporter: Reporter) -> Arm:
    """The updates of an arm; the merged one is read back from the adapter that was written."""
    if name == "base":
        return Arm(name, {}, None)
    roles: dict[str, Role] = {"utility": "utility", "safety": "safety"}
    if name in roles:
        return Arm(name, made.updates(roles[name]), made.identity["inputs"][name])
    if name == "merged":
        return Arm(name, read_adapter(made.folder.adapter).updates, folder_sha256(made.folder.adapter))
    method = next(method for method in made.config.comparisons if method.arm == name)
    utility, safety = made.updates("utility"), made.updates("safety")
    merged = merge_reusing(patches, method, utility, safety, statistics, seed=made.config.seed, reporter=reporter)
    return Arm(name, merged.updates, None)


def evaluate_arm(
    arm: Arm,
    base: Base,
    evaluation: EvaluationConfig,
    tasks: dict[str, AnswerTask | LmEval],
    rows: dict[str, list[Row]],
    folder: RunFolder,
    reporter: Reporter,
    *,
    reference: Updates,
) -> None:
    """Evaluate one arm on all tasks and write its summary.

    Args:
        arm: What to add to the base.
        base: The loaded model.
        evaluation: Batch size, and settings per task.
        tasks: What scores the answers, by name.
        rows: Rows per task.
        folder: Where ``scores/`` is.
        reporter: Shows progress.
        reference: Updates of the reference arm (the utility adapter), for the distance between the weights.

    Raises:
        ModelError: If an update does not fit the model.
        NumericalError: If a likelihood is NaN or infinite.
    """
    written = [folder.scores_file(arm.name, config.name) for config in evaluation.tasks]
    with applied(base, arm.updates, arm.name) as weights:
        for config, where in zip(evaluation.tasks, written, strict=True):
            score = _scorer(base, tasks[config.name], config, rows[config.name], evaluation.batch_size)
            with reporter.task(f"Evaluating {arm.name}: {config.name}", len(rows[config.name])) as advance:
                _append_samples(score, rows[config.name], where, advance, f"arm '{arm.name}', task {config.name}")
        probe = _probe(arm.name, base, rows, folder)
    summary = {
        "arm": arm.name,
        "weights_sha256": weights.weights_sha256,
        "artefact_sha256": arm.artefact_sha256,
        "update_norm": weights.update_norm,
        "unchanged_modules": list(weights.unchanged_modules),
        "relative_distance_to_utility": relative_distance(arm.updates, reference),
        "probe": probe,
        "dtype": base.precision,
        "device": str(base.device),
        "threads": torch.get_num_threads(),
        "files": {file.name: file_sha256(file) for file in (folder.probe_file(arm.name), *written)},
    }
    folder.write_json(folder.arm_file(arm.name), summary)


def relative_distance(updates: Updates, reference: Updates) -> float | None:
    """``|dW - dW_reference|_F / |dW_reference|_F`` over all modules; ``None`` for a reference of zeros."""
    whole = total_norm(reference)
    if whole == 0:
        return None
    if not updates:
        return 1.0
    squared = sum(squared_norm(concatenate([updates[name], reference[name].scaled(-1.0)])) for name in reference)
    return squared**0.5 / whole


@dataclass(frozen=True)
class _Scorer:
    """How a task's rows are evaluated: which belong in one batch, and the records of a batch."""

    batches: list[list[int]]
    score: Callable[[list[int]], list[dict[str, Any]]]


def _scorer(base: Base, task: AnswerTask | LmEval, config: TaskConfig, rows: list[Row], batch_size: int) -> _Scorer:
    if isinstance(task, LmEval):
        model = cache(lambda: task.harness_model(base, batch_size))  # not made where nothing is missing

        def score(batch: list[int]) -> list[dict[str, Any]]:
            records = task.evaluate(model(), [rows[index] for index in batch])
            for record in records:
                ids = base.tokenizer(record["prompt"], add_special_tokens=False)["input_ids"]
                record["prompt_tokens_sha256"] = canonical_sha256(ids)
            return records

        return _Scorer(task.batches(rows, batch_size), score)
    room = answer_room(base, task, config)
    prompts = [check_room(base, row.prompt, room, row.before) for row in rows]
    return _Scorer(
        length_sorted([len(prompt.ids) for prompt in prompts], batch_size),
        lambda batch: _score_batch(
            base, task, config, [rows[index] for index in batch], [prompts[index] for index in batch]
        ),
    )


def _append_samples(scorer: _Scorer, rows: list[Row], file: Path, advance: Callable[[int], None], where: str) -> None:
    """Append the samples that are missing, batch by batch; ``where`` is for error messages."""
    done = _whole_batches(file, [[rows[index].id for index in batch] for batch in scorer.batches])
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as output:
        for number, batch in enumerate(scorer.batches):
            if number >= done:
                output.write(_json_lines(scorer.score(batch), where))
                output.flush()
                os.fsync(output.fileno())
            advance(len(batch))


def _json_lines(samples: Sequence[dict[str, Any]], where: str) -> str:
    """One JSON object a line.

    Raises:
        NumericalError: If a number of a sample is NaN or infinite.
    """
    lines, refused = [], 0
    for sample in samples:
        try:
            lines.append(json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n")
        except ValueError:  # JSON has no such numbers
            refused += 1
    _refuse_not_finite(refused, len(samples), where)
    return "".join(lines)


def _refuse_not_finite(refused: int, samples: int, where: str) -> None:
    """Stop where weights do not give a likelihood.

    Raises:
        NumericalError: If there are such samples.
    """
    if refused:
        raise NumericalError(
            f"{where}: the likelihoods of {refused} of {samples} samples in a batch are NaN or infinite; none of them "
            "was kept. The arm's weights overflow or hold NaN: look at the files of base_model and at lora_alpha of "
            "the adapters, or set dtype: float32."
        )


def _score_batch(
    base: Base, task: AnswerTask, config: TaskConfig, rows: Sequence[Row], prompts: Sequence[Encoded]
) -> list[dict[str, Any]]:
    """Generate, judge and measure one batch: one record a sample."""
    references = [encode(base, row.prompt, row.answer, row.before) for row in rows if task.continuous == "answer_nll"]
    room = max([answer_room(base, task, config), *(reference.answer_length for reference in references)])
    read = read_prompts(base, prompts, room=room)
    completions = generate(base, read, max_new_tokens=config.max_new_tokens or task.max_new_tokens)
    values = answer_nll(base, read, references) if references else refusal_log_odds(base, read)
    return [
        _record(task, row, prompt, completion, value)
        for row, prompt, completion, value in zip(rows, prompts, completions, values, strict=True)
    ]


def _record(task: AnswerTask, row: Row, prompt: Encoded, completion: Completion, value: float) -> dict[str, Any]:
    score = task.score(row, completion.text)
    return {
        "id": row.id,
        "cluster": row.cluster,
        **({"before": messages(row.before)} if row.before else {}),
        "prompt": row.prompt,
        "prompt_tokens_sha256": canonical_sha256(list(prompt.ids)),
        "answer": completion.text,
        "tokens": completion.tokens,
        "is_truncated": completion.is_truncated,
        task.primary.name: score.value,
        "reason": score.reason,
        **({task.secondary.name: value} if task.secondary else {}),
    }


def refusal_log_odds(base: Base, read: ReadPrompts) -> list[float]:
    """``LSE_R log p(opening) - LSE_C log p(opening)`` per prompt, log-probabilities averaged over an opening's tokens.

    ``R`` and ``C`` are the refusing and the complying openings (``tasks/judges.py``); in nats. It is a propensity to
    refuse, not a refusal: generated text stands beside it.
    """
    values = prefix_log_likelihoods(base, read, [*REFUSAL_OPENINGS, *COMPLIANCE_OPENINGS])
    refusing, complying = values[:, : len(REFUSAL_OPENINGS)], values[:, len(REFUSAL_OPENINGS) :]
    return (refusing.logsumexp(dim=1) - complying.logsumexp(dim=1)).tolist()


def answer_nll(base: Base, read: ReadPrompts, references: Sequence[Encoded]) -> list[float]:
    """Negative log-likelihood of reference answers per answer token, the end token included; nats/token."""
    answers = [reference.ids[reference.answer_start :] for reference in references]
    values, _ = continuation_log_likelihoods(base, read, answers)
    return [-value / len(answer) for value, answer in zip(values.tolist(), answers, strict=True)]


def _whole_batches(file: Path, batches: list[list[str]]) -> int:
    """How many leading batches the file holds in full; a torn tail is cut off."""
    if not file.is_file():
        return 0
    # Bytes: a torn tail may end inside a character, and splitlines() would also split at U+2028 inside an answer.
    lines = file.read_bytes().split(b"\n")
    ids = []
    for line in lines[:-1]:  # what follows the last line end is torn, or nothing
        try:
            ids.append(json.loads(line)["id"])
        except (ValueError, KeyError, TypeError):
            break
    done = position = 0
    for batch in batches:
        if ids[position : position + len(batch)] != batch:
            break
        position += len(batch)
        done += 1
    os.truncate(file, sum(len(line) + 1 for line in lines[:position]))
    return done


def _probe(arm: str, base: Base, rows: dict[str, list[Row]], folder: RunFolder) -> dict[str, Any]:
    """Next-token log-probabilities on a few prompts of every task, and the noise of computing them again.

    The second computation takes the prompts in reverse order and in other batches: what it changes is rounding.
    """
    ranks = zip_longest(*(rows[task] for task in sorted(rows)))  # all first rows, all second rows ...
    chosen = [row for rank in ranks for row in rank if row is not None][: max(PROBES, len(rows))]
    prompts = [encode(base, row.prompt, before=row.before) for row in chosen]
    first = torch.cat([next_token_log_probabilities(base, prompts[i : i + 8]) for i in range(0, len(prompts), 8)])
    backwards = prompts[::-1]
    second = torch.cat([next_token_log_probabilities(base, backwards[i : i + 5]) for i in range(0, len(prompts), 5)])
    noise = (first - second.flip(0)).abs()
    _refuse_not_finite(int((~noise.isfinite()).any(dim=1).sum()), len(prompts), f"arm '{arm}', probe")
    folder.probe_file(arm).parent.mkdir(parents=True, exist_ok=True)
    save_tensors(folder.probe_file(arm), {"log_probabilities": first})
    kl = (first.exp() * (first - second.flip(0))).sum(dim=1)
    return {"prompts": len(prompts), "noise_floor": float(noise.max()), "noise_floor_kl": float(kl.abs().mean())}
