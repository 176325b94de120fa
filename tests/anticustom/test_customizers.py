from dataclasses import replace

import pytest
import torch
from customizing import CUSTOMIZERS, PROMPT, noise, samples, samples_of
from helpers import Killed, Memory
from safetensors.torch import load_file

from anticustom.customizers import custom_diffusion
from anticustom.customizers.rare_word import rare_word
from anticustom.diffusion import LatentDiffusion
from anticustom.draws import SeededDraws
from anticustom.finetuning import FineTuning

TRAIN_BOTH_NETWORKS = ["dreambooth", "lora", "custom_diffusion"]
TOKEN_TABLE = "embeddings.token_embedding.weight"


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


@pytest.mark.parametrize("name", CUSTOMIZERS)
def test_photos_are_learned_under_the_instance_prompt_and_class_images_under_theirs(
    name, inputs_of, monkeypatch
):
    customizer, inputs, asked = CUSTOMIZERS[name], inputs_of(), set()
    embed = LatentDiffusion.text_embeddings

    def noting(model, prompts):
        asked.add(tuple(prompts))
        return embed(model, prompts)

    monkeypatch.setattr(LatentDiffusion, "text_embeddings", noting)
    customizer.customize(inputs)
    prompts = (customizer.instance_prompt, customizer.class_prompt)
    assert asked == {prompts if customizer.training.preserves_prior else prompts[:1]}


@pytest.mark.parametrize("name", CUSTOMIZERS)
@pytest.mark.parametrize("images", ["photos", "class_images"])
def test_a_victim_depends_on_its_photos_and_on_the_class_images_that_it_preserves(
    name, images, inputs_of, pictures
):
    customizer, victims = CUSTOMIZERS[name], []
    for seed in (8, 9):
        inputs = inputs_of()
        names, before = getattr(inputs, images)
        setattr(inputs, images, (names, pictures(len(before), seed)))
        customizer.customize(inputs)
        victims.append(inputs.model)
    learned = images == "photos" or customizer.training.preserves_prior
    assert bool(moved(*victims)) == learned


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


@pytest.mark.parametrize(
    ("instance", "word"),
    [
        ("a photo of sks person", "sks"),
        ("a dslr portrait of xjy person", "xjy"),
        ("a photo of person sks", "sks"),
    ],
)
def test_the_rare_word_stands_before_the_noun_or_is_the_only_new_one(instance, word):
    assert rare_word(instance, "a photo of person") == word


@pytest.mark.parametrize("instance", ["a photo of person", "a dslr portrait", "x person y person"])
def test_a_prompt_without_a_rare_word_is_refused(instance):
    with pytest.raises(ValueError, match=r"customizer\.instance_prompt=.*such as sks"):
        rare_word(instance, "a photo of person")


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
    torch.testing.assert_close(images, samples(inputs.model), atol=1e-6, rtol=0)
    assert (images - plain).abs().mean() > 1e-3


def test_diffusers_loads_the_custom_diffusion(pipeline, inputs_of, tmp_path):
    customizer, inputs = CUSTOMIZERS["custom_diffusion"], inputs_of()
    customizer.customize(inputs)
    customizer.save(inputs.model, tmp_path)
    # without the pipeline, diffusers 0.42 reads the file and sets nothing
    pipeline.unet.load_attn_procs(tmp_path, weight_name=custom_diffusion.FILE, _pipeline=pipeline)
    pipeline.load_textual_inversion(tmp_path)
    torch.testing.assert_close(samples_of(pipeline), samples(inputs.model), atol=1e-6, rtol=0)


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
        ("textual_inversion", {"instance_prompt": "a selfie of sks woman"}),
        ("custom_diffusion", {"steps": -1}),
        ("custom_diffusion", {"instance_prompt": "a photo of person"}),
    ],
)
def test_bad_settings_are_refused(name, settings):
    (key,) = settings
    with pytest.raises(ValueError, match=f"^customizer.{key}=.*expected") as error:
        replace(CUSTOMIZERS[name], **settings)
    assert "\n" not in str(error.value)
