"""Result files of experiment 1: ours (schema ``sst-merge/exp1/1``) and those of the prototype (legacy).

A legacy file has shares and a tax, and no record of single prompts. The prototype wrote it nested
(``safety.refusal_rate``); its reports show it flat (``merged_safety``). Both are read.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sst_merge.errors import DataError
from sst_merge.run_folder import RunFolder
from sst_merge.safety_tax import SCHEMA as TAX_SCHEMA

SCHEMA = "sst-merge/exp1/1"
RUN_SCHEMA = "sst-merge/report/1"  # as in rendering, which is slow to import
MOST_SAMPLES = 1_000_000_000
LARGEST = 10**15  # of whole numbers that are taken for counts
PROVENANCE = (
    "created",
    "command",
    "versions",
    "device",
    "dtype",
    "timings_seconds",
    "manifest_sha256",
    "fallbacks",
)
"""Of a run's description, what a result file repeats."""
LEGACY_FIELDS = ("baseline_safety", "merged_safety", "safety_gain", "safety_tax", "total_samples")


@dataclass(frozen=True)
class ResultFile:
    """One result file as it was read.

    Attributes:
        name: How the file is called in what is printed.
        kind: ``exp1`` (ours), ``run`` (the results of a run, in the fields of the former) or ``legacy``.
        fields: The JSON object. NaN and infinities stand in it as Python's ``json`` reads them.
    """

    name: str
    kind: Literal["exp1", "run", "legacy"]
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
        path: A result file of experiment 1, the ``results.json`` of any run, or the folder of a run.
        name: How to call it in what is printed; the path by default.

    Returns:
        The file and its kind.

    Raises:
        DataError: If the file is missing, is no JSON object, has an unknown schema, or has no field of a result.
    """
    shown = str(path) if name is None else name
    if path.is_dir():
        if RunFolder(path).manifest_file.is_file() and not RunFolder(path).results_file.is_file():
            raise DataError(f"{shown} is a run without results: it has not been evaluated. Run: sst-merge run FILE")
        path, shown = RunFolder(path).results_file, str(RunFolder(Path(shown)).results_file)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{shown}: no such file. Give run folders, or the JSON result files of experiment 1.") from None
    except PermissionError as error:
        raise DataError(f"{shown} cannot be read ({error.strerror}). Give a JSON result file.") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise DataError(f"{shown} is not valid JSON ({error}). Give a result file as it was written.") from None
    if not isinstance(fields, dict):
        raise DataError(f"{shown} holds a JSON {_json_type(fields)}, not an object with fields of a result.")
    schema = fields.get("schema")
    if schema == SCHEMA:
        return ResultFile(shown, "exp1", fields)
    if schema == RUN_SCHEMA:
        return ResultFile(shown, "run", _of_run(fields, shown))
    if schema is not None:
        hint = " Give results.json beside it." if schema == TAX_SCHEMA else ""
        known = f"{SCHEMA}, {RUN_SCHEMA}, and prototype files without a schema"
        raise DataError(f"{shown} has the schema {schema!r}.{hint} Known: {known}.")
    if not has_legacy_field(fields):
        found = ", ".join(str(key) for key in fields) or "none"
        raise DataError(
            f"{shown} has none of the fields of a result ({', '.join(LEGACY_FIELDS)}). Fields found: {found}. "
            f"Give a result file of experiment 1."
        )
    return ResultFile(shown, "legacy", fields)


def _of_run(results: dict[str, Any], shown: str) -> dict[str, Any]:
    """The fields of a run's results.

    Raises:
        DataError: If it measured no tax, or the file is damaged.
    """
    if not {"safety", "utility"} <= {task.get("family") for task in results.get("tasks") or ()}:
        raise DataError(
            f"{shown} is of a run without a safety and a utility task, so there is no gain and no loss to state."
        )
    try:
        run = results["run"]
        made_of = {
            "adapters": [run["utility"], run["safety"]],
            "test data": [[task["name"], task["data"], task["n"]] for task in results["tasks"]],
        }
        return {**run_fields(results), "base_model": run["base_model"], "seed": run["seed"], "made_of": made_of}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{shown} is damaged ({error!r}). Make it again: sst-merge report FILE") from error


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
        For each label (the run file's, else the method's name) the arm and the object with its
        numbers; the merged arm comes first.
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


def run_fields(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the ``results.json`` of a run says, in the fields of a result file of ours.

    Args:
        results: Its contents; with a safety and a utility task.

    Returns:
        The five known fields and what makes them mean something; nothing of the experiment that it was part of.
    """
    names = _task_names(results)
    merged, *others = (_comparison(results, name, names) for name in ("merged", *_others(results)))
    counted = merged["counts"]
    arms = {
        arm["name"]: {
            "weights_sha256": arm["weights_sha256"],
            **{family: _estimate(results, arm["name"], name) for family, name in names.items()},
        }
        for arm in results["arms"]
    }
    reference, run = arms["utility"], results["run"]
    settings = {
        method.get("label") or method["name"]: method for method in run.get("comparisons") or ()
    }  # not in results of earlier versions
    limits = {f"baseline_{family}": _limits(reference[family]) for family in ("safety", "utility")}
    return {
        "baseline": "utility",
        **{f"baseline_{family}": reference[family]["value"] for family in ("safety", "utility")},
        **_without(merged, "counts"),
        "intervals": {**limits, **merged["intervals"]},
        "total_samples": counted["safety"][0],
        "unscored_samples": counted["safety"][1],
        "utility_samples": counted["utility"][0],
        "over_refusal_samples": counted["over_refusal"][0] if "over_refusal" in counted else None,
        "utility_task": names["utility"],
        **{f"{family}_metric": _metric(results, names[family]) for family in ("safety", "utility")},
        "merge_method_applied": run["method"]["name"],
        "method": run["method"],
        "calibration": run.get("calibration"),  # not in results of earlier versions
        "arms": arms,
        "comparisons": {
            name: _without(block, "counts") | {"method": settings.get(name, {"name": name})}
            for name, block in zip(_others(results), others, strict=True)
        },
        "notes": run["notes"],
        **{key: run[key] for key in PROVENANCE},
    }


