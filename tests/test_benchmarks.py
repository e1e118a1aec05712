"""The benchmark runs, has every part, and stops where a contender computes something else. No time is asserted."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch

from benchmarks import agreement, assignment, decoding, distributed, gpu, loading, memory, peers, step, timing, workload
from benchmarks.__main__ import main
from benchmarks.agreement import Disagreement
from benchmarks.options import BY_NAME_ALONE, PARTS, Options
from benchmarks.tables import Column, Table
from benchmarks.timing import Contender, Effort
from benchmarks.workload import IDS, Shape
from tests.helpers.rings import ringed
from torch_caption.data.vocabulary import END, NULL, START


class Ran(NamedTuple):
    status: int
    out: str
    err: str


def run(*flags: str) -> Ran:
    """The smoke run, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["--quick", *flags])
    return Ran(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """What the whole smoke run prints and what it writes."""
    path = tmp_path_factory.mktemp("benchmarks") / "all.json"
    ran = run("--only", *PARTS, "--json", str(path))
    assert ran.status == 0, ran.out + ran.err
    return ran.out, json.loads(path.read_text(encoding="utf-8"))


# What is printed and written -----------------------------------------------------------------------------------------


def assert_sound(out: str, content: dict) -> None:
    """Everything that is written is printed, and every figure is finite."""
    assert {"PyTorch", "NumPy", "Python", "processor", "threads", "GPU"} <= content["machine"].keys()
    assert all(fact in out for fact in content["machine"].values())
    for table in content["tables"]:
        assert table["title"] in out
        assert all(note in out for note in table["notes"])
        for row in table["rows"]:
            assert all(not isinstance(value, float) or math.isfinite(value) for value in row.values()), table["title"]


def test_a_quick_run_of_one_part(tmp_path):
    ran = run("--only", "memory", "gpu", "--cells", "rnn", "--json", str(tmp_path / "memory.json"))
    assert ran.status == 0, ran.out + ran.err
    content = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert_sound(ran.out, content)
    (table,) = (t for t in content["tables"] if t["part"] == "memory")
    assert set(memory.WAYS) <= {row["who"] for row in table["rows"]}
    assert "training step" not in ran.out
    if not torch.cuda.is_available():
        assert "gpu: skipped, PyTorch finds no CUDA device here" in ran.out.splitlines()


@pytest.mark.exhaustive
def test_every_part_is_there(everything):
    out, content = everything
    assert {table["part"] for table in content["tables"]} == set(PARTS)
    assert set(content["seconds"]) == set(PARTS)
    assert_sound(out, content)
    (table,) = (t for t in content["tables"] if t["part"] == "epoch")
    assert {"ours", "(a) torch.nn"} <= {row["who"] for row in table["rows"]}


@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_every_contender_is_timed_in_both_precisions(everything, cell):
    (table,) = (t for t in everything[1]["tables"] if t["title"].startswith(f"training step, {cell}, tiny"))
    who = {(row["who"], row["precision"]) for row in table["rows"]}
    names = {"ours", *(peer.label for peer in peers.PEERS)}
    expected = {(name, precision) for name in names for precision in ("float32", "bfloat16")}
    failed = {tuple(note.partition(" left out as it fails")[0].rsplit(", ", 1)) for note in table["notes"]}
    assert who == expected - failed | {(assignment.Assignment.label, "float32")}
    if cell == "rnn" or lstm_runs_in_bfloat16():
        assert not any("as it fails" in note for note in table["notes"])
    assert any("Zipf" in note and "distinct" in note for note in table["notes"])
    left_out = [note for note in table["notes"] if "torch.compile" in note]
    assert len(left_out) == 2
    assert all("--compile-seconds 0" in note for note in left_out)


def lstm_runs_in_bfloat16() -> bool:
    """Whether torch.nn's does here, with gradients: oneDNN has none for a CPU with AVX2 alone."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
    except RuntimeError:
        return False
    return True


@pytest.mark.exhaustive
def test_the_gpu_section_on_a_stand_in(monkeypatch):
    """Without a GPU: the processor stands in, and a graph that is replayed does nothing but keep what it captured."""
    stand_in = mock.MagicMock()
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(stand_in, name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a stand-in")
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.rnn.fp32_precision
    cells = ("rnn", "lstm") if lstm_runs_in_bfloat16() else ("rnn",)
    ran = run("--only", "gpu", "--cells", *cells)
    assert ran.status == 0, ran.out + ran.err
    assert "GPU            a stand-in" in ran.out
    for cell in cells:
        assert f"gpu: training step, {cell}, tiny" in ran.out
    for precision in gpu.PRECISIONS:
        for name in ("ours", "ours, captured", "(a) torch.nn, captured"):
            assert re.search(rf"^  {re.escape(name)} +{precision} ", ran.out, re.MULTILINE)
    assert before == (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.rnn.fp32_precision)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threads", "0"], "--threads must be at least 1, but is 0"),
        (["--epoch-steps", "0"], "--epoch-steps must be at least 1, but is 0"),
        (["--seconds", "nan"], "--seconds must be at least 0, but is nan"),
        (["--json", "nowhere/all.json"], "there is no folder nowhere"),
    ],
)
def test_wrong_options_are_refused_in_one_line(flags, message):
    ran = run(*flags)
    assert ran.status == 2
    assert not ran.out
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_table():
    columns = Column("who"), Column("ms", ".1f"), Column("quartiles", ".1f")
    table = Table("step", "a title", columns, (("ours", 2.25, (1.5, 3.0)), ("a long name", 10.0, None)), ("a note",))
    assert str(table).splitlines() == [
        "a title",
        "  who            ms  quartiles",
        "  ours          2.2    1.5-3.0",
        "  a long name  10.0",
        "  a note",
    ]
    assert table.plain()["rows"][0] == {"who": "ours", "ms": 2.25, "quartiles": (1.5, 3.0)}
    with pytest.raises(ValueError, match="2 values under 3 headings"):
        Table("step", "", columns, (("ours", 1.0),))


# A contender that computes something else ----------------------------------------------------------------------------


def scaled(cls: type, name: str, factor: float):
    """The method of that name with one of the gradients it returns scaled."""
    right = cls.gradients

    def gradients(self):
        found = dict(right(self))
        return {**found, name: factor * found[name]}

    return gradients


@pytest.mark.parametrize("name", ringed(["W_proj", "b_proj", "W_embed", "Wx", "Wh", "b", "W_vocab", "b_vocab"], {"Wx"}))
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.label)
def test_a_wrong_gradient_is_named(monkeypatch, peer, name):
    """And by every check of the step: in float32 a thousandth is enough."""
    monkeypatch.setattr(peer, "gradients", scaled(peer, name, 1.001))
    model, batch = workload.new_model(workload.TINY, "lstm"), workload.new_batch(workload.TINY)
    check = step.same_as_first("lstm, tiny")
    ours = step.module_step(step.OURS, model, model, batch, "float32")
    check(ours, ours.run())
    theirs = peer(model)
    wrong = step.module_step(peer.label, theirs, theirs, batch, "float32")
    with pytest.raises(Disagreement) as found:
        check(wrong, wrong.run())
    assert str(found.value).startswith(f"{peer.label}, float32, lstm, tiny: {name} differs from ours by 1.0e-03")


def wrong_loss(patch: pytest.MonkeyPatch) -> None:
    right = peers.Packed.nats
    patch.setattr(peers.Packed, "nats", lambda self, h, targets: 1.01 * right(self, h, targets))


def wrong_numpy(patch: pytest.MonkeyPatch) -> None:
    forward, right = assignment.LAYERS["rnn"]

    def backward(dh, cache):
        dx, dh0, dWx, dWh, db = right(dh, cache)
        return dx, dh0, dWx, dWh.T, db

    patch.setitem(assignment.LAYERS, "rnn", (forward, backward))


def wrong_layer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(peers.PackedLayer, "gradients", scaled(peers.PackedLayer, "Wx", 1.001))


def wrong_captions(patch: pytest.MonkeyPatch) -> None:
    right = decoding.plain_loop
    patch.setattr(decoding, "plain_loop", lambda *args, **flags: right(*args, **flags).flip(1))


def wrong_beams(patch: pytest.MonkeyPatch) -> None:
    right = decoding.plain_beams
    patch.setattr(decoding, "plain_beams", lambda *args: [captions[::-1] for captions in right(*args)])


def wrong_features(patch: pytest.MonkeyPatch) -> None:
    right = loading.ByItem.__getitem__
    patch.setattr(loading.ByItem, "__getitem__", lambda self, k: (right(self, k - 1)[0], right(self, k)[1]))


def wrong_memory(patch: pytest.MonkeyPatch) -> None:
    right = memory.WAYS[memory.A]
    patch.setitem(memory.WAYS, memory.A, lambda h, w, b, y: right(1.01 * h, w, b, y))


WRONG = {
    wrong_memory: ("memory", f"memory, {memory.A}: loss is "),
    wrong_loss: ("step", "(b) torch.nn, packed, float32, rnn, tiny: loss differs from ours by 1.0e-02"),
    wrong_numpy: ("step", "(d) NumPy, float32, rnn, tiny: Wh differs from ours"),
    wrong_layer: ("growth", "packed, layer, rnn, N=3 T=3 H=5: Wx differs from ours by 1.0e-03"),
    wrong_captions: ("decoding", "decoding, rnn, V=20, torch.float64: at step "),
    wrong_beams: ("decoding", "beam search, rnn, V=20, torch.float64: the beams of row 0 differ from the loop's"),
    wrong_features: ("loading", "loading, item by item, in memory: features and captions are not of the same images"),
}


@pytest.mark.parametrize("wrong", ringed(WRONG, {wrong_memory}), ids=lambda wrong: wrong.__name__)
def test_a_wrong_result_ends_the_run(monkeypatch, wrong):
    """Before anything is timed."""
    part, message = WRONG[wrong]
    wrong(monkeypatch)
    ran = run("--only", part, *([] if part in ("memory", "loading") else ["--cells", "rnn"]))
    assert ran.status == 1
    assert ran.err.startswith(f"error: {message}")
    assert "over (a)" not in ran.out


def test_a_peer_that_is_wrong_in_bfloat16_only_is_left_out(monkeypatch):
    right = peers.Padded.nats
    monkeypatch.setattr(
        peers.Padded, "nats", lambda *args: right(*args) * (2 if torch.is_autocast_enabled("cpu") else 1)
    )
    ran = run("--only", "step", "--cells", "rnn")
    assert ran.status == 0
    for label in (peers.Padded.label, peers.Packed.label):
        assert f"{label}, bfloat16 left out as it is wrong: {label}, bfloat16, rnn, tiny: loss differs" in ran.out


def test_a_ring_sends_almost_twice_the_gradients():
    assert distributed.ring_ms(100_000_000, 2, 1e9) == pytest.approx(100)
    assert distributed.ring_ms(100_000_000, 64, 1e9) == pytest.approx(2 * 63 / 64 * 100)
    small = workload.SMALL
    weights = 512 * 512 + 512 + 1004 * 256 + (256 + 512 + 1) * 4 * 512 + 512 * 1004 + 1004
    assert distributed.gradient_bytes(small, "lstm") == 4 * weights


def test_non_finite_values_differ():
    with pytest.raises(Disagreement, match="who: x differs from ours by nan"):
        agreement.require("who", {"x": torch.tensor([math.nan])}, {"x": torch.ones(1)}, 0.1)
    with pytest.raises(Disagreement, match="who has no x"):
        agreement.require("who", {}, {"x": torch.ones(1)}, 0.1)
    with pytest.raises(Disagreement, match="by inf"):
        agreement.require("who", {"x": torch.ones(2)}, {"x": torch.ones(1)}, 0.1)


# What is computed ----------------------------------------------------------------------------------------------------


def test_the_arithmetic_limit():
    """By hand: N=2, F=4, W=5, H=6, V=7 and four words."""
    shape = Shape("", N=2, T=3, F=4, W=5, H=6, V=7)
    projection = 2 * (2 * 2 * 4 * 6)  # forward, and the gradient of W_proj
    scores = 3 * (2 * 4 * 6 * 7)  # forward, and the gradients of h and of W_vocab
    rnn = 3 * (2 * 4 * 5 * 6) + 3 * (2 * 4 * 6 * 6)
    assert workload.layer_flops("rnn", 4, 5, 6) == rnn == 1584
    assert workload.step_flops(shape, "rnn", 4) == rnn + scores + projection == 2784
    assert workload.step_flops(shape, "lstm", 4) == 4 * rnn + scores + projection == 7536


def test_onednn_is_put_back_and_accurate():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    with timing.onednn():
        assert (settings.fp32_precision == "bf16") == timing.onednn_is_exact()
    assert settings.fp32_precision == before
    names = [contender.name for contender in timing.peak_contenders(timing.QUICK)]
    assert ("product, oneDNN" in names) == timing.onednn_is_exact()


@pytest.mark.parametrize(("N", "T"), [(1, 1), (1, 2), (3, 2), (2, 3), (25, 16), (128, 20), (32, 300)])
def test_captions_are_as_coco_s(N, T):
    captions = workload.new_captions(N, T, 30, torch.Generator().manual_seed(0))
    assert captions.shape == (N, T + 1)
    assert (captions[:, 0] == IDS[START]).all()
    assert (captions == IDS[END]).sum(1).eq(1).all()
    ends = (captions == IDS[END]).int().argmax(1)
    behind = torch.arange(T + 1) > ends.unsqueeze(1)
    assert torch.equal(captions == IDS[NULL], behind)
    assert captions.max() < 30
    if T > 2:
        assert abs(int(behind.sum()) - 0.35 * N * T) <= 1
    common, rare = ((captions == 4).sum(), (captions == 29).sum())
    assert N * T < 1000 or common > 5 * rare


@pytest.mark.parametrize("cell", ["rnn", "lstm", "attention"])
def test_captions_end_as_real_ones_do(cell):
    model = decoding.captioner(Shape("", N=0, T=0, F=8, W=16, H=32, V=50), cell)
    lengths = decoding.caption_lengths(model.sample(decoding.new_features(model, 64), decoding.STEPS)).double()
    assert 9.5 <= lengths.mean() <= 12.5
    assert 4 < lengths.min() < lengths.max() < 25


def test_a_tie_is_no_difference():
    model = decoding.captioner(Shape("", N=0, T=0, F=5, W=4, H=6, V=20), "rnn")
    with torch.no_grad():
        model.W_vocab[:, 7], model.b_vocab[7] = model.W_vocab[:, 9], model.b_vocab[9]
    features = decoding.new_features(model, 8)
    assert decoding.require_same(model, features, allowed=0.0) == 0
    peer_alone = decoding.Speaker(model)
    with torch.no_grad():
        peer_alone.out.bias[9] += 1e-6
    assert decoding._gap(peer_alone, features[:1], torch.tensor([9]), 0, 7) == pytest.approx(1e-6, abs=3e-7)


# The order of the runs -----------------------------------------------------------------------------------------------


def test_a_race_warms_up_checks_and_repeats():
    calls: list[str] = []

    def contender(name: str, **how) -> Contender:
        return Contender(name, lambda: calls.append(name), **how)

    def check(who: Contender, result: object) -> None:
        calls.append(f"check {who.name}")

    effort = Effort(seconds=0, least=3, most=9, burst=0.0, patience=60)
    times = timing.race([contender("a"), contender("b", weight=1 / 3)], effort, check=check)
    assert calls[:4] == ["a", "check a", "b", "check b"]
    assert (calls.count("a"), calls.count("b")) == (4, 2)
    assert len(times["a", "float32"].seconds) == 3
    assert len(times["b", "float32"].seconds) == 1


def test_a_slow_contender_is_not_repeated_unless_it_is_ours():
    calls = []
    impatient = Effort(seconds=0, least=2, patience=-1.0, burst=0.0)
    contenders = [Contender(name, lambda name=name: calls.append(name)) for name in ("ours", "b")]
    times = timing.race(contenders, impatient)
    assert calls == ["ours", "b", "ours", "ours"]
    assert len(times["b", "float32"].seconds) == 1


def test_the_reason_for_no_compilation_is_given(monkeypatch):
    model, batch = workload.new_model(workload.TINY, "rnn"), workload.new_batch(workload.TINY)
    monkeypatch.setattr(step.shutil, "which", lambda name: None)
    assert step.Compiler(9).step(model, batch, "float32") == "for want of a C++ compiler"
    spent = step.Compiler(9, spent=10)
    assert spent.step(model, batch, "float32") == "after 10 s of compilation (--compile-seconds 9)"


def test_a_failed_child_process_is_named(monkeypatch):
    monkeypatch.setattr(memory.sys, "executable", "false")
    with pytest.raises(ChildProcessError, match="memory, ours: "):
        memory.peak_apart(memory.Loss("ours", 1, 1, 1, 1, 1))


def test_options_default_to_every_comparison():
    assert {*Options().only, *BY_NAME_ALONE} == set(PARTS)
    assert len(Options().only) == len(PARTS) - len(BY_NAME_ALONE)
    assert Options(quick=True).small().compile_seconds == 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return loading.write(tmp_path / "data", 6, 20, workload.TINY)


def test_the_data_directory_is_sound(data):
    from torch_caption.data.dataset import open_data

    split = open_data(data)["train"]
    assert len(split) == 20
    features, captions = split.__getitems__([3, 5])
    words = workload.TINY.V - 4
    assert torch.equal(features[:, 0].long() % words, captions[:, 1] - 4)
