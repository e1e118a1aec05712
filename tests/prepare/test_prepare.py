"""Photographs and captions into a data directory: what is written, what is left out, and what a stop does."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from tests.helpers import small_encoder
from tests.helpers.small_encoder import CHANNELS
from torch_caption.__main__ import main
from torch_caption.data.dataset import open_data
from torch_caption.data.projection import Projection
from torch_caption.data.vocabulary import SPECIAL, Vocabulary
from torch_caption.encoders import pca
from torch_caption.encoders import torchvision_encoder as features
from torch_caption.io.images import load_image
from torch_caption.prepare import encoding, prepare
from torch_caption.prepare.prepare import PrepareConfig

SPLITS = {"train": 13, "val": 5}
SENTENCES = ("A dog runs.", "The brown dog, it runs fast!", "a dog", "a very long sentence about this dog " * 3)


@dataclass
class Photos:
    """Photographs and annotations."""

    images: Path
    annotations: dict[str, Path]

    def arguments(self, out: Path, *more: str) -> list[str]:
        files = [str(path) for path in self.annotations.values()]
        args = ["prepare", "--images", str(self.images), "--annotations", *files, "--out", str(out)]
        args += ["--encoder", "resnet18", "--weights", "random", "--min-count", "2", "--batch-size", "4"]
        return [*args, "--device", "cpu", *more]

    def config(self, out: Path, **changes: Any) -> PrepareConfig:
        config = PrepareConfig(
            images=(str(self.images),),
            annotations=tuple(str(path) for path in self.annotations.values()),
            out=out,
            encoder="resnet18",
            weights="random",
            min_count=2,
            batch_size=4,
            device="cpu",
        )
        return replace(config, **changes)


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    images = tmp_path / "images"
    images.mkdir()
    annotations = {}
    for number, (split, count) in enumerate(SPLITS.items()):
        entries, captions = [], []
        for k in range(count):
            identity = 100 * number + k
            entries.append({"id": identity, "file_name": f"{split}_{k}.png", "flickr_url": f"http://x.example/{k}"})
            texts = [f"{sentence} {k}" if place == 2 else sentence for place, sentence in enumerate(SENTENCES)]
            captions += [{"id": 4 * k + n, "image_id": identity, "caption": text} for n, text in enumerate(texts)]
            small = np.random.default_rng(identity).integers(0, 256, (6, 6, 3), np.uint8)
            Image.fromarray(small).resize((48, 40)).save(images / f"{split}_{k}.png")
        annotations[split] = tmp_path / f"captions_{split}.json"
        annotations[split].write_text(json.dumps({"images": entries, "annotations": captions}), encoding="utf-8")
    return Photos(images, annotations)


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "build", features.build)  # so that it comes back
        small_encoder.install()
        yield


def stored(path: Path, name: str = "features") -> np.ndarray:
    with h5py.File(path) as file:
        return file[name][()]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def mistake(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(args) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    return last


# What is written


def test_the_directory_is_in_cs231ns_layout(photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(photos.arguments(out)) == 0
    told = capsys.readouterr().out
    data = open_data(out)
    assert {path.name for path in out.iterdir()} == {
        "coco2014_captions.h5", "coco2014_vocab.json", "manifest.json",
        *(f"{s}2014_{kind}" for s in SPLITS for kind in ("vgg16_fc7.h5", "images.txt", "urls.txt")),
        *(f"captions_{s}2014.json" for s in SPLITS),
    }  # fmt: skip
    for split, count in SPLITS.items():
        assert data[split].num_images == count
        assert data[split].feature_dim == CHANNELS
        assert len(data[split]) == 3 * count  # the long sentence is left out
        assert data[split].captions.shape[1] == 17
        assert data[split].references(2)[:2] == ["a dog runs", "the brown dog it runs fast"]
        assert data[split].image_path(2) == photos.images / f"{split}_2.png"
        assert data[split].image_name(2) == "http://x.example/2"
        assert stored(out / "coco2014_captions.h5", f"{split}_captions").dtype == np.int32
    files = contents(out)
    del files["manifest.json"]
    assert {name: mark["sha256"] for name, mark in data.manifest["files"].items()} == files
    assert data.vocabulary.words[:4] == SPECIAL
    assert "13" not in data.vocabulary.words  # seen once
    assert "train     13 photographs, 52 captions" in told
    assert "18 of more than 15 words left out, 0 without words" in told


def test_features_are_the_encoders(photos: Photos, tmp_path: Path) -> None:
    prepare.prepare(photos.config(tmp_path / "out", grid=True, grid_dtype="float32"))
    encoder = features.build("resnet18", "random", seed=0)
    for split, count in SPLITS.items():
        vectors = stored(tmp_path / "out" / f"{split}2014_vgg16_fc7.h5")
        grids = stored(tmp_path / "out" / f"{split}2014_grid.h5")
        assert (vectors.dtype, grids.dtype) == (np.float32, np.float32)
        for row in (0, 3, count - 1):
            x = torch.stack([encoder.prepare(load_image(photos.images / f"{split}_{row}.png"))])
            encoded = encoder.encode(x)
            scale = float(encoded.grids.abs().max())
            np.testing.assert_allclose(vectors[row], encoded.vectors[0], rtol=0, atol=1e-5 * scale)
            np.testing.assert_allclose(grids[row], encoded.grids[0], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("enough", [None, 6])
def test_projections_are_fitted_on_train(
    photos: Photos, tmp_path: Path, enough: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grids' on as many of its photographs as are kept for it: all, or those of the batches that make 6."""
    if enough:
        monkeypatch.setattr(encoding, "FIT_BYTES", enough * 4 * CHANNELS * 7 * 7)
    whole, out = tmp_path / "whole", tmp_path / "out"
    prepare.prepare(photos.config(whole, grid=True, grid_dtype="float32"))
    prepare.prepare(photos.config(out, pca=4, grid=True, grid_pca=0.8))
    fitted = SPLITS["train"] if enough is None else 8
    for name, kind, size, used in (("pca", "vgg16_fc7", 4, 13), ("grid_pca", "grid", 0.8, fitted)):
        x = torch.from_numpy(stored(whole / f"train2014_{kind}.h5")[:used])
        moments = pca.Moments(CHANNELS)
        moments.update(pca.positions(x) if x.dim() == 4 else x)
        expected, found = pca.fit(moments, size, "--pca"), Projection.load(out / f"{name}.npz")
        torch.testing.assert_close(found.components, expected.components, rtol=0, atol=1e-3)
        assert found.share == pytest.approx(expected.share, abs=1e-4)
        for split in SPLITS:
            y = stored(out / f"{split}2014_{kind}{'_pca' if name == 'pca' else ''}.h5")
            full = torch.from_numpy(stored(whole / f"{split}2014_{kind}.h5"))
            scale = float(found(full).abs().max())
            assert y.dtype == (np.float32 if name == "pca" else np.float16)
            np.testing.assert_allclose(y, found(full), rtol=0, atol=(1e-5 if name == "pca" else 1e-3) * scale)
    assert np.array_equal(stored(out / "val2014_vgg16_fc7.h5"), stored(whole / "val2014_vgg16_fc7.h5"))


