import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from eval.gallery import Scorer, summarize
from eval.identity import failures_as_0, identity_retention
from eval.metrics import METRICS


def row(prompt, similarity, ser_fiq, brisque):
    face = similarity is not None
    return {
        "prompt": prompt,
        "image": "0.png",
        "face_found": face,
        "face_probability": 0.99 if face else None,
        "similarity": similarity,
        "ser_fiq_raw": 0.9 if face else None,
        "ser_fiq": ser_fiq,
        "brisque": brisque,
    }


@pytest.fixture(scope="session")
def photos(people):
    person, stranger = people
    folders = {part: person / part for part in ("set_A", "set_B", "set_C")}
    folders["stranger"] = stranger / "set_A"
    return {part: sorted(folder.iterdir())[:2] for part, folder in folders.items()}


@pytest.fixture(scope="session")
def rows(scorer, photos, wall):
    """Scores of a gallery of the person, a stranger and no face."""
    gallery = {"same": photos["set_B"], "stranger": photos["stranger"], "none": [wall]}
    return scorer(gallery, photos["set_A"])


@pytest.fixture(scope="session")
def wall(tmp_path_factory):
    file = tmp_path_factory.mktemp("wall") / "wall.png"
    Image.new("RGB", (128, 128), (90, 120, 150)).save(file)
    return file


def test_summary_weighs_prompts_equally():
    rows = [row("a", 0.8, 0.9, 10), row("a", None, None, 40), row("a", 0.4, 0.7, 10)]
    rows += [row("b", 0.2, 0.5, 60)]
    summary = summarize(rows)
    assert summary["prompts"]["a"]["ism"] == pytest.approx(0.6)
    assert summary["prompts"]["a"]["images"] == 3
    assert summary["ism"] == pytest.approx((0.6 + 0.2) / 2)
    assert summary["ism_failures_as_0"] == pytest.approx((0.4 + 0.2) / 2)
    assert summary["fdfr"] == pytest.approx(1 / 6)
    assert summary["brisque"] == pytest.approx((20 + 60) / 2)
    assert summary["ser_fiq"] == pytest.approx((0.8 + 0.5) / 2)
    assert summary["ser_fiq_failures_as_0"] == pytest.approx((1.6 / 3 + 0.5) / 2)


def test_prompts_without_any_face():
    summary = summarize([row("a", None, None, 80), row("b", 0.2, 0.5, 60)])
    assert summary["prompts"]["a"]["ism"] is None
    assert summary["ism"] == pytest.approx(0.2)
    assert summary["ism_failures_as_0"] == pytest.approx(0.1)
    nothing = summarize([row("a", None, None, 80)])
    assert (nothing["ism"], nothing["ser_fiq"], nothing["fdfr"]) == (None, None, 1)


def test_every_summary_score_is_described():
    summary = summarize([row("a", 0.2, 0.5, 60)])
    assert set(summary) - {"prompts"} <= set(METRICS)
    for metric in METRICS.values():
        assert metric["direction"] in ("lower", "higher")
        assert isinstance(metric["backbone"], bool)


def test_the_person_a_stranger_and_no_face(rows):
    prompts = summarize(rows)["prompts"]
    assert prompts["same"]["ism"] > 0.6
    assert prompts["stranger"]["ism"] < 0.25
    assert prompts["none"]["fdfr"] == 1
    assert rows[-1]["face_probability"] is rows[-1]["similarity"] is rows[-1]["ser_fiq"] is None
    assert rows[-1]["brisque"] == 100
    assert prompts["same"]["ser_fiq"] > 0.8
    json.dumps(rows, allow_nan=False)


def test_scores_do_not_depend_on_order_or_neighbours(rows, photos):
    backwards = Scorer()({"same": photos["set_B"][::-1]}, photos["set_A"])
    assert rows[:2] == backwards[::-1]


def test_identity_retention_of_real_photos(scorer, photos, rows):
    held_out = failures_as_0(scorer.similarity_of(photos["set_C"], photos["set_A"]))
    same, stranger = (
        failures_as_0([row["similarity"] for row in rows if row["prompt"] == prompt])
        for prompt in ("same", "stranger")
    )
    assert identity_retention(same, stranger, held_out) == pytest.approx(1, abs=0.35)


def test_metrics_that_are_switched_off_are_missing(photos):
    rows = Scorer(brisque=False, ser_fiq=False)({"p": photos["set_B"][:1]}, photos["set_A"])
    assert set(rows[0]) == {"prompt", "image", "face_found", "face_probability", "similarity"}
    assert set(summarize(rows)) == {"ism", "ism_failures_as_0", "fdfr", "prompts"}


def test_a_reference_without_a_face_and_an_empty_gallery_are_refused(scorer, wall):
    for gallery, message in [
        ({"p": [wall]}, r"no face found in any of the 1 reference .*wall\.png"),
        ({"p": []}, r"no images for \['p'\]"),
        ({}, "no images for any prompt"),
    ]:
        with pytest.raises(ValueError, match=message):
            scorer(gallery, [wall])


def test_bad_settings_are_refused_at_once():
    for settings, message in [
        ({"backbone": "arcface"}, "backbone=arcface"),
        ({"pyiqa": ["brisk"]}, "pyiqa has no metric"),
        ({"pyiqa": ["entropy", "brisque"]}, "brisque is measured already"),
    ]:
        with pytest.raises(ValueError, match=message):
            Scorer(**settings)


def test_metrics_of_full_reference_are_for_the_protected_photos(wall):
    scorer = Scorer(brisque=False, pyiqa=["entropy", "gmsd"])
    row = scorer._row(wall, None)
    assert "entropy" in row
    assert "gmsd" not in row
    assert [metric.name for metric in scorer.comparing] == ["gmsd"]


@pytest.mark.slow
def test_scoring_prints_nothing(wall):
    script = """
import logging, sys, warnings
from pathlib import Path
logging.basicConfig(level=logging.INFO)
warnings.simplefilter("default")
from eval.gallery import Scorer
from eval.perceptibility import perceptibility
file = Path(sys.argv[1])
scorer = Scorer(pyiqa=["entropy"])
scorer._row(file, None)
perceptibility([file], [file])
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(wall)], cwd=root, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
