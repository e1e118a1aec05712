"""Checkpoints that somebody made to do harm: to run code, to fill the memory, to take forever, to compute rubbish.

Whoever makes one can give it the right checksum, and so all of these have it. They are opened in processes with little
memory to take, by all that a program does with a checkpoint before it computes; each must be refused in one line.

    python tests/faults/hostile_checkpoints.py FILE...      what becomes of each of these, a line of JSON a file
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

import safetensors.torch  # noqa: E402 - the rest is found beside this file
import torch  # noqa: E402

from tests.faults.figures import Family, Figures  # noqa: E402
from tests.helpers import saved_checkpoint  # noqa: E402
from torch_caption.checkpoints import checksum as seal  # noqa: E402
from torch_caption.checkpoints import format as checkpoints  # noqa: E402
from torch_caption.config import TrainConfig  # noqa: E402
from torch_caption.data.dataset import CocoData, Split  # noqa: E402
from torch_caption.data.vocabulary import Vocabulary  # noqa: E402
from torch_caption.encoders import extractor as recipes  # noqa: E402
from torch_caption.io.exits import guarded  # noqa: E402
from torch_caption.training import state  # noqa: E402

MOST_SECONDS, MOST_MIB = 10.0, 400.0
SPARE = 2**30  # bytes of address space a process may take beyond what it has when it begins
Make = Callable[[random.Random, Path], bytes]
KINDS: dict[str, Make] = {}


def kind(make: Make) -> Make:
    """Enter a kind: (rng, canary) -> a file; the canary is what code would touch."""
    KINDS[make.__name__.replace("_", " ")] = make
    return make


# Pickles, opcode by opcode -------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    encoded = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def several(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode("ascii")


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + several(*arguments) + pickle.REDUCE


def storage(numel: int, key: str = "0", of: str = "Float") -> bytes:
    return several(text("storage"), name("torch", f"{of}Storage"), text(key), text("cpu"), number(numel)) + b"Q"


def tensor(stored: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    axes = (several(*map(number, sizes)) for sizes in (shape, strides))
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_tensor_v2"), stored, number(offset), *axes, pickle.NEWFALSE, hooks)


def whole(value: bytes) -> bytes:
    """A pickle of a dict that begins as a checkpoint's, with the value for its settings."""
    head = (text("format"), text(checkpoints.FORMAT), text("version"), number(checkpoints.VERSION))
    items = b"".join((*head, text("config"), value))
    return pickle.PROTO + b"\2" + pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


# Archives ------------------------------------------------------------------------------------------------------------


def records(data: bytes, *stored: bytes) -> list[tuple[str, bytes]]:
    found = [("data.pkl", data), (".format_version", b"1"), (".storage_alignment", b"64"), ("byteorder", b"little")]
    return [*found, *((f"data/{key}", content) for key, content in enumerate(stored)), ("version", b"3\n")]


