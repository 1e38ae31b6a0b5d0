"""P-values of paired comparisons, and their adjustment for several at once. Pure numpy."""

import math
from collections.abc import Sequence

import numpy as np

EXACT_CLUSTERS = 16  # up to here all 2**G sign flips are enumerated
PERMUTATIONS = 10_000  # seeded random sign flips beyond
SMALLEST = math.ulp(0.0)  # what a smaller p-value is told as, since none is 0


def mcnemar(b: int, c: int) -> tuple[float, float]:
    """Test ``b = c`` of a paired binary comparison: ``2 P(X <= min(b, c))``, ``X ~ Binomial(b + c, 1/2)``.

    The mid-p version counts half of the observed point; Fagerland, Lydersen and Laake (2013) recommend it, since
    the exact conditional test is conservative.

    Args:
        b: Samples lost (1 -> 0), ``>= 0``.
        c: Samples gained (0 -> 1), ``>= 0``.

    Returns:
        ``(exact, mid_p)``, both in (0, 1], both 1 without discordant samples.

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
    # In whole numbers: SciPy's distribution is off by parts of itself where p is small, and differences go below 0.
    point, below = 1, 0  # counts of outcomes: C(n, k), and the sum of those below it
    for k in range(min(b, c)):
        below += point
        point = point * (b + c - k) // (k + 1)
    outcomes = 2 ** (b + c)
    exact = min(1.0, 2 * (below + point) / outcomes)
    mid_p = 1 - point / (2 * outcomes) if b == c else (2 * below + point) / outcomes
    return max(exact, SMALLEST), max(mid_p, SMALLEST)


def sign_flip_test(cluster_sums: Sequence[float | int] | np.ndarray, rng: np.random.Generator) -> float:
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
