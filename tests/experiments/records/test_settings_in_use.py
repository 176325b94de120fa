"""Which settings of an attack or a customizer decide its result."""

import pytest

from experiments.records.settings_in_use import effective, in_use


def test_of_files_the_contents_count_and_not_where_they_lie(tmp_path):
    a, b, c = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    a.write_bytes(b"a picture")
    b.write_bytes(b"a picture")
    c.write_bytes(b"another")
    settings = {"eps": 8, "loss": {"target": str(a), "wraps": False}}
    keys = [
        effective(settings | {"loss": {**settings["loss"], "target": str(file)}}, "0")
        for file in (a, b, c)
    ]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0]["loss"]["wraps"] is False
    assert settings["loss"]["target"] == str(a)


@pytest.mark.parametrize("loss", [{}, {"weight": 1.0}, {"target": None}])
def test_other_settings_count_as_they_are(loss):
    assert effective({"eps": 8, "loss": loss}, "0") == {"eps": 8, "loss": loss}


def test_transforms_count_only_where_there_are_any():
    settings = {"eps": 8, "transform_samples": 2}
    assert effective(settings | {"transforms": []}, "0") == {"eps": 8}
    used = settings | {"transforms": ["blur"]}
    assert effective(used, "0") == used


def test_options_left_alone_do_not_count_however_deep():
    training = {"learning_rate": 1e-4, "optimizer_states": "32bit"}
    schedule = {"steps": 3, "adapters": None, "training": training}
    settings = {"surrogate_schedule": schedule, "loss": {"gradient": True}, "draws_per_step": 1}
    assert in_use(settings) == {
        "surrogate_schedule": {"steps": 3, "training": {"learning_rate": 1e-4}},
        "loss": {"gradient": True},
    }
    schedule["adapters"], training["optimizer_states"] = {"rank": 4}, "8bit"
    assert in_use(settings)["surrogate_schedule"] == schedule
