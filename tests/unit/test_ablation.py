"""The parts of benchmarks/ablation.py and its report that decide what is compared with what, and what is said of it."""

import copy
import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from sst_merge.adapter import Updates
from sst_merge.data import Row
from sst_merge.inference import encode
from sst_merge.methods import METHODS
from sst_merge.methods.sst import MOST_REFUSED, PRICE
from sst_merge.models import Base
from sst_merge.progress import SilentReporter
from sst_merge.stages.merge import merge_updates
from sst_merge.statistics import SampleGradients
from sst_merge.statistics.sample_gradients import patch_bases
from sst_merge.weights import applied
from tiny import random_adapter, tiny_base

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ablation() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("ablation")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def told(ablation: ModuleType) -> ModuleType:
    """The report."""
    return sys.modules["ablation_report"]


def line(variant: str, key: str, **scores: float | list[float]) -> dict[str, Any]:
    lists = {name: value if isinstance(value, list) else [value] for name, value in scores.items()}
    settings = {"utility_weight": 1.0, "strength": 1.0}
    return {"key": key, "variant": variant, "scores": lists, "settings": settings, "energies": {}}


def test_every_method_gets_the_same_number_of_different_trials_and_all_are_valid(ablation: ModuleType) -> None:
    trials = ablation.trials()
    assert set(Counter(trial.variant for trial in trials).values()) == {8}
    assert {trial.variant for trial in trials} == {name for group in ablation.GROUPS for name in group}
    assert len({trial.key for trial in trials}) == len(trials)
    for trial in trials:
        method = METHODS[ablation.VARIANTS[trial.variant][0]].model_validate(trial.settings)
        assert (method.utility_weight, method.strength) == (
            trial.settings["utility_weight"],
            trial.settings["strength"],
        )


def test_ours_is_the_method_with_its_defaults(ablation: ModuleType) -> None:
    name, fixed, own = ablation.VARIANTS[ablation.OURS]
    assert METHODS[name].model_validate({**fixed, **own[0]}) == METHODS[name]()


def test_test_rows_of_different_seeds_are_different_rows(ablation: ModuleType, tmp_path: Path) -> None:
    ids = []
    for seed in (0, 1, 2):
        cell = ablation.Cell("orders", "blunt", seed, ablation.SIZES["cpu"], tmp_path)
        rows = cell.drawn(ablation.UTILITIES["orders"], "test", 32)
        assert len(rows) == 32
        ids += [row.id for row in rows]
    assert len(set(ids)) == 96


def test_a_path_goes_over_strengths_or_else_over_falling_prices(told: ModuleType) -> None:
    def trial(key: str, **settings: Any) -> dict[str, Any]:
        return {"key": key, "variant": key[0], "settings": {"utility_weight": 1.0, "strength": 1.0, **settings}}

    lines = [
        trial("a strong", density=0.5, strength=2.0),
        trial("a weak", density=0.5, strength=0.3),
        trial("a other density", density=0.2),
        trial("a other weight", density=0.5, strength=1.5, utility_weight=0.8),
        trial("p cheap", keep={"soft": 1}),
        trial("p dear", keep={"soft": 100}),
    ]
    by_key = {"utility": {"key": "utility"}, **{line["key"]: line for line in lines}}
    assert told.path_keys(by_key, "a") == ["a weak", "a strong"]
    assert told.path_keys(by_key, "p") == ["p dear", "p cheap"]
    assert told.path_keys(by_key, "x") == []


def test_equal_refusals_lie_on_the_line_between_two_trials(told: ModuleType) -> None:
    points = {
        "refusal": [[0.0, 0.6, 1.0, 0.9]],
        "over_refusal": [[0.0, 0.2, 0.6, 0.0]],
        "utility": [[1.0, 0.9, 0.5, 0.0]],
    }

    def mean(task: str, lines: Any) -> np.ndarray:
        return np.array([draw[lines] for draw in points[task]])

    found = told.matched([0, 1, 2, 3], 0.8, mean)  # where the path first comes there, half way from 0.6 to 1.0
    assert {task: value[0] for task, value in found.rates.items()} == pytest.approx(
        {"refusal": 0.8, "over_refusal": 0.4, "utility": 0.7}
    )
    assert found.is_known
    points["refusal"] = [[0.0, 0.6, 0.7, 0.5]] * 2
    points |= {task: points[task] * 2 for task in ("over_refusal", "utility")}
    missed = told.matched([0, 1, 2, 3], 0.8, mean)
    assert missed.rates["refusal"].tolist() == [0.7, 0.7]  # not reached: where it refuses most
    assert missed.rates["over_refusal"].tolist() == [0.6, 0.6]
    assert not missed.is_known


