import csv
import io
import re
import time
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import matplotlib
import pytest

from experiments.leaderboard.board import LEADERBOARD, RECORDS, leaderboard, main, read
from experiments.leaderboard.figures import figures
from experiments.leaderboard.standings import standings
from experiments.records import record as records


@pytest.fixture(scope="module")
def found(benchmark_of):
    return benchmark_of({"noise": 0.0, "aspl": 0.3, "simac": 0.34}, eps=(4, 8))


@pytest.fixture(scope="module")
def files(found):
    return leaderboard(found, {})


def test_committed_leaderboard_is_that_of_the_committed_records():
    found, pictures = read(RECORDS)
    assert found
    there = {path.name: path.read_text(encoding="utf-8") for path in LEADERBOARD.glob("[!.]*")}
    made = leaderboard(found, pictures)
    assert sorted(there) == sorted(made)
    unlike = [name for name, text in made.items() if there[name] != text]
    assert not unlike, "run `make leaderboard` and commit experiments/results/leaderboard"


def test_equal_records_give_equal_bytes(found, files, tmp_path):
    for name, record in reversed(list(found.items())):
        records.write(record, tmp_path / "records", name)
    stale = tmp_path / "leaderboard" / "old-setting.svg"
    stale.parent.mkdir()
    stale.write_text("<svg/>")
    (stale.parent / "README.md").write_text("![old](old-setting.svg)")
    own = stale.with_name("somebodys-own.svg")
    own.write_text("<svg/>")
    main(["--records", str(tmp_path / "records"), "--output-dir", str(stale.parent)])
    assert own.read_text() == "<svg/>"
    own.unlink()
    there = {path.name: path.read_text(encoding="utf-8") for path in stale.parent.iterdir()}
    assert there == files
    figure = next(text for name, text in files.items() if name.startswith("portraits"))
    assert not re.search(r"<dc:date>|Matplotlib v", figure)


def test_scores_hold_every_figure(found, files):
    rows = list(csv.DictReader(io.StringIO(files["scores.csv"])))
    assert [(row["eps"], row["method"]) for row in rows] == [
        *(("4", method) for method in ("simac", "aspl", "noise")),
        ("0", "none"),  # once: it has no budget
        *(("8", method) for method in ("simac", "aspl", "noise")),
    ]
    assert {row["comparable"] for row in rows} == {"yes"}
    first = rows[0]
    row = standings(found)[0]
    assert float(first["identity_retention (sface) mean"]) == row.score.mean
    assert float(first["identity_retention (sface) high"]) == row.score.high
    placebo = "against_placebo identity_retention (sface)"
    assert float(first[f"{placebo} mean"]) == row.against_placebo.mean.mean
    assert float(first[f"{placebo} p_value"]) == row.against_placebo.p_value
    assert (first["rank"], first["identities"], first["eps"]) == ("1", "12", "4")
    assert first["psnr n"] == "12"
    assert (rows[3]["rank"], rows[3]["unranked"], rows[3]["psnr n"]) == ("", "no protection", "")
    assert "nan" not in files["scores.csv"].lower()


def test_readme_has_a_table_for_each_budget(files):
    text = files["README.md"]
    assert (
        "## portraits, dreambooth\nbase model tiny, surrogate tiny, as assumed, scored with sface"
        in text
    )
    assert text.index("eps 4:") < text.index("eps 8:")
    headings = next(line for line in text.splitlines() if line.startswith("| rank"))
    cells = [cell.strip() for cell in headings.strip("|").split("|")]
    # ISM over detected faces stands between what shows whether it deceives, with its recognizer
    ism = cells.index("ISM (sface) ↓")
    assert cells[ism + 1 : ism + 3] == ["ISM, failures as 0 (sface) ↓", "FDFR % ↑"]
    assert re.search(r"\| 1 +\| `simac` +\| 12 +\| 0\.\d\d \[0\.\d\d, 0\.\d\d\]", text)
    assert "- (no protection)" in text


def test_rows_on_other_people_have_a_table_of_their_own(benchmark_of):
    found = benchmark_of({"noise": 0, "simac": 0.3}) | benchmark_of({"aspl": 0.5}, identities=4)
    files = leaderboard(found, {})
    above, below = files["README.md"].split("eps 8, on fewer or other identities")
    assert re.search(r"\| 1 +\| `simac` +\| 12 +\|", above)
    assert "`aspl`" not in above
    assert re.search(r"\| - \(fewer than 10 identities\) +\| `aspl` +\| 4 † +\|", below)
    # the difference is over the four whom both have; no p-value
    assert re.search(r"\| -0\.\d\d \[-0\.\d\d, -0\.\d\d\] +\| -0\.\d\d \[.*\] +\|\n", below)
    assert "4 † (not comparable)" in files["index.html"]
    rows = list(csv.DictReader(io.StringIO(files["scores.csv"])))
    assert [(row["method"], row["comparable"]) for row in rows] == [
        ("simac", "yes"),
        ("noise", "yes"),
        ("none", "yes"),
        ("aspl", "no"),
    ]


