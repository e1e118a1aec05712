"""The gated recurrent unit: torch.nn.GRU, and what its gates mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.random_arguments import example
from tests.helpers.rings import ringed
from torch_caption.functions import gru, gru_step
from torch_caption.functions._inplace.gru import step_
from torch_caption.functions._inplace.tanh import tanh_
from torch_caption.verify.gradcheck import assert_agrees

N, T, D, H = 2, 3, 4, 5  # of `example`


def torch_gru(
    x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, bn: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """torch.nn.GRU with these weights: its bias_hh is zero for r and z, and bn for n."""
    layer = nn.GRU(*Wx.shape[:1], h0.shape[1], batch_first=True, dtype=x.dtype)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    bias_hh = torch.cat([torch.zeros_like(bn), torch.zeros_like(bn), bn])
    weights = dict(zip(names, (Wx.T, Wh.T, b, bias_hh), strict=True))
    h0 = h0.unsqueeze(0)
    if lengths is None:
        return torch.func.functional_call(layer, weights, (x, h0))[0]
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    h, _ = torch.func.functional_call(layer, weights, (packed, h0))
    return nn.utils.rnn.pad_packed_sequence(h, batch_first=True, total_length=x.shape[1])[0]


@pytest.mark.parametrize("lengths", [None, [2, 3, 1]])
@pytest.mark.parametrize("sizes", ringed([(3, 4, 5, 6), (3, 64, 7, 8)], {(3, 4, 5, 6)}))
def test_it_is_torch_nns(sizes, lengths):
    """Values and all gradients."""
    args = example("gru", **dict(zip("NTDH", sizes, strict=True)))
    assert_agrees(gru, torch_gru, (*args.values(), lengths and torch.tensor(lengths)), (*args, "lengths"))


def test_both_biases_of_torch_nns_gates_are_one():
    """b has the sum of bias_ih and bias_hh for r and z; for n they differ."""
    torch.manual_seed(0)
    layer = nn.GRU(D, H, batch_first=True, dtype=torch.float64)
    x, h0 = (arg.detach() for arg in [*example("gru").values()][:2])
    bias_ih, bias_hh = layer.bias_ih_l0.detach(), layer.bias_hh_l0.detach()
    b, bn = bias_ih + torch.cat([bias_hh[: 2 * H], torch.zeros(H)]), bias_hh[2 * H :]
    h = gru(x, h0, layer.weight_ih_l0.T, layer.weight_hh_l0.T, b, bn)
    torch.testing.assert_close(h, layer(x, h0.unsqueeze(0))[0], rtol=0, atol=1e-15)


def test_step_is_the_formula():
    """Entry by entry, in NumPy."""
    args = example("gru_step")
    x, prev_h, Wx, Wh, b, bn = (arg.detach().numpy() for arg in args.values())

    def sigmoid(a: float) -> float:
        return 1 / (1 + np.exp(-a))

    found = gru_step(*args.values()).detach().numpy()
    for n in range(N):
        for k in range(H):
            at_r, at_z, at_n = k, H + k, 2 * H + k
            r = sigmoid(x[n] @ Wx[:, at_r] + prev_h[n] @ Wh[:, at_r] + b[at_r])
            z = sigmoid(x[n] @ Wx[:, at_z] + prev_h[n] @ Wh[:, at_z] + b[at_z])
            new = np.tanh(x[n] @ Wx[:, at_n] + b[at_n] + r * (prev_h[n] @ Wh[:, at_n] + bn[k]))
            assert found[n, k] == pytest.approx((1 - z) * new + z * prev_h[n, k], rel=1e-13)


def opened(r: float, z: float) -> dict[str, Tensor]:
    """Arguments of a step with biases that saturate the two gates: a large number opens one, its negative closes it."""
    args = {name: arg.detach() for name, arg in example("gru_step").items()}
    args["b"][:H], args["b"][H : 2 * H] = r, z
    return args


def test_an_open_update_gate_keeps_the_state():
    args = opened(r=0, z=100)
    prev_h = args["prev_h"].requires_grad_()
    next_h = gru_step(**args)
    torch.testing.assert_close(next_h, prev_h, rtol=1e-14, atol=1e-15)
    dnext_h = torch.ones_like(next_h)
    assert torch.equal(*torch.autograd.grad(next_h, prev_h, dnext_h), dnext_h)


def test_a_closed_reset_gate_leaves_the_input_alone():
    """Neither the state nor bn reaches n; with z closed too next_h is tanh(x Wx_n + b_n)."""
    args = opened(r=-800, z=-800)
    for name in ("prev_h", "bn"):
        args[name].requires_grad_()
    next_h = gru_step(**args)
    torch.testing.assert_close(next_h, torch.tanh(args["x"] @ args["Wx"] + args["b"])[:, 2 * H :])
    grads = torch.autograd.grad(next_h.sum(), (args["prev_h"], args["bn"]))
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("tanh", [tanh_, torch.tanh_])
def test_step_in_place_writes_over_its_state(tanh):
    """As inference calls it."""
    x, h, Wx, Wh, b, bn = (arg.detach() for arg in example("gru_step").values())
    expected = gru_step(x, h, Wx, Wh, b, bn)
    a = torch.addmm(b, x, Wx)
    u = torch.addmm(bn, h, Wh[:, 2 * H :])
    rz, n = a.split([2 * H, H], dim=1)
    rz.addmm_(h, Wh[:, : 2 * H])
    step_(rz, (u, *rz.chunk(2, dim=1), n), prev_h=h, h=h, tanh=tanh)
    torch.testing.assert_close(h, expected, rtol=1e-14, atol=1e-15)
