import pytest

from experiments import processes
from experiments.leaderboard import reproduce
from experiments.leaderboard.reproduce import (
    again_in,
    arguments_of,
    commands,
    compared,
    main,
    moved,
    report,
    state_of_code,
)
from experiments.records.files import write
from experiments.records.published import images_of, write_folder


@pytest.fixture
def run_py(tmp_path, monkeypatch):
    """Call it with code for a stand-in of run.py, which knows its folder for `records`."""
    for module in (reproduce, processes):
        monkeypatch.setattr(module, "ROOT", tmp_path)

    def stand_in(code):
        (tmp_path / "run.py").write_text(
            "import json, os, pathlib, shutil, sys\n"
            "place = dict(word.split('=', 1) for word in sys.argv[1:])['output_dir']\n"
            "records = pathlib.Path(place, 'records')\n"
            f"{code}\n"
        )

    return stand_in


def test_numbers_that_moved_are_told_from_those_that_did_not(made_up):
    committed = [made_up(0.5), made_up(0.4, identity="1"), made_up(seed=3, name="c")]
    again = [made_up(0.5), made_up(0.375, identity="1", psnr=None, digests={"base_model": "new"})]
    numbers, missing = compared(committed, again)
    assert missing == ["c"]
    unlike = moved(numbers).set_index("score").difference
    assert unlike.to_dict() == {
        "protected identity_retention": pytest.approx(-0.025),
        "photos psnr": pytest.approx(float("nan"), nan_ok=True),
    }
    assert set(numbers.record) == {record.name for record in committed[:2]}
    text = report(numbers, missing)
    assert "largest absolute difference: 0.025" in text
    assert "did not come again: c" in text
    assert f"{len(numbers) - 2} of {len(numbers)} numbers are the same" in text
    row = next(line for line in text.splitlines() if "identity_retention" in line)
    assert row.split()[1:] == ["protected", "identity_retention", "0.4", "0.375", "-0.025"]
    table = [line.split() for line in text.splitlines()]
    assert ["protected", "identity_retention", "2", "1", "-0.0125", "0.025"] in table


def test_other_settings_are_other_records(made_up):
    again = [made_up(method="simac (steps=12)"), made_up(details="gallery.steps=5"), made_up(eps=4)]
    record = made_up(name="a")
    numbers, missing = compared([record], again)
    assert (len(numbers), missing) == (0, ["a"])


def test_each_command_runs_once_with_its_threads_elsewhere(made_up, tmp_path):
    sweep = "python run.py -m attack=noise,simac 'dataset.identities=[1, 2]' output_dir=outputs/x"
    two, gpu = {"torch_threads": 2}, {"torch_threads": 2, "gpu": "H100"}
    records = [
        made_up(command=sweep),
        made_up(command=sweep, attack="noise"),
        made_up(command=sweep, machine=two),
        made_up(command=sweep, machine=gpu, config={"precision": "mixed"}),
    ]
    here, there = f"{sweep} precision=float32 device=cpu", f"{sweep} precision=mixed"
    assert commands(records) == [(here, 1), (here, 2), (there, 2)]
    elsewhere = "tracker=wandb tracker.mode=offline +tracker.group=x force=[eval] stages=[eval]"
    elsewhere += " hydra/launcher=local hydra.launcher.timeout_min=1"
    assert arguments_of(f"{sweep} {elsewhere}", tmp_path) == [
        "-m",
        "attack=noise,simac",
        "dataset.identities=[1, 2]",
        f"output_dir={tmp_path}",
        "tracker=none",
    ]


def test_the_command_compares_what_run_py_writes(made_up, tmp_path, run_py, capsys):
    """A stand-in for run.py writes the committed record with one score moved."""
    file = write(made_up(0.25), tmp_path / "made")
    run_py(f"records.mkdir(parents=True, exist_ok=True)\nshutil.copy({str(file)!r}, records)")
    committed, folder = tmp_path / "committed", tmp_path / "again"

    def output(status, records=committed):
        with pytest.raises(SystemExit) as ended:
            main(["--records", str(records), "--output-dir", str(folder)])
        assert ended.value.code == status
        return capsys.readouterr().out

    record = made_up(0.5, name="a")
    write_folder({"a": record}, images_of([]), tmp_path / "published")
    assert "largest absolute difference: 0.25" in output(0, tmp_path / "published")
    assert "1 of 1: " in output(0, tmp_path / "published" / "single_runs.jsonl")
    write(record, committed)
    out = output(0)
    assert "1 of 1: python run.py" in out
    assert "largest absolute difference: 0.25" in out

    run_py("raise SystemExit('no weights')")
    write(made_up(0.5, identity="5", name="b"), committed)
    out = output(1)
    assert "failed: see" in out
    # "a" too: results of other code count no longer
    assert all(f"did not come again: {name}" in out for name in "ab")
    logs = [log.read_text() for log in folder.glob("*/logs/reproduce-1.txt")]
    assert sorted(logs) == ["", "no weights\n"]


def test_results_of_other_threads_are_not_taken_for_ones_own(made_up, tmp_path, run_py):
    """A stand-in for run.py writes its record, once, with the threads that it was given."""
    run_py(
        "if not records.exists():\n"
        "    records.mkdir(parents=True)\n"
        "    record = json.loads(pathlib.Path('made.json').read_text())\n"
        "    record['perceptibility']['psnr'] = 30 + int(os.environ['OMP_NUM_THREADS'])\n"
        "    (records / 'a.json').write_text(json.dumps(record))"
    )
    write(made_up(), tmp_path).rename(tmp_path / "made.json")
    committed = [made_up(psnr=30 + n, machine={"torch_threads": n}) for n in (1, 2)]
    numbers, missing = again_in(tmp_path / "again", committed, commands(committed))
    assert missing == []
    assert set(numbers.record) == {record.name for record in committed}
    assert moved(numbers).empty


def test_the_state_of_the_code_is_that_of_what_decides_numbers(tmp_path):
    def state_with(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return state_of_code(tmp_path)

    decisive = ["run.py", "conf/attack/a.yaml", "eval/weights/w.safetensors", "anticustom/b/c.py"]
    decisive.append("experiments/run/stages.py")
    before = [state_with(name, "1") for name in decisive][-1]
    aside = ("README.md", "anticustom/b/__pycache__/c.pyc", "experiments/results/records/r.json")
    assert {state_with(name, "2") for name in aside} == {before}
    assert len({before, *(state_with(name, "22") for name in decisive)}) == 1 + len(decisive)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_records_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=rf"error: .*{name}: no record there"):
        main(["--records", str(tmp_path / name), "--output-dir", str(tmp_path / "again")])
