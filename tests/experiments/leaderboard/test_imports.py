import pytest

from experiments.leaderboard.imports import ImportRefused, imported, main
from experiments.records.published import read_all

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
HEAD = "Method,Eps,Person,ISM,ISM0,FDFR,PSNR\n"


@pytest.fixture
def table(tmp_path):
    def write(lines, head=HEAD):
        path = tmp_path / "theirs.csv"
        path.write_text(head + lines)
        return path

    return write


def test_lines_become_records_that_are_marked_and_read_back(table, tmp_path, capsys):
    path = table("simac,8,n000050,0.25,0.2,0.2,31.5\nnoise,8,n000050,0.6,0.6,0,\n")
    arguments = [str(path), "--columns", *(f"{k}={v}" for k, v in COLUMNS.items())]
    arguments += ["--settings", *(f"{k}={v}" for k, v in SETTINGS.items())]
    main([*arguments, "--source", "A et al. 2025", "--output-dir", str(tmp_path)])
    assert "2 records" in capsys.readouterr().out
    records = read_all((tmp_path / "records").glob("*.json")).values()
    noise, simac = sorted(records, key=lambda record: record.attack)
    origin = {"source": "A et al. 2025", "file": "theirs.csv", "line": 3}
    assert noise.imported.model_dump() == origin
    scores = simac.scores.protected.model_dump(exclude_unset=True)
    assert scores == {"ism": 0.25, "ism_failures_as_0": 0.2, "fdfr": 0.2}
    assert simac.perceptibility.psnr == 31.5
    assert noise.perceptibility.psnr is None
    assert (simac.method, simac.eps, simac.adversary) == ("simac", 8, "as_assumed")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("simac,8,1,0.3,0.2,25,31\n", "line 2: scores.protected.fdfr is 25.0, expected a number"),
        ("simac,8,1,0.3,0.2,0,31\nsimac,x,2,0,0,0,1\n", "line 3: eps is 'x', expected a number"),
        ("simac,8,,0.3,0.2,0,31\n", "line 2: column 'Person' is empty, expected a value"),
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
def test_errors_name_file_line_and_column(table, lines, message):
    path = table(lines)
    with pytest.raises(ImportRefused) as caught:
        imported(path, COLUMNS, SETTINGS, "them")
    assert str(caught.value).startswith(f"{path}: {message}")


def test_unknown_and_missing_names_are_refused(table):
    path = table("simac,8,1,0.3,0.2,0,31\n")
    for columns, settings, message in [
        (COLUMNS | {"fid": "FID"}, SETTINGS, "--columns fid=...: unknown"),
        (COLUMNS | {"fdfr": "Failures"}, SETTINGS, "line 1: no column 'Failures' for fdfr"),
        (COLUMNS, {"dataset": "vggface2"}, "customizer is missing: name its column"),
        (COLUMNS, SETTINGS | {"seed": "one"}, "line 2: seed is 'one', expected an integer"),
        ({k: COLUMNS[k] for k in ("method", "budget", "identity")}, SETTINGS, "names no score"),
        (COLUMNS | {"seed": "Person"}, SETTINGS | {"seed": "1"}, "seed is among --columns and"),
    ]:
        with pytest.raises(ImportRefused, match=message.replace(".", r"\.")):
            imported(path, columns, settings, "them")
    for source in ("this project", " "):  # else nothing would mark them
        with pytest.raises(ImportRefused, match="say where the scores were published"):
            imported(path, COLUMNS, SETTINGS, source)


def test_what_stands_there_twice_is_refused(table):
    path = table("simac,8,1,0.3\n", "Method,Eps,Person,FDFR\n")
    columns = {k: COLUMNS[k] for k in ("method", "budget", "identity", "fdfr")}
    assert imported(path, columns, SETTINGS, "them")
    path = table("simac,8,1,0.3,0.9\n", "Method,Eps,Person,FDFR,FDFR\n")
    with pytest.raises(ImportRefused, match="line 1: column 'FDFR' stands there twice"):
        imported(path, columns, SETTINGS, "them")
    words = [f"{k}={v}" for k, v in columns.items()]
    with pytest.raises(SystemExit, match="the name 'fdfr' stands there twice"):
        main([str(path), "--columns", *words, "fdfr=ISM", "--source", "them"])


def test_a_setting_may_be_a_column(table):
    path = table("simac,8,1,0.1,lora\nsimac,8,1,0.2,dreambooth\n", "Method,Eps,Person,FDFR,How\n")
    columns = {k: COLUMNS[k] for k in ("method", "budget", "identity", "fdfr")}
    settings = {key: value for key, value in SETTINGS.items() if key != "customizer"}
    found = imported(path, columns | {"customizer": "How"}, settings, "them")
    assert [record.customizer for record in found.values()] == ["lora", "dreambooth"]


def test_files_that_cannot_be_read_or_written_are_named(table, tmp_path):
    options = ["--columns", *(f"{k}={v}" for k, v in COLUMNS.items())]
    options += ["--settings", *(f"{k}={v}" for k, v in SETTINGS.items()), "--source", "them"]
    good = table("simac,8,1,0.3,0.2,0,31\n")
    (tmp_path / "file").touch()
    (tmp_path / "latin.csv").write_bytes("Méthode\n".encode("latin-1"))
    for file, output_dir, named in [
        (good, tmp_path / "file", tmp_path / "file"),
        (tmp_path / "latin.csv", tmp_path, "latin.csv: not a CSV file in UTF-8"),
        (tmp_path / "none.csv", tmp_path, "none.csv"),
    ]:
        with pytest.raises(SystemExit, match=str(named)):
            main([str(file), *options, "--output-dir", str(output_dir)])
