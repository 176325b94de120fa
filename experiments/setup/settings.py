"""Checks of a configuration before anything is built from it."""

import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, get_args

from anticustom.customizers.rare_word import rare_word
from anticustom.diffusion import Precision
from anticustom.sampling import check_sampler
from experiments.setup.building import Refused, build

# the stages of the command line, each with the artifacts that it makes
PARTS = {
    "protect": ("protect",),
    "customize": ("class_images", "countermeasure", "customize", "gallery"),
    "eval": ("eval",),
}
PRECISIONS = get_args(Precision)
SAMPLER = ("steps", "guidance_scale", "scheduler", "karras_sigmas")


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise Refused for a setting of the pipeline that no run can have.

    `config` is resolved. Attacks, customizers, data sets and metrics check their settings
    themselves.
    """
    for key in ("stages", "force"):
        stages = config[key]
        is_list = isinstance(stages, list) and set(stages) <= set(PARTS)
        if not is_list or not (stages or key == "force"):
            raise Refused(f"{key}={stages}: expected a list of {', '.join(PARTS)}")
    precisions = {
        "precision": config["precision"],
        "attack.precision": config["attack"].get("precision"),
        "attack.training_precision": config["attack"].get("training_precision"),
        "customizer.precision": config["customizer"]["precision"],
    }
    for key, precision in precisions.items():
        is_left_out = precision is None and key.startswith("attack.")
        if precision not in PRECISIONS and not is_left_out:
            expected = [*(["auto"] if key == "precision" else []), *PRECISIONS]
            raise Refused(f"{key}={precision!r}: expected one of {', '.join(expected)}")
    _check_number("seed", config["seed"], int, 0)
    _check_number("clean_photos", config["clean_photos"], int, 0)
    _check_number("checkpoint_minutes", config["checkpoint_minutes"], Real, 0)
    models = {
        "surrogate_model": config["surrogate_model"],
        "customizer.base_model": config["customizer"]["base_model"],
    }
    for key, model in models.items():
        sampler = {name: model["gallery"][name] for name in SAMPLER}
        check_sampler(f"{key}.gallery", **sampler)
    build(config["class_images"])
    prompts = build(config["gallery"]).prompts
    _check_names_the_person(prompts, config["customizer"])


def shard_of(names: Sequence[str], shard: str | None) -> list[str]:
    """Return the names of a shard "k/n", every n-th from the k-th, or all names for None.

    Shards count from 0. Raises Refused for a shard of another form.
    """
    if shard is None:
        return list(names)
    match = re.fullmatch(r"(\d+)/(\d+)", str(shard))
    if not match or not int(match[1]) < int(match[2]):
        raise Refused(f"dataset.shard={shard!r}: expected k/n with 0 <= k < n, for example 0/8")
    return list(names)[int(match[1]) :: int(match[2])]


def _check_names_the_person(prompts: Sequence[str], customizer: Mapping[str, Any]) -> None:
    """Raise Refused for a prompt of the gallery without the word that the customizer teaches."""
    try:
        word = rare_word(customizer["instance_prompt"], customizer["class_prompt"])
    except ValueError:  # no single word: customizers that need one refuse the prompt themselves
        return
    if lacking := [prompt for prompt in prompts if word not in re.findall(r"[^\s,.]+", prompt)]:
        raise Refused(
            f"gallery.prompts: {lacking[0]!r} lacks {word!r}, the word for the person in "
            f"customizer.instance_prompt={customizer['instance_prompt']!r}: change prompts.gallery "
            "too (adversary=other_term has both)"
        )


def _check_number(key: str, value: object, kind: type, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not value >= least:
        noun = "an integer" if kind is int else "a number"
        raise Refused(f"{key}={value!r}: expected {noun} of at least {least}")
