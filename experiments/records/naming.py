"""The row that a record belongs to: digests of what decides its numbers, and words that name it."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_class

from experiments.store.artifacts import digest_of
from experiments.store.provenance import digest_of_file, digest_of_folder

# settings that say where photos lie and whose they are
PLACES = ("identities", "shard", "root", "name", "hint")


def decisive(node: Any) -> Any:
    """Return the part of a node of the configuration that decides numbers.

    A class is named without its import path. Options at the values that its class calls NEUTRAL
    are left out, and so is what its function `decisive` leaves out.
    """
    if isinstance(node, list | tuple):
        return [decisive(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    settings = {key: decisive(item) for key, item in node.items() if key != "_target_"}
    if "_target_" not in node:
        return settings
    kind = get_class(node["_target_"])
    neutral = getattr(kind, "NEUTRAL", {})
    settings = {k: v for k, v in settings.items() if k not in neutral or v != neutral[k]}
    if hasattr(kind, "decisive"):
        settings = kind.decisive(settings)
    return {"_target_": kind.__name__, **settings}


def attack_parts(config: Mapping) -> dict[str, Any]:
    """Return the settings of an attack that decide its result, but its budget and its models."""
    return without(decisive(config["attack"]), "eps", "others", "purifier")


def with_contents(settings: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """Return settings of an attack with the digests of files in place of their paths."""
    settings = dict(settings)
    if "root" in settings:
        from anticustom.attacks.controls import folder_of  # imports torch

        settings["root"] = digest_of_folder(folder_of(Path(settings["root"]), identity))
    loss = settings.get("loss", {})
    if loss.get("target"):
        settings["loss"] = {**loss, "target": digest_of_file(Path(loss["target"]))}
    return settings


def method_parts(config: Mapping) -> dict[str, Any]:
    """Return the settings of a method, with names in place of paths."""
    parts = attack_parts(config)
    if "root" in parts:
        parts["root"] = Path(parts["root"]).name
    if parts.get("loss", {}).get("target"):
        parts["loss"] = {**parts["loss"], "target": digest_of_file(Path(parts["loss"]["target"]))}
    others = config["attack"].get("others") or {}
    drawn = {name: drawing(model) for name, model in others.items()}
    return parts | ({"others": drawn} if drawn else {})


def setting_parts(config: Mapping) -> dict[str, Any]:
    """Return the settings of the adversary and the scorer that the names in a record leave open."""
    return {
        "customizer": without(decisive(config["customizer"]), "base_model"),
        "gallery": decisive(config["gallery"]),
        "class_images": {
            **decisive(config["class_images"]),
            "surrogate_model": drawing(config["surrogate_model"]),
            "base_model": drawing(config["customizer"]["base_model"]),
        },
        "countermeasure": without(decisive(config["countermeasure"]), "model"),
        "dataset": without(decisive(config["dataset"]), *PLACES),
        "metrics": decisive(config["metrics"]),
        "precision": config["precision"],
    }


def drawing(model: Mapping) -> dict[str, Any]:
    """Return how a model draws images of the class."""
    return without(model["gallery"], "images_per_prompt", "batch_size")


def row_of(config: Mapping, digests: Mapping, stages: Mapping) -> dict[str, str]:
    """Return the digests that make two records one row: `setting` and `method`.

    `digests` are those of a record's models and scorer, `stages` the versions of its stages.
    """
    weights = {key: digests.get(key) for key in ("base_model", "surrogate_model", "purifier")}
    setting = {
        **setting_parts(config),
        "weights": weights,
        "scorer": digests["scorer"],
        "stages": without(stages, "protect"),
    }
    method = {
        **method_parts(config),
        "weights": {key: value for key, value in digests.items() if key.startswith("attack.")},
        "stages": {"protect": stages["protect"]},
    }
    return {"setting": digest_of("setting", 1, setting), "method": digest_of("method", 1, method)}


def differences(parts: Mapping, usual: Mapping, settings: Mapping) -> str:
    """Return the settings in `parts` that differ from the `usual` ones, as words.

    `settings` are those of the configuration, with the neutral ones that `parts` leaves out.
    An object of another class is named by its class alone.
    """
    flat, flat_usual = dict(_flat(parts)), dict(_flat(usual))
    values = dict(_flat(settings)) | flat
    names = sorted(flat.keys() | flat_usual.keys())
    keys = [key for key in names if flat.get(key) != flat_usual.get(key)]
    objects = [key.removesuffix("_target_") for key in keys if key.endswith("._target_")]
    words = []
    for key in keys:
        owner = key.removesuffix("._target_")
        if owner != key or not any(key.startswith(prefix) for prefix in objects):
            words.append(f"{owner}={_short(values.get(key, 'none'))}")
    return ", ".join(words)


def _flat(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and (value or not key):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else name)
    else:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 8 and 8.0 are one setting
        yield key, json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    """Return a value's JSON without quotes, a digest by its first letters."""
    text = text.replace('"', "").replace(", ", ",")
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:8]
    return text if len(text) <= 48 else f"{text[:45].rstrip()}..."


def without(node: Mapping, *keys: str) -> dict:
    return {key: value for key, value in node.items() if key not in keys}
