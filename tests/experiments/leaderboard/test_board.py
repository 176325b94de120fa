import csv
import io
import re
import time
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import matplotlib
import pytest

from experiments.leaderboard.board import LEADERBOARD, RECORDS, leaderboard, links, main, read
from experiments.leaderboard.figures import figures
from experiments.leaderboard.page import merged
from experiments.leaderboard.standings import standings
from experiments.records.files import write


def made(records, strips=None):
    return leaderboard({record.name: record for record in records}, strips)


def in_order(records):
    """Records by names in their order: the first of equal victims speaks for all."""
    return [record.model_copy(update={"name": f"{k:03}"}) for k, record in enumerate(records)]


def run(folder, output_dir):
    """Make the leaderboard of a folder by the command; return its files' texts by their names."""
    main(["--records", str(folder), "--output-dir", str(output_dir)])
    return {path.name: path.read_text(encoding="utf-8") for path in output_dir.iterdir()}


def lines_of(files):
    return list(csv.DictReader(io.StringIO(files["scores.csv"])))


def words(svg):
    return set(re.findall(r">([^<]+)</text>", svg))


@pytest.fixture(scope="module")
def records(benchmark_of):
    return benchmark_of({"noise": 0.0, "aspl": 0.3, "simac": 0.34}, eps=(4, 8))


@pytest.fixture(scope="module")
def files(records):
    return made(records)


@pytest.mark.slow
def test_committed_leaderboard_is_that_of_the_committed_records():
    expected = leaderboard(read(RECORDS), links(RECORDS, LEADERBOARD))
    there = {path.name: path.read_text(encoding="utf-8") for path in LEADERBOARD.glob("[!.]*")}
    assert sorted(there) == sorted(expected)
    unlike = [name for name, text in expected.items() if there[name] != text]
    assert not unlike, "run `make leaderboard` and commit experiments/results/leaderboard"


def test_the_committed_leaderboard_is_small_and_shows_committed_strips():
    assert sum(path.stat().st_size for path in LEADERBOARD.iterdir()) < 1e6
    assert sum(path.is_file() for path in LEADERBOARD.parent.rglob("[!.]*")) < 80
    page = (LEADERBOARD / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img [^>]*src="([^"]*)"', page)
    assert "data:" not in page
    assert any(link.startswith("../strips/") for link in shown)
    assert all((LEADERBOARD / link).is_file() for link in shown)


def test_equal_records_give_equal_bytes(records, files, tmp_path):
    for record in reversed(records):
        write(record, tmp_path / "records")
    target = tmp_path / "leaderboard"
    target.mkdir()
    (target / "README.md").write_text("![old](old-setting.svg)")
    for name in ("old-setting.svg", "somebodys-own.svg"):
        (target / name).write_text("<svg/>")
    assert run(tmp_path / "records", target) == files | {"somebodys-own.svg": "<svg/>"}
    figure = next(text for name, text in files.items() if name.startswith("portraits"))
    assert not re.search(r"<dc:date>|Matplotlib v", figure)


def test_strips_beside_the_records_are_linked(records, tmp_path):
    write(records[0].model_copy(update={"name": "a #1"}), tmp_path / "records")
    (tmp_path / "strips").mkdir()
    (tmp_path / "strips" / "a #1.jpg").write_bytes(b"")
    there = run(tmp_path / "records", tmp_path / "board" / "here")
    assert 'src="../../strips/a%20%231.jpg"' in there["index.html"]


def test_scores_hold_every_figure(records, files):
    lines = lines_of(files)
    assert [(line["eps"], line["method"]) for line in lines] == [
        *(("4", method) for method in ("simac", "aspl", "noise")),
        ("0", "none"),  # once: it has no budget
        *(("8", method) for method in ("simac", "aspl", "noise")),
    ]
    assert ",eps,method," in files["scores.csv"].splitlines()[0]
    assert {line["comparable"] for line in lines} == {"yes"}
    first, row = lines[0], standings(records)[0]
    assert float(first["identity_retention (sface) mean"]) == row.score.mean
    assert float(first["identity_retention (sface) high"]) == row.score.high
    column, test = "against_placebo identity_retention (sface)", row.tests["against_placebo"]
    assert float(first[f"{column} mean"]) == test.mean.mean
    assert float(first[f"{column} p_value"]) == test.p_value
    assert (first["rank"], first["identities"], first["eps"]) == ("1", "12", "4")
    assert first["psnr n"] == "12"
    none = lines[3]
    assert (none["rank"], none["unranked"], none["psnr n"]) == ("", "no protection", "")
    assert "nan" not in files["scores.csv"].lower()


