"""Shapes and graphs of SD 1.4, 1.5 and 2.1-base at full size, on torch's meta device."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from diffusers import DDPMScheduler, PNDMScheduler
from helpers import PROMPTS, parameters

from anticustom.adapters import ATTENTION, Adapters, add_adapters
from anticustom.customizers.custom_diffusion import text_projections
from anticustom.customizers.rare_word import embeddings, trained_embeddings
from anticustom.diffusion import LatentDiffusion
from anticustom.draws import SeededDraws, draw_batches
from anticustom.finetuning import FineTuning, Trainer, all_weights, encode
from anticustom.losses import recorded_features
from anticustom.model_files import image_size
from anticustom.timestep_policies import image_gradient_and_loss
from experiments.benchmarks.random_models import random_model

PROMPT = PROMPTS["instance_prompt"]
NAMES = ("a.png", "b.png")
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Sizes:
    """Published numbers of parameters, and the number of the text encoder's layers."""

    unet: int
    text_encoder: int
    text_layers: int
    lora: int  # the UNet's attention at rank 4
    text_projections: int  # keys and values of the UNet's cross-attention


RELEASES = {  # SD 1.4 has the architecture of SD 1.5
    "sd15": Sizes(859_520_964, 123_060_480, 12, 797_184, 19_169_280),
    "sd21": Sizes(865_910_724, 340_387_840, 23, 829_952, 25_559_040),
}


def assemble(name: str, prediction_type="epsilon", precision="float32") -> LatentDiffusion:
    model = random_model(name, "meta", precision)
    model.scheduler.register_to_config(prediction_type=prediction_type)
    return model


@pytest.fixture(params=RELEASES)
def name(request) -> str:
    return request.param


@pytest.fixture
def sizes(name) -> Sizes:
    return RELEASES[name]


@pytest.fixture
def model(name) -> LatentDiffusion:
    return assemble(name)


def photos(count: int = 2) -> torch.Tensor:
    return torch.zeros(count, 3, 512, 512, device="meta")


def drawn(model):
    draws = SeededDraws(0, "ann", model.latent_shape)
    return draw_batches(draws, "0 perturb", NAMES, 1, [model.timesteps] * 2)[0].to("meta")


def test_sizes(sizes, model, tmp_path):
    assert model.latent_shape == (4, 64, 64)
    assert model.timesteps.tolist() == list(range(1000))
    assert sum(p.numel() for p in model.unet.parameters()) == sizes.unet
    assert sum(p.numel() for p in model.text_encoder.parameters()) == sizes.text_encoder
    for part in ("unet", "vae"):
        getattr(model, part).save_config(tmp_path / part)
    assert image_size(tmp_path) == 512
    pipeline = model.pipeline()
    assert pipeline.vae_scale_factor * pipeline.unet.config.sample_size == 512


def test_forward_shapes(model):
    posterior = model.posterior(photos())
    assert posterior.mean.shape == posterior.std.shape == (2, 4, 64, 64)
    draw = drawn(model)
    latents = model.latents(posterior, draw.posterior)
    assert latents.dtype == torch.float32
    embeddings = model.text_embeddings([PROMPT])
    assert embeddings.shape == (1, 77, model.unet.config.cross_attention_dim)
    with recorded_features(model, [3]) as features:
        prediction = model.predict(
            model.noisy(latents, draw.noise, draw.timesteps), draw.timesteps, embeddings
        )
    assert prediction.shape == (2, 4, 64, 64)
    assert [tuple(f.shape) for f in features] == [(2, 320, 64, 64)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["aspl", "simac"])
def test_the_image_gradient_of_every_attacks_loss(model, configured, attack):
    loss = configured("attack", f"attack={attack}").loss
    objective = loss.bind(
        model, prompt=PROMPT, clean=lambda: model.posterior(photos()), start=photos
    )
    terms = {}

    def noted(images, draw):
        terms.update(objective(images, draw))
        return terms

    gradient, per_image = image_gradient_and_loss(noted, photos(), drawn(model))
    assert set(terms) == ({"denoising"} if attack == "aspl" else {"denoising", "feature"})
    assert all(term.shape == (2,) for term in terms.values())
    assert all(term.requires_grad for term in terms.values())
    assert gradient.shape == (2, 3, 512, 512)
    assert per_image.shape == (2,)
    assert not any(p.requires_grad for p in model.unet.parameters())


