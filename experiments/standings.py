"""Records as rows of a leaderboard: means over identities, paired tests, ranks."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from eval.metrics import METRICS
from eval.statistics import Estimate, estimates, holm, signed_rank_p_values
from experiments.configurations import Configuration, Setting, configurations

SCORE = "identity_retention"  # what ranks
PLACEBO, UNPROTECTED = "noise", "none"
FEWEST = 10  # identities: a signed-rank test of 7 cannot reach p = 0.01 however they differ
LEVEL = 0.05
TESTS = ("against_placebo", "against_best")
SCALE = -1 if METRICS[SCORE]["direction"] == "lower" else 1

Values = Mapping[str, Mapping[str, float | None]]  # of each metric, by identity


class StandingsError(ValueError):
    """Records that cannot stand together; the message names them."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """A paired test of the ranking score: the p-value is corrected within the group."""

    differences: Sequence[float]  # of each identity that both have: the row's less the other's
    p_value: float
    mean: Estimate | None = None  # of the differences


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method at a budget in a setting. `unranked` is the reason why it has no rank, or empty."""

    configuration: Configuration
    records: tuple[str, ...]
    identities: tuple[str, ...]
    seeds: int
    scores: Mapping[str, Estimate]
    rank: int | None = None
    unranked: str = ""
    against_placebo: Test | None = None
    against_best: Test | None = None

    @property
    def score(self) -> Estimate:
        return self.scores.get(SCORE) or Estimate(mean=None, low=None, high=None, n=0)


@dataclass(frozen=True)
class _Sample:
    """What a row is made of: its records, and for each identity the scores of each seed."""

    configuration: Configuration
    records: tuple[str, ...]
    seeds: Mapping[str, Mapping[int, Mapping[str, float | None]]]

    def values(self) -> Values:
        """The score of each identity, averaged over its seeds."""
        found: dict[str, dict[str, float | None]] = defaultdict(dict)
        for identity in sorted(self.seeds, key=natural):
            runs = list(self.seeds[identity].values())
            for metric in METRICS:
                if any(metric in run for run in runs):
                    present = [run[metric] for run in runs if run.get(metric) is not None]
                    found[metric][identity] = fmean(present) if present else None
        return found


def natural(name: str) -> tuple[int, str]:
    """Sorts "9" before "10"."""
    return (int(name), "") if name.isdecimal() else (10**18, name)


def standings(records: Mapping[str, Mapping]) -> list[Row]:
    """Return the rows of named records: settings in order, budgets, then the best method first.

    Raises StandingsError for two records of one configuration, identity and seed.
    """
    groups = list(_groups(records))
    samples = [sample for group in groups for sample in group]
    values = [sample.values() for sample in samples]
    cells = [(i, metric) for i, of in enumerate(values) for metric in of]
    found = estimates([list(values[i][metric].values()) for i, metric in cells])
    scores: list[dict[str, Estimate]] = [{} for _ in samples]
    for (i, metric), of in zip(cells, found, strict=True):
        scores[i][metric] = _rounded(of)
    rows, start = [], 0
    for group in groups:
        members = slice(start, start := start + len(group))
        rows += _ranked(
            [_row(*one) for one in zip(group, scores[members], strict=True)],
            [of.get(SCORE, {}) for of in values[members]],
        )
    return _estimated(rows)


def _groups(records: Mapping[str, Mapping]) -> Iterator[list[_Sample]]:
    """The samples of each setting and budget, the unprotected photos' among them."""
    found = configurations(records)
    members: dict[Configuration, list[str]] = defaultdict(list)
    for name in sorted(records):
        members[found[name]].append(name)
    settings: dict[Setting, list[Configuration]] = defaultdict(list)
    for configuration in sorted(members):
        settings[configuration.setting].append(configuration)
    for setting, configured in settings.items():
        free = [one for one in configured if is_unprotected(one)]
        taken = [_protected(one, members[one], records) for one in configured if one not in free]
        names = [name for one in configured for name in members[one]]
        clean = _unprotected(setting, names, [n for one in free for n in members[one]], records)
        budgets = sorted({sample.configuration.eps for sample in taken})
        for eps in budgets:
            group = [sample for sample in taken if sample.configuration.eps == eps]
            people = {identity for sample in group for identity in sample.seeds}
            seeds = {person: runs for person, runs in clean.seeds.items() if person in people}
            beside = replace(clean.configuration, eps=eps)
            yield [*group, replace(clean, configuration=beside, seeds=seeds)] if seeds else group
        if not budgets:
            yield [clean]


def is_unprotected(configuration: Configuration) -> bool:
    return configuration.method.split(" ")[0] == UNPROTECTED


def _protected(configuration: Configuration, names: Sequence[str], records: Mapping) -> _Sample:
    seeds: dict[str, dict] = defaultdict(dict)
    origin: dict[tuple[str, int], str] = {}
    for name in names:
        record = records[name]
        key = (record["identity"], record["seed"])
        if key in origin:
            raise StandingsError(
                f"{origin[key]} and {name} are of one configuration, identity ({key[0]}) and seed "
                f"({key[1]}): delete one"
            )
        origin[key] = name
        seeds[key[0]][key[1]] = _scores(record, "protected")
    return _Sample(configuration, tuple(names), seeds)


