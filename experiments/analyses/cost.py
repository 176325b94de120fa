"""Show what the protection of attacks costs: how far each lowers identity retention against the
floating-point operations that it takes for one identity.

`python -m experiments.analyses.cost outputs` reads records (files, folders, or a run's output_dir),
counts the operations of each attack in them, and writes figure.png and numbers.csv.
"""

import argparse
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pandas as pd
from matplotlib.figure import Figure
from tabulate import tabulate

from eval.statistics import estimate, paired_comparison
from experiments.analyses.subjects import write
from experiments.benchmarks.phases import Bench, whole
from experiments.benchmarks.speed import counted
from experiments.records.files import files_of
from experiments.records.published import read_all
from experiments.records.record import OWN, Record, Scored
from experiments.setup.building import build_group
from experiments.terminal import quiet_libraries, say

Fall = dict[str, float]  # of retention, by identity


def chosen(
    records: Iterable[Scored], eps: float, wanted: Mapping[str, object]
) -> dict[str, list[Scored]]:
    """Return the records of each method at a budget, in this project's own setting with the entries
    `wanted`; raises ValueError unless there is exactly one such setting.
    """
    methods, settings = defaultdict(list), set()
    for record in records:
        entries = {key: getattr(record, key) for key in ("source", "eps", *wanted)}
        if entries == {"source": OWN, "eps": eps, **wanted}:
            methods[record.method].append(record)
            names = (record.dataset, record.customizer, record.base_model, record.countermeasure)
            settings.add(
                (", ".join((*names, record.adversary, record.details)), record.row.setting)
            )
    if len(settings) != 1:
        titles = "; ".join(sorted(title for title, _ in settings)) or "none"
        entries = ", ".join(f"{key}={value}" for key, value in wanted.items())
        raise ValueError(
            f"eps {eps:g}, {entries}: expected records of one setting, not of {titles}"
        )
    return dict(methods)


def falls(records: Sequence[Scored]) -> Fall:
    """Return how far identity retention falls, for each identity; seeds are averaged."""
    values = defaultdict(list)
    for record in records:
        before = record.scores.unprotected.identity_retention
        after = record.scores.protected.identity_retention
        if before is not None and after is not None:
            values[record.identity].append(before - after)
    return {identity: fmean(numbers) for identity, numbers in values.items()}


def operations(record: Record) -> int:
    """Return the floating-point operations of a record's attack on random photos of its size."""
    settings, attack = record.config["attack"], build_group(record.config, "attack")
    if not attack.needs_surrogate:
        return 0
    schedule, photos = attack.surrogate_schedule, record.photos
    others = [node["name"] for node in settings.get("others", {}).values()]
    purifier = [settings["purifier"]["name"]] if "purifier" in settings else []

    def of(iterations: int) -> int:
        own = replace(attack, surrogate_schedule=replace(schedule, iterations=iterations))
        names = [record.surrogate_model, *others]
        bench, *further = [Bench(name, "cpu", photos) for name in names]
        call, _ = whole(bench, own, further, *[Bench(name, "cpu", photos) for name in purifier])
        return counted(call)

    # all iterations but the first, before which there may be more to do, cost the same
    once = of(1)
    more = schedule.iterations - 1
    return once + more * (of(2) - once) if more else once


def table(methods: Mapping[str, Sequence[Scored]], reference: str) -> pd.DataFrame:
    """Return a row for each method, the cheapest first; paired with `reference` over the identities
    that both have.
    """
    if reference not in methods:
        raise ValueError(f"--reference {reference}: expected one of {', '.join(sorted(methods))}")
    falling, rows = {method: falls(of_it) for method, of_it in methods.items()}, []
    for method, own in falling.items():
        say(f"counting {method} ...")
        both = sorted(set(own) & set(falling[reference]))
        test = paired_comparison(
            [own[identity] for identity in both],
            [falling[reference][identity] for identity in both],
        )
        mean = estimate(list(own.values()))
        rows.append(
            {
                "method": method,
                "tflop": operations(methods[method][0]) / 1e12,
                "identities": len(own),
                "retention_falls_by": mean.mean,
                "low": mean.low,
                "high": mean.high,
                f"more_than_{reference}": test.difference.mean,
                "more_low": test.difference.low,
                "more_high": test.difference.high,
                "p": test.p_value,
            }
        )
    return pd.DataFrame(rows).sort_values(["tflop", "method"], ignore_index=True)


def draw(numbers: pd.DataFrame, eps: float, reference: str) -> Figure:
    """Paired differences, for means over different people cannot be compared."""
    shown = numbers[(numbers.tflop > 0) & numbers.more_low.notna()]
    figure = Figure(figsize=(8, 4.5 + 0.2 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for row in shown.to_dict("records"):
        more = row[f"more_than_{reference}"]
        errors = [[more - row["more_low"]], [row["more_high"] - more]]
        name = textwrap.shorten(row["method"], 90, placeholder=" ...")
        label = f"{name}, {row['identities']} identities"
        axes.errorbar(row["tflop"], more, errors, fmt="o", capsize=3, label=label)
    axes.set(
        xscale="log",
        xlabel="TFLOP for one identity, counted",
        ylabel=f"identity retention falls by more than with {reference}",
        title=f"eps {eps:g}, means over the same people with 95 % intervals",
    )
    axes.axhline(0, color="grey", linewidth=0.8)
    figure.legend(loc="outside lower left", fontsize=8)
    return figure


def main(words: Sequence[str] | None = None) -> None:
    quiet_libraries()
    parser = argparse.ArgumentParser(
        "python -m experiments.analyses.cost", description=__doc__.splitlines()[0]
    )
    parser.add_argument("records", type=Path, nargs="*", default=[Path("outputs")])
    parser.add_argument("--eps", type=float, default=8)
    own = {"customizer": "dreambooth", "countermeasure": "none", "adversary": "as_assumed"}
    own["clean_photos"] = 0
    for key, default in own.items():
        parser.add_argument(f"--{key.replace('_', '-')}", default=default, type=type(default))
    parser.add_argument(
        "--reference", default="simac", help="the method that others are paired with"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/analyses/cost"))
    settings = parser.parse_args(words)
    try:
        records = read_all(files_of(settings.records)).values()
        wanted = {key: getattr(settings, key) for key in own}
        numbers = table(chosen(records, settings.eps, wanted), settings.reference)
    except ValueError as error:
        sys.exit(f"error: {error}")
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    paths = write(settings.output_dir, numbers, draw(numbers, settings.eps, settings.reference))
    print(tabulate(numbers, "keys", showindex=False, floatfmt=".3g"))
    for path in paths:
        print(path)


if __name__ == "__main__":
    main()
