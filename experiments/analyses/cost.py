"""Show what the protection of attacks costs: how far each lowers identity retention against the
floating-point operations that it takes for one identity.

`python -m experiments.analyses.cost outputs` reads records (files, folders, or a run's output_dir),
counts the operations of each attack in them, and writes figure.png and numbers.csv.
"""

import argparse
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from tabulate import tabulate

from anticustom.progress import Progress
from eval.statistics import estimate, paired_comparison
from experiments.analyses.subjects import base_parser, run
from experiments.benchmarks.phases import Bench, whole
from experiments.benchmarks.speed import counted
from experiments.records.files import files_of
from experiments.records.published import read_all
from experiments.records.record import OWN, Record, Scored
from experiments.setup.building import build_group
from experiments.terminal import say

# the setting of the records, which arguments change
SETTING = {
    "customizer": "dreambooth",
    "countermeasure": "none",
    "adversary": "as_assumed",
    "clean_photos": 0,
}


def chosen(
    records: Iterable[Scored], eps: float, entries: Mapping[str, object]
) -> dict[str, list[Scored]]:
    """Return the records of each method at a budget, in this project's own setting with `entries`.

    Raises ValueError unless there is exactly one such setting.
    """
    wanted = {"source": OWN, "eps": eps, **entries}
    methods, settings = {}, set()
    for record in records:
        if all(getattr(record, key) == value for key, value in wanted.items()):
            methods.setdefault(record.method, []).append(record)
            names = (record.dataset, record.customizer, record.base_model, record.countermeasure)
            title = ", ".join((*names, record.adversary, record.details))
            settings.add((title, record.row.setting))
    if len(settings) != 1:
        titles = "; ".join(sorted(title for title, _ in settings)) or "none"
        text = ", ".join(f"{key}={value}" for key, value in entries.items())
        raise ValueError(f"eps {eps:g}, {text}: expected records of one setting, not of {titles}")
    return methods


def falls(records: Sequence[Scored]) -> pd.Series:
    """Return how far identity retention falls, for each identity; seeds are averaged."""
    retention = pd.DataFrame(
        {
            "identity": [record.identity for record in records],
            "before": [record.scores.unprotected.identity_retention for record in records],
            "after": [record.scores.protected.identity_retention for record in records],
        }
    ).astype({"before": float, "after": float})
    fall = retention.before - retention.after
    return fall.groupby(retention.identity, sort=False).mean().dropna()


def operations(record: Record) -> int:
    """Return the floating-point operations of a record's attack on random photos of its size."""
    settings, attack = record.config["attack"], build_group(record.config, "attack")
    if not attack.needs_surrogate:
        return 0
    schedule, photos = attack.surrogate_schedule, record.photos
    models = [{"name": record.surrogate_model}, *settings.get("others", {}).values()]
    purifiers = [settings["purifier"]] if "purifier" in settings else []

    def counted_with(iterations: int) -> int:
        short = replace(attack, surrogate_schedule=replace(schedule, iterations=iterations))
        bench, *others = [Bench(model["name"], "cpu", photos) for model in models]
        benches = [Bench(model["name"], "cpu", photos) for model in purifiers]
        return counted(whole(bench, short, others, *benches)[0])

    # all iterations but the first, before which there may be more to do, cost the same
    first, more = counted_with(1), schedule.iterations - 1
    return first + more * (counted_with(2) - first) if more else first


def table(methods: Mapping[str, Sequence[Scored]], reference: str) -> pd.DataFrame:
    """Return a row for each method, the cheapest first, paired with `reference` over the identities
    that both have.
    """
    if reference not in methods:
        raise ValueError(f"--reference {reference}: expected one of {', '.join(sorted(methods))}")
    reference_fall, rows = falls(methods[reference]), []
    for method, records in methods.items():
        say(f"counting {method} ...")
        fall = falls(records)
        common = sorted(set(fall.index) & set(reference_fall.index))
        test = paired_comparison(fall[common].tolist(), reference_fall[common].tolist())
        mean = estimate(fall.tolist())
        rows.append(
            {
                "method": method,
                "tflop": operations(records[0]) / 1e12,
                "identities": len(fall),
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
    """Draw paired differences: means over different people cannot be compared."""
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


def analyse(settings: argparse.Namespace, progress: Progress) -> tuple[pd.DataFrame, Figure]:
    records = read_all(files_of(settings.records)).values()
    entries = {key: getattr(settings, key) for key in SETTING}
    numbers = table(chosen(records, settings.eps, entries), settings.reference)
    print(tabulate(numbers, "keys", showindex=False, floatfmt=".3g"))
    return numbers, draw(numbers, settings.eps, settings.reference)


def main(words: Sequence[str] | None = None) -> None:
    parser = base_parser("cost", __doc__)
    parser.add_argument("records", type=Path, nargs="*", default=[Path("outputs")])
    parser.add_argument("--eps", type=float, default=8)
    for key, default in SETTING.items():
        parser.add_argument(f"--{key.replace('_', '-')}", default=default, type=type(default))
    reference = "the method that others are paired with"
    parser.add_argument("--reference", default="simac", help=reference)
    run(parser, analyse, words)


if __name__ == "__main__":
    main()
