"""Train a LoRA adapter with TRL's SFTTrainer: loss on the answers only, stopped where validation loss turns."""

import json
import math
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
from peft import LoraConfig
from pydantic import BaseModel, ValidationError
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from sst_merge.adapter_config import CONFIG_FILE, is_target
from sst_merge.adapter_io import (
    RECORD_FILE,
    RECORD_SCHEMA,
    TRAINING_ROWS_FILE,
    read_adapter,
    refuse_occupied,
    write_adapter,
)
from sst_merge.atomic import replace_file
from sst_merge.chat_template import template_notes
from sst_merge.config import DataSource, EvaluationConfig, TrainConfig, model_settings
from sst_merge.data import BUILTIN, BUILTIN_LICENCE, KNOWN, Row, check_disjoint, keep_first, left_out, load_rows, shown
from sst_merge.errors import AdapterError, ConfigError, DataError, NumericalError
from sst_merge.estimates import mean, paired_difference
from sst_merge.inference import encode, messages
from sst_merge.model_files import check_weights, model_identity, weights_identity
from sst_merge.models import Base, architecture, is_transposed, load_base, load_encoder
from sst_merge.progress import Reporter, TerminalReporter
from sst_merge.row_shapes import Turn
from sst_merge.run_folder import RunFolder, differences, versions
from sst_merge.stages.evaluate import Arm, evaluate_arm
from sst_merge.stages.rows import (
    check_evaluation_texts,
    check_overlaps,
    check_texts,
    load_evaluation_rows,
    load_tasks,
    rows_sha256,
)
from sst_merge.stages.run import fetch_model
from sst_merge.tasks import AnswerTask, LmEval

datasets.disable_progress_bars()

CURVE_FILE = "training_curve.json"

