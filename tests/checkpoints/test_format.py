"""Checkpoints: what goes in comes out, and nothing else does."""

from __future__ import annotations

import errno
import io
import pickle
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.helpers.saved_checkpoint import MODEL, WORDS, make, plain, write
from torch_caption.checkpoints import checksum as seal
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints.format import CheckpointError
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.io import files
from torch_caption.io.exits import Stopped


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoints.save(tmp_path / "last.pt", make())
    return tmp_path / "last.pt"


def refusal(path: Path) -> str:
    """The one line that refuses the file."""
    with pytest.raises(CheckpointError) as refused:
        checkpoints.load(path)
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


def test_what_goes_in_comes_out(saved: Path) -> None:
    assert_same(vars(checkpoints.load(saved)), vars(make()))
    assert torch.load(saved, weights_only=True)["format"] == checkpoints.FORMAT
    assert [path.name for path in saved.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_is_built_with_its_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {name: weight.to(dtype) for name, weight in make().weights.items()}
    checkpoints.save(tmp_path / "best.pt", make(weights=weights))
    model = checkpoints.build_model(checkpoints.load(tmp_path / "best.pt"))
    assert_same(dict(model.state_dict()), weights)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    loss = model(torch.randn(2, 3, dtype=dtype), torch.tensor([[1, 4, 2], [1, 5, 2]]))
    loss.backward()
    assert model.Wh.grad.norm() > 0


def test_a_failed_save_leaves_the_previous_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def cut_short(content: Any, file: Any) -> None:
        file.write(b"PK\x03\x04")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0")

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(OSError, match=r"last\.pt: could not be written: \[enforce fail .* vs 0; it takes 7\.\d kB$"):
        checkpoints.save(saved, make())
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Stopped(signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_in_the_middle_of_a_save_is_told_as_such(
    saved: Path, monkeypatch: pytest.MonkeyPatch, stop: KeyboardInterrupt
) -> None:
    """Whichever write it finds: torch's writer would tell of a file that is too short."""
    before, real = saved.read_bytes(), seal.Sealing.write
    left = 0  # writes until the signal

    def write(sealing: seal.Sealing, data: Any) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            raise stop
        return real(sealing, data)

    monkeypatch.setattr(seal.Sealing, "write", write)
    left = 1000
    checkpoints.save(saved, make(), keep=False)
    assert saved.read_bytes() == before
    writes = 1000 - left
    assert writes > 20
    for place in range(1, writes + 1):
        left = place
        with pytest.raises(KeyboardInterrupt) as stopped:
            checkpoints.save(saved, make())
        assert stopped.value is stop
        assert saved.read_bytes() == before
        assert [path.name for path in saved.parent.iterdir()] == ["last.pt"]


def test_the_one_before_is_kept(saved: Path) -> None:
    before = saved.read_bytes()
    checkpoints.save(saved, make(progress={"step": 2}))
    assert sorted(path.name for path in saved.parent.iterdir()) == ["last.previous.pt", "last.pt"]
    assert checkpoints.previous(saved).read_bytes() == before
    checkpoints.save(saved, make(progress={"step": 3}))
    assert checkpoints.load(saved).progress == {"step": 3}
    assert checkpoints.load(checkpoints.previous(saved)).progress == {"step": 2}
    checkpoints.save(saved, make(progress={"step": 4}), keep=False)
    assert checkpoints.load(saved).progress == {"step": 4}
    assert checkpoints.load(checkpoints.previous(saved)).progress == {"step": 2}


def test_what_is_damaged_takes_no_whole_ones_place(saved: Path) -> None:
    checkpoints.save(saved, make(progress={"step": 2}))
    saved.write_bytes(saved.read_bytes()[:-1])
    whole = checkpoints.previous(saved).read_bytes()
    checkpoints.save(saved, make(progress={"step": 3}))
    assert checkpoints.previous(saved).read_bytes() == whole
    assert checkpoints.load(saved).progress == {"step": 3}


def test_the_latest_that_can_be_used(saved: Path) -> None:
    checkpoints.save(saved, make(progress={"step": 2}))
    checkpoints.save(saved, make(progress={"step": 3}))
    found, path, warning = checkpoints.load_latest(saved)
    assert (found.progress["step"], path, warning) == (3, saved, None)
    saved.write_bytes(saved.read_bytes()[:-1])
    found, path, warning = checkpoints.load_latest(saved)
    before = checkpoints.previous(saved)
    assert (found.progress["step"], path) == (2, before)
    assert warning == (
        f"{saved}: cut short, damaged or not a checkpoint; taking the one before it, {before}, which is of step 2"
    )
    saved.unlink()
    found, path, warning = checkpoints.load_latest(saved)
    assert (found.progress["step"], path) == (2, before)
    assert "there is no such checkpoint; taking" in str(warning)
    before.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no such checkpoint; nor can the one before it be used: .*: cut short"):
        checkpoints.load_latest(saved)
    before.unlink()
    with pytest.raises(CheckpointError, match=r"no such checkpoint$"):
        checkpoints.load_latest(saved)


@pytest.mark.parametrize("strange", [Path("x"), {1, 2}, object(), lambda: 0], ids=["path", "set", "object", "function"])
def test_only_tensors_and_plain_values_are_saved(tmp_path: Path, strange: object) -> None:
    with pytest.raises(CheckpointError, match=r"config\['deep'\]\[0\] is a \w+: a checkpoint holds tensors and plain"):
        checkpoints.save(tmp_path / "last.pt", make(config={"deep": [strange]}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", [None, True, 1.5, (1, 2)])
def test_only_plain_keys_are_saved(tmp_path: Path, key: object) -> None:
    with pytest.raises(CheckpointError, match=r"config\['deep'\] has the key .*: keys are strings and whole numbers"):
        checkpoints.save(tmp_path / "last.pt", make(config={"deep": {key: 1}}))


def test_missing(tmp_path: Path) -> None:
    assert "there is no such checkpoint" in refusal(tmp_path / "none.pt")
    assert "there is no such checkpoint" in refusal(tmp_path)


def test_cut_short_anywhere(saved: Path) -> None:
    whole = saved.read_bytes()
    ends = {0, 1, 3, 4, 64, len(whole) - 1, len(whole) - 22, *range(5, len(whole), len(whole) // 60)}
    for end in ends:
        saved.write_bytes(whole[:end])
        assert "cut short, damaged or not a checkpoint" in refusal(saved)


def test_a_flipped_byte_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    rng = random.Random(0)
    for place in rng.sample(range(len(whole)), 200):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        saved.write_bytes(flipped)
        assert re.search("damaged", refusal(saved))


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    evil = write(tmp_path / "evil.pt", plain(make(), config=Evil(target)))
    assert "refused, for it holds more than tensors and plain values: '__builtin__.getattr'" in refusal(evil)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(target)))
    assert "not a checkpoint" in refusal(tmp_path / "plain.pt")
    torch.save(Evil(target), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "not a checkpoint" in refusal(tmp_path / "old.pt")
    assert not target.exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert target.exists()  # it would have run


def test_a_file_of_version_1(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save(plain(make(), version=1), path)
    assert f"version 1, which has no checksum; `python -m torch_caption convert {path} NEW.pt`" in refusal(path)
    assert_same(vars(checkpoints.load(path, unsealed=True)), vars(make()))
    whole = path.read_bytes()
    weight = make().weights["Wx"].numpy().tobytes()
    for place, message in (
        (whole.index(b"circle"), "no sound archive"),
        (whole.index(weight), "damaged at its record"),
    ):
        old = bytearray(whole)
        old[place] ^= 1
        path.write_bytes(old)
        with pytest.raises(CheckpointError, match=message):
            checkpoints.load(path, unsealed=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "not a checkpoint of torch_caption"),
        ({"weights": {}}, "not a checkpoint of torch_caption"),
        ({"version": 3, "library": "9.9"}, "a checkpoint of format version 3 (torch_caption '9.9')"),
        ({"optimizer": 3}, "optimizer is missing"),
        ({"words": None}, "words is missing"),
        ({"words": ["a", 3]}, "3 in its vocabulary is no word"),
        ({"weights": {"Wx": 1.0}}, "the weight 'Wx' is no tensor"),
        ({"average": {"Wx": 1.0}}, "the weight 'Wx' is no tensor"),
        ({"average": [1]}, "average is missing"),
        ({"weights": {"Wx": torch.ones(2, dtype=torch.int64)}}, "the weight 'Wx' is of dtype torch.int64"),
        ({"weights": {"a": torch.ones(2), "b": torch.ones(2).double()}}, "the weight 'b' is of dtype torch.float64"),
        ({"words": [*WORDS, "a"]}, "the word 'a' has two ids"),
        ({"config": {"max_length": "x"}}, "the saved setting of --max-length cannot be 'x'"),
    ],
)
def test_other_content(tmp_path: Path, content: Any, words: str) -> None:
    if isinstance(content, dict) and content != {"weights": {}}:
        write(tmp_path / "other.pt", plain(make(), **content))
    else:
        write(tmp_path / "other.pt", content)
    assert words in refusal(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": MODEL | {"hidden_dim": 10**9}}, "size mismatch"),
        ({"model": MODEL | {"cell_type": "gru"}}, "gru"),
        ({"model": MODEL | {"colour": 1}}, "colour"),
        ({"model": MODEL | {"hidden_dim": "5"}}, "do not fit together"),
        ({"words": WORDS[1:]}, "<NULL>"),
        ({"words": [*WORDS, "a"]}, "two ids"),
        ({"weights": {}}, "W_proj"),
    ],
)
def test_parts_that_do_not_fit_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        checkpoints.build_model(make(**changes), "x.pt")
    message = str(refused.value)
    assert message.startswith("x.pt: model, vocabulary and weights do not fit together")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("words", "width", "message"),
    [
        (WORDS, 3, None),
        ([*WORDS, "blue"], 3, "x.pt: its vocabulary is not that of here: 7 words against 8"),
        ([*WORDS[:5], "blue", "circle"], 3, "x.pt: its vocabulary is not that of here: word 5 is 'red' against 'blue'"),
        (WORDS, 4, "x.pt: trained on features of width 3, but those of here have 4"),
    ],
)
def test_data_that_does_not_fit(words: list[str], width: int, message: str | None) -> None:
    vocabulary = Vocabulary(tuple(words))
    if message is None:
        checkpoints.check_fits(make(), vocabulary, width, {}, path="x.pt", data="here")
        return
    with pytest.raises(CheckpointError) as refused:
        checkpoints.check_fits(make(), vocabulary, width, {}, path="x.pt", data="here")
    assert str(refused.value) == message


RECIPE = {
    "encoder": "resnet18",
    "features": "vgg16_fc7_pca",
    "transform": {"crop": 224, "channels": "RGB"},
    "weights": {"sha256": "a" * 64, "path": "~/w.pt"},
    "projection": {"mean": torch.arange(4.0), "components": torch.arange(12.0).view(4, 3)},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"weights": {"sha256": "a" * 64, "path": "elsewhere/w.pt"}}, None),
        ({"encoder": None, "weights": None, "projection": None}, None),
        ({"projection": {name: x * 1.000001 for name, x in RECIPE["projection"].items()}}, None),
        (
            {"transform": {"crop": 224, "channels": "BGR"}},
            "features with transform {'channels': 'RGB', 'crop': 224}, but",
        ),
        ({"encoder": "vgg16"}, "features with encoder 'resnet18', but those of here have 'vgg16'"),
        ({"features": "vgg16_fc7"}, "features with kind 'vgg16_fc7_pca', but those of here have 'vgg16_fc7'"),
        ({"weights": {"sha256": "b" * 64}}, "features with weights of SHA-256 'aaa"),
        (
            {"projection": {"mean": torch.arange(4.0), "components": -torch.arange(12.0).view(4, 3)}},
            "another projection",
        ),
        ({"projection": {"mean": torch.arange(5.0), "components": torch.zeros(5, 3)}}, "another projection"),
    ],
)
def test_features_that_were_made_otherwise(change: dict[str, Any], message: str | None) -> None:
    saved, vocabulary = make(manifest=RECIPE), Vocabulary(tuple(WORDS))
    if message is None:
        checkpoints.check_fits(saved, vocabulary, 3, RECIPE | change, path="x.pt", data="here")
        return
    with pytest.raises(CheckpointError, match=message):
        checkpoints.check_fits(saved, vocabulary, 3, RECIPE | change, path="x.pt", data="here")


