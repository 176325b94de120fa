import copy
import json

import pytest

from experiments.records.record import RecordError, as_json, read, read_all, write


def scores():
    return {
        "ism": 0.123456789,
        "ism_failures_as_0": 0.1,
        "fdfr": 0.25,
        "brisque": 31.5,
        "ser_fiq": None,
        "identity_retention": 0.5,
        "prompts": [{"prompt": "a photo of sks person", "ism": 0.1}],
        "images": [{"name": "0.png", "ism": None}],
    }


@pytest.fixture
def record(made_up):
    return made_up(
        identity="Zoë",
        config={"attack": {"step_size": 0.637512345678}},
        seconds={"protect": 12.3456789, "customize": 60, "evaluate": None},
        peak_memory_bytes={"cpu": 123456789012, "cuda": None},
        scores={"protected": scores(), "unprotected": scores()},
        perceptibility={"linf": 8, "psnr": 33.123456789, "ssim": 0.9, "images": []},
    )


def test_a_record_comes_back_as_it_was_written(record, tmp_path):
    path = write(record, tmp_path / "records", "zoe")
    assert path == tmp_path / "records" / "zoe.json"
    loaded = read(path)
    assert list(loaded) == list(record)
    assert loaded["config"] == record["config"]
    assert loaded["scores"]["protected"]["ism"] == 0.123457
    assert loaded["seconds"] == {"protect": 12.3457, "customize": 60, "evaluate": None}
    assert loaded["peak_memory_bytes"]["cpu"] == 123456789012
    assert "Zoë" in path.read_text(encoding="utf-8")


def test_equal_records_are_equal_files(record, tmp_path):
    first = write(record, tmp_path, "a").read_bytes()
    assert write(read(tmp_path / "a.json"), tmp_path, "b").read_bytes() == first
    assert as_json(record).encode() == first


def test_a_row_is_a_line(record, tmp_path):
    text = write(record, tmp_path, "x").read_text(encoding="utf-8")
    assert '        {"prompt": "a photo of sks person", "ism": 0.1}\n' in text
    assert '      "fdfr": 0.25,\n' in text


def test_an_imported_record_needs_no_run_but_its_scores(record, tmp_path):
    kept = ("schema_version", "dataset", "identity", "attack", "eps", "surrogate_model", "seed")
    kept += ("countermeasure", "clean_photos", "adversary", "customizer", "scorer")
    imported = {key: record[key] for key in kept} | {"base_model": "sd21"}
    imported |= {"imported": {"source": "a paper", "file": "x.csv", "line": 2}}
    imported |= {"scores": {"protected": {"fdfr": 0.5}}, "perceptibility": {"psnr": 30.0}}
    path = write(imported, tmp_path, "x")
    assert read(path) == imported

    def refused(message, **changes):
        path.write_text(json.dumps(imported | changes))
        with pytest.raises(RecordError, match=message):
            read(path)

    refused("scores.protected is empty", scores={"protected": {}})
    refused("scores.protected.fid is no score", scores={"protected": {"fid": 3}})
    refused("fdfr is 50, expected a number from 0 to 1", scores={"protected": {"fdfr": 50}})
    refused("ism stands without fdfr and ism_failures", scores={"protected": {"ism": 0.5}})
    refused("imported.line is missing", imported={"source": "a paper", "file": "x.csv"})
    refused("Infinity is not finite", eps=float("inf"))
    path.write_text(json.dumps(record | {"base_model": "sd21"}).replace('"seed"', '"sed"'))
    with pytest.raises(RecordError, match="seed is missing"):
        read(path)


