"""What a gate saw, in words. What has no words here is listed as it is: nothing is left out but digits."""

from collections.abc import Callable
from typing import Any

from sst_merge.rendering.cells import evidence_text, finite, fraction_text, interval_text, p_text, plain, with_unit

ROLES = {"gain": "safety", "loss": "utility", "over_refusal": "over-refusal", "signal": "utility of the base"}
TESTS = {"mcnemar-midp": "McNemar mid-p", "paired-t": "paired t", "cluster-sign-flip": "sign flips of clusters"}
Evidence = dict[str, Any]
"""Of one gate; what is told is taken out of it."""


def gate_evidence(gate: dict[str, Any], tax: dict[str, Any]) -> str:
    """The evidence of one gate as sentences, problems and open questions first.

    Args:
        gate: ``id``, ``status`` and ``evidence``.
        tax: The comparison that the gate belongs to; it has the units.
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
        title = ROLES.get(role, role)
        if not count.get("unscored"):
            told.append(f"{title}: all {count['n']} scored")
            continue
        scored = " and ".join(map(str, count["scored"]))
        bounds = interval_text(count.get("bounds"), _unit(tax, role), signed=True)
        told.append(
            f"{title}: {scored} of {count['n']} scored"
            + (f", a difference within {bounds} whatever the others are" if bounds else "")
        )
    if _taken(rest, "fallbacks", []):
        told.append("no fallback")
    for key in ("limit", "sign_depends_on_unscored", "incomplete"):  # what they mean is among the problems
        rest.pop(key, None)
    return told


def _weights(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    told = []
    if _taken(rest, "identical", []):
        told.append("all hashes differ")
    distance = finite(rest.pop("relative_distance", None))
    if distance is not None:
        reference = (tax.get("contrast") or {}).get("reference") or "reference"
        told.append(f"distance from '{reference}': {_short(distance)} times the norm of its update")
    if _taken(rest, "artefact_hash_matches", True):
        told.append("the adapter is the manifest's")
    if _taken(rest, "unused_adapter_keys", []):
        told.append("all its keys are used")
    if _taken(rest, "zero_norm_modules", []):
        told.append("no module is without update")
    for key in ("is_identical", "is_wrong"):
        rest.pop(key, None)
    return told


def _function(rest: Evidence, _tax: dict[str, Any]) -> list[str]:
    told = []
    largest, noise = finite(rest.pop("max_abs_logit_difference", None)), finite(rest.pop("noise_floor", None))
    if largest is not None:
        on = finite(rest.pop("n_probes", None))
        where = "" if on is None else f" on {on:g} prompts"
        told.append(f"log-probabilities differ by up to {_short(largest)}{where}{_noise(noise)}")
    divergence, noise = finite(rest.pop("mean_kl", None)), finite(rest.pop("noise_floor_kl", None))
    if divergence is not None:
        told.append(f"mean KL divergence {_short(divergence)} nats{_noise(noise)}")
    same = rest.pop("share_identical_answers", None)
    if same is not None:
        told.append(f"{fraction_text(same)} of the answers are the same")
    return told + list(rest.pop("warnings", None) or ())


def _coherence(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    arms = [(tax.get("contrast") or {}).get(role) for role in ("reference", "treatment")]
    shares = [(arm, value) for arm in arms if arm is not None and (value := rest.pop(arm, None)) is not None]
    found = ", ".join(f"{fraction_text(value)} ({arm})" for arm, value in shares)
    return [f"empty or degenerate answers: {found}"] if found else []


def _judge(rest: Evidence, _tax: dict[str, Any]) -> list[str]:
    judge, is_validated = rest.pop("judge", None), rest.pop("validated", None)
    if not judge:
        return ["no judge"]
    return [f"{judge} was{'' if is_validated else ' not'} compared with human labels"]


def _gain(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    unit = _unit(tax, "gain")
    interval, p, adjusted = (
        interval_text(rest.pop("ci", None), unit, signed=True),
        p_text(rest.pop("p", None)),
        finite(rest.pop("p_holm", None)),
    )
    test = rest.pop("test", None)
    told = [f"interval {with_unit(interval, unit, is_difference=True)}" if interval else "no interval"]
    told += [f"{p} ({TESTS.get(test, test)})" if test else p] if p else []
    told += [f"adjusted for several comparisons (Holm) {p_text(adjusted)}"] if adjusted is not None else []
    return [*told, rest.pop("reason", None) or ""]


def _bounded(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    shape, low, high = rest.pop("shape", None), finite(rest.pop("lo", None)), finite(rest.pop("hi", None))
    unit = str((tax.get("fieller") or {}).get("unit") or "")
    if shape == "all_reals":
        return ["no value of the ratio is excluded"]
    if low is None or high is None or shape not in {"interval", "complement"}:
        return ["no ratio was estimated" if shape is None else str(shape), rest.pop("reason", None) or ""]
    ends = with_unit(f"{_short(low)} to {_short(high)}", unit if unit != "pp per pp" else "", is_difference=True)
    return [ends if shape == "interval" else f"only values from {ends} are excluded"]


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
    chosen = rest.pop("selected_on_test", None)
    told = [
        "whether the settings were chosen on these samples is not declared"
        if chosen is None
        else f"the settings were {'' if chosen else 'not '}chosen on these samples"
    ]
    looks, seeds = rest.pop("looks", None), rest.pop("seeds", None)
    told += [] if looks is None else [f"evaluated {_times(looks)}"]
    random = {True: f"{seeds} seed(s) of a random merge", False: "the merge draws no random numbers"}
    return [*told, random.get(rest.pop("stochastic", None), "")]


def _signal(rest: Evidence, tax: dict[str, Any]) -> list[str]:
    unit, found = _unit(tax, "signal"), finite(rest.pop("estimate", None))
    interval, p = interval_text(rest.pop("ci", None), unit, signed=True), p_text(rest.pop("p", None))
    against = f"utility adapter against base: {'' if found is None else _difference(found, unit)} {interval}".rstrip()
    told = [] if found is None else [f"{against}, {p}" if p else against]
    drop = finite(rest.pop("drop_on_shuffled_targets", None))
    told += [] if drop is None else [f"against shuffled targets: {_difference(drop, unit)}"]
    chance = finite(rest.pop("chance", None))
    told += [] if chance is None else [f"guessing scores {with_unit(plain(chance, unit), unit, is_difference=False)}"]
    told += ["the utility adapter is at the lowest score"] if rest.pop("utility_at_floor", None) else []
    told += ["the base is at the highest score"] if rest.pop("base_at_ceiling", None) else []
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


def _unit(tax: dict[str, Any], role: str) -> str:
    return str((tax.get(role) or {}).get("unit") or "pp")


def _difference(value: float, unit: str) -> str:
    return with_unit(plain(value, unit, signed=True), unit, is_difference=True)


def _short(value: float) -> str:
    return evidence_text(float(f"{value:.3g}"))


def _noise(value: float | None) -> str:
    return "" if value is None else f" (noise {_short(value)})"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
