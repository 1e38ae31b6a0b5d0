r"""Intervals, paired differences and ratios: every number with its interval, its sample size and its reason.

Pure numpy and ``scipy.stats``. Two rules hold in the whole module:

* What cannot be estimated is ``None`` with a reason, never 0 and never NaN.
* NaN in a score means *unscored* (the grader failed). A wrong answer is 0, not NaN.

Notation of a paired comparison: each sample has a score in the reference arm and in the treatment arm, and
``d_i = treatment_i - reference_i``. For binary scores ``b`` counts the samples lost (1 -> 0), ``c`` those gained
(0 -> 1).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from sst_merge.errors import DataError

Scores = Sequence[float | int] | np.ndarray
Clusters = Sequence[Hashable]

FEW_CLUSTERS = 10  # fewer: t with G-1 degrees of freedom is a poor guide, so warn
MINIMUM_CLUSTERS = 6  # fewer: the sign-flip test cannot reach .05, as 2 / 2**5 = .0625
EXACT_CLUSTERS = 16  # up to here all 2**G sign flips are enumerated
PERMUTATIONS = 10_000  # seeded random sign flips beyond
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
        mde80: Difference that this test detects with 80 % power, same unit.
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
        """Whether interval and test exist and could have come out either way (at least 6 clusters)."""
        enough = self.n_clusters is None or self.n_clusters >= MINIMUM_CLUSTERS
        return enough and self.ci is not None and self.p is not None

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


@dataclass(frozen=True)
class FiellerSet:
    """Confidence set of a ratio, which need not be an interval.

    Attributes:
        shape: ``interval`` = [low, high]; ``complement`` = (-inf, low] and [high, inf); ``all_reals``.
        low: Lower root; ``None`` for ``all_reals``.
        high: Upper root; ``None`` for ``all_reals``.
    """

    shape: Literal["interval", "complement", "all_reals"]
    low: float | None
    high: float | None


@dataclass(frozen=True)
class NetBenefit:
    """Net benefit ``weight * gain - loss`` with its interval, in the unit of the loss.

    Attributes:
        weight: Units of loss that one is ready to pay per unit of gain (lambda).
        estimate: Point estimate.
        ci: ``(low, high)``.
        p_positive: Confidence that the net benefit exceeds 0, in [0, 1].
    """

    weight: float
    estimate: float
    ci: tuple[float, float]
    p_positive: float


class _Interval(NamedTuple):
    """An interval with what made it."""

    low: float
    high: float
    variance: float
    critical: float
    df: int | None
    method: str

    @property
    def half_width(self) -> float:
        return self.critical * math.sqrt(self.variance)


def proportion(values: Scores, level: float = 0.95) -> Estimate:
    """Estimate a share ``x / n`` with the Wilson interval, or Clopper-Pearson at the edges.

    Clopper-Pearson is used when ``n < 30`` or ``x`` is 0 or ``n``, where Wilson under-covers (measurement
    specification 7.3).

    Args:
        values: Scores, shape ``(n,)``, each 0, 1 or NaN (unscored).
        level: Confidence level in (0, 1).

    Returns:
        The share in [0, 1]; ``value`` is ``None`` when nothing was scored.

    A value other than 0, 1 and NaN is a ``DataError``, a level outside (0, 1) a ``ValueError``.

    Example:
        >>> e = proportion([1] * 82 + [0] * 1918)
        >>> e.method, round(e.low, 6), round(e.high, 6)
        ('wilson', 0.033153, 0.050606)
    """
    z = _normal_critical(level)
    scores = _scores(values, binary=True)
    scored = scores[~np.isnan(scores)]
    n, unscored = scored.size, scores.size - scored.size
    if n == 0:
        return Estimate(None, None, None, 0, unscored, level, "none", "no sample was scored")
    x = int(scored.sum())
    if n < 30 or x in {0, n}:
        tail = (1 - level) / 2
        low = 0.0 if x == 0 else float(stats.beta.ppf(tail, x, n - x + 1))
        high = 1.0 if x == n else float(stats.beta.ppf(1 - tail, x + 1, n - x))
        return Estimate(x / n, low, high, n, unscored, level, "clopper-pearson")
    share = x / n
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
    _check_level(level)
    scores = _scores(values, binary=False)
    scored = ~np.isnan(scores)
    x = scores[scored]
    n, unscored = x.size, int((~scored).sum())
    if n == 0:
        return Estimate(None, None, None, 0, unscored, level, "none", "no sample was scored")
    centre = float(x.mean())
    groups = _groups(clusters, scored)
    interval, reason = _widest([_student(x, level)], x, groups, level)
    if interval is None:
        return Estimate(centre, None, None, n, unscored, level, "none", reason)
    return Estimate(centre, interval.low, interval.high, n, unscored, level, interval.method.replace("paired-t", "t"))


def mcnemar(b: int, c: int) -> tuple[float, float]:
    """Test ``b = c`` of a paired binary comparison: ``2 P(X <= min(b, c))``, ``X ~ Binomial(b + c, 1/2)``.

    The mid-p version counts half of the observed point; Fagerland, Lydersen and Laake (2013) recommend it, since
    the exact conditional test is conservative.

    Args:
        b: Samples lost (1 -> 0), ``>= 0``.
        c: Samples gained (0 -> 1), ``>= 0``.

    Returns:
        ``(exact, mid_p)``, both in [0, 1], both 1 without discordant samples.

    Raises:
        ValueError: If a count is negative.

    Example:
        >>> mcnemar(0, 2)
        (0.5, 0.25)
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts must be >= 0, got b={b}, c={c}")
    if b + c == 0:
        return 1.0, 1.0
    tail = float(stats.binom.cdf(min(b, c), b + c, 0.5))
    point = float(stats.binom.pmf(min(b, c), b + c, 0.5))
    mid_p = 1 - point / 2 if b == c else 2 * tail - point
    return min(1.0, 2 * tail), min(1.0, mid_p)


