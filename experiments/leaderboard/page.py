"""The leaderboard's page: one HTML file that sorts, filters and shows pictures and commands."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2

from experiments.leaderboard.columns import SHOWN, columns, identities_text, rank_text
from experiments.leaderboard.standings import Row
from experiments.records.files import natural
from experiments.records.record import Imported, Record, Scored

IDENTITIES = re.compile(r"'?dataset\.identities=\[([\d, ]+)\]'?")
GAP = "\0"


def page(
    rows: Sequence[Row],
    records: Mapping[str, Scored],
    strips: Mapping[str, str],
    drawn: Mapping[str, tuple[str, str]],
    reading: Sequence[str],
) -> str:
    """Return the page of rows of named records.

    `strips` has links to strips of pictures by records' names, `drawn` the figures by file name.
    Each line of `reading` says how to read the page.
    """
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    choices = {
        "dataset": sorted({row.setting.dataset for row in rows}),
        "customizer": sorted({row.setting.customizer for row in rows}),
        "setting": sorted({row.setting.title for row in rows}),
        "eps": [f"{eps:g}" for eps in sorted({row.eps for row in rows})],
    }
    return environment.get_template("page.html").render(
        rows=[(row, _details(row, [records[k] for k in row.records], strips)) for row in rows],
        choices=choices,
        columns=columns(rows, SHOWN),
        rank_text=rank_text,
        identities_text=identities_text,
        figures=[(name, title) for name, (title, _) in drawn.items()],
        count=len(records),
        reading=reading,
    )


def _details(row: Row, members: Sequence[Scored], strips: Mapping[str, str]) -> dict:
    """Return what an opened row shows beside the row's own entries."""
    origins = [record.imported for record in members if isinstance(record, Imported)]
    return {
        "strip": _strip(row, members, strips),
        "commands": merged(record.command for record in members if isinstance(record, Record)),
        "imported": sorted(f"{origin.file}, line {origin.line}" for origin in origins),
    }


def _strip(row: Row, members: Sequence[Scored], strips: Mapping[str, str]) -> dict | None:
    """Return the link of a row's first strip, with its identity and attack.

    The strip of unprotected photos may be one of an attack, which shows them too.
    """
    with_strip = [record for record in members if record.name in strips]
    if not with_strip:
        return None
    first = min(with_strip, key=lambda r: (r.attack != row.attack, natural(r.identity)))
    return {"link": strips[first.name], "identity": first.identity, "attack": first.attack}


def merged(commands: Iterable[str]) -> list[str]:
    """Return distinct commands; those that differ in the numbers of identities alone become one."""
    numbers: dict[str, list[str]] = defaultdict(list)  # by the command with a gap
    for command in commands:
        words = " ".join(IDENTITIES.findall(command))
        numbers[IDENTITIES.sub(GAP, command)] += re.findall(r"\d+", words)
    return [
        command.replace(GAP, f"'dataset.identities=[{','.join(dict.fromkeys(identities))}]'")
        for command, identities in numbers.items()
    ]
