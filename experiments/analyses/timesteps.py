"""Show what an attack's loss gives at each timestep: how large the image's gradient is, which
frequencies the model predicts, and which timesteps SimAC's greedy search keeps.

`python -m experiments.analyses.timesteps` writes figure.png and numbers.csv.
"""

import argparse
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draw
from anticustom.identities import PhotoSet
from anticustom.losses import Denoising
from anticustom.progress import Progress
from anticustom.timestep_policies import image_gradient_and_loss
from experiments.analyses.spectra import radial_power
from experiments.analyses.subjects import draws_at, read_subject, run, subject_parser
from experiments.setup.building import build
from experiments.setup.composing import composed

TIMESTEPS = [0, 10, 25, 50, 75, 100, 150, 200, 250, *range(300, 1000, 100), 999]
QUANTITIES = {
    "image": "Predicted clean image, decoded",
    "latents": "Predicted clean latents",
    "noise": "Predicted noise",
}
COLUMNS = ["quantity", "timestep", "photo", "noise", "gradient", "frequency", "power", "true_power"]


def gradients_table(
    model: LatentDiffusion, photos: PhotoSet, prompt: str, draws: Iterable[Draw]
) -> pd.DataFrame:
    """Return the mean over pixels and channels of the absolute `gradient` of the denoising loss
    with respect to each photo (in [0, 1]): a row for each draw (`noise`) and `photo`.
    """
    objective = Denoising().bind(model, prompt=prompt)
    images, means = photos.images.to(model.device), []
    for draw in draws:
        gradient, _ = image_gradient_and_loss(objective, images, draw.to(model.device))
        means.append(gradient.abs().flatten(1).mean(1).tolist())
    table = pd.DataFrame(means, columns=pd.Index(photos.names, name="photo"))
    table = table.rename_axis("noise").stack().rename("gradient").reset_index()
    return table.assign(quantity="gradient")


