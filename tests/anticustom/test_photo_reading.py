import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from helpers import refused
from PIL import Image, ImageCms

from anticustom.images import BadPhoto, from_8bit, read_photo, read_png, to_8bit


def pixels(height=48, width=48, channels=3, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return levels[..., 0] if channels == 1 else levels


def as_array(photo):
    return to_8bit(photo).permute(1, 2, 0).numpy()


def opened(path):
    with Image.open(path) as image:
        return image


def png(path, height, width, bits, colour, data, *extra):
    """Write a PNG by hand, of a kind that Pillow does not write."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    middle = b"".join(chunk(*pair) for pair in extra)
    body = chunk(b"IHDR", header) + middle + chunk(b"IDAT", zlib.compress(data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))


def test_read_photo_of_the_right_size_is_exact(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png", 48)
    assert photo.shape == (3, 48, 48)
    assert photo.dtype == torch.float32
    assert np.array_equal(as_array(photo), pixels())
    assert torch.equal(photo, read_png(tmp_path / "a.png"))


@pytest.mark.parametrize(("height", "width", "left", "top"), [(48, 80, 16, 0), (81, 48, 0, 16)])
def test_read_photo_crops_the_centre_at_whole_pixels(tmp_path, height, width, left, top):
    levels = pixels(height, width)
    Image.fromarray(levels).save(tmp_path / "a.png")
    expected = levels[top : top + 48, left : left + 48]
    assert np.array_equal(as_array(read_photo(tmp_path / "a.png", 48)), expected)


@pytest.mark.parametrize("size", [32, 64, 100])
def test_read_photo_resizes_with_lanczos_to_the_8_bit_grid(tmp_path, size):
    Image.fromarray(pixels(50, 60)).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png", size)
    assert torch.equal(from_8bit(to_8bit(photo)), photo)
    square = Image.fromarray(pixels(50, 60)[:, 5:55])
    assert np.array_equal(as_array(photo), square.resize((size, size), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_photo_turns_photos_upright(tmp_path, suffix, orientation):
    # Corners: red, green / blue, white; the file stores them as orientation says a camera would.
    upright = np.zeros((64, 64, 3), np.uint8)
    upright[:32, :32, 0] = upright[:32, 32:, 1] = upright[32:, :32, 2] = upright[32:, 32:] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(file, exif=exif, quality=95)
    change = np.abs(as_array(read_photo(file, 64)).astype(int) - upright)
    for top, left in [(0, 0), (0, 32), (32, 0), (32, 32)]:  # away from the edges, which JPEG blurs
        assert change[top + 8 : top + 24, left + 8 : left + 24].max() < 8


def test_read_photo_converts_greyscale_bilevel_palette_and_opaque_alpha(tmp_path):
    grey = pixels(channels=1)
    opaque = Image.fromarray(np.dstack([pixels(), np.full((48, 48), 255, np.uint8)]))
    palette = Image.fromarray(grey).convert("RGB").quantize(16)
    cases = {
        "grey.png": (Image.fromarray(grey), np.stack([grey] * 3, -1)),
        "bilevel.png": (Image.fromarray(grey > 127), np.stack([(grey > 127) * 255] * 3, -1)),
        "alpha.png": (opaque, pixels()),
        "alpha.webp": (opaque, pixels()),
        "grey_alpha.png": (Image.fromarray(grey).convert("LA"), np.stack([grey] * 3, -1)),
        "palette.png": (palette, np.asarray(palette.convert("RGB"))),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name, lossless=True)
        assert np.array_equal(as_array(read_photo(tmp_path / name, 48)), expected), name


def test_read_photo_scales_16_bits_to_8(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (48, 48, 3), np.uint16)
    deep[0] = pixels()[0] * np.uint16(257)
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.png")
    assert opened(tmp_path / "grey.png").mode == "I;16"
    grey = as_array(read_photo(tmp_path / "grey.png", 48))
    assert np.array_equal(grey, np.stack([np.rint(deep[..., 0] / 257)] * 3, -1))

    rows = b"".join(b"\0" + row.tobytes() for row in deep.astype(">u2"))
    png(tmp_path / "rgb.png", 48, 48, 16, 2, rows)
    colour = as_array(read_photo(tmp_path / "rgb.png", 48)).astype(int)
    assert np.abs(colour - deep / 257).max() <= 1
    assert np.array_equal(colour[0], pixels()[0])


def test_read_photo_converts_cmyk(tmp_path):
    file = tmp_path / "a.jpg"
    for colour in [(255, 0, 0), (0, 255, 0), (30, 60, 90)]:
        Image.new("RGB", (64, 64), colour).convert("CMYK").save(file, quality=95)
        assert opened(file).mode == "CMYK"
        assert np.abs(as_array(read_photo(file, 64)) - np.array(colour)).max() <= 3
    # By its profile, half a layer of any ink is half the lightness: grey 118.5 in sRGB.
    for inks, expected in [((0, 128, 0, 0), 118), ((0, 0, 0, 0), 255)]:
        Image.new("CMYK", (64, 64), inks).save(file, quality=95, icc_profile=grey_inks())
        assert np.abs(as_array(read_photo(file, 64)).astype(int) - expected).max() <= 2


def grey_inks():
    """Return a CMYK profile in which every ink is black: L = 100 (1-C) (1-M) (1-Y) (1-K)."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    ramp, unit = bytes(range(256)), struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    corners = bytes([255, 128, 128]) + bytes([0, 128, 128]) * 15
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"inks\0" + b"\0" * 79,
        b"wtpt": b"XYZ \0\0\0\0" + white,
        b"A2B0": b"mft1\0\0\0\0\4\3\2\0" + unit + ramp * 4 + corners + ramp * 3,
    }
    start, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(content), len(data))
        content += data
    head = struct.pack(">II", start + len(content), 0) + b"\2\x10\0\0prtrCMYKLab "
    head = head.ljust(36, b"\0") + b"acsp"
    return (head.ljust(68, b"\0") + white).ljust(128, b"\0") + table + content


