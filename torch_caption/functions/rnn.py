"""The vanilla recurrent network: one step, and a sequence of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import apply, autocast, check_choice, check_floats, check_lengths, may_overwrite, new_cache, zero_padding
from ._inplace.rnn import run_, through_time_
from .packing import (
    BatchSizes,
    Constants,
    Packing,
    Rows,
    Steps,
    check_packed,
    first_step,
    gather_rows,
    over_time,
    resize_rows,
    scatter_sum,
    shifted_states,
    states_product,
    steps_of,
)

NONLINEARITIES = ("tanh", "relu")


class RNNStep(Function):
    r"""One step of a vanilla RNN; act is tanh or relu.

        a      = x Wx + prev_h Wh + b          (N, H)
        next_h = act(a)                        (N, H)

    Backward. tanh' = 1 - tanh^2, and relu' is 1 where relu > 0, else 0, so the output alone gives the slope:

        da      = dnext_h * act'(a)            (N, H), act'(a) = 1 - next_h^2, or [next_h > 0]
        dx      = da Wx^T                      (N, H)(H, D) -> (N, D)
        dprev_h = da Wh^T                      (N, H)(H, H) -> (N, H)
        dWx     = x^T da                       (D, N)(N, H) -> (D, H)
        dWh     = prev_h^T da                  (H, N)(N, H) -> (H, H)
        db      = sum_n da                     (H,)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, nonlinearity: str) -> Tensor:
        return _act(x @ Wx + prev_h @ Wh + b, nonlinearity)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, prev_h, Wx, Wh, _, ctx.nonlinearity = inputs
        ctx.save_for_backward(x, prev_h, Wx, Wh, output)
        ctx.save_for_forward(x, prev_h, Wx, Wh, output)

    @staticmethod
    def backward(ctx: Any, dnext_h: Tensor) -> tuple:
        x, prev_h, Wx, Wh, next_h = ctx.saved_tensors
        need_x, need_prev_h, need_Wx, need_Wh, need_b, _ = ctx.needs_input_grad
        da = dnext_h * _slope(next_h, ctx.nonlinearity)
        dx = da @ Wx.T if need_x else None
        dprev_h = da @ Wh.T if need_prev_h else None
        dWx = x.T @ da if need_Wx else None
        dWh = prev_h.T @ da if need_Wh else None
        db = da.sum(0) if need_b else None
        return dx, dprev_h, dWx, dWh, db, None


class RNNStepWithJVP(RNNStep):
    r"""`RNNStep` with its forward mode.

    The tangent of each line:

        ta      = tx Wx + x tWx + tprev_h Wh + prev_h tWh + tb
        tnext_h = ta * act'(a)
    """

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, tprev_h: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor, _: None) -> Tensor:
        x, prev_h, Wx, Wh, next_h = ctx.saved_tensors
        ta = tx @ Wx + x @ tWx + tprev_h @ Wh + prev_h @ tWh + tb
        return ta * _slope(next_h, ctx.nonlinearity)


