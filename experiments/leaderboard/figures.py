"""The figures of the leaderboard, as SVG: equal rows give equal bytes."""

import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.leaderboard.names import Setting
from experiments.leaderboard.samples import usual_people
from experiments.leaderboard.standings import SCORE, Row

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

    There is a figure of each setting that has methods at several budgets. Figures leave out rows
    without the ranking score and rows on other people than most.
    """
    settings: dict[Setting, list[Row]] = defaultdict(list)
    for row in rows:
        if row.score.n:
            settings[row.setting].append(row)
    drawn: dict[str, tuple[str, str]] = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        for setting, in_setting in settings.items():
            # means over other people look like differences between methods
            protected = [row for row in in_setting if not row.is_unprotected]
            usual = usual_people(row.runs for row in protected or in_setting)
            shown = [row for row in in_setting if row.runs == usual]
            if len({row.eps for row in shown if not row.is_unprotected}) > 1:
                title = f"{setting.dataset}, {setting.customizer}, {setting.title}"
                drawn[_file_name(title, drawn)] = (title, _curves(shown))
    return drawn


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
    clean = [row.score for row in rows if row.is_unprotected]
    most = max(clean, key=lambda score: score.n, default=None)
    for axes in panels:
        if most:
            axes.axhline(most.mean, color="#667080", linestyle="--", label="unprotected")
        axes.locator_params(nbins=6)
    score = f"{SCORE.replace('_', ' ')} ({rows[0].setting.backbone})"
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


def _points(
    axes: Axes, x: Sequence[float], rows: Sequence[Row], method: str, style: Mapping[str, str]
) -> None:
    means, lows, highs = (
        np.array([getattr(row.score, end) for row in rows], float)
        for end in ("mean", "low", "high")
    )
    # a single identity has no interval, and the mean of a few may lie outside theirs
    lengths = np.nan_to_num([means - lows, highs - means]).clip(0)
    axes.errorbar(
        x,
        means,
        yerr=lengths,
        # a legend leaves out names that begin with an underscore
        label=f"\u200b{method}" if method.startswith("_") else method,
        capsize=2,
        markersize=5,
        linewidth=1.2,
        **style,
    )


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, dpi=72)
    return re.sub(r"[ \t]+\n", "\n", file.getvalue())


def _file_name(title: str, taken: Mapping[str, object]) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:120].rstrip("-")
    numbered = [name, *(f"{name}-{n}" for n in range(2, len(taken) + 2))]
    return next(f"{name}.svg" for name in numbered if f"{name}.svg" not in taken)
