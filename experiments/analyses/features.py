"""Show the features in the decoder's layers of a clean and of a protected photo: pictures of their
principal components, how much of their energy is of high frequency, and which layers change.

`python -m experiments.analyses.features` protects photos and writes figure.png and numbers.csv;
`--protected FOLDER` takes photos that are protected already.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draw
from anticustom.losses import decoder_layers, denoising, recorded_features
from anticustom.progress import Progress
from experiments.analyses.spectra import high_frequency_share, mean_frequency, white_noise_share
from experiments.analyses.subjects import (
    Subject,
    attacked,
    draws_at,
    read_subject,
    run,
    subject_parser,
)
from experiments.run.photo_files import read_back

TIMESTEPS = [10, 100, 400, 700]
KEYS = ["timestep", "layer", "photo", "noise"]

Pictures = dict[int, list[tuple[Tensor, Tensor]]]  # by timestep, a pair for each layer


@torch.no_grad()
def decoder_features(
    model: LatentDiffusion, images: Tensor, prompt: str, draw: Draw
) -> list[Tensor]:
    """Return the features of SimAC's loss for images in [0, 1]: for each layer (n, c, h, w).

    A layer is the output of the second convolution of a residual block of the decoder.
    """
    draw = draw.to(model.device)
    latents = model.latents(model.posterior(images.to(model.device)), draw.posterior)
    with recorded_features(model, range(len(model.unet.up_blocks))) as features:
        denoising(model, latents, draw, model.text_embeddings([prompt]))
    return [feature.float().cpu() for feature in features]


def relative_change(clean: Tensor, protected: Tensor) -> Tensor:
    """Return ||protected - clean|| / ||clean|| of features (n, c, h, w), (n,)."""
    return (protected - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)


def principal_pictures(clean: Tensor, protected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first three principal components of one image's features (c, h, w) as colours:
    two pictures (h, w, 3) in [0, 1].

    Clean and protected share the components and the scale, so that equal colours are equal
    features. Each colour goes from the 1st to the 99th percentile of its component.
    """
    channels, height, width = clean.shape
    points = torch.stack([clean, protected]).permute(0, 2, 3, 1).reshape(-1, channels)
    points = points - points.mean(0)
    axes = torch.linalg.svd(points, full_matrices=False).Vh[:3].T
    # the sign of a component is arbitrary: its largest loading is to be positive
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    scores = points @ axes
    low, high = scores.quantile(torch.tensor([0.01, 0.99]), dim=0)
    colours = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    pictures = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]))
    first, second = pictures.view(2, height, width, 3)
    return first, second


def layers_table(
    names: Sequence[str], layers: Sequence[str], clean: list[Tensor], protected: list[Tensor]
) -> pd.DataFrame:
    """Return a row for each photo and layer.

    `change_share` is the layer's part of the sum of all layers' relative changes. Frequencies are
    in cycles per image.
    """
    tables = [
        pd.DataFrame(
            {
                "photo": names,
                "layer": layer,
                "channels": before.shape[1],
                "size": before.shape[-1],
                "high_frequency_share_white_noise": white_noise_share(before.shape[-1]),
                "high_frequency_share_clean": high_frequency_share(before).tolist(),
                "high_frequency_share_protected": high_frequency_share(after).tolist(),
                "mean_frequency_clean": mean_frequency(before).tolist(),
                "mean_frequency_protected": mean_frequency(after).tolist(),
                "relative_change": relative_change(before, after).tolist(),
            }
        )
        for layer, before, after in zip(layers, clean, protected, strict=True)
    ]
    table = pd.concat(tables)
    total = table.groupby("photo").relative_change.transform("sum")
    return table.assign(change_share=table.relative_change / total)


def protected_photos(
    subject: Subject, settings: argparse.Namespace, progress: Progress
) -> tuple[Tensor, str]:
    """Return the subject's photos, protected, and who protected them: an attack, or a folder."""
    if not settings.protected:
        words = f"attack={settings.attack}"
        return attacked(subject, words, progress=progress), settings.attack
    images = read_back(subject.photos, settings.protected).images
    if images.shape != subject.photos.images.shape:
        size = subject.photos.images.shape[-1]
        raise ValueError(
            f"--protected {settings.protected}: its photos are not of {size} x {size} pixels"
        )
    return images, str(settings.protected)


