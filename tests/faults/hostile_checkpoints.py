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
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

import safetensors.torch  # noqa: E402 - the rest is found beside this file
import torch  # noqa: E402

from tests.faults.figures import Family, Figures  # noqa: E402
from tests.helpers.saved_checkpoint import CONFIG, WORDS, forged, framed, make, sealed  # noqa: E402
from torch_caption.checkpoints import format as checkpoints  # noqa: E402
from torch_caption.checkpoints.checksum import HEADER_LIMIT  # noqa: E402
from torch_caption.data.dataset import CocoData, Split  # noqa: E402
from torch_caption.data.vocabulary import Vocabulary  # noqa: E402
from torch_caption.encoders import extractor as recipes  # noqa: E402
from torch_caption.io.exits import guarded  # noqa: E402
from torch_caption.training import state  # noqa: E402

MOST_SECONDS, MOST_MIB = 10.0, 400.0
SPARE = 2**30  # bytes of address space a process may take beyond what it has when it begins
Make = Callable[[random.Random, Path], bytes]
KINDS: dict[str, Make] = {}
EMPTY: dict[str, Any] = {"manifest": {}, "data": {}}  # parts that no data is needed for


def kind(make: Make) -> Make:
    """Enter a kind: (rng, canary) -> a file; the canary is what code would touch."""
    KINDS[make.__name__.replace("_", " ")] = make
    return make


def changed(rng: random.Random, **entries: Any) -> bytes:
    """A whole checkpoint but for one of these entries of the metadata."""
    name = rng.choice(list(entries))
    return forged(metadata={name: entries[name]}, **EMPTY)


# Files of other kinds ------------------------------------------------------------------------------------------------


