"""Photos and pixels: reading, cropping, rounding and the eps ball. Only here is 255 a number."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

GREY_LEVELS = 255
MIN_SIDE = 32  # pixels


class BadPhoto(ValueError):
    """A photo that cannot be used: one line with the file, what is wrong and how to mend it."""


def read_photo(path: str | Path, size: int) -> Tensor:
    """Read a photo upright, crop its centre square, resize it: (3, size, size) on the 8-bit grid.

    Greyscale, palette, CMYK, 16-bit and colour-managed photos become 8-bit sRGB. A photo that is
    animated, partly transparent, too large or too small, damaged, or not a PNG, JPEG or WebP file
    raises BadPhoto.
    """
    path = Path(path)
    with _opened(path) as photo:
        # A phone's JPEG may carry a depth map behind the photo, as a second frame.
        if getattr(photo, "n_frames", 1) > 1 and photo.format != "MPO":
            raise _bad(path, "is animated: save one of its frames as PNG or JPEG")
        if min(photo.size) < MIN_SIDE:
            size_found = f"{photo.width} x {photo.height}"
            raise _bad(path, f"is {size_found}: use one of at least {MIN_SIDE} pixels a side")
        photo = _rgb(path, _centre_square(ImageOps.exif_transpose(photo)))
    return from_8bit(_pixels(photo.resize((size, size), Image.Resampling.LANCZOS)))


def read_png(path: str | Path) -> Tensor:
    """Read an 8-bit RGB file as it is: (3, h, w) in [0, 1], on the 8-bit grid."""
    path = Path(path)
    with _opened(path) as image:
        if image.mode != "RGB":
            raise _bad(path, f"is a {image.mode} image: save it as 8-bit RGB")
        return from_8bit(_pixels(image))


def write_png(path: str | Path, image: Tensor) -> None:
    """Write one image (3, h, w) in [0, 1] as 8-bit PNG."""
    Image.fromarray(to_8bit(image).permute(1, 2, 0).cpu().numpy()).save(path, format="PNG")


def to_8bit(images: Tensor) -> Tensor:
    """Return the nearest grey levels of images in [0, 1], as uint8."""
    return (images * GREY_LEVELS).round().clamp(0, GREY_LEVELS).to(torch.uint8)


def from_8bit(levels: Tensor) -> Tensor:
    """Return integer grey levels as float32 in [0, 1]; `to_8bit` restores them exactly."""
    return levels.to(torch.float32) / GREY_LEVELS


def check_eps(eps: object) -> None:
    """Raise ValueError unless `eps` is a number from 1 to 255."""
    if isinstance(eps, bool) or not isinstance(eps, Real) or not 1 <= eps <= GREY_LEVELS:
        raise ValueError(
            f"eps={eps!r} is not a number of grey levels from 1 to 255: set one, for example eps=8 "
            "(a published 0.05 on the range [-1, 1] is 6.375)"
        )


def sign_step(images: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    """Move every pixel by `step_size` grey levels in the direction of its gradient."""
    return images + step_size / GREY_LEVELS * gradient.sign()


def project(images: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Return the nearest images within `eps` grey levels of `clean` and within [0, 1]."""
    radius = eps / GREY_LEVELS
    return images.clamp(clean - radius, clean + radius).clamp(0, 1)


def quantize_within(images: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Round to the 8-bit grid, then clamp to floor(eps) levels round `clean`, itself on that grid.

    Where `eps` is not an integer, rounding alone could leave the ball.
    """
    levels, centre, radius = to_8bit(images).int(), to_8bit(clean).int(), math.floor(eps)
    return from_8bit(levels.clamp(centre - radius, centre + radius))


def output_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the PNG files that photos called `names` become, in the same order.

    `a.jpg` becomes `a.png`. If two would then share a file (`a.jpg` and `A.png`; letter case does
    not count), all keep their suffix: `a.jpg.png`, `A.png.png`.
    """
    short = tuple(f"{Path(name).stem}.png" for name in names)
    distinct = len({name.casefold() for name in short}) == len(short)
    return short if distinct else tuple(f"{name}.png" for name in names)


def write_protected(
    folder: str | Path, names: Sequence[str], protected: Tensor, clean: Tensor, eps: float
) -> tuple[Path, ...]:
    """Write protected photos as PNG under their `output_names`, in order, and return the files.

    `protected` and `clean` are (n, 3, h, w) in [0, 1], one per name. Each file is read again:
    RuntimeError if it is not within floor(eps) grey levels of the clean crop, or before anything is
    written if a value is not finite.
    """
    check_eps(eps)
    if not protected.isfinite().all():
        raise RuntimeError("protected photos hold NaN or infinity: try precision=float32")
    folder = Path(folder)
    files = tuple(folder / name for name in output_names(names))
    photos = list(zip(files, quantize_within(protected, clean, eps), clean, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    for file, image, original in photos:
        write_png(file, image)
        written = to_8bit(read_png(file)).int()
        change = int((written - to_8bit(original).cpu().int()).abs().max())
        if change > math.floor(eps):
            raise RuntimeError(f"{str(file)!r} is {change} grey levels off, with eps={eps}")
    return files


def _bad(path: Path, problem: str) -> BadPhoto:
    return BadPhoto(f"photo {str(path)!r} {problem}")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Yield the opened file; whatever goes wrong while it is open raises BadPhoto."""
    if not path.is_file():
        raise _bad(path, "is not there, or not a file: check its path")
    if path.stat().st_size == 0:
        raise _bad(path, "is empty: copy it again from its source")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow compares the size in the header with its limit before it decodes a pixel.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                yield image
    except BadPhoto:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS // 10**6
        raise _bad(path, f"has more than {limit} million pixels: shrink it") from error
    except UnidentifiedImageError as error:
        problem = "is no PNG, JPEG or WebP photo, whatever its name: convert it to JPEG or PNG"
        raise _bad(path, problem) from error
    except PermissionError as error:
        raise _bad(path, "may not be read: change its permissions") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise _bad(path, "is damaged or incomplete: copy it again from its source") from error


def _centre_square(photo: Image.Image) -> Image.Image:
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    return photo.crop((left, top, left + side, top + side))


def _rgb(path: Path, photo: Image.Image) -> Image.Image:
    profile = photo.info.get("icc_profile")
    if photo.has_transparency_data:
        lowest, _ = photo.convert("RGBA").getchannel("A").getextrema()
        if lowest < 255:
            raise _bad(path, "is partly transparent: flatten it onto a background")
    if photo.mode == "I;16":  # Pillow's own conversion cuts off at 255 instead of scaling
        photo = Image.fromarray(np.rint(np.asarray(photo) / 257).astype(np.uint8))
    if photo.mode not in ("L", "CMYK"):
        photo = photo.convert("RGB")
    return _srgb(photo, profile) if profile else photo.convert("RGB")


def _srgb(photo: Image.Image, profile: bytes) -> Image.Image:
    with suppress(ImageCms.PyCMSError, OSError):  # a profile that is damaged or of another mode
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if not ImageCms.getProfileDescription(source).startswith("sRGB"):
            target = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(photo, source, target, outputMode="RGB")
    return photo.convert("RGB")


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