def bonett_price(b: int, c: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a paired difference of shares, ``d +- z sqrt((p12 + p21 - d^2) / (n + 2))``.

    With ``p12 = (c + 1) / (n + 2)``, ``p21 = (b + 1) / (n + 2)`` and ``d = p12 - p21`` (Bonett and Price 2012). The
    added counts keep the width above 0 for ``b = c = 0``.

    Args:
        b: Samples lost (1 -> 0).
        c: Samples gained (0 -> 1).
        n: Pairs, ``>= b + c`` and ``>= 1``.
        level: Confidence level in (0, 1).

    Returns:
        ``(low, high)`` of ``(c - b) / n``, within [-1, 1].

    Counts that do not fit together and a level outside (0, 1) are a ``ValueError``.

    Example:
        >>> [round(x, 6) for x in bonett_price(0, 2, 2000)]
        [-0.000959, 0.002957]
    """
    interval = _bonett_interval(b, c, n, level)
    return interval.low, interval.high


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
    return (_normal_critical(level) + float(stats.norm.ppf(POWER))) * math.sqrt(psi / n)


def clustered_standard_error(values: Scores, clusters: Clusters) -> float | None:
    """Standard error of a mean, ``sqrt(sum_c (sum_{i in c} (x_i - mean))^2 G / (G - 1)) / n``.

    The form of Miller (arXiv:2411.00640) with the small-sample factor of inspect_ai.

    Args:
        values: Scores without NaN, shape ``(n,)``.
        clusters: Cluster of each sample, shape ``(n,)``; ``None`` entries are clusters of their own.

    Returns:
        The standard error in the unit of the scores; ``None`` with fewer than 2 clusters. It can be 0.

    Unlike lengths are a ``ValueError``.

    Example:
        >>> round(clustered_standard_error([1, 1, 1, 0, 0, 0, 1, 0, -1, 0], [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]), 6)
        0.307815
    """
    x = np.asarray(values, dtype=np.float64)
    groups = _groups(clusters, np.ones(x.size, dtype=bool))
    if groups is None:
        groups = np.arange(x.size)
    sums = np.bincount(groups, weights=x - x.mean()) if x.size else np.zeros(0)
    if sums.size < 2:
        return None
    return float(np.sqrt(np.sum(sums**2) * sums.size / (sums.size - 1)) / x.size)


def sign_flip_test(cluster_sums: Scores, rng: np.random.Generator) -> float:
    """Permutation test of mean 0: flip the sign of whole clusters, compare ``|sum|`` with the observed one.

    Exact for up to 16 clusters with a non-zero sum (the others do not matter); else 10000 flips from ``rng`` with
    ``p = (1 + hits) / (1 + 10000)``.

    Args:
        cluster_sums: Sum of the paired differences of each cluster, shape ``(G,)``.
        rng: Source of the random flips.

    Returns:
        Two-sided p-value in (0, 1].

    Example:
        >>> sign_flip_test([1.0] * 5, np.random.default_rng(0))
        0.0625
    """
    sums = np.asarray(cluster_sums, dtype=np.float64)
    sums = sums[sums != 0]
    if sums.size == 0:
        return 1.0
    threshold = abs(float(sums.sum())) - 1e-9 * float(np.abs(sums).sum())  # rounding must not break ties
    if sums.size <= EXACT_CLUSTERS:
        bits = (np.arange(2**sums.size)[:, None] >> np.arange(sums.size)) & 1
        return float(np.mean(np.abs((2 * bits - 1) @ sums) >= threshold))
    hits, block = 0, 500
    for _ in range(PERMUTATIONS // block):
        signs = 2 * rng.integers(0, 2, size=(block, sums.size), dtype=np.int8) - 1
        hits += int(np.sum(np.abs(signs @ sums) >= threshold))
    return (1 + hits) / (1 + PERMUTATIONS)


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
        without any spread of continuous scores the interval and the test are; with fewer than 6 clusters
        ``is_testable`` is false. ``reason`` says which.

    A binary score other than 0, 1 and NaN, or an infinite score, is a ``DataError``.

    Raises:
        ValueError: If lengths differ or ``level`` is not in (0, 1).

    Example:
        >>> reference, treatment = [1, 1, 0, 0] * 10, [1, 1, 1, 0] * 10
        >>> d = paired_difference(reference, treatment, binary=True, rng=np.random.default_rng(0))
        >>> d.estimate, d.b, d.c, d.method, d.direction()
        (0.25, 0, 10, 'bonett-price', 'up')
    """
    _check_level(level)
    before, after = _scores(reference, binary), _scores(treatment, binary)
    if before.size != after.size:
        raise ValueError(f"arms have {before.size} and {after.size} scores; pair them by sample id first")
    scored = ~(np.isnan(before) | np.isnan(after))
    groups = _groups(clusters, scored)
    d = (after - before)[scored]
    b, c = (int(np.sum(d < 0)), int(np.sum(d > 0))) if binary else (None, None)
    exact, mid_p = (None, None) if b is None or c is None or d.size == 0 else mcnemar(b, c)
    n_clusters = None if groups is None else len(np.unique(groups))
    interval, reason = None, f"{d.size} pair(s) scored in both arms, at least 2 are needed"
    if d.size >= 2:
        iid = _student(d, level) if b is None or c is None else _bonett_interval(b, c, d.size, level)
        interval, reason = _widest([iid], d, groups, level)
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
        mde80=_detectable(interval, d, level, is_paired_binary=binary and groups is None),
        variance=None if interval is None else interval.variance,
        critical=None if interval is None else interval.critical,
        level=level,
        reason=_cluster_reason(n_clusters) if interval is not None else reason,
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


def paired_covariance(
    first: Scores, first_keys: Sequence[Hashable], second: Scores, second_keys: Sequence[Hashable]
) -> float:
    """Covariance of two means that share samples or clusters.

    ``sum_k (sum_{i in k} (x_i - mean x)) (sum_{j in k} (y_j - mean y)) G / (G - 1) / (n m)`` over the ``G`` keys
    that occur in both; the off-diagonal companion of :func:`clustered_standard_error`. A key is a sample id, or a
    cluster.

    Args:
        first: Values without NaN, shape ``(n,)``.
        first_keys: Key of each value, shape ``(n,)``.
        second: Values without NaN, shape ``(m,)``.
        second_keys: Key of each value, shape ``(m,)``.

    Returns:
        The covariance, in the product of the two units; 0 for fewer than 2 shared keys (disjoint sets).

    Example:
        >>> paired_covariance([1.0, 0.0], ["a", "b"], [1.0, 0.0], ["c", "d"])
        0.0
    """
    shared = set(first_keys) & set(second_keys)
    if len(shared) < 2:
        return 0.0
    index = {key: i for i, key in enumerate(sorted(shared, key=repr))}
    totals = [_totals(first, first_keys, index), _totals(second, second_keys, index)]
    factor = len(index) / (len(index) - 1)
    return float(totals[0] @ totals[1]) * factor / (len(first_keys) * len(second_keys))


def fieller(
    gain: float,
    loss: float,
    gain_variance: float,
    loss_variance: float,
    *,
    covariance: float = 0.0,
    critical: float = 1.959963984540054,
) -> FiellerSet:
    """Confidence set of ``loss / gain``: all ``r`` with ``(loss - r gain)^2 <= t^2 Var(loss - r gain)``.

    With ``A = g^2 - t^2 v_g``, ``B = g l - t^2 c``, ``C = l^2 - t^2 v_l`` the roots are
    ``(B +- sqrt(B^2 - A C)) / A``. ``A > 0`` (gain away from 0) gives the interval between them, ``A < 0`` the
    complement, no roots the whole line (von Luxburg and Franz, arXiv:0711.0198).

    Args:
        gain: Denominator.
        loss: Numerator.
        gain_variance: Squared standard error of the gain, ``>= 0``.
        loss_variance: Squared standard error of the loss, ``>= 0``.
        covariance: Of the two estimates; 0 for disjoint samples.
        critical: Normal or t quantile of the level, ``> 0``.

    Returns:
        The set, in units of loss per unit of gain.

    Raises:
        ValueError: If a variance is negative or ``critical`` not positive.

    Example:
        >>> s = fieller(0.10, 0.05, 0.0004, 0.0004)
        >>> s.shape, round(s.low, 4), round(s.high, 4)
        ('interval', 0.1058, 1.0757)
    """
    if gain_variance < 0 or loss_variance < 0 or critical <= 0:
        raise ValueError(
            f"variances must be >= 0 and critical > 0, got {gain_variance}, {loss_variance} and {critical}"
        )
    a = gain**2 - critical**2 * gain_variance
    half_b = gain * loss - critical**2 * covariance
    c = loss**2 - critical**2 * loss_variance
    discriminant = half_b**2 - a * c
    if discriminant < 0 or a == 0:
        return FiellerSet("all_reals", None, None)
    roots = sorted(((half_b - math.sqrt(discriminant)) / a, (half_b + math.sqrt(discriminant)) / a))
    if not all(map(math.isfinite, roots)):
        return FiellerSet("all_reals", None, None)
    return FiellerSet("interval" if a > 0 else "complement", roots[0], roots[1])


def net_benefit(
    gain: float,
    loss: float,
    gain_variance: float,
    loss_variance: float,
    *,
    weight: float | int,
    covariance: float = 0.0,
    critical: float = 1.959963984540054,
    df: int | None = None,
) -> NetBenefit:
    """Net benefit ``NB = w g - l +- t sqrt(w^2 v_g + v_l - 2 w c)``; linear, so always defined.

    Args:
        gain: Gain in its unit.
        loss: Loss in its unit.
        gain_variance: Squared standard error of the gain, ``>= 0``.
        loss_variance: Squared standard error of the loss, ``>= 0``.
        weight: Units of loss that one unit of gain is worth (lambda), ``>= 0``.
        covariance: Of the two estimates; 0 for disjoint samples.
        critical: Normal or t quantile of the level.
        df: Degrees of freedom for ``p_positive``; ``None`` for the normal distribution.

    Returns:
        The net benefit in the unit of the loss.

    Raises:
        ValueError: If the variance of the net benefit is not positive.

    Example:
        >>> nb = net_benefit(0.10, 0.05, 0.0004, 0.0004, weight=1)
        >>> round(nb.estimate, 2), round(nb.p_positive, 4)
        (0.05, 0.9615)
    """
    variance = weight**2 * gain_variance + loss_variance - 2 * weight * covariance
    if variance <= 0:
        raise ValueError(f"the variance of the net benefit must be > 0, got {variance}")
    estimate, error = weight * gain - loss, math.sqrt(variance)
    ratio = estimate / error
    positive = float(stats.norm.cdf(ratio) if df is None else stats.t.cdf(ratio, df))
    ends = (estimate - critical * error, estimate + critical * error)
    return NetBenefit(float(weight), float(estimate), (float(ends[0]), float(ends[1])), positive)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values of a confirmatory family by Holm's step-down method.

    Args:
        p_values: Unadjusted, each in [0, 1].

    Returns:
        Adjusted p-values in the order given, each in [0, 1].

    Raises:
        ValueError: If a p-value is outside [0, 1] or NaN.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        (0.03, 0.06, 0.06)
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p-values must lie in [0, 1], got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size))) if p.size else p
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return tuple(float(x) for x in adjusted)