class Touch:
    """What touches the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@kind
def code(rng: random.Random, canary: Path) -> bytes:
    """In what torch.save writes, in its older format, in a plain pickle, and behind a header like ours."""
    file = io.BytesIO()
    torch.save({"weights": Touch(canary)}, file, _use_new_zipfile_serialization=rng.random() < 0.5)
    pickled = pickle.dumps(Touch(canary))
    return rng.choice((file.getvalue(), pickled, framed({}, pickled), framed({"W": pickled.hex()}, file.getvalue())))


@kind
def no_checkpoint(rng: random.Random, _: Path) -> bytes:
    tensors = {"Wx": torch.ones(2)}
    return rng.choice(
        (
            *(b"", b"\0", b"{}", b"PK\5\6" + bytes(18), rng.randbytes(50_000), b"\x89HDF\r\n\x1a\n" + bytes(512)),
            *(safetensors.torch.save(tensors), safetensors.torch.save(tensors, {"sha256": "f" * 64})),
            *(framed({}), framed({"__metadata__": {"kind": checkpoints.KIND}})),
        )
    )


@kind
def versions(rng: random.Random, _: Path) -> bytes:
    value = rng.choice(("0", "2", "-1", "9" * 5000, "x" * 100_000, "\x1b[2J\n", None))
    return forged(metadata=rng.choice(({"version": value}, {"kind": value}, {"kind": "other"})), **EMPTY)


# Headers -------------------------------------------------------------------------------------------------------------

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@kind
def lengths_of_headers(rng: random.Random, _: Path) -> bytes:
    length = rng.choice((0, 1, 35, 2**20, HEADER_LIMIT + 1, 2**31, 2**40, 2**63, 2**64 - 1))
    return sealed(length.to_bytes(8, "little") + forged(**EMPTY)[8:])


@kind
def tensors_that_are_not_there(rng: random.Random, _: Path) -> bytes:
    shape = rng.choice(([10**12], [10**7, 10**6], [2**62, 4], [2**64], [10**200, 10**200], [-1], [2], ["x"], [0.5], 3))
    offsets = rng.choice(([0, 4], [0, 2**60], [0, -4], [-4, 0], [4, 8], [4, 0], [2**64, 2**64 + 4], [0], None))
    dtype = rng.choice(("F32", "F64", "X9", "", None, 3))
    entry = rng.choice(
        ({"shape": shape}, {"data_offsets": offsets}, {"dtype": dtype}, {"shape": [2**40], "data_offsets": [0, 2**42]})
    )
    return framed({"__metadata__": {}, "W": F32 | entry}, bytes(4))


@kind
def tensors_over_each_other(rng: random.Random, _: Path) -> bytes:
    count = rng.choice((2, 1000, 30_000))
    same = {f"W{k}": F32 for k in range(count)}
    shifted = {"a": F32, "b": F32 | {"data_offsets": [rng.randrange(1, 4), 8]}}
    return framed(rng.choice((same, shifted, {"a": F32, "b": F32 | {"data_offsets": [8, 12]}})), bytes(12))


@kind
def keys_that_occur_twice(rng: random.Random, _: Path) -> bytes:
    """Of which each reader takes its own."""
    first = '{"__metadata__":{"sha256":"' + "0" * 64 + '"'
    entry = json.dumps(F32)
    ways = (
        f'{first}}},"W":{entry},"W":{entry}}}',
        f'{first},"kind":"a","kind":"b"}}}}',
        f'{first},"sha256":"{"1" * 64}"}}}}',
        f'{first}}},"__metadata__":{{"kind":"x"}}}}',
        f'{first}}},"W":{{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}}}',
    )
    return framed(rng.choice(ways).encode("ascii"), bytes(4))


@kind
def headers_that_are_too_much(rng: random.Random, _: Path) -> bytes:
    """Parsed, JSON takes more memory than its text; and what is nested deep, more stack."""
    first = b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'"},"a":'
    size = rng.choice((HEADER_LIMIT - 200, HEADER_LIMIT * 4))
    ways = (
        *(first + b"[" * 100_000, first + b'{"a":' * 100_000, first + b"9" * 10**6 + b"}"),
        *(first + b"[" + b"[]," * (size // 3) + b"[]]}", first + b"[" + b"{}," * (size // 3) + b"{}]}"),
        *(first + b'{"a":1}' + b" " * size + b"}", first + b'"' + b"\\u0000" * (size // 6) + b'"}'),
        first[:-5]
        + b"".join(b',"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % k for k in range(size // 60))
        + b"}",
        first[:-1] + b"\xff",
    )
    return framed(rng.choice(ways))


@kind
def metadata_that_is_too_much(rng: random.Random, _: Path) -> bytes:
    deep = rng.choice((40, 500, 20_000))
    text = rng.choice(
        ("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep, "9" * 10**6, "[" + "[]," * 10**6 + "[]]")
    )
    return changed(
        rng, words=text, config=text, manifest='{"a": ' + text + "}", progress=text, data=text, input_dim=text
    )


@kind
def metadata_of_other_types(rng: random.Random, _: Path) -> bytes:
    value = rng.choice((3, "x", "true", 1.5, "NaN", '{"a": NaN}', "[1,]", "", None, '"', "{", "[[1]]", [None]))
    return changed(
        rng, words=value, config=value, manifest=value, progress=value, input_dim="{}" if value == 3 else value
    )


# Tensors and values --------------------------------------------------------------------------------------------------


@kind
def numbers_that_are_not_finite(rng: random.Random, _: Path) -> bytes:
    value, made = rng.choice((float("nan"), float("inf"), -float("inf"))), make()
    tensors = checkpoints._tensors(made) | {"manifest/x": torch.ones(2)}
    name = rng.choice([name for name, tensor in tensors.items() if tensor.is_floating_point()])
    tensor = tensors[name].clone()
    tensor.view(-1)[-1] = value
    return forged({name: tensor}, **EMPTY)


@kind
def tensors_of_other_shapes(rng: random.Random, _: Path) -> bytes:
    """torch's fused step would write past the end of moments that are too small."""
    tensors = checkpoints._tensors(make())
    name = rng.choice([name for name in tensors if not name.startswith("random")])
    tensor = tensors[name]
    flat = tensor.reshape(-1)
    other = rng.choice((flat[:-1], tensor[None], flat[:0], torch.cat([flat, flat]), None))
    return forged({name: other}, **EMPTY)


