"""What the nodes of a configuration stand for: the objects and models that they build."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.setup.models import Model


class Refused(ValueError):
    """A configuration that cannot be run; found before any work starts."""


def build(node: DictConfig | Mapping, **arguments: Any) -> Any:
    """Instantiate a node of the configuration; what its constructor refuses is raised as it was
    meant.
    """
    try:
        return instantiate(node, _convert_="object", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, TypeError):
            raise Refused(f"{node['_target_']}: {error.__cause__}: check its settings") from error
        if isinstance(error.__cause__, ValueError | OSError):
            raise Refused(str(error.__cause__)) from error
        raise


def model_of(node: Mapping, gradient_checkpointing: bool = False) -> Model:
    return Model(node["name"], node["path"], node["revision"], gradient_checkpointing)
