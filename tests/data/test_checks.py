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
MANIFEST, URLS, NAMES = "manifest.json", "val2014_urls.txt", "val2014_images.txt"


def captions(name: str, value: object):
    """Damage: another dataset of captions, or none; a function is given the old one."""
    return lambda directory, replace: replace(directory / CAPTIONS, name, value)


def features(value: object):
    """Damage: other features of train."""
    return lambda directory, replace: replace(directory / FEATURES, "features", value)


def at(index: tuple[int | slice, ...], value: object, dtype: str | None = None):
    """One value of an array replaced."""

    def change(old: np.ndarray) -> np.ndarray:
        values = old.astype(dtype or old.dtype)
        values[index] = value
        return values

    return change


def text(file: str, content: str | bytes):
    """Damage: another content of a file."""
    content = content if isinstance(content, bytes) else content.encode()
    return lambda directory, replace: (directory / file).write_bytes(content)


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


TRAIN, VAL, IDXS = "train_captions", "val_captions", "val_image_idxs"
DAMAGES = {  # by the file that is named
    CAPTIONS: {
        "id negative": (captions(VAL, at((3, 1), -1)), r"val_captions\[3, 1\] is -1, .* 10 words"),
        "id beyond int64": (captions(TRAIN, at((2, 1), 2**64 - 1, "<u8")), r"\[2, 1\] is 18446744073709551615"),
        "no <START>": (captions(TRAIN, at((5, 0), 4)), r"train_captions\[5, 0\] is 4, .*<START>, 1"),
        "word after <END>": (captions(VAL, at((8, 5), 3)), r"val_captions\[8, 5\] is 3, .*only <NULL>, 0"),
        "<NULL> between": (captions(TRAIN, at((9,), [1, 0, 4, 2, 0, 0])), r"train_captions\[9, 1\] is 0, a"),
        "<START> between": (captions(VAL, at((2,), [1, 4, 1, 2, 0, 0])), r"val_captions\[2, 2\] is 1, a"),
        "image negative": (captions(IDXS, at((5,), -1)), r"val_image_idxs\[5\] is -1"),
        "image beyond int64": (captions(IDXS, at((5,), 2**63, "<u8")), r"\[5\] is 9223372036854775808"),
        "image without features": (features(lambda x: x[:6]), r"train_image_idxs\[\d+\] is 6, .*6 rows"),
        "float captions": (captions(TRAIN, lambda x: x.astype("f4")), "train_captions contains float32; .*integers"),
        "bool captions": (captions(TRAIN, lambda x: x > 0), "contains an enumeration; .*integers"),
        "a null dataspace": (captions(TRAIN, h5py.Empty("i4")), "train_captions has the shape None"),
        "fewer indices": (captions(IDXS, lambda x: x[1:]), "val_captions has 12 rows and val_image_idxs 11"),
        "no rows": (captions(VAL, lambda x: x[:0]), r"val_captions is empty, of shape \(0, 6\)"),
        "no captions": (captions(VAL, None), "no dataset val_captions; it contains train_captions"),
        "a name with a backslash": (captions("..\\x_captions", np.ones((1, 2), "i4")), "not the name of a split"),
        "group": (group, "val_captions is not a dataset"),
        "external storage": (external_storage, "train_image_idxs is not a dataset within"),
        "a web page": (text(CAPTIONS, "<html>404</html>"), "not a readable HDF5 file"),
    },
    FEATURES: {
        "signalling NaN": (  # NumPy would warn of its cast
            features(lambda x: np.full(x.shape, 0x7FF0_0000_0000_0001, "u8").view("f8")),
            r"features\[0, 0\] is nan",
        ),
        "beyond float32": (features(at((1, 1), 1e300, "<f8")), r"features\[1, 1\] is 1e\+300"),
        "integers": (features(lambda x: x.astype("i4")), "features contains int32; .*floating"),
        "rank 3": (features(lambda x: x[None]), r"features has the shape \(1, 7, 3\)"),
        "no width": (features(lambda x: x[:, :0]), r"features is empty.*\(7, 0\)"),
        "no features": (features(None), "no dataset features; it contains nothing"),
        "no file": (lambda directory, _: (directory / FEATURES).unlink(), "no such file; each of the splits"),
        "external link": (features(h5py.ExternalLink(VAL_FEATURES, "/features")), "features is not a dataset within"),
        "never written": (never_written, "features was declared, but never written"),
        "virtual": (virtual, "features is not a dataset within"),
    },
    VAL_FEATURES: {"another width": (features(lambda x: x[:, :2]), "features has 3 columns, but train.* 2")},
    VOCAB: {"truncated": (text(VOCAB, '{"idx_to_word": ['), "not JSON in UTF-8")},
    MANIFEST: {
        "truncated": (text(MANIFEST, '{"a": '), "not JSON in UTF-8"),
        "a list": (text(MANIFEST, "[1]"), "holds list, not an object"),
        "its tokenizer": (text(MANIFEST, '{"tokenizer": "bpe"}'), "tokenizer is 'bpe', not one of words, cha"),
        "its images": (text(MANIFEST, '{"images": 3}'), "images is 3"),
        "a folder": (lambda directory, _: (directory / MANIFEST).mkdir(), "not a file; write it again"),
    },
    URLS: {"fewer URLs": (text(URLS, "a\nb\nc\n"), "has 3 lines, but .* 4 rows")},
    NAMES: {"Latin-1": (text(NAMES, "é\n".encode("latin-1") * 4), "not a text in UTF-8")},
}


@pytest.mark.parametrize(("file", "kind"), [(file, kind) for file, kinds in DAMAGES.items() for kind in kinds])
def test_a_damaged_directory_is_refused_with_file_dataset_and_value(coco_directory, replace, file, kind):
    damage, message = DAMAGES[file][kind]
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
