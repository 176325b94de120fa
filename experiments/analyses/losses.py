"""Show how far each attack climbs: the loss that it ascends at every step, and the denoising loss
of its photos on random numbers that are the same for all attacks and steps.

`python -m experiments.analyses.losses` writes figure.png and numbers.csv. All attacks take the same
number of steps on the same photos; the second loss is of the surrogate as it was loaded.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draws, draw_batches
from anticustom.identities import PhotoSet
from anticustom.losses import denoising
from anticustom.progress import Progress
from experiments.analyses.subjects import Subject, arguments, attacked, run, said
from experiments.setup.composing import composed

METHODS = ["advdm", "fsmg", "aspl", "simac", "t_fsmg", "t_aspl", "e_fsmg", "e_aspl"]
TIMESTEPS = [10, 50, *range(100, 1000, 100)]
PLACEBO = "noise"
LINEAR_BELOW = 0.01  # losses


@dataclass
class Trace:
    """Keeps what an attack shows while it runs: as its progress the loss of every perturbation
    step, as its checkpoint the photos after every iteration of `steps`, by their number of steps.
    """

    progress: Progress
    steps: int
    shown: list[float] = field(default_factory=list)
    photos: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, what: str, done: int, total: int, loss: Tensor | None = None) -> None:
        self.progress(what, done, total, loss)
        if what == "perturbation":
            self.shown.append(float(loss))

    def load(self) -> None:
        return None

    def due(self) -> bool:
        return bool(self.shown)  # not in a training before the attack

    def save(self, tensors: dict[str, Tensor], facts: dict) -> None:
        self.photos[facts["iteration"] * self.steps] = tensors["protected"].cpu()

    @property
    def losses(self) -> list[float]:
        """The loss of every step; of surrogates that climb one after the other, their mean."""
        shown = torch.tensor(self.shown).view(len(self.photos), -1, self.steps)
        return shown.mean(1).flatten().tolist()


def same_steps(method: str, iterations: int, steps: int, fit_steps: int | None) -> list[str]:
    """Return the overrides that give `method` so many iterations of so many steps.

    One that takes all its steps in one iteration takes the same in several: between them its
    surrogate stands still.
    """
    schedule = "attack.surrogate_schedule"
    words = [f"attack={method}", f"attack.steps={steps}", f"++{schedule}.iterations={iterations}"]
    moved_by = composed(f"attack={method}").attack.get("surrogate_schedule", {}).get("_target_")
    if moved_by is None:
        raise ValueError(f"--methods {method}: expected attacks that climb a surrogate's loss")
    if moved_by.endswith(".FittedFirst") and fit_steps is not None:
        words.append(f"{schedule}.training_steps={fit_steps}")
    return words


@torch.no_grad()
def fixed_loss(
    model: LatentDiffusion,
    names: Sequence[str],
    images: Tensor,
    prompt: str,
    draws: Draws,
    timesteps: Sequence[int],
) -> list[float]:
    """Return the denoising loss at each of `timesteps`, the mean over images, with noise that
    depends on the timestep and the image's name alone.
    """
    posterior, embeddings = (
        model.posterior(images.to(model.device)),
        model.text_embeddings([prompt]),
    )
    losses = []
    for timestep in timesteps:
        allowed = [torch.tensor([timestep])] * len(names)
        (draw,) = draw_batches(draws, f"analyse losses {timestep}", names, 1, allowed)
        draw = draw.to(model.device)
        latents = model.latents(posterior, draw.posterior)
        losses.append(float(denoising(model, latents, draw, embeddings).mean()))
    return losses


def trace_table(
    method: str,
    ascended: Sequence[float],
    images: Mapping[int, Tensor],
    model: LatentDiffusion,
    photos: PhotoSet,
    prompt: str,
    draws: Draws,
    timesteps: Sequence[int],
) -> pd.DataFrame:
    """Return a row for each step's ascended loss (before the step), and for each timestep of the
    fixed loss after so many steps.
    """
    rows = [
        {"method": method, "quantity": "ascended", "step": step, "loss": loss}
        for step, loss in enumerate(ascended)
    ]
    for step, protected in images.items():
        losses = fixed_loss(model, photos.names, protected, prompt, draws, timesteps)
        rows += [
            {"method": method, "quantity": "fixed", "step": step, "timestep": t, "loss": loss}
            for t, loss in zip(timesteps, losses, strict=True)
        ]
    return pd.DataFrame(rows)


def analyse(
    subject: Subject, settings: argparse.Namespace, progress: Progress
) -> tuple[pd.DataFrame, Figure]:
    counts = (settings.iterations, settings.steps, settings.fit_steps)
    attacks = {method: same_steps(method, *counts) for method in settings.methods}
    model = subject.network()
    at = (model, subject.photos, subject.prompt, subject.draws(model), TIMESTEPS)
    noisy = attacked(subject, [f"attack={PLACEBO}"], progress=progress)
    tables = [trace_table(PLACEBO, [], {0: noisy}, *at)]
    for method, words in attacks.items():
        trace = Trace(progress, settings.steps)
        attacked(subject, words, progress=trace, checkpoint=trace)
        images = {0: subject.photos.images, **trace.photos}
        tables.append(trace_table(method, trace.losses, images, *at))
    table = pd.concat(tables)[["method", "quantity", "step", "timestep", "loss"]]
    table = table.astype({"timestep": "Int64"})
    return table, draw_figure(table, settings.methods, settings.steps, said(subject))


def draw_figure(table: pd.DataFrame, methods: Sequence[str], window: int, subject: str) -> Figure:
    """Draw the ascended loss with its running mean over two iterations of `window` steps, the fixed
    loss by step, and by timestep that after the last step.
    """
    figure = Figure(figsize=(16, 5.5), layout="constrained")
    figure.suptitle(f"Losses of attacks ({subject})")
    climbed, fixed, by_timestep = figure.subplots(1, 3)
    ascended = table[table.quantity == "ascended"]
    on_fixed = table[table.quantity == "fixed"]
    start = on_fixed[(on_fixed.method == methods[0]) & (on_fixed.step == 0)]
    clean = start.set_index("timestep").loss
    for number, method in enumerate(methods):
        # the first are the thickest, so that they show beneath others that follow them closely
        style = {"color": f"C{number}", "label": method, "linewidth": max(1, 4.5 - number)}
        own = ascended[ascended.method == method]
        climbed.plot(own.step, own.loss, ".", markersize=3, color=style["color"], alpha=0.4)
        smooth = own.loss.rolling(2 * window, center=True, min_periods=window).mean()
        climbed.plot(own.step, smooth, **style)
        mine = on_fixed[on_fixed.method == method]
        fixed.plot(mine.groupby("step").loss.mean(), **style)
        last = mine[mine.step == mine.step.max()].set_index("timestep").loss
        by_timestep.plot(last / clean, marker="o", markersize=3, **style)
    placebo = on_fixed[on_fixed.method == PLACEBO].set_index("timestep").loss
    style = {"color": "grey", "linestyle": ":", "label": f"{PLACEBO}, the placebo"}
    fixed.axhline(placebo.mean(), **style)
    by_timestep.plot(placebo / clean, **style)
    # logarithmic, but where the losses of targeted attacks fall below 0
    climbed.set_yscale("symlog", linthresh=LINEAR_BELOW)
    fixed.set_ylim(0)
    titles = {
        climbed: ("What the attack ascends, on its own surrogate", "perturbation step"),
        fixed: ("Fixed random numbers, the surrogate as loaded", "perturbation step"),
        by_timestep: ("The same after the last step", "timestep"),
    }
    for axis, (title, x) in titles.items():
        axis.set_title(title)
        axis.set_xlabel(x)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    climbed.set_ylabel(f"loss, mean over photos; line: over {2 * window} steps")
    fixed.set_ylabel("denoising loss, mean over photos and timesteps")
    by_timestep.set_ylabel("denoising loss / that of the clean photos")
    return figure


def main(words: Sequence[str] | None = None) -> None:
    parser = arguments("losses", __doc__.split("\n\n")[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, help="attacks with a surrogate")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--steps", type=int, default=6, help="in each iteration")
    fit = "training steps of a surrogate that is fitted first, as FSMG's; its own number is many"
    parser.add_argument("--fit-steps", type=int, default=40, help=fit)
    run(parser, analyse, words)


if __name__ == "__main__":
    main()
