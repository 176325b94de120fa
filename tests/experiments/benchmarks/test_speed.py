"""The benchmark on a small random model: what is counted, how long it takes, what is printed."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from anticustom.timestep_policies import Uniform
from experiments.benchmarks import speed
from experiments.benchmarks.phases import Bench, whole
from experiments.benchmarks.report import HEAVY, report
from experiments.benchmarks.speed import PHASES, Settings, counted, measure, settings_of
from experiments.setup.composing import memory_presets

pytestmark = pytest.mark.slow

ON_CPU = Settings(model="small", device="cpu", photos=1, repetitions=1)


def figures_of(phase: str, memory: str = "40gb", **entries) -> dict:
    """Return made-up figures: a call takes a second, and half of the peak."""
    return {
        "phase": phase,
        "memory": memory,
        "image_size": 512,
        "precision": "mixed",
        "images": 1 if phase == "released_search_round" else 4,
        "seconds": [1.0, 0.9, 1.2],
        "warm": True,
        "peak_memory_bytes": 3 * 2**30,
        "flops": 10**14,
        "matrix_flops_per_second": 2e14,
        **entries,
    }


@pytest.fixture
def no_process(monkeypatch):
    """Call it with a function of settings that takes the place of the process of a measurement."""
    return lambda function: monkeypatch.setattr(
        speed, "separately", lambda settings, end: function(settings)
    )


def table(text: str, first_heading: str) -> dict[str, list[str]]:
    """Return the cells of a Markdown table, by the first cell of each row."""
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"| {first_heading}"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = cells
    return rows


def test_operations_are_counted():
    a = torch.randn(3, 5)
    assert counted(lambda: a @ a.T) == 2 * 3 * 5 * 3
    q = torch.randn(1, 2, 8, 4)
    attention = 2 * (2 * 2 * 8 * 8 * 4)
    assert counted(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == attention


@pytest.mark.parametrize(
    ("deadline", "pace", "calls"),
    [(1000, 1, 3), (2.5, 1, 2), (0, 1, 1), (0, 21, 0), (1000, 21, 3)],
    ids=["in time", "short of time", "no time, short", "no time, long", "in time, long"],
)
def test_calls_repeat_while_there_is_time(monkeypatch, deadline, pace, calls):
    """A short call is timed once after it warmed up; a long one need not be."""
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(time, "time", lambda: clock.now)

    def seconds_of(call, device):
        clock.now += pace
        return pace

    monkeypatch.setattr(speed, "seconds_of", seconds_of)
    assert speed.timed(None, "cpu", 3, deadline, pace) == [pace] * calls


def test_a_perturbation_step_costs_as_much_for_each_photo():
    """Beside the text encoder, which runs once."""
    calls = [PHASES["perturbation_step"](Bench("small", "cpu", photos)) for photos in (1, 2, 3)]
    counts = [counted(call) for call, _ in calls]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0.95 * counts[0]
    assert [images for _, images in calls] == [1, 2, 3]


def short_bench(photos: int) -> Bench:
    """Return a bench whose attack makes one step where the paper's makes several."""
    bench = Bench("small", "cpu", photos)
    bench.config.attack.steps = 1
    bench.config.attack.surrogate_schedule.training_steps = 1
    return bench


def test_an_iteration_is_that_of_the_attack():
    """An attack of two iterations counts an iteration more than an attack of one."""
    counts = []
    for iterations in (1, 2):
        bench = short_bench(2)
        bench.config.attack.surrogate_schedule.iterations = iterations
        call, _ = whole(bench, replace(bench.attack, timestep_policy=Uniform()))
        counts.append(counted(call))
    call, images = PHASES["simac_iteration"](short_bench(2))
    assert counted(call) == counts[1] - counts[0]
    assert images == 2


@pytest.mark.parametrize("phase", ["search_round", "iteration"])
def test_the_released_structure_wastes_operations(phase):
    here = "simac_iteration" if phase == "iteration" else phase
    released, shipped = (
        counted(PHASES[name](short_bench(1))[0]) for name in (f"released_{phase}", here)
    )
    assert released > 1.3 * shipped > 0


