import dataclasses
import shutil
from collections import UserList

import numpy as np
import pytest
import torch
from photo_folders import album, put, refusal, sets, tree
from PIL import Image

from anticustom.identities import (
    BadDataset,
    Folder,
    PapersTree,
    PhotoSet,
    Portraits,
    select,
    with_clean_photos,
)
from anticustom.images import from_8bit, read_png, to_8bit
from anticustom.portraits import person, render, shot

HINT = "ask the authors for the split"


def test_digest_depends_on_names_shape_and_8_bit_pixels():
    images = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4) / 255
    digest = PhotoSet(("a.png", "b.png"), images).digest
    assert digest == PhotoSet(("a.png", "b.png"), images.clone() + 1e-6).digest
    assert len(digest) == 64
    brighter = images.clone()
    brighter[1, 2, 3, 3] += 1 / 255
    others = {
        PhotoSet(("a.png", "b.png"), brighter).digest,
        PhotoSet(("a.png", "c.png"), images).digest,
        PhotoSet(("b.png", "a.png"), images).digest,
        PhotoSet(("a.png", "b.png"), images.reshape(2, 3, 2, 8)).digest,
        PhotoSet((), images[:0]).digest,
    }
    assert len(others) == 5
    assert digest not in others


def test_clean_photos_take_the_first_places():
    images = torch.arange(6).view(6, 1, 1, 1) / 255
    photos, clean = PhotoSet(("a", "b", "c"), images[:3]), PhotoSet(("x", "y", "z"), images[3:])
    mixed = with_clean_photos(photos, clean, 2)
    assert mixed.names == ("a", "b", "c")
    assert torch.equal(mixed.images, images[[3, 4, 2]])
    assert with_clean_photos(photos, clean, 0).digest == photos.digest
    with pytest.raises(BadDataset, match=r"clean_photos=3: .* 3 photos in set B .* 2 in set C"):
        with_clean_photos(photos, PhotoSet(("x", "y"), images[:2]), 3)


def test_digest_does_not_depend_on_the_layout_in_memory():
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    strided = images.to(memory_format=torch.channels_last)
    assert PhotoSet(("a", "b"), images).digest == PhotoSet(("a", "b"), strided).digest


@pytest.mark.parametrize(
    ("identities", "expected"),
    [
        (1, ["103"]),
        (3, ["103", "7", "ann"]),
        ([103], ["103"]),
        (["103"], ["103"]),
        (["ann", 7], ["ann", "7"]),
        ("ann", ["ann"]),
        (("7",), ["7"]),
        (UserList([7]), ["7"]),  # any sequence, such as the list of a configuration
    ],
)
def test_select(identities, expected):
    assert select(["103", "7", "ann"], identities) == expected


@pytest.mark.parametrize(
    ("identities", "expected"),
    [
        (["bob"], "no 'bob'; available: 3 (103, 7, ann)"),
        ("bob", "no 'bob'"),
        ([8], "no '8'"),
        (103, "the first 103, but available: 3 (103, 7, ann); for the one called 103 set "),
        (["7", 7], "list each once"),
        *((wrong, "neither a number") for wrong in (-1, 1.5, True, None, [], {"ann": 1})),
        (0, "neither a number from 1 on nor a list"),
        *(([wrong], "only names and integers") for wrong in (1.5, None, True)),
    ],
)
def test_select_refuses(identities, expected):
    message = refusal(select, ["103", "7", "ann"], identities)
    assert expected in message
    assert message.startswith("dataset.identities")


def test_select_lists_only_a_few_of_many():
    message = refusal(select, [f"n{i:06}" for i in range(50)], ["x"])
    assert "50 (n000000, n000001, n000002, n000003, n000004, ...)" in message


@pytest.mark.parametrize("value", [0, -1, 2.0, "4", None, True])
def test_readers_refuse_photos_per_set(value, tmp_path):
    for reader, settings in [
        (Portraits, {}),
        (Folder, {"root": tmp_path}),
        (PapersTree, {"root": tmp_path, "hint": HINT}),
    ]:
        with pytest.raises(BadDataset, match=r"dataset\.photos_per_set="):
            reader(**settings, photos_per_set=value)


def test_portraits_names():
    assert Portraits().names() == ["0"]
    assert Portraits(identities=3).names() == ["0", "1", "2"]
    assert Portraits(identities=[21, "7", 999_999]).names() == ["21", "7", "999999"]


@pytest.mark.parametrize(
    "identities", [[1_000_000], ["-1"], [-1], ["ann"], ["007"], ["1.5"], ["\u0663"], 2_000_000, ""]
)
def test_portraits_refuse_what_is_no_number_below_a_million(identities):
    message = refusal(Portraits(identities=identities).names)
    assert "list numbers from 0 to 999999" in message


def test_portraits_read_shots_into_three_sets():
    identity = Portraits().read("21", 32)
    assert identity.name == "21"
    for photos, letter, first in zip(sets(identity), "ABC", (0, 4, 8), strict=True):
        assert photos.names == tuple(f"{letter}{i}.png" for i in range(4))
        expected = render([person(21)] * 4, [shot(21, first + i) for i in range(4)], 32)
        assert (photos.images - expected).abs().max() <= 0.5 / 255 + 1e-6
        assert torch.equal(from_8bit(to_8bit(photos.images)), photos.images)
    assert len({photos.digest for photos in sets(identity)}) == 3


