"""Several utility and several safety adapters: weighted sums of updates, in plan, merge, notes and provenance."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sst_merge.adapter_io import read_adapter, read_sum, sum_sha256
from sst_merge.data import content_id
from sst_merge.errors import AdapterError, DataError
from sst_merge.models import Base
from sst_merge.progress import SilentReporter
from sst_merge.stages.calibrate import LazyBase, calibrate, statistics_folder
from sst_merge.stages.merge import merge
from sst_merge.stages.plan import describe, plan, write_plan
from sst_merge.statistics import Statistics
from tiny import tiny_base, write_peft_adapter
from tiny_run import copied, numbers, run_config, run_tiny


@pytest.fixture(scope="module")
def several(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs with one more adapter of each kind, of other ranks."""
    folder = copied(inputs, tmp_path_factory.mktemp("several") / "inputs")
    for name, seed, rank in (("utility2", 11, 2), ("safety2", 12, 1)):
        write_peft_adapter(folder / name, tiny_base("llama"), seed=seed, rank=rank, base_name=str(inputs / "base"))
    return folder


def sums(folder: Path) -> dict[str, Any]:
    return {
        "utility": [str(folder / "utility"), {"path": str(folder / "utility2"), "weight": 0.5}],
        "safety": [{"path": str(folder / "safety"), "weight": 2}, {"path": str(folder / "safety2"), "weight": 0.25}],
    }


def made(folder: Path, output: Path, **changes: Any) -> Any:
    values = {"adapters": sums(folder), "comparisons": None, "evaluation": None, **changes}
    return plan(run_config(folder, output, **values), root=Path())


