import pytest
import torch

from anticustom.diffusion import Posterior
from anticustom.draws import SeededDraws, draw_batches, joined
from anticustom.images import project, sign_step
from anticustom.losses import Denoising
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


def unwatched(*report):
    pass


class StandIn:
    """A model whose loss gradient at timestep t has the size `size[t]`, whatever the image."""

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


def kept(policy, model, images, names=NAMES, draws=None, progress=unwatched):
    draws = draws or SeededDraws(0, "ann", SHAPE)
    names = names[: len(images)]
    return policy.allowed(model, images, names, PROMPT, draws, progress=progress, **BUDGET)


def expected_survivors(size, name, candidates, window, margin, keep):
    """The greedy search in plain Python, for gradients of the given sizes."""
    total = len(size)
    survivors, rounds = list(range(total)), 0
    while len(survivors) > keep:
        draw = SeededDraws(0, "ann", SHAPE)(
            f"search {rounds}", name, candidates + 1, torch.tensor(survivors)
        )
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
    images = torch.rand((3, *SHAPE), generator=torch.Generator().manual_seed(0))
    before, reports = images.clone(), []
    policy = AdaptiveGreedy(**settings)
    survivors = kept(
        policy, StandIn(size), images, progress=lambda *report: reports.append(report[:3])
    )
    wanted = [expected_survivors(size.tolist(), name, **settings) for name in NAMES]
    assert [one.tolist() for one in survivors] == [timesteps for timesteps, _ in wanted]
    assert all(0 < len(one) <= settings["keep"] for one in survivors)
    assert len(reports) == max(rounds for _, rounds in wanted)
    assert reports[-1][1] == reports[-1][2]
    assert torch.equal(images, before)
    if shape != "rugged":
        middle = torch.cat(survivors).float().mean()
        assert (middle > 700) if shape == "rising" else (middle < 300)


def test_trial_steps_go_up_the_best_candidates_gradient_within_eps():
    size = torch.linspace(0.1, 1, 1000)
    seen = []

    class Watched(StandIn):
        def posterior(self, images):
            seen.append(images.detach())
            return super().posterior(images)

    image = torch.rand((1, *SHAPE), generator=torch.Generator().manual_seed(0))
    kept(AdaptiveGreedy(), Watched(size), image)
    expected = image
    for moved in seen:  # once a round: its candidates and its step share a pass of the VAE
        torch.testing.assert_close(moved, expected)
        expected = project(sign_step(expected, torch.ones(()), 0.6375), image, 8)
    assert (expected - image).max() == pytest.approx(8 / 255)


def test_the_search_goes_on_with_less_at_once_where_memory_runs_out(pictures):
    size = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 0.1

    class Small(StandIn):
        def posterior(self, images):
            return super().posterior(self.fitting(images, 2))

        def predict(self, noisy, timesteps, embeddings):
            return super().predict(self.fitting(noisy, 3), timesteps, embeddings)

        def fitting(self, rows, most):
            if len(rows) > most:
                raise torch.OutOfMemoryError
            return rows

    images = pictures(3, 0)[..., :2, :2]
    small, large = (kept(AdaptiveGreedy(), kind(size), images) for kind in (Small, StandIn))
    assert all(torch.equal(a, b) for a, b in zip(small, large, strict=True))


def test_the_search_on_images_together_is_that_on_each_alone(model, pictures):
    policy = AdaptiveGreedy(keep=850)
    images = pictures(2, 0)
    draws = SeededDraws(0, "ann", model.latent_shape)
    together = kept(policy, model, images, draws=draws)
    for k in range(2):
        alone = kept(policy, model, images[k : k + 1], NAMES[k : k + 1], draws)
        assert alone[0].tolist() == together[k].tolist()
        assert len(alone[0]) <= 850
    assert together[0].tolist() != together[1].tolist()
    assert all(not p.requires_grad and p.grad is None for p in model.unet.parameters())


