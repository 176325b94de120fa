"""How a surrogate moves while it is attacked: not at all, fitted first (FSMG), or alternating
(ASPL).
"""

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
    """A model under attack, its training photos, and the trainer that moves it.

    A surrogate that stands still has neither trainer nor training photos.
    """

    model: LatentDiffusion
    draws: Draws
    trainer: Trainer | None = None
    clean: EncodedPhotos | None = None
    classes: EncodedPhotos | None = None
    fitted_steps: int = 0  # steps done of a training that goes before the attack

    def train(
        self,
        photos: EncodedPhotos,
        steps: int,
        phase: str,
        photo_set: str,
        callback: Callable[[int, Tensor], None],
        first_step: int = 0,
    ) -> None:
        """Train on `photos` until `steps` are done, and call `callback(step, loss)` after each."""
        self.trainer.train(
            photos,
            self.classes,
            steps,
            self.draws,
            phase,
            photo_set=photo_set,
            first_step=first_step,
            callback=callback,
        )


class SurrogateSchedule(Protocol):
    """An attack repeats two things `iterations` times: it perturbs the photos while the surrogate
    is `attackable`, then the surrogate learns them in `follow`.
    """

    iterations: int
    training: FineTuning | None  # None: the surrogate stands still
    adapters: Adapters | None  # the weights that train; None: all weights

    def attackable(
        self, surrogate: Surrogate, iteration: int, progress: Progress, save: Callable[[], None]
    ) -> contextlib.AbstractContextManager[None]:
        """Bring the surrogate into the state in which this iteration attacks it.

        On leaving, put back what is not to stay. A long training calls `save`, which saves a
        checkpoint if one is due, after every step.
        """

    def follow(
        self,
        surrogate: Surrogate,
        iteration: int,
        names: tuple[str, ...],
        protected: Tensor,
        progress: Progress,
    ) -> None:
        """Move the surrogate on, given the photos as they are protected so far."""


@dataclass(frozen=True)
class Frozen:
    """The surrogate as it was loaded (AdvDM)."""

    iterations: int = 1

    training: ClassVar[None] = None
    adapters: ClassVar[None] = None

    def __post_init__(self):
        check_count("attack.surrogate_schedule.iterations", self.iterations, 1)

    def attackable(self, surrogate, iteration, progress, save):
        return contextlib.nullcontext()

    def follow(self, surrogate, iteration, names, protected, progress):
        pass


@dataclass(frozen=True, kw_only=True)
class FittedFirst:
    """Fully trained surrogate model guidance (FSMG, Anti-DreamBooth): DreamBooth trains the
    surrogate on the clean set A, then one long attack follows.
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
    def attackable(self, surrogate, iteration, progress, save) -> Iterator[None]:
        def after(step: int, loss: Tensor) -> None:
            progress("surrogate training", step + 1, self.training_steps, loss)
            surrogate.fitted_steps = step + 1
            save()

        if iteration == 0:
            photos, first_step = surrogate.clean, surrogate.fitted_steps
            surrogate.train(photos, self.training_steps, "fit", "clean", after, first_step)
        yield

    def follow(self, surrogate, iteration, names, protected, progress):
        pass


@dataclass(frozen=True, kw_only=True)
class Alternating:
    """Alternating surrogate and perturbation learning (ASPL, Anti-DreamBooth's algorithm 1).

    In each iteration a copy of the surrogate trains `training_steps` on the clean set A and is
    attacked. Then the surrogate itself trains as many steps on the photos as they are protected so
    far. The copy is the surrogate itself, which is put back afterwards with its optimizer, so that
    one model is in memory. Only the copy's places in the photo sets stay.

    With `keep_clean_training` there is no copy: the surrogate keeps all that it learns of the clean
    set, as in the released code that trains adapters.
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
    def attackable(self, surrogate, iteration, progress, save) -> Iterator[None]:
        before = None if self.keep_clean_training else surrogate.trainer.state()[0]
        self._train(surrogate, surrogate.clean, iteration, "clean", progress)
        yield
        if before is not None:
            surrogate.trainer.restore(before, {"places": surrogate.trainer.places})

    def follow(self, surrogate, iteration, names, protected, progress):
        photos = encode(surrogate.model, names, protected)
        self._train(surrogate, photos, iteration, "protected", progress)

    def _train(self, surrogate, photos, iteration, photo_set, progress) -> None:
        steps = self.training_steps
        done = (2 * iteration + (photo_set == "protected")) * steps

        def after(step: int, loss: Tensor) -> None:
            total = 2 * self.iterations * steps
            progress("surrogate training", done + step + 1, total, loss)

        surrogate.train(photos, steps, f"{iteration} train {photo_set}", photo_set, after)


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
    """Return the surrogate that `schedule` moves.

    `clean` and `class_images` are names and images (n, 3, h, w) in [0, 1]. A surrogate that stands
    still, or preserves no prior, needs no class images. `seed` draws the first weights of adapters.
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
    """Return the parameters that the schedule trains; a model that lacks its adapters gets them."""
    if schedule.adapters is None:
        return all_weights(model)
    return add_adapters(model, schedule.adapters, seed)
