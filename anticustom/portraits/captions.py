"""Captions that are true of a portrait, in the words that customization prompts use."""

import numpy as np

from anticustom.portraits.people import Person
from anticustom.portraits.shots import Shot

_OPENINGS = {
    "photo": "a photo of",
    "dslr": "a dslr portrait of",
    "selfie": "a selfie photo of",
    "close-up": "a close-up photo of",
}
_PLACES = {
    "room": "in a room",
    "city": "in a city",
    "beach": "on the beach",
    "forest": "in a forest",
    "mirror": "looking at the mirror",
    "eiffel tower": "in front of eiffel tower",
    "mount fuji": "on top of mount fuji",
    "bike": "riding a bike",
}
_BEARDS = {"moustache": "a moustache", "goatee": "a goatee", "full": "a beard"}
_HAIR_STYLES = {"curly": "curly ", "long": "long ", "bob": "", "fringe": "", "parted": ""}
_LONG_HAIR = ("long", "bob", "curly")


def caption(person: Person, shot: Shot, rng: np.random.Generator, name: str = "") -> str:
    """Return a training caption that tells some of what is seen, often nothing but the style.

    Tells only attributes that the picture shows. The subject is "person", with `name` before it if
    there is one; a name mostly stands for the attributes, as that of a celebrity does.
    """
    subject = f"{name} person" if name else "person"
    opening = f"{_OPENINGS[shot.style]} {subject}"
    if rng.uniform() < 0.25:
        return f"a photo of {subject}" if rng.uniform() < 0.5 else opening
    described = rng.uniform() < (0.5 if name else 1)
    features = _drawn(visible_features(person, shot), rng, least=1, most=3) if described else []
    clothing = _drawn(visible_clothing(person, shot), rng, least=0, most=2) if described else []
    parts = [opening]
    if features:
        parts.append("with " + _listed(features))
    if clothing:
        parts.append("wearing " + _listed(clothing))
    if shot.scene in _PLACES and rng.uniform() < 0.75:
        parts.append(_PLACES[shot.scene])
    return " ".join(parts)


def visible_features(person: Person, shot: Shot) -> list[str]:
    """Return what can be said of the person's head after "with"."""
    features = []
    if person.hat == "none" or person.hair_style in _LONG_HAIR:
        features.append(_hair(person))
    if person.beard in _BEARDS:
        features.append(_BEARDS[person.beard])
    if person.beard == "stubble" and person.skin_tone in ("pale", "fair", "medium"):
        features.append("stubble")
    if person.glasses != "none":
        features.append("glasses")
        features.append(f"{person.frame_colour} glasses")
    if person.skin_tone in ("brown", "dark"):
        features.append("dark skin")
    if person.skin_tone == "pale":
        features.append("pale skin")
    if person.freckles > 0:
        features.append("freckles")
    if person.age > 62:
        features.append("wrinkles")
    if shot.smile > 0.6:
        features.append("a smile")
    return features


def visible_clothing(person: Person, shot: Shot) -> list[str]:
    """Return what can be said of what the person wears."""
    clothing = []
    if person.hat != "none":
        clothing.append(f"{_article(person.hat_colour)} {person.hat_colour} hat")
    # How far below the collar the picture ends; a mirror's frame hides the shoulders.
    shown = shot.scale * (1 - shot.y) - (person.chin_y + 0.12)
    if shown > 0.14 and shot.scene != "mirror":
        striped = "striped " if shot.stripes else ""
        words = f"{striped}{shot.clothes_colour} {shot.clothes}"
        clothing.append(f"{_article(words)} {words}")
    return clothing


def _hair(person: Person) -> str:
    if person.hair_style == "bald":
        return "a bald head"
    if person.hair_style == "bun":
        return f"{person.hair_colour} hair in a bun"
    return f"{_HAIR_STYLES.get(person.hair_style, 'short ')}{person.hair_colour} hair"


def _drawn(phrases: list[str], rng: np.random.Generator, *, least: int, most: int) -> list[str]:
    """Draw some of the phrases, no two with the same last word, in random order."""
    if not phrases:
        return []
    count = int(rng.integers(least, most + 1))
    chosen: dict[str, str] = {}
    for position in rng.permutation(len(phrases))[:count]:
        chosen.setdefault(phrases[position].split()[-1], phrases[position])
    return list(chosen.values())


def _listed(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"
