"""How the surrogate moves while it is attacked: frozen, fitted first (FSMG), alternating (ASPL)."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from anticustom.adapters import Adapters, add_adapters
from anticustom.checks import check_count
from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draws
from anticustom.finetuning import EncodedPhotos, FineTuning, Trainer, all_weights, encode
from anticustom.progress import Progress


@dataclass
class Surrogate:
    """A model under attack, what it trains on, and the trainer that moves it (None for one that
    stands still).
    """

    model: LatentDiffusion
    draws: Draws
    trainer: Trainer | None = None
    clean: EncodedPhotos | None = None
    classes: EncodedPhotos | None = None
    fitted_steps: int = 0  # done of a training that goes before the attack
    keep: Callable[[], None] = lambda: None  # saves a checkpoint when one is due

    def train(
        self,
        photos: EncodedPhotos,
        steps: int,
        phase: str,
        photo_set: str,
        progress: Progress,
        done: int = 0,
        total: int | None = None,
    ) -> None:
        """Train `steps` on `photos`; of the attack's `total` training steps `done` were done
        before.
        """

        def report(step: int, loss: Tensor) -> None:
            progress("surrogate training", done + step + 1, total or steps, loss)

        self.trainer.train(
            photos, self.classes, steps, self.draws, phase, photo_set=photo_set, callback=report
        )

    def fit(self, steps: int, progress: Progress) -> None:
        """Train on the clean set A up to `steps`, going on after those that are done."""

        def after(step: int, loss: Tensor) -> None:
            progress("surrogate training", step + 1, steps, loss)
            self.fitted_steps = step + 1
            self.keep()

        self.trainer.train(
            self.clean,
            self.classes,
            steps,
            self.draws,
            "fit",
            photo_set="clean",
            first_step=self.fitted_steps,
            callback=after,
        )


class SurrogateSchedule(Protocol):
    """An attack is `iterations` times: perturb the photos inside `attackable`, then `follow`."""

    iterations: int
    training: FineTuning | None
    adapters: Adapters | None  # what it trains; None: all weights

    def attackable(
        self, surrogate: Surrogate, iteration: int, progress: Progress
    ) -> contextlib.AbstractContextManager[None]:
        """Bring the surrogate into the state in which this iteration attacks it; undo on leaving
        what is not to stay.
        """

    def follow(
        self,
        surrogate: Surrogate,
        iteration: int,
        names: tuple[str, ...],
        protected: Tensor,
        progress: Progress,
    ) -> None:
        """Move the surrogate on after the perturbation steps."""


@dataclass(frozen=True)
class Frozen:
    """The surrogate as it was loaded (AdvDM)."""

    iterations: int = 1

    training: ClassVar[None] = None
    adapters: ClassVar[None] = None

    def __post_init__(self):
        check_count("attack.surrogate_schedule.iterations", self.iterations, 1)

    def attackable(self, surrogate, iteration, progress):
        return contextlib.nullcontext()

    def follow(self, surrogate, iteration, names, protected, progress):
        pass


@dataclass(frozen=True, kw_only=True)
class FittedFirst:
    """Fully trained surrogate model guidance (FSMG): DreamBooth on the clean set A, then one long
    attack.
    """

    training: FineTuning
    training_steps: int
    iterations: int = 1
    adapters: Adapters | None = None

    NEUTRAL: ClassVar[dict] = {"adapters": None}

    def __post_init__(self):
        check_count("attack.surrogate_schedule.iterations", self.iterations, 1)
        check_count("attack.surrogate_schedule.training_steps", self.training_steps, 0)

    @contextlib.contextmanager
    def attackable(self, surrogate, iteration, progress) -> Iterator[None]:
        if iteration == 0:
            surrogate.fit(self.training_steps, progress)
        yield

    def follow(self, surrogate, iteration, names, protected, progress):
        pass


@dataclass(frozen=True, kw_only=True)
class Alternating:
    """Alternating surrogate and perturbation learning (ASPL, Anti-DreamBooth's algorithm 1).

    In each iteration a copy of the surrogate trains `training_steps` on the clean set A and is
    attacked; then the surrogate itself trains as long on the photos as they are protected so far.
    The copy is the surrogate itself, put back afterwards with its optimizer, so one model is in
    memory. What stays of the copy is its place in the photo sets.

    With `keep_clean_training` there is no copy: what the surrogate learns of the clean set stays,
    as in the released form that trains adapters.
    """

    training: FineTuning
    iterations: int = 50
    training_steps: int = 3
    adapters: Adapters | None = None
    keep_clean_training: bool = False

    NEUTRAL: ClassVar[dict] = {"adapters": None, "keep_clean_training": False}

    def __post_init__(self):
        check_count("attack.surrogate_schedule.iterations", self.iterations, 1)
        check_count("attack.surrogate_schedule.training_steps", self.training_steps, 0)

    @contextlib.contextmanager
    def attackable(self, surrogate, iteration, progress) -> Iterator[None]:
        before = None if self.keep_clean_training else surrogate.trainer.state()[0]
        self._train(surrogate, surrogate.clean, iteration, "clean", progress)
        yield
        if before is not None:
            surrogate.trainer.restore(before, {"places": surrogate.trainer.places})

    def follow(self, surrogate, iteration, names, protected, progress):
        photos = encode(surrogate.model, names, protected)
        self._train(surrogate, photos, iteration, "protected", progress)

    def _train(self, surrogate, photos, iteration, photo_set, progress) -> None:
        before = 2 * iteration + (photo_set == "protected")
        surrogate.train(
            photos,
            self.training_steps,
            f"{iteration} train {photo_set}",
            photo_set,
            progress,
            done=before * self.training_steps,
            total=2 * self.iterations * self.training_steps,
        )


def start(
    schedule: SurrogateSchedule,
    model: LatentDiffusion,
    draws: Draws,
    *,
    instance_prompt: str,
    class_prompt: str,
    clean: tuple[tuple[str, ...], Tensor],
    class_images: tuple[tuple[str, ...], Tensor] | None,
    seed: int,
) -> Surrogate:
    """Return the surrogate that `schedule` moves; `clean` and `class_images` are names and images
    (n, 3, h, w) in [0, 1]; one that stands still, or preserves no prior, needs no class images.
    Adapters start as `seed` draws them.
    """
    if schedule.training is None:
        return Surrogate(model, draws)
    trainer = Trainer(
        model,
        trained_parameters(schedule, model, seed),
        schedule.training,
        instance_prompt=instance_prompt,
        class_prompt=class_prompt,
    )
    classes = encode(model, *class_images) if schedule.training.preserves_prior else None
    return Surrogate(model, draws, trainer, encode(model, *clean), classes)


def trained_parameters(
    schedule: SurrogateSchedule, model: LatentDiffusion, seed: int
) -> list[nn.Parameter]:
    """Return what the schedule trains of a model, which is given the adapters that it lacks."""
    if schedule.adapters is None:
        return all_weights(model)
    return add_adapters(model, schedule.adapters, seed)
