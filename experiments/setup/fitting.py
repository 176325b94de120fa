"""Whether the parts that a configuration names fit each other and this machine."""

from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from anticustom.adapters import check_layers, weights_in
from anticustom.losses import chosen_layers
from anticustom.model_files import decoder_layer_names, image_size
from experiments.setup.building import Refused
from experiments.setup.composing import CONF, composed_here, resolved
from experiments.setup.models import Model

SURROGATE, OTHER_SURROGATES = "surrogate_model", "attack.others."
BASE_MODEL = "customizer.base_model"
PURIFIER = "countermeasure.model"  # that the adversary purifies with
ATTACK_PURIFIER = "attack.purifier"  # that the attack ascends through
# the adversary, or the command line, chose a base model of its own
OTHER_BASE_MODEL = f"surrogate_model@{BASE_MODEL}"


def check_quirk(choices: Mapping[str, str]) -> None:
    """Raise Refused for a quirk that changes a setting which the chosen attack does not have."""
    name, attack, loss = (choices[group] for group in ("quirk", "attack", "loss"))
    if name == "none":
        return
    described = resolved(composed_here(f"attack={attack}", f"loss={loss}", "quirk=none"))
    quirk = OmegaConf.to_container(OmegaConf.load(CONF / "quirk" / f"{name}.yaml"))
    changed = {**quirk.pop("attack", {}), **quirk}  # the attack holds its loss
    settings = OmegaConf.create(described["attack"], flags={"struct": True})
    try:
        OmegaConf.merge(settings, changed)
    except ConfigKeyError as error:
        raise Refused(
            f"quirk={name}: attack={attack} with loss={loss} has no {error.full_key}: choose "
            "another attack, or quirk=none"
        ) from error


def check_purifier(attack: Any, models: Collection[str]) -> None:
    """Raise Refused if an attack through purification has no model for it, or another has one.

    `models` are the keys of the models that the configuration names.
    """
    needs_model, has_model = bool(getattr(attack, "purifiers", ())), ATTACK_PURIFIER in models
    if has_model and not needs_model:
        raise Refused("attack.purifier: no purify among attack.transforms takes it: leave it out")
    if needs_model and not has_model:
        raise Refused(
            "attack.transforms: purify takes a model: name one, for example with "
            "+surrogate_model@attack.purifier=tiny_b"
        )


def check_scale(nodes: Mapping[str, Mapping], attack: Any, stages: Collection[str]) -> None:
    """Raise Refused for a model that the wanted stages use and that needs a GPU.

    `nodes` are those of the models, by their keys.
    """
    for key, node in nodes.items():
        attacks = is_surrogate(key) or key == ATTACK_PURIFIER
        stage = "protect" if attacks else "customize"
        is_used = stage in stages and (attack.needs_surrogate or not attacks)
        if node["needs_gpu"] and is_used:
            raise Refused(
                f"surrogate_model={node['name']} needs a GPU, and torch finds none: run on a "
                "machine with one, or take the embedded model with surrogate_model=tiny "
                "(device=cpu tries regardless, for many hours)"
            )


def size_of_all(models: Mapping[str, Model]) -> int:
    """Return the size in px that all models are made for; raise Refused where sizes differ."""
    sizes = {key: image_size(model.folder) for key, model in models.items()}
    size = sizes[SURROGATE]
    for key, model_size in sizes.items():
        if model_size != size:
            raise Refused(
                f"surrogate_model is made for {size} px and {key} for {model_size} px: photos are "
                f"protected at the size that is customized, so choose models of one size: {key} "
                f"with surrogate_model@{key}=..."
            )
    return size


def check_models_differ(
    models: Mapping[str, Model], attack: Any, choices: Mapping[str, str]
) -> None:
    """Raise Refused where a model that is meant to be another one has a surrogate's weights."""
    surrogates = [key for key in models if is_surrogate(key)]
    pairs = [(BASE_MODEL, SURROGATE)] if OTHER_BASE_MODEL in choices else []
    if attack.needs_surrogate:
        pairs += [(key, SURROGATE) for key in surrogates if key != SURROGATE]
        pairs += [(PURIFIER, key) for key in surrogates if PURIFIER in models]
    for key, surrogate in pairs:
        if models[key].digest == models[surrogate].digest:
            raise Refused(
                f"{key} is the {surrogate} itself: name another, with surrogate_model@{key}"
            )


def is_surrogate(key: str) -> bool:
    """Whether the attack climbs against the model of this key."""
    return key == SURROGATE or key.startswith(OTHER_SURROGATES)


def check_layers_exist(
    attack: Any, customizer: Any, surrogates: Collection[Model], base_model: Model
) -> None:
    """Raise ValueError for layers to adapt, or blocks to take features of, that a UNet lacks."""
    up_blocks = getattr(getattr(attack, "loss", None), "up_blocks", ())
    for model in surrogates if up_blocks else ():
        chosen_layers(decoder_layer_names(model.folder), up_blocks)
    adapters = getattr(getattr(attack, "surrogate_schedule", None), "adapters", None)
    adapted = [
        ("customizer.unet_layers", customizer, [base_model]),
        ("attack.surrogate_schedule.adapters.unet_layers", adapters, surrogates),
    ]
    for key, settings, models in adapted:
        layers = getattr(settings, "unet_layers", None)
        for model in models if layers is not None else ():
            check_layers(key, layers, weights_in(model.folder))
