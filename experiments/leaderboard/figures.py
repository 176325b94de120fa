"""The figures of the leaderboard, as SVG: equal rows give equal bytes."""

import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.leaderboard.samples import is_unprotected, usual_people
from experiments.leaderboard.standings import SCORE, Row
from experiments.records.naming import OWN, Setting

# Okabe and Ito's, which colour-blind people tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
NOTHING = float("nan")
MARKERS = "os^Dv<>P*X"
HEIGHT = 3.4  # inches, of axes with their labels
STYLE = {
    "svg.hashsalt": "anticustom",  # else the names of clip paths are random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7ec",
    "axes.axisbelow": True,
    "text.parse_math": False,
}


def figures(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Return the title and the SVG of each figure by its file name; rows without the ranking
    score are in none.
    """
    settings: dict[Setting, list[Row]] = defaultdict(list)
    scored = [row for row in rows if row.score.mean is not None]
    for row in scored:
        settings[row.configuration.setting].append(row)
    settings = {setting: _comparable(of) for setting, of in settings.items()}
    found = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        for setting, of in settings.items():
            if all(is_unprotected(row.configuration) for row in of):
                continue
            title = f"{setting.dataset}, {setting.customizer}, {setting.title}"
            found[f"{_slug(title, found)}.svg"] = (title, _of_setting(of))
        for backbone in sorted({setting.backbone for setting in settings}):
            # at each budget of a setting the people of most of its rows
            own = [row for row in scored if row.configuration.setting.backbone == backbone]
            of = [row for row in own if row.comparable]
            if any(not is_unprotected(row.configuration) for row in of):
                title = f"{_score(backbone).capitalize()} by setting and budget"
                found[f"{_slug(f'settings {backbone}', found)}.svg"] = (title, _heat_map(of))
    return found


def _comparable(rows: Sequence[Row]) -> list[Row]:
    """The rows of a setting over the same people at all budgets: means over others look like
    differences between methods.
    """
    protected = [row for row in rows if not is_unprotected(row.configuration)]
    usual = usual_people(row.runs for row in protected or rows)
    return [row for row in rows if row.runs == usual]


def _score(backbone: str) -> str:
    return f"{SCORE.replace('_', ' ')} ({backbone})"


def _of_setting(rows: Sequence[Row]) -> str:
    """The score against eps, unless there is but one, and against how visible the protection is."""
    clean = [row for row in rows if is_unprotected(row.configuration)]
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row not in clean:
            lines[row.configuration.method].append(row)
    budgets = sorted({row.configuration.eps for of in lines.values() for row in of})
    seen = [_psnr(row) is not None for of in lines.values() for row in of]
    kinds = ["eps"] * (len(budgets) > 1 or not all(seen)) + ["psnr"] * any(seen)
    figure = Figure(figsize=(10 if len(kinds) > 1 else 6, HEIGHT))
    panels = dict(
        zip(kinds, figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], strict=True)
    )
    for k, (method, of) in enumerate(sorted(lines.items())):
        style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
        # side by side, so that intervals do not hide one another
        shift = 0.03 * budgets[-1] * (k / max(len(lines) - 1, 1) - 0.5)
        of = sorted(of, key=lambda row: row.configuration.eps)
        shown = [row for row in of if _psnr(row) is not None]
        if "eps" in panels:
            x = [row.configuration.eps + shift for row in of]
            _points(panels["eps"], x, of, method, style)
        if "psnr" in panels and shown:
            _points(panels["psnr"], [_psnr(row) for row in shown], shown, method, style)
    for axes in panels.values():
        if clean:
            most = max(clean, key=lambda row: row.score.n)
            axes.axhline(most.score.mean, color="#667080", linestyle="--", label="unprotected")
        axes.locator_params(nbins=6)
    first = panels[kinds[0]]
    score = _score(rows[0].configuration.setting.backbone)
    first.set_ylabel(f"{score}\n(lower: better protected)")
    if "eps" in panels:
        panels["eps"].set(xlabel="eps (grey levels)", xticks=budgets)
    if "psnr" in panels:
        panels["psnr"].set_xlabel("PSNR of the protected photos (dB; right: less visible)")
    handles, labels = first.get_legend_handles_labels()
    columns = min(len(labels), 4)
    above = 0.2 + 0.23 * -(-len(labels) // columns)  # inches, of the legend
    figure.set_figheight(HEIGHT + above)
    figure.legend(handles, labels, loc="upper center", ncols=columns, frameon=False)
    figure.subplots_adjust(
        left=0.95 / figure.get_figwidth(),
        right=0.98,
        bottom=0.5 / figure.get_figheight(),
        top=1 - above / figure.get_figheight(),
    )
    return _svg(figure)


def _psnr(row: Row) -> float | None:
    return row.scores["psnr"].mean if "psnr" in row.scores else None


def _points(
    axes: Axes, x: Sequence[float], rows: Sequence[Row], method: str, style: Mapping[str, str]
) -> None:
    scores = [row.score for row in rows]
    means = [of.mean for of in scores]
    # a single identity has no interval, and the mean of a few may lie outside theirs
    below = [0 if of.low is None else max(of.mean - of.low, 0) for of in scores]
    above = [0 if of.high is None else max(of.high - of.mean, 0) for of in scores]
    axes.errorbar(
        x,
        means,
        yerr=[below, above],
        label=_label(method),
        capsize=2,
        markersize=5,
        linewidth=1.2,
        **style,
    )


def _label(method: str) -> str:
    """What a legend shows: it leaves out what begins with an underscore."""
    return f"\u200b{method}" if method.startswith("_") else method


def _heat_map(rows: Sequence[Row]) -> str:
    """Settings and budgets against methods; empty where nothing was measured."""
    methods = sorted({row.configuration.method for row in rows})
    places = list(dict.fromkeys(map(_place, rows)))
    scores = {(*_place(row), row.configuration.method): row.score.mean for row in rows}
    values = [[scores.get((*place, method), NOTHING) for method in methods] for place in places]
    width, height = 0.6 * len(methods), 0.26 * len(places)  # inches, of the map
    people = {
        place: sorted({row.score.n for row in rows if _place(row) == place}) for place in places
    }
    names = [
        f"{_short(place[0])}, eps {place[1]:g} (n={' or '.join(map(str, people[place]))})"
        for place in places
    ]
    left, below = 0.3 + 0.06 * max(map(len, names)), 0.2
    labels = [method if len(method) <= 30 else f"{method[:28]}..." for method in methods]
    above = 0.3 + 0.04 * max(map(len, labels))  # of slanted names
    figure = Figure(figsize=(left + width + 1.2, below + height + above))
    size = (figure.get_figwidth(), figure.get_figheight())
    axes = figure.add_axes(
        (left / size[0], below / size[1], width / size[0], height / size[1]), frame_on=False
    )
    bar = figure.add_axes(
        ((left + width + 0.3) / size[0], below / size[1], 0.14 / size[0], height / size[1])
    )
    low = min(0.0, *(score for score in scores.values()))
    image = axes.imshow(values, cmap="cividis", vmin=low, vmax=1, aspect="auto")
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            if value is not NOTHING:
                ink = "black" if image.norm(value) > 0.5 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    axes.grid(False)
    axes.tick_params(length=0, labelsize=7)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(methods)), labels, rotation=40, ha="left")
    axes.set_yticks(range(len(places)), names)
    figure.colorbar(image, cax=bar, label=_score(rows[0].configuration.setting.backbone))
    return _svg(figure)


def _place(row: Row) -> tuple[Setting, float]:
    return row.configuration.setting, row.configuration.eps


def _short(setting: Setting) -> str:
    """What is not as an attack assumes, in a line."""
    words = [setting.dataset, setting.customizer]
    unlike = setting.base_model != setting.surrogate_model
    words += [
        f"{setting.surrogate_model} to {setting.base_model}" if unlike else setting.base_model
    ]
    words += [setting.countermeasure] if setting.countermeasure != "none" else []
    words += [f"{setting.clean_photos} clean"] if setting.clean_photos else []
    words += [setting.adversary.replace("_", " ")] if setting.adversary != "as_assumed" else []
    words += [setting.details] if setting.details else []
    words += [setting.source] if setting.source != OWN else []
    line = ", ".join(words)
    return line if len(line) <= 72 else f"{line[:70]}..."


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, dpi=72)
    return re.sub(r"[ \t]+\n", "\n", file.getvalue())


def _slug(title: str, taken: Mapping[str, object]) -> str:
    short = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:120].rstrip("-")
    n, name = 1, short
    while f"{name}.svg" in taken:
        n, name = n + 1, f"{short}-{n + 1}"
    return name
