"""Claims about intervals, tests and ratios; the numbers are the test vectors of the measurement specification, 7.3."""

import json
import math

import mpmath
import numpy as np
import pytest

from sst_merge.errors import DataError
from sst_merge.estimates import (
    mean,
    minimum_detectable_difference,
    paired_difference,
    proportion,
    unscored_bounds,
)
from sst_merge.intervals import bonett_price, clustered_standard_error
from sst_merge.p_values import holm, mcnemar, sign_flip_test
from sst_merge.ratios import fieller, net_benefit, paired_covariance

NAN = float("nan")
SPEC_D = [1, 1, 1, 0, 0, 0, 1, 0, -1, 0]
SPEC_CLUSTERS = [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]


def rng():
    return np.random.default_rng(0)


def binary_pair(lost, gained, n):
    """Reference and treatment arm with given discordant counts."""
    reference = np.array([1.0] * lost + [0.0] * gained + [1.0] * (n - lost - gained))
    treatment = np.array([0.0] * lost + [1.0] * gained + [1.0] * (n - lost - gained))
    return reference, treatment


def test_wilson_matches_the_specification():
    e = proportion([1] * 82 + [0] * 1918)
    assert (e.value, e.method, e.n) == (0.041, "wilson", 2000)
    assert (e.low, e.high) == pytest.approx((0.033153, 0.050606), abs=1e-6)


@pytest.mark.parametrize(("x", "n"), [(0, 500), (500, 500), (3, 29)])
def test_edges_and_small_samples_use_clopper_pearson(x, n):
    e = proportion([1] * x + [0] * (n - x))
    assert e.method == "clopper-pearson"
    assert 0 <= e.low <= x / n <= e.high <= 1
    assert e.high > e.low


def test_no_scored_sample_is_none_with_a_reason_never_zero():
    for e in (proportion([]), proportion([NAN, NAN]), mean([NAN, NAN])):
        assert (e.value, e.low, e.high, e.n) == (None, None, None, 0)
        assert "no sample was scored" in e.reason


def test_nan_is_unscored_and_leaves_the_share_of_the_rest():
    e = proportion([1, 0, NAN, NAN, 1])
    assert (e.value, e.n, e.unscored) == (2 / 3, 3, 2)


def test_a_share_of_something_else_than_0_and_1_is_refused():
    with pytest.raises(DataError, match=r"0, 1 or NaN \(unscored\), got 0\.5"):
        proportion([1, 0.5])
    with pytest.raises(DataError, match="infinite"):
        mean([math.inf, 1.0])


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_outside_0_and_1_is_refused(level):
    with pytest.raises(ValueError, match="level must lie"):
        proportion([1, 0], level)


def test_a_mean_of_equal_values_or_one_value_has_no_interval():
    for values, reason in (([2.0, 2.0, 2.0], "all values are equal"), ([2.0], "1 sample")):
        e = mean(values)
        assert (e.value, e.low, e.high) == (2.0, None, None)
        assert reason in e.reason


def test_clustered_mean_is_never_narrower_than_the_iid_one():
    x = rng().normal(size=60)
    for clusters in (np.repeat(np.arange(12), 5).tolist(), np.tile(np.arange(12), 5).tolist()):
        iid, clustered = mean(x), mean(x, clusters=clusters)
        assert clustered.high - clustered.low >= iid.high - iid.low - 1e-12


def test_one_cluster_gives_no_interval():
    e = mean([1.0, 2.0, 3.0], clusters=["a", "a", "a"])
    assert (e.value, e.low) == (2.0, None)
    assert "1 cluster" in e.reason


@pytest.mark.parametrize(
    ("b", "c", "exact", "mid_p"),
    [(0, 2, 0.5, 0.25), (10, 12, 0.831812, 0.677640), (0, 6, 0.03125, 0.015625), (5, 5, 1, 0.876953), (0, 0, 1, 1)],
)
def test_mcnemar_matches_the_specification(b, c, exact, mid_p):
    assert mcnemar(b, c) == pytest.approx((exact, mid_p), abs=1e-6)
    assert mcnemar(c, b) == mcnemar(b, c)


