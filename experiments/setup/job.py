"""A job: all that a configuration names, built and checked once, before any work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from anticustom.attacks.inputs import AttackInputs, SurrogateInputs
from anticustom.customizers.training import CustomizerInputs
from anticustom.diffusion import LatentDiffusion
from anticustom.draws import SeededDraws, draws_owner
from anticustom.identities import Identity, PhotoSet
from experiments.records.naming import drawing, without
from experiments.setup.building import Refused, build, build_group, model_of
from experiments.setup.devices import chosen_device, settled_precision, use
from experiments.setup.fitting import (
    ATTACK_PURIFIER,
    BASE_MODEL,
    OTHER_SURROGATES,
    PURIFIER,
    SURROGATE,
    check_layers_exist,
    check_models_differ,
    check_purifier,
    check_quirk,
    check_scale,
    is_surrogate,
    size_of_all,
)
from experiments.setup.models import Model, surrogate_precision
from experiments.setup.settings import check_settings, shard_of

NamedImages = tuple[tuple[str, ...], Tensor]  # images (n, 3, h, w) in [0, 1]


@dataclass(frozen=True)
class Job:
    """A checked configuration with the objects that it describes.

    `config` is resolved; `choices` has the option of each group. `models` and their `nodes` of the
    configuration have the keys under which the configuration names them. `names` are those of the
    identities, whose photos are `size` px wide.
    """

    config: Mapping[str, Any]
    choices: Mapping[str, str]
    device: str
    dataset: Any
    attack: Any
    countermeasure: Any
    customizer: Any
    scorer: Any
    nodes: Mapping[str, Mapping]
    models: Mapping[str, Model]
    names: Sequence[str]
    size: int

    @classmethod
    def from_config(
        cls, composed: DictConfig, choices: Mapping[str, str], neighbour: int = 0
    ) -> "Job":
        """Build and check all that a composed configuration names, before any work.

        `neighbour` is the number of the job among those that run on this machine at once. Raises
        ValueError, in one line, for a configuration that cannot be run.
        """
        if missing := OmegaConf.missing_keys(composed):
            raise Refused(f"{', '.join(sorted(missing))}: set it, for it has no default")
        device = chosen_device(composed.device, neighbour)
        use(device)
        composed = composed.copy()
        composed.precision = settled_precision(composed.precision, device)
        config = OmegaConf.to_container(composed, resolve=True)
        check_settings(config)
        check_quirk(choices)

        dataset, attack = build_group(config, "dataset"), build_group(config, "attack")
        countermeasure = build_group(config, "countermeasure")
        customizer = build_group(config, "customizer")
        scorer = build(config["metrics"], device=device)

        nodes = _nodes_of_models(config)
        checkpointing = config["memory"]["gradient_checkpointing"]
        models = {key: model_of(node, checkpointing) for key, node in nodes.items()}
        check_purifier(attack, models)
        checks = [dataset.names]
        if device == "cpu" != config["device"]:
            checks.append(partial(check_scale, nodes, attack, config["stages"]))
        _raise_all(checks)
        names = shard_of(dataset.names(), config["dataset"]["shard"])

        size = size_of_all(models)  # looks the models up, and downloads those that are not here
        check_models_differ(models, attack, choices)
        surrogates = [model for key, model in models.items() if is_surrogate(key)]
        check_layers_exist(attack, customizer, surrogates, models[BASE_MODEL])
        return cls(
            config=config,
            choices=choices,
            device=device,
            dataset=dataset,
            attack=attack,
            countermeasure=countermeasure,
            customizer=customizer,
            scorer=scorer,
            nodes=nodes,
            models=models,
            names=names,
            size=size,
        )

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def precision(self) -> str:
        return self.config["precision"]

    @property
    def output_dir(self) -> Path:
        return Path(self.config["output_dir"])

    @property
    def surrogates(self) -> dict[str, Model]:
        """The models that the attack climbs against, by their keys."""
        return {key: model for key, model in self.models.items() if is_surrogate(key)}

    @property
    def base_model(self) -> Model:
        return self.models[BASE_MODEL]

    def class_image_settings(self, key: str) -> dict:
        """Return how the model of `key` draws images of the class: sampler, batches, count."""
        return drawing(self.nodes[key]) | without(self.config["class_images"], "_target_")

    def attack_inputs(
        self, identity: Identity, class_images: Callable[[int], NamedImages], **watching: Any
    ) -> AttackInputs:
        """Return what the attack on an identity is given, with new copies of the models.

        `class_images(k)` are those of the k-th surrogate, made when an attack asks for them.
        `watching` has progress and checkpoint.
        """
        node, surrogates, purifier = self.config["attack"], [], None
        if self.attack.needs_surrogate:
            precision = surrogate_precision(node)
            surrogates = [model.load(precision, self.device) for model in self.surrogates.values()]
        if model := self.models.get(ATTACK_PURIFIER):
            purifier = model.load(node["precision"], self.device)
        return attack_inputs(identity, self.seed, surrogates, class_images, purifier, **watching)

    def customizer_inputs(
        self, identity: str, photos: PhotoSet, class_images: NamedImages | None, **watching: Any
    ) -> CustomizerInputs:
        """Return what the customizer is given to train a victim on `photos`, with a new copy of the
        base model.

        A customizer without prior preservation takes no class images. `watching` has progress and
        checkpoint.
        """
        network = self.base_model.load(self.config["customizer"]["precision"], self.device)
        return CustomizerInputs(
            model=network,
            photos=(photos.names, photos.images),
            class_images=class_images,
            draws=SeededDraws(self.seed, identity, network.latent_shape),
            **watching,
        )


def attack_inputs(
    identity: Identity,
    seed: int,
    networks: Sequence[LatentDiffusion],
    class_images: Callable[[int], NamedImages],
    purifier: LatentDiffusion | None = None,
    **watching: Any,
) -> AttackInputs:
    """Return what an attack on an identity is given; the first of the `networks` has the random
    numbers of an attack on it alone.
    """
    surrogates = [
        SurrogateInputs(
            network,
            SeededDraws(seed, draws_owner(identity.name, k), network.latent_shape),
            partial(class_images, k),
        )
        for k, network in enumerate(networks)
    ]
    return AttackInputs(
        identity=identity.name,
        names=identity.set_B.names,
        photos=identity.set_B.images,
        seed=seed,
        clean_set=(identity.set_A.names, identity.set_A.images),
        surrogates=surrogates,
        purifier=purifier,
        **watching,
    )


def _nodes_of_models(config: Mapping) -> dict[str, Mapping]:
    """Return the nodes of the group surrogate_model by their keys, the surrogates first."""
    keys = [SURROGATE, *(OTHER_SURROGATES + name for name in config["attack"].get("others", {}))]
    keys.append(BASE_MODEL)
    keys += [PURIFIER] if config["countermeasure"].get("model") else []
    keys += [ATTACK_PURIFIER] if config["attack"].get("purifier") else []
    return {key: reduce(getitem, key.split("."), config) for key in keys}


def _raise_all(checks: Sequence[Callable[[], object]]) -> None:
    """Raise Refused with the messages of all checks that fail."""
    messages = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            messages.append(str(error))
    if messages:
        raise Refused("; ".join(messages))
