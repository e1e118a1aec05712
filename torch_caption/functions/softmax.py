"""The loss of a captioner: softmax cross-entropy over time, alone and fused with the layer that makes the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import (
    apply,
    autocast,
    check_floats,
    check_integers,
    check_range,
    check_shape,
    may_write,
    readable,
    rows,
    take_notes,
)

CHUNK = 2**26
"""Bytes of scores that the fused loss holds at a time: 64 MiB."""


class TemporalSoftmaxLoss(Function):
    r"""Softmax cross-entropy at every timestep, weighted by a mask, summed over time, averaged over the batch.

        nll[n, t] = log sum_v exp(x[n, t, v]) - x[n, t, y[n, t]]          (N, T)
        loss      = 1/N sum_{n,t} mask[n, t] * nll[n, t]                  ()

    Backward. The derivative of log sum exp is softmax, p; that of the score of the right word is 1 at that word:

        dx[n, t]    = dloss / N * mask[n, t] * (p[n, t] - onehot(y[n, t]))    (N, T, V)
        dmask[n, t] = dloss / N * nll[n, t]                                   (N, T), of a real-valued mask

    Label smoothing (Szegedy et al. 2016) puts in the place of onehot(y) the distribution q: a share s is spread evenly
    over all V words, the right one among them, and 1 - s stays on it. nll becomes the cross-entropy with q:

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
        scale = dloss / _batch(y)
        dx = None
        if need_x and may_write(x, y, mask, dloss):
            dx = _silence_(_dscores_out(x, y, scale * mask, s, out=torch.empty_like(x)), mask)
        elif need_x:
            dx = _dscores(_silence(x, mask), y, scale * mask, s)
        dmask = scale * _nll(torch.log_softmax(x, dim=-1), y, s) if need_mask else None
        return dx, None, dmask, None


class TemporalSoftmaxLossWithJVP(TemporalSoftmaxLoss):
    """`TemporalSoftmaxLoss` with its forward mode: 1/N sum of mask * sum_v (p - q) tx + tmask * nll."""

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, _: None, tmask: Tensor | None, __: None) -> Tensor:
        x, y, mask = ctx.saved_tensors
        return _loss_jvp(_silence(x, mask), _silence(tx, mask), y, mask, tmask, ctx.label_smoothing)


class TemporalAffineSoftmaxLoss(Function):
    r"""`TemporalSoftmaxLoss` of the scores that an affine layer makes of h.

        x    = h w + b                         (N, T, H)(H, V) + (V,) -> (N, T, V)
        loss = TemporalSoftmaxLoss(x, y, mask, s)

    Backward. With TemporalSoftmaxLoss's gradient of the scores the rest is the affine layer's, over r = N T rows:

        dx    = dloss / N * mask * (p - q)     (N, T, V), q being onehot(y) where no label is smoothed
        dh    = dx w^T                         (N, T, V)(V, H) -> (N, T, H)
        dw    = h^T dx                         (H, r)(r, V) -> (H, V)
        db    = sum_r dx                       (V,)
        dmask = dloss / N * nll                (N, T), of a real-valued mask

    The scores are the largest tensor of a captioner, but no row of them needs another: some rows at a time become the
    loss, then their own gradient, written over them, then their share of dh, dw and db, before the next rows take their
    place. All of that happens in forward, where the scores are; `backward` multiplies by dloss. A word that the mask
    leaves out has no part in any sum above and gets no scores. Under double backward, vmap, torch.func and
    torch.compile, where nothing may be written over and masks cannot be read, all is computed at once and again.
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
        notes: dict[str, Any] | None,
    ) -> Tensor:
        if notes is None:
            return _loss(torch.log_softmax(_scores(h, w, b), dim=-1), y, mask, label_smoothing)
        loss, *notes["gradients"] = _in_chunks(h, w, b, y, mask, label_smoothing, notes.pop("needed"))
        return loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.label_smoothing, ctx.notes = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple:
        h, w, b, y, mask = ctx.saved_tensors
        need_h, need_w, need_b, _, need_mask, _, _ = ctx.needs_input_grad
        if ctx.notes is not None and may_write(dloss):
            return *_noted(ctx, dloss), None, None, None, None
        h = _silence(h, mask)
        x = _scores(h, w, b)
        scale = dloss / _batch(y)
        s = ctx.label_smoothing
        dmask = scale * _nll(torch.log_softmax(x, dim=-1), y, s) if need_mask else None
        if not (need_h or need_w or need_b):
            return None, None, None, None, dmask, None, None
        dx = _dscores(x, y, scale * mask, s).to(h.dtype)
        dh = dx @ w.T if need_h else None
        dw = rows(h).T @ rows(dx) if need_w else None
        db = rows(dx).sum(0) if need_b else None
        return dh, dw, db, None, dmask, None, None


class TemporalAffineSoftmaxLossWithJVP(TemporalAffineSoftmaxLoss):
    """`TemporalAffineSoftmaxLoss` with its forward mode: tx = th w + h tw + tb, then TemporalSoftmaxLoss's."""

    @staticmethod
    def jvp(ctx: Any, th: Tensor, tw: Tensor, tb: Tensor, _: None, tmask: Tensor | None, *__: None) -> Tensor:
        h, w, b, y, mask = ctx.saved_tensors
        h, th = _silence(h, mask), _silence(th, mask)
        x = _scores(h, w, b)
        tx = (th @ w + h @ tw + tb).to(x.dtype)
        return _loss_jvp(x, tx, y, mask, tmask, ctx.label_smoothing)