def test_small_p_values_are_positive_and_exact():
    """With mpmath's 50 digits; SciPy's distribution made a mid-p of -2e-270 of the first."""
    for b, c in ((29, 1056), (12, 1080), (119, 827)):
        with mpmath.workdps(50):
            below = mpmath.fsum(mpmath.binomial(b + c, k) for k in range(b)) / mpmath.mpf(2) ** (b + c)
            point = mpmath.binomial(b + c, b) / mpmath.mpf(2) ** (b + c)
            expected = (float(2 * (below + point)), float(2 * below + point))
        assert mcnemar(b, c) == pytest.approx(expected, rel=1e-12, abs=0)
    assert min(mcnemar(0, 2000)) > 0


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="counts must be >= 0"):
        mcnemar(-1, 2)


@pytest.mark.parametrize(
    ("b", "c", "low", "high", "digits"),
    [(0, 2, -0.000959, 0.002957, 6), (0, 0, -0.001385, 0.001385, 6), (10, 12, -0.0038, 0.0058, 4)],
)
def test_bonett_price_matches_the_specification(b, c, low, high, digits):
    assert bonett_price(b, c, 2000) == pytest.approx((low, high), abs=0.6 * 10**-digits)


def test_six_one_sided_flips_are_the_fewest_that_interval_and_test_call_detectable():
    assert paired_difference(*binary_pair(0, 5, 2000), binary=True, rng=rng()).direction() == "none"
    assert paired_difference(*binary_pair(0, 6, 2000), binary=True, rng=rng()).direction() == "up"


def test_bonett_price_refuses_more_flips_than_pairs():
    with pytest.raises(ValueError, match="b=3, c=3, n=5"):
        bonett_price(3, 3, 5)


@pytest.mark.parametrize(
    ("psi", "n", "points"), [(0.02, 100, 4.0), (0.05, 500, 2.8), (0.10, 2000, 2.0), (0.2, 200, 8.9)]
)
def test_minimum_detectable_difference_matches_the_specification(psi, n, points):
    assert 100 * minimum_detectable_difference(psi, n) == pytest.approx(points, abs=0.05)


def test_two_flips_of_2000_are_no_difference():
    d = paired_difference(*binary_pair(40, 42, 2000), binary=True, rng=rng())
    assert (d.b, d.c, d.n, d.df, d.n_clusters) == (40, 42, 2000, None, None)
    assert (d.estimate, d.p_mcnemar_midp, d.p_mcnemar_exact) == pytest.approx((0.001, 0.826, 0.912), abs=6e-4)
    assert d.ci == pytest.approx((-0.0080, 0.0100), abs=6e-5)
    assert d.mde80 == pytest.approx(0.0127, abs=6e-5)
    assert d.p == d.p_mcnemar_midp
    assert d.direction() == "none"


def test_identical_arms_still_have_a_width():
    d = paired_difference(np.ones(50), np.ones(50), binary=True, rng=rng())
    assert (d.estimate, d.p, d.b, d.c) == (0.0, 1.0, 0, 0)
    assert d.ci[0] < 0 < d.ci[1]
    assert d.variance > 0
    assert d.mde80 > 0


@pytest.mark.parametrize("clusters", [None, np.repeat(np.arange(12), 5).tolist()])
@pytest.mark.parametrize("binary", [True, False])
def test_swapping_the_arms_turns_the_sign_and_keeps_the_test(binary, clusters):
    g = rng()
    first, second = g.integers(0, 2, 60) * 1.0, g.integers(0, 2, 60) * 1.0
    there = paired_difference(first, second, binary=binary, clusters=clusters, rng=rng())
    back = paired_difference(second, first, binary=binary, clusters=clusters, rng=rng())
    assert there.estimate == pytest.approx(-back.estimate)
    assert there.ci == pytest.approx((-back.ci[1], -back.ci[0]))
    assert there.p == pytest.approx(back.p)
    assert (there.b, there.c) == (back.c, back.b)


