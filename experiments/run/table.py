"""The tables that end a run on the terminal."""

import sys
from collections.abc import Sequence
from statistics import fmean

from tabulate import tabulate

from eval.metrics import METRICS
from eval.statistics import estimate
from experiments.records.record import Scored

ARMS = ("unprotected", "protected")

LEGEND = "Arrows: towards better protection. Failures: images without a face."
SHOWN = ("ism", "ism_failures_as_0", "identity_retention", "fdfr", "ser_fiq", "brisque")


def print_table(records: Sequence[Scored]) -> None:
    """Print the scores of one record, or the means over several identities, with their legend."""
    print_text(table(records[0]) if len(records) == 1 else means(records))


def print_text(text: str) -> None:
    """Print a table on any terminal: some lack the arrows."""
    encoding = sys.stdout.encoding or "utf-8"
    print(f"\n{text}\n".encode(encoding, "replace").decode(encoding))


def table(record: Scored) -> str:
    """Return the scores of both victims, also by prompt, and how visible the protection is."""
    keys = _measured([record])
    rows = [[arm, *(_number(score(record, arm, key), key) for key in keys)] for arm in ARMS]
    rows.append(["difference", *(_number(_change(record, key), key, "+") for key in keys)])
    blocks = [
        _title(record, f"{record.dataset} {record.identity}"),
        _grid(rows, ["victim", *(heading(key, record) for key in keys)]),
        _prompts(record),
        _perceptibility([record]),
    ]
    return "\n\n".join(blocks) + "\n" + LEGEND


def means(records: Sequence[Scored]) -> str:
    """Return means over identities with intervals, of both victims and the paired difference."""
    rows = []
    for key in _measured(records):
        change = _estimated([_change(record, key) for record in records], key, "+")
        cells = [mean(records, arm, key) for arm in ARMS]
        rows.append([heading(key, records[0]), *cells, change])
    title = _title(records[0], f"{len(records)} identities of {records[0].dataset}")
    blocks = [title, _grid(rows, ["score", *ARMS, "difference"]), _perceptibility(records)]
    return "\n\n".join(blocks) + "\n" + LEGEND + " [95 % interval]"


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


def _measured(records: Sequence[Scored]) -> list[str]:
    """Return the columns in which any record has a value."""
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


def mean(records: Sequence[Scored], arm: str, key: str) -> str:
    """Return the mean score of an arm with its interval, and `n` where some have no score."""
    return _estimated([score(record, arm, key) for record in records], key)


def _estimated(values: Sequence[float | None], key: str, sign: str = "") -> str:
    result = estimate(values)
    text = _number(result.mean, key, sign)
    if result.low is not None:
        text += f" [{_number(result.low, key, sign)}, {_number(result.high, key, sign)}]"
    return text if result.n in (0, len(values)) else f"{text} (n={result.n})"


def _prompts(record: Scored) -> str:
    """Return a line for each prompt: unprotected -> protected."""
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
