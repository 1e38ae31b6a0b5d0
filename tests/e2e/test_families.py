"""Whole runs on three architectures, with every method."""

import copy
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from families import write_other_inputs
from sst_merge.adapter import concatenate, squared_norm
from sst_merge.adapter_io import read_adapter
from sst_merge.inference import encode, next_token_log_probabilities
from sst_merge.linalg import truncated
from sst_merge.methods import METHODS
from sst_merge.models import Base, linear_modules, load_base
from sst_merge.weights import applied
from tiny import FAMILIES, tiny_base
from tiny_run import ARMS, run_tiny, write_inputs

SST_VARIANTS: list[dict[str, Any]] = [
    {"fisher": "exact", "scope": "module", "keep": {"directions": 4}},
    {"fisher": "exact", "scope": "module", "keep": {"threshold": 1.0}},
    {"fisher": "exact", "scope": "global", "keep": {"soft": 1}},
    {"fisher": "exact", "scope": "global", "keep": {"directions": 5}},
    {"fisher": "diagonal", "keep": {"soft": 10}},
    {"fisher": "diagonal", "keep": {"directions": 20}},
    {"fisher": "diagonal", "keep": {"threshold": 0.5}},
]
OTHERS = [name for name in METHODS if name != "sst"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Base]:
    """Inputs of one architecture and its model, read from the folder where transformers can."""
    folder = write_inputs(tmp_path_factory.mktemp(request.param), request.param)
    return folder, tiny_base("qwen2") if request.param == "qwen2" else load_base(str(folder / "base"))


def test_a_run_with_every_method_gives_every_artefact_and_no_arm_is_another(
    family: tuple[Path, Base], tmp_path: Path
) -> None:
    inputs, base = family
    comparisons = [{"name": name} for name in OTHERS]
    results = run_tiny(inputs, tmp_path / "run", base, comparisons=comparisons)
    names = [*ARMS, *OTHERS]
    assert [arm["name"] for arm in results["arms"]] == names
    assert len({arm["weights_sha256"] for arm in results["arms"]}) == len(names)
    assert results["run"]["fallbacks"] == []
    assert list(results["safety_tax"]) == ["merged", *OTHERS]
    assert all(tax["tax"] is None for tax in results["safety_tax"].values())  # gibberish carries no price
    expected = "manifest.json plan.json diagnostics.json safety_tax.json results.json report.html report.md looks.jsonl"
    present = {file.name for file in (tmp_path / "run").iterdir()}
    assert present == {*expected.split(), "adapter", "scores", "statistics"}
    assert len(list((tmp_path / "run" / "scores").rglob("*.jsonl"))) == 3 * len(names)


@pytest.mark.parametrize(
    "parameters", [SST_VARIANTS[0], SST_VARIANTS[2], SST_VARIANTS[6]], ids=lambda p: json.dumps(p).replace(" ", "")
)
def test_every_fisher_and_scope_of_sst_runs_to_the_report(
    inputs: Path, base: Base, tmp_path: Path, parameters: dict[str, Any]
) -> None:
    method = {"name": "sst", **parameters}
    results = run_tiny(inputs, tmp_path / "run", base, method=method, comparisons=None)
    assert 0 < results["diagnostics"]["patch_norm_kept"] < 1
    assert len({arm["weights_sha256"] for arm in results["arms"]}) == 4
    assert results["diagnostics"]["modules_merged"] == 14
    merged = read_adapter(tmp_path / "run" / "adapter").updates
    assert {update.rank for update in merged.values()} <= set(range(4, 8))  # 4 of the utility, at most 3 more


@pytest.mark.parametrize("method", OTHERS)
def test_every_other_method_runs_as_the_main_one(inputs: Path, base: Base, tmp_path: Path, method: str) -> None:
    results = run_tiny(inputs, tmp_path / "run", base, method={"name": method}, comparisons=None, calibration=None)
    assert results["arms"][3]["label"] == f"Merged ({METHODS[method].title})"
    assert len({arm["weights_sha256"] for arm in results["arms"]}) == 4
    assert not (tmp_path / "run" / "statistics").exists()