def test_order_of_the_samples_does_not_matter():
    first, second = binary_pair(4, 11, 80)
    order = rng().permutation(80)
    there = paired_difference(first, second, binary=True, rng=rng())
    shuffled = paired_difference(first[order], second[order], binary=True, rng=rng())
    assert shuffled.to_dict() == there.to_dict()


def test_samples_scored_in_one_arm_only_are_left_out_and_counted():
    d = paired_difference([1, 0, 0, NAN, 1], [1, 1, NAN, 1, 1], binary=True, rng=rng())
    assert (d.n, d.unscored, d.b, d.c) == (3, 2, 0, 1)
    assert d.estimate == pytest.approx(1 / 3)


@pytest.mark.parametrize("binary", [True, False])
def test_fewer_than_two_pairs_are_none_with_a_reason(binary):
    for arms in (([], []), ([1.0], [0.0]), ([NAN, 1.0], [1.0, 1.0])):
        d = paired_difference(*arms, binary=binary, rng=rng())
        assert (d.estimate, d.ci, d.p, d.mde80, d.variance) == (None, None, None, None, None)
        assert "at least 2" in d.reason
        assert d.direction() == "unknown"


def test_continuous_differences_without_spread_have_no_interval():
    x = rng().normal(size=30)
    d = paired_difference(x, x, binary=False, rng=rng())
    assert (d.estimate, d.ci, d.p) == (0.0, None, None)
    assert "all values are equal" in d.reason


def test_clustered_standard_error_matches_the_specification():
    iid = np.std(SPEC_D, ddof=1) / math.sqrt(10)
    assert iid == pytest.approx(0.213437, abs=1e-6)
    assert clustered_standard_error(SPEC_D, SPEC_CLUSTERS) == pytest.approx(0.307815, abs=1e-6)
    assert clustered_standard_error([1.0, 2.0], ["a", "a"]) is None


def test_clusters_of_one_sample_give_the_iid_standard_error():
    x = rng().normal(size=40)
    assert clustered_standard_error(x, list(range(40))) == pytest.approx(np.std(x, ddof=1) / math.sqrt(40))


def test_copied_samples_in_clusters_do_not_narrow_the_interval():
    x = rng().normal(0.3, 1.0, size=20)
    once = paired_difference(np.zeros(20), x, binary=False, rng=rng())
    copied = paired_difference(
        np.zeros(200), np.repeat(x, 10), binary=False, clusters=np.repeat(np.arange(20), 10).tolist(), rng=rng()
    )
    assert copied.ci == pytest.approx(once.ci)
    assert (copied.method, copied.df, copied.n_clusters) == ("clustered-t", 19, 20)


def test_the_wider_of_clustered_and_iid_is_reported():
    balanced = [1.0, -1.0] * 20  # each cluster sums to 0: the clustered error alone would be 0
    d = paired_difference([0.0] * 40, balanced, binary=False, clusters=np.repeat(np.arange(20), 2).tolist(), rng=rng())
    assert d.method == "paired-t"
    assert d.variance > 0
    assert d.p == 1.0


def test_few_clusters_warn_and_fewer_than_six_support_no_verdict():
    for n_clusters, is_testable in ((5, False), (6, True), (9, True)):
        clusters = np.repeat(np.arange(n_clusters), 40).tolist()
        n = len(clusters)
        d = paired_difference(np.zeros(n), np.ones(n), binary=True, clusters=clusters, rng=rng())
        assert d.is_testable is is_testable
        assert "only" in d.warnings[0]
        assert (d.direction() == "unknown") is not is_testable
        assert d.p == pytest.approx(2 / 2**n_clusters)
    assert "cannot reach" in paired_difference([0] * 5, [1] * 5, binary=True, clusters=range(5), rng=rng()).reason


def test_one_cluster_is_no_comparison():
    d = paired_difference([0, 0, 0], [1, 1, 1], binary=True, clusters=["a", "a", "a"], rng=rng())
    assert (d.estimate, d.ci, d.p) == (1.0, None, None)
    assert "1 cluster" in d.reason


