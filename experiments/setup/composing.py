"""The configuration that a command line composes, for commands that are not run.py."""

import re
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

CONF = Path(__file__).parents[2] / "conf"


def composed(*words: str, folder: Path = CONF, with_hydra: bool = False) -> DictConfig:
    """Return the configuration in `folder` with the overrides `words`.

    `with_hydra` leaves Hydra's own settings in the configuration, under `hydra`. Raises
    HydraException for an override of something that does not exist.
    """
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("config", list(words), return_hydra_config=with_hydra)


def composed_here(*words: str) -> DictConfig:
    """Return the configuration in the folders that this process was started with, or in conf/.

    Hydra's own settings are under `hydra`.
    """
    if GlobalHydra.instance().is_initialized():
        return compose("config", list(words), return_hydra_config=True)
    return composed(*words, with_hydra=True)


def resolved(config: DictConfig) -> dict:
    """Return a configuration as plain values, without Hydra's own settings."""
    config = config.copy()
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    return OmegaConf.to_container(config, resolve=True)


def composed_with_choices(*words: str) -> tuple[DictConfig, dict[str, str]]:
    """Return the configuration with the overrides `words`, and the option chosen in each group."""
    config = composed(*words, with_hydra=True)
    choices = OmegaConf.to_container(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, choices


def memory_presets() -> list[str]:
    """Return the options of the group memory, the largest card first."""
    names = [file.stem for file in (CONF / "memory").glob("*.yaml")]
    return sorted(names, key=lambda name: int(re.sub(r"\D", "", name) or 0), reverse=True)
