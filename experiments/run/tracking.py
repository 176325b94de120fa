"""Showing finished records to others: Weights & Biases, or nobody."""

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.records.record import Scored, as_json
from experiments.store.disk import atomic_write

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline")
OWN_PHOTOS = "anticustom.identities.Folder"


class Tracker(Protocol):
    """What the pipeline asks of a tracker."""

    def track(self, record: Scored, pictures: Mapping[str, Path], folder: Path) -> str | None:
        """Show a record once, however often it is called; return where it can be seen."""


@dataclass(frozen=True)
class NoTracker:
    """Shows nothing to nobody."""

    def track(self, record: Scored, pictures: Mapping[str, Path], folder: Path) -> None:
        """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class WandbTracker:
    """One run per record, with its configuration, scores and, if wanted, its pictures.

    `mode` auto means online if a key is configured and the server answers, else offline. Nothing
    is asked or printed, and whatever fails ends in an offline run that `wandb sync` can upload.
    """

    project: str
    mode: str = "auto"
    upload_images: bool = False
    entity: str | None = None
    group: str | None = None  # of the runs; None: by attack
    timeout: float = 20  # seconds that a server has to accept a run, and three times to end it

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"tracker.mode is {self.mode!r}: choose one of {', '.join(MODES)}")

    def track(self, record: Scored, pictures: Mapping[str, Path], folder: Path) -> str | None:
        """Log to the run of the record, whose files lie in `folder/wandb`.

        Returns the address of the run, or the folder of the offline run, or None if all failed.
        """
        folder = Path(folder).absolute() / "wandb"
        run_id = _digest(record.name)
        pictures = dict(pictures) if self.upload_images else {}
        marker = folder / f"{run_id}.json"
        # in which of its sweeps a record is asked for makes no other run
        content = _digest(as_json(record), repr(replace(self, group=None)), *map(str, pictures))
        folder.mkdir(parents=True, exist_ok=True)
        # another process that tracks the same record would take this one's run for a killed one's
        with FileLock(folder / f".{run_id}.lock"):
            if (done := _read(marker)).get("content") == content:
                return done["where"]
            _remove_runs(folder, run_id)  # left by a kill, or of an older record of the same key
            where = None
            try:
                where = self._log(record, pictures, folder, run_id)
            except Exception as error:  # results are on disk: no failure to show them may end a run
                log.warning("could not track with W&B (%s): the record is safe", _line(error))
            if where:
                atomic_write(marker, json.dumps({"content": content, "where": where}))
            return where

    def _log(self, record: Scored, pictures: Mapping[str, Path], folder: Path, run_id: str) -> str:
        wandb = _import_wandb(folder)
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            init_timeout=self.timeout,
            finish_timeout=3 * self.timeout,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        wandb.setup(settings)
        describe = {
            "project": self.project,
            "entity": self.entity,
            "id": run_id,
            "name": f"{record.attack}-{record.eps:g}-{record.identity}",
            "group": self.group or record.attack,
            "config": _config(record),
            "dir": folder.parent,
            "settings": settings,
            "reinit": "create_new",
        }
        run = None
        if self.mode == "online" or (self.mode == "auto" and _online(wandb)):
            try:
                run = wandb.init(mode="online", resume="allow", **describe)
            except Exception as error:  # of many types; all of them mean the same
                log.warning("W&B took no run (%s): it is kept offline", _line(error))
                wandb.teardown()  # else the id counts as taken
                _remove_runs(folder, run_id)
        where = run.url if run else None
        run = run or wandb.init(mode="offline", **describe)
        with run:
            run.log({"prompts": wandb.Table(*_prompt_table(record))})
            for name, path in pictures.items():
                run.log({f"pictures/{name}": wandb.Image(str(path))})
            run.summary.update(_scalars(record))
        return where or str(Path(run.dir).parent)


def filled_in(tracker: DictConfig, dataset: str, experiment: str | None) -> DictConfig:
    """Return a tracker's settings with what they leave to the run: whether pictures may be
    uploaded, by the class of the data set, which may have any name, and the group, which is the
    experiment's name, or the time of a sweep without one.
    """
    tracker = tracker.copy()
    if tracker.get("upload_images", False) is None:
        tracker.upload_images = dataset != OWN_PHOTOS
    if "group" in tracker and tracker.group is None:
        hydra = HydraConfig.get() if HydraConfig.initialized() else None
        sweeps = hydra is not None and hydra.mode is RunMode.MULTIRUN
        tracker.group = experiment or (f"sweep {Path(hydra.sweep.dir).name}" if sweeps else None)
    return tracker


def _import_wandb(folder: Path):
    # wandb reads these when it is imported and starts its service process.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "data"))
    import wandb

    return wandb


def _online(wandb) -> bool:
    """Whether nobody chose otherwise, a key is configured and the server says anything at all."""
    settings = wandb.setup().settings  # with what WANDB_MODE and WANDB_BASE_URL say
    if settings.mode != "online" or not wandb.login(prompt=False, verify=False):
        return False
    return _answers(settings.base_url)


def _answers(url: str, seconds: float = 4) -> bool:
    answered = threading.Event()

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=seconds).close()
        except HTTPError:
            pass
        except OSError:
            return
        answered.set()

    # In a thread, because looking up a name can take longer than any timeout given here.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _config(record: Scored) -> dict:
    """Everything but the results: plain names on top, the resolved configuration in `config`."""
    results = {"scores", "perceptibility", "seconds", "peak_memory_bytes"}
    return {key: value for key, value in record.model_dump().items() if key not in results}


def _scalars(record: Scored) -> dict[str, float]:
    data = record.model_dump()
    groups = {
        **data["scores"],
        **{key: data[key] for key in ("perceptibility", "seconds", "peak_memory_bytes")},
    }
    return {
        f"{group}/{name}": value
        for group, values in groups.items()
        for name, value in values.items()
        if isinstance(value, int | float)
    }


def _prompt_table(record: Scored) -> tuple[list[str], list[list]]:
    rows = [
        {"victim": arm} | row
        for arm in ("unprotected", "protected")
        for row in getattr(record.scores, arm).prompts
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[row.get(name) for name in columns] for row in rows]


def _remove_runs(folder: Path, run_id: str) -> None:
    for run in folder.glob(f"*run-????????_??????-{run_id}"):
        shutil.rmtree(run)


def _line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _read(marker: Path) -> dict:
    return json.loads(marker.read_text()) if marker.exists() else {}


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
