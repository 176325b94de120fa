"""Samples as rows of a leaderboard: means over identities, paired tests, ranks."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from eval.metrics import METRICS
from eval.statistics import Estimate, estimates, holm, signed_rank_p_values, signed_rank_sum
from experiments.leaderboard.samples import (
    FEWEST,
    Runs,
    Sample,
    Scores,
    groups,
    is_unprotected,
    twins,
    usual_people,
)
from experiments.records.naming import Configuration, configurations

SCORE = "identity_retention"  # what ranks
PLACEBO = "noise"
LEVEL = 0.05
TESTS = ("against_placebo", "against_best")
SCALE = -1 if METRICS[SCORE]["direction"] == "lower" else 1


class StandingsError(ValueError):
    """Records that cannot stand together; the message names them."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """A paired comparison of the ranking score. The p-value is corrected for all tests of a group
    against the same row; None unless both could be ranked.
    """

    differences: Sequence[float]  # of each identity that both have: the row's less the other's
    p_value: float | None = None
    mean: Estimate | None = None  # of the differences


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method at a budget in a setting. `unranked` is the reason why it has no rank, or empty.

    The means of a row that is not `comparable` are over other people or seeds than those of the
    others. `other_photos` names the people whose photos are not those of most rows.
    """

    configuration: Configuration
    records: tuple[str, ...]
    runs: Runs
    seeds: int
    scores: Mapping[str, Estimate]
    comparable: bool = True
    rank: int | None = None
    unranked: str = ""
    processors: tuple[str, ...] = ()
    other_photos: tuple[str, ...] = ()
    against_placebo: Test | None = None
    against_best: Test | None = None

    @property
    def identities(self) -> tuple[str, ...]:
        return tuple(identity for identity, _ in self.runs)

    @property
    def score(self) -> Estimate:
        return self.scores.get(SCORE) or Estimate(mean=None, low=None, high=None, n=0)


def standings(records: Mapping[str, Mapping]) -> list[Row]:
    """Return the rows of named records: settings in order, budgets, then the best method first and
    those that are not comparable last.

    Raises StandingsError for two records of one configuration, identity and seed.
    """
    found = configurations(records)
    for one, other in twins(records, found):
        raise StandingsError(
            f"{one} and {other} are of one configuration, identity ({records[one]['identity']}) "
            f"and seed ({records[one]['seed']}): delete one"
        )
    grouped = list(groups(records, found))
    samples = [sample for group in grouped for sample in group]
    values = [sample.values() for sample in samples]
    cells = [(i, metric) for i, of in enumerate(values) for metric in of]
    means = estimates([list(values[i][metric].values()) for i, metric in cells])
    scores: list[dict[str, Estimate]] = [{} for _ in samples]
    for (i, metric), of in zip(cells, means, strict=True):
        scores[i][metric] = _rounded(of)
    rows, start = [], 0
    for group in grouped:
        members = slice(start, start := start + len(group))
        rows += _ranked([_row(*one) for one in zip(group, scores[members], strict=True)], group)
    return _estimated(rows)


def _row(sample: Sample, scores: Mapping[str, Estimate]) -> Row:
    return Row(
        configuration=sample.configuration,
        records=sample.records,
        runs=sample.runs_of,
        seeds=sample.seeds,
        processors=sample.processors,
        scores=scores,
    )


def _ranked(rows: Sequence[Row], group: Sequence[Sample]) -> list[Row]:
    """The rows of a group in their order, with ranks and tests; `group` are their samples."""
    values = [sample.each(SCORE) for sample in group]
    # whose means are compared: those who have the score that ranks
    people = [_runs_of(own) or row.runs for own, row in zip(values, rows, strict=True)]
    protected = [i for i, row in enumerate(rows) if not is_unprotected(row.configuration)]
    usual = usual_people(people[i] for i in protected or range(len(rows)))
    other_photos = _other_photos(group)
    rows = [
        replace(row, comparable=of == usual, other_photos=others)
        for row, of, others in zip(rows, people, other_photos, strict=True)
    ]
    reasons = {i: _reason(row) for i, row in enumerate(rows)}
    order = sorted(reasons, key=lambda i: _best_first(rows[i]))
    fit = [i for i in order if not reasons[i]]
    # of several variants the one of that very name, else the one that protects best
    placebos = [i for i in order if rows[i].configuration.method.split(" (")[0] == PLACEBO]
    placebo = min(placebos, key=lambda i: rows[i].configuration.method != PLACEBO, default=None)
    opponents = dict(zip(TESTS, (placebo, fit[0] if fit else None), strict=True))
    tests = {name: _tests(protected, fit, other, values) for name, other in opponents.items()}
    if fit and (reason := _undecidable(len(fit), max(rows[i].score.n for i in fit))):
        reasons |= dict.fromkeys(fit, reason)
        fit = []
    ranks = _ranks(fit, values)
    order.sort(key=lambda i: (not rows[i].comparable, bool(reasons[i]), ranks.get(i, 0)))
    return [
        replace(
            rows[i],
            rank=ranks.get(i),
            unranked=reasons[i],
            **{name: of[i] for name, of in tests.items() if i in of},
        )
        for i in order
    ]


