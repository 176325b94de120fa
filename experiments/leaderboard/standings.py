"""Samples as rows of a leaderboard: means over identities, paired tests, ranks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from eval.metrics import METRICS
from eval.statistics import Estimate, estimate, holm, signed_rank_p_value, signed_rank_sum
from experiments.leaderboard.names import Setting
from experiments.leaderboard.samples import (
    FEWEST,
    SCORES,
    UNPROTECTED,
    Runs,
    joined,
    runs_of,
    samples,
    usual_people,
)
from experiments.records.files import natural
from experiments.records.record import Scored

SCORE = "identity_retention"  # the score that ranks
PLACEBO = "noise"
LEVEL = 0.05
TESTS = ("against_placebo", "against_best")
SIGN = -1 if METRICS[SCORE]["direction"] == "lower" else 1  # of better scores


class StandingsError(ValueError):
    """Records cannot stand together; the message names them."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """A paired comparison of the ranking score.

    `mean` is that of the differences, the row's score less the opponent's, over the identities and
    seeds that both have. The p-value is corrected for all tests of a group against the opponent. It
    is None unless both methods can be ranked.
    """

    mean: Estimate
    p_value: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method at a budget in a setting.

    `scores` has the metrics that were measured, `tests` those of TESTS that were made. `unranked`
    is the reason why the row has no rank; it may be empty. The means of a row that is not
    `comparable` are over other people or seeds than those of most rows. `other_photos` names the
    people whose photos differ from those of most rows.
    """

    setting: Setting
    eps: float
    attack: str
    method: str
    runs: Runs
    scores: Mapping[str, Estimate]
    records: tuple[str, ...]
    processors: tuple[str, ...]
    other_photos: tuple[str, ...]
    comparable: bool
    unranked: str = ""
    rank: int | None = None
    tests: Mapping[str, Test] = field(default_factory=dict)

    @property
    def is_unprotected(self) -> bool:
        return self.attack == UNPROTECTED

    @property
    def identities(self) -> tuple[str, ...]:
        return tuple(identity for identity, _ in self.runs)

    @property
    def seeds(self) -> int:
        return max(len(seeds) for _, seeds in self.runs)

    @property
    def score(self) -> Estimate:
        return self.scores.get(SCORE) or estimate([])


def standings(records: Iterable[Scored]) -> list[Row]:
    """Return the rows of records: settings and budgets in order, then the best method first.

    Rows that are not comparable come last in their group, a budget of a setting. Raises
    StandingsError for two records of one row, identity and seed.
    """
    records = sorted(records, key=lambda record: record.name)
    places: dict[tuple, str] = {}
    for record in records:
        place = (*record.row_key, record.identity, record.seed)
        if places.setdefault(place, record.name) != record.name:
            raise StandingsError(
                f"{places[place]} and {record.name} are of one row, identity ({record.identity}) "
                f"and seed ({record.seed}): delete one"
            )
    groups = samples(records).groupby(["setting", "eps"], sort=False)
    return [row for _, group in groups for row in _ranked(group)]


def _ranked(group: pd.DataFrame) -> list[Row]:
    """Return the rows of a group of samples in their order, with ranks and tests."""
    scores = group.pivot(index="identity", columns=["key", "seed"], values=SCORE)
    scores = scores.loc[sorted(scores.index, key=natural)]
    rows = _rows(group)
    order = list(rows)
    protected = [key for key in order if not rows[key].is_unprotected]
    fit = [key for key in order if not rows[key].unranked]
    # of several variants the one that is named like the placebo, else the one that protects best
    placebos = [key for key in order if rows[key].attack == PLACEBO]
    placebo = min(placebos, key=lambda key: rows[key].method != PLACEBO, default=None)
    for name, opponent in zip(TESTS, (placebo, next(iter(fit), None)), strict=True):
        p_values = _p_values(fit, opponent, scores) if opponent in fit else {}
        for key, values in _differences(protected, opponent, scores).items():
            test = Test(mean=_rounded(estimate(values)), p_value=p_values.get(key))
            rows[key] = replace(rows[key], tests={**rows[key].tests, name: test})
    if fit and (reason := _undecidable(len(fit), max(rows[key].score.n for key in fit))):
        rows |= {key: replace(rows[key], unranked=reason) for key in fit}
        fit = []
    rows |= {key: replace(rows[key], rank=rank) for key, rank in _ranks(fit, scores).items()}
    return sorted(
        rows.values(), key=lambda row: (not row.comparable, bool(row.unranked), row.rank or 0)
    )


