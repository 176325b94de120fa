"""How visible a protection is: clean files against protected files, as they lie on disk."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from torch import Tensor

from eval.image_files import read_image
from eval.image_quality import PyIQA


def perceptibility(
    clean: Sequence[Path], protected: Sequence[Path], *, further: Sequence[PyIQA] = ()
) -> dict[str, object]:
    """Return `linf`, `psnr`, `ssim` and `further` metrics of full reference, such as `lpips`, over
    all pairs, with a row per pair in `images`.

    `linf` is in grey levels and the largest over all images; the others are means. `psnr` is in
    dB over RGB, None for identical images, which its mean leaves out; `ssim` is pyiqa's, on
    luminance. Files pair in order and by name; raises ValueError where names or sizes differ.
    """
    if not clean or [file.stem for file in clean] != [file.stem for file in protected]:
        raise ValueError(
            f"clean and protected images do not pair by name: {_names(clean)} against "
            f"{_names(protected)}; give both in the same order"
        )
    rows = [_row(*files, further) for files in zip(clean, protected, strict=True)]
    means = {key: _mean([row[key] for row in rows]) for key in rows[0] if key != "image"}
    return {**means, "linf": max(row["linf"] for row in rows), "images": rows}


def _row(clean_file: Path, protected_file: Path, further: Sequence[PyIQA]) -> dict[str, object]:
    # Inside, because importing pyiqa takes seconds.
    from pyiqa.archs.ssim_arch import SSIM

    clean, protected = read_image(clean_file), read_image(protected_file)
    if clean.shape != protected.shape:
        raise ValueError(
            f"{protected_file} is {_size(protected)}, but {clean_file} is {_size(clean)}; "
            "compare protected images with the clean crops they were made from"
        )
    difference = ((protected - clean) * 255).round()
    squared_error = float(difference.square().mean())
    row = {
        "image": protected_file.name,
        "linf": int(difference.abs().max()),
        "psnr": 10 * math.log10(255**2 / squared_error) if squared_error else None,
        "ssim": float(SSIM()(protected[None], clean[None])),
    }
    return row | {metric.name: metric(protected, clean) for metric in further}


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def _names(files: Sequence[Path]) -> str:
    names = [file.name for file in files]
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") or "nothing"


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]} px"
