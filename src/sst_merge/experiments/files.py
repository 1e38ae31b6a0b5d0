"""Result files of experiment 1: ours (schema ``sst-merge/exp1/1``) and those of the prototype (legacy).

A legacy file has shares and a tax, and no record of single prompts. The prototype wrote it nested
(``safety.refusal_rate``); its reports show it flat (``merged_safety``). Both are read.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sst_merge.errors import DataError

SCHEMA = "sst-merge/exp1/1"
MOST_SAMPLES = 1_000_000_000
LARGEST = 10**15  # of whole numbers that are taken for counts
LEGACY_FIELDS = ("baseline_safety", "merged_safety", "safety_gain", "safety_tax", "total_samples")


@dataclass(frozen=True)
class ResultFile:
    """One result file as it was read.

    Attributes:
        name: How the file is called in what is printed.
        kind: ``exp1`` (ours) or ``legacy``.
        fields: The JSON object. NaN and infinities stand in it as Python's ``json`` reads them.
    """

    name: str
    kind: Literal["exp1", "legacy"]
    fields: dict[str, Any]


@dataclass(frozen=True)
class Legacy:
    """The numbers of a legacy file; ``None`` where it has none, or none that can be what its name says.

    Attributes:
        baseline: Share of safe answers before, in [0, 1].
        merged: Share of safe answers after, in [0, 1].
        gain: Its ``safety_gain``, in [-1, 1].
        tax: Its ``safety_tax`` if that is a finite number.
        tax_text: Its ``safety_tax`` as it stands in the file; ``None`` if there is no such field.
        n: Safety prompts, ``>= 1``.
        utility_samples: Utility questions, ``>= 1``.
        has_utility: Whether there is a utility of either arm.
        problems: A sentence for each field that cannot be what its name says.
    """

    baseline: float | None
    merged: float | None
    gain: float | None
    tax: float | None
    tax_text: str | None
    n: int | None
    utility_samples: int | None
    has_utility: bool
    problems: tuple[str, ...]


def read_result(path: Path, name: str | None = None) -> ResultFile:
    """Read one result file.

    Args:
        path: JSON file.
        name: How to call it in what is printed; the path by default.

    Returns:
        The file and its kind.

    Raises:
        DataError: If the file is missing, is no JSON object, has an unknown schema, or has no field of a result.
    """
    shown = str(path) if name is None else name
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{shown}: no such file. Give the JSON result files of experiment 1.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{shown} cannot be read ({error.strerror}). Give a JSON result file.") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise DataError(f"{shown} is not valid JSON ({error}). Give a result file as it was written.") from None
    if not isinstance(fields, dict):
        raise DataError(f"{shown} holds a JSON {_json_type(fields)}, not an object with fields of a result.")
    schema = fields.get("schema")
    if schema == SCHEMA:
        return ResultFile(shown, "exp1", fields)
    if schema is not None:
        raise DataError(f"{shown} has the schema {schema!r}. Known: {SCHEMA}, and prototype files without a schema.")
    if not has_legacy_field(fields):
        found = ", ".join(str(key) for key in fields) or "none"
        raise DataError(
            f"{shown} has none of the fields of a result ({', '.join(LEGACY_FIELDS)}). Fields found: {found}. "
            f"Give a result file of experiment 1."
        )
    return ResultFile(shown, "legacy", fields)


def has_legacy_field(fields: Mapping[str, Any]) -> bool:
    """Whether a JSON object has any field of a legacy result, flat or nested."""
    return any(key in fields for key in LEGACY_FIELDS) or "refusal_rate" in mapping(fields.get("safety"))


def legacy_numbers(fields: Mapping[str, Any]) -> Legacy:
    """Take the numbers out of a legacy file, and name the fields that cannot be what they say.

    Args:
        fields: The JSON object.

    Returns:
        The numbers; nothing is repaired, scaled or guessed.
    """
    safety, utility = mapping(fields.get("safety")), mapping(fields.get("utility"))
    flat = {
        "merged_safety": safety.get("refusal_rate"),
        "total_samples": safety.get("total_samples"),
        **{key: value for key, value in fields.items() if value is not None},
    }
    problems: list[str] = []
    tax = fields.get("safety_tax")
    return Legacy(
        baseline=_bounded(flat, "baseline_safety", 0.0, problems),
        merged=_bounded(flat, "merged_safety", 0.0, problems),
        gain=_bounded(flat, "safety_gain", -1.0, problems),
        tax=number(tax),
        tax_text=json.dumps(tax) if "safety_tax" in fields else None,
        n=_samples(flat.get("total_samples"), "total_samples", problems),
        utility_samples=_samples(utility.get("total_samples"), "utility.total_samples", problems),
        has_utility=bool(utility) or "baseline_utility" in fields or "merged_utility" in fields,
        problems=tuple(problems),
    )


def contrasts(fields: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """The merges of a file of ours: the merged arm and each comparison.

    Args:
        fields: The JSON object.

    Returns:
        For each label (the method's name) the arm and the object with its numbers; the merged arm comes first.
    """
    others = {str(name): mapping(block) for name, block in mapping(fields.get("comparisons")).items()}
    method = mapping(fields.get("method")).get("name") or fields.get("merge_method_applied")
    label = str(method) if method else "merged"
    first = f"{label} (merged)" if label in others else label
    return {first: ("merged", fields)} | {name: (name, block) for name, block in others.items()}


def number(value: Any) -> float | None:
    """The value as a finite float, or ``None``; truth values and text are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and abs(value) > LARGEST:
        return None
    return float(value) if math.isfinite(value) else None


def count(value: Any) -> int | None:
    """The value as a whole number ``>= 0``, or ``None``."""
    found = number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """The value if it is a JSON list, else an empty one."""
    return value if isinstance(value, list) else []


def pair(value: Any) -> tuple[float, float] | None:
    """The value as ``(low, high)``, or ``None`` if it is not a list of two finite numbers."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def _bounded(fields: Mapping[str, Any], key: str, low: float, problems: list[str]) -> float | None:
    """A number in [low, 1]."""
    value = fields.get(key)
    if value is None:
        return None
    found = number(value)
    if found is None or not low <= found <= 1:
        problems.append(f"{key} is {json.dumps(value)}, which is not a number in [{low:g}, 1]; it is left out here.")
        return None
    return found


def _samples(value: Any, key: str, problems: list[str]) -> int | None:
    """A whole number from 1."""
    if value is None:
        return None
    found = count(value)
    if not found or found > MOST_SAMPLES:
        problems.append(
            f"{key} is {json.dumps(value)}, which is not a whole number from 1 to {MOST_SAMPLES:,}; it is left out "
            f"here."
        )
        return None
    return found


def _json_type(value: Any) -> str:
    names = {list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return names.get(type(value), "null")
