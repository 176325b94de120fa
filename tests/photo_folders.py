"""Folders of photos to read identities from."""

import numpy as np
from helpers import refused
from PIL import Image

from anticustom.identities import BadDataset
from anticustom.images import BadPhoto


def put(folder, *names, size=(40, 40)):
    """Write a photo for each name, in a flat colour that follows from the name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        colour = tuple(np.random.default_rng(sum(name.encode())).integers(0, 256, 3).tolist())
        kind = "PNG" if name.lower().endswith("png") else "JPEG"
        Image.new("RGB", size, colour).save(folder / name, kind)


def tree(root, *identities, photos=5):
    for identity in identities:
        for letter in "CBA":
            names = [f"{identity}{letter}{i}.png" for i in reversed(range(photos))]
            put(root / identity / f"set_{letter}", *names)
    return root


def album(folder, n):
    put(folder, *(f"{i:02}.png" for i in reversed(range(n))))
    return [f"{i:02}.png" for i in range(n)]


def sets(identity):
    return [identity.set_A, identity.set_B, identity.set_C]


def refusal(call, *args) -> str:
    """Return the message with which a call refuses a data set or a photo."""
    with refused(error=(BadDataset, BadPhoto)) as error:
        call(*args)
    return str(error.value)
