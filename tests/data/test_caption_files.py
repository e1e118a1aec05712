"""Annotation files in COCO's format, their splits, and where the photographs are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_caption.data.caption_files import locate, read, read_splits
from torch_caption.errors import DataError


def content(count: int = 3, name: str = "photo") -> dict[str, Any]:
    """`count` photographs, two captions of each but the last, which has none."""
    images = [{"id": 10 + k, "file_name": f"{name}{k}.jpg", "coco_url": f"http://x.example/{k}"} for k in range(count)]
    captions = [
        {"id": 2 * k + n, "image_id": 10 + k, "caption": f"{name} {k}, {n}"} for n in range(2) for k in range(count - 1)
    ]
    return {"images": images, "annotations": captions}


def write(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def test_read(tmp_path: Path) -> None:
    first, second, third = read(Path(write(tmp_path / "a.json", content())))
    assert (first.id, first.file_name, first.url) == (10, "photo0.jpg", "http://x.example/0")
    assert first.captions == [(0, "photo 0, 0"), (1, "photo 0, 1")]
    assert second.captions == [(2, "photo 1, 0"), (3, "photo 1, 1")]
    assert third.captions == []
    assert third.path is None


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no images": (lambda c: c.pop("images"), "no list named images"),
    "no annotations": (lambda c: c.update(annotations={}), "no list named annotations"),
    "an image that is a name": (lambda c: c["images"].__setitem__(1, "x.jpg"), "images[1] is 'x.jpg', not an object"),
    "no id": (lambda c: c["images"][1].pop("id"), "images[1] has no id: {'file_name': 'photo1.jpg'"),
    "an id that is none": (lambda c: c["images"][1].update(id=True), "images[1].id is True, neither a number nor"),
    "an id twice": (lambda c: c["images"][2].update(id=10), "images[2] has the id 10, as an earlier image"),
    "no name": (lambda c: c["images"][0].pop("file_name"), "images[0] has no file_name"),
    "an empty name": (lambda c: c["images"][0].update(file_name=""), "images[0].file_name is '', not a name"),
    "a name twice": (
        lambda c: c["images"][2].update(file_name="photo0.jpg"),
        "images[2] has the name 'photo0.jpg', as images[0]",
    ),
    "a name that leads out": (
        lambda c: c["images"][0].update(file_name="../x.jpg"),
        "images[0].file_name is '../x.jpg', not a name below the folder",
    ),
    "an absolute name": (lambda c: c["images"][0].update(file_name="/etc/x.jpg"), "not a name below the folder"),
    "a Windows name": (lambda c: c["images"][0].update(file_name="C:\\x.jpg"), "not a name below the folder"),
    "a Windows name that goes up": (
        lambda c: c["images"][0].update(file_name="a\\..\\b"),
        "not a name below the folder",
    ),
    "a name of two lines": (
        lambda c: c["images"][0].update(file_name="a\nb.jpg"),
        "images[0].file_name is 'a\\nb.jpg', a name with a line break",
    ),
    "a name of Mac OS 9": (
        lambda c: c["images"][0].update(file_name="Icon\r"),
        "images[0].file_name is 'Icon\\r', a name with a line break",
    ),
    "a name with a null": (
        lambda c: c["images"][0].update(file_name="a\0.jpg"),
        "images[0].file_name is 'a\\x00.jpg', a name with a line break",
    ),
    "a name of bytes that are no UTF-8": (
        lambda c: c["images"][0].update(file_name="caf\udce9.jpg"),
        "images[0].file_name is 'caf\\udce9.jpg', a name that is not Unicode text; rename the file",
    ),
    "no image_id": (lambda c: c["annotations"][3].pop("image_id"), "annotations[3] has no image_id"),
    "an unknown image": (
        lambda c: c["annotations"][3].update(image_id=99),
        "annotations[3].image_id is 99, which no image of the file has",
    ),
    "an image_id that is none": (
        lambda c: c["annotations"][3].update(image_id=[10]),
        "annotations[3].image_id is [10]",
    ),
    "no caption": (lambda c: c["annotations"][0].pop("caption"), "annotations[0] has no caption"),
    "a number for a caption": (
        lambda c: c["annotations"][0].update(caption=3),
        "annotations[0].caption is 3, not a string",
    ),
    "a caption that is no text": (
        lambda c: c["annotations"][0].update(caption="a \ud800"),
        "annotations[0].caption is 'a \\ud800'; '\\ud800' is not a text character",
    ),
    "an annotation twice": (
        lambda c: [c["annotations"][place].update(id=1, image_id=10) for place in (0, 1)],
        "annotations[1].id is 1, as in annotations[0] of the same image; remove one",
    ),
    "a name twice, written otherwise": (
        lambda c: c["images"][2].update(file_name="./photo0.jpg"),
        "images[2] has the name './photo0.jpg', as images[0]",
    ),
    "a huge value": (lambda c: c["images"][0].update(id=["x" * 10_000]), "images[0].id is ['xxx"),
    "an annotation's id": (lambda c: c["annotations"][0].update(id=None), "annotations[0].id is None"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_bad_annotations_name_the_entry_and_its_value(kind: str, tmp_path: Path) -> None:
    change, message = CHANGES[kind]
    value = content()
    change(value)
    path = Path(write(tmp_path / "a.json", value))
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {message}" if not message.startswith("not a name") else f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[1, 2]", "holds list, not an object with images and annotations"),
        (b'{"images": [', "not JSON in UTF-8"),
        (b"\xff\xfe{}", "not a text in UTF-8"),
        (b'{"images": [], "images": [1]}', "has the key 'images' twice"),
        (b'{"images": NaN}', "NaN is not valid JSON"),
        (b"[" * 100_000, "not JSON in UTF-8"),
    ],
)
def test_what_is_no_annotation_file(raw: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"none\.json: cannot be read: No such file"):
        read(tmp_path / "none.json")


# Splits


def test_files_are_the_splits_that_their_names_hold(tmp_path: Path) -> None:
    names = {"val": "captions_val2014.json", "test": "karpathy_TEST.json", "train": "captions_train2014.json"}
    files = [write(tmp_path / name, content(name=split)) for split, name in names.items()]
    splits = read_splits(files, 0.1, 0)
    assert [*splits] == ["train", "val", "test"]
    for split, photographs in splits.items():  # the last photograph of each has no caption
        assert [photograph.file_name for photograph in photographs] == [f"{split}0.jpg", f"{split}1.jpg"]


def test_splits_may_be_said(tmp_path: Path) -> None:
    train = write(tmp_path / "val.json", content(name="a"))
    other = write(tmp_path / "x.json", content(name="b"))
    splits = read_splits([f"train={train}", f"mine={other}"], 0.1, 0)
    assert [*splits] == ["train", "mine"]
    assert splits["train"][0].file_name == "a0.jpg"
    assert [*read_splits([f"train={train}"], 0.1, 0)] == ["train"]


def test_one_file_is_parted_at_random(tmp_path: Path) -> None:
    file = write(tmp_path / "captions_train.json", content(41))
    splits = read_splits([file], 0.25, 0)
    assert {split: len(photographs) for split, photographs in splits.items()} == {"train": 30, "val": 10}
    names = [photograph.file_name for photographs in splits.values() for photograph in photographs]
    assert len(set(names)) == 40
    assert names[30:] != sorted(names)[:10]
    for photographs in splits.values():
        assert [photograph.id for photograph in photographs] == sorted(photograph.id for photograph in photographs)
    assert read_splits([file], 0.25, 0) == splits
    assert read_splits([file], 0.25, 1) != splits


@pytest.mark.parametrize(
    ("names", "share", "message"),
    [
        (["a.json", "train.json"], 0.1, "a.json: no split in its name; write train="),
        (["train_val.json", "val.json"], 0.1, "train_val.json: no split in its name"),
        (["train.json", "train2.json"], 0.1, "train2.json: a second file of the split train; name the splits"),
        (["val.json", "test.json"], 0.1, "no file of the split train; name it, such as train="),
        (["a.json"], 0.01, "--val-share 0.01: of the 2 photographs of .*a.json 0 would be val"),
        (["a.json"], 1.0, "--val-share 1: of the 2 photographs of .*a.json 2 would be val"),
    ],
)
def test_splits_that_cannot_be(names: list[str], share: float, message: str, tmp_path: Path) -> None:
    files = [write(tmp_path / name, content(name=name)) for name in names]
    with pytest.raises(DataError, match=message):
        read_splits(files, share, 0)


def test_a_file_without_captions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no photograph in it has a caption"):
        read_splits([write(tmp_path / "a.json", content(1))], 0.1, 0)


# Where they are


def test_photographs_are_found_below_the_folder(tmp_path: Path) -> None:
    """By their name, and in COCO's folders."""
    splits = read_splits([f"train={write(tmp_path / 'a.json', content(5))}"], 0.1, 0)
    folder = tmp_path / "photographs"
    (folder / "train2014").mkdir(parents=True)
    (folder / "photo0.jpg").touch()
    (folder / "train2014" / "photo1.jpg").touch()
    (folder / "photo3.jpg").mkdir()
    found = locate(splits, {None: folder})["train"]
    assert [p.file_name for p in found] == ["photo0.jpg", "train2014/photo1.jpg", "photo2.jpg", "photo3.jpg"]
    assert [p.path for p in found] == [
        folder / "photo0.jpg",
        folder / "train2014/photo1.jpg",
        None,
        folder / "photo3.jpg",
    ]
    (folder / "training").mkdir()
    (folder / "training" / "photo1.jpg").touch()
    with pytest.raises(DataError, match=r"contains 'photo1\.jpg' twice, as \w+/photo1\.jpg and as \w+/photo1"):
        locate({"test": splits["train"]}, {None: folder})