# What others read ----------------------------------------------------------------------------------------------------


def test_weights_as_safetensors_caption_as_well(tmp_path: Path) -> None:
    made = make(config={"max_length": 9, "data": "scenes"})
    checkpoints.save_weights(tmp_path / "best.safetensors", made)
    found = checkpoints.load(tmp_path / "best.safetensors")
    for part in ("weights", "words", "config", "model", "manifest"):
        assert_same(getattr(found, part), getattr(made, part))
    assert found.optimizer is found.random is found.average is None
    assert_same(dict(checkpoints.build_model(found).state_dict()), made.weights)
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


def test_what_json_cannot_hold_is_not_saved_as_safetensors(tmp_path: Path) -> None:
    for manifest in ({"x": [torch.ones(1)]}, {"x": float("inf")}):
        with pytest.raises(CheckpointError, match=r"best\.safetensors: not saved: .*JSON"):
            checkpoints.save_weights(tmp_path / "best.safetensors", make(manifest=manifest))
    assert list(tmp_path.iterdir()) == []


def test_safetensors_that_changed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    checkpoints.save_weights(path, make())
    whole = path.read_bytes()
    for place in (len(whole) - 1, whole.index(b"circle"), whole.index(b'"sha256":"') + 12):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert refusal(path).endswith(": damaged: its content is not that of its checksum")


