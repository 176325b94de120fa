"""Show how far each attack climbs: the loss that it ascends at every step, and the denoising loss
of its photos on random numbers that are the same for all attacks and steps.

`python -m experiments.analyses.losses` writes figure.png and numbers.csv. All attacks take the same
number of steps on the same photos. The second loss is that of the surrogate as it was loaded.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from anticustom.diffusion import LatentDiffusion
from anticustom.draws import Draws
from anticustom.identities import PhotoSet
from anticustom.losses import denoising
from anticustom.progress import Progress
from experiments.analyses.subjects import attacked, draws_at, read_subject, run, subject_parser
from experiments.setup.composing import composed

PAPERS = ["advdm", "fsmg", "aspl", "simac", "t_fsmg", "t_aspl", "e_fsmg", "e_aspl"]
TIMESTEPS = [10, 50, *range(100, 1000, 100)]
PLACEBO = "noise"
LINEAR_BELOW = 0.01  # losses


@dataclass
class Trace:
    """Observer of an attack, as its progress and its checkpoint.

    `step_losses` are the losses of its perturbation steps, of several surrogates one after the
    other. `photos` are those after every iteration of `steps`, by the number of steps taken.
    """

    progress: Progress
    steps: int
    step_losses: list[float] = field(default_factory=list)
    photos: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, what: str, done: int, total: int, loss: Tensor | None = None) -> None:
        self.progress(what, done, total, loss)
        if what == "perturbation":
            self.step_losses.append(float(loss))

    def load(self) -> None:
        return None

    def due(self) -> bool:
        return bool(self.step_losses)  # not in a training before the attack

    def save(self, tensors: dict[str, Tensor], facts: dict) -> None:
        self.photos[facts["iteration"] * self.steps] = tensors["protected"].cpu()

    @property
    def losses(self) -> list[float]:
        """The loss of every step, the mean over surrogates that climb one after the other."""
        losses = torch.tensor(self.step_losses).view(len(self.photos), -1, self.steps)
        return losses.mean(1).flatten().tolist()


def same_steps(method: str, iterations: int, steps: int, fit_steps: int | None) -> list[str]:
    """Return the overrides that give `method` a number of iterations of `steps` steps.

    A method that takes all its steps in one iteration takes the same steps in several: its
    surrogate stands still between them.
    """
    schedule = "attack.surrogate_schedule"
    words = [f"attack={method}", f"attack.steps={steps}", f"++{schedule}.iterations={iterations}"]
    settings = composed(f"attack={method}").attack.get("surrogate_schedule")
    if settings is None:
        raise ValueError(f"--methods {method}: expected attacks that climb a surrogate's loss")
    if settings["_target_"].endswith(".FittedFirst") and fit_steps is not None:
        words.append(f"{schedule}.training_steps={fit_steps}")
    return words


@torch.no_grad()
def fixed_loss(
    model: LatentDiffusion,
    photos: PhotoSet,
    prompt: str,
    draws: Draws,
    timesteps: Sequence[int] = TIMESTEPS,
) -> pd.DataFrame:
    """Return the denoising `loss` at each `timestep`, the mean over photos.

    The noise depends on the timestep and the photo's name alone.
    """
    posterior = model.posterior(photos.images.to(model.device))
    embeddings, losses = model.text_embeddings([prompt]), []
    for timestep in timesteps:
        (draw,) = draws_at(draws, f"analyse losses {timestep}", photos.names, 1, timestep)
        draw = draw.to(model.device)
        latents = model.latents(posterior, draw.posterior)
        losses.append(float(denoising(model, latents, draw, embeddings).mean()))
    return pd.DataFrame({"timestep": timesteps, "loss": losses})


def analyse(settings: argparse.Namespace, progress: Progress) -> tuple[pd.DataFrame, Figure]:
    counts = (settings.iterations, settings.steps, settings.fit_steps)
    attacks = {method: same_steps(method, *counts) for method in settings.methods}
    subject = read_subject(settings)
    model, photos = subject.network(), subject.photos
    draws = subject.draws(model)

    def fixed(method: str, step: int, images: Tensor) -> pd.DataFrame:
        table = fixed_loss(model, PhotoSet(photos.names, images), subject.prompt, draws)
        return table.assign(method=method, quantity="fixed", step=step)

    tables = [fixed(PLACEBO, 0, attacked(subject, f"attack={PLACEBO}", progress=progress))]
    for method, words in attacks.items():
        trace = Trace(progress, settings.steps)
        attacked(subject, *words, progress=trace, checkpoint=trace)
        ascended = pd.DataFrame({"loss": trace.losses}).rename_axis("step").reset_index()
        tables.append(ascended.assign(method=method, quantity="ascended"))
        images = {0: photos.images, **trace.photos}
        tables += [fixed(method, step, protected) for step, protected in images.items()]
    table = pd.concat(tables)[["method", "quantity", "step", "timestep", "loss"]]
    table = table.astype({"timestep": "Int64"})
    return table, draw_figure(table, settings.methods, settings.steps, subject.caption)


def draw_figure(table: pd.DataFrame, methods: Sequence[str], window: int, caption: str) -> Figure:
    """Draw the ascended loss with its running mean over two iterations of `window` steps, the fixed
    loss by step, and the fixed loss after the last step by timestep.
    """
    figure = Figure(figsize=(16, 5.5), layout="constrained")
    figure.suptitle(f"Losses of attacks ({caption})")
    climbed, by_step, by_timestep = axes = figure.subplots(1, 3)
    ascended, fixed = (table[table.quantity == name] for name in ("ascended", "fixed"))

    def losses_by_timestep(method: str, step: int) -> pd.Series:
        rows = fixed[(fixed.method == method) & (fixed.step == step)]
        return rows.set_index("timestep").loss

    clean = losses_by_timestep(methods[0], 0)
    for number, method in enumerate(methods):
        # the first are the thickest, so that they show beneath others that follow them closely
        style = {"color": f"C{number}", "label": method, "linewidth": max(1, 4.5 - number)}
        climb = ascended[ascended.method == method].set_index("step").loss
        climbed.plot(climb, ".", markersize=3, color=style["color"], alpha=0.4)
        climbed.plot(climb.rolling(2 * window, center=True, min_periods=window).mean(), **style)
        means = fixed[fixed.method == method].groupby("step").loss.mean()
        by_step.plot(means, **style)
        last = losses_by_timestep(method, means.index[-1])
        by_timestep.plot(last / clean, marker="o", markersize=3, **style)
    placebo = losses_by_timestep(PLACEBO, 0)
    style = {"color": "grey", "linestyle": ":", "label": f"{PLACEBO}, the placebo"}
    by_step.axhline(placebo.mean(), **style)
    by_timestep.plot(placebo / clean, **style)
    climbed.set(
        title="What the attack ascends, on its own surrogate",
        xlabel="perturbation step",
        ylabel=f"loss, mean over photos; line: over {2 * window} steps",
    )
    # logarithmic, but where the losses of targeted attacks fall below 0
    climbed.set_yscale("symlog", linthresh=LINEAR_BELOW)
    by_step.set(
        title="Fixed random numbers, the surrogate as loaded",
        xlabel="perturbation step",
        ylabel="denoising loss, mean over photos and timesteps",
    )
    by_step.set_ylim(0)
    by_timestep.set(
        title="The same after the last step",
        xlabel="timestep",
        ylabel="denoising loss / that of the clean photos",
    )
    for axis in axes:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    return figure


def main(words: Sequence[str] | None = None) -> None:
    parser = subject_parser("losses", __doc__)
    methods = "attacks with a surrogate; by default those of Anti-DreamBooth's and SimAC's papers"
    parser.add_argument("--methods", nargs="+", default=PAPERS, help=methods)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--steps", type=int, default=6, help="in each iteration")
    fit = "training steps of a surrogate that is fitted first, as FSMG's; its own number is many"
    parser.add_argument("--fit-steps", type=int, default=40, help=fit)
    run(parser, analyse, words)


if __name__ == "__main__":
    main()
