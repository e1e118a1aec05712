"""The checkpoint format: a checkpoint loads as it was saved, and every other file is refused."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import pickle
import random
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import safetensors.torch
import torch

from tests.helpers.rings import ringed
from tests.helpers.saved_checkpoint import CONFIG, WORDS, forged, framed, make, sealed
from torch_caption.checkpoints import checksum
from torch_caption.checkpoints import format as checkpoints
from torch_caption.errors import CheckpointError
from torch_caption.io import files
from torch_caption.io.exits import Stopped


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoints.save(tmp_path / "last.safetensors", make())
    return tmp_path / "last.safetensors"


def refusal(path: Path, data: bytes | None = None) -> str:
    """The one line that refuses the file, with these bytes if they are given; without the path."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CheckpointError) as refused:
        checkpoints.load(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    return message.removeprefix(f"{path}: ")


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


# What goes in comes out ----------------------------------------------------------------------------------------------


def test_a_checkpoint_loads_as_it_was_saved(saved: Path) -> None:
    assert_same(vars(checkpoints.load(saved)), vars(make()))
    assert [path.name for path in saved.parent.iterdir()] == ["last.safetensors"]


def test_equal_checkpoints_are_equal_files(saved: Path) -> None:
    first = saved.read_bytes()
    checkpoints.save(saved, checkpoints.load(saved))
    assert saved.read_bytes() == first


def test_headers_of_any_length(tmp_path: Path) -> None:
    """The first byte of some is also that of a pickle."""
    path, first = tmp_path / "x.safetensors", set()
    for more in range(0, 256, 8):
        checkpoints.save(path, make(data={"train": "x" * more}))
        first.add(path.read_bytes()[0])
        assert checkpoints.load(path).data == {"train": "x" * more}
    assert 0x80 in first


def test_floats_come_out_to_the_bit(tmp_path: Path) -> None:
    rng = random.Random(0)
    numbers = [rng.uniform(-1, 1) * 10.0 ** rng.randrange(-300, 300) for _ in range(500)] + [-0.0, 5e-324, 2**53 + 1]
    path = tmp_path / "x.safetensors"
    checkpoints.save(path, make(progress={"sums": numbers}, config=dataclasses.replace(CONFIG, lr=0.1 + 0.2)))
    found = checkpoints.load(path)
    assert list(map(repr, found.progress["sums"])) == list(map(repr, numbers))
    assert found.config.lr == 0.1 + 0.2


@pytest.mark.parametrize("dtype", checksum.DTYPES)
def test_tensors_of_every_dtype_and_layout(tmp_path: Path, dtype: torch.dtype) -> None:
    """A view or an expanded tensor is written as what it holds, and comes out in memory of its own, aligned."""
    base = torch.arange(60).to(dtype)
    arrays = {"part": base[1:4], "turned": base[:6].view(2, 3).T, "wide": base[:1].expand(5), "one": base[7]}
    arrays |= {"none": base[:0], "planes": base.view(3, 4, 5)[:, ::2]}
    checkpoints.save(tmp_path / "x.safetensors", make(manifest=arrays))
    found = checkpoints.load(tmp_path / "x.safetensors")
    assert_same(found.manifest, arrays)
    assert {x.data_ptr() % 64 for x in [*found.weights.values(), *found.manifest.values()]} == {0}
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in found.manifest.values())


def test_the_best_checkpoint_names_no_folder_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint to resume from keeps the settings as they were given."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    config = dataclasses.replace(CONFIG, data=str(tmp_path / "coco"), out=Path("private"), init_from=Path("x"))
    for random_state, shared in ((make().random, False), ({}, True)):
        checkpoints.save(tmp_path / "x.safetensors", make(config=config, random=random_state))
        with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
            settings = json.loads(file.metadata()["config"])
        assert ("private" in str(settings)) is not shared
        assert settings["data"] == ("~/coco" if shared else str(tmp_path / "coco"))
        assert settings.get("init_from") == (None if shared else "x")


# Saving --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Stopped(signal.SIGTERM), OSError(errno.EIO, "I/O error")])
@pytest.mark.parametrize("written", [0, 2000])
def test_a_save_that_fails_leaves_the_checkpoint_before(
    saved: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, written: int
) -> None:
    before, real = saved.read_bytes(), files.replace

    def stopped(path: Path, write: Any, **options: Any) -> None:
        def part(file: BinaryIO) -> None:
            whole = io.BytesIO()
            write(whole)
            file.write(whole.getvalue()[:written])
            raise stop

        real(path, part, **options)

    monkeypatch.setattr(files, "replace", stopped)
    with pytest.raises(type(stop)) as raised:
        checkpoints.save(saved, make())
    assert raised.value is stop or str(raised.value).startswith(f"{saved}: could not be written: I/O error; it takes ")
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["last.safetensors"]


