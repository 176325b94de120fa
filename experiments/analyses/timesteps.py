"""Show what an attack's loss gives at each timestep: how large the image's gradient is, which
frequencies the model predicts, and which timesteps SimAC's greedy search keeps.

`python -m experiments.analyses.timesteps` writes figure.png and numbers.csv.
"""

import argparse
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draw, Draws, draw_batches
from anticustom.identities import PhotoSet
from anticustom.losses import Denoising
from anticustom.progress import Progress
from anticustom.timestep_policies import image_gradient_and_loss
from experiments.analyses.spectra import radial_power
from experiments.analyses.subjects import Subject, arguments, run, said, settled
from experiments.setup.building import build

TIMESTEPS = [0, 10, 25, 50, 75, 100, 150, 200, 250, *range(300, 1000, 100), 999]
QUANTITIES = {
    "image": "Predicted clean image, decoded",
    "latents": "Predicted clean latents",
    "noise": "Predicted noise",
}


def same_draws(draws: Draws, names: Sequence[str], count: int, timestep: int) -> list[Draw]:
    """Return `count` draws at one timestep; all timesteps have the same noise, so that they can be
    compared with few of them.
    """
    allowed = [torch.tensor([timestep])] * len(names)
    return draw_batches(draws, "analyse timesteps", names, count, allowed)


def gradient_magnitudes(
    model: LatentDiffusion, photos: PhotoSet, prompt: str, draws: Iterable[Draw]
) -> Tensor:
    """Return the mean over pixels and channels of the absolute gradient of the denoising loss with
    respect to each photo (in [0, 1]), one row for each draw: (draws, photos).
    """
    objective = Denoising().bind(model, prompt=prompt)
    images = photos.images.to(model.device)
    rows = [image_gradient_and_loss(objective, images, one.to(model.device))[0] for one in draws]
    return torch.stack([gradient.abs().flatten(1).mean(1) for gradient in rows]).cpu()


