"""The vanilla recurrent network: one step, and a sequence of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import (
    apply,
    autocast,
    blank,
    check_floats,
    check_lengths,
    first_step,
    past_end,
    previous,
    rows,
    stack_time,
)


class RNNStep(Function):
    r"""One tanh step of a vanilla RNN.

        a      = x Wx + prev_h Wh + b          (N, H)
        next_h = tanh(a)                       (N, H)

    Backward. tanh' = 1 - tanh^2, so the output alone gives the slope:

        da      = dnext_h * (1 - next_h^2)     (N, H)
        dx      = da Wx^T                      (N, H)(H, D) -> (N, D)
        dprev_h = da Wh^T                      (N, H)(H, H) -> (N, H)
        dWx     = x^T da                       (D, N)(N, H) -> (D, H)
        dWh     = prev_h^T da                  (H, N)(N, H) -> (H, H)
        db      = sum_n da                     (H,)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(x @ Wx + prev_h @ Wh + b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, prev_h, Wx, Wh, _ = inputs
        ctx.save_for_backward(x, prev_h, Wx, Wh, output)
        ctx.save_for_forward(x, prev_h, Wx, Wh, output)

    @staticmethod
    def backward(ctx: Any, dnext_h: Tensor) -> tuple:
        x, prev_h, Wx, Wh, next_h = ctx.saved_tensors
        need_x, need_prev_h, need_Wx, need_Wh, need_b = ctx.needs_input_grad
        da = dnext_h * _slope(next_h)
        dx = da @ Wx.T if need_x else None
        dprev_h = da @ Wh.T if need_prev_h else None
        dWx = x.T @ da if need_Wx else None
        dWh = prev_h.T @ da if need_Wh else None
        db = da.sum(0) if need_b else None
        return dx, dprev_h, dWx, dWh, db


class RNNStepWithJVP(RNNStep):
    r"""`RNNStep` with its forward mode.

    ta      = tx Wx + x tWx + tprev_h Wh + prev_h tWh + tb
    tnext_h = ta * (1 - next_h^2)
    """

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, tprev_h: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor) -> Tensor:
        x, prev_h, Wx, Wh, next_h = ctx.saved_tensors
        ta = tx @ Wx + x @ tWx + tprev_h @ Wh + prev_h @ tWh + tb
        return ta * _slope(next_h)


