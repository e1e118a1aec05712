"""The comparison: it passes, and it can be seen to fail."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torch_caption import functions
from torch_caption.__main__ import main
from torch_caption.verify import compare
from torch_caption.verify.compare import CLASSES, broken, gradient_names
from torch_caption.verify.gradcheck import MODES, differences, of_inputs

SIZES = {"N": 2, "T": 3, "D": 3, "H": 2, "V": 5, "L": 3}
FLAGS = [flag for letter, size in SIZES.items() for flag in (f"--{letter}", str(size))] + ["--repeat", "1"]
# The class behind each case, and what the captioner is made of.
INSIDE = {
    "affine": {"Affine"},
    "temporal_affine": {"Affine"},
    "word_embedding": {"WordEmbedding"},
    "rnn_step": {"RNNStep"},
    "rnn": {"RNN"},
    "rnn, lengths": {"RNN", "Pack", "Unpack"},
    "packed_rnn": {"RNN"},
    "lstm_step": {"LSTMStep"},
    "lstm": {"LSTM"},
    "lstm, lengths and state": {"LSTM", "Pack", "Unpack"},
    "packed_lstm": {"LSTM"},
    "dot_product_attention": {"DotProductAttention"},
    "attention_lstm_step": {"AttentionLSTM"},
    "attention_lstm": {"AttentionLSTM", "DotProductAttention"},
    "attention_lstm, lengths and state": {"AttentionLSTM", "Pack", "Unpack"},
    "packed_attention_lstm": {"AttentionLSTM", "DotProductAttention"},
    "packed_attention_lstm, index and state": {"AttentionLSTM"},
    "temporal_softmax_loss": {"TemporalSoftmaxLoss"},
    "temporal_affine_softmax_loss": {"TemporalAffineSoftmaxLoss"},
    "CaptioningRNN, rnn": {"Affine", "WordEmbedding", "RNN", "TemporalAffineSoftmaxLoss"},
    "CaptioningRNN, lstm": {"Affine", "WordEmbedding", "LSTM", "TemporalAffineSoftmaxLoss"},
    "CaptioningRNN, attention": {
        *("Affine", "WordEmbedding", "AttentionLSTM", "DotProductAttention", "TemporalAffineSoftmaxLoss"),
    },
}
INSIDE |= {f"{label}, every option": inside for label, inside in INSIDE.items() if "Captioning" in label}
# What a case packs comes back through Pack, and all that comes back comes through Unpack.
THROUGH = {
    ("Pack.dx", "rnn, lengths"): {"dx", "dh0"},
    ("Pack.dx", "lstm, lengths and state"): {"dx", "dh0", "dc0"},
    ("Unpack.dx", "rnn, lengths"): {"dx", "dh0", "dWx", "dWh", "db"},
    ("Unpack.dx", "lstm, lengths and state"): {"dx", "dh0", "dWx", "dWh", "db", "dc0"},
    ("Pack.dx", "attention_lstm, lengths and state"): {"dx", "dA", "dh0", "dc0"},
    ("Unpack.dx", "attention_lstm, lengths and state"): {"dx", "dA", "dWx", "dWh", "dWattn", "db", "dh0", "dc0"},
    ("AttentionLSTM.dh0", "attention_lstm_step"): {"dprev_h"},  # a sequence of one step
    ("AttentionLSTM.dc0", "attention_lstm_step"): {"dprev_c"},
    # Without first states of its own it begins with the mean of A.
    **{
        (f"AttentionLSTM.{gradient}", function): {"dA"}
        for gradient in ("dh0", "dc0")
        for function in ("attention_lstm", "packed_attention_lstm")
    },
}
# Gradients that the captioner asks nobody for.
UNASKED = {"LSTM.dc0", "TemporalAffineSoftmaxLoss.dmask", "DotProductAttention.dprev_h"}


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The command line: flags -> exit status, output, errors. Finite differences on the least sizes."""
    monkeypatch.setattr(compare, "SMALL", {"N": 1, "T": 2, "D": 1, "H": 1, "V": 4, "L": 2})

    def call(*flags: str) -> tuple[int, str, str]:
        try:
            status = main(["compare", *flags])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


