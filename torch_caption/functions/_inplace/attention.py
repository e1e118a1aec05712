"""Attention and the loops of `attention_lstm` over time, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from ..packing import Steps, first_step, split_steps, zip_steps
from .lstm import step_, step_backward_


def run_(
    a: Tensor,
    h0: Tensor,
    c0: Tensor,
    A: Tensor,
    Wh: Tensor,
    Wattn: Tensor,
    steps: Steps,
    cache: dict[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """`_run` in place. The gates overwrite the pre-activations a (r, 4H), which no other tensor shares; the cache holds
    them, attn and tanh(c) for the backward."""
    (r, _), (_, H, L) = a.shape, A.shape
    h, c, tanh_c, attn = (a.new_empty(r, H) for _ in range(4))
    weights = a.new_empty(r, L)
    prev_h, prev_c = h0, c0
    rows = zip_steps(steps, a, a[:, : 3 * H], *a.chunk(4, dim=1), weights, attn, h, c, tanh_c)
    for a_t, ifo_t, *gates_t, weights_t, attn_t, h_t, c_t, tanh_c_t in rows:
        n = len(a_t)
        attend_(prev_h[:n], A[:n], weights_t, attn_t)
        a_t.addmm_(prev_h[:n], Wh).addmm_(attn_t, Wattn)
        step_((ifo_t,), gates_t, prev_c[:n], h_t, c_t, tanh_c_t)
        prev_h, prev_c = h_t, c_t
    cache.update(gates=a, tanh_c=tanh_c, attn=attn)
    return h, c, weights


def attend_(prev_h: Tensor, A: Tensor, weights: Tensor, attn: Tensor) -> None:
    """`_attend` of prev_h (n, H) and A (n, H, L), written to weights (n, L) and attn (n, H)."""
    torch.bmm(prev_h.unsqueeze(1), A, out=weights.unsqueeze(1)).mul_(A.shape[1] ** -0.5)
    weights.copy_(torch.softmax(weights, dim=1))
    torch.bmm(weights.unsqueeze(1), A.mT, out=attn.unsqueeze(1))


def through_time_(
    dh: Tensor,
    dc: Tensor,
    dweights: Tensor,
    prev_c: Tensor,
    A: Tensor,
    Wh: Tensor,
    Wattn: Tensor,
    steps: Steps,
    weights: Tensor,
    gates: Tensor,
    tanh_c: Tensor,
) -> tuple[Tensor, ...]:
    """`_through_time` in place: one tensor each for da, dattn and ds of all steps. What comes back through time is
    added to a copy of dh, since an incoming gradient must not change."""
    da, dattn = torch.empty_like(gates), torch.empty_like(tanh_c)
    dh, ds = (x.clone(memory_format=torch.contiguous_format) for x in (dh, dweights))
    dprev_h, dprev_c = torch.zeros_like(first_step(prev_c, steps)), None
    rows = zip_steps(steps, da, *da.chunk(4, 1), gates, *gates.chunk(4, 1), dh, dc, prev_c, tanh_c, dattn, ds, weights)
    previous_dh = [dprev_h, *split_steps(dh, steps)]  # dh_{t-1} of step t, and dprev_h of the first
    for prev_dh, (da_t, *parts) in reversed([*zip(previous_dh, rows, strict=False)]):
        *da_parts, gates_t, i, f, o, g, dh_t, dc_t, prev_c_t, tanh_c_t, dattn_t, ds_t, weights_t = parts
        n = len(da_t)
        dprev_c = step_backward_(dh_t, dc_t, dprev_c, prev_c_t, gates_t, (i, f, o, g), tanh_c_t, da_t, da_parts)
        dprev_h_t = prev_dh[:n]
        torch.mm(da_t, Wattn.T, out=dattn_t)
        dprev_h_t.addmm_(da_t, Wh.T)
        ds_t.unsqueeze(1).baddbmm_(dattn_t.unsqueeze(1), A[:n])
        ds_t.sub_((ds_t * weights_t).sum(1, keepdim=True)).mul_(weights_t)
        dprev_h_t.unsqueeze(1).baddbmm_(ds_t.unsqueeze(1), A[:n].mT, alpha=A.shape[1] ** -0.5)
    return da, dattn, ds, dprev_h, first_step(prev_c, steps) if dprev_c is None else dprev_c
