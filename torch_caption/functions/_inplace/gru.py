"""The step of `gru` and its loops over time, in place.

u and the gates are side by side in one tensor, [u r z n] (r, 4H). It begins with bn and x Wx + b, so that one product
of prev_h with Wh, whose block of n is in front, adds what is missing to the first three blocks: u, a_r and a_z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..packing import Steps, first_step, gather_rows, split_steps, zip_steps
from .tanh import tanh_, tanh_slope


def step_(
    rz: Tensor, gates: Sequence[Tensor], prev_h: Tensor, h: Tensor, tanh: Callable[[Tensor], Tensor] = tanh_
) -> None:
    """`step` in place, for training and for inference: next_h (n, H) is written to h.

    `gates` (n, H) each are u, and views of a_r, a_z and ax_n, which r, z and n overwrite; rz (n, 2H) is a view of a_r
    and a_z together. Inference keeps no old state: it passes prev_h as h, each element of which is read before it is
    written, and torch.tanh_, which is faster for its few rows.
    """
    u, r, z, n = gates
    rz.sigmoid_()
    tanh(n.addcmul_(r, u))
    torch.lerp(n, prev_h, z, out=h)


def step_backward_(dnext_h: Tensor, prev_h: Tensor, gates: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """`step_backward` in place: `parts` (n, H) each, du, da_r, da_z and da_n, are written, direct (n, H) is returned.

    Each is multiplied together in its own buffer. x (1 - y) is x - x y, rounded once.
    """
    (u, r, z, n), (du, da_r, da_z, da_n) = gates, parts
    dn = torch.addcmul(dnext_h, dnext_h, z, value=-1)
    torch.mul(dn, tanh_slope(n), out=da_n)
    torch.mul(dn, z, out=da_z).mul_(prev_h - n)
    torch.mul(da_n, r, out=du)
    torch.addcmul(du, du, r, value=-1, out=da_r).mul_(u)
    return dnext_h * z


def run_(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    bn: Tensor,
    index: Tensor | None,
    steps: Steps,
    cache: dict[str, Tensor],
) -> Tensor:
    """`_run` in place, of x (r, D), or (R, D) with an index; Wh has its block of n in front. The pre-activations are
    written beside bn, and u and the gates overwrite them; the cache holds these for the backward."""
    H = h0.shape[1]
    a = x.new_empty(x.shape[0], 4 * H)
    a[:, :H] = bn
    torch.addmm(b, x, Wx, out=a[:, H:])
    a = gather_rows(a, index)  # (r, 4H)
    h = a.new_empty(a.shape[0], H)
    prev_h = h0
    for ah_t, rz_t, *gates_t, h_t in zip_steps(steps, a[:, : 3 * H], a[:, H : 3 * H], *a.chunk(4, dim=1), h):
        prev_h = prev_h[: len(h_t)]
        ah_t.addmm_(prev_h, Wh)
        step_(rz_t, gates_t, prev_h, h_t)
        prev_h = h_t
    cache.update(gates=a)
    return h


def through_time_(dh: Tensor, prev_h: Tensor, Wh: Tensor, steps: Steps, gates: Tensor) -> tuple[Tensor, Tensor]:
    """`_through_time` in place. All steps write to one da; what comes back through time is added to a copy of dh, since
    an incoming gradient must not change."""
    da, dh = torch.empty_like(gates), dh.clone(memory_format=torch.contiguous_format)
    Wh_T = Wh.T.contiguous()  # MKL multiplies few rows by a transposed matrix at half the speed
    rows = zip_steps(steps, dh, prev_h, da[:, : 3 * prev_h.shape[1]], *da.chunk(4, 1), *gates.chunk(4, 1))
    previous_dh = [None, *split_steps(dh, steps)]  # dh_{t-1} of step t; what the first returns to h0 is the caller's
    direct = first_step(dh, steps)
    for prev_dh, (dh_t, prev_h_t, dah_t, *parts) in reversed([*zip(previous_dh, rows, strict=False)]):
        direct = step_backward_(dh_t, prev_h_t, gates=parts[4:], parts=parts[:4])
        if prev_dh is not None:
            prev_dh[: len(dah_t)].add_(direct.addmm_(dah_t, Wh_T))
    return da, direct
