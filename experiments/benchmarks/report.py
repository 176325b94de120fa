"""The tables of the benchmark, in Markdown."""

from collections.abc import Mapping
from datetime import date
from statistics import median

import torch
from tabulate import tabulate

from experiments.benchmarks.random_models import SHAPES
from experiments.setup.composing import composed, memory_presets
from experiments.store.provenance import computed_on, machine

HEAVY = ("surrogate_step", "perturbation_step", "simac_iteration", "customizer_step")
SIMAC = {
    "SimAC here": ("search_round", "simac_iteration"),
    "as released": ("released_search_round", "released_iteration"),
}
ROUNDS = 30  # of SimAC's search, about as many as it takes
GIB = 2**30
OUT_OF_MEMORY = "out of memory"

Figures = Mapping[tuple[str, str], Mapping]  # by phase and `memory=`


def report(figures: Figures, memory: str, device: str, model: str) -> str:
    """Return the tables: all phases with `memory`, SimAC as a whole, and peaks of memory.

    The last is there if phases were measured with more than one setting of `memory=`.
    """
    results = {phase: figures[phase, setting] for phase, setting in figures if setting == memory}
    parts = [heading(results, memory, device, model), phase_table(results), simac_table(results)]
    if {setting for _, setting in figures} > {memory}:
        parts.append(memory_table(figures))
    return "\n\n".join(parts) + "\n"


def summary(result: Mapping) -> str:
    """Return the time and the memory of one measurement in words, or why it failed."""
    if "failure" in result:
        return result["failure"]
    calls = f"{len(result['seconds'])} calls" if result["warm"] else "the first call"
    return f"{median(result['seconds']):.3g} s ({calls}), {_gib(result)} GiB"


def heading(results: Mapping[str, Mapping], memory: str, device: str, model: str) -> str:
    """Return the machine, the versions and the date, and what was measured there."""
    computer = machine(device)
    name = computed_on(computer)
    if computer["gpu"]:
        name += f" ({torch.cuda.get_device_properties(device).total_memory / GIB:.0f} GiB)"
    else:
        name += f", {computer['torch_threads']} threads"
    lines = [f"{name}, torch {torch.__version__}, {date.today().isoformat()}."]
    for result in [result for result in results.values() if "failure" not in result][:1]:
        peak = result["matrix_flops_per_second"] / 1e12
        size, precision = result["image_size"], result["precision"]
        weights = " with random weights" if model in SHAPES else ""
        lines += [
            f"Model `{model}`{weights}, images of {size} px,",
            f"`precision={precision}`, `memory={memory}`.",
            f"The peak is the machine's product of two square matrices: {peak:.3g} TFLOP/s.",
        ]
    return "\n".join(lines)


def phase_table(results: Mapping[str, Mapping]) -> str:
    """Return the time of each phase, and the share of the peak that its operations reach."""
    headers = ["phase", "s", "range (calls)", "images/s", "TFLOP", "TFLOP/s", "of the peak", "GiB"]
    return _markdown(headers, [row(phase, result) for phase, result in results.items()])


def row(phase: str, result: Mapping) -> list[str]:
    """Return the cells of a phase in `phase_table`."""
    if "failure" in result:
        return [_title(phase), result["failure"], *[""] * 6]
    seconds, flops = result["seconds"], result["flops"]
    middle = median(seconds)
    spread = f"{min(seconds):.3g}-{max(seconds):.3g} ({len(seconds)})"
    operations = [""] * 3
    if flops is not None:
        rate = flops / middle
        share = f"{100 * rate / result['matrix_flops_per_second']:.0f} %"
        operations = [f"{flops / 1e12:.3g}", f"{rate / 1e12:.3g}", share]
    return [
        _title(phase),
        f"{middle:.3g}",
        spread if result["warm"] else "first call",
        f"{result['images'] / middle:.3g}",
        *operations,
        _gib(result),
    ]


def simac_table(results: Mapping[str, Mapping]) -> str:
    """Return time and operations of all of SimAC, extrapolated from one round and one iteration."""
    iterations = composed("attack=simac").attack.surrogate_schedule.iterations
    rows, totals = [], []
    for name, phases in SIMAC.items():
        if failures := {results[phase].get("failure") for phase in phases} - {None}:
            rows.append([name, ", ".join(sorted(failures)), *[""] * 3])
            continue
        search, iteration = (results[phase] for phase in phases)
        rounds = ROUNDS * iteration["images"] / search["images"]
        times = [rounds * median(search["seconds"]), iterations * median(iteration["seconds"])]
        totals.append(sum(times))
        operations = ""
        if None not in (search["flops"], iteration["flops"]):
            flops = rounds * search["flops"] + iterations * iteration["flops"]
            operations = f"{flops / 1e15:.3g}"
        rows.append([name, *(f"{seconds:.3g}" for seconds in (*times, sum(times))), operations])
    headers = ["", f"{ROUNDS} rounds, s", f"{iterations} iterations, s", "whole, s", "PFLOP"]
    text = "SimAC on all photos, extrapolated from one round of its search and one iteration:"
    ratio = f"\n\nThat is {totals[1] / totals[0]:.2g} times as fast." if len(totals) == 2 else ""
    return f"{text}\n\n{_markdown(headers, rows)}{ratio}"


def memory_table(figures: Figures) -> str:
    """Return the peak memory of the heavy phases with each setting of `memory=`."""
    presets = memory_presets()
    rows = [
        [_title(phase), *(_peak(figures[phase, memory]) for memory in presets)] for phase in HEAVY
    ]
    headers = ["", *(f"`memory={memory}`" for memory in presets)]
    return f"Peak memory in GiB, and the seconds of a call:\n\n{_markdown(headers, rows)}"


def _peak(result: Mapping) -> str:
    return result.get("failure") or f"{_gib(result)} ({median(result['seconds']):.3g} s)"


def _gib(result: Mapping) -> str:
    return f"{result['peak_memory_bytes'] / GIB:.2f}"


def _title(phase: str) -> str:
    return phase.replace("_", " ").replace("simac", "SimAC")


def _markdown(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers, "github", disable_numparse=True)