def test_the_previous_checkpoint_is_kept(saved: Path) -> None:
    before = saved.read_bytes()
    checkpoints.save(saved, make(progress={"step": 2}))
    assert sorted(path.name for path in saved.parent.iterdir()) == ["last.previous.safetensors", "last.safetensors"]
    assert checkpoints.previous(saved).read_bytes() == before
    checkpoints.save(saved, make(progress={"step": 3}))
    saved.write_bytes(saved.read_bytes()[:-1])  # a damaged one replaces no previous one
    checkpoints.save(saved, make(progress={"step": 4}))
    checkpoints.save(saved, make(progress={"step": 5}), keep=False)
    assert checkpoints.load(saved).progress == {"step": 5}
    assert checkpoints.load(checkpoints.previous(saved)).progress == {"step": 2}


def test_a_full_disk_is_reported_with_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(OSError, match=r"x\.st: could not be written: No space left on device; it takes \d+\.\d kB$"):
        checkpoints.save(tmp_path / "x.st", make())


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("weights", "Wx", float("nan")),
        ("average", "average/Wx", float("inf")),
        ("optimizer", "optimizer/Wx/exp_avg", -float("inf")),
        ("manifest", "manifest/x", float("nan")),
    ],
)
def test_non_finite_tensors_are_not_saved(saved: Path, part: str, name: str, value: float) -> None:
    before, made = saved.read_bytes(), make()
    made.manifest["x"] = torch.ones(2)
    getattr(made, part)[name.removeprefix(f"{part}/")].view(-1)[-1] = value
    with pytest.raises(checkpoints.NonFiniteTensor, match=rf"not saved: the tensor '{name}' contains NaN or infinity$"):
        checkpoints.save(saved, made)
    assert saved.read_bytes() == before


