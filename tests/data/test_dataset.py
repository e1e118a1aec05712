"""The loader of cs231n's file layout: what it reads, in which order, with how many workers."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from torch_caption.data import checks, dataset
from torch_caption.data.dataset import EpochBatches, batches, open_data
from torch_caption.errors import DataError

CAPTIONS = "coco2014_captions.h5"
VOCAB = "coco2014_vocab.json"
FEATURES = "train2014_vgg16_fc7_pca.h5"
GRID = "train2014_grid.h5"


def stored(directory: Path, file: str, name: str) -> np.ndarray:
    with h5py.File(directory / file, "r") as content:
        return content[name][()]


def epoch_of(loader, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader.order.set_epoch(epoch)
    return list(loader)


def assert_same(batches_, others):
    assert len(batches_) == len(others)
    for (features, captions), (other_features, other_captions) in zip(batches_, others, strict=True):
        assert torch.equal(features, other_features)
        assert torch.equal(captions, other_captions)


# What is read


@pytest.mark.parametrize("in_memory", ["auto", "yes", "no"])
def test_splits_captions_and_features_are_read(coco_directory, in_memory):
    directory = coco_directory()
    data = open_data(directory, in_memory=in_memory)
    assert list(data.splits) == ["train", "val"]
    assert len(data.vocabulary) == 10
    assert data.manifest == {}
    for name, images in (("train", 7), ("val", 4)):
        split = data[name]
        assert split.in_memory == (in_memory != "no")
        assert (split.name, split.num_images, split.feature_dim, len(split)) == (name, images, 3, 3 * images)
        assert (split.captions.dtype, split.image_idxs.dtype) == (torch.int64, torch.int64)
        features = stored(directory, f"{name}2014_vgg16_fc7_pca.h5", "features")
        for row, (feature, caption) in enumerate(split):
            assert feature.dtype == torch.float32
            assert np.array_equal(feature, features[split.image_idxs[row]])
            assert np.array_equal(caption, stored(directory, CAPTIONS, f"{name}_captions")[row])


@pytest.mark.parametrize("grid", [(), (4, 2), (5,)])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_features_of_any_dtype_are_read_in_any_order(coco_directory, grid, dtype, in_memory):
    directory = coco_directory(grid=grid, dtype=dtype)
    features = stored(directory, GRID if grid else FEATURES, "features").astype(np.float32)
    split = open_data(directory, grids=bool(grid), in_memory=in_memory)["train"]
    assert (split.num_images, split.feature_dim, split.grid) == (7, 3, grid)
    rows, images = [20, 3, 3, 0, 11, 20], [6, 0, 6, 2]
    batch, captions = split.__getitems__(rows)
    assert torch.equal(captions, split.captions[rows])
    for got, idxs in ((batch, split.image_idxs[rows]), (split.features_of(images), images)):
        assert got.dtype == torch.float32
        assert np.array_equal(got, features[idxs])
        assert (got.flatten(2).mT if grid else got).is_contiguous()  # as a projection of each position reads it
    assert split.features_of([]).shape == (0, 3, *grid)
    assert np.array_equal(split[-1][0], features[split.image_idxs[20]])


def test_a_row_an_image_or_a_split_outside_is_refused(coco_directory):
    data = open_data(coco_directory())
    split = data["train"]
    for row in (21, -22):
        with pytest.raises(IndexError, match=f"train: row {row} of 21"):
            split[row]
    for image in (7, -1, 10**30):
        for call in (lambda i: split.features_of([0, i]), split.references, split.image_path):
            with pytest.raises(DataError, match=f"train: there is no image {image}; choose one of 0 to 6"):
                call(image)
    with pytest.raises(DataError, match=r"data: no split 'test'; choose one of train, val"):
        data["test"]


def test_splits_are_in_the_order_train_val_test_others(coco_directory):
    images = {"novel": 2, "val": 3, "test": 4, "extra": 1, "train": 5}
    data = open_data(coco_directory(images))
    assert {name: split.num_images for name, split in data.splits.items()} == images
    assert list(data.splits) == ["train", "val", "test", "extra", "novel"]


def test_projected_features_are_preferred_where_every_split_has_them(coco_directory):
    directory = coco_directory(kinds=("", "_pca"))
    full = stored(directory, "train2014_vgg16_fc7.h5", "features")
    projected = stored(directory, FEATURES, "features")
    for pca, expected in ((None, projected), (True, projected), (False, full)):
        assert np.array_equal(open_data(directory, pca=pca)["train"].features_of(range(7)), expected)
    (directory / "val2014_vgg16_fc7_pca.h5").unlink()  # one kind for every split
    assert np.array_equal(open_data(directory)["train"].features_of(range(7)), full)
    with pytest.raises(DataError, match=r"val2014_vgg16_fc7_pca\.h5: no such file"):
        open_data(directory, pca=True)
    (directory / "train2014_vgg16_fc7.h5").unlink()
    with pytest.raises(DataError, match=r"val2014_vgg16_fc7_pca\.h5 or .*train2014_vgg16_fc7\.h5: no such file"):
        open_data(directory)


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u2", ">u8", "i1"])
def test_integers_of_any_type_become_int64(coco_directory, replace, dtype):
    directory = coco_directory()
    expected = open_data(directory)["train"]
    for name in ("train_captions", "train_image_idxs"):
        replace(directory / CAPTIONS, name, stored(directory, CAPTIONS, name).astype(dtype))
    split = open_data(directory)["train"]
    assert torch.equal(split.captions, expected.captions)
    assert torch.equal(split.image_idxs, expected.image_idxs)
    assert split.captions.dtype == split.image_idxs.dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, (7 + 4) * 3 * 4), ({"kinds": (), "grid": (2, 2), "dtype": "<f2"}, (7 + 4) * 3 * 4 * 2)],
    ids=["vectors in float32", "grids in float16"],
)
def test_features_within_the_limit_are_held_in_memory(coco_directory, monkeypatch, options, size):
    directory, grids = coco_directory(**options), "grid" in options
    monkeypatch.setattr(dataset, "IN_MEMORY_LIMIT", size)
    assert open_data(directory, grids=grids)["train"].in_memory
    monkeypatch.setattr(dataset, "IN_MEMORY_LIMIT", size - 1)
    assert not open_data(directory, grids=grids)["train"].in_memory
    assert open_data(directory, grids=grids, in_memory="yes")["train"].in_memory


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_features_are_read_in_blocks(coco_directory, monkeypatch, in_memory):
    directory = coco_directory({"train": 100})
    features = stored(directory, FEATURES, "features")
    sizes = []
    read = checks.read_rows
    monkeypatch.setattr(checks, "BLOCK_BYTES", 128)
    monkeypatch.setattr(checks, "read_rows", lambda *args: sizes.append(len(read(*args))) or read(*args))
    split = open_data(directory, in_memory=in_memory)["train"]
    assert sizes == [10] * 10  # 10 rows of 12 bytes
    assert np.array_equal(split.features_of(range(100)), features)


@pytest.mark.parametrize(("argument", "value"), [("in_memory", "maybe"), ("max_train", 0), ("max_train", -3)])
def test_invalid_arguments_are_refused(coco_directory, argument, value):
    with pytest.raises(ValueError, match=f"{argument} is '?{value}"):
        open_data(coco_directory(), **{argument: value})


def test_max_train_keeps_random_captions_in_order(coco_directory):
    directory = coco_directory({"train": 40, "val": 4})
    whole = open_data(directory)
    part = open_data(directory, max_train=30, seed=5)
    assert len(part["train"]) == 30
    assert len(part["val"]) == len(whole["val"])
    assert part["train"].num_images == 40
    rows = [tuple(row) for row in torch.cat([whole["train"].captions, whole["train"].image_idxs[:, None]], 1).tolist()]
    kept = torch.cat([part["train"].captions, part["train"].image_idxs[:, None]], 1).tolist()
    remaining = iter(rows)
    assert all(tuple(row) in remaining for row in kept)  # a subsequence: no row twice, in order
    other = open_data(directory, max_train=30, seed=6)["train"]
    assert not torch.equal(other.image_idxs, part["train"].image_idxs)
    assert torch.equal(open_data(directory, max_train=10**6)["train"].captions, whole["train"].captions)


# Grids


def test_grids_and_vectors_are_not_confused(coco_directory):
    vectors, grids = coco_directory(), coco_directory(kinds=(), grid=(2, 2), name="grids")
    with pytest.raises(DataError, match=r"train2014_grid\.h5: no such file; .* a grid of features for the cell "):
        open_data(vectors, grids=True)
    with pytest.raises(DataError, match=r"fc7\.h5: no such file; .*; the existing grids are for the cell atten"):
        open_data(grids)
    with pytest.raises(ValueError, match=r"^grids of features have no PCA; use pca with one vector"):
        open_data(grids, pca=True, grids=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((4, 3)), "val2014_grid.h5: features has the shape (4, 3); it must have 3 or 4 axes"),
        (np.ones((4, 3, 3, 3)), "has 3 columns at 3 x 3 positions, but train2014_grid.h5 has 3 columns at 2 x"),
        (np.ones((4, 5, 2, 2)), "has 5 columns at 2 x 2 positions, but train2014_grid.h5 has 3 columns at 2 x"),
    ],
)
def test_grids_of_another_shape_are_refused(coco_directory, replace, value, message):
    directory = coco_directory(grid=(2, 2))
    replace(directory / "val2014_grid.h5", "features", value)
    with pytest.raises(DataError, match=re.escape(message)):
        open_data(directory, grids=True)


def test_a_non_finite_position_is_named(coco_directory, replace, monkeypatch):
    monkeypatch.setattr(checks, "BLOCK_BYTES", 100)
    directory = coco_directory(grid=(2, 2), dtype="<f2")

    def spoil(features: np.ndarray) -> np.ndarray:
        features[5, 2, 0, 1] = np.inf
        return features

    replace(directory / GRID, "features", spoil)
    message = rf"{GRID}: features\[5, 2, 0, 1\] is inf, not a finite float32; extract the features again"
    with pytest.raises(DataError, match=message):
        open_data(directory, grids=True)


# Names and pictures


def test_references_are_the_captions_of_an_image(coco_directory):
    split = open_data(coco_directory())["train"]
    for image in range(7):
        rows = [row for row in range(21) if split.image_idxs[row] == image]
        assert split.references(image) == [split.vocabulary.decode(split.captions[row].tolist()) for row in rows]
        assert len(rows) == 3


def test_the_name_of_an_image_is_its_url_or_its_file(coco_directory):
    directory = coco_directory()
    assert open_data(directory)["train"].image_name(3) is None
    names = [f"{i}.jpg" for i in range(7)]
    (directory / "train2014_images.txt").write_text("\n".join(names), encoding="utf-8")  # no newline at the end
    assert [open_data(directory)["train"].image_name(i) for i in range(7)] == names
    urls = [f"http://host/é{i}.jpg" if i else "" for i in range(7)]
    (directory / "train2014_urls.txt").write_bytes("".join(f"{url}\r\n" for url in urls).encode())
    split = open_data(directory)["train"]
    assert [split.image_name(i) for i in range(7)] == [None, *urls[1:]]
    assert open_data(directory)["val"].image_name(0) is None


def test_a_picture_is_found_below_the_folder_of_pictures(coco_directory, tmp_path):
    directory = coco_directory()
    (directory / "images" / "below").mkdir(parents=True)
    (directory / "images" / "a.png").touch()
    (directory / "images" / "below" / "b.png").touch()
    (tmp_path / "secret.png").touch()
    names = ["a.png", "below/b.png", "missing.png", "below", "", "../images/a.png", "../../secret.png"]
    (directory / "train2014_images.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    split = open_data(directory)["train"]
    found = [split.image_path(i) for i in range(7)]
    assert found == [directory / "images" / "a.png", directory / "images" / "below" / "b.png", *[None] * 5]
    assert open_data(directory)["val"].image_path(0) is None
    assert [split.file_name(i) for i in range(7)] == [name or None for name in names]
    assert open_data(directory)["val"].file_name(0) is None


@pytest.mark.parametrize(
    "name",
    [
        "{root}/secret.png",
        "below/../../../secret.png",
        "below\\..\\..\\..\\secret.png",
        "\\\\host\\share\\x.png",
        "a\0.png",
        ".",
        "{long}",
        pytest.param("link.png", marks=pytest.mark.skipif(sys.platform == "win32", reason="links take a privilege")),
    ],
)
def test_no_picture_outside_the_folder_is_found(coco_directory, tmp_path, name):
    directory = coco_directory({"train": 1})
    (directory / "images" / "below").mkdir(parents=True)
    (tmp_path / "secret.png").touch()
    if name == "link.png":
        (directory / "images" / name).symlink_to(tmp_path / "secret.png")
    text = name.format(root=tmp_path, long="x" * 5000) + "\n"
    (directory / "train2014_images.txt").write_text(text, encoding="utf-8")
    assert open_data(directory)["train"].image_path(0) is None


def test_the_manifest_names_the_folder_of_pictures(coco_directory, tmp_path):
    directory = coco_directory({"train": 1})
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").touch()
    (directory / "train2014_images.txt").write_text("a.png\n", encoding="utf-8")
    for images in ("../photographs", str(tmp_path / "photographs"), {"train": "../photographs"}):
        manifest = {"encoder": "vgg16", "images": images}
        (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        data = open_data(directory)
        assert data.manifest == manifest
        assert data["train"].image_path(0).samefile(tmp_path / "photographs" / "a.png")


# Order and workers


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = EpochBatches(50, 8, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    orders = {(seed, epoch): order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len({str(rows) for rows in orders.values()}) == len(orders)
    for (seed, epoch), rows in orders.items():
        assert order(seed, epoch) == rows
        assert sorted(row for batch in rows for row in batch) == list(range(50))
    assert orders[0, 0] == list(EpochBatches(50, 8, seed=0))  # the first epoch is 0
    plain = EpochBatches(5, 2, shuffle=False)
    plain.set_epoch(3)
    assert list(plain) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("start", [0, 3, 7])
def test_start_skips_batches_of_one_epoch(start):
    whole, tail = EpochBatches(50, 8, seed=3), EpochBatches(50, 8, seed=3, start=start)
    whole.set_epoch(2)
    tail.set_epoch(2)
    assert list(tail) == list(whole)[start:]
    assert len(tail) == 7 - start
    assert list(tail) == list(whole)[start:]  # repeatable
    tail.set_epoch(3)  # the next epoch is whole
    whole.set_epoch(3)
    assert list(tail) == list(whole)
    tail.set_epoch(4, start=start)
    whole.set_epoch(4)
    assert list(tail) == list(whole)[start:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"start": 8}, "start is 8, but an epoch has 7 batches"),
        ({"start": -1}, "start is -1"),
        ({"seed": -1}, "a seed is -1"),
    ],
)
def test_invalid_arguments_of_batches_are_refused(coco_directory, arguments, message):
    split = open_data(coco_directory({"train": 7}))["train"]  # 21 captions
    with pytest.raises(ValueError, match=message):
        batches(split, **{"batch_size": 3, **arguments})


@pytest.mark.parametrize("in_memory", ["yes", "no"])
@pytest.mark.parametrize("grids", [False, True])
def test_features_in_memory_from_the_file_and_in_a_pickle_give_the_same_batches(coco_directory, grids, in_memory):
    directory = coco_directory(grid=(3, 3), dtype="<f2")
    split, whole = (open_data(directory, grids=grids, in_memory=held)["train"] for held in (in_memory, "yes"))
    split.features_of([0])  # opens the file
    for epoch in (0, 1):
        expected = epoch_of(batches(whole, 5, seed=2), epoch)
        assert_same(epoch_of(batches(split, 5, seed=2), epoch), expected)
        assert_same(epoch_of(batches(pickle.loads(pickle.dumps(split)), 5, seed=2), epoch), expected)


@pytest.mark.parametrize(
    ("context", "in_memory"),
    [
        ("fork", "no"),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in [("spawn", "no"), ("forkserver", "no"), ("spawn", "yes")]
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_give_the_same_batches(coco_directory, context, in_memory):
    if context not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {context} on {sys.platform}")
    split = open_data(coco_directory(), in_memory=in_memory)["train"]
    split.features_of([0])  # the parent's handle is open when the workers start
    plain = batches(open_data(coco_directory(name="same"), in_memory="yes")["train"], 4, seed=1)
    state = torch.get_rng_state()
    loader = batches(split, 4, seed=1, workers=2 if context == "fork" else 1, start=2, context=context)
    assert_same(epoch_of(loader, 5), epoch_of(plain, 5)[2:])
    assert_same(epoch_of(loader, 6), epoch_of(plain, 6))  # workers that persist see the new epoch
    split.features_of([1])
    assert torch.equal(torch.get_rng_state(), state)


# Real data


@pytest.mark.realdata
def test_cs231ns_features_and_vocabulary_are_read(shared_data, tmp_path):
    shutil.copyfile(shared_data / "cs231n" / VOCAB, tmp_path / VOCAB)
    shutil.copyfile(shared_data / "cs231n" / "train2014_vgg16_fc7_pca_first1614.h5", tmp_path / FEATURES)
    with h5py.File(tmp_path / CAPTIONS, "w") as file:
        file["train_captions"] = np.array([[1, 4, 142, 2, 0], [1, 1003, 5, 4, 2]], np.int32)
        file["train_image_idxs"] = np.array([1613, 0], np.int32)
    split = open_data(tmp_path)["train"]
    assert (split.num_images, split.feature_dim) == (1614, 512)
    assert np.array_equal(split.__getitems__([0, 1])[0], stored(tmp_path, FEATURES, "features")[[1613, 0]])
    assert split.references(1613)[0].startswith("a ")
