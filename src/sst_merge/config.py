"""Run files: YAML plus ``--set key=value`` becomes one frozen value; every problem is reported at once."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from yaml.composer import ComposerError

from sst_merge.adapter_config import is_regex
from sst_merge.data import DataSource
from sst_merge.errors import ConfigError
from sst_merge.methods import METHODS, Method
from sst_merge.models import CHAT_TEMPLATES
from sst_merge.section import Section
from sst_merge.tasks import TASKS, is_lm_eval
from sst_merge.tasks.lm_eval_task import PREFIX

Model = TypeVar("Model", bound=BaseModel)


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
    title: str = ""
    """How the report calls it; the task's own title when left out."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Limit of generated tokens; the task's own when left out. Not for lm-eval's tasks."""
    subtasks: list[str] | None = Field(default=None, min_length=1)
    """Tasks of an lm-eval group to keep, such as two of MMLU's 57; all when left out."""
    samples: int | None = Field(default=None, ge=1)
    """Questions of each lm-eval task, drawn by the seed; all when left out."""
    fewshot: int | None = Field(default=None, ge=0)
    """Examples before each question of an lm-eval task; the task's own number when left out."""

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
        names = [task.task for task in self.tasks]
        if len(names) != len(set(names)):
            raise ValueError(f"each task can stand once in evaluation.tasks, got {names}")
        return self


class WeightedAdapter(Section):
    """One of several adapters whose updates are added up."""

    path: Path
    """PEFT folder."""
    weight: float = Field(default=1.0, gt=0, le=4)
    """Factor on its update in the sum."""


