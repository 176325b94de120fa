"""What a run takes of a GPU, counted without one."""

import weakref

import pytest
import torch
from omegaconf import OmegaConf

from anticustom import model_files
from anticustom.adapters import Adapters, add_adapters
from anticustom.draws import SeededDraws
from anticustom.finetuning import FineTuning, Trainer, all_weights, encode
from experiments.benchmarks import memory_table
from experiments.benchmarks.memory_table import write_shapes
from experiments.setup import memory, memory_counting
from experiments.setup.building import Refused
from experiments.setup.composing import CONF, composed
from experiments.setup.memory import GIB, NAMES, check_fits, free_bytes
from experiments.setup.memory_counting import of_adapters, of_weights

# what a program finds free on a card of each name, in GiB
CARDS = {"40gb": 39.4, "24gb": 23.5, "12gb": 11.6}


@pytest.fixture(scope="module")
def sd21(tmp_path_factory):
    """A folder with the shapes of Stable Diffusion 2.1, and no weights."""
    folder = tmp_path_factory.mktemp("sd21")
    write_shapes("sd21", folder)
    return folder


@pytest.fixture
def fits(sd21):
    """Check a configuration on a GPU of so many GiB."""

    def check(available: float, *words: str) -> None:
        words = ["surrogate_model=sd21", "precision=mixed", *words]
        config = composed(*words, "dataset=portraits")
        folders = {"surrogate_model": sd21, "customizer.base_model": sd21}
        choices = {"attack": "simac", "customizer": "dreambooth"}
        for word in words:
            group, _, name = word.partition("=")
            choices |= {group: name} if group in choices else {}
        check_fits(config.stages, config, folders, choices, available * GIB)

    return check


@pytest.mark.parametrize("name", NAMES)
def test_simac_and_a_victim_fit_the_card_that_the_setting_is_named_after(fits, name):
    customizer = "lora" if name == "12gb" else "dreambooth"
    fits(CARDS[name], f"memory={name}", f"customizer={customizer}")


