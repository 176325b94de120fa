import numpy as np
import pytest
from scipy import stats

from eval.statistics import (
    estimate,
    estimates,
    holm,
    paired_comparison,
    signed_rank_p_values,
)


def test_interval_of_normal_values():
    values = np.random.default_rng(1).normal(0.4, 0.1, 50)
    found = estimate(values.tolist())
    half = 1.96 * values.std(ddof=1) / 50**0.5
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.004)
    assert found.high == pytest.approx(values.mean() + half, abs=0.004)
    assert found.n == 50


def test_interval_follows_the_seed():
    values = np.random.default_rng(2).exponential(size=15).tolist()
    assert estimate(values) == estimate(values)
    assert estimate(values) != estimate(values, seed=1)


def test_few_or_equal_values():
    alone = estimate([0.3])
    assert (alone.mean, alone.low, alone.high, alone.n) == (0.3, None, None, 1)
    equal = estimate([0.5, 0.5, 0.5])
    assert (equal.mean, equal.low, equal.high) == (0.5, 0.5, 0.5)
    two = estimate([0.2, 0.4])
    assert 0.2 <= two.low <= two.mean <= two.high <= 0.4


def test_what_was_not_measured_is_left_out():
    assert estimate([0.2, None, 0.4]) == estimate([0.2, 0.4])
    nothing = estimate([None])
    assert (nothing.mean, nothing.low, nothing.n) == (None, None, 0)


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


def test_values_that_differ_by_rounding_alone_have_an_interval_without_width():
    found = estimate([0.3, 0.1 + 0.2, 0.3])
    assert found.low == found.high == pytest.approx(0.3)


def test_many_estimates_are_those_of_each_sample():
    rng = np.random.default_rng(3)
    samples = [rng.exponential(size=n).tolist() for n in (10, 12, 10, 1)]
    # many resamples of few values have equal means
    samples += [rng.normal(30, 9, n).round(6).tolist() for n in (2, 3, 4) for _ in range(20)]
    samples += [[0.2] * 10, [None] * 3, [0.0] * 9 + [1.0]]
    together = estimates(samples)
    assert [found.n for found in together[:4]] == [10, 12, 10, 1]
    for sample, found in zip(samples, together, strict=True):
        alone = estimate(sample)
        assert found.mean == alone.mean
        assert [found.low, found.high] == pytest.approx([alone.low, alone.high], abs=1e-9)
    assert 0 <= together[-1].low < 0.1 < together[-1].high < 1


def test_holm_of_known_values():
    # sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, then monotonic from the smallest up
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_many_signed_rank_tests_are_those_of_each_pair():
    rng = np.random.default_rng(4)
    rows = [rng.normal(0.5, 1, n).tolist() for n in (10, 10, 60)]
    rows += [[0.1, 0.2, -0.1, 0.3], [0.0, 0.1, -0.2, 0.3], [0.0, 0.1, 0.1, -0.2, 0.3]]
    expected = [float(stats.wilcoxon(row).pvalue) for row in rows]
    assert signed_rank_p_values(rows) == pytest.approx(expected)
    assert signed_rank_p_values([[0.0, 0.0], [None, 0.5, 0.25], [None], []]) == [1, 0.5, None, None]
    assert signed_rank_p_values([]) == []


def test_ties_are_exact_and_found_in_decimals():
    tied = [0.1, 0.1, -0.1, 0.2, 0.2, 0.3, 0.4, -0.2, 0.5, 0.5, 0.6]
    exact = stats.wilcoxon(tied, method=stats.PermutationMethod(n_resamples=10**9)).pvalue
    assert signed_rank_p_values([tied]) == [pytest.approx(exact)]
    in_binary = [0.55 - 0.50, 0.35 - 0.30, 0.40 - 0.35, 0.2, 0.3, -0.1 - 0.1]
    assert signed_rank_p_values([in_binary]) == signed_rank_p_values(
        [[0.05, 0.05, 0.05, 0.2, 0.3, -0.2]]
    )
    no_difference = (0.1 + 0.2) / 2 - (0.15 + 0.15) / 2
    assert no_difference != 0
    assert signed_rank_p_values([[no_difference] * 6]) == [1]


def test_an_interval_without_an_end_ends_at_the_mean():
    with np.errstate(invalid="ignore"), pytest.warns(stats.DegenerateDataWarning):
        found = estimate([0.0] * 11 + [2e-10])
    assert np.isfinite([found.low, found.high]).all()
