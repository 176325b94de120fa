"""Composed configurations and their keys, for the tests of conf/."""

from omegaconf import DictConfig, OmegaConf

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


def resolved(node: DictConfig) -> dict:
    return OmegaConf.to_container(node, resolve=True)


def flat(node: dict, prefix: str = "") -> dict:
    leaves = {}
    for key, value in node.items():
        path = f"{prefix}{key}"
        leaves |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return leaves


def differences(one: DictConfig, other: DictConfig) -> dict:
    a, b = flat(resolved(one)), flat(resolved(other))
    return {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
