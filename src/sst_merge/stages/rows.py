"""The rows of a run: what it calibrates on, what it evaluates on, and what should be said of them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten

from sst_merge.chat_template import end_texts
from sst_merge.config import CalibrationConfig, DataSource, EvaluationConfig, RunConfig, TaskConfig
from sst_merge.data import Row, check_disjoint, keep_first, left_out, load_rows, row_id, shown, with_answers
from sst_merge.errors import DataError
from sst_merge.inference import check_room, encode, unwritten
from sst_merge.models import Base, Encoder
from sst_merge.run_folder import canonical_sha256
from sst_merge.tasks import AnswerTask, LmEval, build_task
from sst_merge.tasks.judges import COMPLIANCE_OPENINGS, REFUSAL_OPENINGS

END_OF_ANSWER = 64
"""Tokens that a chat template may write behind an answer, and more."""
FEW = 16
"""Prompts of calibration data below which a note says so."""


@dataclass(frozen=True)
class Inputs:
    """The rows of a run, by use."""

    calibration_safety: list[Row]
    calibration_utility: list[Row]
    evaluation: dict[str, list[Row]]
    """By task name."""
    tasks: dict[str, AnswerTask | LmEval]
    """What scores them, by task name."""


def load_inputs(config: RunConfig, root: Path) -> Inputs:
    """All rows that the run file names.

    Raises:
        DataError: See :func:`sst_merge.data.load_rows`.
    """
    calibration = config.calibration
    safety = utility = []
    if calibration is not None and config.requests():
        safety = load_sources(calibration.safety, config.seed, root, "calibration.safety", needs_answer=True)
        utility = load_sources(calibration.utility, config.seed, root, "calibration.utility", needs_answer=True)
        if calibration.harmless is not None:
            refusals = sorted(_answers(safety))
            refused = load_sources(
                calibration.harmless, config.seed, root, "calibration.harmless", needs_answer=False, drawn=refusals
            )
            safety, utility = contrasted(
                safety,
                utility,
                refused,
                first_tokens=calibration.first_tokens,
                per_prompt=calibration.refusals_per_prompt,
            )
    tasks = load_tasks(config.evaluation, root)
    rows = load_evaluation_rows(config.evaluation, tasks, seed=config.seed, root=root)
    return Inputs(safety, utility, rows, tasks)


def load_tasks(evaluation: EvaluationConfig | None, root: Path) -> dict[str, AnswerTask | LmEval]:
    """What scores the answers, by task name.

    Raises:
        ConfigError: If lm-eval is needed and missing, knows no such task, or a task may not run code.
        DataError: If the data of a task of lm-eval cannot be loaded.
    """
    if evaluation is None:
        return {}
    return {
        config.name: build_task(
            config.task,
            subtasks=config.subtasks,
            fewshot=config.fewshot,
            copy=root / config.data[0].data if config.data else None,
            allow_code_execution=evaluation.allow_code_execution,
        )
        for config in evaluation.tasks
    }


def load_evaluation_rows(
    evaluation: EvaluationConfig | None,
    tasks: dict[str, AnswerTask | LmEval],
    *,
    seed: int,
    root: Path,
    first: int = 0,
) -> dict[str, list[Row]]:
    """Rows per task, at most ``limit`` of each; messages number the tasks from ``first``.

    Raises:
        DataError: See :func:`sst_merge.data.load_rows`.
    """
    found = {}
    for number, config in enumerate(evaluation.tasks if evaluation else [], start=first):
        task = tasks[config.name]
        if isinstance(task, LmEval):
            rows = task.rows(seed=seed, samples=config.samples)
        else:
            key = f"evaluation.tasks.{number}"
            rows = load_sources(config.data or [], seed, root, key, needs_answer=task.needs_answer)
        rows.sort(key=lambda row: canonical_sha256([seed, row.id]))
        found[config.name] = rows[: evaluation.limit] if evaluation and evaluation.limit else rows
    return found


def load_sources(
    sources: list[DataSource],
    seed: int,
    root: Path,
    key: str,
    *,
    needs_answer: bool,
    drawn: list[str] | None = None,
) -> list[Row]:
    """Rows of several sources; a prompt that two sources share is taken once.

    Where answers to be ``drawn`` are given, rows of sources without an answers file get one of these.

    Raises:
        DataError: If a source cannot be read, or two sources give one prompt different weights.
    """
    rows: dict[str, Row] = {}
    for number, source in enumerate(sources):
        place = key if len(sources) == 1 else f"{key}.{number}"
        found = load_rows(source, seed=seed, root=root, needs_answer=needs_answer, key=place)
        for row in with_answers(found, drawn) if drawn is not None and source.answers is None else found:
            first = rows.get(row.id)
            keep_first(rows, row)
            if first is None:
                continue
            if first.weight != row.weight:
                raise DataError(
                    f"{place}: the prompt {shown(row.id, {row.id: row.prompt})} has weight {row.weight:g} here and "
                    f"{first.weight:g} in an earlier source. Leave it out of one of them."
                )
            rows[row.id] = replace(rows[row.id], other_sources=first.other_sources + 1)
    return list(rows.values())


def check_overlaps(others: Mapping[str, Iterable[str]], evaluation: Mapping[str, list[Row]]) -> None:
    """No task may ask what other rows have, nor two tasks the same, unless after different system turns.

    Args:
        others: Ids of rows that are calibrated on or learnt, by use; disjoint themselves.
        evaluation: Rows by task.

    Raises:
        DataError: Naming the uses that share prompts.
    """
    apart = {}
    for task, rows in evaluation.items():
        prompts = {row.id: row.prompt for row in rows}
        check_disjoint({**others, f"evaluation.{task}": prompts}, prompts)
        apart[f"evaluation.{task}"] = {
            f"{row.id} {[turn for turn in row.before if turn.role == 'system']}": row.prompt for row in rows
        }
    check_disjoint(apart, {name: prompt for prompts in apart.values() for name, prompt in prompts.items()})


def check_texts(encoder: Base | Encoder, rows: list[Row], where: str, *, reads_answers: bool, room: int = 0) -> None:
    """Rows must be what the chat template writes and the model's context holds, and their answers end where they end.

    A text has no more tokens than bytes, so of many rows only some are encoded: long ones, the first one of every order
    of turns, and those whose answer holds the text of an end token.

    Args:
        encoder: Tokenizer, template and context.
        rows: Prompts.
        where: What they are for, for messages.
        reads_answers: Whether their answers are put to the model.
        room: How many tokens may be generated after a prompt.

    Raises:
        DataError: Naming the use and the prompt.
        ModelError: If the template writes a prompt differently when an answer follows.
    """
    longest, template = encoder.context or math.inf, len(encode(encoder, "x").ids) + END_OF_ANSWER
    ends, orders = end_texts(encoder.tokenizer, encoder.end_tokens), set[tuple[str, ...]]()
    for row in rows:
        order, answer = tuple(turn.role for turn in row.before), (row.answer or "") if reads_answers else ""
        said = "".join([*(turn.content for turn in row.before), row.prompt, answer])
        tokens = len(said.encode()) + template * (1 + len(row.before)) + room
        if order in orders and tokens <= longest and not any(end in answer for end in ends):
            continue
        try:
            if reads_answers:
                encode(encoder, row.prompt, row.answer, row.before)
            if room or not reads_answers:
                check_room(encoder, row.prompt, room, row.before)
            if order not in orders and (role := unwritten(encoder, order)):
                raise DataError(
                    f"the chat template of {encoder.reference} does not write the {role} turn of a conversation of "
                    f"{', '.join([*order, 'user'])}, such as that of the prompt {shorten(row.prompt, 60)!r}. Leave "
                    "such turns out, or use a template that has them."
                )
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        orders.add(order)


def check_evaluation_texts(
    encoder: Encoder,
    evaluation: EvaluationConfig | None,
    tasks: Mapping[str, AnswerTask | LmEval],
    rows: Mapping[str, list[Row]],
) -> None:
    """:func:`check_texts` of all tasks by name; lm-eval's see to theirs.

    Raises:
        DataError: See :func:`check_texts`.
    """
    for number, config in enumerate(evaluation.tasks if evaluation else []):
        task = tasks[config.name]
        if not isinstance(task, LmEval):
            room, where = answer_room(encoder, task, config), f"evaluation.tasks.{number}"
            reads_answers = task.continuous == "answer_nll"
            check_texts(encoder, rows[config.name], where, reads_answers=reads_answers, room=room)


def answer_room(encoder: Base | Encoder, task: AnswerTask, config: TaskConfig) -> int:
    """The most tokens that are put after a prompt of a task: a generated answer, or an opening of refusals."""
    generated = config.max_new_tokens or task.max_new_tokens
    if task.continuous != "refusal_log_odds":
        return generated
    openings = (*REFUSAL_OPENINGS, *COMPLIANCE_OPENINGS)
    return max(generated, *(len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in openings))


def contrasted(
    safety: list[Row], utility: list[Row], refused: list[Row], *, first_tokens: int, per_prompt: int
) -> tuple[list[Row], list[Row]]:
    """Calibration data that tell refusals of harmful prompts from refusals of harmless ones.

    Args:
        safety: Harmful prompts with refusals.
        utility: Prompts with answers that must not change.
        refused: Harmless prompts with refusals.
        first_tokens: How many tokens of a refusal decide that it is one.
        per_prompt: How many different refusals each harmful prompt gets, if ``safety`` has so many.

    Returns:
        Safety rows, whole and then by the first tokens of their own and of other refusals; utility rows, and the
        harmless prompts by the first tokens of their refusals.
    """
    known = _answers(safety)

    def several(row: Row) -> list[Row]:
        others = sorted(known - {row.answer}, key=lambda answer: canonical_sha256([row.id, answer]))
        return [row, *(replace(row, answer=answer) for answer in others[: per_prompt - 1])]

    def begun(rows: list[Row]) -> list[Row]:
        return [replace(row, answer_tokens=first_tokens) for row in rows]

    return [*safety, *(sample for row in safety for sample in begun(several(row)))], [*utility, *begun(refused)]


def _answers(rows: list[Row]) -> set[str]:
    return {row.answer for row in rows if row.answer is not None}


def rows_sha256(rows: list[Row]) -> str:
    """Hash of rows in their order, every field included; ``answer_tokens`` and earlier turns where there are any."""
    every = []
    for row in rows:
        values = [row.id, row.prompt, row.answer, row.cluster, row.weight]
        values += [row.answer_tokens] if row.answer_tokens is not None else []
        every.append(values + ([row.before] if row.before else []))
    return canonical_sha256(every)


def row_notes(inputs: Inputs, config: RunConfig) -> list[str]:
    """What a user should hear of the rows before the run."""
    harmless = _harmless_notes(config.calibration, inputs) if config.calibration and config.requests() else []
    rows = _left_out_notes(inputs) + _source_notes(inputs) + _turn_notes(inputs)
    shared = _earlier_notes(inputs) + _cluster_notes(inputs)
    return harmless + _few_notes(inputs, config) + rows + shared


def _few_notes(inputs: Inputs, config: RunConfig) -> list[str]:
    """Calibration data that show hardly anything."""
    if not config.requests():
        return []
    used = {"calibration.safety": inputs.calibration_safety, "calibration.utility": inputs.calibration_utility}
    counts = {use: sum(row.answer_tokens is None for row in rows) for use, rows in used.items()}
    return [
        f"{use} has {count} prompt(s): a Fisher matrix shows no more directions than it has samples"
        for use, count in counts.items()
        if count < FEW
    ]


def _left_out_notes(inputs: Inputs) -> list[str]:
    """Rows that are not used, since a prompt is taken once."""
    notes = []
    for use, rows in _uses(inputs).items():
        task = inputs.tasks.get(use.removeprefix("evaluation."))
        reads = use in {"calibration.safety", "calibration.utility"} or (
            task is not None and not isinstance(task, LmEval) and task.needs_answer
        )
        once = rows if use == "calibration.harmless" else [row for row in rows if row.answer_tokens is None]
        notes += left_out(once, use, reads_answers=reads)
    return notes


def _uses(inputs: Inputs) -> dict[str, list[Row]]:
    """All rows by what they are for."""
    safety, utility = inputs.calibration_safety, inputs.calibration_utility
    return {
        "calibration.safety": safety,
        "calibration.utility": [row for row in utility if row.answer_tokens is None],
        "calibration.harmless": [row for row in utility if row.answer_tokens is not None],
        **{f"evaluation.{name}": rows for name, rows in inputs.evaluation.items()},
    }


def _source_notes(inputs: Inputs) -> list[str]:
    """Prompts that several sources have, so that there are fewer rows than were asked for."""
    counts = {use: len({row.id for row in rows if row.other_sources}) for use, rows in _uses(inputs).items()}
    return [f"{use}: {n} prompt(s) stand in several of its sources; taken once" for use, n in counts.items() if n]


def _turn_notes(inputs: Inputs) -> list[str]:
    """Prompts that are not put to the model alone."""
    notes = []
    for use, rows in _uses(inputs).items():
        roles = {row.id: {turn.role for turn in row.before} for row in rows}
        led, talked = (sum(role in of for of in roles.values()) for role in ("system", "user"))
        told = [f"{n} after {what}" for n, what in ((led, "a system turn"), (talked, "earlier questions")) if n]
        if told:
            notes.append(f"{use}: of {len(roles)} prompt(s) {' and '.join(told)}")
    return notes


def _earlier_notes(inputs: Inputs) -> list[str]:
    """Prompts that are asked in the one use and stand in the middle of a conversation in the other."""

    def within(rows: list[Row]) -> set[str]:
        turns = ((row.before, n) for row in rows for n, turn in enumerate(row.before) if turn.role == "user")
        return {row_id(before[n].content, before[:n]) for before, n in turns}

    calibrated, notes = inputs.calibration_safety + inputs.calibration_utility, []
    for task, rows in inputs.evaluation.items():
        shared = (within(calibrated) & {row.id for row in rows}) | (within(rows) & {row.id for row in calibrated})
        if shared:
            notes.append(
                f"evaluation.{task} shares {len(shared)} prompt(s) with the calibration that are an earlier turn in "
                "one of them: its results may be better than on others"
            )
    return notes


def _cluster_notes(inputs: Inputs) -> list[str]:
    """Clusters that stand on both sides: rows of one template or source in calibration and evaluation."""
    calibrated = {row.cluster for row in inputs.calibration_safety + inputs.calibration_utility} - {None}
    notes = []
    for task, rows in inputs.evaluation.items():
        if shared := sorted(str(cluster) for cluster in calibrated & {row.cluster for row in rows}):
            notes.append(
                f"evaluation.{task} shares {len(shared)} cluster(s) with the calibration ({shared[0]!r}): its results "
                "may be better than on rows of other clusters. Splits of one file keep clusters together"
            )
    return notes


def _harmless_notes(calibration: CalibrationConfig, inputs: Inputs) -> list[str]:
    """What a reader should know about prompts that must not be refused."""
    if calibration.harmless is None:
        return ["calibration.harmless is not given: no data say which prompts must not be refused"]
    notes, known = [], _answers(inputs.calibration_safety)
    if len(known) < calibration.refusals_per_prompt:
        notes.append(
            f"calibration.refusals_per_prompt is {calibration.refusals_per_prompt}, and calibration.safety has "
            f"{len(known)} different answers"
        )
    if others := _answers([row for row in inputs.calibration_utility if row.answer_tokens is not None]) - known:
        notes.append(
            f"calibration.harmless has {len(others)} refusal(s) that no prompt of calibration.safety has "
            f"({min(others)!r}); at equal strength harmful prompts may be refused less for it. Without answers there, "
            "those of calibration.safety are taken"
        )
    return notes
