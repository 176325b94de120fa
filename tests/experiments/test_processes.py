"""Commands as processes of their own."""

import pytest

from experiments import processes
from experiments.processes import Command, outcomes


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Four runs of a stand-in for run.py, which leaves a file of its name and fails as `2`."""
    (tmp_path / "run.py").write_text(
        "import os, pathlib, sys\n"
        "pathlib.Path(sys.argv[1]).write_text(os.environ['OMP_NUM_THREADS'])\n"
        "sys.exit('broken' if sys.argv[1] == '2' else 0)\n"
    )
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    return [Command([str(k)], 3, tmp_path / "logs" / f"{k}.txt") for k in range(4)]


def test_outcomes_come_in_order_and_logs_keep_the_reasons(runs, tmp_path):
    assert list(outcomes(runs, 2)) == [True, True, False, True]
    assert (tmp_path / "logs" / "2.txt").read_text() == "broken\n"
    assert (tmp_path / "0").read_text() == "3"


def test_what_ends_the_loop_lets_no_further_run_start(runs, tmp_path):
    def interrupted():
        for _ in outcomes(runs, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "0").exists()
    assert not (tmp_path / "3").exists()
