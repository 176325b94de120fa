"""What the analyses share: the surrogate and the photos they look at, and their command line."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import HydraException
from omegaconf import DictConfig
from torch import OutOfMemoryError, Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import SeededDraws
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

FEW = "class_images.count=8"  # what a short analysis trains surrogates on


@dataclass(frozen=True)
class Subject:
    """A surrogate model and one person's photos, as a composed configuration names them.

    `photos` is what of set B is looked at, `reference` the clean set A, `words` are overrides of
    the configuration.
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

    def network(self) -> LatentDiffusion:
        """Return the surrogate as it was loaded: a new one each time, for attacks change theirs."""
        return self.model.load(self.config.precision, self.config.device)

    def draws(self, network: LatentDiffusion) -> SeededDraws:
        return SeededDraws(self.config.seed, self.identity, network.latent_shape)


def read_subject(
    words: Sequence[str], *, model: str | None, identity: str, photos: int, seed: int
) -> Subject:
    """Compose the configuration with `words` and read the first `photos` of an identity's set B.

    `model` is an embedded model or a folder that takes the place of the configuration's.
    """
    config = settled(words)
    config.seed, config.dataset.identities = seed, [identity]
    config.surrogate_model.path = model or config.surrogate_model.path
    source = model_of(config.surrogate_model)
    reader = build_group(config, "dataset")  # one identity is read
    (name,) = reader.names()
    person = reader.read(name, image_size(source.folder))
    if not 1 <= photos <= len(person.set_B.names):
        raise ValueError(f"--photos {photos}: expected 1 to {len(person.set_B.names)}")
    shown = PhotoSet(person.set_B.names[:photos], person.set_B.images[:photos])
    return Subject(tuple(words), config, source, name, shown, person.set_A)


def settled(words: Sequence[str]) -> DictConfig:
    """Return the configuration with the overrides `words`, its device and precision chosen."""
    config = composed(FEW, *words)
    config.device = chosen_device(config.device)
    config.precision = settled_precision(config.precision, config.device)
    return config


def attacked(
    subject: Subject,
    words: Sequence[str],
    *,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
) -> Tensor:
    """Return the subject's photos protected by the attack that the subject's own overrides and then
    `words` compose, on the 8-bit grid as their files would hold them.
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
    watching = {"progress": progress, "checkpoint": checkpoint or NoCheckpoint()}
    protected = job.attack(job.attack_inputs(person, class_images, **watching))
    budget = max(job.attack.eps, 1)  # attack=none has none
    return quantize_within(protected, subject.photos.images, budget)


def arguments(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser of what every analysis is asked, for the command `analyse_<name>`."""
    parser = argparse.ArgumentParser(
        f"python -m experiments.analyse_{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    model = "embedded model or local diffusers folder, in place of the configuration's"
    parser.add_argument("--model", help=model)
    parser.add_argument("--identity", default="0", help="a portrait's number, or a name")
    parser.add_argument("--photos", type=int, default=2, help="how many of set B")
    parser.add_argument("--seed", type=int, default=0)
    folder = Path("outputs/analyses") / name
    parser.add_argument("--output-dir", type=Path, default=folder)
    overrides = "of the configuration: surrogate_model=sd21, dataset=vggface2, attack.eps=4"
    parser.add_argument("overrides", nargs="*", help=overrides)
    return parser


Analysis = Callable[[Subject, argparse.Namespace, Progress], "tuple[DataFrame, Figure]"]


def run(
    parser: argparse.ArgumentParser, analysis: Analysis, words: Sequence[str] | None = None
) -> None:
    """Parse the command line `words`, run the analysis, and write its numbers and its figure.

    What cannot be analysed ends the process with one line.
    """
    settings = parser.parse_intermixed_args(words)
    quiet_libraries()
    try:
        subject = read_subject(
            settings.overrides,
            model=settings.model,
            identity=settings.identity,
            photos=settings.photos,
            seed=settings.seed,
        )
        with bars() as progress:
            table, figure = analysis(subject, settings, progress)
        settings.output_dir.mkdir(parents=True, exist_ok=True)
        for path in write(settings.output_dir, table, figure):
            print(path)
    except (ValueError, OSError, FloatingPointError, HydraException, OutOfMemoryError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {' '.join(str(error).split())}")


def write(folder: Path, table: "DataFrame", figure: "Figure") -> tuple[Path, Path]:
    """Write `numbers.csv` and `figure.png`; return their paths."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    numbers = table.to_csv(index=False, float_format="%.6g").encode()
    return (
        atomic_write(folder / "numbers.csv", numbers),
        atomic_write(folder / "figure.png", png.getvalue()),
    )


def said(subject: Subject) -> str:
    """Return what a figure says of its subject."""
    count = len(subject.photos.names)
    photos = f"{count} photo{'s' if count > 1 else ''} of identity {subject.identity}"
    return f"{Path(subject.model.path).name}, {photos}, seed {subject.config.seed}"
