"""The leaderboard of the committed records: README.md, index.html, scores.csv and figures.

`python -m experiments.leaderboard` writes it anew; equal records give equal bytes.
"""

import argparse
import base64
import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import jinja2
from tabulate import tabulate

from eval.metrics import METRICS
from eval.statistics import Estimate
from experiments import records
from experiments.configurations import OWN, Setting
from experiments.disk import atomic_write
from experiments.leaderboard_figures import figures
from experiments.standings import (
    FEWEST,
    LEVEL,
    SCORE,
    TESTS,
    Row,
    StandingsError,
    Test,
    is_unprotected,
    standings,
)
from experiments.tables import COLUMNS

HERE = Path(__file__).parent
RECORDS, LEADERBOARD = HERE / "records", HERE / "leaderboard"
# heading, factor and format of the scores that a reader sees; scores.csv has all
SHOWN = {
    SCORE: ("identity retention", 1, ".2f"),
    **{key: column for key, column in COLUMNS.items() if key != SCORE},
    "psnr": ("PSNR", 1, ".1f"),
    "ssim": ("SSIM", 1, ".3f"),
}
SHOWN["ism_failures_as_0"] = ("ISM, failures as 0", 1, ".3f")
READING = (
    "Means over identities with their 95 % bootstrap interval (BCa); several seeds of an identity "
    "are averaged first. Arrows point towards better protection. Identity retention ranks: 0 means "
    "that the customized model draws strangers, 1 the person as unseen photos show them. Methods "
    "are compared within a setting and budget only, identity by identity (Wilcoxon signed rank), "
    f"all pairs of a group corrected together (Holm); those that cannot be told apart (p >= "
    f"{LEVEL}) from the best of the rows still without a rank share its rank. Nothing is ranked on "
    f"fewer than {FEWEST} identities. `noise` is the placebo that a method must beat, `none` the "
    "same adversary on unprotected photos. ISM is over detected faces: read it with FDFR, the "
    "share of images without a face, and with ISM where those count as 0. Scores of different "
    "face recognizers (in brackets) do not compare."
)


@dataclass(frozen=True)
class Column:
    """A score of one recognizer, or of none if it needs none."""

    metric: str
    backbone: str | None

    @property
    def heading(self) -> str:
        arrow = "↓" if METRICS[self.metric]["direction"] == "lower" else "↑"
        return f"{SHOWN[self.metric][0]}{f' ({self.backbone})' if self.backbone else ''} {arrow}"

    def of(self, row: Row) -> Estimate | None:
        fits = self.backbone in (None, row.configuration.setting.backbone)
        return row.scores.get(self.metric) if fits else None

    def text(self, row: Row) -> str:
        return estimate_text(self.of(row), self.metric, len(row.identities))


def columns(rows: Iterable[Row], metrics: Iterable[str]) -> list[Column]:
    """The columns that hold any value, those of each metric side by side."""
    found = {
        (metric, row.configuration.setting.backbone if METRICS[metric]["backbone"] else None)
        for row in rows
        for metric, of in row.scores.items()
        if of.n
    }
    order = list(metrics)
    kept = [one for one in found if one[0] in order]
    return [Column(*one) for one in sorted(kept, key=lambda c: (order.index(c[0]), c[1] or ""))]


def estimate_text(of: Estimate | None, metric: str, identities: int, sign: str = "") -> str:
    if of is None or of.mean is None:
        return ""
    _, factor, form = SHOWN[metric]
    text = f"{factor * of.mean:{sign}{form}}"
    if of.low is not None:
        text += f" [{factor * of.low:{sign}{form}}, {factor * of.high:{sign}{form}}]"
    return text if of.n == identities else f"{text} (n={of.n})"


def test_text(test: Test | None) -> str:
    if test is None:
        return ""
    p = "p < 0.0001" if test.p_value < 0.0001 else f"p = {test.p_value:.2g}"
    return f"{estimate_text(test.mean, SCORE, test.mean.n, '+')}, {p}"


def rank_text(row: Row) -> str:
    return f"- ({row.unranked})" if row.rank is None else str(row.rank)