def archive(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED, prefix: str = "archive/") -> bytes:
    """The records as an archive, sealed."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as made:
        warnings.simplefilter("ignore", UserWarning)  # of a name that comes twice
        for entry, content in entries:
            made.writestr(zipfile.ZipInfo(prefix + entry), content, compression)
    return sealed(file.getvalue())


def sealed(made: bytes) -> bytes:
    file = io.BytesIO()
    sealing = seal.Sealing(file)
    sealing.write(made)
    sealing.finish()
    return file.getvalue()


def unsealed(made: bytes) -> bytearray:
    """The archive without its comment, to be changed."""
    return bytearray(made[: -seal.SEAL_SIZE - 2] + b"\0\0")


def pickled(data: bytes, *stored: bytes) -> bytes:
    return archive(records(data, *stored))


def content(**changes: Any) -> bytes:
    """A whole checkpoint with some of its parts replaced."""
    file = io.BytesIO()
    sealing = seal.Sealing(file)
    torch.save(saved_checkpoint.plain(saved_checkpoint.make(manifest={}, data=None), **changes), sealing)
    sealing.finish()
    return file.getvalue()


# Code ----------------------------------------------------------------------------------------------------------------


def touching(rng: random.Random, canary: Path) -> bytes:
    """An expression that touches the canary, in one of many ways."""
    touch = f"open({str(canary)!r}, 'w').close()"
    shell = f"\"{sys.executable}\" -c \"open(r'{canary}', 'w').close()\""
    builtins = rng.choice(("builtins", "__builtin__"))
    ways = [
        call(name(builtins, rng.choice(("exec", "eval"))), text(touch)),
        call(name(rng.choice(("os", "posix", "nt")), "system"), text(shell)),
        call(name("subprocess", rng.choice(("call", "check_output", "Popen"))), text(shell)),
        call(name("pathlib", "Path.touch"), call(name("pathlib", "Path"), text(str(canary)))),
        call(name("torch.utils._config_module", "os.system"), text(shell)),
        call(name("torch", rng.choice(("load", "hub.load", "jit.load", "compile"))), text(str(canary))),
        call(name("runpy", "run_path"), text(str(canary))),
        call(name("timeit", "timeit"), text("0"), text(touch)),
        call(
            call(name(builtins, "getattr"), call(name(builtins, "__import__"), text("os")), text("system")), text(shell)
        ),
        call(name("torch.serialization", "add_safe_globals"), pickle.EMPTY_LIST),
        call(name("collections", "OrderedDict"), name("os", "system")),
        call(name("torch.storage", "_load_from_bytes"), text("x")),
        name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
        call(name("collections", "OrderedDict")) + name("os", "system") + pickle.BUILD,
        pickle.MARK + text(shell) + pickle.INST + b"os\nsystem\n",
        pickle.MARK + name("os", "system") + text(shell) + pickle.OBJ,
        pickle.EXT1 + b"\1",
        text("os") + text("system") + pickle.STACK_GLOBAL + several(text(shell)) + pickle.REDUCE,
    ]
    return rng.choice(ways)


@kind
def code_in_a_setting(rng: random.Random, canary: Path) -> bytes:
    return pickled(whole(touching(rng, canary)))


@kind
def code_for_the_whole(rng: random.Random, canary: Path) -> bytes:
    return pickled(pickle.PROTO + b"\2" + touching(rng, canary) + pickle.STOP)


@kind
def code_for_a_storage(rng: random.Random, canary: Path) -> bytes:
    stored = rng.choice((touching(rng, canary) + b"Q", pickle.PERSID + b"os.system\n", text("x") + b"Q"))
    return pickled(whole(tensor(stored, 0, (1,), (1,))), bytes(4))


@kind
def code_in_a_plain_pickle(rng: random.Random, canary: Path) -> bytes:
    return pickle.PROTO + b"\2" + touching(rng, canary) + pickle.STOP


@kind
def code_in_torchs_old_format(rng: random.Random, canary: Path) -> bytes:
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + pickle.PROTO + b"\2" + touching(rng, canary) + pickle.STOP


@kind
def code_of_torchscript(rng: random.Random, canary: Path) -> bytes:
    more = [("constants.pkl", pickle.dumps((), 2)), ("code/__torch__.py", b"import os\n"), ("model.json", b"{}")]
    return archive([*records(whole(pickle.NONE)), more[rng.randrange(3)]])


# Tensors -------------------------------------------------------------------------------------------------------------


@kind
def storage_that_is_not_there(rng: random.Random, _: Path) -> bytes:
    """Nothing but torch's own check would keep it from what lies behind the record in memory."""
    numel = rng.choice((4, 5, 1000, 10**6, 10**12, 2**40, 2**63, 2**64, 2**62, -1, 10**400))
    shape = (numel,) if numel > 0 else (3,)
    return pickled(whole(tensor(storage(numel), 0, shape, (1,))), bytes(12))


@kind
def storage_of_another_kind(rng: random.Random, _: Path) -> bytes:
    of = rng.choice(("Double", "ComplexFloat", "ComplexDouble", "QInt8", "QUInt4x2", "Untyped", "Half", "Long", ""))
    return pickled(whole(tensor(storage(3, of=of), 0, (3,), (1,))), bytes(12))


@kind
def storage_without_a_record(rng: random.Random, _: Path) -> bytes:
    key = rng.choice(("1", "-1", "../../etc/passwd", "", "0/0", "00", "data.pkl"))
    return pickled(whole(tensor(storage(3, key), 0, (3,), (1,))), bytes(12))


@kind
def tensor_of_terabytes(rng: random.Random, _: Path) -> bytes:
    shape = rng.choice(((10**13,), (10**7, 10**6), (2**62, 4), (2**64,), (10**200, 10**200), (4, 10**12, 1)))
    return pickled(whole(tensor(storage(3), 0, shape, (0,) * len(shape))), bytes(12))


@kind
def tensor_out_of_its_storage(rng: random.Random, _: Path) -> bytes:
    offset, shape, strides = rng.choice(
        (
            (1, (3,), (1,)),
            (-1, (3,), (1,)),
            (0, (3,), (2,)),
            (0, (3,), (-1,)),
            (2**63, (3,), (1,)),
            (0, (-3,), (1,)),
            (0, (3, 1), (1,)),
            (0, (3,), (0,)),
            (0, (1,) * 70, (1,) * 70),
            (10**30, (1,), (1,)),
            (0, (2,), (1,)),
        )
    )
    return pickled(whole(tensor(storage(3), offset, shape, strides)), bytes(12))


@kind
def tensors_that_overlap(rng: random.Random, _: Path) -> bytes:
    numel = rng.choice((1, 3, 8))
    one = tensor(storage(numel), 0, (numel,), (1,))
    return pickled(whole(several(one, one)), bytes(4 * numel))


