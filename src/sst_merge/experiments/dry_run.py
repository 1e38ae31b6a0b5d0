"""What an experiment would do, how long it would take here and what is missing, before anything is loaded."""

import shutil
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sst_merge.data import PREFIXES
from sst_merge.errors import ConfigError
from sst_merge.experiments import beavertails
from sst_merge.experiments.exp1 import Exp1, batch_sizes, gpu_memory_gb
from sst_merge.model_files import KNOWN_MODELS, hub_answers, hub_problem
from sst_merge.models import Architecture, architecture
from sst_merge.statistics.sample_gradients import choose_side
from sst_merge.tasks import is_lm_eval

# Tokens of a typical sample under a chat template: assumed.
PROMPT_TOKENS, ANSWER_TOKENS, QUESTION_TOKENS, OPENING_TOKENS, LEARNT_TOKENS = 50, 16, 160, 12, 160
MMLU_QUESTIONS = 14_042  # in the test split
DEMO_SAMPLES = 826  # on which configs/demo.yaml calibrates
EFFICIENCY = 0.5  # of the matrix product measured here, for a whole forward pass: an assumption, not a measurement


@dataclass(frozen=True)
class Speed:
    """What this machine does, as it is now."""

    flops: float
    """Multiplications and additions per second in a matrix product of the model's precision."""
    bytes: float
    """Bytes copied per second: what generation waits for."""
    device: str


@dataclass(frozen=True)
class Phase:
    """One step of the experiment."""

    name: str
    what: str
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """All that can be said of an experiment beforehand; times are rough."""

    model: str
    phases: tuple[Phase, ...]
    parameters: int
    memory_gb: float
    disk_gb: float
    device: str
    chat_template: str
    missing: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return sum(phase.seconds for phase in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**vars(self), "seconds": self.seconds, "phases": [vars(phase) for phase in self.phases]}


def measure_speed() -> Speed:
    """Time a matrix product and a copy on the device that would be used; other work on the machine shows in it."""
    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if is_gpu else "cpu")
    size, dtype = (8192, torch.bfloat16) if is_gpu else (1024, torch.float32)
    a = torch.ones(size, size, device=device, dtype=dtype)

    def seconds(step: Any) -> float:
        step()
        times = []
        for _ in range(10):
            if is_gpu:
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if is_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    product = seconds(lambda: a @ a)
    copied = torch.ones(64_000_000 if is_gpu else 16_000_000, device=device)
    name = torch.cuda.get_device_name(0) if is_gpu else f"CPU, {torch.get_num_threads()} thread(s), no GPU"
    return Speed(2 * size**3 / product, 2 * copied.numel() * 4 / seconds(copied.clone), name)


def forecast(experiment: Exp1, speed: Speed) -> Forecast:
    """Phases, time, memory, disk and what is missing.

    Args:
        experiment: What would run.
        speed: Of this machine.
    """
    preset, size = experiment.preset, experiment.size
    shape = architecture(preset.reference, preset.revision, preset.architecture)
    width = 2 if torch.cuda.is_available() else 4
    weights = shape.parameters * width
    coordinates = sum(_coordinates(dims, preset.lora_rank) for dims in shape.shapes.values())
    samples = DEMO_SAMPLES if experiment.is_embedded else 2 * size.calibration
    statistics = 4 * samples * coordinates
    missing = _missing(experiment)
    try:
        batch = batch_sizes(experiment)
    except ConfigError as error:
        missing.append(str(error))
        batch = preset.batch_sizes[min(preset.batch_sizes)]
    arms = 4 + len(size.comparisons)
    phases = []
    rate = EFFICIENCY * speed.flops
    if experiment.adapters is None and not experiment.is_embedded:
        learnt = 2 * size.train * LEARNT_TOKENS
        phases.append(Phase("train", f"2 adapters, {size.train} rows each", 6 * shape.parameters * learnt / rate))
    phases.append(Phase("calibrate", f"{samples} samples", 4 * shape.parameters * samples * LEARNT_TOKENS / rate))
    phases.append(
        Phase("merge", f"{len(shape.shapes)} modules", 2e-9 * samples * coordinates + 0.03 * len(shape.shapes))
    )
    prompts = size.evaluate + size.everyday
    step = max(2 * shape.parameters * batch.evaluation / rate, weights / speed.bytes)
    chat = prompts * 2 * shape.parameters * (PROMPT_TOKENS + OPENING_TOKENS) / rate
    chat += prompts / batch.evaluation * ANSWER_TOKENS * step
    questions, what = _questions(experiment)
    utility = questions * 2 * shape.parameters * QUESTION_TOKENS / rate
    phases.append(Phase("evaluate", f"{arms} models on {prompts} prompts and {what}", arms * (chat + utility)))
    disk = statistics + 3 * 4 * preset.lora_rank * sum(sum(dims) for dims in shape.shapes.values())
    if preset.reference not in KNOWN_MODELS and hub_problem(preset.reference, preset.revision):
        disk += 2 * shape.parameters  # the weights that are still to come
    runs = experiment.runs.absolute()
    free = shutil.disk_usage(next(path for path in (runs, *runs.parents) if path.exists())).free
    if free < disk:
        missing.append(f"{disk / 1e9:.0f} GB of disk are needed, {free / 1e9:.0f} GB are free")
    memory = (weights + batch.calibration * LEARNT_TOKENS * _token_bytes(shape, width)) / 1e9
    if not torch.cuda.is_available():  # the copy of the weights that an adapter changes is beside them
        memory += width * sum(d_out * d_in for d_out, d_in in shape.shapes.values()) / 1e9
    if gpu_memory_gb() is None and shape.parameters > 1e9:
        missing.append("a GPU: without one the time above is that of this CPU")
    return Forecast(
        preset.name,
        tuple(phases),
        shape.parameters,
        memory,
        disk / 1e9,
        speed.device,
        preset.chat_template,
        tuple(missing),
    )


