import numpy as np
import pytest
from scipy import stats

from eval.statistics import estimate, holm, paired_comparison, signed_rank_p_value


def test_interval_of_normal_values():
    values = np.random.default_rng(1).normal(0.4, 0.1, 50)
    interval = estimate(values.tolist())
    half = 1.96 * values.std(ddof=1) / 50**0.5
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.004)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.004)
    assert interval.n == 50


def test_interval_follows_the_seed():
    values = np.random.default_rng(2).exponential(size=15).tolist()
    assert estimate(values) == estimate(values)
    assert estimate(values) != estimate(values, seed=1)


@pytest.mark.parametrize(
    ("values", "mean", "low", "high", "n"),
    [
        ([0.3], 0.3, None, None, 1),
        ([0.5, 0.5, 0.5], 0.5, 0.5, 0.5, 3),
        ([None], None, None, None, 0),
        ([0.3, 0.1 + 0.2, 0.3], 0.3, 0.3, 0.3, 3),  # unlike by rounding alone
    ],
)
def test_few_or_equal_values(values, mean, low, high, n):
    interval = estimate(values)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((mean, low, high))
    assert interval.n == n
    assert interval.low == interval.high  # no width at all


def test_an_interval_stays_within_its_values():
    two = estimate([0.2, 0.4])
    assert 0.2 <= two.low <= two.mean <= two.high <= 0.4
    assert two == estimate([0.2, None, 0.4])  # a value that was not measured is left out
    outlier = estimate([0.0] * 9 + [1.0])
    assert 0 <= outlier.low < 0.1 < outlier.high < 1


def test_an_interval_without_an_end_ends_at_the_mean():
    with np.errstate(invalid="ignore"), pytest.warns(stats.DegenerateDataWarning):
        interval = estimate([0.0] * 11 + [2e-10])
    assert np.isfinite([interval.low, interval.high]).all()


def test_paired_comparison_of_known_values():
    a, b = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1], [0.5] * 6
    always = paired_comparison(a, b)
    assert always.p_value == pytest.approx(2 / 2**6)  # the exact two-sided test
    assert always.difference.mean == pytest.approx(0.35)
    assert paired_comparison(b, a).difference.mean == pytest.approx(-0.35)
    # differences 1, 2, -3: ranks 1 + 2 against 3
    assert paired_comparison([1, 2, 0], [0, 0, 3]).p_value == 1


def test_paired_comparison_without_differences_or_pairs():
    same = paired_comparison([0.1, 0.2], [0.1, 0.2])
    assert (same.p_value, same.difference.mean) == (1, 0)
    none = paired_comparison([None, 0.1], [0.2, None])
    assert (none.p_value, none.difference.n) == (None, 0)


def test_holm_of_known_values():
    # sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, then monotonic from the smallest up
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(
    "differences",
    [
        *(np.random.default_rng(4).normal(0.5, 1, n).tolist() for n in (10, 60)),
        [0.1, 0.2, -0.1, 0.3],
        [0.0, 0.1, -0.2, 0.3],
        [0.0, 0.1, 0.1, -0.2, 0.3],
    ],
)
def test_signed_rank_tests_are_those_of_scipy(differences):
    expected = float(stats.wilcoxon(differences).pvalue)
    assert signed_rank_p_value(differences) == pytest.approx(expected)


def test_ties_are_exact_and_found_in_decimals():
    tied = [0.1, 0.1, -0.1, 0.2, 0.2, 0.3, 0.4, -0.2, 0.5, 0.5, 0.6]
    exact = stats.wilcoxon(tied, method=stats.PermutationMethod(n_resamples=10**9)).pvalue
    assert signed_rank_p_value(tied) == pytest.approx(exact)
    in_binary = [0.55 - 0.50, 0.35 - 0.30, 0.40 - 0.35, 0.2, 0.3, -0.1 - 0.1]
    in_decimals = [0.05, 0.05, 0.05, 0.2, 0.3, -0.2]
    assert signed_rank_p_value(in_binary) == signed_rank_p_value(in_decimals)
    no_difference = (0.1 + 0.2) / 2 - (0.15 + 0.15) / 2
    assert no_difference != 0
    assert signed_rank_p_value([no_difference] * 6) == 1
    assert signed_rank_p_value([]) is None
