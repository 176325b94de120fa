"""Small settings of attacks and customizers: a random model, two photos, a clean set, class
images.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from conf_options import composed, resolved
from customizing import CUSTOMIZERS, Victim
from diffusers import DDIMScheduler, StableDiffusionPipeline
from helpers import PRESETS
from hydra.utils import instantiate
from torch import Tensor

from anticustom import diffusion, model_files
from anticustom.attacks.inputs import AttackInputs, SurrogateInputs
from anticustom.attacks.pgd import PGD
from anticustom.customizers.training import CustomizerInputs
from anticustom.draws import SeededDraws
from anticustom.images import from_8bit
from anticustom.progress import NoCheckpoint, silent

DRAWS = SeededDraws(0, "ann", (4, 8, 8))


@pytest.fixture(scope="session")
def pictures() -> Callable[[int, int], Tensor]:
    """Return `count` random images (count, 3, 64, 64) on the 8-bit grid."""

    def make(count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return from_8bit(torch.randint(0, 256, (count, 3, 64, 64), generator=generator))

    return make


@pytest.fixture(scope="session")
def new_model(random_sd) -> Callable[..., diffusion.LatentDiffusion]:
    """Return a new copy of the model with random weights."""

    @cache
    def loaded(precision: str) -> diffusion.LatentDiffusion:
        return model_files.load(str(random_sd), precision=precision)

    return lambda precision="float32": deepcopy(loaded(precision))


@pytest.fixture
def model(new_model) -> diffusion.LatentDiffusion:
    return new_model()


@pytest.fixture
def exact_model(model) -> diffusion.LatentDiffusion:
    """Return the model in float64, in which no processor's rounding shows."""
    for network in (model.vae, model.unet, model.text_encoder):
        network.double()
    return model


@pytest.fixture
def draws() -> SeededDraws:
    return DRAWS


@pytest.fixture(scope="session")
def configured() -> Callable:
    """Return what a node of the composed configuration instantiates."""

    def make(node: str, *overrides: str):
        return instantiate(resolved(composed(*overrides)[node]), _convert_="object")

    return make


@pytest.fixture(scope="session")
def class_images(pictures) -> tuple[tuple[str, ...], Tensor]:
    return ("0.png", "1.png", "2.png"), pictures(3, 3)


@pytest.fixture
def inputs_for(new_model, pictures, class_images) -> Callable[..., AttackInputs]:
    """Return an attack's inputs, with a model of their own in the precision of its loading."""

    def make(
        attack,
        names: tuple[str, ...] = ("a.png", "b.jpg"),
        draws=DRAWS,
        load_class_images=lambda: class_images,
        **changed,
    ) -> AttackInputs:
        seeds = {"a.png": 0, "b.jpg": 1}
        loaded = getattr(attack, "training_precision", None) or getattr(attack, "precision", None)
        precision = "bfloat16" if loaded == "bfloat16" else "float32"
        settings = {
            "identity": "ann",
            "names": names,
            "photos": torch.cat([pictures(1, seeds[name]) for name in names]),
            "seed": 0,
            "clean_set": (("c.png", "d.png"), pictures(2, 2)),
            "surrogates": [SurrogateInputs(new_model(precision), draws, load_class_images)],
        }
        return AttackInputs(**settings | changed)

    return make


@pytest.fixture
def preset(configured):
    """Return the attack of a YAML, shortened."""

    def make(name: str, *overrides: str) -> PGD:
        return configured("attack", f"attack={name}", *PRESETS[name], *overrides)

    return make


@pytest.fixture(scope="session")
def inputs_of(new_model, pictures, class_images):
    def make(checkpoint=None, progress=silent, draws=None, precision="float32") -> CustomizerInputs:
        return CustomizerInputs(
            model=new_model(precision),
            photos=(("a.png", "b.png"), pictures(2, 0)),
            class_images=class_images,
            draws=draws or DRAWS,
            progress=progress,
            checkpoint=checkpoint or NoCheckpoint(),
        )

    return make


@pytest.fixture(scope="session")
def victim(inputs_of, tmp_path_factory) -> Callable[..., Victim]:
    """Return the victim of a customizer with some settings changed. Equal victims are trained
    once, and tests only read them.
    """

    @cache
    def trained(name: str, precision: str, **changed) -> Victim:
        customizer, inputs = replace(CUSTOMIZERS[name], **changed), inputs_of(precision=precision)
        losses, folder = customizer.customize(inputs), tmp_path_factory.mktemp(name)
        customizer.save(inputs.model, folder)
        return Victim(inputs.model, losses, folder)

    # the default belongs outside the cache, which tells victim("lora") from ("lora", "float32")
    return lambda name, precision="float32", **changed: trained(name, precision, **changed)


@pytest.fixture
def pipeline(random_sd) -> StableDiffusionPipeline:
    """The uncustomized model as diffusers alone loads it."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        random_sd, safety_checker=None, local_files_only=True
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
