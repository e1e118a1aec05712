"""The LSTM: torch.nn's, in both orders of its gates, and the states that it ends in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from tests.helpers.random_arguments import example
from torch_caption.functions import Packing, lstm_step, packed_lstm
from torch_caption.functions.packing import last_rows
from torch_caption.verify.gradcheck import assert_agrees

D, H = 4, 5  # of `example`


def test_the_step_takes_the_weights_of_torch():
    """Without a copy: only transposed."""
    cell = nn.LSTMCell(D, H).double()

    def of_torch(*args: Tensor) -> tuple[Tensor, Tensor]:
        x, prev_h, prev_c, Wx, Wh, b = args
        weights = {"weight_ih": Wx.T, "weight_hh": Wh.T, "bias_ih": b, "bias_hh": torch.zeros_like(b)}
        return functional_call(cell, weights, (x, (prev_h, prev_c)))

    args = example("lstm_step")
    assert_agrees(lambda *args: lstm_step(*args, gate_order="ifgo"), of_torch, tuple(args.values()), tuple(args))


def test_packed_sequences_end_in_the_states_of_torch():
    """Those of length 0, which torch.nn refuses, in their first states."""
    layer = nn.LSTM(D, H, batch_first=True).double()
    packed = Packing.of(4, 3, torch.tensor([3, 3, 1, 0]))

    def of_torch(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, c0: Tensor) -> tuple[Tensor, ...]:
        Wx, Wh, b = (torch.cat([w[..., : 2 * H], w[..., 3 * H :], w[..., 2 * H : 3 * H]], dim=-1) for w in (Wx, Wh, b))
        weights = {"weight_ih_l0": Wx.T, "weight_hh_l0": Wh.T, "bias_ih_l0": b, "bias_hh_l0": torch.zeros_like(b)}
        rows = pack_padded_sequence(x[:3], [3, 3, 1], batch_first=True)
        out, last = functional_call(layer, weights, (rows, (h0[:3].unsqueeze(0), c0[:3].unsqueeze(0))))
        return out.data, *(torch.cat([state[0], first[3:]]) for state, first in zip(last, (h0, c0), strict=True))

    def hand(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, c0: Tensor) -> tuple:
        h, c = packed_lstm(packed.pack(x), h0, Wx, Wh, b, packed.batch_sizes, c0=c0, return_cells=True)
        return h, last_rows(h0, h, packed.batch_sizes), last_rows(c0, c, packed.batch_sizes)

    args = example("lstm", N=4)
    args["c0"] = args["h0"].detach().flip(0).requires_grad_()
    assert_agrees(hand, of_torch, tuple(args.values()), tuple(args))


def test_another_gate_order_is_refused():
    with pytest.raises(ValueError, match=r"^lstm_step: gate_order must be ifog or ifgo, but is 'gifo'$"):
        lstm_step(*example("lstm_step").values(), "gifo")
