"""The comparison: it passes, and fails where a gradient is wrong."""

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

from tests.helpers.rings import ringed
from torch_caption import functions
from torch_caption.__main__ import main
from torch_caption.verify import compare
from torch_caption.verify.compare import CLASSES, broken, gradient_names
from torch_caption.verify.gradcheck import MODES, differences, of_inputs

SIZES = {"N": 2, "T": 3, "D": 3, "H": 2, "P": 1, "V": 5, "L": 3}
FLAGS = [flag for letter, size in SIZES.items() for flag in (f"--{letter}", str(size))] + ["--repeat", "1"]


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The command line: flags -> exit status, output, errors. Finite differences on the least sizes."""
    monkeypatch.setattr(compare, "SMALL", {"N": 1, "T": 2, "D": 1, "H": 1, "P": 1, "V": 4, "L": 2})

    def call(*flags: str) -> tuple[int, str, str]:
        try:
            status = main(["compare", *flags])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


def wrong(cases: list[compare.Case]) -> dict[str, set[str]]:
    """The disagreeing tensors of each case."""
    found = {
        case.label: {d.name for d in differences(case.hand, case.auto, case.args, case.names) if not d.agrees}
        for case in cases
    }
    return {label: names for label, names in found.items() if names}


def test_every_function_is_compared():
    labels = {case.label.partition(",")[0] for case in compare.cases(SIZES)}
    assert labels >= {name for name in functions.__all__ if name.islower()}


@pytest.fixture
def only(monkeypatch) -> Callable[..., None]:
    """`only(*labels)` leaves the other cases out of the comparison."""

    def choose(*labels: str) -> None:
        every = compare.cases
        monkeypatch.setattr(
            compare, "cases", lambda *args, **options: [c for c in every(*args, **options) if c.label in labels]
        )

    return choose


QUICK = ("temporal_softmax_loss, weights", "lstm", "CaptioningRNN, rnn")


@pytest.mark.parametrize(
    "labels", ringed([QUICK, tuple(case.label for case in compare.cases(SIZES))], {QUICK}), ids=len
)
def test_passes_with_every_file(run, only, tmp_path, labels):
    only(*labels)
    status, out, err = run(*FLAGS, "--json", str(tmp_path / "all.json"), "--plot", str(tmp_path / "all.png"))
    assert status == 0, out + err
    assert "DIFFERS" not in out
    assert "FAILS" not in out
    assert "all modes pass" in out
    for name in ("dmask", "dWx", "dW_embed", "dfeatures"):
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


ONE_OF_EACH_CLASS = {name.partition(".")[0]: name for name in gradient_names()}.values()


@pytest.mark.parametrize("name", ringed(gradient_names(), ONE_OF_EACH_CLASS))
def test_each_broken_gradient_is_named_and_fails_gradcheck(name):
    """gradcheck has no oracle, and sees a fault that both forms share. Afterwards the gradient is whole again."""

    def fault(case: compare.Case) -> str:
        try:
            MODES["gradcheck"](*of_inputs(case.hand, case.args))
        except RuntimeError as error:
            return str(error)
        return ""

    cases = compare.cases({**SIZES, "D": 1})
    with broken(name):
        found = wrong(cases)
        named = [case for case in cases if name.partition(".")[2] in found.get(case.label, ())]
        assert any("Jacobian mismatch" in fault(case) for case in named)
    assert wrong(cases) == {}


def test_gradient_names_are_all_there_are():
    names = gradient_names()
    assert len(set(names)) == len(names)
    assert {name.partition(".")[0] for name in names} == set(CLASSES)
    assert not {"WordEmbedding.dx", "RNN.dindex", "TemporalSoftmaxLoss.dy"} & set(names)


def test_broken_on_the_command_line(run, only):
    only("affine", "rnn", "rnn, lengths", "CaptioningRNN, rnn")
    status, out, _ = run(*FLAGS, "--break", "RNN.dWh")
    assert status == 1
    differing = [line for line in out.splitlines() if line.endswith("DIFFERS")]
    assert [line.split()[-5] for line in differing] == ["dWh"] * 3
    last = out.splitlines()[-1]
    assert "rnn: dWh, rnn, lengths: dWh, CaptioningRNN, rnn: dWh" in last
    assert "affine" not in last
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
def test_impossible_requests_are_refused_in_one_line(run, flags, message):
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


@pytest.mark.exhaustive
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
