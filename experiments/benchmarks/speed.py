"""Measure how fast the phases of a run are, and how near to the machine's product of two matrices.

    python -m experiments.benchmarks.speed
    python -m experiments.benchmarks.speed full_scale=true output=speed.md
    python -m experiments.benchmarks.speed model=sd21 phase=surrogate_step memory=24gb

The first measures the embedded model. The second measures the shape of Stable Diffusion 2.1 on a
GPU, with random weights, and adds the peak memory of each `memory=`. Both print Markdown. The third
prints the figures of one phase as JSON.
"""

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import get_args

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anticustom.diffusion import Precision
from anticustom.model_files import EMBEDDED
from experiments.benchmarks import phases, released
from experiments.benchmarks.phases import Bench
from experiments.benchmarks.random_models import SHAPES
from experiments.benchmarks.report import GIB, HEAVY, OUT_OF_MEMORY, report, summary
from experiments.setup.composing import memory_presets
from experiments.store.provenance import peak_memory_bytes, reset_peak_memory
from experiments.terminal import quiet_libraries, say

PHASES = {
    phase.__name__: phase
    for phase in (
        phases.search_round,
        phases.perturbation_step,
        phases.surrogate_step,
        phases.simac_iteration,
        phases.customizer_step,
        released.released_search_round,
        released.released_iteration,
        phases.sampling,
        phases.scoring,
    )
}
OUT_OF_TIME = "out of time"
LONG = 20  # seconds, in which warming up is nothing


@dataclass
class Settings:
    """The words of the command line."""

    full_scale: bool = False
    model: str = ""  # an embedded model, or one of SHAPES; empty: tiny, or sd21 at full scale
    phase: str = ""  # only this one
    device: str = "auto"
    precision: str = "auto"  # mixed on a GPU, else float32
    memory: str = "40gb"
    memory_cap_gb: float = inf  # a measurement gets no more of a GPU
    photos: int = 4
    repetitions: int = 5
    operations: bool = True  # count them, in one more call
    seconds: float = 480  # for all measurements together
    deadline: float = inf  # by time.time; a measurement repeats no call after it
    output: str = ""  # a file for the tables


def settings_of(words: Sequence[str]) -> Settings:
    """Return the settings in `words`; end the program where one is wrong or needs a GPU."""
    names = ", ".join(field.name for field in fields(Settings))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_cli(list(words)))
    except OmegaConfBaseException as error:
        sys.exit(f"error: {str(error).splitlines()[0]}: expected values of {names}")
    settings: Settings = OmegaConf.to_object(merged)
    settings.model = settings.model or ("sd21" if settings.full_scale else "tiny")
    if settings.device == "auto":
        settings.device = "cuda" if torch.cuda.is_available() else "cpu"
    choices = {
        "model": [*(file.parent.name for file in EMBEDDED.glob("*/model_index.json")), *SHAPES],
        "phase": ["", *PHASES],
        "device": ["cpu", "cuda"],
        "precision": ["auto", *get_args(Precision)],
        "memory": memory_presets(),
    }
    for key, values in choices.items():
        if getattr(settings, key) not in values:
            expected = ", ".join(filter(None, values))
            sys.exit(f"error: {key}={getattr(settings, key)}: expected one of {expected}")
    large = settings.full_scale and settings.model in ("sd15", "sd21")
    if not torch.cuda.is_available() and (large or settings.device == "cuda"):
        sys.exit("error: torch finds no GPU here; full_scale=true model=small runs on a CPU")
    return settings


