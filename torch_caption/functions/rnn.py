"""The vanilla recurrent network: one step, and a sequence of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import apply, autocast, blank, check_floats, check_lengths, may_write, take_notes, tanh_, tanh_slope
from .packing import (
    Constants,
    Packing,
    Rows,
    Sizes,
    Steps,
    check_packed,
    collected,
    first,
    of_each_step,
    over_time,
    previous,
    read,
    resized,
    steps_of,
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
    r"""A vanilla RNN over whole sequences, packed step after step (see `packing`).

    At step t = 1..T the first n_t of the N sequences go on, n_1 >= n_2 >= ..., and r is the sum of all n_t; x (r, D)
    and h (r, H) hold n_1 rows of step 1, then n_2 of step 2 and so on. Where all are T long, n_t is N. h_0 is the
    state before the first step.

        a_t = x_t Wx + h_{t-1}[:n_t] Wh + b    (n_t, H)    t = 1..T
        h_t = tanh(a_t)                        (n_t, H)

    Backward, through time. h_t reaches the loss by its own output and, in the rows that go on, by h_{t+1}:

        da_T = dh_T * (1 - h_T^2)
        da_t = (dh_t + [da_{t+1} Wh^T; 0]) * (1 - h_t^2)   t = T-1..1
        dh_0 = [da_1 Wh^T; 0]                  (N, H), the 0s for rows that had ended

    The weights served all steps, so their gradients sum over batch and time, one product over r rows:

        dx  = da Wx^T                          (r, H)(H, D) -> (r, D)
        dWx = x^T da                           (D, r)(r, H) -> (D, H)
        dWh = [h_0[:n_1] .. h_{T-1}[:n_T]]^T da  (H, r)(r, H) -> (H, H)
        db  = sum_r da                         (H,)

    Index. x may instead be a table (R, D) of which row index[k] is the input at place k: the words of a batch repeat.
    Each of its rows is then projected once, and collects da from all places that read it. With da' (R, H),
    da'[u] = sum of da[k] over the k with index[k] = u, in the place of da, dx and dWx are as above.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        h0: Tensor,
        Wx: Tensor,
        Wh: Tensor,
        b: Tensor,
        index: Tensor | None,
        sizes: Sizes,
        notes: dict[str, Any] | None,
    ) -> Tensor:
        fast = notes is not None
        a = read(torch.addmm(b, x, Wx), index)  # (r, H)
        return (_run_ if fast else _run)(a, h0, Wh, of_each_step(sizes, h0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, h0, Wx, Wh, _, index, ctx.sizes, ctx.notes = inputs
        ctx.save_for_backward(x, h0, Wx, Wh, index, output)
        ctx.save_for_forward(x, h0, Wx, Wh, index, output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple:
        x, h0, Wx, Wh, index, h = ctx.saved_tensors
        need_x, need_h0, need_Wx, need_Wh, need_b, *_ = ctx.needs_input_grad
        fast, sizes = ctx.notes is not None and may_write(dh), of_each_step(ctx.sizes, h0)
        da = (_through_time_ if fast else _through_time)(dh, h, Wh, sizes)  # (r, H)
        dh0 = resized(first(da, sizes) @ Wh.T, h0.shape[0]) if need_h0 else None
        dWh = previous(h0, h, sizes).T @ da if need_Wh else None
        db = da.sum(0) if need_b else None
        da = collected(da, index, x.shape[0]) if need_x or need_Wx else da  # (R, H)
        dx = da @ Wx.T if need_x else None
        dWx = x.T @ da if need_Wx else None
        return dx, dh0, dWx, dWh, db, None, None, None


class RNNWithJVP(RNN):
    r"""`RNN` with its forward mode.

    ta_t = tx_t Wx + x_t tWx + th_{t-1}[:n_t] Wh + h_{t-1}[:n_t] tWh + tb
    th_t = ta_t * (1 - h_t^2)
    """

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, th0: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor, *_: None) -> Tensor:
        x, h0, Wx, Wh, index, h = ctx.saved_tensors
        sizes = of_each_step(ctx.sizes, h0)
        direct = read(tx @ Wx + x @ tWx + tb, index) + previous(h0, h, sizes) @ tWh  # (r, H)

        def step(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
            (tprev_h,), (direct_t, slope_t), (Wh,) = state, rows, constants
            th = (direct_t + tprev_h @ Wh) * slope_t
            return (th,), (th,)

        (th,) = over_time(step, (th0,), (direct, _slope(h)), (Wh,), sizes)[1]
        return th


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
        lengths: (N,) integers, 0 <= lengths <= T: how many steps each row has; None for T. What is past a row's end is
            neither read nor computed. Under torch.compile, export, vmap, CUDA graph capture and on the meta device
            lengths cannot be read: their range is then not checked, and all T steps are computed, to the same effect.

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
    packed = Packing.of(sizes["N"], sizes["T"], lengths)
    x = packed.pack(blank(x, packed.unread))
    h = apply(RNN, RNNWithJVP, x, packed.sort(h0), Wx, Wh, b, None, packed.sizes, take_notes(x, h0, Wx, Wh, b))
    return blank(packed.unpack(h), packed.unread)


def packed_rnn(
    x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, sizes: int | Sequence[int], index: Tensor | None = None
) -> Tensor:
    """`rnn` over sequences that are packed, step after step, longest first (see `packing`).

    Args:
        x: (r, D) floating-point, or with `index` a table (R, D) of inputs.
        h0: (N, H), the states before the first step, in the order of the sequences.
        Wx: (D, H).
        Wh: (H, H).
        b: (H,).
        sizes: how many sequences have a step 1, a step 2 and so on: at most N, never more than before, r in all. A
            number T instead: all have T steps.
        index: (r,) integers, 0 <= index < R: which row of x is read at each place. The range is checked wherever values
            can be read, as in `rnn`.

    Returns:
        h (r, H), dtype of x (the autocast dtype under autocast).

    Raises:
        IndexError: an index is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape or `sizes` does not fit.
    """
    x, h0, Wx, Wh, b = autocast(x, h0, Wx, Wh, b)
    letters: dict[str, int] = {}
    check_floats("packed_rnn", letters, x=(x, "R D"), h0=(h0, "N H"), Wx=(Wx, "D H"), Wh=(Wh, "H H"), b=(b, "H"))
    sizes, index = check_packed("packed_rnn", sizes, index, letters, like=x)
    return apply(RNN, RNNWithJVP, x, h0, Wx, Wh, b, index, sizes, take_notes(x, h0, Wx, Wh, b, index))


def _slope(h: Tensor) -> Tensor:
    """The derivative of tanh where its value is `h`."""
    return 1 - h * h


# The loops over time, each twice: for derivatives of any order, and written in place for speed.


def _run(a: Tensor, h0: Tensor, Wh: Tensor, sizes: Steps) -> Tensor:
    """h (r, H) of x Wx + b (r, H)."""

    def step(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (prev_h,), (a_t,), (Wh,) = state, rows, constants
        h = torch.tanh(a_t + prev_h @ Wh)  # (n, H)
        return (h,), (h,)

    _, (h,) = over_time(step, (h0,), (a,), (Wh,), sizes)
    return h


def _run_(a: Tensor, h0: Tensor, Wh: Tensor, sizes: Steps) -> Tensor:
    """`_run`, written over a."""
    h = h0
    for a_t in steps_of(a, sizes):
        h = tanh_(a_t.addmm_(h[: len(a_t)], Wh))
    return a


def _through_time(dh: Tensor, h: Tensor, Wh: Tensor, sizes: Steps) -> Tensor:
    """da (r, H)."""

    def step(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (dprev_h,), (dh_t, slope_t), (Wh,) = state, rows, constants
        da = (dh_t + dprev_h) * slope_t  # (n, H)
        return (da @ Wh.T,), (da,)

    _, (da,) = over_time(step, (torch.zeros_like(first(h, sizes)),), (dh, _slope(h)), (Wh,), sizes, reverse=True)
    return da


def _through_time_(dh: Tensor, h: Tensor, Wh: Tensor, sizes: Steps) -> Tensor:
    """`_through_time` in one tensor."""
    da = dh.clone(memory_format=torch.contiguous_format)
    after = None
    for da_t, slope_t in zip(reversed(steps_of(da, sizes)), reversed(steps_of(tanh_slope(h), sizes)), strict=True):
        if after is not None:
            da_t[: len(after)].addmm_(after, Wh.T)
        after = da_t.mul_(slope_t)
    return da
