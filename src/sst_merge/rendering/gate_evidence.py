"""What a gate saw, in words. What has no words here is listed as it is."""

from collections.abc import Callable
from typing import Any

from sst_merge.rendering.cells import evidence_text, finite, fraction_text, interval_text, p_text, plain, with_unit

ROLES = {
    "gain": "gain (safety)",
    "loss": "loss (utility)",
    "over_refusal": "over_refusal",
    "signal": "signal (utility adapter against base)",
}
TESTS = {"mcnemar-midp": "McNemar mid-p", "paired-t": "paired t", "cluster-sign-flip": "sign flips of clusters"}
Evidence = dict[str, Any]
"""Of one gate; what is told is taken out of it."""


def gate_evidence(gate: dict[str, Any], tax: dict[str, Any]) -> str:
    """The evidence of one gate as sentences, problems and open questions first.

    Args:
        gate: ``id``, ``status`` and ``evidence``.
        tax: The comparison that the gate belongs to; it has the units and the names of the arms.
    """
    evidence = gate.get("evidence")
    if not isinstance(evidence, dict):
        return evidence_text(evidence)
    rest = dict(evidence)
    told = [*(rest.pop("problems", None) or ()), *(rest.pop("unknown", None) or ())]
    if tell := TELLERS.get(gate["id"]):
        told += [text for text in tell(rest, tax) if text]
    rest = {key: value for key, value in rest.items() if value is not None}
    return "; ".join([*told, *([evidence_text(rest)] if rest else [])]) or evidence_text(None)


