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
    """A score of one recognizer, or of none if it needs none."""

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

    def of(self, row: Row) -> Estimate | None:
        fits = self.backbone in (None, row.configuration.setting.backbone)
        return row.scores.get(self.metric) if fits else None

    def text(self, row: Row) -> str:
        return _text(self.of(row), self.metric, len(row.identities))


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
        score = _with_backbone(SHOWN[SCORE], self.backbone)
        return f"{score} against {OPPONENTS[self.test]}"

    @property
    def description(self) -> str:
        return (
            f"Mean difference, the row's less that of {OPPONENTS[self.test]}, over the identities "
            "that both have, with its interval; p is corrected"
        )

    def test_of(self, row: Row) -> Test | None:
        fits = self.backbone == row.configuration.setting.backbone
        return getattr(row, self.test) if fits else None

    def of(self, row: Row) -> Estimate | None:
        test = self.test_of(row)
        return test and test.mean

    def text(self, row: Row) -> str:
        text, test = _text(self.of(row), SCORE, len(row.identities), "+"), self.test_of(row)
        if test is None or test.p_value is None:
            return text
        return f"{text}, " + ("p < 0.0001" if test.p_value < 0.0001 else f"p = {test.p_value:.2g}")


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


def differences(rows: Iterable[Row]) -> list[Difference]:
    """The columns of the comparisons that were made, of each recognizer."""
    found = {
        (test, row.configuration.setting.backbone)
        for row in rows
        for test in TESTS
        if getattr(row, test)
    }
    return [Difference(*one) for one in sorted(found, key=lambda c: (TESTS.index(c[0]), c[1]))]


def rank_text(row: Row) -> str:
    return f"- ({row.unranked})" if row.rank is None else str(row.rank)


def identities_text(row: Row) -> str:
    count = len(row.identities)
    return f"{count} {MARK}" if count < FEW else str(count)


def _with_backbone(name: str, backbone: str | None) -> str:
    return f"{name} ({backbone})" if backbone else name


def _text(of: Estimate | None, metric: str, identities: int, sign: str = "") -> str:
    if of is None or of.mean is None:
        return ""
    factor, form = METRICS[metric]["factor"], METRICS[metric]["format"]
    text = f"{factor * of.mean:{sign}{form}}"
    if of.low is not None:
        text += f" [{factor * of.low:{sign}{form}}, {factor * of.high:{sign}{form}}]"
    return text if of.n == identities else f"{text} (n={of.n})"
