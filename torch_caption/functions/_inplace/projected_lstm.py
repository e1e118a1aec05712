"""The loops of `projected_lstm` over time, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from ..packing import Steps, first_step, zip_steps
from .lstm import step_, step_backward_


def run_(
    a: Tensor, h0: Tensor, c0: Tensor, Wh: Tensor, Wr: Tensor, steps: Steps, cache: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """`_run` in place, as that of `lstm`. u of each step overwrites that of the last, which only its own h needed."""
    r, (H, P) = a.shape[0], Wr.shape
    h, c, tanh_c, u = a.new_empty(r, P), a.new_empty(r, H), a.new_empty(r, H), a.new_empty(c0.shape)
    prev_h, prev_c = h0, c0
    ifo, (i, f, o, g) = a[:, : 3 * H], a.chunk(4, dim=1)
    for a_t, ifo_t, i_t, f_t, o_t, g_t, h_t, c_t, tanh_c_t in zip_steps(steps, a, ifo, i, f, o, g, h, c, tanh_c):
        n = len(a_t)
        a_t.addmm_(prev_h[:n], Wh)
        step_((ifo_t,), (i_t, f_t, o_t, g_t), prev_c[:n], u[:n], c_t, tanh_c_t)
        prev_h, prev_c = torch.mm(u[:n], Wr, out=h_t), c_t
    cache.update(gates=a, tanh_c=tanh_c)
    return h, c


def through_time_(
    dh: Tensor, dc: Tensor, prev_c: Tensor, Wh: Tensor, Wr: Tensor, steps: Steps, gates: Tensor, tanh_c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`_through_time` in place, as that of `lstm`: what comes back through time is added to a copy of dh, dnext_h."""
    da, dnext_h = torch.empty_like(gates), dh.clone(memory_format=torch.contiguous_format)
    next_da, dprev_c = None, None
    rows = zip_steps(steps, da, *da.chunk(4, 1), gates, *gates.chunk(4, 1), dnext_h, dc, prev_c, tanh_c)
    for da_t, *da_parts, gates_t, i, f, o, g, dnext_h_t, dc_t, prev_c_t, tanh_c_t in reversed(rows):
        if next_da is not None:
            dnext_h_t[: len(next_da)].addmm_(next_da, Wh.T)
        du = dnext_h_t @ Wr.T
        dprev_c = step_backward_(du, dc_t, dprev_c, prev_c_t, gates_t, (i, f, o, g), tanh_c_t, da_t, da_parts)
        next_da = da_t
    return dnext_h, da, first_step(prev_c, steps) if dprev_c is None else dprev_c
