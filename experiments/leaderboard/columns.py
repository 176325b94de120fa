"""The columns of the leaderboard's tables, and their cells as text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval.metrics import METRICS
from eval.statistics import Estimate
from experiments.leaderboard.standings import SCORE, TESTS, Row

# the scores that a reader sees, with headings of this page; scores.csv has all
SHOWN = {
    SCORE: "identity retention",
    "ism": "ISM",
    "ism_failures_as_0": "ISM, failures as 0",
    "fdfr": "FDFR %",
    "ser_fiq": "SER-FIQ",
    "brisque": "BRISQUE",
    "psnr": "PSNR",
    "ssim": "SSIM",
}
OPPONENTS = dict(zip(TESTS, ("the placebo", "the best"), strict=True))
FEW = 6  # identities: an interval of fewer can hold the mean in 94 % of all cases at most
MARK = "†"  # of rows with fewer


@dataclass(frozen=True)
class Column:
    """A score of one recognizer, or of none if the score needs none.

    With a test, one of TESTS, the column shows the difference of this score to the opponent's.
    """

    metric: str
    backbone: str | None
    test: str | None = None

    @property
    def name(self) -> str:
        name = _with_backbone(self.metric, self.backbone)
        return f"{self.test} {name}" if self.test else name

    @property
    def heading(self) -> str:
        heading = _with_backbone(SHOWN[self.metric], self.backbone)
        if self.test:
            return f"{heading} against {OPPONENTS[self.test]}"
        return f"{heading} {'↓' if METRICS[self.metric]['direction'] == 'lower' else '↑'}"

    @property
    def description(self) -> str:
        if not self.test:
            return METRICS[self.metric]["description"]
        return (
            f"Mean difference, the row's less that of {OPPONENTS[self.test]}, over the identities "
            "that both have, with its interval; p is corrected"
        )

    def estimate(self, row: Row) -> Estimate | None:
        if self.backbone not in (None, row.setting.backbone):
            return None
        if self.test:
            return row.tests[self.test].mean if self.test in row.tests else None
        return row.scores.get(self.metric)

    def p_value(self, row: Row) -> float | None:
        fits = self.backbone == row.setting.backbone and self.test in row.tests
        return row.tests[self.test].p_value if fits else None

    def text(self, row: Row) -> str:
        """Return the cell: mean, interval, number of identities if some lack it, p-value."""
        score, p_value = self.estimate(row), self.p_value(row)
        if score is None:
            return ""
        factor, form = METRICS[self.metric]["factor"], METRICS[self.metric]["format"]
        form = f"+{form}" if self.test else form
        text = f"{factor * score.mean:{form}}"
        if score.low is not None:
            text += f" [{factor * score.low:{form}}, {factor * score.high:{form}}]"
        if score.n != len(row.identities):
            text += f" (n={score.n})"
        if p_value is not None:
            text += ", p < 0.0001" if p_value < 0.0001 else f", p = {p_value:.2g}"
        return text


def columns(rows: Sequence[Row], metrics: Iterable[str]) -> list[Column]:
    """Return the columns that hold any value, those of each metric side by side, tests last."""
    scores = {
        (metric, row.setting.backbone if METRICS[metric]["backbone"] else None)
        for row in rows
        for metric in row.scores
    }
    tests = {(test, row.setting.backbone) for row in rows for test in row.tests}
    by_backbone = sorted(scores, key=lambda pair: pair[1] or "")
    shown = [Column(*pair) for metric in metrics for pair in by_backbone if pair[0] == metric]
    compared = sorted(tests, key=lambda pair: (TESTS.index(pair[0]), pair[1]))
    return [*shown, *(Column(SCORE, backbone, test) for test, backbone in compared)]


def rank_text(row: Row) -> str:
    return f"- ({row.unranked})" if row.rank is None else str(row.rank)


def identities_text(row: Row) -> str:
    count = len(row.identities)
    return f"{count} {MARK}" if count < FEW else str(count)


def _with_backbone(name: str, backbone: str | None) -> str:
    return f"{name} ({backbone})" if backbone else name