DEEP: dict[str, Any] = {}
for _ in range(40):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"manifest": DEEP}, "nested more than 32 levels"),
        ({"manifest": {"x": [torch.ones(1)]}}, "not JSON serializable"),
        ({"manifest": {"x": float("inf")}}, "not JSON compliant"),
        ({"manifest": {"x": torch.ones(2).to_sparse()}}, "'manifest/x' is of torch.float32 and torch.sparse_coo"),
        ({"manifest": {"x": torch.ones(2, dtype=torch.complex64)}}, "'manifest/x' is of torch.complex64"),
        ({"words": [*WORDS, "x" * 2**23]}, "its header would have"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: not saved: .*{re.escape(words)}"):
        checkpoints.save(tmp_path / "x.safetensors", make(**changes))
    assert list(tmp_path.iterdir()) == []


def test_the_size_of_a_file_is_limited(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SIZE_LIMIT", 10_000)
    assert re.fullmatch(r"1\d\.\d kB; at most 10\.0 kB are read", refusal(saved))
    with pytest.raises(CheckpointError, match=r"not saved: 1\d\.\d kB; at most 10\.0 kB are written"):
        checkpoints.save(saved, make())


# Finding -------------------------------------------------------------------------------------------------------------


def test_the_latest_readable_checkpoint_is_found(saved: Path) -> None:
    checkpoints.save(saved, make(progress={"step": 2}))
    checkpoints.save(saved, make(progress={"step": 3}))
    found = checkpoints.find_latest(saved)
    assert (found.checkpoint.progress["step"], found.path, found.warning) == (3, saved, None)
    saved.write_bytes(saved.read_bytes()[:-1])
    found = checkpoints.find_latest(saved)
    before = checkpoints.previous(saved)
    assert (found.checkpoint.progress["step"], found.path) == (2, before)
    assert found.warning == (
        f"{saved}: truncated or damaged: the SHA-256 of its bytes is not the one in its header; using the previous "
        f"one, {before}, of step 2"
    )
    saved.unlink()
    found = checkpoints.find_latest(saved)
    assert (found.checkpoint.progress["step"], found.path) == (2, before)
    assert "no such checkpoint; using" in str(found.warning)
    before.write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"no such checkpoint; the previous one cannot be used either: .*: truncated"
    ):
        checkpoints.find_latest(saved)
    before.unlink()
    with pytest.raises(CheckpointError, match=r"no such checkpoint$"):
        checkpoints.find_latest(saved)


def test_a_replaced_file_is_no_longer_current(saved: Path) -> None:
    found = checkpoints.find(saved)
    assert found.is_current()
    checkpoints.save(saved, make())
    assert not found.is_current()
    saved.unlink()
    assert not found.is_current()


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", ringed([30, 600], [30]))
def test_truncated_files_are_refused(saved: Path, count: int) -> None:
    """Also where zeros take the place of the missing bytes, as an interrupted copy may leave them."""
    whole = saved.read_bytes()
    for end in {0, 1, 8, 34, 35, 98, 99, len(whole) - 1, *range(5, len(whole), len(whole) // count)}:
        assert refusal(saved, whole[:end]).startswith("truncated")
        assert not checksum.is_whole(saved)
        if any(whole[end:]):
            refusal(saved, whole[:end].ljust(len(whole), b"\0"))


@pytest.mark.parametrize("count", ringed([50, 1200], [50]))
def test_a_flipped_byte_is_refused(saved: Path, count: int) -> None:
    whole = saved.read_bytes()
    rng = random.Random(0)
    for place in [*range(100), *rng.sample(range(len(whole)), count)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        assert "damaged" in refusal(saved, bytes(flipped))
        assert not checksum.is_whole(saved)
    saved.write_bytes(whole)
    assert checksum.is_whole(saved)
    for missing in (saved.with_name("none.safetensors"), saved.parent):
        assert refusal(missing) == "no such checkpoint"
        assert not checksum.is_whole(missing)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["evil.pt", "evil.safetensors"])
def test_no_pickle_is_opened(tmp_path: Path, name: str) -> None:
    target, path = tmp_path / "touched", tmp_path / name
    for new in (True, False):
        torch.save(Evil(target), path, _use_new_zipfile_serialization=new)
        assert refusal(path) == (
            "a file of torch.save, or another archive or pickle, which can contain code and is not opened; a "
            "checkpoint is a safetensors file, such as best.safetensors"
        )
    assert "is not opened" in refusal(path, pickle.dumps(Evil(target)))
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # it would have run


def test_safetensors_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    message = "truncated, damaged or not a checkpoint of torch_caption"
    assert refusal(path, safetensors.torch.save(make().weights)) == message
    assert refusal(path, safetensors.torch.save(make().weights, {"format": "pt"})) == message
    assert refusal(path, forged(metadata={"kind": None})) == "not a checkpoint of torch_caption"
    assert refusal(path, forged(metadata={"version": "7", "library": "9.9"})).startswith(
        "of format version '7', written by torch_caption '9.9'; this is torch_caption"
    )


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        ({"W": F32 | {"shape": [10**12]}}, 4, "not a valid safetensors file"),
        ({"W": F32 | {"data_offsets": [0, 2**60]}}, 4, "not a valid safetensors file"),
        ({"W": F32, "V": F32}, 4, "not a valid safetensors file"),  # in the same bytes
        ({"W": F32, "V": F32 | {"data_offsets": [2, 6]}}, 6, "not a valid safetensors file"),
        ({"W": F32}, 8, "not a valid safetensors file"),  # and bytes that belong to nothing
        ({"W": F32 | {"dtype": "X9"}}, 4, "not a valid safetensors file"),
        ({"__metadata__": {"kind": 3}}, 0, "not a valid safetensors file"),
        (b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'"},"W":{},"W":{}}', 0, "has the key 'W' twice"),
        (b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'","kind":"a","kind":"b"}}', 0, "has the key 'kind' twice"),
        (b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'"},"__metadata__":{}}', 0, "has the key '__metadata__' twice"),
        (b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'"},"a":' + b"[" * 100_000, 0, "nested too deep"),
        (b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'"}', 0, "not JSON"),
        (b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'"},"\xff":1}', 0, "utf-8"),
        (b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'"}}' + b" " * 2**23, 0, "its header has 8,388,"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_invalid_headers_are_refused(tmp_path: Path, header: bytes | Mapping[str, Any], body: int, words: str) -> None:
    assert words in refusal(tmp_path / "x.safetensors", framed(header, bytes(body)))


@pytest.mark.parametrize("length", [0, 20, 2**23, 2**64 - 1])
def test_a_wrong_header_length_is_refused(saved: Path, length: int) -> None:
    changed = sealed(length.to_bytes(8, "little") + saved.read_bytes()[8:])
    assert re.search("its header|not JSON|not a valid", refusal(saved, changed))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"Wx": torch.ones(4, 5).double()}, "the tensor 'Wx' is of torch.float64, not torch.float32"),
        ({"Wx": torch.full((4, 5), float("nan"))}, "the tensor 'Wx' contains NaN or infinity"),
        ({"manifest/x": torch.tensor([float("inf")])}, "the tensor 'manifest/x' contains NaN or infinity"),
        ({"average/Wx": None}, "the tensor 'average/Wx' is missing"),
        ({"average/Wx": torch.ones(5, 4)}, "the tensor 'average/Wx' has shape (5, 4), not (4, 5)"),
        ({"average/more": torch.ones(2)}, "unknown tensor 'average/more'"),
        ({"optimizer/Wx/exp_avg": None}, "the tensor 'optimizer/Wx/exp_avg' is missing"),
        ({"optimizer/Wx/step": torch.ones(2)}, "the tensor 'optimizer/Wx/step' has shape (2,), not ()"),
        ({"optimizer/Wx/exp_avg": torch.ones(4, 5).half()}, "the tensor 'optimizer/Wx/exp_avg' is of torch.float16"),
        ({"random/0/torch": torch.ones(3)}, "the tensor 'random/0/torch' is of torch.float32, not torch.uint8"),
        ({"random/0/torch": None, "random/1/cuda": torch.ones(3).byte()}, "unknown tensor 'random/1/cuda'"),
        ({"random/x": torch.ones(3).byte()}, "unknown tensor 'random/x'"),
        ({"manifest/a/b/c": torch.ones(2)}, "its manifest does not fit the tensor 'manifest/a/b/c'"),
        ({"manifest/encoder": torch.ones(2)}, "its manifest does not fit the tensor 'manifest/encoder'"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_invalid_tensors_are_named(tmp_path: Path, tensors: dict[str, torch.Tensor | None], words: str) -> None:
    assert words in refusal(tmp_path / "x.safetensors", forged(tensors))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"words": None}, "its metadata lacks 'words'"),
        ({"words": {}}, "its words is of type dict, not list"),
        ({"words": ["a", 3]}, "the word of id 1 is 3, not a string"),
        ({"words": [*WORDS, "a"]}, "the word 'a' has two ids"),
        ({"words": WORDS[1:]}, "the vocabulary lacks <NULL>"),
        ({"words": '["a", "a"'}, "its words: not JSON"),
        ({"config": {"max_length": "x"}}, "the saved setting of --max-length cannot be 'x'"),
        ({"config": '{"lr": NaN}'}, "its config: not JSON"),
        ({"config": '{"lr": 1, "lr": 2}'}, "has the key 'lr' twice"),
        ({"config": '{"max_length": ' + "9" * 5000 + "}"}, "its config: not JSON"),
        ({"config": {"dtype": "float64"}}, "is of torch.float32, not torch.float64"),
        ({"progress": 3}, "its progress is of type int, not dict"),
        ({"data": "null"}, "its metadata lacks 'data'"),
        ({"manifest": DEEP}, "nested more than 32 levels"),
        ({"progress": '{"a":' * 100_000 + "1" + "}" * 100_000}, "nested too deep"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_invalid_metadata_are_named(tmp_path: Path, metadata: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path / "x.safetensors", forged(metadata=metadata, manifest={}))


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.uint16, torch.uint64, torch.complex64], ids=str
)
@pytest.mark.parametrize("name", ["manifest/x", "Wx"])
def test_tensors_of_other_dtypes_are_refused(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    """torch itself computes with some of them not at all."""
    _, metadata = checkpoints._flat(make())
    numbers = torch.ones(4).to(dtype)
    plain = safetensors.torch.save({name: numbers}, {"sha256": "0" * 64, **metadata})
    size = 8 + int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8:size])
    assert re.search("dtype|not a valid|of torch", refusal(tmp_path / "x.safetensors", framed(header, plain[size:])))


