"""The folder that a run writes to, looked at before the first file."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiments.disk import StoreError, check_writable


class WritableOutputDir(Callback):
    """Ends the process in one line when `output_dir` cannot be written: Hydra itself, whose logs
    are the first files there, would show a traceback.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            check_writable(Path(config.output_dir))
        except StoreError as error:
            sys.exit(f"error: {error}")

    on_multirun_start = on_run_start
