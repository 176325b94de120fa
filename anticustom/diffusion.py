"""Latent diffusion models in the diffusers layout; the only file that knows the range [-1, 1] and
the latent scale.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:  # importing them takes seconds, which a run that finds all done need not spend
    from diffusers import (
        AutoencoderKL,
        DDPMScheduler,
        SchedulerMixin,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTokenizer

Precision = Literal["float32", "mixed", "bfloat16"]


@dataclass(frozen=True)
class Posterior:
    """The VAE's unscaled posterior of n images: `mean` and `std`, each (n, c, h, w)."""

    mean: Tensor
    std: Tensor

    def __getitem__(self, index) -> "Posterior":
        return Posterior(self.mean[index], self.std[index])

    def repeated(self, times: int) -> "Posterior":
        """Return the n images' posteriors `times` over: all of them, then all again."""
        if times == 1:
            return self
        return Posterior(*(part.repeat(times, 1, 1, 1) for part in (self.mean, self.std)))


@dataclass
class LatentDiffusion:
    """A text-to-image latent diffusion model: the surrogate of an attack, or the model that a
    customizer tunes.

    Its networks' parameters require no gradient except while they are trained. `mixed` computes in
    bfloat16 over weights that stay as they are.
    """

    vae: "AutoencoderKL"
    unet: "UNet2DConditionModel"
    text_encoder: "CLIPTextModel"
    tokenizer: "CLIPTokenizer"
    scheduler: "DDPMScheduler"
    mixed: bool = False

    def __post_init__(self):
        for network in (self.vae, self.unet, self.text_encoder):
            network.requires_grad_(False).eval()

    def checkpoint_gradients(self) -> None:
        """Let UNet and VAE keep few activations for gradients, and compute the others again."""
        self.unet.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.unet.config.sample_size
        return self.unet.config.in_channels, size, size

    @property
    def image_size(self) -> int:
        """The height and width of its images, in pixels."""
        return self.latent_shape[-1] * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def timesteps(self) -> Tensor:
        """All timesteps of training, (T,) int64 on the CPU."""
        return torch.arange(self.scheduler.config.num_train_timesteps)

    @contextlib.contextmanager
    def computing_in(self, precision: Precision | None) -> Iterator[None]:
        """Compute in another precision meanwhile (None: as before). Weights are rounded where it is
        bfloat16, and put back as they were.
        """
        if precision is None:
            yield
            return
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        networks = (self.vae, self.unet, self.text_encoder)
        tensors = [t for network in networks for t in (*network.parameters(), *network.buffers())]
        before = [(t, t.data) for t in tensors if t.is_floating_point()]
        mixed, self.mixed = self.mixed, precision == "mixed"
        try:
            for tensor, data in before:
                tensor.data = data.to(dtype)
            yield
        finally:
            for tensor, data in before:
                tensor.data = data
            self.mixed = mixed

    def autocast(self) -> contextlib.AbstractContextManager:
        if not self.mixed:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def posterior(self, images: Tensor) -> Posterior:
        """Return the VAE's posterior of `images`, (n, 3, h, w) in [0, 1]; differentiable."""
        with self.autocast():
            moments = self.vae.encode((2 * images - 1).to(self.vae.dtype)).latent_dist
        return Posterior(_float32_at_least(moments.mean), _float32_at_least(moments.std))

    def latents(self, posterior: Posterior, normal: Tensor) -> Tensor:
        """Return scaled latents sampled from `posterior` with the standard normal numbers
        `normal`.
        """
        return (posterior.mean + posterior.std * normal) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (n, 3, h, w) in [0, 1] of scaled latents."""
        with self.autocast():
            images = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype))
        return (images.sample.float() / 2 + 0.5).clamp(0, 1)

    def text_embeddings(self, prompts: list[str]) -> Tensor:
        """Return the text encoder's last hidden state, (n, tokens, width)."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids.to(self.device)
        with self.autocast():
            return self.text_encoder(tokens)[0]

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return latents with noise; those of a model in bfloat16 in bfloat16, as the released
        code does, which rounds the scheduler: Stable Diffusion's timesteps 0 and 1 add none then.
        """
        if self.unet.dtype == torch.bfloat16:
            latents, noise = latents.bfloat16(), noise.bfloat16()
        return self.scheduler.add_noise(latents, noise, timesteps)

    def predict(self, noisy: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Return the UNet's prediction, in float32 at least; one row of `embeddings` serves all
        images.
        """
        with self.autocast():
            embeddings = embeddings.expand(len(noisy), -1, -1)
            predicted = self.unet(noisy.to(self.unet.dtype), timesteps, embeddings).sample
        return _float32_at_least(predicted)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what `predict` is trained to give: the noise, or the velocity of v-prediction
        models.
        """
        if self.scheduler.config.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        return noise

    def previous(
        self, noisy: Tensor, prediction: Tensor, timesteps: Tensor, ancestral: Tensor
    ) -> Tensor:
        """Return what one step of DDPM's ancestral sampling makes of `noisy`; timesteps (n,).

        Equations 7 and 11 of arXiv 2006.11239 with the small variance; `ancestral` is standard
        normal, and unused at timestep 0.
        """
        kept = self.scheduler.alphas_cumprod.to(noisy.device)
        now, before = (
            part[:, None, None, None]
            for part in (kept[timesteps], kept[timesteps - 1].where(timesteps > 0, 1.0))
        )
        if self.scheduler.config.prediction_type == "v_prediction":
            clean = now.sqrt() * noisy - (1 - now).sqrt() * prediction
        else:
            clean = (noisy - (1 - now).sqrt() * prediction) / now.sqrt()
        step = now / before
        mean = (before.sqrt() * (1 - step) * clean + step.sqrt() * (1 - before) * noisy) / (1 - now)
        variance = (1 - before) / (1 - now) * (1 - step)
        return mean + variance.sqrt() * ancestral

    def pipeline(self, scheduler: "SchedulerMixin | None" = None) -> "StableDiffusionPipeline":
        """Return diffusers' pipeline round these same networks."""
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            unet=self.unet,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=scheduler or self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def sample(
        self,
        prompt: str,
        noise: Tensor,
        *,
        steps: int,
        guidance_scale: float,
        scheduler: str,
        karras_sigmas: bool = False,
        callback: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Return images (n, 3, h, w) in [0, 1] sampled from the initial latents `noise`, standard
        normal (n, c, h, w).

        `scheduler` names a sampler class of diffusers without noise of its own, such as
        "DDIMScheduler"; with `karras_sigmas`, which not all have, its steps lie closer to each
        other the less noise is left (equation 5 of arXiv 2206.00364).
        """
        import diffusers

        options = {"use_karras_sigmas": True} if karras_sigmas else {}
        kind = getattr(diffusers, scheduler)
        pipeline = self.pipeline(kind.from_config(self.scheduler.config, **options))

        def on_step_end(pipeline: Any, step: int, timestep: int, tensors: dict) -> dict:
            callback()
            return tensors

        with self.autocast():
            images = pipeline(
                [prompt] * len(noise),
                latents=noise.to(self.device, self.unet.dtype),
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                output_type="pt",
                callback_on_step_end=on_step_end,
            ).images
        return images.float().cpu()


def _float32_at_least(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