@kind
def tensor_of_another_layout(rng: random.Random, _: Path) -> bytes:
    one, utils = tensor(storage(3), 0, (3,), (1,)), "torch._utils"
    made = rng.choice(
        (
            call(name(utils, "_rebuild_sparse_tensor"), name("torch", "sparse_coo"), several(one, one, several())),
            call(name(utils, "_rebuild_sparse_tensor"), name("torch", "sparse_csr"), several(one, one, one, several())),
            call(name(utils, "_rebuild_meta_tensor_no_storage"), name("torch", "float32"), several(number(10**15))),
            call(name(utils, "_rebuild_qtensor"), storage(3, of="QInt8"), number(0), several(number(3))),
            call(name(utils, "_rebuild_nested_tensor"), one, one, one, one),
            call(name(utils, "_rebuild_wrapper_subclass"), one),
            call(name(utils, "_rebuild_device_tensor_from_numpy"), one, one, text("cuda"), pickle.NEWFALSE),
            call(name(utils, "_rebuild_parameter"), one, pickle.NEWTRUE, call(name("collections", "OrderedDict"))),
            call(name("torch._tensor", "_rebuild_from_type_v2"), name("torch", "Tensor"), one, one, one),
            call(name("torch.nested._internal.nested_tensor", "NestedTensor"), one),
            call(name("torch", "Size"), several(number(1))),
            call(
                name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), several(number(0)), text("b")
            ),
        )
    )
    return pickled(whole(made), bytes(12))


# Pickles that are too much -------------------------------------------------------------------------------------------


@kind
def values_within_values(rng: random.Random, _: Path) -> bytes:
    depth = rng.choice((40, 1000, 100_000, 300_000))
    ways = (
        pickle.EMPTY_LIST * depth + pickle.APPEND * (depth - 1),
        pickle.EMPTY_TUPLE + pickle.TUPLE1 * depth,
        (pickle.EMPTY_DICT + text("a")) * depth + pickle.NONE + pickle.SETITEM * depth,
    )
    return pickled(whole(rng.choice(ways)))


@kind
def towers_of_pairs(rng: random.Random, _: Path) -> bytes:
    """Each level holds the one below twice: a hash, a print or a copy of it would take forever."""
    get, put, levels = pickle.BINGET + b"\0", pickle.BINPUT + b"\0", rng.choice((30, 100, 3000))
    tuples = rng.choice((pickle.EMPTY_TUPLE, text("x"), pickle.EMPTY_LIST)) + put + (get + pickle.TUPLE2 + put) * levels
    lists = pickle.EMPTY_LIST + put + (pickle.EMPTY_LIST + pickle.MARK + get + get + pickle.APPENDS + put) * levels
    as_key = pickle.EMPTY_DICT + tuples + pickle.NONE + pickle.SETITEM
    return pickled(whole(rng.choice((tuples, several(lists), as_key))))


@kind
def keys_of_strange_kinds(rng: random.Random, _: Path) -> bytes:
    key = rng.choice(
        (
            pickle.NONE,
            pickle.EMPTY_TUPLE,
            pickle.NEWTRUE,
            pickle.EMPTY_TUPLE + pickle.TUPLE1 * 200_000,
            pickle.BINFLOAT + struct.pack(">d", float("nan")),
            name("torch", "FloatStorage"),
        )
    )
    return pickled(whole(pickle.EMPTY_DICT + key + pickle.NONE + pickle.SETITEM))


@kind
def list_within_itself(rng: random.Random, _: Path) -> bytes:
    get, put = pickle.BINGET + b"\0", pickle.BINPUT + b"\0"
    loops = (pickle.EMPTY_LIST + put + get + pickle.APPEND, pickle.EMPTY_DICT + put + text("a") + get + pickle.SETITEM)
    return pickled(whole(rng.choice(loops)))