def test_folders_without_them(tmp_path: Path) -> None:
    splits = read_splits([write(tmp_path / "a.json", content())], 0.5, 0)
    with pytest.raises(DataError, match="nowhere: no such folder of photographs"):
        locate(splits, {None: tmp_path / "nowhere"})
    with pytest.raises(DataError, match=r"contains no photograph of train; the first would be 'photo\d\.jpg'$"):
        locate(splits, {None: tmp_path})


@pytest.mark.parametrize("name", ["a" * 256, "é" * 128, "a/" * 600 + "b"])
def test_a_name_longer_than_any_file_has_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": name}], "annotations": []}), encoding="utf-8")
    with pytest.raises(DataError, match="too long for a name below the folder of photographs"):
        read(path)


# Names


def located(tmp_path: Path, splits: dict[str, list[str]], there: list[str]) -> dict[str, list[str | None]]:
    """The files that the photographs of annotated names are, of those that are there."""
    files = []
    for split, names in splits.items():
        images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
        captions = [{"id": k, "image_id": k, "caption": "a dog"} for k in range(len(names))]
        files.append(f"{split}={write(tmp_path / f'{split}.json', {'images': images, 'annotations': captions})}")
    folder = tmp_path / f"photographs of {len(there)}"
    for name in there:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = locate(read_splits(files, 0.1, 0), {None: folder})
    return {
        split: [None if p.path is None else p.path.relative_to(folder).as_posix() for p in photographs]
        for split, photographs in found.items()
    }


