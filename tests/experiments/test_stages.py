"""Which settings of an attack decide its result."""

import pytest

from experiments.stages import effective


def test_of_files_the_contents_count_and_not_where_they_lie(tmp_path):
    a, b, c = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    a.write_bytes(b"a picture")
    b.write_bytes(b"a picture")
    c.write_bytes(b"another")
    settings = {"eps": 8, "loss": {"target": str(a), "wraps": False}}
    keys = [
        effective(settings | {"loss": {**settings["loss"], "target": str(file)}})
        for file in (a, b, c)
    ]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0]["loss"]["wraps"] is False
    assert settings["loss"]["target"] == str(a)


@pytest.mark.parametrize("loss", [{}, {"weight": 1.0}, {"target": None}])
def test_other_settings_count_as_they_are(loss):
    assert effective({"eps": 8, "loss": loss}) == {"eps": 8, "loss": loss}


def test_transforms_count_only_where_there_are_any():
    settings = {"eps": 8, "transform_samples": 2}
    assert effective(settings | {"transforms": []}) == {"eps": 8}
    used = settings | {"transforms": ["blur"]}
    assert effective(used) == used
