"""The training of the embedded model, a few steps of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anticustom import model_files
from anticustom.model_files import EMBEDDED
from anticustom.portraits import TRAINING_IDENTITIES_FROM
from experiments.embedded import training_portraits
from experiments.embedded.architecture import RARE_TOKENS, SIZE, make_tokenizer, new_text_encoder
from experiments.embedded.train import main, place_rare_tokens
from experiments.embedded.training_portraits import NAMED_PORTRAITS, names
from experiments.embedded.training_run import Run, shuffled_batches


@pytest.mark.parametrize("name", ["tiny", "tiny_b"])
def test_training_goes_on_and_writes_a_model(name, tmp_path):
    def train(steps: int) -> None:
        counts = {"portraits": 16, "autoencoder-steps": steps}
        counts |= {"unet-steps": steps, "batch": 4, "model": name}
        paths = {"work": tmp_path / "work", "output": tmp_path / "model", "device": "cpu"}
        main([f"--{key}={value}" for key, value in (counts | paths).items()])

    train(1)
    train(2)  # goes on after the first step
    saved = torch.load(tmp_path / "work" / f"{name}-unet.pt", weights_only=True)
    assert saved["step"] == 2
    written = [file.read_text() for file in (tmp_path / "model").rglob("*.json")]
    assert not any(str(EMBEDDED) in text for text in written)  # a path of one machine
    model = model_files.load(str(tmp_path / "model"))
    images = model.sample(
        "a photo of sks person",
        torch.randn(1, *model.latent_shape),
        steps=1,
        guidance_scale=2,
        scheduler="DDIMScheduler",
    )
    assert images.shape == (1, 3, SIZE, SIZE)
    assert model_files.image_size(tmp_path / "model") == SIZE


def test_training_portraits_are_of_reserved_identities(tmp_path, monkeypatch):
    numbers = []
    monkeypatch.setattr(
        training_portraits,
        "person",
        lambda number, real=training_portraits.person: numbers.append(number) or real(number),
    )
    portraits = training_portraits.training_portraits(tmp_path, 4)
    assert portraits.images.shape == (4, 3, SIZE, SIZE)
    assert portraits.images.dtype == torch.uint8
    assert len(portraits.captions) == 4
    assert min(numbers) >= TRAINING_IDENTITIES_FROM


def test_the_named_are_called_by_their_names():
    named, others = (training_portraits._captions(k) for k in (0, NAMED_PORTRAITS))
    assert [f" {names()[0]} person" in text for text in named] == [True] * 4 + [False] * 2
    assert not any(name in text.split() for text in others for name in names())
    assert len(set(names())) == len(names())
    words = {word for text in others for word in text.split()}
    assert not words & set(names())


def test_batches_go_on_where_they_were():
    whole = shuffled_batches(torch.arange(10), 3, 0)
    drawn = [next(whole).tolist() for _ in range(7)]
    assert len({index for batch in drawn[:3] for index in batch}) == 9  # an epoch repeats none
    assert drawn[:3] != drawn[3:6]
    later = shuffled_batches(torch.arange(10), 3, 4)
    assert [next(later).tolist() for _ in range(3)] == drawn[4:]


@pytest.mark.parametrize("word", [*RARE_TOKENS, "person", "mirror", "eiffel", "dslr"])
def test_words_of_prompts_are_single_tokens(word):
    tokenizer = make_tokenizer([["a photo of person with red hair"]])
    assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert tokenizer(word).input_ids[1] != tokenizer.unk_token_id


def test_rare_tokens_lie_among_the_names():
    tokenizer = make_tokenizer([names()])
    text_encoder = new_text_encoder(tokenizer)
    table = text_encoder.get_input_embeddings().weight.detach()
    known = tokenizer.convert_tokens_to_ids([f"{name}</w>" for name in names()])
    table[known] += 3
    place_rare_tokens(tokenizer, text_encoder)
    rare = table[tokenizer.convert_tokens_to_ids([f"{token}</w>" for token in RARE_TOKENS])]
    assert torch.allclose(rare.mean(), torch.tensor(3.0), atol=0.05)
    assert rare.std(0).mean() == pytest.approx(table[known].std(0).mean().item(), rel=0.3)
    assert len(rare.unique(dim=0)) == len(RARE_TOKENS)


STEPS = """
import sys
from pathlib import Path
import torch
from experiments.embedded.training_run import Run, join_processes
from experiments.embedded.training_run import rank_and_processes, shuffled_batches
torch.set_num_threads(1)
join_processes()
torch.manual_seed(0)
network = torch.nn.Linear(3, 1)
run = Run(Path(sys.argv[1]), network, 5, learning_rate=0.1)
data = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
batches = shuffled_batches(torch.arange(16), 4, run.first)
for _ in run:
    run.descend(network(data[next(batches)]).square().mean())
"""


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    def train(name: str, steps: int, stop: int | None = None) -> dict:
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 1)
        run = Run(tmp_path / name, network, steps, learning_rate=0.1)
        data = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
        batches = shuffled_batches(torch.arange(16), 4, run.first)
        for step in run:
            if step == stop:
                run.save(step)
                break
            run.descend(network(data[next(batches)]).square().mean())
        return torch.load(tmp_path / name, weights_only=True)

    whole = train("whole", 5)
    assert train("stopped", 5, stop=2)["step"] == 2
    resumed = train("stopped", 5)
    assert resumed["step"] == 5
    for name, weight in whole["network"].items():
        assert torch.equal(resumed["network"][name], weight)
    shorter = train("whole", 2)  # of a longer one nothing is undone, nor called otherwise
    assert shorter["step"] == 5
    assert torch.equal(shorter["network"]["weight"], whole["network"]["weight"])


def test_two_processes_learn_what_one_does(tmp_path):
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    one = [sys.executable, script, tmp_path / "one.pt"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    two = [*launcher, "--nproc-per-node", "2", script, tmp_path / "two.pt"]
    for command in (one, two):
        subprocess.run(command, check=True, env=environment, capture_output=True)
    weights = [
        torch.load(tmp_path / f"{name}.pt", weights_only=True)["network"]["weight"]
        for name in ("one", "two")
    ]
    assert torch.allclose(*weights, atol=1e-6)
    torch.manual_seed(0)
    assert not torch.allclose(weights[0], torch.nn.Linear(3, 1).weight, atol=1e-3)