def merged(planned: Any, base: Base | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    write_plan(planned, command="test")
    statistics = Statistics()
    if base is not None:
        statistics = calibrate(planned, LazyBase(lambda: base), SilentReporter())
    diagnostics = merge(planned, statistics, SilentReporter())
    updates = read_adapter(planned.folder.adapter).updates
    return {name: update.dense() for name, update in updates.items()}, diagnostics


def dense(folder: Path) -> dict[str, torch.Tensor]:
    return {name: update.dense() for name, update in read_adapter(folder).updates.items()}


def test_updates_and_not_factors_are_summed_with_their_weights(several: Path, tmp_path: Path) -> None:
    found, diagnostics = merged(made(several, tmp_path / "run", method={"name": "task_arithmetic"}))
    one, two, three, four = (dense(several / name) for name in ("utility", "utility2", "safety", "safety2"))
    assert diagnostics["modules_merged"] == diagnostics["modules_in_adapters"] == len(one)
    for name, update in found.items():
        expected = one[name] + 0.5 * two[name] + 2 * three[name] + 0.25 * four[name]
        torch.testing.assert_close(update, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fisher", ["exact", "kfac", "diagonal", "none"])
def test_sst_keeps_the_whole_sum_at_price_zero_and_the_utility_sum_at_strength_zero(
    several: Path, base: Base, tmp_path: Path, fisher: str
) -> None:
    one, two, three, four = (dense(several / name) for name in ("utility", "utility2", "safety", "safety2"))
    whole, _ = merged(
        made(several, tmp_path / "whole", method={"name": "sst", "fisher": fisher, "keep": {"soft": 0}}), base
    )
    nothing, _ = merged(
        made(several, tmp_path / "nothing", method={"name": "sst", "fisher": fisher, "strength": 0}), base
    )
    for name in one:
        utility = one[name] + 0.5 * two[name]
        torch.testing.assert_close(nothing[name], utility, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(whole[name], utility + 2 * three[name] + 0.25 * four[name], rtol=1e-5, atol=1e-5)


def test_a_list_of_one_is_the_adapter_itself(inputs: Path, tmp_path: Path) -> None:
    method = {"name": "task_arithmetic"}
    lists = {name: [{"path": str(inputs / name), "weight": 1}] for name in ("utility", "safety")}
    listed = made(inputs, tmp_path / "listed", method=method, adapters=lists)
    plain = made(inputs, tmp_path / "plain", method=method, adapters={n: str(inputs / n) for n in lists})
    alone = made(inputs, tmp_path / "alone", method=method, adapters={n: one for n, (one,) in lists.items()})
    assert listed.identity["inputs"] == plain.identity["inputs"]
    assert alone.identity == listed.identity
    assert plain.identity["config"]["adapters"]["utility"] == str(inputs / "utility")
    for planned in (listed, plain):
        merged(planned)
    file = "adapter_model.safetensors"
    assert (tmp_path / "listed" / "adapter" / file).read_bytes() == (tmp_path / "plain" / "adapter" / file).read_bytes()


def test_ranks_and_sizes_in_the_plan_are_those_of_the_sums(several: Path, tmp_path: Path) -> None:
    planned = made(several, tmp_path / "run", method={"name": "sst"})
    description = describe(planned)
    module = description["modules"]["model.layers.0.mlp.up_proj"]
    assert (module["utility_rank"], module["safety_rank"], module["coordinates"]) == (6, 4, 4 * 32)
    assert description["adapter_parameters"] == sum(10 * sum(each["shape"]) for each in description["modules"].values())


def test_weights_and_members_decide_the_identity_and_the_statistics(several: Path, tmp_path: Path) -> None:
    first = made(several, tmp_path)
    other = sums(several)
    other["safety"][1]["weight"] = 0.3
    second = made(several, tmp_path, adapters=other)
    assert first.identity["inputs"]["safety"] != second.identity["inputs"]["safety"]
    assert first.identity["inputs"]["utility"] == second.identity["inputs"]["utility"]
    assert statistics_folder(first) != statistics_folder(second)
    one = (several / "utility", 1.0)
    assert sum_sha256([one]) != sum_sha256([(several / "utility", 0.5)])
    assert sum_sha256([one, (several / "utility2", 1.0)]) != sum_sha256([one])


def test_every_adapter_is_checked_and_named(several: Path, tmp_path: Path) -> None:
    own = copied(several, tmp_path / "inputs")
    evaluation = {"tasks": [{"task": "refusal", "data": str(own / "refusal.jsonl")}]}
    notes = [
        note
        for note in made(own, tmp_path, evaluation=evaluation).notes
        if "does not say what it was trained on" in note
    ]
    assert [note.removeprefix("the ").split(" adapter")[0] for note in notes] == [
        "utility 1",
        "utility 2",
        "safety 1",
        "safety 2",
    ]
    prompt = json.loads((own / "refusal.jsonl").read_text(encoding="utf-8").splitlines()[0])["prompt"]
    (own / "safety2" / "training_rows.json").write_text(json.dumps({"ids": [content_id(prompt)]}), encoding="utf-8")
    with pytest.raises(DataError, match="safety 2 adapter's training"):
        made(own, tmp_path, evaluation=evaluation)


def test_an_adapter_on_other_modules_or_another_base_is_refused_by_its_number(several: Path, tmp_path: Path) -> None:
    own = copied(several, tmp_path / "inputs")
    base = tiny_base("llama")
    write_peft_adapter(own / "utility2", base, base_name=str(several / "base"), target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=r"(?s)different base models.*utility 1 .*utility 2 "):
        made(own, tmp_path)
    allowed = {**sums(own), "allow_different_base": True}
    with pytest.raises(AdapterError, match=r"is in 'utility 1' only \(12 of 14 modules differ\)"):
        made(own, tmp_path, adapters=allowed)
    with pytest.raises(AdapterError, match=r"differ in 12 module\(s\)"):
        read_sum([(own / "utility", 1.0), (own / "utility2", 1.0)])


def test_report_and_model_card_name_the_sum(several: Path, base: Base, tmp_path: Path) -> None:
    run_tiny(
        several, tmp_path / "run", base, adapters=sums(several), method={"name": "task_arithmetic"}, comparisons=[]
    )
    expected = f"1 * {several / 'utility'} + 0.5 * {several / 'utility2'}"
    provenance = numbers(tmp_path / "run")["run"]
    assert provenance["utility"] == expected
    assert provenance["calibration"] is None  # no method reads any, whatever data are given
    assert expected in (tmp_path / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    arm = json.loads((tmp_path / "run" / "scores" / "utility" / "arm.json").read_text(encoding="utf-8"))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert arm["artefact_sha256"] == manifest["inputs"]["utility"]
    assert manifest["config"]["adapters"]["utility"][1] == {"path": str(several / "utility2"), "weight": 0.5}


@pytest.mark.parametrize("value", [[], [{"path": "x", "weight": 0}], [{"weight": 1}], [{"path": "x", "wait": 1}]])
def test_lists_that_mean_nothing_are_refused(inputs: Path, tmp_path: Path, value: Any) -> None:
    adapters = {"utility": value, "safety": str(inputs / "safety")}
    with pytest.raises(Exception, match=r"adapters\.utility"):
        run_config(inputs, tmp_path, adapters=adapters)