def _as_adapters(value: Any) -> Any:
    """In a list, a bare string is the folder of an adapter of weight 1."""
    return [{"path": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


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
    missing_modules: Literal["refuse", "zero"] = "refuse"
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
        without = [name for name in ("first_tokens", "refusals_per_prompt") if name in self.model_fields_set]
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
                raise ValueError(f"{place} has the settings of {twin}: the two would be one model")
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


def load_config(kind: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """Read a YAML run file and validate it.

    Args:
        kind: The configuration to validate against.
        path: The file.
        overrides: ``key.path=value`` strings; values are YAML.

    Raises:
        ConfigError: Listing every problem, with a suggestion for misspelt keys.
    """
    values = _read(path)
    if kind is RunConfig and _is_training(values):
        raise ConfigError(f"{path} is a training file (it has a role): sst-merge train {path}")
    if kind is TrainConfig and values.keys() & {"method", "adapters"}:
        raise ConfigError(f"{path} is a run file (it has adapters or a method): sst-merge run {path}")
    apply_overrides(values, overrides)
    return validate(kind, values, str(path))


def is_training_file(path: Path) -> bool:
    """Whether a file is one of ``sst-merge train`` by its keys.

    Raises:
        ConfigError: If it is no YAML file of keys and values.
    """
    return _is_training(_read(path))


def _is_training(values: dict[str, Any]) -> bool:
    return "role" in values and not values.keys() & {"method", "adapters"}


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Give the YAML file.")
    if not path.is_file():
        raise ConfigError(f"no such run file: {path}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or no date, such as 2026-13-01
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(values).__name__}.")
    return values


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply ``key.path=value`` strings to a run file's values, in place.

    Raises:
        ConfigError: If one has another form or addresses no section.
    """
    for override in overrides:
        _set(values, override)
    return values


def validate(kind: type[Model], values: dict[str, Any], where: str) -> Model:
    """Validate values, with all problems in one message.

    Raises:
        ConfigError: Listing every problem.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}  # the alternatives of a union are one problem
        for details in error.errors():
            dotted, message = _problem(kind, values, dict(details))
            problems.setdefault(dotted, []).append(message)
        lines = [
            f"  {dotted}{': ' if dotted else ''}{', or: '.join(messages)}" for dotted, messages in problems.items()
        ]
        raise ConfigError(f"{where}: {len(lines)} problem(s)\n" + "\n".join(lines)) from None


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that stands twice, where PyYAML silently takes the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As in SafeLoader, then look for doubles.

        Raises:
            ComposerError: If a key stands twice.
        """
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in lines:
                problem = f"key '{key.value}' stands twice, first in line {lines[name]}"
                raise ComposerError(None, None, problem, key.start_mark)
            lines[name] = key.start_mark.line + 1
        return node


def _set(values: dict[str, Any], override: str) -> None:
    """Apply ``a.b=value`` to nested dictionaries; a number addresses a list item, and 0 a source that stands alone.

    Raises:
        ConfigError: If the override is not of this form, or leads to no section or item.
    """
    key, separator, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not separator or not all((*parents, last)):
        raise ConfigError(f"--set {override}: expected key=value, such as --set method.strength=0.8")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from error
    here: Any = values
    place: list[str] = []
    for part in parents:
        if part == "0" and isinstance(here, dict) and here.keys() & {"data", "path"}:
            continue  # one source may stand for a list of one, and messages count it so
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = {}
        item = _item(here, part, override)
        place = [*place, part]
        if isinstance(here[item], str) and (key_of_bare := _key_of_bare(place)):
            here[item] = {key_of_bare: here[item]}
        here = here[item]
        if not isinstance(here, dict | list):
            raise ConfigError(f"--set {override}: '{part}' is a value ({here!r}), not a section.")
    here[_item(here, last, override)] = value


def _key_of_bare(place: Sequence[str]) -> str | None:
    """The key of a section that a bare string at this place stands for: of data, an adapter or a task."""
    names = [part for part in place if not part.isdecimal()]
    if names[0] == "evaluation":
        return {"tasks": "task", "data": "data"}.get(names[-1])
    return {"adapters": "path", "calibration": "data", "data": "data", "validation": "data"}.get(names[0])


def _item(section: dict[str, Any] | list[Any], part: str, override: str) -> Any:
    """The key or, in a list, the number that ``part`` addresses.

    Raises:
        ConfigError: If it numbers no item of a list.
    """
    if isinstance(section, dict):
        return part
    if not part.isdecimal() or int(part) >= len(section):
        raise ConfigError(
            f"--set {override}: '{part}' does not number an item of the list; it has {len(section)}, counted from 0."
        )
    return int(part)


def _problem(kind: type[BaseModel], values: Any, details: dict[str, Any]) -> tuple[str, str]:
    """Where; and what, with what was probably meant."""
    is_missing = details["type"] == "missing"
    location = _location(values, details["loc"], ends_in_a_key=is_missing)
    dotted = ".".join(location)
    if details["type"] == "extra_forbidden":
        section = details["loc"][-2] if len(location) > 1 else None  # of a method, pydantic gives the name
        return dotted, _unknown_key(kind, location[-1], section if section in METHODS else None)
    if is_missing:
        return dotted, "is missing."
    if details["type"] == "union_tag_invalid":
        known = [name.strip("'") for name in details["ctx"]["expected_tags"].split(", ")]
        tag = details["ctx"]["tag"]
        return dotted, f"unknown name '{tag}'.{_suggestion(tag, known)} Known: {', '.join(known)}."
    given = details.get("input")
    if details["type"] in {"model_attributes_type", "union_tag_not_found"}:  # of methods: the one tagged union
        name = given if isinstance(given, str) and given in METHODS else next(iter(METHODS))
        return dotted, f"expected a mapping with a name, such as {{name: {name}}} (got {given!r})"
    shown = "" if isinstance(given, dict) else f" (got {given!r})"
    return dotted, details["msg"].removeprefix("Value error, ") + shown


def _unknown_key(kind: type[BaseModel], key: str, method: str | None) -> str:
    """A key of another section is told from a misspelt one; for a parameter like no other a method's own are named."""
    known = _known_keys(kind)
    if key not in known:
        own = f" Keys of {method}: {', '.join(METHODS[method].model_fields)}." if method else ""
        return f"unknown key.{_suggestion(key, list(known)) or own}"
    methods = [name for name, method in METHODS.items() if key in method.model_fields]
    places = [f"method {name}" for name in methods]
    places += [place or "the top level" for place in known[key] if place.split(".")[0] not in ("method", "comparisons")]
    return f"not a key of this section; it belongs to {', '.join(places or known[key])}."


def _suggestion(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _location(values: Any, parts: tuple[int | str, ...], *, ends_in_a_key: bool) -> list[str]:
    """Pydantic's location of a problem without the names of union members, which the run file does not hold.

    A missing key is no such name, even where a bare string stands for its section.
    """
    kept = []
    here = values
    part: Any
    for number, part in enumerate(parts, start=1):
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
        elif isinstance(part, str) and not (number == len(parts) and (ends_in_a_key or isinstance(here, dict))):
            continue
        kept.append(str(part))
    return kept


def _known_keys(kind: type[BaseModel]) -> dict[str, list[str]]:
    """Names of all fields of a model and of the models inside it, and the dotted sections that have them."""
    places: dict[str, list[str]] = {}

    def visit(item: Any, section: str) -> None:
        if isinstance(item, type) and issubclass(item, BaseModel):
            for name, field in item.model_fields.items():
                known = places.setdefault(name, [])
                if section not in known:
                    known.append(section)
                    visit(field.annotation, f"{section}.{name}".lstrip("."))
        else:
            for part in getattr(item, "__args__", ()):
                visit(part, section)

    visit(kind, "")
    return places
