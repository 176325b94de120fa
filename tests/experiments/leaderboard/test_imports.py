import pytest

from experiments.leaderboard.imports import imported, main
from experiments.records.published import read_all
from experiments.records.record import RecordError

COLUMNS = {
    "method": "Method",
    "budget": "Eps",
    "identity": "Person",
    "ism": "ISM",
    "ism_failures_as_0": "ISM0",
    "fdfr": "FDFR",
    "psnr": "PSNR",
}
SETTINGS = {
    "dataset": "vggface2",
    "customizer": "dreambooth",
    "base_model": "sd21",
    "surrogate_model": "sd21",
    "backbone": "arcface",
}
PLACE = {key: COLUMNS[key] for key in ("method", "budget", "identity")}
LINE = "simac,8,1,0.3,0.2,0,31\n"


@pytest.fixture
def table(tmp_path):
    def write(lines, head="Method,Eps,Person,ISM,ISM0,FDFR,PSNR"):
        path = tmp_path / "theirs.csv"
        path.write_text(f"{head}\n{lines}")
        return path

    return write


def options(columns, settings):
    """The arguments of the command for columns and settings."""
    pairs = {"--columns": columns, "--settings": settings}
    words = [[option, *(f"{k}={v}" for k, v in names.items())] for option, names in pairs.items()]
    return [*words[0], *words[1], "--source", "A et al. 2025"]


def test_lines_become_records_that_are_marked_and_read_back(table, tmp_path, capsys):
    path = table("simac,8,n000050,0.25,0.2,0.2,31.5\nnoise,8,n000050,0.6,0.6,0,\n")
    main([str(path), *options(COLUMNS, SETTINGS), "--output-dir", str(tmp_path)])
    assert "2 records" in capsys.readouterr().out
    records = read_all((tmp_path / "records").glob("*.json")).values()
    noise, simac = sorted(records, key=lambda record: record.attack)
    origin = {"source": "A et al. 2025", "file": "theirs.csv", "line": 3}
    assert noise.imported.model_dump() == origin
    scores = simac.scores.protected.model_dump(exclude_unset=True)
    assert scores == {"ism": 0.25, "ism_failures_as_0": 0.2, "fdfr": 0.2}
    assert (simac.perceptibility.psnr, noise.perceptibility.psnr) == (31.5, None)
    assert (simac.method, simac.eps, simac.adversary) == ("simac", 8, "as_assumed")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("simac,8,1,0.3,0.2,25,31\n", "line 2: scores.protected.fdfr is 25.0, expected a number"),
        (f"{LINE}simac,x,2,0,0,0,1\n", "line 3: eps is 'x', expected a number"),
        ("simac,8,,0.3,0.2,0,31\n", "line 2: identity is '': "),
        ("simac,-8,1,0.3,0.2,0,31\n", "line 2: eps is -8.0: "),
        ("simac,8,1,nan,0.2,0,31\n", "line 2: scores.protected.ism is nan, expected a number"),
        ("simac,8,1,0.3,,0,31\n", "line 2: scores.protected.ism stands without ism_failures_as_0"),
        ("simac,8,1,,,,31\n", "line 2: scores.protected is empty"),
        ("simac,8\n", "line 2: fewer cells than headings"),
        ("simac,8,1,0,3,0.2,0,31\n", "line 2: more cells than headings"),
        ("simac,8,1,0.2_5,0.2,0,31\n", "line 2: scores.protected.ism is '0.2_5', expected a"),
        ("a,8,1,0,0,0,1\na,8,1,0,0,0,1\n", "line 3: method, budget, identity and seed of line 2"),
        ("", "line 2: no line below the headings"),
    ],
)
def test_errors_name_file_line_and_key(table, lines, message):
    path = table(lines)
    with pytest.raises(RecordError) as caught:
        imported(path, COLUMNS, SETTINGS, "them")
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("columns", "settings", "source", "message"),
    [
        (COLUMNS | {"fid": "FID"}, SETTINGS, "them", r"--columns fid=\.\.\.: unknown"),
        (COLUMNS, SETTINGS | {"fdfr": "0"}, "them", r"--settings fdfr=\.\.\.: unknown"),
        (COLUMNS | {"fdfr": "Lost"}, SETTINGS, "them", "line 1: no columns 'Lost' for fdfr"),
        (COLUMNS, {"dataset": "vggface2"}, "them", "customizer is missing: name it in"),
        (COLUMNS, SETTINGS | {"seed": "one"}, "them", "line 2: seed is 'one', expected an integer"),
        (PLACE, SETTINGS, "them", "line 2: scores.protected is empty"),
        (COLUMNS | {"seed": "Eps"}, SETTINGS | {"seed": "1"}, "them", "seed is among --columns"),
        # else nothing would mark the records
        (COLUMNS, SETTINGS, "this project", "say where the scores were published"),
        (COLUMNS, SETTINGS, " ", "say where the scores were published"),
    ],
)
def test_unknown_and_missing_names_are_refused(table, columns, settings, source, message):
    with pytest.raises(RecordError, match=message):
        imported(table(LINE), columns, settings, source)


def test_what_stands_there_twice_is_refused(table):
    columns = {**PLACE, "fdfr": "FDFR"}
    assert imported(table("simac,8,1,0.3\n", "Method,Eps,Person,FDFR"), columns, SETTINGS, "them")
    path = table("simac,8,1,0.3,0.9\n", "Method,Eps,Person,FDFR,FDFR")
    with pytest.raises(RecordError, match="line 1: 2 columns 'FDFR' for fdfr, expected one"):
        imported(path, columns, SETTINGS, "them")
    with pytest.raises(SystemExit, match="fdfr=ISM: expected NAME=VALUE, each name once"):
        main([str(path), "--columns", "fdfr=FDFR", "fdfr=ISM", "--source", "them"])


def test_a_setting_may_be_a_column(table):
    path = table("simac,8,1,0.1,lora\nsimac,8,1,0.2,dreambooth\n", "Method,Eps,Person,FDFR,How")
    columns = {**PLACE, "fdfr": "FDFR", "customizer": "How"}
    settings = {key: value for key, value in SETTINGS.items() if key != "customizer"}
    records = imported(path, columns, settings, "them").values()
    assert [record.customizer for record in records] == ["lora", "dreambooth"]


@pytest.mark.parametrize(
    ("file", "output_dir", "message"),
    [
        ("theirs.csv", "file", "/file"),
        ("latin.csv", ".", "latin.csv: not a CSV file in UTF-8"),
        ("none.csv", ".", "none.csv"),
    ],
)
def test_files_that_cannot_be_read_or_written_are_named(table, tmp_path, file, output_dir, message):
    table(LINE)
    (tmp_path / "file").touch()
    (tmp_path / "latin.csv").write_bytes("Méthode\n".encode("latin-1"))
    words = [*options(COLUMNS, SETTINGS), "--output-dir", str(tmp_path / output_dir)]
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path / file), *words])
