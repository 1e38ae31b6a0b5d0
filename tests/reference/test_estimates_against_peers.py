"""The intervals and tests give the numbers of statsmodels and scipy where those implement the same."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as peer_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from sst_merge.estimates import mean, paired_difference, proportion
from sst_merge.p_values import holm, mcnemar, sign_flip_test


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("x", "n"), [(82, 2000), (1, 30), (29, 30), (0, 50), (50, 50), (3, 12), (0, 1)])
def test_proportion_is_wilson_or_beta_of_statsmodels(x, n, level):
    e = proportion([1] * x + [0] * (n - x), level)
    peer = {"wilson": "wilson", "clopper-pearson": "beta"}[e.method]
    assert (e.low, e.high) == pytest.approx(proportion_confint(x, n, alpha=1 - level, method=peer), abs=1e-12)


@pytest.mark.parametrize(("b", "c"), [(0, 2), (10, 12), (0, 6), (5, 5), (40, 100)])
def test_exact_mcnemar_is_that_of_statsmodels(b, c):
    peer = peer_mcnemar([[7, b], [c, 9]], exact=True)
    assert mcnemar(b, c)[0] == pytest.approx(peer.pvalue, abs=1e-12)


def test_mid_p_lies_between_half_the_exact_p_and_the_exact_p():
    for b in range(8):
        for c in range(8):
            exact, mid_p = mcnemar(b, c)
            assert exact / 2 - 1e-12 <= mid_p <= exact + 1e-12  # rounding


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_continuous_difference_is_the_paired_t_of_scipy(level):
    g = np.random.default_rng(1)
    reference, treatment = g.normal(size=37), g.normal(0.4, 1.3, size=37)
    d = paired_difference(reference, treatment, binary=False, level=level, rng=g)
    peer = stats.ttest_rel(treatment, reference)
    interval = peer.confidence_interval(level)
    assert (d.p, *d.ci) == pytest.approx((peer.pvalue, interval.low, interval.high))
    assert d.df == peer.df


def test_mean_is_the_one_sample_t_of_scipy():
    x = np.random.default_rng(2).normal(size=23)
    interval = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    e = mean(x)
    assert (e.low, e.high) == pytest.approx((interval.low, interval.high))


def test_sign_flips_are_the_permutation_test_of_scipy():
    sums = np.random.default_rng(3).normal(0.5, 1.0, size=9)
    peer = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_test(sums, np.random.default_rng(0)) == pytest.approx(peer.pvalue)


def test_holm_is_that_of_statsmodels():
    p = np.random.default_rng(4).random(12) ** 3
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1])