def classes_of(label: str) -> set[str]:
    return INSIDE.get(label, INSIDE.get(label.partition(",")[0]))


def wrong(cases: list[compare.Case]) -> dict[str, set[str]]:
    """The disagreeing tensors of each case."""
    found = {
        case.label: {d.name for d in differences(case.hand, case.auto, case.args, case.names) if not d.agrees}
        for case in cases
    }
    return {label: names for label, names in found.items() if names}


def test_every_function_is_compared():
    labels = [case.label for case in compare.cases(SIZES)]
    assert {label.partition(",")[0] for label in labels} >= {name for name in functions.__all__ if name.islower()}
    assert set().union(*map(classes_of, labels)) == set(CLASSES)


def test_passes_with_every_file(run, tmp_path):
    status, out, err = run(*FLAGS, "--json", str(tmp_path / "all.json"), "--plot", str(tmp_path / "all.png"))
    assert status == 0, out + err
    assert "DIFFERS" not in out
    assert "FAILS" not in out
    assert "all modes pass" in out
    for name in ("dWx", "dWh", "dprev_c", "dmask", "dW_embed", "dfeatures", "dc0"):
        assert f" {name} " in out
    check_json(tmp_path / "all.json")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


def check_json(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    results = {result["label"]: result for result in content["results"]}
    assert list(results) == [case.label for case in compare.cases(SIZES)]
    for result in results.values():
        assert set(result["modes"]) == set(MODES)
        assert not any(result["modes"].values())
        assert result["time_ratio"] > 0
        assert all(d["agrees"] and d["relative"] <= 1e-12 for d in result["differences"])
    by_name = {d["name"]: d["shape"] for d in results["lstm"]["differences"]}
    assert by_name == {"out": [2, 3, 2], "dx": [2, 3, 3], "dh0": [2, 2], "dWx": [3, 8], "dWh": [2, 8], "db": [8]}
    assert set(content["gradient_norms"]) == {"rnn", "lstm", "lstm, forget bias 3"}
    for norms in content["gradient_norms"].values():
        assert len(norms) == 64
        assert all(math.isfinite(norm) and norm > 0 for norm in norms)


def test_the_gradient_vanishes_in_the_rnn_and_lasts_with_an_open_forget_gate():
    norms = compare.gradient_norms(T=32, N=4, H=16)
    fading = {label: curve[0] / curve[-1] for label, curve in norms.items()}
    assert fading["rnn"] < 1e-3
    assert fading["lstm, forget bias 3"] > 100 * fading["lstm"]


@pytest.fixture
def without_modes(monkeypatch) -> None:
    """Leave out the finite differences, which take the most time and are always the same."""
    monkeypatch.setattr(compare, "run_modes", lambda function, args: dict.fromkeys(MODES))


@pytest.mark.usefixtures("without_modes")
def test_passes_in_float32(run):
    status, out, err = run(*FLAGS, "--dtype", "float32")
    assert status == 0, out + err
    assert "float32" in out


@pytest.mark.usefixtures("without_modes")
def test_least_sizes(run):
    status, out, err = run("--N", "1", "--T", "1", "--D", "1", "--H", "1", "--V", "1", "--repeat", "1")
    assert status == 0, out + err


@pytest.mark.parametrize("name", gradient_names())
def test_each_broken_gradient_is_seen_and_named(name):
    """In every case that its class is in, and nowhere else; and what is broken is mended afterwards."""
    class_name, _, gradient = name.partition(".")
    cases = compare.cases(SIZES)
    with broken(name):
        found = wrong(cases)
    for case in cases:
        names = found.get(case.label, set())
        if "Captioning" in case.label:
            expected = class_name in classes_of(case.label) and name not in UNASKED
            assert bool(names) == expected
        elif (name, case.label) in THROUGH:
            assert names == THROUGH[name, case.label]
        elif class_name in classes_of(case.label) and gradient in {f"d{n}" for n in case.names}:
            place = case.names.index(gradient[1:])
            needed = place < len(case.args) and getattr(case.args[place], "requires_grad", False)
            assert names == ({gradient} if needed else set())
        else:
            assert not names
    assert any(class_name in classes_of(label) for label in found)
    assert wrong(cases) == {}


@pytest.mark.parametrize("name", gradient_names())
def test_each_broken_gradient_fails_gradcheck(name):
    """Which has no oracle, and sees a fault that both forms share."""
    class_name = name.partition(".")[0]
    cases = [case for case in compare.cases({**SIZES, "D": 1}) if "Captioning" not in case.label]
    tried = [case for case in cases if class_name in classes_of(case.label)]
    faults = []
    with broken(name):
        for case in tried:
            try:
                MODES["gradcheck"](*of_inputs(case.hand, case.args))
            except RuntimeError as error:
                faults.append(str(error))
    assert any("Jacobian mismatch" in fault for fault in faults)


def test_gradient_names_are_all_there_are():
    names = gradient_names()
    assert len(set(names)) == len(names) == 44
    assert {name.partition(".")[0] for name in names} == set(CLASSES)
    assert not {"WordEmbedding.dx", "RNN.dindex", "TemporalSoftmaxLoss.dy"} & set(names)


def test_broken_on_the_command_line(run):
    status, out, _ = run(*FLAGS, "--break", "RNN.dWh")
    assert status == 1
    differing = [line for line in out.splitlines() if line.endswith("DIFFERS")]
    assert [line.split()[-5] for line in differing] == ["dWh"] * 6
    last = out.splitlines()[-1]
    assert "rnn: dWh, rnn, lengths: dWh, packed_rnn: dWh, packed_rnn, index: dWh, CaptioningRNN, rnn: dWh, " in last
    assert "CaptioningRNN, rnn, every option: dWh" in last
    assert "rnn: gradcheck" in last


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--break", "RNN.dX"], "--break RNN.dX: no such gradient; there are Affine.dx, "),
        (["--break", "WordEmbedding.dx"], "--break WordEmbedding.dx: no such gradient"),
        (["--N", str(10**30)], "--N must be at least 1 and below 2^31, but is 1000000000000000000000000000000"),
        (["--N", "0"], "--N must be at least 1 and below 2^31, but is 0"),
        (["--repeat", "0"], "--repeat must be at least 1 and below 2^31, but is 0"),
        (["--device", "nonsense"], "Expected one of cpu"),
        (["--json", "nowhere/all.json"], "there is no folder nowhere"),
        (["--plot", "nowhere/all.png"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, flags, message):
    status, out, err = run(*FLAGS, *flags)
    assert status == 2
    assert not out
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--dtype", "bfloat16"], ["--bogus", "1"], ["--N", "many"]])
def test_wrong_flags(run, flags):
    status, _, err = run(*flags)
    assert status == 2
    assert flags[0] in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_device(run):
    status, _, err = run(*FLAGS, "--device", "cuda")
    assert status == 2
    assert re.fullmatch(r"error: --device cuda: .*\n", err)


def test_ctrl_c_leaves_no_traceback(run, monkeypatch):
    def stop(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("torch_caption.cli.compare.report", stop)
    assert run(*FLAGS) == (130, "", "")


def test_nothing_goes_to_stderr():
    """Not even torch's own warnings of the modes; in a process of its own, since torch gives them once."""
    of_affine = "compare.cases = lambda *sizes, every=compare.cases: every(*sizes)[:1]"
    imports = "from torch_caption.__main__ import main; from torch_caption.verify import compare"
    line = [sys.executable, "-c", f"{imports}; {of_affine}; main()", "compare", *FLAGS]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "all modes pass" in done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cuda(run, dtype):
    status, out, err = run(*FLAGS, "--device", "cuda", "--dtype", dtype)
    assert status == 0, out + err
