import pytest

from experiments import processes
from experiments.leaderboard import reproduce
from experiments.leaderboard.reproduce import (
    again_in,
    arguments_of,
    commands,
    compared,
    main,
    report,
    state_of_code,
    summary,
)
from experiments.records import record as records


def test_numbers_that_moved_are_told_from_those_that_did_not(made_up):
    committed = {"a": made_up(0.5), "b": made_up(0.4, identity="1"), "c": made_up(seed=3)}
    again = {"x": made_up(0.5), "y": made_up(0.375, identity="1", psnr=None)}
    again["y"]["digests"] = {"base_model": "ab", "surrogate_model": "moved"}
    numbers, missing = compared(committed, again)
    assert missing == ["c"]
    moved = {n.score: n.difference for n in numbers if n.committed != n.again}
    assert moved == {"protected identity_retention": pytest.approx(-0.025), "photos psnr": None}
    assert {number.record for number in numbers} == {"a", "b"}
    text = report(numbers, missing)
    assert "largest absolute difference: 0.025" in text
    assert "did not come again: c" in text
    assert f"{len(numbers) - 2} of {len(numbers)} numbers are the same" in text
    row = next(line for line in text.splitlines() if "identity_retention" in line)
    assert row.split() == ["b", "protected", "identity_retention", "0.4", "0.375", "-0.025"]
    table = [line.split() for line in summary(numbers).splitlines()]
    assert ["protected", "identity_retention", "2", "1", "-0.0125", "0.025"] in table


def test_other_settings_are_other_records(made_up):
    longer = {"attack": {"_target_": "anticustom.attacks.pgd.PGD", "steps": 12}}
    other = {"gallery": {"prompts": ["a photo"], "guidance_scale": 5}}
    again = {"x": made_up(config=longer), "y": made_up(config=other), "z": made_up(eps=4)}
    assert compared({"a": made_up()}, again) == ([], ["a"])


def test_each_command_runs_once_with_its_threads_elsewhere(made_up, tmp_path):
    sweep = "python run.py -m attack=noise,simac 'dataset.identities=[1, 2]' output_dir=outputs/x"
    found = {
        "a": made_up(command=sweep),
        "b": made_up(command=sweep, attack="noise"),
        "c": made_up(command=sweep, machine={"torch_threads": 2}),
        "d": {**made_up(), "imported": {"source": "a paper"}},
    }
    found["e"] = made_up(command=sweep, machine={"torch_threads": 2, "gpu": "H100"})
    found["e"]["config"]["precision"] = "mixed"
    here, there = f"{sweep} precision=float32 device=cpu", f"{sweep} precision=mixed"
    assert commands(found) == [(here, 1), (here, 2), (there, 2)]
    elsewhere = "tracker=wandb tracker.mode=offline +tracker.group=x force=[eval] stages=[eval]"
    elsewhere += " hydra/launcher=local hydra.launcher.timeout_min=1"
    assert arguments_of(f"{sweep} {elsewhere}", tmp_path) == [
        "-m",
        "attack=noise,simac",
        "dataset.identities=[1, 2]",
        f"output_dir={tmp_path}",
        "tracker=none",
    ]


def test_the_command_compares_what_run_py_writes(made_up, tmp_path, monkeypatch, capsys):
    """A stand-in for run.py writes the committed record with one score moved."""
    made, folder = tmp_path / "made", tmp_path / "again"
    records.write(made_up(0.25), made, "moved")
    (tmp_path / "run.py").write_text(
        "import pathlib, shutil, sys\n"
        "place = dict(word.split('=', 1) for word in sys.argv[1:])['output_dir']\n"
        "pathlib.Path(place, 'records').mkdir(parents=True, exist_ok=True)\n"
        f"shutil.copy({str(made / 'moved.json')!r}, pathlib.Path(place, 'records'))\n"
    )
    records.write(made_up(0.5), tmp_path / "committed", "a")
    for module in (reproduce, processes):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    arguments = ["--records", str(tmp_path / "committed"), "--output-dir", str(folder)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "1 of 1: python run.py" in out
    assert "largest absolute difference: 0.25" in out

    (tmp_path / "run.py").write_text("raise SystemExit('no weights')")
    records.write(made_up(0.5, identity="5"), tmp_path / "committed", "b")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "failed: see" in out
    assert "did not come again: b" in out
    assert "did not come again: a" in out  # what the code before made counts no longer
    logs = [log.read_text() for log in folder.glob("*/logs/reproduce-1.txt")]
    assert sorted(logs) == ["", "no weights\n"]


def test_results_of_other_threads_are_not_taken_for_ones_own(made_up, tmp_path, monkeypatch):
    """A stand-in for run.py writes its record with the threads that it was given."""
    (tmp_path / "run.py").write_text(
        "import json, os, pathlib, sys\n"
        "place = dict(word.split('=', 1) for word in sys.argv[1:])['output_dir']\n"
        "folder = pathlib.Path(place, 'records')\n"
        "if not folder.exists():\n"
        "    folder.mkdir(parents=True)\n"
        "    record = json.loads(pathlib.Path('made.json').read_text())\n"
        "    record['perceptibility']['psnr'] = 30 + int(os.environ['OMP_NUM_THREADS'])\n"
        "    (folder / 'a.json').write_text(json.dumps(record))\n"
    )
    records.write(made_up(), tmp_path, "made")
    committed = {
        str(n): made_up(psnr=30 + n, machine={"torch_threads": n}, command="python run.py")
        for n in (1, 2)
    }
    for module in (reproduce, processes):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    numbers, missing = again_in(tmp_path / "again", committed, commands(committed))
    assert missing == []
    assert {n.record for n in numbers if n.committed == n.again} == {"1", "2"}
    assert not [n for n in numbers if n.committed != n.again]


def test_the_state_of_the_code_is_that_of_what_decides_numbers(tmp_path):
    files = ["run.py", "conf/attack/a.yaml", "eval/weights/w.safetensors", "anticustom/b/c.py"]
    files.append("experiments/run/stages.py")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = state_of_code(tmp_path)
    for name in (
        "README.md",
        "anticustom/b/__pycache__/c.pyc",
        "experiments/results/records/r.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("2")
    assert state_of_code(tmp_path) == before
    states = {before}
    for name in files:
        (tmp_path / name).write_text("22")
        states.add(state_of_code(tmp_path))
    assert len(states) == 1 + len(files)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_records_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=rf"--records .*{name}: no record there that a run made"):
        main(["--records", str(tmp_path / name), "--output-dir", str(tmp_path / "again")])
