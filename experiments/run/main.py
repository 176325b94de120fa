"""One job of the command line: run to its end, or to one line that says why it cannot be run."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.run import pipeline
from experiments.run.callbacks import note_failure
from experiments.run.dry_step import less_memory
from experiments.setup.devices import neighbour_number
from experiments.setup.job import Job
from experiments.terminal import say


def run(config: DictConfig) -> list[Path]:
    """Run the stages of a composed configuration; return the records' paths, one per identity.

    A configuration that cannot be run is refused in one line, before work starts. Then, and when
    a run must stop, the process exits with 1. In a sweep the other jobs go on: the job that failed
    returns the records that it has written, and leaves the reason in its folder.
    HYDRA_FULL_ERROR=1 shows the whole traceback.
    """
    hydra = HydraConfig.get()
    choices = dict(hydra.runtime.choices)
    try:
        return pipeline.run(Job.from_config(config, choices, neighbour_number(hydra)))
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        paths = error.paths if isinstance(error, pipeline.SomeFailed) else ()
        return _failed(" ".join(str(error).split()), paths)
    except torch.OutOfMemoryError as error:
        return _failed(
            f"{str(error).split('.')[0]}: {less_memory(choices)}, or lower gallery.batch_size or "
            "surrogate_model.gallery.batch_size (of class images); finished results are kept"
        )
    except KeyboardInterrupt:
        sys.exit("error: interrupted; the same command goes on where it was")


def _failed(reason: str, paths: Sequence[Path] = ()) -> list[Path]:
    """End the process, or in a sweep only the job, which leaves the reason in its folder."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        sys.exit(f"error: {reason}")
    say(f"error: {reason}")
    note_failure(Path(hydra.runtime.output_dir), reason)
    return list(paths)
