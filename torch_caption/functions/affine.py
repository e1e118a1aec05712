"""The affine layer, over the last axis of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import apply, at_least_float32, autocast, check_floats, flatten_rows


class Affine(Function):
    r"""An affine map of the last axis.

        out = x w + b                          (..., D)(D, M) + (M,) -> (..., M)

    Backward. Every row of x has the same w and b, so their gradients sum over all rows r:

        dx = dout w^T                          (..., M)(M, D) -> (..., D)
        dw = x^T dout                          (D, r)(r, M) -> (D, M)
        db = sum_r dout                        (M,)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return x @ w + b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, w, _ = inputs
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple:
        x, w = ctx.saved_tensors
        need_x, need_w, need_b = ctx.needs_input_grad
        dx = dout @ w.T if need_x else None
        dw = flatten_rows(x).T @ flatten_rows(dout) if need_w else None
        db = flatten_rows(dout).sum(0) if need_b else None
        return dx, dw, db


class AffineWithJVP(Affine):
    """`Affine` with its forward mode: tout = tx w + x tw + tb."""

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, tw: Tensor, tb: Tensor) -> Tensor:
        x, w = ctx.saved_tensors
        return tx @ w + x @ tw + tb


def logits(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """h w + b (..., V) of the vocabulary layer, at least float32, in one tensor: a product and then a sum take two."""
    return at_least_float32(torch.addmm(b, flatten_rows(h), w).reshape(*h.shape[:-1], *b.shape))


def affine(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Affine map of the last axis, x w + b.

    Args:
        x: (..., D) floating-point.
        w: (D, M), dtype and device of x.
        b: (M,), likewise.

    Returns:
        (..., M), dtype of x; the autocast dtype under autocast.

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit.
    """
    x, w, b = autocast(x, w, b)
    check_floats("affine", {}, x=(x, "... D"), w=(w, "D M"), b=(b, "M"))
    return apply(Affine, AffineWithJVP, x, w, b)


def temporal_affine(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The same affine map at every timestep: `affine` on x (N, T, D), w (D, M), b (M,). Returns (N, T, M).

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit.
    """
    x, w, b = autocast(x, w, b)
    check_floats("temporal_affine", {}, x=(x, "N T D"), w=(w, "D M"), b=(b, "M"))
    return apply(Affine, AffineWithJVP, x, w, b)
