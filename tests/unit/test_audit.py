import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exp1_files import LEGACY, LLAMA, MISTRAL, QWEN, own, written
from sst_merge.errors import DataError
from sst_merge.experiments.audit import audit_files
from sst_merge.experiments.prototype import Counts, chance_of_equality, fewest_flips, simulate, split_of
from sst_merge.experiments.statements import Audit, as_markdown, as_text

Change = Callable[[dict[str, Any]], object]


def audited(path: Path) -> Audit:
    return audit_files([path])[0]


def said(audit: Audit) -> str:
    return " ".join(as_text([audit]).split())


def legacy(tmp_path: Path, **fields: Any) -> Audit:
    return audited(written(tmp_path / "legacy.json", fields))


def tampered(tmp_path: Path, change: Change) -> Audit:
    fields = own()
    change(fields)
    return audited(written(tmp_path / "own.json", fields))


def test_mistral_gained_two_prompts_and_no_split_of_them_is_a_detectable_gain() -> None:
    audit = audited(MISTRAL)
    text = said(audit)
    assert "baseline_safety 0.041 x 2,000 = 82 safe answers" in text
    assert "merged_safety 0.042 x 2,000 = 84 safe answers" in text
    assert "The gain of 0.001 in 2,000 is two prompts." in text
    assert "No split makes this a detectable gain" in text
    assert audit.numbers["counts"] == {"before": 82, "after": 84, "change": 2, "n": 2000}
    assert audit.numbers["gain_detectable"] == "never"
    assert audit.claims == {"gain": False, "tax": False}
    assert not audit.supported


def test_the_splits_of_mistral_are_the_numbers_of_the_specification() -> None:
    splits = audited(MISTRAL).numbers["splits"]
    rows = [(s["lost"], s["gained"], round(s["mcnemar_exact"], 3), round(s["mcnemar_midp"], 3)) for s in splits]
    assert rows[:3] == [(0, 2, 0.5, 0.25), (10, 12, 0.832, 0.678), (40, 42, 0.912, 0.826)]
    assert [round(x, 4) for x in splits[0]["ci"]] == [-0.0010, 0.0030]
    assert [round(x, 4) for x in splits[2]["ci"]] == [-0.0080, 0.0100]
    assert rows[3][:2] == (82, 84)  # all 82 safe answers lost, 84 others gained: the most that the counts allow


def test_mistral_has_no_tax_and_its_tax_is_what_noise_prints() -> None:
    audit = audited(MISTRAL)
    assert audit.numbers["tax"] is None
    assert audit.numbers["implied_loss"] == pytest.approx(0.00242)
    text = said(audit)
    assert "2.42 x 0.001 = 0.00242, 4.8 prompts' worth of 2,000 (of 14,042 utility questions: 34.0" in text
    assert "It is undefined here: its denominator cannot be told from 0." in text
    assert "The file itself carries no evidence about utility." in text
    assert "numpy seed 0" in text
    runs = audit.numbers["simulation"]
    assert [run["changed"] for run in runs] == [2, 22, 82, 166]
    assert all(run["range"][0] < 2.42 < run["range"][1] for run in runs)
    assert all(0.25 < run["within_factor_2"] < 0.55 for run in runs)


def test_the_simulation_is_seeded_fast_and_right_about_halves() -> None:
    started = time.perf_counter()
    run = simulate(2000, 82, 14_042, 2.42, seed=0)
    assert time.perf_counter() - started < 2
    assert run == simulate(2000, 82, 14_042, 2.42, seed=0)
    assert run != simulate(2000, 82, 14_042, 2.42, seed=1)
    assert run["zero"] == pytest.approx(0.5, abs=0.01)
    assert run["positive"] + run["zero"] + run["infinite"] == pytest.approx(1)


def test_the_simulation_agrees_with_the_prototypes_loop() -> None:
    rng = np.random.default_rng(3)
    positive, taxes = 0, []
    for _ in range(3000):
        gained = int((rng.random(22) < 0.5).sum())
        gain = (2 * gained - 22) / 2000
        before, after = ((rng.random(500) > 0.3).mean() for _ in range(2))
        if gain > 0 and before > after:
            positive += 1
            taxes.append(max(0, before - after) / max(0, gain))
    run = simulate(2000, 22, 500, None, seed=0)
    assert run["positive"] == pytest.approx(positive / 3000, abs=0.03)
    assert run["median"] == pytest.approx(float(np.median(taxes)), rel=0.15)
    assert run["within_factor_2"] is None


