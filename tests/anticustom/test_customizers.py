import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from helpers import Killed, Memory
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file

from anticustom.adapters import ATTENTION, add_adapters
from anticustom.customizers import custom_diffusion
from anticustom.customizers.custom_diffusion import CustomDiffusion
from anticustom.customizers.dreambooth import DreamBooth
from anticustom.customizers.lora import FILE, KOHYA_FILE, LoRA
from anticustom.customizers.textual_inversion import TextualInversion
from anticustom.customizers.training import CustomizerInputs
from anticustom.draws import SeededDraws
from anticustom.finetuning import FineTuning
from anticustom.progress import NoCheckpoint, silent

PROMPT = "a photo of sks person"
PROMPTS = {"instance_prompt": PROMPT, "class_prompt": "a photo of person"}
TRAINING = FineTuning(learning_rate=0.02, batch_size=2)  # so high that two steps are seen
CUSTOMIZERS = {
    "dreambooth": DreamBooth(training=TRAINING, steps=3, **PROMPTS),
    "lora": LoRA(training=TRAINING, steps=3, rank=4, **PROMPTS),
    "textual_inversion": TextualInversion(
        training=FineTuning(learning_rate=0.5, batch_size=2, prior_weight=0),
        steps=3,
        initializer="person",
        **PROMPTS,
    ),
    "custom_diffusion": CustomDiffusion(training=TRAINING, steps=3, **PROMPTS),
}
SETTINGS = OmegaConf.load(Path(__file__).parents[2] / "conf/surrogate_model/_embedded.yaml")
EMBEDDED_LAYERS = list(SETTINGS.training.lora.unet_layers)
KOHYA_ENDS = ("lora_down.weight", "lora_up.weight", "alpha")
TRAIN_BOTH_NETWORKS = ["dreambooth", "lora", "custom_diffusion"]
TOKEN_TABLE = "embeddings.token_embedding.weight"


@pytest.fixture
def inputs_of(new_model, pictures):
    def make(checkpoint=None, progress=silent, draws=None, precision="float32") -> CustomizerInputs:
        return CustomizerInputs(
            model=new_model(precision),
            photos=(("a.png", "b.png"), pictures(2, 0)),
            class_images=(("0.png", "1.png", "2.png"), pictures(3, 3)),
            draws=draws or SeededDraws(0, "ann", (4, 8, 8)),
            progress=progress,
            checkpoint=checkpoint or NoCheckpoint(),
        )

    return make


def noise() -> torch.Tensor:
    return torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))


def samples(model) -> torch.Tensor:
    return model.sample(PROMPT, noise(), steps=2, guidance_scale=3.0, scheduler="DDIMScheduler")


def adapters(network) -> dict[str, torch.Tensor]:
    """The adapters' weights, whatever the adapter is called."""
    return {
        name.replace(".default_0.", ".default."): value.detach()
        for name, value in network.named_parameters()
        if "lora_" in name
    }


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("dreambooth", "float32"),
        ("dreambooth", "bfloat16"),
        ("lora", "float32"),
        ("lora", "mixed"),
        ("lora", "bfloat16"),
        ("textual_inversion", "float32"),
        ("textual_inversion", "mixed"),
        ("textual_inversion", "bfloat16"),
        ("custom_diffusion", "float32"),
        ("custom_diffusion", "bfloat16"),
    ],
)
def test_a_saved_victim_gives_the_same_samples(name, precision, inputs_of, new_model, tmp_path):
    customizer, inputs = CUSTOMIZERS[name], inputs_of(precision=precision)
    losses = customizer.customize(inputs)
    assert len(losses) == 3
    customizer.save(inputs.model, tmp_path)
    loaded = new_model(precision)
    customizer.load(loaded, tmp_path)
    victims, uncustomized = samples(inputs.model), samples(new_model(precision))
    assert victims.dtype == torch.float32
    assert victims.shape == (2, 3, 64, 64)
    assert torch.equal(samples(loaded), victims)
    assert (victims - uncustomized).abs().mean() > 1e-3
    assert not any(p.requires_grad for p in inputs.model.unet.parameters())


