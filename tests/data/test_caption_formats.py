"""Captions as the field ships them: Karpathy's JSON, Flickr8k's token file with its lists, Kaggle's CSV."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_caption.data.caption_files import Photograph, locate, named_folders, of_split, read, read_splits
from torch_caption.errors import DataError

KARPATHY_SPLITS = ["train", "restval", "val", "test", "train"]


def karpathy(*, coco: bool = False) -> dict[str, Any]:
    """Five photographs, two captions of each; of COCO they have a folder and an id of its own."""
    images = []
    for k, split in enumerate(KARPATHY_SPLITS):
        sentences = [
            {"tokens": ["a", "dog", str(k)], "raw": f"A dog, {k}: {n}!", "imgid": k, "sentid": 2 * k + n}
            for n in range(2)
        ]
        image = {"sentids": [2 * k, 2 * k + 1], "imgid": k, "sentences": sentences, "split": split}
        image |= {"filename": f"{k}.jpg"} | ({"filepath": "val2014", "cocoid": 900 + k} if coco else {})
        images.append(image)
    return {"images": images, "dataset": "coco" if coco else "flickr8k"}


def write(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="\n")
    return path


def names(photographs: list[Photograph]) -> list[str]:
    return [photograph.file_name for photograph in photographs]


TOKEN = "".join(f"{k}.jpg#{n}\tA dog , {k} {n} .\n" for k in range(4) for n in range(2))
CSV = 'image,caption\n0.jpg,A dog runs .\n0.jpg,"A dog , a ""big"" one"\n1.jpg,"A cat\nsleeps"\n2.jpg,A bird\n'


# Karpathy's


@pytest.mark.parametrize("name", ["dataset_flickr8k.json", "anything.txt"])
def test_karpathys_file_has_its_own_splits(name, tmp_path):
    """restval is part of train; the name of the file does not matter."""
    path = write(tmp_path / name, karpathy())
    splits = read_splits([str(path)], 0.1, 0)
    assert {split: names(photographs) for split, photographs in splits.items()} == {
        "train": ["0.jpg", "1.jpg", "4.jpg"],
        "val": ["2.jpg"],
        "test": ["3.jpg"],
    }
    assert splits["val"][0].captions == [(4, "A dog, 2: 0!"), (5, "A dog, 2: 1!")]
    assert splits["val"][0].id == 2


def test_karpathys_file_of_coco_has_its_folders_and_ids(tmp_path):
    path = write(tmp_path / "dataset_coco.json", karpathy(coco=True))
    (photograph,) = read_splits([str(path)], 0.1, 0)["val"]
    assert (photograph.file_name, photograph.id) == ("val2014/2.jpg", 902)


def test_one_split_of_karpathys_file_may_be_selected(tmp_path):
    path = write(tmp_path / "dataset.json", karpathy())
    splits = read_splits([f"train={path}", f"val={path}"], 0.1, 0)
    assert {split: names(photographs) for split, photographs in splits.items()} == {
        "train": ["0.jpg", "1.jpg", "4.jpg"],
        "val": ["2.jpg"],
    }
    with pytest.raises(DataError, match=r"dataset\.json: has no photograph of the split dev; it has train, val, test"):
        read_splits([f"dev={path}"], 0.1, 0)
    assert names(of_split(read(path), "test", path)) == ["3.jpg"]


BAD_KARPATHY: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "an unknown split": (lambda i: i[2].update(split="dev"), "images[2].split is 'dev', not one of train, rest"),
    "no name": (lambda i: i[1].pop("filename"), "images[1] has no filename: {"),
    "an invalid name": (lambda i: i[1].update(filename=7), "images[1].filename is 7, not a string"),
    "a name outside the folder": (
        lambda i: i[1].update(filepath="../x"),
        "images[1].filepath/filename is '../x/1.jpg', not",
    ),
    "an invalid id": (lambda i: i[3].update(imgid=None), "images[3].imgid is None, neither a number nor"),
    "invalid sentences": (lambda i: i[0].update(sentences="x"), "images[0].sentences is 'x', not a list"),
    "an invalid text": (lambda i: i[0]["sentences"][1].update(raw=3), "images[0].sentences[1].raw is 3, not"),
}


@pytest.mark.parametrize("kind", BAD_KARPATHY)
def test_a_fault_in_karpathys_file_is_named(kind, tmp_path):
    change, message = BAD_KARPATHY[kind]
    content = karpathy()
    change(content["images"])
    path = write(tmp_path / "dataset.json", content)
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert re.search("; (write it as Karpathy's files do|give the path relative to that folder)$", str(error.value))
    assert "\n" not in str(error.value)


# Flickr8k's


def test_a_token_file_is_split_by_its_lists(tmp_path, capsys):
    """A list has the split in its name, dev for val, or before it."""
    captions = write(tmp_path / "Flickr8k.token.txt", TOKEN)
    lists = [
        str(write(tmp_path / "Flickr_8k.trainImages.txt", "0.jpg\n2.jpg\n9.jpg\n")),
        str(write(tmp_path / "Flickr_8k.devImages.txt", "\ufeff1.jpg\r\n")),
    ]
    splits = read_splits([str(captions)], 0.1, 0, lists)
    assert {split: names(photographs) for split, photographs in splits.items()} == {
        "train": ["0.jpg", "2.jpg"],
        "val": ["1.jpg"],
    }
    assert splits["train"][1].captions == [(5, "A dog , 2 0 ."), (6, "A dog , 2 1 .")]
    missing, unlisted = capsys.readouterr().err.splitlines()
    assert missing == f"left out  1 of the names in {lists[0]}: without captions, first '9.jpg'"
    assert unlisted == f"left out  1 of the photographs of {captions}: in no list, first '3.jpg'"
    assert [*read_splits([str(captions)], 0.1, 0, [f"train={lists[1]}", f"mine={lists[0]}"])] == ["train", "mine"]


def test_names_in_a_list_are_compared_without_unicode_form_and_outer_blanks(tmp_path, capsys):
    captions = "".join(f"{name}#0\tA dog\n" for name in ("caf\u00e9.jpg", "b\x85.jpg", "c\u2028.jpg", "d.jpg"))
    lists = [
        str(write(tmp_path / "train", "./cafe\u0301.jpg \r\nb\x85.jpg\n\nc\u2028.jpg\n")),
        str(write(tmp_path / "val", "d.jpg\nB\x85.JPG\n\n  \u3000\n")),
    ]
    splits = read_splits([str(write(tmp_path / "a.token", captions))], 0.1, 0, lists)
    assert names(splits["train"]) == ["caf\u00e9.jpg", "b\x85.jpg", "c\u2028.jpg"]
    assert names(splits["val"]) == ["d.jpg"]
    (line,) = capsys.readouterr().err.split("\n")[:-1]
    assert line.endswith("first 'B\\x85.JPG'; the nearest that has captions is 'b\\x85.jpg'")
    with pytest.raises(DataError, match=r"the first line is 'B.*JPG'; the nearest that has captions is 'b"):
        read_splits([str(tmp_path / "a.token")], 0.1, 0, [str(write(tmp_path / "train", "B\x85.JPG\n"))])


# Kaggle's


def test_captions_of_a_csv_file(tmp_path):
    first, second, third = read(write(tmp_path / "captions.txt", CSV))
    assert names([first, second, third]) == ["0.jpg", "1.jpg", "2.jpg"]
    assert [text for _, text in first.captions] == ["A dog runs .", 'A dog , a "big" one']
    assert second.captions[0][1] == "A cat\nsleeps"
    assert len({number for photograph in (first, second, third) for number, _ in photograph.captions}) == 4
    assert [first.id, second.id, third.id] == [0, 1, 2]


def in_format(kind: str, name: str) -> str:
    """A file of captions with one photograph."""
    if kind == "token":
        return f"{name}#0\tA dog\n"
    if kind == "csv":
        return f'image,caption\n"{name}",A dog\n'
    image = {"filename": name, "split": "train", "imgid": 0, "sentences": [{"raw": "A dog", "sentid": 0}]}
    return json.dumps({"images": [image]})


@pytest.mark.parametrize("kind", ["karpathy", "token", "csv"])
def test_a_name_may_hold_what_a_file_system_allows(kind, tmp_path):
    name = " at\u202f10 \x85 \u2028 \x0b \x1c \u200d, \u90fd#1.jpg "
    (photograph,) = read(write(tmp_path / "captions", in_format(kind, name)))
    assert photograph.file_name == name


@pytest.mark.parametrize("content", [TOKEN, CSV, json.dumps(karpathy()), '{"images": [], "annotations": []}'])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_windows_line_endings_change_nothing(content, end, tmp_path):
    plain = read(write(tmp_path / "a", content.replace("\nsleeps", " sleeps")))
    changed = "\ufeff" + content.replace("\nsleeps", " sleeps").replace("\n", end)
    assert read(write(tmp_path / "b", changed.encode("utf-8"))) == plain


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TOKEN + "4.jpg A dog\n", "line 9 is '4.jpg A dog', not name#number, tab, caption"),
        (TOKEN + "1.jpg#1\tagain\n", "line 9 is of '1.jpg#1', as line 4; remove one"),
        (TOKEN + "../4.jpg#0\tA dog\n", "line 9: the name is '../4.jpg', not a name below the folder of photographs"),
        (TOKEN + "4.jpg#0\tA \x07dog\n", "line 9: the caption is 'A \\x07dog'; '\\x07' is not a text character"),
        (CSV + "3.jpg,A dog, running\n", "line 7 has 3 fields, not image,caption; put quotes around a caption"),
        (CSV + ',"A dog"\n', "line 7: the name is '', not a name; write the name of a photograph"),
        (CSV + '3.jpg,"A dog\n', "line 7 is not CSV: unexpected end of data; mend its quotes"),
        (CSV + '3.jpg,"' + 140_000 * "x" + '"\n', "line 7 is not CSV: field larger than field limit"),
        ("image|caption\n0.jpg|A dog\n", "begins with 'image|caption', in an unknown format; the formats are"),
        ("", "is empty, in an unknown format; the formats are COCO's annotations, Karpathy's dataset_*.json"),
        ("x" * 200_000, f"begins with '{76 * 'x'}..., in an unknown format"),
        ("{", "not JSON in UTF-8: Expecting property name enclosed in double quotes: line 1"),
    ],
)  # fmt: skip
def test_a_fault_in_a_text_file_is_named_with_its_line(content, message, tmp_path):
    path = write(tmp_path / "captions.txt", content)
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert ";" in str(error.value), "it does not name a remedy"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "lists", "message"),
    [
        (["token", "csv"], ["train.txt"], "--splits divides one file of --annotations, not 2"),
        (["karpathy"], ["train.txt"], "karpathy: contains splits itself; omit --splits"),
        (["token"], ["some.txt"], "some.txt: no split in its name; write train="),
        (["token"], ["train.txt", "train=some.txt"], "some.txt: a second list of the split train"),
        (["token"], ["train.txt", "test=others.txt"], "others.txt: names no photograph of .*token; the first line is"),
        (["token"], ["train=none.txt"], "none.txt: cannot be read: No such file .*; name a list of photographs' names"),
        (["token"], ["val.txt"], "no file of the split train"),
        (["karpathy", "csv"], [], "csv: no split in its name"),
    ],
)  # fmt: skip
def test_invalid_lists_are_refused(files, lists, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {"token": TOKEN, "csv": CSV, "karpathy": karpathy(), "others.txt": "x.jpg\n"}.items():
        write(Path(name), content)
    for name in ("train.txt", "val.txt", "some.txt"):
        write(Path(name), "0.jpg\n1.jpg\n")
    with pytest.raises(DataError, match=message):
        read_splits(files, 0.1, 0, lists)


@given(content=st.sampled_from([TOKEN, CSV, json.dumps(karpathy())]), data=st.data())
def test_damage_is_read_or_refused_in_one_line(content, data, tmp_path_factory):
    changed = bytearray(content.encode("utf-8"))
    for place in data.draw(st.lists(st.integers(0, len(changed) - 1), min_size=1, max_size=4)):
        changed[place] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp() / "damaged", bytes(changed[: data.draw(st.integers(0, 2000))]))
    message = str(path)
    try:
        read(path)
    except DataError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert "\n" not in message


# Where they are


def test_photographs_are_found_without_karpathys_folders(tmp_path):
    """A file that two photographs would share belongs to neither."""
    splits = read_splits([str(write(tmp_path / "dataset_coco.json", karpathy(coco=True)))], 0.1, 0)
    folder = tmp_path / "photographs"
    folder.mkdir()
    for k in range(5):
        (folder / f"{k}.jpg").touch()
    located = locate(splits, {None: folder})
    assert [p.path for p in located["train"]] == [folder / f"{k}.jpg" for k in (0, 1, 4)]
    assert names(located["val"]) == ["2.jpg"]
    first, *others = splits["train"]
    splits["train"] = [first, replace(others[0], file_name="train2014/0.jpg"), others[1]]
    assert [p.path for p in locate(splits, {None: folder})["train"]] == [None, None, folder / "4.jpg"]


# A folder a split


def test_each_split_may_have_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named_folders(["photos"]) == {None: Path("photos")}
    assert named_folders(["train=a", "val=b/c"]) == {"train": Path("a"), "val": Path("b/c")}
    assert named_folders(["x/train2014", "x/val2014"]) == {"train": Path("x/train2014"), "val": Path("x/val2014")}
    (tmp_path / "a=b").mkdir()
    assert named_folders(["a=b"]) == {None: Path("a=b")}
    with pytest.raises(DataError, match="--images x: each of several folders needs a split; write train=x"):
        named_folders(["train=a", "x"])
    with pytest.raises(DataError, match="--images train=b: a second folder of the split train"):
        named_folders(["train=a", "train=b"])


def test_one_name_in_two_folders_is_two_photographs(tmp_path):
    splits = read_splits([f"{split}={write(tmp_path / split, CSV)}" for split in ("train", "val")], 0.1, 0)
    folders = {split: tmp_path / f"photographs of {split}" for split in splits}
    for folder in folders.values():
        folder.mkdir()
        (folder / "0.jpg").touch()
    located = locate(splits, folders)
    assert {split: located[split][0].path for split in splits} == {s: f / "0.jpg" for s, f in folders.items()}


@pytest.mark.skipif(sys.platform == "win32", reason="links take a privilege on Windows")
@pytest.mark.parametrize("images", [["a"], ["train=a", "val=a"], ["train=a", "val=link"], ["train=a", "val=a/.."]])
def test_a_photograph_in_two_splits_is_refused(images, tmp_path, monkeypatch):
    """With two files of captions or two lists, however the folder is written."""
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("a/0.jpg").touch()
    Path("link").symlink_to("a", target_is_directory=True)
    of_two = read_splits([f"{split}={write(Path(f'{split}.csv'), CSV)}" for split in ("train", "val")], 0.1, 0)
    lists = [str(write(Path(name), "0.jpg\n1.jpg\n")) for name in ("train.txt", "val.txt")]
    for splits in (of_two, read_splits([str(write(Path("token"), TOKEN))], 0.1, 0, lists)):
        with pytest.raises(DataError, match=r"'(a/)?0\.jpg' is in train and in val: .* --images train=DIR val=DIR"):
            locate(splits, named_folders(images))


def test_folders_match_the_splits(tmp_path):
    splits = read_splits([f"train={write(tmp_path / 'a', CSV)}", f"val={write(tmp_path / 'b', TOKEN)}"], 0.1, 0)
    with pytest.raises(DataError, match="--images names no folder of the split val; the splits are train, val"):
        locate(splits, {"train": tmp_path})
    with pytest.raises(
        DataError, match="--images names a folder for the unknown split test; the splits are train, val"
    ):
        locate(splits, {"train": tmp_path, "val": tmp_path, "test": tmp_path})
    with pytest.raises(DataError, match="--images names no folder of the split train; the splits are train, val"):
        locate(splits, {"b": tmp_path, "a": tmp_path})  # of several the first
