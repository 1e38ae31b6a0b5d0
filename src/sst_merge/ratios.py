"""Loss against gain: their ratio and their net benefit, with confidence sets. Pure numpy and ``scipy.stats``."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Scores = Sequence[float | int] | np.ndarray


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


def paired_covariance(
    first: Scores, first_keys: Sequence[Hashable], second: Scores, second_keys: Sequence[Hashable]
) -> float:
    """Covariance of two means that share samples or clusters.

    ``sum_k (sum_{i in k} (x_i - mean x)) (sum_{j in k} (y_j - mean y)) G / (G - 1) / (n m)`` over the ``G`` keys
    that occur in both; the off-diagonal companion of :func:`sst_merge.intervals.clustered_standard_error`. A key is a
    sample id, or a cluster.

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


def _totals(values: Scores, keys: Sequence[Hashable], index: dict[Hashable, int]) -> np.ndarray:
    """Sum of the centred values of each key in ``index``."""
    x = np.asarray(values, dtype=np.float64)
    totals = np.zeros(len(index))
    for value, key in zip(x - x.mean(), keys, strict=True):
        if key in index:
            totals[index[key]] += value
    return totals