def test_readme_has_a_table_for_each_budget(files):
    text = files["README.md"]
    title = "base model tiny, surrogate tiny, as assumed, scored with sface"
    assert f"## portraits, dreambooth\n{title}" in text
    assert text.index("eps 4:") < text.index("eps 8:")
    headings = next(line for line in text.splitlines() if line.startswith("| rank"))
    cells = [cell.strip() for cell in headings.strip("|").split("|")]
    # ISM over detected faces stands beside the scores that show whether it deceives
    ism = cells.index("ISM (sface) ↓")
    assert cells[ism + 1 : ism + 3] == ["ISM, failures as 0 (sface) ↓", "FDFR % ↑"]
    assert re.search(r"\| 1 +\| `simac` +\| 12 +\| 0\.\d\d \[0\.\d\d, 0\.\d\d\]", text)
    assert "- (no protection)" in text


def test_rows_on_other_people_have_a_table_of_their_own(benchmark_of):
    usual = benchmark_of({"noise": 0, "simac": 0.3})
    files = made(usual + benchmark_of({"aspl": 0.5}, identities=4))
    above, below = files["README.md"].split("eps 8, on fewer or other identities")
    assert re.search(r"\| 1 +\| `simac` +\| 12 +\|", above)
    assert "`aspl`" not in above
    assert re.search(r"\| - \(fewer than 10 identities\) +\| `aspl` +\| 4 † +\|", below)
    # the difference is over the four whom both have; no p-value
    assert re.search(r"\| -0\.\d\d \[-0\.\d\d, -0\.\d\d\] +\| -0\.\d\d \[.*\] +\|\n", below)
    assert "4 † (not comparable)" in files["index.html"]
    lines = [(line["method"], line["comparable"]) for line in lines_of(files)]
    assert lines == [("simac", "yes"), ("noise", "yes"), ("none", "yes"), ("aspl", "no")]


def test_rows_of_several_processors_say_so(benchmark_of):
    a, b = (dict.fromkeys(("protect", "unprotected", "protected"), kind) for kind in "AB")
    records = benchmark_of({"noise": 0, "aspl": 0.2}, processors=a)
    records += benchmark_of({"simac": 0.3}, processors=b)
    files = made(in_order(records))
    assert "Computed on\n\n- B: `simac`\n- A: `aspl`, `noise`, `none`\n" in files["README.md"]
    assert files["index.html"].count("Computed on: B<") == 1
    assert "Computed on" not in made(records[:24])["README.md"]


def test_rows_of_other_photos_say_whose(benchmark_of):
    records = benchmark_of({"noise": 0, "aspl": 0.2, "simac": 0.3}, digests={"photos": {"B": "b"}})
    unlike = benchmark_of({"simac": 0.3}, digests={"photos": {"B": "others"}})
    assert "Of other photos" not in "".join(made(records).values())
    files = made(in_order([*records[:25], *unlike[1:3], *records[27:]]))
    assert "Of other photos than most rows\n\n- `simac`: 1, 2\n" in files["README.md"]
    assert files["index.html"].count("Of other photos than most rows beside it: 1, 2<") == 1
    named = {line["method"]: line["other_photos"] for line in lines_of(files)}
    assert named == {"simac": "1, 2", "aspl": "", "noise": "", "none": ""}


def test_the_plain_setting_comes_before_what_the_adversary_does_besides(benchmark_of):
    records = []
    for entries in ({"countermeasure": "blur"}, {"adversary": "all_other"}, {}):
        records += benchmark_of({"noise": 0.0}, identities=2, **entries)
    lines = made(records)["README.md"].splitlines()
    assert [line for line in lines if line.startswith("## ")] == [
        "## portraits, dreambooth",
        "## portraits, dreambooth, all other",
        "## portraits, dreambooth, after blur",
    ]


@pytest.mark.parametrize("name", ["README.md", "index.html"])
def test_reading_says_what_misleads(files, name):
    assert "50, 75, 87.5 and 94 % for n = 2, 3, 4 and 5" in files[name]
    assert "negative means that the row protects better" in files[name]
    assert "Intervals are not corrected" in files[name]
    assert "title=" not in files["index.html"]  # only a mouse could reach that


