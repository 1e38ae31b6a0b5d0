"""Train a LoRA adapter with TRL's SFTTrainer: loss on the answers only, stopped where validation loss turns."""

import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sst_merge.adapter_io import TRAINING_ROWS_FILE, read_adapter, write_adapter
from sst_merge.config import TrainConfig
from sst_merge.data import Row, check_disjoint, load_rows
from sst_merge.errors import DataError
from sst_merge.models import Base, encode, load_base

CURVE_FILE = "training_curve.json"


def train(config: TrainConfig, *, root: Path, progress: TrainerCallback | None = None) -> Path:
    """Train one adapter and write it as a bfloat16 PEFT folder.

    Returns:
        The adapter's folder: the weights of the step with the lowest validation loss, a model card, the curve
        (``training_curve.json``) and the ids of the rows that were learnt (``training_rows.json``).

    Raises:
        DataError: If rows are missing, too long, or shared between training and validation.
    """
    learn = _rows(config, "data", root)
    validation = _rows(config, "validation", root)
    check_disjoint({"data": (row.id for row in learn), "validation": (row.id for row in validation)})
    base = load_base(config.base_model, device=config.device, dtype="float32")
    for row in [*learn, *validation]:
        length = len(encode(base, row.prompt, row.answer).ids)
        if length > config.max_length_tokens:
            raise DataError(f"row {row.id} has {length} tokens, more than max_length_tokens = {config.max_length_tokens}.")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(config, base, learn, validation, Path(scratch), progress)
        trainer.train()
        trainer.save_model(str(Path(scratch) / "best"))
        history = trainer.state.log_history
        trained = read_adapter(Path(scratch) / "best")
    curve = [{key: entry[key] for key in ("step", "loss", "eval_loss") if key in entry} for entry in history]
    write_adapter(
        config.output,
        trained.updates,
        like={**trained.config, "base_model_name_or_path": config.base_model},
        dtype=torch.bfloat16,
        extra_files={
            CURVE_FILE: json.dumps([entry for entry in curve if len(entry) > 1], indent=1) + "\n",
            TRAINING_ROWS_FILE: json.dumps({"ids": sorted(row.id for row in [*learn, *validation])}) + "\n",
        },
    )
    return config.output


def _rows(config: TrainConfig, key: str, root: Path) -> list[Row]:
    rows = [
        row
        for number, source in enumerate(getattr(config, key))
        for row in load_rows(source, seed=config.seed, root=root, needs_answer=True, key=f"{key}.{number}")
    ]
    return list({row.id: row for row in rows}.values())


def _conversations(rows: list[Row]) -> datasets.Dataset:
    """TRL's conversational prompt-completion format."""
    return datasets.Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row.prompt}],
                "completion": [{"role": "assistant", "content": row.answer}],
            }
            for row in rows
        ]
    )


def _trainer(
    config: TrainConfig,
    base: Base,
    learn: list[Row],
    validation: list[Row],
    scratch: Path,
    progress: TrainerCallback | None,
) -> Any:
    settings = SFTConfig(
        output_dir=str(scratch / "steps"),
        completion_only_loss=True,
        max_length=config.max_length_tokens,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=config.evaluate_every_steps,
        save_strategy="steps",
        save_steps=config.evaluate_every_steps,
        logging_steps=config.evaluate_every_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        seed=config.seed,
        data_seed=config.seed,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=base.device.type == "cpu",
        dataloader_pin_memory=False,
    )
    callbacks: list[TrainerCallback] = [EarlyStoppingCallback(early_stopping_patience=config.patience)]
    return SFTTrainer(
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
            task_type="CAUSAL_LM",
        ),
        callbacks=[*callbacks, *([progress] if progress else [])],
    )
