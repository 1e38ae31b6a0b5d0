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


def test_loss_at_a_gain_is_the_least_loss_of_what_gains_that_much(ablation: ModuleType) -> None:
    gains, losses = np.array([[0.2, 0.5, 0.9], [0.2, 0.5, 0.9]]), np.array([[0.0, 0.3, 0.1], [0.0, 0.3, 0.1]])
    found = ablation.loss_at(gains, losses, np.array([0.4, 1.0]))
    assert found[0] == 0.1
    assert np.isnan(found[1])


def test_a_torn_line_is_dropped_and_the_settings_before_it_are_kept(ablation: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "validation.jsonl"
    file.write_text('{"key": "a", "scores": {}}\n{"key": "b", "sco', encoding="utf-8")
    assert list(ablation.recorded(file)) == ["a"]
    assert file.read_text(encoding="utf-8") == '{"key": "a", "scores": {}}\n'


def likelihoods(ablation: ModuleType) -> dict[str, dict[str, Any]]:
    """Ours gains 0.9 of the safety adapter's nats for 0.1 utility nats, every baseline for 0.4, other variants none."""

    def nats(safety: float, utility: float, **more: Any) -> dict[str, Any]:
        return {"scores": {"refusal_nll": [safety] * 4, "utility_nll": [utility] * 4}, **more}

    lines = {"base": nats(2.0, 3.0), "utility": nats(2.0, 1.0), "safety": nats(1.0, 4.0)}
    for variant in ablation.VARIANTS:
        loss = 0.1 if variant == ablation.OURS else 0.4
        gain = 0.9 if variant in {ablation.OURS, *ablation.BASELINES} else 0.0
        lines[variant] = nats(
            2.0 - gain, 1.0 + loss, variant=variant, settings={"strength": 2.0, "utility_weight": 1.0}
        )
    lines[ablation.OURS]["energies"] = {"utility_energy_kept": 0.05}
    return lines


def test_front_and_area_are_the_least_loss_at_shares_of_the_safety_adapters_gain(ablation: ModuleType) -> None:
    front = ablation.Front.of(likelihoods(ablation), draws=3)
    assert front.ceiling == pytest.approx([1.0] * 4)
    assert front.loss(ablation.OURS, 0.8) == pytest.approx([0.1] * 4)
    assert front.area(ablation.OURS) == pytest.approx([0.1] * 4)
    assert front.best_baseline(0.8) == pytest.approx([0.4] * 4)
    assert np.isnan(front.area("SST kfac")).all()  # it gains nothing


def test_the_report_sets_ours_beside_the_best_baseline_and_says_what_was_not_reached(ablation: ModuleType) -> None:
    text = "".join(ablation.likelihood_lines(likelihoods(ablation)))
    assert "minus the best baseline at 80% of the gain: -0.300 [-0.300, -0.300] nats; ratio 0.25." in text
    assert "| SST kfac | not reached | not reached | not reached |" in text


def test_the_prediction_is_half_of_the_squared_strength_times_the_energy_kept(ablation: ModuleType) -> None:
    predicted, measured = ablation.predictions(likelihoods(ablation))
    assert predicted == pytest.approx([0.1])
    assert measured == pytest.approx([0.1])
