"""Confidence intervals of means, shares and paired differences, with samples independent or in clusters.

Pure numpy and ``scipy.stats``; which of them a number gets is the matter of :mod:`sst_merge.estimates`.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Scores = Sequence[float | int] | np.ndarray
Clusters = Sequence[Hashable]


class Interval(NamedTuple):
    """An interval with what made it."""

    low: float
    high: float
    variance: float
    critical: float
    df: int | None
    method: str

    @property
    def half_width(self) -> float:
        """Distance of the limits from the centre, before they are cut to the possible."""
        return self.critical * math.sqrt(self.variance)


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
    interval = bonett_interval(b, c, n, level)
    return interval.low, interval.high


def clopper_pearson(x: int, n: int, level: float) -> tuple[float, float]:
    """Exact interval of ``x / n`` (Clopper and Pearson 1934), within [0, 1].

    Args:
        x: Successes, from 0 to ``n``.
        n: Samples, ``>= 1``.
        level: Confidence level in (0, 1).
    """
    tail = (1 - level) / 2
    low = 0.0 if x == 0 else float(stats.beta.ppf(tail, x, n - x + 1))
    return low, 1.0 if x == n else float(stats.beta.ppf(1 - tail, x + 1, n - x))


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
    groups = cluster_numbers(clusters, np.ones(x.size, dtype=bool))
    if groups is None:
        groups = np.arange(x.size)
    sums = np.bincount(groups, weights=x - x.mean()) if x.size else np.zeros(0)
    if sums.size < 2:
        return None
    return float(np.sqrt(np.sum(sums**2) * sums.size / (sums.size - 1)) / x.size)


def student_interval(x: np.ndarray, level: float) -> Interval | None:
    """Student interval of a mean; ``None`` with one value, or if the values show no spread.

    Args:
        x: Values without NaN, shape ``(n,)``.
        level: Confidence level in (0, 1).
    """
    spread = float(x.std(ddof=1)) if x.size >= 2 else 0.0
    if spread <= 1e-12 * float(np.abs(x).max(initial=0.0)):
        return None
    return t_interval(float(x.mean()), spread**2 / x.size, x.size - 1, level, "paired-t")


def t_interval(centre: float, variance: float, df: int, level: float, method: str) -> Interval:
    """Interval ``centre +- t_df sqrt(variance)``; ``df >= 1`` degrees of freedom, ``variance`` that of the centre."""
    critical = float(stats.t.ppf(0.5 + level / 2, df))
    half = critical * math.sqrt(variance)
    return Interval(centre - half, centre + half, variance, critical, df, method)


def bonett_interval(b: int, c: int, n: int, level: float) -> Interval:
    """Bonett-Price with its variance.

    Raises:
        ValueError: If the counts do not fit together.
    """
    z = normal_critical(level)
    if min(b, c) < 0 or n < max(1, b + c):
        raise ValueError(f"need b, c >= 0 and n >= max(1, b + c), got b={b}, c={c}, n={n}")
    gained, lost = (c + 1) / (n + 2), (b + 1) / (n + 2)
    d = gained - lost
    variance = (gained + lost - d * d) / (n + 2)
    half = z * math.sqrt(variance)
    return Interval(max(-1.0, d - half), min(1.0, d + half), variance, z, None, "bonett-price")


def widest(
    candidates: list[Interval | None], x: np.ndarray, groups: np.ndarray | None, level: float
) -> tuple[Interval | None, str | None]:
    """Wider of the iid interval and, with clusters, the clustered one; or why there is none.

    Args:
        candidates: Intervals that take samples as independent; ``None`` where there is none.
        x: Values without NaN, shape ``(n,)``.
        groups: Cluster numbers, shape ``(n,)``; ``None`` without clusters.
        level: Confidence level in (0, 1).
    """
    if groups is not None:
        n_clusters = len(np.unique(groups))
        if n_clusters < 2:
            return None, one_cluster_reason(n_clusters)
        error = clustered_standard_error(x, groups.tolist())
        if error:
            candidates = [*candidates, t_interval(float(x.mean()), error**2, n_clusters - 1, level, "clustered-t")]
    found = [candidate for candidate in candidates if candidate is not None]
    if not found or (len(found) == 1 and candidates[0] is None):
        few = x.size < 2
        return None, "1 sample: no interval" if few else "all values are equal: their spread cannot be estimated"
    return max(found, key=lambda interval: interval.half_width), None


def one_cluster_reason(n_clusters: int) -> str:
    """Why there is no interval."""
    return f"{n_clusters} cluster: its samples are not independent, so there is no interval"


def cluster_numbers(clusters: Clusters | None, scored: np.ndarray) -> np.ndarray | None:
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


def check_level(level: float) -> None:
    """Refuse a level outside (0, 1).

    Raises:
        ValueError: If it is.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")


def normal_critical(level: float) -> float:
    """Two-sided normal quantile of a confidence level in (0, 1)."""
    check_level(level)
    return float(stats.norm.ppf(0.5 + level / 2))
