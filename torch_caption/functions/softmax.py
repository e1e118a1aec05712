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
from ._inplace.softmax import cached_gradients, dlogits_, loss_and_gradients_, zero_masked_
from .affine import logits


class TemporalSoftmaxLoss(Function):
    r"""Softmax cross-entropy at every timestep, weighted by a mask, summed over time, averaged over the batch.

        nll[n, t] = log sum_v exp(x[n, t, v]) - x[n, t, y[n, t]]          (N, T)
        loss      = 1/N sum_{n,t} mask[n, t] * nll[n, t]                  ()

    Backward. The derivative of log sum exp is softmax, p; that of the target's logit is 1 at the target:

        dx[n, t]    = dloss / N * mask[n, t] * (p[n, t] - onehot(y[n, t]))    (N, T, V)
        dmask[n, t] = dloss / N * nll[n, t]                                   (N, T), of a real-valued mask

    Label smoothing (Szegedy et al. 2016) replaces onehot(y) by the distribution q: a probability s is spread evenly
    over all V words, the target among them, and 1 - s stays on the target. nll becomes the cross-entropy with q:

        q[n, t]   = (1 - s) onehot(y[n, t]) + s / V                           (N, T, V)
        nll[n, t] = log sum_v exp(x[n, t, v]) - sum_v q[n, t, v] x[n, t, v]
                  = (1 - s) (-log p[n, t, y[n, t]]) + s mean_v (-log p[n, t, v])

    As the entries of q sum to 1, the derivative of log sum exp stays p, and that of the second sum is q:

        dx[n, t] = dloss / N * mask[n, t] * (p[n, t] - q[n, t])
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, mask: Tensor, label_smoothing: float) -> Tensor:
        return _loss(torch.log_softmax(x, dim=-1), y, mask, label_smoothing)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.label_smoothing = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple:
        x, y, mask = ctx.saved_tensors
        s = ctx.label_smoothing
        need_x, _, need_mask, _ = ctx.needs_input_grad
        scale = dloss / batch_size(y)
        dx = None
        if need_x and may_overwrite(x, y, mask, dloss):
            dx = zero_masked_(dlogits_(x, y, scale * mask, s, out=torch.empty_like(x)), mask)
        elif need_x:
            dx = _dlogits(_zero_masked(x, mask), y, scale * mask, s)
        dmask = scale * _nll(torch.log_softmax(x, dim=-1), y, s) if need_mask else None
        return dx, None, dmask, None


class TemporalSoftmaxLossWithJVP(TemporalSoftmaxLoss):
    """`TemporalSoftmaxLoss` with its forward mode: 1/N sum of mask * sum_v (p - q) tx + tmask * nll."""

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, _: None, tmask: Tensor | None, __: None) -> Tensor:
        x, y, mask = ctx.saved_tensors
        return _loss_jvp(_zero_masked(x, mask), _zero_masked(tx, mask), y, mask, tmask, ctx.label_smoothing)


class TemporalAffineSoftmaxLoss(Function):
    r"""`TemporalSoftmaxLoss` of the logits of an affine layer.

        x    = h w + b                         (N, T, H)(H, V) + (V,) -> (N, T, V)
        loss = TemporalSoftmaxLoss(x, y, mask, s)

    Backward. With TemporalSoftmaxLoss's gradient of the logits the rest is the affine layer's, over r = N T rows:

        dx    = dloss / N * mask * (p - q)     (N, T, V), q is onehot(y) without label smoothing
        dh    = dx w^T                         (N, T, V)(V, H) -> (N, T, H)
        dw    = h^T dx                         (H, r)(r, V) -> (H, V)
        db    = sum_r dx                       (V,)
        dmask = dloss / N * nll                (N, T), of a real-valued mask

    The logits are the largest tensor of a captioner, but their rows are independent. The forward takes some rows at a
    time: it computes their loss, overwrites them with their gradient, adds what they contribute to dh, dw and db, and
    reuses the memory for the next rows; `backward` multiplies by dloss. A masked word contributes to no sum above, and
    no logits of it are computed. Under double backward, vmap, torch.func and torch.compile, where nothing may be
    overwritten and masks cannot be read, all is computed at once, and again in backward.
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
        cache: dict[str, Any] | None,
    ) -> Tensor:
        if cache is None:
            return _loss(torch.log_softmax(logits(h, w, b), dim=-1), y, mask, label_smoothing)
        loss, *cache["gradients"] = loss_and_gradients_(h, w, b, y, mask, label_smoothing, cache.pop("needed"))
        return loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.label_smoothing, ctx.cache = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple:
        h, w, b, y, mask = ctx.saved_tensors
        need_h, need_w, need_b, _, need_mask, _, _ = ctx.needs_input_grad
        if ctx.cache is not None and may_overwrite(dloss):
            return *cached_gradients(ctx, dloss), None, None, None, None
        h = _zero_masked(h, mask)
        x = logits(h, w, b)
        scale = dloss / batch_size(y)
        s = ctx.label_smoothing
        dmask = scale * _nll(torch.log_softmax(x, dim=-1), y, s) if need_mask else None
        if not (need_h or need_w or need_b):
            return None, None, None, None, dmask, None, None
        dx = _dlogits(x, y, scale * mask, s).to(h.dtype)
        dh = dx @ w.T if need_h else None
        dw = flatten_rows(h).T @ flatten_rows(dx) if need_w else None
        db = flatten_rows(dx).sum(0) if need_b else None
        return dh, dw, db, None, dmask, None, None


