"""LoRA: its adapters, and its files in both forms."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from customizing import CUSTOMIZERS, samples, samples_of
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file

from anticustom.adapters import ATTENTION, Adapters, add_adapters
from anticustom.customizers.lora import FILE, KOHYA_FILE

SETTINGS = OmegaConf.load(Path(__file__).parents[2] / "conf/surrogate_model/_embedded.yaml")
EMBEDDED_LAYERS = list(SETTINGS.training.lora.unet_layers)
KOHYA_ENDS = ("lora_down.weight", "lora_up.weight", "alpha")


def adapters(network) -> dict[str, torch.Tensor]:
    """The adapters' weights, whatever the adapter is called."""
    return {
        name.replace(".default_0.", ".default."): value.detach()
        for name, value in network.named_parameters()
        if "lora_" in name
    }


@pytest.mark.parametrize("file", [FILE, KOHYA_FILE])
@pytest.mark.parametrize("layers", [ATTENTION, EMBEDDED_LAYERS])
def test_diffusers_loads_the_lora_files(file, layers, pipeline, inputs_of, tmp_path):
    customizer, inputs = replace(CUSTOMIZERS["lora"], unet_layers=layers), inputs_of()
    customizer.customize(inputs)
    customizer.save(inputs.model, tmp_path)
    pipeline.load_lora_weights(tmp_path, weight_name=file)
    torch.testing.assert_close(samples_of(pipeline), samples(inputs.model), atol=1e-6, rtol=0)

    for part in ("unet", "text_encoder"):
        trained = adapters(getattr(inputs.model, part))
        loaded = adapters(getattr(pipeline, part))
        assert trained.keys() == loaded.keys()
        assert all(torch.equal(loaded[name], value) for name, value in trained.items())
        updates = {name: value for name, value in trained.items() if "lora_B" in name}
        assert updates
        # attention to a single token leaves its queries and keys where they are
        queries_and_keys = ("to_q", "to_k", "q_proj", "k_proj")
        moved = [v.any() for n, v in updates.items() if not any(q in n for q in queries_and_keys)]
        assert all(moved)
        layers = [m for m in getattr(pipeline, part).modules() if hasattr(m, "lora_A")]
        assert len(layers) == len(updates)
        assert {scaling for layer in layers for scaling in layer.scaling.values()} == {1.0}


def test_the_lora_file(inputs_of, tmp_path):
    customizer, inputs = CUSTOMIZERS["lora"], inputs_of()
    customizer.customize(inputs)
    customizer.save(inputs.model, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == [KOHYA_FILE, FILE]
    with safe_open(tmp_path / FILE, "pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
        shapes = {key: file.get_slice(key).get_shape() for key in keys}
    parts = {"unet", "text_encoder"}
    assert {key.split(".")[0] for key in keys} == parts
    assert all("lora" in key for key in keys)
    assert all(4 in shape for shape in shapes.values())
    parameters = sum(len(adapters(getattr(inputs.model, part))) for part in parts)
    assert len(keys) == parameters
    config = json.loads(metadata["lora_adapter_metadata"])
    for part in parts:
        assert config[f"{part}.r"] == config[f"{part}.lora_alpha"] == 4


def test_the_kohya_file(inputs_of, tmp_path):
    customizer, inputs = CUSTOMIZERS["lora"], inputs_of()
    customizer.customize(inputs)
    customizer.save(inputs.model, tmp_path)
    saved = load_file(tmp_path / KOHYA_FILE)
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


def test_adapters_are_those_of_their_seed(new_model):
    def weights(seed):
        torch.manual_seed(torch.seed() % 2**31)  # whatever the global generator does
        return add_adapters(new_model(), Adapters(rank=4, unet_layers=ATTENTION), seed)

    one, same, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_adapters_start_as_they_are_told(new_model):
    def first_matrices(initialization):
        adapters = Adapters(rank=4, unet_layers=ATTENTION, initialization=initialization)
        matrices = add_adapters(new_model(), adapters, 0)
        assert all((one == 0).all() for one in matrices[1::2])
        return matrices[::2]

    for one in first_matrices("kaiming_uniform"):
        assert 0.75 * one.shape[1] ** -0.5 < one.abs().max() <= one.shape[1] ** -0.5
    everything = torch.cat([one.flatten() for one in first_matrices("gaussian")])
    assert everything.std().item() == pytest.approx(1 / 4, rel=0.05)
    with pytest.raises(ValueError, match=r"^customizer\.initialization='zeros': expected kaiming"):
        replace(CUSTOMIZERS["lora"], initialization="zeros")


def test_lora_trains_the_adapters_alone(inputs_of, new_model):
    inputs, before = inputs_of(), new_model()
    CUSTOMIZERS["lora"].customize(inputs)
    for part in ("unet", "text_encoder"):
        after = {
            name.replace(".base_layer", ""): value
            for name, value in getattr(inputs.model, part).state_dict().items()
        }
        for name, value in getattr(before, part).state_dict().items():
            assert torch.equal(after[name], value), name
