"""The tables of the embedded check, on records made up for the purpose."""

import json
from hashlib import sha256

import pytest
import torch

from anticustom.images import write_png
from anticustom.portraits import person, render, shot
from experiments.embedded import world_check as embedded_check
from experiments.embedded.photocopy_check import closeness, folder_of, protected_similarity
from experiments.embedded.world_check import EPS, PROMPTS, Results, aims, retention_table
from experiments.store.artifacts import Artifact

IDENTITIES = range(1000, 1012)


@pytest.fixture
def found(made_up):
    """Call it for records in which an attack lowers the retention of 0.8 by `drop[attack] * eps`,
    among others that are not the check's.
    """

    def made(drop):
        records = []
        for k, number in enumerate(IDENTITIES):
            base = 0.8 + 0.02 * k

            def record(attack, eps, retention, number=number, **entries):
                name = {"attack": attack, "eps": eps, "identity": str(number)}
                return made_up(retention, unprotected=retention, fdfr=0.02, **name, **entries)

            records.append(record("none", 0, base))
            records.append(record("none", 0, base, config={"gallery": {"prompts": list(PROMPTS)}}))
            records.append(record("none", 0, base - 0.1, customizer="lora"))
            records += [
                record(attack, eps, base - (share + 0.001 * (k % 3)) * eps)
                for attack, share in drop.items()
                for eps in EPS
            ]
            others = ({"adversary": "other_term"}, {"countermeasure": "jpeg75"})
            others += ({"clean_photos": 2}, {"method": "aspl (steps=13)"})
            others += ({"seed": 1}, {"scorer": {"backbone": "facenet"}})
            records += [record("aspl", 8, -0.9, **other) for other in others if k < 4]
        return records

    return made


@pytest.fixture
def pictures(monkeypatch):
    """Stand in for what is measured on pictures."""
    margins = {"SSIM": [-0.1] * 12, "SFace": [0.1] * 12}
    followed = {prompt: [0.75] * 11 + [None] for prompt in PROMPTS}
    monkeypatch.setattr(embedded_check, "closeness", lambda *_: margins)
    monkeypatch.setattr(embedded_check, "followed_prompts", lambda *_: followed)
    monkeypatch.setattr(embedded_check, "protected_similarity", lambda *_: [0.9] * 12)


def test_aims_are_met_only_where_the_figures_say_so(found, pictures, tmp_path):
    results = Results(found({"noise": 0.002, "aspl": 0.045, "simac": 0.02}), IDENTITIES)
    rows = {row[0]: row[1:] for row in aims(results, tmp_path)}
    assert rows["retention, DreamBooth"][1].startswith("0.91 [")
    assert rows["retention, DreamBooth"][2] == "yes"
    assert rows["aspl lowers it at eps 8"][2] == "yes"
    assert rows["simac lowers it at eps 8"][2] == "no"
    assert rows["simac below the placebo at eps 8"][2] == "yes"
    assert rows["noise lowers it at eps 8"][2] == "yes"
    assert rows["aspl: retention at eps 4, 8, 16"][2] == "yes"
    assert rows["gallery nearer to set B than set C is, SSIM"][2] == "yes"
    assert rows["gallery nearer to set B than set C is, SFace"][2] == "no"
    assert rows[f"followed: {PROMPTS[0]}"][1:] == ["0.75 [0.75, 0.75]", "yes"]


def test_no_attack_passes_for_a_placebo(found, pictures, tmp_path):
    results = Results(found({"noise": 0.04, "aspl": 0.04, "simac": 0.04}), IDENTITIES)
    rows = {row[0]: row[1:] for row in aims(results, tmp_path)}
    assert rows["aspl lowers it at eps 8"][2] == "yes"
    assert rows["aspl below the placebo at eps 8"][2] == "no"
    assert rows["noise lowers it at eps 8"][2] == "no"


def test_every_arm_has_a_row_and_a_missing_record_is_named(found):
    results = Results(found({"noise": 0.0, "aspl": 0.0, "simac": 0.0}), IDENTITIES)
    rows = retention_table(results)
    assert len(rows) == 2 + 3 * len(EPS)
    assert rows[0][:3] == ["none", 0, "dreambooth"]
    with pytest.raises(KeyError, match="1003"):
        Results([r for r in found({}) if r.identity != "1003"], IDENTITIES).of("none")


def stored(output_dir, stage, images, inputs=None):
    """Write an artifact of images by file name; return its digest."""
    folder = output_dir / "store" / stage / "key" / "7"
    files = {}
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(folder / name, image)
        files[name] = {"sha256": sha256((folder / name).read_bytes()).hexdigest()}
    manifest = {"files": files, "inputs": inputs}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Artifact(folder, manifest).digest


def portraits(identity, indices):
    return render([person(identity)] * len(indices), [shot(identity, k) for k in indices], 64)


def run_with(made_up, output_dir, gallery, protected):
    """Return the record of a run on person 7 with this gallery and these protected photos."""
    photos = {"A": "a", "B": "b", "C": "c"}
    sets = {
        f"set_{letter}/{k}.png": image
        for letter, first in (("A", 0), ("B", 4), ("C", 8))
        for k, image in enumerate(portraits(7, range(first, first + 4)))
    }
    stored(output_dir, "photos", sets, photos)
    digests = {"photos": photos}
    for stage, key, images in (
        ("gallery", "gallery_unprotected", gallery),
        ("protect", "protected", protected),
    ):
        digests[key] = stored(output_dir, stage, {f"{k}.png": x for k, x in enumerate(images)})
    return made_up(identity="7", digests=digests)


def test_photocopies_are_nearer_to_the_photos_than_new_pictures(made_up, tmp_path):
    copies = run_with(
        made_up, tmp_path / "copies", portraits(7, range(4, 8)), portraits(7, range(4, 8))
    )
    margins = closeness([copies], tmp_path / "copies")
    assert margins["SSIM"][0] > 0.2
    assert margins["SFace"][0] > 0.02
    strangers = run_with(
        made_up, tmp_path / "new", portraits(8, range(4)), portraits(7, range(4, 8))
    )
    margins = closeness([strangers], tmp_path / "new")
    assert margins["SFace"][0] < -0.2


def test_protected_photos_keep_their_similarity_or_lose_it(made_up, tmp_path):
    same = run_with(made_up, tmp_path / "same", portraits(7, [0]), portraits(7, range(4, 8)))
    assert protected_similarity([same], tmp_path / "same") == [pytest.approx(1)]
    grey = run_with(made_up, tmp_path / "grey", portraits(7, [0]), torch.full((4, 3, 64, 64), 0.5))
    assert protected_similarity([grey], tmp_path / "grey") == [0]
    with pytest.raises(ValueError, match="run the check again"):
        folder_of(tmp_path / "grey", "gallery", "unknown")


def test_two_variants_in_one_folder_are_refused(found):
    records = found({"noise": 0.0})
    twin = records[0].model_copy(update={"details": "class_images.count=7"})
    with pytest.raises(ValueError, match="identity 1000 has two records of none at eps 0"):
        Results([*records, twin], IDENTITIES)
