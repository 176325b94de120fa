"""Means over identities with their uncertainty, and paired comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

CONFIDENCE = 0.95
BLOCK = 128  # samples that are resampled together: with 200 resamples at a time, what a cache holds
EXACT = 50  # pairs up to which a signed-rank test is exact, as scipy's is without ties


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
    """Return the mean of one value per identity with its bias-corrected bootstrap interval.

    None (nothing could be measured) is left out, and `n` says how many values remain. Equal values
    have an interval without width, a single value none.
    """
    return estimates([values], seed=seed)[0]


def estimates(samples: Sequence[Sequence[float | None]], *, seed: int = 0) -> list[Estimate]:
    """Return the `estimate` of every sample; together they take a fraction of the time."""
    present = [tuple(float(value) for value in values if value is not None) for values in samples]
    # equal samples, as of an unprotected victim beside many methods, are resampled once
    found = {values: _without_interval(values) for values in dict.fromkeys(present)}
    resampled = [values for values, done in found.items() if not done]
    for n in sorted({len(values) for values in resampled}):
        every = [values for values in resampled if len(values) == n]
        for rows in (every[k : k + BLOCK] for k in range(0, len(every), BLOCK)):
            for values, *ends in zip(rows, *_bootstrap(np.array(rows), seed), strict=True):
                mean = fmean(values)
                # BCa has no end where nearly all resamples are equal
                low, high = (float(end) if np.isfinite(end) else mean for end in ends)
                found[values] = Estimate(mean=mean, low=low, high=high, n=n)
    return [found[values] for values in present]


def _without_interval(values: Sequence[float]) -> Estimate | None:
    """The estimate of a sample that has nothing to draw from; None for all others."""
    if len(values) < 2:
        return Estimate(mean=values[0] if values else None, low=None, high=None, n=len(values))
    mean = fmean(values)
    # what the bootstrap, which rounds its means, cannot tell apart either
    if np.allclose(values, mean, rtol=1e-9, atol=1e-10):
        return Estimate(mean=mean, low=mean, high=mean, n=len(values))
    return None


def _bootstrap(samples: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the BCa intervals of the means of the rows of (samples, n)."""
    from scipy import stats  # takes a second, which a table of one identity need not spend

    interval = stats.bootstrap(
        (samples,),
        _mean,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="BCa",
        batch=200,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return interval.low, interval.high


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean without its last bits, in which equal resamples differ with what stands beside."""
    return np.round(np.mean(values, axis=axis), 10)


def paired_comparison(
    a: Sequence[float | None], b: Sequence[float | None], *, seed: int = 0
) -> Comparison:
    """Return the Wilcoxon signed-rank test of two scores of the same identities, in the same order.

    Pairs in which either is None are left out. Where nothing differs the p-value is 1, without any
    pair it is None.
    """
    pairs = [pair for pair in zip(a, b, strict=True) if None not in pair]
    differences = [x - y for x, y in pairs]
    return Comparison(
        difference=estimate(differences, seed=seed),
        p_value=signed_rank_p_values([differences])[0],
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number, so that any false rejection among all of them
    is as rare as the level says (Holm 1979).
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.take(p_values, order) * factors), 1)
    return adjusted.tolist()


def signed_rank_p_values(differences: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Return the p-value of the Wilcoxon signed-rank test of each row of paired differences; many
    rows take a fraction of the time. None where no pair is left, 1 where nothing differs.

    Differences are compared to 9 decimals: scores have fewer, and what is equal in decimals, such
    as 0.55 - 0.50 and 0.35 - 0.30, is not in binary.
    """
    from scipy import stats

    rows = [[round(value, 9) for value in row if value is not None] for row in differences]
    found: list[float | None] = [1.0 if row else None for row in rows]
    # the test leaves zeros out, but takes a second over a row that has any
    signed = {i: [value for value in row if value] for i, row in enumerate(rows)}
    # ties need another null distribution than the others of their length
    tied = {i for i, row in signed.items() if len({*map(abs, row)}) < len(row)}
    plain = [i for i, row in signed.items() if row and i not in tied]
    for n in sorted({len(signed[i]) for i in plain}):
        alike = [i for i in plain if len(signed[i]) == n]
        p_values = stats.wilcoxon(np.array([signed[i] for i in alike]), axis=-1).pvalue
        for i, p_value in zip(alike, p_values, strict=True):
            found[i] = float(p_value)
    for i in tied:
        few = len(signed[i]) <= EXACT
        found[i] = _tied_p_value(signed[i]) if few else float(stats.wilcoxon(signed[i]).pvalue)
    return found


def signed_rank_sum(differences: Sequence[float]) -> float:
    """Return the sum of the signed ranks of paired differences: above 0 where the test speaks for
    the differences' being above 0. They are compared as `signed_rank_p_values` does.
    """
    from scipy.stats import rankdata

    values = np.round(differences, 9)
    values = values[values != 0]
    return float((rankdata(np.abs(values)) * np.sign(values)).sum())


def _tied_p_value(differences: Sequence[float]) -> float:
    """The exact p-value of the signed-rank test of differences without zeros, of which some have
    equal sizes and so share a mean rank; scipy's takes a second where it is exact at all.
    """
    from scipy.stats import rankdata

    doubled = np.rint(2 * rankdata(np.abs(differences))).astype(int)  # mean ranks are halves
    chances = np.ones(1)  # of each sum of the ranks whose differences are positive
    for rank in doubled:
        chances = np.pad(chances, (0, rank)) / 2 + np.pad(chances, (rank, 0)) / 2
    found = doubled[np.array(differences) > 0].sum()
    return float(min(1, 2 * min(chances[: found + 1].sum(), chances[found:].sum())))
