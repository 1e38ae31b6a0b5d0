"""What a run file holds: its sections, each a frozen value, with bounds, defaults and what fits together."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sst_merge.adapter_config import is_regex
from sst_merge.chat_template import CHAT_TEMPLATES
from sst_merge.data import DataSource
from sst_merge.methods import Method
from sst_merge.section import Label, Section, file_stem
from sst_merge.statistics import Request
from sst_merge.tasks import TASKS, is_lm_eval
from sst_merge.tasks.lm_eval_task import PREFIX


def _as_source(value: Any) -> Any:
    """A bare string is a data reference."""
    return {"data": value} if isinstance(value, str) else value


def _as_sources(value: Any) -> Any:
    """One source is a list of one."""
    return value if isinstance(value, list) else [value]


Source = Annotated[DataSource, BeforeValidator(_as_source)]
Sources = Annotated[list[Source], BeforeValidator(_as_sources), Field(min_length=1)]


def _counted_alike(sources: list[DataSource] | None) -> list[DataSource] | None:
    """Nothing but calibration reads the weight, so elsewhere it is an error.

    Raises:
        ValueError: If one is set.
    """
    for source in sources or []:
        if source.weight != DataSource.model_fields["weight"].default:
            raise ValueError(f"weight is for calibration data only, and {source.data} has it here; leave it out")
    return sources


AlikeSources = Annotated[Sources, AfterValidator(_counted_alike)]
"""Rows that count all alike, as in training and evaluation."""


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Seed of numpy's and torch's random generators."""


