"""What `torch.save` writes is accepted, and described as it is.

What is refused: tests/faults/hostile_checkpoints.py.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest
import torch

from torch_caption import archive
from torch_caption.archive import ArchiveError, Declared

DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
]


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *({}, [], (), None, True, "", 0, 1.5, -7, 2**31, 2**63, -(2**200), float("inf"), "ä€😀\0\n"),
        {"a": {1: [2.0, None, (3, "b", False), {}, []]}, -3: ()},
        [["a", "a"], ("b",), ("b", "b"), (1, 2, 3), (1, 2, 3, 4), [[[[]]]]],
        {str(k): k for k in range(3000)},
    ],
)
def test_plain_values_are_what_they_are(content: Any) -> None:
    found = archive.examine(saved(content))
    assert found == content
    assert repr(found) == repr(content)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 3), (2, 0, 4), (2, 1, 3, 1)], ids=str)
def test_tensors_are_described(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    found = archive.examine(saved({"w": torch.zeros(shape, dtype=dtype), "n": 1}))
    assert found == {"w": Declared(dtype, shape, "0"), "n": 1}


def test_every_tensor_has_its_record() -> None:
    content = [torch.zeros(k) for k in range(12)]
    found = archive.examine(saved(content))
    assert [declared.shape for declared in found] == [(k,) for k in range(12)]
    assert len({declared.key for declared in found}) == 12


VIEWS = {
    "transposed": lambda x: x.T,
    "a part": lambda x: x[1:],
    "every second": lambda x: x[:, ::2],
    "one": lambda x: x[2, 3],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_are_accepted_where_they_are_allowed(view: Any) -> None:
    data = saved([view(torch.zeros(4, 6))])
    with pytest.raises(ArchiveError, match="that is not its storage of 24 numbers"):
        archive.examine(data)
    (found,) = archive.examine(data, views=True)
    assert found.shape == tuple(view(torch.zeros(4, 6)).shape)


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(3).expand(1000, 3)],
        [torch.zeros(1).expand(0, 10**9, 10**9), torch.zeros(2).as_strided((2, 2), (0, 1))],
        torch.zeros(3).split(2),
        [torch.zeros(3)] * 2,
    ],
)
def test_what_repeats_a_storage_never_is(content: Any) -> None:
    for views in (False, True):
        with pytest.raises(ArchiveError):
            archive.examine(saved(content), views=views)


def rewritten(content: Any, old: bytes, new: bytes) -> bytes:
    """The archive of the content with something else in its pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(content))) as found, zipfile.ZipFile(file, "w") as made:
        for name in found.namelist():
            data = found.read(name)
            made.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (3, None),
        (2, "a storage of 2 torch.float32 in a record of 12 bytes"),
        (4, "a storage of 4 torch.float32 in a record of 12 bytes"),
        (255, "a storage of 255 torch.float32 in a record of 12 bytes"),
    ],
)
def test_a_storage_is_as_large_as_its_record(declared: int, reason: str | None) -> None:
    data = rewritten([torch.zeros(3)], b"K\3", b"K" + bytes([declared]))
    if reason is None:
        assert archive.examine(data) == [Declared(torch.float32, (3,), "0")]
        return
    for views in (False, True):
        with pytest.raises(ArchiveError) as refused:
            archive.examine(data, views=views)
        assert str(refused.value) == reason


def test_an_archive_of_many_gigabytes_may_have_a_directory_of_64_bits() -> None:
    """torch writes such an end always; one without it is as good."""
    data = saved({"w": torch.ones(2)})
    place = data.index(b"PK\6\6")
    short = data[:place] + data[-22:]
    assert archive.examine(short) == archive.examine(data)
    far = bytearray(data)
    far[-14:-2] = b"\xff" * 12  # what does not fit into 32 bits stands in the other end alone
    assert archive.examine(bytes(far)) == archive.examine(data)


def test_the_comment_is_where_it_is_said_to_be() -> None:
    data = saved({"a": 1})
    noted = data[:-2] + (5).to_bytes(2, "little") + b"hello"
    assert archive.examine(noted, 5) == {"a": 1}
    for comment in (0, 4, 6):
        with pytest.raises(ArchiveError, match=r"no end of an archive|several parts"):
            archive.examine(noted, comment)
