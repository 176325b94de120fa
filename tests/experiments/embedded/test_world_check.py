"""The tables of the embedded check, on records made up for the purpose."""

import json
from hashlib import sha256

import pytest
import torch

from anticustom.images import write_png
from anticustom.portraits import person, render, shot
from experiments.embedded import world_check
from experiments.embedded.photocopy_check import closeness, protected_similarity
from experiments.embedded.world_check import EPS, PROMPTS, Results, aims, retention_table
from experiments.store.artifacts import Artifact

IDENTITIES = range(1000, 1012)
NOT_OF_THE_CHECK = (
    *({"adversary": "other_term"}, {"countermeasure": "jpeg75"}, {"clean_photos": 2}),
    *({"method": "aspl (steps=13)"}, {"seed": 1}, {"scorer": {"backbone": "facenet"}}),
)


@pytest.fixture
def made(made_up):
    """Call it for records in which an attack lowers the retention of 0.8 by `drops[attack] * eps`,
    among records that are not of the check.
    """

    def records(drops):
        for k, identity in enumerate(map(str, IDENTITIES)):

            def record(attack, eps, retention, identity=identity, **entries):
                entries |= {"attack": attack, "eps": eps, "identity": identity, "fdfr": 0.02}
                return made_up(retention, unprotected=retention, **entries)

            clean = 0.8 + 0.02 * k
            yield record("none", 0, clean)
            yield record("none", 0, clean, config={"gallery": {"prompts": list(PROMPTS)}})
            yield record("none", 0, clean - 0.1, customizer="lora")
            for attack, drop in drops.items():
                for eps in EPS:
                    yield record(attack, eps, clean - (drop + 0.001 * (k % 3)) * eps)
            for entries in NOT_OF_THE_CHECK if k < 4 else ():
                yield record("aspl", 8, -0.9, **entries)

    return lambda **drops: list(records(drops))


@pytest.fixture
def check(made, monkeypatch, tmp_path):
    """Call it for figure and verdict of every aim, with stand-ins for measures on pictures."""
    on_pictures = {
        "closeness": {"SSIM": [-0.1] * 12, "SFace": [0.1] * 12},
        "followed_prompts": {prompt: [0.75] * 11 + [None] for prompt in PROMPTS},
        "protected_similarity": [0.9] * 12,
    }
    for name, figures in on_pictures.items():
        monkeypatch.setattr(world_check, name, lambda *_, figures=figures: figures)
    return lambda **drops: {
        quantity: (figure, met)
        for quantity, _, figure, met in aims(Results(made(**drops), IDENTITIES), tmp_path)
    }


def test_aims_are_met_only_where_the_figures_say_so(check):
    rows = check(noise=0.002, aspl=0.045, simac=0.02)
    assert rows["retention, DreamBooth"][0].startswith("0.91 [")
    assert rows[f"followed: {PROMPTS[0]}"] == ("0.75 [0.75, 0.75]", "yes")
    for quantity, met in {
        "retention, DreamBooth": "yes",
        "aspl lowers it at eps 8": "yes",
        "simac lowers it at eps 8": "no",
        "simac below the placebo at eps 8": "yes",
        "noise lowers it at eps 8": "yes",
        "aspl: retention at eps 4, 8, 16": "yes",
        "gallery nearer to set B than set C is, SSIM": "yes",
        "gallery nearer to set B than set C is, SFace": "no",
    }.items():
        assert rows[quantity][1] == met, quantity


def test_no_attack_passes_for_a_placebo(check):
    rows = check(noise=0.04, aspl=0.04, simac=0.04)
    assert rows["aspl lowers it at eps 8"][1] == "yes"
    assert rows["aspl below the placebo at eps 8"][1] == "no"
    assert rows["noise lowers it at eps 8"][1] == "no"


def test_every_arm_has_a_row_and_records_that_miss_or_conflict_are_named(made):
    records = made(noise=0.0, aspl=0.0, simac=0.0)
    rows = retention_table(Results(records, IDENTITIES))
    assert len(rows) == 2 + 3 * len(EPS)
    assert rows[0][:3] == ["none", 0, "dreambooth"]
    with pytest.raises(KeyError, match="1003"):
        Results([r for r in records if r.identity != "1003"], IDENTITIES).of("none")
    variant = records[0].model_copy(update={"details": "class_images.count=7"})
    with pytest.raises(ValueError, match="identity 1000 has two records of none at eps 0"):
        Results([*records, variant], IDENTITIES)


def portraits(identity, first):
    """Return four portraits of 64 px."""
    return render([person(identity)] * 4, [shot(identity, k) for k in range(first, first + 4)], 64)


@pytest.fixture
def run_with(made_up, tmp_path):
    """Call it with a gallery and protected photos for the record of such a run on person 7."""

    def stored(stage, inputs=None, **sets):
        folder, files = tmp_path / "store" / stage / "key" / "7", {}
        for name, images in sets.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for k, image in enumerate(images):
                write_png(folder / name / f"{k}.png", image)
                content = (folder / name / f"{k}.png").read_bytes()
                files[f"{name}/{k}.png"] = {"sha256": sha256(content).hexdigest()}
        manifest = {"files": files, "inputs": inputs}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return Artifact(folder, manifest).digest

    def record(gallery, protected):
        digests = {
            "photos": {"A": "a", "B": "b", "C": "c"},
            "gallery_unprotected": stored("gallery", images=gallery),
            "protected": stored("protect", images=protected),
        }
        sets = {f"set_{letter}": portraits(7, k) for letter, k in (("A", 0), ("B", 4), ("C", 8))}
        stored("photos", digests["photos"], **sets)
        return made_up(identity="7", digests=digests)

    return record


@pytest.mark.slow
def test_photocopies_are_nearer_to_the_photos_than_new_pictures(run_with, tmp_path):
    margins = closeness([run_with(portraits(7, 4), portraits(7, 4))], tmp_path)
    assert margins["SSIM"][0] > 0.2
    assert margins["SFace"][0] > 0.02
    margins = closeness([run_with(portraits(8, 0), portraits(7, 4))], tmp_path)
    assert margins["SFace"][0] < -0.2


def test_protected_photos_keep_their_similarity_or_lose_it(run_with, tmp_path):
    grey = torch.full((4, 3, 64, 64), 0.5)
    for protected, share in ((portraits(7, 4), pytest.approx(1)), (grey, 0)):
        record = run_with(portraits(7, 0), protected)
        assert protected_similarity([record], tmp_path) == [share]


@pytest.mark.parametrize("digest", ["photos", "protected"])
def test_pictures_that_the_store_lacks_are_named(run_with, tmp_path, digest):
    record = run_with(portraits(7, 0), portraits(7, 4))
    record.digests[digest] = "unknown"
    with pytest.raises(ValueError, match=r"store/\w+ .*: run the check again"):
        protected_similarity([record], tmp_path)