def matrix_peak(device: str, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the machine's best product of two square matrices."""
    side = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    return 2 * side**3 / min(seconds_of(lambda: a @ b, device) for _ in range(11))


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Return how long a call takes until the device has done its work."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def counted(call: Callable[[], object]) -> int:
    """Return the floating-point operations of the products and convolutions in a call."""
    # Versions of torch count the fused attention of a CPU differently. That of a GPU is counted in
    # all, and takes little memory.
    on_gpu = torch.cuda.is_initialized()
    attention = nullcontext() if on_gpu else sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, attention:
        call()
    return counter.get_total_flops()


def timed(
    call: Callable[[], object], device: str, repetitions: int, deadline: float, pace: float
) -> list[float]:
    """Return the seconds of at most `repetitions` calls, after one that took `pace` seconds.

    No call starts that would end after `deadline`, by time.time, if it took as long as the call
    before it; only the first starts in any case, unless it takes longer than LONG.
    """
    seconds: list[float] = []
    while len(seconds) < repetitions:
        if time.time() + pace > deadline and (seconds or pace > LONG):
            break
        pace = seconds_of(call, device)
        seconds.append(pace)
    return seconds


def measure(settings: Settings) -> dict:
    """Return the figures of the phase that the settings name.

    `seconds` has the calls after the first, and `warm` is true. Where no time is left for a second
    call, `seconds` has the first, and `warm` is false. Where no time is left to count the
    operations, `flops` is None.
    """
    device = settings.device
    if device == "cuda" and settings.memory_cap_gb < inf:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1, settings.memory_cap_gb * GIB / total))
    bench = Bench(
        settings.model, device, settings.photos, settings.memory, precision=settings.precision
    )
    dtype = torch.float32 if bench.precision == "float32" else torch.bfloat16
    peak = matrix_peak(device, dtype)
    call, images = PHASES[settings.phase](bench)
    reset_peak_memory()
    first = seconds_of(call, device)
    seconds = timed(call, device, settings.repetitions, settings.deadline, first)
    memory = peak_memory_bytes()[device]
    in_time = time.time() < settings.deadline or first < LONG
    return {
        "phase": settings.phase,
        "memory": settings.memory,
        "image_size": bench.model.image_size,
        "precision": bench.precision,
        "images": images,
        "seconds": seconds or [first],
        "warm": bool(seconds),
        "peak_memory_bytes": memory,
        "flops": counted(call) if settings.operations and in_time else None,
        "matrix_flops_per_second": peak,
    }


def separately(settings: Settings, end: float) -> dict:
    """Return what `measure` returns in a process of its own, or why there is no result: `failure`.

    A process of its own, because a process does not give back all memory. It is killed at the time
    `end`, by time.time.
    """
    limit = end - time.time()
    if limit <= 0:
        return {"failure": OUT_OF_TIME}
    defaults = asdict(Settings())
    words = [f"{key}={value}" for key, value in asdict(settings).items() if value != defaults[key]]
    command = [sys.executable, "-m", "experiments.benchmarks.speed", *words]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failure": OUT_OF_TIME}
    if process.returncode:
        lines = process.stderr.splitlines() or [f"ended with status {process.returncode}"]
        return {"failure": lines[-1].removeprefix("error: ")}
    return json.loads(process.stdout.splitlines()[-1])


def measure_all(settings: Settings) -> dict[tuple[str, str], dict]:
    """Return the figures of every phase, by phase and `memory=`.

    Each measurement may take its share of the time that is left, and repeats fewer calls when time
    is short. It is killed at four shares, so that the others have time when it hangs.
    """
    plan = [(phase, settings.memory) for phase in PHASES]
    if settings.full_scale:
        others = [memory for memory in memory_presets() if memory != settings.memory]
        plan += [(phase, memory) for memory in others for phase in HEAVY]
    start = time.time()
    end, figures = start + settings.seconds, {}
    for number, (phase, memory) in enumerate(plan):
        now = time.time()
        share = (end - now) / (len(plan) - number)
        part = replace(
            settings,
            full_scale=False,
            output="",
            phase=phase,
            memory=memory,
            operations=settings.operations and memory == settings.memory,
            deadline=now + share,
        )
        figures[phase, memory] = separately(part, min(end, now + 4 * share))
        place = f"{number + 1}/{len(plan)}, {time.time() - start:.0f} of {settings.seconds:g} s"
        say(f"[{place}] {phase}, memory={memory}: {summary(figures[phase, memory])}")
    return figures


def main(words: Sequence[str] | None = None) -> None:
    quiet_libraries()
    settings = settings_of(sys.argv[1:] if words is None else words)
    if settings.phase:
        try:
            print(json.dumps(measure(settings)))
        except Exception as error:
            text = str(error)
            if "out of memory" in text or "ALLOC_FAILED" in text:  # the latter of cuBLAS and cuDNN
                sys.exit(f"error: {OUT_OF_MEMORY}")
            traceback.print_exc()
            first_line = text.partition("\n")[0]
            sys.exit(f"error: {type(error).__name__}: {first_line}")
        return
    figures = measure_all(settings)
    text = report(figures, settings.memory, settings.device, settings.model)
    print(f"\n{text}")
    if settings.output:
        Path(settings.output).parent.mkdir(parents=True, exist_ok=True)
        Path(settings.output).write_text(text)
    expected = (OUT_OF_MEMORY, OUT_OF_TIME)
    failures = {key: value["failure"] for key, value in figures.items() if "failure" in value}
    if lines := [f"{key[0]}: {text}" for key, text in failures.items() if text not in expected]:
        sys.exit(f"error: phases failed, and are missing: {'; '.join(lines)}")


if __name__ == "__main__":
    main()
