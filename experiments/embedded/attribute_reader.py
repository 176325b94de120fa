"""A small network that reads attributes off a portrait, to check whether a model follows prompts.

It learns from portraits whose attributes the renderer knows.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from anticustom.portraits import (
    SCENES,
    STYLES,
    TRAINING_IDENTITIES_FROM,
    Person,
    Shot,
    person,
    render,
    shot,
)
from anticustom.portraits.people import BEARDS, HAIR_COLOURS

FIRST = TRAINING_IDENTITIES_FROM + 500_000  # identities from here on are in no other training
SIZE = 64  # pixels of the images that the network sees
VALUES = {
    "hair": ("hidden", *HAIR_COLOURS),
    "beard": BEARDS,
    "glasses": ("no", "yes"),
    "hat": ("no", "yes"),
    "scene": tuple(SCENES),
}


def attributes(who: Person, when: Shot) -> dict[str, str]:
    """Return the value of every attribute in VALUES that the renderer draws."""
    hidden = who.hat != "none" or who.hair_style in ("bald", "buzzed", "receding")
    return {
        "hair": "hidden" if hidden else who.hair_colour,
        "beard": who.beard,
        "glasses": "no" if who.glasses == "none" else "yes",
        "hat": "no" if who.hat == "none" else "yes",
        "scene": when.scene,
    }


class AttributeReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers, channels = [], 3
        for width in (24, 48, 96, 96):
            layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleDict(
            {name: nn.Linear(channels * 16, len(values)) for name, values in VALUES.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of every attribute for images (n, 3, SIZE, SIZE) in [0, 1]."""
        features = self.trunk(images - 0.5)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor) -> list[dict[str, str]]:
        """Return the likeliest value of every attribute for each image (n, 3, h, w) in [0, 1]."""
        images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        logits = self(images)
        return [
            {name: values[logits[name][k].argmax()] for name, values in VALUES.items()}
            for k in range(len(images))
        ]


def trained_reader(file: Path, portraits: int = 8000, epochs: int = 8) -> AttributeReader:
    """Return the reader stored in `file`, trained first if there is none: minutes on one core."""
    torch.manual_seed(0)
    reader = AttributeReader()
    if file.exists():
        reader.load_state_dict(torch.load(file, weights_only=True))
        return reader.eval()
    images, labels = labelled_portraits(range(FIRST, FIRST + portraits))
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * (portraits // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in tqdm(range(epochs), desc="attribute reader"):
        for chosen in torch.randperm(portraits)[: portraits // 64 * 64].split(64):
            x = images[chosen]
            # the samples of a model are softer and noisier than rendered portraits
            x = F.avg_pool2d(x, 3, 1, 1) if torch.rand(()) < 0.5 else x
            logits = reader(x + 0.02 * torch.randn_like(x))
            loss = sum(F.cross_entropy(logits[name], labels[name][chosen]) for name in VALUES)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(reader.state_dict(), file)
    return reader.eval()


def labelled_portraits(identities: range) -> tuple[Tensor, dict[str, Tensor]]:
    """Return one portrait of each identity in a random scene and style, and the index of each of
    its attributes in VALUES.
    """
    people, shots = [person(number) for number in identities], []
    for number in identities:
        rng = np.random.default_rng((number, 0xA77))
        scene, style = str(rng.choice(SCENES)), str(rng.choice(STYLES))
        shots.append(shot(number, 0, style=style, scene=scene))
    images = [
        render(people[k : k + 50], shots[k : k + 50], SIZE)
        for k in tqdm(range(0, len(people), 50), desc="labelled portraits")
    ]
    rows = [attributes(who, when) for who, when in zip(people, shots, strict=True)]
    labels = {
        name: torch.tensor([values.index(row[name]) for row in rows])
        for name, values in VALUES.items()
    }
    return torch.cat(images), labels