def test_all_records_of_a_folder_are_sorted_by_path(record, tmp_path):
    for name in ("b", "a", "sub/c"):
        write(record | {"identity": name}, tmp_path, name)
    (tmp_path / ".b.json.tmp").write_text("half")
    assert [row["identity"] for row in read_all(tmp_path)] == ["a", "b", "sub/c"]
    with pytest.raises(RecordError, match="no such folder"):
        read_all(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attack", None, "attack is None, expected a name"),
        ("attack", "a\nb", r"attack is 'a\nb', expected a name"),
        ("identity", "", "identity is '', expected a name"),
        ("processors", "x86", "processors is 'x86', expected a mapping"),
        ("processors", {"protect": "x86"}, "processors.protected is missing"),
        (
            "scores.protected.images",
            [
                {"prompt": "a", "image": "0", "brisque": None},
                {"prompt": "a", "image": "1", "ism": 9},
            ],
            r"scores.protected.images[1].ism is 9, expected a number from -1 to 1 or null",
        ),
        (
            "perceptibility.images",
            [{"image": "0", "psnr": "x"}],
            "perceptibility.images[0].psnr is 'x', expected",
        ),
        ("seconds.customize", -5, "seconds.customize is -5, expected a duration or null"),
        ("seed", True, "seed is True, expected a count"),
        ("seed", -1, "seed is -1, expected a count"),
        ("eps", "8", "eps is '8', expected a number"),
        ("eps", -3, "eps is -3, expected a number from 0 to 255"),
        ("config", {}, "config.attack is missing"),
        ("config.customizer", {}, "config.customizer.base_model is missing"),
        ("digests", {}, "digests.base_model is missing"),
        (
            "scores.protected.ser_fiq_raw",
            "high",
            "scores.protected.ser_fiq_raw is 'high', expected",
        ),
        ("perceptibility.lpips", -1, "perceptibility.lpips is -1, expected a number from 0 on"),
        ("seconds.protect", "1", "seconds.protect is '1', expected a duration or null"),
        (
            "scores.protected.fdfr",
            25.0,
            "scores.protected.fdfr is 25.0, expected a number from 0 to 1",
        ),
        (
            "scores.unprotected.ism",
            69,
            "scores.unprotected.ism is 69, expected a number from -1 to 1 or null",
        ),
        ("scores.protected.prompts", {}, "scores.protected.prompts is {}, expected a rows"),
        ("scores.protected", [], "scores.protected is [], expected a mapping"),
        ("perceptibility.psnr", float("inf"), "perceptibility.psnr is inf, expected a finite"),
        ("config.attack.step_size", float("nan"), "config.attack.step_size is nan"),
        ("scores.protected.images", [{"x": float("nan")}], r"scores.protected.images[0].x is nan"),
    ],
)
def test_a_wrong_value_is_refused_with_file_and_key(record, tmp_path, key, value, message):
    *parents, last = key.split(".")
    target = record
    for parent in parents:
        target = target[parent]
    target[last] = value
    with pytest.raises(RecordError) as caught:
        write(record, tmp_path, "x")
    assert f"{tmp_path / 'x.json'}: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_every_required_key_is_required(record, tmp_path):
    def check(values, prefix):
        for key in list(values):
            broken = copy.deepcopy(record)
            target = broken
            for parent in prefix:
                target = target[parent]
            del target[key]
            with pytest.raises(RecordError, match=key):
                write(broken, tmp_path, "x")

    check(record, [])
    check(record["seconds"], ["seconds"])
    check({"psnr", "linf", "ssim", "images"}, ["perceptibility"])
    check(set(scores()) - {"identity_retention"}, ["scores", "protected"])


def test_reading_refuses_other_versions_and_other_files(record, tmp_path):
    path = write(record, tmp_path, "x")
    path.write_text(json.dumps(record | {"schema_version": 2}))
    with pytest.raises(RecordError, match=r"x\.json: schema_version is 2, expected 1"):
        read(path)
    path.write_text("[]")
    with pytest.raises(RecordError, match=r"x\.json: schema_version is None"):
        read(path)
    path.write_text('{"half":')
    with pytest.raises(RecordError, match=r"x\.json: no record, for it is no JSON"):
        read(path)
