r"""Means, shares and paired differences: every number with its interval, its sample size and its reason.

Pure numpy and ``scipy.stats``. Two rules hold in the whole module:

* What cannot be estimated is ``None`` with a reason, never 0 and never NaN.
* NaN in a score means *unscored* (the grader failed). A wrong answer is 0, not NaN.

Notation of a paired comparison: each sample has a score in the reference arm and in the treatment arm, and
``d_i = treatment_i - reference_i``. For binary scores ``b`` counts the samples lost (1 -> 0), ``c`` those gained
(0 -> 1).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from sst_merge.errors import DataError
from sst_merge.intervals import (
    Clusters,
    Interval,
    Scores,
    bonett_interval,
    check_level,
    clopper_pearson,
    cluster_numbers,
    normal_critical,
    one_cluster_reason,
    student_interval,
    widest,
)
from sst_merge.p_values import mcnemar, sign_flip_test

FEW_CLUSTERS = 10  # fewer: t with G-1 degrees of freedom is a poor guide, so warn
POWER = 0.80  # of the minimum detectable difference


@dataclass(frozen=True)
class Estimate:
    """One number with its confidence interval.

    Attributes:
        value: Point estimate in the unit of the scores; ``None`` if undefined.
        low: Lower confidence limit, or ``None``.
        high: Upper confidence limit, or ``None``.
        n: Scored samples.
        unscored: Samples without a score (NaN).
        level: Confidence level in (0, 1).
        method: How the interval was made, e.g. ``wilson``.
        reason: Why something is ``None``; ``None`` if nothing is.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int
    level: float
    method: str
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """A paired difference ``mean(treatment - reference)`` with its interval and test.

    Attributes:
        estimate: Difference in the unit of the scores (shares in [-1, 1] for binary ones); ``None`` if undefined.
        ci: ``(low, high)`` at ``level``; ``None`` if undefined.
        method: Of the interval: ``bonett-price``, ``paired-t`` or ``clustered-t``.
        test: That gave ``p``: ``mcnemar-midp``, ``paired-t`` or ``cluster-sign-flip``.
        n: Samples scored in both arms.
        unscored: Samples that lack a score in at least one arm.
        n_clusters: Clusters among the scored samples; ``None`` without clusters.
        df: Degrees of freedom of the interval; ``None`` where it uses the normal quantile.
        b: Samples lost (1 -> 0); ``None`` for continuous scores.
        c: Samples gained (0 -> 1); ``None`` for continuous scores.
        p: Two-sided p-value of the test that decides, in [0, 1]; ``None`` if undefined.
        p_mcnemar_midp: McNemar mid-p, whatever decides; ``None`` for continuous scores.
        p_mcnemar_exact: Exact conditional McNemar; ``None`` for continuous scores.
        mde80: Difference that this test detects with 80 % power, same unit; ``None`` without an interval, and where
            binary scores would have to differ by more than 1.
        variance: Squared standard error behind ``ci``, never 0; ``None`` if undefined.
        critical: Quantile behind ``ci`` (normal or t); ``None`` if undefined.
        level: Confidence level in (0, 1).
        reason: Why something is ``None``, or why the test supports no verdict.
        warnings: Things a reader must know, e.g. few clusters.
    """

    estimate: float | None
    ci: tuple[float, float] | None
    method: str
    test: str
    n: int
    unscored: int
    n_clusters: int | None
    df: int | None
    b: int | None
    c: int | None
    p: float | None
    p_mcnemar_midp: float | None
    p_mcnemar_exact: float | None
    mde80: float | None
    variance: float | None
    critical: float | None
    level: float
    reason: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_testable(self) -> bool:
        """Whether interval and test exist and could have come out either way (at .05: 5 pairs, or 6 clusters)."""
        return self.ci is not None and self.p is not None and self._smallest_p < 1 - self.level

    @property
    def _smallest_p(self) -> float:
        """What the test gives when all pairs, or clusters, differ in one direction."""
        flips = {"mcnemar-midp": self.n, "cluster-sign-flip": (self.n_clusters or 1) - 1}
        return 0.5 ** flips[self.test] if self.test in flips else 0.0

    def direction(self, p: float | None = None) -> Literal["up", "down", "none", "unknown"]:
        """Say on which side of 0 the difference lies; interval *and* test must agree.

        Args:
            p: P-value to use instead of the own one, e.g. after Holm.

        Returns:
            ``up`` or ``down`` if the interval excludes 0 and ``p < 1 - level``; ``unknown`` if not testable.
        """
        if not self.is_testable or self.ci is None or self.p is None:
            return "unknown"
        if (self.p if p is None else p) >= 1 - self.level:
            return "none"
        if self.ci[0] > 0:
            return "up"
        return "down" if self.ci[1] < 0 else "none"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable dictionary; tuples become lists."""
        fields = asdict(self)
        fields["ci"] = None if self.ci is None else list(self.ci)
        fields["warnings"] = list(self.warnings)
        return fields


def proportion(values: Scores, level: float = 0.95, clusters: Clusters | None = None) -> Estimate:
    """Estimate a share ``x / n`` with the Wilson interval, or Clopper-Pearson at the edges.

    Clopper-Pearson is used when ``n < 30`` or ``x`` is 0 or ``n``, where Wilson under-covers (measurement
    specification 7.3). With clusters the clustered t interval counts where it is wider; where all scores are equal,
    which says nothing of their spread, Clopper-Pearson with one sample a cluster.

    Args:
        values: Scores, shape ``(n,)``, each 0, 1 or NaN (unscored).
        level: Confidence level in (0, 1).
        clusters: Cluster of each sample, shape ``(n,)``; ``None`` entries are clusters of their own.

    Returns:
        The share in [0, 1]; ``value`` is ``None`` when nothing was scored, and the limits are with a single cluster.

    A value other than 0, 1 and NaN is a ``DataError``, a level outside (0, 1) a ``ValueError``.

    Example:
        >>> e = proportion([1] * 82 + [0] * 1918)
        >>> e.method, round(e.low, 6), round(e.high, 6)
        ('wilson', 0.033153, 0.050606)
    """
    z = normal_critical(level)
    scores = _scores(values, binary=True)
    is_scored = ~np.isnan(scores)
    scored = scores[is_scored]
    n, unscored = scored.size, scores.size - scored.size
    if n == 0:
        return Estimate(None, None, None, 0, unscored, level, "none", "no sample was scored")
    x = int(scored.sum())
    share = x / n
    groups = cluster_numbers(clusters, is_scored)
    if groups is not None:
        n_clusters = len(np.unique(groups))
        if n_clusters < 2:
            return Estimate(share, None, None, n, unscored, level, "none", one_cluster_reason(n_clusters))
        if x in {0, n}:
            low, high = clopper_pearson(round(share) * n_clusters, n_clusters, level)
            return Estimate(share, low, high, n, unscored, level, "clopper-pearson over clusters")
        own, clustered = proportion(scored, level), mean(scored, level, groups.tolist())
        assert own.low is not None
        assert own.high is not None
        assert clustered.low is not None
        assert clustered.high is not None
        low, high = min(own.low, max(0.0, clustered.low)), max(own.high, min(1.0, clustered.high))
        method = f"{own.method}, or {clustered.method} where wider"
        return Estimate(share, low, high, n, unscored, level, method)
    if n < 30 or x in {0, n}:
        low, high = clopper_pearson(x, n, level)
        return Estimate(share, low, high, n, unscored, level, "clopper-pearson")
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, centre - half, centre + half, n, unscored, level, "wilson")


def mean(values: Scores, level: float = 0.95, clusters: Clusters | None = None) -> Estimate:
    """Estimate a mean with the t interval; with clusters, the wider of the clustered and the iid one.

    Args:
        values: Scores, shape ``(n,)``, finite or NaN (unscored), any unit.
        level: Confidence level in (0, 1).
        clusters: Cluster of each sample, shape ``(n,)``; ``None`` entries are clusters of their own.

    Returns:
        The mean in the unit of the scores. Limits are ``None`` with a reason when fewer than 2 samples (or
        clusters) were scored, or when all scores are equal, which says nothing about their spread.

    An infinite value is a ``DataError``; unlike lengths or a level outside (0, 1) are a ``ValueError``.

    Example:
        >>> mean([1.0, 2.0, float("nan")]).unscored
        1
        >>> mean([]).reason
        'no sample was scored'
    """
    check_level(level)
    scores = _scores(values, binary=False)
    scored = ~np.isnan(scores)
    x = scores[scored]
    n, unscored = x.size, int((~scored).sum())
    if n == 0:
        return Estimate(None, None, None, 0, unscored, level, "none", "no sample was scored")
    centre = float(x.mean())
    groups = cluster_numbers(clusters, scored)
    interval, reason = widest([student_interval(x, level)], x, groups, level)
    if interval is None:
        return Estimate(centre, None, None, n, unscored, level, "none", reason)
    return Estimate(centre, interval.low, interval.high, n, unscored, level, interval.method.replace("paired-t", "t"))


def minimum_detectable_difference(psi: float, n: int, level: float = 0.95) -> float:
    """Smallest paired difference found with 80 % power, ``(z_{1-alpha/2} + z_{.80}) sqrt(psi / n)``.

    Args:
        psi: Share of discordant pairs, or in general the variance of one paired difference, ``>= 0``.
        n: Pairs, ``>= 1``.
        level: Confidence level in (0, 1).

    Returns:
        The difference, in the unit whose square is that of ``psi`` (shares for binary scores).

    Raises:
        ValueError: If ``psi < 0``, ``n < 1`` or ``level`` is not in (0, 1).

    Example:
        >>> round(100 * minimum_detectable_difference(0.10, 500), 1)
        4.0
    """
    if psi < 0 or n < 1:
        raise ValueError(f"psi must be >= 0 and n >= 1, got psi={psi}, n={n}")
    return (normal_critical(level) + float(stats.norm.ppf(POWER))) * math.sqrt(psi / n)


def paired_difference(
    reference: Scores,
    treatment: Scores,
    *,
    binary: bool,
    clusters: Clusters | None = None,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Difference:
    """Estimate ``mean(treatment - reference)`` over the samples scored in both arms.

    ==================  ===========================  =======================================
    scores              interval                     test
    ==================  ===========================  =======================================
    binary              Bonett-Price                 McNemar mid-p
    continuous          paired t                     paired t
    either, clustered   clustered t_{G-1}, or the    sign flips of whole clusters
                        one above if that is wider
    ==================  ===========================  =======================================

    The minimum detectable difference uses the discordant share, with at least 3 discordant pairs (rule of three),
    for unclustered binary scores, and ``(z + z_{.80}) SE`` otherwise.

    Args:
        reference: Scores of the reference arm, shape ``(n,)``; NaN is unscored.
        treatment: Scores of the other arm on the same samples in the same order, shape ``(n,)``.
        binary: Whether the scores are 0 or 1.
        clusters: Cluster of each sample, shape ``(n,)``; ``None`` entries are clusters of their own. All ``None`` is
            the same as no clusters.
        level: Confidence level in (0, 1).
        rng: Source of the sign flips, used only beyond 16 clusters.

    Returns:
        The difference. With fewer than 2 scored pairs all statistics are ``None``; with fewer than 2 clusters or
        without any spread of continuous scores the interval and the test are; with fewer than 5 pairs of binary scores
        or 6 clusters (at .05) ``is_testable`` is false. ``reason`` says which.

    A binary score other than 0, 1 and NaN, or an infinite score, is a ``DataError``.

    Raises:
        ValueError: If lengths differ or ``level`` is not in (0, 1).

    Example:
        >>> reference, treatment = [1, 1, 0, 0] * 10, [1, 1, 1, 0] * 10
        >>> d = paired_difference(reference, treatment, binary=True, rng=np.random.default_rng(0))
        >>> d.estimate, d.b, d.c, d.method, d.direction()
        (0.25, 0, 10, 'bonett-price', 'up')
    """
    check_level(level)
    before, after = _scores(reference, binary), _scores(treatment, binary)
    if before.size != after.size:
        raise ValueError(f"arms have {before.size} and {after.size} scores; pair them by sample id first")
    scored = ~(np.isnan(before) | np.isnan(after))
    groups = cluster_numbers(clusters, scored)
    d = (after - before)[scored]
    b, c = (int(np.sum(d < 0)), int(np.sum(d > 0))) if binary else (None, None)
    exact, mid_p = (None, None) if b is None or c is None or d.size == 0 else mcnemar(b, c)
    n_clusters = None if groups is None else len(np.unique(groups))
    interval, reason = None, f"{d.size} pair(s) scored in both arms, at least 2 are needed"
    if d.size >= 2:
        iid = student_interval(d, level) if b is None or c is None else bonett_interval(b, c, d.size, level)
        interval, reason = widest([iid], d, groups, level)
    if interval is not None and binary:
        interval = interval._replace(low=max(-1.0, interval.low), high=min(1.0, interval.high))
    p, test = _test(d, groups, interval, mid_p, rng)
    return Difference(
        estimate=float(d.mean()) if d.size >= 2 else None,
        ci=None if interval is None else (interval.low, interval.high),
        method="none" if interval is None else interval.method,
        test=test,
        n=d.size,
        unscored=int((~scored).sum()),
        n_clusters=n_clusters,
        df=None if interval is None else interval.df,
        b=b,
        c=c,
        p=p,
        p_mcnemar_midp=mid_p,
        p_mcnemar_exact=exact,
        mde80=_detectable(interval, d, level, is_binary=binary, is_clustered=groups is not None),
        variance=None if interval is None else interval.variance,
        critical=None if interval is None else interval.critical,
        level=level,
        reason=_untestable_reason(test, d.size, n_clusters, level) if interval is not None else reason,
        warnings=_cluster_warnings(n_clusters),
    )


def unscored_bounds(
    reference: Scores, treatment: Scores, *, low: float = 0.0, high: float = 1.0, missing: int = 0
) -> tuple[float, float] | None:
    """Bound ``mean(treatment - reference)`` over *all* samples, with the unscored ones at their worst and best.

    The lower bound puts unscored treatment scores at ``low`` and unscored reference scores at ``high``; the upper
    bound the other way round (Manski's worst-case bounds).

    Args:
        reference: Scores, shape ``(n,)``; NaN is unscored.
        treatment: Scores, shape ``(n,)``; NaN is unscored.
        low: Lowest possible score.
        high: Highest possible score.
        missing: Samples that were expected but are in neither array, ``>= 0``.

    Returns:
        ``(lowest, highest)`` in the unit of the scores; ``None`` without any sample.

    Raises:
        ValueError: If lengths differ, ``low > high`` or ``missing < 0``.

    Example:
        >>> unscored_bounds([0, 0, 0, 0], [1, 1, 0, float("nan")])
        (0.5, 0.75)
    """
    before, after = np.asarray(reference, dtype=np.float64), np.asarray(treatment, dtype=np.float64)
    if before.shape != after.shape or low > high or missing < 0:
        raise ValueError(
            f"bounds need arms of one length, low <= high and missing >= 0, "
            f"got {before.shape} and {after.shape}, [{low}, {high}], {missing}"
        )
    n = before.size + missing
    if n == 0:
        return None
    worst = np.where(np.isnan(after), low, after) - np.where(np.isnan(before), high, before)
    best = np.where(np.isnan(after), high, after) - np.where(np.isnan(before), low, before)
    return float(worst.sum() - missing * (high - low)) / n, float(best.sum() + missing * (high - low)) / n


def _scores(values: Scores, binary: bool) -> np.ndarray:
    """Scores as float64, shape ``(n,)``, checked.

    Raises:
        DataError: If a score is infinite, or a binary one neither 0 nor 1.
        ValueError: If there is not exactly one axis.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"scores must have one axis, got shape {scores.shape}")
    if np.any(np.isinf(scores)):
        raise DataError("a score is infinite; mark a sample that could not be scored with NaN.")
    wrong = ~np.isnan(scores) & (scores != 0) & (scores != 1)
    if binary and np.any(wrong):
        raise DataError(f"binary scores must be 0, 1 or NaN (unscored), got {scores[wrong][0]:g}.")
    return scores