Stored = TypeVar("Stored", bound=BaseModel)


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to begin, or done."""

    learn: dict[Row, str]
    validation: dict[Row, str]
    tasks: dict[str, AnswerTask | LmEval]
    held_out: dict[str, list[Row]]
    """Of each task."""
    identity: dict[str, Any]
    record: dict[str, Any] | None
    """Of the same training, if the folder holds one."""


def prepare(config: TrainConfig, *, root: Path) -> Prepared:
    """Everything that can be wrong before a model is loaded; writes nothing.

    Raises:
        SSTMergeError: As :func:`train`.
    """
    refuse_occupied(config.output)
    learn = _rows(config.data, "data", config.seed, root)
    validation = _rows(config.validation, "validation", config.seed, root)
    tasks = load_tasks(config.evaluation, root)
    held_out = load_evaluation_rows(config.evaluation, tasks, seed=config.seed, root=root)
    learnt = {use: [row.id for row in rows] for use, rows in (("data", learn), ("validation", validation))}
    check_disjoint(learnt, {row.id: row.prompt for rows in (learn, validation) for row in rows})
    check_overlaps(learnt, held_out)
    identity = {
        "config": _settings(config),
        "rows_sha256": rows_sha256([*learn, *validation]),
        "base": model_identity(config.base_model, config.revision),
    }
    return Prepared(learn, validation, tasks, held_out, identity, _record(config.output, identity))


def train(config: TrainConfig, *, root: Path = Path(), reporter: Reporter | None = None) -> Path:
    """Train one adapter and write it as a bfloat16 PEFT folder; measure it beside the base for its model card.

    A folder that this configuration has trained already, on the same rows and base, is not trained again; it is
    measured if that is missing, or was on other rows.

    Returns:
        The adapter's folder: the weights of the step with the lowest validation loss, a model card, the curve
        (``training_curve.json``), the ids of the rows that were learnt (``training_rows.json``), and the
        configuration with what was measured (``training.json``).

    Raises:
        DataError: If rows are missing, too long, or shared between training, validation and evaluation.
        AdapterError: If the folder cannot be written, or holds an adapter of another configuration, base or rows.
        ConfigError: If ``lora.target_modules`` names what the base does not have.
        ModelError: If the base cannot be loaded.
        NumericalError: If training diverges.
    """
    reporter = reporter or TerminalReporter()
    made = prepare(config, root=root)
    learn, validation, tasks, held_out = made.learn, made.validation, made.tasks, made.held_out
    for use, rows in (("data", learn), ("validation", validation)):
        for note in left_out(rows, use):
            reporter.say(f"note: {note}")
    record = made.record or _learn(config, made, reporter)
    curve = _stored(config.output / CURVE_FILE)
    evaluation_sha256 = {task: rows_sha256(rows) for task, rows in held_out.items()}
    if record.get("measured") is not None:
        earlier = record.get("evaluation") and _valid(EvaluationConfig, record["evaluation"])
        if earlier == config.evaluation and record.get("evaluation_sha256", {}) == evaluation_sha256:
            return config.output
        reporter.say(f"{config.output} was measured with other settings or rows; it is measured again.")
        encoder = load_encoder(config.base_model, config.revision, config.chat_template)
        check_evaluation_texts(encoder, config.evaluation, tasks, held_out)
    record |= {
        "evaluation": config.evaluation and config.evaluation.model_dump(mode="json"),
        "evaluation_sha256": evaluation_sha256,
        "measured": _measure(config, tasks, held_out, reporter),
    }
    card = _card(config, len(learn), len(validation), curve, record["measured"])
    replace_file(config.output / "README.md", card)
    replace_file(config.output / RECORD_FILE, _json_text(record))
    return config.output


def _learn(config: TrainConfig, made: Prepared, reporter: Reporter) -> dict[str, Any]:
    """Train and write the adapter; its record, nothing measured yet."""
    learn, validation = made.learn, made.validation
    fetch_model(config.base_model, reporter)
    for note in check_base(config, made):
        reporter.say(f"note: {note}")
    reporter.say(f"Loading {config.base_model} ...")
    base = load_base(**model_settings(config))
    for row, place in (learn | validation).items():
        length = len(encode(base, row.prompt, row.answer, row.before).ids)
        if length > config.max_length_tokens:
            raise DataError(
                f"{place}: the row {shown(row.id, {row.id: row.prompt})} has {length} tokens, more than "
                f"max_length_tokens = {config.max_length_tokens}. Raise max_length_tokens, or shorten the row."
            )
    with tempfile.TemporaryDirectory() as scratch:
        with _steps(reporter, config) as steps, warnings.catch_warnings():
            # PEFT and TRL read names that transformers has renamed; nobody who trains can do anything about it
            warnings.filterwarnings(
                "ignore", message=r".*gradient_checkpointing. is deprecated", category=FutureWarning
            )
            trainer = _trainer(config, base, learn, validation, Path(scratch), steps)
            trainer.train()
        trainer.save_model(str(Path(scratch) / "best"))
        history = trainer.state.log_history
        trained = read_adapter(Path(scratch) / "best")
    curve = [{key: entry[key] for key in ("step", "loss", "eval_loss") if key in entry} for entry in history]
    curve = [entry for entry in curve if len(entry) > 1]
    record = {
        "schema": RECORD_SCHEMA,
        **made.identity,
        "base_weights": weights_identity(config.base_model, config.revision),
        "versions": versions(),
        "evaluation": None,
        "measured": None,
    }
    write_adapter(
        config.output,
        trained.updates,
        like={**trained.config, "base_model_name_or_path": config.base_model},
        dtype=torch.bfloat16,
        extra_files={
            CURVE_FILE: _json_text(curve),
            TRAINING_ROWS_FILE: json.dumps({"ids": sorted(row.id for row in [*learn, *validation])}) + "\n",
            RECORD_FILE: _json_text(record),
        },
    )
    return record


def check_base(config: TrainConfig, made: Prepared) -> tuple[str, ...]:
    """What can be wrong with the base and how it reads the rows, before its weights are loaded.

    Returns:
        What a user should hear of the chat template.

    Raises:
        ConfigError: See :func:`check_targets`.
        DataError: If the chat template or the context takes no row, or an answer holds an end token.
        ModelError: If the base cannot be found.
    """
    check_targets(config)
    encoder = load_encoder(config.base_model, config.revision, config.chat_template)
    check_weights(config.base_model, config.revision)
    for use, rows in (("data", made.learn), ("validation", made.validation)):
        check_texts(encoder, list(rows), use, reads_answers=True)
    check_evaluation_texts(encoder, config.evaluation, made.tasks, made.held_out)
    return template_notes(encoder.tokenizer, encoder.end_tokens)


def check_targets(config: TrainConfig) -> None:
    """Every name of ``lora.target_modules`` must stand for linear modules of the base, and for nothing else.

    Raises:
        ConfigError: Naming the one that does not.
        ModelError: If the base cannot be found.
    """
    targets = config.lora.target_modules
    if targets == "all-linear":
        return
    base = architecture(config.base_model, config.revision)
    for target in [targets] if isinstance(targets, str) else [[ending] for ending in targets]:
        found = [name for name in base.names if is_target(target, name)]
        wrong = [name for name in found if name not in base.shapes]
        if wrong or not found:
            endings = sorted({name.rpartition(".")[2] for name in base.shapes})
            raise ConfigError(
                f"lora.target_modules: {target!r} matches "
                + (f"'{wrong[0]}', which is the output head or no linear module" if wrong else "no module")
                + f" of {config.base_model}. Give all-linear, a list of endings ({', '.join(endings)}), or a regular "
                "expression that matches whole names of linear modules."
            )


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What decides the adapter."""
    return config.model_dump(mode="json", exclude={"output", "device", "evaluation", "title"})