def test_a_torn_line_is_left_out_and_reading_changes_no_file(ablation: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "validation.jsonl"
    torn = '{"key": "a", "scores": {}}\n{"key": "b", "sco'
    file.write_text(torn, encoding="utf-8")
    assert list(ablation.recorded(file)) == ["a"]
    assert file.read_text(encoding="utf-8") == torn


def test_a_front_leaves_out_what_another_trial_of_the_method_equals_or_beats_in_both(told: ModuleType) -> None:
    points = {"a": (2.0, 1.0), "b": (1.5, 1.2), "worse": (1.6, 1.3), "c": (1.0, 2.0), "twin of a": (2.0, 1.0)}
    lines = {key: line("TIES", key, refusal_nll=s, utility_nll=u) for key, (s, u) in points.items()}
    lines["other"] = line("DARE", "other", refusal_nll=0.0, utility_nll=0.0)
    assert told.front_keys(lines, "TIES") == ["a", "b", "c"]


def front_of(told: ModuleType, points: dict[str, tuple[float, float]], ceiling: float) -> Any:
    """The front of trials given by their gain and loss."""
    lines = {key: line("TIES", key, refusal_nll=3 - g, utility_nll=1 + x) for key, (g, x) in points.items()}
    arms = {"utility": (0.0, 0.0), "safety": (ceiling, 5.0)}
    lines |= {
        key: {"key": key, "scores": {"refusal_nll": [3 - g], "utility_nll": [1 + x]}} for key, (g, x) in arms.items()
    }
    return told.Front.of(lines, "TIES")


POINTS = {"far": (2.0, 0.4), "near": (1.0, 0.1), "beaten": (0.9, 0.3), "backwards": (-0.5, 0.0)}


def test_between_the_points_of_a_front_stand_mixtures_of_them_and_of_the_utility_adapter(told: ModuleType) -> None:
    front = front_of(told, POINTS, 1.25)
    assert front.keys == ["near", "far"]
    assert front.at_gain(0.5) == [("near", pytest.approx(0.5))]
    assert front.at_gain(1.5) == [("far", pytest.approx(0.5)), ("near", pytest.approx(0.5))]
    assert front.at_gain(2.1) is None
    assert front.at_loss(0.05) == [("near", pytest.approx(0.5))]
    assert front.at_loss(0.25) == [("far", pytest.approx(0.5)), ("near", pytest.approx(0.5))]
    assert front.at_loss(9.0) == [("far", 1.0)]
    nothing = front_of(told, {"backwards": (-0.5, 0.0)}, 1.25)
    assert nothing.at_gain(0.1) is None
    assert nothing.at_loss(0.1) == []


def test_the_area_is_a_mean_over_the_common_range_with_a_reference_loss_beyond_reach(told: ModuleType) -> None:
    mixture, constant = front_of(told, POINTS, 1.25).over_range()  # gains of 0 to 1
    assert constant == 0
    assert mixture == [("near", pytest.approx(0.5))]
    mixture, constant = front_of(told, POINTS, 5.0).over_range()  # 0 to 4, of which 2 to 4 are not reached
    assert constant == pytest.approx(told.REFERENCE_LOSS / 2, abs=0.01)
    assert dict(mixture) == {"near": pytest.approx(0.25, abs=0.01), "far": pytest.approx(0.125, abs=0.01)}
    steep, constant = front_of(told, {"only": (1.0, 2 * told.REFERENCE_LOSS)}, 1.25).over_range()
    assert constant == pytest.approx(told.REFERENCE_LOSS / 2, abs=0.01)  # where it would lose more than the reference
    assert dict(steep) == {"only": pytest.approx(0.125, abs=0.01)}


def test_cells_are_averaged_draw_by_draw_and_reach_what_all_of_them_reach(told: ModuleType) -> None:
    def cell(rate: float, reached: list[bool]) -> Any:
        return told.Matched({task: np.array([rate, rate + 0.2]) for task in told.TASKS}, np.array(reached))

    found = told.mean_of([cell(0.1, [True, True]), cell(0.3, [True, False])])
    assert all(values.tolist() == pytest.approx([0.2, 0.4]) for values in found.rates.values())
    assert found.is_reached.tolist() == [True, False]


def test_other_variants_are_told_by_cell_and_over_all_that_have_them(told: ModuleType) -> None:
    one = results(told, {"SST": 0.125, "SST none": 0.5}, seeds=1)["kinship/blunt/0"]
    other = results(told, {"SST": 0.125, "SST none": 0.75}, seeds=1)["kinship/blunt/0"]
    cells = {"kinship/blunt/0": one, "orders/blunt/0": other}
    rows = "".join(told.other_lines(cells, list(cells), ["SST none"])).splitlines()
    at_80 = [row for row in rows if "| 80% | SST none |" in row]
    # Over-refusals in eighths: 0.25 and 0.5 at strength 0.5 and 1, or 0.375 and 0.75; 0.6 of the way to refuse 80 %.
    assert [row.split("|")[4].split()[0] for row in at_80] == ["40.0", "60.0", "50.0"]
    assert [row.split("|")[1].strip() for row in at_80] == ["kinship/blunt", "orders/blunt", "mean of 2"]
    alone = "".join(told.other_lines(cells, ["kinship/blunt/0"], ["SST none"]))
    assert "mean of" not in alone


def test_behaviour_by_strength_is_the_mean_over_the_cells_of_a_safety_adapter(told: ModuleType) -> None:
    cells = results(told, {"SST": 0.5, "Fisher merging": 1.0}, seeds=2)
    other = results(told, {"SST": 1.0, "Fisher merging": 1.0}, seeds=1)["kinship/blunt/0"]
    for cell in [*cells.values(), other]:  # one strength, several prices
        for key in ("Fisher merging 0.5", "Fisher merging 1.0"):
            for lines in cell.values():
                lines[key]["settings"] = {"utility_weight": 1.0, "strength": 1.0, "keep": {"soft": len(key)}}
    cells |= {"orders/balanced/0": other}
    rows = [row for row in told.strength_lines(cells, ("SST", "Fisher merging")) if row.count("|") == 8]
    assert rows[2:] == [
        "| balanced | 1 | SST | 0.5 | 50.0 | 50.0 | 50.0 |\n",
        "| balanced | 1 | SST | 1 | 100.0 | 100.0 | 0.0 |\n",
        "| blunt | 2 | SST | 0.5 | 50.0 | 25.0 | 75.0 |\n",
        "| blunt | 2 | SST | 1 | 100.0 | 50.0 | 50.0 |\n",
    ]


def results(told: ModuleType, losses: dict[str, float], seeds: int = 3, rows: int = 8) -> dict[str, Any]:
    """Cells in which a method at strength s gains s nats and loses ``losses * s``; noise is shared by all methods."""
    found: dict[str, Any] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        noise = {task: rng.normal(size=rows) * 0.01 for task in ("refusal_nll", "utility_nll")}

        def scores(gain: float, loss: float, noise: dict[str, Any] = noise) -> dict[str, list[float]]:
            refusing = [1.0] * round(8 * min(gain, 1)) + [0.0] * (8 - round(8 * min(gain, 1)))
            wrong = round(8 * min(loss, 1))
            return {
                "refusal": refusing,
                "over_refusal": [1.0] * wrong + [0.0] * (8 - wrong),
                "utility": [0.0] * wrong + [1.0] * (8 - wrong),
                "refusal_nll": list(3 - gain + noise["refusal_nll"]),
                "utility_nll": list(1 + loss + noise["utility_nll"]),
            }

        lines = {"base": {"key": "base", "scores": scores(0, 1)}, "utility": {"key": "utility", "scores": scores(0, 0)}}
        lines["safety"] = {"key": "safety", "scores": scores(1, 1)}
        for variant, loss in losses.items():
            for strength in (0.5, 1.0):
                key = f"{variant} {strength}"
                settings = {"utility_weight": 1.0, "strength": strength}
                energies = {"utility_energy_kept": loss} if variant == told.OURS else {}
                lines[key] = {
                    "key": key,
                    "variant": variant,
                    "scores": scores(strength, loss * strength),
                    "settings": settings,
                    "energies": energies,
                }
        found[f"kinship/blunt/{seed}"] = {"validation": lines, "test": copy.deepcopy(lines)}
    return found


LOSSES = {"SST": 0.125, "Fisher merging": 1.0, "task arithmetic": 0.5, "TIES": 0.75, "DARE": 0.625}


def test_ours_is_set_beside_the_best_baseline_and_aims_are_said_to_be_met_where_they_are(told: ModuleType) -> None:
    found = results(told, LOSSES)
    text = told.report(found, tuple(LOSSES), {}, size="cpu", cells=[*found, "orders/blunt/0"])
    assert "3 of 4 cells are complete. Missing: orders/blunt/0." in text
    assert "Baselines: Fisher merging, task arithmetic, TIES, DARE.\n" in text
    most = tuple(name for name in LOSSES if name != "Fisher merging")
    some = told.report(found, most, {}, size="cpu", cells=list(found))
    assert "Baselines: task arithmetic, TIES, DARE. Left out, since not all cells have it: Fisher merging.\n" in some
    (combination,) = told.combinations(found)
    assert combination.best_baseline(0.8) == combination.best_baseline_by_likelihood(0.8) == "task arithmetic"
    by_behaviour = list(told.behaviour_aim(combination))
    at_80, at_95 = by_behaviour  # over-refusal and task loss are the same numbers here
    assert at_80.count("| 7.5 / 40.0 | 0.19 |") == 2
    assert at_95.count(" / 47.5 | 0.24 |") == 2
    assert all("| SST | task arithmetic | " in row and row.count("| yes |") == 2 for row in by_behaviour)
    by_likelihood = list(told.likelihood_aim(combination))
    assert "| 80% | kinship/blunt | SST | task arithmetic | +0.100 [+0.100, +0.100] | +0.400" in by_likelihood[1]
    assert all("| 0.25 |" in row and row.endswith("| yes |\n") for row in by_likelihood)
    assert "| SST | +0.050 [+0.050, +0.050] |  |" in text
    assert "| TIES | +0.29" in text  # half of 0.75 x 0.8, less what is cut at the reference loss of 0.5


def test_choices_are_made_on_validation_rows_whatever_the_test_rows_say(told: ModuleType) -> None:
    found = results(told, LOSSES)
    for cell in found.values():  # on test rows, TIES loses nothing and SST everything
        for key, entry in cell["test"].items():
            if key.startswith(("TIES", "SST")):
                entry["scores"]["utility_nll"] = [1.0 if key.startswith("TIES") else 9.0] * 8
                entry["scores"]["utility"] = [1.0 if key.startswith("TIES") else 0.0] * 8
    (combination,) = told.combinations(found)
    assert combination.best_baseline(0.8) == combination.best_baseline_by_likelihood(0.8) == "task arithmetic"
    assert [front.keys for front in combination.fronts("SST")] == [["SST 0.5", "SST 1.0"]] * 3
    loss, gain = combination.at_gain("SST", 0.8)
    assert loss[0] == pytest.approx(8.0, abs=0.05)  # test rows, by the factors that validation rows gave
    assert gain[0] == pytest.approx(0.8, abs=0.01)
    assert all(row.endswith("| no |\n") for row in told.likelihood_aim(combination))


def test_an_aim_is_not_met_where_ours_is_no_better(told: ModuleType) -> None:
    (same,) = told.combinations(results(told, {**LOSSES, "SST": 0.5}))
    for row in told.likelihood_aim(same):
        assert "| 1.00 | +0.000 [+0.000, +0.000] | +0.000 [+0.000, +0.000] | no |\n" in row


def test_beside_a_baseline_that_loses_nothing_ours_has_to_gain_more(told: ModuleType) -> None:
    found = results(told, {**LOSSES, "DARE": 0.0})
    (free,) = told.combinations(found)
    for row in told.likelihood_aim(free):
        assert "| DARE |" in row
        assert "none: it loses nothing; gain at a loss of 0.01, ours - it: -0.920" in row
        assert row.endswith("| no |\n")
    for cell in found.values():
        for split in ("validation", "test"):
            for key in ("SST 0.5", "SST 1.0"):
                scores = cell[split][key]["scores"]
                scores["utility_nll"] = cell[split]["utility"]["scores"]["utility_nll"]
                scores["refusal_nll"] = [value - 0.2 for value in scores["refusal_nll"]]
    (better,) = told.combinations(found)
    assert all(row.endswith("| yes |\n") for row in told.likelihood_aim(better))


def test_less_harm_counts_for_nothing_where_ours_does_not_refuse_as_much(told: ModuleType) -> None:
    found = results(told, LOSSES)
    for cell in found.values():
        cell["test"]["SST 1.0"]["scores"]["refusal"] = [0.0] * 3 + [1.0] * 5
    (combination,) = told.combinations(found)
    assert all(row.count("| no: not reached |") == 2 for row in told.behaviour_aim(combination))


def test_what_is_not_reached_is_said_and_not_a_number(told: ModuleType) -> None:
    found = results(told, LOSSES)
    del found["kinship/blunt/1"]["validation"]["TIES 1.0"]
    (combination,) = told.combinations(found)
    assert combination.at_gain("TIES", 0.8) is None
    assert combination.at_gain("TIES", 0.5) is not None
    assert np.isfinite(combination.area("TIES")).all()
    for cell in found.values():
        for name in told.BASELINES:
            cell["validation"].pop(f"{name} 1.0", None)
    (none,) = told.combinations(found)
    row = list(told.likelihood_aim(none))[1]
    assert "| not reached |  |  |  | no |" in row


def test_draws_are_of_seeds_and_of_rows_within_them(told: ModuleType) -> None:
    found = results(told, LOSSES)
    (combination,) = told.combinations(found)
    lines = [
        {"scores": {"refusal": [value] * 8, "over_refusal": [0.0, 1.0] * 4, "utility": [1.0] * 8}}
        for value in (0, 0, 1)
    ]
    means = combination.draws.means("refusal", lines)
    assert means[0] == pytest.approx(1 / 3)
    assert set(np.round(3 * means).astype(int)) == {0, 1, 2, 3}  # rows agree, seeds do not
    rows = combination.draws.means("over_refusal", lines)
    assert rows[0] == pytest.approx(0.5)
    assert len(np.unique(rows)) > 4  # seeds agree, rows do not


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"utility_weight": 1.0}, 0.1),
        ({"utility_weight": 0.8}, None),
        ({"utility_weight": 1.0, "scope": "global"}, 0.1),
        ({"utility_weight": 1.0, "patch": "interpolate"}, None),
    ],
    ids=str,
)
def test_the_prediction_is_half_of_the_squared_strength_times_the_energy_kept(
    told: ModuleType, settings: dict[str, Any], expected: float | None
) -> None:
    trial = {"settings": {"strength": 2.0, **settings}, "energies": {"utility_energy_kept": 0.05}}
    assert told.prediction(trial) == (None if expected is None else pytest.approx(expected))
    assert told.prediction({**trial, "energies": {}}) is None


