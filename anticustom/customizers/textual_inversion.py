"""Textual inversion: the embedding of the rare word, and nothing else (arXiv 2208.01618)."""

from dataclasses import dataclass
from pathlib import Path

from anticustom.checks import check_count
from anticustom.customizers.rare_word import (
    embeddings,
    load_embeddings,
    rare_word,
    save_embeddings,
    trained_embeddings,
)
from anticustom.customizers.training import CustomizerInputs, train
from anticustom.diffusion import LatentDiffusion
from anticustom.finetuning import FineTuning


@dataclass(frozen=True, kw_only=True)
class TextualInversion:
    """The embedding of the rare word of the instance prompt, which the class prompt lacks. It
    begins as that of `initializer`, a word of the class prompt.

    The paper and diffusers' script vary the prompt round the word, and diffusers' script mirrors
    every other photo; here the prompt is the instance prompt in every step, and photos stay.
    """

    training: FineTuning
    steps: int
    initializer: str
    instance_prompt: str
    class_prompt: str

    def __post_init__(self):
        check_count("customizer.steps", self.steps)
        rare_word(self.instance_prompt, self.class_prompt)
        if self.initializer not in self.class_prompt.split():
            raise ValueError(
                f"customizer.initializer={self.initializer!r}: expected a word of the class prompt "
                f"{self.class_prompt!r}, the one that says what is learned"
            )

    @property
    def word(self) -> str:
        return rare_word(self.instance_prompt, self.class_prompt)

    def customize(self, inputs: CustomizerInputs) -> list[float]:
        """Turn `inputs.model` into the victim; return the losses."""
        # a row of the mean for every token of the rare word
        start = (
            embeddings(inputs.model, self.initializer)
            .mean(0)
            .expand_as(embeddings(inputs.model, self.word))
        )
        with trained_embeddings(inputs.model, self.word, start) as rows:
            return train(
                inputs,
                [rows],
                self.training,
                self.steps,
                instance_prompt=self.instance_prompt,
                class_prompt=self.class_prompt,
            )

    def save(self, model: LatentDiffusion, folder: Path) -> None:
        """Write the word's embedding as diffusers' `load_textual_inversion` reads it."""
        save_embeddings(model, self.word, folder)

    def load(self, model: LatentDiffusion, folder: Path) -> None:
        """Turn the base model into the victim saved in `folder`."""
        load_embeddings(model, self.word, folder)