@pytest.mark.parametrize("name", TRAIN_BOTH_NETWORKS)
def test_both_networks_learn_and_the_vae_does_not(name, inputs_of, new_model, tmp_path):
    customizer, inputs, before = CUSTOMIZERS[name], inputs_of(), new_model()
    customizer.customize(inputs)
    customizer.save(inputs.model, tmp_path)
    loaded = new_model()
    customizer.load(loaded, tmp_path)
    for prompt in (PROMPT, "a dslr portrait of sks person"):
        with torch.no_grad():
            embeddings = [m.text_embeddings([prompt]) for m in (inputs.model, loaded, before)]
        assert torch.equal(embeddings[0], embeddings[1])
        assert (embeddings[0] - embeddings[2]).abs().max() > 1e-3
    latents, time = noise(), torch.tensor([500, 500])
    with torch.no_grad():
        embeddings = before.text_embeddings([PROMPT])
        outputs = [m.predict(latents, time, embeddings) for m in (inputs.model, loaded, before)]
    assert torch.equal(outputs[0], outputs[1])
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3
    vae = inputs.model.vae.state_dict()
    assert all(torch.equal(vae[k], v) for k, v in before.vae.state_dict().items())


def test_dreambooth_saves_the_two_networks_it_trains(inputs_of, tmp_path):
    customizer, inputs = CUSTOMIZERS["dreambooth"], inputs_of()
    customizer.customize(inputs)
    customizer.save(inputs.model, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "text_encoder.safetensors",
        "unet.safetensors",
    ]
    saved = load_file(tmp_path / "unet.safetensors")
    assert saved.keys() == inputs.model.unet.state_dict().keys()