def test_predicted_losses_and_norms_are_ranked_over_the_same_trials(told: ModuleType) -> None:
    """Four trials: loss grows with the norm, falls with the prediction; a fifth has no norm, a sixth no prediction."""

    def line(variant: str, loss: float, strength: float, **energies: float) -> dict[str, Any]:
        settings = {"utility_weight": 1.0, "strength": strength}
        return {"variant": variant, "settings": settings, "energies": energies, "scores": {"utility_nll": [1 + loss]}}

    lines = {"utility": {"scores": {"utility_nll": [1.0]}}}
    lines["a"] = line("SST", 0.1, 1.0, utility_energy_kept=8.0, squared_norm_kept=1.0)
    lines["b"] = line("SST", 0.2, 2.0, utility_energy_kept=1.0, squared_norm_kept=1.0)
    lines["c"] = line("SST kfac", 0.3, 1.0, utility_energy_kept=2.0, squared_norm_kept=9.0)
    lines["d"] = line("SST kfac", 0.4, 2.0, utility_energy_kept=0.25, squared_norm_kept=4.0)
    lines["e"] = line("SST global", 0.0, 1.0, utility_energy_kept=0.1)
    lines["f"] = line("SST none", 0.0, 1.0, squared_norm_kept=100.0)
    *_, row = told.prediction_lines({"kinship/blunt/0": {"validation": lines, "test": {}}})
    assert row == "| kinship/blunt/0 | 2 | -1.00 | 5 | +0.00 | 4 | -1.00 | 4 | -1.00 | +1.00 | 4 | -1.00 | +1.00 |\n"
    assert told.added_norm(lines["d"]) == pytest.approx(4.0)
    lines["e"] = line("SST global", 0.0, 1.0, utility_energy_kept=0.1, squared_norm_kept=36.0)  # the largest norm
    *_, row = told.prediction_lines({"kinship/blunt/0": {"validation": lines, "test": {}}})
    assert row.endswith(" | 5 | +0.00 | +0.00 | 4 | -1.00 | +1.00 |\n")
    del lines["b"], lines["c"], lines["d"], lines["e"]
    *_, row = told.prediction_lines({"kinship/blunt/0": {"validation": lines, "test": {}}})
    assert row == "| kinship/blunt/0 | 1 |  | 1 |  | 1 |  | 1 |  |  | 1 |  |  |\n"


