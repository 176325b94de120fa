"""The configuration that a command line composes, for commands that are not run.py."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parents[2] / "conf"


def composed(*words: str, folder: Path = CONF, with_hydra: bool = False) -> DictConfig:
    """Return the configuration in `folder` with the overrides `words`.

    `with_hydra` leaves Hydra's own settings in it, under `hydra`. Raises HydraException where an
    override names what does not exist.
    """
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("config", list(words), return_hydra_config=with_hydra)


def resolved(config: DictConfig) -> dict:
    """Return a configuration as plain values, without Hydra's own settings."""
    config = config.copy()
    OmegaConf.set_struct(config, False)
    config.pop("hydra", None)
    return OmegaConf.to_container(config, resolve=True)
