"""Steps of a training: shuffled batches, timed checkpoints, resumption, several processes."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

from anticustom.draws import keyed_generator

SECONDS_BETWEEN_CHECKPOINTS = 300


def processes() -> PartialState:
    """Return the place of this process among those that `torchrun` started, which may be one."""
    return PartialState(cpu=True, timeout=timedelta(hours=6))


def shuffled_batches(
    indices: Tensor, batch: int, first_step: int, seed: int = 0
) -> Iterator[Tensor]:
    """Yield this process's part of batches of `indices` without end, beginning at `first_step`.

    Every epoch has an order of its own.
    """
    rank, count = processes().process_index, processes().num_processes
    epoch, position = divmod(first_step, len(indices) // batch)
    while True:
        order = indices[torch.randperm(len(indices), generator=keyed_generator(seed, epoch))]
        for k in range(position, len(indices) // batch):
            yield order[k * batch : (k + 1) * batch][rank::count]
        epoch, position = epoch + 1, 0


def save_whole(value: object, file: Path) -> None:
    """Save `value` with torch so that `file` is never seen half written."""
    partial = file.with_suffix(".partial")
    torch.save(value, partial)
    partial.rename(file)


class Run:
    """The steps of training `network` with AdamW, which go on after the last checkpoint in `file`.

    Checkpoints hold the `average` of the weights too. Several processes average their gradients,
    so that they hold the same weights.
    """

    def __init__(
        self,
        file: Path,
        network: nn.Module,
        steps: int,
        *,
        learning_rate: float,
        average: EMAModel | None = None,
    ):
        self.file, self.network, self.steps, self.first = file, network, steps, 0
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=learning_rate, weight_decay=1e-3, betas=(0.9, 0.99)
        )
        schedule = get_cosine_schedule_with_warmup(optimizer, 200, steps)
        self.parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
        self.parts |= {"average": average} if average else {}
        if file.exists():
            saved = torch.load(file, weights_only=True)
            self.first = saved["step"]
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])

    def __iter__(self) -> Iterator[int]:
        saved_at = time.monotonic()
        self.bar = tqdm(
            range(self.first, self.steps),
            desc=self.file.stem,
            initial=self.first,
            total=self.steps,
            disable=not processes().is_main_process,
            mininterval=1,
        )
        for step in self.bar:
            yield step
            if time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                self.save(step + 1)
                saved_at = time.monotonic()
        if self.first < self.steps:  # the checkpoint of a longer training stays as it is
            self.save(self.steps)

    def descend(self, loss: Tensor) -> None:
        """Take one optimizer step down `loss`."""
        self.bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        loss.backward()
        if processes().num_processes > 1:
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            flat = parameters_to_vector(gradients)
            dist.all_reduce(flat)
            vector_to_parameters(flat / processes().num_processes, gradients)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.parts["optimizer"].step()
        self.parts["optimizer"].zero_grad()
        self.parts["schedule"].step()
        if "average" in self.parts:
            self.parts["average"].step(self.network.parameters())

    def save(self, step: int) -> None:
        if processes().is_main_process:
            states = {name: part.state_dict() for name, part in self.parts.items()}
            save_whole(states | {"step": step}, self.file)