def test_rows_of_several_processors_say_so(benchmark_of):
    found = benchmark_of({"noise": 0, "aspl": 0.2, "simac": 0.3})
    for record in found.values():
        kind = "B" if record["attack"] == "simac" else "A"
        record["processors"] = dict.fromkeys(("protect", "unprotected", "protected"), kind)
    text = leaderboard(found, {})["README.md"]
    assert "Computed on\n\n- B: `simac`\n- A: `aspl`, `noise`, `none`\n" in text
    for record in found.values():
        record["processors"] = dict.fromkeys(record["processors"], "A")
    assert "Computed on" not in leaderboard(found, {})["README.md"]


def test_rows_of_other_photos_say_whose(benchmark_of):
    found = benchmark_of({"noise": 0, "aspl": 0.2, "simac": 0.3})
    for name, record in found.items():
        other = record["attack"] == "simac" and record["identity"] in ("1", "2")
        record["digests"] = record["digests"] | {"photos": {"B": name[:4] if other else "b"}}
    files = leaderboard(found, {})
    assert "Of other photos than most rows\n\n- `simac`: 1, 2\n" in files["README.md"]
    assert files["index.html"].count("Of other photos than most rows beside it: 1, 2<") == 1
    rows = list(csv.DictReader(io.StringIO(files["scores.csv"])))
    told = {row["method"]: row["other_photos"] for row in rows}
    assert told == {"simac": "1, 2", "aspl": "", "noise": "", "none": ""}
    for record in found.values():
        record["digests"]["photos"] = {"B": "b"}
    assert "Of other photos" not in "".join(leaderboard(found, {}).values())


def test_the_plain_setting_comes_before_what_the_adversary_does_besides(benchmark_of):
    plain, blurred, other = (
        benchmark_of({"noise": 0.0}, identities=2, **of)
        for of in ({}, {"countermeasure": "blur"}, {"adversary": "all_other"})
    )
    sets = {"a": blurred, "b": other, "c": plain}
    found = {f"{k}_{name}": r for k, of in sets.items() for name, r in of.items()}
    lines = leaderboard(found, {})["README.md"].splitlines()
    assert [line for line in lines if line.startswith("## ")] == [
        "## portraits, dreambooth",
        "## portraits, dreambooth, all other",
        "## portraits, dreambooth, after blur",
    ]


def test_reading_says_what_misleads(files):
    for name in ("README.md", "index.html"):
        text = files[name]
        assert "50, 75, 87.5 and 94 % for n = 2, 3, 4 and 5" in text
        assert "negative means that the row protects better" in text
        assert "Intervals are not corrected" in text
    assert "title=" not in files["index.html"]  # what only a mouse could reach


def test_recognizers_have_columns_figures_and_headings_of_their_own(benchmark_of):
    one = benchmark_of({"noise": 0.0, "simac": 0.3}, identities=3)
    other = benchmark_of({"noise": 0.0, "simac": 0.2}, identities=3)
    other = {f"other_{k}": r | {"scorer": {"backbone": "facenet"}} for k, r in other.items()}
    files = leaderboard(one | other, {})
    rows = list(csv.DictReader(io.StringIO(files["scores.csv"])))
    facenet, _, _, sface, _, _ = rows
    assert facenet["ism (facenet) mean"] == sface["ism (sface) mean"] == "0.6"
    assert facenet["ism (sface) mean"] == sface["ism (facenet) mean"] == ""
    assert facenet["fdfr mean"] == sface["fdfr mean"] == "0.0"
    difference = "against_placebo identity_retention (sface) mean"
    assert (bool(sface[difference]), facenet[difference]) == (True, "")
    for backbone in ("facenet", "sface"):
        title = f"as assumed, scored with {backbone}"
        assert f"\nbase model tiny, surrogate tiny, {title}\n" in files["README.md"]
        assert f'value="base model tiny, surrogate tiny, {title}"' in files["index.html"]
        heat_map = files[f"settings-{backbone}.svg"]
        assert heat_map.count("eps 8 (n=3)") == 1
    assert "settings.svg" not in files


def test_a_users_own_matplotlib_settings_change_nothing(found, files):
    own = {"lines.linewidth": 7, "axes.facecolor": "red", "font.sans-serif": ["serif"]}
    with matplotlib.rc_context(own):
        drawn = figures(standings(found))
    assert all(files[name] == svg for name, (_, svg) in drawn.items())