def test_recognizers_have_columns_figures_and_headings_of_their_own(benchmark_of):
    records = []
    for name in ("sface", "facenet"):
        scorer = {"backbone": name}
        records += benchmark_of({"noise": 0.0, "simac": 0.3}, eps=(4, 8), scorer=scorer)
    files = made(records)
    facenet, sface = (line for line in lines_of(files) if (line["eps"], line["rank"]) == ("4", "1"))
    assert facenet["ism (facenet) mean"] == sface["ism (sface) mean"] == "0.6"
    assert facenet["ism (sface) mean"] == sface["ism (facenet) mean"] == ""
    assert facenet["fdfr mean"] == sface["fdfr mean"] == "0.0"
    difference = "against_placebo identity_retention (sface) mean"
    assert (bool(sface[difference]), facenet[difference]) == (True, "")
    for backbone in ("facenet", "sface"):
        title = f"as assumed, scored with {backbone}"
        assert f"\nbase model tiny, surrogate tiny, {title}\n" in files["README.md"]
        assert f'value="base model tiny, surrogate tiny, {title}"' in files["index.html"]
        (figure,) = (text for name, text in files.items() if name.endswith(f"{backbone}.svg"))
        assert f"identity retention ({backbone})" in words(figure)


def test_a_users_own_matplotlib_settings_change_nothing(records, files):
    with matplotlib.rc_context({"lines.linewidth": 7, "axes.facecolor": "red"}):
        drawn = figures(standings(records))
    assert all(files[name] == svg for name, (_, svg) in drawn.items())


def test_figures_show_every_method_of_settings_at_several_budgets(benchmark_of):
    methods = {f"method {k}" for k in range(40)}
    records = benchmark_of(dict.fromkeys(methods, 0.1), identities=1, eps=(4, 8))
    records += benchmark_of({"noise": 0, "simac": 0.1}, identities=1, customizer="lora")
    ((name, (_, svg)),) = figures(standings(records)).items()
    title = "portraits-dreambooth-base-model-tiny-surrogate-tiny-as-assumed-scored-with-sface"
    assert name == f"{title}.svg"
    assert methods | {"unprotected"} <= words(svg)
    assert figures([]) == {}


def test_figures_leave_out_rows_on_other_people(benchmark_of):
    records = benchmark_of({"noise": 0, "simac": 0.3}, eps=(4, 8))
    records += benchmark_of({"aspl": 0.3}, identities=4)
    records += benchmark_of({"simac": 0.3}, identities=4, eps=(16,))
    ((_, svg),) = figures(standings(records)).values()
    assert {"noise", "simac", "4", "8"} <= words(svg)
    assert not {"aspl", "16"} & words(svg)


def test_without_records_it_says_so(tmp_path):
    (tmp_path / "none").mkdir()
    there = run(tmp_path / "none", tmp_path / "board")
    assert sorted(there) == ["README.md", "index.html", "scores.csv"]
    assert all("There are no records yet." in there[n] for n in ("README.md", "index.html"))
    assert there["scores.csv"].count("\n") == 1


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("typo", "--records .*typo: no such folder"),
        ("broken", r".*x\.json: schema_version is None"),
    ],
)
def test_folders_that_hold_no_records_are_refused(tmp_path, folder, message):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        run(tmp_path / folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_many_records_take_seconds(benchmark_of):
    records = benchmark_of({f"method_{i}": 0.04 * i for i in range(8)}, eps=range(1, 18))
    assert len(records) > 1600
    started = time.process_time()
    made(records)
    assert time.process_time() - started < 20


def test_commands_that_differ_in_identities_alone_are_one():
    first, second, both, by_name = (
        f"python run.py 'dataset.identities=[{names}]' seed=1"
        for names in ("1", "2, 3", "1,2,3", "Ann")
    )
    commands = [first, second, by_name, first, "python run.py", "python run.py"]
    assert merged(commands) == [both, by_name, "python run.py"]


def test_text_of_records_cannot_become_markup(made_up):
    record = made_up(identity="<b>Ann</b>", command="python run.py 'x=</pre><script>'")
    page = made([record], {record.name: '"><script>'})["index.html"]
    assert not any(text in page for text in ("<b>Ann", "</pre><script>", '"><script>'))


def test_names_of_records_are_shown_as_they_are(made_up):
    """In Markdown, in the figures' SVG and legends, whatever letters they are of."""
    hostile = ["a|b", "c`d", r"$\foo$", "_hidden", "# <i>", "none of it"]
    records = [
        made_up(attack=attack, identity=who, dataset=r"$\bar$|<i>", eps=eps)
        for attack in [*hostile, "noise"]
        for who in "ab"
        for eps in (4, 8)
    ]
    files = made(records)
    rows = [line for line in files["README.md"].splitlines() if line.startswith("| - (fewer")]
    assert len(rows) == 2 * (len(hostile) + 1)
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "<i>" not in re.sub(r"\\<i\\>|`[^`]*`", "", files["README.md"])
    (svg,) = (text for name, text in files.items() if name.endswith(".svg"))
    ElementTree.fromstring(svg)
    assert all(escape(name) in svg for name in hostile)
