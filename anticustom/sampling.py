"""Settings of the images that a model draws: galleries of victims, and images of the class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from anticustom.checks import check_count

# classes of diffusers whose steps can be spaced by Karras's sigmas
KARRAS_SAMPLERS = (
    "DPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
)
# classes of diffusers that add no noise of their own: an image depends on its first noise alone
SAMPLERS = ("DDIMScheduler", "PNDMScheduler", *KARRAS_SAMPLERS)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images that a victim draws: `images_per_prompt` of each prompt, `batch_size` at a time.

    `scheduler` is a class of diffusers and makes `steps` steps. The batch size decides no setting:
    it moves one pixel in 500 by one grey level.
    """

    prompts: Sequence[str]
    images_per_prompt: int
    batch_size: int
    steps: int
    guidance_scale: float
    scheduler: str
    karras_sigmas: bool

    @staticmethod
    def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that decide the images."""
        return {key: value for key, value in settings.items() if key != "batch_size"}

    def __post_init__(self):
        prompts = list(self.prompts)
        if isinstance(self.prompts, str) or not prompts or len(set(prompts)) < len(prompts):
            raise ValueError(
                f"gallery.prompts={self.prompts!r}: expected a list of different prompts"
            )
        for name in ("images_per_prompt", "batch_size"):
            check_count(f"gallery.{name}", getattr(self, name))
        check_sampler(
            "gallery", self.steps, self.guidance_scale, self.scheduler, self.karras_sigmas
        )


@dataclass(frozen=True, kw_only=True)
class ClassImages:
    """Images of the class for prior preservation, `batch_size` at a time.

    They are drawn as the galleries of their model are. Trainings follow the last bits of these
    images, so their batch size is part of their key.
    """

    count: int
    batch_size: int

    def __post_init__(self):
        for name in ("count", "batch_size"):
            check_count(f"class_images.{name}", getattr(self, name))


def check_sampler(
    key: str, steps: int, guidance_scale: float, scheduler: str, karras_sigmas: bool
) -> None:
    """Raise ValueError, which names `key`, for a sampler that cannot be used here."""
    check_count(f"{key}.steps", steps)
    is_number = isinstance(guidance_scale, Real) and not isinstance(guidance_scale, bool)
    if not is_number or not guidance_scale >= 0:
        raise ValueError(
            f"{key}.guidance_scale={guidance_scale!r}: expected a number of at least 0"
        )
    if scheduler not in SAMPLERS:
        raise ValueError(f"{key}.scheduler={scheduler!r}: expected one of {', '.join(SAMPLERS)}")
    if not isinstance(karras_sigmas, bool):
        raise ValueError(f"{key}.karras_sigmas={karras_sigmas!r}: expected true or false")
    if karras_sigmas and scheduler not in KARRAS_SAMPLERS:
        raise ValueError(
            f"{key}.karras_sigmas=true, which {scheduler} does not have: set it to false, or "
            f"{key}.scheduler to one of {', '.join(KARRAS_SAMPLERS)}"
        )
