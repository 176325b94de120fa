"""Writing that survives a kill: whole files or none, and checkpoints that notice damage."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "checkpoint.safetensors"
PARTS = f".{CHECKPOINT}.parts"


class StoreError(ValueError):
    """A folder cannot be written; the message says which and what to do."""


def check_writable(root: Path) -> None:
    """Raise StoreError unless files can be made under `root`; leaves nothing behind."""
    folder = Path(root).absolute()
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _refusal(error, folder, "choose another output_dir") from error


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn what libraries raise on a full or forbidden disk into a StoreError."""
    try:
        yield
    except Exception as error:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
        # safetensors and torch wrap the system's error in types of their own: the text is left.
        if any(os.strerror(number) in str(error) for number in full):
            advice = "free some space or choose another output_dir; the work so far is kept"
            raise _refusal(error, root, advice) from error
        if isinstance(error, PermissionError) and str(root) in str(error.filename):
            raise _refusal(error, root, "choose an output_dir that you may write") from error
        raise


def _refusal(error: Exception, folder: Path, advice: str) -> StoreError:
    reason = getattr(error, "strerror", None) or str(error)
    where = getattr(error, "filename", None) or folder
    return StoreError(f"cannot write in {where} ({reason}): {advice}")


def atomic_write(path: Path, content: str | bytes) -> Path:
    """Write a file whose name shows, at any moment, the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def save_checkpoint(folder: Path, tensors: Mapping[str, "Tensor"], facts: Mapping) -> None:
    """Replace the folder's checkpoint; `facts` is anything that JSON can hold."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    held = set()
    for name, tensor in tensors.items():  # some may share memory, which the format refuses
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in held else tensor
        held.add(place)
    metadata = {"facts": json.dumps(facts)}
    metadata["sha256"] = _digest(tensors, metadata["facts"])
    # One writer at a time holds the folder. safetensors writes under names of its own: what a kill
    # leaves of a save goes with the next, and kills leave no pile.
    parts = folder / PARTS
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    save_file(tensors, parts / CHECKPOINT, metadata)
    _publish(parts / CHECKPOINT, folder / CHECKPOINT)
    parts.rmdir()


def load_checkpoint(folder: Path) -> "tuple[dict[str, Tensor], dict] | None":
    """The tensors, on the CPU, and the facts last saved; None if absent or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / CHECKPOINT, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None
    facts = metadata.get("facts", "")
    if metadata.get("sha256") != _digest(tensors, facts):
        return None
    return tensors, json.loads(facts)


def _digest(tensors: Mapping[str, "Tensor"], facts: str) -> str:
    import torch

    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _publish(temporary: Path, path: Path) -> None:
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
