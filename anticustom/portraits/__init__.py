"""The embedded data set: procedural people with nameable attributes, photographed on the spot."""

from anticustom.portraits.captions import caption
from anticustom.portraits.people import TRAINING_IDENTITIES_FROM, Person, person
from anticustom.portraits.rendering import render
from anticustom.portraits.shots import SCENES, STYLES, Shot, shot

__all__ = [
    "SCENES",
    "STYLES",
    "TRAINING_IDENTITIES_FROM",
    "Person",
    "Shot",
    "caption",
    "person",
    "render",
    "shot",
]
