"""Damaged data directories: each fault is found before anything is computed, and named."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest

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


def text(file: str, content: str | bytes):
    """Damage: another content of a file."""
    content = content if isinstance(content, bytes) else content.encode()
    return lambda directory, replace: (directory / file).write_bytes(content)


def folder(directory: Path, replace) -> None:
    (directory / "manifest.json").mkdir()


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
    "id negative": (set_at("val_captions", (3, 1), -1), CAPTIONS, r"val_captions\[3, 1\] is -1, .* 10 words"),
    "id beyond int64": (
        set_at("train_captions", (2, 1), 2**64 - 1, "<u8"),
        CAPTIONS,
        r"train_captions\[2, 1\] is 18446744073709551615",
    ),
    "no <START>": (set_at("train_captions", (5, 0), 4), CAPTIONS, r"train_captions\[5, 0\] is 4, .*<START>, 1"),
    "word after <END>": (set_at("val_captions", (8, 5), 3), CAPTIONS, r"val_captions\[8, 5\] is 3, .*only <NULL>, 0"),
    "<NULL> between": (set_at("train_captions", (9,), [1, 0, 4, 2, 0, 0]), CAPTIONS, r"train_captions\[9, 1\] is 0, a"),
    "<START> between": (set_at("val_captions", (2,), [1, 4, 1, 2, 0, 0]), CAPTIONS, r"val_captions\[2, 2\] is 1, a"),
    "image negative": (set_at("val_image_idxs", (5,), -1), CAPTIONS, r"val_image_idxs\[5\] is -1"),
    "image beyond int64": (set_at("val_image_idxs", (5,), 2**63, "<u8"), CAPTIONS, r"\[5\] is 9223372036854775808"),
    # features
    "NaN that signals": (  # NumPy would warn of its cast
        put("features", lambda x: np.full(x.shape, 0x7FF0_0000_0000_0001, "u8").view("f8"), FEATURES),
        FEATURES,
        r"features\[0, 0\] is nan",
    ),
    "beyond float32": (set_at("features", (1, 1), 1e300, "<f8", FEATURES), FEATURES, r"features\[1, 1\] is 1e\+300"),
    "integers": (put("features", lambda x: x.astype("i4"), FEATURES), FEATURES, "features contains int32; .*floating"),
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
    "no file of features": (
        lambda directory, replace: (directory / FEATURES).unlink(),
        FEATURES,
        "no such file; each of the splits train, val",
    ),
    # shapes and dtypes of captions
    "float captions": (
        put("train_captions", lambda x: x.astype("f4")),
        CAPTIONS,
        "train_captions contains float32; .*inte",
    ),
    "bool captions": (put("train_captions", lambda x: x > 0), CAPTIONS, "contains an enumeration; .*integers"),
    "a null dataspace": (put("train_captions", h5py.Empty("i4")), CAPTIONS, "train_captions has the shape None"),
    "fewer indices": (
        put("val_image_idxs", lambda x: x[1:]),
        CAPTIONS,
        "val_captions has 12 rows and val_image_idxs 11",
    ),
    "no rows": (put("val_captions", lambda x: x[:0]), CAPTIONS, r"val_captions is empty, of shape \(0, 6\)"),
    "no captions": (put("val_captions", None), CAPTIONS, "no dataset val_captions; it contains train_captions"),
    "a name with a backslash": (put("..\\x_captions", np.ones((1, 2), "i4")), CAPTIONS, "not the name of a split"),
    # kept elsewhere
    "group": (group, CAPTIONS, "val_captions is not a dataset"),
    "external link": (
        put("features", h5py.ExternalLink(VAL_FEATURES, "/features"), FEATURES),
        FEATURES,
        "features is not a dataset within",
    ),
    "external storage": (external_storage, CAPTIONS, "train_image_idxs is not a dataset within"),
    "never written": (never_written, FEATURES, "features was declared, but never written"),
    "virtual": (virtual, FEATURES, "features is not a dataset within"),
    # files
    "a web page": (text(CAPTIONS, "<html>404</html>"), CAPTIONS, "not a readable HDF5 file"),
    "vocabulary truncated": (text(VOCAB, '{"idx_to_word": ['), VOCAB, "not JSON in UTF-8"),
    "manifest truncated": (text("manifest.json", '{"a": '), "manifest.json", "not JSON in UTF-8"),
    "manifest of another kind": (text("manifest.json", "[1]"), "manifest.json", "holds list, not an object"),
    "manifest's tokenizer": (
        text("manifest.json", '{"tokenizer": "bpe"}'),
        "manifest.json",
        "tokenizer is 'bpe', not one of words, characters, whitespace",
    ),
    "manifest's images": (text("manifest.json", '{"images": 3}'), "manifest.json", "images is 3"),
    "a folder for a manifest": (folder, "manifest.json", "not a file; write it again"),
    "fewer URLs": (text("val2014_urls.txt", "a\nb\nc\n"), "val2014_urls.txt", "has 3 lines, but .* 4 rows"),
    "names in Latin-1": (
        text("val2014_images.txt", "é\n".encode("latin-1") * 4),
        "val2014_images.txt",
        "not a text in UTF-8",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_directory_is_refused_with_file_dataset_and_value(coco_directory, replace, kind):
    damage, file, message = DAMAGES[kind]
    directory = coco_directory()
    open_data(directory)
    damage(directory, replace)
    for in_memory in ("yes", "no"):
        with pytest.raises(DataError, match=message) as caught:
            open_data(directory, in_memory=in_memory)
        line = str(caught.value)
        assert line.startswith(str(directory / file)), line
        assert "\n" not in line
        assert ";" in line, f"it does not name a remedy: {line}"


def test_a_directory_without_the_split_train_is_refused(coco_directory):
    with pytest.raises(DataError, match="no dataset train_captions; it contains val_captions, val_image_idxs"):
        open_data(coco_directory({"val": 3}))


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder; `python -m torch_caption download DIR"):
        open_data(tmp_path / "nowhere")


@pytest.mark.parametrize("file", [CAPTIONS, FEATURES])
def test_a_file_truncated_anywhere_is_refused(coco_directory, file):
    directory = coco_directory()
    content = (directory / file).read_bytes()
    for length in range(0, len(content), max(1, len(content) // 20)):
        (directory / file).write_bytes(content[:length])
        with pytest.raises(DataError, match=rf"{re.escape(file)}: not a readable HDF5 file"):
            open_data(directory)