@pytest.fixture
def pipeline(random_sd) -> StableDiffusionPipeline:
    """The uncustomized model as diffusers alone loads it."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        random_sd, safety_checker=None, local_files_only=True
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def samples_of(pipeline) -> torch.Tensor:
    return pipeline(
        [PROMPT] * 2, latents=noise(), num_inference_steps=2, guidance_scale=3.0, output_type="pt"
    ).images


@pytest.mark.parametrize("file", [FILE, KOHYA_FILE])
@pytest.mark.parametrize("layers", [ATTENTION, EMBEDDED_LAYERS])
def test_diffusers_loads_the_lora_files(file, layers, pipeline, inputs_of, tmp_path):
    customizer, inputs = replace(CUSTOMIZERS["lora"], unet_layers=layers), inputs_of()
    customizer.customize(inputs)
    customizer.save(inputs.model, tmp_path)
    pipeline.load_lora_weights(tmp_path, weight_name=file)
    torch.testing.assert_close(samples_of(pipeline), samples(inputs.model), atol=1e-5, rtol=0)

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
    with pytest.raises(ValueError, match=r"unet_layers: .* no layer 'to_x'"):
        add_adapters(new_model(), [*ATTENTION, "to_x"], rank=4, seed=0)


def test_untrained_adapters_change_nothing(new_model):
    model, plain = new_model(), samples(new_model())
    parameters = add_adapters(model, EMBEDDED_LAYERS, rank=4, seed=0)
    torch.testing.assert_close(samples(model), plain)
    assert not any(parameter.requires_grad for parameter in parameters)
    assert all(4 in parameter.shape[:2] for parameter in parameters)


def test_adapters_are_those_of_their_seed(new_model):
    def weights(seed):
        torch.manual_seed(torch.seed() % 2**31)  # whatever the global generator does
        return add_adapters(new_model(), ATTENTION, rank=4, seed=seed)

    one, same, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


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


def moved(model, before) -> set[str]:
    """The weights of `model` that are not those of `before`."""
    names = set()
    for part in ("vae", "unet", "text_encoder"):
        after = getattr(model, part).state_dict()
        for name, value in getattr(before, part).state_dict().items():
            if not torch.equal(after[name], value):
                names.add(f"{part}.{name}")
    return names


def moved_tokens(model, before) -> list[str]:
    tables = [m.text_encoder.get_input_embeddings().weight for m in (model, before)]
    rows = (tables[0] != tables[1]).any(1).nonzero().flatten()
    return model.tokenizer.convert_ids_to_tokens(rows.tolist())


@pytest.mark.parametrize("name", ["textual_inversion", "custom_diffusion"])
def test_of_the_words_only_the_rare_one_moves(name, inputs_of, new_model, tmp_path):
    customizer, inputs, before = CUSTOMIZERS[name], inputs_of(), new_model()
    customizer.customize(inputs)
    customizer.save(inputs.model, tmp_path)
    loaded = new_model()
    customizer.load(loaded, tmp_path)
    expected = {f"text_encoder.{TOKEN_TABLE}"}
    if name == "custom_diffusion":
        expected |= {
            f"unet.{weight}"
            for weight in before.unet.state_dict()
            if weight.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        }
        assert len(expected) > 2
    for model in (inputs.model, loaded):
        assert moved(model, before) == expected
        assert moved_tokens(model, before) == ["sks</w>"]
    assert moved(inputs.model, loaded) == set()
    assert not inputs.model.text_encoder.get_input_embeddings()._forward_hooks


def test_textual_inversion_begins_as_the_initializer(inputs_of):
    def killed(what, done, total, loss=None):
        seen.append(inputs.model.text_embeddings([PROMPT, "a photo of person person"]))
        raise Killed

    seen, inputs = [], inputs_of(progress=killed)
    barely = replace(CUSTOMIZERS["textual_inversion"], training=FineTuning(learning_rate=1e-9))
    with pytest.raises(Killed):
        barely.customize(inputs)
    torch.testing.assert_close(seen[0][0], seen[0][1])


def test_a_rare_word_may_be_of_several_tokens(inputs_of, new_model, tmp_path):
    prompts = {"instance_prompt": "a photo of s@s person", "class_prompt": "a photo of person"}
    customizer = replace(CUSTOMIZERS["textual_inversion"], **prompts)
    inputs = inputs_of()
    customizer.customize(inputs)
    customizer.save(inputs.model, tmp_path)
    tokens = inputs.model.tokenizer.tokenize("s@s")
    assert len(tokens) > 1
    assert set(moved_tokens(inputs.model, new_model())) == set(tokens)
    loaded = new_model()
    customizer.load(loaded, tmp_path)
    assert moved(loaded, inputs.model) == set()


def test_diffusers_loads_the_textual_inversion(pipeline, inputs_of, tmp_path):
    customizer, inputs = CUSTOMIZERS["textual_inversion"], inputs_of()
    customizer.customize(inputs)
    customizer.save(inputs.model, tmp_path)
    plain = samples_of(pipeline)
    pipeline.load_textual_inversion(tmp_path)
    images = samples_of(pipeline)
    torch.testing.assert_close(images, samples(inputs.model), atol=1e-5, rtol=0)
    assert (images - plain).abs().mean() > 1e-3


def test_diffusers_loads_the_custom_diffusion(pipeline, inputs_of, tmp_path):
    customizer, inputs = CUSTOMIZERS["custom_diffusion"], inputs_of()
    customizer.customize(inputs)
    customizer.save(inputs.model, tmp_path)
    # without the pipeline, diffusers 0.42 reads the file and sets nothing
    pipeline.unet.load_attn_procs(tmp_path, weight_name=custom_diffusion.FILE, _pipeline=pipeline)
    pipeline.load_textual_inversion(tmp_path)
    # its attention for these weights rounds differently
    torch.testing.assert_close(samples_of(pipeline), samples(inputs.model), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", CUSTOMIZERS)
def test_a_killed_customization_goes_on_and_ends_with_the_same_bytes(name, inputs_of):
    def killed_at_three(what, done, total, loss=None):
        assert (what, total) == ("customization", 3)
        if done == 3:
            raise Killed

    customizer, whole, memory = CUSTOMIZERS[name], inputs_of(), Memory(every=2)
    losses = customizer.customize(whole)
    with pytest.raises(Killed):
        customizer.customize(inputs_of(memory, killed_at_three))
    resumed = inputs_of(memory)
    assert customizer.customize(resumed) == losses[2:]
    for part in ("unet", "text_encoder"):
        wanted = getattr(whole.model, part).state_dict()
        for key, value in getattr(resumed.model, part).state_dict().items():
            assert torch.equal(value, wanted[key]), key


@pytest.mark.parametrize("name", CUSTOMIZERS)
def test_a_loss_that_is_not_finite_names_the_step(name, inputs_of):
    class Poisoned(SeededDraws):
        def __call__(self, phase, name, count, allowed):
            draw = super().__call__(phase, name, count, allowed)
            if phase == "customize 1":
                draw.noise[0] = float("nan")
            return draw

    inputs = inputs_of(draws=Poisoned(0, "ann", (4, 8, 8)))
    with pytest.raises(
        FloatingPointError, match=r"step 1: .*lower customizer\.training\.learning_rate"
    ):
        CUSTOMIZERS[name].customize(inputs)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dreambooth", {"steps": 0}),
        ("lora", {"steps": 1.5}),
        ("lora", {"rank": 0}),
        ("textual_inversion", {"steps": True}),
        ("textual_inversion", {"initializer": "dog"}),
        ("textual_inversion", {"instance_prompt": "a photo of person"}),
        ("textual_inversion", {"instance_prompt": "a selfie of sks person"}),
        ("custom_diffusion", {"steps": -1}),
        ("custom_diffusion", {"instance_prompt": "a photo of person"}),
    ],
)
def test_bad_settings_are_refused(name, settings):
    (key,) = settings
    with pytest.raises(ValueError, match=f"^customizer.{key}=.*expected") as error:
        replace(CUSTOMIZERS[name], **settings)
    assert "\n" not in str(error.value)