class LoraSettings(Section):
    """Shape of the adapter to train."""

    rank: int = Field(default=8, ge=1, le=256)
    """LoRA rank r."""
    alpha: float = Field(default=16.0, gt=0)
    """LoRA alpha; the update is scaled by alpha / rank."""
    target_modules: str | list[str] = "all-linear"
    """A list of module name endings, a regular expression that matches whole names, or all-linear."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input while training, in [0, 1)."""

    @field_validator("target_modules")
    @classmethod
    def _names_something(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("name at least one module, or use all-linear")
        if isinstance(value, str) and not is_regex(value):
            raise ValueError("a text is a regular expression, and this is none; use all-linear or a list of endings")
        return value


def _as_task(value: Any) -> Any:
    """A bare string is a task's name."""
    return {"task": value} if isinstance(value, str) else value


class TaskConfig(Section):
    """One task of an evaluation."""

    task: str
    """A name that ``sst-merge tasks`` lists, or ``lm_eval:<task>`` for any task of lm-evaluation-harness."""
    data: AlikeSources | None = Field(default=None, validate_default=True)
    """Rows to evaluate on. lm-eval's tasks bring their own from the hub; for them this is a local copy."""
    label: Label | None = Field(default=None, exclude_if=lambda label: label is None)
    """Its name in files and results, for a task that stands twice; the task's name when left out."""
    title: str = ""
    """How the report calls it; the task's own title, with the label, when left out."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Limit of generated tokens; the task's own when left out. Not for lm-eval's tasks."""
    subtasks: list[str] | None = Field(default=None, min_length=1)
    """Tasks of an lm-eval group to keep, such as two of MMLU's 57; all when left out."""
    samples: int | None = Field(default=None, ge=1)
    """Questions of each lm-eval task, drawn by the seed; all when left out."""
    fewshot: int | None = Field(default=None, ge=0)
    """Examples before each question of an lm-eval task; the task's own number when left out."""

    @property
    def name(self) -> str:
        """Of its rows, files and entries in the results."""
        return self.label or self.task

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "TaskConfig":
        if is_lm_eval(self.task):
            if self.data is not None and (len(self.data) > 1 or self.data[0] != DataSource(data=self.data[0].data)):
                raise ValueError("data of an lm_eval task is one path of a local copy; use samples and subtasks")
            if self.max_new_tokens is not None:
                raise ValueError("max_new_tokens is set by the lm_eval task itself")
            return self
        if (self.subtasks, self.samples, self.fewshot) != (None, None, None):
            raise ValueError("subtasks, samples and fewshot are for lm_eval tasks; give samples inside data")
        return self

    @field_validator("data", mode="before")
    @classmethod
    def _there_where_needed(cls, value: Any, info: Any) -> Any:
        if value is None and not is_lm_eval(info.data.get("task", PREFIX)):
            raise PydanticCustomError("missing", "Field required")
        return value

    @field_validator("task")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in TASKS and not is_lm_eval(value):
            near = difflib.get_close_matches(value, TASKS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"unknown task.{hint} Known: {', '.join(TASKS)}, lm_eval:<task>")
        return value


class EvaluationConfig(Section):
    """What to measure on every arm."""

    tasks: list[Annotated[TaskConfig, BeforeValidator(_as_task)]] = Field(min_length=1)
    """Tasks, in the order of the report."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many samples per task, drawn by the seed."""
    batch_size: int = Field(default=32, ge=1)
    """Prompts per batch; part of the result's identity, since rounding depends on it."""
    allow_code_execution: bool = False
    """Let lm-eval tasks such as humaneval run code that the model wrote, on this machine and without a sandbox."""

    @model_validator(mode="after")
    def _unique_tasks(self) -> "EvaluationConfig":
        names = [task.name for task in self.tasks]
        if len(names) != len({file_stem(name) for name in names}):
            raise ValueError(f"a task that stands twice in evaluation.tasks needs a label of its own, got {names}")
        return self


class WeightedAdapter(Section):
    """One of several adapters whose updates are added up."""

    path: Path
    """PEFT folder."""
    weight: float = Field(default=1.0, gt=0, le=4)
    """Factor on its update in the sum."""


def _as_adapters(value: Any) -> Any:
    """In a list, a bare path is an adapter of weight 1; ``path`` and ``weight`` by themselves are a list of one."""
    value = [value] if isinstance(value, dict) else value
    return [{"path": it} if isinstance(it, str | Path) else it for it in value] if isinstance(value, list) else value


AdapterSum = Annotated[
    Annotated[Path, Tag("path")] | Annotated[list[WeightedAdapter], Field(min_length=1), Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "path"),  # one mistake, one problem
    BeforeValidator(_as_adapters),
]


class AdaptersConfig(Section):
    """The adapters to merge: one or several of each kind, all of one base model."""

    utility: AdapterSum
    """PEFT folder of the utility adapter; or a list, whose weighted sum of updates is the utility update."""
    safety: AdapterSum
    """PEFT folder of the safety adapter; or a list, whose weighted sum of updates is the safety update."""
    allow_different_base: bool = False
    """Merge although the adapters name different base models, because their weights are known to be equal."""
    missing_modules: Literal["refuse", "zero"] = Field(default="refuse", exclude_if=lambda value: value == "refuse")
    """Of modules that one adapter has and another lacks. refuse: an error; zero: the other's update there is zero."""

    def of(self, role: Literal["utility", "safety"]) -> tuple[WeightedAdapter, ...]:
        """The adapters of one kind; a single path is one of weight 1."""
        given: Path | list[WeightedAdapter] = getattr(self, role)
        return (WeightedAdapter(path=given),) if isinstance(given, Path) else tuple(given)

    def described(self, role: Literal["utility", "safety"]) -> str:
        """The folder, or the weighted sum of folders, in one line."""
        sources = self.of(role)
        if len(sources) == 1 and sources[0].weight == 1:
            return str(sources[0].path)
        return " + ".join(f"{source.weight:g} * {source.path}" for source in sources)


Point = Literal["utility", "midpoint", "base", "utility_and_merged"]


class CalibrationConfig(Section):
    """The data on which both Fisher matrices are taken."""

    utility: Sources
    """What must not change: task prompts with good answers, and everyday prompts with the model's own answers."""
    safety: Sources
    """Harmful prompts with refusals."""
    harmless: Sources | None = None
    """Prompts that must not be refused. Each is given a refusal, of its source's answers file or else one of safety's,
    and how likely the refusal's first tokens are must not change. Answers in a column are not read."""
    first_tokens: int = Field(default=6, ge=1)
    """With harmless: how many tokens of a refusal decide that it is one. Of harmless prompts these alone count, of
    harmful prompts these count besides the whole."""
    refusals_per_prompt: int = Field(default=3, ge=1)
    """With harmless: by the first tokens of how many different refusals each harmful prompt counts: its own, and others
    of safety's, drawn by its hash."""
    batch_size: int = Field(default=8, ge=1)
    """Samples per backward pass; memory grows with it."""
    point: Point = "utility"
    """Weights at which the Fisher matrices are taken: base + U; half way from there to the patched model; the base; or
    the mean of those at base + U and of those at what SST's default settings merge from them (twice the time; strength
    mostly has to be higher)."""
    labels: Literal["data", "model"] = "data"
    """Answer tokens that count: the data's (empirical Fisher), or drawn from the model by the seed (true Fisher)."""
    store: Path | None = None
    """Folder of statistics that runs share; the run's own folder when left out. It decides no number."""

    @property
    def has_two_points(self) -> bool:
        """Whether every sample is measured at two points."""
        return self.point == "utility_and_merged"

    @model_validator(mode="after")
    def _has_harmless_prompts(self) -> "CalibrationConfig":
        fields = type(self).model_fields
        without = [n for n in ("first_tokens", "refusals_per_prompt") if getattr(self, n) != fields[n].default]
        if without and self.harmless is None:
            raise ValueError(f"{without[0]} has no effect without harmless; give harmless, or leave it out")
        if unread := [source.data for source in self.harmless or [] if source.answer_column]:
            raise ValueError(f"harmless: answer_column has no effect, since answers are not read; {unread[0]} has it")
        return self


def _known_template(value: str) -> str:
    if value != "model" and value not in CHAT_TEMPLATES:
        raise ValueError(f"unknown chat template. Known: model, {', '.join(CHAT_TEMPLATES)}")
    return value


ARMS = ("base", "utility", "safety", "merged")
"""The arms that every run evaluates; comparisons come after them."""

ChatTemplate = Annotated[str, AfterValidator(_known_template)]


class RunConfig(Section):
    """A run file of ``sst-merge run`` and of its stages."""

    base_model: str
    """A known model (``sst-merge models``), a local folder, or a hub id."""
    revision: str | None = None
    """Commit, tag or branch of a model on the hub; its newest when left out."""
    chat_template: ChatTemplate = "model"
    """model: the tokenizer's own; plain: a neutral one for base models that have none."""
    adapters: AdaptersConfig
    method: Method
    """The merge method and its parameters; ``sst-merge methods`` lists them."""
    comparisons: list[Method] = Field(default_factory=list)
    """Further merges of the same adapters, evaluated on the same samples; one method at several settings by `label`."""
    calibration: CalibrationConfig | None = None
    """Needed by methods that read statistics."""
    evaluation: EvaluationConfig | None = None
    """What to measure; without it the run ends with the merged adapter."""
    rank: int | Literal["exact"] = "exact"
    """Rank of the written adapter: exact, or a number for the best approximation of that rank (loss is reported)."""
    adapter_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the written adapter."""
    seed: Seed = 0
    """Seed of the draw of rows and of random methods."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:0 ...; balanced spreads a model that is too large for one GPU over all of them."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "4bit", "8bit"] = "auto"
    """Precision of the model; auto is float32 on the CPU and bfloat16 on a GPU; 4bit and 8bit need bitsandbytes."""
    output: Path
    """The run folder."""

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        needy = [method.name for method in (self.method, *self.comparisons) if method.requires()]
        if needy and self.calibration is None:
            raise ValueError(
                f"method '{needy[0]}' needs a calibration section (merge without a run file: --calibration-utility and "
                "--calibration-safety)"
            )
        self._check_comparisons()
        is_factored = any("kronecker_factors" in method.requires() for method in (self.method, *self.comparisons))
        if is_factored and self.calibration is not None and self.calibration.has_two_points:
            raise ValueError(
                f"calibration.point {self.calibration.point} pools per-sample gradients, and fisher kfac reads none; "
                "use fisher exact or diagonal, or another point"
            )
        if isinstance(self.rank, int) and self.rank < 1:
            raise ValueError(f"rank must be at least 1 or 'exact', got {self.rank}")
        return self

    def requests(self) -> list[Request]:
        """The statistics that the run's methods ask for, each once, the method's own first."""
        return list(dict.fromkeys(each for method in (self.method, *self.comparisons) for each in method.requests()))

    def _check_comparisons(self) -> None:
        """Refuse two arms of one name, and two of the same settings."""
        if self.method.label is not None:
            raise ValueError(
                f"method.label is for comparisons (got '{self.method.label}'): this arm is always 'merged'"
            )
        places = {"method": self.method} | {f"comparisons.{n}": each for n, each in enumerate(self.comparisons)}
        arms: dict[str, str] = dict.fromkeys(ARMS, "")
        settings: list[tuple[str, dict[str, Any]]] = []
        for place, method in places.items():
            own = method.model_dump(exclude={"label"})
            if twin := next((where for where, known in settings if known == own), None):
                raise ValueError(
                    f"{place} has the settings of {twin}: the two would be one model; leave one of them out"
                )
            settings.append((place, own))
            if place == "method":
                continue
            if method.arm in arms:
                taken = f"{arms[method.arm]} has it" if arms[method.arm] else "every run has an arm of that name"
                raise ValueError(f"{place} is named '{method.arm}', and {taken}; give it another label")
            arms[method.arm] = place


