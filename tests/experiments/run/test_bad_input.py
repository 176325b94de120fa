"""What the command refuses: in one line, before any work, with nothing written but its log."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

# arguments, and what the line must say; {folder} is an empty folder, {file} a file
REFUSED = {
    "attack.eps=eight": r"eps='eight' .* grey levels from 1 to 255",
    "attack.eps=0": r"eps=0 .* from 1 to 255",
    "attack.eps=300": r"eps=300 .* from 1 to 255",
    "attack.transforms=[sharpen]": r"attack\.transforms=\['sharpen'\]: expected a list",
    "attack.transforms=blur": r"attack\.transforms='blur': expected a list of none, jpeg90,",
    "attack.transforms=[purify]": r"purify takes a model: .*\+surrogate_model@attack\.purifier=",
    "attack=aspl +surrogate_model@attack.purifier=tiny_b": r"attack\.purifier: no purify among",
    "attack.transform_samples=0": r"attack\.transform_samples=0: expected an integer",
    "attack.steps=many": r"attack\.steps='many': expected an integer",
    "attack.step_size=long": r"attacks\.pgd\.PGD: .*'str'",
    "attack.training_precision=half": r"attack\.training_precision='half': expected one of float32",
    "attack.precision=bf16": r"attack\.precision='bf16': expected one of float32, mixed, bfloat16",
    "customizer.precision=auto": r"customizer\.precision='auto': expected one of float32",
    "timestep_policy.window=10": r"timestep_policy\.max_rounds=50: .* raise max_rounds or window",
    "loss.up_blocks=[9]": r"loss\.up_blocks: the decoder has no 9, but 0\.0, ",
    "attack=t_fsmg loss.target={file}": r"{file}.*",
    "timestep_policy.keep=30": r"timestep_policy\.window=40: expected at most keep=30",
    "attack=e_aspl surrogate_model.path=tiny_b": r"attack\.others\.second is the surrogate_model",
    "attack=advdm quirk=first_photos": (
        r"quirk=first_photos: attack=advdm with loss=denoising has no surrogate_schedule\.training"
    ),
    "attack=advdm quirk=bfloat16_training": r"quirk=.*attack=advdm .* has no training_precision: ",
    "attack=noise quirk=no_gradient_clip": r"quirk=no_gradient_clip: attack=noise .* has no surr",
    "attack=noise quirk=bfloat16_attack": r"quirk=bfloat16_attack: attack=noise .* no precision: ",
    "attack=aspl quirk=moving_reference": (
        r"quirk=moving_reference: attack=aspl with loss=denoising has no loss\.reference: choose"
    ),
    "attack=simac quirk=mean_image": r"quirk=mean_image: attack=simac .* has no combination: ",
    "customizer=lora customizer.unet_layers=[norm1]": r"customizer\.unet_layers: .* 'norm1'",
    "memory=12gb surrogate_model.training.lora.unet_layers=[]": r"adapters\.unet_layers=\[\]",
    "dataset.shard=8/8": r"dataset\.shard='8/8': expected k/n .* 0/8",
    "dataset.shard=2": r"dataset\.shard=2: expected k/n",
    "clean_photos=5": r"clean_photos=5: there are 4 photos in set B .* 4 in set C",
    "clean_photos=-1": r"clean_photos=-1: expected an integer",
    "dataset.identities=[bob]": r"dataset\.identities: .*'bob'",
    "dataset=vggface2": r"dataset\.root='data/vggface2' is not there",
    "dataset=folder": r"dataset\.root: set it",
    "surrogate_model.path={folder}": r"surrogate_model\.path={folder}: no model_index\.json",
    "surrogate_model.path={folder}/x": r"surrogate_model\.path={folder}/x: no such folder",
    "surrogate_model=sd21": r"surrogate_model=sd21 needs a GPU",
    "output_dir={file}/out": r"cannot write in {file}.*choose another output_dir",
    "stages=[foo]": r"stages=\['foo'\]: expected a list of protect, customize, eval",
    "stages=eval": r"stages=eval: expected a list",
    "force=[all]": r"force=\['all'\]: expected a list",
    "seed=-1": r"seed=-1: expected an integer",
    "tracker.mode=x": r"tracker\.mode is 'x': choose one of auto, online, offline",
    "precision=null": r"precision=None: expected one of auto, float32",
    "precision=half": r"precision='half': expected one of auto, float32",
    "device=quantum": r"device=quantum: torch cannot use it here",
    "metrics.backbone=arcface": r"backbone=arcface .*sface",
    "gallery.scheduler=Dream": r"gallery\.scheduler='Dream': expected one of DDIMScheduler, ",
    "gallery.karras_sigmas=1": r"gallery\.karras_sigmas=1: expected true or false",
    "gallery.scheduler=DDIMScheduler": r"gallery\.karras_sigmas=true, which DDIMScheduler does not",
    "gallery.images_per_prompt=0": r"gallery\.images_per_prompt=0: expected an integer",
    "prompts.gallery=selfie": r"gallery\.prompts='selfie': expected a list",
    "customizer.instance_prompt=zwx": r"gallery\.prompts: .* lacks 'zwx', the",
    "metrics.pyiqa=[ssim]": r"metrics\.pyiqa=\['ssim'\]: ssim is measured already",
    "countermeasure=purify countermeasure.model.path=tiny surrogate_model.path=tiny": (
        r"countermeasure\.model is the surrogate_model itself"
    ),
    "attack=e_fsmg countermeasure=purify surrogate_model.path=tiny": (
        r"countermeasure\.model is the attack\.others\.second itself"
    ),
    "checkpoint_minutes=soon": r"checkpoint_minutes='soon': expected a number",
}
# refused by Hydra, in its own words
NOT_COMPOSED = {
    "attack.epz=3": r"(?s)Could not override 'attack\.epz'.*Key 'epz' is not in struct",
    "attack=simax": r"(?s)Could not find 'attack/simax'.*\baspl\b.*\bsimac\b",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("empty")
    file = tmp_path_factory.mktemp("place") / "file"
    file.touch()
    return {"folder": folder, "file": file}


def filled(text: str, places: dict[str, Path]) -> str:
    for name, path in places.items():
        text = text.replace(f"{{{name}}}", str(path))
    return text


def results(output_dir: Path) -> list[Path]:
    found = [path for path in output_dir.rglob("*") if path.is_file()]
    return [path for path in found if path.relative_to(output_dir).parts[0] != "logs"]


@pytest.mark.parametrize("argument", REFUSED)
def test_one_line_refuses(command, miniature, places, tmp_path, argument):
    known = [] if "sd21" in argument else miniature
    words = filled(argument, places).split()
    ended = command(*known, f"output_dir={tmp_path}", *words)
    assert ended.status == 1
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    assert re.match("error: .*" + filled(REFUSED[argument], places), line), line
    assert results(tmp_path) == []


@pytest.mark.parametrize("argument", NOT_COMPOSED)
def test_hydra_refuses(command, tmp_path, argument):
    ended = command(f"output_dir={tmp_path}", argument)
    assert ended.status == 1
    assert re.search(NOT_COMPOSED[argument], ended.err)
    assert "Traceback" not in ended.err
    assert results(tmp_path) == []


def test_all_that_is_missing_is_said_at_once(command, tmp_path):
    ended = command("dataset=vggface2", f"output_dir={tmp_path}")
    assert "dataset.root" in ended.err
    assert "needs a GPU" in ended.err


def test_a_sweep_refuses_too(command, places):
    ended = command("-m", "attack=none,noise", f"output_dir={places['file']}/out")
    assert ended.status == 1
    assert re.fullmatch(r"error: cannot write in .*\n", ended.err)


@pytest.mark.parametrize(
    ("part", "stage", "where"),
    [
        ("unet", "class_images", "an image sampled for 'a photo of person' is not finite"),
        ("vae", "protect", "iteration 0, perturbation step 0, photo B0.png"),
    ],
)
def test_a_model_with_nan_stops_the_run(
    command, miniature, aspl, random_sd, tmp_path, part, stage, where
):
    broken = copy_with_nan(random_sd, tmp_path / "model", part)
    path = f"surrogate_model.path={broken}"
    out = tmp_path / "out"
    ended = command(*miniature, path, *aspl, "stages=[protect]", f"output_dir={out}")
    assert ended.status == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    assert where in line
    assert not list(out.glob(f"store/{stage}/*/*/manifest.json"))


def copy_with_nan(model: Path, folder: Path, part: str) -> Path:
    """Copy a model, with a NaN in the first convolution of its UNet or of its encoder."""
    for file in model.rglob("*"):
        if file.is_file():
            copy = folder / file.relative_to(model)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    file = folder / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = {"unet": "conv_in.bias", "vae": "encoder.conv_in.bias"}[part]
    weights[name][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    return folder
