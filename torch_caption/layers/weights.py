"""torch.nn's weights as those of `functions`: views, except where gates or biases are put together.

torch.nn's weights are (out, in) with two biases. Those of `functions` are (in, out) with one.
"""

from __future__ import annotations

import torch
from torch import Tensor

Bias = Tensor | None


def rnn_weights(weight_ih: Tensor, weight_hh: Tensor, bias_ih: Bias, bias_hh: Bias) -> dict[str, Tensor]:
    """Wx, Wh and b; for an LSTM with the gates in torch's order i, f, g, o."""
    b = weight_hh.new_zeros(weight_hh.shape[0]) if bias_ih is None or bias_hh is None else bias_ih + bias_hh
    return {"Wx": weight_ih.T, "Wh": weight_hh.T, "b": b}


def lstm_weights(weight_ih: Tensor, weight_hh: Tensor, bias_ih: Bias, bias_hh: Bias) -> dict[str, Tensor]:
    """Wx, Wh and b of an LSTM, the gates in the order i, f, o, g: one copy for all steps of a call."""
    return rnn_weights(
        *(None if weight is None else _ifog(weight) for weight in (weight_ih, weight_hh, bias_ih, bias_hh))
    )


def gru_weights(weight_ih: Tensor, weight_hh: Tensor, bias_ih: Bias, bias_hh: Bias) -> dict[str, Tensor]:
    """Wx, Wh, b and bn of a GRU: the recurrent bias of n is a factor of the reset gate, and stays apart."""
    H = weight_hh.shape[1]
    if bias_ih is None or bias_hh is None:
        b, bn = weight_hh.new_zeros(3 * H), weight_hh.new_zeros(H)
    else:
        hidden, bn = bias_hh.split([2 * H, H])
        b = bias_ih + torch.cat([hidden, torch.zeros_like(bn)])
    return {"Wx": weight_ih.T, "Wh": weight_hh.T, "b": b, "bn": bn}


def _ifog(weight: Tensor) -> Tensor:
    """Rows (4H, ...) of the gates i, f, g, o as those of i, f, o, g."""
    i, f, g, o = weight.chunk(4)
    return torch.cat([i, f, o, g])