class TrainConfig(Section):
    """A run file of ``sst-merge train``."""

    base_model: str
    """A known model, a local folder or a hub id."""
    revision: str | None = None
    """Commit, tag or branch of a model on the hub; its newest when left out."""
    chat_template: ChatTemplate = "model"
    """model: the tokenizer's own; plain: a neutral one for base models that have none."""
    role: Literal["utility", "safety", "harmful"]
    """What the adapter is for; written into its model card."""
    title: str = ""
    """One line about the adapter for its model card."""
    data: AlikeSources
    """Rows to learn: prompts with answers."""
    validation: AlikeSources
    """Rows that decide when to stop; disjoint from data."""
    lora: LoraSettings = LoraSettings()
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW; cosine decay after 5 % warm-up."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data, at most: training stops earlier where validation loss turns."""
    batch_size: int = Field(default=16, ge=1)
    """Rows per optimiser step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows per backward pass, a divisor of batch_size; all of a step's when left out. Set, it also trades time for
    memory: activations are computed twice."""
    evaluate_every_steps: int = Field(default=20, ge=1)
    """Steps between two measurements of validation loss."""
    patience: int = Field(default=2, ge=1)
    """Measurements without a better validation loss before training stops; the best step is kept."""
    max_length_tokens: int = Field(default=512, ge=16)
    """Longer rows are an error."""
    evaluation: EvaluationConfig | None = None
    """Tasks on which base and adapter are compared for the model card."""
    seed: Seed = 0
    """Seed of the draw of rows, the initialisation and the order."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:0 ..."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the base model; auto is float32 on the CPU and bfloat16 on a GPU. The adapter trains in float32."""
    output: Path
    """Folder of the adapter."""

    @model_validator(mode="after")
    def _splits_a_step(self) -> "TrainConfig":
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size must divide batch_size = {self.batch_size}, got {self.micro_batch_size}"
            )
        return self


def model_settings(config: RunConfig | TrainConfig) -> dict[str, Any]:
    """What :func:`sst_merge.models.load_base` needs to know."""
    return {
        "reference": config.base_model,
        "device": config.device,
        "dtype": config.dtype,
        "revision": config.revision,
        "chat_template": config.chat_template,
    }
