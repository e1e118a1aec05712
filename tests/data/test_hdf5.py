"""HDF5 files from untrusted sources: what is read, and what is refused."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5pl, h5s, h5t, h5z

from torch_caption.data import hdf5
from torch_caption.data import manifest as manifests
from torch_caption.data.dataset import batches, open_data
from torch_caption.data.hdf5 import FLOATS, dataset, opened
from torch_caption.errors import DataError

FEATURES = "train2014_vgg16_fc7_pca.h5"


def read(path: Path, values: str = FLOATS, ranks: tuple[int, ...] = (2,)) -> np.ndarray:
    with opened(path) as file:
        return dataset(file, "features", ranks, values)[()]


def write(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], stored: bytes, **settings: object) -> Path:
    """Zeros, every chunk the same stored bytes."""
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", shape, "<f4", chunks=chunks, **settings)
        for first in range(0, shape[0], chunks[0]):
            features.id.write_direct_chunk((first, 0), stored)
    return path


@pytest.mark.parametrize("settings", [{}, {"chunks": (3, 2)}, {"compression": "gzip"}, {"compression": "lzf"}])
@pytest.mark.parametrize("more", [{}, {"shuffle": True, "fletcher32": True, "maxshape": (None, 4)}])
@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
def test_sound_features_are_read_as_written(tmp_path, settings, more, dtype):
    values = np.random.default_rng(0).standard_normal((7, 4)).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=values, **settings, **more)
    assert np.array_equal(read(tmp_path / "a.h5"), values)


@pytest.mark.parametrize("change", ["exponent", "precision", "80 bits"])
def test_floating_point_types_are_ieees(tmp_path, change):
    """One bit of a type can halve every feature."""
    kind = h5t.IEEE_F32LE.copy()
    if change == "exponent":
        kind.set_ebias(126)
    elif change == "precision":
        kind.set_fields(31, 22, 9, 0, 22)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if change == "80 bits" and np.dtype(np.longdouble).itemsize > 8:
            kind = h5t.py_create(np.dtype(np.longdouble))
        h5d.create(file.id, b"features", kind, h5s.create_simple((2, 3)))
        file["features"][...] = 1
    with pytest.raises(DataError, match=r"contains float\d+, of an unknown layout; write it as floating-point"):
        read(tmp_path / "a.h5")


# Memory


def test_the_compression_ratio_of_large_datasets_is_limited(tmp_path, monkeypatch):
    stored = zlib.compress(bytes(2**20))
    path = write(tmp_path / "a.h5", (2**12, 256), (2**10, 256), stored, compression="gzip")
    assert not read(path).any()
    monkeypatch.setattr(hdf5, "INFLATED_LIMIT", 2**21)
    with pytest.raises(DataError, match=r"\(4096, 256\): [\d,]+ bytes that decompress to 4,194,304"):
        read(path)
    monkeypatch.setattr(hdf5, "RATIO_LIMIT", 2000)
    assert not read(path).any()


def test_a_chunk_unpacks_to_its_own_size(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "CHUNK_LIMIT", 2**20)
    path = write(tmp_path / "a.h5", (256, 256), (256, 256), zlib.compress(bytes(2**18)), compression="gzip")
    assert not read(path).any()
    long = zlib.compress(np.random.default_rng(0).bytes(2**18 - 2**17) + bytes(2**22))
    path = write(tmp_path / "b.h5", (256, 256), (256, 256), long, compression="gzip")
    with pytest.raises(DataError, match=r"the chunk at \(0, 0\) decompresses to more than its 262,144 bytes"):
        read(path)
    path = write(tmp_path / "c.h5", (256, 256), (256, 256), bytes(2**19), compression="gzip")
    with pytest.raises(DataError, match="stores 524,288 bytes of a chunk of 262,144"):
        read(path)
    path = write(tmp_path / "d.h5", (1024, 512), (1024, 512), zlib.compress(bytes(2**21)), compression="gzip")
    with pytest.raises(DataError, match="chunks of 2,097,152 bytes, more than the limit 1,048,576 of compressed ones"):
        read(path)


# Plugins


def unknown_filter(path: Path) -> Path:
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((2, 3))
    plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
    with h5py.File(path, "w") as file:
        features = h5d.create(file.id, b"features", h5t.IEEE_F32LE, h5s.create_simple((2, 3)), plist)
        features.write_direct_chunk((0, 0), bytes(24))
    return path


def test_no_plugin_can_be_found_while_a_file_is_open(tmp_path):
    before = [h5pl.get(place) for place in range(h5pl.size())]
    path = unknown_filter(tmp_path / "a.h5")
    with pytest.raises(DataError, match="is compressed by the filter 32001, which is not allowed; write it with one"):
        read(path)
    with opened(path), opened(path):
        assert h5pl.size() == 0
    assert [h5pl.get(place) for place in range(h5pl.size())] == before


# Changes after the check


@pytest.mark.parametrize("change", ["shape", "filter", "link", "empty"])
def test_a_replaced_file_is_checked_again_when_it_is_read(coco_directory, change, tmp_path):
    directory = coco_directory()
    split = open_data(directory, in_memory="no")["train"]
    (directory / FEATURES).unlink()
    if change == "filter":
        unknown_filter(directory / FEATURES)
    elif change == "empty":
        (directory / FEATURES).touch()
    else:
        with h5py.File(directory / FEATURES, "w") as file:
            file["features"] = np.ones((6, 3)) if change == "shape" else h5py.ExternalLink("val.h5", "/")
    with pytest.raises(DataError, match=rf"{FEATURES}: (features |not a readable HDF5 file)"):
        split.features_of([0])


def descriptors() -> int:
    gc.collect()  # a loader and its workers refer to each other
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no list of open descriptors here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_no_file_descriptor_is_left_open(coco_directory, replace, in_memory):
    directory = coco_directory()
    assert [*batches(open_data(directory)["train"], 9, workers=1, context="fork")]  # Python may keep one
    before = descriptors()
    split = open_data(directory, in_memory=in_memory)["train"]
    assert descriptors() == before
    split.features_of([0, 1])
    assert descriptors() == before + (in_memory == "no")  # one, however often it reads
    split.features_of([2])
    assert descriptors() == before + (in_memory == "no")
    loader = batches(split, 4, workers=1, context="fork")
    assert [*loader]
    del loader, split
    assert descriptors() == before
    replace(directory / FEATURES, "features", np.full((7, 3), np.nan))
    with pytest.raises(DataError, match="is nan"):
        open_data(directory, in_memory=in_memory)
    (directory / FEATURES).write_bytes((directory / FEATURES).read_bytes()[:-9])
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        open_data(directory, in_memory=in_memory)
    assert descriptors() == before


@pytest.mark.parametrize("mask", [0, 1])
def test_a_chunk_that_skipped_a_filter_unpacks_to_its_own_size(tmp_path, monkeypatch, mask):
    """The mask's first bit leaves out the shuffle; HDF5 undoes the deflate all the same."""
    monkeypatch.setattr(hdf5, "CHUNK_LIMIT", 2**12)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (7, 3), "<f4", chunks=(7, 3), shuffle=True, compression="gzip")
        features.id.write_direct_chunk((0, 0), zlib.compress(bytes(2**16), 9), filter_mask=mask)
    with pytest.raises(DataError, match="decompresses to more than its 84 bytes"):
        read(path)


