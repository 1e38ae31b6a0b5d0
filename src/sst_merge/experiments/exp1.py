"""exp1: what a merge gains in safety and costs in utility, on one model or several, with one result file each.

The result file keeps the five fields of the report that this experiment comes from (``baseline_safety``,
``merged_safety``, ``safety_gain``, ``safety_tax``, ``total_samples``) and adds what makes them mean something.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from sst_merge.adapter_config import CONFIG_FILE
from sst_merge.atomic import replace_file
from sst_merge.config import EvaluationConfig, RunConfig, TrainConfig
from sst_merge.data import BUILTIN_PREFIX, PREFIXES, DataSource, builtin_file, load_rows
from sst_merge.errors import ConfigError, DataError, InvalidResultError, ModelError, RunFolderError
from sst_merge.experiments import beavertails
from sst_merge.experiments.presets import BatchSizes, Preset
from sst_merge.experiments.result import result_name, result_of
from sst_merge.progress import Reporter
from sst_merge.run_file import apply_overrides, load_config, validate
from sst_merge.stages.rows import load_tasks
from sst_merge.stages.run import run
from sst_merge.tasks import LmEval, is_lm_eval
from sst_merge.tasks.lm_eval_task import PREFIX
from sst_merge.tasks.local_copy import subjects
from sst_merge.wheels import file_sha256

FOLDER = Path("exp1_safety_utility")
REFUSAL_TOKENS = 16
MMLU_SUBJECTS = 57
DATA_NAMES = ("beavertails", "mmlu", "harmful", "harmless", "utility")
Role = Literal["utility", "safety"]


@dataclass(frozen=True)
class Mode:
    """How large an experiment is."""

    train: int
    """Rows of BeaverTails that the safety adapter learns from."""
    evaluate: int
    """Harmful prompts."""
    subjects: int | None
    """Subjects of MMLU; all 57 when left out."""
    questions: int | None
    """Questions of each subject; all when left out."""
    everyday: int
    """Harmless prompts."""
    utility: int
    """Samples of a utility task that is no lm-eval task."""
    calibration: int
    """Samples for each of the two Fisher matrices."""
    comparisons: tuple[str, ...]


MODES = {
    "minimal": Mode(100, 50, 2, 100, 50, 100, 64, ("task_arithmetic",)),
    "full": Mode(10_000, 2_000, None, None, 200, 300, 128, ("task_arithmetic", "ties")),
}


@dataclass(frozen=True)
class Exp1:
    """One model, one mode, one seed."""

    preset: Preset
    mode: str
    seed: int
    adapters: tuple[Path, Path] | None = None
    """Folders of a utility and a safety adapter; trained here when left out."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Local copies and other sources by name, see :data:`DATA_NAMES`."""
    utility: str | None = None
    """Utility task, instead of the preset's."""
    allow_code_execution: bool = False
    overrides: tuple[str, ...] = ()
    """``key=value`` changes of the run file."""
    runs: Path = Path("runs")
    results: Path = Path("results")
    repository: Path | None = None
    """The checkout with the demo's data and adapters, which the preset ``smollm2-135m`` uses."""

    def __post_init__(self) -> None:
        known = [*DATA_NAMES, *([self.utility_task.removeprefix(PREFIX)] if is_lm_eval(self.utility_task) else [])]
        if unknown := set(self.data) - set(known):
            raise ConfigError(f"--data {min(unknown)}: unknown name. Known: {', '.join(dict.fromkeys(known))}.")
        if unread := set(self.data) - self._read_data():
            beside = " and --data harmful" if unread == {"beavertails"} else ""
            raise ConfigError(
                f"--data {min(unread)}: not read by {self.preset.name} with --utility {self.utility_task}{beside}. "
                "Leave it out."
            )
        for name, reference in self.data.items():
            if reference.startswith(BUILTIN_PREFIX) and name not in {"harmful", "harmless"}:
                raise ConfigError(
                    f"--data {name}: {reference}: builtin prompts stand for harmful or harmless ones only."
                )
            if reference.startswith(BUILTIN_PREFIX):
                builtin_file(reference, f"--data {name}", is_prompts=True)

    def _read_data(self) -> set[str]:
        """Names of ``data`` that this experiment reads, if they are given."""
        names = {"harmful", "harmless"}
        if not (self.is_embedded and "harmful" in self.data):  # else it gives harmful prompts, or what is learnt
            names.add("beavertails")
        if is_lm_eval(self.utility_task):
            task = self.utility_task.removeprefix(PREFIX)
            names |= {task, "mmlu"} if task.startswith("mmlu") else {task}
        if not (self.is_embedded and is_lm_eval(self.utility_task)):  # else the demo's rows are calibrated on
            names.add("utility")
        return names

    @property
    def size(self) -> Mode:
        """Numbers of samples."""
        return MODES[self.mode]

    @property
    def folder(self) -> Path:
        """Where data, adapters and the run of this experiment are."""
        slug = self.preset.name.replace("/", "--")
        return self.runs / "exp1" / f"{slug}-{self.mode}-seed{self.seed}"

    @property
    def is_embedded(self) -> bool:
        """Whether the demo's own data and adapters are used."""
        return self.preset.name == "smollm2-135m" and self.repository is not None

    @property
    def utility_task(self) -> str:
        """Name of the utility task."""
        return self.utility or self.preset.utility


