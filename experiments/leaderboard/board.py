"""The leaderboard of the committed records: README.md, index.html, scores.csv and figures.

`python -m experiments.leaderboard` writes it anew; equal records give equal bytes.
"""

import argparse
import csv
import io
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from tabulate import tabulate

from eval.metrics import METRICS
from experiments.leaderboard.columns import (
    FEW,
    MARK,
    SHOWN,
    columns,
    differences,
    identities_text,
    rank_text,
)
from experiments.leaderboard.figures import figures
from experiments.leaderboard.page import page
from experiments.leaderboard.samples import FEWEST, is_unprotected
from experiments.leaderboard.standings import LEVEL, Row, StandingsError, standings
from experiments.records import record as records
from experiments.records.naming import Setting
from experiments.store.disk import atomic_write

HERE = Path(__file__).parents[1] / "results"
RECORDS, LEADERBOARD = HERE / "records", HERE / "leaderboard"
READING = (
    "Cells are means over identities, several seeds of an identity averaged first, with their 95 % "
    "bootstrap interval (BCa); (n=8) says that only 8 identities have the score, for ISM needs a "
    "face. Arrows point towards better protection.",
    f"{MARK} marks rows on fewer than {FEW} identities: their intervals are too narrow. That of n "
    "values stays within their range, which holds the mean of a symmetric distribution in at most "
    "1 - 2^(1-n) of all cases: 50, 75, 87.5 and 94 % for n = 2, 3, 4 and 5. This goes for cells "
    "with (n=2) to (n=5) too.",
    "Identity retention ranks: 0 means that the customized model draws strangers, 1 the person as "
    "unseen photos show them; below 0 it draws what is less like the person than strangers are, "
    "often no face at all. `noise` is the placebo that a method must beat; `none` is the same "
    "adversary on unprotected photos, which have no budget, beside each budget.",
    "Methods are compared within a setting and budget only. The columns against the placebo and "
    "against the best are differences of identity retention, the row's less the other's, over the "
    "identities and seeds that both have: negative means that the row protects better. p is that "
    "of a Wilcoxon signed-rank test, corrected (Holm) for all tests of the group against one row. "
    f"Intervals are not corrected: one may leave out 0 beside a p above {LEVEL}.",
    f"The best and those that the test does not put behind it (p >= {LEVEL}, or signed ranks that "
    "speak for the other, where few people make the best mean) share rank 1. The best of the "
    "others is tested against the rest in the same way, and so on. The correction does not know "
    "that the best was chosen by looking.",
    f"Nothing is ranked on fewer than {FEWEST} identities, nor where so many methods are tested on "
    f"so few that no p could be below {LEVEL}. Means over other identities than those of most "
    "methods do not compare with theirs: such rows stand apart without a rank, and only their "
    "differences tell more.",
    "ISM is over detected faces: read it with FDFR, the share of images without a face, and with "
    "ISM where those count as 0. Scores of different face recognizers (in brackets) do not "
    "compare.",
    "A command ends with the same bytes on one kind of processor. On another it ends otherwise, as "
    "with another seed; so differences between rows of several kinds hold what that does, too. "
    "Where a group's rows are of several, it says which; `none` is then the mean of them. Rows "
    "over other photos of somebody than most are named too: processors draw the embedded ones with "
    "some bits unlike, and other files may have gone by the same names.",
)
ASIDE = "on fewer or other identities: means compare only with those of the same identities"