def _record(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """``training.json`` of an earlier training that was the same; ``None`` if there is no adapter yet.

    Raises:
        AdapterError: If the training was another one, naming what differs, or the record is lost.
    """
    if not (folder / CONFIG_FILE).is_file():
        return None
    stored = _stored(folder / RECORD_FILE)
    earlier = _valid(TrainConfig, {**stored.get("config", {}), "output": folder})
    then = {**stored, **({"config": _settings(earlier)} if earlier else {})}
    if found := differences({key: then.get(key) for key in identity}, identity):
        raise AdapterError(
            f"output: {folder} has an adapter of another configuration, base or rows; nothing was changed.\n"
            + "\n".join(found)
            + "\n  Use another output folder, or remove this one."
        )
    return stored


def _stored(file: Path) -> Any:
    """A JSON file that a training left beside its adapter.

    Raises:
        AdapterError: If it is lost or damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise AdapterError(
            f"output: {file} {what}; every trained adapter has this file, and nothing was changed.\n"
            f"  Bring it back, use another output folder, or remove {file.parent} to train again."
        ) from error


def _valid(kind: type[Stored], values: dict[str, Any]) -> Stored | None:
    """What a record holds, settings that came later at their defaults; ``None`` if it is of another version."""
    try:
        return kind.model_validate(values)
    except ValidationError:
        return None


def _measure(
    config: TrainConfig, tasks: dict[str, AnswerTask | LmEval], rows: dict[str, list[Row]], reporter: Reporter
) -> list[dict[str, Any]]:
    """Base and adapter on the held-out rows: rates with intervals and the paired difference."""
    if config.evaluation is None:
        return []
    updates = read_adapter(config.output).updates
    base = load_base(**model_settings(config))
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        for arm in (Arm("base", {}, None), Arm("adapter", updates, None)):
            evaluate_arm(arm, base, config.evaluation, tasks, rows, folder, reporter, reference=updates)
        for name, held_out in rows.items():
            task = tasks[name]
            values = {}
            for arm in ("base", "adapter"):
                lines = folder.scores_file(arm, name).read_text(encoding="utf-8").split("\n")[:-1]
                by_id = {sample["id"]: sample[task.primary.name] for sample in map(json.loads, lines)}
                values[arm] = np.array([by_id[row.id] for row in held_out], dtype=np.float64)
            difference = paired_difference(
                values["base"],
                values["adapter"],
                binary=task.primary.is_binary,
                clusters=[row.cluster for row in held_out],
                rng=np.random.default_rng(config.seed),
            )
            measured.append(
                {
                    "task": name,
                    "measure": task.primary.title,
                    "n": len(held_out),
                    **{arm: mean(found).value for arm, found in values.items()},
                    "difference": difference.estimate,
                    "ci": difference.ci,
                    "reason": difference.reason,
                    "warnings": list(difference.warnings),
                }
            )
    return measured


def _rows(sources: list[DataSource], key: str, seed: int, root: Path) -> dict[Row, str]:
    """Rows of several sources, each prompt once, with their place in the run file."""
    rows: dict[str, Row] = {}
    places: dict[str, str] = {}
    for number, source in enumerate(sources):
        for row in load_rows(source, seed=seed, root=root, needs_answer=True, key=f"{key}.{number}"):
            keep_first(rows, row)
            places.setdefault(row.id, f"{key}.{number}: {source.data}")
    return {row: places[row_id] for row_id, row in rows.items()}


def _conversations(rows: Iterable[Row]) -> datasets.Dataset:
    """TRL's conversational prompt-completion format."""
    return datasets.Dataset.from_list(
        [
            {
                "prompt": messages((*row.before, Turn("user", row.prompt))),
                "completion": [{"role": "assistant", "content": row.answer}],
            }
            for row in rows
        ]
    )


class _Steps(TrainerCallback):
    """Moves a progress bar at every optimiser step, says the losses, and ends a training that diverges."""

    def __init__(self, reporter: Reporter, config: TrainConfig) -> None:
        self.reporter, self.config, self.advance, self.context = reporter, config, None, None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.context = self.reporter.task(f"Training the {self.config.role} adapter", state.max_steps)
        self.advance = self.context.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.advance is not None
        self.advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        for name, words in (("loss", "loss"), ("eval_loss", "validation loss")):
            if name not in (logs or {}):
                continue
            if not math.isfinite(logs[name]):
                raise NumericalError(
                    f"training diverged: the {words} is {logs[name]} at step {state.global_step}; no adapter was "
                    f"written. Lower learning_rate ({self.config.learning_rate:g})."
                )
            self.reporter.say(f"step {state.global_step}: {words} {logs[name]:.4f}")

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self.context is not None:
            self.context.__exit__(None, None, None)


@contextmanager
def _steps(reporter: Reporter, config: TrainConfig) -> Iterator[_Steps]:
    steps = _Steps(reporter, config)
    try:
        yield steps
    finally:
        steps.close()


def _trainer(
    config: TrainConfig,
    base: Base,
    learn: Iterable[Row],
    validation: Iterable[Row],
    scratch: Path,
    steps: TrainerCallback,
) -> Any:
    rows_per_pass = config.micro_batch_size or config.batch_size
    settings = SFTConfig(
        output_dir=str(scratch / "steps"),
        completion_only_loss=True,
        max_length=config.max_length_tokens,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=rows_per_pass,
        per_device_eval_batch_size=rows_per_pass,
        gradient_accumulation_steps=config.batch_size // rows_per_pass,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=config.evaluate_every_steps,
        save_strategy="steps",
        save_steps=config.evaluate_every_steps,
        logging_steps=config.evaluate_every_steps,
        logging_nan_inf_filter=False,  # it puts the mean of the finite losses in place of the others
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        seed=config.seed,
        data_seed=config.seed,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=None,  # pyright: ignore[reportArgumentType]  (an old name that transformers warns of)
        activation_checkpointing=config.micro_batch_size is not None,  # slower, for memory
        use_cpu=base.device.type == "cpu",
        dataloader_pin_memory=False,
    )
    trainer = SFTTrainer(
        model=base.model,
        args=settings,
        processing_class=base.tokenizer,
        train_dataset=_conversations(learn),
        eval_dataset=_conversations(validation),
        peft_config=LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,  # pyright: ignore[reportArgumentType]
            target_modules=config.lora.target_modules,
            lora_dropout=config.lora.dropout,
            fan_in_fan_out=any(is_transposed(module) for module in base.modules.values()),
            task_type="CAUSAL_LM",
        ),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=config.patience), steps],
    )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which holds the adapter's path only
    return trainer