def test_read_photo_brings_colour_profiles_to_srgb(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = Image.fromarray(pixels(channels=1))
    # An sRGB profile changes nothing; one that is damaged or of another mode is ignored.
    for profile in (srgb, b"no profile", lab):
        Image.fromarray(pixels()).save(tmp_path / "a.png", icc_profile=profile)
        assert np.array_equal(as_array(read_photo(tmp_path / "a.png", 48)), pixels())
        grey.save(tmp_path / "grey.png", icc_profile=profile)
        assert np.array_equal(as_array(read_photo(tmp_path / "grey.png", 48))[..., 0], grey)
    # With red and green swapped: under another name it is obeyed, under the name of sRGB it is not.
    (tags,) = struct.unpack(">I", srgb[128:132])
    at = {srgb[i : i + 4]: i for i in range(132, 132 + 12 * tags, 12)}
    swapped = bytearray(srgb)
    swapped[at[b"rXYZ"] : at[b"rXYZ"] + 4] = b"gXYZ"
    swapped[at[b"gXYZ"] : at[b"gXYZ"] + 4] = b"rXYZ"
    renamed = bytes(swapped).replace(b"s\0R\0G\0B", b"o\0d\0d\0!")
    for profile, expected in [(bytes(swapped), (255, 0, 0)), (renamed, (0, 255, 0))]:
        Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "b.png", icc_profile=profile)
        assert np.abs(as_array(read_photo(tmp_path / "b.png", 64)) - np.array(expected)).max() <= 2


def test_read_photo_takes_the_photo_of_a_multi_picture_jpeg(tmp_path):
    first, second = Image.new("RGB", (64, 64), (200, 40, 40)), Image.new("RGB", (32, 32))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    assert opened(tmp_path / "a.jpg").n_frames == 2
    assert np.abs(as_array(read_photo(tmp_path / "a.jpg", 64)) - np.array([200, 40, 40])).max() < 4


def test_read_photo_keeps_pillows_warnings_to_itself(tmp_path, capfd):
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0junk")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(tmp_path / "a.jpg", 48).shape == (3, 48, 48)
    assert capfd.readouterr() == ("", "")


def animated(path, kind):
    frames = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    frames[0].save(path, format=kind, save_all=True, append_images=frames[1:])


def cut(path, kind, share):
    buffer = io.BytesIO()
    Image.fromarray(pixels(200, 200)).save(buffer, format=kind)
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])


def transparent(path, kind):
    alpha = np.full((48, 48, 1), 255, np.uint8)
    alpha[20, 20] = 254
    Image.fromarray(np.dstack([pixels(), alpha])).save(path, format=kind, lossless=True)


