"""The step of `gru` and its loops over time, in place.

u and the gates are side by side in one tensor, [u r z n] (r, 4H). It begins with bn and x Wx + b, so that one product
of prev_h with Wh, whose block of n is in front, adds what is missing to the first three blocks: u, a_r and a_z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..packing import Steps, first_step, gather_rows, zip_steps
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
    """`_through_time` in place.

    Each part of da is dnext_h times a factor that no other step changes: da begins as these factors, of all steps at
    once, and each step multiplies its own by its dnext_h. What comes back through time is added to a copy of dh, since
    an incoming gradient must not change.
    """
    da, dh = torch.empty_like(gates), dh.clone(memory_format=torch.contiguous_format)
    (u, r, z, n), (du, da_r, da_z, da_n) = gates.chunk(4, 1), da.chunk(4, 1)
    dn = 1 - z
    torch.mul(dn, tanh_slope(n), out=da_n)
    torch.sub(prev_h, n, out=da_z).mul_(z).mul_(dn)
    torch.mul(da_n, r, out=du)
    torch.addcmul(du, du, r, value=-1, out=da_r).mul_(u)
    Wh_T = Wh.T.contiguous()  # MKL multiplies few rows by a transposed matrix at half the speed
    direct, next_dah, H = None, da, dh.shape[1]
    for dh_t, dah_t, da_t, z_t in reversed(zip_steps(steps, dh, da[:, : 3 * H], da.unflatten(1, (4, H)), z)):
        if direct is not None:
            dh_t[: len(direct)].add_(direct.addmm_(next_dah, Wh_T))
        da_t.mul_(dh_t.unsqueeze(1))
        direct, next_dah = dh_t * z_t, dah_t
    return da, first_step(dh, steps) if direct is None else direct