@torch.no_grad()
def predictions(
    model: LatentDiffusion, photos: PhotoSet, prompt: str, draw: Draw
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what the model predicts of noised photos, and the truth: clean latents, the noise, and
    the images that clean latents decode to.

    Whatever the model is trained to predict, one follows from the other.
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
    """Return the radial power of predictions, and of the truth, averaged over channels, photos and
    the draws of one timestep: a row for each quantity and frequency in cycles per image.
    """
    several = [predictions(model, photos, prompt, draw) for draw in draws]
    rows = []
    for quantity in QUANTITIES:
        pairs = torch.stack([torch.stack(one[quantity]) for one in several])
        predicted, true = radial_power(pairs).mean((0, 2, 3)).tolist()
        rows += [
            {"quantity": quantity, "frequency": k, "power": power, "true_power": true[k]}
            for k, power in enumerate(predicted)
        ]
    return pd.DataFrame(rows)


def gradients_table(
    model: LatentDiffusion, photos: PhotoSet, prompt: str, draws: Sequence[Draw]
) -> pd.DataFrame:
    magnitudes = gradient_magnitudes(model, photos, prompt, draws)
    rows = [
        {"quantity": "gradient", "photo": name, "noise": k, "gradient": float(value)}
        for k, row in enumerate(magnitudes)
        for name, value in zip(photos.names, row, strict=True)
    ]
    return pd.DataFrame(rows)


def survivors_table(photos: PhotoSet, allowed: Sequence[Tensor]) -> pd.DataFrame:
    """Return a row for each photo and timestep that its search has kept."""
    rows = [
        {"quantity": "surviving", "timestep": timestep, "photo": name}
        for name, steps in zip(photos.names, allowed, strict=True)
        for timestep in steps.tolist()
    ]
    return pd.DataFrame(rows)


def analyse(
    subject: Subject, settings: argparse.Namespace, progress: Progress
) -> tuple[pd.DataFrame, Figure]:
    model = subject.network()
    if unknown := set(settings.timesteps) - set(model.timesteps.tolist()):
        raise ValueError(f"--timesteps {sorted(unknown)}: expected 0 to {len(model.timesteps) - 1}")
    draws, photos = subject.draws(model), subject.photos
    tables = []
    for done, timestep in enumerate(sorted(set(settings.timesteps))):
        drawn = same_draws(draws, photos.names, settings.noises, timestep)
        at = (model, photos, subject.prompt, drawn)
        tables += [
            table(*at).assign(timestep=timestep) for table in (gradients_table, spectra_table)
        ]
        progress("timesteps", done + 1, len(set(settings.timesteps)))
    # SimAC's search as the attack calls it, whatever attack the overrides choose
    attack = build(settled([*subject.words, "attack=simac"]).attack)
    allowed = attack.timestep_policy.allowed(
        model,
        photos.images.to(model.device),
        photos.names,
        subject.prompt,
        draws,
        eps=attack.eps,
        step_size=attack.step_size,
        progress=progress,
    )
    tables.append(survivors_table(photos, allowed))
    columns = ["quantity", "timestep", "photo", "noise", "gradient", "frequency"]
    table = pd.concat(tables)[[*columns, "power", "true_power"]].astype(
        {"noise": "Int64", "frequency": "Int64"}
    )
    return table, draw_figure(table, said(subject))


def draw_figure(table: pd.DataFrame, subject: str) -> Figure:
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    figure.suptitle(f"The denoising loss against the timestep ({subject})")
    grid = figure.add_gridspec(2, 2)
    cell = grid[0, 0].subgridspec(2, 1, height_ratios=[3, 1], hspace=0)
    magnitude = figure.add_subplot(cell[0])
    _draw_gradients(magnitude, table[table.quantity == "gradient"])
    kept = figure.add_subplot(cell[1], sharex=magnitude)
    _draw_survivors(kept, table[table.quantity == "surviving"])
    magnitude.tick_params(labelbottom=False)
    colours = ScalarMappable(Normalize(0, table.timestep.max()), "viridis")
    places = (grid[0, 1], grid[1, 0], grid[1, 1])
    axes = [figure.add_subplot(place) for place in places]
    for axis, (quantity, title) in zip(axes, QUANTITIES.items(), strict=True):
        _draw_spectra(axis, table[table.quantity == quantity], colours)
        axis.set_title(title)
        axis.set_yscale("linear" if quantity == "noise" else "log")
    axes[-1].set_ylim(0)
    figure.colorbar(colours, ax=axes[::2], label="timestep")
    return figure


def _draw_gradients(axis: Axes, rows: pd.DataFrame) -> None:
    of_timestep = rows.groupby("timestep").gradient
    mean = of_timestep.mean()
    axis.fill_between(mean.index, of_timestep.min(), of_timestep.max(), color="C0", alpha=0.2)
    axis.plot(mean.index, mean, "o-", markersize=3, color="C0")
    axis.set_yscale("log")
    axis.set_ylabel("mean |gradient| of the loss\nby a pixel in [0, 1]")
    axis.set_title("Image gradient: mean and range over photos and noises")
    axis.grid(alpha=0.3)


def _draw_survivors(axis: Axes, rows: pd.DataFrame) -> None:
    photos = sorted(rows.photo.unique())
    for place, photo in enumerate(photos):
        for first, count in runs(sorted(rows[rows.photo == photo].timestep)):
            axis.broken_barh([(first, count)], (place - 0.35, 0.7), color="C3")
    axis.set_yticks(range(len(photos)), photos)
    axis.set_ylim(len(photos) - 0.5, -0.5)
    axis.set_xlabel("timestep; red: kept by the greedy search")


def runs(timesteps: Sequence[int]) -> list[tuple[int, int]]:
    """Return first and length of each run of consecutive numbers in ascending `timesteps`."""
    starts = [0] + [k + 1 for k, (a, b) in enumerate(pairwise(timesteps)) if b != a + 1]
    ends = [*starts[1:], len(timesteps)]
    return [(timesteps[a], b - a) for a, b in zip(starts, ends, strict=True)]


def _draw_spectra(axis: Axes, rows: pd.DataFrame, colours: ScalarMappable) -> None:
    rows = rows[rows.frequency > 0]
    for timestep, lines in rows.groupby("timestep"):
        axis.plot(lines.frequency, lines.power, color=colours.to_rgba(timestep), linewidth=1)
    truth = rows.groupby("frequency").true_power.mean()
    axis.plot(truth.index, truth, "k--", label="the truth")
    axis.set_xlabel("frequency [cycles per image]")
    axis.set_ylabel("power [1 = white noise of variance 1]")
    axis.legend()
    axis.grid(alpha=0.3)


def main(words: Sequence[str] | None = None) -> None:
    parser = arguments("timesteps", __doc__.split("\n\n")[0])
    parser.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS)
    parser.add_argument("--noises", type=int, default=4, help="for each photo and timestep")
    run(parser, analyse, words)


if __name__ == "__main__":
    main()