def leaderboard(found: Mapping[str, Mapping], pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Return the leaderboard's files by their names, from named records and their JPEG strips."""
    rows = standings(found)
    drawn = figures(rows)
    return {
        "README.md": _readme(rows, len(found), drawn),
        "index.html": page(rows, found, pictures, drawn, READING),
        "scores.csv": _scores(rows),
        **{name: svg for name, (_, svg) in drawn.items()},
    }


def _readme(rows: Sequence[Row], count: int, drawn: Mapping[str, tuple[str, str]]) -> str:
    blocks = ["# Leaderboard"]
    blocks.append(
        "Made by `make leaderboard` from the records in [../records](../records); do not edit. "
        "[index.html](index.html) sorts, filters and shows pictures and commands, "
        "[scores.csv](scores.csv) has every figure, "
        "[docs/leaderboard.md](../../../docs/leaderboard.md) explains both."
    )
    if not rows:
        return "\n\n".join([*blocks, "**There are no records yet.**"]) + "\n"
    blocks += [f"{count} records.", "\n".join(f"- {line}" for line in READING)]
    for setting in dict.fromkeys(row.configuration.setting for row in rows):
        blocks.append(f"## {_plain(setting.heading)}\n{_plain(setting.title)}")
        of = [row for row in rows if row.configuration.setting == setting]
        for eps in dict.fromkeys(row.configuration.eps for row in of):
            group = [row for row in of if row.configuration.eps == eps]
            blocks.append(f"eps {eps:g}:\n\n{_table([row for row in group if row.comparable])}")
            if others := [row for row in group if not row.comparable]:
                blocks.append(f"eps {eps:g}, {ASIDE}:\n\n{_table(others)}")
            blocks += _made_on(group) + _other_photos(group)
    for name, (title, _) in drawn.items():
        blocks.append(f"![{_plain(title)}]({name})\n\n{_plain(title)}")
    return "\n\n".join(blocks) + "\n"


def _made_on(rows: Sequence[Row]) -> list[str]:
    """Which processors made which rows, where they are not the same for all."""
    methods: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        methods["; ".join(map(_plain, row.processors))].append(_code(row.configuration.method))
    if len(methods) < 2:
        return []
    return ["Computed on\n\n" + "\n".join(f"- {on}: {', '.join(of)}" for on, of in methods.items())]


def _other_photos(rows: Sequence[Row]) -> list[str]:
    """Which rows are over other photos of somebody than most."""
    lines = [
        f"- {_code(row.configuration.method)}: {', '.join(map(_plain, row.other_photos))}"
        for row in rows
        if row.other_photos
    ]
    return ["Of other photos than most rows\n\n" + "\n".join(lines)] if lines else []


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*<>\[\]|#])", r"\\\1", text)


def _code(text: str) -> str:
    """Text between backticks, also in a cell."""
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def _table(rows: Sequence[Row]) -> str:
    shown = [*columns(rows, SHOWN), *differences(rows)]
    headings = ["rank", "method", "identities", *(_plain(column.heading) for column in shown)]
    cells = [
        [
            rank_text(row),
            _code(row.configuration.method),
            identities_text(row),
            *(column.text(row) for column in shown),
        ]
        for row in rows
    ]
    return tabulate(cells, headings, "pipe", disable_numparse=True)


def _scores(rows: Sequence[Row]) -> str:
    settings = [field.name for field in fields(Setting)]
    shown, compared = columns(rows, METRICS), differences(rows)
    ends = ("mean", "low", "high", "n")
    headings = [*settings, "eps", "method", "rank", "unranked", "comparable", "identities", "seeds"]
    headings += ["processors", "other_photos"]
    headings += [f"{column.name} {end}" for column in shown for end in ends]
    headings += [f"{column.name} {end}" for column in compared for end in (*ends, "p_value")]
    lines = []
    for row in rows:
        configuration = row.configuration
        eps = 0 if is_unprotected(configuration) else configuration.eps
        line = [getattr(configuration.setting, name) for name in settings]
        line += [f"{eps:g}", configuration.method, row.rank, row.unranked]
        line += ["yes" if row.comparable else "no", len(row.identities), row.seeds]
        line += ["; ".join(row.processors), ", ".join(row.other_photos)]
        for column in shown:
            line += [getattr(column.of(row), end, None) for end in ends]
        for column in compared:
            line += [getattr(column.of(row), end, None) for end in ends]
            line.append(getattr(column.test_of(row), "p_value", None))
        lines.append(tuple(line))
    file = io.StringIO()
    # unprotected photos, which have no budget, stand beside each of the others'
    csv.writer(file, lineterminator="\n").writerows([headings, *dict.fromkeys(lines)])
    return file.getvalue()


def read(folder: Path) -> tuple[dict[str, dict], dict[str, bytes]]:
    """The records under a folder and the strips beside them, by name; none without the folder."""
    files = sorted(folder.rglob("*.json"))
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
    found = {name: records.read(path) for name, path in paths.items()}
    strips = {name: path.with_suffix(".jpg") for name, path in paths.items()}
    return found, {name: path.read_bytes() for name, path in strips.items() if path.exists()}


def write(files: Mapping[str, str], folder: Path) -> None:
    """Make the folder's leaderboard that of `files`: the figures of an earlier one, which its
    README shows, go.
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
    asked = parser.parse_args(arguments)
    if not asked.records.is_dir():
        sys.exit(f"error: --records {asked.records}: no such folder; name one that holds records")
    try:
        found, pictures = read(asked.records)
        write(leaderboard(found, pictures), asked.output_dir)
    except (records.RecordError, StandingsError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(found)} records -> {asked.output_dir / 'index.html'}")
