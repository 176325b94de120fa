"""The tables that end a run on the terminal."""

import sys
from collections.abc import Sequence
from statistics import fmean

from tabulate import tabulate

from eval.metrics import METRICS
from eval.statistics import Estimate, estimate
from experiments.records.record import Scored

ARMS = ("unprotected", "protected")

SHOWN = ("ism", "ism_failures_as_0", "identity_retention", "fdfr", "ser_fiq", "brisque")


def print_table(records: Sequence[Scored]) -> None:
    """Print the scores of one record, or the means over several identities, with their legend."""
    text = table(records[0]) if len(records) == 1 else means(records)
    encoding = sys.stdout.encoding or "utf-8"  # a terminal may lack the arrows
    print(f"\n{text}\n".encode(encoding, "replace").decode(encoding))


def table(record: Scored) -> str:
    """Scores of both victims, overall and for each prompt, and how visible the protection is."""
    keys = _measured([record])
    rows = [[arm, *(_number(score(record, arm, key), key) for key in keys)] for arm in ARMS]
    changes = (_change(record, key) for key in keys)
    rows.append(["difference", *map(_signed, changes, keys)])
    blocks = [
        _title(record, f"{record.dataset} {record.identity}"),
        _grid(rows, ["victim", *(heading(key, record) for key in keys)]),
        _prompts(record),
        _perceptibility([record]),
    ]
    return "\n\n".join(blocks) + "\n" + _legend()


def means(records: Sequence[Scored]) -> str:
    """Means over identities with their intervals, of both victims and of the paired difference."""
    rows = []
    for key in _measured(records):
        cells = [
            estimated(estimate([score(record, arm, key) for record in records]), key, records)
            for arm in ARMS
        ]
        change = estimate([_change(record, key) for record in records])
        rows.append([heading(key, records[0]), *cells, estimated(change, key, records, "+")])
    title = _title(records[0], f"{len(records)} identities of {records[0].dataset}")
    blocks = [title, _grid(rows, ["score", *ARMS, "difference"]), _perceptibility(records)]
    return "\n\n".join(blocks) + "\n" + _legend(" [95 % interval]")


def _title(record: Scored, subject: str) -> str:
    return (
        f"{record.attack} at eps {record.eps:g} on {subject}, victim {record.customizer}"
        f"{setting(record)} (surrogate {record.surrogate_model})"
    )


def setting(record: Scored) -> str:
    """Return how the adversary departs from customizing on the protected photos as assumed."""
    text = ""
    if record.countermeasure != "none":
        text += f" after {record.countermeasure}"
    if record.clean_photos:
        text += f" with {record.clean_photos} of the photos clean"
    if record.adversary != "as_assumed":
        text += f", {record.adversary.replace('_', ' ')}"
    return text


def _legend(more: str = "") -> str:
    return f"Arrows: towards better protection. Failures: images without a face.{more}"


def _measured(records: Sequence[Scored]) -> list[str]:
    """The columns in which any record has a value."""
    arms = [(record, arm) for record in records for arm in ARMS]
    return [key for key in SHOWN if any(score(*pair, key) is not None for pair in arms)]


def score(record: Scored, arm: str, metric: str) -> float | None:
    """Return a score of an arm; None where it was not measured."""
    return getattr(record.scores, arm).numbers.get(metric)


def heading(key: str, record: Scored) -> str:
    backbone = f" {record.scorer.backbone}" if key == "ism" else ""
    metric = METRICS[key]
    return f"{metric['heading']}{backbone} {'↓' if metric['direction'] == 'lower' else '↑'}"


def _change(record: Scored, key: str) -> float | None:
    before, after = (score(record, arm, key) for arm in ARMS)
    return None if before is None or after is None else after - before


def _number(value: float | None, key: str, sign: str = "") -> str:
    metric = METRICS[key]
    return "-" if value is None else f"{metric['factor'] * value:{sign}{metric['format']}}"


def _signed(value: float | None, key: str) -> str:
    return _number(value, key, "+")


def estimated(of: Estimate, key: str, records: Sequence[Scored], sign: str = "") -> str:
    text = _number(of.mean, key, sign)
    if of.low is not None:
        text += f" [{_number(of.low, key, sign)}, {_number(of.high, key, sign)}]"
    return text if of.n in (0, len(records)) else f"{text} (n={of.n})"


def _prompts(record: Scored) -> str:
    """A line for each prompt: unprotected -> protected."""
    keys = ("ism", "ism_failures_as_0", "fdfr")
    rows = []
    for before, after in zip(*(getattr(record.scores, arm).prompts for arm in ARMS), strict=True):
        pairs = (f"{_number(before[key], key)} -> {_number(after[key], key)}" for key in keys)
        rows.append([before["prompt"], *pairs])
    return _grid(rows, ["prompt", *(heading(key, record) for key in keys)])


def _perceptibility(records: Sequence[Scored]) -> str:
    visible = [record.perceptibility for record in records]
    largest = max(values.linf for values in visible)
    text = f"Photos changed by at most {largest:g} grey levels (eps {records[0].eps:g})"
    for key, form in (("psnr", "PSNR {:.1f} dB"), ("ssim", "SSIM {:.3f}")):
        values = [getattr(row, key) for row in visible if getattr(row, key) is not None]
        text += ", " + (form.format(fmean(values)) if values else form.split()[0] + " -")
    return text


def _grid(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    align = ["left", *["right"] * (len(headings) - 1)]
    return tabulate(rows, headings, "simple", disable_numparse=True, colalign=align)
