"""Which settings of an attack or a customizer decide its result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.store.provenance import digest_of_file, digest_of_folder

# options that came after the first records, with the value at which they change nothing
LEFT_ALONE = {
    "adapters": None,
    "bfloat16_target": False,
    "draws_per_step": 1,
    "gradient": "image",
    "initialization": "kaiming_uniform",
    "keep_clean_training": False,
    "optimizer_states": "32bit",
    "shared_class_images": False,
    "transform_samples": 1,
    "transforms": [],
}


# options that are in use only beside others
BESIDE_OTHERS = ("training_precision", "transform_samples", "combination", "purifier")


def is_option(key: str) -> bool:
    """Whether a setting, named with its place, says nothing where it is not in use."""
    return key.rpartition(".")[2] in (*LEFT_ALONE, *BESIDE_OTHERS)


def in_use(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings but those that change nothing where they are left alone, so that an
    option that came later does not tell a method apart from its former self.

    The other models of an attack are not among them: their weights are.
    """
    unused = {"others", "purifier"}
    unused |= {key for key, value in LEFT_ALONE.items() if settings.get(key) == value}
    if settings.get("training_precision") == settings.get("precision"):
        unused.add("training_precision")
    unused |= set() if settings.get("transforms") else {"transform_samples"}
    unused |= set() if settings.get("others") else {"combination"}
    return {
        key: in_use(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key not in unused
    }


def effective(settings: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """Return the settings that decide the result of an identity: of files the contents, not where
    they lie.
    """
    deciding = in_use(settings)
    if "root" in deciding:
        # with it comes torch: two seconds that tables can do without
        from anticustom.attacks.controls import folder_of

        deciding["root"] = digest_of_folder(folder_of(Path(deciding["root"]), identity))
    loss = deciding.get("loss", {})
    if loss.get("target"):
        deciding["loss"] = {**loss, "target": digest_of_file(Path(loss["target"]))}
    return deciding
