"""Steps of a training: shuffled batches, timed checkpoints, resumption, several processes."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from anticustom.draws import keyed_generator


def join_processes() -> None:
    """Join the other processes if `torchrun` started several."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("gloo", timeout=timedelta(hours=6))


def rank_and_processes() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process do what is inside before the others, who then find it done."""
    rank, processes = rank_and_processes()
    if rank > 0:
        dist.barrier()
    yield
    if rank == 0 and processes > 1:
        dist.barrier()


def shuffled_batches(
    indices: Tensor, batch: int, first_step: int, seed: int = 0
) -> Iterator[Tensor]:
    """Yield this process's part of batches of `indices` without end, every epoch in an order of
    its own, as if `first_step` batches had been drawn.
    """
    rank, processes = rank_and_processes()
    per_epoch = len(indices) // batch
    step = first_step
    while True:
        epoch, position = divmod(step, per_epoch)
        order = indices[torch.randperm(len(indices), generator=keyed_generator(seed, epoch))]
        for k in range(position, per_epoch):
            yield order[k * batch : (k + 1) * batch][rank::processes]
            step += 1


class Run:
    """The steps of training `network` with AdamW: bar, timed checkpoints, resumption.

    `average`, if given, is kept in the checkpoints too. Several processes average their gradients,
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
        self.rank, self.processes = rank_and_processes()
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=learning_rate, weight_decay=1e-3, betas=(0.9, 0.99)
        )
        schedule = get_cosine_schedule_with_warmup(optimizer, 200, steps)
        self.parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
        self.parts |= {"average": average} if average else {}
        if file.exists():
            saved = torch.load(file, weights_only=True)
            self.first = saved.pop("step")
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])

    def __iter__(self) -> Iterator[int]:
        saved_at = time.monotonic()
        left = range(self.first, self.steps)
        self.bar = tqdm(
            left,
            desc=self.file.stem,
            initial=self.first,
            total=self.steps,
            disable=self.rank > 0,
            mininterval=1,
        )
        for step in self.bar:
            yield step
            if time.monotonic() - saved_at > 300:
                self.save(step + 1)
                saved_at = time.monotonic()
        if self.first < self.steps:  # a longer training's state stays what it is
            self.save(self.steps)

    def descend(self, loss: Tensor) -> None:
        """Take one optimizer step down `loss`."""
        self.bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        loss.backward()
        if self.processes > 1:
            self._average_gradients()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.parts["optimizer"].step()
        self.parts["optimizer"].zero_grad()
        self.parts["schedule"].step()
        if "average" in self.parts:
            self.parts["average"].step(self.network.parameters())

    def _average_gradients(self) -> None:
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / self.processes).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def save(self, step: int) -> None:
        if self.rank > 0:
            return
        partial = self.file.with_suffix(".partial")
        states = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save(states | {"step": step}, partial)
        partial.rename(self.file)
