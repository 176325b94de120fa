"""The columns of the leaderboard's tables, and their cells as text."""

from collections.abc import Iterable
from dataclasses import dataclass

from eval.metrics import METRICS
from eval.statistics import Estimate
from experiments.leaderboard.standings import SCORE, TESTS, Row, Test

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
    """A score of one recognizer, or of none if the score needs none."""

    metric: str
    backbone: str | None

    @property
    def name(self) -> str:
        return _with_backbone(self.metric, self.backbone)

    @property
    def heading(self) -> str:
        arrow = "↓" if METRICS[self.metric]["direction"] == "lower" else "↑"
        return f"{_with_backbone(SHOWN[self.metric], self.backbone)} {arrow}"

    @property
    def description(self) -> str:
        return METRICS[self.metric]["description"]

    def estimate(self, row: Row) -> Estimate | None:
        fits = self.backbone in (None, row.setting.backbone)
        return row.scores.get(self.metric) if fits else None

    def text(self, row: Row) -> str:
        return _text(self.estimate(row), self.metric, len(row.identities))


@dataclass(frozen=True)
class Difference:
    """A comparison of the ranking score of one recognizer; `test` is of TESTS."""

    test: str
    backbone: str

    @property
    def name(self) -> str:
        return f"{self.test} {_with_backbone(SCORE, self.backbone)}"

    @property
    def heading(self) -> str:
        return f"{_with_backbone(SHOWN[SCORE], self.backbone)} against {OPPONENTS[self.test]}"

    @property
    def description(self) -> str:
        return (
            f"Mean difference, the row's less that of {OPPONENTS[self.test]}, over the identities "
            "that both have, with its interval; p is corrected"
        )

    def comparison(self, row: Row) -> Test | None:
        return getattr(row, self.test) if self.backbone == row.setting.backbone else None

    def estimate(self, row: Row) -> Estimate | None:
        comparison = self.comparison(row)
        return comparison and comparison.mean

    def text(self, row: Row) -> str:
        text = _text(self.estimate(row), SCORE, len(row.identities), "+")
        comparison = self.comparison(row)
        if comparison is None or comparison.p_value is None:
            return text
        p_value = comparison.p_value
        return f"{text}, " + ("p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}")


def columns(rows: Iterable[Row], metrics: Iterable[str]) -> list[Column]:
    """Return the columns that hold any value, those of each metric side by side."""
    pairs = {
        (metric, row.setting.backbone if METRICS[metric]["backbone"] else None)
        for row in rows
        for metric in row.scores
    }
    order = list(metrics)
    shown = [pair for pair in pairs if pair[0] in order]
    return [Column(*pair) for pair in sorted(shown, key=lambda c: (order.index(c[0]), c[1] or ""))]


def differences(rows: Iterable[Row]) -> list[Difference]:
    """Return the columns of the comparisons that were made, of each recognizer."""
    pairs = {(test, row.setting.backbone) for row in rows for test in TESTS if getattr(row, test)}
    return [Difference(*pair) for pair in sorted(pairs, key=lambda c: (TESTS.index(c[0]), c[1]))]


def rank_text(row: Row) -> str:
    return f"- ({row.unranked})" if row.rank is None else str(row.rank)


def identities_text(row: Row) -> str:
    count = len(row.identities)
    return f"{count} {MARK}" if count < FEW else str(count)


def _with_backbone(name: str, backbone: str | None) -> str:
    return f"{name} ({backbone})" if backbone else name


def _text(score: Estimate | None, metric: str, identities: int, sign: str = "") -> str:
    if score is None or score.mean is None:
        return ""
    factor, form = METRICS[metric]["factor"], METRICS[metric]["format"]
    text = f"{factor * score.mean:{sign}{form}}"
    if score.low is not None:
        text += f" [{factor * score.low:{sign}{form}}, {factor * score.high:{sign}{form}}]"
    return text if score.n == identities else f"{text} (n={score.n})"
