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


def test_read(tmp_path):
    first, second, third = read(Path(write(tmp_path / "a.json", content())))
    assert (first.id, first.file_name, first.url) == (10, "photo0.jpg", "http://x.example/0")
    assert first.captions == [(0, "photo 0, 0"), (1, "photo 0, 1")]
    assert second.captions == [(2, "photo 1, 0"), (3, "photo 1, 1")]
    assert third.captions == []
    assert third.path is None


Change = Callable[[dict[str, Any]], object]


def image(number: int, **entries: Any) -> Change:
    return lambda content: content["images"][number].update(entries)


def annotation(number: int, **entries: Any) -> Change:
    return lambda content: content["annotations"][number].update(entries)


CHANGES: dict[str, tuple[Change, str]] = {
    "no images": (lambda c: c.pop("images"), "no list named images"),
    "an image that is a name": (lambda c: c["images"].__setitem__(1, "x.jpg"), "images[1] is 'x.jpg', not an object"),
    "no id": (lambda c: c["images"][1].pop("id"), "images[1] has no id: {'file_name': 'photo1.jpg'"),
    "an invalid id": (image(1, id=True), "images[1].id is True, neither a number nor"),
    "an id twice": (image(2, id=10), "images[2] has the id 10, as an earlier image"),
    "a huge value": (image(0, id=["x" * 10_000]), "images[0].id is ['xxx"),
    "a name twice": (image(2, file_name="./photo0.jpg"), "images[2] has the name './photo0.jpg', as images[0]"),
    "an absolute name": (image(0, file_name="/x.jpg"), "images[0].file_name is '/x.jpg', not a name below the folder"),
    "a Windows name that goes up": (image(0, file_name="a\\..\\b"), "images[0].file_name is 'a\\\\.."),
    "a name of two lines": (image(0, file_name="a\r"), "images[0].file_name is 'a\\r', a name with a line break"),
    "a surrogate": (image(0, file_name="\udce9"), "images[0].file_name is '\\udce9', a name that is not Unicode"),
    "no image_id": (lambda c: c["annotations"][3].pop("image_id"), "annotations[3] has no image_id"),
    "an unknown image": (annotation(3, image_id=99), "annotations[3].image_id is 99, which no image of the file has"),
    "an invalid image_id": (annotation(3, image_id=[10]), "annotations[3].image_id is [10]"),
    "a caption that is a number": (annotation(0, caption=3), "annotations[0].caption is 3, not a string"),
    "a caption with a surrogate": (annotation(0, caption="\ud800"), "annotations[0].caption is '\\ud800';"),
    "an annotation twice": (
        lambda c: [c["annotations"][number].update(id=1, image_id=10) for number in (0, 1)],
        "annotations[1].id is 1, as in annotations[0] of the same image; remove one",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_bad_annotations_name_the_entry_and_its_value(kind, tmp_path):
    change, message = CHANGES[kind]
    value = content()
    change(value)
    path = Path(write(tmp_path / "a.json", value))
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a" * 256, "é" * 128, "a/" * 600 + "b"])
def test_a_name_too_long_for_a_file_is_named(tmp_path, name):
    value = {"images": [{"id": 1, "file_name": name}], "annotations": []}
    with pytest.raises(DataError, match="too long for a name below the folder of photographs"):
        read(Path(write(tmp_path / "a.json", value)))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[1, 2]", "holds list, not an object with images and annotations"),
        (b'{"images": [', "not JSON in UTF-8"),
        (b"\xff\xfe{}", "not a text in UTF-8"),
    ],
)
def test_an_invalid_annotation_file_is_refused(raw, message, tmp_path):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.json")


# Splits


def test_files_are_the_splits_that_their_names_hold(tmp_path):
    names = {"val": "captions_val2014.json", "test": "karpathy_TEST.json", "train": "captions_train2014.json"}
    files = [write(tmp_path / name, content(name=split)) for split, name in names.items()]
    splits = read_splits(files, 0.1, 0)
    assert [*splits] == ["train", "val", "test"]
    for split, photographs in splits.items():  # the last photograph of each has no caption
        assert [photograph.file_name for photograph in photographs] == [f"{split}0.jpg", f"{split}1.jpg"]


def test_splits_may_be_given(tmp_path):
    train = write(tmp_path / "val.json", content(name="a"))
    other = write(tmp_path / "x.json", content(name="b"))
    splits = read_splits([f"train={train}", f"mine={other}"], 0.1, 0)
    assert {split: photographs[0].file_name for split, photographs in splits.items()} == {
        "train": "a0.jpg",
        "mine": "b0.jpg",
    }
    assert [*read_splits([f"train={train}"], 0.1, 0)] == ["train"]


def test_one_file_is_split_at_random(tmp_path):
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
    ],
)
def test_invalid_splits_are_refused(names, share, message, tmp_path):
    files = [write(tmp_path / name, content(name=name)) for name in names]
    with pytest.raises(DataError, match=message):
        read_splits(files, share, 0)


