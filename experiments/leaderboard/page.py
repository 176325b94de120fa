"""The leaderboard's page: one HTML file that sorts, filters and shows pictures and commands."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from experiments.leaderboard.columns import (
    SHOWN,
    Column,
    Difference,
    columns,
    differences,
    identities_text,
    rank_text,
)
from experiments.leaderboard.standings import Row
from experiments.records.record import natural


def page(
    rows: Sequence[Row],
    found: Mapping[str, Mapping],
    pictures: Mapping[str, bytes],
    drawn: Mapping[str, tuple[str, str]],
    reading: Sequence[str],
) -> str:
    """Return the page of rows of named records, with their JPEG strips and the figures by file
    name; `reading` says how to read it, a line each.
    """
    shown = [*columns(rows, SHOWN), *differences(rows)]
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
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
    return environment.get_template("page.html").render(
        rows=entries,
        choices=choices,
        columns=[(column.heading, column.description) for column in shown],
        figures=[(title, base64.b64encode(svg.encode()).decode()) for title, svg in drawn.values()],
        count=len(found),
        reading=reading,
    )


def _entry(
    row: Row,
    shown: Sequence[Column | Difference],
    found: Mapping[str, Mapping],
    pictures: Mapping[str, bytes],
) -> dict:
    """What the page says of a row."""
    configuration = row.configuration
    setting, members = configuration.setting, [found[name] for name in row.records]
    means = [getattr(column.of(row), "mean", None) for column in shown]
    return {
        "method": configuration.method,
        "dataset": setting.dataset,
        "customizer": setting.customizer,
        "setting": setting.title,
        "eps": f"{configuration.eps:g}",
        "rank": row.rank,
        "rank_text": rank_text(row),
        "identities": len(row.identities),
        "identities_text": identities_text(row),
        "comparable": row.comparable,
        "scores": [(mean, column.text(row)) for mean, column in zip(means, shown, strict=True)],
        "picture": _picture(row, found, pictures),
        "processors": "; ".join(row.processors),
        "other_photos": ", ".join(row.other_photos),
        "people": ", ".join(row.identities),
        "commands": list(dict.fromkeys(one["command"] for one in members if "command" in one)),
        "imported": sorted(
            f"{one['imported']['file']}, line {one['imported']['line']}"
            for one in members
            if "imported" in one
        ),
    }


def _picture(
    row: Row, found: Mapping[str, Mapping], pictures: Mapping[str, bytes]
) -> dict[str, str] | None:
    """The first strip of a row: its identity, its attack, and its base64 text.

    That of unprotected photos may be of another attack, which shows them too.
    """
    of_attack = row.configuration.method.split(" (")[0]

    def place(name: str) -> tuple:
        return found[name]["attack"] != of_attack, natural(found[name]["identity"])

    name = min((name for name in row.records if name in pictures), key=place, default=None)
    if name is None:
        return None
    content = base64.b64encode(pictures[name]).decode()
    return {key: found[name][key] for key in ("identity", "attack")} | {"content": content}