class TemporalAffineSoftmaxLossWithJVP(TemporalAffineSoftmaxLoss):
    """`TemporalAffineSoftmaxLoss` with its forward mode: tx = th w + h tw + tb, then TemporalSoftmaxLoss's."""

    @staticmethod
    def jvp(ctx: Any, th: Tensor, tw: Tensor, tb: Tensor, _: None, tmask: Tensor | None, *__: None) -> Tensor:
        h, w, b, y, mask = ctx.saved_tensors
        h, th = _zero_masked(h, mask), _zero_masked(th, mask)
        x = logits(h, w, b)
        tx = (th @ w + h @ tw + tb).to(x.dtype)
        return _loss_jvp(x, tx, y, mask, tmask, ctx.label_smoothing)


def temporal_softmax_loss(x: Tensor, y: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy of the words y under the logits x: summed over time, averaged over the batch.

    Args:
        x: (N, T, V) floating-point logits. Half-precision logits are cast to float32 first.
        y: (N, T) integers, 0 <= y < V, also where the mask is 0. The range is checked wherever values can be read,
            which under torch.compile, export, vmap, CUDA graph capture and on the meta device they cannot.
        mask: (N, T), boolean: which words count, the others being left out even where they are not finite; or
            floating-point: the weight of each, which may require grad.
        label_smoothing: s, from 0 to 1: the probability that the target distribution spreads evenly over all V
            words, as `torch.nn.functional.cross_entropy` defines it. It has no gradient.

    Returns:
        the loss, a scalar, in nats per row of the batch; float64 for float64 logits, float32 for others; 0 for N = 0.

    Raises:
        IndexError: a word id is out of range; the message names it, its row and column.
        TypeError: a value is not a tensor of the right kind, the devices differ, or label_smoothing is not a number.
        ValueError: a shape does not fit, or label_smoothing is out of range.
    """
    axes: dict[str, int] = {}
    x = at_least_float32(x) if isinstance(x, Tensor) and x.is_floating_point() else x
    check_floats("temporal_softmax_loss", axes, x=(x, "N T V"))
    y, mask = _check_targets("temporal_softmax_loss", y, mask, axes, like=x)
    _check_smoothing("temporal_softmax_loss", label_smoothing)
    return apply(TemporalSoftmaxLoss, TemporalSoftmaxLossWithJVP, x, y, mask, label_smoothing)


def temporal_affine_softmax_loss(
    h: Tensor, w: Tensor, b: Tensor, y: Tensor, mask: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """`temporal_softmax_loss(temporal_affine(h, w, b), y, mask, ...)` in one, with few logits in memory at a time.

    Args:
        h: (N, T, H) floating-point.
        w: (H, V), dtype and device of h.
        b: (V,), likewise.
        y: (N, T) integers, 0 <= y < V, also where the mask is 0; checked where they can be read, as in
            `temporal_softmax_loss`.
        mask: (N, T), boolean: which words count, the others being left out even where they are not finite; or
            floating-point: the weight of each, which may require grad.
        label_smoothing: s, from 0 to 1: the probability that the target distribution spreads evenly over all V
            words, as `torch.nn.functional.cross_entropy` defines it. It has no gradient.

    Returns:
        the loss, a scalar, in nats per row of the batch; float64 for float64 inputs, float32 for others; 0 for N = 0.

    Raises:
        IndexError: a word id is out of range; the message names it, its row and column.
        TypeError: a value is not a tensor of the right kind, a dtype or device differs, or label_smoothing is not a
            number.
        ValueError: a shape does not fit, or label_smoothing is out of range.
    """
    h, w, b = autocast(h, w, b)
    axes: dict[str, int] = {}
    check_floats("temporal_affine_softmax_loss", axes, h=(h, "N T H"), w=(w, "H V"), b=(b, "V"))
    y, mask = _check_targets("temporal_affine_softmax_loss", y, mask, axes, like=h)
    _check_smoothing("temporal_affine_softmax_loss", label_smoothing)
    cache = new_cache(h, w, b, y, mask) if readable(mask) and not mask.requires_grad else None
    if cache is not None:
        cache["needed"] = [torch.is_grad_enabled() and t.requires_grad for t in (h, w, b)]
    return apply(TemporalAffineSoftmaxLoss, TemporalAffineSoftmaxLossWithJVP, h, w, b, y, mask, label_smoothing, cache)


def _check_targets(function: str, y: Tensor, mask: Tensor, axes: dict[str, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Check words and mask; return the words as int64, and a real-valued mask in the dtype of the loss."""
    check_integers(function, "y", y, "N T", axes, like)
    check_range(function, "y", y, axes["V"], "there are {high} logits")
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = str(mask.dtype).removeprefix("torch.") if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{function}: mask must be a boolean or floating-point tensor, but is {kind}")
    if mask.device != like.device:
        raise TypeError(f"{function}: mask is on {mask.device}, but the logits are on {like.device}")
    check_shape(function, "mask", mask, "N T", axes)
    return y.long(), mask if mask.dtype == torch.bool else mask.to(at_least_float32(like[..., :0]).dtype)


def _check_smoothing(function: str, label_smoothing: float) -> None:
    if not isinstance(label_smoothing, int | float):
        raise TypeError(f"{function}: label_smoothing must be a number, but is a {type(label_smoothing).__name__}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{function}: label_smoothing must be from 0 to 1, but is {label_smoothing}")


def _nll(log_p: Tensor, y: Tensor, s: float) -> Tensor:
    """Negative log-likelihood (N, T) of the words y, smoothed by s, from log-probabilities (N, T, V)."""
    nll = -log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return (1 - s) * nll - s * log_p.mean(-1) if s else nll


def _loss(log_p: Tensor, y: Tensor, mask: Tensor, s: float) -> Tensor:
    """1/N sum_{n,t} mask * nll; where the mask is 0 the nll may be infinite."""
    return torch.where(mask != 0, _nll(log_p, y, s) * mask, 0).sum() / batch_size(y)


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


def _loss_jvp(x: Tensor, tx: Tensor, y: Tensor, mask: Tensor, tmask: Tensor | None, s: float) -> Tensor:
    """1/N sum_{n,t} mask * sum_v (p - q) tx + tmask * nll."""
    tloss = (_dlogits(x, y, torch.ones_like(mask, dtype=x.dtype), s) * tx).sum(-1) * mask
    if tmask is not None and mask.is_floating_point():
        tloss = tloss + tmask * _nll(torch.log_softmax(x, dim=-1), y, s)
    return tloss.sum() / batch_size(y)