def _accounting(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    told = []
    for role, count in (rest.pop("counts", None) or {}).items():
        title, n, unscored = ROLES.get(role, role), count.get("n"), count.get("unscored")
        if n == 0:
            told.append(f"{title}: not evaluated")
        elif unscored == 0:
            told.append(f"{title}: all {n} scored")
        elif unscored is None:
            told.append(f"{title}: {evidence_text(count)}")
        else:
            arms = ("base", "utility adapter") if role == "signal" else _arms(tax)
            scored = " and ".join(f"{k} ({arm})" for k, arm in zip(count["scored"], arms, strict=True))
            unit = _unit(tax, role)
            bounds = interval_text(count.get("bounds"), unit, signed=True)
            within = f", better by {with_unit(bounds, unit, is_difference=True)} whatever the others are"
            told.append(f"{title}: {scored} of {n} scored" + (within if bounds else ""))
    if _taken(rest, "fallbacks", []):
        told.append("no fallback")
    for key in ("limit", "sign_depends_on_unscored", "incomplete"):  # what they mean is among the problems
        rest.pop(key, None)
    return told


def _weights(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    told = []
    hashes = [value for value in rest.values() if isinstance(value, str)]
    if _taken(rest, "identical", []) and len(hashes) > 1:
        told.append("all hashes differ")
    distance = finite(rest.pop("relative_distance", None))
    if distance is not None:
        told.append(f"distance from '{_arms(tax)[0]}': {_short(distance)} times the norm of its update")
    if _taken(rest, "artefact_hash_matches", True):
        told.append("the merged adapter on disk is the one that was written")
    if _taken(rest, "unused_adapter_keys", []):
        told.append("all its keys are used")
    if _taken(rest, "zero_norm_modules", []):
        told.append("no module is without update")
    for key in ("is_identical", "is_wrong"):
        rest.pop(key, None)
    return told


def _function(rest: Evidence, _tax: dict[str, Any]) -> list[str]:
    told = []
    if (largest := finite(rest.get("max_abs_logit_difference"))) is not None:
        count = finite(rest.pop("n_probes", None))
        on = "" if count is None else f" on {count:g} prompts"
        told.append(f"log-probabilities differ by up to {_short(largest)}{on}{_noise(rest.pop('noise_floor', None))}")
        del rest["max_abs_logit_difference"]
    if (divergence := finite(rest.get("mean_kl"))) is not None:
        told.append(f"mean KL divergence {_short(divergence)} nats{_noise(rest.pop('noise_floor_kl', None))}")
        del rest["mean_kl"]
    same = rest.pop("share_identical_answers", None)
    if same is not None:
        told.append(f"{fraction_text(same)} of the answers that count refusals are the same")
    return told + list(rest.pop("warnings", None) or ())


def _coherence(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    shares = [(arm, value) for arm in _arms(tax) if (value := rest.pop(arm, None)) is not None]
    found = ", ".join(f"{fraction_text(value)} ({arm})" for arm, value in shares)
    return [f"empty or degenerate answers: {found}"] if found else []


def _judge(rest: Evidence, _tax: dict[str, Any]) -> list[str]:
    if "judge" not in rest:
        return []
    judge, is_validated = rest.pop("judge"), rest.pop("validated", None)
    if not judge:
        return ["no judge"]
    return [f"{judge} was{'' if is_validated else ' not'} compared with human labels"]


def _gain(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    unit = _unit(tax, "gain")
    interval = interval_text(rest.pop("ci", None), unit, signed=True)
    told = [f"interval {with_unit(interval, unit, is_difference=True)}" if interval else "no interval"]
    test, p, adjusted = rest.pop("test", None), p_text(rest.pop("p", None)), finite(rest.pop("p_holm", None))
    told += [", ".join(filter(None, (p or "no test", test and f"by {TESTS.get(test, test)}")))] if p or test else []
    told += [f"adjusted for several comparisons (Holm) {p_text(adjusted)}"] if adjusted is not None else []
    return [*told, rest.pop("reason", None) or ""]


def _bounded(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    shape, reason = rest.pop("shape", None), rest.pop("reason", None)
    if shape == "all_reals":
        return ["no value of the ratio is excluded"]
    low, high = finite(rest.get("lo")), finite(rest.get("hi"))
    if low is None or high is None:
        return ["no ratio was estimated" if shape is None else f"shape: {shape}", reason or ""]
    del rest["lo"], rest["hi"]
    unit = str((tax.get("fieller") or {}).get("unit") or "")
    ends = f"{_short(low)} to {_short(high)} {'' if unit == 'pp per pp' else unit}".rstrip()
    return [f"interval {ends}" if shape == "interval" else f"only values from {ends} are excluded", reason or ""]


def _power(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    unit, found, least = _unit(tax, "gain"), finite(rest.pop("estimate", None)), finite(rest.pop("mde80", None))
    rest.pop("is_flagged", None)
    told = [] if found is None else [f"gain {_difference(found, unit)}"]
    if least is None:
        told.append("what these prompts could detect is unknown")
    else:
        told.append(f"detectable with 80 % power: {with_unit(plain(least, unit), unit, is_difference=True)}")
    return [*told, rest.pop("reason", None) or ""]


def _selection(rest: Evidence, _tax: dict[str, Any]) -> list[str]:
    chosen, looks = rest.pop("selected_on_test", None), rest.pop("looks", None)
    told = [
        "whether the settings were chosen on these samples is not declared"
        if chosen is None
        else f"the settings were {'' if chosen else 'not '}chosen on these samples"
    ]
    told += [] if looks is None else ["evaluated once" if looks == 1 else f"evaluated {looks} times"]
    seeds, is_random = rest.pop("seeds", None), rest.pop("stochastic", None)
    if is_random is False:
        told.append("the merge draws no random numbers")
    elif seeds is not None:
        told.append(f"{seeds} {'seed' if seeds == 1 else 'seeds'} of a merge that draws random numbers")
    return told


def _signal(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    unit, found = _unit(tax, "signal"), finite(rest.pop("estimate", None))
    interval, p = interval_text(rest.pop("ci", None), unit, signed=True), p_text(rest.pop("p", None))
    told = []
    if found is not None:
        better = f"the utility adapter is better than the base by {_difference(found, unit)} {interval}".rstrip()
        told.append(f"{better}, {p}" if p else better)
    drop, chance = finite(rest.pop("drop_on_shuffled_targets", None)), finite(rest.pop("chance", None))
    told += [] if drop is None else [f"better than with shuffled targets by {_difference(drop, unit)}"]
    told += [] if chance is None else [f"guessing scores {plain(chance, unit)}{' %' if unit == 'pp' else ''}"]
    worst = "what guessing scores" if chance is not None else "the worst possible score"
    told += [f"its own interval reaches {worst}"] if rest.pop("utility_at_floor", None) else []
    told += ["the base's interval reaches the best possible score"] if rest.pop("base_at_ceiling", None) else []
    rest.pop("direction", None)
    return [*told, rest.pop("reason", None) or ""]


TELLERS: dict[str, Callable[[Evidence, dict[str, Any]], list[str]]] = {
    "G0": _accounting,
    "G1": _weights,
    "G2": _function,
    "G4": _coherence,
    "G5": _judge,
    "G6": _gain,
    "G7": _bounded,
    "G8": _power,
    "G9": _selection,
    "G10": _signal,
}


def _taken(rest: Evidence, key: str, value: Any) -> bool:
    """Whether an item has this value; another one stays, to be listed."""
    if key not in rest or rest[key] != value:
        return False
    del rest[key]
    return True


def _arms(tax: dict[str, Any]) -> tuple[str, str]:
    contrast = tax.get("contrast") or {}
    return str(contrast.get("reference") or "reference"), str(contrast.get("treatment") or "treatment")


def _unit(tax: dict[str, Any], role: str) -> str:
    return str((tax.get(role) or {}).get("unit") or "pp")


def _difference(value: float, unit: str) -> str:
    return with_unit(plain(value, unit, signed=True), unit, is_difference=True)


def _short(value: float) -> str:
    return evidence_text(float(f"{value:.3g}"))


def _noise(value: Any) -> str:
    number = finite(value)
    return "" if number is None else f" (noise {_short(number)})"