def colour_keyed(path, bits, colour, key):
    rows = bytes(1 + 48 * {0: 1, 2: 3}[colour] * bits // 8)
    png(path, 48, 48, bits, colour, rows * 48, (b"tRNS", key))


REFUSED = {
    "missing": ("not there", lambda path: None),
    "folder": ("not a file", lambda path: path.mkdir()),
    "pipe": ("not a file", os.mkfifo),
    "dangling": ("not there", lambda path: path.symlink_to("nowhere")),
    "empty": ("empty", lambda path: path.touch()),
    "text": ("convert it to JPEG or PNG", lambda path: path.write_text("no photo\n" * 99)),
    "heic": ("convert it to JPEG or PNG", lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" * 9)),
    "gif": ("convert it to JPEG or PNG", lambda path: animated(path, "GIF")),
    "still_gif": ("to JPEG or PNG", lambda path: Image.new("RGB", (64, 64)).save(path, "GIF")),
    "tiff": ("to JPEG or PNG", lambda path: Image.new("RGB", (64, 64)).save(path, "TIFF")),
    "animated_png": ("animated", lambda path: animated(path, "PNG")),
    "animated_webp": ("animated", lambda path: animated(path, "WEBP")),
    "cut_png": ("damaged or incomplete", lambda path: cut(path, "PNG", 0.5)),
    "cut_jpeg": ("damaged or incomplete", lambda path: cut(path, "JPEG", 0.7)),
    "cut_webp": ("convert it|damaged", lambda path: cut(path, "WEBP", 0.7)),
    "header_only": ("JPEG or PNG|damaged", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n")),
    "bomb": ("million pixels", lambda path: png(path, 60_000, 60_000, 8, 2, bytes(100))),
    "large": ("million pixels", lambda path: png(path, 10_000, 10_000, 8, 2, bytes(100))),
    "tiny": ("31 x 31.*at least 32", lambda path: Image.new("RGB", (31, 31)).save(path, "PNG")),
    "narrow": ("at least 32", lambda path: Image.new("RGB", (900, 20)).save(path, "PNG")),
    "transparent_png": ("transparent", lambda path: transparent(path, "PNG")),
    "transparent_webp": ("transparent", lambda path: transparent(path, "WEBP")),
    "colour_key": ("transparent", lambda path: colour_keyed(path, 8, 2, bytes(6))),
    "deep_colour_key": ("transparent", lambda path: colour_keyed(path, 16, 0, bytes(2))),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", REFUSED)
def test_read_photo_refuses(tmp_path, case, capfd):
    expected, make = REFUSED[case]
    path = tmp_path / "photo.png"
    make(path)
    before = sorted(tmp_path.iterdir())
    with refused(expected, BadPhoto) as error:
        read_photo(path, 64)
    assert str(path) in str(error.value)
    assert sorted(tmp_path.iterdir()) == before
    assert capfd.readouterr() == ("", "")


def test_read_photo_refuses_photos_without_permission(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    Image.fromarray(pixels()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(BadPhoto, match="permission"):
        read_photo(tmp_path / "a.png", 64)


def test_refusals_stay_one_line_whatever_the_name(tmp_path):
    path = tmp_path / "two\nlines.png"
    path.touch()
    with refused("empty", BadPhoto):
        read_photo(path, 64)


def test_read_photo_survives_or_refuses_any_damage(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = set()
    for kind in ("PNG", "JPEG", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(pixels(40, 40)).save(buffer, format=kind)
        intact = np.frombuffer(buffer.getvalue(), np.uint8)
        for _ in range(60):
            damaged = intact.copy()
            damaged[rng.integers(0, min(len(intact), 800), 8)] = rng.integers(0, 256, 8)
            (tmp_path / "a.png").write_bytes(damaged.tobytes())
            try:
                outcomes.add(tuple(read_photo(tmp_path / "a.png", 32).shape))
            except BadPhoto:
                outcomes.add("refused")
    assert outcomes <= {(3, 32, 32), "refused"}
    assert "refused" in outcomes


def test_read_png_refuses_all_but_rgb(tmp_path):
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(BadPhoto, match="8-bit RGB"):
        read_png(tmp_path / "a.png")