def test_a_file_without_captions_is_refused(tmp_path):
    with pytest.raises(DataError, match="no photograph in it has a caption"):
        read_splits([write(tmp_path / "a.json", content(1))], 0.1, 0)


# Where they are


def test_photographs_are_found_below_the_folder(tmp_path):
    splits = read_splits([f"train={write(tmp_path / 'a.json', content(5))}"], 0.1, 0)
    folder = tmp_path / "photographs"
    (folder / "train2014").mkdir(parents=True)
    (folder / "photo0.jpg").touch()
    (folder / "train2014" / "photo1.jpg").touch()
    (folder / "photo3.jpg").mkdir()
    found = locate(splits, {None: folder})["train"]
    assert [p.file_name for p in found] == ["photo0.jpg", "train2014/photo1.jpg", "photo2.jpg", "photo3.jpg"]
    assert [p.path and p.path.name for p in found] == ["photo0.jpg", "photo1.jpg", None, "photo3.jpg"]
    (folder / "training").mkdir()
    (folder / "training" / "photo1.jpg").touch()
    with pytest.raises(DataError, match=r"contains 'photo1\.jpg' twice, as \w+/photo1\.jpg and as \w+/photo1"):
        locate({"test": splits["train"]}, {None: folder})


def test_a_folder_without_the_photographs_is_refused(tmp_path):
    splits = read_splits([write(tmp_path / "a.json", content())], 0.5, 0)
    with pytest.raises(DataError, match="nowhere: no such folder of photographs"):
        locate(splits, {None: tmp_path / "nowhere"})
    with pytest.raises(DataError, match=r"contains no photograph of train; the first would be 'photo\d\.jpg'$"):
        locate(splits, {None: tmp_path})


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


def test_a_photograph_in_two_splits_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"the photograph '\./a\.jpg' is in train and in val"):
        located(tmp_path, {"train": ["a.jpg"], "val": ["./a.jpg"]}, ["a.jpg"])
    with pytest.raises(DataError, match=r"the photograph 'b\.jpg' is in train and in val"):
        located(tmp_path, {"train": ["x/b.jpg"], "val": ["x/b.jpg"]}, ["b.jpg", "c.jpg"])
    with pytest.raises(DataError, match="is in train and in val"):
        located(tmp_path, {"train": ["00.jpg"], "val": ["00.jpg"]}, ["train/00.jpg"])


def test_two_photographs_of_one_name_are_distinguished_by_their_folders(tmp_path):
    there = ["train/00.jpg", "val/00.jpg", "val/01.jpg"]
    found = located(tmp_path, {"train": ["00.jpg"], "val": ["00.jpg", "01.jpg"]}, there)
    assert found == {"train": ["train/00.jpg"], "val": ["val/00.jpg", "val/01.jpg"]}


@pytest.mark.parametrize("there", ["val2014/00.jpg", "images/val2014/00.jpg", "00.jpg"])
def test_the_folders_of_a_name_may_lie_further_inside_or_be_missing(tmp_path, there):
    others = ["train2014/01.jpg", "old/val2014/01.jpg"]
    assert located(tmp_path, {"train": ["val2014/00.jpg"]}, [there, *others]) == {"train": [there]}


NFC, NFD = "Café im Frühling.jpg", "Cafe\u0301 im Fru\u0308hling.jpg"


@pytest.mark.skipif(sys.platform == "darwin", reason="there the two forms are one name")
@pytest.mark.parametrize(("name", "there"), [(NFC, NFD), (NFD, NFC), (f"a/{NFC}", f"a/{NFD}"), (NFC, f"a/{NFD}")])
def test_both_forms_of_an_accent_are_one_name(tmp_path, name, there):
    assert located(tmp_path, {"train": [name]}, [there]) == {"train": [there]}


@pytest.mark.skipif(sys.platform == "darwin", reason="there the two forms are one name")
def test_a_file_with_the_very_name_is_preferred(tmp_path):
    assert located(tmp_path, {"train": [NFC, NFD]}, [NFD, NFC]) == {"train": [NFC, NFD]}
    with pytest.raises(DataError, match="is in train twice, with the ids 0 and 1; remove one"):
        located(tmp_path, {"train": [NFC, NFD]}, [NFC])


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="there case and backslashes are no matter")
@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("IM00.JPG", "im00.jpg"),
        ("images\\im00.jpg", "im00.jpg"),
        ("other/im00.jpg", "images/im00.jpg"),
        ("at 10.02.00 AM.jpg", "at 10.02.00\u202fAM.jpg"),
        ("im00.jpeg", "im00.jpg"),
        ("Straße.jpg", "STRASSE.jpg"),
    ],
)
def test_the_nearest_name_is_suggested(tmp_path, name, there):
    with pytest.raises(DataError) as error:
        located(tmp_path, {"train": [name]}, ["z.txt", there])
    assert str(error.value).endswith(f"would be {name!r}; the nearest that exists is {there!r}")


def test_no_name_is_suggested_where_none_is_near(tmp_path):
    with pytest.raises(DataError, match=r"the first would be 'abcdef\.jpg'$"):
        located(tmp_path, {"train": ["abcdef.jpg"]}, ["12345.txt"])
