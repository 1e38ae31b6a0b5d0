"""What the sections of a run file have in common."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, field_validator


def no_boolean(value: Any) -> Any:
    """Pydantic takes yes for 1; this does not. Strings are numbers: YAML reads ``1e-3`` as one.

    Raises:
        ValueError: If yes or no stands where a number belongs.
    """
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not yes or no")
    return value


Number = Annotated[float, BeforeValidator(no_boolean)]
"""For models that are told apart by a field, which allow no validator of all fields."""


class Section(BaseModel):
    """A section of a run file: immutable, unknown keys refused, numbers finite and no booleans."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean(cls, value: Any, info: Any) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        kinds = {kind, *getattr(kind, "__args__", ())}
        return no_boolean(value) if kinds & {int, float} and bool not in kinds else value


def _file_name(label: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,39}", label):
        raise ValueError("a label names files: 1 to 40 of a-z, 0-9, '_', '.' and '-', the first a letter or a digit")
    return label


def file_stem(name: str) -> str:
    """What the files of a task are called: ``lm_eval:mmlu`` is ``lm_eval-mmlu``."""
    return name.replace(":", "-")


Label = Annotated[str, AfterValidator(_file_name)]
"""What tells one of several alike from the others, in names of files and entries of results."""
