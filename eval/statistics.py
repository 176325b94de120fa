"""Means over identities with their uncertainty, and paired comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

CONFIDENCE = 0.95


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
    effect: float | None  # matched-pairs rank-biserial correlation in [-1, 1]: 1 if always a > b


def estimate(values: Sequence[float | None], *, seed: int = 0) -> Estimate:
    """Return the mean of one value per identity with its bias-corrected bootstrap interval.

    None (nothing could be measured) is left out, and `n` says how many values remain. Equal values
    have an interval without width, a single value none.
    """
    present = [float(value) for value in values if value is not None]
    if not present:
        return Estimate(mean=None, low=None, high=None, n=0)
    mean, n = fmean(present), len(present)
    if n == 1:
        return Estimate(mean=mean, low=None, high=None, n=1)
    if np.allclose(present, mean, rtol=1e-9, atol=1e-12):
        return Estimate(mean=mean, low=mean, high=mean, n=n)
    from scipy import stats  # takes a second, which a table of one identity need not spend

    interval = stats.bootstrap(
        (np.array(present),),
        np.mean,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean=mean, low=float(interval.low), high=float(interval.high), n=n)


def paired_comparison(
    a: Sequence[float | None], b: Sequence[float | None], *, seed: int = 0
) -> Comparison:
    """Return the Wilcoxon signed-rank test of two scores of the same identities, in the same order.

    Pairs in which either is None are left out. Where nothing differs the p-value is 1 and the
    effect 0; without any pair both are None.
    """
    pairs = [pair for pair in zip(a, b, strict=True) if None not in pair]
    differences = np.array([x - y for x, y in pairs])
    difference = estimate(differences.tolist(), seed=seed)
    if not len(differences):
        return Comparison(difference=difference, p_value=None, effect=None)
    if not differences.any():
        return Comparison(difference=difference, p_value=1.0, effect=0.0)
    from scipy import stats

    ranks = stats.rankdata(np.abs(differences[differences != 0]))
    signs = np.sign(differences[differences != 0])
    return Comparison(
        difference=difference,
        p_value=float(stats.wilcoxon(differences).pvalue),
        effect=float((ranks * signs).sum() / ranks.sum()),
    )


def adjusted_p_values(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number (Benjamini-Hochberg false discovery rate)."""
    from scipy import stats

    return stats.false_discovery_control(list(p_values)).tolist() if p_values else []
