"""The table that ends a sweep, on made-up records."""

import re

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from experiments.run.callbacks import SweepTable, note_failure, sweep_table


@pytest.fixture(scope="module")
def record(made_up):
    return lambda retention, fdfr=0.0, identity="0": made_up(
        retention, fdfr=fdfr, identity=identity
    )


def rows(jobs):
    lines = sweep_table(jobs).splitlines()
    return [[cell.strip() for cell in re.split(r"\s{2,}", line.strip())] for line in lines]


def test_a_row_for_each_job_says_what_was_swept(record):
    jobs = [
        (["attack=noise", "seed=1", "attack.eps=8"], [record(0.7), record(0.7)]),
        (["attack=simac", "seed=1", "attack.eps=8"], [record(0.2, 0.25), record(0.4, 0.25)]),
    ]
    heading, _, noise, simac, legend = rows(jobs)
    assert heading[:4] == ["attack", "identities", "unprotected retention ↓", "retention ↓"]
    assert "ISM sface ↓" in heading
    assert noise[:4] == ["noise", "2", "0.80 [0.80, 0.80]", "0.70 [0.70, 0.70]"]
    assert simac[:2] == ["simac", "2"]
    assert simac[3].startswith("0.30 [")
    assert "25.0 [25.0, 25.0]" in simac
    assert "95 %" in legend[0]


def test_what_only_some_jobs_set_is_a_column_too(record):
    jobs = [(["attack=aspl"], [record(0.5)]), (["attack=aspl", "attack.eps=4"], [record(0.6)])]
    heading, _, first, second, _ = rows(jobs)
    assert heading[:2] == ["attack.eps", "identities"]
    assert first[0] == "1"
    assert second[:2] == ["4", "1"]


def test_the_order_of_shards_changes_no_interval(record):
    people = [record(0.1 + 0.03 * i**2, identity=str(i)) for i in range(7, 12)]
    whole, shards = (rows([(["seed=1"], of)]) for of in (people, people[::2] + people[1::2]))
    assert shards == whole


def ended(folder, number, records, failure=None):
    """A job of a sweep in `folder` that came to these records; the sweep's configuration."""
    hydra = {"mode": RunMode.MULTIRUN, "job": {"num": number}, "sweep": {"dir": str(folder)}}
    hydra["runtime"] = {"output_dir": str(folder / str(number))}
    config = OmegaConf.create({"hydra": hydra})
    done = JobReturn(overrides=[f"seed={number}"], status=JobStatus.COMPLETED)
    done.return_value = records
    SweepTable().on_job_start(config)  # as in a process of its own
    if failure:
        note_failure(folder / str(number), failure)
    SweepTable().on_job_end(config, done)
    return config


def test_failures_of_any_process_end_the_sweep_with_their_reasons(tmp_path, capsys):
    for number in (10, 2):
        ended(tmp_path, number, [], f"bad luck {number}")
    config = ended(tmp_path, 3, [])  # of an empty shard
    with pytest.raises(SystemExit, match=r"for the reasons above: seed=2; seed=10\. Run"):
        SweepTable().on_multirun_end(config)
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["error: seed=2: bad luck 2", "error: seed=10: bad luck 10"]


def test_what_an_earlier_sweep_left_in_the_folder_does_not_count(tmp_path):
    config = ended(tmp_path, 1, [], "bad luck")
    SweepTable().on_multirun_start(config)
    SweepTable().on_multirun_end(config)
    SweepTable().on_multirun_end(ended(tmp_path, 1, []))


def test_a_job_that_failed_with_one_person_keeps_its_row(record, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.records.files.read", lambda path: record(float(path.stem)))
    ended(tmp_path, 1, ["0.1.json"], "0: bad luck")
    config = ended(tmp_path, 2, ["0.2.json", "0.4.json"])
    with pytest.raises(SystemExit, match=r"for the reasons above: seed=1\. Run"):
        SweepTable().on_multirun_end(config)
    *_, first, second, _, _, failure = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", first)[:4] == ["1", "1", "0.80", "0.10"]
    assert re.split(r"\s{2,}", second)[:2] == ["2", "2"]
    assert failure == "error: seed=1: 0: bad luck"


def test_a_folder_that_cannot_be_written_ends_the_process_in_one_line(tmp_path):
    (tmp_path / "1").touch()
    with pytest.raises(SystemExit, match=r"^error: cannot write .*error\.txt .*another output_dir"):
        note_failure(tmp_path / "1", "bad luck")
