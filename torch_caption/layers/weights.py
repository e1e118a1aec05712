"""torch.nn's weights as those of `functions`: views, except for a sum of biases and the gates of a projected LSTM.

torch.nn's weights are (out, in) with two biases, which are None where a module has none. Those of `functions` are
(in, out) with one bias.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_device(x: Tensor, other: Tensor, name: str) -> None:
    """Of weights ("parameter") and states ("hidden").

    Raises:
        RuntimeError: another device than that of x, as in torch.nn.
    """
    if x.device != other.device:
        found = f"found input tensor at {x.device} and {name} tensor at {other.device}"
        raise RuntimeError(f"Input and {name} tensors are not at the same device, {found}")


def rnn_weights(
    weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor, ...]:
    """Wx, Wh and b; of an LSTM with the gates in torch.nn's order, ifgo."""
    b = weight_hh.new_zeros(weight_hh.shape[0]) if bias_ih is None or bias_hh is None else bias_ih + bias_hh
    return weight_ih.T, weight_hh.T, b


def ifog_weights(
    weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor, ...]:
    """Wx, Wh and b of an LSTM with the gates in the order ifog: one copy for all steps of a call."""
    biases = (None if bias is None else _ifog(bias) for bias in (bias_ih, bias_hh))
    return rnn_weights(_ifog(weight_ih), _ifog(weight_hh), *biases)


def gru_weights(
    weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor, ...]:
    """Wx, Wh, b and bn of a GRU: the recurrent bias of n is a factor of the reset gate, and stays apart."""
    H = weight_hh.shape[1]
    if bias_ih is None or bias_hh is None:
        return weight_ih.T, weight_hh.T, weight_hh.new_zeros(3 * H), weight_hh.new_zeros(H)
    hidden, bn = bias_hh.split([2 * H, H])
    return weight_ih.T, weight_hh.T, bias_ih + torch.cat([hidden, torch.zeros_like(bn)]), bn


def _ifog(weight: Tensor) -> Tensor:
    """Rows (4H, ...) of the gates i, f, g, o as those of i, f, o, g."""
    i, f, g, o = weight.chunk(4)
    return torch.cat([i, f, o, g])