def _unprotected(
    setting: Setting, names: Sequence[str], own: Sequence[str], records: Mapping
) -> _Sample:
    """The unprotected arms of all records of a setting: one victim, whatever its photos' twins
    were protected with.
    """
    seeds: dict[str, dict] = defaultdict(dict)
    used = []
    for name in sorted(names, key=lambda name: name not in own):
        record = records[name]
        arm = "protected" if name in own else "unprotected"
        if arm in record["scores"] and record["seed"] not in seeds[record["identity"]]:
            seeds[record["identity"]][record["seed"]] = _scores(record, arm)
            used.append(name)
    return _Sample(Configuration(setting=setting, eps=0.0, method=UNPROTECTED), tuple(used), seeds)


def _scores(record: Mapping, arm: str) -> dict[str, float | None]:
    found = record["scores"][arm]
    if arm == "protected" and record["attack"] != UNPROTECTED:
        found = found | record["perceptibility"]
    return {metric: found[metric] for metric in METRICS if metric in found}


def _row(sample: _Sample, scores: Mapping[str, Estimate]) -> Row:
    return Row(
        configuration=sample.configuration,
        records=sample.records,
        identities=tuple(sorted(sample.seeds, key=natural)),
        seeds=max(len(runs) for runs in sample.seeds.values()),
        scores=scores,
    )


def _ranked(rows: Sequence[Row], values: Sequence[Mapping[str, float | None]]) -> list[Row]:
    """The rows of a group in their order, with ranks and tests; `values` by identity."""
    reasons = [_reason(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (bool(reasons[i]), *_best_first(rows[i])))
    fit = [i for i in order if not reasons[i]]
    pairs = list(combinations(fit, 2))
    shared = [_differences(values[i], values[j]) for i, j in pairs]
    tested = [k for k, one in enumerate(shared) if len(one) >= FEWEST]
    corrected = holm(signed_rank_p_values([shared[k] for k in tested]))
    p_values = {pairs[k]: _digits(p) for k, p in zip(tested, corrected, strict=True)}
    p_values |= {(j, i): p for (i, j), p in p_values.items()}
    placebo = next((i for i in fit if rows[i].configuration.method == PLACEBO), None)
    opponents = dict(zip(TESTS, (placebo, fit[0] if fit else None), strict=True))
    tests = {
        i: {
            name: Test(differences=_differences(values[i], values[other]), p_value=p)
            for name, other in opponents.items()
            if (p := p_values.get((i, other))) is not None
        }
        for i in fit
    }
    ranks = _ranks(fit, p_values)
    return [
        replace(rows[i], rank=ranks.get(i), unranked=reasons[i], **tests.get(i, {}))
        for i in sorted(order, key=lambda i: (bool(reasons[i]), ranks.get(i, 0)))
    ]


def _estimated(rows: Sequence[Row]) -> list[Row]:
    """The rows with the means of their tests, all at once because that is fast."""
    places = [(row, name) for row in rows for name in TESTS if getattr(row, name)]
    found = estimates([getattr(row, name).differences for row, name in places])
    means = {
        (id(row), name): _rounded(mean) for (row, name), mean in zip(places, found, strict=True)
    }
    return [
        replace(
            row,
            **{
                name: replace(getattr(row, name), mean=means[id(row), name])
                for name in TESTS
                if getattr(row, name)
            },
        )
        for row in rows
    ]


def _reason(row: Row) -> str:
    if is_unprotected(row.configuration):
        return "no protection"
    if not row.score.n:
        return f"no {SCORE.replace('_', ' ')}"
    if row.score.n < FEWEST:
        return f"fewer than {FEWEST} identities"
    return ""


def _best_first(row: Row) -> tuple[bool, float, str]:
    mean = row.score.mean
    return mean is None, -SCALE * (mean or 0), row.configuration.method


def _ranks(fit: Sequence[int], p_values: Mapping[tuple[int, int], float]) -> dict[int, int]:
    """The rank of each row of `fit`, best first: those that cannot be told apart from the best of
    the rows still without a rank share that one's.
    """
    ranks, left = {}, list(fit)
    while left:
        best = left[0]
        alike = [i for i in left if i == best or p_values.get((best, i), 1) >= LEVEL]
        ranks |= dict.fromkeys(alike, len(ranks) + 1)
        left = [i for i in left if i not in ranks]
    return ranks


def _differences(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> list[float]:
    """a - b for the identities that both have."""
    return [
        value - b[identity]
        for identity, value in a.items()
        if value is not None and b.get(identity) is not None
    ]


def _rounded(of: Estimate) -> Estimate:
    """With as many digits as records have: what the last bits of a machine's sums cannot reach."""
    ends = {name: _digits(getattr(of, name)) for name in ("mean", "low", "high")}
    return replace(of, **ends)


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
