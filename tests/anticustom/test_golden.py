"""The authors' recorded runs, replayed through the shipped attacks as their YAML describes them.

Only the random draws are injected. A folder of the same form with other settings and draws must
pass as well.
"""

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import Tensor

from anticustom import diffusion, model_files
from anticustom.attacks.inputs import AttackInputs, SurrogateInputs
from anticustom.draws import Draw
from anticustom.images import read_png, write_png
from anticustom.surrogates import start
from experiments.setup.composing import composed

LEVELS = 127.5  # grey levels per unit of the recordings' [-1, 1] scale


class Golden:
    """A folder of recordings: settings, model and images, and the configurations that they are
    recordings of.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = json.loads((folder / "settings.json").read_text())
        images = load_file(folder / "images.safetensors")
        self.clean, self.adversarial = (images[name] / 2 + 0.5 for name in ("clean", "adversarial"))

    def trace(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def model(self) -> diffusion.LatentDiffusion:
        return model_files.load(str(self.folder / "random_sd"))

    def attack(self, preset: str, *overrides: str):
        s = self.settings["surrogate_training"]
        pgd = self.settings["simac" if preset.startswith("simac") else "pgd"]
        training = "attack.surrogate_schedule.training"
        config = composed(
            f"attack={preset}",
            "attack.precision=float32",
            "attack.training_precision=float32",
            f"prompts.instance={self.settings['instance_prompt']}",
            f"prompts.class={self.settings['class_prompt']}",
            f"attack.eps={pgd['radius'] * LEVELS}",
            f"attack.step_size={pgd['step'] * LEVELS}",
            f"{training}.learning_rate={s['learning_rate']}",
            f"+{training}.betas={s['betas']}",
            f"+{training}.weight_decay={s['weight_decay']}",
            f"+{training}.epsilon={s['epsilon']}",
            f"{training}.prior_weight={s['prior_weight']}",
            *overrides,
        )
        return instantiate(config.attack, _convert_="object")

    def inputs(self, photos: Tensor, draws, progress=lambda *a: None) -> AttackInputs:
        return AttackInputs(
            identity="golden",
            names=names(photos),
            photos=photos,
            seed=0,
            clean_set=(names(self.clean), self.clean),
            surrogates=[SurrogateInputs(self.model(), draws, self.class_images)],
            progress=progress,
        )

    def class_images(self) -> tuple[tuple[str, ...], Tensor]:
        files = sorted((self.folder / "class_images").glob("*.png"))
        return tuple(f.name for f in files), torch.stack([read_png(f) for f in files])


def names(images: Tensor) -> tuple[str, ...]:
    return tuple(f"{k}.png" for k in range(len(images)))


class Replay:
    """Recorded draws in place of seeded ones: phases of perturbation by image, of training by
    instance and class.
    """

    def __init__(self):
        self.rows: dict[tuple[str, str], Draw] = {}

    def perturbation(self, phase: str, trace: dict[str, Tensor], prefix: str = "") -> None:
        timesteps = trace[prefix + "timesteps"]
        clean = trace.get("clean_posterior", trace[prefix + "posterior"])
        for image in range(timesteps.shape[1]):
            self.rows[phase, f"{image}.png"] = Draw(
                timesteps[:, image],
                trace[prefix + "noise"][:, image],
                trace[prefix + "posterior"][:, image],
                clean[:, image],
                trace.get("ancestral_noise", trace[prefix + "noise"])[:, image],
            )

    def training(self, phase: str, trace: dict[str, Tensor], prefix: str = "") -> None:
        used = ("timesteps", "noise", "posterior")
        fields = [trace[prefix + name] for name in (*used, "posterior", "noise")]
        for step in range(len(fields[0])):
            for row, role in enumerate(("instance", "class")):
                self.rows[f"{phase} {step}", role] = Draw(*(f[step, row : row + 1] for f in fields))

    def __call__(self, phase: str, name: str, count: int, allowed: Tensor) -> Draw:
        row = self.rows[phase, name.split()[0]]
        assert len(row.timesteps) == count
        return row


class Losses(list):
    def __call__(self, what: str, done: int, total: int, loss: Tensor | None = None) -> None:
        self.append(float(loss))


def assert_same_images(ours: Tensor, golden: Tensor) -> None:
    deviation = (2 * ours - 1 - golden).abs()
    print(
        f"largest deviation {deviation.max():.2e}, equal {(deviation <= 1e-6).float().mean():.5f}"
    )
    assert (deviation <= 1e-6).float().mean() >= 0.999


def assert_same_losses(ours: list[float] | Tensor, golden: Tensor, tolerance: float = 1e-4) -> None:
    deviation = (torch.as_tensor(ours, dtype=torch.float64) - golden).abs().max()
    print(f"largest deviation of the losses {deviation:.2e}")
    assert deviation <= tolerance


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden(shared / "golden")


def still(trace: dict[str, Tensor]) -> list[str]:
    """One phase of perturbation of a surrogate that does not train."""
    schedule = "attack.surrogate_schedule"
    return [
        f"attack.steps={len(trace['timesteps'])}",
        f"{schedule}.iterations=1",
        f"{schedule}.training_steps=0",
        "timestep_policy=uniform",
    ]


def test_golden_pgd_untargeted(golden):
    trace, draws, losses = golden.trace("pgd_untargeted"), Replay(), Losses()
    draws.perturbation("0 perturb", trace)
    attack = golden.attack("aspl_released", *still(trace))
    protected = attack(golden.inputs(golden.adversarial, draws, losses))
    assert_same_losses(losses, trace["loss"])
    assert_same_images(protected, trace["perturbed"])


def test_golden_pgd_targeted(golden, tmp_path):
    trace, draws, losses = golden.trace("pgd_targeted"), Replay(), Losses()
    draws.perturbation("0 perturb", trace)
    (target,) = load_file(golden.folder / "images.safetensors")["target"] / 2 + 0.5
    write_png(tmp_path / "target.png", target)
    attack = golden.attack(
        "t_aspl_released", *still(trace), f"loss.target={tmp_path / 'target.png'}"
    )
    protected = attack(golden.inputs(golden.adversarial, draws, losses))
    assert_same_losses(losses, trace["loss"])
    assert_same_images(protected, trace["perturbed"])


@pytest.mark.parametrize(
    ("file", "gradient"), [("simac_pgd_released", False), ("simac_pgd_paper", True)]
)
def test_golden_simac_pgd(golden, file, gradient):
    trace, draws, losses = golden.trace(file), Replay(), Losses()
    draws.perturbation("0 perturb", trace)
    attack = golden.attack("simac_released", *still(trace), f"loss.gradient={gradient}")
    inputs = golden.inputs(golden.adversarial, draws, losses)
    protected = attack(inputs)
    assert_same_losses(losses, trace["loss"])
    assert_same_images(protected, trace["perturbed"])
    with torch.no_grad():
        model = inputs.surrogates[0].model
        objective = attack.loss.bind(
            model,
            prompt=attack.instance_prompt,
            clean=lambda: model.posterior(golden.adversarial),
            start=lambda: golden.adversarial,
        )
        used = ("timesteps", "noise", "posterior", "clean_posterior", "noise")
        first = Draw(*(trace[name][0] for name in used))
        terms = objective(golden.adversarial, first)
    assert_same_losses(terms["feature"].mean(), trace["feature_loss"][0])


def test_golden_surrogate_training(golden):
    trace, draws = golden.trace("surrogate_training"), Replay()
    draws.training("train", trace)
    attack = golden.attack("aspl_released")
    inputs = golden.inputs(golden.adversarial, draws)
    surrogate = start(
        attack.surrogate_schedule,
        inputs.surrogates[0].model,
        draws,
        instance_prompt=attack.instance_prompt,
        class_prompt=attack.class_prompt,
        clean=inputs.clean_set,
        class_images=inputs.surrogates[0].class_images,
        seed=0,
    )
    losses = Losses()
    surrogate.train(surrogate.clean, len(trace["loss"]), "train", "clean", losses)
    assert_same_losses(losses, trace["loss"])
    weights = {
        f"{part}.{name}": value
        for part in ("unet", "text_encoder")
        for name, value in getattr(inputs.surrogates[0].model, part).named_parameters()
    }
    # a text encoder saved by another version of transformers may carry one more level in its names
    weights |= {name.replace(".text_model.", "."): value for name, value in weights.items()}
    recorded = [name for name in trace if name.startswith(("unet.", "text_encoder."))]
    assert len(recorded) == 5
    for name in recorded:
        assert (weights[name] - trace[name]).abs().max() <= 1e-5, name


def test_golden_aspl(golden):
    trace, draws, losses = golden.trace("aspl_2_iterations"), Replay(), Losses()
    s = golden.settings["aspl"]
    for i in range(s["iterations"]):
        draws.perturbation(f"{i} perturb", trace, f"iter{i}.pgd.")
        draws.training(f"{i} train clean", trace, f"iter{i}.train_clean.")
        draws.training(f"{i} train protected", trace, f"iter{i}.train_perturbed.")
    attack = golden.attack(
        "aspl_released",
        f"attack.steps={s['pgd_steps']}",
        f"attack.surrogate_schedule.iterations={s['iterations']}",
        f"attack.surrogate_schedule.training_steps={s['train_steps']}",
    )
    protected = attack(golden.inputs(golden.adversarial, draws, losses))
    assert_same_losses(losses, trace["loss"])
    assert_same_images(protected, trace["perturbed"])


class RecordedSearch:
    """The recorded rounds of the greedy search; notes what each round had to choose from."""

    def __init__(self, trace: dict[str, Tensor]):
        self.trace = trace
        rounds = trace["rounds_per_image"].tolist()
        self.first = [sum(rounds[:k]) for k in range(len(rounds))]
        self.remaining: dict[int, int] = {}

    def __call__(self, phase: str, name: str, count: int, allowed: Tensor) -> Draw:
        row = self.first[int(name.split(".")[0])] + int(phase.split()[1])
        self.remaining[row] = len(allowed)
        timesteps = self.trace["candidate_timesteps"][row]
        timesteps = torch.cat([timesteps, timesteps[:1]])
        noise, posterior = (self.trace[f][row, :, 0] for f in ("noise", "posterior"))
        return Draw(timesteps, noise, posterior, posterior, noise)


def test_golden_simac_timestep_selection(golden):
    trace, s = golden.trace("simac_timestep_selection"), golden.settings["simac"]
    attack = golden.attack(
        "simac_released",
        f"timestep_policy.candidates={s['candidates']}",
        f"timestep_policy.window={s['window']}",
        f"timestep_policy.margin={s['clamp']}",
        f"timestep_policy.keep={s['stop_at']}",
        f"timestep_policy.max_rounds={s['max_rounds']}",
    )
    draws, model, scores = RecordedSearch(trace), golden.model(), []
    images = golden.adversarial[: len(trace["rounds_per_image"])]
    kept = attack.timestep_policy.allowed(
        model,
        images,
        names(images),
        attack.instance_prompt,
        draws,
        eps=attack.eps,
        step_size=attack.step_size,
        progress=lambda what, done, total, loss: scores.append(float(loss)),
    )
    assert [t.tolist() for t in kept] == [
        trace[f"kept_image{k}"].tolist() for k in range(len(images))
    ]
    rounds = trace["rounds_per_image"].tolist()
    for number, score in enumerate(scores):
        rows = [
            first + number
            for first, count in zip(draws.first, rounds, strict=True)
            if number < count
        ]
        # the gradient by [0, 1] is twice the recorded one, by [-1, 1]
        assert score == pytest.approx(2 * trace["candidate_scores"][rows].mean().item(), rel=1e-4)
    remaining = [draws.remaining[row] for row in range(len(trace["remaining_before"]))]
    assert remaining == trace["remaining_before"].tolist()