def _coordinates(dims: tuple[int, int], rank: int) -> int:
    d_out, d_in = dims
    return rank * (d_out if choose_side(dims) == "output" else d_in)


def _token_bytes(shape: Architecture, width: int) -> int:
    """Activations kept for the backward pass, per token: half as much again as linear modules put out, and logits."""
    return width * 3 * sum(d_out for d_out, _ in shape.shapes.values()) // 2 + 4 * 2 * shape.vocabulary


def _questions(experiment: Exp1) -> tuple[int, str]:
    size, task = experiment.size, experiment.utility_task
    if not is_lm_eval(task):
        return size.utility, f"{size.utility} samples of {task}"
    if size.subjects is not None and size.questions is not None:
        return size.subjects * size.questions, f"{size.subjects} x {size.questions} questions of {task}"
    return MMLU_QUESTIONS, f"all questions of {task}" + (f" ({MMLU_QUESTIONS})" if task == "lm_eval:mmlu" else "")


def _missing(experiment: Exp1) -> list[str]:
    """What would stop the experiment: model, data, extras, adapters."""
    missing = []
    if problem := hub_problem(experiment.preset.reference, experiment.preset.revision):
        missing.append(problem)
    if is_lm_eval(experiment.utility_task) and find_spec("lm_eval") is None:
        missing.append("the extra 'eval' (lm-eval): pip install 'sst-merge[eval]'")
    if experiment.adapters is None and not experiment.is_embedded and find_spec("trl") is None:
        missing.append("the extra 'train' (trl): pip install 'sst-merge[train]', or give --use-adapters")
    for folder in experiment.adapters or ():
        if not folder.is_dir():
            missing.append(f"adapter folder {folder}")
    for name, reference in experiment.data.items():
        if not reference.startswith(PREFIXES) and not Path(reference).exists():
            missing.append(f"--data {name}: no such file or folder: {reference}")
    needs_hub = []
    if not experiment.is_embedded and "beavertails" not in experiment.data:
        needs_hub.append(f"beavertails ({beavertails.HUB})")
    if experiment.utility_task.startswith("lm_eval:mmlu") and "mmlu" not in experiment.data:
        needs_hub.append("mmlu (hub:cais/mmlu)")
    if needs_hub and not hub_answers():
        missing.append(
            f"the hub cannot be reached for {' and '.join(needs_hub)}: give local copies with --data NAME=PATH"
        )
    if (
        experiment.is_embedded
        and experiment.size.evaluate > 200
        and not {"harmful", "beavertails"} & set(experiment.data)
    ):
        missing.append(
            f"{experiment.size.evaluate} harmful prompts: the packaged sets hold about 150 that were not trained on; "
            "give --data beavertails=PATH or --data harmful=PATH, or fewer are used"
        )
    return missing


def told(found: Forecast) -> str:
    """A forecast as text."""
    size = f"{found.parameters / 1e9:.2f} B parameters"
    lines = [f"{found.model}: {size}, chat template '{found.chat_template}', {found.device}"]
    for phase in found.phases:
        lines.append(f"  {phase.name:<10} {phase.what:<62} about {_duration(phase.seconds)}")
    lines.append(
        f"  in all about {_duration(found.seconds)} (a rough estimate), "
        f"{found.memory_gb:.1f} GB of memory, {found.disk_gb:.1f} GB of disk"
    )
    lines += [f"  missing: {entry}" for entry in found.missing] or ["  nothing is missing"]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
