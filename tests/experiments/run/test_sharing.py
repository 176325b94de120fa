"""What runs in one folder share with each other."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import resealed
from PIL import Image
from runs import SIMAC, artifacts, pixels, shifted

STAGES = {
    "photos",
    "class_images",
    "protect",
    "countermeasure",
    "customize",
    "gallery",
    "eval",
}


@pytest.fixture
def further(finished, command, miniature):
    """Run another attack in the same folder; return its record and how many artifacts are new."""

    def run(attack: str, *more: str) -> tuple[dict, dict[str, int]]:
        out = finished.output_dir
        before = {stage: artifacts(out, stage) for stage in STAGES}
        ended = command(*miniature, f"attack={attack}", *more, "tracker=none", f"output_dir={out}")
        new = {stage: len(artifacts(out, stage) - before[stage]) for stage in STAGES}
        return json.loads(Path(ended.last_line).read_text()), {k: n for k, n in new.items() if n}

    return run


def test_attack_none_makes_no_second_victim(finished, further):
    record, new = further("none")
    assert new == {"protect": 1, "eval": 1}  # the score: how visible no protection is
    digests = record["digests"]
    assert digests["gallery_protected"] == digests["gallery_unprotected"]
    assert record["scores"]["protected"] == record["scores"]["unprotected"]
    assert record["scores"]["unprotected"] == finished.record["scores"]["unprotected"]
    assert record["perceptibility"]["linf"] == 0
    assert (record["eps"], record["loss"], record["timestep_policy"]) == (0, "none", "none")


def test_attack_noise_shares_class_images_and_the_unprotected_victim(finished, further):
    record, new = further("noise")
    assert new == {"protect": 1, "customize": 1, "gallery": 1, "eval": 2}
    own = finished.record["digests"]
    assert record["digests"]["gallery_unprotected"] == own["gallery_unprotected"]
    assert record["digests"]["gallery_protected"] != own["gallery_protected"]
    assert record["perceptibility"]["linf"] == 8


def test_peak_memory_and_machine_are_those_of_the_artifacts(finished, command, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished.output_dir / "store", out / "store")
    peaks = {"protect": 96, "customize": 48, "gallery": 24}
    for stage, peak in peaks.items():
        for folder in artifacts(out, stage):  # as if another machine had made them

            def elsewhere(manifest: dict, peak: int = peak) -> None:
                manifest["facts"]["peak_memory_bytes"] = {"cpu": 10 * peak, "cuda": peak}
                manifest["facts"]["machine"] |= {"cores": peak, "cpu_kind": f"model {peak}"}
                manifest["versions"]["torch"] = f"1.{peak}"

            resealed(folder / "manifest.json", elsewhere)
    arguments = [word for word in finished.arguments if not word.startswith("output_dir=")]
    ended = command(*arguments, "tracker=none", f"output_dir={out}")
    assert "..." not in ended.out
    record = json.loads(Path(ended.last_line).read_text())
    assert record["peak_memory_bytes"] == {"cpu": 960, "cuda": 96}
    assert record["machine"]["cores"] == 96
    kinds = {name: words.count("model ") for name, words in record["processors"].items()}
    assert kinds == {"protect": 1, "unprotected": 2, "protected": 2}  # victim and gallery
    assert record["processors"]["protect"].endswith(", model 96")
    assert record["processors"]["unprotected"].endswith(", model 24")
    assert finished.record["made_with"] == {}
    made_with = {name: of["torch"] for name, of in record["made_with"].items()}
    assert made_with == {
        "protect": "1.96",
        "unprotected victim": "1.48",
        "protected victim": "1.48",
        "unprotected gallery": "1.24",
        "protected gallery": "1.24",
    }
    assert record["scores"] == finished.record["scores"]


def test_a_countermeasure_shares_the_protected_photos(finished, further):
    record, new = further("simac", *SIMAC[1:], "countermeasure=jpeg75")
    # the unprotected arm passes it, too: its adversary does not know that nothing is protected
    assert new == {"countermeasure": 2, "customize": 2, "gallery": 2, "eval": 2}
    own = finished.record
    assert (record["countermeasure"], own["countermeasure"]) == ("jpeg75", "none")
    assert record["digests"]["protected"] == own["digests"]["protected"]
    for arm in ("protected", "unprotected"):
        assert record["digests"][f"gallery_{arm}"] != own["digests"][f"gallery_{arm}"]
    (clean,) = artifacts(finished.output_dir, "photos")
    made = artifacts(finished.output_dir, "countermeasure")
    for folder in made:
        assert sorted(file.name for file in folder.glob("*.png")) == [f"B{k}.png" for k in range(4)]
    compressed = [np.array_equal(pixels(f / "B0.png"), jpeg(clean / "set_B/B0.png")) for f in made]
    assert sorted(compressed) == [False, True]  # that of the protected photo differs
    heights = {}
    for file in (finished.output_dir / "overviews").glob("*_simac_*/overview.png"):
        name = f"{file.parent.name}.json"
        shown = json.loads((finished.output_dir / "records" / name).read_text())
        heights[shown["countermeasure"]] = Image.open(file).height
    assert heights["jpeg75"] > heights["none"] + 128  # what the adversary trained on


def test_clean_photos_replace_some_of_both_arms(finished, further):
    record, new = further("noise", "clean_photos=4")
    # nothing of the protected photos is left, so both arms are the same
    assert (new["customize"], new["gallery"]) == (1, 1)
    assert record["clean_photos"] == 4
    digests = record["digests"]
    assert digests["gallery_protected"] == digests["gallery_unprotected"]
    assert digests["gallery_protected"] != finished.record["digests"]["gallery_unprotected"]


def test_an_adversary_uses_what_is_already_protected(finished, further):
    record, new = further("simac", *SIMAC[1:], "adversary=other_term")
    assert "protect" not in new
    assert new["customize"] == 2
    assert record["adversary"] == "other_term"
    prompts = [row["prompt"] for row in record["scores"]["protected"]["prompts"]]
    assert all("xjy" in prompt for prompt in prompts)


def test_an_adversary_customizes_and_draws_with_its_own_model(
    finished, further, random_sd, tmp_path
):
    other = shifted(random_sd, tmp_path / "other", 2)
    out = finished.output_dir
    before = {stage: artifacts(out, stage) for stage in STAGES}
    base = "customizer.base_model"
    words = [f"{base}.path={other}", f"{base}.gallery.steps=2", f"{base}.class_images.count=2"]
    words += [f"{base}.gallery.images_per_prompt=1"]
    record, new = further("simac", *SIMAC[1:], "adversary=other_model", *words)
    assert "protect" not in new
    assert (new["class_images"], new["customize"], new["gallery"]) == (1, 2, 3)
    own = record["digests"]["base_model"]
    assert own != record["digests"]["surrogate_model"]
    for stage in ("class_images", "customize", "gallery"):
        for made in artifacts(out, stage) - before[stage]:
            assert json.loads((made / "manifest.json").read_text())["inputs"]["model"] == own


def test_a_setting_has_records_of_its_own_though_a_command_line_composes_the_same(further):
    plain, new = further("noise", "customizer=lora")
    assert new["customize"] == 2
    other, new = further("noise", "adversary=other_customizer")
    assert new == {}
    assert (plain["adversary"], other["adversary"]) == ("as_assumed", "other_customizer")
    assert other["scores"] == plain["scores"]


def jpeg(file: Path) -> np.ndarray:
    coded = io.BytesIO()
    with Image.open(file) as image:
        image.save(coded, "JPEG", quality=75)
    return np.asarray(Image.open(coded)).astype(int)


def test_a_purifier_is_loaded_and_recorded(further, random_sd):
    model = f"countermeasure.model.path={random_sd}"
    record, new = further("none", "countermeasure=purify", model)
    assert new["countermeasure"] == 1  # both arms hold the same photos
    assert record["countermeasure"] == "purify"
    assert record["digests"]["purifier"] == record["digests"]["surrogate_model"]


def test_an_attack_through_a_purifier_is_given_its_model(finished, further, random_sd):
    words = ["attack.steps=2", "attack.step_size=3", "attack.transforms=[purify]"]
    purifier = ["+surrogate_model@attack.purifier=tiny", f"attack.purifier.path={random_sd}"]
    record, new = further("advdm", *words, *purifier)
    assert (new["protect"], new["customize"]) == (1, 1)
    assert record["digests"]["attack.purifier"] == record["digests"]["surrogate_model"]
    plain, _ = further("advdm", *words[:2])
    assert plain["digests"]["protected"] != record["digests"]["protected"]
    assert "attack.purifier" not in plain["digests"]


def test_an_ensembles_surrogates_are_loaded_recorded_and_shared(further, random_sd, aspl, tmp_path):
    second = shifted(random_sd, tmp_path / "second", 1)
    ensemble = (
        "+surrogate_model@attack.others.second=tiny",
        f"attack.others.second.path={second}",
        "attack.others.second.gallery.steps=2",
    )
    record, new = further("aspl", *aspl[1:], *ensemble)
    assert new["protect"] == 1
    assert new["class_images"] == 1  # each surrogate preserves its own prior
    digests = record["digests"]
    assert digests["attack.others.second"] != digests["surrogate_model"]
    alone, new = further("aspl", *aspl[1:])
    assert new["protect"] == 1  # another attack, for the second surrogate's gradient counts
    assert "class_images" not in new
    assert alone["digests"]["protected"] != digests["protected"]
