from statistics import fmean

import pytest
import torch
from helpers import Reports, refused

from anticustom.diffusion import Posterior
from anticustom.draws import SeededDraws, draw_batches, joined
from anticustom.images import project, sign_step
from anticustom.losses import Denoising
from anticustom.progress import silent
from anticustom.timestep_policies import (
    AdaptiveGreedy,
    Interval,
    PosteriorGradients,
    Uniform,
    by_image,
    image_gradient_and_loss,
)

PROMPT = "a photo of sks person"
SHAPE = (3, 2, 2)
BUDGET = {"eps": 8, "step_size": 0.6375}
NAMES = ("a", "b", "c")


class StandIn:
    """A model whose loss has a gradient that grows with `size[t]` at timestep t."""

    def __init__(self, size: torch.Tensor):
        self.size = size
        self.timesteps = torch.arange(len(size))

    def text_embeddings(self, prompts):
        return torch.zeros(1, 1, 1)

    def posterior(self, images):
        return Posterior(images, 0 * images)

    def latents(self, posterior, normal):
        return posterior.mean

    def noisy(self, latents, noise, timesteps):
        return latents

    def predict(self, noisy, timesteps, embeddings):
        # for images in [0, 1]: (x + 1) * size, whose square has a gradient of 2 * (x + 1) * size^2
        return (noisy + 1) * self.size[timesteps].view(-1, 1, 1, 1)

    def target(self, latents, noise, timesteps):
        return torch.zeros_like(latents)


@pytest.fixture
def rugged():
    """Return random sizes of gradients."""
    return torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 0.1


def image(count=1):
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(0))


def kept(policy, model, images, names=NAMES, progress=silent):
    """Return the timesteps that a policy allows for images of a model or a stand-in."""
    draws = SeededDraws(0, "ann", getattr(model, "latent_shape", SHAPE))
    names = names[: len(images)]
    allowed = policy.allowed(model, images, names, PROMPT, draws, progress=progress, **BUDGET)
    return [timesteps.tolist() for timesteps in allowed]


def expected_survivors(size, name, candidates, window, margin, keep):
    """Return what the greedy search keeps for gradients of these sizes, and its rounds."""
    draws, total, rounds = SeededDraws(0, "ann", SHAPE), len(size), 0
    survivors = list(range(total))
    while len(survivors) > keep:
        draw = draws(f"search {rounds}", name, candidates + 1, torch.tensor(survivors))
        lowest = min(draw.timesteps[:candidates].tolist(), key=lambda t: size[t])
        centre = min(max(lowest, margin), total - margin)
        survivors = [t for t in survivors if not centre - window // 2 <= t < centre + window // 2]
        rounds += 1
    return survivors, rounds


@pytest.mark.parametrize(
    "settings",
    [
        {"candidates": 5, "window": 40, "margin": 20, "keep": 100},
        {"candidates": 3, "window": 60, "margin": 0, "keep": 250},
    ],
)
@pytest.mark.parametrize("shape", ["rising", "falling", "rugged"])
def test_the_greedy_search_keeps_the_timesteps_of_large_gradients(settings, shape):
    size = {
        "rising": torch.linspace(0.1, 1, 1000),
        "falling": torch.linspace(1, 0.1, 1000),
        "rugged": 0.5 + 0.4 * torch.sin(torch.arange(1000) / 37) + torch.arange(1000) / 1e5,
    }[shape]
    images, reports = image(3), Reports()
    before = images.clone()
    survivors = kept(AdaptiveGreedy(**settings), StandIn(size), images, progress=reports)
    wanted = [expected_survivors(size.tolist(), name, **settings) for name in NAMES]
    assert survivors == [timesteps for timesteps, _ in wanted]
    assert all(0 < len(timesteps) <= settings["keep"] for timesteps in survivors)
    assert len(reports) == max(rounds for _, rounds in wanted)
    _, done, total, _ = reports[-1]
    assert done == total
    assert torch.equal(images, before)
    middle = fmean(timestep for timesteps in survivors for timestep in timesteps)
    assert shape != "rising" or middle > 700
    assert shape != "falling" or middle < 300


def test_trial_steps_go_up_the_best_candidates_gradient_within_eps():
    seen, start = [], image()

    class Watched(StandIn):
        def posterior(self, images):
            seen.append(images.detach())
            return super().posterior(images)

    kept(AdaptiveGreedy(), Watched(torch.linspace(0.1, 1, 1000)), start)
    expected = start
    for moved in seen:  # once a round: its candidates and its step share a pass of the VAE
        torch.testing.assert_close(moved, expected)
        expected = project(sign_step(expected, torch.ones(()), 0.6375), start, 8)
    assert (expected - start).max() == pytest.approx(8 / 255)


def test_the_search_goes_on_with_less_at_once_where_memory_runs_out(rugged):
    class Small(StandIn):
        def posterior(self, images):
            return super().posterior(self.fitting(images, 2))

        def predict(self, noisy, timesteps, embeddings):
            return super().predict(self.fitting(noisy, 3), timesteps, embeddings)

        def fitting(self, rows, most):
            if len(rows) > most:
                raise torch.OutOfMemoryError
            return rows

    small, large = (kept(AdaptiveGreedy(), kind(rugged), image(3)) for kind in (Small, StandIn))
    assert small == large


def test_the_search_on_images_together_is_that_on_each_alone(model, pictures):
    policy, images = AdaptiveGreedy(keep=850), pictures(2, 0)
    together = kept(policy, model, images)
    alone = [kept(policy, model, images[k : k + 1], NAMES[k : k + 1])[0] for k in range(2)]
    assert alone == together
    assert all(len(timesteps) <= 850 for timesteps in together)
    assert together[0] != together[1]
    assert all(not p.requires_grad and p.grad is None for p in model.unet.parameters())


def test_a_search_that_does_not_end_is_refused():
    with pytest.raises(ValueError, match=r"max_rounds=22: rounds of window=40 leave"):
        AdaptiveGreedy(max_rounds=22)
    with pytest.raises(ValueError, match=r"keep=100.*max_rounds=23.*raise"):
        kept(AdaptiveGreedy(max_rounds=23), StandIn(torch.ones(1000)), image())


@pytest.mark.parametrize(
    ("policy", "timesteps"),
    [
        (Uniform(), range(1000)),
        (Interval(low=10, high=20), range(10, 21)),
        (Interval(low=999, high=999), [999]),
    ],
)
def test_uniform_and_interval(model, pictures, policy, timesteps):
    assert kept(policy, model, pictures(2, 0)) == [list(timesteps)] * 2


@pytest.mark.parametrize(("low", "high"), [(3, 2), (0, 1000), (-1, 2), (0.5, 2)])
def test_bad_intervals_are_refused(low, high):
    with refused(r"^timestep_policy.*expected"):
        Interval(low=low, high=high)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("candidates", 0),
        ("candidates", 2.5),
        ("window", 0),
        ("window", 41),
        ("keep", 0),
        ("keep", 39),
        ("max_rounds", 0),
        ("margin", 501),
    ],
)
def test_bad_searches_are_refused(key, value):
    with refused(r"^timestep_policy.*expected"):
        AdaptiveGreedy(**{key: value})