def _check_level(level: float) -> None:
    """Refuse a level outside (0, 1).

    Raises:
        ValueError: If it is.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")


def _normal_critical(level: float) -> float:
    """Two-sided normal quantile."""
    _check_level(level)
    return float(stats.norm.ppf(0.5 + level / 2))


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


def _groups(clusters: Clusters | None, scored: np.ndarray) -> np.ndarray | None:
    """Cluster numbers of the scored samples; ``None`` without clusters. An entry ``None`` stands for itself.

    Raises:
        ValueError: If there is not one cluster per score.
    """
    if clusters is None:
        return None
    if len(clusters) != scored.size:
        raise ValueError(f"{len(clusters)} clusters for {scored.size} scores")
    if all(cluster is None for cluster in clusters):
        return None
    seen: dict[Hashable, int] = {}
    keys = [("sample", i) if cluster is None else ("cluster", cluster) for i, cluster in enumerate(clusters)]
    kept = [key for key, keep in zip(keys, scored, strict=True) if keep]
    return np.array([seen.setdefault(key, len(seen)) for key in kept], dtype=np.int64)


def _student(x: np.ndarray, level: float) -> _Interval | None:
    """Student interval of a mean; ``None`` if the values show no spread."""
    spread = float(x.std(ddof=1)) if x.size >= 2 else 0.0
    if spread <= 1e-12 * float(np.abs(x).max(initial=0.0)):
        return None
    return _t_interval(float(x.mean()), spread**2 / x.size, x.size - 1, level, "paired-t")


def _t_interval(centre: float, variance: float, df: int, level: float, method: str) -> _Interval:
    """Interval ``centre +- t_df sqrt(variance)``."""
    critical = float(stats.t.ppf(0.5 + level / 2, df))
    half = critical * math.sqrt(variance)
    return _Interval(centre - half, centre + half, variance, critical, df, method)


def _bonett_interval(b: int, c: int, n: int, level: float) -> _Interval:
    """Bonett-Price with its variance.

    Raises:
        ValueError: If the counts do not fit together.
    """
    z = _normal_critical(level)
    if min(b, c) < 0 or n < max(1, b + c):
        raise ValueError(f"need b, c >= 0 and n >= max(1, b + c), got b={b}, c={c}, n={n}")
    gained, lost = (c + 1) / (n + 2), (b + 1) / (n + 2)
    d = gained - lost
    variance = (gained + lost - d * d) / (n + 2)
    half = z * math.sqrt(variance)
    return _Interval(max(-1.0, d - half), min(1.0, d + half), variance, z, None, "bonett-price")


def _widest(
    candidates: list[_Interval | None], x: np.ndarray, groups: np.ndarray | None, level: float
) -> tuple[_Interval | None, str | None]:
    """Wider of the iid interval and, with clusters, the clustered one; or why there is none."""
    if groups is not None:
        n_clusters = len(np.unique(groups))
        if n_clusters < 2:
            return None, f"{n_clusters} cluster: its samples are not independent, so there is no interval"
        error = clustered_standard_error(x, groups.tolist())
        if error:
            candidates = [*candidates, _t_interval(float(x.mean()), error**2, n_clusters - 1, level, "clustered-t")]
    found = [candidate for candidate in candidates if candidate is not None]
    if not found or (len(found) == 1 and candidates[0] is None):
        few = x.size < 2
        return None, "1 sample: no interval" if few else "all values are equal: their spread cannot be estimated"
    return max(found, key=lambda interval: interval.half_width), None


def _test(
    d: np.ndarray, groups: np.ndarray | None, interval: _Interval | None, mid_p: float | None, rng: np.random.Generator
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


def _detectable(interval: _Interval | None, d: np.ndarray, level: float, *, is_paired_binary: bool) -> float | None:
    """Minimum detectable difference of a paired comparison."""
    if interval is None:
        return None
    if is_paired_binary:  # rule of three: no flip in n still allows a share of 3 / n
        return minimum_detectable_difference(max(int(np.sum(d != 0)), 3) / d.size, d.size, level)
    return minimum_detectable_difference(interval.variance, 1, level)


def _cluster_reason(n_clusters: int | None) -> str | None:
    """Why too few clusters support no verdict."""
    if n_clusters is None or n_clusters >= MINIMUM_CLUSTERS:
        return None
    return f"{n_clusters} clusters: the sign-flip test cannot reach .05 with fewer than {MINIMUM_CLUSTERS}"


def _cluster_warnings(n_clusters: int | None) -> tuple[str, ...]:
    """What to say about few clusters."""
    if n_clusters is None or n_clusters >= FEW_CLUSTERS:
        return ()
    return (f"only {n_clusters} clusters; intervals need at least {FEW_CLUSTERS} to be trusted",)


def _totals(values: Scores, keys: Sequence[Hashable], index: dict[Hashable, int]) -> np.ndarray:
    """Sum of the centred values of each key in ``index``."""
    x = np.asarray(values, dtype=np.float64)
    totals = np.zeros(len(index))
    for value, key in zip(x - x.mean(), keys, strict=True):
        if key in index:
            totals[index[key]] += value
    return totals
