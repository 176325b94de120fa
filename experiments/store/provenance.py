"""Where a number comes from: versions, machine, digests of files, peak memory."""

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType

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

_digests: dict[str, str] = {}


@functools.cache
def versions() -> dict:
    """Versions of Python and the packages that decide the numbers, and the commit of a checkout.

    A package that is not installed is None; `git` is None outside a git checkout.
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found | {"git": git_state(SOURCE_TREE)}


def git_state(folder: Path) -> dict | None:
    """Commit, and whether the files that git does not ignore differ from it; None if unreadable."""
    if not (folder / ".git").exists():
        return None
    # Inside a git hook GIT_DIR and its like name another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10, env=environment
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def machine(device: str) -> dict:
    """Processor by name and by what decides its rounding, cores this process may use, torch
    threads, GPU (None where `device` is none), platform.
    """
    import torch

    return {
        "cpu": _cpu_model(),
        "cpu_kind": cpu_kind(),
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "platform": platform.platform(),
    }


def computed_on(machine: Mapping) -> str:
    """The processor that a machine computes on, in words: what equal inputs round alike on."""
    if machine["gpu"]:
        return machine["gpu"]
    return ", ".join(filter(None, (machine["cpu"], machine.get("cpu_kind"))))


def _cpu_model() -> str:
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_kind() -> str:
    """Family, model and stepping where the system tells, and the instructions that torch chose:
    machines that call themselves alike differ in them, and then in the last bits of sums.
    """
    import torch

    facts = _cpu_facts()
    known = {"family": "cpu family", "model": "model", "stepping": "stepping"}
    words = [f"{word} {facts[key]}" for word, key in known.items() if key in facts]
    return " ".join([*words, torch.backends.cpu.get_cpu_capability()])


def _cpu_facts() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = [line.partition(":") for line in first.splitlines()]
    return {key.strip(): value.strip() for key, _, value in pairs}


def peak_memory_bytes() -> dict:
    """High-water marks since `reset_peak_memory`: `cpu` resident set of this process, `cuda` (or
    None) allocated by torch.
    """
    torch = _torch_on_gpu()
    cuda = torch.cuda.max_memory_allocated() if torch else None
    return {"cpu": _peak_resident_bytes(), "cuda": cuda}


def reset_peak_memory() -> None:
    """Forget the high-water marks so far; that of the resident set where the system is Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch := _torch_on_gpu():
        torch.cuda.reset_peak_memory_stats()


def highest(peaks: Iterable[Mapping]) -> dict:
    """The highest of several peaks, on the CPU and on the GPU."""
    peaks = list(peaks)
    return {
        where: max((peak[where] for peak in peaks if peak[where] is not None), default=None)
        for where in ("cpu", "cuda")
    }


def _torch_on_gpu() -> ModuleType | None:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


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
    """SHA-256 of a file's content, hexadecimal; this process remembers it by path, size and
    modification time.
    """
    path = Path(path).resolve()
    status = path.stat()
    entry = f"{path}:{status.st_size}:{status.st_mtime_ns}"
    if entry not in _digests:
        with path.open("rb") as file:
            _digests[entry] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[entry]


def digest_of_folder(
    path: Path, chosen: Callable[[Sequence[str]], Sequence[str]] = lambda names: names
) -> str:
    """SHA-256 of the relative names and contents of a folder's files, hexadecimal; of those that
    are `chosen` from all by their names.

    Hidden files and folders do not count, for download clients keep time stamps in them, nor does
    what is written for readers (Markdown).
    """
    path = Path(path)
    if not path.is_dir():
        raise NotADirectoryError(f"{path}: no such folder to take a digest of")
    names = [file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file()]
    seen = [
        name.as_posix()
        for name in names
        if name.suffix != ".md" and not any(part.startswith(".") for part in name.parts)
    ]
    digest = hashlib.sha256()
    for name in chosen(seen):
        digest.update(f"{name}\0{digest_of_file(path / name)}\n".encode())
    return digest.hexdigest()