@kind
def tensors_of_other_dtypes(rng: random.Random, _: Path) -> bytes:
    """Those that a checkpoint has elsewhere, and what torch has and cannot compute with everywhere."""
    tensors = checkpoints._tensors(make())
    name, tensor = rng.choice(list(tensors.items()))
    if rng.random() < 0.5:
        dtypes = (torch.int64, torch.int32, torch.int8, torch.bool, torch.float16, torch.bfloat16)
        return forged({name: tensor.to(rng.choice(dtypes))}, **EMPTY)
    header, body = tensors_file({name: tensor})
    header[name]["dtype"] = rng.choice(("F8_E4M3", "F8_E5M2", "F8_E8M0", "U16", "U32", "U64", "C64", "F4", "F6_E2M3"))
    return framed(header, body)


def tensors_file(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, Any], bytes]:
    """The header and the body of a checkpoint with some tensors replaced."""
    data = forged(tensors, **EMPTY)
    size = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:size]), data[size:]


@kind
def tensors_of_nothing(rng: random.Random, _: Path) -> bytes:
    places = (
        "x/y",
        "average/more",
        "optimizer/Wx/more",
        "optimizer/more/step",
        "random/1",
        "random/x/torch",
        "random/9/cuda",
    )
    places += ("manifest/a/b", "manifest/", "/", "more", "average/", "../../x", "x" * 100_000)
    return forged({rng.choice(places): torch.ones(2)}, **EMPTY)


@kind
def random_states(rng: random.Random, _: Path) -> bytes:
    drawn = torch.get_rng_state()
    one = rng.choice(
        (drawn[:-1], drawn[:0], drawn.long(), torch.zeros_like(drawn), drawn.bitwise_not(), torch.ones(1), None)
    )
    return forged({"random/0/torch": one}, **EMPTY)


@kind
def models_of_any_size(rng: random.Random, _: Path) -> bytes:
    sizes = (10**9, 10**18, 10**30, 2**63, 2**61, 0, -1, 2.5, "5", None, True, [5], {})
    if rng.random() < 0.3:
        return forged(metadata={"input_dim": json.dumps(rng.choice(sizes))}, **EMPTY)
    return settings_of({rng.choice(("hidden_dim", "wordvec_dim")): rng.choice(sizes)})


def settings_of(change: dict[str, Any]) -> bytes:
    return forged(metadata={"config": CONFIG.plain() | change}, **EMPTY)


@kind
def settings(rng: random.Random, _: Path) -> bytes:
    ways: tuple[dict[str, Any], ...] = (
        *({"max_length": value} for value in (10**15, -1, 0, "30", None, 2.5, [])),
        *({"workers": 10**6}, {"data": 3}, {"data": None}, {"out": 1}, {"cell_type": []}, {"dtype": "float1"}),
        *({"lr": "x"}, {"tensorboard": 1}, {"hidden_dim": True}, {"threads": 10**9}, {"amp": {}}, {"dropout": 2.0}),
        *({"batch_size": 10**20}, {"hidden_dim": 10**5}, {"wordvec_dim": 10**9}, {"cell_type": "lstm"}),
        *({"tied": True}, {"dtype": "float64"}, {"hidden_dim": 6}),  # than the model's
    )
    return settings_of(rng.choice(ways))