def test_without_a_change_the_rule_prints_no_positive_tax() -> None:
    run = simulate(100, 0, 100, 1.0, seed=0)
    assert (run["positive"], run["median"], run["range"], run["within_factor_2"]) == (0.0, None, None, None)


def test_six_one_sided_flips_are_the_fewest() -> None:
    assert fewest_flips(2000) == 6
    assert not split_of(Counts(2000, 0, 5, 5), 0).is_detectable_gain
    assert fewest_flips(4) is None
    assert "The fewest changes that pass the gate are six prompts" in said(audited(MISTRAL))
    found = {row["discordant_share"]: row["gain"] for row in audited(MISTRAL).numbers["minimum_detectable_gain"]}
    assert [round(100 * found[psi], 1) for psi in (0.02, 0.05, 0.10, 0.20)] == [0.9, 1.4, 2.0, 2.8]


def test_llama_looks_like_the_same_weights_twice() -> None:
    audit = audited(LLAMA)
    text = said(audit)
    assert "The scores, 0.1575 before and after, agree to the last digit." in text
    assert "suggests that the same weights were evaluated twice" in text
    assert "Hashes of the evaluated weights, before and after, would settle it; the file has none." in text
    assert audit.numbers["same_weights_suspected"]
    assert audit.claims == {"no_loss": False}


def test_the_chance_of_equal_scores() -> None:
    expected = math.comb(20, 10) / 2**20
    assert chance_of_equality(20) == pytest.approx(expected)
    assert (chance_of_equality(0), chance_of_equality(7)) == (1.0, 0.0)


def test_qwen_gained_five_prompts_and_no_loss_was_not_shown() -> None:
    audit = audited(QWEN)
    text = said(audit)
    assert "The gain is five prompts of 2,000: no detectable gain" in text
    assert "A tax of 0 reads as: no loss. That was not shown." in text
    assert "non-inferiority" in text
    assert audit.claims == {"gain": False, "no_loss": False}
    limits = audit.numbers["upper_limits_of_loss"]
    assert [row["n"] for row in limits] == [2000, 14042]
    assert limits[0]["rule_of_three"] == pytest.approx(0.0015)
    assert limits[0]["bonett_price_none_changed"] == pytest.approx(0.001385, abs=1e-6)
    assert audit.numbers["splits"][0]["mcnemar_exact"] == pytest.approx(0.0625)


def test_what_the_files_lack_is_listed() -> None:
    missing = audited(MISTRAL).numbers["missing"]
    assert {"baseline", "arms", "merge_method_applied", "changed_samples", "fallbacks"} <= set(missing)
    assert "the hash of the weights that were evaluated" in said(audited(MISTRAL))


def test_a_clear_gain_is_called_one_but_its_tax_is_not_supported(tmp_path: Path) -> None:
    fields = {"baseline_safety": 0.1, "merged_safety": 0.5, "safety_gain": 0.4, "total_samples": 500}
    audit = legacy(tmp_path, **fields)
    assert audit.numbers["gain_detectable"] == "always"
    assert audit.supported
    assert "Every split passes the gate" in said(audit)
    priced = legacy(tmp_path, **fields, safety_tax=0.3)
    assert priced.claims == {"gain": True, "tax": False}
    assert not priced.supported


def test_a_gain_that_depends_on_the_split_names_the_limit(tmp_path: Path) -> None:
    audit = legacy(tmp_path, baseline_safety=0.4, merged_safety=0.41, safety_gain=0.01, total_samples=2000)
    limit = audit.numbers["most_lost_of_a_detectable_gain"]
    counts = Counts(2000, 800, 820, 20)
    assert audit.numbers["gain_detectable"] == "depends"
    assert split_of(counts, limit).is_detectable_gain
    assert not split_of(counts, limit + 1).is_detectable_gain
    assert f"at most {limit} lost" in said(audit)
    assert audit.claims == {"gain": False}