@pytest.mark.slow
def test_bfloat16_weights_give_float32_losses_and_gradients(configured):
    model = assemble("sd21", "v_prediction", "bfloat16")
    loss = configured("attack", "attack=simac_released").loss
    with torch.no_grad():
        clean = model.posterior(photos())
    assert clean.mean.dtype == torch.float32
    objective = loss.bind(model, prompt=PROMPT, clean=lambda: clean, start=photos)
    gradient, per_image = image_gradient_and_loss(objective, photos(), drawn(model))
    assert gradient.dtype == per_image.dtype == torch.float32
    assert gradient.shape == (2, 3, 512, 512)


def lora(model):
    return add_adapters(model, Adapters(rank=4, unet_layers=ATTENTION), 0)


def assert_a_step_reaches(model, trained):
    tuning = FineTuning(learning_rate=5e-7, batch_size=2)
    trainer = Trainer(model, trained, tuning, **PROMPTS)
    trainer.optimizer.param_groups[0]["fused"] = False  # torch has no such kernel for meta
    reached = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: reached.append([p.grad is not None for p in trained])
    )
    photo_set = encode(model, NAMES, photos())
    draws = SeededDraws(0, "ann", model.latent_shape)
    losses = trainer.train(photo_set, photo_set, 1, draws, "fit", photo_set="clean")
    assert losses.shape == (1,)
    assert reached == [[True] * len(trained)]
    assert not any(p.requires_grad or p.grad is not None for p in parameters(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trained"), [("sd15", all_weights), ("sd21", all_weights), ("sd21", lora)]
)
def test_a_training_step_reaches_all_that_is_trained(model, trained):
    assert_a_step_reaches(model, list(trained(model)))


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["word", "word_and_projections"])
def test_the_rare_word_and_the_text_projections_are_reached(sizes, model, both):
    width = model.unet.config.cross_attention_dim
    projections = text_projections(model)
    assert len(projections) == 16 * 2  # transformers, each with keys and values
    assert sum(p.numel() for p in projections.values()) == sizes.text_projections
    assert {p.shape[1] for p in projections.values()} == {width}
    with trained_embeddings(model, "sks", embeddings(model, "sks")) as rows:
        assert rows.shape == (1, width)
        trained = [*projections.values(), rows] if both else [rows]
        assert_a_step_reaches(model, trained)


def test_adapters_attach_to_every_attention_projection(sizes, model):
    lora(model)
    # 16 transformers in the UNet, each with self and cross attention
    expected = {
        "unet": (16 * 2, ["to_q", "to_k", "to_v", "to_out.0"]),
        "text_encoder": (sizes.text_layers, ["q_proj", "k_proj", "v_proj", "out_proj"]),
    }
    for part, (attentions, projections) in expected.items():
        adapters = [n for n, _ in getattr(model, part).named_parameters() if "lora_" in n]
        assert len(adapters) == attentions * len(projections) * 2
        for projection, matrix in product(projections, ("lora_A", "lora_B")):
            end = f".{projection}.{matrix}.default.weight"
            assert sum(name.endswith(end) for name in adapters) == attentions
    numbers = [p.numel() for name, p in model.unet.named_parameters() if "lora_" in name]
    assert sum(numbers) == sizes.lora


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_target_follows_the_prediction_type(prediction_type):
    model = assemble("sd21", prediction_type)
    latents, noise = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 500, 999])
    target = model.target(latents, noise, timesteps)
    if prediction_type == "epsilon":
        assert torch.equal(target, noise)
        return
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)[timesteps].view(-1, 1, 1, 1)
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    torch.testing.assert_close(target, velocity.float(), rtol=1e-4, atol=1e-4)


def test_the_published_scheduler_trains_and_samples(tmp_path):
    """The releases hold the configuration of a PNDM sampler, which has the noise schedule in it."""
    published = {"skip_prk_steps": True, "set_alpha_to_one": False}
    PNDMScheduler(**SCHEDULE, **published).save_pretrained(tmp_path)
    ours = DDPMScheduler.from_pretrained(tmp_path)
    torch.testing.assert_close(ours.alphas_cumprod, PNDMScheduler(**SCHEDULE).alphas_cumprod)
    assert ours.config.prediction_type == "epsilon"
    sampler = PNDMScheduler.from_config(ours.config)
    assert {key: sampler.config[key] for key in published} == published
    sampler.set_timesteps(100)
    assert len(sampler.timesteps) == 101
    assert sampler.timesteps[0] == 991
