"""Procedural people: a number in, nameable attributes out.

Lengths are in head units: the head is about two high, its middle is the origin, y points down.
Colours are display RGB in [0, 1].
"""

from dataclasses import dataclass

import numpy as np

TRAINING_IDENTITIES_FROM = 1_000_000
"""Identities from here on are kept for training the embedded model; data sets stay below."""

HAIR_STYLES = (
    "bald",
    "buzzed",
    "short",
    "receding",
    "fringe",
    "parted",
    "curly",
    "bob",
    "long",
    "bun",
)
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
GLASSES = ("none", "round", "square", "cat-eye")
HATS = ("none", "beanie", "cap", "brimmed")

Colour = tuple[float, float, float]

HAIR_COLOURS: dict[str, Colour] = {
    "black": (0.07, 0.06, 0.06),
    "brown": (0.26, 0.16, 0.10),
    "blond": (0.80, 0.63, 0.36),
    "red": (0.55, 0.21, 0.08),
    "grey": (0.50, 0.50, 0.50),
    "white": (0.86, 0.85, 0.83),
}
FABRIC_COLOURS: dict[str, Colour] = {
    "red": (0.75, 0.10, 0.10),
    "blue": (0.12, 0.25, 0.68),
    "green": (0.12, 0.48, 0.22),
    "yellow": (0.90, 0.76, 0.18),
    "white": (0.92, 0.92, 0.90),
    "black": (0.09, 0.09, 0.10),
    "grey": (0.48, 0.48, 0.50),
    "pink": (0.90, 0.50, 0.62),
    "purple": (0.42, 0.20, 0.58),
    "orange": (0.90, 0.45, 0.10),
}
SKIN_TONES: dict[str, Colour] = {  # from the lightest to the darkest
    "pale": (0.97, 0.82, 0.74),
    "fair": (0.92, 0.72, 0.60),
    "medium": (0.80, 0.58, 0.44),
    "tan": (0.68, 0.46, 0.32),
    "brown": (0.51, 0.33, 0.22),
    "dark": (0.34, 0.21, 0.15),
}
IRIS_COLOURS: dict[str, Colour] = {
    "brown": (0.28, 0.16, 0.08),
    "dark": (0.10, 0.06, 0.05),
    "blue": (0.30, 0.48, 0.68),
    "green": (0.30, 0.46, 0.28),
    "grey": (0.48, 0.53, 0.55),
}


@dataclass(frozen=True)
class Person:
    """What stays the same from photo to photo."""

    identity: int
    age: float  # years
    skin_tone: str
    skin: Colour
    blush: float
    freckles: float  # 0 to 1
    mole_x: float
    mole_y: float
    mole: float  # 0 or 1
    # head
    face_width: float
    skull_height: float
    chin_y: float
    jaw_width: float  # share of face_width that is left at the chin's height
    jaw_square: float  # exponent: 2 is an ellipse
    temple_width: float
    forehead_bulge: float
    brow_ridge: float
    cheekbone: float
    cheek_y: float
    cheek_hollow: float
    chin_bump: float
    chin_cleft: float
    ear_size: float
    neck_width: float
    asymmetry: float
    # eyes and brows
    eye_y: float
    eye_spacing: float  # from the middle line to the pupil
    eye_width: float  # half
    eye_open: float  # half
    eye_tilt: float
    eye_depth: float
    lid_fold: float  # distance of the crease above the lid
    lashes: float
    bags: float
    iris_size: float
    iris_colour: str
    iris: Colour
    brow_height: float  # above the eye
    brow_thickness: float
    brow_length: float  # in eye widths
    brow_tilt: float
    brow_arch: float
    brow_density: float
    # nose and mouth
    nose_length: float  # below the eyes
    nose_width: float
    nose_tip: float
    bridge_width: float
    bridge_height: float
    nostrils: float
    mouth_drop: float  # below the nose
    mouth_width: float
    upper_lip: float
    lower_lip: float
    mouth_curve: float
    lips: Colour
    # hair, and what is worn in every photo
    hair_style: str
    hair_colour: str
    hair: Colour
    hairline: float
    hair_volume: float
    part_side: float  # -1 or 1
    beard: str
    beard_density: float
    glasses: str
    frame_colour: str
    frame: Colour
    frame_size: float
    hat: str
    hat_colour: str
    hat_fabric: Colour