class RNN(Function):
    r"""A vanilla RNN over whole sequences, packed step after step (see `packing`).

    At step t = 1..T the first n_t of the N sequences are present, n_1 >= n_2 >= ..., and r is the sum of all n_t; x
    (r, D) and h (r, H) hold n_1 rows of step 1, then n_2 of step 2 and so on. Where all are T long, n_t is N. h_0 is
    the state before the first step.

        a_t = x_t Wx + h_{t-1}[:n_t] Wh + b    (n_t, H)    t = 1..T
        h_t = act(a_t)                         (n_t, H), act is tanh or relu

    Backward, through time. h_t reaches the loss through its own output and, in the rows present at t + 1,
    through h_{t+1}. The slope is that of RNNStep, act'(a_t) = 1 - h_t^2 or [h_t > 0]:

        da_T = dh_T * act'(a_T)
        da_t = (dh_t + [da_{t+1} Wh^T; 0]) * act'(a_t)     t = T-1..1
        dh_0 = [da_1 Wh^T; 0]                  (N, H), the 0s for sequences without a step

    All steps share the weights, so their gradients sum over batch and time, one product over r rows:

        dx  = da Wx^T                          (r, H)(H, D) -> (r, D)
        dWx = x^T da                           (D, r)(r, H) -> (D, H)
        dWh = [h_0[:n_1] .. h_{T-1}[:n_T]]^T da  (H, r)(r, H) -> (H, H)
        db  = sum_r da                         (H,)

    Index. x may instead be a table (R, D) whose row index[k] is the input of packed row k: the words of a batch repeat.
    Each row of the table is then projected once and receives the sum of da over the rows that read it. With da' (R, H),
    da'[u] = sum of da[k] over the k with index[k] = u, instead of da, dx and dWx are as above.
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
        batch_sizes: BatchSizes,
        nonlinearity: str,
        cache: dict[str, Any] | None,
    ) -> Tensor:
        a = gather_rows(torch.addmm(b, x, Wx), index)  # (r, H)
        return (_run if cache is None else run_)(a, h0, Wh, steps_of(batch_sizes, h0), nonlinearity)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, h0, Wx, Wh, _, index, ctx.batch_sizes, ctx.nonlinearity, ctx.cache = inputs
        ctx.save_for_backward(x, h0, Wx, Wh, index, output)
        ctx.save_for_forward(x, h0, Wx, Wh, index, output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple:
        x, h0, Wx, Wh, index, h = ctx.saved_tensors
        need_x, need_h0, need_Wx, need_Wh, need_b, *_ = ctx.needs_input_grad
        steps = steps_of(ctx.batch_sizes, h0)
        fast = ctx.cache is not None and may_overwrite(dh)
        da = (through_time_ if fast else _through_time)(dh, h, Wh, steps, ctx.nonlinearity)  # (r, H)
        dh0 = resize_rows(first_step(da, steps) @ Wh.T, h0.shape[0]) if need_h0 else None
        dWh = states_product(h0, h, da, steps) if need_Wh else None
        db = da.sum(0) if need_b else None
        da = scatter_sum(da, index, x.shape[0]) if need_x or need_Wx else da  # (R, H)
        dx = da @ Wx.T if need_x else None
        dWx = x.T @ da if need_Wx else None
        return dx, dh0, dWx, dWh, db, None, None, None, None


class RNNWithJVP(RNN):
    r"""`RNN` with its forward mode.

    The tangent of each line:

        ta_t = tx_t Wx + x_t tWx + th_{t-1}[:n_t] Wh + h_{t-1}[:n_t] tWh + tb
        th_t = ta_t * act'(a_t)
    """

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, th0: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor, *_: None) -> Tensor:
        x, h0, Wx, Wh, index, h = ctx.saved_tensors
        steps = steps_of(ctx.batch_sizes, h0)
        direct = gather_rows(tx @ Wx + x @ tWx + tb, index) + shifted_states(h0, h, steps) @ tWh  # (r, H)

        def step(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
            (tprev_h,), (direct_t, slope_t), (Wh,) = state, rows, constants
            th = (direct_t + tprev_h @ Wh) * slope_t
            return (th,), (th,)

        (th,) = over_time(step, (th0,), (direct, _slope(h, ctx.nonlinearity)), (Wh,), steps)[1]
        return th


def rnn_step(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, nonlinearity: str = "tanh") -> Tensor:
    """One step of a vanilla RNN, tanh(x Wx + prev_h Wh + b).

    Args:
        x: (N, D) floating-point.
        prev_h: (N, H).
        Wx: (D, H).
        Wh: (H, H).
        b: (H,).
        nonlinearity: tanh, or relu in its place.

    Returns:
        next_h (N, H), dtype of x; the autocast dtype under autocast.

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit, or `nonlinearity` is another.
    """
    x, prev_h, Wx, Wh, b = autocast(x, prev_h, Wx, Wh, b)
    check_floats("rnn_step", {}, x=(x, "N D"), prev_h=(prev_h, "N H"), Wx=(Wx, "D H"), Wh=(Wh, "H H"), b=(b, "H"))
    check_choice("rnn_step", "nonlinearity", nonlinearity, NONLINEARITIES)
    return apply(RNNStep, RNNStepWithJVP, x, prev_h, Wx, Wh, b, nonlinearity)


def rnn(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    lengths: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    """A vanilla RNN over a sequence.

    Args:
        x: (N, T, D) floating-point.
        h0: (N, H), the state before the first step.
        Wx: (D, H).
        Wh: (H, H).
        b: (H,).
        lengths: (N,) integers, 0 <= lengths <= T: how many steps each sequence has; None for T. Padding is neither read
            nor computed. Under torch.compile, export, vmap, CUDA graph capture and on the meta device lengths cannot be
            read: their range is then not checked, and all T steps are computed, with the same result.
        nonlinearity: tanh or relu.

    Returns:
        h (N, T, H), dtype of x (the autocast dtype under autocast); zero past the end of each sequence.

    Raises:
        IndexError: a length is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape does not fit, or `nonlinearity` is another.
    """
    x, h0, Wx, Wh, b = autocast(x, h0, Wx, Wh, b)
    axes: dict[str, int] = {}
    check_floats("rnn", axes, x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D H"), Wh=(Wh, "H H"), b=(b, "H"))
    check_lengths("rnn", lengths, axes, like=x)
    check_choice("rnn", "nonlinearity", nonlinearity, NONLINEARITIES)
    packed = Packing.of(axes["N"], axes["T"], lengths)
    x = packed.pack(zero_padding(x, packed.padding))
    h = _apply(x, packed.sort(h0), Wx, Wh, b, None, packed.batch_sizes, nonlinearity)
    return zero_padding(packed.unpack(h), packed.padding)


def packed_rnn(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    batch_sizes: int | Sequence[int],
    index: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    """`rnn` over sequences that are packed, step after step, longest first (see `packing`).

    Args:
        x: (r, D) floating-point, or with `index` a table (R, D) of inputs.
        h0: (N, H), the states before the first step, in the order of the sequences.
        Wx: (D, H).
        Wh: (H, H).
        b: (H,).
        batch_sizes: how many sequences have a step 1, a step 2 and so on: at most N, never increasing, r in all. A
            number T instead: all have T steps.
        index: (r,) integers, 0 <= index < R: the row of x that is the input of each packed row. The range is checked
            wherever values can be read, as in `rnn`.
        nonlinearity: tanh or relu.

    Returns:
        h (r, H), dtype of x (the autocast dtype under autocast).

    Raises:
        IndexError: an index is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape or `batch_sizes` does not fit, or `nonlinearity` is another.
    """
    x, h0, Wx, Wh, b = autocast(x, h0, Wx, Wh, b)
    axes: dict[str, int] = {}
    check_floats("packed_rnn", axes, x=(x, "R D"), h0=(h0, "N H"), Wx=(Wx, "D H"), Wh=(Wh, "H H"), b=(b, "H"))
    batch_sizes, index = check_packed("packed_rnn", batch_sizes, index, axes, like=x)
    check_choice("packed_rnn", "nonlinearity", nonlinearity, NONLINEARITIES)
    return _apply(x, h0, Wx, Wh, b, index, batch_sizes, nonlinearity)


def _apply(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    index: Tensor | None,
    batch_sizes: BatchSizes,
    nonlinearity: str,
) -> Tensor:
    cache = new_cache(x, h0, Wx, Wh, b, index)
    return apply(RNN, RNNWithJVP, x, h0, Wx, Wh, b, index, batch_sizes, nonlinearity, cache)


def _act(a: Tensor, nonlinearity: str) -> Tensor:
    return torch.tanh(a) if nonlinearity == "tanh" else torch.relu(a)


def _slope(h: Tensor, nonlinearity: str) -> Tensor:
    """The derivative of the nonlinearity where its value is `h`."""
    return 1 - h * h if nonlinearity == "tanh" else (h > 0).to(h.dtype)


# The loops over time, for derivatives of any order. `_inplace.rnn` has the faster ones.


def _run(a: Tensor, h0: Tensor, Wh: Tensor, steps: Steps, nonlinearity: str) -> Tensor:
    """h (r, H) of x Wx + b (r, H)."""

    def step(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (prev_h,), (a_t,), (Wh,) = state, rows, constants
        h = _act(a_t + prev_h @ Wh, nonlinearity)  # (n, H)
        return (h,), (h,)

    _, (h,) = over_time(step, (h0,), (a,), (Wh,), steps)
    return h


def _through_time(dh: Tensor, h: Tensor, Wh: Tensor, steps: Steps, nonlinearity: str) -> Tensor:
    """da (r, H)."""

    def step(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (dprev_h,), (dh_t, slope_t), (Wh,) = state, rows, constants
        da = (dh_t + dprev_h) * slope_t  # (n, H)
        return (da @ Wh.T,), (da,)

    zeros, slope = torch.zeros_like(first_step(h, steps)), _slope(h, nonlinearity)
    _, (da,) = over_time(step, (zeros,), (dh, slope), (Wh,), steps, reverse=True)
    return da