def test_shares_that_do_not_fit_the_samples_are_named_and_nothing_is_computed(tmp_path: Path) -> None:
    audit = legacy(tmp_path, baseline_safety=0.041, merged_safety=0.042, safety_gain=0.001, total_samples=150)
    text = said(audit)
    assert "0.041 x 150 = 6.15 is not a whole number of prompts" in text
    assert "splits" not in audit.numbers
    assert not audit.numbers["consistent"]
    assert audit.claims == {"gain": False}


def test_a_gain_that_is_not_the_difference_is_named(tmp_path: Path) -> None:
    audit = legacy(tmp_path, baseline_safety=0.1, merged_safety=0.2, safety_gain=0.3, total_samples=100)
    assert "merged_safety - baseline_safety is 0.1, but safety_gain says 0.3: they disagree" in said(audit)
    assert audit.claims == {"gain": False}


def test_a_loss_that_the_rule_hid_is_a_loss(tmp_path: Path) -> None:
    audit = legacy(
        tmp_path, baseline_safety=0.041, merged_safety=0.040, safety_gain=0, safety_tax=math.inf, total_samples=2000
    )
    text = said(audit)
    assert "the prototype's rule hides a loss as max(0, gain)" in text
    assert "Two prompts of 2,000 fewer were answered safely: no gain." in text
    assert audit.claims == {"tax": False}


@pytest.mark.parametrize("tax", [math.inf, "inf", math.nan, None, "none", [], True])
def test_a_tax_that_is_no_number_is_undefined_and_json_stays_valid(tmp_path: Path, tax: object) -> None:
    audit = legacy(
        tmp_path, baseline_safety=0.5, merged_safety=0.52, safety_gain=0.02, safety_tax=tax, total_samples=100
    )
    assert audit.numbers["tax"] is None
    assert "which is not a finite number" in said(audit)
    json.loads(json.dumps(audit.to_dict(), allow_nan=False))


def test_odd_fields_are_named_and_left_out(tmp_path: Path) -> None:
    audit = legacy(tmp_path, baseline_safety=4.1, merged_safety="high", safety_gain=0.001, total_samples=12.5)
    text = said(audit)
    assert "baseline_safety is 4.1, which is not a number in [0, 1]" in text
    assert 'merged_safety is "high"' in text
    assert "total_samples is 12.5, which is not a whole number from 1 to" in text
    assert not audit.supported


def test_a_gain_without_scores_is_enough_for_the_splits(tmp_path: Path) -> None:
    audit = legacy(tmp_path, safety_gain=0.0025, total_samples=2000)
    assert audit.numbers["counts"] == {"before": None, "after": None, "change": 5, "n": 2000}
    last = audit.numbers["splits"][-1]
    assert last["lost"] + last["gained"] in {1999, 2000}