@torch.no_grad()
def predictions(
    model: LatentDiffusion, photos: PhotoSet, prompt: str, draw: Draw
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the model's predictions from noised photos, each with the truth: clean latents, the
    noise, and the images that clean latents decode to.

    Each of them follows from the quantity that the model is trained to predict.
    """
    draw = draw.to(model.device)
    latents = model.latents(model.posterior(photos.images.to(model.device)), draw.posterior)
    noisy = model.noisy(latents, draw.noise, draw.timesteps)
    output = model.predict(noisy, draw.timesteps, model.text_embeddings([prompt]))
    kept = model.scheduler.alphas_cumprod.to(noisy)[draw.timesteps][:, None, None, None]
    signal, spread = kept.sqrt(), (1 - kept).sqrt()
    if model.scheduler.config.prediction_type == "v_prediction":
        clean = signal * noisy - spread * output
    else:
        clean = (noisy - spread * output) / signal
    return {
        "image": (model.decode(clean), model.decode(latents)),
        "latents": (clean, latents),
        "noise": ((noisy - signal * clean) / spread, draw.noise),
    }


def spectra_table(
    model: LatentDiffusion, photos: PhotoSet, prompt: str, draws: Iterable[Draw]
) -> pd.DataFrame:
    """Return the radial `power` of predictions and the `true_power`, averaged over channels, photos
    and the draws of one timestep: a row for each quantity and frequency in cycles per image.
    """
    samples, tables = [predictions(model, photos, prompt, draw) for draw in draws], []
    for quantity in QUANTITIES:
        pairs = torch.stack([torch.stack(sample[quantity]) for sample in samples])
        powers = radial_power(pairs).mean((0, 2, 3)).T.tolist()
        table = pd.DataFrame(powers, columns=["power", "true_power"]).rename_axis("frequency")
        tables.append(table.reset_index().assign(quantity=quantity))
    return pd.concat(tables)


def survivors_table(photos: PhotoSet, survivors: Sequence[Tensor]) -> pd.DataFrame:
    """Return a row for each photo and timestep that its search has kept."""
    steps = [timesteps.tolist() for timesteps in survivors]
    table = pd.DataFrame({"photo": photos.names, "timestep": steps}).explode("timestep")
    return table.astype({"timestep": int}).assign(quantity="surviving")


def analyse(settings: argparse.Namespace, progress: Progress) -> tuple[pd.DataFrame, Figure]:
    subject, timesteps = read_subject(settings), sorted(set(settings.timesteps))
    model, photos = subject.network(), subject.photos
    if unknown := set(timesteps) - set(model.timesteps.tolist()):
        raise ValueError(f"--timesteps {sorted(unknown)}: expected 0 to {len(model.timesteps) - 1}")
    draws, tables = subject.draws(model), []
    for done, timestep in enumerate(timesteps):
        drawn = draws_at(draws, "analyse timesteps", photos.names, settings.noises, timestep)
        for table in (gradients_table, spectra_table):
            rows = table(model, photos, subject.prompt, drawn)
            tables.append(rows.assign(timestep=timestep))
        progress("timesteps", done + 1, len(timesteps))
    # SimAC's search as its attack calls it, even if the overrides choose another attack
    config = composed(*subject.words, "attack=simac")
    survivors = build(config.timestep_policy).allowed(
        model,
        photos.images.to(model.device),
        photos.names,
        subject.prompt,
        draws,
        eps=config.attack.eps,
        step_size=config.attack.step_size,
        progress=progress,
    )
    table = pd.concat([*tables, survivors_table(photos, survivors)])[COLUMNS]
    table = table.astype({"noise": "Int64", "frequency": "Int64"})
    return table, draw_figure(table, subject.caption)


def draw_figure(table: pd.DataFrame, caption: str) -> Figure:
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    figure.suptitle(f"The denoising loss against the timestep ({caption})")
    grid = figure.add_gridspec(2, 2)
    cell = grid[0, 0].subgridspec(2, 1, height_ratios=[3, 1], hspace=0)
    magnitude = figure.add_subplot(cell[0])
    _draw_gradients(magnitude, table[table.quantity == "gradient"])
    survivors = figure.add_subplot(cell[1], sharex=magnitude)
    _draw_survivors(survivors, table[table.quantity == "surviving"])
    magnitude.tick_params(labelbottom=False)
    colours = ScalarMappable(Normalize(0, table.timestep.max()), "viridis")
    axes = [figure.add_subplot(place) for place in (grid[0, 1], grid[1, 0], grid[1, 1])]
    for axis, (quantity, title) in zip(axes, QUANTITIES.items(), strict=True):
        _draw_spectra(axis, table[table.quantity == quantity], colours)
        axis.set(title=title, yscale="linear" if quantity == "noise" else "log")
    axes[-1].set_ylim(0)
    figure.colorbar(colours, ax=axes[::2], label="timestep")
    return figure


def _draw_gradients(axis: Axes, rows: pd.DataFrame) -> None:
    gradients = rows.groupby("timestep").gradient.agg(["mean", "min", "max"])
    axis.fill_between(gradients.index, gradients["min"], gradients["max"], color="C0", alpha=0.2)
    axis.plot(gradients["mean"], "o-", markersize=3, color="C0")
    axis.set(
        title="Image gradient: mean and range over photos and noises",
        yscale="log",
        ylabel="mean |gradient| of the loss\nby a pixel in [0, 1]",
    )
    axis.grid(alpha=0.3)


def _draw_survivors(axis: Axes, rows: pd.DataFrame) -> None:
    photos = sorted(rows.photo.unique())
    for place, photo in enumerate(photos):
        timesteps = sorted(rows[rows.photo == photo].timestep)
        axis.broken_barh(runs(timesteps), (place - 0.35, 0.7), color="C3")
    axis.set_yticks(range(len(photos)), photos)
    axis.set(ylim=(len(photos) - 0.5, -0.5), xlabel="timestep; red: kept by the greedy search")


def runs(timesteps: Sequence[int]) -> list[tuple[int, int]]:
    """Return first and length of each run of consecutive numbers in ascending `timesteps`."""
    parts = np.split(timesteps, np.flatnonzero(np.diff(timesteps) != 1) + 1)
    return [(int(part[0]), len(part)) for part in parts]


def _draw_spectra(axis: Axes, rows: pd.DataFrame, colours: ScalarMappable) -> None:
    rows = rows[rows.frequency > 0]
    for timestep, lines in rows.groupby("timestep"):
        axis.plot(lines.frequency, lines.power, color=colours.to_rgba(timestep), linewidth=1)
    axis.plot(rows.groupby("frequency").true_power.mean(), "k--", label="the truth")
    axis.set(xlabel="frequency [cycles per image]", ylabel="power [1 = white noise of variance 1]")
    axis.legend()
    axis.grid(alpha=0.3)


def main(words: Sequence[str] | None = None) -> None:
    parser = subject_parser("timesteps", __doc__)
    parser.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS)
    parser.add_argument("--noises", type=int, default=4, help="for each photo and timestep")
    run(parser, analyse, words)


if __name__ == "__main__":
    main()
