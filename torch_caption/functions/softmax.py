"""The loss of a captioner: softmax cross-entropy over time, alone and fused with the vocabulary layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import (
    apply,
    at_least_float32,
    autocast,
    batch_size,
    check_floats,
    check_integers,
    check_range,
    check_shape,
    flatten_rows,
    may_overwrite,
    new_cache,
    readable,
)
from ._inplace.softmax import cached_gradients, dlogits_, rows_and_gradients_, zero_masked_
from .affine import logits


class TemporalSoftmaxLoss(Function):
    r"""Softmax cross-entropy at every timestep, weighted by a mask; summed over time, averaged over the batch.

        nll[n, t]  = log sum_v exp(x[n, t, v]) - x[n, t, y[n, t]]         (N, T)
        loss[n, t] = mask[n, t] * nll[n, t]                               (N, T), the result without a reduction
        loss       = 1/N sum_{n,t} loss[n, t]                             (), with the reduction "mean"

    Backward. Every entry of the sum receives dloss[n, t] = dloss / N. The derivative of log sum exp is softmax, p; that
    of the target's logit is 1 at the target:

        dx[n, t]    = dloss[n, t] * mask[n, t] * (p[n, t] - onehot(y[n, t]))    (N, T, V)
        dmask[n, t] = dloss[n, t] * nll[n, t]                                   (N, T), of a real-valued mask

    Label smoothing (Szegedy et al. 2016) replaces onehot(y) by the distribution q: a probability s is spread evenly
    over all V words, the target among them, and 1 - s stays on the target. nll becomes the cross-entropy with q:

        q[n, t]   = (1 - s) onehot(y[n, t]) + s / V                           (N, T, V)
        nll[n, t] = log sum_v exp(x[n, t, v]) - sum_v q[n, t, v] x[n, t, v]
                  = (1 - s) (-log p[n, t, y[n, t]]) + s mean_v (-log p[n, t, v])

    As the entries of q sum to 1, the derivative of log sum exp stays p, and that of the second sum is q:

        dx[n, t] = dloss[n, t] * mask[n, t] * (p[n, t] - q[n, t])
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, mask: Tensor, label_smoothing: float, reduction: str) -> Tensor:
        return _loss(torch.log_softmax(x, dim=-1), y, mask, label_smoothing, reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.label_smoothing, ctx.reduction = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple:
        x, y, mask = ctx.saved_tensors
        s = ctx.label_smoothing
        need_x, _, need_mask, *_ = ctx.needs_input_grad
        dloss = _of_rows(dloss, y, ctx.reduction)
        dx = None
        if need_x and may_overwrite(x, y, mask, dloss):
            dx = zero_masked_(dlogits_(x, y, _weights(dloss, mask), s, out=torch.empty_like(x)), mask)
        elif need_x:
            dx = _dlogits(_zero_masked(x, mask), y, _weights(dloss, mask), s)
        dmask = dloss * _nll(torch.log_softmax(x, dim=-1), y, s) if need_mask else None
        return dx, None, dmask, None, None


class TemporalSoftmaxLossWithJVP(TemporalSoftmaxLoss):
    """`TemporalSoftmaxLoss` with its forward mode: tloss[n, t] = mask * sum_v (p - q) tx + tmask * nll."""

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, _: None, tmask: Tensor | None, *__: None) -> Tensor:
        x, y, mask = ctx.saved_tensors
        x, tx = _zero_masked(x, mask), _zero_masked(tx, mask)
        return _loss_jvp(x, tx, y, mask, tmask, ctx.label_smoothing, ctx.reduction)


