import io
import re
import sys

import pytest

from eval.statistics import estimate
from experiments.run.table import means, print_table, table


def arm(ism, fdfr, **more):
    at_0 = (ism or 0) * (1 - fdfr)
    prompts = [
        {"prompt": "a photo of sks person", "ism": ism, "ism_failures_as_0": at_0, "fdfr": fdfr},
        {"prompt": "a selfie", "ism": None, "ism_failures_as_0": 0.0, "fdfr": 1.0},
    ]
    scores = {"ism": ism, "ism_failures_as_0": at_0, "fdfr": fdfr, "brisque": 20.0}
    return scores | {"ser_fiq": None, "prompts": prompts, "images": []} | more


@pytest.fixture(scope="module")
def record(made_up):
    """Call it for a record of two arms; `more` are further scores of both."""

    def of_arms(before=0.75, after=0.25, identity="ann", more=None, **changes):
        arms = {"unprotected": arm(before, 0.0), "protected": arm(after, 0.5, brisque=50.25)}
        scores = {name: scores | (more or {}) for name, scores in arms.items()}
        visible = {"linf": 8, "psnr": 33.123, "ssim": 0.9}
        entries = {"scores": scores, "perceptibility": visible, **changes}
        return made_up(identity=identity, **entries)

    return of_arms


def row(text, name):
    line = next(line for line in text.splitlines() if line.startswith(name))
    return [cell.strip() for cell in re.split(r"\s{2,}", line)]


def test_table_shows_both_victims_and_their_difference(record):
    text = table(record())
    assert "simac at eps 8 on portraits ann" in text
    headings = ["victim", "ISM sface ↓", "failures as 0 ↓", "FDFR % ↑", "BRISQUE ↑"]
    assert row(text, "victim") == headings
    assert row(text, "unprotected") == ["unprotected", "0.750", "0.750", "0.0", "20.0"]
    assert row(text, "protected") == ["protected", "0.250", "0.125", "50.0", "50.2"]
    assert row(text, "difference") == ["difference", "-0.500", "-0.625", "+50.0", "+30.2"]
    assert "at most 8 grey levels (eps 8), PSNR 33.1 dB, SSIM 0.900" in text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, ""),
        ({"countermeasure": "jpeg75"}, " after jpeg75"),
        ({"clean_photos": 2}, " with 2 of the photos clean"),
        ({"adversary": "other_term"}, ", other term"),
        ({"countermeasure": "blur", "clean_photos": 1}, " after blur with 1 of the photos clean"),
    ],
)
def test_what_the_adversary_does_otherwise_is_named(record, changes, named):
    other = record(**changes)
    for text in (table(other), means([other, other])):
        assert f"victim dreambooth{named} (surrogate tiny)" in text


def test_each_prompt_has_its_line_and_nothing_measured_is_a_dash(record):
    text = table(record(after=None))
    assert row(text, "a photo")[1:] == ["0.750 -> -", "0.750 -> 0.000", "0.0 -> 50.0"]
    assert row(text, "a selfie")[1:] == ["- -> -", "0.000 -> 0.000", "100.0 -> 100.0"]
    assert row(text, "protected")[1] == "-"
    assert row(text, "difference")[1] == "-"


def test_columns_appear_when_something_was_measured(record):
    protected = {**arm(0.25, 0.5), "ser_fiq": 0.5, "identity_retention": 0.123}
    with_more = record(scores={"unprotected": arm(0.75, 0.0), "protected": protected})
    assert "SER-FIQ" not in table(record())
    assert row(table(with_more), "victim")[3:6] == ["retention ↓", "FDFR % ↑", "SER-FIQ ↓"]
    assert row(table(with_more), "protected")[3] == "0.12"
    assert row(table(with_more), "unprotected")[3] == "-"


def test_unseen_change_of_identical_photos(record):
    same = {"linf": 0, "psnr": None, "ssim": 1.0}
    assert "at most 0 grey levels (eps 8), PSNR -, SSIM 1.000" in table(record(perceptibility=same))


def test_means_have_intervals_of_arms_and_of_the_paired_difference(record):
    pairs = [(0.7, 0.1), (0.8, 0.3), (0.6, 0.05), (0.75, 0.2)]
    records = [record(*pair, identity=str(i)) for i, pair in enumerate(pairs)]
    text = means(records)
    paired = estimate([after - before for before, after in pairs])
    assert "4 identities of portraits" in text
    assert row(text, "ISM sface")[1].startswith("0.713 [")
    expected = f"{paired.mean:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
    assert row(text, "ISM sface")[3] == expected
    assert row(text, "FDFR")[1:] == ["0.0 [0.0, 0.0]", "50.0 [50.0, 50.0]", "+50.0 [+50.0, +50.0]"]


def test_means_tell_how_many_identities_could_be_measured(record):
    records = [record(0.7, 0.1), record(0.8, None), record(0.6, None)]
    cells = row(means(records), "ISM sface")
    assert cells[2:] == ["0.100 (n=1)", "-0.600 (n=1)"]
    assert row(means([record(0.7, None), record(0.8, None)]), "ISM sface")[2:] == ["-", "-"]


def test_printing_takes_one_or_several_and_any_terminal(record, capsys, monkeypatch):
    print_table([record()])
    assert "a selfie" in capsys.readouterr().out
    print_table([record(), record(0.5, 0.2)])
    assert "2 identities" in capsys.readouterr().out
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    print_table([record()])
    terminal.flush()
    assert b"ISM sface ?" in terminal.buffer.getvalue()


@pytest.mark.parametrize("count", [1, 2])
def test_tables_fit_a_terminal(record, capsys, count):
    more = {"ser_fiq": 0.5, "identity_retention": 0.123, "brisque": 31.25}
    print_table([record(more=more), record(0.5, 0.2, more=more)][:count])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
