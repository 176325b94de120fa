"""Whether the embedded world behaves like the full one, on people nobody tuned on.

`python -m experiments.embedded.world_check` runs what is missing, one process a core, and prints
every aim with its figure. After an interruption it goes on where it was.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import median

from tabulate import tabulate

from eval.statistics import Comparison, Estimate, estimate, paired_comparison
from experiments.embedded.photocopy_check import (
    PROMPTS,
    closeness,
    followed_prompts,
    protected_similarity,
)
from experiments.processes import Command, outcomes, usable_cores
from experiments.records.published import read_all
from experiments.records.record import Record

EPS = (4, 8, 16)
ATTACKS = ("aspl", "simac")
SCORES = {  # with their headings in the table
    "identity_retention": "retention",
    "ism": "ISM",
    "ism_failures_as_0": "failures as 0",
    "fdfr": "FDFR",
    "ser_fiq": "SER-FIQ",
    "brisque": "BRISQUE",
}
CHECKED = {  # the setting of the records that count
    "countermeasure": "none",
    "clean_photos": 0,
    "adversary": "as_assumed",
    "base_model": "tiny",
    "surrogate_model": "tiny",
    "seed": 0,
}
BACKBONE = "sface"
# arguments of the sweeps that every identity goes through, the most informative first
SWEEPS = (
    ("attack=none,noise,aspl,simac",),  # at eps 8
    ("attack=none", "customizer=lora"),
    ("attack=none", f"prompts.gallery=[{','.join(PROMPTS)}]"),
    ("attack=aspl,simac", "attack.eps=16"),
    ("attack=aspl,simac", "attack.eps=4"),
    ("attack=noise", "attack.eps=4,16"),
)


def run_all(identities: Sequence[int], output_dir: Path, processes: int) -> None:
    """Run every sweep on every identity, each on one thread, `processes` at a time.

    If sweeps failed, the process ends with the names of their logs.
    """
    output_dir = output_dir.absolute()
    pairs = list(product(SWEEPS, identities))
    shared = [f"output_dir={output_dir}", "tracker=none"]
    commands = [
        Command(
            ["-m", f"dataset.identities=[{number}]", *shared, *sweep],
            threads=1,
            log=output_dir / "logs" / f"{number}.txt",
        )
        for sweep, number in pairs
    ]
    failed = {}  # log by identity
    results = zip(pairs, commands, outcomes(commands, processes), strict=True)
    for done, ((sweep, number), command, success) in enumerate(results, 1):
        if not success:
            failed[number] = str(command.log)
        print(f"{done} of {len(commands)}: identity {number}, {' '.join(sweep)}", flush=True)
    if failed:
        sys.exit(f"error: sweeps failed, run again for them: see {', '.join(failed.values())}")


class Results:
    """The records of the check; every list has one for each identity, in the order of identities.

    Records of other settings, seeds and variants of methods may lie beside them and do not count.
    """

    def __init__(self, records: Iterable[Record], identities: Sequence[int]) -> None:
        self.identities = [str(number) for number in identities]
        self.by_key = {}
        for record in records:
            checked = all(getattr(record, name) == value for name, value in CHECKED.items())
            if not checked or record.scorer.backbone != BACKBONE:
                continue
            attributes = record.config["gallery"]["prompts"] == list(PROMPTS)
            key = (record.identity, record.method, record.eps, record.customizer, attributes)
            if key in self.by_key:
                raise ValueError(
                    f"identity {record.identity} has two records of {record.method} at eps "
                    f"{record.eps:g} with {record.customizer} that differ in their settings: keep "
                    "the check's alone"
                )
            self.by_key[key] = record

    def of(
        self, attack: str, eps: float = 0, customizer: str = "dreambooth", attributes: bool = False
    ) -> list[Record]:
        """Return the record of every identity; raise KeyError if one is missing."""
        return [
            self.by_key[number, attack, eps, customizer, attributes] for number in self.identities
        ]

    def retention(self, attack: str, eps: float = 0, customizer: str = "dreambooth") -> list[float]:
        records = self.of(attack, eps, customizer)
        return [record.scores.protected.identity_retention for record in records]


def aims(results: Results, output_dir: Path) -> list[list[str]]:
    """Return a row for each aim: quantity, aim, figure with its 95 % interval, met or not."""
    rows = []

    def add(quantity: str, aim: str, figure: Estimate, met: bool, note: str = "") -> None:
        rows.append([quantity, aim, text(figure) + note, "yes" if met else "no"])

    def at_least(least: float, quantity: str, values: Sequence[float | None]) -> None:
        figure = estimate(values)
        add(quantity, f">= {least}", figure, (figure.mean or 0) >= least)

    def at_most(most: float, quantity: str, values: Sequence[float | None]) -> None:
        figure = estimate(values)
        add(quantity, f"<= {most}", figure, figure.mean <= most)

    def test(quantity: str, aim: str, fall: Comparison, met: bool, note: str = "") -> None:
        met = met and fall.p_value < 0.01
        add(quantity, aim, fall.difference, met, f", p = {fall.p_value:.2g}{note}")

    clean = results.retention("none")
    at_least(0.6, "retention, DreamBooth", clean)
    at_most(0.05, "FDFR, DreamBooth", [r.scores.unprotected.fdfr for r in results.of("none")])
    at_least(0.5, "retention, LoRA", results.retention("none", customizer="lora"))
    for (eps, least), attack in product(((8, 0.3), (16, 0.5)), ATTACKS):
        protected = results.retention(attack, eps)
        middle = median(a - b for a, b in zip(clean, protected, strict=True))
        fall = paired_comparison(clean, protected)
        met = fall.difference.mean >= least
        test(f"{attack} lowers it at eps {eps}", f">= {least}", fall, met, f", median {middle:.2f}")
        fall = paired_comparison(results.retention("noise", eps), protected)
        test(f"{attack} below the placebo at eps {eps}", "> 0", fall, fall.difference.mean > 0)
    noise = paired_comparison(clean, results.retention("noise", 8)).difference
    add("noise lowers it at eps 8", "< 0.1", noise, abs(noise.mean) < 0.1)
    for attack in ATTACKS:
        means = [estimate(results.retention(attack, eps)).mean for eps in EPS]
        figure = " > ".join(f"{mean:.2f}" for mean in means)
        falls = means == sorted(means, reverse=True)
        quantity = f"{attack}: retention at eps 4, 8, 16"
        rows.append([quantity, "falls", figure, "yes" if falls else "no"])
    for name, margins in closeness(results.of("none"), output_dir).items():
        at_most(0, f"gallery nearer to set B than set C is, {name}", margins)
    followed = followed_prompts(results.of("none", attributes=True), output_dir)
    for prompt, shares in followed.items():
        at_least(0.5, f"followed: {prompt}", shares)
    for attack in ATTACKS:
        shares = protected_similarity(results.of(attack, 8), output_dir)
        at_least(0.8, f"SFace similarity kept by {attack}'s photos at eps 8", shares)
    return rows


def retention_table(results: Results) -> list[list[str]]:
    """Return a row for each arm: the mean of every score in SCORES with its interval."""
    arms = [("none", 0, "dreambooth"), ("none", 0, "lora")]
    arms += [(attack, eps, "dreambooth") for attack in ("noise", *ATTACKS) for eps in EPS]
    rows = []
    for arm in arms:
        scores = [record.scores.protected for record in results.of(*arm)]
        means = (text(estimate([getattr(score, key) for score in scores])) for key in SCORES)
        rows.append([*arm, *means])
    return rows


def text(figure: Estimate) -> str:
    """Return a mean and its interval with two decimals."""
    if figure.mean is None:
        return "-"
    interval = "" if figure.low is None else f" [{figure.low:.2f}, {figure.high:.2f}]"
    return f"{figure.mean:.2f}{interval}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=1000, help="identity")
    parser.add_argument("--identities", type=int, default=12)
    parser.add_argument("--processes", type=int, default=usable_cores())
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/embedded_check"))
    settings = parser.parse_args()
    identities = range(settings.first, settings.first + settings.identities)
    run_all(identities, settings.output_dir, settings.processes)
    try:
        files = sorted((settings.output_dir / "records").glob("*.json"))
        results = Results(read_all(files).values(), identities)
    except ValueError as error:
        sys.exit(f"error: {error}")
    headings = ["attack", "eps", "customizer", *SCORES.values()]
    tables = [
        tabulate(retention_table(results), headings, "github"),
        tabulate(aims(results, settings.output_dir), ["what", "aim", "figure", "met"], "github"),
    ]
    title = f"{len(identities)} identities, means [95 % interval]"
    report = "\n\n".join([title, *tables]) + "\n"
    (settings.output_dir / "report.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
