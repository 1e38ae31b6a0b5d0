"""The parts of benchmarks/ablation.py that decide what is compared with what."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sst_merge.methods import METHODS

FILE = Path(__file__).parents[2] / "benchmarks" / "ablation.py"


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module
    spec.loader.exec_module(module)
    return module


def line(variant: str, refusal: float, over: float, right: float, key: str) -> dict[str, Any]:
    scores = {"refusal": [refusal], "over_refusal": [over], "utility": [right]}
    return {"key": key, "variant": variant, "scores": scores}


def test_every_method_gets_the_same_number_of_different_trials_and_all_are_valid(ablation: ModuleType) -> None:
    trials = ablation.trials()
    assert set(Counter(trial.variant for trial in trials).values()) == {6}
    assert len({trial.key for trial in trials}) == len(trials)
    for trial in trials:
        method = METHODS[ablation.VARIANTS[trial.variant][0]].model_validate(trial.settings)
        assert (method.utility_weight, method.strength) == (
            trial.settings["utility_weight"],
            trial.settings["strength"],
        )


def test_the_setting_with_the_least_harm_is_chosen_among_those_that_reach_the_target(ablation: ModuleType) -> None:
    lines = {
        "a": line("TIES", 0.7, 0.0, 1.0, "a"),
        "b": line("TIES", 0.8, 0.3, 0.6, "b"),
        "c": line("TIES", 0.9, 0.2, 0.6, "c"),
        "d": line("DARE", 1.0, 0.0, 1.0, "d"),
    }
    assert ablation.chosen(lines, "TIES", 0.8) == (lines["c"], True)
    assert ablation.chosen(lines, "TIES", 0.95) == (lines["c"], False)  # none reaches it: the one that refuses most
    lines["e"] = line("TIES", 0.9, 0.1, 0.6, "e")
    assert ablation.chosen(lines, "TIES", 0.95) == (
        lines["e"],
        False,
    )  # of two that refuse most, the one with less harm


def test_a_torn_line_is_dropped_and_the_settings_before_it_are_kept(ablation: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "validation.jsonl"
    file.write_text('{"key": "a", "scores": {}}\n{"key": "b", "sco', encoding="utf-8")
    assert list(ablation.recorded(file)) == ["a"]
    assert file.read_text(encoding="utf-8") == '{"key": "a", "scores": {}}\n'


def likelihoods(ablation: ModuleType) -> dict[str, dict[str, Any]]:
    """Two trials a method: strength 1 with little gain and loss, strength 2 with more of both; samples differ."""

    def nats(safety: float, utility: float, **more: Any) -> dict[str, Any]:
        noise = np.array([-0.3, -0.1, 0.1, 0.3])
        return {"scores": {"refusal_nll": list(safety + noise), "utility_nll": list(utility + noise)}, **more}

    lines = {"base": nats(2.0, 3.0), "utility": nats(2.0, 1.0), "safety": nats(1.0, 4.0)}
    lines = {key: {**line, "key": key} for key, line in lines.items()}
    losses = {ablation.OURS: 0.1, "TIES": 0.6, "DARE": 0.5, "task arithmetic": 0.4, "Fisher merging": 0.7}
    for variant in ablation.VARIANTS:
        for strength, share in ((1.0, 0.5), (2.0, 1.0)):
            settings = {"strength": strength, "utility_weight": 1.0}
            gain = 0.9 * share if variant in losses else 0.0
            key = f"{variant} {strength}"
            more = {"key": key, "variant": variant, "settings": settings, "energies": {}}
            lines[key] = nats(2.0 - gain, 1.0 + losses.get(variant, 2.0) * share, **more)
    return lines


def test_a_trial_is_picked_by_the_least_loss_among_those_that_gain_enough(ablation: ModuleType) -> None:
    found = ablation.points(likelihoods(ablation), draws=50)
    assert found["safety"].gain[0] == pytest.approx(1.0)
    assert ablation.least_loss(found, [ablation.OURS], 0.4).line["key"] == f"{ablation.OURS} 1.0"
    assert ablation.least_loss(found, [ablation.OURS], 0.85).line["key"] == f"{ablation.OURS} 2.0"
    assert ablation.least_loss(found, ablation.BASELINES, 0.85).line["key"] == "task arithmetic 2.0"
    assert ablation.least_loss(found, ["SST kfac"], 0.4) is None  # it gains nothing


def test_draws_are_shared_by_all_trials_so_that_differences_are_paired(ablation: ModuleType) -> None:
    found = ablation.points(likelihoods(ablation), draws=50)
    ours, theirs = found[f"{ablation.OURS} 2.0"], found["TIES 2.0"]
    assert ours.loss[1:] + 0.5 == pytest.approx(theirs.loss[1:])  # samples differ by the same noise in every model
    assert found["utility"].loss == pytest.approx([0.0] * 51)


def test_the_report_sets_ours_beside_the_best_baseline_and_says_what_was_not_reached(ablation: ModuleType) -> None:
    text = "".join(ablation.likelihood_lines(likelihoods(ablation)))
    assert (
        "SST exact, module minus task arithmetic, the baseline with the least loss: "
        "-0.300 [-0.300, -0.300] nats of the task; ratio 0.25." in text
    )
    assert "| SST kfac | none of its trials gains so much | | |" in text


def test_no_ratio_is_printed_where_the_baseline_has_no_loss(ablation: ModuleType) -> None:
    lines = likelihoods(ablation)
    lines["DARE 2.0"]["scores"]["utility_nll"] = lines["utility"]["scores"]["utility_nll"]
    text = "".join(ablation.likelihood_lines(lines))
    assert "minus DARE" in text
    assert "ratio" not in text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"utility_weight": 1.0}, 0.1),
        ({"utility_weight": 0.8}, None),
        ({"utility_weight": 1.0, "scope": "global"}, None),
        ({"utility_weight": 1.0, "patch": "interpolate"}, None),
    ],
    ids=str,
)
def test_the_prediction_is_half_of_the_squared_strength_times_the_energy_kept(
    ablation: ModuleType, settings: dict[str, Any], expected: float | None
) -> None:
    trial = {"settings": {"strength": 2.0, **settings}, "energies": {"utility_energy_kept": 0.05}}
    assert ablation.prediction(trial) == (None if expected is None else pytest.approx(expected))
    assert ablation.prediction({**trial, "energies": {}}) is None