class TemporalAffineSoftmaxLoss(Function):
    r"""`TemporalSoftmaxLoss` of the logits of an affine layer.

        x    = h w + b                         (N, T, H)(H, V) + (V,) -> (N, T, V)
        loss = TemporalSoftmaxLoss(x, y, mask, s)

    Backward. With TemporalSoftmaxLoss's gradient of the logits the rest is the affine layer's, over r = N T rows. With
    the reduction "mean", dloss[n, t] = dloss / N:

        dx    = dloss[n, t] * mask * (p - q)   (N, T, V), q is onehot(y) without label smoothing
        dh    = dx w^T                         (N, T, V)(V, H) -> (N, T, H)
        dw    = h^T dx                         (H, r)(r, V) -> (H, V)
        db    = sum_r dx                       (V,)
        dmask = dloss[n, t] * nll              (N, T), of a real-valued mask

    The logits are the largest tensor of a captioner, but their rows are independent. The forward takes some rows at a
    time: it computes their loss, overwrites them with their gradient, adds what they contribute to dh, dw and db, and
    reuses the memory for the next rows; `backward` multiplies by dloss. Without a reduction each row has a dloss of its
    own, which dw and db sum over, so `backward` computes the logits again, some rows at a time. A masked word
    contributes to no sum above, and no logits of it are computed. Under double backward, vmap, torch.func and
    torch.compile, where nothing may be overwritten and masks cannot be read, all is computed at once, and again in
    backward.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        h: Tensor,
        w: Tensor,
        b: Tensor,
        y: Tensor,
        mask: Tensor,
        label_smoothing: float,
        reduction: str,
        cache: dict[str, Any] | None,
    ) -> Tensor:
        if cache is None:
            return _loss(torch.log_softmax(logits(h, w, b), dim=-1), y, mask, label_smoothing, reduction)
        needed = cache.pop("needed")
        if reduction == "none":
            loss, *_ = rows_and_gradients_(h, w, b, y, mask, label_smoothing, [False] * 3)
            return loss
        loss, *cache["gradients"] = rows_and_gradients_(h, w, b, y, mask, label_smoothing, needed, batch_size(y))
        return loss.sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.label_smoothing, ctx.reduction, ctx.cache = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple:
        h, w, b, y, mask = ctx.saved_tensors
        need_h, need_w, need_b, _, need_mask, *_ = ctx.needs_input_grad
        s = ctx.label_smoothing
        if ctx.cache is not None and may_overwrite(dloss):
            if ctx.reduction == "mean":
                return *cached_gradients(ctx, dloss), None, None, None, None, None
            needed = need_h, need_w, need_b
            _, *gradients = rows_and_gradients_(h, w, b, y, _weights(dloss, mask), s, needed)
            return *gradients, None, None, None, None, None
        h = _zero_masked(h, mask)
        x = logits(h, w, b)
        dloss = _of_rows(dloss, y, ctx.reduction)
        dmask = dloss * _nll(torch.log_softmax(x, dim=-1), y, s) if need_mask else None
        if not (need_h or need_w or need_b):
            return None, None, None, None, dmask, None, None, None
        dx = _dlogits(x, y, _weights(dloss, mask), s).to(h.dtype)
        dh = dx @ w.T if need_h else None
        dw = flatten_rows(h).T @ flatten_rows(dx) if need_w else None
        db = flatten_rows(dx).sum(0) if need_b else None
        return dh, dw, db, None, dmask, None, None, None


class TemporalAffineSoftmaxLossWithJVP(TemporalAffineSoftmaxLoss):
    """`TemporalAffineSoftmaxLoss` with its forward mode: tx = th w + h tw + tb, then TemporalSoftmaxLoss's."""

    @staticmethod
    def jvp(ctx: Any, th: Tensor, tw: Tensor, tb: Tensor, _: None, tmask: Tensor | None, *__: None) -> Tensor:
        h, w, b, y, mask = ctx.saved_tensors
        h, th = _zero_masked(h, mask), _zero_masked(th, mask)
        x = logits(h, w, b)
        tx = (th @ w + h @ tw + tb).to(x.dtype)
        return _loss_jvp(x, tx, y, mask, tmask, ctx.label_smoothing, ctx.reduction)


