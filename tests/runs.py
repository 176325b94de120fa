"""The files that runs of the program leave, and a run that ended well."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from helpers import PRESETS
from PIL import Image
from safetensors.torch import load_file, save_file

from experiments.setup.composing import composed_with_choices
from experiments.setup.job import Job

RUN = Path(__file__).parents[1] / "run.py"
SIMAC = ["attack=simac", "attack.step_size=3", *PRESETS["simac"]]


def snapshot(output_dir: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, time and size of every file of results."""
    files = {}
    for folder in ("store", "records", "overviews", "wandb"):
        for path in filter(Path.is_file, sorted((output_dir / folder).rglob("*"))):
            status = path.stat()
            name = str(path.relative_to(output_dir))
            files[name] = status.st_ino, status.st_mtime_ns, status.st_size
    return files


def artifacts(output_dir: Path, stage: str) -> set[Path]:
    return {manifest.parent for manifest in output_dir.glob(f"store/{stage}/*/*/manifest.json")}


def protected(output_dir: Path) -> dict[str, bytes]:
    """Return the protected photos of all identities."""
    return {
        f"{folder.name}/{file.name}": file.read_bytes()
        for folder in sorted(artifacts(output_dir, "protect"))
        for file in sorted(folder.glob("*.png"))
    }


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image).astype(int)


class Finished:
    """A run that ended well: its arguments, what it printed, and its folder."""

    def __init__(self, arguments: list[str], output_dir: Path, environment: dict[str, str]):
        self.arguments, self.output_dir = arguments, output_dir
        ended = subprocess.run(
            [sys.executable, str(RUN), *arguments],
            cwd=output_dir.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        self.out, self.err = ended.stdout, ended.stderr
        (record,) = output_dir.glob("records/*.json")  # others join it later
        self.record = json.loads(record.read_text())


def job_of(*arguments: str) -> Job:
    return Job.from_config(*composed_with_choices(*arguments))


def bare_job(config: dict, **parts) -> Job:
    """Return a job of some settings and stand-ins, unchecked."""
    config = {"seed": 0, "precision": "float32", "checkpoint_minutes": 5, "force": []} | config
    fields = dict.fromkeys(Job.__dataclass_fields__)
    choices = {"attack": "x", "customizer": "x", "countermeasure": "x"}
    return Job(**fields | {"config": config, "choices": choices, "device": "cpu", **parts})


def shifted(model: Path, folder: Path, shift: float) -> Path:
    """Write a model of the same size with other weights."""
    shutil.copytree(model, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"] += shift
    save_file(weights, file, metadata={"format": "pt"})
    return folder
