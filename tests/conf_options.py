"""Composed configurations and their keys, for the tests of conf/."""

from functools import cache

from omegaconf import DictConfig, OmegaConf

from experiments.setup import composing
from experiments.setup.composing import CONF

OPTIONS = sorted(
    (file.parent.relative_to(CONF).as_posix(), file.stem)
    for file in CONF.rglob("*.yaml")
    if file.parent != CONF
    and not file.stem.startswith("_")
    and file.relative_to(CONF).parts[0] != "hydra"  # of plugins that need not be installed
)


def options(group: str) -> list[str]:
    return [option for g, option in OPTIONS if g == group]


@cache
def composed(*words: str, with_hydra: bool = False) -> DictConfig:
    """Return the read-only configuration of a command line. Equal lines are composed once."""
    config = composing.composed(*words, with_hydra=with_hydra)
    OmegaConf.set_readonly(config, True)
    return config


def resolved(node: DictConfig) -> dict:
    return OmegaConf.to_container(node, resolve=True)


def flat(node: DictConfig) -> dict:
    """Return the resolved leaves of a node by their dotted paths."""

    def leaves(container: dict, prefix: str):
        for key, value in container.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(leaves(resolved(node), ""))


def differences(first: DictConfig, second: DictConfig) -> dict:
    """Return the pairs of values that differ, by their paths; a missing value is None."""
    a, b = flat(first), flat(second)
    return {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