def _rows(group: pd.DataFrame) -> dict[str, Row]:
    """Return the rows of a group by their methods' keys, the best mean first, without ranks."""
    methods = dict(list(group.groupby("key")))
    # means are compared over the people who have the score that ranks
    people = {
        key: runs_of(sample.dropna(subset=SCORE)) or runs_of(sample)
        for key, sample in methods.items()
    }
    usual = usual_people([people[key] for key in methods if key != UNPROTECTED] or people.values())
    photos = _other_photos(group)
    rows = {}
    for key, sample in methods.items():
        first = sample.iloc[0]
        values = sample.groupby("identity", sort=False)[SCORES].mean()  # over the seeds
        present = {metric: values[metric].dropna().tolist() for metric in SCORES}
        row = Row(
            setting=first["setting"],
            eps=float(first["eps"]),
            attack=first["attack"],
            method=first["method"],
            runs=runs_of(sample),
            scores={metric: _rounded(estimate(v)) for metric, v in present.items() if v},
            records=joined(sample["records"]),
            processors=tuple(sorted(joined(sample["processors"]))),
            other_photos=photos.get(key, ()),
            comparable=people[key] == usual,
        )
        rows[key] = replace(row, unranked=_reason(row))
    return dict(sorted(rows.items(), key=lambda item: _best_first(item[1])))


def _other_photos(group: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return, by methods' keys, the people whose photos are not those of most methods."""
    photos = group[["key", "identity", "photos"]].explode("photos").dropna().drop_duplicates()
    counts = photos.groupby(["identity", "photos"]).size().sort_values(kind="stable")
    usual = counts.groupby(level="identity").tail(1).index
    unusual = photos[~photos.set_index(["identity", "photos"]).index.isin(usual)]
    return {
        key: tuple(sorted(identities.unique(), key=natural))
        for key, identities in unusual.groupby("key")["identity"]
    }


def _reason(row: Row) -> str:
    if row.is_unprotected:
        return "no protection"
    if not row.score.n:
        return f"no {SCORE.replace('_', ' ')}"
    if row.score.n < FEWEST:
        return f"fewer than {FEWEST} identities"
    return "" if row.comparable else "other identities or seeds"


def _undecidable(methods: int, identities: int) -> str:
    """Return why no test of these methods against one of them could tell anything, or nothing.

    The least p-value of a signed-rank test is 2 of the 2^n signs, times the number of tests.
    """
    least = (methods - 1) * 2.0 ** (1 - identities)
    return "" if least < LEVEL else f"{identities} identities are too few for {methods} methods"


def _best_first(row: Row) -> tuple[bool, float, str]:
    mean = row.score.mean
    return mean is None, -SIGN * (mean or 0), row.method


def _ranks(fit: Sequence[str], scores: pd.DataFrame) -> dict[str, int]:
    """Return the rank of each row of `fit`, which is in order of the means.

    The best row and the rows that no test puts behind it share its rank; then the same goes for the
    others. A few people may make the best mean, and the test speak for another row.
    """
    ranks, left = {}, list(fit)
    while left:
        differences = _differences(left, left[0], scores)
        behind = [
            key
            for key, p_value in _p_values(left, left[0], scores).items()
            if p_value < LEVEL and SIGN * signed_rank_sum(differences[key]) < 0
        ]
        ranks |= {key: len(ranks) + 1 for key in left if key not in behind}
        left = [key for key in left if key in behind]
    return ranks


def _p_values(fit: Sequence[str], opponent: str, scores: pd.DataFrame) -> dict[str, float]:
    """Return the p-value of each row of `fit` against the opponent, corrected for their number."""
    differences = _differences(fit, opponent, scores)
    p_values = {k: signed_rank_p_value(v) for k, v in differences.items() if len(v) >= FEWEST}
    corrected = holm(list(p_values.values()))
    return {key: _digits(p_value) for key, p_value in zip(p_values, corrected, strict=True)}


def _differences(
    keys: Iterable[str], opponent: str | None, scores: pd.DataFrame
) -> dict[str, list[float]]:
    """Return methods' scores less the opponent's for the identities that both have, if any has.

    Each is over the seeds that both have: the victims of one seed start from the same noise.
    """
    differences = {
        key: (scores[key] - scores[opponent]).mean(axis=1).dropna().tolist()
        for key in keys
        if opponent not in (None, key)
    }
    return {key: values for key, values in differences.items() if values}


def _rounded(values: Estimate) -> Estimate:
    """Return an estimate with as many digits as records have.

    The last bits of a machine's sums do not reach these.
    """
    ends = {end: _digits(getattr(values, end)) for end in ("mean", "low", "high")}
    return replace(values, **ends)


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