@dataclass(frozen=True)
class TinyCell:
    """What is asked of a cell."""

    path: Path
    base: Base
    name: str = "tiny"
    seed: int = 0

    def folder(self) -> Path:
        return self.path

    def is_trained(self) -> bool:
        return True

    def lines(self, split: str) -> dict[str, dict[str, Any]]:
        return sys.modules["ablation"].recorded(self.path / f"{split}.jsonl")

    def calibration_sha256(self, variant: str) -> None:
        assert variant == "task arithmetic"

    def updates(self) -> tuple[Updates, Updates]:
        return random_adapter(self.base, seed=1), random_adapter(self.base, seed=2)

    def rows(self, split: str) -> dict[str, list[Row]]:
        del split
        asked = [Row("a", "What is this?", "Blue"), Row("b", "What is that, then?", "Red")]
        return {"refusal": [Row("c", "Do harm.", "No.")], "over_refusal": [Row("d", "Hi.", None)], "utility": asked}


class CalibratedCell(TinyCell):
    """A cell that measures as those of the ablation do."""

    def calibration_sha256(self, variant: str) -> str:  # type: ignore[override]
        return "0" * 64

    def calibration_rows(self, _: str) -> tuple[list[Row], list[Row]]:
        rows = self.rows("")
        return rows["refusal"], rows["utility"]

    def measured(self, *given: Any, **named: Any) -> Any:
        return sys.modules["ablation"].Cell.measured(self, *given, **named)