def test_a_photograph_in_two_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the photograph '\./a\.jpg' is in train and in val"):
        located(tmp_path, {"train": ["a.jpg"], "val": ["./a.jpg"]}, ["a.jpg"])
    with pytest.raises(DataError, match=r"the photograph 'b\.jpg' is in train and in val"):
        located(tmp_path, {"train": ["x/b.jpg"], "val": ["x/b.jpg"]}, ["b.jpg", "c.jpg"])


def test_two_photographs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    there = ["train/00.jpg", "val/00.jpg", "val/01.jpg"]
    found = located(tmp_path, {"train": ["00.jpg"], "val": ["00.jpg", "01.jpg"]}, there)
    assert found == {"train": ["train/00.jpg"], "val": ["val/00.jpg", "val/01.jpg"]}


@pytest.mark.parametrize("there", ["val2014/00.jpg", "images/val2014/00.jpg", "00.jpg"])
def test_folders_of_a_name_may_lie_further_inside_or_be_missing(tmp_path: Path, there: str) -> None:
    others = ["train2014/01.jpg", "old/val2014/01.jpg"]
    assert located(tmp_path, {"train": ["val2014/00.jpg"]}, [there, *others]) == {"train": [there]}


def test_a_photograph_of_another_split_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is in train and in val"):
        located(tmp_path, {"train": ["00.jpg"], "val": ["00.jpg"]}, ["train/00.jpg"])


NFC, NFD = "Café im Frühling.jpg", "Cafe\u0301 im Fru\u0308hling.jpg"


@pytest.mark.skipif(sys.platform == "darwin", reason="there the two forms are one name")
@pytest.mark.parametrize(("name", "there"), [(NFC, NFD), (NFD, NFC), (f"a/{NFC}", f"a/{NFD}"), (NFC, f"a/{NFD}")])
def test_both_forms_of_an_accent_are_one_name(tmp_path: Path, name: str, there: str) -> None:
    assert located(tmp_path, {"train": [name]}, [there]) == {"train": [there]}


@pytest.mark.skipif(sys.platform == "darwin", reason="there the two forms are one name")
def test_the_form_of_the_name_comes_first(tmp_path: Path) -> None:
    assert located(tmp_path, {"train": [NFC, NFD]}, [NFD, NFC]) == {"train": [NFC, NFD]}
    with pytest.raises(DataError, match="is in train twice, with the ids 0 and 1; remove one"):
        located(tmp_path, {"train": [NFC, NFD]}, [NFC])


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="there case and backslashes are no matter")
@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("IM00.JPG", "im00.jpg"),
        ("images\\im00.jpg", "images/im00.jpg"),
        ("images\\im00.jpg", "im00.jpg"),
        ("other/im00.jpg", "images/im00.jpg"),
        ("at 10.02.00 AM.jpg", "at 10.02.00\u202fAM.jpg"),
        ("im00.jpeg", "im00.jpg"),
        ("Straße.jpg", "STRASSE.jpg"),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path, name: str, there: str) -> None:
    with pytest.raises(DataError) as error:
        located(tmp_path, {"train": [name]}, ["z.txt", there])
    assert str(error.value).endswith(f"would be {name!r}; the nearest that exists is {there!r}")


def test_nothing_near_is_not_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the first would be 'abcdef\.jpg'$"):
        located(tmp_path, {"train": ["abcdef.jpg"]}, ["12345.txt"])
