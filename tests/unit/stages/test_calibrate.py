"""What is measured where: point of linearisation, labels, coordinates, and whose statistics are shared."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from sst_merge.adapter import Updates, concatenate
from sst_merge.adapter_io import read_adapter
from sst_merge.config import RunConfig
from sst_merge.errors import RunFolderError
from sst_merge.inference import encode
from sst_merge.methods.sst import Sst
from sst_merge.models import Base
from sst_merge.progress import SilentReporter
from sst_merge.run_file import validate
from sst_merge.run_folder import RunFolder
from sst_merge.stages.calibrate import (
    LazyBase,
    calibrate,
    distinct,
    encode_rows,
    label_draws,
    statistics_folder,
    statistics_folders,
)
from sst_merge.stages.merge import merge_updates
from sst_merge.stages.plan import describe, plan, write_plan
from sst_merge.stages.run import run
from sst_merge.statistics import KroneckerFactors, PooledGradients, SampleGradients, Statistics
from sst_merge.statistics.sample_gradients import patch_bases
from sst_merge.weights import applied
from tiny_run import run_config, run_values, write_rows

DATA = ("utility", "safety")


def settings(inputs: Path, **changes: Any) -> dict[str, Any]:
    return {**{name: str(inputs / f"{name}_calibration.jsonl") for name in DATA}, "batch_size": 3, **changes}


def harmless(folder: Path, first_tokens: int) -> dict[str, Any]:
    file = folder / "harmless.jsonl"
    write_rows(file, "harmless", 3)
    return {"harmless": str(file), "first_tokens": first_tokens}


def made(inputs: Path, output: Path, method: dict[str, Any] | None = None, seed: int = 0, **calibration: Any) -> Any:
    changes = {"method": {"name": "sst", **(method or {})}, "seed": seed, "comparisons": None, "evaluation": None}
    return plan(run_config(inputs, output, calibration=settings(inputs, **calibration), **changes), root=Path())


def calibrated(planned: Any, base: Base) -> Statistics:
    write_plan(planned, command="test")
    return calibrate(planned, LazyBase(lambda: base), SilentReporter())


def no_model() -> Base:
    raise AssertionError("the model was loaded")


@pytest.mark.parametrize(
    ("point", "method", "weights"),
    [
        ("utility", {}, (1.0, 0.0)),
        ("base", {}, (0.0, 0.0)),
        ("midpoint", {}, (1.0, 0.5)),
        ("midpoint", {"patch": "interpolate", "span": "joint"}, (0.5, 0.5)),
    ],
    ids=str,
)
def test_the_gradients_are_those_at_the_point(
    inputs: Path, base: Base, tmp_path: Path, point: str, method: dict[str, Any], weights: tuple[float, float]
) -> None:
    planned = made(inputs, tmp_path / "run", method, point=point)
    (found,) = calibrated(planned, base).found.values()
    utility, safety = (read_adapter(inputs / name).updates for name in DATA)
    at: Updates = {
        name: concatenate([utility[name].scaled(weights[0]), safety[name].scaled(weights[1])]) for name in utility
    }
    rows = [*planned.inputs.calibration_safety, *planned.inputs.calibration_utility]
    with applied(base, at, "point"):
        expected = SampleGradients.measure(
            base,
            patch_bases(safety, utility if "span" in method else None),
            encode_rows(base, rows),
            tmp_path / "expected",
            safety_samples=5,
            weights=[1.0] * 10,
            batch_size=3,
        )
    assert isinstance(found, SampleGradients)
    for name in utility:
        torch.testing.assert_close(found.rows(name), expected.rows(name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [{}, {"span": "joint", "patch": "interpolate"}], ids=str)
def test_of_two_points_the_second_is_what_the_default_settings_merge_by_the_first(
    inputs: Path, base: Base, tmp_path: Path, method: dict[str, Any]
) -> None:
    settings = {**method, "keep": {"soft": 3}, "strength": 0.4, "utility_weight": 0.7}  # none of them moves the point
    planned = made(inputs, tmp_path / "run", settings, point="utility_and_merged")
    ((request, found),) = calibrated(planned, base).found.items()
    assert isinstance(found, PooledGradients)
    first, second = found.points
    (alone,) = calibrated(made(inputs, tmp_path / "alone", method), base).found.values()
    assert isinstance(alone, SampleGradients)
    utility, safety = (read_adapter(inputs / name).updates for name in DATA)
    merged = merge_updates(
        Sst(**method), utility, safety, Statistics({request: alone}), seed=0, reporter=SilentReporter()
    ).updates
    rows = [*planned.inputs.calibration_safety, *planned.inputs.calibration_utility]
    with applied(base, merged, "second point"):
        expected = SampleGradients.measure(
            base,
            patch_bases(safety, utility if method else None),
            encode_rows(base, rows),
            tmp_path / "expected",
            safety_samples=5,
            weights=[1.0] * 10,
            batch_size=3,
        )
    for name in utility:
        assert first.rows(name).equal(alone.rows(name))
        torch.testing.assert_close(second.rows(name), expected.rows(name), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(second.rows(name), first.rows(name), rtol=0.01)
        means = [(one + other) / 2 for one, other in zip(fishers(first, name), fishers(second, name), strict=True)]
        for pooled, mean in zip(fishers(found, name), means, strict=True):
            torch.testing.assert_close(pooled, mean, rtol=1e-4, atol=1e-5 * float(mean.abs().max()))


def test_two_points_take_the_first_from_where_it_is_and_no_setting_of_the_method_measures_again(
    inputs: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = {"store": str(tmp_path / "store")}
    calibrated(made(inputs, tmp_path / "one", **store), base)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "store").rglob("*")}
    both = made(inputs, tmp_path / "both", point="utility_and_merged", **store)
    (pooled,) = calibrated(both, base).found.values()
    assert isinstance(pooled, PooledGradients)
    assert [point.folder for point in pooled.points] == statistics_folders(both)
    assert statistics_folders(both)[0] in kept
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items() if file.is_file())
    for file in statistics_folders(both)[1].iterdir():
        file.unlink()
    asked: list[int] = []
    monkeypatch.setattr("sst_merge.stages.calibrate.require_free_space", lambda _, needed, __: asked.append(needed))
    calibrate(both, LazyBase(lambda: base), SilentReporter())
    whole = describe(both)["statistics_bytes"]
    assert 0.25 * whole < asked[0] <= 0.5 * whole  # for the second point alone; tiny files have large headers
    changed = {"keep": {"directions": 3}, "strength": 2.0, "damping_safety": 0.7, "fisher": "diagonal"}
    other = made(inputs, tmp_path / "other", changed, point="utility_and_merged", **store)
    write_plan(other, command="test")
    assert calibrate(other, LazyBase(no_model), SilentReporter()).folders() == statistics_folders(both)


def test_the_plan_foretells_what_kronecker_factors_take(
    inputs: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sst_merge.statistics.kronecker_factors.PANEL_ROWS", 9)  # several panels a factor
    planned = made(inputs, tmp_path / "run", {"fisher": "kfac"})
    (found,) = calibrated(planned, base).found.values()
    factors = {
        key: value
        for key, value in load_file(found.folder / "sums.safetensors").items()
        if key.split("/")[-1].isdigit()
    }
    assert any(key.endswith("/3") for key in factors)
    assert sum(value.nbytes for value in factors.values()) == describe(planned)["statistics_bytes"]


def test_of_refusals_of_harmless_prompts_only_the_first_tokens_count_and_of_others_once_more(
    inputs: Path, base: Base, tmp_path: Path
) -> None:
    planned = made(inputs, tmp_path / "run", **harmless(tmp_path, 1))
    (found,) = calibrated(planned, base).found.values()
    assert isinstance(found, SampleGradients)
    rows = [*planned.inputs.calibration_safety, *planned.inputs.calibration_utility]
    assert [row.answer_tokens for row in rows] == [None] * 5 + [1] * 5 + [None] * 5 + [1] * 3
    utility, safety = (read_adapter(inputs / name).updates for name in DATA)
    name, bases = next(iter(safety)), patch_bases(safety)
    weight = base.modules[name].weight
    with applied(base, utility, "point"):
        for i, row in enumerate(rows):  # one sample at a time, by autograd through the whole weight
            if row.answer_tokens is None:
                continue
            sample = encode(base, row.prompt, row.answer)
            assert sample.answer_length > 1
            weight.requires_grad_(True)
            logits = base.model(torch.tensor([sample.ids])).logits[0, sample.answer_start - 1]
            (gradient,) = torch.autograd.grad(logits.log_softmax(dim=0)[sample.ids[sample.answer_start]], weight)
            weight.requires_grad_(False)
            q = bases[name].q
            own = gradient @ q.T if bases[name].side == "output" else q @ gradient
            torch.testing.assert_close(
                found.rows(name)[i], own.flatten() / (10 if i < 10 else 8) ** 0.5, rtol=1e-3, atol=1e-5
            )


@pytest.mark.parametrize("fisher", ["exact", "kfac"])
def test_the_same_tokens_twice_are_one_sample_of_their_weights(
    inputs: Path, base: Base, tmp_path: Path, fisher: str
) -> None:
    """Refusals that begin alike are the same sample by their first tokens; the Fisher matrices do not change."""
    planned = made(inputs, tmp_path / "run", {"fisher": fisher}, **harmless(tmp_path, 1))
    rows = planned.inputs.calibration_safety
    rows += [replace(rows[-1], answer=f"{rows[-1].answer} and more", weight=2.0)]  # begins as the one before
    (found,) = calibrated(planned, base).found.values()
    assert not isinstance(found, PooledGradients)
    assert found.safety_samples == len(rows) - 1
    assert found.weights[found.safety_samples - 1] == 3.0
    encoded = encode_rows(base, [*rows, *planned.inputs.calibration_utility])
    utility, safety = (read_adapter(inputs / name).updates for name in DATA)
    with applied(base, utility, "utility"):
        every = type(found).measure(
            base,
            patch_bases(safety),
            encoded,
            tmp_path / "every",
            safety_samples=len(rows),
            weights=[row.weight for row in rows] + [1.0] * len(planned.inputs.calibration_utility),
            batch_size=3,
        )
    for name in utility:
        for one, other in zip(fishers(found, name), fishers(every, name), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def fishers(found: SampleGradients | PooledGradients | KroneckerFactors, name: str) -> list[torch.Tensor]:
    if isinstance(found, KroneckerFactors):
        return [factor for fisher in found.fishers(name) for factor in (fisher.left, fisher.right)]
    rows, is_safety = found.rows(name).double(), found.is_safety()
    return [part.T @ part for part in (rows[is_safety], rows[~is_safety])]


def test_a_safety_and_a_utility_sample_of_the_same_tokens_stay_two(base: Base) -> None:
    sample = encode(base, "tell me", "no")
    assert distinct([sample, sample], [1.0, 1.0], safety_samples=1) == ([sample, sample], [1.0, 1.0], 1)


def test_the_key_holds_point_labels_span_and_structure_and_not_the_store(inputs: Path, tmp_path: Path) -> None:
    def key(method: dict[str, Any] | None = None, seed: int = 0, **calibration: Any) -> str:
        folder = statistics_folder(made(inputs, tmp_path, method, seed, **calibration))
        assert folder is not None
        return folder.name

    joint = {"span": "joint"}
    between = {"span": "joint", "patch": "interpolate"}
    keys = [
        key(),
        key(point="base"),
        key(point="midpoint"),
        key(labels="model"),
        key(labels="model", seed=1),
        key(**harmless(tmp_path, 8)),
        key(**harmless(tmp_path, 3)),
        key(joint),
        key({"fisher": "kfac"}),
        key({"fisher": "kfac", **joint}),
        key(between, point="midpoint"),
        key(joint, point="midpoint"),
    ]
    assert len(set(keys)) == len(keys)
    changes = {"method": {"name": "sst"}, "seed": 0, "comparisons": None, "evaluation": None, "chat_template": "plain"}
    plain = statistics_folder(plan(run_config(inputs, tmp_path, calibration=settings(inputs), **changes), root=Path()))
    assert plain is not None
    assert plain.name not in keys  # the same rows in other words
    assert key({"fisher": "diagonal"}) == key(store=str(tmp_path)) == keys[0]
    assert key(between) == key(joint)  # the same gradients: only the midpoint depends on the patch


def test_labels_are_drawn_by_seed_and_row_whatever_the_other_rows(inputs: Path, base: Base, tmp_path: Path) -> None:
    planned = made(inputs, tmp_path)
    rows = planned.inputs.calibration_safety
    samples = encode_rows(base, rows)
    draws = label_draws(rows, samples, seed=0)
    assert [len(draw) for draw in draws] == [sample.answer_length for sample in samples]
    backwards = label_draws(rows[::-1], samples[::-1], seed=0)[::-1]
    assert all(one.equal(other) for one, other in zip(draws, backwards, strict=True))
    assert not draws[0].equal(label_draws(rows, samples, seed=1)[0])
    assert not draws[0].equal(draws[1])


@pytest.mark.parametrize("fisher", ["exact", "kfac"])
def test_labels_of_the_model_give_other_statistics_and_the_same_again(
    inputs: Path, base: Base, tmp_path: Path, fisher: str
) -> None:
    def files(name: str, labels: str) -> dict[str, bytes]:
        planned = made(inputs, tmp_path / name, {"fisher": fisher}, labels=labels)
        (folder,) = calibrated(planned, base).folders()
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    first, again, data = files("first", "model"), files("again", "model"), files("data", "data")
    assert first == again
    assert first.keys() == data.keys()
    assert first != data


@pytest.mark.parametrize("fisher", ["exact", "kfac"])
def test_a_shared_store_is_measured_once_for_any_number_of_runs(
    inputs: Path, base: Base, tmp_path: Path, fisher: str
) -> None:
    store = tmp_path / "store"
    calibrated(made(inputs, tmp_path / "first", {"fisher": fisher}, store=str(store)), base)
    assert not RunFolder(tmp_path / "first").statistics.exists()
    for number, method in enumerate(
        [{"strength": 0.3, "utility_weight": 0.5}, {"keep": {"directions": 3}}, {"damping_safety": 0.7}]
    ):
        other = made(inputs, tmp_path / f"{number}", {"fisher": fisher, **method}, store=str(store))
        write_plan(other, command="test")
        found = calibrate(other, LazyBase(no_model), SilentReporter())
        assert [folder.parent for folder in found.folders()] == [store]
        assert isinstance(next(iter(found.found.values())), KroneckerFactors if fisher == "kfac" else SampleGradients)


def test_a_run_that_replaces_one_calibrates_only_if_what_it_depends_on_has_changed(
    inputs: Path, base: Base, tmp_path: Path
) -> None:
    def merged(price: int, batch_size: int, load: Any) -> dict[str, Any]:
        calibration = {name: str(inputs / f"{name}_calibration.jsonl") for name in ("safety", "utility")}
        config = run_config(
            inputs,
            tmp_path / "run",
            method={"name": "sst", "keep": {"soft": price}},
            calibration={**calibration, "batch_size": batch_size},
            comparisons=None,
            evaluation=None,
        )
        return run(config, root=Path(), reporter=SilentReporter(), command="test", replace=True, load=load)

    first, second = merged(10, 3, lambda: base), merged(1, 3, no_model)
    assert first["total"]["safety_energy_kept"] < second["total"]["safety_energy_kept"]
    with pytest.raises(AssertionError, match="the model was loaded"):
        merged(1, 2, no_model)


def test_a_method_without_data_needs_neither_model_nor_rows(inputs: Path, tmp_path: Path) -> None:
    changes = {"calibration": None, "comparisons": None, "evaluation": None}
    config = run_config(inputs, tmp_path / "run", method={"name": "sst", "fisher": "none"}, **changes)
    planned = plan(config, root=Path())
    write_plan(planned, command="test")
    assert calibrate(planned, LazyBase(no_model), SilentReporter()).found == {}


def test_replacing_a_run_leaves_a_store_inside_its_folder_alone(inputs: Path, base: Base, tmp_path: Path) -> None:
    """Relative paths count from the root, which need not be the working directory."""
    values = run_values(inputs, tmp_path / "run", comparisons=None, evaluation=None)
    values["calibration"]["store"] = "run/store"
    config = validate(RunConfig, values, "test")
    given: dict[str, Any] = {"root": tmp_path, "reporter": SilentReporter(), "command": "test", "load": lambda: base}
    run(config, **given)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "store").rglob("*.safetensors")}
    assert kept
    run(validate(RunConfig, {**values, "seed": 1}, "test"), replace=True, **given)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_run_waits_for_another_that_measures_the_same_statistic(
    inputs: Path, base: Base, tmp_path: Path, is_shared: bool
) -> None:
    planned = made(inputs, tmp_path / "run", **({"store": str(tmp_path / "store")} if is_shared else {}))
    write_plan(planned, command="test")
    folder = statistics_folder(planned)
    assert folder is not None
    folder.parent.mkdir()
    told: list[str] = []
    with FileLock(folder.with_suffix(".lock")) as other:

        class Other(SilentReporter):
            """The other run, which ends once this one waits for it."""

            def say(self, text: str) -> None:
                told.append(text)
                other.release()

        calibrate(planned, LazyBase(lambda: base), Other())
    assert told == [f"note: another run is measuring {folder}; waiting for it"]
    assert SampleGradients.is_complete(folder)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_store_on_a_full_disk_is_told_before_anything_is_measured(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = made(inputs, tmp_path / "run", store=str(tmp_path / "store"))
    write_plan(planned, command="test")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(RunFolderError, match=r"the statistics need .* free"):
        calibrate(planned, LazyBase(no_model), SilentReporter())