class RNN(Function):
    r"""A vanilla RNN over a whole sequence; h_0 is the state before the first step.

        a_t = x_t Wx + h_{t-1} Wh + b          (N, H)      t = 1..T
        h_t = tanh(a_t)                        (N, H)

    Backward, through time. h_t reaches the loss by its own output and, unless it is the last, by h_{t+1}:

        da_T = dh_T * (1 - h_T^2)
        da_t = (dh_t + da_{t+1} Wh^T) * (1 - h_t^2)        t = T-1..1
        dh_0 = da_1 Wh^T                       (N, H)(H, H) -> (N, H)

    The weights served all steps, so their gradients sum over batch and time, one product over r = N T rows:

        dx  = da Wx^T                          (N, T, H)(H, D) -> (N, T, D)
        dWx = x^T da                           (D, r)(r, H) -> (D, H)
        dWh = [h_0 .. h_{T-1}]^T da            (H, r)(r, H) -> (H, H)
        db  = sum_r da                         (H,)

    Lengths. Row n ends after lengths[n] steps: its output there is 0, whatever x holds, and so is all that comes back
    through it. With dh set to 0 past the end, da is 0 there too, and the formulas above hold unchanged.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, lengths: Tensor | None) -> Tensor:
        h, steps = h0, []
        for xWx in (x @ Wx + b).unbind(1):
            h = torch.tanh(xWx + h @ Wh)  # (N, H)
            steps.append(h)
        return blank(stack_time(steps, like=h0), past_end(lengths, x.shape[1]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, h0, Wx, Wh, _, lengths = inputs
        ctx.save_for_backward(x, h0, Wx, Wh, lengths, output)
        ctx.save_for_forward(x, h0, Wx, Wh, lengths, output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple:
        x, h0, Wx, Wh, lengths, h = ctx.saved_tensors
        need_x, need_h0, need_Wx, need_Wh, need_b, _ = ctx.needs_input_grad
        ended = past_end(lengths, x.shape[1])
        steps: list[Tensor] = []
        for dh_t, slope_t in zip(reversed(blank(dh, ended).unbind(1)), reversed(_slope(h).unbind(1)), strict=True):
            dnext_h = dh_t + steps[-1] @ Wh.T if steps else dh_t  # (N, H)
            steps.append(dnext_h * slope_t)
        da = stack_time(steps[::-1], like=h0)  # (N, T, H)
        dx = da @ Wx.T if need_x else None
        dh0 = (first_step(da) @ Wh.T).sum(1) if need_h0 else None
        dWx = rows(blank(x, ended)).T @ rows(da) if need_Wx else None
        dWh = rows(previous(h0, h)).T @ rows(da) if need_Wh else None
        db = rows(da).sum(0) if need_b else None
        return dx, dh0, dWx, dWh, db, None


class RNNWithJVP(RNN):
    r"""`RNN` with its forward mode.

    ta_t = tx_t Wx + x_t tWx + th_{t-1} Wh + h_{t-1} tWh + tb
    th_t = ta_t * (1 - h_t^2)
    """

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, th0: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor, _: None) -> Tensor:
        x, h0, Wx, Wh, lengths, h = ctx.saved_tensors
        ended = past_end(lengths, x.shape[1])
        direct = blank(tx, ended) @ Wx + blank(x, ended) @ tWx + previous(h0, h) @ tWh + tb  # (N, T, H)
        th, steps = th0, []
        for direct_t, slope_t in zip(direct.unbind(1), _slope(h).unbind(1), strict=True):
            th = (direct_t + th @ Wh) * slope_t
            steps.append(th)
        return blank(stack_time(steps, like=th0), ended)


def rnn_step(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> Tensor:
    """One step of a vanilla RNN, tanh(x Wx + prev_h Wh + b).

    Args:
        x: (N, D) floating-point.
        prev_h: (N, H).
        Wx: (D, H).
        Wh: (H, H).
        b: (H,).

    Returns:
        next_h (N, H), dtype of x; the autocast dtype under autocast.

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit.
    """
    x, prev_h, Wx, Wh, b = autocast(x, prev_h, Wx, Wh, b)
    check_floats("rnn_step", {}, x=(x, "N D"), prev_h=(prev_h, "N H"), Wx=(Wx, "D H"), Wh=(Wh, "H H"), b=(b, "H"))
    return apply(RNNStep, RNNStepWithJVP, x, prev_h, Wx, Wh, b)


def rnn(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, lengths: Tensor | None = None) -> Tensor:
    """A vanilla RNN over a sequence.

    Args:
        x: (N, T, D) floating-point.
        h0: (N, H), the state before the first step.
        Wx: (D, H).
        Wh: (H, H).
        b: (H,).
        lengths: (N,) integers, 0 <= lengths <= T: how many steps each row has; None for T. The range is checked
            wherever values can be read, which under torch.compile, export, vmap, CUDA graph capture and on the meta
            device they cannot.

    Returns:
        h (N, T, H), dtype of x (the autocast dtype under autocast); zero past a row's end.

    Raises:
        IndexError: a length is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape does not fit.
    """
    x, h0, Wx, Wh, b = autocast(x, h0, Wx, Wh, b)
    sizes: dict[str, int] = {}
    check_floats("rnn", sizes, x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D H"), Wh=(Wh, "H H"), b=(b, "H"))
    check_lengths("rnn", lengths, sizes, like=x)
    return apply(RNN, RNNWithJVP, x, h0, Wx, Wh, b, lengths)


def _slope(h: Tensor) -> Tensor:
    """The derivative of tanh where its value is `h`."""
    return 1 - h * h