def test_clusters_that_are_all_unknown_are_no_clusters():
    reference, treatment = binary_pair(2, 9, 40)
    d = paired_difference(reference, treatment, binary=True, clusters=[None] * 40, rng=rng())
    assert d == paired_difference(reference, treatment, binary=True, rng=rng())


def test_unknown_clusters_among_known_ones_stand_for_themselves():
    d = paired_difference([0] * 8, [1] * 8, binary=True, clusters=["a", "a", None, None, "b", "b", "c", "d"], rng=rng())
    assert d.n_clusters == 6


def test_sign_flip_is_exact_for_few_and_seeded_for_many_clusters():
    assert sign_flip_test([1.0] * 6, rng()) == 2 / 2**6
    assert sign_flip_test([3.0, -1.0], rng()) == 1.0  # |2| is reached by all four flips
    assert sign_flip_test([0.0, 0.0], rng()) == 1.0
    many = rng().normal(0.2, 1.0, size=50)
    assert sign_flip_test(many, rng()) == sign_flip_test(many, rng())
    assert sign_flip_test(np.ones(50), rng()) == pytest.approx(1 / 10_001)


def test_random_sign_flips_agree_with_the_enumeration():
    sums = rng().normal(0.4, 1.0, size=16)
    exact = sign_flip_test(sums, rng())
    sampled = sign_flip_test(np.append(sums, 1e-12), rng())  # a seventeenth cluster, too small to matter
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000))  # four standard errors


def test_arms_of_unlike_length_are_refused():
    with pytest.raises(ValueError, match="pair them by sample id"):
        paired_difference([1, 0], [1], binary=True, rng=rng())
    with pytest.raises(ValueError, match="3 clusters for 2 scores"):
        paired_difference([1, 0], [1, 1], binary=True, clusters=["a", "b", "c"], rng=rng())


@pytest.mark.parametrize(
    ("loss", "gain", "shape", "low", "high"),
    [
        (0.05, 0.10, "interval", 0.10581, 1.07575),
        (0.05, 0.02, "complement", -2.15320, 0.39362),
        (0.01, 0.02, "all_reals", None, None),
    ],
)
def test_fieller_matches_the_specification(loss, gain, shape, low, high):
    found = fieller(gain, loss, 0.0004, 0.0004, critical=1.96)  # the vectors round z
    assert found.shape == shape
    if low is None:
        assert (found.low, found.high) == (None, None)
    else:
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)


def test_fieller_limits_are_the_ratios_at_the_edge_of_the_test():
    found = fieller(0.10, 0.05, 0.0004, 0.0003, covariance=0.0001, critical=2.1)
    for r in (found.low, found.high):
        assert (0.05 - r * 0.10) ** 2 == pytest.approx(2.1**2 * (0.0003 + r * r * 0.0004 - 2 * r * 0.0001))


def test_fieller_set_of_a_gain_of_exactly_zero_is_the_whole_line():
    assert fieller(0.0, 0.0, 0.0, 0.0).shape == "all_reals"


def test_net_benefit_matches_the_specification():
    nb = net_benefit(0.10, 0.05, 0.0004, 0.0004, weight=1)
    assert (nb.estimate, *nb.ci, nb.p_positive) == pytest.approx((0.05, -0.0054, 0.1054, 0.9615), abs=5e-5)
    assert net_benefit(0.10, 0.05, 0.0004, 0.0004, weight=0.5).p_positive == pytest.approx(0.5)


def test_net_benefit_is_surer_where_gain_and_loss_move_together():
    apart = net_benefit(0.10, 0.05, 0.0004, 0.0004, weight=1)
    together = net_benefit(0.10, 0.05, 0.0004, 0.0004, weight=1, covariance=0.0002)
    assert together.p_positive > apart.p_positive