@kind
def vocabularies(rng: random.Random, _: Path) -> bytes:
    many = [*WORDS, *(f"word{k}" for k in range(100_000))]
    ways = (
        [*WORDS[:-1], "a"],
        [],
        WORDS[1:],
        [*WORDS, "b"],
        many,
        "abc",
        {},
        [*WORDS[:-1], 3],
        ["<NULL>"] * 7,
        [[]] * 7,
    )
    return forged(metadata={"words": rng.choice(ways)}, **EMPTY)


@kind
def progress(rng: random.Random, _: Path) -> bytes:
    """Of another type, out of every range, or in contradiction with itself, the data or the objective."""
    counts = ("epoch", "position", "step", "words", "images", "best_epoch")
    sums = ("nats", "norms", "reward", "greedy_reward", "seconds", "best_loss", "best_cider")
    strange: tuple[Any, ...] = ("x", "1", None, True, [1], {}, "9" * 10_000, 10**400)
    under_way = {"position": 1, "words": 3}
    ways: tuple[dict[str, Any], ...] = (
        {rng.choice(counts): rng.choice((*strange, -1, 1.0, 2**60))},
        {rng.choice(sums): rng.choice(strange)},
        {rng.choice(("colour", "", "count", "x" * 10_000)): 1},
        {"position": 2, "words": 0},
        {"position": 0, "words": 3},
        {"position": 3, "words": 3, "step": 9},
        {"step": 0, "epoch": 0, "best_epoch": 0},
        under_way | {"images": 2},
        {"best_epoch": 3},
    )
    return forged(metadata={"progress": make().progress | rng.choice(ways)}, **EMPTY)


@kind
def digests_of_captions(rng: random.Random, _: Path) -> bytes:
    """In the middle of an epoch they must be those of the data."""
    progress = make().progress | {"position": 1, "words": 3}
    digest = rng.choice(("", "0" * 64, "x" * 10_000, None, 3, [1], {}))
    data = rng.choice(({"train": digest}, [digest], "[1]", 1))
    return forged(metadata={"progress": progress, "data": data}, manifest={})


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
    return forged(manifest=recipe | rng.choice(ways), data={})


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
        path = folder / f"{number}.safetensors"
        path.write_bytes(KINDS[what](rng, canary))
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
    (folder / "folder.safetensors").mkdir()
    yield folder / "folder.safetensors", "a folder"
    if os.name == "posix":
        with open(folder / "sparse.safetensors", "wb") as file:
            file.write(forged(**EMPTY))
            file.truncate(2**40)
        yield folder / "sparse.safetensors", "a file of a tebibyte that takes no room"
        os.mkfifo(folder / "pipe.safetensors")
        yield folder / "pipe.safetensors", "a pipe that nobody writes"
        (folder / "device.safetensors").symlink_to("/dev/zero")
        yield folder / "device.safetensors", "a device without an end"
        (folder / "loop.safetensors").symlink_to("loop.safetensors")
        yield folder / "loop.safetensors", "a link to itself"


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
    found = checkpoints.find(path)
    state.resume(replace(found.checkpoint.config, resume="last"), _data(), torch.device("cpu"), found)
    checkpoints.build_model(found.checkpoint, path)
    if found.checkpoint.manifest:
        recipes.feature_extractor(found.checkpoint.manifest, near=[path.parent])


def _data() -> CocoData:
    """What the checkpoints are of: two captions, so that an epoch of theirs has two steps."""
    vocabulary = Vocabulary(tuple(WORDS))
    rows = torch.tensor([[1, 4, 2], [1, 5, 2]]), torch.arange(2)
    split = Split("train", vocabulary, *rows, torch.ones(2, 3), (2, 3))
    return CocoData(Path("data"), vocabulary, {}, {}, {"train": split, "val": split})


def _open_all(paths: list[str]) -> None:
    good = Path(paths[0]).parent / "good.safetensors"
    good.write_bytes(forged(**EMPTY))
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


HOSTILE = Family("hostile-checkpoints", hostile, short=len(KINDS), full=10 * len(KINDS))

if __name__ == "__main__":
    _open_all(sys.argv[1:])
