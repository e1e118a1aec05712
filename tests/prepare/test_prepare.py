"""Photographs and captions into a data directory: what is written, and what is omitted."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.data_directory import contents
from tests.helpers.photo_folder import SENTENCES, SPLITS, Photos, error_of, stored
from tests.helpers.small_encoder import CHANNELS
from torch_caption.__main__ import main
from torch_caption.data.dataset import open_data
from torch_caption.data.projection import Projection
from torch_caption.data.vocabulary import SPECIAL, Vocabulary
from torch_caption.encoders import pca
from torch_caption.encoders.encoder import build
from torch_caption.io.images import load_image
from torch_caption.prepare import encoding, prepare

# What is written


def test_the_directory_has_cs231ns_layout(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(photos.arguments(out)) == 0
    output = capsys.readouterr().out
    data = open_data(out)
    assert {path.name for path in out.iterdir()} == {
        "coco2014_captions.h5", "coco2014_vocab.json", "manifest.json",
        *(f"{s}2014_{kind}" for s in SPLITS for kind in ("vgg16_fc7.h5", "images.txt", "urls.txt")),
        *(f"captions_{s}2014.json" for s in SPLITS),
    }  # fmt: skip
    for split, count in SPLITS.items():
        assert data[split].num_images == count
        assert data[split].feature_dim == CHANNELS
        assert len(data[split]) == 3 * count  # without the long sentence
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
    assert "train     13 photographs, 52 captions" in output
    assert "18 of more than 15 words left out, 0 without words" in output


def test_features_are_those_of_the_encoder(photos, tmp_path):
    prepare.prepare(photos.config(tmp_path / "out", grid=True, grid_dtype="float32"))
    encoder = build("resnet18", "random", seed=0)
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
def test_projections_are_fitted_on_train(photos, tmp_path, enough, monkeypatch):
    """That of the grids on the photographs stored for it: all, or those of the batches up to 6."""
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


def test_the_manifest_records_how_features_were_made(photos, tmp_path):
    prepare.prepare(photos.config(tmp_path / "out", pca=4, grid=True))
    data = open_data(tmp_path / "out")
    manifest, encoder = data.manifest, build("resnet18", "random", seed=0)
    assert {key: manifest[key] for key in encoder.recipe} == encoder.recipe
    assert manifest["projections"] == {"vector": "pca.npz"}
    assert manifest["grid_shape"] == [CHANNELS, 7, 7]
    assert manifest["images"] == "../images"  # both may be moved together
    assert manifest["annotations"] == ["captions_train.json", "captions_val.json"]
    assert data["train"].image_path(0) == photos.images / data["train"].file_name(0)
    assert prepare._relative_to(Path("/data/out"), Path("/photographs")) == str(Path("/photographs").resolve())
    assert manifest["versions"]["torch"] == torch.__version__
    assert data.recipe["features"] == "vgg16_fc7_pca"
    assert data.recipe["projection"]["components"].shape == (CHANNELS, 4)
    assert "projection" not in open_data(tmp_path / "out", pca=False).recipe


def test_captions_are_kept_unchanged_in_cocos_format(photos, tmp_path):
    prepare.prepare(photos.config(tmp_path / "out"))
    kept = json.loads((tmp_path / "out" / "captions_val2014.json").read_text(encoding="utf-8"))
    assert [image["id"] for image in kept["images"]] == [100, 101, 102, 103, 104]
    assert kept["annotations"][3] == {"id": 3, "image_id": 100, "caption": SENTENCES[3]}
    assert len(kept["annotations"]) == 4 * 5
    assert (kept["info"], kept["licenses"], kept["type"]) == ({}, [], "captions")  # required by pycocotools < 2.0.11


def test_lists_define_the_splits_of_one_file(photos, tmp_path):
    captions, lists = "", []
    for split, count in SPLITS.items():
        names = [f"{split}_{k}.png" for k in range(count)]
        captions += "".join(f"{name}#{n}\tA dog runs.\n" for name in names for n in range(2))
        lists.append(tmp_path / f"{split}.txt")
        lists[-1].write_text("\n".join(names), encoding="utf-8")
    (tmp_path / "captions").write_text(captions, encoding="utf-8")
    annotations = (str(tmp_path / "captions"),)
    prepare.prepare(photos.config(tmp_path / "out", annotations=annotations, splits=tuple(map(str, lists))))
    data = open_data(tmp_path / "out")
    assert {name: split.num_images for name, split in data.splits.items()} == SPLITS
    assert data["val"].references(4) == ["a dog runs"] * 2


def test_a_given_vocabulary(photos, tmp_path):
    vocabulary = Vocabulary(("a", "<UNK>", "<END>", "<START>", "<NULL>", "dog"))  # <NULL> is not 0
    vocabulary.save(tmp_path / "words.json")
    prepare.prepare(photos.config(tmp_path / "out", vocabulary=tmp_path / "words.json", max_words=3))
    data = open_data(tmp_path / "out")
    assert data.vocabulary == vocabulary
    assert data["val"].references(0) == ["a dog <UNK>", "a dog <UNK>"]
    assert data["val"].captions[0].tolist() == [3, 0, 5, 1, 2]
    assert data["val"].captions.shape == (10, 5)


# Tokens

CHINESE = ("一只狗在草地上奔跑。", "狗在草地上跑", "小狗奔跑")


def replace_captions(photos: Photos, captions: Sequence[str]) -> None:
    """Give every photograph these captions."""
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
def test_captions_are_split_by_the_chosen_tokenizer(tokenizer, captions, words, photos, tmp_path, capsys):
    replace_captions(photos, captions)
    assert main(photos.arguments(tmp_path / "out", "--tokenizer", tokenizer)) == 0
    assert "warning" not in capsys.readouterr().err
    data = open_data(tmp_path / "out")
    words = [unicodedata.normalize("NFC", text) for text in words]
    assert data["val"].references(0) == words
    assert {*data.vocabulary.words} == {*SPECIAL, *" ".join(words).split()}
    assert data.manifest["tokenizer"] == data["train"].tokenizer == tokenizer
    other = "words" if tokenizer != "words" else "whitespace"
    assert "data of other settings" in error_of(photos.arguments(tmp_path / "out", "--tokenizer", other), capsys)


@pytest.mark.parametrize(("captions", "count"), [(CHINESE, 54), (["a dog", "สุนัขวิ่งบนหญ้า"], 18)])
def test_a_script_without_blanks_is_a_warning(captions, count, photos, tmp_path, capsys):
    replace_captions(photos, captions)
    assert main(photos.arguments(tmp_path / "out")) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {count} of {18 * len(captions)} captions are mostly in a script without blanks")
    assert "--tokenizer characters" in line
    assert "--tokenizer whitespace" in line


# What is omitted


def test_bad_photographs_are_reported_and_omitted(photos, tmp_path, capsys):
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
    output = capsys.readouterr()
    bad = {
        "train_1.png": "damaged", "train_6.png": "empty", "train_12.png": "a directory", "val_0.png": "not a picture",
        "val_4.png": "no such file",
    }  # fmt: skip
    lines = output.err.splitlines()
    assert len(lines) == len(bad)
    listed = (out / "skipped.txt").read_text(encoding="utf-8").splitlines()
    for line, entry, (name, reason) in zip(lines, listed, bad.items(), strict=True):
        assert line.startswith(f"left out  {name}: {reason}")
        assert entry.startswith(f"{name.split('_')[0]} {name}: {reason}")
    assert f"left out  5 photographs that cannot be read: {out / 'skipped.txt'}" in output.out
    data, before = open_data(out), open_data(whole)
    for split, omitted in (("train", [1, 6, 12]), ("val", [0, 4])):
        kept = [k for k in range(SPLITS[split]) if k not in omitted]
        assert data[split].num_images == len(kept)
        assert len(data[split]) == 3 * len(kept)
        for row, k in enumerate(kept):
            assert data[split].references(row)[2] == before[split].references(k)[2]
            assert data[split].image_path(row).name == f"{split}_{k}.png"
            np.testing.assert_allclose(data[split].features_of([row]), before[split].features_of([k]), atol=1e-4)
    assert json.loads((out / "manifest.json").read_text())["splits"]["val"] == {"photographs": 3, "unreadable": 2}


def test_a_truncated_jpeg_is_omitted_unless_it_is_allowed(photos, tmp_path, capsys):
    path = photos.images / "train_2.png"
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, "JPEG", quality=95)
    path.write_bytes(path.read_bytes()[:-60])
    assert main(photos.arguments(tmp_path / "without")) == 0
    assert "left out  train_2.png: damaged: image file is truncated" in capsys.readouterr().err
    assert open_data(tmp_path / "without")["train"].num_images == SPLITS["train"] - 1
    assert main(photos.arguments(tmp_path / "out", "--allow-truncated")) == 0
    assert capsys.readouterr().err == f"warning: {path}: truncated; the missing part is grey\n"
    data = open_data(tmp_path / "out")["train"]
    assert data.num_images == SPLITS["train"]
    encoder = build("resnet18", "random", seed=0)
    picture = load_image(path, truncated=lambda line: None)
    vector = encoder.encode(torch.stack([encoder.prepare(picture)])).vectors[0]
    torch.testing.assert_close(data.features_of([2])[0], vector, rtol=0, atol=1e-4 * float(vector.abs().max()))
    assert "other settings" in error_of(photos.arguments(tmp_path / "out"), capsys)


def test_an_unknown_encoder_is_refused_at_once(photos, tmp_path, capsys):
    args = photos.arguments(tmp_path / "out", "--encoder", "resnet9")
    assert "--encoder resnet9: choose one of efficientnet_lite0, " in error_of(args, capsys)


def test_the_nearest_name_is_suggested_for_a_missing_photograph(photos, tmp_path, capsys):
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
def test_a_folder_whose_name_is_not_unicode_is_refused_at_once(photos, tmp_path, capsys):
    folder = photos.images.rename(tmp_path / "caf\udce9")
    message = error_of([*photos.arguments(tmp_path / "out"), "--images", str(folder)], capsys)
    assert "'\\udce9' is not a text character; rename the folder" in message
    assert not (tmp_path / "out").exists()


def bad_annotation(photos: Photos) -> None:
    content = json.loads(photos.annotations["val"].read_text())
    content["annotations"][2]["image_id"] = 7777
    photos.annotations["val"].write_text(json.dumps(content))


def unreadable(photos: Photos) -> None:
    for path in photos.images.glob("val_*"):
        path.write_bytes(b"")


def other_data(photos: Photos) -> None:
    out = photos.images.parent / "out"
    out.mkdir()
    (out / "train2014_vgg16_fc7.h5").touch()


ERRORS: dict[str, tuple[list[str], str, Callable[[Photos], object] | None]] = {
    "no annotations": (["--annotations", "none_train.json"], "none_train.json: cannot be read: No such file", None),
    "a bad annotation": ([], "captions_val.json: annotations[2].image_id is 7777, which no image", bad_annotation),
    "no readable photograph": ([], "none of the 5 photographs of val can be read", unreadable),
    "no weights": (["--weights", "none.pt"], "none.pt: there is no such file of weights", None),
    "half a component": (["--pca", "2.5"], "--pca 2.5: give a number of components, or a fraction", None),
    "no grids to project": (["--grid-pca", "3"], "--grid-pca needs --grid", None),
    "rare words": (["--min-count", "999"], "--min-count 999: no word of train is so frequent", None),
    "no short captions": (
        ["--max-words", "1"],
        "no caption of train has 1 to 1 words; choose another --max-words",
        None,
    ),
    "no batch": (["--batch-size", "0"], "--batch-size must be at least 1, not 0", None),
    "a seed past 63 bits": (["--seed", str(2**63)], f"--seed must be at most {2**63 - 1}, not {2**63}", None),
    "no share": (["--val-share", "nan"], "--val-share must be above 0 and below 1, not nan", None),
    "other data": ([], "train2014_vgg16_fc7.h5: other data, which would be overwritten; name another", other_data),
    "a GPU": (["--device", "cuda"], "--device cuda: PyTorch finds no GPU here", None),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_are_one_line(kind, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    more, message, change = ERRORS[kind]
    if change:
        change(photos)
    assert message in error_of(photos.arguments(tmp_path / "out", *more), capsys)
    assert not (tmp_path / "out" / "coco2014_captions.h5").exists()


def test_missing_flags_are_named(capsys):
    assert error_of(["prepare", "--annotations", "a.json"], capsys).startswith("error: --images, --out required")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pca", "13"], "--pca 13: 13 rows of 24 numbers have at most 12 components"),
        (["--grid", "--grid-pca", "25"], "--grid-pca 25: 637 rows of 24 numbers have at most 24 components"),
    ],
)
def test_too_many_components_are_refused_before_the_first_photograph(
    photos, tmp_path, capsys, monkeypatch, flags, message
):
    monkeypatch.setattr(encoding.Encoding, "run", lambda *_: pytest.fail("encodes"))
    assert message in error_of(photos.arguments(tmp_path / "out", *flags), capsys)


def test_too_little_room_is_refused_at_once(photos, tmp_path, capsys, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    message = error_of(photos.arguments(tmp_path / "out", "--grid"), capsys)
    assert "bytes will be written, but 1,000 are free; free disk space" in message
