"""Models as the configuration names them: read from disk once, handed out as copies."""

import json
import shutil

import pytest
import torch

from experiments.setup import models
from experiments.setup.models import Model, ModelMissing, surrogate_precision

INDEX = "model_index.json"


@pytest.fixture
def loads(monkeypatch):
    """The keywords of every reading from disk, with nothing read before."""
    seen = []

    def load(folder, **keywords):
        seen.append(keywords)
        return original(folder, **keywords)

    original = models.load
    monkeypatch.setattr(models, "load", load)
    models._pristine.cache_clear()
    yield seen
    models._pristine.cache_clear()


def weights_of(network):
    return [p.clone() for part in (network.vae, network.unet) for p in part.parameters()]


def test_a_model_is_read_once_and_a_changed_copy_changes_no_other(loads, random_sd):
    first = Model("tiny", str(random_sd), None).load("float32", "cpu")
    before, tokens = weights_of(first), len(first.tokenizer)
    with torch.no_grad():
        for parameter in first.unet.parameters():
            parameter.add_(1)
    first.unet.requires_grad_(True).train()
    first.tokenizer.add_tokens("xjy")
    first.scheduler.alphas_cumprod.zero_()
    second = Model("tiny", str(random_sd), None).load("float32", "cpu")
    assert len(loads) == 1
    for now, expected in zip(weights_of(second), before, strict=True):
        assert torch.equal(now, expected)
    assert not second.unet.training
    assert not any(parameter.requires_grad for parameter in second.unet.parameters())
    assert len(second.tokenizer) == tokens
    assert second.scheduler.alphas_cumprod.all()


def test_a_copy_computes_what_a_model_fresh_from_disk_does(loads, random_sd):
    generator = torch.Generator().manual_seed(0)
    noisy, timesteps = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([1, 900])
    predictions = []
    for network in (
        models.load(str(random_sd), precision="float32", gradient_checkpointing=True),
        Model("tiny", str(random_sd), None, True).load("float32", "cpu"),
    ):
        noisy = noisy.detach().requires_grad_()
        embeddings = network.text_embeddings(["a photo of sks person"])
        predicted = network.predict(noisy, timesteps, embeddings)
        (gradient,) = torch.autograd.grad(predicted.square().sum(), noisy)
        predictions.append((predicted, gradient, network.unet.is_gradient_checkpointing))
    assert torch.equal(predictions[0][0], predictions[1][0])
    assert torch.equal(predictions[0][1], predictions[1][1])
    assert predictions[0][2] == predictions[1][2] is True


def test_other_precisions_and_weights_are_other_models_and_few_are_kept(loads, random_sd, tmp_path):
    for precision in ("float32", "bfloat16", "mixed", "float32"):
        Model("tiny", str(random_sd), None).load(precision, "cpu")
    Model("tiny", str(random_sd), None, True).load("float32", "cpu")
    assert [k["precision"] for k in loads] == ["float32", "bfloat16", "mixed", "float32"]
    assert [k["gradient_checkpointing"] for k in loads] == [False, False, False, True]
    assert models._pristine.cache_info().currsize == 3


def test_an_attack_that_says_nothing_of_training_has_its_surrogates_in_its_own_precision():
    settings = {"precision": "mixed"}
    assert surrogate_precision(settings) == "mixed"
    assert surrogate_precision(settings | {"training_precision": None}) == "mixed"
    assert surrogate_precision(settings | {"training_precision": "bfloat16"}) == "bfloat16"


def test_files_that_are_not_loaded_do_not_tell_models_apart(random_sd, tmp_path):
    shutil.copytree(random_sd, tmp_path / "model")
    for name in ("preview.png", "unet/model.fp16.safetensors", "unet/diffusion_pytorch_model.bin"):
        (tmp_path / "model" / name).write_bytes(b"1")
    digest = Model("sd", str(random_sd), None).digest
    assert Model("sd", str(tmp_path / "model"), None).digest == digest
    (tmp_path / "model" / "unet" / "more.safetensors").write_bytes(b"1")
    assert Model("sd", str(tmp_path / "model"), None).digest != digest


@pytest.mark.parametrize(
    ("file", "changed", "named"),
    [
        (INDEX, {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "text_encoder_2"),  # SDXL
        (INDEX, {"unet": None, "transformer": ["diffusers", "SD3Transformer2DModel"]}, "unet"),
        (INDEX, {"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder"),
        ("unet/config.json", {"in_channels": 9}, "unet of 9 channels"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class embeddings"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "sample"),
    ],
)
def test_models_of_other_kinds_are_refused(random_sd, tmp_path, file, changed, named):
    folder = tmp_path / "model"
    shutil.copytree(random_sd, folder)
    assert Model("sd", str(folder), None).folder == folder
    settings = json.loads((folder / file).read_text()) | changed
    (folder / file).write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    with pytest.raises(ModelMissing, match=rf"cannot be attacked here \({named}\): name a Stable"):
        Model("sd", str(folder), None).load("float32", "cpu")


def test_the_shared_autoencoder_counts_as_part_of_each_model():
    models = {name: Model(name, name, None) for name in ("tiny", "tiny_b")}
    assert not (models["tiny_b"].folder / "vae").exists()
    # the digests from when tiny_b had a copy of its own: records name them
    assert {name: model.digest for name, model in models.items()} == {
        "tiny": "321456e624b7705a82d8a4fdeef3a1a33d9eaf459c201e520ea78a2216ed35f5",
        "tiny_b": "103a93ae591ea2e8e02f4fa7b6a737f896715401e3d78934ae135d6c817fc5df",
    }
    vaes = [model.load("float32", "cpu").vae.state_dict() for model in models.values()]
    assert all(torch.equal(vaes[0][name], weight) for name, weight in vaes[1].items())
