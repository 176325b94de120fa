import numpy as np
import pytest
import torch
from PIL import Image

from experiments.run.overview import Row, difference, draw_overview

RED, GREEN, BLUE = (200, 20, 20), (20, 200, 20), (20, 20, 200)
PROMPTS = ["a photo of sks person", "a selfie photo of sks person on top of mount fuji"]


def flat(colour, size=64):
    return torch.tensor(colour).float().div(255)[:, None, None].expand(3, size, size)


def draw(path, size=64, taken=4, per_prompt=2, prompts=PROMPTS, **changes):
    """Photos are red, protected ones lighter by 8 levels, galleries green and blue."""
    count = per_prompt * len(prompts)
    arguments = {
        "title": "simac on ann",
        "subtitle": "seed 0",
        "photos": Row("Photos", [flat(RED, size)] * taken),
        "protected": Row("Protected", [flat([c + 8 for c in RED], size)] * taken),
        "galleries": [
            Row("unprotected victim", [flat(GREEN, size)] * count, "ISM 0.69\nFDFR 0 %"),
            Row("protected victim", [flat(BLUE, size)] * count, "ISM 0.12\nFDFR 60 %"),
        ],
        "prompts": prompts,
    }
    draw_overview(path, **(arguments | changes))
    return np.asarray(Image.open(path).convert("RGB"))


def tiles(page, colour):
    """Numbers of runs of a colour along its rows and its columns, and the runs' length."""
    mask = (page == colour).all(-1)
    row = mask[mask.any(1).nonzero()[0][len(mask.any(1).nonzero()[0]) // 2]]
    column = mask[:, mask.any(0).nonzero()[0][4]]
    starts = [int((np.diff(line.astype(int), prepend=0) == 1).sum()) for line in (row, column)]
    return starts, round(int(row.sum()) / starts[0] / 16)  # in sixteenths: 12 is a large tile


def test_difference_is_tenfold_about_grey():
    clean = np.array([[[0, 100, 255]]], dtype=np.uint8)
    protected = np.array([[[8, 99, 235]]], dtype=np.uint8)
    assert difference(clean, protected).tolist() == [[[208, 118, 0]]]
    assert difference(clean, clean).tolist() == [[[128, 128, 128]]]


LARGE, SMALL = 12, 8


def test_every_row_is_drawn_with_its_tiles_also_the_photos_that_the_adversary_trained_on(tmp_path):
    treated = (90, 90, 90)
    trained_on = Row("Trained on", [flat(treated)] * 4, "after blur")
    plain, page = draw(tmp_path / "p.png"), draw(tmp_path / "o.png", trained_on=trained_on)
    for colour in (RED, [c + 8 for c in RED], (208, 208, 208), GREEN, BLUE):
        assert tiles(plain, colour) == ([4, 1], LARGE)
    assert tiles(page, treated) == ([4, 1], LARGE)
    assert page.shape == (plain.shape[0] + 192, *plain.shape[1:])


@pytest.mark.parametrize("size", [64, 256, 512])
def test_wide_pages_have_smaller_tiles(tmp_path, size):
    page = draw(tmp_path / "o.png", size=size, prompts=[*PROMPTS, "a", "b"])
    assert tiles(page, GREEN) == ([8, 1], SMALL)
    assert page.shape[1] < 1700


def test_many_pictures_are_cut_to_a_readable_page(tmp_path):
    page = draw(tmp_path / "o.png", taken=20, per_prompt=6, prompts=[*"abcdefghijkl"])
    assert tiles(page, RED)[0] == [8, 1]
    assert tiles(page, GREEN)[0] == [10, 1]
    assert page.shape[1] < 1700


def test_same_index_above_one_another(tmp_path):
    numbered = [flat((20, 20, 100 + i)) for i in range(6)]
    greener = [flat((20, 100 + i, 20)) for i in range(6)]
    galleries = [Row("one", numbered), Row("two", greener)]
    page = draw(tmp_path / "o.png", per_prompt=3, galleries=galleries)
    for index in range(6):
        above = np.argwhere((page == (20, 20, 100 + index)).all(-1))
        below = np.argwhere((page == (20, 100 + index, 20)).all(-1))
        assert (len(above) > 0) == (index in (0, 1, 3, 4))  # two of the three for each prompt
        assert above[:, 1].tolist() == below[:, 1].tolist()


def test_files_and_tensors_give_the_same_bytes_again_and_again(tmp_path):
    file = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), RED).save(file)
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png", photos=Row("Photos", [file] * 4))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_labels_and_long_text_stay_clear_of_the_tiles(tmp_path):
    words = "ISM 0.123456789, failures as 0: 0.123456789 " * 8
    long = [Row("victim " * 6, [flat(GREEN)] * 4, words)] * 2
    page = draw(tmp_path / "o.png", galleries=long, title="long " * 60)
    plain = draw(tmp_path / "p.png", title="", subtitle="")
    assert tiles(page, GREEN) == ([4, 2], LARGE)
    assert page.shape[0] > plain.shape[0]
    assert (page[:, -8:] == 255).all()  # nothing runs over the right edge


def test_uneven_galleries_are_refused(tmp_path):
    uneven = [Row("one", [flat(GREEN)] * 4), Row("two", [flat(BLUE)] * 2)]
    with pytest.raises(ValueError, match=r"galleries of \[2, 4\] pictures for 2 prompts"):
        draw(tmp_path / "o.png", galleries=uneven)
    with pytest.raises(ValueError, match=r"galleries of \[3\] pictures for 2 prompts"):
        draw(tmp_path / "o.png", galleries=[Row("one", [flat(GREEN)] * 3)])
    assert not (tmp_path / "o.png").exists()