def test_what_is_too_large_is_neither_read_nor_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MOST_BYTES", 15_000)
    assert re.search(r": 19\.\d kB; 15\.0 kB are the most that is read$", refusal(saved))
    with pytest.raises(CheckpointError, match=r"not saved: \d+\.\d kB are more than 15\.0 kB"):
        checkpoints.save(saved, make())


def test_values_within_values_are_not_saved(tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(CheckpointError, match="more than 32 deep"):
        checkpoints.save(tmp_path / "x.pt", make(manifest=deep))


def test_the_reason_of_the_system_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer hides it behind an error of its own."""

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 5000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(files, "replace", lambda path, write, keep: write(Full()))
    with pytest.raises(OSError, match=r"x\.pt: could not be written: No space left on device; it takes 7\.\d kB$"):
        checkpoints.save(tmp_path / "x.pt", make())


def test_safetensors_of_others_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(make().weights, tmp_path / "other.safetensors")
    assert "cut short, damaged or not weights of torch_caption" in refusal(tmp_path / "other.safetensors")
    assert "there is no such checkpoint" in refusal(tmp_path / "none.safetensors")


@pytest.mark.parametrize("place", ["manifest/x", "manifest/projection/mean", "Wx"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.complex64])
def test_tensors_of_dtypes_that_no_checkpoint_holds_are_refused(tmp_path: Path, dtype: torch.dtype, place: str) -> None:
    """With the right checksum: torch itself computes with some of them not at all."""
    path = tmp_path / "other.safetensors"
    checkpoints.save_weights(path, make(manifest={"projection": {}}))
    data = path.read_bytes()
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load(data) | {place: torch.ones(4).to(dtype)}
    path.write_bytes(b"".join(seal.sealed_weights(safetensors.torch.save(tensors, metadata))))
    assert f" is of dtype {dtype}" in refusal(path)


def test_projections_of_any_dtype_are_compared(tmp_path: Path) -> None:
    """torch does not subtract truth values."""
    mean = torch.tensor([True, False, True])
    made = make(manifest={"projection": {"mean": mean}})
    fits = {"path": "p", "data": "d"}
    words = Vocabulary(tuple(WORDS))
    checkpoints.check_fits(made, words, 3, {"projection": {"mean": mean.float()}}, **fits)
    with pytest.raises(CheckpointError, match="another projection"):
        checkpoints.check_fits(made, words, 3, {"projection": {"mean": ~mean}}, **fits)


READ_BY_TORCH = """
import sys, torch
sys.modules["safetensors"] = None
content = torch.load(sys.argv[1], weights_only=True)
print(content["format"], content["version"], content["words"], content["model"]["hidden_dim"])
for name, weight in sorted(content["weights"].items()):
    print(name, weight.numpy().tobytes().hex())
"""
READ_BY_SAFETENSORS = """
import json, sys
sys.modules["torch"] = sys.modules["torch_caption"] = None
from safetensors import safe_open
with safe_open(sys.argv[1], "numpy") as file:
    metadata = file.metadata()
    words, model = json.loads(metadata["words"]), json.loads(metadata["model"])
    print(metadata["kind"], metadata["version"], words, model["hidden_dim"])
    for name in sorted(file.keys()):
        if "/" not in name:
            print(name, file.get_tensor(name).tobytes().hex())
"""


@pytest.mark.parametrize(("program", "name"), [(READ_BY_TORCH, "best.pt"), (READ_BY_SAFETENSORS, "best.safetensors")])
def test_a_file_is_read_without_us_to_the_bit(tmp_path: Path, program: str, name: str) -> None:
    write = checkpoints.save_weights if name.endswith("safetensors") else checkpoints.save
    write(tmp_path / name, make())
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / name)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    weights = sorted(make().weights.items())
    lines = [f"{name} {weight.numpy().tobytes().hex()}" for name, weight in weights]
    assert ran.stdout.splitlines() == [f"torch_caption checkpoint 2 {WORDS} 5", *lines]


def test_a_fresh_process_opens_it_with_the_library(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "last.pt", make())
    program = (
        "import sys\n"
        "from torch_caption.checkpoints import format as checkpoints\n"
        "saved = checkpoints.load(sys.argv[1])\n"
        "model = checkpoints.build_model(saved)\n"
        "print(model.W_proj.detach().numpy().tobytes().hex(), saved.progress)\n"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", program, str(tmp_path / "last.pt")]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8", check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{make().weights['W_proj'].numpy().tobytes().hex()} {make().progress}\n"


def test_numbers_that_are_none_are_not_saved(saved: Path) -> None:
    """So the last good checkpoint stays."""
    before = saved.read_bytes()
    for value in (float("nan"), float("inf")):
        made = make()
        made.weights["Wx"][1, 2] = value
        for save in (checkpoints.save, checkpoints.save_weights):
            with pytest.raises(CheckpointError, match=r"not saved: weights\['Wx'\] holds a number that is not finite"):
                save(saved, made)
    assert saved.read_bytes() == before


def test_what_is_saved_has_storages_of_its_own(tmp_path: Path) -> None:
    """Views, expanded and shared tensors are written as what they hold, and nothing more of their storage."""
    base = torch.arange(1000.0)
    shared = torch.ones(3)
    manifest = {"part": base[:4], "turned": base[:6].view(2, 3).T, "wide": base[:1].expand(5), "a": shared, "b": shared}
    pair = (0.9, 0.999)
    checkpoints.save(tmp_path / "x.pt", make(manifest=manifest, config={"a": pair, "b": pair}, random=None))
    found = checkpoints.load(tmp_path / "x.pt")
    assert_same(found.manifest, manifest)
    assert found.config == {"a": pair, "b": pair}
    assert (tmp_path / "x.pt").stat().st_size < 20_000


@pytest.mark.parametrize("strange", [torch.ones(2).to_sparse(), torch.ones(2, dtype=torch.complex64)])
def test_tensors_of_other_kinds_are_not_saved(tmp_path: Path, strange: torch.Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\['x'\] is a Tensor"):
        checkpoints.save(tmp_path / "x.pt", make(manifest={"x": strange}))


def test_what_is_verified_is_what_is_used(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes between the check and the use changes nothing: it is read once."""
    other = saved.with_name("other.pt")
    checkpoints.save(other, make(progress={"step": 99}))
    verified = seal.archive_is_whole

    def exchange(data: bytes) -> bool:
        other.replace(saved)
        return verified(data)

    monkeypatch.setattr(seal, "archive_is_whole", exchange)
    assert checkpoints.load(saved).progress == make().progress
