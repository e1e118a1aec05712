"""Functions of one's own: against a reference, against differences, and what is said of their mistakes."""

from __future__ import annotations

import linecache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_caption.errors import ConfigError
from torch_caption.verify import check_backward, check_function, check_solution


def affine(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


@pytest.fixture
def args() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 4), torch.randn(4, 5)


def test_two_functions(args: tuple, capsys: pytest.CaptureFixture[str]):
    assert check_function(lambda x, w: torch.einsum("nd,dh->nh", x, w), affine, args)
    assert "out, dx, dw" in capsys.readouterr().out
    assert not check_function(lambda x, w: 2 * x @ w, affine, args)
    assert "out is 2 times the correct value" in capsys.readouterr().out
    assert not check_function(lambda x, w: x.detach() @ w, affine, args)
    assert "dx is zero or was never computed" in capsys.readouterr().out


@pytest.mark.parametrize("numpy", [False, True], ids=["tensors", "arrays"])
def test_a_backward_without_a_reference(args: tuple, numpy: bool, capsys: pytest.CaptureFixture[str]):
    def forward(x, w):
        return x @ w, (x, w)

    def backward(dout, cache):
        x, w = cache
        return dout @ w.T, x.T @ dout

    def transposed(dout, cache):
        x, w = cache
        return dout @ w.T, dout.T @ x

    def in_place(dout, cache):
        grads = backward(dout, cache)
        dout *= 2
        return grads

    given = tuple(x.double().numpy() for x in args) if numpy else args
    assert check_backward(forward, backward, given)
    assert not check_backward(forward, transposed, given)
    assert "dw is transposed" in capsys.readouterr().out
    assert not check_backward(forward, in_place, given)
    assert "modifies dout0 in place" in capsys.readouterr().out


def test_integers_are_not_differentiated(capsys: pytest.CaptureFixture[str]):
    def forward(x, W):
        return W[x], (x, W)

    def overwriting(dout, cache):
        x, W = cache
        dW = np.zeros_like(W)
        dW[x] += dout
        return dW

    words = np.array([[0, 1, 1], [2, 0, 1]])
    assert not check_backward(forward, overwriting, (words, np.random.default_rng(0).normal(size=(4, 3))))
    assert "dW" in capsys.readouterr().out


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    next_h = np.tanh(x @ Wx + prev_h @ Wh + b)
    return next_h, (x, prev_h, Wx, Wh, next_h)


def rnn_step_backward(dnext_h, cache):
    x, prev_h, Wx, Wh, next_h = cache
    da = dnext_h * (1 - next_h)
    return da @ Wx.T, da @ Wh.T, x.T @ da, prev_h.T @ da, da.sum(0)


def test_functions_of_a_notebook(capsys: pytest.CaptureFixture[str]):
    assert not check_solution(rnn_step_forward, rnn_step_backward)
    assert "tanh' is 1 - next_h^2; the square is missing" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="affine is none of the assignment's functions"):
        check_solution(affine)
    with pytest.raises(ConfigError, match="needs a function of the assignment"):
        check_solution()


CAPTIONER = """
class CaptioningRNN:
    def __init__(self, word_to_idx, input_dim, wordvec_dim, hidden_dim, cell_type, dtype):
        self.params = {}

    def loss(self, features, captions):
        return np.zeros(()), {}

    def sample(self, features, max_length):
        return np.zeros((len(features), max_length), int)
"""


def test_a_class_of_a_notebook(capsys: pytest.CaptureFixture[str]):
    """Its module is `__main__`, which has no file; the code of a method names its cell, whose lines linecache has."""
    cell = "<cell>"
    linecache.cache[cell] = len(CAPTIONER), None, CAPTIONER.splitlines(keepends=True), cell
    namespace = {"__name__": "__main__", "np": np}
    exec(compile(CAPTIONER, cell, "exec"), namespace)
    assert not check_solution(namespace["CaptioningRNN"])
    printed = capsys.readouterr().out
    assert printed.startswith("CaptioningRNN: cs231n")
    assert "wrong    dW_proj" in printed
    assert "wrong    captions" in printed


def test_a_backward_with_another_number_of_gradients(args: tuple):
    def forward(x, w):
        return x @ w, (x, w)

    for returned, printed in ((torch.ones(1), "an array"), ((None, None), "None, None")):
        with pytest.raises(ConfigError, match=f"returns {printed}; it must return 2 gradients: dx, dw"):
            check_backward(forward, lambda dout, cache, returned=returned: returned, args)


def test_an_error_in_a_cell_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """ipykernel names the file of a cell by a hash, in a folder of its own."""
    cell = tmp_path / "ipykernel_123" / "456.py"
    cell.parent.mkdir()
    source = "def word_embedding_forward(x, W):\n    raise ValueError(x.shape)\n"
    cell.write_text(source, encoding="utf-8")
    namespace: dict = {}
    exec(compile(source, str(cell), "exec"), namespace)
    assert not check_solution(namespace["word_embedding_forward"])
    assert "raised   at cell:2" in capsys.readouterr().out
