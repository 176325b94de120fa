"""The diffusion models that a configuration names: where they are, which they are, whether they
can be loaded.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from anticustom.diffusion import LatentDiffusion
from anticustom.model_files import load, local_folder
from experiments.store.provenance import digest_of_folder

FILES = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
# what the hub's folders hold besides the one form of the weights that is loaded
OTHER_FILES = ["*.fp16.safetensors", "*non_ema*", "safety_checker/*", "feature_extractor/*"]
# what Stable Diffusion 1.x and 2.x are made of
KINDS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}


def loaded(names: Sequence[str]) -> list[str]:
    """Return those of a model folder's file names that are loaded."""
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(names, allow_patterns=FILES, ignore_patterns=OTHER_FILES))


class ModelMissing(ValueError):
    """A model that cannot be loaded here: what is missing and how to get it, in one line."""


@dataclass(frozen=True)
class Model:
    """A model as the configuration names it: `path` is a folder, an embedded model, or a
    repository at `revision`.
    """

    name: str
    path: str
    revision: str | None
    gradient_checkpointing: bool = False

    @cached_property
    def folder(self) -> Path:
        """The folder of the weights, downloaded if it must be. Raises ModelMissing."""
        folder = local_folder(self.path)
        if folder is not None:
            if not (folder / "model_index.json").is_file():
                raise ModelMissing(
                    f"surrogate_model.path={self.path}: no model_index.json in this folder, so it "
                    "is no diffusers model: "
                    "name a folder saved by save_pretrained"
                )
            self._check_kind(folder)
            return folder
        if self.path.startswith((".", "/", "~")) or self.path.count("/") != 1:
            raise ModelMissing(f"surrogate_model.path={self.path}: no such folder")
        folder = self._snapshot()
        self._check_kind(folder)
        return folder

    def _check_kind(self, folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        unlike = [part for part, kind in KINDS.items() if (index.get(part) or [""])[-1] != kind]
        unlike += ["text_encoder_2"] if index.get("text_encoder_2", [None])[-1] else []
        unlike = unlike or _unlike_latents(folder)
        if unlike:
            raise ModelMissing(
                f"surrogate_model.path={self.path}: a {index.get('_class_name')}, which cannot be "
                f"attacked here ({unlike[0]}): name a Stable Diffusion 1.x or 2.x"
            )

    def _snapshot(self) -> Path:
        from huggingface_hub import snapshot_download

        wanted = {
            "revision": self.revision,
            "allow_patterns": FILES,
            "ignore_patterns": OTHER_FILES,
        }
        try:
            try:
                return Path(snapshot_download(self.path, local_files_only=True, **wanted))
            except OSError:
                return Path(snapshot_download(self.path, etag_timeout=5, **wanted))
        except (
            Exception
        ) as error:  # the hub client raises many kinds; all mean that the weights are not to be had
            raise ModelMissing(
                f"surrogate_model={self.name}: the weights of {self.path} are not on this machine "
                "and could not be "
                f"downloaded ({type(error).__name__}): run once with network access to the hub, "
                "or set "
                "surrogate_model.path to a local diffusers folder"
            ) from error

    @cached_property
    def digest(self) -> str:
        """What identifies the weights: the contents of a local folder, the revision of a
        repository.
        """
        if local_folder(self.path) is None and self.revision:
            return f"{self.path}@{self.revision}"
        return digest_of_folder(self.folder, loaded)

    def load(self, precision: str, device: str) -> LatentDiffusion:
        """Return a copy on `device` that the caller may train; files are read once per process."""
        folder, checkpointing = str(self.folder), self.gradient_checkpointing
        model = deepcopy(_pristine(folder, self.digest, precision, checkpointing))
        for network in (model.vae, model.unet, model.text_encoder):
            network.to(device)
        return model


def _unlike_latents(folder: Path) -> list[str]:
    """What tells an inpainting, a depth or an upscaling model from one that denoises latents."""
    unet, vae, scheduler = (
        json.loads((folder / file).read_text())
        for file in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    )
    channels = {unet["in_channels"], unet["out_channels"], vae["latent_channels"]}
    unlike = [f"unet of {unet['in_channels']} channels"] if len(channels) > 1 else []
    unlike += ["class embeddings"] if unet.get("class_embed_type") else []
    predicts = scheduler.get("prediction_type", "epsilon")
    return unlike + ([predicts] if predicts not in ("epsilon", "v_prediction") else [])


def surrogate_precision(attack: Mapping[str, Any]) -> str:
    """Return what an attack's settings let its surrogates be loaded in: what they train in, or
    where nothing is said of that, what the attack computes in.
    """
    return attack.get("training_precision") or attack["precision"]


@lru_cache(maxsize=3)  # in the machine's memory: surrogate, victim's base model, one more
def _pristine(
    folder: str, digest: str, precision: str, gradient_checkpointing: bool
) -> LatentDiffusion:
    return load(folder, precision=precision, gradient_checkpointing=gradient_checkpointing)
