"""Damaged data directories: each fault is found before anything is computed, and named."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from torch_caption.data import checks
from torch_caption.data.dataset import open_data
from torch_caption.errors import DataError

CAPTIONS = "coco2014_captions.h5"
VOCAB = "coco2014_vocab.json"
FEATURES = "train2014_vgg16_fc7_pca.h5"
VAL_FEATURES = "val2014_vgg16_fc7_pca.h5"


def set_at(name: str, place: tuple[int | slice, ...], value: object, dtype: str | None = None, file: str = CAPTIONS):
    """Damage: one value of a dataset."""

    def change(old: np.ndarray) -> np.ndarray:
        values = old.astype(dtype or old.dtype)
        values[place] = value
        return values

    return put(name, change, file)


def put(name: str, value: object, file: str = CAPTIONS):
    """Damage: another dataset, or none; a function is given the old one."""
    return lambda directory, replace: replace(directory / file, name, value)


def text(file: str, content: str | bytes | None):
    """Damage: another content of a file, or no file."""

    def damage(directory: Path, replace) -> None:
        if content is None:
            (directory / file).unlink()
        else:
            (directory / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def cut(file: str, share: float):
    """Damage: a truncated file."""

    def damage(directory: Path, replace) -> None:
        content = (directory / file).read_bytes()
        (directory / file).write_bytes(content[: int(share * len(content))])

    return damage


def folder(name: str):
    """Damage: a folder in place of a file."""

    def damage(directory: Path, replace) -> None:
        (directory / name).unlink(missing_ok=True)
        (directory / name).mkdir()

    return damage


def group(directory: Path, replace) -> None:
    replace(directory / CAPTIONS, "val_captions", None)
    with h5py.File(directory / CAPTIONS, "a") as file:
        file.create_group("val_captions")


def never_written(directory: Path, replace) -> None:
    with h5py.File(directory / FEATURES, "w") as file:
        file.create_dataset("features", (2**40, 3), "<f4", chunks=(1000, 3))


def external_storage(directory: Path, replace) -> None:
    (directory / "raw").write_bytes(bytes(4 * 21))
    replace(directory / CAPTIONS, "train_image_idxs", None)
    with h5py.File(directory / CAPTIONS, "a") as file:
        file.create_dataset("train_image_idxs", (21,), "<i4", external=[(str(directory / "raw"), 0, 4 * 21)])


def virtual(directory: Path, replace) -> None:
    layout = h5py.VirtualLayout((7, 3), "<f4")
    layout[:] = h5py.VirtualSource(str(directory / VAL_FEATURES), "features", (7, 3))
    with h5py.File(directory / FEATURES, "w") as file:
        file.create_virtual_dataset("features", layout)


DAMAGES = {
    # ids
    "id too large": (set_at("train_captions", (4, 1), 10), CAPTIONS, r"train_captions\[4, 1\] is 10, .* 10 words"),
    "id negative": (set_at("val_captions", (3, 1), -1), CAPTIONS, r"val_captions\[3, 1\] is -1, .* 10 words"),
    "id beyond int64": (
        set_at("train_captions", (2, 1), 2**64 - 1, "<u8"),
        CAPTIONS,
        r"train_captions\[2, 1\] is 18446744073709551615",
    ),
    "id negative, big-endian": (set_at("train_captions", (2, 1), -7, ">i2"), CAPTIONS, r"train_captions\[2, 1\] is -7"),
    "no <START>": (set_at("train_captions", (5, 0), 4), CAPTIONS, r"train_captions\[5, 0\] is 4, .*<START>, 1"),
    "all <NULL>": (set_at("train_captions", (6,), 0), CAPTIONS, r"train_captions\[6, 0\] is 0, .*<START>"),
    "no <END>": (set_at("train_captions", (7, slice(1, None)), 5), CAPTIONS, r"\[7, 5\] is 5, .* no <END>, 2"),
    "word after <END>": (set_at("val_captions", (8, 5), 3), CAPTIONS, r"val_captions\[8, 5\] is 3, .*only <NULL>, 0"),
    "<END> after <END>": (set_at("val_captions", (8, 5), 2), CAPTIONS, r"val_captions\[8, 5\] is 2, .*only <NULL>"),
    "<NULL> between": (set_at("train_captions", (9,), [1, 0, 4, 2, 0, 0]), CAPTIONS, r"train_captions\[9, 1\] is 0, a"),
    "<START> between": (set_at("val_captions", (2,), [1, 4, 1, 2, 0, 0]), CAPTIONS, r"val_captions\[2, 2\] is 1, a"),
    "image too large": (set_at("val_image_idxs", (5,), 4), CAPTIONS, r"val_image_idxs\[5\] is 4, .*4 rows"),
    "image negative": (set_at("val_image_idxs", (5,), -1), CAPTIONS, r"val_image_idxs\[5\] is -1"),
    "image beyond int64": (set_at("val_image_idxs", (5,), 2**63, "<u8"), CAPTIONS, r"\[5\] is 9223372036854775808"),
    # features
    "NaN": (set_at("features", (6, 2), np.nan, file=FEATURES), FEATURES, r"features\[6, 2\] is nan, not a finite"),
    "NaN that signals": (  # NumPy would warn of its cast
        put("features", lambda x: np.full(x.shape, 0x7FF0_0000_0000_0001, "u8").view("f8"), FEATURES),
        FEATURES,
        r"features\[0, 0\] is nan",
    ),
    "infinity": (set_at("features", (0, 1), -np.inf, file=FEATURES), FEATURES, r"features\[0, 1\] is -inf"),
    "beyond float32": (set_at("features", (1, 1), 1e300, "<f8", FEATURES), FEATURES, r"features\[1, 1\] is 1e\+300"),
    "integers": (put("features", lambda x: x.astype("i4"), FEATURES), FEATURES, "features contains int32; .*floating"),
    "complex": (put("features", lambda x: x.astype("c8"), FEATURES), FEATURES, "features contains complex64"),
    "features of rank 3": (
        put("features", lambda x: x[None], FEATURES),
        FEATURES,
        r"features has the shape \(1, 7, 3\)",
    ),
    "features of no width": (put("features", lambda x: x[:, :0], FEATURES), FEATURES, r"features is empty.*\(7, 0\)"),
    "no features": (put("features", None, FEATURES), FEATURES, "no dataset features; it contains nothing"),
    "another width": (
        put("features", lambda x: x[:, :2], FEATURES),
        VAL_FEATURES,
        "features has 3 columns, but train.* 2",
    ),
    "fewer features": (put("features", lambda x: x[:6], FEATURES), CAPTIONS, r"train_image_idxs\[\d+\] is 6, .*6 rows"),
    "no file of features": (text(FEATURES, None), FEATURES, "no such file; each of the splits train, val"),
    # shapes and dtypes of captions
    "float captions": (
        put("train_captions", lambda x: x.astype("f4")),
        CAPTIONS,
        "train_captions contains float32; .*inte",
    ),
    "bool captions": (
        put("train_captions", lambda x: x > 0),
        CAPTIONS,
        "contains an enumeration; .*integers",
    ),
    "strings": (put("train_captions", np.array([[b"a"]] * 21)), CAPTIONS, r"train_captions contains \|S1"),
    "compound": (put("train_image_idxs", np.zeros(21, "i4,i4")), CAPTIONS, "train_image_idxs contains"),
    "captions of rank 1": (put("train_captions", lambda x: x[0]), CAPTIONS, r"train_captions has the shape \(6,\)"),
    "captions of rank 0": (put("train_captions", 3), CAPTIONS, r"train_captions has the shape \(\); it must have 2"),
    "a null dataspace": (put("train_captions", h5py.Empty("i4")), CAPTIONS, "train_captions has the shape None"),
    "indices of rank 2": (
        put("val_image_idxs", lambda x: x[:, None]),
        CAPTIONS,
        r"val_image_idxs has the shape \(12, 1",
    ),
    "fewer indices": (
        put("val_image_idxs", lambda x: x[1:]),
        CAPTIONS,
        "val_captions has 12 rows and val_image_idxs 11",
    ),
    "no rows": (put("val_captions", lambda x: x[:0]), CAPTIONS, r"val_captions is empty, of shape \(0, 6\)"),
    "no indices": (put("val_image_idxs", None), CAPTIONS, "no dataset val_image_idxs; it contains train_captions"),
    "no captions": (put("val_captions", None), CAPTIONS, "no dataset val_captions; it contains train_captions"),
    "a name with a backslash": (put("..\\x_captions", np.ones((1, 2), "i4")), CAPTIONS, "not the name of a split"),
    # kept elsewhere
    "group": (group, CAPTIONS, "val_captions is not a dataset"),
    "external link": (
        put("features", h5py.ExternalLink(VAL_FEATURES, "/features"), FEATURES),
        FEATURES,
        "features is not a dataset within",
    ),
    "soft link": (
        put("val_image_idxs", h5py.SoftLink("/train_image_idxs")),
        CAPTIONS,
        "val_image_idxs is not a dataset within",
    ),
    "external storage": (external_storage, CAPTIONS, "train_image_idxs is not a dataset within"),
    "never written": (never_written, FEATURES, "features was declared, but never written"),
    "virtual": (virtual, FEATURES, "features is not a dataset within"),
    # files
    "captions truncated": (cut(CAPTIONS, 0.5), CAPTIONS, "not a readable HDF5 file"),
    "features truncated": (cut(FEATURES, 0.9), FEATURES, "not a readable HDF5 file"),
    "captions empty": (text(CAPTIONS, ""), CAPTIONS, "not a readable HDF5 file"),
    "a web page": (text(CAPTIONS, "<html>404</html>"), CAPTIONS, "not a readable HDF5 file"),
    "no captions file": (text(CAPTIONS, None), CAPTIONS, "no such file"),
    "vocabulary truncated": (cut(VOCAB, 0.5), VOCAB, "not JSON in UTF-8"),
    "no vocabulary": (text(VOCAB, None), VOCAB, "cannot be read: No such file"),
    "manifest truncated": (text("manifest.json", '{"a": '), "manifest.json", "not JSON in UTF-8"),
    "manifest of another kind": (text("manifest.json", "[1]"), "manifest.json", "holds list, not an object"),
    "manifest's images": (text("manifest.json", '{"images": 3}'), "manifest.json", "images is 3"),
    "a folder for a manifest": (folder("manifest.json"), "manifest.json", "not a file; write it again"),
    "a folder of names": (folder("val2014_urls.txt"), "val2014_urls.txt", "not a file; write it again in UTF-8"),
    "fewer URLs": (text("val2014_urls.txt", "a\nb\nc\n"), "val2014_urls.txt", "has 3 lines, but .* 4 rows"),
    "more names": (text("val2014_images.txt", "a\n" * 5), "val2014_images.txt", "has 5 lines, but .* 4 rows"),
    "names in Latin-1": (
        text("val2014_images.txt", "é\n".encode("latin-1") * 4),
        "val2014_images.txt",
        "not a text in UTF-8",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named(coco_directory, replace, kind):
    damage, file, message = DAMAGES[kind]
    directory = coco_directory()
    open_data(directory)
    damage(directory, replace)
    for in_memory in ("yes", "no"):
        with pytest.raises(DataError, match=message) as caught:
            open_data(directory, in_memory=in_memory)
        said = str(caught.value)
        assert said.startswith(str(directory / file)), said
        assert "\n" not in said
        assert ";" in said, f"it does not say what to do: {said}"


def test_without_train(coco_directory):
    with pytest.raises(DataError, match="no dataset train_captions; it contains val_captions, val_image_idxs"):
        open_data(coco_directory({"val": 3}))


def test_without_a_directory(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder; `python -m torch_caption download DIR"):
        open_data(tmp_path / "nowhere")


def test_the_row_of_a_fault_in_a_later_block(coco_directory, replace, monkeypatch):
    directory = coco_directory({"train": 50})
    set_at("features", (33, 2), np.nan, file=FEATURES)(directory, replace)
    monkeypatch.setattr(checks, "BLOCK_BYTES", 128)
    with pytest.raises(DataError, match=r"features\[33, 2\] is nan"):
        open_data(directory, in_memory="no")


@pytest.mark.parametrize("file", [CAPTIONS, FEATURES])
def test_any_truncation_is_found(coco_directory, file):
    directory = coco_directory()
    content = (directory / file).read_bytes()
    for length in range(0, len(content), max(1, len(content) // 40)):
        (directory / file).write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"{re.escape(file)}: not a readable HDF5 file"):
            open_data(directory)


@pytest.mark.parametrize("file", [CAPTIONS, FEATURES])
def test_a_flipped_byte_is_survived_or_named(coco_directory, file):
    directory = coco_directory()
    content = (directory / file).read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (directory / file).write_bytes(damaged)
        try:
            train = open_data(directory)["train"]
        except DataError:
            continue  # any other exception fails the test
        assert torch.isfinite(train.features_of(range(train.num_images))).all()
