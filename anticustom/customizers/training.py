"""The training that all customizers share: fine-tuning on photos with prior preservation,
resumable.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draws
from anticustom.finetuning import FineTuning, Trainer, encode
from anticustom.progress import Checkpoint, Progress


@dataclass
class CustomizerInputs:
    """What a customizer is given: the model, which becomes the victim, and names and images of
    photos and class images (None for one without prior preservation).
    """

    model: LatentDiffusion
    photos: tuple[tuple[str, ...], Tensor]
    class_images: tuple[tuple[str, ...], Tensor] | None
    draws: Draws
    progress: Progress
    checkpoint: Checkpoint


def train(
    inputs: CustomizerInputs,
    parameters: Iterable[nn.Parameter],
    settings: FineTuning,
    steps: int,
    *,
    instance_prompt: str,
    class_prompt: str,
) -> list[float]:
    """Train `parameters` for `steps`, from the last checkpoint on if there is one; return the
    losses since then.

    Raises FloatingPointError when a loss is not finite.
    """
    model = inputs.model
    trainer = Trainer(
        model, parameters, settings, instance_prompt=instance_prompt, class_prompt=class_prompt
    )
    saved = inputs.checkpoint.load()
    first = 0
    if saved:
        trainer.restore(*saved)
        first = saved[1]["step"]

    def after(step: int, loss: Tensor) -> None:
        inputs.progress("customization", step + 1, steps, loss)
        if inputs.checkpoint.due():
            tensors, facts = trainer.state("cpu")
            inputs.checkpoint.save(tensors, facts | {"step": step + 1})

    losses = trainer.train(
        encode(model, *inputs.photos),
        encode(model, *inputs.class_images) if settings.preserves_prior else None,
        steps,
        inputs.draws,
        "customize",
        photo_set="photos",
        first_step=first,
        callback=after,
    )
    finite = losses.isfinite()
    if not finite.all():
        step = first + int((~finite).nonzero()[0])
        raise FloatingPointError(
            f"the loss is not finite at customization step {step}: try precision=float32, or a "
            "lower "
            f"customizer.training.learning_rate than {settings.learning_rate:g}"
        )
    return losses.tolist()
