"""The device that a job computes on."""

import torch
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.setup.building import Refused


def chosen_device(asked: str | int, neighbour: int = 0) -> str:
    """Return the device that `device=` asks for; auto is a GPU if there is one.

    Jobs that run on one machine at once, `neighbour` being the number of each, take its GPUs in
    turn. Raises Refused for a device that torch cannot use.
    """
    if asked == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return f"cuda:{neighbour % gpus}" if gpus else "cpu"
    try:
        return str(torch.zeros(1, device=asked).device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(
            f"device={asked}: torch cannot use it here ({reason}); try device=auto"
        ) from error


def neighbour_number(hydra: DictConfig) -> int:
    """Return a job's number among those that a sweep starts on this machine at once; 0 for a job
    that has the machine, or what Slurm gives it of one, for itself.
    """
    at_once = hydra.mode is RunMode.MULTIRUN and hydra.launcher._target_.endswith(".LocalLauncher")
    return hydra.job.num if at_once else 0


def use(device: str) -> None:
    """Make a GPU the one whose name and memory torch states unless asked for another's."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device if ":" in device else f"{device}:0")
