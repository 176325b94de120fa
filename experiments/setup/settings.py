"""What a configuration must satisfy before anything is built from it."""

import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from anticustom.customizers.rare_word import rare_word

# the stages of the command line, each with the artifacts that it makes
PARTS = {
    "protect": ("protect",),
    "customize": ("class_images", "countermeasure", "customize", "gallery"),
    "eval": ("eval",),
}
PRECISIONS = ("float32", "mixed", "bfloat16")
# classes of diffusers whose steps can be spaced by Karras's sigmas
KARRAS_SAMPLERS = (
    "DPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
)
# classes of diffusers that add no noise of their own, so that an image depends on its first noise
SAMPLERS = (
    "DDIMScheduler",
    "PNDMScheduler",
    *KARRAS_SAMPLERS,
)
COUNTS = ("images_per_prompt", "batch_size", "steps")


class Refused(ValueError):
    """A configuration that cannot be run; found before any work starts."""


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise Refused for a setting of the pipeline's own that no run can have.

    `config` is resolved; attacks, customizers, data sets and metrics check theirs themselves.
    """
    for key in ("stages", "force"):
        asked = config[key]
        if not isinstance(asked, list) or set(asked) - set(PARTS) or not (asked or key == "force"):
            raise Refused(f"{key}={asked}: expected a list of {', '.join(PARTS)}")
    own = {f"{key}.precision": config[key].get("precision") for key in ("attack", "customizer")}
    own["attack.training_precision"] = config["attack"].get("training_precision")
    for key, precision in {"precision": config["precision"], **own}.items():
        if precision is not None and precision not in PRECISIONS:
            expected = f"{'auto, ' * (key == 'precision')}{', '.join(PRECISIONS)}"
            raise Refused(f"{key}={precision!r}: expected one of {expected}")
    _check_number("seed", config["seed"], int, 0)
    _check_number("clean_photos", config["clean_photos"], int, 0)
    _check_number("checkpoint_minutes", config["checkpoint_minutes"], Real, 0)
    _check_number("class_images.count", config["class_images"]["count"], int, 1)
    samplings = {
        "gallery": config["gallery"],
        "surrogate_model.gallery": config["surrogate_model"]["gallery"],
        "customizer.base_model.gallery": config["customizer"]["base_model"]["gallery"],
    }
    for key, sampling in samplings.items():
        _check_sampling(key, sampling)
    prompts = config["gallery"]["prompts"]
    if not isinstance(prompts, list) or not prompts or len(set(prompts)) < len(prompts):
        raise Refused(f"gallery.prompts={prompts!r}: expected a list of different prompts")
    _check_names_the_person(prompts, config["customizer"])


def shard_of(names: Sequence[str], shard: str | None) -> list[str]:
    """Return the names that belong to a shard "k/n": every n-th from the k-th, counted from 0; all
    without one. Raises Refused for anything else.
    """
    if shard is None:
        return list(names)
    match = re.fullmatch(r"(\d+)/(\d+)", str(shard))
    if not match or not int(match[1]) < int(match[2]):
        raise Refused(f"dataset.shard={shard!r}: expected k/n with 0 <= k < n, for example 0/8")
    return list(names)[int(match[1]) :: int(match[2])]


def _check_sampling(key: str, sampling: Mapping[str, Any]) -> None:
    for name in COUNTS:
        _check_number(f"{key}.{name}", sampling[name], int, 1)
    _check_number(f"{key}.guidance_scale", sampling["guidance_scale"], Real, 0)
    scheduler = sampling["scheduler"]
    if scheduler not in SAMPLERS:
        raise Refused(f"{key}.scheduler={scheduler!r}: expected one of {', '.join(SAMPLERS)}")
    karras = sampling["karras_sigmas"]
    if not isinstance(karras, bool):
        raise Refused(f"{key}.karras_sigmas={karras!r}: expected true or false")
    if karras and scheduler not in KARRAS_SAMPLERS:
        raise Refused(
            f"{key}.karras_sigmas=true, which {scheduler} does not have: set it to false, or "
            f"{key}.scheduler to one of {', '.join(KARRAS_SAMPLERS)}"
        )


def _check_names_the_person(prompts: Sequence[str], customizer: Mapping[str, Any]) -> None:
    """Raise Refused for a gallery that asks for somebody else than the customizer teaches."""
    try:
        word = rare_word(customizer["instance_prompt"], customizer["class_prompt"])
    except ValueError:  # no single word, which customizers that need one refuse themselves
        return
    if other := [prompt for prompt in prompts if word not in re.findall(r"[^\s,.]+", prompt)]:
        raise Refused(
            f"gallery.prompts: {other[0]!r} lacks {word!r}, the word for the person in "
            f"customizer.instance_prompt={customizer['instance_prompt']!r}: change prompts.gallery "
            "too (adversary=other_term has both)"
        )


def _check_number(key: str, value: object, kind: type, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not value >= least:
        noun = "an integer" if kind is int else "a number"
        raise Refused(f"{key}={value!r}: expected {noun} of at least {least}")
