"""The figures of the leaderboard, as SVG: equal rows give equal bytes."""

import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.leaderboard.names import AS_ASSUMED, Setting
from experiments.leaderboard.samples import usual_people
from experiments.leaderboard.standings import SCORE, Row
from experiments.records.record import OWN

# Okabe and Ito's, which colour-blind people tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
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
    """Return the title and the SVG of each figure by its file name.

    There is a figure of each setting that has methods at several budgets, and one of all settings
    of each recognizer. Rows without the ranking score are in none.
    """
    scored = [row for row in rows if row.score.mean is not None]
    settings: dict[Setting, list[Row]] = defaultdict(list)
    for row in scored:
        settings[row.setting].append(row)
    drawn: dict[str, tuple[str, str]] = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        for setting, in_setting in settings.items():
            curves = _comparable(in_setting)
            if len({row.eps for row in curves if not row.is_unprotected}) > 1:
                title = f"{setting.dataset}, {setting.customizer}, {setting.title}"
                drawn[_file_name(title, drawn)] = (title, _curves(curves))
        for backbone in sorted({setting.backbone for setting in settings}):
            cells = [row for row in scored if row.setting.backbone == backbone and row.comparable]
            if not all(row.is_unprotected for row in cells):
                title = f"{_score(backbone).capitalize()} by setting and budget"
                drawn[_file_name(f"settings {backbone}", drawn)] = (title, _heat_map(cells))
    return drawn


def _comparable(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a setting over the same people at all budgets.

    Means over other people look like differences between methods.
    """
    protected = [row for row in rows if not row.is_unprotected]
    usual = usual_people(row.runs for row in protected or rows)
    return [row for row in rows if row.runs == usual]


def _score(backbone: str) -> str:
    return f"{SCORE.replace('_', ' ')} ({backbone})"


def _curves(rows: Sequence[Row]) -> str:
    """Return the score against eps and, if it is known, how visible the protection is."""
    methods: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.eps):
        if not row.is_unprotected:
            methods[row.method].append(row)
    budgets = sorted({row.eps for lines in methods.values() for row in lines})
    has_psnr = any("psnr" in row.scores for row in rows)
    figure = Figure(figsize=(10 if has_psnr else 6, HEIGHT))
    panels = figure.subplots(1, 1 + has_psnr, sharey=True, squeeze=False)[0]
    for k, (method, line) in enumerate(sorted(methods.items())):
        style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
        # side by side, so that intervals do not hide one another
        shift = 0.03 * budgets[-1] * (k / max(len(methods) - 1, 1) - 0.5)
        _points(panels[0], [row.eps + shift for row in line], line, method, style)
        visible = [row for row in line if "psnr" in row.scores]
        if visible:
            psnr = [row.scores["psnr"].mean for row in visible]
            _points(panels[1], psnr, visible, method, style)
    clean = max((row for row in rows if row.is_unprotected), key=_count, default=None)
    for axes in panels:
        if clean:
            axes.axhline(clean.score.mean, color="#667080", linestyle="--", label="unprotected")
        axes.locator_params(nbins=6)
    score = _score(rows[0].setting.backbone)
    panels[0].set_ylabel(f"{score}\n(lower: better protected)")
    panels[0].set(xlabel="eps (grey levels)", xticks=budgets)
    if has_psnr:
        panels[1].set_xlabel("PSNR of the protected photos (dB; right: less visible)")
    handles, labels = panels[0].get_legend_handles_labels()
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


def _count(row: Row) -> int:
    return row.score.n


def _points(
    axes: Axes, x: Sequence[float], rows: Sequence[Row], method: str, style: Mapping[str, str]
) -> None:
    scores = [row.score for row in rows]
    # a single identity has no interval, and the mean of a few may lie outside theirs
    below = [0 if score.low is None else max(score.mean - score.low, 0) for score in scores]
    above = [0 if score.high is None else max(score.high - score.mean, 0) for score in scores]
    axes.errorbar(
        x,
        [score.mean for score in scores],
        yerr=[below, above],
        # a legend leaves out names that begin with an underscore
        label=f"\u200b{method}" if method.startswith("_") else method,
        capsize=2,
        markersize=5,
        linewidth=1.2,
        **style,
    )


def _heat_map(rows: Sequence[Row]) -> str:
    """Return settings and budgets against methods; a cell is empty if nothing was measured."""
    methods = sorted({row.method for row in rows})
    places: dict[tuple[Setting, float], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        places[row.setting, row.eps][row.method] = row
    names = []
    for (setting, eps), cells in places.items():
        people = " or ".join(map(str, sorted({row.score.n for row in cells.values()})))
        names.append(f"{_short(setting)}, eps {eps:g} (n={people})")
    means = [
        [cells[method].score.mean if method in cells else float("nan") for method in methods]
        for cells in places.values()
    ]
    labels = [method if len(method) <= 30 else f"{method[:28]}..." for method in methods]
    # inches: of the map, and of the names beside and above it, which are slanted
    width, height = 0.6 * len(methods), 0.26 * len(places)
    left, below, above = 0.3 + 0.06 * max(map(len, names)), 0.2, 0.3 + 0.04 * max(map(len, labels))
    total = (left + width + 1.2, below + height + above)
    figure = Figure(figsize=total)

    def axes_at(x: float, wide: float, **options) -> Axes:
        place = (x / total[0], below / total[1], wide / total[0], height / total[1])
        return figure.add_axes(place, **options)

    axes = axes_at(left, width, frame_on=False)
    low = min(0.0, *(row.score.mean for row in rows))
    image = axes.imshow(means, cmap="cividis", vmin=low, vmax=1, aspect="auto")
    for i, cells in enumerate(places.values()):
        for method, row in cells.items():
            ink = "black" if image.norm(row.score.mean) > 0.5 else "white"
            text = {"ha": "center", "va": "center", "fontsize": 7, "color": ink}
            axes.text(methods.index(method), i, f"{row.score.mean:.2f}", **text)
    axes.grid(False)
    axes.tick_params(length=0, labelsize=7)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(methods)), labels, rotation=40, ha="left")
    axes.set_yticks(range(len(places)), names)
    bar = axes_at(left + width + 0.3, 0.14)
    figure.colorbar(image, cax=bar, label=_score(rows[0].setting.backbone))
    return _svg(figure)


def _short(setting: Setting) -> str:
    """Return in a line how a setting differs from the assumptions of an attack."""
    words = [setting.dataset, setting.customizer]
    if setting.base_model != setting.surrogate_model:
        words += [f"{setting.surrogate_model} to {setting.base_model}"]
    else:
        words += [setting.base_model]
    words += [setting.countermeasure] if setting.countermeasure != "none" else []
    words += [f"{setting.clean_photos} clean"] if setting.clean_photos else []
    words += [setting.adversary.replace("_", " ")] if setting.adversary != AS_ASSUMED else []
    words += [setting.details] if setting.details else []
    words += [setting.source] if setting.source != OWN else []
    line = ", ".join(words)
    return line if len(line) <= 72 else f"{line[:70]}..."


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, dpi=72)
    return re.sub(r"[ \t]+\n", "\n", file.getvalue())


def _file_name(title: str, taken: Mapping[str, object]) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:120].rstrip("-")
    numbered = [name, *(f"{name}-{n}" for n in range(2, len(taken) + 2))]
    return next(f"{name}.svg" for name in numbered if f"{name}.svg" not in taken)
