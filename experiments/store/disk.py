"""Files that a kill leaves whole or not at all, and one line where a folder cannot be written."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


class StoreError(ValueError):
    """A folder cannot be written; the message says which one and how to go on."""


def check_writable(root: Path) -> None:
    """Raise StoreError unless files can be made under `root`; nothing is left behind."""
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
    """Turn the errors that libraries raise on a full or forbidden disk into a StoreError."""
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
    """Write a file, which shows at any moment its old content or the new; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def publish(temporary: Path, path: Path) -> None:
    """Put a finished file in the place of another one."""
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
