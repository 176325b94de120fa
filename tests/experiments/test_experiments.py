"""Experiments: sweeps that a name stands for."""

import json
import re

import pytest


@pytest.mark.slow
def test_an_experiment_is_one_command_and_one_table(command, miniature, tmp_path):
    fewer = ["hydra.sweeper.params.attack=noise", "hydra.sweeper.params.clean_photos='0,3'"]
    ended = command(
        *miniature,
        "experiment=uncontrolled",
        *fewer,
        "dataset.identities=2",
        "tracker=none",
        f"output_dir={tmp_path}",
    )
    assert ended.status == 0, ended.err
    table = ended.out[ended.out.index("clean_photos  ") :].splitlines()
    assert [line.split()[:2] for line in table[2:4]] == [["0", "2"], ["3", "2"]]
    written = [json.loads(file.read_text()) for file in tmp_path.glob("records/*.json")]
    assert sorted(record["clean_photos"] for record in written) == [0, 0, 3, 3]


def test_what_is_given_beside_an_experiment_is_shown_once(command, miniature, tmp_path):
    ended = command(
        *miniature,
        "experiment=convenient",
        "hydra.sweeper.params.attack='none,noise'",
        "attack.eps=4",
        "attack=noise",
        "dataset.identities=1",
        "tracker=none",
        f"output_dir={tmp_path}",
    )
    assert ended.status == 0, ended.err
    assert len(list(tmp_path.glob("records/*.json"))) == 1


def test_a_job_that_fails_does_not_end_its_sweep(command, miniature, tmp_path):
    ended = command(
        "-m",
        *miniature,
        "attack=noise",
        "attack.eps=4,999,8",
        "tracker=none",
        f"output_dir={tmp_path}",
    )
    assert ended.status == 1
    assert re.search(r"^error: eps=999.* from 1 to 255", ended.out, re.MULTILINE)
    assert ended.err.splitlines()[-1].startswith("error: jobs failed, for the reasons above: ")
    assert "attack.eps=999" in ended.err.splitlines()[-1]
    written = [json.loads(file.read_text())["eps"] for file in tmp_path.glob("records/*.json")]
    assert sorted(written) == [4, 8]
    table = ended.out[ended.out.index("attack.eps  ") :].splitlines()
    assert [line.split()[0] for line in table[2:4]] == ["4", "8"]
