import json
import os
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from PIL import Image

from experiments.records.files import as_json
from experiments.records.record import Record
from experiments.run.tracking import NoTracker, WandbTracker, _digest, filled_in
from experiments.setup.composing import composed

PROJECT = Path(__file__).resolve().parents[3]

TRACK = """
import json, sys
from pathlib import Path
from experiments.records.record import record_of
from experiments.run.tracking import WandbTracker

sys.stdin = None  # whoever asks fails
for call in json.loads(sys.argv[1]):
    tracker = WandbTracker(project="anticustom", timeout=2, **call["tracker"])
    pictures = {name: Path(path) for name, path in call["pictures"].items()}
    where = tracker.track(record_of(call["record"], "x"), pictures, Path(call["folder"]))
    Path(call["answer"]).write_text(json.dumps(where))
"""


def arm(ism):
    prompts = [
        {"prompt": "a photo of sks person", "ism": ism, "fdfr": 0.0},
        {"prompt": "a selfie", "ism": None, "fdfr": 1.0},
    ]
    scores = {"ism": ism, "ism_failures_as_0": ism / 2, "fdfr": 0.5, "brisque": None}
    return scores | {"prompts": prompts, "images": [{"name": "secret-name.png", "ism": ism}]}


class Workplace:
    """A folder with a picture, an empty home and an empty working directory."""

    def __init__(self, folder: Path, record: Record):
        self.record = record
        self.home, self.here, self.out = (folder / name for name in ("home", "here", "out"))
        for place in (self.home, self.here):
            place.mkdir()
        self.picture = folder / "overview.png"
        Image.new("RGB", (16, 8), (200, 30, 60)).save(self.picture)

    def call(self, key="key-1", name=None, eps=8, **tracker):
        record = self.record.model_copy(update={"name": key, "eps": eps})
        return {
            "tracker": tracker,
            "record": json.loads(as_json(record)),
            "pictures": {"overview": str(self.picture)},
            "folder": str(self.out),
            "answer": str(self.here.parent / f"{name or key}.json"),
        }

    def track(self, *calls, **environment):
        kept = {key: value for key, value in os.environ.items() if "WANDB" not in key}
        done = subprocess.run(
            [sys.executable, "-c", TRACK, json.dumps(calls)],
            cwd=self.here,
            env=kept | {"HOME": str(self.home), "PYTHONPATH": str(PROJECT)} | environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        where = [json.loads(Path(call["answer"]).read_text()) for call in calls]
        return where, done.stdout + done.stderr

    def runs(self):
        return sorted(self.out.glob("wandb/*run-*"))


@pytest.fixture(scope="session")
def record(made_up):
    return made_up(
        identity="ann",
        scores={"protected": arm(0.25), "unprotected": arm(0.75)},
        perceptibility={"linf": 8, "psnr": 33.5, "ssim": None, "images": []},
        seconds={"protect": 12.5, "customize": None, "evaluate": 3.0},
    )


@pytest.fixture
def place(tmp_path, record):
    return Workplace(tmp_path, record)


@pytest.fixture(scope="module")
def offline(tmp_path_factory, record):
    place = Workplace(tmp_path_factory.mktemp("offline"), record)
    where, printed = place.track(
        place.call(mode="offline", upload_images=True),
        place.call(mode="offline", upload_images=True, name="again", group="another sweep"),
        place.call(key="1", mode="offline", group="benchmark"),
        place.call(key="changed", mode="offline"),
        place.call(key="changed", mode="offline", eps=16, name="later"),
        place.call(key="b ü", mode="auto", name="odd"),
    )
    return place, where, printed


def records_of(run: Path):
    """The records of a run-<id>.wandb file: 7 bytes, then blocks as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = next(run.glob("run-*.wandb")).read_bytes()
    assert data[:4] == b":W&B"
    position, part, records = 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        part += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(part))
            part = b""
    return records


def content_of(run: Path):
    records = records_of(run)
    config = {
        item.key: json.loads(item.value_json)
        for record in records
        for item in record.run.config.update
    }
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in records
        for item in record.summary.update
    }
    history = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in records
        for item in record.history.item
    }
    runs = [record.run for record in records if record.HasField("run")]
    return runs[0], config, summary, history


def test_offline_run_holds_config_scores_table_and_pictures(offline):
    place, where, _ = offline
    run = Path(where[0])
    described, config, summary, history = content_of(run)
    assert (described.run_id, described.project) == (_digest("key-1"), "anticustom")
    assert config["eps"] == 8
    assert config["config"] == place.record.config
    assert summary["protected/ism"] == 0.25
    assert summary["unprotected/ism_failures_as_0"] == 0.375
    assert summary["perceptibility/psnr"] == 33.5
    assert summary["seconds/protect"] == 12.5
    assert "protected/brisque" not in summary
    table = json.loads((run / "files" / history["prompts/path"]).read_text())
    assert table["columns"] == ["victim", "prompt", "ism", "fdfr"]
    assert table["data"][0] == ["unprotected", "a photo of sks person", 0.75, 0]
    assert table["data"][3] == ["protected", "a selfie", None, 1]
    image = run / "files" / history["pictures/overview/path"]
    assert image.read_bytes() == place.picture.read_bytes()


def test_pictures_and_their_names_stay_here_unless_wanted(offline):
    run = Path(offline[1][2])
    _, _, _, history = content_of(run)
    assert "prompts/path" in history
    assert not [key for key in history if key.startswith("pictures")]
    assert not list(run.rglob("*.png"))
    assert b"secret-name" not in next(run.glob("run-*.wandb")).read_bytes()


def test_the_same_record_makes_no_second_run_and_a_changed_one_replaces_it(offline):
    place, where, _ = offline
    assert where[0] == where[1]
    assert place.runs() == sorted({Path(run) for run in where if Path(run).is_dir()})
    assert content_of(Path(where[4]))[1]["eps"] == 16
    assert len(place.runs()) == 4
    assert len([run for run in place.runs() if run.name.endswith(_digest("changed"))]) == 1


def test_runs_are_grouped_by_sweep_or_else_by_attack(offline):
    groups = [content_of(Path(offline[1][k]))[0].run_group for k in (0, 2)]
    assert groups == ["simac", "benchmark"]


def test_what_a_tracker_leaves_open_follows_the_run():
    def filled(
        *words: str, mode: str = "RUN", dataset: str = "Portraits", experiment: str | None = None
    ):
        words = ("tracker=wandb", *words, f"hydra.mode={mode}", "hydra.sweep.dir=logs/monday")
        config = composed(*words, with_hydra=True)
        HydraConfig.instance().set_config(config)
        try:
            tracker = filled_in(config.tracker, f"anticustom.identities.{dataset}", experiment)
        finally:
            HydraConfig.instance().cfg = None
        return tracker.group, tracker.upload_images

    assert filled() == (None, True)
    assert filled(dataset="Folder") == (None, False)
    assert filled(mode="MULTIRUN") == ("sweep monday", True)
    assert filled(mode="MULTIRUN", experiment="budgets") == ("budgets", True)
    assert filled("tracker.group=mine", mode="MULTIRUN", experiment="budgets") == ("mine", True)


def test_nothing_is_printed_nor_left_elsewhere(offline):
    place, _, printed = offline
    assert printed == ""
    assert not list(place.here.iterdir())
    assert not list(place.home.iterdir())


def test_what_a_kill_left_is_cleared_away(place):
    ids = (_digest("k"), "a-k")
    half, other = (place.out / "wandb" / f"offline-run-20260101_000000-{k}" for k in ids)
    half.mkdir(parents=True)
    other.mkdir()
    (where,), _ = place.track(place.call(key="k", mode="offline"))
    assert place.runs() == sorted([other, Path(where)])


def test_processes_at_once_on_one_record_leave_one_whole_run(place):
    with ThreadPoolExecutor(2) as pool:
        calls = [place.call(key="k", mode="offline", name=name) for name in ("one", "two")]
        ((first,), _), ((second,), _) = pool.map(place.track, calls)
    assert (first, place.runs()) == (second, [Path(first)])
    assert content_of(Path(first))[2]["protected/ism"] == 0.25


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_server_that_refuses_ends_in_an_offline_run(place, mode):
    asked = []

    class Refuse(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_error(401)

        do_GET = do_HEAD = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (where,), printed = place.track(
        place.call(mode=mode),
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}",
    )
    server.shutdown()
    assert ("/graphql" in asked, place.runs()) == (True, [Path(where)])
    assert content_of(Path(where))[2]["protected/ism"] == 0.25
    assert "kept offline" in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "warnings"),
    [({}, 0), ({"WANDB_API_KEY": "0" * 40}, 1), ({"WANDB_MODE": "offline"}, 0)],
)
def test_auto_is_offline_without_key_or_network_or_by_choice(place, environment, warnings):
    (where,), printed = place.track(
        place.call(mode="auto"), WANDB_BASE_URL="http://127.0.0.1:9", **environment
    )
    assert Path(where).name.startswith("offline-run-")
    assert len(printed.splitlines()) == warnings


def test_wandb_can_be_switched_off(place):
    (where,), printed = place.track(place.call(mode="auto"), WANDB_MODE="disabled")
    assert (where, printed, place.runs()) == (None, "", [])


def test_failure_of_all_is_a_warning(record, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert WandbTracker(project="p").track(record, {}, tmp_path) is None
    assert "the record is safe" in caplog.text


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"tracker\.mode is 'of': choose one of auto, online"):
        WandbTracker(project="p", mode="of")


def test_no_tracker_does_nothing(record, tmp_path):
    assert NoTracker().track(record, {}, tmp_path) is None
    assert not list(tmp_path.iterdir())