def person(identity: int) -> Person:
    """Return the person of this number, a pure function of it; raises ValueError below 0."""
    if identity < 0:
        raise ValueError(f"identity {identity}: expected an integer of at least 0")
    rng = np.random.default_rng((identity, 0x7E0))
    u = rng.uniform
    age = 18 + 62 * u(0, 1) ** 1.4
    masculine = u(0, 1)

    tone_position = u(0, len(SKIN_TONES) - 1)
    skin_tone = tuple(SKIN_TONES)[round(tone_position)]
    skin = _between(tuple(SKIN_TONES.values()), tone_position) * rng.uniform(0.96, 1.04, 3)
    lips = skin * (u(0.70, 0.98), u(0.42, 0.66), u(0.45, 0.72))
    fairness = 1 - tone_position / (len(SKIN_TONES) - 1)

    hair_colour = _hair_colour(rng, age, fairness)
    hair = np.array(HAIR_COLOURS[hair_colour]) * rng.uniform(0.85, 1.15)
    light_eyes = fairness > 0.5 and u(0, 1) < 0.65
    iris_colour = str(rng.choice(["blue", "green", "grey"] if light_eyes else ["brown", "dark"]))
    hair_style = _hair_style(rng, age, masculine)
    beard = "none"
    if masculine > 0.5 and u(0, 1) < 0.65:
        beard = str(rng.choice(BEARDS[1:]))
    glasses = str(rng.choice(GLASSES[1:])) if u(0, 1) < 0.22 else "none"
    frame_colour = str(rng.choice(["black", "brown", "red", "blue", "grey"]))
    frame = {**FABRIC_COLOURS, "brown": (0.35, 0.20, 0.10)}[frame_colour]
    hat = str(rng.choice(HATS[1:])) if u(0, 1) < 0.10 else "none"
    hat_colour = str(rng.choice(tuple(FABRIC_COLOURS)))

    return Person(
        identity=identity,
        age=age,
        skin_tone=skin_tone,
        skin=to_colour(skin),
        blush=u(0, 1),
        freckles=u(0.5, 1) if fairness > 0.6 and u(0, 1) < 0.3 else 0.0,
        mole_x=u(-0.45, 0.45),
        mole_y=u(0.2, 0.7),
        mole=float(u(0, 1) < 0.2),
        face_width=u(0.60, 0.84),
        skull_height=u(0.92, 1.06),
        chin_y=u(0.86, 1.12),
        jaw_width=u(0.55, 0.82) + 0.18 * masculine,
        jaw_square=u(2.0, 3.4),
        temple_width=u(0.86, 1.06),
        forehead_bulge=u(-0.02, 0.08),
        brow_ridge=u(0.0, 0.05) + 0.06 * masculine,
        cheekbone=u(0.0, 0.13),
        cheek_y=u(0.18, 0.36),
        cheek_hollow=u(0.0, 0.10),
        chin_bump=u(0.0, 0.13),
        chin_cleft=u(0.02, 0.06) if u(0, 1) < 0.25 else 0.0,
        ear_size=u(0.75, 1.35),
        neck_width=u(0.34, 0.44) + 0.14 * masculine,
        asymmetry=u(-0.03, 0.03),
        eye_y=u(-0.10, 0.06),
        eye_spacing=u(0.245, 0.355),
        eye_width=u(0.115, 0.175),
        eye_open=u(0.048, 0.095),
        eye_tilt=u(-0.22, 0.26),
        eye_depth=u(0.0, 0.14),
        lid_fold=u(0.012, 0.065),
        lashes=u(0.4, 1.0) - 0.3 * masculine,
        bags=u(0, 0.6) + 0.4 * _ramp(age, 40, 75),
        iris_size=u(0.85, 1.15),
        iris_colour=iris_colour,
        iris=to_colour(np.array(IRIS_COLOURS[iris_colour]) * rng.uniform(0.85, 1.15)),
        brow_height=u(0.105, 0.25) - 0.03 * masculine,
        brow_thickness=u(0.014, 0.040) + 0.022 * masculine,
        brow_length=u(1.0, 1.55),
        brow_tilt=u(-0.30, 0.30),
        brow_arch=u(0.0, 2.4),
        brow_density=u(0.45, 1.0),
        nose_length=u(0.25, 0.45),
        nose_width=u(0.080, 0.175),
        nose_tip=u(0.08, 0.26),
        bridge_width=u(0.035, 0.085),
        bridge_height=u(0.02, 0.13),
        nostrils=u(0.3, 1.0),
        mouth_drop=u(0.12, 0.25),
        mouth_width=u(0.165, 0.315),
        upper_lip=u(0.010, 0.062),
        lower_lip=u(0.022, 0.085),
        mouth_curve=u(-0.04, 0.035),
        lips=to_colour(lips),
        hair_style=hair_style,
        hair_colour=hair_colour,
        hair=to_colour(hair),
        hairline=u(-0.72, -0.42),
        hair_volume=u(0.05, 0.20),
        part_side=float(rng.choice([-1, 1])),
        beard=beard,
        beard_density=u(0.65, 1.0),
        glasses=glasses,
        frame_colour=frame_colour,
        frame=frame,
        frame_size=u(0.85, 1.2),
        hat=hat,
        hat_colour=hat_colour,
        hat_fabric=FABRIC_COLOURS[hat_colour],
    )


def _hair_colour(rng: np.random.Generator, age: float, fairness: float) -> str:
    if rng.uniform() < 0.9 * _ramp(age, 48, 72):
        return "white" if age > 62 and rng.uniform() < 0.5 else "grey"
    if fairness > 0.5:
        return str(rng.choice(["black", "brown", "blond", "red"], p=[0.2, 0.3, 0.35, 0.15]))
    return str(rng.choice(["black", "brown"], p=[0.75, 0.25]))


def _hair_style(rng: np.random.Generator, age: float, masculine: float) -> str:
    if masculine > 0.5:
        styles = ["bald", "buzzed", "short", "receding", "fringe", "parted", "curly", "long"]
        old = _ramp(age, 30, 60)
        weights = np.array([0.6 + old, 0.8, 1.5, 0.1 + 1.2 * old, 0.8, 1.2, 0.9, 0.4])
    else:
        styles = ["short", "fringe", "parted", "curly", "bob", "long", "bun"]
        weights = np.array([0.6, 0.8, 0.8, 1.1, 1.3, 1.8, 1.0])
    return str(rng.choice(styles, p=weights / weights.sum()))


def _between(colours: tuple[Colour, ...], position: float) -> np.ndarray:
    low = min(int(position), len(colours) - 2)
    share = position - low
    return np.array(colours[low]) * (1 - share) + np.array(colours[low + 1]) * share


def _ramp(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))


def to_colour(rgb: np.ndarray) -> Colour:
    """Return the nearest colour that a surface can have."""
    return tuple(np.clip(rgb, 0.02, 0.98).tolist())
