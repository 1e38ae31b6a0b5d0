"""What the gates saw is told in words, or listed."""
# ruff: noqa: RUF001, E501, ISC004  (the report has typeset dashes and minus signs; its lines are long)

from typing import Any

import pytest

from sst_merge.rendering.gate_evidence import TELLERS, gate_evidence

TAX = {
    "contrast": {"reference": "utility", "treatment": "merged"},
    "gain": {"unit": "pp"},
    "loss": {"unit": "nats/token"},
    "signal": {"unit": "nats/token"},
    "fieller": {"unit": "pp per pp"},
}
COUNT = {"expected": 9, "n": 9, "excess": False, "scored": [9, 9], "unscored": 0, "bounds": [0.0, 0.0]}
ACCOUNTS = {"limit": 0.02, "sign_depends_on_unscored": False, "incomplete": False, "fallbacks": [], "unknown": []}


@pytest.mark.parametrize(
    ("gate", "evidence", "expected"),
    [
        ("G0", {"counts": {"gain": COUNT}, **ACCOUNTS, "problems": []}, "gain (safety): all 9 scored; no fallback"),
        ("G0", {"counts": {"gain": {**COUNT, "n": 0}}, **ACCOUNTS}, "gain (safety): not evaluated; no fallback"),
        (
            "G0",
            {
                "counts": {
                    "gain": {**COUNT, "scored": [8, 7], "unscored": 2, "bounds": [-0.1, 0.25]},
                    "loss": {**COUNT, "scored": [9, 8], "unscored": 1, "bounds": None},
                    "signal": {**COUNT, "scored": [9, 8], "unscored": 1, "bounds": [-1.0, 2.0]},
                },
                **ACCOUNTS,
                "fallbacks": ["merge (Error: no)"],
                "problems": ["fallback: merge (Error: no)", "gain: more than 2% unscored"],
            },
            "fallback: merge (Error: no); gain: more than 2% unscored; gain (safety): 8 (utility) and 7 (merged) of 9 scored, better by [−10.0, +25.0] pp whatever the others are; loss (utility): 9 (utility) and 8 (merged) of 9 scored; signal (utility adapter against base): 9 (base) and 8 (utility adapter) of 9 scored, better by [−1.000, +2.000] nats/token whatever the others are; fallbacks: [merge (Error: no)]",
        ),
        (
            "G1",
            {
                "utility": "a" * 64,
                "merged": "b" * 64,
                "identical": [],
                "relative_distance": 1.0812,
                "is_identical": False,
                "is_wrong": False,
                "artefact_hash_matches": True,
                "unused_adapter_keys": [],
                "zero_norm_modules": [],
                "problems": [],
                "unknown": [],
            },
            "all hashes differ; distance from 'utility': 1.08 times the norm of its update; the merged adapter on disk is the one that "
            "was written; all its keys are used; no module is without update; utility: aaaaaaaaaaaa…; "
            "merged: bbbbbbbbbbbb…",
        ),
        (
            "G1",
            {
                "identical": [["utility", "merged"]],
                "relative_distance": 0.0,
                "is_identical": True,
                "is_wrong": True,
                "artefact_hash_matches": False,
                "unused_adapter_keys": ["key"],
                "zero_norm_modules": None,
                "problems": ["utility and merged have one hash"],
                "unknown": ["norms of the modules: not checked"],
            },
            "utility and merged have one hash; norms of the modules: not checked; distance from 'utility': 0 times the "
            "norm of its update; identical: [[utility, merged]]; artefact hash matches: no; unused adapter keys: [key]",
        ),
        (
            "G2",
            {
                "n_probes": 16,
                "max_abs_logit_difference": 5.031,
                "noise_floor": 1.9e-6,
                "mean_kl": 1.249,
                "noise_floor_kl": None,
                "share_identical_answers": 0.25,
                "warnings": [],
            },
            "log-probabilities differ by up to 5.03 on 16 prompts (noise 1.9e−06); mean KL divergence 1.25 nats; "
            "25.0 % of the answers that count refusals are the same",
        ),
        ("G4", {"utility": 0.0, "merged": 0.125}, "empty or degenerate answers: 0.0 % (utility), 12.5 % (merged)"),
        ("G5", {"judge": "words", "validated": False}, "words was not compared with human labels"),
        ("G5", {"judge": "words", "validated": True}, "words was compared with human labels"),
        ("G5", {"judge": "", "validated": False}, "no judge"),
        (
            "G6",
            {"ci": [0.1, 0.2], "p": 0.0004, "p_holm": 0.0012, "test": "mcnemar-midp", "reason": None},
            "interval [+10.0, +20.0] pp; p < 0.001, by McNemar mid-p; adjusted for several comparisons (Holm) p = 0.001",
        ),
        (
            "G6",
            {"ci": None, "p": None, "p_holm": None, "test": "paired-t", "reason": "1 sample: no interval"},
            "no interval; no test, by paired t; 1 sample: no interval",
        ),
        ("G7", {"shape": "interval", "lo": -0.123, "hi": 0.456}, "interval −0.123 to 0.456"),
        ("G7", {"shape": "complement", "lo": -2.0, "hi": 3.0}, "only values from −2 to 3 are excluded"),
        ("G7", {"shape": "all_reals", "lo": None, "hi": None}, "no value of the ratio is excluded"),
        (
            "G7",
            {"shape": None, "lo": None, "hi": None, "reason": "gain or loss has no interval"},
            "no ratio was estimated; gain or loss has no interval",
        ),
        (
            "G8",
            {"estimate": 0.5, "mde80": 0.171, "is_flagged": False},
            "gain +50.0 pp; detectable with 80 % power: 17.1 pp",
        ),
        ("G8", {"mde80": None, "reason": "1 pair"}, "what these prompts could detect is unknown; 1 pair"),
        (
            "G9",
            {"selected_on_test": None, "looks": 1, "seeds": 1, "stochastic": False},
            "whether the settings were chosen on these samples is not declared; evaluated once; the merge draws no random "
            "numbers",
        ),
        (
            "G9",
            {"selected_on_test": True, "looks": 3, "seeds": 1, "stochastic": True},
            "the settings were chosen on these samples; evaluated 3 times; 1 seed of a merge that draws random numbers",
        ),
        (
            "G10",
            {
                "estimate": 1.5,
                "ci": [1.0, 2.0],
                "p": 0.03,
                "direction": "up",
                "chance": None,
                "utility_at_floor": False,
                "base_at_ceiling": True,
                "reason": None,
                "drop_on_shuffled_targets": 0.25,
            },
            "the utility adapter is better than the base by +1.500 nats/token [+1.000, +2.000], p = 0.030; better than with shuffled targets by +0.250 nats/token; the base's interval reaches the best possible score",
        ),
        ("G10", {"reason": "not compared"}, "not compared"),
        (
            "G10",
            {"chance": 0.25, "utility_at_floor": True},
            "guessing scores 0.250; its own interval reaches what guessing scores",
        ),
        ("G10", {"chance": None, "utility_at_floor": True}, "its own interval reaches the worst possible score"),
        (
            "G1",
            {"identical": [], "unknown": ["weight hash of the reference arm: not checked"]},
            "weight hash of the reference arm: not checked",
        ),
        ("G5", {}, "–"),
        ("G5", None, "–"),
        ("G3", "as it is", "as it is"),
        ("G77", {"new": 1.25, "none": None}, "new: 1.25"),
    ],
)
def test_evidence_is_told(gate: str, evidence: Any, expected: str) -> None:
    assert gate_evidence({"id": gate, "evidence": evidence}, TAX) == expected


@pytest.mark.parametrize("gate", sorted(TELLERS))
def test_what_has_no_words_is_listed_and_what_is_missing_makes_no_error(gate: str) -> None:
    told = gate_evidence({"id": gate, "evidence": {"new": [1, 2]}}, {})
    assert told.endswith("new: [1, 2]")
    assert "None" not in gate_evidence({"id": gate, "evidence": {}}, {})
