"""Data changed as hypothesis draws it, which finds the smallest change that misleads: refused in one line, or sound.

Here in this process, where nothing ends a test that crashes or hangs; the families change bytes of HDF5 in forks.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.faults import hostile_json
from tests.helpers.tiny_data import write_tiny
from torch_caption.data import caption_files, checks
from torch_caption.data.dataset import CocoData, batches, open_data
from torch_caption.errors import DataError

EXAMPLES = settings(max_examples=60, deadline=None)
NUMBERS = st.one_of(
    arrays.integer_dtypes(endianness="?"),
    arrays.unsigned_integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    arrays.boolean_dtypes(),
    arrays.complex_number_dtypes(),
    arrays.byte_string_dtypes(max_len=5),
)
READERS: dict[str, Callable[[Path], Any]] = {
    hostile_json.VOCABULARY: checks.read_vocabulary,
    hostile_json.MANIFEST: checks.read_manifest,
    hostile_json.ANNOTATIONS: caption_files.read,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_json.write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data"), grids=True)


def one_line(path: Path, read: Callable[[], object]) -> None:
    """It reads, or it is refused in one line that names the file."""
    message = str(path)
    try:
        read()
    except DataError as error:
        message = str(error)
    assert "\n" not in message
    assert str(path) in message


@pytest.mark.parametrize("file", READERS)
@EXAMPLES
@given(rng=st.randoms(use_true_random=False))
def test_changed_json(base: Path, file: str, rng: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        path.write_bytes((base / file).read_bytes())
        hostile_json.mutated(path, rng)
        one_line(path, lambda: READERS[file](path))


@pytest.mark.parametrize("file", READERS)
@EXAMPLES
@given(content=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["images", "annotations", "id", "x"]), inner)
), max_leaves=8))  # fmt: skip
def test_other_json(file: str, content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        path.write_text(json.dumps(content), encoding="utf-8")
        one_line(path, lambda: READERS[file](path))


def datasets(directory: Path) -> Iterator[tuple[Path, str, np.ndarray]]:
    for path in sorted(directory.glob("*.h5")):
        with h5py.File(path) as file:
            for name in file:
                yield path, name, file[name][()]


def look(directory: Path, grids: bool) -> None:
    """Open it, and read what training would."""
    opened: CocoData = open_data(directory, grids=grids)
    for features, captions in batches(opened["train"], 5, shuffle=False):
        assert np.isfinite(features.numpy()).all()
        assert len(features) == len(captions)


@EXAMPLES
@given(draw=st.data())
def test_other_arrays(data: Path, draw: st.DataObject) -> None:
    """Of another dtype, of another shape, or with a few other numbers."""
    path, name, value = draw.draw(st.sampled_from([*datasets(data)]))
    other = draw.draw(
        st.one_of(
            NUMBERS.flatmap(lambda dtype: arrays.arrays(dtype, value.shape, fill=st.nothing())),
            arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4).flatmap(
                lambda shape: arrays.arrays(value.dtype, shape)
            ),
            st.tuples(*(st.integers(0, size - 1) for size in value.shape), arrays.from_dtype(value.dtype)).map(
                lambda change: with_number(value, change[:-1], change[-1])
            ),
        )
    )
    whole = path.read_bytes()
    try:
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = other
        one_line(data, lambda: look(data, grids=path.stem.endswith("grid")))
    finally:
        path.write_bytes(whole)


def with_number(value: np.ndarray, place: tuple[int, ...], number: Any) -> np.ndarray:
    value = value.copy()
    value[place] = number
    return value
