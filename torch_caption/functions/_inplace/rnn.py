"""The loops of `rnn` over time, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from ..packing import Steps, split_steps, zip_steps
from .tanh import tanh_, tanh_slope


def run_(a: Tensor, h0: Tensor, Wh: Tensor, steps: Steps, nonlinearity: str) -> Tensor:
    """`_run` in place: h_t overwrites the pre-activations of its own step, which nothing else reads."""
    h, act_ = h0, tanh_ if nonlinearity == "tanh" else torch.relu_
    for a_t in split_steps(a, steps):
        h = act_(a_t.addmm_(h[: len(a_t)], Wh))
    return a


def through_time_(dh: Tensor, h: Tensor, Wh: Tensor, steps: Steps, nonlinearity: str) -> Tensor:
    """`_through_time` in place: da begins as a copy of dh, since an incoming gradient must not change. Slopes are
    computed for each step, since new memory for all of them costs more."""
    da = dh.clone(memory_format=torch.contiguous_format)
    slope = tanh_slope if nonlinearity == "tanh" else relu_slope
    next_da = None
    for da_t, h_t in reversed(zip_steps(steps, da, h)):
        if next_da is not None:
            da_t[: len(next_da)].addmm_(next_da, Wh.T)
        next_da = da_t.mul_(slope(h_t))
    return da


def relu_slope(h: Tensor) -> Tensor:
    """The derivative of relu where its value is `h`."""
    return (h > 0).to(h.dtype)
