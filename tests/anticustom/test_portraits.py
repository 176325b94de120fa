import re
from collections import defaultdict
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from helpers import refused
from torch.nn import functional

from anticustom.portraits import (
    SCENES,
    STYLES,
    TRAINING_IDENTITIES_FROM,
    caption,
    person,
    render,
    shot,
)
from anticustom.portraits.captions import visible_clothing, visible_features
from anticustom.portraits.people import (
    BEARDS,
    FABRIC_COLOURS,
    GLASSES,
    HAIR_COLOURS,
    HAIR_STYLES,
    HATS,
    SKIN_TONES,
)
from anticustom.portraits.shots import CLOTHES, EVERYDAY_SCENES


def pictures(identities, size=64, **kwargs):
    people = [person(identity) for identity in identities]
    return render(people, [shot(p.identity, 0, **kwargs) for p in people], size)


def changed_pixels(before, after):
    """Count the pixels of 64 px portraits in which two lists of (person, shot) differ."""
    first, second = (render(*zip(*pairs, strict=True)) for pairs in (before, after))
    return ((first - second).abs().amax(1) > 8 / 255).sum((1, 2)).tolist()


def test_identities_and_shots_are_pure_functions_of_their_numbers():
    assert person(7) == person(7)
    assert shot(7, 3, style="selfie") == shot(7, 3, style="selfie")
    assert len({person(identity).face_width for identity in range(50)}) == 50
    assert len({shot(7, index).yaw for index in range(50)}) == 50
    assert person(TRAINING_IDENTITIES_FROM + 7) != person(7)


@pytest.mark.parametrize(
    "call",
    [
        lambda: person(-1),
        lambda: shot(0, 0, style="painting"),
        lambda: shot(0, 0, scene="moon"),
        lambda: render([person(0)], []),
    ],
)
def test_bad_input_is_refused_in_one_line(call):
    with refused("expected"):
        call()


def test_renders_the_same_bytes_twice():
    assert torch.equal(pictures(range(6)), pictures(range(6)))


def test_a_portrait_does_not_depend_on_its_batch():
    people = [person(identity) for identity in range(20)]
    shots = [shot(k, k, style=STYLES[k % 4], scene=SCENES[k % 9]) for k in range(20)]
    together = render(people, shots)
    for k in range(20):
        alone = render([people[k]], [shots[k]])[0]
        torch.testing.assert_close(alone, together[k], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [33, 64, 160])
def test_any_size(size):
    images = pictures([1, 2], size=size)
    assert images.shape == (2, 3, size, size)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1


def test_an_empty_batch_has_no_portraits():
    assert render([], [], 64).shape == (0, 3, 64, 64)


def test_sizes_show_the_same_picture():
    small, large = pictures(range(4)), pictures(range(4), size=256)
    difference = (functional.avg_pool2d(large, 4) - small).abs().mean()
    strangers = (small - small.roll(1, 0)).abs().mean()
    assert difference < 0.03 < strangers


def test_every_kind_of_person_and_shot_occurs():
    people = [person(identity) for identity in range(600)]
    shots = [shot(0, index) for index in range(200)]
    assert {p.hair_style for p in people} == set(HAIR_STYLES)
    assert {p.hair_colour for p in people} == set(HAIR_COLOURS)
    assert {p.beard for p in people} == set(BEARDS)
    assert {p.glasses for p in people} == set(GLASSES)
    assert {p.hat for p in people} == set(HATS)
    assert {p.skin_tone for p in people} == set(SKIN_TONES)
    assert min(p.age for p in people) < 25 < 70 < max(p.age for p in people)
    assert any(p.freckles for p in people)
    assert 0.05 < np.mean([p.hat != "none" for p in people]) < 0.15
    assert {s.scene for s in shots} == set(EVERYDAY_SCENES)
    assert {s.clothes for s in shots} == set(CLOTHES)
    assert {s.clothes_colour for s in shots} == set(FABRIC_COLOURS)