def _test(
    d: np.ndarray, groups: np.ndarray | None, interval: Interval | None, mid_p: float | None, rng: np.random.Generator
) -> tuple[float | None, str]:
    """P-value that decides, with the name of its test."""
    name = "cluster-sign-flip" if groups is not None else "paired-t" if mid_p is None else "mcnemar-midp"
    if interval is None:
        return None, name
    if groups is not None:
        return sign_flip_test(np.bincount(groups, weights=d), rng), name
    if mid_p is not None:
        return mid_p, name
    return float(2 * stats.t.sf(abs(float(d.mean())) / math.sqrt(interval.variance), d.size - 1)), name


def _detectable(
    interval: Interval | None, d: np.ndarray, level: float, *, is_binary: bool, is_clustered: bool
) -> float | None:
    """Minimum detectable difference of a paired comparison."""
    if interval is None:
        return None
    if is_binary and not is_clustered:  # rule of three: no flip in n still allows a share of 3 / n
        found = minimum_detectable_difference(max(int(np.sum(d != 0)), 3) / d.size, d.size, level)
    else:
        found = minimum_detectable_difference(interval.variance, 1, level)
    return None if is_binary and found > 1 else found


def _untestable_reason(test: str, n: int, n_clusters: int | None, level: float) -> str | None:
    """Why too few pairs or clusters support no verdict."""
    alpha = 1 - level
    flips = math.floor(math.log2(1 / alpha)) + 1  # the fewest with .5 ** flips below alpha
    limit = f"{alpha:.2g}".removeprefix("0")
    if n_clusters is not None and n_clusters <= flips:
        return f"{n_clusters} clusters: the sign-flip test cannot reach {limit} with fewer than {flips + 1}"
    if test == "mcnemar-midp" and n < flips:
        return f"{n} pairs: McNemar's test cannot reach {limit} with fewer than {flips}"
    return None


def _cluster_warnings(n_clusters: int | None) -> tuple[str, ...]:
    """What to say about few clusters."""
    if n_clusters is None or n_clusters >= FEW_CLUSTERS:
        return ()
    return (f"only {n_clusters} clusters; intervals need at least {FEW_CLUSTERS} to be trusted",)
