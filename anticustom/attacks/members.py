"""The surrogates of a running attack, and its checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from anticustom.attacks.inputs import AttackInputs
from anticustom.diffusion import Posterior
from anticustom.draws import Draw, draw_batches
from anticustom.surrogates import Surrogate


@dataclass
class Member:
    """A surrogate, the timesteps allowed for each photo, and the posterior of the clean photos."""

    surrogate: Surrogate
    allowed: list[Tensor]
    clean: Posterior

    def __getitem__(self, rows: slice) -> "Member":
        """Return the same surrogate with what belongs to the photos `rows`."""
        return Member(self.surrogate, self.allowed[rows], self.clean[rows])

    def draws(self, phase: str, names: Sequence[str], steps: int, count: int) -> list[list[Draw]]:
        """Return `count` draws for each of the `steps`, each with a row for each photo."""
        draws = draw_batches(self.surrogate.draws, phase, names, steps * count, self.allowed)
        return [draws[k : k + count] for k in range(0, len(draws), count)]


def keep(inputs: AttackInputs, members: Sequence[Member], iteration: int, images: Tensor) -> None:
    """Save a checkpoint if one is due. From it, `iteration` starts again with the photos
    `images`.
    """
    if not inputs.checkpoint.due():
        return
    tensors, facts = {"protected": images}, {"iteration": iteration, "members": []}
    for number, member in enumerate(members):
        trainer = member.surrogate.trainer
        state, places = trainer.state("cpu") if trainer else ({}, {})
        state |= {f"allowed.{k}": timesteps for k, timesteps in enumerate(member.allowed)}
        tensors |= {f"{number}/{name}": tensor for name, tensor in state.items()}
        facts["members"].append(places | {"fitted_steps": member.surrogate.fitted_steps})
    inputs.checkpoint.save(tensors, facts)


def resume(inputs: AttackInputs, members: Sequence[Member]) -> tuple[int, Tensor]:
    """Return the iteration to start with and its photos.

    If there is a checkpoint, they are the checkpoint's, and the members are put back to it.
    """
    device = members[0].surrogate.model.device
    saved = inputs.checkpoint.load()
    if saved is None:
        return 0, inputs.photos.to(device)
    tensors, facts = saved
    for number, (member, places) in enumerate(zip(members, facts["members"], strict=True)):
        prefix = f"{number}/"
        state = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        if member.surrogate.trainer:
            member.surrogate.trainer.restore(state, places)
        member.surrogate.fitted_steps = places["fitted_steps"]
        member.allowed = [state[f"allowed.{k}"] for k in range(len(inputs.names))]
    return facts["iteration"], tensors["protected"].to(device)