def temporal_softmax_loss(x: Tensor, y: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy of the words y under the scores x: summed over time, averaged over the batch.

    Args:
        x: (N, T, V) floating-point scores. Half-precision scores are raised to float32 first.
        y: (N, T) integers, 0 <= y < V, also where the mask is 0. The range is checked wherever values can be read,
            which under torch.compile, export, vmap, CUDA graph capture and on the meta device they cannot.
        mask: (N, T), boolean: which words count, the others being left out even where they are not finite; or
            floating-point: the weight of each, which may require grad.
        label_smoothing: s, from 0 to 1: the share of a word's probability that its target spreads evenly over all V
            words, as `torch.nn.functional.cross_entropy` defines it. It has no gradient.

    Returns:
        the loss, a scalar, in nats per row of the batch; float64 for float64 scores, float32 for others; 0 for N = 0.

    Raises:
        IndexError: a word id is out of range; the message names it, its row and column.
        TypeError: a value is not a tensor of the right kind, the devices differ, or label_smoothing is no number.
        ValueError: a shape does not fit, or label_smoothing is out of range.
    """
    sizes: dict[str, int] = {}
    x = _full(x) if isinstance(x, Tensor) and x.is_floating_point() else x
    check_floats("temporal_softmax_loss", sizes, x=(x, "N T V"))
    y, mask = _check_targets("temporal_softmax_loss", y, mask, sizes, like=x)
    _check_smoothing("temporal_softmax_loss", label_smoothing)
    return apply(TemporalSoftmaxLoss, TemporalSoftmaxLossWithJVP, x, y, mask, label_smoothing)


def temporal_affine_softmax_loss(
    h: Tensor, w: Tensor, b: Tensor, y: Tensor, mask: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """`temporal_softmax_loss(temporal_affine(h, w, b), y, mask, ...)` in one, holding few scores at a time.

    Args:
        h: (N, T, H) floating-point.
        w: (H, V), dtype and device of h.
        b: (V,), likewise.
        y: (N, T) integers, 0 <= y < V, also where the mask is 0; checked where they can be read, as in
            `temporal_softmax_loss`.
        mask: (N, T), boolean: which words count, the others being left out even where they are not finite; or
            floating-point: the weight of each, which may require grad.
        label_smoothing: s, from 0 to 1: the share of a word's probability that its target spreads evenly over all V
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
    sizes: dict[str, int] = {}
    check_floats("temporal_affine_softmax_loss", sizes, h=(h, "N T H"), w=(w, "H V"), b=(b, "V"))
    y, mask = _check_targets("temporal_affine_softmax_loss", y, mask, sizes, like=h)
    _check_smoothing("temporal_affine_softmax_loss", label_smoothing)
    notes = take_notes(h, w, b, y, mask) if readable(mask) and not mask.requires_grad else None
    if notes is not None:
        notes["needed"] = [torch.is_grad_enabled() and t.requires_grad for t in (h, w, b)]
    return apply(TemporalAffineSoftmaxLoss, TemporalAffineSoftmaxLossWithJVP, h, w, b, y, mask, label_smoothing, notes)


def _check_targets(
    function: str, y: Tensor, mask: Tensor, sizes: dict[str, int], like: Tensor
) -> tuple[Tensor, Tensor]:
    """Check words and mask; return the words as int64, and a real-valued mask in the dtype of the loss."""
    check_integers(function, "y", y, "N T", sizes, like)
    check_range(function, "y", y, sizes["V"], "there are {high} scores")
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = str(mask.dtype).removeprefix("torch.") if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{function}: mask must be a boolean or floating-point tensor, but is {kind}")
    if mask.device != like.device:
        raise TypeError(f"{function}: mask is on {mask.device}, but the scores are on {like.device}")
    check_shape(function, "mask", mask, "N T", sizes)
    return y.long(), mask if mask.dtype == torch.bool else mask.to(_full(like[..., :0]).dtype)


def _check_smoothing(function: str, label_smoothing: float) -> None:
    if not isinstance(label_smoothing, int | float):
        raise TypeError(f"{function}: label_smoothing must be a number, but is a {type(label_smoothing).__name__}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{function}: label_smoothing must be from 0 to 1, but is {label_smoothing}")


def _full(x: Tensor) -> Tensor:
    """Half precision raised to float32: a sum over thousands of words needs it."""
    return x if x.dtype == torch.float64 else x.float()


def _batch(y: Tensor) -> int:
    """N, and 1 where N is 0: an empty batch has the loss 0."""
    return max(y.shape[0], 1)


def _scores(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """h w + b (..., V) in one piece of memory, where a product and then a sum would take two."""
    return _full(torch.addmm(b, rows(h), w).reshape(*h.shape[:-1], *b.shape))


def _nll(log_p: Tensor, y: Tensor, s: float) -> Tensor:
    """Negative log-likelihood (N, T) of the words y, smoothed by s, of all words' log-probabilities (N, T, V)."""
    nll = -log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return (1 - s) * nll - s * log_p.mean(-1) if s else nll


def _loss(log_p: Tensor, y: Tensor, mask: Tensor, s: float) -> Tensor:
    """1/N sum_{n,t} mask * nll; where the mask is 0 the word may even be impossible."""
    return torch.where(mask != 0, _nll(log_p, y, s) * mask, 0).sum() / _batch(y)


def _silence(x: Tensor, mask: Tensor) -> Tensor:
    """x (N, T, D) with zeros where a boolean mask is False, whatever stood there, NaN included."""
    return x.masked_fill(~mask.unsqueeze(-1), 0) if mask.dtype == torch.bool else x


def _silence_(x: Tensor, mask: Tensor) -> Tensor:
    """`_silence`, written over x."""
    return x.masked_fill_(~mask.unsqueeze(-1), 0) if mask.dtype == torch.bool else x


def _noted(ctx: Any, dloss: Tensor) -> list[Tensor | None]:
    """dh, dw, db as forward noted them, times dloss; made anew where an earlier backward has taken them."""
    gradients = ctx.notes.pop("gradients", None)
    if gradients is None:
        h, w, b, y, mask = ctx.saved_tensors
        _, *gradients = _in_chunks(h, w, b, y, mask, ctx.label_smoothing, ctx.needs_input_grad[:3])
    if dloss.device.type == "cpu" and dloss == 1:
        return gradients
    return [None if d is None else d.mul_(dloss) for d in gradients]


def _in_chunks(
    h: Tensor, w: Tensor, b: Tensor, y: Tensor, mask: Tensor, s: float, needed: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The loss, and for dloss = 1 those of dh, dw and db that are needed; of the words that the mask leaves in."""
    weights = mask.reshape(-1).to(_full(h[:0]).dtype) / _batch(y)  # (r,)
    if mask.all():
        loss, dh, dw, db = _sum_of_chunks(rows(h), w, b, y.reshape(-1), weights, s, needed)
        return loss, None if dh is None else dh.reshape(h.shape), dw, db
    left = weights.nonzero().squeeze(1)
    y, weights = y.reshape(-1).index_select(0, left), weights.index_select(0, left)
    loss, dh, dw, db = _sum_of_chunks(rows(h).index_select(0, left), w, b, y, weights, s, needed)
    if dh is not None:
        dh = rows(torch.zeros_like(h, memory_format=torch.contiguous_format)).index_copy_(0, left, dh).reshape(h.shape)
    return loss, dh, dw, db


def _sum_of_chunks(
    h: Tensor, w: Tensor, b: Tensor, y: Tensor, weights: Tensor, s: float, needed: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """sum_r weights * nll and its gradients, from as many rows at a time as `CHUNK` allows."""
    dh, dw, db = (x.new_empty(x.shape) if need else None for x, need in zip((h, w, b), needed, strict=True))
    loss = weights.new_zeros(())
    rows_at_once = max(1, CHUNK // (w.shape[1] * loss.element_size()))
    for k in range(0, max(len(y), 1), rows_at_once):
        chunk = slice(k, k + rows_at_once)
        dh_k = None if dh is None else dh[chunk]
        loss += _chunk(h[chunk], w, b, y[chunk], weights[chunk], s, dh_k, dw, db, add=k > 0)
    return loss, dh, dw, db


def _chunk(
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
    """sum_r weights * nll of a chunk of rows. Its dh is written, its dw and db are written or, if `add`, added."""
    weights = weights.unsqueeze(1)  # (r, 1)
    x = _scores(h, w, b)  # (r, V)
    loss = (_dnll_(x, y.unsqueeze(1), s) * weights).sum()
    if dh is None and dw is None and db is None:
        return loss
    x.mul_(weights)
    if db is not None:
        db.copy_(x.sum(0) + db if add else x.sum(0))
    dx = x.to(h.dtype)
    if dh is not None:
        torch.mm(dx, w.T, out=dh)
    if dw is not None:
        H, V = w.shape
        left = h.T.contiguous() if V >= 8 * H else h.T  # a transposed factor is read slower; wide scores repay the copy
        dw.addmm_(left, dx, beta=float(add))
    return loss


def _dnll_(x: Tensor, y: Tensor, s: float) -> Tensor:
    """nll (r, 1) of the words y (r, 1), whose gradient p - q is written over the scores x (r, V).

    log sum_v exp(x[v]) is had from the largest p, which is exp(max x) over that sum and at least 1 / V: no logarithm of
    a small number, and one pass fewer than log-softmax and its exponential.
    """
    right, top = x.gather(1, y), x.amax(1, keepdim=True)
    if s:  # the scores are still there
        right = right + s * (x.mean(1, keepdim=True) - right)  # exact where all scores are alike
    p = torch.softmax(x, dim=1, out=x)  # a row is read before it is written
    nll = (top - right) - p.amax(1, keepdim=True).log()
    _less_q_(p, y, s)
    return nll


def _less_q_(p: Tensor, y: Tensor, s: float) -> Tensor:
    """p - q, written over p (..., V), of the words y (..., 1)."""
    if s:
        p.sub_(s / p.shape[-1])
    return p.scatter_add_(-1, y, torch.full_like(y, s - 1, dtype=p.dtype))


def _dscores(x: Tensor, y: Tensor, weights: Tensor, s: float) -> Tensor:
    """weights * (p - q) of the scores x: (N, T, V)."""
    p = torch.softmax(x, dim=-1)
    dnll = p.scatter_add(-1, y.unsqueeze(-1), torch.full_like(p[..., :1], s - 1))
    if s:
        dnll = dnll - s / x.shape[-1]
    return dnll * weights.unsqueeze(-1)


def _dscores_out(x: Tensor, y: Tensor, weights: Tensor, s: float, out: Tensor) -> Tensor:
    """`_dscores` in one tensor, `out`, which may be x: softmax has read a row before it writes it."""
    p = torch.softmax(x, dim=-1, out=out)
    return _less_q_(p, y.unsqueeze(-1), s).mul_(weights.unsqueeze(-1))


def _loss_jvp(x: Tensor, tx: Tensor, y: Tensor, mask: Tensor, tmask: Tensor | None, s: float) -> Tensor:
    """1/N sum_{n,t} mask * sum_v (p - q) tx + tmask * nll."""
    tloss = (_dscores(x, y, torch.ones_like(mask, dtype=x.dtype), s) * tx).sum(-1) * mask
    if tmask is not None and mask.is_floating_point():
        tloss = tloss + tmask * _nll(torch.log_softmax(x, dim=-1), y, s)
    return tloss.sum() / _batch(y)
