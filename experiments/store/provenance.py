"""Where a number comes from: versions, machine, digests of files, peak memory."""

import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from experiments.processes import usable_cores

PACKAGES = (
    "anticustom",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "hydra-core",
    "facenet-pytorch",
    "pyiqa",
)
SOURCE_TREE = Path(__file__).resolve().parents[2]


@functools.cache
def versions() -> dict:
    """Return the versions of Python and of the packages that decide the numbers, and the commit.

    A package that is not installed is None; `git` is None outside a git checkout.
    """
    packages: dict = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    return {"python": platform.python_version(), **packages, "git": git_state(SOURCE_TREE)}


def git_state(folder: Path) -> dict | None:
    """Return the commit of a checkout and whether its files differ from it; None if unreadable.

    Files that git ignores do not count, new ones do.
    """
    if not (folder / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", folder, "status", "--porcelain=v2", "--branch"]
    # Inside a git hook GIT_DIR and its like name another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        status = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    first, *lines = status.stdout.splitlines()
    dirty = any(not line.startswith("#") for line in lines)
    return {"commit": first.removeprefix("# branch.oid "), "dirty": dirty}


def machine(device: str) -> dict:
    """Return the processor, the cores this process may use, torch's threads, GPU and platform.

    `cpu_kind` tells apart processors of one name that round sums otherwise: family, model and
    stepping, where the system is Linux, and the instructions that torch chose. `gpu` is None where
    `device` is none.
    """
    import torch

    cpu = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            cpu[key.strip()] = value.strip()
    keys = {"family": "cpu family", "model": "model", "stepping": "stepping"}
    kind = [f"{word} {cpu[key]}" for word, key in keys.items() if key in cpu]
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_kind": " ".join([*kind, torch.backends.cpu.get_cpu_capability()]),
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "platform": platform.platform(),
    }


def computed_on(machine: Mapping) -> str:
    """Return the processor of a machine in words: on equal ones, equal inputs round alike."""
    return machine["gpu"] or f"{machine['cpu']}, {machine['cpu_kind']}"


def peak_memory_bytes() -> dict:
    """Return the peaks since `reset_peak_memory`, in bytes.

    `cpu` is the resident set of this process. `cuda` is the memory that torch allocated, or None.
    """
    import torch

    cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
    return {"cpu": _peak_resident_bytes(), "cuda": cuda}


def reset_peak_memory() -> None:
    """Forget the peaks so far; that of the resident set where the system is Linux."""
    import torch

    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def highest(peaks: Iterable[Mapping]) -> dict:
    """Return the highest of several peaks, on the CPU and on the GPU."""
    peaks = list(peaks)
    return {
        where: max((peak[where] for peak in peaks if peak[where] is not None), default=None)
        for where in ("cpu", "cuda")
    }


def _peak_resident_bytes() -> int:
    # getrusage would also count what the parent process held before it started this one.
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, hexadecimal.

    This process remembers it by path, size and modification time.
    """
    path = Path(path).resolve()
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> dict[str, Path]:
    """Return a folder's files by their relative names; raise NotADirectoryError if it is none.

    Hidden files and folders are left out, for download clients keep time stamps in them, and so
    are texts for readers (Markdown).
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder to take a digest of")
    files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
    return {
        name.as_posix(): file
        for name, file in files.items()
        if name.suffix != ".md" and not any(part.startswith(".") for part in name.parts)
    }


def digest_of_files(files: Mapping[str, Path]) -> str:
    """Return the SHA-256 of files' names and contents, hexadecimal, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.split("/")):
        digest.update(f"{name}\0{digest_of_file(files[name])}\n".encode())
    return digest.hexdigest()


def digest_of_folder(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of the files in a folder, hexadecimal."""
    return digest_of_files(files_in(Path(folder)))
