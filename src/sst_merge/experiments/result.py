"""The result file of exp1: the five known fields, and what makes them mean something."""

import json
from collections.abc import Mapping
from typing import Any

from sst_merge.config import RunConfig
from sst_merge.experiments.files import SCHEMA

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


def result_name(result: Mapping[str, Any]) -> str:
    """Name of a result's file, by the time its run began: repeating the command repeats the name."""
    began = result["created"][:19].replace("-", "").replace(":", "").replace("T", "_")
    return f"exp1_results_{began}_{result['model'].replace('/', '--')}_{result['mode']}_seed{result['seed']}.json"


def result_of(
    results: Mapping[str, Any], config: RunConfig, *, mode: str, model: str, data: Mapping[str, Any]
) -> dict[str, Any]:
    """The result file's contents.

    Args:
        results: The contents of ``results.json``.
        config: The run file.
        mode: Mode of the experiment.
        model: Short name of the model.
        data: Where the rows came from, what was asked for and what was left out.
    """
    provenance, names = results["run"], _task_names(results)
    merged = _comparison(results, "merged", names)
    counted = merged.pop("counts")
    manifest = json.loads((config.output / "manifest.json").read_text(encoding="utf-8"))
    arms = {
        arm["name"]: {
            "weights_sha256": arm["weights_sha256"],
            **{family: _estimate(results, arm["name"], name) for family, name in names.items()},
        }
        for arm in results["arms"]
    }
    reference = arms["utility"]
    limits = {f"baseline_{family}": _limits(reference[family]) for family in ("safety", "utility")}
    return {
        "schema": SCHEMA,
        "experiment": "exp1",
        "mode": mode,
        "model": model,
        **{key: getattr(config, key) for key in ("base_model", "revision", "chat_template", "seed")},
        "baseline": "utility",
        **{f"baseline_{family}": reference[family]["value"] for family in ("safety", "utility")},
        **merged,
        "intervals": {**limits, **merged["intervals"]},
        "total_samples": counted["safety"][0],
        "unscored_samples": counted["safety"][1],
        "utility_samples": counted["utility"][0],
        "over_refusal_samples": counted["over_refusal"][0] if "over_refusal" in counted else None,
        "utility_task": names["utility"],
        **{f"{family}_metric": _metric(results, names[family]) for family in ("safety", "utility")},
        "merge_method_applied": config.method.name,
        "method": provenance["method"],
        "arms": arms,
        "comparisons": {
            method.name: _without(_comparison(results, method.name, names), "counts")
            | {"method": method.model_dump(mode="json", exclude_none=True)}
            for method in config.comparisons
        },
        "adapters": {
            role: {"path": config.adapters.described(role), "sha256": manifest["inputs"][role]}
            for role in ("utility", "safety")
        },
        "data": {**data, "sha256": manifest["inputs"]["data"]},
        "notes": provenance["notes"],
        "run": str(config.output),
        **{key: provenance[key] for key in PROVENANCE},
    }


def _without(fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != key}


def _metric(results: Mapping[str, Any], name: str) -> str:
    """What a task measures, and by whose judgement."""
    task = next(entry for entry in results["tasks"] if entry["name"] == name)
    judge = ""
    if task["judge"]:
        judge = f", judge {task['judge']}" + ("" if task["judge_validated"] else " (not validated)")
    return f"{task['title']}: {_primary(task)['title']}{judge}"


def _task_names(results: Mapping[str, Any]) -> dict[str, str]:
    """Task of each family."""
    return {task["family"]: task["name"] for task in reversed(results["tasks"])}


def _primary(task: Mapping[str, Any]) -> dict[str, Any]:
    return next(measure for measure in task["measures"] if measure["primary"])


def _estimate(results: Mapping[str, Any], arm: str, task: str) -> dict[str, Any]:
    """The primary measure of one arm."""
    measure = _primary(next(entry for entry in results["tasks"] if entry["name"] == task))["name"]
    found = next(
        entry
        for entry in results["estimates"]
        if (entry["arm"], entry["task"], entry["measure"]) == (arm, task, measure)
    )
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
