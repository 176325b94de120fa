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
from omegaconf import DictConfig, OmegaConf
from torch import OutOfMemoryError, Tensor

from anticustom.attacks.inputs import AttackInputs, SurrogateInputs
from anticustom.diffusion import LatentDiffusion
from anticustom.draws import SeededDraws, draws_owner
from anticustom.identities import PhotoSet
from anticustom.images import quantize_within
from anticustom.model_files import image_size
from anticustom.progress import Checkpoint, NoCheckpoint, Progress
from experiments.records.naming import without
from experiments.run.sampling import sample
from experiments.setup.building import build, model_of
from experiments.setup.composing import composed
from experiments.setup.devices import chosen_device
from experiments.setup.fitting import check_purifier, size_of_all
from experiments.setup.models import Model, surrogate_precision
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
    reader = build(without(config.dataset, "shard"))  # one identity is read
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
    if config.precision == "auto":
        config.precision = "mixed" if config.device.startswith("cuda") else "float32"
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
    config = settled([*subject.words, *words])
    config.surrogate_model.path, config.seed = subject.model.path, subject.config.seed
    asked = OmegaConf.to_container(config.attack, resolve=True)
    attack = build(without(asked, "others", "purifier"))
    nodes = {"surrogate_model": config.surrogate_model}
    nodes |= {f"attack.others.{k}": node for k, node in config.attack.get("others", {}).items()}
    models = {key: model_of(node) for key, node in nodes.items()}
    needed = dict(models) if attack.needs_surrogate else {}
    purifier = model_of(asked["purifier"]) if "purifier" in asked else None
    check_purifier(attack, purifier is not None)
    size_of_all(models | ({"attack.purifier": purifier} if purifier else {}))

    def surrogate(number: int, key: str) -> SurrogateInputs:
        network = models[key].load(surrogate_precision(config.attack), config.device)
        owner = draws_owner(subject.identity, number)

        def class_images() -> tuple[tuple[str, ...], Tensor]:
            count, prompt = config.class_images.count, config.attack.class_prompt
            sampler = models[key].load(config.precision, config.device)
            how = nodes[key].gallery
            (images,) = sample(sampler, [prompt], how, config.seed, count, progress)
            return tuple(f"{k:04}.png" for k in range(count)), images

        draws = SeededDraws(config.seed, owner, network.latent_shape)
        return SurrogateInputs(network, draws, class_images)

    protected = attack(
        AttackInputs(
            identity=subject.identity,
            names=subject.photos.names,
            photos=subject.photos.images,
            seed=config.seed,
            clean_set=(subject.reference.names, subject.reference.images),
            surrogates=[surrogate(*pair) for pair in enumerate(needed)],
            purifier=purifier and purifier.load(config.attack.precision, config.device),
            progress=progress,
            checkpoint=checkpoint or NoCheckpoint(),
        )
    )
    return quantize_within(protected, subject.photos.images, max(attack.eps, 1))  # "none" has 0


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
