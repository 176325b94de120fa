import lzma

import pytest

from experiments.records.published import (
    CONFIGURATIONS,
    IMAGES,
    images_of,
    read_all,
    read_folder,
    read_images,
    write_folder,
)
from experiments.records.record import RecordError


@pytest.fixture
def records(made_up):
    made = [made_up(identity=str(k), experiment=name) for k, name in enumerate(["a", "a", None])]
    made.append(made_up(imported={"source": "a paper", "file": "x.csv", "line": 2}))
    rows = [{"prompt": "p", "image": f"{k}.png", "similarity": k / 8, "brisque": 9} for k in (0, 1)]
    scores = {"ism": 0.1, "ism_failures_as_0": 0.1, "fdfr": 0.0, "images": rows}
    made.append(made_up(scores={"protected": scores, "unprotected": scores}, seed=5))
    return {record.name: record for record in made}


def test_records_stand_by_experiment_and_configurations_once(records, tmp_path):
    write_folder(records, images_of(list(records.values())[4:]), tmp_path)
    files = ["a.jsonl", CONFIGURATIONS, IMAGES, "imported.jsonl", "single_runs.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    lines = {file: (tmp_path / file).read_text().splitlines() for file in files if file != IMAGES}
    assert [len(lines[file]) for file in files if file in lines] == [2, 1, 1, 2]
    back = read_folder(tmp_path)
    assert back.keys() == records.keys()
    for name, record in records.items():
        assert back[name].row == record.row
        assert back[name].scores.protected.numbers == record.scores.protected.numbers
        assert back[name].scores.protected.images == []
    images = read_images(tmp_path)
    assert len(images) == 4
    assert set(images.columns) >= {"record", "arm", "prompt", "index", "similarity", "brisque"}
    assert images[images["index"] == 1].similarity.tolist() == [0.125, 0.125]


def test_equal_records_are_equal_bytes_and_nothing_old_is_left(records, tmp_path):
    (tmp_path / "gone.jsonl").write_text("")
    contents = []
    for names in (list(records), list(reversed(records))):
        write_folder({name: records[name] for name in names}, images_of([]), tmp_path)
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    assert "gone.jsonl" not in contents[0]
    assert lzma.decompress(contents[0][IMAGES]).startswith(b"record,arm,prompt,index,")


def test_a_broken_line_is_named(records, tmp_path):
    write_folder(records, images_of([]), tmp_path)
    with pytest.raises(RecordError, match=r"a second record of the name"):
        read_all([tmp_path / "a.jsonl", tmp_path / "a.jsonl"])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(RecordError, match=r"a\.jsonl: line 3: schema_version is None"):
        read_folder(tmp_path)
    (tmp_path / CONFIGURATIONS).write_text("")
    with pytest.raises(RecordError, match=r"a\.jsonl: line 1: configuration [0-9a-f]{16} is not"):
        read_folder(tmp_path)
