"""Print how much memory attacks and customizers take of a GPU, with each `memory=` setting.

`python -m experiments.benchmarks.memory_table` counts for Stable Diffusion 2.1 in mixed precision,
from shapes alone: no weights are loaded, and no GPU is needed. Arguments are overrides
of the configuration.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tabulate import tabulate

from anticustom import model_files
from experiments.benchmarks.random_models import random_model
from experiments.setup.composing import composed
from experiments.setup.memory import GIB, NAMES, stage_bytes
from experiments.setup.memory_counting import counting
from experiments.terminal import quiet_libraries

ATTACKS = ("simac", "aspl", "fsmg", "advdm", "simac_released")
CUSTOMIZERS = ("dreambooth", "lora", "custom_diffusion", "textual_inversion")


def table(overrides: Sequence[str], folder: Path) -> list[list[str]]:
    """Return a row for each attack and customizer: its name, and GiB with each setting."""
    rows = []
    for group, names in (("attack", ATTACKS), ("customizer", CUSTOMIZERS)):
        stage = "protect" if group == "attack" else "customize"
        for name in names:
            sizes = []
            for setting in NAMES:
                config = composed(*overrides, f"{group}={name}", f"memory={setting}")
                folders = {"surrogate_model": folder, "customizer.base_model": folder}
                sizes.append(f"{stage_bytes(stage, config, folders) / GIB:.1f}")
            rows.append([f"{group}={name}", *sizes])
    return rows


def write_shapes(name: str, folder: Path) -> None:
    """Write the configurations of a random model of that name as a diffusers folder without
    weights.
    """
    with counting():
        model = random_model(name, "cpu", "float32")
    for part in ("unet", "vae", "scheduler"):
        getattr(model, part).save_config(folder / part)
    model.text_encoder.config.save_pretrained(folder / "text_encoder")
    model.tokenizer.save_pretrained(folder / "tokenizer")


def main(arguments: Sequence[str] | None = None) -> None:
    quiet_libraries()
    given = sys.argv[1:] if arguments is None else arguments
    overrides = ["surrogate_model=sd21", "precision=mixed", *given]
    with TemporaryDirectory() as temporary:
        model = composed(*overrides).surrogate_model
        folder = model_files.local_folder(model.path)
        if folder is None:
            folder = Path(temporary)
            write_shapes(model.name, folder)
        print(tabulate(table(overrides, folder), ["GiB", *NAMES], "github", disable_numparse=True))


if __name__ == "__main__":
    main()
