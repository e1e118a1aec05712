"""The step of `lstm` and its loops over time, in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..packing import Steps, split_steps, zip_steps
from .tanh import tanh, tanh_slope


def in_gate_order(parts: Sequence[Tensor], gate_order: str) -> Sequence[Tensor]:
    """Four parts in the gate order as those of i, f, o, g; or the reverse, which is the same exchange."""
    i, f, o, g = parts
    return parts if gate_order == "ifog" else (i, f, g, o)


def step_(
    sigmoids: Sequence[Tensor],
    gates: Sequence[Tensor],
    prev_c: Tensor,
    h: Tensor,
    c: Tensor,
    tanh_c: Tensor,
    tanh: Callable[..., Tensor] = tanh,
) -> None:
    """`step` in place, for training and for inference: next_h and next_c (n, H) are written to h and c.

    `gates`, i f o g (n, H) each, are views of the pre-activations, which the gates overwrite; `sigmoids` are views of
    the first three, in as few parts as their order allows. tanh_c (n, H) holds i * g until it takes tanh(next_c).
    Inference keeps no old state: it passes prev_c as c, each element of which is read before it is written, and h as
    tanh_c, since the pre-activations already contain h Wh; and for its few rows torch.tanh, one call instead of three.
    """
    i, f, o, g = gates
    for part in sigmoids:
        part.sigmoid_()
    tanh(g, out=g)
    torch.addcmul(torch.mul(i, g, out=tanh_c), f, prev_c, out=c)
    torch.mul(o, tanh(c, out=tanh_c), out=h)


def step_backward_(
    dnext_h: Tensor,
    dc: Tensor,
    next_dprev_c: Tensor | None,
    prev_c: Tensor,
    gates: Tensor,
    parts: Sequence[Tensor],
    tanh_c: Tensor,
    da: Tensor,
    da_parts: Sequence[Tensor],
) -> Tensor:
    """`step_backward` in place: da (n, 4H) is written, dprev_c (n, H) returned.

    Each factor of da is multiplied into the buffer of da itself, and dprev_c takes the buffer of dnext_c, which nothing
    reads after it. `parts` and `da_parts` are the four parts of `gates` and `da`. `next_dprev_c` (m, H) is the dprev_c
    of the next step, of the m rows that continue; None at the last step.
    """
    (i, f, o, g), (da_i, da_f, da_o, da_g) = parts, da_parts
    dnext_c = torch.addcmul(dc, tanh_slope(tanh_c).mul_(o), dnext_h)
    if next_dprev_c is not None:
        dnext_c[: len(next_dprev_c)] += next_dprev_c
    torch.addcmul(gates, gates, gates, value=-1, out=da)  # s (1 - s), for three of the gates
    da_i.mul_(g).mul_(dnext_c)
    da_f.mul_(prev_c).mul_(dnext_c)
    da_o.mul_(tanh_c).mul_(dnext_h)
    torch.mul(tanh_slope(g), i, out=da_g).mul_(dnext_c)
    return dnext_c.mul_(f)


def run_(
    a: Tensor, h0: Tensor, c0: Tensor, Wh: Tensor, steps: Steps, gate_order: str, cache: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """`_run` in place. The gates overwrite the pre-activations a (r, 4H), which no other tensor shares; the cache holds
    them and tanh(c) for the backward."""
    r, H = a.shape[0], h0.shape[1]
    h, c, tanh_c = (a.new_empty(r, H) for _ in range(3))
    prev_h, prev_c = h0, c0
    gates = in_gate_order(a.chunk(4, dim=1), gate_order)
    sigmoids = [a[:, : 3 * H]] if gate_order == "ifog" else [a[:, : 2 * H], a[:, 3 * H :]]
    for a_t, i_t, f_t, o_t, g_t, h_t, c_t, tanh_c_t, *sigmoids_t in zip_steps(
        steps, a, *gates, h, c, tanh_c, *sigmoids
    ):
        n = len(a_t)
        a_t.addmm_(prev_h[:n], Wh)
        step_(sigmoids_t, (i_t, f_t, o_t, g_t), prev_c[:n], h_t, c_t, tanh_c_t)
        prev_h, prev_c = h_t, c_t
    cache.update(gates=a, tanh_c=tanh_c)
    return h, c


def through_time_(
    dh: Tensor,
    dc: Tensor,
    c0: Tensor,
    c: Tensor,
    Wh: Tensor,
    steps: Steps,
    gate_order: str,
    gates: Tensor,
    tanh_c: Tensor,
) -> tuple[Tensor, Tensor]:
    """`_through_time` in place, of c (r, H) and c0 (N, H). All steps write to one da; other memory is that of a step:
    new memory for all of them costs more than their arithmetic."""
    da = torch.empty_like(gates)
    next_da, dprev_c = None, None
    parts_of_da, parts_of_gates = (in_gate_order(x.chunk(4, dim=1), gate_order) for x in (da, gates))
    rows = zip_steps(steps, da, *parts_of_da, gates, *parts_of_gates, dh, dc, tanh_c)
    before = [c0, *split_steps(c, steps)]
    Wh_T = Wh.T.contiguous()  # a product of few rows is slower with a transposed matrix
    for (da_t, *da_parts, gates_t, i, f, o, g, dh_t, dc_t, tanh_c_t), prev_c in reversed(
        [*zip(rows, before, strict=False)]
    ):
        dnext_h = dh_t if next_da is None else add_to_leading_rows(dh_t, next_da, Wh_T)
        parts = (i, f, o, g)
        dprev_c = step_backward_(dnext_h, dc_t, dprev_c, prev_c[: len(da_t)], gates_t, parts, tanh_c_t, da_t, da_parts)
        next_da = da_t
    return da, c0[:0] if dprev_c is None else dprev_c


def add_to_leading_rows(x: Tensor, factor: Tensor, w: Tensor) -> Tensor:
    """x (n, H) + [factor w; 0], where factor has at most n rows."""
    if len(factor) == len(x):
        return torch.addmm(x, factor, w)
    out = x.clone(memory_format=torch.contiguous_format)
    out[: len(factor)].addmm_(factor, w)
    return out