def test_full_scale_runs_on_a_cpu_with_a_small_shape(no_process, monkeypatch, tmp_path, capsys):
    """Every phase can be called in the precision of a GPU, with each setting of memory."""
    monkeypatch.setattr(speed, "matrix_peak", lambda device, dtype: 1e11)
    no_process(measure)
    words = ["full_scale=true", "model=small", "device=cpu", "precision=mixed", "photos=1"]
    output = tmp_path / "new" / "speed.md"
    speed.main([*words, "repetitions=0", "operations=false", f"output={output}"])
    printed = capsys.readouterr().out
    text = output.read_text()
    assert printed.endswith(f"\n{text}\n")
    assert printed.count("GiB\n") == len(PHASES) + 2 * len(HEAVY)  # a line of progress each
    phases = table(text, "phase")
    assert len(phases) == len(PHASES)
    assert all(float(cells[0]) > 0 and float(cells[-1]) > 0 for cells in phases.values())
    assert set(table(text, " ")) == {"SimAC here", "as released"}
    assert all("GiB" in text for text in text.split("Peak memory")[1:])
    assert torch.__version__ in text
    assert "Model `small` with random weights, images of 64 px,\n`precision=mixed`" in text


def test_the_tables_follow_from_the_figures():
    figures = {(phase, "40gb"): figures_of(phase) for phase in PHASES}
    figures["released_iteration", "40gb"]["seconds"] = [2.0]
    text = report(figures, "40gb", "cpu", "sd21")
    row = ["1", "0.9-1.2 (3)", "4", "100", "100", "50 %", "3.00"]
    assert table(text, "phase")["perturbation step"] == row
    # 30 rounds and 50 iterations; as released four photos one after the other, and 2 s an iteration
    whole = table(text, " ")
    assert whole["SimAC here"] == ["30", "50", "80", "8"]
    assert whole["as released"] == ["120", "100", "220", "17"]
    assert "2.8 times as fast" in text
    assert "Peak memory" not in text


def test_a_failure_stands_in_its_cell_and_the_rest_goes_on(no_process, capsys):
    failures = {
        ("surrogate_step", "40gb"): "out of memory",
        ("released_iteration", "40gb"): "out of memory",
        ("customizer_step", "24gb"): "out of memory",
        ("perturbation_step", "12gb"): "out of time",
    }

    def figures(settings: Settings) -> dict:
        failure = failures.get((settings.phase, settings.memory))
        return {"failure": failure} if failure else figures_of(settings.phase, settings.memory)

    no_process(figures)
    speed.main(["full_scale=true", "model=small", "device=cpu"])
    text = capsys.readouterr().out
    assert table(text, "phase")["surrogate step"] == ["out of memory", *[""] * 6]
    assert table(text, "phase")["sampling"][0] == "1"
    simac = table(text, "            ")
    assert simac["as released"] == ["out of memory", *[""] * 3]
    assert simac["SimAC here"][2] == "80"
    peaks = table(text.partition("Peak memory")[2], " ")
    assert peaks["surrogate step"] == ["out of memory", *["3.00 (1 s)"] * 2]
    assert peaks["customizer step"][memory_presets().index("24gb")] == "out of memory"
    assert peaks["perturbation step"][memory_presets().index("12gb")] == "out of time"


def test_another_failure_ends_the_program_after_the_tables(no_process, capsys):
    broken = {"failure": "ModuleNotFoundError: No module named 'pyiqa'"}
    no_process(lambda settings: broken if settings.phase == "scoring" else figures_of("any"))
    with pytest.raises(SystemExit, match="scoring: ModuleNotFoundError: No module named 'pyiqa'"):
        speed.main(["device=cpu"])
    assert table(capsys.readouterr().out, "phase")["sampling"][0] == "1"


