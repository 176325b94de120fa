"""What an attack holds of each surrogate that it climbs against, and its checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from anticustom.attacks.inputs import AttackInputs
from anticustom.diffusion import Posterior
from anticustom.surrogates import Surrogate


@dataclass
class Member:
    """A surrogate under attack, with the timesteps allowed for each photo, and the posterior of the
    clean photos.
    """

    surrogate: Surrogate
    allowed: list[Tensor]
    clean: Posterior


def keep(inputs: AttackInputs, members: Sequence[Member], iteration: int, images: Tensor) -> None:
    """Save a checkpoint, if one is due, from which `iteration` goes on with the photos `images`."""
    if not inputs.checkpoint.due():
        return
    tensors, facts = {"protected": images}, {"iteration": iteration, "members": []}
    for number, member in enumerate(members):
        trainer = member.surrogate.trainer
        own, places = trainer.state("cpu") if trainer else ({}, {})
        own |= {f"allowed.{k}": steps for k, steps in enumerate(member.allowed)}
        tensors |= {f"{number}/{name}": tensor for name, tensor in own.items()}
        facts["members"].append(places | {"fitted_steps": member.surrogate.fitted_steps})
    inputs.checkpoint.save(tensors, facts)


def resume(inputs: AttackInputs, members: Sequence[Member]) -> tuple[int, Tensor]:
    """Put the members back to the checkpoint, if there is one; return the iteration that goes on
    and its photos.
    """
    device = members[0].surrogate.model.device
    saved = inputs.checkpoint.load()
    if saved is None:
        return 0, inputs.photos.to(device)
    tensors, facts = saved
    for number, (member, own) in enumerate(zip(members, facts["members"], strict=True)):
        prefix = f"{number}/"
        mine = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        if member.surrogate.trainer:
            member.surrogate.trainer.restore(mine, own)
        member.surrogate.fitted_steps = own["fitted_steps"]
        member.allowed = [mine[f"allowed.{k}"] for k in range(len(inputs.names))]
    return facts["iteration"], tensors["protected"].to(device)