def test_the_manifest_says_how(photos: Photos, tmp_path: Path) -> None:
    prepare.prepare(photos.config(tmp_path / "out", pca=4, grid=True))
    data = open_data(tmp_path / "out")
    manifest, encoder = data.manifest, features.build("resnet18", "random", seed=0)
    assert {key: manifest[key] for key in encoder.recipe} == encoder.recipe
    assert manifest["projections"] == {"vector": "pca.npz"}
    assert manifest["grid_shape"] == [CHANNELS, 7, 7]
    assert manifest["images"] == "../images"  # both may be moved together, and nobody learns where they were
    assert manifest["annotations"] == ["captions_train.json", "captions_val.json"]
    assert data["train"].image_path(0) == photos.images / data["train"].file_name(0)
    assert prepare._relative_to(Path("/data/out"), Path("/photographs")) == str(Path("/photographs").resolve())
    assert manifest["versions"]["torch"] == torch.__version__
    assert data.recipe["features"] == "vgg16_fc7_pca"
    assert data.recipe["projection"]["components"].shape == (CHANNELS, 4)
    assert "projection" not in open_data(tmp_path / "out", pca=False).recipe


def test_captions_are_kept_as_they_were_written(photos: Photos, tmp_path: Path) -> None:
    prepare.prepare(photos.config(tmp_path / "out"))
    kept = json.loads((tmp_path / "out" / "captions_val2014.json").read_text(encoding="utf-8"))
    assert [image["id"] for image in kept["images"]] == [100, 101, 102, 103, 104]
    assert kept["annotations"][3] == {"id": 3, "image_id": 100, "caption": SENTENCES[3]}
    assert len(kept["annotations"]) == 4 * 5


