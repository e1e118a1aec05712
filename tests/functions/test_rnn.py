"""The vanilla RNN: torch.nn's, with both nonlinearities."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.helpers.random_arguments import example
from torch_caption.functions import packed_rnn, rnn, rnn_step
from torch_caption.verify.gradcheck import assert_agrees

D, H = 4, 5  # of `example`


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_sequence_is_that_of_torch(nonlinearity):
    layer = nn.RNN(D, H, nonlinearity=nonlinearity, batch_first=True).double()

    def of_torch(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> Tensor:
        weights = {"weight_ih_l0": Wx.T, "weight_hh_l0": Wh.T, "bias_ih_l0": b, "bias_hh_l0": torch.zeros_like(b)}
        return functional_call(layer, weights, (x, h0.unsqueeze(0)))[0]

    args = example("rnn")
    assert_agrees(partial(rnn, nonlinearity=nonlinearity), of_torch, tuple(args.values()), tuple(args))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_step_is_that_of_torch(nonlinearity):
    cell = nn.RNNCell(D, H, nonlinearity=nonlinearity).double()

    def of_torch(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> Tensor:
        weights = {"weight_ih": Wx.T, "weight_hh": Wh.T, "bias_ih": b, "bias_hh": torch.zeros_like(b)}
        return functional_call(cell, weights, (x, prev_h))

    args = example("rnn_step")
    assert_agrees(partial(rnn_step, nonlinearity=nonlinearity), of_torch, tuple(args.values()), tuple(args))


@pytest.mark.parametrize("create_graph", [False, True], ids=["in place", "plain"])
def test_relu_has_no_slope_at_zero(create_graph):
    """As in torch."""
    args = [arg.detach().zero_().requires_grad_() for arg in example("rnn").values()]
    h = rnn(*args, nonlinearity="relu")
    assert not h.any()
    (db,) = torch.autograd.grad(h.sum(), args[-1:], create_graph=create_graph)
    assert not db.any()


def test_another_nonlinearity_is_refused():
    x, h0, *weights = example("rnn").values()
    calls = {
        "rnn_step": lambda: rnn_step(x[:, 0], h0, *weights, "sine"),
        "rnn": lambda: rnn(x, h0, *weights, None, "sine"),
        "packed_rnn": lambda: packed_rnn(x.flatten(0, 1), h0, *weights, 3, None, "sine"),
    }
    for function, call in calls.items():
        with pytest.raises(ValueError, match=f"^{function}: nonlinearity must be tanh or relu, but is 'sine'$"):
            call()