def analyse(settings: argparse.Namespace, progress: Progress) -> tuple[pd.DataFrame, Figure]:
    subject = read_subject(settings)
    protected, protector = protected_photos(subject, settings, progress)
    model, names = subject.network(), subject.photos.names
    draws, layers = subject.draws(model), list(decoder_layers(model))
    tables, pictures = [], {}
    for timestep in sorted(set(settings.timesteps)):
        drawn = draws_at(draws, "analyse features", names, settings.noises, timestep)
        for noise, draw in enumerate(drawn):
            clean, after = (
                decoder_features(model, images, subject.prompt, draw)
                for images in (subject.photos.images, protected)
            )
            table = layers_table(names, layers, clean, after)
            tables.append(table.assign(timestep=timestep, noise=noise))
            if noise == 0:
                pairs = zip(clean, after, strict=True)
                pictures[timestep] = [principal_pictures(a[0], b[0]) for a, b in pairs]
    table = pd.concat(tables)
    table = table[[*KEYS, *table.columns.drop(KEYS)]]
    return table, draw_figure(table, pictures, f"{subject.caption}; protected by {protector}")


def draw_figure(table: pd.DataFrame, pictures: Pictures, caption: str) -> Figure:
    """Draw the first photo's pictures, and the means of the table by layer."""
    sizes = table.groupby("layer", sort=False)["size"].first()
    height = 2.3 * len(pictures)
    figure = Figure(figsize=(1.25 * len(sizes) + 3, height + 5), layout="constrained")
    figure.suptitle(f"Decoder features ({caption})")
    upper, lower = figure.subfigures(2, 1, height_ratios=[height, 4.5])
    _draw_pictures(upper, pictures, sizes)
    _draw_lines(lower, table, list(sizes.index))
    return figure


def _draw_pictures(figure: SubFigure, pictures: Pictures, sizes: pd.Series) -> None:
    axes = figure.subplots(2 * len(pictures), len(sizes), squeeze=False)
    for row, (timestep, k) in enumerate(product(pictures, range(2))):
        for axis, pair in zip(axes[row], pictures[timestep], strict=True):
            axis.imshow(pair[k].numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(f"t = {timestep}\n{('clean', 'protected')[k]}")
    for axis, (layer, size) in zip(axes[0], sizes.items(), strict=True):
        axis.set_title(f"layer {layer}\n{size} x {size}", fontsize=9)


def _draw_lines(figure: SubFigure, table: pd.DataFrame, layers: list[str]) -> None:
    axes = figure.subplots(1, 3)
    means = table.groupby(["timestep", "layer"], sort=False).mean(numeric_only=True)
    white = means.high_frequency_share_white_noise.groupby("layer", sort=False).first()
    axes[0].plot(layers, white, "k:", label="white noise")
    for number, (timestep, rows) in enumerate(means.groupby("timestep")):
        colour = f"C{number}"
        for axis, name in zip(axes, ("high_frequency_share", "mean_frequency"), strict=False):
            axis.plot(layers, rows[f"{name}_clean"], "o-", color=colour)
            axis.plot(layers, rows[f"{name}_protected"], "x--", color=colour)
        axes[2].plot(layers, rows.relative_change, "o-", color=colour, label=f"t = {timestep}")
    axes[0].plot([], [], "o-", color="grey", label="clean")
    axes[0].plot([], [], "x--", color="grey", label="protected")
    axes[0].set_ylabel("share of energy above half Nyquist")
    axes[1].set_ylabel("mean frequency [cycles per image]")
    axes[2].set_ylabel("||protected - clean|| / ||clean||")
    for axis in axes:
        axis.set_xlabel("decoder layer (level.block)")
        axis.set_ylim(0)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    axes[2].legend(fontsize=8)


def main(words: Sequence[str] | None = None) -> None:
    parser = subject_parser("features", __doc__)
    parser.add_argument("--attack", default="advdm", help="protects the photos")
    parser.add_argument("--protected", type=Path, help="folder of PNGs named as those of set B")
    parser.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS)
    parser.add_argument("--noises", type=int, default=4, help="for each photo and timestep")
    run(parser, analyse, words)


if __name__ == "__main__":
    main()
