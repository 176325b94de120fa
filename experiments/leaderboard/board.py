"""The leaderboard of the committed records: README.md, index.html, scores.csv and figures.

`python -m experiments.leaderboard` makes it anew; equal records give equal bytes.
"""

import argparse
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from tabulate import tabulate

from eval.metrics import METRICS
from experiments.leaderboard.columns import FEW, MARK, SHOWN, columns, identities_text, rank_text
from experiments.leaderboard.figures import figures
from experiments.leaderboard.names import Setting
from experiments.leaderboard.page import page
from experiments.leaderboard.samples import FEWEST
from experiments.leaderboard.standings import LEVEL, Row, StandingsError, standings
from experiments.records.published import RECORDS, RESULTS, read_all
from experiments.records.record import RecordError, Scored
from experiments.store.disk import atomic_write

LEADERBOARD = RESULTS / "leaderboard"
READING = (
    "Cells are means over identities with their 95 % bootstrap interval (BCa); several seeds of an "
    "identity are averaged first. (n=8) says that only 8 identities have the score, because ISM "
    "needs a face. Arrows point towards better protection.",
    f"{MARK} marks rows on fewer than {FEW} identities. Their intervals are too narrow, and so are "
    "those of cells with (n=2) to (n=5). An interval stays within the range of its n values. That "
    "range holds the mean of a symmetric distribution in at most 50, 75, 87.5 and 94 % for n = 2, "
    "3, 4 and 5.",
    "Identity retention ranks. 0 means that the customized model draws strangers, 1 that it draws "
    "the person as unseen photos show them. Negative retention means that its images resemble the "
    "person less than images of strangers do; often they show no face at all. `noise` is the "
    "placebo that a method must beat. `none` is the same adversary on unprotected photos. It has "
    "no budget, so its row stands beside each budget.",
    "Methods are compared within a setting and budget only. The columns against the placebo and "
    "against the best are differences of identity retention, the row's less the opponent's, over "
    "the identities and seeds that both have: negative means that the row protects better. p is "
    "that of a Wilcoxon signed-rank test with Holm's correction for all tests of the group against "
    "one row. Intervals are not corrected: an interval may leave out 0 beside a p above "
    f"{LEVEL}.",
    "The best row shares rank 1 with all rows that the test does not put behind it. A row is "
    f"behind if its p is below {LEVEL} and the signed ranks speak for the best row. The remaining "
    "rows are ranked in the same way. The correction does not know that the best row was chosen "
    "by looking.",
    f"A method has no rank on fewer than {FEWEST} identities. Methods have no rank either where "
    f"they are so many, and the identities so few, that no p could be below {LEVEL}. Rows over "
    "other identities than those of most methods stand apart without a rank: their means do not "
    "compare, only their differences do.",
    "ISM is over detected faces. Read it with FDFR, the share of images without a face, and with "
    "the ISM in which those count as 0. Scores of different face recognizers (in brackets) do not "
    "compare.",
    "Equal commands give equal bytes on one kind of processor. Another kind changes numbers as "
    "another seed does. If the rows of a group are of several kinds, the group says which; `none` "
    "is then their mean. Processors also draw the embedded people with some bits unlike: rows over "
    "other photos of a person than most rows are named.",
)
ASIDE = "on fewer or other identities: means compare only with those of the same identities"


