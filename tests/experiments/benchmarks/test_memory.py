"""Memory of a GPU, counted without one."""

import pytest
import torch
from omegaconf import OmegaConf

from anticustom import model_files
from anticustom.adapters import Adapters, add_adapters
from anticustom.draws import SeededDraws
from anticustom.finetuning import FineTuning, Trainer, all_weights, encode
from experiments.benchmarks import memory
from experiments.benchmarks.memory import GIB, of_adapters, of_weights
from experiments.setup.composing import CONF, composed, memory_presets

pytestmark = pytest.mark.slow

# what a program finds free on a card of each name, in GiB
CARDS = {"40gb": 39.4, "24gb": 23.5, "12gb": 11.6}


def test_presets_are_sorted_and_have_the_same_keys():
    assert memory_presets() == list(CARDS)
    files = [OmegaConf.load(CONF / f"memory/{name}.yaml") for name in CARDS]
    assert len({frozenset(node) for node in files}) == 1


@pytest.mark.parametrize("preset", CARDS)
def test_simac_and_a_victim_fit_the_card_that_the_preset_is_named_after(preset):
    customizer = "lora" if preset == "12gb" else "dreambooth"
    words = ["surrogate_model=sd21", "precision=mixed", f"memory={preset}"]
    config = composed(*words, "attack=simac", f"customizer={customizer}")
    assert 3 < memory.attack_bytes(config) / GIB < CARDS[preset]
    assert 3 < memory.customizer_bytes(config) / GIB < CARDS[preset]


def test_the_table_has_a_row_for_each_method_and_a_column_for_each_preset(monkeypatch, capsys):
    monkeypatch.setattr(memory, "ATTACKS", ("advdm",))
    monkeypatch.setattr(memory, "CUSTOMIZERS", ("lora",))
    memory.main(["surrogate_model=tiny"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [cell.strip() for cell in rows[0]] == ["GiB, counted", *CARDS]
    sizes = {row[0].strip(): [float(cell) for cell in row[1:]] for row in rows[2:]}
    assert list(sizes) == ["attack=advdm", "customizer=lora"]
    config = composed("surrogate_model=tiny", "precision=mixed", "attack=advdm")
    assert sizes["attack=advdm"][0] == round(memory.attack_bytes(config) / GIB, 1)
    with pytest.raises(ValueError, match="Noise: only the steps of PGD"):
        memory.attack_bytes(composed("attack=noise"))


@pytest.mark.parametrize(("states", "tolerance"), [("32bit", 0.001), ("8bit", 0.05)])
def test_a_training_takes_the_counted_bytes(states, tolerance):
    """Gradients, moments and the copy, measured on the embedded model."""
    model = model_files.load("tiny")
    settings = FineTuning(learning_rate=1e-5, optimizer_states=states)
    prompts = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
    trainer = Trainer(model, all_weights(model), settings, **prompts)
    photos = encode(model, "ab", torch.rand(2, 3, 128, 128))
    draws = SeededDraws(0, "memory", model.latent_shape)
    trainer.train(photos, photos, 1, draws, "step", photo_set="photos")
    copy, _ = trainer.state()
    gradients = sum(p.nbytes for p in all_weights(model))
    moments = sum(tensor.nbytes for name, tensor in copy.items() if name.startswith("adam."))
    copied = sum(tensor.nbytes for tensor in copy.values())
    counted = of_weights(settings, all_weights(model), copied=True).bytes
    assert counted == pytest.approx(gradients + moments + copied, rel=tolerance)


def test_adapters_have_the_counted_weights():
    model = model_files.load("tiny")
    settings = Adapters(rank=4, unet_layers=["to_q", "conv1", "proj_in"])
    counted = of_adapters(FineTuning(learning_rate=1e-4), model, settings).count
    assert counted == sum(p.numel() for p in add_adapters(model, settings, 0))


def test_checkpointing_keeps_less_and_gives_the_same_gradients():
    kept, gradients = {}, {}
    for checkpointing in (False, True):
        model = model_files.load("tiny", gradient_checkpointing=checkpointing)
        noisy = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        noisy.requires_grad_()
        embeddings = model.text_embeddings(["a photo of person"])

        def loss(model=model, noisy=noisy, embeddings=embeddings) -> torch.Tensor:
            return model.predict(noisy, torch.tensor([10, 500]), embeddings).pow(2).sum()

        kept[checkpointing] = memory._kept_for_gradients(model, loss)
        (gradients[checkpointing],) = torch.autograd.grad(loss(), noisy)
    assert kept[True] < 0.5 * kept[False]
    torch.testing.assert_close(gradients[True], gradients[False])