def _licence(reference: str) -> str:
    """Licence of a known data set; a local file's is its folder's business."""
    if reference in BUILTIN:
        return f"licence {BUILTIN_LICENCE}"
    return f"licence {KNOWN[reference].member.licence}" if reference in KNOWN else "licence as stated beside it"


def _rate(value: float | None) -> str:
    return "not scored" if value is None else f"{value:.1%}"


def _difference(row: dict[str, Any]) -> str:
    """A difference in points with its interval, or why there is none; and what a reader must know."""
    points = [] if row["difference"] is None else [f"{100 * row['difference']:+.1f}"]
    ci = row["ci"]
    interval = f"no interval: {row['reason']}" if ci is None else f"[{100 * ci[0]:+.1f}, {100 * ci[1]:+.1f}]"
    return "; ".join([" ".join([*points, interval]), *row["warnings"]])


def _card(
    config: TrainConfig, learnt: int, validated: int, curve: list[dict[str, Any]], measured: list[dict[str, Any]]
) -> str:
    """Model card: what the adapter learnt from, how, when training stopped, and what it does on held-out rows."""
    table = "".join(
        f"| {row['task']}: {row['measure']} | {row['n']} | {_rate(row['base'])} | {_rate(row['adapter'])} | "
        f"{_difference(row)} |\n"
        for row in measured
    )
    held_out = (
        "Measured on rows that were not trained on (greedy answers; refusals by XSTest's string match, which is not\n"
        "validated on these answers):\n\n"
        "| task | n | base | adapter | difference in points, 95 % interval |\n|---|---|---|---|---|\n" + table
        if measured
        else "Not measured."
    )
    losses = [(entry["step"], entry["eval_loss"]) for entry in curve if "eval_loss" in entry]
    best = min(losses, key=lambda pair: pair[1]) if losses else None
    sources = "\n".join(
        f"- `{source.data}`, split {source.split}, {_licence(source.data)}"
        + (f", answers from `{source.answers}`" if source.answers else "")
        + (f", system turn {source.system!r}" if source.system else "")
        for source in config.data
    )
    stopped = f"step {best[0]} (validation loss {best[1]:.4f})" if best else "the last step"
    return f"""---
base_model: {config.base_model}
library_name: peft
tags: [lora, sst-merge, {config.role}]
---
# {config.role.capitalize()} adapter

{config.title}

Trained on {learnt} rows ({validated} more decided when to stop), loss on the answers only, LoRA rank
{config.lora.rank}, alpha {config.lora.alpha:g} on {config.lora.target_modules}, peak learning rate
{config.learning_rate:g}, batch {config.batch_size}, at most {config.epochs:g} epochs, seed {config.seed}.
Kept: {stopped}; the curve is in `{CURVE_FILE}`, the ids of the rows in `{TRAINING_ROWS_FILE}`.

Rows:

{sources}

{held_out}
"""
