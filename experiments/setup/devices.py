"""The device that a job computes on."""

import torch
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.setup.building import Refused


def chosen_device(setting: str | int, neighbour: int = 0) -> str:
    """Return the device that the setting `device=` names; auto is a GPU if there is one.

    Jobs that run on one machine at the same time have the numbers `neighbour`, and take its GPUs
    in turn. Raises Refused for a device that torch cannot use.
    """
    if setting == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return f"cuda:{neighbour % gpus}" if gpus else "cpu"
    try:
        return str(torch.zeros(1, device=setting).device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(
            f"device={setting}: torch cannot use it here ({reason}); try device=auto"
        ) from error


def neighbour_number(hydra: DictConfig) -> int:
    """Return the number of a job among those that a sweep starts on this machine at once.

    It is 0 for a job that has the machine to itself, or the part of it that Slurm gives.
    """
    local = hydra.mode is RunMode.MULTIRUN and hydra.launcher._target_.endswith(".LocalLauncher")
    return hydra.job.num if local else 0


def use(device: str) -> None:
    """Make a GPU the one whose name and memory torch states by default."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device if ":" in device else f"{device}:0")


def settled_precision(setting: str, device: str) -> str:
    """Return the precision that the setting `precision=` names; auto is mixed on a GPU."""
    if setting != "auto":
        return setting
    return "mixed" if device.startswith("cuda") else "float32"