@pytest.mark.parametrize(
    ("available", "words", "said"),
    [
        (23.5, [], r"attack=simac takes 3\d\.\d GiB, .* 23\.5 GiB free: run with memory=24gb"),
        (11.6, ["memory=24gb"], r"attack=simac takes 2\d\.\d GiB, .*: run with memory=12gb"),
        (15, ["attack=none"], r"customizer=dreambooth takes 2.* run with memory=24gb \(14\."),
        (11.6, ["attack=none"], r"even at its least .* memory=24gb .*; customizer=lora takes less"),
        (3, ["attack=advdm"], r"attack=advdm takes .* even at its least .* \(6\.\d GiB\)$"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_setting_that_does(fits, available, words, said):
    with pytest.raises(Refused, match=said):
        fits(available, *words)


def test_what_an_earlier_job_left_is_free(monkeypatch):
    """In the cache, or in objects that hold each other."""

    class Left:
        def __init__(self):
            self.itself = self

    left, cached = weakref.ref(Left()), [30]
    monkeypatch.setattr(torch.cuda, "empty_cache", cached.clear)

    def info(device: str) -> tuple[int, int]:
        return 39 - sum(cached) - (5 if left() else 0), 40

    monkeypatch.setattr(torch.cuda, "mem_get_info", info)
    assert info("cuda:0")[0] == 4
    assert free_bytes("cuda:0") == 39
    assert free_bytes("cpu") is None


def test_the_table_has_what_the_check_counts(monkeypatch, capsys):
    monkeypatch.setattr(memory_table, "ATTACKS", ("advdm",))
    monkeypatch.setattr(memory_table, "CUSTOMIZERS", ("lora",))
    memory_table.main([])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [cell.strip() for cell in rows[0]] == ["GiB", *NAMES]
    sizes = {row[0].strip(): [float(cell) for cell in row[1:]] for row in rows[2:]}
    assert list(sizes) == ["attack=advdm", "customizer=lora"]
    # what the check refuses at 3 GiB, and takes at 12
    assert all(3 < size < 12 for row in sizes.values() for size in row)
    assert sizes["attack=advdm"][0] > sizes["attack=advdm"][1]


def test_stages_that_do_not_run_need_nothing(fits):
    fits(3, "attack=noise", "stages=[protect]")
    fits(1, "stages=[eval]")


@pytest.mark.parametrize(("states", "tolerance"), [("32bit", 0.001), ("8bit", 0.05)])
def test_a_training_takes_what_is_counted(states, tolerance):
    """Gradients, moments and the copy, measured on the embedded model."""
    model = model_files.load("tiny")
    settings = FineTuning(learning_rate=1e-5, optimizer_states=states)
    prompts = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
    trainer = Trainer(model, all_weights(model), settings, **prompts)
    photos = encode(model, "ab", torch.rand(2, 3, 128, 128))
    draws = SeededDraws(0, "memory", model.latent_shape)
    trainer.train(photos, photos, 1, draws, "step", photo_set="photos")
    copy, _ = trainer.state()
    moments = {name: value for name, value in copy.items() if name.startswith("adam.")}
    taken = sum(p.nbytes for p in all_weights(model)) + _bytes(moments) + _bytes(copy)
    counted = of_weights(settings, all_weights(model), kept=True).bytes
    assert counted == pytest.approx(taken, rel=tolerance)


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def test_adapters_are_counted_as_they_are():
    layers = ["to_q", "conv1", "proj_in"]
    model = model_files.load("tiny")
    counted = of_adapters(FineTuning(learning_rate=1e-4), model, layers, 4)
    adapters = add_adapters(model, Adapters(rank=4, unet_layers=layers), 0)
    assert counted.count == sum(p.numel() for p in adapters)


def test_steps_are_counted_in_their_own_precision():
    """Whatever the surrogate trains in and was loaded in."""
    folders = {"surrogate_model": model_files.EMBEDDED / "tiny"}

    def taken(*words: str) -> float:
        return memory.stage_bytes("protect", composed("attack=advdm", *words), folders)

    def split(steps: str, training: str) -> float:
        return taken(f"attack.precision={steps}", f"+attack.training_precision={training}")

    mixed, whole = (taken(f"attack.precision={one}") for one in ("mixed", "float32"))
    assert mixed != whole
    assert (split("float32", "mixed"), split("mixed", "float32")) == (whole, mixed)
    rounded = taken("attack.precision=bfloat16")
    assert rounded < split("bfloat16", "float32")  # the rounded weights beside the others


def test_purification_keeps_what_each_of_its_steps_keeps():
    folders = {"surrogate_model": model_files.EMBEDDED / "tiny"}
    both = folders | {"attack.purifier": model_files.EMBEDDED / "tiny_b"}

    def taken(timestep: int) -> float:
        purify = f"{{_target_: anticustom.countermeasures.Purify, timestep: {timestep}}}"
        words = ["attack=advdm", f"attack.transforms=[identity,{purify}]"]
        config = composed(*words, "+surrogate_model@attack.purifier=tiny_b")
        return memory.stage_bytes("protect", config, both)

    plain = memory.stage_bytes("protect", composed("attack=advdm"), folders)
    purifier = model_files.load("tiny_b")
    weights = sum(
        parameter.nbytes
        for network in (purifier.vae, purifier.unet, purifier.text_encoder)
        for parameter in network.parameters()
    )
    one, two, four = (taken(20 * steps) - plain for steps in (1, 2, 4))
    assert one > weights
    assert four - two == pytest.approx(2 * (two - one))
    assert two > one


def test_of_an_attack_with_a_loop_of_its_own_the_models_are_counted():
    model = model_files.load("tiny")
    counted = memory_counting.bytes_to_protect(object(), [model, model])
    networks = (model.vae, model.unet, model.text_encoder)
    taken = sum(p.nbytes for network in networks for p in network.parameters())
    assert counted == memory_counting.UNCOUNTED + 2 * taken


def test_checkpointing_keeps_less_and_gives_the_same_gradients():
    kept, gradients = {}, {}
    for checkpointing in (False, True):
        model = model_files.load("tiny", gradient_checkpointing=checkpointing)
        noisy = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        noisy.requires_grad_()
        embeddings = model.text_embeddings(["a photo of person"])

        def loss(model=model, noisy=noisy, embeddings=embeddings) -> torch.Tensor:
            return model.predict(noisy, torch.tensor([10, 500]), embeddings).pow(2).sum()

        kept[checkpointing] = memory_counting._kept_for_gradients(model, loss)
        (gradients[checkpointing],) = torch.autograd.grad(loss(), noisy)
    assert kept[True] < 0.5 * kept[False]
    torch.testing.assert_close(gradients[True], gradients[False])


def test_every_setting_has_the_keys_of_all():
    files = {name: OmegaConf.load(CONF / f"memory/{name}.yaml") for name in NAMES}
    assert len({frozenset(node) for node in files.values()}) == 1
