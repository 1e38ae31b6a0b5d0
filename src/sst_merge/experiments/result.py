"""The result file of exp1: the five known fields, and what makes them mean something."""

import json
from collections.abc import Mapping
from typing import Any

from sst_merge.config import RunConfig
from sst_merge.experiments.files import SCHEMA, run_fields


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
    manifest = json.loads((config.output / "manifest.json").read_text(encoding="utf-8"))
    measured = run_fields(results)
    methods = {method.arm: method.model_dump(mode="json", exclude_none=True) for method in config.comparisons}
    return {
        "schema": SCHEMA,
        "experiment": "exp1",
        "mode": mode,
        "model": model,
        **{key: getattr(config, key) for key in ("base_model", "revision", "chat_template", "seed")},
        **measured,
        "comparisons": {name: block | {"method": methods[name]} for name, block in measured["comparisons"].items()},
        "adapters": {
            role: {"path": config.adapters.described(role), "sha256": manifest["inputs"][role]}
            for role in ("utility", "safety")
        },
        "data": {**data, "sha256": manifest["inputs"]["data"]},
        "run": str(config.output),
    }