def test_the_time_is_shared_and_never_exceeded(monkeypatch):
    """Measurements that take twice their share leave the last without time."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "time", lambda: clock.now)
    shares = []

    def separately(settings, end):
        share = settings.deadline - clock.now
        shares.append(share)
        assert end <= min(480, clock.now + 4 * share + 1e-6)
        clock.now += min(2 * share, end - clock.now)
        return {"failure": speed.OUT_OF_TIME}

    monkeypatch.setattr(speed, "separately", separately)
    speed.measure_all(replace(ON_CPU, full_scale=True))
    assert shares[0] == pytest.approx(480 / (len(PHASES) + 2 * len(HEAVY)))
    assert shares[-1] < shares[0]
    assert clock.now <= 480


def test_a_process_of_its_own_is_measured_ended_or_quoted(monkeypatch):
    start = time.time()
    settings = replace(ON_CPU, phase="perturbation_step", repetitions=1, operations=False)
    assert speed.separately(settings, start) == {"failure": "out of time"}  # not even started
    assert speed.separately(settings, time.time() + 0.1) == {"failure": "out of time"}
    figures = speed.separately(settings, start + 300)
    assert (figures["images"], figures["warm"], figures["flops"]) == (1, True, None)
    wrong = replace(settings, phase="dream")
    assert speed.separately(wrong, start + 300)["failure"].startswith("phase=dream: expected one")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out of memory"),
        (RuntimeError("CUDA error: misaligned\nCompile with ..."), "RuntimeError: CUDA error: mis"),
    ],
)
def test_an_error_of_a_phase_is_one_line(monkeypatch, error, line):
    def fail(bench):
        raise error

    monkeypatch.setitem(PHASES, "scoring", fail)
    monkeypatch.setattr(speed, "matrix_peak", lambda device, dtype: 1e11)
    with pytest.raises(SystemExit, match=f"^error: {line}"):
        speed.main(["model=small", "device=cpu", "phase=scoring"])


def test_a_gpu_is_waited_for_and_capped(monkeypatch):
    """Calls on a made-up GPU of 80 GiB: waiting, the cap, and the reading of the peak in order."""
    events, cpu_bench = [], Bench("small", "cpu", 1)
    for name, result in {
        "synchronize": None,
        "set_per_process_memory_fraction": None,
        "get_device_properties": SimpleNamespace(total_memory=80 * 2**30),
    }.items():
        monkeypatch.setattr(
            torch.cuda,
            name,
            lambda *words, name=name, result=result: events.append((name, *words)) or result,
        )
    monkeypatch.setattr(speed, "Bench", lambda *words, **settings: cpu_bench)
    monkeypatch.setattr(speed, "matrix_peak", lambda device, dtype: 1e14)
    monkeypatch.setattr(speed, "reset_peak_memory", lambda: events.append("reset"))
    monkeypatch.setattr(speed, "peak_memory_bytes", lambda: events.append("peak") or {"cuda": 7})
    monkeypatch.setitem(PHASES, "scoring", lambda bench: (lambda: events.append("call"), 1))
    settings = replace(ON_CPU, phase="scoring", device="cuda", memory_cap_gb=24, operations=False)
    assert measure(settings)["peak_memory_bytes"] == 7
    timed_call = [("synchronize",), "call", ("synchronize",)]
    assert events[1:] == [
        ("set_per_process_memory_fraction", 0.3),
        "reset",
        *timed_call,
        *timed_call,
        "peak",
    ]


def test_a_phase_is_printed_as_json(capsys):
    speed.main(["model=small", "phase=customizer_step", "repetitions=2", "device=cpu"])
    printed = json.loads(capsys.readouterr().out)
    assert (printed["images"], len(printed["seconds"])) == (4, 2)
    assert min(printed["flops"], *printed["seconds"]) > 0


@pytest.mark.parametrize(
    "word",
    ["phase=dream", "modell=tiny", "model=/a/folder", "device=cuda:1", "photos=few", "memory=8gb"],
)
def test_a_wrong_word_is_refused(word):
    with pytest.raises(SystemExit, match=r"^error: .*expected"):
        speed.main([word])


@pytest.mark.parametrize("words", [["full_scale=true"], ["device=cuda"]])
def test_without_a_gpu_it_says_so_in_a_line(monkeypatch, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^error: torch finds no GPU here[^\n]*$"):
        speed.main(words)


def test_full_scale_is_the_shape_of_stable_diffusion_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = settings_of(["full_scale=true"])
    assert (settings.model, settings.device, settings.seconds) == ("sd21", "cuda", 480)
    assert settings_of([]).model == "tiny"