def test_captions_speak_the_prompts_language():
    rng = np.random.default_rng(0)
    places = list(product(STYLES, SCENES)) * 20
    captions = [
        caption(person(k), shot(k, 0, style=style, scene=scene), rng)
        for k, (style, scene) in enumerate(places)
    ]
    opening = r"a (photo|dslr portrait|selfie photo|close-up photo) of person( |$)"
    assert all(re.match(opening, text) for text in captions)
    assert not any(re.search(r"\b(sks|man|woman|none)\b", text) for text in captions)
    places = ("looking at the mirror", "in front of eiffel tower", "on top of mount fuji")
    for words in (*places, "riding a bike", "with ", "wearing ", "glasses", "a beard", "hat"):
        assert any(words in text for text in captions), words
    bare = np.mean([text.endswith("of person") for text in captions])
    assert 0.2 < bare < 0.5
    assert max(len(text.split()) for text in captions) <= 40


def test_captions_are_drawn_from_what_is_visible():
    rng = np.random.default_rng(0)
    for identity in range(60):
        who, when = person(identity), shot(identity, 0, scene="room")
        text = caption(who, when, rng)
        body = re.sub(r"^.* of person|in a room$", "", text)
        named = [*visible_features(who, when), *visible_clothing(who, when)]
        for phrase in sorted(named, key=len, reverse=True):
            body = body.replace(phrase, "")
        assert not re.sub(r"with|wearing|and|,|\s", "", body), text


def without(phrase, who, when):
    """Return the person and the shot with the opposite of the phrase."""
    light = who.hair_colour in ("blond", "white", "grey")
    hair = {"hair": HAIR_COLOURS["black" if light else "blond"]}
    changes = {
        "glasses": {"glasses": "none"},
        **{word: {"beard": "none"} for word in ("beard", "goatee", "moustache", "stubble")},
        "head": {"hair_style": "short"},
        "hair": hair,
        "bun": hair,
        "skin": {"skin": SKIN_TONES["medium"]},
        "freckles": {"freckles": 0.0},
        "wrinkles": {"age": 25.0},
        "hat": {"hat": "none"},
    }
    ending = phrase.split()[-1]
    if ending in changes:
        return replace(who, **changes[ending]), when
    if ending == "smile":
        return who, replace(when, smile=0.0)
    colour = "white" if when.clothes_colour != "white" else "black"
    return who, replace(when, fabric=FABRIC_COLOURS[colour])


def test_all_that_captions_may_name_is_seen_in_the_picture():
    """Each phrase is tried on the first two of 120 people who have it."""
    examples = defaultdict(list)
    for k in range(120):
        who = person(k)
        when = shot(k, 0, style=STYLES[k % 4], scene=SCENES[k % 9])
        for phrase in [*visible_features(who, when), *visible_clothing(who, when)]:
            examples[phrase].append((who, when))
    assert len({phrase.split()[-1] for phrase in examples}) >= 14
    pairs = [(phrase, pair) for phrase, both in examples.items() for pair in both[:2]]
    before = [pair for _, pair in pairs]
    after = [without(phrase, *pair) for phrase, pair in pairs]
    seen = [(n, pair[0]) for n, pair in zip(changed_pixels(before, after), pairs, strict=True)]
    assert min(seen)[0] >= 10, sorted(seen)[:5]


def test_the_scene_is_seen_behind_every_style():
    places = enumerate(product(STYLES, SCENES[1:]))
    before = [(person(k), shot(k, 0, style=style, scene=scene)) for k, (style, scene) in places]
    after = [(who, replace(when, scene="studio")) for who, when in before]
    assert min(changed_pixels(before, after)) > 0.2 * 64**2


def test_styles_are_seen():
    who, plain = person(3), shot(3, 0, scene="city")
    styled = [(who, shot(3, 0, style=style, scene="city")) for style in STYLES[1:]]
    assert min(changed_pixels([(who, plain)] * 3, styled)) > 1000
    assert shot(3, 0, style="close-up").scale < 0.9 * plain.scale


def test_a_dslr_portrait_has_a_blurred_background():
    who, plain = person(3), replace(shot(3, 0, scene="forest"), noise=0.0)
    sharp, blurred = render([who, who], [plain, replace(plain, style="dslr")])
    detail = [image[:, :20, :20].diff(dim=-1).abs().mean() for image in (sharp, blurred)]
    assert detail[1] < 0.5 * detail[0]


def test_a_face_detector_finds_the_faces():
    facenet_pytorch = pytest.importorskip("facenet_pytorch")
    detector = facenet_pytorch.MTCNN(device="cpu")
    images = functional.interpolate(pictures(range(16)), scale_factor=4, mode="bilinear")
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    boxes, _ = detector.detect(pixels)
    assert sum(box is not None for box in boxes) >= 15
