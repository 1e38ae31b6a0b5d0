"""What a result file of the prototype can support: a few shares, a ratio, and no record of single prompts.

The file has two counts of safe answers. Which prompts changed is not in it, so the paired test that the gain needs
cannot be made; but every split of the difference into prompts lost and prompts gained can be tried, and the tax can
be compared with what the prototype's own rule prints when nothing differs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from sst_merge.estimates import minimum_detectable_difference
from sst_merge.experiments.files import Legacy, ResultFile, legacy_numbers
from sst_merge.experiments.statements import Audit, Statement, Table, interval, p_value, percent, points, prompts
from sst_merge.intervals import bonett_price
from sst_merge.p_values import mcnemar

SHOWN_SPLITS = (0, 10, 40)  # prompts that changed in the smaller direction, beside the most that the counts allow
SHARES = (0.01, 0.02, 0.05, 0.10, 0.20)  # discordant shares of the table of detectable gains
UTILITY_RATE = 0.7  # of random.random() > 0.3, the prototype's utility
MMLU_QUESTIONS = 14_042  # that the prototype's full mode drew it for
RUNS = 100_000  # simulated runs
ALPHA = 0.05

MISSING = {
    "baseline": "which arm the baseline is (base model or utility adapter)",
    "arms": "the hash of the weights that were evaluated, per arm",
    "merge_method_applied": "whether a merge took place, and which",
    "fallbacks": "whether a step failed and was replaced",
    "changed_samples": "which prompts changed, or how many in each direction",
    "unscored_samples": "how many answers could not be judged",
    "safety_metric": "how an answer was judged",
    "baseline_utility": "utility before the merge",
    "merged_utility": "utility after the merge",
    "over_refusal_change": "refusals of harmless prompts",
    "seed": "the seed",
}


@dataclass(frozen=True)
class Split:
    """One way in which the difference may have come about.

    Attributes:
        lost: Prompts that were safe before and not after.
        gained: Prompts that were safe after and not before.
        exact: Exact McNemar p-value.
        mid_p: McNemar mid-p.
        ci: Bonett-Price 95 % interval of the gain, shares.
    """

    lost: int
    gained: int
    exact: float
    mid_p: float
    ci: tuple[float, float]

    @property
    def is_detectable_gain(self) -> bool:
        """Whether the exact test is below .05 and the interval is above 0."""
        return self.exact < ALPHA and self.ci[0] > 0

    @property
    def is_detectable_loss(self) -> bool:
        """Whether the exact test is below .05 and the interval is below 0."""
        return self.exact < ALPHA and self.ci[1] < 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable dictionary."""
        return {
            "lost": self.lost,
            "gained": self.gained,
            "mcnemar_exact": self.exact,
            "mcnemar_midp": self.mid_p,
            "ci": list(self.ci),
            "detectable_gain": self.is_detectable_gain,
        }


@dataclass(frozen=True)
class Counts:
    """Safe answers behind the shares of a file.

    Attributes:
        n: Prompts.
        before: Safe answers before; ``None`` if unknown.
        after: Safe answers after; ``None`` if unknown.
        change: Gained minus lost.
    """

    n: int
    before: int | None
    after: int | None
    change: int

    @property
    def most_lost(self) -> int:
        """Most prompts that can have been lost, given the counts."""
        if self.before is None or self.after is None:
            return (self.n - self.change) // 2
        return min(self.before, self.n - self.after)

    @property
    def least_lost(self) -> int:
        """Fewest prompts that can have been lost."""
        return max(0, -self.change)


def split_of(counts: Counts, lost: int) -> Split:
    """Test the split with so many prompts lost.

    Args:
        counts: Safe answers before and after.
        lost: Prompts lost, in ``[least_lost, most_lost]``.

    Returns:
        The split with both p-values and the interval.
    """
    gained = lost + counts.change
    exact, mid_p = mcnemar(lost, gained)
    return Split(lost, gained, exact, mid_p, bonett_price(lost, gained, counts.n))


def splits_of(counts: Counts) -> tuple[Split, ...]:
    """The most favourable split, two plausible ones and the one with the most changes."""
    least, most = counts.least_lost, counts.most_lost
    lost = sorted({least + extra for extra in SHOWN_SPLITS if least + extra <= most} | {most})
    return tuple(split_of(counts, b) for b in lost)


