"""Records as samples: the scores of each identity, of each method at a budget in a setting."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from statistics import fmean

from eval.metrics import METRICS
from experiments.records.naming import Configuration, Setting
from experiments.records.record import natural

UNPROTECTED = "none"
FEWEST = 10  # identities: a signed-rank test of 7 cannot reach p = 0.01 however they differ

Runs = tuple[tuple[str, tuple[int, ...]], ...]  # identities, each with its seeds
Values = Mapping[str, Mapping[str, float | None]]  # of each metric, by identity
Scores = Mapping[str, Mapping[int, float]]  # of one metric, by identity and seed


@dataclass(frozen=True)
class Sample:
    """The records of a method at a budget, and for each identity the scores of each seed."""

    configuration: Configuration
    records: tuple[str, ...]
    runs: Mapping[str, Mapping[int, Mapping[str, float | None]]]
    processors: tuple[str, ...] = ()
    photos: Mapping[str, frozenset[str]] = field(default_factory=dict)  # digests, by identity

    @property
    def identities(self) -> tuple[str, ...]:
        return tuple(sorted(self.runs, key=natural))

    @property
    def runs_of(self) -> Runs:
        """Identities and seeds: means over others do not compare."""
        return tuple((identity, tuple(sorted(self.runs[identity]))) for identity in self.identities)

    @property
    def seeds(self) -> int:
        return max(len(of) for of in self.runs.values())

    def each(self, metric: str) -> Scores:
        """The score of each identity and seed that has it."""
        found = {
            identity: {seed: of[metric] for seed, of in seeds.items() if of.get(metric) is not None}
            for identity, seeds in self.runs.items()
        }
        return {identity: found[identity] for identity in self.identities if found[identity]}

    def values(self) -> Values:
        """The score of each identity, averaged over its seeds."""
        found: dict[str, dict[str, float | None]] = defaultdict(dict)
        for identity in self.identities:
            for metric, value in _mean(list(self.runs[identity].values())).items():
                found[metric][identity] = value
        return found


def is_unprotected(configuration: Configuration) -> bool:
    return configuration.method.split(" (")[0] == UNPROTECTED


def usual_people(people: Iterable[tuple]) -> tuple:
    """Return the identities, or identities with their seeds, that most of the rows with these have;
    where any row has enough to be ranked, most of such rows.
    """
    rows = Counter(people)
    return max(rows, key=lambda of: (len(of) >= FEWEST, rows[of], len(of), of), default=())


def twins(
    records: Mapping[str, Mapping], found: Mapping[str, Configuration]
) -> Iterator[tuple[str, str]]:
    """Yield the names of each two records of one configuration, identity and seed; `found` are the
    records' configurations.
    """
    first: dict[tuple, str] = {}
    for name in sorted(records):
        record = records[name]
        other = first.setdefault((found[name], record["identity"], record["seed"]), name)
        if other != name:
            yield other, name


def groups(
    records: Mapping[str, Mapping], found: Mapping[str, Configuration]
) -> Iterator[list[Sample]]:
    """Yield the samples of each setting and budget, with that of the unprotected photos of the
    people that are usual there.
    """
    members: dict[Configuration, list[str]] = defaultdict(list)
    for name in sorted(records):
        members[found[name]].append(name)
    settings: dict[Setting, list[Configuration]] = defaultdict(list)
    for configuration in sorted(members, key=lambda one: (one.setting.order, one)):
        settings[configuration.setting].append(configuration)
    for setting, configured in settings.items():
        budgets: dict[float, list[Sample]] = defaultdict(list)
        for one in configured:
            if not is_unprotected(one):
                budgets[one.eps].append(_protected(one, members[one], records))
        names = [name for one in configured for name in members[one]]
        own = {name for one in configured if is_unprotected(one) for name in members[one]}
        clean = _unprotected(setting, names, own, records)
        for eps in sorted(budgets):
            usual = usual_people(sample.runs_of for sample in budgets[eps])
            runs = {
                person: {seed: clean.runs[person][seed] for seed in seeds}
                for person, seeds in usual
                if set(seeds) <= set(clean.runs.get(person, ()))
            }
            used = [
                name
                for name in clean.records
                if records[name]["seed"] in runs.get(records[name]["identity"], ())
            ]
            twin = replace(
                clean,
                configuration=replace(clean.configuration, eps=eps),
                records=tuple(used),
                runs=runs,
                processors=_processors(used, records, "unprotected"),
                photos=_photos(used, records),
            )
            yield [*budgets[eps], twin] if runs else budgets[eps]
        if not budgets:
            yield [clean]


def _protected(configuration: Configuration, names: Sequence[str], records: Mapping) -> Sample:
    runs: dict[str, dict] = defaultdict(dict)
    for name in names:
        runs[records[name]["identity"]][records[name]["seed"]] = _scores(records[name], "protected")
    processors = _processors(names, records, "protected")
    return Sample(configuration, tuple(names), runs, processors, _photos(names, records))


def _unprotected(setting: Setting, names: Sequence[str], own: Set[str], records: Mapping) -> Sample:
    """The unprotected arms of all records of a setting: one victim of each person and seed,
    whatever its photos' twins were protected with; where processors made it otherwise, their mean.
    """
    arms: dict[tuple[str, int], dict[tuple, str]] = defaultdict(dict)
    for name in sorted(names, key=lambda name: name not in own):
        record = records[name]
        arm = "protected" if name in own else "unprotected"
        if arm in record["scores"]:
            scores = tuple(_scores(record, arm).items())
            arms[record["identity"], record["seed"]].setdefault(scores, name)
    runs: dict[str, dict] = defaultdict(dict)
    for (identity, seed), distinct in arms.items():
        runs[identity][seed] = _mean([dict(scores) for scores in distinct])
    used = tuple(dict.fromkeys(name for distinct in arms.values() for name in distinct.values()))
    configuration = Configuration(setting=setting, eps=0.0, method=UNPROTECTED)
    processors = _processors(used, records, "unprotected")
    return Sample(configuration, used, runs, processors, _photos(used, records))


def _mean(scores: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each score over those that have it."""
    found = {}
    for metric in METRICS:
        if any(metric in one for one in scores):
            present = [one[metric] for one in scores if one.get(metric) is not None]
            found[metric] = fmean(present) if present else None
    return found


def _processors(names: Sequence[str], records: Mapping, arm: str) -> tuple[str, ...]:
    """The processors that made an arm of records, as far as they tell."""
    found = set()
    for name in names:
        record = records[name]
        known = record.get("processors")
        if known and arm == "protected":
            found |= {known["protect"], known[arm]}
        elif known:
            found.add(known[arm])
        elif "machine" in record:  # before the kind was recorded
            machine = record["machine"]
            name_of = machine.get("gpu") or machine.get("cpu")
            found.add(f"{name_of}, kind not recorded" if name_of else "not recorded")
    return tuple(sorted(found))


def _photos(names: Sequence[str], records: Mapping) -> dict[str, frozenset[str]]:
    """The digests of each identity's photos, as far as records tell: one, unless other photos went
    by the same names.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for name in names:
        if photos := records[name].get("digests", {}).get("photos"):
            found[records[name]["identity"]].add(json.dumps(photos, sort_keys=True))
    return {identity: frozenset(of) for identity, of in found.items()}


def _scores(record: Mapping, arm: str) -> dict[str, float | None]:
    found = record["scores"][arm]
    if arm == "protected" and record["attack"] != UNPROTECTED:
        found = found | record["perceptibility"]
    return {metric: found[metric] for metric in METRICS if metric in found}