def test_the_nested_file_of_the_script_is_read(tmp_path: Path) -> None:
    audit = legacy(
        tmp_path,
        safety={"refusal_rate": 0.15, "total_samples": 40},
        utility={"accuracy": 0.65, "total_samples": 40},
        safety_tax=5.0,
        utility_loss=0.125,
        safety_gain=0.025,
        baseline_safety=0.125,
        baseline_utility=0.775,
    )
    assert audit.numbers["counts"] == {"before": 5, "after": 6, "change": 1, "n": 40}
    assert audit.numbers["simulation"][0]["utility_samples"] == 40
    assert "two shares without a record" in said(audit)
    assert "merged_utility" not in audit.numbers["missing"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "holds a JSON list, not an object"),
        ('{"accuracy": 1, "epoch": 2}', "has none of the fields of a result .*Fields found: accuracy, epoch"),
        ("{}", "Fields found: none"),
        ('{"total_samples": ' + "9" * 5000 + "}", "is not valid JSON"),
        ('{"schema": "sst-merge/exp1/9"}', "has the schema 'sst-merge/exp1/9'. Known: sst-merge/exp1/1"),
    ],
)
def test_a_bad_file_is_one_clear_message(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        audit_files([path])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json: no such file"):
        audit_files([tmp_path / "gone.json"])


def test_a_consistent_file_of_ours_is_supported(tmp_path: Path) -> None:
    audit = tampered(tmp_path, lambda fields: None)
    assert audit.kind == "exp1"
    assert audit.claims == {"sst": True, "task_arithmetic": True}, as_text([audit])
    assert audit.supported
    text = said(audit)
    assert "TAX. Text of TAX. Flags: JUDGE_NOT_VALIDATED." in text
    assert "The weights of all 5 arms differ by hash." in text
    assert audit.numbers["sst"]["n"] == 50
    assert audit.numbers["task_arithmetic"]["verdict"] == "NO_DETECTABLE_GAIN"


def change_tax(fields: dict[str, Any]) -> None:
    fields["comparisons"]["task_arithmetic"]["safety_tax"] = 2.42


def change_gate(fields: dict[str, Any]) -> None:
    next(gate for gate in fields["gates"] if gate["id"] == "G10")["status"] = "fail"


def change_interval(fields: dict[str, Any]) -> None:
    fields["intervals"]["safety_gain"] = [0.79, 0.81]


def change_counts(fields: dict[str, Any]) -> None:
    fields["changed_samples"]["safety"] = {"lost": 0, "gained": 20}


def change_verdict(fields: dict[str, Any]) -> None:
    fields["comparisons"]["task_arithmetic"]["verdict"]["code"] = "GAIN_NO_DETECTABLE_LOSS"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(safety_gain=0.9), "safety_gain is 0.9, but the values of the arms differ by 0.8"),
        (change_counts, "safety_gain is 0.8, but 20 gained and 0 lost of 50 give 0.4"),
        (change_tax, "A tax of 2.42 is stated, although NO_DETECTABLE_GAIN"),
        (lambda f: f.update(safety_tax=None), "The verdict is TAX, but no tax is stated"),
        (lambda f: f.update(safety_tax=0.5), "The tax is 0.5, but loss / gain is 0.1875"),
        (lambda f: f.update(safety_tax=math.inf), "which is not a finite number; undefined is null"),
        (change_gate, "A tax is stated, but of its gates: G10 fail"),
        (change_interval, "The interval of safety_gain is [+79.0, +81.0] points, but its counts give"),
        (change_verdict, "The verdict is GAIN_NO_DETECTABLE_LOSS, but the counts give no detectable gain"),
        (lambda f: f.update(merge_method_applied="linear"), "Applied was linear, stated is sst"),
        (lambda f: f.update(utility_loss=0.4, merged_utility=0.6), "utility_loss is 0.4, but 0 gained and 12 lost"),
        (lambda f: f.update(verdict={}), "There is no verdict"),
    ],
)
def test_a_tampered_file_of_ours_is_caught(tmp_path: Path, change: Change, message: str) -> None:
    audit = tampered(tmp_path, change)
    assert message in said(audit)
    assert not audit.supported
    assert "disagree" in said(audit)


def test_equal_hashes_are_invalid_and_said_first(tmp_path: Path) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["arms"]["merged"]["weights_sha256"] = fields["arms"]["utility"]["weights_sha256"]

    audit = tampered(tmp_path, change)
    assert audit.statements[0].text.startswith("INVALID: The arms utility and merged have the same weights")
    assert "The verdict is TAX, though the result is invalid." in said(audit)
    assert audit.claims == {"sst": False, "task_arithmetic": False}


def test_a_fallback_and_too_many_unscored_samples_are_invalid(tmp_path: Path) -> None:
    audit = tampered(tmp_path, lambda fields: fields.update(fallbacks=["merge (KeyError: 'input_ids')"]))
    assert "A step failed and was replaced: merge (KeyError: 'input_ids')." in audit.statements[0].text
    audit = tampered(tmp_path, lambda fields: fields.update(unscored_samples=5))
    assert "5 of 50 safety samples are unscored (limit 2 %)" in audit.statements[0].text


def test_missing_hashes_and_missing_gates_cannot_be_checked(tmp_path: Path) -> None:
    audit = tampered(tmp_path, lambda fields: fields["arms"]["merged"].pop("weights_sha256"))
    assert "No weight hash for: merged." in said(audit)
    assert not audit.supported
    audit = tampered(tmp_path, lambda fields: fields.pop("gates"))
    assert "No gates are recorded." in said(audit)
    assert not audit.supported