def test_every_variant_of_sst_merges_and_no_two_alike(inputs: Path, base: Base, tmp_path: Path) -> None:
    hashes = set()
    for number, parameters in enumerate(SST_VARIANTS):
        method = {"name": "sst", **parameters}
        done = run_tiny(inputs, tmp_path / str(number), base, until="merge", method=method, comparisons=None)
        hashes.add(done["adapter_sha256"])
        assert 0 < done["total"]["patch_norm_kept"] < 1
    assert len(hashes) == len(SST_VARIANTS)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_a_rank_compresses_and_reports_the_error(inputs: Path, base: Base, tmp_path: Path, method: str) -> None:
    given = {"method": {"name": method}, "comparisons": None, "calibration": None}
    run_tiny(inputs, tmp_path / "exact", base, until="merge", **given)
    results = run_tiny(inputs, tmp_path / "run", base, rank=3, **given)
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    exact = read_adapter(tmp_path / "exact" / "adapter").updates
    written = read_adapter(tmp_path / "run" / "adapter").updates
    diagnostics = json.loads((tmp_path / "run" / "diagnostics.json").read_text(encoding="utf-8"))
    told = {module["name"]: module["written_relative_error"] for module in diagnostics["modules"]}
    lost = kept = 0.0
    for name, update in exact.items():
        values = torch.linalg.svdvals(update.dense().double())
        own, norm = float(values[3:].square().sum()), float(values.square().sum())
        assert told[name] == pytest.approx((own / norm) ** 0.5, rel=1e-4)
        lost, kept = lost + own, kept + norm
        assert written[name].rank == 3
        assert squared_norm(concatenate([written[name], truncated(update, 3).scaled(-1.0)])) < 1e-8
    assert results["diagnostics"]["written_relative_error"] == pytest.approx((lost / kept) ** 0.5, rel=1e-4)
    assert results["diagnostics"]["written_relative_error"] > 0.05


def test_bfloat16_is_written_and_its_error_is_reported(inputs: Path, base: Base, tmp_path: Path) -> None:
    results = run_tiny(inputs, tmp_path / "run", base, adapter_dtype="bfloat16", comparisons=None)
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert 1e-4 < results["diagnostics"]["written_relative_error"] < 1e-2
    assert results["safety_tax"]["merged"]["verdict"]["code"] == "NO_DETECTABLE_GAIN"


def test_an_exact_float32_adapter_loses_nothing(finished: Path) -> None:
    diagnostics = json.loads((finished / "diagnostics.json").read_text(encoding="utf-8"))
    assert diagnostics["written_relative_error"] < 1e-7


def test_models_that_keep_weights_transposed_are_merged_as_peft_merges_them(inputs: Path, tmp_path: Path) -> None:
    """GPT-2's ``Conv1D``: statistics, merge, evaluation and what plain PEFT makes of the written adapter."""
    own = tmp_path / "inputs"
    base = write_other_inputs(own, "gpt2", inputs)
    before = {name: module.weight.clone() for name, module in base.modules.items()}
    assert {type(module).__name__ for module in base.modules.values()} == {"Conv1D"}
    comparisons = [{"name": name} for name in OTHERS] + [{"name": "sst", "fisher": "kfac", "label": "kfac"}]
    results = run_tiny(own, tmp_path / "run", load_base(str(own / "base")), comparisons=comparisons)
    assert len({arm["weights_sha256"] for arm in results["arms"]}) == 4 + len(comparisons)
    written = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["fan_in_fan_out"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT reads an attribute that transformers has deprecated
        warnings.filterwarnings("error", message=".*fan_in_fan_out")  # PEFT warns when it has to correct the setting
        loaded = PeftModel.from_pretrained(copy.deepcopy(base.model), str(tmp_path / "run" / "adapter")).eval()
    updates = read_adapter(tmp_path / "run" / "adapter").updates
    with applied(base, updates, "merged"):
        ours = {name: module.weight.clone() for name, module in base.modules.items()}
        expected = next_token_log_probabilities(base, [encode(base, "bad 1")])
    theirs = next_token_log_probabilities(replace(base, model=loaded), [encode(base, "bad 1")])
    torch.testing.assert_close(theirs, expected, atol=1e-4, rtol=0)
    for name, module in linear_modules(loaded.merge_and_unload()).items():
        torch.testing.assert_close(module.weight, ours[name], atol=2e-6, rtol=0)
        assert float((ours[name] - before[name]).abs().max()) > 1e-3
        assert torch.equal(base.modules[name].weight, before[name])  # as it was, to the last bit


def test_the_report_opens_offline(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "@import" not in page
