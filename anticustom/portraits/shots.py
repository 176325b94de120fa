"""Procedural shots: how a person is photographed on one occasion."""

from dataclasses import dataclass

import numpy as np

from anticustom.portraits.people import FABRIC_COLOURS, Colour, to_colour

STYLES = ("photo", "dslr", "selfie", "close-up")
EVERYDAY_SCENES = ("studio", "room", "city", "beach", "forest")
SCENES = (*EVERYDAY_SCENES, "mirror", "eiffel tower", "mount fuji", "bike")
CLOTHES = ("t-shirt", "shirt", "sweater", "jacket")


@dataclass(frozen=True)
class Shot:
    """What changes from photo to photo."""

    style: str
    scene: str
    noise_seed: int
    noise: float  # standard deviation, [0, 1] range
    # pose: radians; position and scale in half frames and head units per half frame
    yaw: float
    pitch: float
    roll: float
    scale: float
    x: float
    y: float
    lens: float  # 0: long lens, above: wide angle, the middle of the frame looks larger
    # expression
    smile: float  # -0.3 to 1; teeth show above 0.5
    gaze: float
    eye_openness: float
    # light
    light_x: float
    light_y: float
    ambient: float
    warmth: float
    exposure: float
    # what is around
    clothes: str
    clothes_colour: str
    fabric: Colour
    stripes: float  # 0 or 1
    backdrop: Colour
    backdrop_low: Colour
    layout: tuple[float, ...]  # eight uniform numbers that place the scenery


def shot(identity: int, index: int, *, style: str = "photo", scene: str | None = None) -> Shot:
    """Return the circumstances of one photo, a pure function of the arguments.

    `style` is one of STYLES, `scene` one of SCENES; without a scene, an everyday one is drawn.
    Raises ValueError for other names.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r}: expected one of {', '.join(STYLES)}")
    if scene is not None and scene not in SCENES:
        raise ValueError(f"scene {scene!r}: expected one of {', '.join(SCENES)}")
    rng = np.random.default_rng((identity, index, 0x5407))
    u = rng.uniform
    drawn_scene = str(rng.choice(EVERYDAY_SCENES, p=(0.4, 0.24, 0.12, 0.12, 0.12)))
    scene = scene or drawn_scene

    scale, x, y = u(1.30, 1.52), u(-0.08, 0.08), u(0.0, 0.10)
    layout = tuple(rng.uniform(0, 1, 8).tolist())
    if style == "selfie":
        scale, y = scale * 0.90, y + 0.02
    if style == "close-up":
        scale, x, y = u(1.00, 1.10), 0.5 * x, u(-0.06, 0.02)
    # Further off, so that what the scene is called after is seen, even in a close-up.
    if scene in ("eiffel tower", "mount fuji"):
        # The landmark stands on one side, the person on the other.
        aside = -0.28 if layout[0] > 0.5 else 0.28
        scale, x, y = scale * 1.20, aside + 0.4 * x, y + (0.08 if style == "close-up" else 0.16)
    elif scene == "bike":
        scale, y = scale * 1.28, y - 0.08
    elif scene == "mirror":
        scale = scale * 1.12

    light_x, light_y, ambient = u(-0.7, 0.7), u(-0.75, 0.0), u(0.40, 0.58)
    if style == "dslr":
        light_x, light_y, ambient = 0.8 * light_x, u(-0.6, -0.2), u(0.50, 0.62)
    clothes_colour = str(rng.choice(tuple(FABRIC_COLOURS)))
    return Shot(
        style=style,
        scene=scene,
        noise_seed=int(rng.integers(2**31)),
        noise=u(0.006, 0.014),
        yaw=u(-0.34, 0.34),
        pitch=u(-0.14, 0.14),
        roll=u(-0.13, 0.13),
        scale=scale,
        x=x,
        y=y,
        lens=u(0.14, 0.22) if style == "selfie" else u(0.0, 0.05),
        smile=u(-0.25, 1.0),
        gaze=u(-0.25, 0.25),
        eye_openness=u(0.85, 1.08),
        light_x=light_x,
        light_y=light_y,
        ambient=ambient,
        warmth=u(-0.05, 0.07),
        exposure=u(0.90, 1.08),
        clothes=str(rng.choice(CLOTHES)),
        clothes_colour=clothes_colour,
        fabric=FABRIC_COLOURS[clothes_colour],
        stripes=float(u(0, 1) < 0.2),
        backdrop=to_colour(rng.uniform(0.15, 0.92, 3)),
        backdrop_low=to_colour(rng.uniform(0.10, 0.85, 3)),
        layout=layout,
    )
