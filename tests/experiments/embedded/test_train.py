"""The training of the embedded models, a few steps of it. As a script: `train` on one file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anticustom import model_files
from anticustom.portraits import TRAINING_IDENTITIES_FROM
from experiments.embedded import training_portraits
from experiments.embedded.architecture import RARE_TOKENS, SIZE, make_tokenizer, new_text_encoder
from experiments.embedded.train import main, place_rare_tokens
from experiments.embedded.training_portraits import NAMED_PORTRAITS, names
from experiments.embedded.training_run import Run, shuffled_batches


def train(file: Path, steps: int = 5, stop: int | None = None) -> None:
    """Train a minuscule network, whose state goes to `file`, up to step `stop` if it is named."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    run = Run(file, network, steps, learning_rate=0.1)
    data = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    batches = shuffled_batches(torch.arange(16), 4, run.first)
    for step in run:
        if step == stop:
            run.save(step)
            break
        run.descend(network(data[next(batches)]).square().mean())


def trained(file: Path, **settings) -> dict:
    """Return the state that `train` leaves."""
    train(file, **settings)
    return torch.load(file, weights_only=True)


@pytest.mark.slow
def test_training_goes_on_and_writes_models(tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "EMBEDDED", tmp_path)
    for name in ("tiny", "tiny_b"):
        settings = [f"--model={name}", f"--work={tmp_path / 'work'}", "--device=cpu"]
        for steps in (1, 2):  # goes on after the first step
            counts = {"portraits": 16, "autoencoder-steps": steps, "unet-steps": steps, "batch": 4}
            main([*settings, *(f"--{key}={value}" for key, value in counts.items())])
        state = torch.load(tmp_path / "work" / f"{name}-unet.pt", weights_only=True)
        assert state["step"] == 2
        texts = [file.read_text() for file in (tmp_path / name).rglob("*.json")]
        assert not any(str(tmp_path) in text for text in texts)  # a path of one machine
        assert (tmp_path / name / "vae").exists() == (name == "tiny")  # stored once
        model = model_files.load(str(tmp_path / name))
        images = model.sample(
            "a photo of sks person",
            torch.randn(1, *model.latent_shape),
            steps=1,
            guidance_scale=2,
            scheduler="DDIMScheduler",
        )
        assert images.shape == (1, 3, SIZE, SIZE)
        assert model_files.image_size(tmp_path / name) == SIZE


def test_training_portraits_are_of_reserved_identities(tmp_path, monkeypatch):
    numbers = []
    person = training_portraits.person
    monkeypatch.setattr(
        training_portraits, "person", lambda number: numbers.append(number) or person(number)
    )
    for count in (2, 4):  # fewer portraits that are kept do not stand for more
        images, captions = training_portraits.training_portraits(tmp_path, count)
        assert images.shape == (count, 3, SIZE, SIZE)
        assert images.dtype == torch.uint8
        assert len(captions) == count
    assert min(numbers) >= TRAINING_IDENTITIES_FROM


def test_the_named_are_called_by_their_names():
    named, others = (training_portraits._captions(k) for k in (0, NAMED_PORTRAITS))
    assert [f" {names()[0]} person" in text for text in named] == [True] * 4 + [False] * 2
    assert len(set(names())) == len(names())
    assert not {word for text in others for word in text.split()} & set(names())


def test_batches_go_on_where_they_were():
    def batches(first: int, count: int) -> list[list[int]]:
        endless = shuffled_batches(torch.arange(10), 3, first)
        return [next(endless).tolist() for _ in range(count)]

    drawn = batches(0, 7)
    assert len({index for batch in drawn[:3] for index in batch}) == 9  # an epoch repeats none
    assert drawn[:3] != drawn[3:6]
    assert batches(4, 3) == drawn[4:]


def test_words_of_prompts_are_single_tokens_of_one_number():
    captions = [["a photo of person with red hair"], names()]
    tokenizer = make_tokenizer(captions)
    for word in (*RARE_TOKENS, "person", "mirror", "eiffel", "dslr", "red", names()[0]):
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
        assert tokenizer(word).input_ids[1] != tokenizer.unk_token_id
    for _ in range(3):  # a training that goes on, and each of several processes, makes its own
        assert make_tokenizer(captions).get_vocab() == tokenizer.get_vocab()


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


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    whole = trained(tmp_path / "whole")
    assert trained(tmp_path / "stopped", stop=2)["step"] == 2
    # a shorter training leaves the state of a longer one as it is
    for state in (trained(tmp_path / "stopped"), trained(tmp_path / "whole", steps=2)):
        assert state["step"] == 5
        for name, weight in whole["network"].items():
            assert torch.equal(state["network"][name], weight)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    weights = []
    for name, words in (("one.pt", []), ("two.pt", launcher)):
        command = [sys.executable, *words, __file__, str(tmp_path / name)]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        state = torch.load(tmp_path / name, weights_only=True)
        weights.append(state["network"]["weight"])
    assert torch.allclose(*weights, atol=1e-6)
    torch.manual_seed(0)
    assert not torch.allclose(weights[0], torch.nn.Linear(3, 1).weight, atol=1e-3)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
