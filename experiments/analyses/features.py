"""Show what the decoder's layers hold of a clean and of a protected photo: pictures of their
principal components, how much of their energy is of high frequency, and which layers change.

`python -m experiments.analyses.features` protects photos and writes figure.png and numbers.csv;
`--protected FOLDER` takes photos that are protected already.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draw, draw_batches
from anticustom.losses import decoder_layers, denoising, recorded_features
from anticustom.progress import Progress
from experiments.analyses.spectra import high_frequency_share, mean_frequency, white_noise_share
from experiments.analyses.subjects import Subject, arguments, attacked, run, said
from experiments.run.photo_files import read_back

TIMESTEPS = [10, 100, 400, 700]


@torch.no_grad()
def decoder_features(
    model: LatentDiffusion, images: Tensor, prompt: str, draw: Draw
) -> list[Tensor]:
    """Return the features of SimAC's loss, the outputs of the second convolution of every residual
    block of the decoder, for images in [0, 1]: for each layer (n, c, h, w).
    """
    draw = draw.to(model.device)
    latents = model.latents(model.posterior(images.to(model.device)), draw.posterior)
    with recorded_features(model, range(len(model.unet.up_blocks))) as features:
        denoising(model, latents, draw, model.text_embeddings([prompt]))
    return [feature.float().cpu() for feature in features]


def relative_change(clean: Tensor, protected: Tensor) -> Tensor:
    """Return ||protected - clean|| / ||clean|| of features (n, c, h, w), (n,)."""
    distance, norm = ((x.flatten(1).norm(dim=1)) for x in (protected - clean, clean))
    return distance / norm


def principal_pictures(clean: Tensor, protected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first three principal components of one image's features (c, h, w) as colours:
    two pictures (h, w, 3) in [0, 1].

    Clean and protected share the components and the scale, so that equal colours are equal
    features; each channel goes from the 1st to the 99th percentile.
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

    `change_share` is the layer's part of the sum of all layers' relative changes; frequencies are
    in cycles per image.
    """
    rows = []
    for layer, before, after in zip(layers, clean, protected, strict=True):
        columns = {
            "high_frequency_share_clean": high_frequency_share(before),
            "high_frequency_share_protected": high_frequency_share(after),
            "mean_frequency_clean": mean_frequency(before),
            "mean_frequency_protected": mean_frequency(after),
            "relative_change": relative_change(before, after),
        }
        sizes = {"channels": before.shape[1], "size": before.shape[-1]}
        sizes["high_frequency_share_white_noise"] = white_noise_share(before.shape[-1])
        rows += [
            {"photo": name, "layer": layer, **sizes}
            | {column: float(values[k]) for column, values in columns.items()}
            for k, name in enumerate(names)
        ]
    table = pd.DataFrame(rows)
    total = table.groupby("photo").relative_change.transform("sum")
    return table.assign(change_share=table.relative_change / total)


def analyse(
    subject: Subject, settings: argparse.Namespace, progress: Progress
) -> tuple[pd.DataFrame, Figure]:
    photos = subject.photos
    if settings.protected:
        protected, how = read_back(photos, settings.protected).images, str(settings.protected)
        if protected.shape != photos.images.shape:
            size = photos.images.shape[-1]
            raise ValueError(f"--protected {how}: its photos are not of {size} x {size} pixels")
    else:
        how = settings.attack
        protected = attacked(subject, [f"attack={how}"], progress=progress)
    model = subject.network()
    draws, layers = subject.draws(model), list(decoder_layers(model))
    tables, pictures = [], {}
    for timestep in sorted(set(settings.timesteps)):
        allowed = [torch.tensor([timestep])] * len(photos.names)
        drawn = draw_batches(draws, "analyse features", photos.names, settings.noises, allowed)
        for noise, draw in enumerate(drawn):
            clean, after = (
                decoder_features(model, images, subject.prompt, draw)
                for images in (photos.images, protected)
            )
            table = layers_table(photos.names, layers, clean, after)
            tables.append(table.assign(timestep=timestep, noise=noise))
            if noise == 0:
                pictures[timestep] = [
                    principal_pictures(a[0], b[0]) for a, b in zip(clean, after, strict=True)
                ]
    table = pd.concat(tables)
    keys = ["timestep", "layer", "photo", "noise"]
    table = table[[*keys, *table.columns.drop(keys)]]
    return table, draw_figure(table, pictures, f"{said(subject)}; protected by {how}")


def draw_figure(
    table: pd.DataFrame, pictures: dict[int, list[tuple[Tensor, Tensor]]], subject: str
) -> Figure:
    """Draw the first photo's `pictures`, for each timestep a pair for each layer, and the means of
    the table.
    """
    layers = list(dict.fromkeys(table.layer))
    rows = 2 * len(pictures)
    figure = Figure(figsize=(1.25 * len(layers) + 3, 1.15 * rows + 5), layout="constrained")
    figure.suptitle(f"Decoder features ({subject})")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.15 * rows, 4.5])
    _draw_pictures(upper, pictures, table)
    _draw_lines(lower, table, layers)
    return figure


def _draw_pictures(
    figure: SubFigure, pictures: dict[int, list[tuple[Tensor, Tensor]]], table: pd.DataFrame
) -> None:
    sizes = table.groupby("layer", sort=False)["size"].first()
    axes = figure.subplots(2 * len(pictures), len(sizes), squeeze=False)
    for row, (timestep, pairs) in enumerate(pictures.items()):
        for column, pair in enumerate(pairs):
            for k, picture in enumerate(pair):
                axis = axes[2 * row + k, column]
                axis.imshow(np.asarray(picture), interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
        axes[2 * row, 0].set_ylabel(f"t = {timestep}\nclean")
        axes[2 * row + 1, 0].set_ylabel(f"t = {timestep}\nprotected")
    for axis, (layer, size) in zip(axes[0], sizes.items(), strict=True):
        axis.set_title(f"layer {layer}\n{size} x {size}", fontsize=9)


def _draw_lines(figure: SubFigure, table: pd.DataFrame, layers: list[str]) -> None:
    axes = figure.subplots(1, 3)
    means = table.groupby(["timestep", "layer"], sort=False).mean(numeric_only=True)
    white = means.high_frequency_share_white_noise.groupby("layer", sort=False).first()
    axes[0].plot(layers, white, "k:", label="white noise")
    for number, (timestep, rows) in enumerate(means.groupby("timestep")):
        colour = f"C{number}"
        axes[0].plot(layers, rows.high_frequency_share_clean, "o-", color=colour)
        axes[0].plot(layers, rows.high_frequency_share_protected, "x--", color=colour)
        axes[1].plot(layers, rows.mean_frequency_clean, "o-", color=colour)
        axes[1].plot(layers, rows.mean_frequency_protected, "x--", color=colour)
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
    parser = arguments("features", __doc__.split("\n\n")[0])
    parser.add_argument("--attack", default="advdm", help="protects the photos")
    parser.add_argument("--protected", type=Path, help="folder of PNGs named as those of set B")
    parser.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS)
    parser.add_argument("--noises", type=int, default=4, help="for each photo and timestep")
    run(parser, analyse, words)


if __name__ == "__main__":
    main()
