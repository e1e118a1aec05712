"""The losses of `softmax` in place: gradients written over the logits, some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._common import at_least_float32, batch_size, flatten_rows
from ..affine import logits

CHUNK = 2**26
"""Bytes of logits that the fused loss holds at a time: 64 MiB."""


def cached_gradients(ctx: Any, dloss: Tensor) -> list[Tensor | None]:
    """dh, dw, db of the forward's cache, times dloss; computed again where an earlier backward has taken them."""
    gradients = ctx.cache.pop("gradients", None)
    if gradients is None:
        h, w, b, y, mask = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        _, *gradients = rows_and_gradients_(h, w, b, y, mask, ctx.label_smoothing, needed, batch_size(y))
    if dloss.device.type == "cpu" and dloss == 1:
        return gradients
    return [None if d is None else d.mul_(dloss) for d in gradients]


def rows_and_gradients_(
    h: Tensor, w: Tensor, b: Tensor, y: Tensor, weights: Tensor, s: float, needed: Sequence[bool], over: int = 1
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """weights * nll / over (N, T), and those of the gradients dh, dw and db of its sum that are needed.

    Nothing is computed of rows of weight 0.
    """
    N, T = y.shape
    weights = weights.reshape(-1).to(at_least_float32(h[:0]).dtype) / over  # (r,)
    if weights.all():
        rows, dh, dw, db = rows_of_chunks_(flatten_rows(h), w, b, y.reshape(-1), weights, s, needed)
        return rows.reshape(N, T), None if dh is None else dh.reshape(h.shape), dw, db
    selected = weights.nonzero().squeeze(1)
    y, own = y.reshape(-1).index_select(0, selected), weights.index_select(0, selected)
    rows, dh, dw, db = rows_of_chunks_(flatten_rows(h).index_select(0, selected), w, b, y, own, s, needed)
    rows = torch.zeros_like(weights).index_copy_(0, selected, rows)
    if dh is not None:
        zeros = flatten_rows(torch.zeros_like(h, memory_format=torch.contiguous_format))
        dh = zeros.index_copy_(0, selected, dh).reshape(h.shape)
    return rows.reshape(N, T), dh, dw, db


def rows_of_chunks_(
    h: Tensor, w: Tensor, b: Tensor, y: Tensor, weights: Tensor, s: float, needed: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """weights * nll (r,) and the gradients of its sum, from as many rows at a time as `CHUNK` allows."""
    dh, dw, db = (x.new_empty(x.shape) if need else None for x, need in zip((h, w, b), needed, strict=True))
    rows = torch.empty_like(weights)
    rows_at_once = max(1, CHUNK // (w.shape[1] * rows.element_size()))
    for k in range(0, max(len(y), 1), rows_at_once):
        chunk = slice(k, k + rows_at_once)
        dh_k = None if dh is None else dh[chunk]
        rows[chunk] = add_chunk_(h[chunk], w, b, y[chunk], weights[chunk], s, dh_k, dw, db, add=k > 0)
    return rows, dh, dw, db


def add_chunk_(
    h: Tensor,
    w: Tensor,
    b: Tensor,
    y: Tensor,
    weights: Tensor,
    s: float,
    dh: Tensor | None,
    dw: Tensor | None,
    db: Tensor | None,
    add: bool,
) -> Tensor:
    """weights * nll (r,) of a chunk of rows. Its dh is written, its dw and db are written or, if `add`, added."""
    weights = weights.unsqueeze(1)  # (r, 1)
    x = logits(h, w, b)  # (r, V)
    rows = (nll_and_gradient_(x, y.unsqueeze(1), s) * weights).squeeze(1)
    if dh is None and dw is None and db is None:
        return rows
    x.mul_(weights)
    if db is not None:
        db.copy_(x.sum(0) + db if add else x.sum(0))
    dx = x.to(h.dtype)
    if dh is not None:
        torch.mm(dx, w.T, out=dh)
    if dw is not None:
        H, V = w.shape
        left = (
            h.T.contiguous() if V >= 8 * H else h.T
        )  # a transposed factor is read slower; many columns repay the copy
        dw.addmm_(left, dx, beta=float(add))
    return rows


def nll_and_gradient_(x: Tensor, y: Tensor, s: float) -> Tensor:
    """nll (r, 1) of the words y (r, 1), whose gradient p - q is written over the logits x (r, V).

    log sum_v exp(x[v]) follows from the largest p, which is exp(max x) over that sum and at least 1 / V: no logarithm
    of a small number, and one pass fewer than log-softmax and its exponential.
    """
    right, top = x.gather(1, y), x.amax(1, keepdim=True)
    if s:  # before softmax overwrites them
        right = right + s * (x.mean(1, keepdim=True) - right)  # exact where all logits are equal
    p = torch.softmax(x, dim=1, out=x)  # a row is read before it is written
    nll = (top - right) - p.amax(1, keepdim=True).log()
    subtract_target_(p, y, s)
    return nll


def subtract_target_(p: Tensor, y: Tensor, s: float) -> Tensor:
    """p - q in place of p (..., V), where q is the smoothed target distribution of the words y (..., 1)."""
    if s:
        p.sub_(s / p.shape[-1])
    return p.scatter_add_(-1, y, torch.full_like(y, s - 1, dtype=p.dtype))


def zero_masked_(x: Tensor, mask: Tensor) -> Tensor:
    """`_zero_masked` in place."""
    return x.masked_fill_(~mask.unsqueeze(-1), 0) if mask.dtype == torch.bool else x


def dlogits_(x: Tensor, y: Tensor, weights: Tensor, s: float, out: Tensor) -> Tensor:
    """`_dlogits` in one tensor, `out`."""
    p = torch.softmax(x, dim=-1, out=out)
    return subtract_target_(p, y.unsqueeze(-1), s).mul_(weights.unsqueeze(-1))
