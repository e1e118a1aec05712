"""The LSTM with a projected hidden state: torch.nn's with proj_size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from tests.helpers.random_arguments import example
from torch_caption.functions import Packing, lstm, packed_projected_lstm, projected_lstm
from torch_caption.functions.packing import last_rows
from torch_caption.verify.gradcheck import assert_agrees

N, T, D, H, P = 2, 3, 7, 5, 4  # torch.nn projects to fewer dimensions alone


def of_torch(x: Tensor, h0: Tensor, *weights: Tensor, lengths: list[int] | None = None) -> tuple[Tensor, ...]:
    """The hidden states, padded or packed as torch.nn has them, then the last states."""
    Wx, Wh, Wr, b, c0 = weights
    layer = nn.LSTM(D, H, batch_first=True, proj_size=P).double()
    Wx, Wh, b = (torch.cat([w[..., : 2 * H], w[..., 3 * H :], w[..., 2 * H : 3 * H]], dim=-1) for w in (Wx, Wh, b))
    parameters = {"weight_ih_l0": Wx.T, "weight_hh_l0": Wh.T, "weight_hr_l0": Wr.T}
    parameters |= {"bias_ih_l0": b, "bias_hh_l0": torch.zeros_like(b)}
    rows = x if lengths is None else pack_padded_sequence(x, lengths, batch_first=True)
    out, (h, c) = functional_call(layer, parameters, (rows, (h0.unsqueeze(0), c0.unsqueeze(0))))
    return out if lengths is None else out.data, h[0], c[0]


@pytest.fixture
def args(randn) -> dict[str, Tensor]:
    args = example("projected_lstm", N=N, T=T, D=D, H=H, P=P)
    return {**args, "c0": randn(N, H)}


def test_the_sequence_is_that_of_torch(args):
    def hand(*args: Tensor) -> tuple:
        *args, c0 = args
        return projected_lstm(*args, None, c0, True)

    assert_agrees(hand, of_torch, tuple(args.values()), tuple(args))


def test_packed_sequences_are_those_of_torch(args):
    packed = Packing.of(N, T, torch.tensor([3, 1]))

    def hand(x: Tensor, h0: Tensor, *args: Tensor) -> tuple:
        *args, c0 = args
        h, c = packed_projected_lstm(packed.pack(x), h0, *args, packed.batch_sizes, None, c0, True)
        return h, last_rows(h0, h, packed.batch_sizes), last_rows(c0, c, packed.batch_sizes)

    assert_agrees(hand, lambda *args: of_torch(*args, lengths=[3, 1]), tuple(args.values()), tuple(args))


def test_the_projection_by_the_identity_is_the_lstm():
    args = example("projected_lstm", H=H, P=H)
    args["Wr"] = torch.eye(H, dtype=torch.float64)
    without = {name: value for name, value in args.items() if name != "Wr"}
    torch.testing.assert_close(projected_lstm(**args), lstm(**without), rtol=0, atol=1e-15)


def test_the_cell_state_has_its_own_width(args):
    with pytest.raises(ValueError, match=r"^projected_lstm: c0 must be \(N, H\) with N = 2, H = 5, but is \(2, 4\)$"):
        projected_lstm(**{**args, "c0": args["h0"]})