def test_what_is_verified_is_what_is_used(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes between the check and the use changes nothing: it is read once."""
    other = saved.with_name("other.safetensors")
    checkpoints.save(other, make(progress={"step": 99}))
    digest = checksum._digest

    def exchange(data: bytes, *more: memoryview) -> bytes:
        other.replace(saved)
        return digest(data, *more)

    monkeypatch.setattr(checksum, "_digest", exchange)
    assert checkpoints.load(saved).progress == make().progress


# Without this library ------------------------------------------------------------------------------------------------

READ = """
import hashlib, json, pathlib, sys
sys.modules["torch_caption"] = None
from safetensors import safe_open
with safe_open(sys.argv[1], "pt") as file:
    metadata = file.metadata()
    print(metadata["kind"], metadata["version"], json.loads(metadata["words"]), json.loads(metadata["config"])["lr"])
    for name in sorted(file.keys()):
        print(name, file.get_tensor(name).numpy().tobytes().hex())
whole, digits = pathlib.Path(sys.argv[1]).read_bytes(), metadata["sha256"].encode()
print(hashlib.sha256(whole.replace(digits, b"0" * 64)).hexdigest() == metadata["sha256"])
"""


def test_a_file_is_read_with_torch_and_safetensors_alone_to_the_bit(saved: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", READ, str(saved)]
    ran = subprocess.run(command, cwd=saved.parent, capture_output=True, text=True, encoding="utf-8", check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    tensors, _ = checkpoints._flat(make())
    lines = [f"{name} {tensor.numpy().tobytes().hex()}" for name, tensor in sorted(tensors.items())]
    assert {"Wx", "average/Wx", "optimizer/Wx/exp_avg", "random/0/torch", "manifest/projection/mean"} <= tensors.keys()
    assert ran.stdout.splitlines() == [f"torch_caption checkpoint 1 {WORDS} 0.001", *lines, "True"]
