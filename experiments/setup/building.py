"""Objects and models that the nodes of a configuration stand for."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.records.naming import without
from experiments.setup.models import Model

# keys of a group's node that the run reads itself: its class does not take them
KEYS_OF_THE_RUN = {
    "attack": ("others", "purifier"),
    "countermeasure": ("model",),
    "customizer": ("base_model", "precision"),
    "dataset": ("shard",),
}


class Refused(ValueError):
    """A configuration that cannot be run; found before any work starts."""


def build(node: Mapping, **arguments: Any) -> Any:
    """Return the object that a node describes.

    Raises Refused with the message of its constructor where the constructor refuses a setting.
    """
    try:
        return instantiate(node, _convert_="object", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, TypeError):
            raise Refused(f"{node['_target_']}: {error.__cause__}: check its settings") from error
        if isinstance(error.__cause__, ValueError | OSError):
            raise Refused(str(error.__cause__)) from error
        raise


def build_group(config: Mapping, group: str) -> Any:
    """Return the attack, counter-measure, customizer or data set of a configuration."""
    node = config[group]
    if isinstance(node, DictConfig):  # before its models go, because settings follow them
        node = OmegaConf.to_container(node, resolve=True)
    return build(without(node, *KEYS_OF_THE_RUN[group]))


def model_of(node: Mapping, gradient_checkpointing: bool = False) -> Model:
    """Return the model that a node of the group surrogate_model names."""
    return Model(node["name"], node["path"], node["revision"], gradient_checkpointing)