def _others(results: Mapping[str, Any]) -> list[str]:
    """The comparisons, in the order of the report."""
    return [name for name in results["safety_tax"] if name != "merged"]


def _without(fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != key}


def _metric(results: Mapping[str, Any], name: str) -> str:
    """What a task measures, and by whose judgement."""
    task = _entry(results["tasks"], name=name)
    judge = ""
    if task["judge"]:
        judge = f", judge {task['judge']}" + ("" if task["judge_validated"] else " (not validated)")
    return f"{task['title']}: {_primary(task)['title']}{judge}"


def _task_names(results: Mapping[str, Any]) -> dict[str, str]:
    """Task of each family."""
    return {task["family"]: task["name"] for task in reversed(results["tasks"])}


def _primary(task: Mapping[str, Any]) -> Mapping[str, Any]:
    return _entry(task["measures"], primary=True)


def _entry(entries: Sequence[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any]:
    """The first entry with these values.

    Raises:
        KeyError: If there is none.
    """
    for entry in entries:
        if wanted.items() <= entry.items():
            return entry
    raise KeyError(", ".join(map(str, wanted.values())))


def _estimate(results: Mapping[str, Any], arm: str, task: str) -> dict[str, Any]:
    """The primary measure of one arm."""
    measure = _primary(_entry(results["tasks"], name=task))["name"]
    found = _entry(results["estimates"], arm=arm, task=task, measure=measure)
    return {key: found[key] for key in ("value", "low", "high", "n", "unscored", "method", "reason")}


def _limits(estimate: Mapping[str, Any]) -> list[float] | None:
    return None if estimate["low"] is None else [estimate["low"], estimate["high"]]


def _comparison(results: Mapping[str, Any], name: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Gain, loss and tax of one merge against the utility adapter."""
    tax = results["safety_tax"][name]
    safety, utility = (_estimate(results, name, names[family]) for family in ("safety", "utility"))
    over = tax["over_refusal"]
    changes = {"safety": tax["gain"], "utility": tax["loss"], "over_refusal": over}
    turned = {"over_refusal"}  # b and c count what got better: a refusal that came is a sample lost
    return {
        "merged_safety": safety["value"],
        "safety_gain": tax["gain"]["estimate"],
        "safety_tax": tax["tax"]["estimate"] if tax["tax"] else None,
        "safety_tax_unit": tax["tax"]["unit"] if tax["tax"] else None,
        "merged_utility": utility["value"],
        "utility_loss": tax["loss"]["estimate"],
        "over_refusal_change": over["estimate"] if over else None,
        "intervals": {
            "level": tax["level"],
            "merged_safety": _limits(safety),
            "merged_utility": _limits(utility),
            "safety_gain": tax["gain"]["ci"],
            "utility_loss": tax["loss"]["ci"],
            "over_refusal_change": over["ci"] if over else None,
            "safety_tax": tax["tax"]["ci"] if tax["tax"] else None,
        },
        "changed_samples": {
            family: None
            if entry is None or entry["b"] is None
            else {"lost": entry["c"], "gained": entry["b"]}
            if family in turned
            else {"lost": entry["b"], "gained": entry["c"]}
            for family, entry in changes.items()
        },
        "verdict": tax["verdict"],
        "gates": tax["gates"],
        "counts": {family: (entry["n"], entry["unscored"]) for family, entry in changes.items() if entry is not None},
    }


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