def test_covariance_of_a_mean_with_itself_is_its_variance():
    x, clusters = rng().normal(size=30), np.repeat(np.arange(10), 3).tolist()
    assert paired_covariance(x, clusters, x, clusters) == pytest.approx(clustered_standard_error(x, clusters) ** 2)
    assert paired_covariance(x, clusters, x, [f"other {c}" for c in clusters]) == 0.0


def test_bounds_without_unscored_samples_are_the_difference():
    assert unscored_bounds([0, 1, 1, 0], [1, 1, 1, 0]) == (0.25, 0.25)


def test_bounds_put_unscored_samples_at_their_worst_and_best():
    assert unscored_bounds([0, NAN], [1, 1]) == (0.5, 1.0)
    assert unscored_bounds([NAN, 0], [NAN, 0]) == (-0.5, 0.5)
    assert unscored_bounds([0, 0], [1, 1], missing=2) == (0.0, 1.0)
    assert unscored_bounds([], []) is None


def test_bounds_contain_every_completion():
    g = rng()
    full = g.integers(0, 2, (2, 30)).astype(float)
    holes = np.where(g.random((2, 30)) < 0.2, NAN, full)
    low, high = unscored_bounds(holes[0], holes[1])
    assert low <= np.mean(full[1] - full[0]) <= high


def test_holm_is_monotone_bounded_and_keeps_the_order():
    assert holm([]) == ()
    assert holm([0.5]) == (0.5,)
    assert holm([0.9, 0.001, 0.8]) == pytest.approx((1.0, 0.003, 1.0))
    with pytest.raises(ValueError, match="p-values must lie"):
        holm([NAN])


def test_every_result_is_json_without_nan():
    for d in (
        paired_difference([NAN], [1.0], binary=True, rng=rng()),
        paired_difference(*binary_pair(1, 2, 30), binary=True, clusters=list(range(30)), rng=rng()),
        paired_difference(np.arange(9.0), np.arange(9.0) ** 2, binary=False, rng=rng()),
        mean([]),
    ):
        assert json.loads(json.dumps(d.to_dict(), allow_nan=False)) == d.to_dict()


def test_a_clustered_interval_of_shares_stays_within_them():
    clusters = np.repeat(np.arange(6), 10).tolist()
    treatment = np.repeat([1, 1, 1, 1, 0, 0], 10)
    d = paired_difference(np.zeros(60), treatment, binary=True, clusters=clusters, rng=rng())
    assert d.method == "clustered-t"
    assert d.estimate + d.critical * d.variance**0.5 > 1
    assert d.ci[1] == 1.0


def test_a_rate_in_one_cluster_has_no_interval():
    e = proportion([1] * 45 + [0] * 15, clusters=["a"] * 60)
    assert (e.value, e.low, e.high) == (0.75, None, None)
    assert "1 cluster" in e.reason


def test_a_rate_of_equal_scores_counts_clusters_not_samples():
    clusters = np.repeat(np.arange(3), 20).tolist()
    e = proportion([1] * 60, clusters=clusters)
    three = proportion([1] * 3)
    assert (e.value, e.low, e.high, e.n) == (1.0, three.low, 1.0, 60)
    none = proportion([0] * 60, clusters=clusters)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - three.low))


def test_a_rate_takes_the_wider_of_both_intervals():
    clusters = np.repeat(np.arange(10), 10).tolist()
    by_cluster = proportion(np.repeat([1, 0] * 5, 10), clusters=clusters)
    plain = proportion(np.repeat([1, 0] * 5, 10))
    assert by_cluster.low < plain.low
    assert by_cluster.high > plain.high
    mixed = proportion([1, 0] * 50, clusters=clusters)  # no spread between clusters
    assert (mixed.low, mixed.high) == pytest.approx((plain.low, plain.high), abs=0.01)


@pytest.mark.parametrize(("n", "is_testable"), [(4, False), (5, True)])
def test_too_few_pairs_support_no_verdict(n, is_testable):
    d = paired_difference([0] * n, [1] * n, binary=True, rng=rng())
    assert d.is_testable is is_testable
    assert (d.reason is None) is is_testable
    assert d.mde80 is None  # it would lie above a difference of 1
