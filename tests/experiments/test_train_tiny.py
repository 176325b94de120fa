"""The training of the embedded model, a few steps of it."""

import pytest
import torch

from anticustom import diffusion
from anticustom.portraits import TRAINING_IDENTITIES_FROM
from experiments import training_portraits
from experiments.tiny_model import RARE_TOKENS, make_tokenizer
from experiments.train_tiny import main, shuffled_batches


def test_training_goes_on_and_writes_a_model(tmp_path):
    def train(steps: int) -> None:
        counts = {"portraits": 32, "autoencoder-steps": steps, "decoder-steps": 1}
        counts |= {"unet-steps": steps, "batch": 4}
        paths = {"work": tmp_path / "work", "output": tmp_path / "model", "device": "cpu"}
        main([f"--{name}={value}" for name, value in (counts | paths).items()])

    train(1)
    train(2)  # goes on after the first step
    saved = torch.load(tmp_path / "work" / "unet.pt", weights_only=True)
    assert saved["step"] == 2
    model = diffusion.load(str(tmp_path / "model"))
    images = model.sample(
        "a photo of sks person",
        torch.randn(1, *model.latent_shape),
        steps=1,
        guidance_scale=2,
        scheduler="DDIMScheduler",
    )
    assert images.shape == (1, 3, 64, 64)
    assert diffusion.image_size(tmp_path / "model") == 64


def test_training_portraits_are_of_reserved_identities(tmp_path, monkeypatch):
    numbers = []
    monkeypatch.setattr(
        training_portraits,
        "person",
        lambda number, real=training_portraits.person: numbers.append(number) or real(number),
    )
    images, captions = training_portraits.training_portraits(tmp_path, 4)
    assert images.shape == (4, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert len(captions) == 4
    assert min(numbers) >= TRAINING_IDENTITIES_FROM


def test_batches_go_on_where_they_were():
    whole = shuffled_batches(10, 3, 0)
    drawn = [next(whole).tolist() for _ in range(7)]
    assert len({index for batch in drawn[:3] for index in batch}) == 9  # an epoch repeats none
    assert drawn[:3] != drawn[3:6]
    later = shuffled_batches(10, 3, 4)
    assert [next(later).tolist() for _ in range(3)] == drawn[4:]


@pytest.mark.parametrize("word", [*RARE_TOKENS, "person", "mirror", "eiffel", "dslr"])
def test_words_of_prompts_are_single_tokens(word):
    tokenizer = make_tokenizer([["a photo of person with red hair"]])
    assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert tokenizer(word).input_ids[1] != tokenizer.unk_token_id