def test_an_images_gradient_is_that_of_its_own_loss(model, pictures):
    images, scale = pictures(2, 0), torch.tensor([1.0, 3.0])

    def objective(images, draw):
        means = images.flatten(1).mean(1)
        return {"one": scale * means, "two": means}

    gradient, loss = image_gradient_and_loss(objective, images, None)
    assert not images.requires_grad
    assert not loss.requires_grad
    torch.testing.assert_close(loss, (scale + 1) * images.flatten(1).mean(1))
    pixels = images[0].numel()
    torch.testing.assert_close(gradient.flatten(1).sum(1), scale + 1)
    assert gradient[0].unique().item() == pytest.approx(2 / pixels)


def test_a_search_by_latents_leaves_the_vae_out_of_the_scores(rugged):
    """With a VAE that is the identity, both gradients are the same."""
    by_image, by_latents = (
        kept(AdaptiveGreedy(gradient=by), StandIn(rugged), image(3)) for by in ("image", "latents")
    )
    assert by_image == by_latents


def test_one_pass_through_the_vae_gives_the_gradients_of_all_draws(exact_model, draws, pictures):
    model, images = exact_model, pictures(2, 0).double()
    objective = Denoising().bind(model, prompt=PROMPT)
    rows = draw_batches(draws, "x", ("a", "b"), 3, [model.timesteps] * 2)
    leaf = images.clone().requires_grad_()
    posterior = model.posterior(leaf)
    together = PosteriorGradients(objective).by_posterior(posterior, joined(rows))
    assert together.mean.shape == together.std.shape == (6, *model.latent_shape)
    for k, draw in enumerate(rows):
        gradient = by_image(leaf, posterior, together[2 * k : 2 * k + 2])
        alone, _ = image_gradient_and_loss(objective, images, draw)
        error = torch.linalg.vector_norm(gradient - alone)
        assert error < 1e-9 * torch.linalg.vector_norm(alone)


@pytest.mark.parametrize("by", ["image", "latents"])
def test_the_search_scores_with_the_denoising_loss(model, draws, pictures, by):
    """Its first report is the mean over the candidates of the summed absolute gradients."""
    images, reports = pictures(1, 0), Reports()
    kept(AdaptiveGreedy(keep=999, gradient=by), model, images, progress=reports)
    candidates = draws("search 0", "a", 6, model.timesteps)[:5]
    objective = Denoising().bind(model, prompt=PROMPT)
    if by == "image":
        gradient, _ = image_gradient_and_loss(objective, images.expand(5, -1, -1, -1), candidates)
    else:
        posterior = model.posterior(images)
        gradient = PosteriorGradients(objective).by_posterior(posterior, candidates).mean
    score = gradient.abs().sum((1, 2, 3)).mean().item()
    assert reports[0][-1] == pytest.approx(score, rel=1e-4)