def test_figures_show_every_method_of_every_setting(benchmark_of):
    found = benchmark_of({"noise": 0, "simac": 0.3}, identities=3, eps=(4, 8, 16))
    lora = benchmark_of({"noise": 0, "simac": 0.1}, identities=1, customizer="lora")
    drawn = figures(standings(found | {f"lora_{k}": v for k, v in lora.items()}))
    assert sorted(drawn) == [
        "portraits-dreambooth-base-model-tiny-surrogate-tiny-as-assumed-scored-with-sface.svg",
        "portraits-lora-base-model-tiny-surrogate-tiny-as-assumed-scored-with-sface.svg",
        "settings-sface.svg",
    ]
    for _, svg in drawn.values():
        assert {"noise", "simac"} <= set(re.findall(r">([^<]+)</text>", svg))
    heat_map = drawn["settings-sface.svg"][1]
    assert "portraits, dreambooth, tiny, eps 8 (n=3)" in heat_map
    assert "portraits, lora, tiny, eps 8 (n=1)" in heat_map
    assert figures([]) == {}


def test_a_figure_has_room_for_any_number_of_methods(benchmark_of):
    drawn = figures(standings(benchmark_of({f"method {k}": 0 for k in range(70)}, identities=1)))
    svg = next(svg for name, (_, svg) in drawn.items() if name.startswith("portraits"))
    assert {f"method {k}" for k in range(70)} <= set(re.findall(r">([^<]+)</text>", svg))


def test_figures_leave_out_rows_on_other_people(benchmark_of):
    found = benchmark_of({"noise": 0, "simac": 0.3}, eps=(4, 8))
    found |= benchmark_of({"aspl": 0.3}, identities=4) | benchmark_of(
        {"simac": 0.3}, identities=4, eps=(16,)
    )
    drawn = {
        name: set(re.findall(r">([^<]+)</text>", svg))
        for name, (_, svg) in figures(standings(found)).items()
    }
    for labels in drawn.values():
        assert {"noise", "simac"} <= labels
        assert "aspl" not in labels
    # people are the same along each line of the heat map, and along the curves
    heat_map = drawn.pop("settings-sface.svg")
    assert [label for label in heat_map if "eps 16" in label] == [
        "portraits, dreambooth, tiny, eps 16 (n=4)"
    ]
    assert not any("16" in labels for labels in drawn.values())


def test_without_records_it_says_so(tmp_path):
    none, board = tmp_path / "none", tmp_path / "board"
    none.mkdir()
    main(["--records", str(none), "--output-dir", str(board)])
    assert sorted(path.name for path in board.iterdir()) == [
        "README.md",
        "index.html",
        "scores.csv",
    ]
    for name in ("README.md", "index.html"):
        assert "There are no records yet." in (board / name).read_text()
    assert (board / "scores.csv").read_text().count("\n") == 1


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("committed")
    with pytest.raises(SystemExit, match=r"^error: --records .*typo: no such folder"):
        main(["--records", str(tmp_path / "typo"), "--output-dir", str(tmp_path)])
    assert (tmp_path / "README.md").read_text() == "committed"


def test_many_records_take_seconds(benchmark_of):
    levels = {"none": 0} | {f"method_{i}": 0.04 * i for i in range(7)}
    found = benchmark_of(levels, identities=12, eps=range(1, 18))
    for name, record in found.items():
        if record["attack"] == "none":
            record |= {"seed": record["eps"], "eps": 0}
        if name.endswith("7"):  # equal scores, as of galleries without any face
            record["scores"]["protected"]["identity_retention"] = -0.6
        elif record["eps"] > 8:  # two decimals, as published scores have, with many ties
            own = record["scores"]["protected"]
            own["identity_retention"] = round(own["identity_retention"], 2)
    assert len(found) > 1600
    started = time.process_time()
    leaderboard(found, {})
    assert time.process_time() - started < 10


def test_a_broken_record_is_one_line(tmp_path, made_up):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"^error: .*x\.json: schema_version is None"):
        main(["--records", str(tmp_path), "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_text_of_records_cannot_become_markup(made_up):
    record = made_up(identity="<b>Ann</b>", command="python run.py 'x=</pre><script>'")
    page = leaderboard({"a": record}, {})["index.html"]
    assert "<b>Ann" not in page
    assert "</pre><script>" not in page


def test_names_of_records_are_shown_as_they_are(made_up):
    """In Markdown, in the figures' SVG and legends, whatever letters they are of."""
    hostile = ["a|b", "c`d", r"$\foo$", "_hidden", "# <i>", "none of it"]
    found = {
        f"{k} {who}": made_up(attack=attack, identity=who, dataset=r"$\bar$|<i>")
        for k, attack in enumerate([*hostile, "noise"])
        for who in "ab"
    }
    files = leaderboard(found, {})
    rows = [line for line in files["README.md"].splitlines() if line.startswith("| - (fewer")]
    assert len(rows) == len(hostile) + 1
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {
        len(re.findall(r"(?<!\\)\|", rows[0]))
    }
    assert "<i>" not in re.sub(r"\\<i\\>|`[^`]*`", "", files["README.md"])
    drawn = [text for name, text in files.items() if name.endswith(".svg")]
    assert drawn
    for svg in drawn:
        ElementTree.fromstring(svg)
        for name in hostile:
            assert escape(name) in svg
