"""Whether the models that a configuration names fit each other, its methods and this machine."""

from collections.abc import Collection, Mapping
from itertools import product
from typing import Any

from omegaconf import OmegaConf

from anticustom.adapters import check_layers, weights_in
from anticustom.losses import chosen_layers
from anticustom.model_files import decoder_layer_names, image_size
from experiments.setup.building import Refused
from experiments.setup.models import Model


def size_of_all(models: Mapping[str, Model]) -> int:
    """Return the size in px that all models are made for, by their keys; raise Refused where they
    differ.
    """
    sizes = {key: image_size(model.folder) for key, model in models.items()}
    size = sizes["surrogate_model"]
    for key, other in sizes.items():
        if other != size:
            raise Refused(
                f"surrogate_model is made for {size} px and {key} for {other} px: photos are "
                f"protected at the size that is customized, so choose models of one size: {key} "
                f"with surrogate_model@{key}=..."
            )
    return size


def check_others(
    models: Mapping[str, Model], surrogates: Collection[str], others: Collection[str]
) -> None:
    """Raise Refused if one of `others`, keys of models, is one of the `surrogates` once more."""
    for key, surrogate in product(sorted(others), sorted(surrogates)):
        if models[key].digest == models[surrogate].digest:
            raise Refused(
                f"{key} is the {surrogate} itself: name another, with surrogate_model@{key}"
            )


def check_purifier(attack: Any, given: bool) -> None:
    """Raise Refused if an attack that ascends through purification has no model for it, or one
    that does not has one.
    """
    if bool(getattr(attack, "purifiers", ())) == given:
        return
    raise Refused(
        "attack.purifier: no purify among attack.transforms takes it: leave it out"
        if given
        else "attack.transforms: purify takes a model: name one, for example with "
        "+surrogate_model@attack.purifier=tiny_b"
    )


def check_scale(config: Mapping[str, Any], used: Collection[str]) -> None:
    """Raise Refused for a model, of the keys `used`, that is too large for a processor alone."""
    for key in used:
        node = OmegaConf.select(OmegaConf.create(config), key)
        if node.needs_gpu:
            raise Refused(
                f"surrogate_model={node.name} needs a GPU, and torch finds none: run on a "
                "machine with one, or take the embedded model with surrogate_model=tiny "
                "(device=cpu tries regardless, for many hours)"
            )


def check_layers_exist(
    attack: Any, surrogates: Mapping[str, Model], customizer: Any, base_model: Model
) -> None:
    """Raise ValueError for layers to adapt, or blocks to take features of, that a UNet lacks."""
    up_blocks = getattr(getattr(attack, "loss", None), "up_blocks", ())
    for model in surrogates.values() if up_blocks else ():
        chosen_layers(decoder_layer_names(model.folder), up_blocks)
    asked = {"customizer.unet_layers": (customizer, [base_model])}
    schedule = getattr(attack, "surrogate_schedule", None)
    own = schedule.adapters if schedule else None
    asked["attack.surrogate_schedule.adapters.unet_layers"] = (own, surrogates.values())
    for key, (owner, models) in asked.items():
        layers = getattr(owner, "unet_layers", None)
        for model in models if layers is not None else ():
            check_layers(key, layers, weights_in(model.folder))
