"""Protection against its cost, on made-up scores."""

import pandas as pd
import pytest
from hydra.utils import instantiate

from experiments.analyses import cost
from experiments.analyses.cost import chosen, falls, main, operations
from experiments.benchmarks.phases import Bench, whole
from experiments.benchmarks.speed import counted
from experiments.records.files import write
from experiments.setup.composing import composed, resolved

pytestmark = pytest.mark.slow

COSTS = {"noise": 0, "simac_fast": 5e11, "simac": 5e12}


@pytest.fixture
def folder(made_up, tmp_path, monkeypatch):
    """Records of ten people: noise does nothing, SimAC takes 0.3, the fast one a little less."""
    monkeypatch.setattr(cost, "operations", lambda record: COSTS[record.attack])
    folder = tmp_path / "records"
    folder.mkdir()
    for attack, fall in (("noise", 0.0), ("simac", 0.3), ("simac_fast", 0.28)):
        for k in range(10):
            loss = "none" if attack == "noise" else "feature_interference"
            record = made_up(
                0.8 - fall - k / 1000, attack=attack, identity=str(k), loss=loss, eps=8
            )
            write(record, folder)
    return folder


def test_the_table_and_the_figure(folder, tmp_path, capsys):
    main([str(folder), "--output-dir", str(tmp_path / "out")])
    numbers = pd.read_csv(tmp_path / "out" / "numbers.csv").set_index("method")
    assert list(numbers.index) == ["noise", "simac_fast", "simac"]  # the cheapest first
    assert numbers.tflop.tolist() == [0, 0.5, 5]
    fast = numbers.loc["simac_fast"]
    assert fast.retention_falls_by == pytest.approx(0.2845, abs=1e-4)
    assert fast.low < fast.retention_falls_by < fast.high
    assert fast.more_than_simac == pytest.approx(-0.02, abs=1e-4)
    assert fast.p < 0.01
    assert (tmp_path / "out" / "figure.png").stat().st_size > 5000
    assert "retention_falls_by" in capsys.readouterr().out


def test_identities_are_paired_and_seeds_averaged(made_up):
    records = [made_up(0.5), made_up(0.3, seed=1), made_up(0.8, identity="7")]
    assert falls(records).to_dict() == pytest.approx({records[0].identity: 0.4, "7": 0.0})


def test_records_of_two_settings_are_refused(made_up):
    records = [made_up(), made_up(countermeasure="jpeg75"), made_up(eps=4)]
    eps = records[0].eps
    with pytest.raises(ValueError, match=r"one setting, not of .*jpeg75"):
        chosen(records, eps, {"customizer": "dreambooth"})
    with pytest.raises(ValueError, match="not of none"):
        chosen(records, 12, {"customizer": "dreambooth"})
    for record in records[:2]:
        entries = {"customizer": "dreambooth", "countermeasure": record.countermeasure}
        assert chosen(records, eps, entries) == {"simac": [record]}


def test_an_unknown_reference_is_refused(folder):
    with pytest.raises(SystemExit, match=r"--reference aspl: expected one of noise, simac"):
        main([str(folder), "--reference", "aspl"])


@pytest.fixture
def recorded(made_up):
    """Return a record of an attack on one photo."""

    def make(*words: str, surrogate_model: str = "tiny"):
        attack = resolved(composed(*words))["attack"]
        return made_up(surrogate_model=surrogate_model, config={"attack": attack}, photos=1)

    return make


def test_operations_are_those_of_the_attack(recorded):
    one, two, three = (operations(recorded("attack=advdm", f"attack.steps={n}")) for n in (1, 2, 3))
    assert three - two == two - one > 0  # a step costs the same each time
    assert operations(recorded("attack=noise")) == 0


def test_iterations_are_counted_without_running_them_all(recorded):
    record = recorded("attack=aspl", "attack.steps=1", "attack.surrogate_schedule.iterations=4")
    attack = instantiate(record.config["attack"], _convert_="object")
    call, _ = whole(Bench("tiny", "cpu", 1), attack)
    assert operations(record) == counted(call)


def test_all_surrogates_of_an_ensemble_are_counted(recorded):
    schedule = "attack.surrogate_schedule"
    short = ["attack.steps=1", f"{schedule}.iterations=1", f"{schedule}.training_steps=1"]
    alone = operations(recorded("attack=aspl", *short))
    second = operations(recorded("attack=aspl", *short, surrogate_model="tiny_b"))
    assert operations(recorded("attack=e_aspl", *short)) == pytest.approx(alone + second, rel=0.01)