def run_exp1(
    experiment: Exp1,
    *,
    reporter: Reporter,
    command: str,
    replace: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Train what is missing, calibrate, merge, evaluate; write and return the result.

    A finished step is kept: the same command goes on where it stopped.

    Args:
        experiment: What to do.
        reporter: Shows progress.
        command: What the user typed, for the record.
        replace: Throw a run of the same name away first; trained adapters stay.

    Returns:
        The result file and its contents.

    Raises:
        ConfigError: If settings do not fit together.
        DataError: If data are missing or not of the expected kind.
        InvalidResultError: If the merge failed, or the verdict is INVALID; no result file is written then.
    """
    data = prepare(experiment, reporter)
    adapters = experiment.adapters or _trained(experiment, data, reporter)
    config = run_config(experiment, data, adapters)
    root = Path()
    run(config, root=root, reporter=reporter, command=command, until="plan", replace=replace)
    _merged_or_refused(config, root, reporter, command)
    results = run(config, root=root, reporter=reporter, command=command)
    verdict = results["safety_tax"]["merged"]["verdict"]
    if verdict["code"].startswith("INVALID"):
        raise InvalidResultError(f"{experiment.preset.name}: {verdict['text']} Report: {config.output}/report.html")
    result = result_of(results, config, mode=experiment.mode, model=experiment.preset.name, data=data.told)
    file = experiment.results / FOLDER / result_name(result)
    replace_file(file, json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return file, result


def _merged_or_refused(config: RunConfig, root: Path, reporter: Reporter, command: str) -> None:
    """Calibration and merge; whatever stops them, there is no result. Mistakes of the input were found by the plan."""
    try:
        run(config, root=root, reporter=reporter, command=command, until="merge")
    except (OSError, ConfigError, DataError, ModelError, RunFolderError):
        raise  # the input or the disk, not the merge
    except Exception as error:
        raise InvalidResultError(
            f"the merge failed ({type(error).__name__}: {error}). There is no fallback: nothing was evaluated and no "
            "result was written."
        ) from error


# Data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """Sources of an experiment, as the sections of run files name them, with what was counted."""

    harmful: list[dict[str, Any]]
    harmless: list[dict[str, Any]]
    utility: dict[str, Any]
    """The utility task's section."""
    calibration: dict[str, list[dict[str, Any]]]
    training: dict[Role, dict[str, list[dict[str, Any]]]]
    """``data`` and ``validation`` of each adapter to train; empty where adapters are given."""
    told: dict[str, Any]
    """What was read, counted and left out, for the result file."""


def prepare(experiment: Exp1, reporter: Reporter) -> Prepared:
    """Read the data sets and say what is used.

    Raises:
        ConfigError: If settings do not fit together.
        DataError: If data are missing, lack a column, or are too few.
    """
    return _embedded(experiment, reporter) if experiment.is_embedded else _general(experiment, reporter)


def _embedded(experiment: Exp1, reporter: Reporter) -> Prepared:
    """The demo's data; prompts to evaluate from ``--data`` where given."""
    assert experiment.repository is not None
    size = experiment.size
    demo = load_config(RunConfig, experiment.repository / "configs" / "demo.yaml")
    assert demo.calibration is not None
    assert demo.evaluation is not None

    def absolute(sources: list[DataSource]) -> list[dict[str, Any]]:
        return [_section(source, experiment.repository or Path()) for source in sources]

    told: dict[str, Any] = {}
    _tell_subjects(experiment, told, reporter)
    tasks = {task.task: task for task in demo.evaluation.tasks}
    if "beavertails" in experiment.data or "harmful" in experiment.data:
        harmful = _harmful(experiment, told, reporter)
    else:
        everything = [{**entry, "samples": None} for entry in absolute(tasks["refusal"].data or [])]
        harmful = _at_most(everything, size.evaluate, "harmful prompts", experiment, told, reporter)
    harmless = _source(experiment, "harmless") or {"data": "builtin:everyday_prompts", "split": "test"}
    utility = _utility_section(experiment)
    if not is_lm_eval(experiment.utility_task):
        source = (
            _source(experiment, "utility")
            or absolute([DataSource(data="examples/data/kinship.jsonl", split="test")])[0]
        )
        rows = _at_most([source], size.utility, "utility samples", experiment, told, reporter)
        utility |= {"data": rows, "title": tasks["exact_match"].title, "max_new_tokens": 6}
    calibration = {
        "utility": absolute(demo.calibration.utility),
        "safety": absolute(demo.calibration.safety),
        "harmless": absolute(demo.calibration.harmless or []),
    }
    return Prepared(
        harmful,
        _at_most([harmless], size.everyday, "harmless prompts", experiment, told, reporter),
        utility,
        calibration,
        {},
        told,
    )


def _general(experiment: Exp1, reporter: Reporter) -> Prepared:
    """BeaverTails for safety, the utility task's own unused splits for utility."""
    told: dict[str, Any] = {}
    size, folder = experiment.size, experiment.folder / "data"
    reference = experiment.data.get("beavertails", beavertails.HUB)
    made = beavertails.prepare(reference, folder, root=Path())
    told["beavertails"] = {"source": reference, **made.counts}
    reporter.say(made.told())
    answered, kind = str(made.safe_answers), str(made.harmless)
    _tell_subjects(experiment, told, reporter)
    utility_rows = _utility_rows(experiment, folder)
    told["utility"] = {"source": str(utility_rows), "sha256": file_sha256(utility_rows)}

    def part(data: str, split: str, wanted: int, what: str) -> list[dict[str, Any]]:
        return _at_most([{"data": data, "split": split}], wanted, what, experiment, told, reporter)

    def learnt(split: str, rows: int) -> list[dict[str, Any]]:
        half = max(1, rows // 2)
        return [
            *part(answered, split, half, f"safe answers ({split})"),
            *part(kind, split, half, f"harmless prompts with answers ({split})"),
        ]

    training: dict[Role, dict[str, list[dict[str, Any]]]] = {}
    if experiment.adapters is None:
        held_back = max(8, size.train // 10)
        training = {
            "safety": {"data": learnt("train", size.train), "validation": learnt("validation", held_back)},
            "utility": {
                "data": part(str(utility_rows), "train", size.train, "utility rows (train)"),
                "validation": part(str(utility_rows), "validation", held_back, "utility rows (validation)"),
            },
        }
    calibration = {
        "safety": part(answered, "calibration", size.calibration, "safe answers (calibration)"),
        "utility": [
            *part(str(utility_rows), "calibration", size.calibration // 2, "utility rows (calibration)"),
            *part(kind, "calibration", size.calibration // 2, "harmless prompts with answers (calibration)"),
        ],
    }
    utility = _utility_section(experiment)
    if not is_lm_eval(experiment.utility_task):
        utility["data"] = part(str(utility_rows), "test", size.utility, "utility samples")
    harmless = _source(experiment, "harmless") or {"data": kind, "split": "test"}
    return Prepared(
        _harmful(experiment, told, reporter, made),
        _at_most([harmless], size.everyday, "harmless prompts", experiment, told, reporter),
        utility,
        calibration,
        training,
        told,
    )


def _harmful(
    experiment: Exp1, told: dict[str, Any], reporter: Reporter, made: beavertails.Prepared | None = None
) -> list[dict[str, Any]]:
    """Harmful prompts to evaluate: as given, or the test part of BeaverTails."""
    source = _source(experiment, "harmful")
    if source is None:
        if made is None:
            made = beavertails.prepare(experiment.data["beavertails"], experiment.folder / "data", root=Path())
            told["beavertails"] = {"source": experiment.data["beavertails"], **made.counts}
            reporter.say(made.told())
        source = {"data": str(made.harmful), "split": "test"}
    return _at_most([source], experiment.size.evaluate, "harmful prompts", experiment, told, reporter)


def _source(experiment: Exp1, name: str) -> dict[str, Any] | None:
    if name not in experiment.data:
        return None
    reference = experiment.data[name]  # of builtin prompts others are calibrated on
    return {"data": reference, "split": "test"} if reference.startswith(BUILTIN_PREFIX) else {"data": reference}


def _section(source: DataSource, repository: Path) -> dict[str, Any]:
    """A source of the demo's run file, with paths that do not depend on the working directory."""
    section = source.model_dump(mode="json", exclude_defaults=True)
    for key in ("data", "answers"):
        if key in section and not section[key].startswith(PREFIXES):
            section[key] = str(repository / section[key])
    return section


def _at_most(
    sources: list[dict[str, Any]], wanted: int, what: str, experiment: Exp1, told: dict[str, Any], reporter: Reporter
) -> list[dict[str, Any]]:
    """Sources with their numbers of samples: in proportion to what they hold, all of it if that is too little.

    Raises:
        DataError: If they hold fewer than two rows.
    """
    held = []
    for section in sources:
        source = DataSource.model_validate({key: value for key, value in section.items() if key != "samples"})
        rows = load_rows(source, seed=experiment.seed, root=Path(), needs_answer=False, key=f"data: {what}")
        held.append(len(rows))
    total = sum(held)
    if total < 2:
        raise DataError(f"{what}: only {total} row(s) in {', '.join(section['data'] for section in sources)}.")
    if total < wanted:
        reporter.say(f"note: {total} {what}, where mode '{experiment.mode}' asks for {wanted}; all of them are used.")
    told.setdefault("samples", {})[what] = {"asked": wanted, "used": min(total, wanted)}
    wanted = min(total, wanted)
    shares = [wanted * number // total for number in held]
    for index in sorted(range(len(held)), key=lambda i: -(wanted * held[i] % total))[: wanted - sum(shares)]:
        shares[index] += 1
    return [{**section, "samples": share} for section, share in zip(sources, shares, strict=True) if share > 0]


def _utility_section(experiment: Exp1) -> dict[str, Any]:
    """The utility task's section of the run file, without the rows of tasks that bring none."""
    name = experiment.utility_task
    if not is_lm_eval(name):
        return {"task": name}
    section: dict[str, Any] = {"task": name}
    copy = _copy_of(experiment)
    if copy is not None:
        section["data"] = copy
    if name == "lm_eval:mmlu":
        size = experiment.size
        if copy is not None:
            found = [f"mmlu_{subject}" for subject in subjects(Path(copy))]
            section["subtasks"] = found[: size.subjects]
        elif size.subjects is not None:
            section["subtasks"] = ["mmlu_high_school_government_and_politics", "mmlu_high_school_psychology"]
        section["samples"] = size.questions
    elif experiment.size.questions is not None:
        section["samples"] = experiment.size.questions
    return {key: value for key, value in section.items() if value is not None}


def _copy_of(experiment: Exp1) -> str | None:
    """Local copy of the data of an lm-eval utility task: by the task's name, or ``mmlu`` for a part of MMLU."""
    task = experiment.utility_task.removeprefix(PREFIX)
    return experiment.data.get(task, experiment.data.get("mmlu") if task.startswith("mmlu") else None)


def _tell_subjects(experiment: Exp1, told: dict[str, Any], reporter: Reporter) -> None:
    """Say where a local copy of MMLU has fewer subjects than the mode asks for."""
    copy = _copy_of(experiment)
    if experiment.utility_task != "lm_eval:mmlu" or copy is None:
        return
    held, wanted = len(subjects(Path(copy))), experiment.size.subjects or MMLU_SUBJECTS
    told.setdefault("samples", {})["subjects of MMLU"] = {"asked": wanted, "used": min(held, wanted)}
    if held < wanted:
        reporter.say(f"note: {held} subject(s) of MMLU in {copy}, where mode '{experiment.mode}' asks for {wanted}.")


def _utility_rows(experiment: Exp1, folder: Path) -> Path:
    """Utility questions with answers that are not evaluated, as a file."""
    if "utility" in experiment.data:
        return Path(experiment.data["utility"])
    if not is_lm_eval(experiment.utility_task):
        raise ConfigError(f"--utility {experiment.utility_task} needs rows: give --data utility=PATH.")
    values = {"tasks": [_utility_section(experiment)], "allow_code_execution": experiment.allow_code_execution}
    evaluation = validate(EvaluationConfig, values, "exp1: utility")
    (task,) = load_tasks(evaluation, Path()).values()
    assert isinstance(task, LmEval)
    evaluated = {row.id for row in task.rows(seed=experiment.seed, samples=None)}
    rows = [row for row in task.training_rows() if row.id not in evaluated]
    if not rows:
        raise DataError(
            f"{experiment.utility_task} has no questions besides those that are evaluated, to train and calibrate on: "
            "give --data utility=PATH with prompts and answers."
        )
    text = "".join(json.dumps({"prompt": row.prompt, "answer": row.answer}, ensure_ascii=False) + "\n" for row in rows)
    replace_file(folder / "utility.jsonl", text)
    return folder / "utility.jsonl"


# Adapters and run -----------------------------------------------------------------------------------------------


def gpu_memory_gb() -> float | None:
    """Memory of the GPU in GB; ``None`` without one."""
    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None


def batch_sizes(experiment: Exp1) -> BatchSizes:
    """Samples per pass on this machine."""
    return experiment.preset.batch(gpu_memory_gb())


def _trained(experiment: Exp1, data: Prepared, reporter: Reporter) -> tuple[Path, Path]:
    """Train both adapters, or take the demo's."""
    if experiment.is_embedded:
        assert experiment.repository is not None
        folder = experiment.repository / "examples" / "adapters"
        return folder / "utility", folder / "safety"
    from sst_merge.stages.train import train

    folders = {}
    for role in ("utility", "safety"):
        config = train_config(experiment, data, role)
        reporter.say(f"{'Found' if (config.output / CONFIG_FILE).is_file() else 'Training'}: {config.output}")
        folders[role] = train(config, root=Path(), reporter=reporter)
    return folders["utility"], folders["safety"]


def train_config(experiment: Exp1, data: Prepared, role: Role) -> TrainConfig:
    """The training file of one adapter."""
    batch = min(16, max(1, sum(entry["samples"] for entry in data.training[role]["data"])))
    per_pass = min(batch, batch_sizes(experiment).training)
    while batch % per_pass:
        per_pass -= 1
    values = {
        "base_model": experiment.preset.reference,
        "revision": experiment.preset.revision,
        "chat_template": experiment.preset.chat_template,
        "role": role,
        "title": f"exp1, mode {experiment.mode}",
        "lora": {
            "rank": experiment.preset.lora_rank,
            "alpha": 2 * experiment.preset.lora_rank,
            "target_modules": experiment.preset.lora_targets,
        },
        "learning_rate": 2e-4,
        "batch_size": batch,
        "micro_batch_size": None if gpu_memory_gb() is None else per_pass,
        "dtype": "auto",
        "seed": experiment.seed,
        "output": str(experiment.folder / "adapters" / role),
        **data.training[role],
    }
    return validate(TrainConfig, values, f"exp1: {role} adapter")


def run_config(experiment: Exp1, data: Prepared, adapters: tuple[Path, Path]) -> RunConfig:
    """The run file of the experiment; ``--set`` has the last word, comparisons follow the method's dials."""
    batch = batch_sizes(experiment)
    # Refusals are told by their opening words: what follows them is not worth its time.
    refusing = {"max_new_tokens": REFUSAL_TOKENS}
    tasks = [
        {"task": "refusal", "data": data.harmful, **refusing},
        {"task": "over_refusal", "data": data.harmless, **refusing},
        data.utility,
    ]
    values: dict[str, Any] = {
        "base_model": experiment.preset.reference,
        "revision": experiment.preset.revision,
        "chat_template": experiment.preset.chat_template,
        "adapters": {"utility": str(adapters[0]), "safety": str(adapters[1])},
        "method": {"name": "sst", **_dials(experiment)},
        "calibration": {**data.calibration, "batch_size": batch.calibration},
        "evaluation": {
            "tasks": tasks,
            "batch_size": batch.evaluation,
            "allow_code_execution": experiment.allow_code_execution,
        },
        "seed": experiment.seed,
        "output": str(experiment.folder / "run"),
    }
    apply_overrides(values, experiment.overrides)
    dials = {key: values["method"][key] for key in ("utility_weight", "strength") if key in values["method"]}
    if "comparisons" not in values:
        values["comparisons"] = [
            {"name": name, **dials} for name in experiment.size.comparisons if name != values["method"]["name"]
        ]
    return validate(RunConfig, values, "exp1")


def _dials(experiment: Exp1) -> dict[str, Any]:
    """Utility weight and strength: the demo's for its adapters, chosen on validation rows; one and one otherwise."""
    if not experiment.is_embedded:
        return {"utility_weight": 1.0, "strength": 1.0}
    assert experiment.repository is not None
    method = load_config(RunConfig, experiment.repository / "configs" / "demo.yaml").method
    return method.model_dump(mode="json", exclude={"name"}, exclude_none=True)