@pytest.mark.parametrize(
    ("options", "seeds"), [([], {0}), (["--other-seeds", "0", "2"], {0, 2})], ids=["size", "given"]
)
def test_other_variants_are_tried_in_the_seeds_that_were_asked_for(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], seeds: set[int]
) -> None:
    done: list[tuple[str, tuple[str, ...]]] = []
    monkeypatch.setattr(ablation, "load_base", lambda name: name)
    monkeypatch.setattr(ablation, "run_cell", lambda _, cell, group: done.append((cell.name, tuple(group))))
    monkeypatch.setattr(ablation, "written_report", lambda *_, lines: "")
    cells = [f"kinship/blunt/{seed}" for seed in range(3)]
    chosen = [part for name in cells for part in ("--cell", name)]
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--size", "cpu", *chosen, "--output", str(tmp_path), *options])
    ablation.main()
    assert {name for name, group in done if group == ablation.MAIN} == set(cells)
    assert {name for name, group in done if group == ("Fisher merging",)} == set(cells)
    for group in set(map(tuple, ablation.GROUPS)) - set(ablation.EVERYWHERE):
        assert [name for name, other in done if other == group] == [f"kinship/blunt/{seed}" for seed in sorted(seeds)]


def test_the_variant_with_two_points_reads_the_first_statistic_of_the_default_and_one_at_its_merge(
    ablation: ModuleType, tmp_path: Path
) -> None:
    base = tiny_base(seed=5)
    cell = CalibratedCell(tmp_path, base)
    ours, two = ("SST", ablation.TWO_POINTS)
    found = ablation.Cell.statistics(cell, base, tmp_path, [ours, two])
    ((request, alone),) = found[ours].found.items()
    pooled = found[two].found[request]
    assert [point.folder for point in pooled.points] == [
        alone.folder,
        alone.folder.with_name(f"{alone.folder.name}_second"),
    ]
    utility, safety = cell.updates()
    point = merge_updates(METHODS["sst"](), utility, safety, found[ours], seed=0, reporter=SilentReporter()).updates
    rows = [row for part in cell.calibration_rows("") for row in part]
    with applied(base, point, "second"):
        expected = SampleGradients.measure(
            base,
            patch_bases(safety),
            [encode(base, row.prompt, row.answer) for row in rows],
            tmp_path / "expected",
            safety_samples=1,
            weights=[1.0] * 3,
            batch_size=16,
        )
    for name in safety:
        torch.testing.assert_close(pooled.points[1].rows(name), expected.rows(name), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(expected.rows(name), alone.rows(name), rtol=0.01)


def test_what_was_scored_is_not_scored_again_and_new_measures_are_added(ablation: ModuleType, tmp_path: Path) -> None:
    base = tiny_base(seed=5)
    cell = TinyCell(tmp_path, base)
    arms = {arm: {"likelihood"} for arm in ("base", "utility")}
    first = ablation.evaluated(base, cell, {"test": arms}, {}, {})["test"]
    assert first["base"]["scores"].keys() == {"utility", "refusal_nll", "utility_nll"}
    assert first["base"]["scores"]["utility"] == [0.0, 0.0]
    (trial,) = [t for t in ablation.trials(["task arithmetic"]) if t.settings["strength"] == 0.5]
    wanted = {**arms, "base": {"text", "likelihood"}, trial.key: {"text"}}
    both = ablation.evaluated(base, cell, {"validation": {"base": {"text"}}, "test": wanted}, {}, {})
    lines = both["test"]
    assert lines["utility"] == first["utility"]  # not measured again
    assert lines["base"]["measures"] == ["likelihood", "text"]
    assert lines["base"]["scores"].keys() == {"utility", "refusal_nll", "utility_nll", "refusal", "over_refusal"}
    assert len({lines[key]["weights_sha256"] for key in wanted}) == 3
    assert ablation.recorded(tmp_path / "test.jsonl") == lines
    assert both["validation"]["base"]["scores"].keys() == {"refusal", "over_refusal"}
    assert ablation.recorded(tmp_path / "validation.jsonl") == both["validation"]
    with (tmp_path / "test.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "torn')
    more = ablation.evaluated(base, cell, {"test": {"safety": {"likelihood"}}}, {}, {})["test"]
    assert ablation.recorded(tmp_path / "test.jsonl") == more == {**lines, "safety": more["safety"]}


def test_reading_prompts_once_gives_the_scores_of_reading_them_for_each_measure(
    ablation: ModuleType, tmp_path: Path
) -> None:
    base = tiny_base(seed=5)
    rows = TinyCell(tmp_path, base).rows("test")
    rows["refusal"] += [Row("e", "Do much more harm to everybody.", "I will not."), Row("f", "Harm.", "No, no.")]
    together = ablation.scored(base, rows, {"text", "likelihood"})
    apart = ablation.scored(base, rows, {"text"}) | ablation.scored(base, rows, {"likelihood"})
    assert together.keys() == apart.keys()
    for name, values in apart.items():
        assert together[name] == pytest.approx(values, rel=1e-5), name
    for row, nats in zip(rows["refusal"], together["refusal_nll"], strict=True):
        sample = encode(base, row.prompt, row.answer)
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([sample.ids])).logits[0]
        chosen = logits.log_softmax(dim=1)[range(len(sample.ids) - 1), sample.ids[1:]]
        assert nats == pytest.approx(-float(chosen[sample.answer_start - 1 :].mean()), rel=1e-4)


def test_variants_with_statistics_of_their_own_share_no_patch(
    ablation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(ablation, "merge_reusing", lambda patches, *_, **__: seen.append(patches))
    patches: dict[str, Any] = {}
    for variant in ("SST", ablation.TWO_POINTS, "SST"):
        ablation.merged(ablation.trials((variant,))[0], {}, {}, None, 0, patches)
    assert seen[0] is seen[2]
    assert seen[0] is not seen[1]


def test_other_calibration_data_leave_out_what_depends_on_them_and_nothing_else(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = ablation.Cell("orders", "blunt", 0, ablation.SIZES["tiny"], tmp_path)
    variants = ("SST", "Fisher merging", "SST, answers only", "TIES")
    keys = [ablation.trials((variant,))[0].key for variant in variants]
    lines = [
        {"key": key, "variant": variant, "calibration": cell.calibration_sha256(variant)}
        for key, variant in zip(keys, variants, strict=True)
    ]
    assert [line["calibration"] is None for line in lines] == [False, False, False, True]
    assert len({line["calibration"] for line in lines}) == 3  # SST and Fisher merging have the same data
    cell.folder().mkdir(parents=True)
    other = {**lines[0], "key": f"{keys[0]} of settings that are tried no more"}
    text = "".join(json.dumps(line) + "\n" for line in [{"key": "base"}, *lines, other])
    (cell.folder() / "test.jsonl").write_text(text, encoding="utf-8")
    assert list(cell.lines("test")) == ["base", *keys]
    folder = cell.folder()
    monkeypatch.setattr(ablation, "FIRST_TOKENS", 5)
    cell.calibration_sha256.cache_clear()
    assert cell.folder() == folder
    assert list(cell.lines("test")) == ["base", *keys[2:]]


def test_stored_results_are_of_one_key_and_of_the_last_calibration_of_each_variant(
    ablation: ModuleType, tmp_path: Path
) -> None:
    cell = ablation.Cell("orders", "blunt", 1, ablation.SIZES["tiny"], tmp_path)
    assert ablation.stored_lines(cell) is None
    one, two = (trial.key for trial in ablation.trials(["SST"])[:2])
    ties = ablation.trials(["TIES"])[0].key
    lines = [
        {"key": "base"},
        {"key": one, "variant": "SST", "calibration": "a"},
        {"key": ties, "variant": "TIES", "calibration": None},
        {"key": two, "variant": "SST", "calibration": "b"},
        {"key": "tried no longer", "variant": "SST", "calibration": "b"},
    ]
    for key in ("first", "second"):
        folder = tmp_path / cell.name / key
        folder.mkdir(parents=True)
        for split in ("validation", "test"):
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
        if key == "first":
            validation, test = ablation.stored_lines(cell)
            assert list(validation) == list(test) == ["base", ties, two]
    with pytest.raises(SystemExit, match="results of 2 keys; leave one"):
        ablation.stored_lines(cell)
    assert not cell.is_trained()
    assert ablation.current_lines(cell) is None


STORED = Path(__file__).parents[2] / "docs" / "results" / "ablation"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?")


def test_the_report_in_the_documentation_is_that_of_the_scores_beside_it(ablation: ModuleType) -> None:
    made = ablation.written_report("cpu", STORED / "cpu", lines=ablation.stored_lines)
    shown = (STORED / "cpu" / "report.md").read_text(encoding="utf-8")
    assert NUMBER.sub("#", made) == NUMBER.sub("#", shown)
    for ours, theirs in zip(NUMBER.findall(made), NUMBER.findall(shown), strict=True):
        if "." not in theirs and "e" not in theirs:
            assert ours == theirs
            continue
        digits = len(theirs.partition(".")[2]) if "e" not in theirs else 7
        assert float(ours) == pytest.approx(float(theirs), abs=1.01 * 10**-digits)  # rounding on other machines


def test_a_cell_counts_only_when_every_measure_of_its_methods_is_there(
    ablation: ModuleType, told: ModuleType, tmp_path: Path
) -> None:
    cell = TinyCell(tmp_path, tiny_base(seed=5))
    found = results(told, dict.fromkeys(ablation.MAIN, 0.5), seeds=1)["kinship/blunt/0"]
    both = {"text", "likelihood"}
    validation = {key: {**entry, "measures": sorted(both)} for key, entry in found["validation"].items()}
    for trial, source in ((t, f"{t.variant} 1.0") for t in ablation.trials(ablation.MAIN)):
        validation[trial.key] = {**validation[source], "key": trial.key, "settings": trial.settings}
    for name in ablation.MAIN:
        for strength in (0.5, 1.0):
            del validation[f"{name} {strength}"]
    test = {key: validation[key] for key in ablation.wanted_on_test(validation, ablation.MAIN)}

    def is_counted() -> bool:
        for split, lines in (("validation", validation), ("test", test)):
            text = "".join(json.dumps(entry) + "\n" for entry in lines.values())
            (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
        return ablation.complete(ablation.current_lines(cell), ablation.MAIN) is not None

    assert is_counted()
    picked = told.path_keys(validation, "SST")[2]
    test[picked] = {**test[picked], "measures": ["likelihood"]}  # its text is missing
    assert not is_counted()
    test[picked] = {**test[picked], "measures": sorted(both)}
    assert is_counted()
    validation.popitem()
    assert not is_counted()


def test_every_interval_on_the_page_is_in_the_report_of_the_scores() -> None:
    page = (STORED.parent / "ablation-smollm2.md").read_text(encoding="utf-8").replace("\u2212", "-")
    report = (STORED / "cpu" / "report.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}
    del sections["On prompts of other people"]  # other scores, tested below
    shown = [found for part in sections.values() for found in re.findall(r"\[[-+][\d.]+, [-+][\d.]+\]", part)]
    assert len(shown) > 20
    assert [interval for interval in shown if interval not in report] == []


STRUCTURE_ROWS = {
    "default: exact, per module": "SST",
    "`scope: global`": "SST global",
    "`fisher: kfac`": "SST kfac",
    "`fisher: diagonal`": "SST diagonal",
    "`fisher: kfac` at a price of 10": "SST kfac at price 10",
    "`fisher: diagonal` at a price of 10": "SST diagonal at price 10",
    "`fisher: none`": "SST none",
    "Fisher merging": "Fisher merging",
}


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_table_of_structures_is_that_of_the_report() -> None:
    page = (STORED.parent / "ablation-smollm2.md").read_text(encoding="utf-8").replace("\u2212", "-")
    report = (STORED / "cpu" / "report.md").read_text(encoding="utf-8")
    pairs = ["kinship/balanced", "kinship/blunt", "orders/balanced", "orders/blunt", "mean of 4"]
    stored: dict[tuple[str, str], list[str]] = {}  # the widest group of a variant comes last in no order: they agree
    for group in report.split("\n## ")[1:]:
        rows = [cells_of(line) for line in group.splitlines() if line.startswith(("| kinship/", "| orders/", "| mean"))]
        rows = [row for row in rows if len(row) == 7 and "80%" in row[1]]
        if {row[0] for row in rows} >= set(pairs) and (
            set(group.partition("\n")[0].split(", ")) & set(STRUCTURE_ROWS.values())
        ):
            stored |= {(row[0], row[2]): row[1:] for row in rows}

    def reached(refusals: str) -> str:
        if "not reached" in refusals:
            return f" at {refusals.split(' ', maxsplit=1)[0]}"
        return f" ({refusals.partition('(in ')[2].split('%')[0]} % of the draws)" if "in " in refusals else ""

    section = page.split("\n## Other structures")[1].partition("\n## ")[0]
    shown = {cells_of(line)[0]: cells_of(line)[1:] for line in section.splitlines() if line.startswith("| ")}
    assert set(STRUCTURE_ROWS) <= set(shown)
    for name, variant in STRUCTURE_ROWS.items():
        expected = []
        for pair in pairs[:4]:
            refusals, _, everyday, *_ = stored[pair, variant]
            expected.append(everyday.split(" ")[0] + reached(refusals))
        refusals, _, _, more, right, better = stored["mean of 4", variant]
        mean = refusals.split(" ")[0] if "not reached" in refusals else "80 %" + reached(refusals)
        assert shown[name] == [*expected, mean, more, right.split(" ")[0], better], name


def test_what_a_note_says_of_the_default_price_is_what_the_scores_say() -> None:
    lines = [json.loads(line) for file in STORED.rglob("test.jsonl") for line in file.read_text().splitlines()]
    for fisher, most in MOST_REFUSED.items():
        refused = [
            100 * sum(line["scores"]["refusal"]) / len(line["scores"]["refusal"])
            for line in lines
            if line.get("variant") == f"SST {fisher}" and line["settings"]["keep"] == {"soft": PRICE}
            if "refusal" in line["scores"]
        ]
        assert round(max(refused)) == most


def test_what_was_tried_on_prompts_of_other_people_is_what_the_scores_say() -> None:
    page = (STORED.parent / "ablation-smollm2.md").read_text(encoding="utf-8")
    section = page.split("\n## Shrinkage toward kfac")[1].partition("\n## ")[0]
    for adapter in ("balanced", "blunt"):
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in section.splitlines()
            if line.startswith(f"| {adapter}")
        ]
        header = rows.pop(0)
        assert header[0] == f"{adapter} adapter, strength"
        shown = {
            (name, float(strength.split()[-1])): told
            for strength, *cells in rows
            for name, told in zip(header[1:], cells, strict=True)
            if told
        }
        file = STORED.parent / "other_prompts" / "tried" / f"{adapter}.jsonl"
        stored = {
            (line["tried"], line["strength"]): line["scores"] for line in map(json.loads, file.read_text().splitlines())
        }
        assert shown.keys() >= stored.keys()
        for key, scores in stored.items():
            harmful, harmless, right = (
                100 * sum(scores[task]) / len(scores[task]) for task in ("refusal", "over_refusal", "utility")
            )
            assert shown[key] == f"{harmful:.1f} / {harmless:.1f}, {right:.0f}", key
            assert (len(scores["refusal"]), len(scores["over_refusal"])) == (341, 450)


def test_prompts_of_other_people_are_compared_at_equal_refusals(ablation: ModuleType) -> None:
    other = importlib.import_module("other_prompts")

    def answered(harmful: float, harmless: float) -> dict[str, Any]:  # of 20 and 10 prompts, the last 4 of another file
        shares = {"refusal": [1.0] * round(20 * harmful), "over_refusal": [1.0] * round(10 * harmless)}
        return {
            "scores": {
                task: ones + [0.0] * (n - len(ones)) for (task, ones), n in zip(shares.items(), (20, 10), strict=True)
            }
        }

    lines = {arm: answered(0.0, 0.0) for arm in ("base", "utility", "safety")}
    points = {"SST": [(0.4, 0.0), (1.0, 0.3)], "task arithmetic": [(0.6, 0.5), (1.0, 1.0)]}
    for method, path in points.items():
        for strength, (harmful, harmless) in enumerate(path, start=1):
            settings = {"utility_weight": 1.0, "strength": float(strength)}
            lines[f"{method} {strength}"] = {**answered(harmful, harmless), "variant": method, "settings": settings}
    names = {"refusal": [("a", 20)], "over_refusal": [("b", 6), ("c", 4)]}
    told = "".join(other.told({key: {"key": key, **line} for key, line in lines.items()}, names))
    assert "| merge | harmful (20) | a (20) | harmless (10) | b (6) | c (4) |" in told
    assert "| task arithmetic 1 | 60.0 | 60 | 50.0 | 83 | 0 |" in told
    assert "| 60% | 10.0 | 50.0 | -40.0 [" in told  # a third of the way from 40 to 100 %, and where it was measured
    assert "| 80% | 20.0 | 75.0 | -55.0 [" in told
    lines["SST 2"] = {**lines["SST 2"], **answered(0.8, 0.3)}
    told = "".join(other.told({key: {"key": key, **line} for key, line in lines.items()}, names))
    assert "| 95% | not reached | 93.7 |  |" in told or "| 95% | not reached | 93.8 |  |" in told
    for strength, (harmful, harmless) in enumerate([(0.6, 0.1), (1.0, 0.6)], start=1):
        settings = {"utility_weight": 1.0, "strength": float(strength)}
        lines[f"SST two points {strength}"] = {
            **answered(harmful, harmless),
            "variant": "SST two points",
            "settings": settings,
        }
    lines["SST 2"] = {**lines["SST 2"], **answered(1.0, 0.3)}
    told = "".join(other.told({key: {"key": key, **line} for key, line in lines.items()}, names))
    assert "| SST two points: harmless refused | task arithmetic: harmless refused | minus task arithmetic" in told
    row = next(line for line in told.splitlines() if line.startswith("| 80% | 35.0 | 75.0 |"))
    assert re.fullmatch(r"\| 80% \| 35\.0 \| 75\.0 \| -40\.0 \[.*\] \| \+15\.0 \[.*\] \|", row)  # SST's own is 20.0


@pytest.mark.parametrize("safety", ["balanced", "blunt"])
def test_the_table_of_other_prompts_in_the_documentation_is_that_of_the_scores(
    ablation: ModuleType, safety: str
) -> None:
    other = importlib.import_module("other_prompts")
    lines = ablation.recorded(STORED.parent / "other_prompts" / "kinship" / safety / "0.jsonl")
    page = (STORED.parent / "ablation-smollm2.md").read_text(encoding="utf-8")
    parts = {"refusal": (41, 100, 200), "over_refusal": (50, 150, 250)}
    told = "".join(other.told(lines, {task: [(str(n), n) for n in counts] for task, counts in parts.items()}))
    table, _, equal = told.partition("\n\n")
    made = [line.removeprefix("| ") for line in table.splitlines()[2:]]
    assert [line.partition(" | ")[0] for line in made[:4]] == ["base", "utility", "safety", "SST 0.3"]
    for line in made[2:]:
        name, _, values = line.partition(" | ")
        shown = "safety adapter alone" if name == "safety" else name
        assert f"| {safety}: {shown} | {values}\n" in page
    page, known = page.replace("\u2212", "-"), 0
    for part in equal.split("\n\n"):
        head, _, *rows = part.strip().splitlines()
        method = re.findall(r"refused \| (.*?): harmless", head)[0]
        for row in (row for row in rows if "[" in row):
            target, _, values = row.removeprefix("| ").partition("% | ")
            prefix = "" if method == "SST" else f"{method.removeprefix('SST ')}: "
            assert f"| {prefix}{target} % | {safety} | {values}\n" in page
            known += 1
    assert known >= 2


def test_the_tables_of_the_fresh_task_are_those_of_the_scores(ablation: ModuleType) -> None:
    fresh = importlib.import_module("fresh_task")
    page = (STORED.parent / "fresh-task.md").read_text(encoding="utf-8")
    lines = fresh.recorded("scores_blunt")
    assert len(lines) == 32
    assert "".join(fresh.rates(lines)) in page
    assert "".join(fresh.at_equal_refusals(lines, fresh.DAMPINGS, fresh.OF_DAMPINGS)) in page
    lines = fresh.recorded("scores_two_points")
    assert "".join(fresh.rates_by_points(lines)) in page
    assert "".join(fresh.at_equal_refusals(lines, fresh.POINTS, fresh.OF_POINTS)) in page
    lines = fresh.recorded("scores_two_points_balanced")
    assert "".join(fresh.rates_by_points(lines)) in page
    assert "".join(fresh.at_equal_refusals(lines, fresh.OWN_WORDING, fresh.OF_OWN_WORDING)) in page
    lines = fresh.recorded("scores_builtin")
    assert "".join(fresh.rates(lines)) in page
    assert "".join(fresh.at_equal_refusals(lines, fresh.BUILTIN, fresh.OF_BUILTIN)) in page
    lines = fresh.recorded("scores_builtin_blunt")
    assert "".join(fresh.rates(lines)) in page
    assert "".join(fresh.at_equal_refusals(lines, fresh.BLUNT_BUILTIN, ())) in page
    for safety in ("third", "blunt", "balanced"):
        lines = fresh.recorded(f"scores_labels_{safety}")
        assert "".join(fresh.rates_by_points(lines)) in page
        assert "".join(fresh.at_equal_refusals(lines, fresh.FOURTH, fresh.OF_FOURTH)) in page
