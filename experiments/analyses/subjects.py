"""The surrogate and the photos that an analysis looks at, and the command line of all analyses."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from torch import Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draw, Draws, SeededDraws, draw_batches
from anticustom.identities import Identity, PhotoSet
from anticustom.images import quantize_within
from anticustom.model_files import image_size
from anticustom.progress import Checkpoint, NoCheckpoint, Progress
from experiments.run.sampling import sample
from experiments.setup.building import build_group, model_of
from experiments.setup.composing import composed, composed_with_choices
from experiments.setup.devices import chosen_device, settled_precision
from experiments.setup.job import Job, NamedImages
from experiments.setup.models import Model
from experiments.store.disk import atomic_write
from experiments.terminal import bars, quiet_libraries

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

FEW = "class_images.count=8"  # enough for the surrogates of a short analysis


@dataclass(frozen=True)
class Subject:
    """A surrogate model and the photos of one person, as a composed configuration names them.

    `words` are overrides of the configuration. `photos` are the first of the person's set B,
    `reference` is the clean set A.
    """

    words: tuple[str, ...]
    config: DictConfig
    model: Model
    identity: str
    photos: PhotoSet
    reference: PhotoSet

    @property
    def prompt(self) -> str:
        return self.config.prompts.instance

    @property
    def caption(self) -> str:
        """The model, the photos and the seed, as the title of a figure says them."""
        count = len(self.photos.names)
        photos = f"{count} photo{'s' if count > 1 else ''} of identity {self.identity}"
        return f"{Path(self.model.path).name}, {photos}, seed {self.config.seed}"

    def network(self) -> LatentDiffusion:
        """Return the surrogate as it was loaded, a new one each time: attacks change theirs."""
        return self.model.load(self.config.precision, self.config.device)

    def draws(self, network: LatentDiffusion) -> SeededDraws:
        return SeededDraws(self.config.seed, self.identity, network.latent_shape)


def read_subject(settings: argparse.Namespace) -> Subject:
    """Return the subject that the arguments of `subject_parser` describe."""
    config = composed(FEW, *settings.overrides)
    config.device = chosen_device(config.device)
    config.precision = settled_precision(config.precision, config.device)
    config.seed, config.dataset.identities = settings.seed, [settings.identity]
    config.surrogate_model.path = settings.model or config.surrogate_model.path
    model = model_of(config.surrogate_model)
    dataset = build_group(config, "dataset")
    (name,) = dataset.names()
    person = dataset.read(name, image_size(model.folder))
    names, images, count = person.set_B.names, person.set_B.images, settings.photos
    if not 1 <= count <= len(names):
        raise ValueError(f"--photos {count}: expected 1 to {len(names)}")
    photos = PhotoSet(names[:count], images[:count])
    return Subject(tuple(settings.overrides), config, model, name, photos, person.set_A)


def attacked(
    subject: Subject,
    *words: str,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
) -> Tensor:
    """Return the subject's photos under an attack, on the 8-bit grid as files would hold them.

    The subject's overrides and then `words` compose the attack.
    """
    config, choices = composed_with_choices(FEW, *subject.words, *words)
    config.surrogate_model.path, config.seed = subject.model.path, subject.config.seed
    config.dataset.identities, config.device = [subject.identity], subject.config.device
    job = Job.from_config(config, choices)

    def class_images(k: int) -> NamedImages:
        key = list(job.surrogates)[k]
        settings, prompt = job.class_image_settings(key), config.attack.class_prompt
        model, count = job.models[key].load(job.precision, job.device), settings["count"]
        (images,) = sample(model, [prompt], settings, job.seed, count, progress)
        return tuple(f"{k:04}.png" for k in range(count)), images

    person = Identity(subject.identity, subject.reference, subject.photos, subject.reference)
    inputs = job.attack_inputs(
        person, class_images, progress=progress, checkpoint=checkpoint or NoCheckpoint()
    )
    budget = max(job.attack.eps, 1)  # attack=none has none
    return quantize_within(job.attack(inputs), subject.photos.images, budget)


def draws_at(
    draws: Draws, stream: str, names: Sequence[str], count: int, timestep: int
) -> list[Draw]:
    """Return `count` draws for each name at one timestep.

    All timesteps have the same noise, so that few draws suffice to compare timesteps.
    """
    return draw_batches(draws, stream, names, count, [torch.tensor([timestep])] * len(names))


def base_parser(name: str, documentation: str) -> argparse.ArgumentParser:
    """Return the parser of `experiments.analyses.<name>` with the argument of all analyses."""
    parser = argparse.ArgumentParser(
        f"python -m experiments.analyses.{name}",
        description=documentation.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/analyses") / name)
    return parser


def subject_parser(name: str, documentation: str) -> argparse.ArgumentParser:
    """Return the parser of an analysis that looks at a subject."""
    parser = base_parser(name, documentation)
    model = "embedded model or local diffusers folder, in place of the configuration's"
    parser.add_argument("--model", help=model)
    parser.add_argument("--identity", default="0", help="a portrait's number, or a name")
    parser.add_argument("--photos", type=int, default=2, help="number of photos of set B")
    parser.add_argument("--seed", type=int, default=0)
    overrides = "of the configuration: surrogate_model=sd21, dataset=vggface2, attack.eps=4"
    parser.add_argument("overrides", nargs="*", help=overrides)
    return parser


Analysis = Callable[[argparse.Namespace, Progress], "tuple[DataFrame, Figure]"]


def run(parser: argparse.ArgumentParser, analyse: Analysis, words: Sequence[str] | None) -> None:
    """Analyse as the command line `words` says, and write numbers.csv and figure.png.

    A subject that cannot be analysed ends the process with one line.
    """
    settings = parser.parse_intermixed_args(words)
    quiet_libraries()
    try:
        with bars() as progress:
            table, figure = analyse(settings, progress)
        settings.output_dir.mkdir(parents=True, exist_ok=True)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=110)
        numbers = table.to_csv(index=False, float_format="%.6g").encode()
        print(atomic_write(settings.output_dir / "numbers.csv", numbers))
        print(atomic_write(settings.output_dir / "figure.png", png.getvalue()))
    except (
        ValueError,
        OSError,
        FloatingPointError,
        HydraException,
        torch.OutOfMemoryError,
    ) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {' '.join(str(error).split())}")
