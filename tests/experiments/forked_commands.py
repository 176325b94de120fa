"""Runs `python run.py ...` in forks of one process, so that the libraries are imported but once.

Each line of standard input is a JSON object: `arguments`, `cwd` and `output`, a folder for what the
command prints. It may ask for a disturbance: `kill_after` seconds, by `signal` if not by SIGKILL,
`kill_at_write`, the number of the file in whose midst it is killed, or `file_limit`, the size in
bytes at which the disk is full.
`resumed` names a file that gets a line for each checkpoint that work went on from. The answer is a
line with the exit status, negative for a killed command. The first line says that it is ready.
"""

import atexit
import itertools
import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

RUN = Path(__file__).resolve().parents[2] / "run.py"


def main() -> None:
    sys.path.insert(0, str(RUN.parent))
    from experiments.terminal import quiet_libraries

    quiet_libraries()
    import diffusers.loaders  # noqa: F401
    import facenet_pytorch  # noqa: F401
    import peft  # noqa: F401
    import pyiqa  # noqa: F401

    import experiments.run.pipeline  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            become(order)
            status = run()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # taking down the interpreter with all its libraries takes seconds
        if "kill_after" in order:
            time.sleep(order["kill_after"])
            os.kill(child, order.get("signal", signal.SIGKILL))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(order: dict) -> None:
    """Turn this process into that of the command."""
    for descriptor, name in enumerate(("/dev/null", "out", "err")):
        path = Path(order["output"]) / name
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(order["cwd"])
    sys.argv = ["run.py", *order["arguments"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may be started to ignore it
    if "kill_at_write" in order:
        sys.addaudithook(killer(order["kill_at_write"]))
    if "file_limit" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], order["file_limit"]))
    if "resumed" in order:
        note_resumption(Path(order["resumed"]))


def run() -> int:
    """Run the command; return its exit status."""
    try:
        runpy.run_path(str(RUN), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def killer(number: int):
    """Return an audit hook that kills this process when it writes its `number`th file of work in
    progress, and leaves half of that file.
    """
    writes = itertools.count(1)

    def hook(event: str, arguments: tuple) -> None:
        begins = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        if (begins or event == "os.rename") and ".work" in str(arguments[0]):
            if next(writes) < number:
                return
            path = Path(os.fsdecode(arguments[0]))
            if not path.is_dir():
                with path.open("ab") as file:
                    file.write(b"half")
                    file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def note_resumption(journal: Path) -> None:
    from experiments.store.checkpoints import TimedCheckpoint

    load = TimedCheckpoint.load

    def noted(self):
        found = load(self)
        if found:
            with journal.open("a") as file:
                file.write(json.dumps(found[1]) + "\n")
        return found

    TimedCheckpoint.load = noted


if __name__ == "__main__":
    main()
