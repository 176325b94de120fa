"""Measure how fast the phases of a run are, and how near to what the machine can multiply.

`python -m experiments.benchmarks.speed model=tiny` measures every phase in a process of its own
and prints a table; `phase=perturbation_step` only that one. `model=sd21` has random weights of
the true shape, which suffices for timing. `memory=24gb` takes the settings of that group,
`memory_cap_gb=24` gives a phase no more of a GPU. The JSON file named by `output=` holds every
repetition.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from omegaconf import OmegaConf
from tabulate import tabulate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.phases import PHASES as SHIPPED
from experiments.benchmarks.phases import Bench
from experiments.benchmarks.random_models import UNETS
from experiments.benchmarks.released import simac_as_released
from experiments.store.provenance import peak_memory_bytes
from experiments.terminal import quiet_libraries, say

PHASES = {**SHIPPED, "simac_as_released": simac_as_released}
DEFAULTS = {
    "model": "tiny",
    "phase": "all",
    "device": "auto",
    "memory": "40gb",
    "memory_cap_gb": None,
    "photos": 4,
    "repetitions": 5,
    "output": "outputs/benchmark.json",
}

EMBEDDED = ("tiny", "tiny_b")
LONG = 20  # seconds


def matrix_peak(device: str, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the machine's best product of two square matrices."""
    side = 8192 if device == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    times = timed(lambda: a @ a, device, 10)
    return 2 * side**3 / min(times)


def timed(call: Callable[[], object], device: str, repetitions: int) -> list[float]:
    """Return the seconds of `repetitions` calls, after one that warms up; where that takes longer
    than LONG, in which warming up is nothing, it counts too.
    """
    seconds: list[float] = []
    warm_up = 1
    while len(seconds) < repetitions + warm_up:
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - start)
        warm_up = int(seconds[0] < LONG)
    return seconds[warm_up:]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def counted(call: Callable[[], object]) -> int:
    """Return the floating-point operations of the products and convolutions in a call."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the fused attention of CPUs is not counted
        call()
    return counter.get_total_flops()


def measure(phase: str, settings: dict) -> dict:
    """Return the figures of a phase: seconds of each repetition, FLOPs, bytes, photos a call."""
    device = settings["device"]
    if device == "cuda" and settings["memory_cap_gb"]:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(settings["memory_cap_gb"] * 2**30 / total)
    bench = Bench(settings["model"], device, settings["photos"], settings["memory"])
    call, images = PHASES[phase](bench)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(call, device, settings["repetitions"])
    memory = peak_memory_bytes()[device]
    return {
        "phase": phase,
        "images": images,
        "seconds": seconds,
        "peak_memory_bytes": memory,
        "flops": counted(call),
        "matrix_flops_per_second": matrix_peak(device, bench.dtype),
    }


def row(figures: dict) -> list:
    middle = median(figures["seconds"])
    rate = figures["flops"] / middle
    return [
        figures["phase"].replace("_", " "),
        f"{middle:.3g}",
        f"{min(figures['seconds']):.3g}-{max(figures['seconds']):.3g}",
        f"{figures['images'] / middle:.3g}",
        f"{figures['flops'] / 1e12:.3g}",
        f"{rate / 1e12:.3g}",
        f"{100 * rate / figures['matrix_flops_per_second']:.0f} %",
        f"{figures['peak_memory_bytes'] / 2**30:.2f}",
    ]


def main(arguments: list[str] | None = None) -> None:
    quiet_libraries()
    given = OmegaConf.from_cli(sys.argv[1:] if arguments is None else arguments)
    if unknown := set(given) - set(DEFAULTS):
        sys.exit(f"error: {', '.join(sorted(unknown))}: expected {', '.join(DEFAULTS)}")
    settings = DEFAULTS | OmegaConf.to_container(given)
    if settings["device"] == "auto":
        settings["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    known = {"device": ["cpu", "cuda"], "model": [*EMBEDDED, *UNETS], "phase": ["all", *PHASES]}
    for key, choices in known.items():
        if settings[key] not in choices:
            sys.exit(f"error: {key}={settings[key]}: expected one of {', '.join(choices)}")
    if settings["phase"] != "all":
        print(json.dumps(measure(settings["phase"], settings)))
        return
    rows, failed = [], []
    for phase in PHASES:  # a process of its own each, for memory once taken is not given back
        say(f"{phase} ...")
        command = [sys.executable, "-m", "experiments.benchmarks.speed"]
        command += [f"{k}={v}" for k, v in (settings | {"phase": phase}).items() if v is not None]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            failed.append(f"{phase}: {' '.join(done.stderr.splitlines()[-1:])}")
        else:
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    cuda = settings["device"] == "cuda"
    machine = {
        "name": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    output = Path(settings["output"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": machine, **settings, "phases": rows}, indent=2) + "\n")
    headers = ["phase", "s", "range", "images/s", "TFLOP", "TFLOP/s", "of peak", "GiB"]
    print(tabulate([row(one) for one in rows], headers, disable_numparse=True))
    if failed:
        sys.exit(f"error: phases failed, and are missing: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
