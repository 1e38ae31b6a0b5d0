"""What the sections of a run file have in common."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator


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
