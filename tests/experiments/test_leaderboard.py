import csv
import io
import re

import pytest

from experiments import records
from experiments.leaderboard import LEADERBOARD, RECORDS, leaderboard, main, read
from experiments.leaderboard_figures import figures
from experiments.standings import standings


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
    assert not unlike, "run `make leaderboard` and commit experiments/leaderboard"


def test_equal_records_give_equal_bytes(found, files, tmp_path):
    for name, record in reversed(list(found.items())):
        records.write(record, tmp_path / "records", name)
    stale = tmp_path / "leaderboard" / "old-setting.svg"
    stale.parent.mkdir()
    stale.write_text("<svg/>")
    main(["--records", str(tmp_path / "records"), "--output-dir", str(stale.parent)])
    there = {path.name: path.read_text(encoding="utf-8") for path in stale.parent.iterdir()}
    assert there == files
    figure = next(text for name, text in files.items() if name.endswith("assumed.svg"))
    assert not re.search(r"<dc:date>|Matplotlib v", figure)


def test_scores_hold_every_figure(found, files):
    rows = list(csv.DictReader(io.StringIO(files["scores.csv"])))
    assert [row["method"] for row in rows] == ["simac", "aspl", "noise", "none"] * 2
    first = rows[0]
    row = standings(found)[0]
    assert float(first["identity_retention (sface) mean"]) == row.score.mean
    assert float(first["identity_retention (sface) high"]) == row.score.high
    assert float(first["against_placebo p_value"]) == row.against_placebo.p_value
    assert (first["rank"], first["identities"], first["eps"]) == ("1", "12", "4")
    assert first["psnr n"] == "12"
    assert (rows[3]["rank"], rows[3]["unranked"], rows[3]["psnr n"]) == ("", "no protection", "")
    assert "nan" not in files["scores.csv"].lower()


def test_readme_has_a_table_for_each_budget(files):
    text = files["README.md"]
    assert "## portraits, dreambooth\nbase model tiny, surrogate tiny, as assumed" in text
    assert text.index("eps 4:") < text.index("eps 8:")
    headings = next(line for line in text.splitlines() if line.startswith("| rank"))
    cells = [cell.strip() for cell in headings.strip("|").split("|")]
    # ISM over detected faces stands between what shows whether it deceives, with its recognizer
    ism = cells.index("ISM (sface) ↓")
    assert cells[ism + 1 : ism + 3] == ["ISM, failures as 0 (sface) ↓", "FDFR % ↑"]
    assert re.search(r"\| 1 +\| `simac` +\| 12 +\| 0\.\d\d \[0\.\d\d, 0\.\d\d\]", text)
    assert "- (no protection)" in text


def test_recognizers_have_columns_of_their_own(benchmark_of):
    one = benchmark_of({"simac": 0.3}, identities=3)
    other = benchmark_of({"simac": 0.2}, identities=3, scorer={"backbone": "facenet"})
    both = one | {f"other_{name}": record for name, record in other.items()}
    rows = list(csv.DictReader(io.StringIO(leaderboard(both, {})["scores.csv"])))
    facenet, _, sface, _ = rows
    assert facenet["ism (facenet) mean"] == sface["ism (sface) mean"] == "0.6"
    assert facenet["ism (sface) mean"] == sface["ism (facenet) mean"] == ""
    assert facenet["fdfr mean"] == sface["fdfr mean"] == "0.0"


def test_figures_show_every_method_of_every_setting(benchmark_of):
    found = benchmark_of({"noise": 0, "simac": 0.3}, identities=3, eps=(4, 8, 16))
    lora = benchmark_of({"noise": 0, "simac": 0.1}, identities=1, customizer="lora")
    drawn = figures(standings(found | {f"lora_{k}": v for k, v in lora.items()}))
    assert sorted(drawn) == [
        "portraits-dreambooth-base-model-tiny-surrogate-tiny-as-assumed.svg",
        "portraits-lora-base-model-tiny-surrogate-tiny-as-assumed.svg",
        "settings.svg",
    ]
    for _, svg in drawn.values():
        assert {"noise", "simac"} <= set(re.findall(r">([^<]+)</text>", svg))
    heat_map = drawn["settings.svg"][1]
    assert "portraits, dreambooth, tiny, eps 8 (n=3)" in heat_map
    assert "portraits, lora, tiny, eps 8 (n=1)" in heat_map
    assert figures([]) == {}


def test_figures_leave_out_methods_on_few_people_beside_ranked_ones(benchmark_of):
    found = benchmark_of({"noise": 0, "simac": 0.3}) | benchmark_of({"aspl": 0.3}, identities=4)
    for _, svg in figures(standings(found)).values():
        labels = set(re.findall(r">([^<]+)</text>", svg))
        assert {"noise", "simac"} <= labels
        assert "aspl" not in labels


def test_without_records_it_says_so(tmp_path):
    main(["--records", str(tmp_path / "none"), "--output-dir", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "index.html",
        "scores.csv",
    ]
    for name in ("README.md", "index.html"):
        assert "There are no records yet." in (tmp_path / name).read_text()
    assert (tmp_path / "scores.csv").read_text().count("\n") == 1


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