@kind
def numbers_of_notes(rng: random.Random, _: Path) -> bytes:
    """Python's own unpickler makes room for as many notes as the greatest number says."""
    index = rng.choice((2**31 - 1, 2**32 - 1, 10**9))
    return pickled(whole(pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", index) + rng.choice((b"", b"garbage"))))


@kind
def lengths_that_are_not_there(rng: random.Random, _: Path) -> bytes:
    ways = (
        pickle.BINUNICODE + struct.pack("<I", 2**32 - 1),
        pickle.BINUNICODE8 + struct.pack("<Q", 2**40),
        pickle.BINBYTES8 + struct.pack("<Q", 2**62),
        pickle.BYTEARRAY8 + struct.pack("<Q", 2**36),
        pickle.LONG4 + struct.pack("<i", 2**31 - 1),
        pickle.FRAME + struct.pack("<Q", 2**40),
        pickle.BINSTRING + struct.pack("<i", -1),
        pickle.LONG1 + b"\xff",
    )
    return pickled(whole(rng.choice(ways)))


@kind
def numbers_without_end(rng: random.Random, _: Path) -> bytes:
    ways = (
        pickle.LONG4 + struct.pack("<i", 2**22) + b"\x7f" * 2**22,
        pickle.INT + b"9" * 10**6 + b"\n",
        pickle.LONG + b"9" * 10**6 + b"L\n",
        pickle.FLOAT + b"1" * 10**6 + b"\n",
    )
    return pickled(whole(rng.choice(ways)))


@kind
def steps_without_end(rng: random.Random, _: Path) -> bytes:
    step = rng.choice(
        (pickle.NONE, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.MARK, number(7), pickle.NONE + pickle.POP)
    )
    return pickled(whole(pickle.MARK + step * rng.choice((900_000, 3_000_000)) + pickle.TUPLE))


@kind
def pickle_of_many_bytes(rng: random.Random, _: Path) -> bytes:
    return pickled(whole(text("x" * rng.choice((17 * 2**20, 60 * 2**20)))))


@kind
def broken_pickle(rng: random.Random, _: Path) -> bytes:
    ways = (
        whole(pickle.TUPLE),
        whole(pickle.APPEND * 9),
        whole(pickle.BINGET + b"\7"),
        whole(pickle.NONE)[:-1],
        whole(pickle.NONE) + b"more",
        b"",
        b"\x80\5.",
        b"\x80\2.",
        whole(b"Q"),
        whole(pickle.REDUCE),
        whole(b"\xff"),
        whole(pickle.PROTO + b"\2" + pickle.NONE),
        whole(pickle.EMPTY_LIST + text("a") + pickle.NONE + pickle.SETITEM),
        whole(pickle.DUP + pickle.POP),
        whole(pickle.MARK + pickle.POP_MARK + pickle.NONE),
        whole(b"X\1\0\0\0\xff"),
    )
    return pickled(rng.choice(ways))


# Archives that are too much ------------------------------------------------------------------------------------------


@kind
def compressed_records(rng: random.Random, _: Path) -> bytes:
    method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    size = 50_000_000
    return archive(records(whole(tensor(storage(size // 4), 0, (size // 4,), (1,))), bytes(size)), method)


@kind
def records_over_each_other(rng: random.Random, _: Path) -> bytes:
    """Many names for the same bytes."""
    count, size = rng.choice((50, 1000)), 200_000
    made = unsealed(
        archive([*records(whole(pickle.NONE), bytes(size)), *((f"data/{k + 1}", b"") for k in range(count))])
    )
    start = made.index(b"PK\1\2")
    first = made.index(b"archive/data/0", start) - 46
    for k in range(count):
        place = made.index(f"archive/data/{k + 1}".encode(), start) - 46
        made[place + 16 : place + 28] = made[first + 16 : first + 28]
        made[place + 42 : place + 46] = made[first + 42 : first + 46]
    return sealed(bytes(made))


@kind
def names_of_records(rng: random.Random, _: Path) -> bytes:
    more = rng.choice(
        (
            "../../escaped",
            "/etc/passwd",
            "DATA.PKL",
            "data.pkl",
            "data/00",
            "data/0",
            "x" * 60_000,
            "data/٣",
            "data\\0",
            "",
            "version",
            "data/9999999999",
            "__MACOSX/x",
        )
    )
    prefix = rng.choice(("archive/", "a b/", "../"))
    return archive([*records(whole(pickle.NONE), bytes(12)), (more, b"x")], prefix=prefix)


@kind
def sizes_of_records(rng: random.Random, _: Path) -> bytes:
    """The directory says more than there is."""
    made = unsealed(pickled(whole(tensor(storage(3), 0, (3,), (1,))), bytes(12)))
    place = made.index(b"archive/data/0", made.index(b"PK\1\2")) - 46
    field = rng.choice((20, 24, 42, 8, 10, 28, 30, 32, 34))
    made[place + field : place + field + 2] = rng.choice((b"\xff\xff", b"\0\1", b"\1\0"))
    return sealed(bytes(made))


@kind
def ends_of_archives(rng: random.Random, _: Path) -> bytes:
    """An end that says something else, or two of them, of which each reader takes its own."""
    good = unsealed(pickled(whole(pickle.NONE)))
    end = len(good) - 22
    field, value = rng.choice(
        (
            (4, b"\1\0"),
            (8, b"\xff\xff"),
            (10, b"\xff\xff"),
            (12, b"\xff\xff\xff\xff"),
            (16, b"\0\0\0\0"),
            (16, b"\xff\xff\xff\x7f"),
            (12, b"\1\0\0\0"),
            (10, b"\0\0"),
        )
    )
    if rng.random() < 0.3:
        return sealed(bytes(good) + bytes(unsealed(pickled(whole(touching(rng, Path("canary")))))))
    good[end + field : end + field + len(value)] = value
    return sealed(bytes(good))


@kind
def records_by_the_thousand(rng: random.Random, _: Path) -> bytes:
    entries = [*records(whole(pickle.NONE)), *((f"data/{k}", b"") for k in range(rng.choice((5_000, 60_000))))]
    return archive(entries)


@kind
def records_of_nothing(rng: random.Random, _: Path) -> bytes:
    """What no tensor uses, or what is not there."""
    entries = records(whole(pickle.NONE), *[b"hidden"] * rng.choice((1, 3)))
    missing = rng.choice((None, "data.pkl", "byteorder", "version"))
    return archive([entry for entry in entries if entry[0] != missing])


@kind
def byte_orders(rng: random.Random, _: Path) -> bytes:
    entries = dict(records(whole(pickle.NONE))) | {"byteorder": rng.choice((b"middle", b"", b"x" * 10**6, b"\xff"))}
    return archive(list(entries.items()))


@kind
def no_archive(rng: random.Random, _: Path) -> bytes:
    return rng.choice(
        (
            b"",
            b"\0",
            b"PK\5\6" + bytes(18),
            b"PK\3\4",
            rng.randbytes(50_000),
            seal.SEAL + b"0" * 64,
            sealed(b"PK\5\6" + bytes(18)),
            b"\x89HDF\r\n\x1a\n" + bytes(512),
            b"{}",
            b"\x80\2}.",
        )
    )


# Whole archives with rubbish in them ---------------------------------------------------------------------------------


def changed(**changes: Any) -> dict[str, torch.Tensor]:
    """The weights with some replaced."""
    return saved_checkpoint.make().weights | changes


@kind
def numbers_that_are_none(rng: random.Random, _: Path) -> bytes:
    value = rng.choice((float("nan"), float("inf"), -float("inf")))
    made = saved_checkpoint.make()
    part = rng.choice(("weights", "average", "optimizer", "manifest"))
    if part == "manifest":
        return content(manifest={"projection": {"mean": torch.tensor([1.0, value])}})
    if part == "optimizer":
        optimizer = made.optimizer or {}
        optimizer["state"][rng.randrange(8)]["exp_avg_sq"].view(-1)[0] = value
        return content(optimizer=optimizer)
    weights = getattr(made, part)
    weights[rng.choice(list(weights))].view(-1)[-1] = value
    return content(**{part: weights})


@kind
def weights_of_another_kind(rng: random.Random, _: Path) -> bytes:
    dtypes = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.float64, torch.float16)
    whole_numbers = {name: weight.to(torch.int64) for name, weight in changed().items()}
    one = changed(Wx=changed()["Wx"].to(rng.choice(dtypes)))
    return content(weights=rng.choice((one, whole_numbers, [], {"Wx": [1.0]}, {"Wx": None}, {0: torch.ones(1)}, None)))


@kind
def weights_of_another_shape(rng: random.Random, _: Path) -> bytes:
    name = rng.choice(list(changed()))
    weight = changed()[name]
    fewer = {key: value for key, value in changed().items() if key != name}
    other = rng.choice(
        (weight[:-1], weight[None], weight.new_zeros(0), weight.new_ones(()), torch.cat([weight, weight]))
    )
    return content(weights=rng.choice((fewer, changed(**{name: other}), changed(more=torch.ones(2)), {})))


@kind
def models_of_any_size(rng: random.Random, _: Path) -> bytes:
    sizes = (10**9, 10**18, 10**30, 2**63, 2**61, 0, -1, 2.5, "5", None, True, [5], {})
    argument = rng.choice(("input_dim", "wordvec_dim", "hidden_dim"))
    others = (
        {"cell_type": "gru"},
        {"cell_type": ["rnn"]},
        {"gradients": "os"},
        {"dropout": float("nan")},
        {"dropout": 2},
        {"dropout": "x"},
        {"colour": 1},
        {"word_to_idx": {}},
        {"self": 1},
        {"tied": True},
        {0: 1},
    )
    return content(model=saved_checkpoint.MODEL | rng.choice((*({argument: size} for size in sizes), *others)))


@kind
def vocabularies(rng: random.Random, _: Path) -> bytes:
    many = [*saved_checkpoint.WORDS, *(f"word{k}" for k in range(100_000))]
    return content(
        words=rng.choice(
            (
                [*saved_checkpoint.WORDS[:-1], "a"],
                [],
                saved_checkpoint.WORDS[1:],
                [*saved_checkpoint.WORDS, "b"],
                many,
                "abc",
                None,
                [*saved_checkpoint.WORDS[:-1], 3],
                {},
                [*saved_checkpoint.WORDS[:-1], None],
                ["<NULL>"] * 7,
            )
        )
    )


@kind
def settings(rng: random.Random, _: Path) -> bytes:
    ways: tuple[dict[str, Any], ...] = (
        *({"max_length": value} for value in (10**15, -1, 0, "30", None, 2.5, [])),
        *({"workers": 10**6}, {"data": 3}, {"data": None}, {"out": 1}, {"cell_type": []}, {"dtype": "float1"}),
        *({"lr": "x"}, {"tensorboard": 1}, {"hidden_dim": True}, {"threads": 10**9}, {"amp": {}}),
        *({"batch_size": 10**20}, {"hidden_dim": 10**5}, {"wordvec_dim": 10**9}, {"cell_type": "lstm"}),
        *({"tied": True}, {"dtype": "float64"}, {"hidden_dim": 6}),  # than the model's
    )
    return content(config=saved_checkpoint.SETTINGS | rng.choice(ways))


@kind
def parts_of_another_kind(rng: random.Random, _: Path) -> bytes:
    part = rng.choice(("config", "model", "manifest", "progress", "optimizer", "random", "average"))
    return content(**{part: rng.choice((3, "x", [1], True, 1.5, torch.ones(2)))})


@kind
def versions(rng: random.Random, _: Path) -> bytes:
    value = rng.choice((0, 1, 3, -1, 10**300, "2", None, 2.5, [2], {"a": ["b"] * 1000}, "x" * 100_000, torch.ones(1)))
    return content(**rng.choice(({"version": value}, {"format": "other"}, {"format": value})))


@kind
def optimizers(rng: random.Random, _: Path) -> bytes:
    """Of another model: torch's fused step would write past the end of a tensor that is too small."""
    made = saved_checkpoint.make().optimizer or {}
    one = made["state"][rng.randrange(8)]
    groups = made["param_groups"][0]
    change = rng.randrange(12)
    if change < 3:
        one[("exp_avg", "exp_avg_sq", "step")[change]] = torch.zeros(2, 1)
    elif change == 3:
        one["exp_avg"] = one["exp_avg"].to(torch.int64)
    elif change == 4:
        groups["params"] = groups["params"][:-1]
    elif change == 5:
        groups["lr"] = rng.choice((float("nan"), "x", -1.0, None))
    elif change == 6:
        made["state"][99] = {name: value.clone() for name, value in one.items()}
    elif change == 7:
        one["exp_avg_sq"].view(-1)[-1] = -1e-9
    elif change == 8:
        one["step"].fill_(rng.choice((-1.0, 0.0, 0.5)))
    elif change == 9:
        one["step"] = one["step"].to(rng.choice((torch.float16, torch.bfloat16)))
    elif change == 10:
        del made["state"][rng.randrange(8)]
    else:
        made = rng.choice(({}, {"state": {}, "param_groups": []}, {"state": 3, "param_groups": 4}))
    return content(optimizer=made)


@kind
def progress(rng: random.Random, _: Path) -> bytes:
    """Of another kind, out of every range, or in contradiction with itself, the data or the objective."""
    counts = ("epoch", "position", "step", "words", "images", "best_epoch")
    sums = ("nats", "norms", "reward", "greedy_reward", "seconds")
    strange: tuple[Any, ...] = ("x", "1", None, True, [1], {}, torch.ones(1), (), "9" * 10_000)
    none = float("nan"), float("inf"), -float("inf"), 10**400
    under_way = {"position": 1, "words": 3}
    ways: tuple[dict[str, Any], ...] = (
        {rng.choice(counts): rng.choice((*strange, *none, -1, 1.0, 2**60))},
        {rng.choice(sums): rng.choice((*strange, *none))},
        {rng.choice(("best_loss", "best_cider")): rng.choice((*strange, none[0]))},
        {rng.choice(("norms", "seconds")): -1.0},
        {rng.choice(("colour", "", "count", "x" * 10_000)): 1},
        {"position": 2, "words": 0},
        {"position": 0, "words": 3},
        {"position": 3, "words": 3, "step": 9},
        under_way | {"step": 0},
        under_way | {"images": 2},
        {"best_epoch": 3},
    )
    return content(progress=saved_checkpoint.make().progress | rng.choice(ways))


@kind
def random_states(rng: random.Random, _: Path) -> bytes:
    drawn = torch.get_rng_state()
    one = rng.choice(
        (
            *(drawn[:-1].clone(), drawn[:0].clone(), drawn.long(), torch.zeros_like(drawn), drawn.bitwise_not()),
            *(torch.ones(1), 3, None, "x", [1, 2], {}),
        )
    )
    more: Any = rng.choice(
        ({"ranks": 3}, {"ranks": [3]}, {"ranks": [{}]}, {"ranks": torch.ones(1)}, {"ranks": [{"torch": 1}]})
    )
    return content(random=rng.choice(({"torch": one}, {}, {"torch": drawn} | more)))


@kind
def digests_of_captions(rng: random.Random, _: Path) -> bytes:
    """In the middle of an epoch they must be those of the data."""
    progress = saved_checkpoint.make().progress | {"position": 1, "words": 3}
    digest = rng.choice(("", "0" * 64, "x" * 10_000, None, 3, [1], torch.ones(2), {}))
    return content(progress=progress, data=rng.choice(({"train": digest}, [digest], "train", 1)))


@kind
def recipes_of_features(rng: random.Random, _: Path) -> bytes:
    """Which would open what is not a file of weights, or resize a picture to terabytes."""
    transform = {"resize": 256, "crop": 224, "mean": [0.5] * 3, "std": [0.5] * 3}
    recipe = {"encoder": "resnet18", "features": "vgg16_fc7", "weights": {"name": "w.pt"}, "transform": transform}
    ways: tuple[dict[str, Any], ...] = (
        {"weights": {"name": "../../../../etc/passwd"}},
        {"weights": {"name": 3}},
        {"weights": {"name": ""}},
        {"weights": {"name": "w.pt", "path": "/dev/zero"}},
        {"weights": {"name": "w.pt", "path": "//host/share/w.pt"}},
        {"weights": {"name": "w.pt", "path": 7}},
        {"weights": {"name": "random", "seed": "x"}},
        {"weights": None},
        {"weights": {"name": "random", "seed": -1}},
        {"weights": {"name": "w.pt", "path": "~nobody-here/w.pt"}},
        {"transform": transform | {"resize": 10**9}},
        {"transform": transform | {"crop": 0}},
        {"transform": [1]},
        {"transform": transform | {"mean": [1.0]}},
        {"transform": transform | {"std": [0.0] * 3}},
        {"encoder": ["x"]},
        {"transform": transform | {"interpolation": "os"}},
        {"transform": transform | {"x": 1}},
        {"features": [1]},
        {"encoder": recipes.SCENES, "recipe": 10**9},
        {"projection": {"mean": torch.ones(2)}, "features": "grid"},
    )
    return content(manifest=recipe | rng.choice(ways))


# safetensors ---------------------------------------------------------------------------------------------------------


def weights_file(header: dict[str, Any] | bytes, body: bytes = b"") -> bytes:
    """Sealed, whatever the header is."""
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode("utf-8")
    data = len(raw).to_bytes(8, "little") + raw + body
    place = data.find(b'"sha256":"' + b"0" * 64)
    if place < 0:
        return data
    return data[: place + 10] + seal._digest(data) + data[place + 74 :]


def metadata(**changes: Any) -> dict[str, str]:
    made = saved_checkpoint.make(manifest={})
    plain = {name: json.dumps(getattr(made, name)) for name in ("words", "config", "model", "manifest")}
    plain |= {"kind": checkpoints.FORMAT, "version": str(checkpoints.VERSION), "sha256": seal.NO_DIGITS}
    return {name: value for name, value in (plain | changes).items() if value is not None}


@kind
def safetensors_headers(rng: random.Random, _: Path) -> bytes:
    size = rng.choice((2**64 - 1, 2**63, 2**40, 10**6, 0))
    zeros = "0" * 64
    declared: tuple[dict[str, Any], ...] = (
        {"Wx": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}},
        {"Wx": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**60]}},
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"},
        {"Wx": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}},
        {"Wx": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"Wx": 3},
    )
    ways = (
        size.to_bytes(8, "little") + b"{}",
        weights_file(f'{{"__metadata__":{{"sha256":"{zeros}"}},"a":'.encode() + b"[" * 100_000),
        weights_file(f'"sha256":"{zeros}"'.encode()),
        weights_file({"__metadata__": {"sha256": zeros}}),
        *(weights_file({"__metadata__": metadata(), **entries}, bytes(4)) for entries in declared),
        b"".join(seal.sealed_weights(safetensors.torch.save({"Wx": torch.ones(2)}, {"words": "[]"}))),
        safetensors.torch.save({"Wx": torch.ones(2)}, {"sha256": "f" * 64}),
        safetensors.torch.save({"Wx": torch.ones(2)}),
    )
    return b"weights" + rng.choice(ways)


@kind
def safetensors_metadata(rng: random.Random, _: Path) -> bytes:
    deep = "[" * 50_000 + "]" * 50_000
    ways: tuple[dict[str, Any], ...] = (
        {"words": deep},
        {"config": deep},
        {"words": None},
        {"model": "3"},
        {"manifest": "[]"},
        {"config": '{"lr": NaN'},
        {"kind": "other"},
        {"version": "1"},
        {"words": '["a"]'},
        {"model": '{"hidden_dim": 1e9}'},
        {"model": "{}"},
        {"config": '{"max_length": ' + "9" * 5000 + "}"},
        {"manifest": '{"a": ' + "[" * 90 + "]" * 90 + "}"},
    )
    weights = saved_checkpoint.make().weights
    more = rng.choice(
        (
            {},
            {"manifest/a/b/c": torch.ones(1)},
            {"manifest/": torch.ones(1)},
            {"W": torch.ones(1)},
            {"Wx": weights["Wx"] * float("nan")},
            {"Wx": weights["Wx"].to(torch.float8_e4m3fn)},
        )
    )
    entries = metadata(**(rng.choice(ways) if not more else {}))
    return b"".join((b"weights", *seal.sealed_weights(safetensors.torch.save(weights | more, entries))))


@kind
def safetensors_dtypes(rng: random.Random, _: Path) -> bytes:
    """What torch has and no checkpoint holds, and cannot compute with everywhere."""
    names = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "uint16", "uint32", "uint64", "complex64")
    numbers = torch.ones(4).to(getattr(torch, rng.choice(names)))
    place = rng.choice(("manifest/x", "manifest/projection/mean", "Wx", "more"))
    tensors = saved_checkpoint.make().weights | {place: numbers}
    entries = metadata(manifest=json.dumps({"projection": {}}))
    return b"".join((b"weights", *seal.sealed_weights(safetensors.torch.save(tensors, entries))))


# The family ----------------------------------------------------------------------------------------------------------


def hostile(cases: int, seed: int, folder: Path) -> Figures:
    """So many files, each kind in turn, opened many to a process."""
    figures = Figures()
    figures.expect("accepted", "tracebacks", "code run", "killed")
    rng = random.Random(seed)
    canary = folder / "canary"
    files: dict[Path, str] = {}
    for number in range(cases):
        what = list(KINDS)[number % len(KINDS)]
        data = KINDS[what](rng, canary)
        suffix = checkpoints.SAFETENSORS if data.startswith(b"weights") else ".pt"
        path = folder / f"{number}{suffix}"
        path.write_bytes(data.removeprefix(b"weights"))
        files[path] = f"{what} (case {number} of seed {seed})"
        figures.saw("kinds") if number < len(KINDS) else None
    files |= {path: what for path, what in _no_files(folder) if cases >= len(KINDS)}
    figures.cases = len(files)
    for outcome in _opened(list(files)):
        _judge(figures, outcome, files[Path(outcome["file"])])
    if canary.exists():
        figures.wrong("code run", "the canary was touched")
    return figures


def _judge(figures: Figures, outcome: dict[str, Any], what: str) -> None:
    if outcome["status"] is None:
        figures.wrong("killed", f"{what}: {outcome['why']!r}")
        return
    if outcome["status"] == 0:
        figures.wrong("accepted", what)
    elif outcome["status"] != 2 or "Traceback" in outcome["stderr"] or outcome["stderr"].count("\n") != 1:
        figures.wrong("tracebacks", f"{what}: {outcome['stderr'][-300:]!r}")
    elif len(outcome["stderr"]) > 1000:
        figures.wrong("tracebacks", f"{what}: a line of {len(outcome['stderr'])}")
    figures.measured("s", outcome["seconds"], MOST_SECONDS)
    figures.measured("MiB", outcome["mib"], MOST_MIB)


def _no_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """What is no file, or is larger than any memory."""
    (folder / "folder.pt").mkdir()
    yield folder / "folder.pt", "a folder"
    if os.name == "posix":
        with open(folder / "sparse.pt", "wb") as file:
            file.truncate(2**40)
            file.seek(0, os.SEEK_END)
            file.write(seal.SEAL + b"0" * 64)
        yield folder / "sparse.pt", "a file of a tebibyte that takes no room"
        os.mkfifo(folder / "pipe.pt")
        yield folder / "pipe.pt", "a pipe that nobody writes"
        (folder / "device.pt").symlink_to("/dev/zero")
        yield folder / "device.pt", "a device without an end"
        (folder / "loop.pt").symlink_to("loop.pt")
        yield folder / "loop.pt", "a link to itself"


def _opened(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """What became of each, in as few processes as it takes: one that is killed has its last file against it."""
    left = [str(path) for path in paths]
    while left:
        command = [sys.executable, str(Path(__file__)), *left]
        try:
            ran = subprocess.run(command, check=False, capture_output=True, timeout=60 + MOST_SECONDS * len(left))
            out, why = ran.stdout, ran.stderr.decode("utf-8", "replace")
        except subprocess.TimeoutExpired as late:
            out, why = late.stdout or b"", "it did not end"
        outcomes = [json.loads(line) for line in out.splitlines() if line.endswith(b"}")]
        yield from outcomes
        done = len(outcomes)
        if done < len(left):
            yield {"file": left[done], "status": None, "why": why[-1000:]}
        left = left[done + 1 :]


def _use(path: Path) -> None:
    """All that a program does with a checkpoint before it computes."""
    found = checkpoints.load(path)
    checkpoints.check_sizes(found, path)
    if path.suffix != checkpoints.SAFETENSORS:
        config, data = TrainConfig.from_plain(found.config), _data()
        state.restore(state.begin(config, data, torch.device("cpu")), config, data, path)
    if found.manifest:
        recipes.maker(found.manifest, near=[path.parent])


def _data() -> CocoData:
    """What the checkpoints are of: two captions, so that an epoch of theirs has two steps."""
    vocabulary = Vocabulary(tuple(saved_checkpoint.WORDS))
    rows = torch.tensor([[1, 4, 2], [1, 5, 2]]), torch.arange(2)
    split = Split("train", vocabulary, *rows, torch.ones(2, 3), (2, 3))
    return CocoData(Path("data"), vocabulary, {}, {}, {"train": split, "val": split})


def _open_all(paths: list[str]) -> None:
    good = Path(paths[0]).parent / "good.pt"
    good.write_bytes(content())
    _use(good)  # what is not hostile is taken
    _limit_memory()
    for path in paths:
        before, started = _peak(reset=True), time.process_time()
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr):
            try:
                status = guarded(lambda path=path: _use(Path(path)))
            except BaseException as error:  # what a user would see as a traceback
                status = 1
                print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
        seconds, mib = time.process_time() - started, (_peak() - before) / 2**20
        outcome = {"file": path, "status": status, "stderr": stderr.getvalue(), "seconds": seconds, "mib": mib}
        print(json.dumps(outcome), flush=True)


def _limit_memory() -> None:
    if sys.platform.startswith("linux"):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + SPARE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _peak(reset: bool = False) -> int:
    """The most memory that was resident, since the last reset; 0 where the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


HOSTILE = Family("hostile-checkpoints", hostile, short=len(KINDS), full=4 * len(KINDS))

if __name__ == "__main__":
    _open_all(sys.argv[1:])
