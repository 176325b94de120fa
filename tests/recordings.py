"""Recordings of the authors' released code: a folder of settings, model, images, draws, results."""

import json
from pathlib import Path

import torch
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import Tensor

from anticustom import diffusion, model_files
from anticustom.attacks.inputs import AttackInputs, SurrogateInputs
from anticustom.draws import Draw, Draws
from anticustom.images import read_png
from experiments.setup.composing import composed

LEVELS = 127.5  # grey levels per unit of the recordings' [-1, 1] scale
Trace = dict[str, Tensor]


def names(images: Tensor) -> tuple[str, ...]:
    return tuple(f"{k}.png" for k in range(len(images)))


class Recordings:
    """A folder of recordings, and the configurations that were recorded."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = json.loads((folder / "settings.json").read_text())
        images = load_file(folder / "images.safetensors")
        self.clean, self.adversarial, self.target = (
            images[name] / 2 + 0.5 for name in ("clean", "adversarial", "target")
        )

    def trace(self, name: str) -> Trace:
        return load_file(self.folder / f"{name}.safetensors")

    def model(self) -> diffusion.LatentDiffusion:
        return model_files.load(str(self.folder / "random_sd"))

    def attack(self, preset: str, *overrides: str):
        """Return the attack of a preset with the recorded settings."""
        pgd = self.settings["simac" if preset.startswith("simac") else "pgd"]
        settings, key = self.settings["surrogate_training"], "attack.surrogate_schedule.training"
        config = composed(
            f"attack={preset}",
            "attack.precision=float32",
            "attack.training_precision=float32",
            f"prompts.instance={self.settings['instance_prompt']}",
            f"prompts.class={self.settings['class_prompt']}",
            f"attack.eps={pgd['radius'] * LEVELS}",
            f"attack.step_size={pgd['step'] * LEVELS}",
            *(f"{key}.{name}={settings[name]}" for name in ("learning_rate", "prior_weight")),
            *(f"+{key}.{name}={settings[name]}" for name in ("betas", "weight_decay", "epsilon")),
            *overrides,
        )
        return instantiate(config.attack, _convert_="object")

    def inputs(self, draws: Draws, progress=lambda *report: None) -> AttackInputs:
        return AttackInputs(
            identity="golden",
            names=names(self.adversarial),
            photos=self.adversarial,
            seed=0,
            clean_set=(names(self.clean), self.clean),
            surrogates=[SurrogateInputs(self.model(), draws, self.class_images)],
            progress=progress,
        )

    def class_images(self) -> tuple[tuple[str, ...], Tensor]:
        files = sorted((self.folder / "class_images").glob("*.png"))
        return tuple(f.name for f in files), torch.stack([read_png(f) for f in files])


class Replay:
    """Recorded draws in place of seeded ones: those of perturbations for each image, those of
    trainings for the instance and for the class.
    """

    def __init__(self):
        self.rows: dict[tuple[str, str], Draw] = {}

    def perturbation(self, phase: str, trace: Trace, prefix: str = "") -> None:
        """Add the draws that a trace has under a prefix, for each image one row a step."""
        timesteps, noise, posterior = fields(trace, prefix)
        clean = trace.get("clean_posterior", posterior)
        ancestral = trace.get("ancestral_noise", noise)
        for image in range(timesteps.shape[1]):
            parts = (timesteps, noise, posterior, clean, ancestral)
            self.rows[phase, f"{image}.png"] = Draw(*(part[:, image] for part in parts))

    def training(self, phase: str, trace: Trace, prefix: str = "") -> None:
        """Add the draws of a training, for each step one row of the instance and of the class."""
        timesteps, noise, posterior = fields(trace, prefix)
        parts = (timesteps, noise, posterior, posterior, noise)
        for step in range(len(timesteps)):
            for row, role in enumerate(("instance", "class")):
                draw = Draw(*(part[step, row : row + 1] for part in parts))
                self.rows[f"{phase} {step}", role] = draw

    def __call__(self, phase: str, name: str, count: int, allowed: Tensor) -> Draw:
        row = self.rows[phase, name.split()[0]]
        assert len(row.timesteps) == count
        return row


def fields(trace: Trace, prefix: str) -> list[Tensor]:
    return [trace[prefix + name] for name in ("timesteps", "noise", "posterior")]


class ReplayedSearch:
    """Recorded draws of the greedy search; notes how many timesteps each round had to choose
    from.
    """

    def __init__(self, trace: Trace):
        self.trace = trace
        self.rounds = trace["rounds_per_image"].tolist()
        self.first = [sum(self.rounds[:k]) for k in range(len(self.rounds))]
        self.remaining: dict[int, int] = {}

    def __call__(self, phase: str, name: str, count: int, allowed: Tensor) -> Draw:
        row = self.first[int(name.split(".")[0])] + int(phase.split()[1])
        self.remaining[row] = len(allowed)
        timesteps = self.trace["candidate_timesteps"][row]
        timesteps = torch.cat([timesteps, timesteps[:1]])
        noise, posterior = (self.trace[f][row, :, 0] for f in ("noise", "posterior"))
        return Draw(timesteps, noise, posterior, posterior, noise)
