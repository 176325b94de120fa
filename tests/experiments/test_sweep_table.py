"""The table that ends a sweep, on made-up records."""

import re

from experiments.sweep_table import sweep_table


def record(retention, fdfr=0.0):
    scores = {"identity_retention": retention, "ism": 0.5, "ism_failures_as_0": 0.5 * (1 - fdfr)}
    protected = scores | {"fdfr": fdfr, "brisque": 20.0}
    arms = {"protected": protected, "unprotected": protected | {"identity_retention": 0.8}}
    return {"scorer": {"backbone": "sface"}, "scores": arms}


def rows(jobs):
    lines = sweep_table(jobs).splitlines()
    return [[cell.strip() for cell in re.split(r"\s{2,}", line.strip())] for line in lines]


def test_a_row_for_each_job_says_what_was_swept():
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


def test_what_only_some_jobs_set_is_a_column_too():
    jobs = [(["attack=aspl"], [record(0.5)]), (["attack=aspl", "attack.eps=4"], [record(0.6)])]
    heading, _, first, second, _ = rows(jobs)
    assert heading[:2] == ["attack.eps", "identities"]
    assert first[0] == "1"
    assert second[:2] == ["4", "1"]