def leaderboard(found: Mapping[str, Mapping], pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Return the leaderboard's files by their names, from named records and their JPEG strips."""
    rows = standings(found)
    drawn = figures(rows)
    return {
        "README.md": _readme(rows, len(found), drawn),
        "index.html": _page(rows, found, pictures, drawn),
        "scores.csv": _scores(rows),
        **{name: svg for name, (_, svg) in drawn.items()},
    }


def _readme(rows: Sequence[Row], count: int, drawn: Mapping[str, tuple[str, str]]) -> str:
    blocks = ["# Leaderboard"]
    blocks.append(
        "Made by `make leaderboard` from the records in [../records](../records); do not edit. "
        "[index.html](index.html) sorts, filters and shows pictures and commands, "
        "[scores.csv](scores.csv) has every figure, "
        "[docs/leaderboard.md](../../docs/leaderboard.md) explains both."
    )
    if not rows:
        return "\n\n".join([*blocks, "**There are no records yet.**"]) + "\n"
    blocks += [f"{count} records. {READING}"]
    for setting in dict.fromkeys(row.configuration.setting for row in rows):
        blocks.append(f"## {setting.dataset}, {setting.customizer}\n{setting.title}")
        of = [row for row in rows if row.configuration.setting == setting]
        shown = columns(of, SHOWN)
        headings = ["rank", "method", "identities", *(column.heading for column in shown)]
        headings += ["against the placebo", "against the best"]
        for eps in dict.fromkeys(row.configuration.eps for row in of):
            cells = [
                [
                    rank_text(row),
                    f"`{row.configuration.method}`",
                    len(row.identities),
                    *(column.text(row) for column in shown),
                    *(test_text(getattr(row, name)) for name in TESTS),
                ]
                for row in of
                if row.configuration.eps == eps
            ]
            table = tabulate(cells, headings, "pipe", disable_numparse=True)
            blocks.append(f"eps {eps:g}:\n\n{table}")
    for name, (title, _) in drawn.items():
        blocks.append(f"![{title}]({name})\n\n{title}")
    return "\n\n".join(blocks) + "\n"


def _scores(rows: Sequence[Row]) -> str:
    settings = [field.name for field in fields(Setting)]
    shown = columns(rows, METRICS)
    ends = ("mean", "low", "high", "n")
    headings = [*settings, "eps", "method", "rank", "unranked", "identities", "seeds"]
    for column in shown:
        name = f"{column.metric} ({column.backbone})" if column.backbone else column.metric
        headings += [f"{name} {end}" for end in ends]
    headings += [f"{name} {end}" for name in TESTS for end in (*ends, "p_value")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(headings)
    for row in rows:
        configuration = row.configuration
        line = [getattr(configuration.setting, name) for name in settings]
        line += [f"{configuration.eps:g}", configuration.method, row.rank, row.unranked]
        line += [len(row.identities), row.seeds]
        for column in shown:
            line += [getattr(column.of(row), end, None) for end in ends]
        for name in TESTS:
            test = getattr(row, name)
            line += [getattr(test and test.mean, end, None) for end in ends]
            line.append(test and test.p_value)
        writer.writerow(line)
    return file.getvalue()


def _page(
    rows: Sequence[Row],
    found: Mapping[str, Mapping],
    pictures: Mapping[str, bytes],
    drawn: Mapping[str, tuple[str, str]],
) -> str:
    shown = columns(rows, SHOWN)
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    entries = [_entry(row, shown, found, pictures) for row in rows]
    choices = {
        key: sorted({entry[key] for entry in entries})
        for key in ("dataset", "customizer", "setting")
    }
    choices["eps"] = sorted({entry["eps"] for entry in entries}, key=float)
    return environment.get_template("leaderboard_page.html").render(
        rows=entries,
        choices=choices,
        columns=[(column.heading, METRICS[column.metric]["description"]) for column in shown],
        figures=[(title, base64.b64encode(svg.encode()).decode()) for title, svg in drawn.values()],
        count=len(found),
        reading=READING,
    )


def _entry(
    row: Row, shown: Sequence[Column], found: Mapping[str, Mapping], pictures: Mapping[str, bytes]
) -> dict:
    """What the page says of a row."""
    configuration = row.configuration
    setting, members = configuration.setting, [found[name] for name in row.records]
    means = [getattr(column.of(row), "mean", None) for column in shown]
    tests = [getattr(row, name) for name in TESTS]
    return {
        "method": configuration.method,
        "dataset": setting.dataset,
        "customizer": setting.customizer,
        "setting": setting.title,
        "eps": f"{configuration.eps:g}",
        "rank": row.rank,
        "rank_text": rank_text(row),
        "identities": len(row.identities),
        "scores": [(mean, column.text(row)) for mean, column in zip(means, shown, strict=True)],
        "tests": [(test and test.mean.mean, test_text(test)) for test in tests],
        "picture": _picture(row, found, pictures),
        "people": ", ".join(row.identities),
        "commands": list(dict.fromkeys(one["command"] for one in members if "command" in one)),
        "imported": sorted(
            f"{one['imported']['file']}, line {one['imported']['line']}"
            for one in members
            if setting.source != OWN
        ),
    }


def _picture(
    row: Row, found: Mapping[str, Mapping], pictures: Mapping[str, bytes]
) -> tuple[str, str] | None:
    """The identity and the base64 text of the first strip of a row."""
    for identity in row.identities:
        for name in row.records:
            # the strip of another method's record shows what that one protected
            own = is_unprotected(row.configuration) == (found[name]["attack"] == "none")
            if own and name in pictures and found[name]["identity"] == identity:
                return identity, base64.b64encode(pictures[name]).decode()
    return None


def read(folder: Path) -> tuple[dict[str, dict], dict[str, bytes]]:
    """The records under a folder and the strips beside them, by name; none without the folder."""
    files = sorted(folder.rglob("*.json"))
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
    found = {name: records.read(path) for name, path in paths.items()}
    strips = {name: path.with_suffix(".jpg") for name, path in paths.items()}
    return found, {name: path.read_bytes() for name, path in strips.items() if path.exists()}


def write(files: Mapping[str, str], folder: Path) -> None:
    """Make the folder's leaderboard that of `files`: figures of an earlier one go."""
    for name, text in files.items():
        atomic_write(folder / name, text)
    for path in folder.glob("*.svg"):
        if path.name not in files:
            path.unlink()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder to read")
    parser.add_argument("--output-dir", type=Path, default=LEADERBOARD, help="folder to write")
    asked = parser.parse_args(arguments)
    try:
        found, pictures = read(asked.records)
        write(leaderboard(found, pictures), asked.output_dir)
    except (records.RecordError, StandingsError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(found)} records -> {asked.output_dir / 'index.html'}")


if __name__ == "__main__":
    main()
