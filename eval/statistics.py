"""Means over identities with their uncertainty, and paired comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

CONFIDENCE = 0.95
EXACT = 50  # pairs up to which a signed-rank test is exact
DECIMALS = 9  # of differences that are compared; scores have fewer


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval; None where there are too few values for one."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A paired test of `a - b`."""

    difference: Estimate
    p_value: float | None


def estimate(values: Sequence[float | None], *, seed: int = 0) -> Estimate:
    """Return the mean of one value per identity with its bias-corrected bootstrap interval (BCa).

    None, a value that could not be measured, is left out; `n` counts the remaining values. The
    interval of equal values has no width. A single value has no interval.
    """
    values = [float(value) for value in values if value is not None]
    n = len(values)
    if n < 2:
        return Estimate(mean=values[0] if values else None, low=None, high=None, n=n)
    mean = fmean(values)
    # the bootstrap rounds its means, so it cannot tell such values apart
    if np.allclose(values, mean, rtol=1e-9, atol=1e-10):
        return Estimate(mean=mean, low=mean, high=mean, n=n)
    from scipy import stats  # takes a second, which a table of one identity need not spend

    interval = stats.bootstrap(
        (np.array(values),),
        _rounded_mean,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="BCa",
        batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    # BCa has no end where nearly all resamples are equal
    low, high = (float(end) if np.isfinite(end) else mean for end in interval)
    return Estimate(mean=mean, low=low, high=high, n=n)


def _rounded_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean without the last bits, in which resamples of equal values may differ."""
    return np.round(np.mean(values, axis=axis), 10)


def paired_comparison(
    a: Sequence[float | None], b: Sequence[float | None], *, seed: int = 0
) -> Comparison:
    """Return the Wilcoxon signed-rank test of two scores of the same identities, in one order.

    Pairs in which either is None are left out. If nothing differs the p-value is 1, without any
    pair it is None.
    """
    pairs = [pair for pair in zip(a, b, strict=True) if None not in pair]
    differences = [x - y for x, y in pairs]
    return Comparison(
        difference=estimate(differences, seed=seed), p_value=signed_rank_p_value(differences)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979).

    The chance of any false rejection among all tests is then at most the level.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.take(p_values, order) * factors), 1)
    return adjusted.tolist()


def signed_rank_p_value(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the Wilcoxon signed-rank test of paired differences.

    It is None without any difference, and 1 if all are zero; other zeros are left out. Up to EXACT
    differences the test is exact, also where differences of equal size share a mean rank.
    Differences that are equal in decimals are equal, although 0.55 - 0.50 and 0.35 - 0.30 are not
    in binary.
    """
    if not len(differences):
        return None
    ranks, signs = _signed_ranks(differences)
    if not len(ranks):
        return 1.0
    if len(ranks) > EXACT:
        from scipy import stats

        values = np.round(differences, DECIMALS)
        return float(stats.wilcoxon(values[values != 0]).pvalue)
    doubled = np.rint(2 * ranks).astype(int)  # mean ranks are halves
    chances = np.ones(1)  # of each sum of the doubled ranks of positive differences
    for rank in doubled:
        chances = np.pad(chances, (0, rank)) / 2 + np.pad(chances, (rank, 0)) / 2
    total = doubled[signs > 0].sum()
    return float(min(1, 2 * min(chances[: total + 1].sum(), chances[total:].sum())))


def signed_rank_sum(differences: Sequence[float]) -> float:
    """Return the sum of the signed ranks of paired differences.

    It is above 0 if the signed-rank test says that the differences are above 0.
    """
    ranks, signs = _signed_ranks(differences)
    return float((ranks * signs).sum())


def _signed_ranks(differences: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks of the sizes of the differences that are not 0, and their signs."""
    from scipy.stats import rankdata

    values = np.round(differences, DECIMALS)
    values = values[values != 0]
    return rankdata(np.abs(values)), np.sign(values)
