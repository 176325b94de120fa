"""A folder of one's own photos as a data set."""

import pytest
import torch
from photo_folders import album, put, refusal, sets
from PIL import Image

from anticustom.identities import BadDataset, Folder


@pytest.mark.parametrize(
    ("n", "photos_per_set", "ends"),
    [(8, 4, (4, 8)), (11, 4, (4, 11)), (12, 4, (4, 8)), (15, 4, (4, 11)), (3, 1, (1, 2))],
)
def test_folder_splits_one_persons_photos_by_name(tmp_path, n, photos_per_set, ends):
    names = album(tmp_path / "Ann", n)
    reader = Folder(root=tmp_path / "Ann", photos_per_set=photos_per_set)
    assert reader.names() == ["Ann"]
    identity = reader.read("Ann", 32)
    first, end = ends
    assert [list(photos.names) for photos in sets(identity)] == [
        names[:first],
        names[first:end],
        names[end:],
    ]
    for photos in sets(identity):
        assert photos.images.shape == (len(photos.names), 3, 32, 32)


def test_folder_protects_a_whole_album(tmp_path):
    names = album(tmp_path / "Ann", 13)
    identity = Folder(root=tmp_path / "Ann", protect_all=True).read("Ann", 32)
    assert list(identity.set_A.names) == names[:4]
    assert list(identity.set_B.names) == names
    assert identity.set_C.names == ()
    four = tmp_path / "Bob"
    album(four, 4)
    assert len(Folder(root=four, protect_all=True).read("Bob", 32).set_B.names) == 4


def test_folder_takes_any_size_orientation_and_format(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(8):
        photo = Image.new("RGB", (64 + i, 120 - i), (10 * i, 0, 0))
        photo.save(tmp_path / f"{i}.{('JPG', 'png', 'webp', 'jpeg')[i % 4]}", exif=exif)
    (tmp_path / "clip.mov").write_text("x")
    identity = Folder(root=tmp_path, name="ann").read("ann", 48)
    assert identity.set_A.names == ("0.JPG", "1.png", "2.webp", "3.jpeg")
    reds = torch.cat([identity.set_A.images, identity.set_B.images])[:, 0].mean(dim=(1, 2)) * 255
    assert reds.tolist() == pytest.approx([10 * i for i in range(8)], abs=3)


def test_folder_names(tmp_path, monkeypatch):
    album(tmp_path / "Ann", 8)
    assert Folder(root=tmp_path / "Ann", name="mum").names() == ["mum"]
    assert Folder(root=tmp_path / "Ann", name="mum").read("mum", 32).name == "mum"
    monkeypatch.chdir(tmp_path / "Ann")
    assert Folder(root=".").names() == ["Ann"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder(root="~/Ann").names() == ["Ann"]
    for name in ("a/b", "..", "../a", 5):
        with pytest.raises(BadDataset, match=r"dataset\.name="):
            Folder(root=tmp_path, name=name)


def test_folder_of_folders_is_several_people(tmp_path):
    for name in ("Zoe", "Ann"):
        album(tmp_path / name, 8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    put(tmp_path / ".trash", "a.png")
    assert Folder(root=tmp_path, identities=2).names() == ["Ann", "Zoe"]
    assert Folder(root=tmp_path, identities=["Zoe"]).names() == ["Zoe"]
    assert Folder(root=tmp_path).read("Zoe", 32).name == "Zoe"
    unknown = Folder(root=tmp_path, identities=["Bob"])
    assert "no 'Bob'; available: 2 (Ann, Zoe)" in refusal(unknown.names)
    assert "dataset.name='mum'" in refusal(Folder(root=tmp_path, name="mum").names)
    album(tmp_path, 8)
    assert Folder(root=tmp_path).names() == [tmp_path.name]


def test_folder_refuses_too_few_photos(tmp_path):
    assert "is no folder" in refusal(Folder(root=tmp_path / "none").names)
    assert "holds no photos" in refusal(Folder(root=tmp_path).names)
    album(tmp_path / "Ann", 7)
    message = refusal(Folder(root=tmp_path / "Ann").read, "Ann", 32)
    assert "7 photos and should hold 8" in message
    assert "dataset.photos_per_set" in message
    album(tmp_path / "Bob", 3)
    whole = Folder(root=tmp_path / "Bob", protect_all=True)
    assert "should hold 4" in refusal(whole.read, "Bob", 32)


@pytest.mark.parametrize("suffix", ["HEIC", "dng", "gif", "tif", "avif"])
def test_folder_refuses_formats_that_would_stay_unprotected(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_text("x")
    only = refusal(Folder(root=tmp_path, name="ann").read, "ann", 32)
    album(tmp_path, 8)
    mixed = refusal(Folder(root=tmp_path, name="ann").read, "ann", 32)
    assert only == mixed
    assert f"a.{suffix}" in mixed
    assert "convert it to JPEG or PNG" in mixed