def leaderboard(
    records: Mapping[str, Scored], strips: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the leaderboard's files by their names.

    `strips` has the links to strips of pictures by the names of their records.
    """
    rows = standings(records.values())
    drawn = figures(rows)
    return {
        "README.md": _readme(rows, len(records), drawn),
        "index.html": page(rows, records, strips or {}, drawn, READING),
        "scores.csv": _scores(rows),
        **{name: svg for name, (_, svg) in drawn.items()},
    }


def _readme(rows: Sequence[Row], count: int, drawn: Mapping[str, tuple[str, str]]) -> str:
    blocks = [
        "# Leaderboard",
        "Made by `make leaderboard` from the records in [../records](../records); do not edit. "
        "[index.html](index.html) sorts, filters and shows pictures and commands, "
        "[scores.csv](scores.csv) has every figure, "
        "[docs/leaderboard.md](../../../docs/leaderboard.md) explains both.",
    ]
    if not rows:
        return "\n\n".join([*blocks, "**There are no records yet.**"]) + "\n"
    blocks += [f"{count} records.", "\n".join(f"- {line}" for line in READING)]
    for setting, in_setting in groupby(rows, key=lambda row: row.setting):
        blocks.append(f"## {_plain(setting.heading)}\n{_plain(setting.title)}")
        for eps, in_group in groupby(in_setting, key=lambda row: row.eps):
            group = list(in_group)
            blocks.append(f"eps {eps:g}:\n\n{_table([row for row in group if row.comparable])}")
            if aside := [row for row in group if not row.comparable]:
                blocks.append(f"eps {eps:g}, {ASIDE}:\n\n{_table(aside)}")
            blocks += _made_on(group) + _other_photos(group)
    for name, (title, _) in drawn.items():
        blocks.append(f"![{_plain(title)}]({name})\n\n{_plain(title)}")
    return "\n\n".join(blocks) + "\n"


def _made_on(rows: Sequence[Row]) -> list[str]:
    """Return which processors made which rows, if they are not the same for all."""
    methods: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        methods["; ".join(map(_plain, row.processors))].append(_code(row.method))
    if len(methods) < 2:
        return []
    lines = [f"- {processors}: {', '.join(names)}" for processors, names in methods.items()]
    return ["Computed on\n\n" + "\n".join(lines)]


def _other_photos(rows: Sequence[Row]) -> list[str]:
    """Return which rows are over other photos of a person than most."""
    photos = {_code(row.method): ", ".join(map(_plain, row.other_photos)) for row in rows}
    lines = [f"- {method}: {identities}" for method, identities in photos.items() if identities]
    return ["Of other photos than most rows\n\n" + "\n".join(lines)] if lines else []


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return re.sub(r"([\\`*<>\[\]|#])", r"\\\1", text)


def _code(text: str) -> str:
    """Return text between backticks that may stand in a cell."""
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def _table(rows: Sequence[Row]) -> str:
    shown = columns(rows, SHOWN)
    headings = ["rank", "method", "identities", *(_plain(column.heading) for column in shown)]
    cells = []
    for row in rows:
        scores = [column.text(row) for column in shown]
        cells.append([rank_text(row), _code(row.method), identities_text(row), *scores])
    return tabulate(cells, headings, "pipe", disable_numparse=True)


def _scores(rows: Sequence[Row]) -> str:
    settings = [field.name for field in fields(Setting) if field.name != "digest"]
    shown, ends = columns(rows, METRICS), ("mean", "low", "high", "n")
    headings = [*settings, "eps", "method", "rank", "unranked", "comparable", "identities", "seeds"]
    headings += ["processors", "other_photos"]
    for column in shown:
        headings += [f"{column.name} {end}" for end in ends]
        headings += [f"{column.name} p_value"] if column.test else []
    lines = []
    for row in rows:
        line = [getattr(row.setting, name) for name in settings]
        line += [f"{0 if row.is_unprotected else row.eps:g}", row.method, row.rank, row.unranked]
        line += ["yes" if row.comparable else "no", len(row.identities), row.seeds]
        line += ["; ".join(row.processors), ", ".join(row.other_photos)]
        for column in shown:
            line += [getattr(column.estimate(row), end, None) for end in ends]
            line += [column.p_value(row)] if column.test else []
        lines.append(line)
    # unprotected photos have no budget, and their row stands beside each budget
    table = pd.DataFrame(lines, columns=headings, dtype=object).drop_duplicates()
    return table.to_csv(index=False, lineterminator="\n")


def read(folder: Path) -> dict[str, Scored]:
    """Return the records in all files under a folder by their names."""
    return read_all(sorted(folder.rglob("*.json*")))


def links(records: Path, output_dir: Path) -> dict[str, str]:
    """Return links from the leaderboard to the strips beside the records, by records' names."""
    strips = sorted(records.with_name("strips").glob("*.jpg"))
    return {path.stem: quote(Path(os.path.relpath(path, output_dir)).as_posix()) for path in strips}


def write(files: Mapping[str, str], folder: Path) -> None:
    """Make the folder's leaderboard that of `files`.

    The figures of an earlier leaderboard, which its README shows, go.
    """
    readme = folder / "README.md"
    before = readme.read_text(encoding="utf-8") if readme.exists() else ""
    for name, text in files.items():
        atomic_write(folder / name, text)
    for name in set(re.findall(r"\]\(([\w.-]+\.svg)\)", before)) - set(files):
        (folder / name).unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder to read")
    parser.add_argument("--output-dir", type=Path, default=LEADERBOARD, help="folder to write")
    options = parser.parse_args(arguments)
    folder, output_dir = options.records, options.output_dir
    if not folder.is_dir():
        sys.exit(f"error: --records {folder}: no such folder; name one that holds records")
    try:
        records = read(folder)
        write(leaderboard(records, links(folder, output_dir)), output_dir)
    except (RecordError, StandingsError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(records)} records -> {output_dir / 'index.html'}")