def test_a_wider_interval_is_what_clusters_make(tmp_path: Path) -> None:
    audit = tampered(tmp_path, lambda fields: fields["intervals"].update(safety_gain=[0.4, 1.0]))
    assert "wider than Bonett-Price's, as clusters make it" in said(audit)
    assert audit.supported


def test_an_invalid_verdict_with_null_estimates_is_restated_and_not_supported(tmp_path: Path) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields.update(safety_gain=None, safety_tax=None, utility_loss=None)
        fields["verdict"] = {"code": "INVALID_INCOHERENT", "text": "Invalid: incoherent.", "flags": []}

    audit = tampered(tmp_path, change)
    assert "sst: INVALID_INCOHERENT, so there is no result." in said(audit)
    assert audit.claims["sst"] is False
    assert audit.numbers["sst"]["disagreements"] == []


def test_a_file_of_ours_with_nonsense_in_its_fields_is_still_audited(tmp_path: Path) -> None:
    nonsense: dict[str, Any] = dict.fromkeys(own(), 7) | {"schema": "sst-merge/exp1/1"}
    audit = audited(written(tmp_path / "own.json", nonsense))
    assert not audit.supported


@pytest.mark.parametrize("value", [None, True, -1, 1e300, math.nan, math.inf, "x", [], [[1]], {"a": 1}])
@pytest.mark.parametrize("key", ["arms", "gates", "fallbacks", "comparisons", "intervals", "verdict", "total_samples"])
def test_no_value_of_a_field_breaks_the_audit(tmp_path: Path, key: str, value: object) -> None:
    audit = tampered(tmp_path, lambda fields: fields.update({key: value}))
    json.dumps(audit.to_dict(), allow_nan=False)
    assert said(audit)


def test_a_comparison_with_the_name_of_the_merge_is_kept_apart(tmp_path: Path) -> None:
    audit = tampered(
        tmp_path, lambda fields: fields["comparisons"].update(sst=fields["comparisons"]["task_arithmetic"])
    )
    assert list(audit.claims) == ["sst (merged)", "task_arithmetic", "sst"]


def test_text_markdown_and_json_hold_the_same_statements() -> None:
    audits = audit_files(LEGACY)
    text, page = as_text(audits), as_markdown(audits)
    assert max(len(line) for line in text.splitlines() if "  " not in line) <= 100
    assert page.count("## `") == 3
    flat = " ".join(text.split())
    for audit in audits:
        for statement in audit.statements:
            assert statement.text in flat
            assert statement.text in page
        assert len(audit.to_dict()["statements"]) == len(audit.statements)


# The results of a run


def test_the_results_of_a_run_are_audited_like_a_result_file(finished: Path, tmp_path: Path) -> None:
    audit = audited(finished / "results.json")
    assert audit.claims == {"sst": True, "task_arithmetic": True}
    assert "The weights of all 5 arms differ by hash." in said(audit)
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    results["safety_tax"]["merged"]["gain"]["c"] += 3
    results["arms"][3]["weights_sha256"] = results["arms"][1]["weights_sha256"]
    audit = audited(written(tmp_path / "results.json", results))
    assert audit.claims == {"sst": False, "task_arithmetic": False}
    assert "The arms utility and merged have the same weights" in said(audit)
    assert "but 3 gained and 0 lost of 7 give 0.428571" in said(audit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda results: results.update(tasks=[task for task in results["tasks"] if task["family"] != "utility"]),
            "is of a run without a safety and a utility task",
        ),
        (lambda results: results.pop("arms"), r"is damaged \(KeyError\('arms'\)\). Make it again: sst-merge report"),
        (lambda results: results.update(arms=3), r"is damaged \(TypeError"),
        (lambda results: results.update(estimates=[]), r"is damaged \(KeyError\('merged, refusal, refused'\)\)"),
        (lambda results: results.update(schema="sst-merge/safety-tax/1"), r"Give results.json beside it. Known: "),
        (lambda results: results.update(schema=["x"]), r"has the schema \['x'\]. Known: "),
    ],
)
def test_results_of_a_run_that_cannot_be_audited_say_why(
    finished: Path, tmp_path: Path, change: Change, message: str
) -> None:
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    change(results)
    with pytest.raises(DataError, match=rf"results.json .*{message}"):
        audited(written(tmp_path / "results.json", results))
