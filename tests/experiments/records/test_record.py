import functools
import json
import operator

import pytest

from experiments.records.files import as_json, files_of, natural, read, write
from experiments.records.record import RecordError, record_of


def scores(**changes):
    return {
        "ism": 0.123456789,
        "ism_failures_as_0": 0.1,
        "fdfr": 0.25,
        "brisque": 31.5,
        "ser_fiq": None,
        "identity_retention": 0.5,
        "ser_fiq_raw": 0.8,
        "clipiqa": 0.7,
        "prompts": [{"prompt": "a photo of sks person", "ism": 0.1}],
        "images": [{"image": "0.png", "ism": None}],
        **changes,
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


@pytest.fixture
def changed(record, tmp_path):
    """Call it with a dotted key and a value (none: without the key) for the file of that record."""

    def write_changed(key, *value):
        data = json.loads(as_json(record))
        *parents, last = key.split(".")
        part = functools.reduce(operator.getitem, parents, data)
        part.pop(last, None)
        if value:
            part[last] = value[0]
        file = tmp_path / "x.json"
        file.write_text(json.dumps(data))
        return file

    return write_changed


def test_a_record_comes_back_as_it_was_written(record, tmp_path):
    path = write(record, tmp_path / "records")
    assert path == tmp_path / "records" / f"{record.name}.json"
    loaded = read(path)
    assert loaded.config == record.config
    assert loaded.scores.protected.ism == 0.123457
    assert loaded.scores.protected.numbers["clipiqa"] == 0.7
    assert loaded.seconds.model_dump() == {"protect": 12.3457, "customize": 60, "evaluate": None}
    assert loaded.peak_memory_bytes["cpu"] == 123456789012
    assert "Zoë" in path.read_text(encoding="utf-8")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert (data["schema_version"], data["perceptibility"]["linf"]) == (2, 8)
    assert write(loaded, tmp_path).read_bytes() == path.read_bytes()


def test_an_imported_record_needs_no_run_but_its_scores(made_up, tmp_path):
    origin = {"source": "a paper", "file": "x.csv", "line": 2}
    record = made_up(imported=origin, scores={"protected": {"fdfr": 0.5}})
    path = write(record, tmp_path)
    assert read(path) == record
    assert (read(path).source, read(path).scores.unprotected) == ("a paper", None)

    def refused(message, **changes):
        path.write_text(json.dumps(json.loads(as_json(record)) | changes))
        with pytest.raises(RecordError, match=message):
            read(path)

    refused("scores.protected is empty", scores={"protected": {}})
    refused("fdfr is 50, expected a number from 0 to 1", scores={"protected": {"fdfr": 50}})
    refused("ism stands without fdfr and ism_failures", scores={"protected": {"ism": 0.5}})
    refused("imported.line is missing", imported={"source": "a paper", "file": "x.csv"})
    refused("Infinity is not finite", eps=float("inf"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attack", None, "attack is None: "),
        ("attack", "a\nb", r"attack is 'a\nb': expected printable text"),
        ("identity", "", "identity is '': "),
        ("processors", "x86", "processors is 'x86': "),
        ("processors", {"protect": "x86"}, "processors.protected is missing"),
        ("seconds.customize", -5, "seconds.customize is -5: "),
        ("seconds.protect", "1", "seconds.protect is '1', expected a number"),
        ("seed", True, "seed is True, expected an integer"),
        ("seed", -1, "seed is -1: "),
        ("eps", "8", "eps is '8', expected a number"),
        ("eps", -3, "eps is -3: "),
        ("config", {}, "config.attack is missing"),
        ("row.method", "x", "row.method is 'x': "),
        ("scores.protected.ser_fiq_raw", "high", "scores.protected.ser_fiq_raw is 'high', "),
        ("scores.protected.clipiqa", [], "scores.protected.clipiqa is [], expected a number"),
        ("scores.protected.fdfr", 25.0, "scores.protected.fdfr is 25.0, expected a number from 0"),
        ("scores.unprotected.ism", 69, "scores.unprotected.ism is 69, expected a number from -1"),
        ("scores.protected.prompts", {}, "scores.protected.prompts is {}: "),
        ("scores.protected", [], "scores.protected is []: "),
        ("perceptibility.lpips", -1, "perceptibility.lpips is -1, expected a number from 0"),
        ("surplus", 1, "surplus is no key of a record"),
        ("schema_version", 1, "schema_version is 1, expected 2: the tag v0.1.0 of this project"),
        ("schema_version", 3, "schema_version is 3, expected 2"),
    ],
)
def test_a_wrong_value_is_refused_with_file_and_key(changed, key, value, message):
    file = changed(key, value)
    with pytest.raises(RecordError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


REQUIRED = (
    "dataset identity attack method eps loss timestep_policy surrogate_model base_model row seed "
    "countermeasure clean_photos adversary customizer command created_at versions machine config "
    "digests seconds seconds.protect peak_memory_bytes scorer.backbone scores.protected "
    "perceptibility processors stages photos"
)


@pytest.mark.parametrize("key", REQUIRED.split())
def test_every_required_key_is_required(changed, key):
    with pytest.raises(RecordError, match=rf"x\.json: {key} is missing"):
        read(changed(key))


def test_values_that_are_not_finite_are_never_written(made_up, tmp_path):
    record = made_up().model_copy(update={"versions": {"torch": float("nan")}})
    with pytest.raises(RecordError, match="a value is not finite"):
        write(record, tmp_path)
    data = json.loads(as_json(made_up())) | {"perceptibility": {"psnr": float("inf")}}
    with pytest.raises(RecordError, match="psnr is inf, expected a number"):
        record_of(data, "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["[]", '{"half":', "[" * 100_000])
def test_reading_refuses_other_files(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RecordError, match=r"x\.json: (schema_version is None|no record)"):
        read(tmp_path / "x.json")


def test_files_are_found_in_folders_and_output_dirs(record, tmp_path):
    path = write(record, tmp_path / "outputs" / "records")
    assert files_of([tmp_path / "outputs"]) == files_of([path.parent]) == files_of([path]) == [path]
    with pytest.raises(RecordError, match="nowhere: no record there"):
        files_of([tmp_path / "nowhere"])
    assert sorted(["10", "9", "b", "a"], key=natural) == ["9", "10", "a", "b"]