def test_pycocotools_of_any_version_reads_them(photos: Photos, tmp_path: Path) -> None:
    """Those before 2.0.11 copy info without a look whether it is there."""
    prepare.prepare(photos.config(tmp_path / "out"))
    kept = json.loads((tmp_path / "out" / "captions_val2014.json").read_text(encoding="utf-8"))
    assert (kept["info"], kept["licenses"], kept["type"]) == ({}, [], "captions")


def test_a_folder_a_split(photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that both have is two photographs, and each split finds its own."""
    called = {"train": "learnt", "val": "held out"}
    for split in SPLITS:
        (photos.images / called[split]).mkdir()
        for path in photos.images.glob(f"{split}_*.png"):
            path.rename(photos.images / called[split] / path.name.removeprefix(f"{split}_"))
        text = photos.annotations[split].read_text(encoding="utf-8")
        photos.annotations[split].write_text(text.replace(f"{split}_", ""), encoding="utf-8")
    folders = [f"{split}={photos.images / called[split]}" for split in SPLITS]
    arguments = photos.arguments(tmp_path / "out")
    arguments[2:3] = folders
    told = mistake(photos.arguments(tmp_path / "out"), capsys)
    assert "contains '0.png' twice" in told
    assert "name the folder of each split, such as --images train=DIR" in told
    assert main(arguments) == 0
    data = open_data(tmp_path / "out")
    assert data.manifest["images"] == {split: f"../images/{called[split]}" for split in SPLITS}
    for split in SPLITS:
        assert [data[split].file_name(k) for k in range(4)] == [f"{k}.png" for k in range(4)]
        assert data[split].image_path(3) == photos.images / called[split] / "3.png"
    vectors = [data[split].features_of([3]) for split in SPLITS]
    assert not torch.equal(*vectors)
    arguments[2:4] = folders[:1]
    assert "--images names no folder of the split val; the splits are train, val" in mistake(arguments, capsys)
    arguments[2:3] = [*folders, "more=x"]
    assert "--images names a folder for the unknown split more" in mistake(arguments, capsys)


@pytest.mark.parametrize("kind", ["token", "csv", "karpathy"])
def test_captions_in_other_formats_give_the_same_data(kind: str, photos: Photos, tmp_path: Path) -> None:
    annotations = {split: json.loads(path.read_text(encoding="utf-8")) for split, path in photos.annotations.items()}
    texts: dict[str, list[tuple[str, str, list[str]]]] = {
        split: [
            (split, image["file_name"], [e["caption"] for e in content["annotations"] if e["image_id"] == image["id"]])
            for image in content["images"]
        ]
        for split, content in annotations.items()
    }
    every = [entry for entries in texts.values() for entry in entries]
    path, lists = tmp_path / "captions", []
    for split, entries in texts.items():
        lists.append(tmp_path / f"{split}.txt")
        lists[-1].write_text("".join(f"{name}\n" for _, name, _ in entries), encoding="utf-8")
    if kind == "token":
        lines = [f"{name}#{n}\t{text}\n" for _, name, captions in every for n, text in enumerate(captions)]
    elif kind == "csv":
        lines = ["image,caption\n", *(f'{name},"{text}"\n' for _, name, captions in every for text in captions)]
    else:
        images = [
            {
                "filename": name,
                "split": split,
                "imgid": k,
                "sentences": [{"raw": text, "sentid": n} for n, text in numbered],
            }
            for k, (split, name, captions) in enumerate(every)
            for numbered in [[*enumerate(captions, 9 * k)]]
        ]
        lines, lists = [json.dumps({"images": images, "dataset": "mine"})], []
    path.write_text("".join(lines), encoding="utf-8")
    prepare.prepare(photos.config(tmp_path / "out", annotations=(str(path),), splits=tuple(map(str, lists))))
    prepare.prepare(photos.config(tmp_path / "coco"))
    same = [f"{split}2014_{name}" for split in SPLITS for name in ("vgg16_fc7.h5", "images.txt")]
    found, expected = contents(tmp_path / "out"), contents(tmp_path / "coco")
    for name in ["coco2014_captions.h5", "coco2014_vocab.json", *same]:
        assert found[name] == expected[name]


def test_a_given_vocabulary(photos: Photos, tmp_path: Path) -> None:
    vocabulary = Vocabulary(("a", "<UNK>", "<END>", "<START>", "<NULL>", "dog"))  # <NULL> is not 0
    vocabulary.save(tmp_path / "words.json")
    prepare.prepare(photos.config(tmp_path / "out", vocabulary=tmp_path / "words.json", max_words=3))
    data = open_data(tmp_path / "out")
    assert data.vocabulary == vocabulary
    assert data["val"].references(0) == ["a dog <UNK>", "a dog <UNK>"]
    assert data["val"].captions[0].tolist() == [3, 0, 5, 1, 2]
    assert data["val"].captions.shape == (10, 5)


# Of every script

CHINESE = ("一只狗在草地上奔跑。", "狗在草地上跑", "小狗奔跑")


def said(photos: Photos, captions: Sequence[str]) -> None:
    """Let every photograph have these captions."""
    for path in photos.annotations.values():
        content = json.loads(path.read_text(encoding="utf-8"))
        identities = [image["id"] for image in content["images"]]
        pairs = [(identity, text) for identity in identities for text in captions]
        content["annotations"] = [
            {"id": k, "image_id": image, "caption": text} for k, (image, text) in enumerate(pairs)
        ]
        path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("tokenizer", "captions", "words"),
    [
        ("characters", CHINESE, ["一 只 狗 在 草 地 上 奔 跑", "狗 在 草 地 上 跑", "小 狗 奔 跑"]),
        ("whitespace", ["一只 狗 在 草地 上 。", "A Dog's 狗"], ["一只 狗 在 草地 上 。", "A Dog's 狗"]),
        ("words", ["एक कुत्ता दौड़ रहा है।", "A dog's day."], ["एक कुत्ता दौड़ रहा है", "a dog 's day"]),
    ],
)
def test_captions_are_split_as_asked_for(
    tokenizer: str, captions: Sequence[str], words: list[str], photos: Photos, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    said(photos, captions)
    assert main(photos.arguments(tmp_path / "out", "--tokenizer", tokenizer)) == 0
    assert "warning" not in capsys.readouterr().err
    data = open_data(tmp_path / "out")
    words = [unicodedata.normalize("NFC", text) for text in words]
    assert data["val"].references(0) == words
    assert {*data.vocabulary.words} == {*SPECIAL, *" ".join(words).split()}
    assert data.manifest["tokenizer"] == data["train"].tokenizer == tokenizer
    other = "words" if tokenizer != "words" else "whitespace"
    assert "data of other settings" in mistake(photos.arguments(tmp_path / "out", "--tokenizer", other), capsys)


@pytest.mark.parametrize(("captions", "count"), [(CHINESE, 54), (["a dog", "สุนัขวิ่งบนหญ้า"], 18)])
def test_words_of_a_script_without_blanks_are_warned_of(
    captions: Sequence[str], count: int, photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(photos, captions)
    assert main(photos.arguments(tmp_path / "out")) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {count} of {18 * len(captions)} captions are mostly in a script without blanks")
    assert "--tokenizer characters" in line
    assert "--tokenizer whitespace" in line


def test_a_directory_of_before_is_of_words(photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its manifest names no tokenizer, and its settings are those of words."""
    prepare.prepare(photos.config(tmp_path / "out"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    del manifest["tokenizer"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert open_data(tmp_path / "out")["val"].tokenizer == "words"
    assert main(photos.arguments(tmp_path / "out")) == 0
    assert "is complete: nothing to do" in capsys.readouterr().out


def test_an_unknown_tokenizer_in_a_manifest(photos: Photos, tmp_path: Path) -> None:
    prepare.prepare(photos.config(tmp_path / "out"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": "bpe"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest\.json: tokenizer is 'bpe', not one of words, characters, whitesp"):
        open_data(tmp_path / "out")


def test_one_file_is_parted(photos: Photos, tmp_path: Path) -> None:
    config = photos.config(tmp_path / "out", annotations=(str(photos.annotations["train"]),), val_share=0.3)
    prepare.prepare(config)
    data = open_data(tmp_path / "out")
    assert {name: split.num_images for name, split in data.splits.items()} == {"train": 9, "val": 4}


# What is left out


def test_bad_photographs_are_told_and_left_out(
    photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    prepare.prepare(photos.config(whole))
    photo = (photos.images / "train_0.png").read_bytes()
    (photos.images / "train_1.png").write_bytes(photo[:-40])
    (photos.images / "train_6.png").write_bytes(b"")
    (photos.images / "val_0.png").write_text("a dog", encoding="utf-8")
    (photos.images / "val_4.png").unlink()
    (photos.images / "train_12.png").unlink()
    (photos.images / "train_12.png").mkdir()
    capsys.readouterr()
    out = tmp_path / "out"
    assert main(photos.arguments(out)) == 0
    told = capsys.readouterr()
    bad = {
        "train_1.png": "damaged", "train_6.png": "empty", "train_12.png": "a directory", "val_0.png": "not a picture",
        "val_4.png": "no such file",
    }  # fmt: skip
    lines = told.err.splitlines()
    assert len(lines) == len(bad)
    listed = (out / "skipped.txt").read_text(encoding="utf-8").splitlines()
    for line, entry, (name, reason) in zip(lines, listed, bad.items(), strict=True):
        assert line.startswith(f"left out  {name}: {reason}")
        assert entry.startswith(f"{name.split('_')[0]} {name}: {reason}")
    assert f"left out  5 photographs that cannot be read: {out / 'skipped.txt'}" in told.out
    data, before = open_data(out), open_data(whole)
    for split, gone in (("train", [1, 6, 12]), ("val", [0, 4])):
        kept = [k for k in range(SPLITS[split]) if k not in gone]
        assert data[split].num_images == len(kept)
        assert len(data[split]) == 3 * len(kept)
        for row, k in enumerate(kept):
            assert data[split].references(row)[2] == before[split].references(k)[2]
            assert data[split].image_path(row).name == f"{split}_{k}.png"
            np.testing.assert_allclose(data[split].features_of([row]), before[split].features_of([k]), atol=1e-4)
    assert json.loads((out / "manifest.json").read_text())["splits"]["val"] == {"photographs": 3, "unreadable": 2}


def truncated(photos: Photos) -> Path:
    """The third photograph of train as a JPEG whose end is missing, under its old name."""
    path = photos.images / "train_2.png"
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, "JPEG", quality=95)
    path.write_bytes(path.read_bytes()[:-60])
    return path


def test_a_jpeg_whose_end_is_missing_is_left_out(
    photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncated(photos)
    assert main(photos.arguments(tmp_path / "out")) == 0
    assert "left out  train_2.png: damaged: image file is truncated" in capsys.readouterr().err
    assert open_data(tmp_path / "out")["train"].num_images == SPLITS["train"] - 1


def test_a_jpeg_whose_end_is_missing_is_taken_where_that_is_allowed(
    photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = truncated(photos)
    assert main(photos.arguments(tmp_path / "out", "--allow-truncated")) == 0
    assert capsys.readouterr().err == f"warning: {path}: truncated; the missing part is grey\n"
    data = open_data(tmp_path / "out")["train"]
    assert data.num_images == SPLITS["train"]
    encoder = features.build("resnet18", "random", seed=0)
    picture = load_image(path, truncated=lambda line: None)
    vector = encoder.encode(torch.stack([encoder.prepare(picture)])).vectors[0]
    torch.testing.assert_close(data.features_of([2])[0], vector, rtol=0, atol=1e-4 * float(vector.abs().max()))
    assert "other settings" in mistake(photos.arguments(tmp_path / "out"), capsys)


def test_the_nearest_is_named_where_a_photograph_is_missing(
    photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.images / "train_3.png").rename(photos.images / "train 3.PNG")
    (photos.images / "train_4.png").rename(photos.images / "TRAIN_4.PNG")
    if (photos.images / "train_4.png").exists():
        pytest.skip("a file system on which case is no matter")
    assert main(photos.arguments(tmp_path / "out")) == 0
    assert capsys.readouterr().err.splitlines() == [
        "left out  train_3.png: no such file",
        "left out  train_4.png: no such file; the nearest that exists is 'TRAIN_4.PNG'",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_folder_whose_name_is_no_text_is_refused_before_the_work(
    photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos.images.rename(tmp_path / "caf\udce9")
    message = mistake([*photos.arguments(tmp_path / "out"), "--images", str(folder)], capsys)
    assert "'\\udce9' is not a text character; rename the folder" in message
    assert not (tmp_path / "out").exists()


def test_nothing_that_can_be_read(photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in photos.images.glob("val_*"):
        path.write_bytes(b"")
    message = mistake(photos.arguments(tmp_path / "out"), capsys)
    assert message == "error: none of the 5 photographs of val can be read"
    assert not (tmp_path / "out" / "coco2014_captions.h5").exists()


def bad_annotation(photos: Photos) -> None:
    content = json.loads(photos.annotations["val"].read_text())
    content["annotations"][2]["image_id"] = 7777
    photos.annotations["val"].write_text(json.dumps(content))


def other_data(photos: Photos) -> None:
    out = photos.images.parent / "out"
    out.mkdir()
    (out / "train2014_vgg16_fc7.h5").touch()


MISTAKES: dict[str, tuple[list[str], str, Callable[[Photos], object] | None]] = {
    "no photographs": (["--images", "nowhere"], "nowhere: no such folder of photographs", None),
    "no annotations": (["--annotations", "none_train.json"], "none_train.json: cannot be read: No such file", None),
    "a bad annotation": ([], "captions_val.json: annotations[2].image_id is 7777, which no image", bad_annotation),
    "no weights": (["--weights", "none.pt"], "none.pt: there is no such file of weights", None),
    "too many components": (["--pca", "13"], "--pca 13: 13 rows of 24 numbers have at most 12 components", None),
    "too many components of grids": (
        ["--grid", "--grid-pca", "25"],
        "--grid-pca 25: 637 rows of 24 numbers have at most 24 components",
        None,
    ),
    "half a component": (["--pca", "2.5"], "--pca 2.5: give a number of components, or a fraction", None),
    "a fraction above 1": (["--grid", "--grid-pca", "-1"], "--grid-pca -1: give a number", None),
    "no grids to project": (["--grid-pca", "3"], "--grid-pca needs --grid", None),
    "rare words": (["--min-count", "999"], "--min-count 999: no word of train is so frequent", None),
    "no short captions": (
        ["--max-words", "1"],
        "no caption of train has 1 to 1 words; choose another --max-words",
        None,
    ),
    "no vocabulary": (["--vocabulary", "none.json"], "none.json: cannot be read", None),
    "no batch": (["--batch-size", "0"], "--batch-size must be at least 1, not 0", None),
    "captions wider than a row": (["--max-words", "999"], "--max-words must be at most 998, not 999", None),
    "a seed past 63 bits": (["--seed", str(2**63)], f"--seed must be at most {2**63 - 1}, not {2**63}", None),
    "no share": (["--val-share", "nan"], "--val-share must be above 0 and below 1, not nan", None),
    "an endless share": (["--val-share", "inf"], "--val-share must be above 0 and below 1, not inf", None),
    "other data": ([], "train2014_vgg16_fc7.h5: other data, which would be overwritten; name another", other_data),
    "a GPU": (["--device", "cuda"], "--device cuda: PyTorch finds no GPU here", None),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_line(
    kind: str, photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    more, message, change = MISTAKES[kind]
    if change:
        change(photos)
    assert message in mistake(photos.arguments(tmp_path / "out", *more), capsys)
    assert not (tmp_path / "out" / "coco2014_captions.h5").exists()


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(["prepare", "--annotations", "a.json"], capsys).startswith("error: --images, --out required")


@pytest.mark.parametrize("flags", [["--pca", "13"], ["--grid", "--grid-pca", "25"]])
def test_too_many_components_are_told_before_a_photograph_is_encoded(
    photos: Photos,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
) -> None:
    monkeypatch.setattr(encoding.Encoding, "run", lambda *_: pytest.fail("encodes"))
    assert "have at most" in mistake(photos.arguments(tmp_path / "out", *flags), capsys)


def test_a_full_disk_is_known_before(photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    message = mistake(photos.arguments(tmp_path / "out", "--grid"), capsys)
    assert "bytes will be written, but 1,000 are free; free disk space" in message


# After a stop


def test_ctrl_c(photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoding.Encoding, "run", stop)
    assert main(photos.arguments(tmp_path / "out")) == 130
    assert capsys.readouterr().err == "stopped: the same command continues\n"


def run_and_kill(args: list[str], out: Path, after: int) -> None:
    """Start the program, and kill it when it has put down that so many photographs are done."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.helpers import small_encoder; small_encoder.install()\n"
        "from torch_caption.__main__ import main; from torch_caption.prepare import encoding\n"
        "from torch_caption.encoders import torchvision_encoder as features; encoding.SAVE_SECONDS = 0\n"
        "encode = features.Encoder.encode\n"
        "import time\n"
        "features.Encoder.encode = lambda *a, **k: (time.sleep(0.2), encode(*a, **k))[1]\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            done = json.loads((out / ".preparing" / "progress.json").read_text())["done"]
        except (OSError, ValueError):
            done = {}
        if sum(done.values()) >= after:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_goes_on_to_the_same_files(photos: Photos, tmp_path: Path) -> None:
    (photos.images / "train_2.png").write_bytes(b"")
    more = ["--grid", "--pca", "3", "--grid-pca", "4"]
    assert main(photos.arguments(tmp_path / "whole", *more)) == 0
    out = tmp_path / "out"
    run_and_kill(photos.arguments(out, *more), out, 4)
    assert not (out / "coco2014_captions.h5").exists()
    with pytest.raises(ValueError, match="coco2014_vocab"):
        open_data(out)
    with (out / ".preparing" / "train_vectors").open("ab") as file:
        file.write(b"half a row")
    run_and_kill(photos.arguments(out, *more), out, 13)
    assert main(photos.arguments(out, *more)) == 0
    assert contents(out) == contents(tmp_path / "whole")


class Stop(Exception):
    """A death, as far as files go."""


STOPS = {
    "before the first batch": (encoding.Encoding, "_encode", 1),
    "after the first batches": (encoding.Encoding, "_save", 1),
    "before the PCA": (encoding.Encoding, "_fit", 1),
    "in the PCA": (pca, "fit", 1),
    "before the last split": (encoding.Encoding, "_encode", 2),
    "in the writing": (prepare, "write_hdf5", 3),
    "before the captions": (prepare, "_write_captions", 1),
    "in the moving": (Path, "replace", 0),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_anywhere_does_no_harm(
    stop: str, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "FIT_BYTES", 6 * 4 * CHANNELS * 7 * 7)
    config = photos.config(tmp_path / "out", pca=3, grid=True, grid_pca=4)
    prepare.prepare(replace(config, out=tmp_path / "whole"))
    owner, name, count = STOPS[stop]
    original, calls = getattr(owner, name), []

    def stopping(*args: Any, **options: Any) -> Any:
        moving = name == "replace" and args[0].parent.name == "ready" and args[1].parent == tmp_path / "out"
        calls.extend([1] if name != "replace" or moving else [])
        if len(calls) == (count or 4):
            raise Stop
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopping)
        patch.setattr(encoding, "SAVE_SECONDS", 0)
        with pytest.raises(Stop):
            prepare.prepare(config)
    assert not (tmp_path / "out" / "coco2014_captions.h5").exists()
    prepare.prepare(config)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_is_complete_is_left_alone(photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    out = tmp_path / "out"
    same = ["--pca", "3"]
    assert main(photos.arguments(out, *same)) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare.prepare(photos.config(out, pca=3)) == out  # from the command line it was 3.0
    (out / ".preparing").mkdir()  # of a run that died at its very end
    monkeypatch.setattr(prepare, "_make", None)
    assert main(photos.arguments(out, *same)) == 0
    assert f"{out} is complete: nothing to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    for change in (["--pca", "2"], ["--transform", "caffe"], ["--max-words", "9"], ["--min-count", "14"]):
        message = mistake(photos.arguments(out, *same, *change), capsys)
        assert message.endswith("contains other data, or data of other settings; name another --out")


def test_a_stopped_run_is_not_continued_with_other_settings(
    photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_write", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare.prepare(photos.config(tmp_path / "out"))
    message = mistake(photos.arguments(tmp_path / "out", "--grid"), capsys)
    assert "left by an interrupted run with other settings or photographs; repeat its command" in message
    (tmp_path / "out" / ".preparing" / "progress.json").write_text("{")
    assert "left by an interrupted run, and damaged" in mistake(photos.arguments(tmp_path / "out"), capsys)


def test_two_at_once(photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    messages: list[str] = []
    make = prepare._make

    def meanwhile(config: PrepareConfig, *args: Any) -> None:
        if not messages:
            messages.append("")
            messages.append(mistake(photos.arguments(tmp_path / "out"), capsys))
        make(config, *args)

    monkeypatch.setattr(prepare, "_make", meanwhile)
    assert main(photos.arguments(tmp_path / "out")) == 0
    assert messages[1].endswith("out: in use by another process")


def test_memory_is_bounded(photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features leave memory with their batch: none is alive two batches later."""
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []
    encode = features.Encoder.encode

    def watched(self: features.Encoder, *args: Any, **options: Any) -> features.Encoded:
        encoded = encode(self, *args, **options)
        alive.append(weakref.ref(encoded.grids))
        assert sum(ref() is not None for ref in alive) <= 2
        return encoded

    monkeypatch.setattr(features.Encoder, "encode", watched)
    prepare.prepare(photos.config(tmp_path / "out", grid=True, batch_size=2))
    assert len(alive) > 9


# cs231n's own


@pytest.fixture
def course(coco_directory: Callable[..., Path]) -> Path:
    """A directory like cs231n's, with the full features and the projected ones."""
    directory = coco_directory(images={"train": 60, "val": 9}, kinds=("",))
    generator = torch.Generator().manual_seed(0)
    moments = pca.Moments(3)
    moments.update(torch.randn(40, 3, generator=generator) + 4)
    basis = pca.fit(moments, 2, "--pca")
    for split in ("train", "val"):
        x = torch.from_numpy(stored(directory / f"{split}2014_vgg16_fc7.h5"))
        with h5py.File(directory / f"{split}2014_vgg16_fc7_pca.h5", "w") as file:
            file["features"] = basis(x).numpy()
    return directory


def test_recover_pca(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--recover-pca", str(course)]) == 0
    told = capsys.readouterr().out
    assert "3 -> 2, recovered from 60 rows" in told
    data = open_data(course)
    recipe = data.recipe
    assert (recipe["encoder"], recipe["features"]) == ("vgg16", "vgg16_fc7_pca")
    assert recipe["transform"]["channels"] == "BGR"
    assert recipe["weights"]["sha256"] is None
    projection = Projection(recipe["projection"]["mean"], recipe["projection"]["components"])
    x = torch.from_numpy(stored(course / "val2014_vgg16_fc7.h5"))
    torch.testing.assert_close(projection(x), data["val"].features_of(range(9)), rtol=0, atol=1e-5)
    assert mistake(["prepare", "--recover-pca", str(course)], capsys).endswith("has an encoder already, vgg16")


@pytest.mark.parametrize(("transform", "channels"), [("auto", "BGR"), ("caffe", "BGR"), ("imagenet", "RGB")])
def test_recover_pca_with_weights_sees_as_caffe_does(
    course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transform: str, channels: str
) -> None:
    """Of VGG-16 one layer here, for it is half a gigabyte; the transform is what is asked for."""
    build, weights = features.build, tmp_path / "caffe.pt"
    torch.save(features._model("resnet18").state_dict(), weights)
    monkeypatch.setattr(features, "build", lambda name, *args, **options: build("resnet18", *args, **options))
    assert main(["prepare", "--recover-pca", str(course), "--weights", str(weights), "--transform", transform]) == 0
    recipe = open_data(course).recipe
    assert recipe["transform"]["channels"] == channels
    assert recipe["weights"]["sha256"] == features.file_sha256(weights)


def test_recover_pca_needs_both_kinds(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (course / "val2014_vgg16_fc7.h5").unlink()
    assert "val2014_vgg16_fc7.h5: no such file" in mistake(["prepare", "--recover-pca", str(course)], capsys)
    assert not (course / "manifest.json").exists()


def test_every_setting_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["prepare", "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--images [SPLIT=]DIR", "--annotations [SPLIT=]FILE", "--recover-pca DIR", "--grid-pca K"):
        assert flag in out


def test_progress_goes_to_a_terminal_alone(photos: Photos, tmp_path: Path) -> None:
    code = "import sys; from torch_caption.__main__ import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *photos.arguments(tmp_path / "out", "--pca", "2")],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert tqdm.monitor_interval  # tqdm itself is not switched off
