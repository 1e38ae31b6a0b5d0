"""Run files: YAML plus ``--set key=value`` becomes one frozen value; every problem is reported at once."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.composer import ComposerError

from sst_merge.config import RunConfig, TrainConfig
from sst_merge.errors import ConfigError
from sst_merge.methods import METHODS

PEFT_NAMES = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
"""What PEFT calls some keys."""
Model = TypeVar("Model", bound=BaseModel)


def load_config(kind: type[Model], path: Path | str, overrides: Sequence[str] = ()) -> Model:
    """Read a YAML run file and validate it.

    Args:
        kind: The configuration to validate against.
        path: The file.
        overrides: ``key.path=value`` strings; values are YAML.

    Raises:
        ConfigError: Listing every problem, with a suggestion for misspelt keys.
    """
    values = _read(Path(path))
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
        here = _only(here, part, place)
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = {}
        item = _item(here, part, override)
        place = [*place, part]
        if isinstance(here[item], str) and (key_of_bare := _key_of_bare(place)):
            here[item] = {key_of_bare: here[item]}
        here = here[item]
        if not isinstance(here, dict | list):
            raise ConfigError(f"--set {override}: '{part}' is a value ({here!r}), not a section.")
    here = _only(here, last, place)
    here[_item(here, last, override)] = value


def _only(section: Any, part: str, place: Sequence[str]) -> Any:
    """The item of a list of one where ``part`` numbers none: one source may stand in a list or alone."""
    if not isinstance(section, list) or len(section) != 1 or part.isdecimal():
        return section
    if isinstance(section[0], str) and (key_of_bare := _key_of_bare(place)):
        section[0] = {key_of_bare: section[0]}
    return section[0] if isinstance(section[0], dict) else section


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
    places = [f"method {name}" for name in methods] if method else ["method"] if methods else []
    places += [place or "the top level" for place in known[key] if place.split(".")[0] not in ("method", "comparisons")]
    return f"not a key of this section; it belongs to {', '.join(places or known[key])}."


def _suggestion(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    meant = PEFT_NAMES[word] if PEFT_NAMES.get(word) in known else near[0] if near else None
    return f" Did you mean '{meant}'?" if meant else ""


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