def _runs_of(scores: Scores) -> Runs:
    return tuple((identity, tuple(sorted(of))) for identity, of in scores.items())


def _other_photos(group: Sequence[Sample]) -> list[tuple[str, ...]]:
    """Of each sample the people whose photos are not those of most samples."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for sample in group:
        for identity, digests in sample.photos.items():
            counts[identity].update(digests)
    usual = {who: max(of, key=lambda one: (of[one], one)) for who, of in counts.items()}
    return [
        tuple(who for who in sample.identities if sample.photos.get(who, set()) - {usual.get(who)})
        for sample in group
    ]


def _reason(row: Row) -> str:
    if is_unprotected(row.configuration):
        return "no protection"
    if not row.score.n:
        return f"no {SCORE.replace('_', ' ')}"
    if row.score.n < FEWEST:
        return f"fewer than {FEWEST} identities"
    return "" if row.comparable else "other identities or seeds"


def _undecidable(methods: int, identities: int) -> str:
    """Why no test of these methods against one of them could tell anything, or nothing: the least
    p-value of a signed-rank test is 2 of the 2^n signs, times the number of tests.
    """
    least = (methods - 1) * 2.0 ** (1 - identities)
    if least < LEVEL:
        return ""
    return f"{identities} identities are too few for {methods} methods"


def _best_first(row: Row) -> tuple[bool, float, str]:
    mean = row.score.mean
    return mean is None, -SCALE * (mean or 0), row.configuration.method


def _tests(
    rows: Sequence[int], fit: Sequence[int], other: int | None, values: Sequence[Scores]
) -> dict[int, Test]:
    """The comparison of each row with `other`; p-values where both are `fit` to be ranked."""
    if other is None:
        return {}
    p_values = _p_values(fit, other, values) if other in fit else {}
    shared = {i: _differences(values[i], values[other]) for i in rows if i != other}
    return {i: Test(differences=of, p_value=p_values.get(i)) for i, of in shared.items() if of}


def _p_values(fit: Sequence[int], other: int, values: Sequence[Scores]) -> dict[int, float]:
    """The p-value of each row of `fit` against `other`, corrected for their number."""
    shared = {i: _differences(values[i], values[other]) for i in fit if i != other}
    tested = [i for i, of in shared.items() if len(of) >= FEWEST]
    corrected = holm(signed_rank_p_values([shared[i] for i in tested]))
    return {i: _digits(p) for i, p in zip(tested, corrected, strict=True)}


def _ranks(fit: Sequence[int], values: Sequence[Scores]) -> dict[int, int]:
    """The rank of each row of `fit`, best first: those that are not told to be behind the best of
    the rows still without a rank share that one's. Best is who has the best mean; few people may
    make it, and the test speak for another.
    """
    ranks, left = {}, list(fit)
    while left:
        best, p_values = left[0], _p_values(left, left[0], values)
        behind = {
            i
            for i, p_value in p_values.items()
            if p_value < LEVEL
            and SCALE * signed_rank_sum(_differences(values[i], values[best])) < 0
        }
        alike = [i for i in left if i not in behind]
        ranks |= dict.fromkeys(alike, len(ranks) + 1)
        left = [i for i in left if i not in ranks]
    return ranks


def _differences(a: Scores, b: Scores) -> list[float]:
    """a - b for the identities that both have, each over the seeds that both have: the victims of
    one seed start from the same noise.
    """
    shared = {who: a[who].keys() & b[who].keys() for who in a if who in b}
    return [
        fmean(a[who][seed] - b[who][seed] for seed in sorted(seeds))
        for who, seeds in shared.items()
        if seeds
    ]


def _estimated(rows: Sequence[Row]) -> list[Row]:
    """The rows with the means of their tests, all at once because that is fast."""
    places = [(k, name) for k, row in enumerate(rows) for name in TESTS if getattr(row, name)]
    found = estimates([getattr(rows[k], name).differences for k, name in places])
    tests: list[dict[str, Test]] = [{} for _ in rows]
    for (k, name), mean in zip(places, found, strict=True):
        tests[k][name] = replace(getattr(rows[k], name), mean=_rounded(mean))
    return [replace(row, **of) for row, of in zip(rows, tests, strict=True)]


def _rounded(of: Estimate) -> Estimate:
    """With as many digits as records have: what the last bits of a machine's sums cannot reach."""
    ends = {name: _digits(getattr(of, name)) for name in ("mean", "low", "high")}
    return replace(of, **ends)


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