def test_a_search_that_does_not_end_is_refused():
    with pytest.raises(ValueError, match=r"max_rounds=22: rounds of window=40 leave"):
        AdaptiveGreedy(max_rounds=22)
    with pytest.raises(ValueError, match=r"keep=100.*max_rounds=23.*raise"):
        kept(AdaptiveGreedy(max_rounds=23), StandIn(torch.ones(1000)), torch.rand(1, *SHAPE))


def test_uniform_and_interval(model, pictures):
    images = pictures(2, 0)
    assert [len(one) for one in kept(Uniform(), model, images)] == [1000, 1000]
    inside = kept(Interval(low=10, high=20), model, images)
    assert [one.tolist() for one in inside] == [list(range(10, 21))] * 2
    assert kept(Interval(low=999, high=999), model, images)[0].tolist() == [999]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Interval(low=3, high=2),
        lambda: Interval(low=0, high=1000),
        lambda: AdaptiveGreedy(window=41),
        lambda: Interval(low=-1, high=2),
        lambda: AdaptiveGreedy(candidates=0),
        lambda: AdaptiveGreedy(window=0),
        lambda: AdaptiveGreedy(keep=0),
        lambda: AdaptiveGreedy(max_rounds=0),
        lambda: AdaptiveGreedy(candidates=2.5),
        lambda: AdaptiveGreedy(window=40, keep=39),
        lambda: AdaptiveGreedy(margin=501),
        lambda: Interval(low=0.5, high=2),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(ValueError, match=r"^timestep_policy.*expected") as error:
        make()
    assert "\n" not in str(error.value)


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


def test_a_search_by_latents_leaves_the_vae_out_of_the_scores(pictures):
    """With a VAE that is the identity, both gradients are the same."""
    size = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 0.1
    images = pictures(3, 0)[..., :2, :2]
    by_image = kept(AdaptiveGreedy(), StandIn(size), images)
    by_latents = kept(AdaptiveGreedy(gradient="latents"), StandIn(size), images)
    assert all(torch.equal(a, b) for a, b in zip(by_image, by_latents, strict=True))


def test_one_pass_through_the_vae_gives_the_gradients_of_all_draws(exact_model, pictures):
    model, images = exact_model, pictures(2, 0).double()
    objective = Denoising().bind(model, prompt=PROMPT)
    draws = SeededDraws(0, "ann", model.latent_shape)
    rows = draw_batches(draws, "x", ("a", "b"), 3, [model.timesteps] * 2)
    leaf = images.clone().requires_grad_()
    posterior = model.posterior(leaf)
    together = PosteriorGradients(objective).by_posterior(posterior, joined(rows))
    assert together.mean.shape == together.std.shape == (6, *model.latent_shape)
    for k, draw in enumerate(rows):
        found = by_image(leaf, posterior, together[2 * k : 2 * k + 2])
        alone, _ = image_gradient_and_loss(objective, images, draw)
        error = torch.linalg.vector_norm(found - alone)
        assert error < 1e-9 * torch.linalg.vector_norm(alone)


@pytest.mark.parametrize("by", ["image", "latents"])
def test_the_search_scores_with_the_denoising_loss(model, pictures, by):
    """Its first report is the mean over the candidates of the summed absolute gradients."""
    reports = []
    images = pictures(1, 0)
    draws = SeededDraws(0, "ann", model.latent_shape)
    kept(
        AdaptiveGreedy(keep=999, gradient=by),
        model,
        images,
        draws=draws,
        progress=lambda *report: reports.append(report[3]),
    )
    candidates = draws("search 0", "a", 6, model.timesteps)[:5]
    objective = Denoising().bind(model, prompt=PROMPT)
    if by == "image":
        gradient, _ = image_gradient_and_loss(objective, images.expand(5, -1, -1, -1), candidates)
    else:
        posterior = model.posterior(images)
        gradient = PosteriorGradients(objective).by_posterior(posterior, candidates).mean
    assert reports[0].item() == pytest.approx(gradient.abs().sum((1, 2, 3)).mean().item(), rel=1e-4)
