"""Whole runs on tiny models: inputs on disk, run files, and what must be equal between two runs."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from sst_merge.config import RunConfig
from sst_merge.models import Base
from sst_merge.progress import SilentReporter
from sst_merge.run_file import validate
from sst_merge.stages.run import run
from tiny import tiny_base, write_base, write_peft_adapter

ARMS = ("base", "utility", "safety", "merged")
COLOURS = ("Red", "Blue", "Green")
TASKS = ("refusal", "over_refusal", "exact_match")


def write_rows(file: Path, stem: str, count: int, *, answers: Sequence[str] = ()) -> Path:
    """Prompts that differ from file to file and in length; answers in turn, if there are any."""
    rows = [
        {
            "prompt": f"{stem} {number} " + "on " * (number % 4),
            **({"answer": answers[number % len(answers)]} if answers else {}),
        }
        for number in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_inputs(folder: Path, family: Literal["llama", "mistral", "qwen2"] = "llama") -> Path:
    """A base model, two adapters of different rank on it, calibration and evaluation rows.

    Qwen2's folder is what ``check`` reads; its tokenizer does not survive reloading, so runs take ``load``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = tiny_base(family)
    name = str(folder / "base")
    if family == "qwen2":
        base.model.save_pretrained(name)
        base.tokenizer.save_pretrained(name)
    else:
        write_base(folder / "base", family)
    write_peft_adapter(folder / "utility", base, seed=1, base_name=name)
    write_peft_adapter(folder / "safety", base, seed=2, rank=3, base_name=name)
    write_rows(folder / "utility_calibration.jsonl", "sum", 5, answers=COLOURS)
    write_rows(folder / "safety_calibration.jsonl", "harm", 5, answers=["I cannot."])
    write_rows(folder / "refusal.jsonl", "bad", 7)
    write_rows(folder / "over_refusal.jsonl", "good", 5)
    write_rows(folder / "exact_match.jsonl", "task", 6, answers=COLOURS)
    return folder


def run_values(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A run file's values; a change of None leaves the key out."""
    values: dict[str, Any] = {
        "base_model": str(inputs / "base"),
        "adapters": {"utility": str(inputs / "utility"), "safety": str(inputs / "safety")},
        "method": {"name": "sst", "keep": {"soft": 10}},
        "comparisons": [{"name": "task_arithmetic"}],
        "calibration": {
            "utility": str(inputs / "utility_calibration.jsonl"),
            "safety": str(inputs / "safety_calibration.jsonl"),
            "batch_size": 3,
        },
        "evaluation": {
            "tasks": [{"task": task, "data": str(inputs / f"{task}.jsonl"), "max_new_tokens": 3} for task in TASKS],
            "batch_size": 4,
        },
        "output": str(output),
        **changes,
    }
    return {key: value for key, value in values.items() if value is not None}


def run_config(inputs: Path, output: Path, **changes: Any) -> RunConfig:
    """The same, validated."""
    return validate(RunConfig, run_values(inputs, output, **changes), "test")


def run_file(file: Path, inputs: Path, output: Path, **changes: Any) -> Path:
    """The same as a YAML file."""
    file.write_text(yaml.safe_dump(run_values(inputs, output, **changes)), encoding="utf-8")
    return file


def run_tiny(
    inputs: Path, output: Path, base: Base, *, until: str = "report", replace_run: bool = False, **changes: Any
) -> dict[str, Any]:
    """A run in this process on a model that is loaded already."""
    config = run_config(inputs, output, **changes)
    return run(
        config,
        root=Path(),
        reporter=SilentReporter(),
        command="test",
        until=until,
        replace=replace_run,
        load=lambda: base,
    )


def copied(inputs: Path, folder: Path) -> Path:
    """Inputs that a test may damage; adapters still name the base of the original."""
    shutil.copytree(inputs, folder)
    return folder


def numbers(output: Path) -> dict[str, Any]:
    """``results.json`` without what may differ between two runs of the same numbers: names, times, commands."""
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    run_section = {
        key: value
        for key, value in results["run"].items()
        if key not in {"output", "created", "command", "timings_seconds"}
    }
    return {**results, "title": "", "run": run_section}


def artefacts(output: Path) -> dict[str, bytes]:
    """Bytes of adapter, statistics, scores and diagnostics by relative path; temporary files left out."""
    return {
        str(file.relative_to(output)): file.read_bytes()
        for part in ("adapter", "statistics", "scores", "diagnostics.json")
        for file in sorted([output / part] if (output / part).is_file() else (output / part).rglob("*"))
        if file.is_file() and file.suffix != ".part"
    }