def temporal_softmax_loss(
    x: Tensor, y: Tensor, mask: Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """Softmax cross-entropy of the words y under the logits x: summed over time, averaged over the batch.

    Args:
        x: (N, T, V) floating-point logits. Half-precision logits are cast to float32 first.
        y: (N, T) integers, 0 <= y < V except where a boolean mask is False. The range is checked wherever values can be
            read, which under torch.compile, export, vmap, CUDA graph capture and on the meta device they cannot.
        mask: (N, T), boolean: which words count, the others being left out even where they are not finite; or
            floating-point: the weight of each, which may require grad.
        label_smoothing: s, from 0 to 1: the probability that the target distribution spreads evenly over all V
            words, as `torch.nn.functional.cross_entropy` defines it. It has no gradient.
        reduction: "mean", or "none" for the loss of each word, (N, T), 0 where the mask is.

    Returns:
        the loss, a scalar, in nats per row of the batch; float64 for float64 logits, float32 for others; 0 for N = 0.

    Raises:
        IndexError: a word id is out of range; the message names it, its row and column.
        TypeError: a value is not a tensor of the right kind, the devices differ, or label_smoothing is not a number.
        ValueError: a shape does not fit, or label_smoothing is out of range, or reduction is another one.
    """
    axes: dict[str, int] = {}
    x = at_least_float32(x) if isinstance(x, Tensor) and x.is_floating_point() else x
    check_floats("temporal_softmax_loss", axes, x=(x, "N T V"))
    y, mask = _check_targets("temporal_softmax_loss", y, mask, axes, like=x)
    _check_smoothing("temporal_softmax_loss", label_smoothing)
    check_reduction("temporal_softmax_loss", reduction)
    return apply(TemporalSoftmaxLoss, TemporalSoftmaxLossWithJVP, x, y, mask, label_smoothing, reduction)


def temporal_affine_softmax_loss(
    h: Tensor,
    w: Tensor,
    b: Tensor,
    y: Tensor,
    mask: Tensor,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """`temporal_softmax_loss(temporal_affine(h, w, b), y, mask, ...)` in one, with few logits in memory at a time.

    Args:
        h: (N, T, H) floating-point.
        w: (H, V), dtype and device of h.
        b: (V,), likewise.
        y: (N, T) integers, 0 <= y < V except where a boolean mask is False; checked where they can be read, as in
            `temporal_softmax_loss`.
        mask: (N, T), boolean: which words count, the others being left out even where they are not finite; or
            floating-point: the weight of each, which may require grad.
        label_smoothing: s, from 0 to 1: the probability that the target distribution spreads evenly over all V
            words, as `torch.nn.functional.cross_entropy` defines it. It has no gradient.
        reduction: "mean", or "none" for the loss of each word, (N, T), 0 where the mask is.

    Returns:
        the loss, a scalar, in nats per row of the batch; float64 for float64 inputs, float32 for others; 0 for N = 0.

    Raises:
        IndexError: a word id is out of range; the message names it, its row and column.
        TypeError: a value is not a tensor of the right kind, a dtype or device differs, or label_smoothing is not a
            number.
        ValueError: a shape does not fit, or label_smoothing is out of range, or reduction is another one.
    """
    h, w, b = autocast(h, w, b)
    axes: dict[str, int] = {}
    check_floats("temporal_affine_softmax_loss", axes, h=(h, "N T H"), w=(w, "H V"), b=(b, "V"))
    y, mask = _check_targets("temporal_affine_softmax_loss", y, mask, axes, like=h)
    _check_smoothing("temporal_affine_softmax_loss", label_smoothing)
    check_reduction("temporal_affine_softmax_loss", reduction)
    cache = new_cache(h, w, b, y, mask) if readable(mask) and not mask.requires_grad else None
    if cache is not None:
        cache["needed"] = [torch.is_grad_enabled() and t.requires_grad for t in (h, w, b)]
    args = h, w, b, y, mask, label_smoothing, reduction, cache
    return apply(TemporalAffineSoftmaxLoss, TemporalAffineSoftmaxLossWithJVP, *args)


def _check_targets(function: str, y: Tensor, mask: Tensor, axes: dict[str, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Check words and mask.

    Returns:
        the words as int64, 0 where a boolean mask is False, and the mask; a real-valued one in the dtype of the loss.
    """
    check_integers(function, "y", y, "N T", axes, like)
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = str(mask.dtype).removeprefix("torch.") if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{function}: mask must be a boolean or floating-point tensor, but is {kind}")
    if mask.device != like.device:
        raise TypeError(f"{function}: mask is on {mask.device}, but the logits are on {like.device}")
    check_shape(function, "mask", mask, "N T", axes)
    if mask.dtype == torch.bool:
        y = y.long().masked_fill(~mask, 0)
    else:
        mask = mask.to(at_least_float32(like[..., :0]).dtype)
    check_range(function, "y", y, axes["V"], "there are {high} logits")
    return y.long(), mask


def _check_smoothing(function: str, label_smoothing: float) -> None:
    if not isinstance(label_smoothing, int | float):
        raise TypeError(f"{function}: label_smoothing must be a number, but is a {type(label_smoothing).__name__}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{function}: label_smoothing must be from 0 to 1, but is {label_smoothing}")


def check_reduction(owner: str, reduction: str) -> None:
    """Raise ValueError unless there is such a reduction."""
    if reduction not in ("mean", "none"):
        raise ValueError(f"{owner}: reduction must be mean or none, but is {reduction!r}")


def _nll(log_p: Tensor, y: Tensor, s: float) -> Tensor:
    """Negative log-likelihood (N, T) of the words y, smoothed by s, from log-probabilities (N, T, V)."""
    nll = -log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return (1 - s) * nll - s * log_p.mean(-1) if s else nll


def _loss(log_p: Tensor, y: Tensor, mask: Tensor, s: float, reduction: str) -> Tensor:
    """mask * nll, reduced; where the mask is 0 the nll may be infinite."""
    return _reduced(torch.where(mask != 0, _nll(log_p, y, s) * mask, 0), reduction)


def _reduced(rows: Tensor, reduction: str) -> Tensor:
    """1/N sum_{n,t} rows (N, T), or the rows without a reduction."""
    return rows if reduction == "none" else rows.sum() / batch_size(rows)


def _of_rows(dloss: Tensor, y: Tensor, reduction: str) -> Tensor:
    """The gradient of each row: (N, T), or one for all, ()."""
    return dloss if reduction == "none" else dloss / batch_size(y)


def _weights(dloss: Tensor, mask: Tensor) -> Tensor:
    """dloss * mask (N, T), zero where a boolean mask is False, even if dloss is not finite."""
    return torch.where(mask, dloss, 0) if mask.dtype == torch.bool else dloss * mask


def _zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """x (N, T, D) with zeros where a boolean mask is False, even if it held NaN."""
    return x.masked_fill(~mask.unsqueeze(-1), 0) if mask.dtype == torch.bool else x


def _dlogits(x: Tensor, y: Tensor, weights: Tensor, s: float) -> Tensor:
    """weights * (p - q) of the logits x: (N, T, V)."""
    p = torch.softmax(x, dim=-1)
    dnll = p.scatter_add(-1, y.unsqueeze(-1), torch.full_like(p[..., :1], s - 1))
    if s:
        dnll = dnll - s / x.shape[-1]
    return dnll * weights.unsqueeze(-1)


def _loss_jvp(x: Tensor, tx: Tensor, y: Tensor, mask: Tensor, tmask: Tensor | None, s: float, reduction: str) -> Tensor:
    """mask * sum_v (p - q) tx + tmask * nll, reduced."""
    tloss = (_dlogits(x, y, torch.ones_like(mask, dtype=x.dtype), s) * tx).sum(-1) * mask
    if tmask is not None and mask.is_floating_point():
        tloss = tloss + tmask * _nll(torch.log_softmax(x, dim=-1), y, s)
    return _reduced(tloss, reduction)
