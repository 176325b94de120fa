"""LoRA: its adapters, and its files in both forms."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from customizing import CUSTOMIZERS, pipeline_samples, samples
from helpers import base_weights, changed, refused
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file

from anticustom.adapters import ATTENTION, Adapters, add_adapters
from anticustom.customizers.lora import FILE, KOHYA_FILE

SETTINGS = OmegaConf.load(Path(__file__).parents[2] / "conf/surrogate_model/_embedded.yaml")
EMBEDDED_LAYERS = tuple(SETTINGS.training.lora.unet_layers)
KOHYA_ENDS = ("lora_down.weight", "lora_up.weight", "alpha")
PARTS = ("unet", "text_encoder")


def adapters(network) -> dict[str, torch.Tensor]:
    """Return the adapters' weights without the adapter's name."""
    return {
        name.replace(".default_0.", ".default."): value.detach()
        for name, value in network.named_parameters()
        if "lora_" in name
    }


@pytest.mark.parametrize("file", [FILE, KOHYA_FILE])
@pytest.mark.parametrize("layers", [ATTENTION, EMBEDDED_LAYERS], ids=["attention", "embedded"])
def test_diffusers_loads_the_lora_files(file, layers, pipeline, victim):
    model, _, folder = victim("lora", unet_layers=layers)
    pipeline.load_lora_weights(folder, weight_name=file)
    torch.testing.assert_close(pipeline_samples(pipeline), samples(model), atol=1e-6, rtol=0)

    for part in PARTS:
        trained, loaded = adapters(getattr(model, part)), adapters(getattr(pipeline, part))
        assert trained.keys() == loaded.keys()
        assert all(torch.equal(loaded[name], value) for name, value in trained.items())
        updates = {name: value for name, value in trained.items() if "lora_B" in name}
        assert updates
        # attention to a single token leaves its queries and keys where they are
        queries_and_keys = ("to_q", "to_k", "q_proj", "k_proj")
        assert all(v.any() for n, v in updates.items() if not any(q in n for q in queries_and_keys))
        modules = [m for m in getattr(pipeline, part).modules() if hasattr(m, "lora_A")]
        assert len(modules) == len(updates)
        assert {scaling for module in modules for scaling in module.scaling.values()} == {1.0}


def test_the_lora_file(victim):
    model, _, folder = victim("lora")
    assert sorted(f.name for f in folder.iterdir()) == [KOHYA_FILE, FILE]
    with safe_open(folder / FILE, "pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
        shapes = [file.get_slice(key).get_shape() for key in keys]
    assert {key.split(".")[0] for key in keys} == set(PARTS)
    assert all("lora" in key for key in keys)
    assert all(4 in shape for shape in shapes)
    assert len(keys) == sum(len(adapters(getattr(model, part))) for part in PARTS)
    config = json.loads(metadata["lora_adapter_metadata"])
    for part in PARTS:
        assert config[f"{part}.r"] == config[f"{part}.lora_alpha"] == 4


def test_the_kohya_file(victim):
    saved = load_file(victim("lora").folder / KOHYA_FILE)
    layers = {key.split(".")[0] for key in saved}
    assert {f"{layer}.{end}" for layer in layers for end in KOHYA_ENDS} == saved.keys()
    assert all(saved[f"{layer}.alpha"].item() == 4 for layer in layers)
    assert all(len(saved[f"{layer}.lora_down.weight"]) == 4 for layer in layers)
    # as Kohya's scripts name the layers of Stable Diffusion
    assert {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_te_text_model_encoder_layers_1_self_attn_out_proj",
    } <= layers
    assert all(layer.startswith(("lora_unet_", "lora_te_text_model_encoder_")) for layer in layers)


def test_a_layer_that_the_unet_lacks_is_named(new_model):
    with pytest.raises(ValueError, match=r"unet_layers: .* no linear layer or convolution 'to_x'"):
        add_adapters(new_model(), Adapters(rank=4, unet_layers=[*ATTENTION, "to_x"]), 0)


def test_untrained_adapters_change_nothing(new_model):
    model, plain = new_model(), samples(new_model())
    parameters = add_adapters(model, Adapters(rank=4, unet_layers=EMBEDDED_LAYERS), 0)
    torch.testing.assert_close(samples(model), plain)
    assert not any(parameter.requires_grad for parameter in parameters)
    assert all(4 in parameter.shape[:2] for parameter in parameters)


@pytest.fixture
def added(new_model):
    """Add adapters to a new model's attention and return their parameters."""

    def add(seed: int = 0, **settings) -> list[torch.nn.Parameter]:
        return add_adapters(new_model(), Adapters(rank=4, **settings), seed)

    return add


def test_adapters_are_those_of_their_seed(added):
    first = added()
    torch.manual_seed(torch.seed() % 2**31)  # the global generator does not matter
    same, other = added(), added(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_adapters_start_with_the_chosen_distribution(added):
    uniform, gaussian = (added(initialization=i) for i in ("kaiming_uniform", "gaussian"))
    assert all((matrix == 0).all() for matrix in (*uniform[1::2], *gaussian[1::2]))
    for matrix in uniform[::2]:
        bound = matrix.shape[1] ** -0.5
        assert 0.75 * bound < matrix.abs().max() <= bound
    together = torch.cat([matrix.flatten() for matrix in gaussian[::2]])
    assert together.std().item() == pytest.approx(1 / 4, rel=0.05)
    with refused(r"^customizer\.initialization='zeros': expected kaiming"):
        replace(CUSTOMIZERS["lora"], initialization="zeros")


def test_lora_trains_the_adapters_alone(victim, new_model):
    assert not changed(base_weights(new_model()), base_weights(victim("lora").model))