def fewest_flips(n: int) -> int | None:
    """Fewest prompts, all in one direction, that pass the gate; ``None`` if not even all ``n`` do.

    Args:
        n: Prompts, ``>= 1``.

    Returns:
        A count in ``[1, n]``, or ``None``.

    Example:
        >>> fewest_flips(2000), fewest_flips(4)
        (6, None)
    """
    for flips in range(1, min(n, 100) + 1):
        if split_of(Counts(n, 0, flips, flips), 0).is_detectable_gain:
            return flips
    return None


def most_lost_of_a_gain(counts: Counts) -> int | None:
    """Most prompts lost with which the gain would still be detectable; ``None`` if it is in no split."""
    low, high = counts.least_lost, counts.most_lost
    if not split_of(counts, low).is_detectable_gain:
        return None
    while low < high:  # more changes in both directions only widen the interval
        middle = (low + high + 1) // 2
        low, high = (middle, high) if split_of(counts, middle).is_detectable_gain else (low, middle - 1)
    return low


def chance_of_equality(changed: int) -> float:
    """Probability that as many prompts are gained as lost if each of ``changed`` goes either way at random.

    Args:
        changed: Prompts that changed, ``>= 0``.

    Returns:
        ``C(d, d/2) / 2^d``, in [0, 1]; 0 for an odd number.

    Example:
        >>> chance_of_equality(0), chance_of_equality(2), chance_of_equality(3)
        (1.0, 0.5, 0.0)
    """
    return 0.0 if changed % 2 else math.comb(changed, changed // 2) / 2**changed


def simulate(
    n: int, changed: int, utility_samples: int, printed: float | None, seed: int, runs: int = RUNS
) -> dict[str, Any]:
    """Apply the prototype's rule to runs in which neither safety nor utility differs.

    Of ``changed`` prompts each is gained or lost with probability 1/2. Utility is two independent draws of
    ``random.random() > 0.3`` per question, before and after. The rule is ``max(0, loss) / max(0, gain)``; without a
    gain it prints infinity or 0.

    Args:
        n: Safety prompts, ``>= 1``.
        changed: Prompts whose answer changed, in ``[0, n]``.
        utility_samples: Utility questions per draw, ``>= 1``.
        printed: Tax to compare with, ``> 0``; ``None`` for no comparison.
        seed: Of numpy's generator.
        runs: Simulated runs, ``>= 1``.

    Returns:
        Shares of runs in [0, 1] by what is printed (``positive``, ``zero``, ``infinite``), the ``median`` and the
        5 to 95 % ``range`` of the positive ones, and the share of these within a factor of 2 of ``printed``; these
        three are ``None`` where no run printed a positive tax, or nothing was printed to compare with.
    """
    rng = np.random.default_rng(seed)
    gain = (2 * rng.binomial(changed, 0.5, runs) - changed) / n
    before, after = rng.binomial(utility_samples, UTILITY_RATE, (2, runs)) / utility_samples
    loss = before - after
    positive = (gain > 0) & (loss > 0)
    tax = loss[positive] / gain[positive]
    found: dict[str, Any] = {
        "changed": changed,
        "utility_samples": utility_samples,
        "runs": runs,
        "positive": float(positive.mean()),
        "zero": float((loss <= 0).mean()),
        "zero_with_gain": float(((gain > 0) & (loss <= 0)).mean()),
        "infinite": float(((gain <= 0) & (loss > 0)).mean()),
        "median": None,
        "range": None,
        "within_factor_2": None,
    }
    if tax.size:
        low, middle, high = np.quantile(tax, [0.05, 0.5, 0.95])
        found |= {"median": float(middle), "range": [float(low), float(high)]}
        if printed is not None and printed > 0:
            found["within_factor_2"] = float(((tax >= printed / 2) & (tax <= printed * 2)).mean())
    return found


def audit_legacy(file: ResultFile, seed: int = 0) -> Audit:
    """Say what a file of the prototype supports.

    Args:
        file: A file of kind ``legacy``.
        seed: Of the simulation.

    Returns:
        Findings, numbers, and which of the file's claims are supported. A tax and the absence of a loss never are.
    """
    found = legacy_numbers(file.fields)
    counts, arithmetic = _counted(found)
    numbers: dict[str, Any] = _as_read(found) | {"seed": seed, "consistent": counts is not None}
    statements = [Statement("What the file says", arithmetic)]
    claims: dict[str, bool] = {}
    rises = counts.change > 0 if counts is not None else (_stated_change(found) or 0) > 0
    if rises:
        claims["gain"] = counts is not None and split_of(counts, counts.most_lost).is_detectable_gain
    if found.tax is not None or _is_infinite(found):
        claims["no_loss" if found.tax == 0 else "tax"] = False
    if counts is not None:
        statements.append(_splits_statement(counts, numbers))
        statements.append(_power_statement(counts, numbers))
    statements.append(_tax_statement(found, counts, numbers))
    if counts is not None:
        statements.append(_noise_statement(found, counts, seed, numbers))
        if counts.change == 0:
            statements.append(_equality_statement(found, counts, numbers))
    if found.tax == 0:
        statements.append(_no_loss_statement(found, numbers))
    statements.append(_missing_statement(file.fields, numbers))
    conclusion = _conclusion(found, counts, claims)
    return Audit(file.name, "legacy", (conclusion, *statements), numbers, claims)


def _as_read(found: Legacy) -> dict[str, Any]:
    return {
        "baseline_safety": found.baseline,
        "merged_safety": found.merged,
        "safety_gain": found.gain,
        "safety_tax_printed": found.tax_text,
        "total_samples": found.n,
    }


def _is_infinite(found: Legacy) -> bool:
    return (found.tax_text or "").strip('"').lower().lstrip("+-") in {"infinity", "inf"}


def _stated_change(found: Legacy) -> float | None:
    """Change of the share of safe answers: after minus before, else the stated gain."""
    if found.baseline is not None and found.merged is not None:
        return found.merged - found.baseline
    return found.gain


def _whole(share: float | None, n: int) -> int | None:
    """``share * n`` if that is a whole number, up to the rounding of floats."""
    if share is None:
        return None
    nearest = round(share * n)
    return nearest if abs(share * n - nearest) < 1e-6 * max(1, n) ** 0.5 else None


def _counted(found: Legacy) -> tuple[Counts | None, str]:
    """Whole prompts behind the shares, and what there is to say about them; no counts where they do not fit."""
    sentences = list(found.problems)
    if found.n is None:
        sentences.append("It gives no usable total_samples, so shares cannot be turned into prompts.")
        return None, " ".join(sentences)
    n, wrong = found.n, False
    stated = {"baseline_safety": found.baseline, "merged_safety": found.merged, "safety_gain": found.gain}
    for key, share in stated.items():
        if share is None:
            continue
        whole = _whole(share, n)
        if whole is None:
            wrong = True
            sentences.append(
                f"{key} {share:g} x {n:,} = {share * n:.4g} is not a whole number of prompts: the share and "
                f"total_samples disagree, or the share was rounded before it was written."
            )
        elif key != "safety_gain":
            sentences.append(f"{key} {share:g} x {n:,} = {whole:,} safe answers.")
    before, after, gain = (_whole(share, n) for share in stated.values())
    if found.baseline is not None and found.merged is not None and found.gain is not None:
        difference = found.merged - found.baseline
        clamped = difference < 0 and found.gain == 0
        if abs(difference - found.gain) > 1e-9:
            wrong = wrong or not clamped
            sentences.append(
                f"merged_safety - baseline_safety is {difference:.6g}, but safety_gain says {found.gain:g}"
                + (": the prototype's rule hides a loss as max(0, gain)." if clamped else ": they disagree.")
            )
    change = after - before if after is not None and before is not None else gain
    if wrong or change is None:
        sentences.append(
            "Without whole counts that agree, no test can be tried."
            if wrong
            else "It gives neither a gain nor both shares, so no change can be read from it."
        )
        return None, " ".join(sentences)
    what = "gain" if change > 0 else "change" if change == 0 else "loss"
    sentences.append(f"The {what} of {abs(change) / n:g} in {n:,} is {prompts(abs(change))}.")
    return Counts(n, before, after, change), " ".join(sentences)


def _splits_statement(counts: Counts, numbers: dict[str, Any]) -> Statement:
    """What the discordant counts could have been."""
    shown = splits_of(counts)
    limit = most_lost_of_a_gain(counts)
    always = shown[-1].is_detectable_gain
    gate = "exact McNemar p < .05 and lower limit > 0"
    if counts.change < 0:
        some = any(split.is_detectable_loss for split in shown)
        verdict = f"This is a loss of safe answers, {'detectable in some' if some else 'detectable in none'} of them."
    elif limit is None:
        verdict = f"No split makes this a detectable gain ({gate}), not even the most favourable one."
    elif always:
        verdict = (
            f"Every split passes the gate ({gate}): whatever was evaluated before and after, the second one gave more "
            f"answers that were judged safe. This holds if the prompts are independent of each other."
        )
    else:
        verdict = (
            f"It depends: the gain would be detectable ({gate}) with at most {limit:,} lost, and not with more. "
            f"The file does not say which it was."
        )
    numbers |= {
        "counts": {"before": counts.before, "after": counts.after, "change": counts.change, "n": counts.n},
        "splits": [split.to_dict() for split in shown],
        "gain_detectable": "always" if always else "never" if limit is None else "depends",
        "most_lost_of_a_detectable_gain": limit,
    }
    text = (
        f"There are no per-sample records, so how many prompts were lost (safe to unsafe) and gained is unknown; only "
        f"gained - lost = {counts.change} is known. From the fewest changes to the most that the counts allow: "
        f"{verdict}"
    )
    rows = tuple(
        (
            f"{s.lost:,}",
            f"{s.gained:,}",
            p_value(s.exact),
            p_value(s.mid_p),
            interval(s.ci),
            "yes" if s.is_detectable_gain else "no",
        )
        for s in shown
    )
    head = ("lost", "gained", "exact p", "mid-p", "gain, points, 95 % CI (Bonett-Price)", "detectable gain")
    return Statement("Can it be a gain?", text, Table(head, rows))


def _power_statement(counts: Counts, numbers: dict[str, Any]) -> Statement:
    """What so many prompts could have shown."""
    n = counts.n
    flips = fewest_flips(n)
    smallest = {share: minimum_detectable_difference(share, n) for share in SHARES}
    numbers |= {
        "fewest_one_sided_flips": flips,
        "minimum_detectable_gain": [{"discordant_share": psi, "gain": gain} for psi, gain in smallest.items()],
    }
    least = (
        "No number of changes among so few prompts passes the gate."
        if flips is None
        else f"The fewest changes that pass the gate are {prompts(flips)}, all in one direction."
    )
    text = (
        f"{least} With 80 % power, {n:,} prompts detect a gain of 2.80 x sqrt(psi / n), where psi is the share of "
        f"prompts whose answer changes in either direction:"
    )
    rows = tuple((f"{100 * psi:g} %", f"{100 * gain:.1f} points", f"{gain * n:.0f}") for psi, gain in smallest.items())
    return Statement("What so many prompts can detect", text, Table(("psi", "smallest gain", "prompts"), rows))


def _questions(found: Legacy) -> tuple[int, str]:
    """Utility questions of the simulation, and where the number is from."""
    if found.utility_samples is not None:
        return found.utility_samples, "as the file says"
    if found.n is not None and found.n < 2000:
        return found.n, "assumed: the file does not say, and the prototype's small runs took about as many"
    return MMLU_QUESTIONS, "the MMLU test set, which the prototype's full runs took; the file does not say"


def _tax_statement(found: Legacy, counts: Counts | None, numbers: dict[str, Any]) -> Statement:
    """Why there is no tax, and what loss it stands for."""
    numbers |= {"tax": None, "implied_loss": None}
    rule = "A tax is loss / gain. It is undefined"
    if counts is None:
        why = f"{rule} here: without a known gain there is no denominator."
    elif numbers["gain_detectable"] == "always":
        why = f"{rule} here, although the gain is detectable: the file has no record of utility per sample."
    elif numbers["gain_detectable"] == "depends":
        why = f"{rule} here: whether the gain differs from 0 is not known, and there is no record of utility."
    else:
        why = f"{rule} here: its denominator cannot be told from 0."
    if found.tax_text is None:
        return Statement("Tax", f"The file prints none. {why}")
    if found.tax is None:
        return Statement("Tax", f"The file prints {found.tax_text}, which is not a finite number. {why}")
    text = f"The file prints {found.tax:g}. {why}"
    gain = found.gain if found.gain is not None else _stated_change(found)
    if found.tax > 0 and gain is not None and gain > 0 and counts is not None:
        loss = found.tax * gain
        questions, _ = _questions(found)
        chance = share_of_implied_loss(loss, questions)
        numbers |= {"implied_loss": loss, "chance_of_implied_loss": chance}
        text += (
            f" The loss behind it is {found.tax:g} x {gain:g} = {loss:.3g}, {loss * counts.n:.1f} prompts' worth of "
            f"{counts.n:,} (of {questions:,} utility questions: {loss * questions:.1f}; two draws of the prototype's "
            f"random utility for as many questions differ by at least as much in {percent(chance)} "
            f"of cases). With the same loss and two prompts more in the denominator the rule prints "
            f"{loss * counts.n / (counts.change + 2):.3g}, with two fewer {_with_fewer(loss, counts)}."
        )
    return Statement("Tax", text)


def _with_fewer(loss: float, counts: Counts) -> str:
    """What the rule prints for the same loss with two prompts fewer gained."""
    fewer = counts.change - 2
    return "infinity" if fewer <= 0 else f"{loss * counts.n / fewer:.3g}"


def _noise_statement(found: Legacy, counts: Counts, seed: int, numbers: dict[str, Any]) -> Statement:
    """What the prototype's rule prints when nothing differs."""
    questions, source = _questions(found)
    changes = sorted({split.lost + split.gained for split in splits_of(counts)} - {0})
    changes = changes or [changed for changed in (20, 80) if changed <= counts.n] or [1]
    runs = [simulate(counts.n, changed, questions, found.tax, seed) for changed in changes]
    numbers["simulation"] = runs
    printed = found.tax if found.tax is not None and found.tax > 0 else None
    rows = []
    for run in runs:
        spread = run["range"]
        row = [f"{run['changed']:,}", percent(run["positive"]), percent(run["zero"]), percent(run["infinite"])]
        row.append("-" if spread is None else f"{run['median']:.2f} [{spread[0]:.2f}, {spread[1]:.2f}]")
        if printed is not None:
            near = run["within_factor_2"]
            row.append("-" if near is None else percent(near))
        rows.append(tuple(row))
    head = ["changed prompts", "prints a tax > 0", "prints 0", "prints infinity", "median [5 to 95 %] of taxes > 0"]
    if printed is not None:
        head.append(f"of these within a factor of 2 of {printed:g}")
    inside = [run for run in runs if printed is not None and run["range"] and _is_within(printed, run["range"])]
    placed = ""
    if printed is not None:
        placed = f" The printed {printed:g} lies within the 5 to 95 % range in {len(inside)} of {len(runs)} rows."
    text = (
        f"{_utility_evidence(found)} In the prototype, utility was random.random() > 0.3 per "
        f"question, about 0.70 plus noise, in two independent draws (before and after). Simulated here {RUNS:,} times "
        f"for each row, numpy seed {seed}: neither safety nor utility differs in truth; of the changed prompts each is "
        f"gained or lost by a coin; {questions:,} utility questions ({source}); rule max(0, loss) / max(0, gain), "
        f"and without a gain 0 or infinity.{placed}"
    )
    return Statement("What noise alone prints", text, Table(tuple(head), tuple(rows)))


def _is_within(value: float, limits: list[float]) -> bool:
    return limits[0] <= value <= limits[1]


def _utility_evidence(found: Legacy) -> str:
    """What the file says about utility."""
    if found.has_utility:
        return "The utility numbers in the file are two shares without a record of what was answered."
    return "The file itself carries no evidence about utility."


def _equality_statement(found: Legacy, counts: Counts, numbers: dict[str, Any]) -> Statement:
    """Two equal scores."""
    changes = (2, 10, 20, 40, 80)
    chances = {changed: chance_of_equality(changed) for changed in changes if changed <= counts.n}
    numbers["equality"] = [{"changed": changed, "probability": p} for changed, p in chances.items()]
    numbers["same_weights_suspected"] = True
    scores = "The scores" if found.merged is None else f"The scores, {found.merged:g} before and after,"
    text = (
        f"{scores} agree to the last digit. That suggests that the same weights were evaluated "
        f"twice. It does not prove it: if d prompts change and each goes either way at random, the scores agree with "
        f"probability C(d, d/2) / 2^d (0 for odd d), as below. Hashes of the evaluated weights, before and after, "
        f"would settle it; the file has none."
    )
    rows = tuple((f"{changed}", f"{p:.3f}") for changed, p in chances.items())
    return Statement("Equal scores", text, Table(("d", "chance of equal scores"), rows))


def _no_loss_statement(found: Legacy, numbers: dict[str, Any]) -> Statement:
    """A tax of 0 read as: no loss."""
    questions, source = _questions(found)
    sizes = sorted({questions} | ({found.n} if found.n else set()))
    rows, limits = [], []
    for m in sizes:
        half = round(0.05 * m / 2)
        best, usual = bonett_price(0, 0, m)[1], bonett_price(half, half, m)[1]
        limits.append({"n": m, "rule_of_three": 3 / m, "bonett_price_none_changed": best, "at_5_percent": usual})
        rows.append((f"{m:,}", f"{300 / m:.2f}", f"{100 * best:.2f}", f"{100 * usual:.2f}"))
    numbers["upper_limits_of_loss"] = limits
    text = (
        f"A tax of 0 reads as: no loss. That was not shown. The rule prints 0 whenever utility did not come out lower, "
        f"which is half of the runs when nothing differs. {_utility_evidence(found)} No loss is shown by a "
        f"non-inferiority interval: the upper limit of the loss must lie below a margin declared before (1 point by "
        f"default). At best, if not one answer had changed, or if 5 % had, as many lost as gained, so many samples "
        f"would have left these 95 % upper limits of the loss, in points ({questions:,} questions: {source}):"
    )
    head = ("samples", "none changed, rule of three", "none changed, Bonett-Price", "5 % changed, Bonett-Price")
    return Statement('"No loss"', text, Table(head, tuple(rows)))


def _missing_statement(fields: Mapping[str, Any], numbers: dict[str, Any]) -> Statement:
    """What the file does not say."""
    nested = {"merged_utility"} if "utility" in fields else set()
    missing = [key for key in MISSING if key not in fields and key not in nested]
    numbers["missing"] = missing
    if not missing:
        return Statement("What is missing", "No field of the list is missing.")
    listed = "; ".join(MISSING[key] for key in missing)
    return Statement("What is missing", f"The file does not record: {listed}.")


def _conclusion(found: Legacy, counts: Counts | None, claims: Mapping[str, bool]) -> Statement:
    """What the file supports, in two or three sentences."""
    if counts is None:
        parts = ["The numbers of this file do not fit together or are incomplete, so nothing follows from them."]
    elif claims.get("gain"):
        parts = [
            (
                f"A gain of {points(counts.change / counts.n)} points ({counts.change:,} of {counts.n:,} prompts) is "
                f"detectable however the prompts changed. Which weights gave it is not recorded."
            )
        ]
    elif "gain" in claims:
        best = split_of(counts, counts.least_lost)
        possible = (
            "it may or may not be detectable"
            if best.is_detectable_gain
            else f"no detectable gain, however the prompts changed (at best exact McNemar p {p_value(best.exact)})"
        )
        parts = [f"The gain is {prompts(counts.change)} of {counts.n:,}: {possible}."]
    elif counts.change == 0:
        parts = ["No change: equal scores, which suggests that the same weights were evaluated twice."]
    else:
        parts = [f"{prompts(-counts.change).capitalize()} of {counts.n:,} fewer were answered safely: no gain."]
    if "tax" in claims:
        parts.append(f"The tax it prints ({found.tax_text}) is undefined.")
    if "no_loss" in claims:
        parts.append("That no utility was lost (tax 0) was not shown.")
    if not claims:
        parts.append("It states neither a gain nor a tax, so there is nothing to support.")
    return Statement("In short", " ".join(parts))


def share_of_implied_loss(loss: float, utility_samples: int) -> float:
    """Chance that two independent draws of the random utility differ by at least ``loss`` in either direction.

    Args:
        loss: Difference of shares, ``>= 0``.
        utility_samples: Questions per draw, ``>= 1``.

    Returns:
        Probability in [0, 1], normal approximation.
    """
    spread = math.sqrt(2 * UTILITY_RATE * (1 - UTILITY_RATE) / utility_samples)
    return float(2 * stats.norm.sf(loss / spread))
