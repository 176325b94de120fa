"""Showing finished records to others: Weights & Biases, or nobody."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.records.files import as_json
from experiments.records.record import Record
from experiments.store.disk import atomic_write

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline")
OWN_PHOTOS = "Folder"  # the class of the data set of one's own photos
RESULTS = ("scores", "perceptibility", "seconds", "peak_memory_bytes")


class Tracker(Protocol):
    """Shows records."""

    def track(self, record: Record, pictures: Mapping[str, Path], folder: Path) -> str | None:
        """Show a record once, however often it is called; return where it can be seen."""


@dataclass(frozen=True)
class NoTracker:
    """Shows nothing to nobody."""

    def track(self, record: Record, pictures: Mapping[str, Path], folder: Path) -> None:
        """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class WandbTracker:
    """One run for each record, with its configuration, its scores and, if wanted, its pictures.

    The mode auto is online if a key is configured, else offline. Nothing is asked or printed.
    A server that takes no run leaves an offline run, which `wandb sync` can upload.
    `WANDB_MODE=disabled` makes no run.
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

    def track(self, record: Record, pictures: Mapping[str, Path], folder: Path) -> str | None:
        """Log the record's run, whose files lie in `folder/wandb`.

        Returns the address of the run, or the folder of the offline run, or None without a run.
        """
        folder = Path(folder).absolute() / "wandb"
        run_id = _digest(record.name)
        pictures = dict(pictures) if self.upload_images else {}
        marker = folder / f"{run_id}.json"
        # the same record in another sweep makes no other run
        content = _digest(as_json(record), repr(replace(self, group=None)), *map(str, pictures))
        folder.mkdir(parents=True, exist_ok=True)
        # another process on the same record would take this one's run for a killed one's
        with FileLock(folder / f".{run_id}.lock"):
            done = json.loads(marker.read_text()) if marker.exists() else {}
            if done.get("content") == content:
                return done["where"]
            _remove_runs(folder, run_id)  # left by a kill, or of an older record of this name
            where = None
            try:
                where = self._log(record, pictures, folder, run_id)
            except Exception as error:  # the record is on disk: no failure here may end a run
                log.warning("could not track with W&B (%s): the record is safe", _line(error))
            if where:
                atomic_write(marker, json.dumps({"content": content, "where": where}))
            return where

    def _log(
        self, record: Record, pictures: Mapping[str, Path], folder: Path, run_id: str
    ) -> str | None:
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
        chosen = wandb.setup(settings).settings.mode  # by WANDB_MODE
        if chosen == "disabled":
            return None
        described = {
            "project": self.project,
            "entity": self.entity,
            "id": run_id,
            "name": f"{record.attack}-{record.eps:g}-{record.identity}",
            "group": self.group or record.attack,
            "config": {k: v for k, v in record.model_dump().items() if k not in RESULTS},
            "dir": folder.parent,
            "settings": settings,
            "reinit": "create_new",
        }
        has_key = chosen == "online" and wandb.login(prompt=False, verify=False)
        run = None
        if self.mode == "online" or (self.mode == "auto" and has_key):
            try:
                run = wandb.init(mode="online", resume="allow", **described)
            except Exception as error:  # of many types; all of them mean the same
                log.warning("W&B took no run (%s): it is kept offline", _line(error))
                wandb.teardown()  # else the id counts as taken
                _remove_runs(folder, run_id)
        where = run.url if run else None
        run = run or wandb.init(mode="offline", **described)
        with run:
            run.log({"prompts": wandb.Table(*_prompt_table(record))})
            for name, path in pictures.items():
                run.log({f"pictures/{name}": wandb.Image(str(path))})
            run.summary.update(_scalars(record))
        return where or str(Path(run.dir).parent)


def filled_in(tracker: DictConfig, dataset: str, experiment: str | None) -> DictConfig:
    """Return a tracker's settings with those that it leaves to the run.

    Pictures may be uploaded unless `dataset`, a class, is that of one's own photos. The group is
    the experiment's name, or the time of a sweep without one.
    """
    tracker = tracker.copy()
    if tracker.get("upload_images", False) is None:
        tracker.upload_images = dataset.rpartition(".")[2] != OWN_PHOTOS
    if "group" in tracker and tracker.group is None:
        hydra = HydraConfig.get() if HydraConfig.initialized() else None
        sweeps = hydra is not None and hydra.mode is RunMode.MULTIRUN
        tracker.group = experiment or (f"sweep {Path(hydra.sweep.dir).name}" if sweeps else None)
    return tracker


def _import_wandb(folder: Path) -> Any:
    # wandb reads these when it is imported and starts its service process.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "data"))
    import wandb

    return wandb


def _scalars(record: Record) -> dict[str, float]:
    groups = {
        **{arm: scores.numbers for arm, scores in record.scores},
        "perceptibility": record.perceptibility.numbers,
        "seconds": record.seconds.model_dump(),
        "peak_memory_bytes": record.peak_memory_bytes,
    }
    return {
        f"{group}/{name}": value
        for group, values in groups.items()
        for name, value in values.items()
        if isinstance(value, int | float)
    }


def _prompt_table(record: Record) -> tuple[list[str], list[list]]:
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


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
