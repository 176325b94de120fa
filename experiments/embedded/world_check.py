"""Whether the embedded world behaves like the full one, on people nobody tuned on.

`python -m experiments.embedded.world_check` runs what is missing, one process a core, and prints
every aim with its figure. Killed, it goes on where it was.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median

from tabulate import tabulate

from eval.statistics import Estimate, estimate, paired_comparison
from experiments.embedded.photocopy_check import (
    PROMPTS,
    closeness,
    followed_prompts,
    protected_similarity,
)
from experiments.processes import Command, outcomes, usable_cores
from experiments.records import record as records
from experiments.records.naming import configurations

EPS = (4, 8, 16)
CHECKED = {  # the setting
    "countermeasure": "none",
    "clean_photos": 0,
    "adversary": "as_assumed",
    "base_model": "tiny",
    "surrogate_model": "tiny",
    "backbone": "sface",
}
# the arguments of the sweeps that every identity goes through, those that tell most first
SWEEPS = (
    ("attack=none,noise,aspl,simac",),  # at eps 8
    ("attack=none", "customizer=lora"),
    ("attack=none", f"prompts.gallery=[{','.join(PROMPTS)}]"),
    ("attack=aspl,simac", "attack.eps=16"),
    ("attack=aspl,simac", "attack.eps=4"),
    ("attack=noise", "attack.eps=4,16"),
)


def run_all(identities: Sequence[int], output_dir: Path, processes: int) -> None:
    """Run every sweep on every identity, each on one thread, `processes` at a time; where any
    failed, end the process with the names of their logs.
    """
    pairs = list(product(SWEEPS, identities))
    shared = [f"output_dir={output_dir.absolute()}", "tracker=none"]
    runs = [
        Command(
            ["-m", f"dataset.identities=[{number}]", *shared, *sweep],
            threads=1,
            log=output_dir.absolute() / "logs" / f"{number}.txt",
        )
        for sweep, number in pairs
    ]
    failed = {}
    for done, (pair, run, fine) in enumerate(
        zip(pairs, runs, outcomes(runs, processes), strict=True), 1
    ):
        if not fine:
            failed[pair[1]] = str(run.log)
        print(f"{done} of {len(runs)}: identity {pair[1]}, {' '.join(pair[0])}", flush=True)
    if failed:
        sys.exit(f"error: sweeps failed, run again for them: see {', '.join(failed.values())}")


class Results:
    """The records of the check, by identity; every list is in the order of the identities.

    Other settings, seeds and variants of the methods may lie in the same folder: they do not count.
    """

    def __init__(self, found: Sequence[Mapping], identities: Sequence[int]) -> None:
        self.identities = [str(number) for number in identities]
        self.by_key = {}
        by_name = {str(k): record for k, record in enumerate(found)}
        for name, configuration in configurations(by_name).items():
            record, setting = by_name[name], configuration.setting
            checked = all(getattr(setting, name) == value for name, value in CHECKED.items())
            if checked and record["seed"] == 0:
                attributes = record["config"]["gallery"]["prompts"] == list(PROMPTS)
                key = (record["identity"], configuration.method, configuration.eps)
                key += (setting.customizer, attributes)
                if key in self.by_key:
                    raise ValueError(
                        f"identity {key[0]} has two records of {key[1]} at eps {key[2]:g} with "
                        f"{key[3]} that differ in their settings: keep the check's alone"
                    )
                self.by_key[key] = record

    def of(
        self, attack: str, eps: float = 0, customizer: str = "dreambooth", attributes: bool = False
    ) -> list[Mapping]:
        """Return the record of every identity; raises KeyError if one is missing."""
        return [
            self.by_key[number, attack, eps, customizer, attributes] for number in self.identities
        ]

    def retention(self, attack: str, eps: float = 0, customizer: str = "dreambooth") -> list:
        found = self.of(attack, eps, customizer)
        return [record["scores"]["protected"]["identity_retention"] for record in found]


def aims(results: Results, output_dir: Path) -> list[list[str]]:
    """Return a row for each aim: what, the aim, the figure with its 95 % interval, whether met."""
    rows = []

    def row(what: str, aim: str, figure: Estimate, met: bool, more: str = "") -> None:
        rows.append([what, aim, text(figure) + more, "yes" if met else "no"])

    clean = results.retention("none")
    lora = results.retention("none", customizer="lora")
    fdfr = estimate([r["scores"]["unprotected"]["fdfr"] for r in results.of("none")])
    row("retention, DreamBooth", ">= 0.6", e := estimate(clean), e.mean >= 0.6)
    row("FDFR, DreamBooth", "<= 0.05", fdfr, fdfr.mean <= 0.05)
    row("retention, LoRA", ">= 0.5", e := estimate(lora), e.mean >= 0.5)
    for eps, least in ((8, 0.3), (16, 0.5)):
        for attack in ("aspl", "simac"):
            left = results.retention(attack, eps)
            test = paired_comparison(clean, left)
            met = test.difference.mean >= least and test.p_value < 0.01
            middle = median(a - b for a, b in zip(clean, left, strict=True))
            p = f", p = {test.p_value:.2g}, median {middle:.2f}"
            row(f"{attack} lowers it at eps {eps}", f">= {least}", test.difference, met, p)
            placebo = paired_comparison(
                results.retention("noise", eps), results.retention(attack, eps)
            )
            p = f", p = {placebo.p_value:.2g}"
            below = placebo.difference.mean > 0 and placebo.p_value < 0.01
            row(f"{attack} below the placebo at eps {eps}", "> 0", placebo.difference, below, p)
    noise = paired_comparison(clean, results.retention("noise", 8)).difference
    row("noise lowers it at eps 8", "< 0.1", noise, abs(noise.mean) < 0.1)
    for attack in ("aspl", "simac"):
        grows = [estimate(results.retention(attack, eps)).mean for eps in EPS]
        figure = " > ".join(f"{mean:.2f}" for mean in grows)
        met = grows == sorted(grows, reverse=True)
        rows.append(
            [f"{attack}: retention at eps 4, 8, 16", "falls", figure, "yes" if met else "no"]
        )
    for name, margins in closeness(results.of("none"), output_dir).items():
        row(
            f"gallery nearer to set B than set C is, {name}",
            "<= 0",
            e := estimate(margins),
            e.mean <= 0,
        )
    followed = followed_prompts(results.of("none", attributes=True), output_dir)
    for prompt, shares in followed.items():
        row(f"followed: {prompt}", ">= 0.5", e := estimate(shares), (e.mean or 0) >= 0.5)
    for attack in ("aspl", "simac"):
        kept = estimate(protected_similarity(results.of(attack, 8), output_dir))
        row(
            f"SFace similarity kept by {attack}'s photos at eps 8", ">= 0.8", kept, kept.mean >= 0.8
        )
    return rows


def retention_table(results: Results) -> list[list[str]]:
    """Return a row for each arm: retention, ISM over detected faces and FDFR, with intervals."""
    arms = [("none", 0, "dreambooth"), ("none", 0, "lora")]
    arms += [(attack, eps, "dreambooth") for attack in ("noise", "aspl", "simac") for eps in EPS]
    rows = []
    for attack, eps, customizer in arms:
        scores = [r["scores"]["protected"] for r in results.of(attack, eps, customizer)]
        keys = ("identity_retention", "ism", "ism_failures_as_0", "fdfr", "ser_fiq", "brisque")
        cells = [text(estimate([score[key] for score in scores])) for key in keys]
        rows.append([attack, eps, customizer, *cells])
    return rows


def text(figure: Estimate) -> str:
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
    found = records.read_all(settings.output_dir / "records")
    try:
        results = Results(found, identities)
    except ValueError as error:
        sys.exit(f"error: {error}")
    headings = ["attack", "eps", "customizer", "retention", "ISM", "failures as 0", "FDFR"]
    headings += ["SER-FIQ", "BRISQUE"]
    tables = [
        tabulate(retention_table(results), headings, "github"),
        tabulate(aims(results, settings.output_dir), ["what", "aim", "figure", "met"], "github"),
    ]
    report = f"{len(identities)} identities, means [95 % interval]\n\n" + "\n\n".join(tables) + "\n"
    (settings.output_dir / "report.md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
