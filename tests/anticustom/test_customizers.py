from dataclasses import replace

import pytest
import torch
from customizing import CUSTOMIZERS, PROMPT, noise, pipeline_samples, samples
from helpers import Killed, Memory, changed, refused, weights
from safetensors.torch import load_file

from anticustom.customizers import custom_diffusion
from anticustom.customizers.rare_word import rare_word
from anticustom.diffusion import LatentDiffusion
from anticustom.draws import SeededDraws
from anticustom.finetuning import FineTuning

TOKEN_TABLE = "embeddings.token_embedding.weight"


@pytest.fixture(scope="session")
def loaded(new_model):
    """Load a saved victim into a new model."""

    def load(name: str, folder, precision="float32", **changed) -> LatentDiffusion:
        model = new_model(precision)
        replace(CUSTOMIZERS[name], **changed).load(model, folder)
        return model

    return load


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "float32") for name in CUSTOMIZERS),
        *((name, "bfloat16") for name in CUSTOMIZERS),
        ("lora", "mixed"),
        ("textual_inversion", "mixed"),
    ],
)
def test_a_saved_victim_gives_the_same_samples(name, precision, victim, loaded, new_model):
    model, losses, folder = victim(name, precision)
    assert len(losses) == 3
    images = samples(model)
    assert images.dtype == torch.float32
    assert images.shape == (2, 3, 64, 64)
    assert torch.equal(samples(loaded(name, folder, precision)), images)
    assert (images - samples(new_model(precision))).abs().mean() > 1e-3
    assert not any(p.requires_grad for p in model.unet.parameters())


@pytest.mark.parametrize("name", CUSTOMIZERS)
def test_photos_are_learned_under_the_instance_prompt_and_class_images_under_theirs(
    name, inputs_of, monkeypatch
):
    customizer, seen = replace(CUSTOMIZERS[name], steps=1), set()
    embed = LatentDiffusion.text_embeddings

    def noting(model, prompts):
        seen.add(tuple(prompts))
        return embed(model, prompts)

    monkeypatch.setattr(LatentDiffusion, "text_embeddings", noting)
    customizer.customize(inputs_of())
    prompts = (customizer.instance_prompt, customizer.class_prompt)
    assert seen == {prompts if customizer.training.preserves_prior else prompts[:1]}


@pytest.mark.parametrize("name", CUSTOMIZERS)
@pytest.mark.parametrize("images", ["photos", "class_images"])
def test_a_victim_depends_on_its_photos_and_on_the_class_images_that_it_preserves(
    name, images, victim, inputs_of, pictures
):
    customizer, inputs = replace(CUSTOMIZERS[name], steps=1), inputs_of()
    names, before = getattr(inputs, images)
    setattr(inputs, images, (names, pictures(len(before), 8)))
    customizer.customize(inputs)
    learned = images == "photos" or customizer.training.preserves_prior
    first = weights(victim(name, steps=1).model)
    assert bool(changed(first, weights(inputs.model))) == learned


@pytest.mark.parametrize("name", ["dreambooth", "lora", "custom_diffusion"])
def test_both_networks_learn_and_the_vae_does_not(name, victim, loaded, new_model):
    model, _, folder = victim(name)
    models = model, loaded(name, folder), new_model()
    latents, time = noise(), torch.tensor([500, 500])
    with torch.no_grad():
        embeddings = models[-1].text_embeddings([PROMPT])
        kinds = (
            [m.text_embeddings([PROMPT]) for m in models],
            [m.text_embeddings(["a dslr portrait of sks person"]) for m in models],
            [m.predict(latents, time, embeddings) for m in models],
        )
    for outputs in kinds:
        assert torch.equal(outputs[0], outputs[1])
        assert (outputs[0] - outputs[2]).abs().max() > 1e-3
    vae = model.vae.state_dict()
    assert all(torch.equal(vae[k], v) for k, v in models[-1].vae.state_dict().items())


def test_dreambooth_saves_the_two_networks_it_trains(victim):
    model, _, folder = victim("dreambooth")
    files = sorted(file.name for file in folder.iterdir())
    assert files == ["text_encoder.safetensors", "unet.safetensors"]
    saved = load_file(folder / "unet.safetensors")
    assert saved.keys() == model.unet.state_dict().keys()


def moved_tokens(model, before) -> list[str]:
    tables = [m.text_encoder.get_input_embeddings().weight for m in (model, before)]
    rows = (tables[0] != tables[1]).any(1).nonzero().flatten()
    return model.tokenizer.convert_ids_to_tokens(rows.tolist())


@pytest.mark.parametrize("name", ["textual_inversion", "custom_diffusion"])
def test_of_the_words_only_the_rare_one_moves(name, victim, loaded, new_model):
    model, _, folder = victim(name)
    before, copy = new_model(), loaded(name, folder)
    expected = {f"text_encoder.{TOKEN_TABLE}"}
    if name == "custom_diffusion":
        expected |= {
            f"unet.{weight}"
            for weight in before.unet.state_dict()
            if weight.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        }
        assert len(expected) > 2
    assert changed(weights(before), weights(model)) == expected
    assert moved_tokens(model, before) == ["sks</w>"]
    assert not changed(weights(model), weights(copy))
    assert not model.text_encoder.get_input_embeddings()._forward_hooks


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


def test_a_rare_word_may_be_of_several_tokens(victim, loaded, new_model):
    model, _, folder = victim("textual_inversion", instance_prompt="a photo of s@s person")
    tokens = model.tokenizer.tokenize("s@s")
    assert len(tokens) > 1
    assert set(moved_tokens(model, new_model())) == set(tokens)
    copy = loaded("textual_inversion", folder, instance_prompt="a photo of s@s person")
    assert not changed(weights(model), weights(copy))


def test_diffusers_loads_the_textual_inversion(pipeline, victim):
    model, _, folder = victim("textual_inversion")
    plain = pipeline_samples(pipeline)
    pipeline.load_textual_inversion(folder)
    images = pipeline_samples(pipeline)
    torch.testing.assert_close(images, samples(model), atol=1e-6, rtol=0)
    assert (images - plain).abs().mean() > 1e-3


def test_diffusers_loads_the_custom_diffusion(pipeline, victim):
    model, _, folder = victim("custom_diffusion")
    # without the pipeline, diffusers 0.42 reads the file and sets nothing
    pipeline.unet.load_attn_procs(folder, weight_name=custom_diffusion.FILE, _pipeline=pipeline)
    pipeline.load_textual_inversion(folder)
    torch.testing.assert_close(pipeline_samples(pipeline), samples(model), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CUSTOMIZERS)
def test_a_killed_customization_goes_on_and_ends_with_the_same_bytes(name, victim, inputs_of):
    def killed_at_three(what, done, total, loss=None):
        assert (what, total) == ("customization", 3)
        if done == 3:
            raise Killed

    customizer, whole, memory = CUSTOMIZERS[name], victim(name), Memory(every=2)
    with pytest.raises(Killed):
        customizer.customize(inputs_of(memory, killed_at_three))
    resumed = inputs_of(memory)
    assert customizer.customize(resumed) == whole.losses[2:]
    assert not changed(weights(whole.model), weights(resumed.model))


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
    with refused(f"^customizer.{key}=.*expected"):
        replace(CUSTOMIZERS[name], **settings)
