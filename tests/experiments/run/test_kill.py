"""Commands that end before their time: what is left goes on to the same photos."""

import json
import random
import re
import signal
import time
from pathlib import Path

import pytest

KILLS = 10
INTERRUPTED = "error: interrupted; the same command goes on where it was"


@pytest.fixture(scope="module")
def arguments(miniature, aspl):
    """A protection of eight iterations that saves its state after each."""
    schedule = "attack.surrogate_schedule.iterations=8"
    return [*miniature, *aspl, schedule, "checkpoint_minutes=0", "stages=[protect]"]


@pytest.fixture(scope="module")
def undisturbed(command, arguments, tmp_path_factory):
    """The photos of an undisturbed run, and its seconds."""
    output_dir = tmp_path_factory.mktemp("undisturbed")
    start = time.monotonic()
    ended = command(*arguments, f"output_dir={output_dir}")
    return photos(ended.last_line), time.monotonic() - start


def photos(last_line: str) -> dict[str, bytes]:
    folder = Path(last_line.removeprefix("protected photos of 0: "))
    found = {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}
    assert len(found) == 4
    return found


def test_killed_runs_end_with_the_same_photos(command, arguments, undisturbed, tmp_path):
    expected, seconds = undisturbed
    draw = random.Random(1)
    journal = tmp_path / "resumed"
    kills = starts = finished = 0

    def go_on(**disturbance) -> None:
        nonlocal kills, starts, finished
        starts += 1
        place = f"output_dir={tmp_path / str(finished)}"
        ended = command(*arguments, place, resumed=str(journal), **disturbance)
        if ended.status in (-signal.SIGKILL, -signal.SIGTERM) or INTERRUPTED in ended.err:
            kills += 1
            return
        assert photos(ended.last_line) == expected
        finished += 1  # the next one begins in an empty folder

    while kills < KILLS:
        assert starts < 3 * KILLS
        if kills % 2:
            go_on(kill_at_write=draw.randint(1, 12))
        else:
            by = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[kills // 2 % 3]
            go_on(kill_after=draw.uniform(0.1, 0.6) * seconds, signal=by)
    before = finished
    go_on()
    assert finished == before + 1
    # some kills hit an attack that was under way, and it went on from its last state; class images,
    # which others hit, have no iterations
    facts = [json.loads(line) for line in journal.read_text().splitlines()]
    resumed = [fact["iteration"] for fact in facts if "iteration" in fact]
    assert resumed
    assert all(1 <= iteration <= 8 for iteration in resumed)
    assert not list(tmp_path.glob("*/store/*/*/.*.work"))


def test_a_full_disk_stops_in_one_line_and_loses_nothing(command, arguments, undisturbed, tmp_path):
    place = f"output_dir={tmp_path}"
    ended = command(*arguments, place, file_limit=1 << 16)
    assert ended.status == 1
    (line,) = ended.err.splitlines()
    assert re.match(
        r"error: cannot write in .*: free some space or choose another output_dir", line
    )
    assert not list(tmp_path.glob("store/protect/*/0"))
    assert photos(command(*arguments, place).last_line) == undisturbed[0]
