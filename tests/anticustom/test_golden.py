"""The authors' recorded runs, replayed through the shipped attacks as their YAML describes them.

Only the random draws are injected. A folder of the same form with other settings and draws must
pass as well.
"""

import pytest
import torch
from helpers import Reports
from recordings import Recordings, Replay, ReplayedSearch, Trace, names
from torch import Tensor

from anticustom.draws import Draw
from anticustom.images import write_png
from anticustom.surrogates import start

SCHEDULE = "attack.surrogate_schedule"


@pytest.fixture(scope="module")
def golden(shared) -> Recordings:
    return Recordings(shared / "golden")


def assert_same_images(ours: Tensor, golden: Tensor) -> None:
    deviation = (2 * ours - 1 - golden).abs()
    equal = (deviation <= 1e-6).float().mean()
    print(f"largest deviation {deviation.max():.2e}, equal {equal:.5f}")
    assert equal >= 0.999


def assert_same_losses(ours: Reports | Tensor, golden: Tensor) -> None:
    if isinstance(ours, Reports):
        ours = torch.tensor([loss for *_, loss in ours], dtype=torch.float64)
    deviation = (ours.double() - golden).abs().max()
    print(f"largest deviation of the losses {deviation:.2e}")
    assert deviation <= 1e-4


def still(trace: Trace) -> list[str]:
    """One phase of perturbation against a surrogate that does not train."""
    steps = f"attack.steps={len(trace['timesteps'])}"
    return [steps, f"{SCHEDULE}.iterations=1", f"{SCHEDULE}.training_steps=0"]


@pytest.mark.parametrize(
    ("file", "preset", "words"),
    [
        ("pgd_untargeted", "aspl_released", []),
        ("pgd_targeted", "t_aspl_released", ["loss.target={target}"]),
        ("simac_pgd_released", "simac_released", ["loss.gradient=false"]),
        ("simac_pgd_paper", "simac_released", ["loss.gradient=true"]),
    ],
)
def test_golden_pgd(golden, tmp_path, file, preset, words):
    trace, draws, losses = golden.trace(file), Replay(), Reports()
    draws.perturbation("0 perturb", trace)
    target = tmp_path / "target.png"
    write_png(target, golden.target[0])
    words = [word.format(target=target) for word in words]
    attack = golden.attack(preset, *still(trace), "timestep_policy=uniform", *words)
    inputs = golden.inputs(draws, losses)
    protected = attack(inputs)
    assert_same_losses(losses, trace["loss"])
    assert_same_images(protected, trace["perturbed"])
    if preset != "simac_released":
        return
    model = inputs.surrogates[0].model
    used = ("timesteps", "noise", "posterior", "clean_posterior", "noise")
    with torch.no_grad():
        objective = attack.loss.bind(
            model,
            prompt=attack.instance_prompt,
            clean=lambda: model.posterior(golden.adversarial),
            start=lambda: golden.adversarial,
        )
        terms = objective(golden.adversarial, Draw(*(trace[name][0] for name in used)))
    assert_same_losses(terms["feature"].mean(), trace["feature_loss"][0])


def test_golden_surrogate_training(golden):
    trace, draws, losses = golden.trace("surrogate_training"), Replay(), []
    draws.training("train", trace)
    attack, inputs = golden.attack("aspl_released"), golden.inputs(draws)
    model = inputs.surrogates[0].model
    surrogate = start(
        attack.surrogate_schedule,
        model,
        draws,
        instance_prompt=attack.instance_prompt,
        class_prompt=attack.class_prompt,
        clean=inputs.clean_set,
        class_images=golden.class_images(),
        seed=0,
    )
    steps, photos = len(trace["loss"]), surrogate.clean
    surrogate.train(photos, steps, "train", "clean", lambda step, loss: losses.append(loss))
    assert_same_losses(torch.stack(losses), trace["loss"])
    weights = {
        f"{part}.{name}": value
        for part in ("unet", "text_encoder")
        for name, value in getattr(model, part).named_parameters()
    }
    # a text encoder saved by another version of transformers may carry one more level in its names
    weights |= {name.replace(".text_model.", "."): value for name, value in weights.items()}
    recorded = [name for name in trace if name.startswith(("unet.", "text_encoder."))]
    assert len(recorded) == 5
    for name in recorded:
        assert (weights[name] - trace[name]).abs().max() <= 1e-5, name


def test_golden_aspl(golden):
    trace, draws, losses = golden.trace("aspl_2_iterations"), Replay(), Reports()
    settings = golden.settings["aspl"]
    for i in range(settings["iterations"]):
        draws.perturbation(f"{i} perturb", trace, f"iter{i}.pgd.")
        draws.training(f"{i} train clean", trace, f"iter{i}.train_clean.")
        draws.training(f"{i} train protected", trace, f"iter{i}.train_perturbed.")
    attack = golden.attack(
        "aspl_released",
        f"attack.steps={settings['pgd_steps']}",
        f"{SCHEDULE}.iterations={settings['iterations']}",
        f"{SCHEDULE}.training_steps={settings['train_steps']}",
    )
    protected = attack(golden.inputs(draws, losses))
    assert_same_losses(losses, trace["loss"])
    assert_same_images(protected, trace["perturbed"])


def test_golden_simac_timestep_selection(golden):
    trace, settings = golden.trace("simac_timestep_selection"), golden.settings["simac"]
    recorded = {"margin": "clamp", "keep": "stop_at"}  # names in the recorded settings
    policy = ("candidates", "window", "margin", "keep", "max_rounds")
    words = [f"timestep_policy.{name}={settings[recorded.get(name, name)]}" for name in policy]
    attack, draws, reports = (
        golden.attack("simac_released", *words),
        ReplayedSearch(trace),
        Reports(),
    )
    images = golden.adversarial[: len(draws.rounds)]
    kept = attack.timestep_policy.allowed(
        golden.model(),
        images,
        names(images),
        attack.instance_prompt,
        draws,
        eps=attack.eps,
        step_size=attack.step_size,
        progress=reports,
    )
    assert len(kept) == len(images)
    for k, timesteps in enumerate(kept):
        assert timesteps.tolist() == trace[f"kept_image{k}"].tolist()
    for number, (*_, score) in enumerate(reports):
        started = zip(draws.first, draws.rounds, strict=True)
        rows = [first + number for first, count in started if number < count]
        # the gradient by [0, 1] is twice the recorded one, by [-1, 1]
        assert score == pytest.approx(2 * trace["candidate_scores"][rows].mean().item(), rel=1e-4)
    remaining = [draws.remaining[row] for row in range(len(trace["remaining_before"]))]
    assert remaining == trace["remaining_before"].tolist()
