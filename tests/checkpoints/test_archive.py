"""What `torch.save` writes is accepted, and described as it is; one example of everything that is refused.

Many more: tests/faults/hostile_checkpoints.py.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from typing import Any

import pytest
import torch

from torch_caption.checkpoints import archive
from torch_caption.checkpoints.archive import ArchiveError, Declared

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


def records(content: Any) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(saved(content))) as found:
        return [(name, found.read(name)) for name in found.namelist()]


def archived(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as made:
        warnings.simplefilter("ignore", UserWarning)  # of a name that comes twice
        for name, data in entries:
            made.writestr(name, data)
    return file.getvalue()


def rewritten(content: Any, old: bytes, new: bytes) -> bytes:
    """The archive of the content with something else in its pickle."""
    return archived([(name, data.replace(old, new) if "pkl" in name else data) for name, data in records(content)])


def refusal(data: bytes, *, views: bool = False) -> str:
    with pytest.raises(ArchiveError) as refused:
        archive.examine(data, views=views)
    return str(refused.value)


def within(depth: int) -> list[Any]:
    return [within(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (within(40), "values within values, more than 32 deep"),
        ([[1]] * 2, "a pickle that uses a part twice"),
        ([{}] * 2, "a pickle that uses a part twice"),
        ([((1,), 2)] * 2, "a pickle that uses a part twice"),
        ({(1, 2): 3}, "a dict with a key that is a tuple"),
        ({1.5: 3}, "a dict with a key that is a float"),
        ({True: 3}, "a dict with a key that is a bool"),
        ({None: 3}, "a dict with a key that is a NoneType"),
        (b"x", "more than tensors and plain values: '_codecs.encode'"),
        ({1, 2}, "more than tensors and plain values: '__builtin__.set'"),
        (torch.Size([1]), "more than tensors and plain values: 'torch.Size'"),
        (torch.float32, "more than tensors and plain values: 'torch.float32'"),
        (print, "more than tensors and plain values: '__builtin__.print'"),
        (torch.nn.Parameter(torch.ones(2)), "more than tensors and plain values: 'torch._utils._rebuild_parameter'"),
        (torch.ones(2).to_sparse(), "more than tensors and plain values: 'torch._utils._rebuild_sparse_tensor'"),
        (torch.ones(2, device="meta"), "more than tensors and plain values: "),
        (torch.ones(2, dtype=torch.complex64), "more than tensors and plain values: 'torch.ComplexFloatStorage'"),
        (torch.ones((1,) * 9), "a tensor without a sound shape"),
        (2**3000, "a pickle with LONG4 at 2"),
    ],
)
def test_what_is_neither_plain_nor_a_tensor_is_refused(content: Any, reason: str) -> None:
    assert refusal(saved(content)).startswith(reason)


def test_a_tree_may_be_as_deep_as_said() -> None:
    content = within(archive.MOST_DEPTH)
    assert archive.examine(saved(content)) == content


def test_pickles_that_end_elsewhere() -> None:
    for change in (b"more", b"."):
        entries = [(name, data + change if "pkl" in name else data) for name, data in records({"a": 1})]
        assert refusal(archived(entries)) == "no sound pickle"
    entries = [(name, data[:-1] if "pkl" in name else data) for name, data in records({"a": 1})]
    assert refusal(archived(entries)) in ("no sound pickle", "a pickle without an end")


def test_pickles_that_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    content = list(range(100))
    monkeypatch.setattr(archive, "MOST_OPCODES", 110)
    assert archive.examine(saved(content)) == content
    monkeypatch.setattr(archive, "MOST_OPCODES", 90)
    assert refusal(saved(content)) == "a pickle of more than 90 steps"
    monkeypatch.setattr(archive, "MOST_PICKLE", 100)
    assert "bytes; 100 are the most" in refusal(saved(content))


ARCHIVES = {
    "compressed": (lambda e: archived(e, zipfile.ZIP_DEFLATED), "a record 'archive/data.pkl' that is compressed"),
    "twice": (lambda e: archived([*e, e[0]]), "a record 'archive/data.pkl' twice"),
    "unknown": (lambda e: archived([*e, ("archive/code.py", b"")]), "a record 'archive/code.py'"),
    "elsewhere": (lambda e: archived([*e, ("other/data/9", b"")]), "records of several archives"),
    "outside": (lambda e: archived([*e, ("../data/9", b"")]), "records of several archives"),
    "unused": (lambda e: archived([*e, ("archive/data/9", b"x")]), "1 records that belong to nothing"),
    "missing": (lambda e: archived(e[1:]), "no sound archive"),
    "order": (lambda e: archived([(n, b"middle" if "order" in n else d) for n, d in e]), "a byte order b'middle'"),
    "many": (
        lambda e: archived([*e, *((f"archive/data/{k}", b"") for k in range(9, 5000))]),
        "4,998 records in a directory",
    ),
    "before": (lambda e: b"x" * 9 + archived(e), "a directory that is not where it is said to be"),
    "behind": (lambda e: archived(e) + b"x", "no end of an archive where it should be"),
    "two": (lambda e: archived(e) + archived(e), "a directory that is not where it is said to be"),
}


@pytest.mark.parametrize(("make", "reason"), ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_torch_does_not_write(make: Any, reason: str) -> None:
    entries = records({"w": torch.ones(2)})
    assert archive.examine(archived(entries)) == {"w": Declared(torch.float32, (2,), "0")}
    assert refusal(make(entries)).startswith(reason)


def test_an_end_within_the_end() -> None:
    """Who looks for the last signature finds another end than who looks where it should be."""
    data = bytearray(saved({"a": 1}))
    data[-10:-6] = b"PK\5\6"
    assert refusal(bytes(data)) == "no end of an archive where it should be"


def test_ends_that_contradict_each_other() -> None:
    data = saved({"a": 1})
    place = data.index(b"PK\6\6")
    for field in (24, 32, 40, 48):
        changed = bytearray(data)
        changed[place + field] ^= 1
        assert refusal(bytes(changed)) in (
            "an end of an archive that contradicts itself",
            "a directory that is not where it is said to be",
        )


def test_records_over_each_other() -> None:
    data = bytearray(saved([torch.zeros(1000), torch.ones(1000)]))
    first, second = (data.rindex(f"archive/data/{k}".encode()) - 46 for k in (0, 1))
    longer = bytearray(data)
    for field in (20, 24):
        longer[second + field : second + field + 4] = len(data).to_bytes(4, "little")
    assert refusal(bytes(longer)).startswith(f"a record 'archive/data/1' of {len(data):,} bytes in a file of")
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    assert refusal(bytes(data)) == "a record 'archive/data/1' that begins within another"


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
    else:
        assert refusal(data) == refusal(data, views=True) == reason


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
    longer = noted[:-7] + (6).to_bytes(2, "little") + b"hello"
    with pytest.raises(ArchiveError, match="several parts"):
        archive.examine(longer, 5)
