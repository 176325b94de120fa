"""Diffusion models as a configuration names them: their files, their digests, their loading."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from anticustom.diffusion import LatentDiffusion
from anticustom.model_files import load, local_folder, part_folder
from experiments.store.provenance import digest_of_files, files_in

FILES = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
# files of the hub's folders besides the one form of the weights that is loaded
OTHER_FILES = ["*.fp16.safetensors", "*non_ema*", "safety_checker/*", "feature_extractor/*"]
# parts of Stable Diffusion 1.x and 2.x
KINDS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}


def loaded(names: Sequence[str]) -> list[str]:
    """Return the file names of a model folder that are loaded."""
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(names, allow_patterns=FILES, ignore_patterns=OTHER_FILES))


class ModelMissing(ValueError):
    """A model cannot be loaded here; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Model:
    """A model as the configuration names it.

    `path` is a folder, the name of an embedded model, or a repository of the hub at `revision`.
    """

    name: str
    path: str
    revision: str | None
    gradient_checkpointing: bool = False

    @cached_property
    def folder(self) -> Path:
        """The folder of the weights, downloaded if necessary. Raises ModelMissing."""
        folder = local_folder(self.path)
        if folder is None:
            if self.path.startswith((".", "/", "~")) or self.path.count("/") != 1:
                raise ModelMissing(f"surrogate_model.path={self.path}: no such folder")
            folder = self._snapshot()
        elif not (folder / "model_index.json").is_file():
            raise ModelMissing(
                f"surrogate_model.path={self.path}: no model_index.json in this folder, so it "
                "is no diffusers model: name a folder saved by save_pretrained"
            )
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

        files = {
            "revision": self.revision,
            "allow_patterns": FILES,
            "ignore_patterns": OTHER_FILES,
        }
        try:
            try:
                return Path(snapshot_download(self.path, local_files_only=True, **files))
            except OSError:
                return Path(snapshot_download(self.path, etag_timeout=5, **files))
        except Exception as error:  # of many types, all of which mean that there are no weights
            raise ModelMissing(
                f"surrogate_model={self.name}: the weights of {self.path} are not on this machine "
                f"and could not be downloaded ({type(error).__name__}): run once with network "
                "access to the hub, or set surrogate_model.path to a local diffusers folder"
            ) from error

    @cached_property
    def digest(self) -> str:
        """A name of the weights: digest of a local folder, or repository and revision."""
        if local_folder(self.path) is None and self.revision:
            return f"{self.path}@{self.revision}"
        files = files_in(self.folder)
        vae = files_in(part_folder(self.folder, "vae"))
        files |= {f"vae/{name}": file for name, file in vae.items()}
        return digest_of_files({name: files[name] for name in loaded(list(files))})

    def load(self, precision: str, device: str) -> LatentDiffusion:
        """Return a copy on `device` that the caller may train; files are read once per process."""
        folder, checkpointing = str(self.folder), self.gradient_checkpointing
        model = deepcopy(_pristine(folder, self.digest, precision, checkpointing))
        for network in (model.vae, model.unet, model.text_encoder):
            network.to(device)
        return model


def _unlike_latents(folder: Path) -> list[str]:
    """Return the marks of inpainting, depth or upscaling, which need more than latents."""
    unet, vae, scheduler = (
        json.loads((part_folder(folder, part) / file).read_text())
        for part, file in (
            ("unet", "config.json"),
            ("vae", "config.json"),
            ("scheduler", "scheduler_config.json"),
        )
    )
    channels = {unet["in_channels"], unet["out_channels"], vae["latent_channels"]}
    unlike = [f"unet of {unet['in_channels']} channels"] if len(channels) > 1 else []
    unlike += ["class embeddings"] if unet.get("class_embed_type") else []
    predicts = scheduler.get("prediction_type", "epsilon")
    return unlike + ([predicts] if predicts not in ("epsilon", "v_prediction") else [])


def surrogate_precision(attack: Mapping[str, Any]) -> str:
    """Return the precision in which an attack's surrogates are loaded.

    They train in it. Without `training_precision` it is the precision of the attack.
    """
    return attack.get("training_precision") or attack["precision"]


@lru_cache(maxsize=3)  # in the machine's memory: surrogate, victim's base model, one more
def _pristine(
    folder: str, digest: str, precision: str, gradient_checkpointing: bool
) -> LatentDiffusion:
    return load(folder, precision=precision, gradient_checkpointing=gradient_checkpointing)