def test_a_chunk_that_skipped_all_compression_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "CHUNK_LIMIT", 2**12)
    values = np.random.default_rng(0).standard_normal((7, 3)).astype("<f4")
    for compression in ("gzip", "lzf"):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            features = file.create_dataset("features", (7, 3), "<f4", chunks=(7, 3), compression=compression)
            features.id.write_direct_chunk((0, 0), values.tobytes(), filter_mask=1)
        assert np.array_equal(read(tmp_path / "a.h5"), values)


def test_compression_twice_is_refused(tmp_path):
    settings = h5p.create(h5p.DATASET_CREATE)
    settings.set_chunk((7, 3))
    settings.set_filter(h5z.FILTER_LZF)
    settings.set_deflate(4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        features = h5d.create(file.id, b"features", h5t.IEEE_F32LE, h5s.create_simple((7, 3)), settings)
        features.write(h5s.ALL, h5s.ALL, np.ones((7, 3), np.float32))
    with pytest.raises(DataError, match="compressed by deflate and by lzf"):
        read(tmp_path / "a.h5")


WRITER = """
import sys, h5py
with h5py.File(sys.argv[1], sys.argv[2], libver=sys.argv[3]) as file:
    if "features" not in file:
        file["features"] = [[1.0]]
    file.flush()
    print("open", flush=True)
    sys.stdin.read()
"""


@contextmanager
def writer(path: Path, mode: str, version: str = "earliest") -> Iterator[subprocess.Popen]:
    """Another process that has the file open for writing."""
    command = [sys.executable, "-c", WRITER, str(path), mode, version]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        yield process
        process.kill()


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_a_file_open_for_writing_is_reported_as_such_and_read_afterwards(tmp_path, version):
    path = tmp_path / "a.h5"
    with writer(path, "w", version), pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: another process has it open for writing")
    assert str(error.value).endswith("wait until it is written")
    if version == "earliest":
        assert read(path).tolist() == [[1.0]]


def test_a_changed_file_open_for_writing_is_not_called_damaged(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["features"] = [[2.0]]
    marks = {manifests.ENTRY: manifests.marks({"a.h5": path})}
    manifests.check(tmp_path, marks, [path])
    with writer(path, "w"), pytest.raises(DataError, match="another process has it open for writing"):
        manifests.check(tmp_path, marks, [path])
    with pytest.raises(DataError, match=r"manifest\.json has; it is damaged"):
        manifests.check(tmp_path, marks, [path])


def test_a_file_whose_writer_was_killed_is_refused_with_a_remedy(tmp_path):
    with writer(tmp_path / "a.h5", "w", "latest"):
        pass
    with pytest.raises(DataError, match=r"it is marked as open for writing; .*h5clear -s \S*a\.h5"):
        read(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("number", "text", "message"),
    [
        (errno.ENOLCK, "unable to lock file", "has no locks; set HDF5_USE_FILE_LOCKING=FALSE"),
        (errno.EACCES, "unable to open file", f"cannot be read: {os.strerror(errno.EACCES)}"),
        (errno.EMFILE, "unable to open file", f"cannot be read: {os.strerror(errno.EMFILE)}"),
    ],
)
def test_an_error_of_the_system_is_not_called_damage(tmp_path, number, text, message):
    (tmp_path / "a.h5").touch()
    with pytest.raises(DataError, match=message) as error, hdf5.examined(tmp_path / "a.h5"):
        raise OSError(number, text)
    assert "not a readable HDF5 file" not in str(error.value)
