"""Whether a run fits its GPU: refused before it starts if not, with a setting that does."""

import gc
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.setup.building import Refused
from experiments.setup.memory_counting import (
    bytes_to_customize,
    bytes_to_protect,
    counting,
    fake_model,
)
from experiments.setup.models import surrogate_precision

PRESETS = Path(__file__).parents[2] / "conf" / "memory"
NAMES = ("40gb", "24gb", "12gb")  # the first that fits changes the method least
GIB = 2**30


def free_bytes(device: str) -> float | None:
    """Return the memory of a GPU that nobody uses; None for the CPU."""
    if not device.startswith("cuda"):
        return None
    gc.collect()  # what an earlier job of a sweep left in this process's cache is free to this one
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def check_fits(
    stages: Collection[str],
    config: DictConfig,
    folders: Mapping[str, Path],
    choices: Mapping[str, str],
    available: float,
) -> None:
    """Raise Refused if one of `stages` takes more than the `available` bytes of a GPU.

    `folders` has the surrogates', by their keys in the configuration, "customizer.base_model", and
    "attack.purifier" if there is one.
    """
    for stage, group in (("protect", "attack"), ("customize", "customizer")):
        if stage not in stages:
            continue
        needed = stage_bytes(stage, config, folders)
        if needed <= available:
            continue
        sizes = {name: stage_bytes(stage, _with_preset(config, name), folders) for name in NAMES}
        fits = [name for name, size in sizes.items() if size <= available]
        least = fits[0] if fits else min(sizes, key=sizes.get)
        hint = "run with" if fits else "even at its least it does not fit, with"
        more = "" if fits or group == "attack" else "; customizer=lora takes less"
        raise Refused(
            f"{group}={choices[group]} takes {needed / GIB:.1f} GiB, and the GPU has "
            f"{available / GIB:.1f} GiB free: {hint} memory={least} "
            f"({sizes[least] / GIB:.1f} GiB){more}"
        )


def stage_bytes(stage: str, config: DictConfig, folders: Mapping[str, Path]) -> float:
    """Return what `protect` or `customize` takes of a GPU; `folders` as for `check_fits`."""
    settings = OmegaConf.to_container(config, resolve=True)
    checkpointing = settings["memory"]["gradient_checkpointing"]
    with counting():
        if stage == "customize":
            node = {k: v for k, v in settings["customizer"].items() if k != "base_model"}
            precision = node.pop("precision")
            model = fake_model(folders["customizer.base_model"], precision, checkpointing)
            return bytes_to_customize(instantiate(node, _convert_="object"), model)
        node = {k: v for k, v in settings["attack"].items() if k not in ("others", "purifier")}
        attack = instantiate(node, _convert_="object")
        if not attack.needs_surrogate:
            return 0.0
        surrogates = [k for k in folders if k not in ("customizer.base_model", "attack.purifier")]
        how = (surrogate_precision(node), checkpointing)
        models = [fake_model(folders[key], *how) for key in surrogates]
        purifier = None
        if "attack.purifier" in folders:
            purifier = fake_model(folders["attack.purifier"], node["precision"], checkpointing)
        return bytes_to_protect(attack, models, purifier)


def _with_preset(config: DictConfig, name: str) -> DictConfig:
    return OmegaConf.merge(config, {"memory": OmegaConf.load(PRESETS / f"{name}.yaml")})
