"""Records as samples: the scores of each method, identity and seed in one frame."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import chain

import pandas as pd

from eval.metrics import METRICS
from experiments.leaderboard.names import labels, settings_of
from experiments.records.files import natural
from experiments.records.record import Record, Scored

UNPROTECTED = "none"
FEWEST = 10  # identities: a signed-rank test of 7 cannot reach p = 0.01 however they differ
SCORES = list(METRICS)
VICTIM = ["setting", "identity", "seed"]
METHOD = ["attack", "method", "key"]
FACTS = ["records", "processors", "photos"]
COLUMNS = [*VICTIM, "eps", *METHOD, *FACTS, *SCORES]

Runs = tuple[tuple[str, tuple[int, ...]], ...]  # identities, each with its seeds


def samples(records: Iterable[Scored]) -> pd.DataFrame:
    """Return a row for each setting, budget, method, identity and seed, with its scores.

    Settings, budgets, identities and seeds are in order; the columns are COLUMNS. `method` is the
    name that readers see, and `key` tells methods apart. The FACTS are tuples. A missing score
    is NaN. Each budget has its own rows of the unprotected victims of the people usual there.
    """
    arms = _arms(records)
    parts = [arms[:0]]
    for _, rows in sorted(arms.groupby("setting", sort=False), key=lambda item: item[0].order):
        is_victim = rows["attack"] == UNPROTECTED
        victims, protected = _victims(rows[is_victim]), rows[~is_victim]
        if protected.empty:
            parts.append(victims)
        for eps, group in protected.groupby("eps"):
            people = usual_people(runs_of(sample) for _, sample in group.groupby("key"))
            parts += [group, _of_people(victims, people).assign(eps=eps)]
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def runs_of(sample: pd.DataFrame) -> Runs:
    """Return the identities and seeds of the rows of a method: means over others do not compare."""
    seeds = sample.groupby("identity", sort=False)["seed"]
    return tuple((identity, tuple(values)) for identity, values in seeds)


def usual_people(people: Iterable[tuple]) -> tuple:
    """Return the identities, or identities with their seeds, that most methods have.

    If some methods have enough identities to be ranked, only these methods count.
    """
    methods = Counter(people)
    return max(
        methods, key=lambda who: (len(who) >= FEWEST, methods[who], len(who), who), default=()
    )


def _arms(records: Iterable[Scored]) -> pd.DataFrame:
    """Return a row for each arm of each record, by identity and seed.

    Records without a protection come before others: their names stay where victims are equal.
    """
    records = sorted(
        records, key=lambda r: (natural(r.identity), r.seed, r.attack != UNPROTECTED, r.name)
    )
    settings = settings_of(records)
    methods = labels((record.row_key, record.method) for record in records)
    rows = []
    for record in records:
        place = {
            "setting": settings[record.setting_key],
            "identity": record.identity,
            "seed": record.seed,
            "records": (record.name,),
            "photos": _photos(record),
        }
        victim = record.scores.protected
        if record.attack != UNPROTECTED:
            victim = record.scores.unprotected
            method = {
                "eps": float(record.eps),
                "attack": record.attack,
                "method": methods[record.row_key],
                "key": f"{record.attack} {record.row.method}",
                "processors": _processors(record, "protect", "protected"),
            }
            scores = record.scores.protected.numbers | record.perceptibility.numbers
            rows.append(place | method | scores)
        if victim:
            method = {**dict.fromkeys(METHOD, UNPROTECTED), "eps": 0.0}
            method["processors"] = _processors(record, "unprotected")
            rows.append(place | method | victim.numbers)
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(SCORES, float))


def _victims(arms: pd.DataFrame) -> pd.DataFrame:
    """Return the unprotected victims, one for each setting, identity and seed.

    A victim of clean photos does not depend on the methods. Where processors made it otherwise,
    its scores are the mean of the distinct ones.
    """
    distinct = arms.drop_duplicates([*VICTIM, *SCORES])
    victims = distinct.groupby([*VICTIM, "eps", *METHOD], sort=False)
    return victims.agg(dict.fromkeys(FACTS, joined) | dict.fromkeys(SCORES, "mean")).reset_index()


def joined(tuples: Iterable[tuple]) -> tuple:
    """Return the distinct entries of tuples, in their order."""
    return tuple(dict.fromkeys(chain.from_iterable(tuples)))


def _of_people(victims: pd.DataFrame, people: Runs) -> pd.DataFrame:
    """Return the victims of people and seeds, without the people that lack a victim of a seed."""
    places = victims.set_index(["identity", "seed"]).index
    complete = [
        (identity, seed)
        for identity, seeds in people
        if all((identity, seed) in places for seed in seeds)
        for seed in seeds
    ]
    return victims[places.isin(complete)]


def _processors(record: Scored, *arms: str) -> tuple[str, ...]:
    is_run = isinstance(record, Record)
    return joined([(getattr(record.processors, arm),) for arm in arms]) if is_run else ()


def _photos(record: Scored) -> tuple[str, ...]:
    """Return the digests of the person's photos as one text, if the record has them."""
    photos = record.digests.get("photos") if isinstance(record, Record) else None
    return (json.dumps(photos, sort_keys=True),) if photos else ()