def test_portraits_are_the_same_each_time_and_whatever_else_is_read():
    alone = Portraits(identities=[5]).read("5", 32)
    several = [Portraits(identities=9).read(name, 32) for name in ("3", "5")]
    assert alone.set_B.digest == several[1].set_B.digest
    assert several[0].set_B.digest != several[1].set_B.digest


def test_portraits_of_fewer_photos_are_the_first():
    full, short = Portraits().read("0", 32), Portraits(photos_per_set=2).read("0", 32)
    for all_photos, two in zip(sets(full), sets(short), strict=True):
        assert two.names == all_photos.names[:2]
        assert torch.equal(two.images, all_photos.images[:2])
    with pytest.raises(BadDataset, match="photos_per_set=5"):
        Portraits(photos_per_set=5)


def test_papers_tree_reads_the_first_photos_by_name(tmp_path):
    reader = PapersTree(root=tree(tmp_path, "n2", "n1"), hint=HINT, identities=2)
    assert reader.names() == ["n1", "n2"]
    identity = reader.read("n2", 32)
    assert identity.name == "n2"
    for photos, letter in zip(sets(identity), "ABC", strict=True):
        assert photos.names == tuple(f"n2{letter}{i}.png" for i in range(4))
        assert photos.images.shape == (4, 3, 32, 32)
        for name, image in zip(photos.names, photos.images, strict=True):
            file = tmp_path / "n2" / f"set_{letter}" / name
            assert torch.equal(image, read_png(file)[:, :32, :32])


def test_papers_tree_leaves_out_all_but_photos(tmp_path):
    root = tree(tmp_path, "103", photos=4)
    for name in (".DS_Store", "._103A0.png", "notes.txt", "Thumbs.db", "no_suffix"):
        (root / "103" / "set_A" / name).write_text("x")
    (root / "103" / "set_A" / "000.png").mkdir()
    (root / ".cache" / "set_A").mkdir(parents=True)
    (root / "0_stray").mkdir()
    (root / "0_list.csv").write_text("x")
    reader = PapersTree(root=str(root), hint=HINT)
    assert reader.names() == ["103"]
    assert reader.read("103", 32).set_A.names == tuple(f"103A{i}.png" for i in range(4))


def test_papers_tree_reads_jpeg_and_any_letter_case(tmp_path):
    root = tree(tmp_path, "103", photos=3)
    for letter in "ABC":
        put(root / "103" / f"set_{letter}", "9.JPG", "8.jpeg")
    names = PapersTree(root=root, hint=HINT).read("103", 32).set_C.names
    assert names == ("103C0.png", "103C1.png", "103C2.png", "8.jpeg")


def test_papers_tree_explains_where_the_data_comes_from(tmp_path):
    missing, empty, too_deep = (
        refusal(PapersTree(root=root, hint=HINT).names)
        for root in (tmp_path / "none", tmp_path, tree(tmp_path / "papers", "103") / "103")
    )
    for message in (missing, empty, too_deep):
        assert str(tmp_path) in message
        assert "<identity>/set_A" in message
        assert HINT in message
    assert "is not there" in missing
    assert "holds no" in empty


def test_papers_tree_refuses_unknown_identities_and_short_sets(tmp_path):
    root = tree(tmp_path, "n1", "n2")
    unknown = PapersTree(root=root, hint=HINT, identities=["n3"])
    assert "available: 2 (n1, n2)" in refusal(unknown.names)
    message = refusal(PapersTree(root=root, hint=HINT, photos_per_set=6).read, "n1", 32)
    assert "set_A" in message
    assert "5 photos instead of 6" in message
    shutil.rmtree(root / "n2" / "set_C")
    message = refusal(PapersTree(root=root, hint=HINT).read, "n2", 32)
    assert str(root / "n2" / "set_C") in message
    assert "0 photos" in message


def test_papers_tree_names_a_damaged_photo(tmp_path):
    file = tree(tmp_path, "n1") / "n1" / "set_B" / "n1B2.png"
    file.write_bytes(file.read_bytes()[:60])
    assert str(file) in refusal(PapersTree(root=tmp_path, hint=HINT).read, "n1", 32)


@pytest.mark.parametrize(("dataset", "name"), [("vggface2", "n000050"), ("celebahq", "103")])
def test_papers_tree_reads_the_published_samples(shared, dataset, name):
    reader = PapersTree(root=shared / "samples" / dataset, hint=HINT, identities=[name])
    assert reader.names() == [name]
    identity = reader.read(name, 512)
    for photos in sets(identity):
        assert photos.names == tuple(sorted(photos.names))
        assert photos.images.shape == (4, 3, 512, 512)
        assert photos.images.std(dim=(1, 2, 3)).min() > 0.05
    file = shared / "samples" / dataset / name / "set_B" / identity.set_B.names[0]
    with Image.open(file) as image:
        stored = np.asarray(image.convert("RGB"))
    assert np.array_equal(to_8bit(identity.set_B.images[0]).permute(1, 2, 0).numpy(), stored)


def test_reading_writes_nothing(tmp_path):
    album(tmp_path / "Ann", 12)
    tree(tmp_path / "papers", "103")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    Folder(root=tmp_path / "Ann").read("Ann", 32)
    PapersTree(root=tmp_path / "papers", hint=HINT).read("103", 32)
    refusal(Folder(root=tmp_path / "Ann", photos_per_set=9).read, "Ann", 32)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_readers_are_settings_that_do_not_change(tmp_path):
    for reader in (Portraits(), Folder(root=tmp_path), PapersTree(root=tmp_path, hint=HINT)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            reader.identities = 2
