"""Long short-term memory with a projected hidden state: one step, and a sequence of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import apply, autocast, check_floats, check_lengths, may_overwrite, new_cache, zero_padding
from ._inplace.projected_lstm import run_, through_time_
from .lstm import gates_of, last_state, slopes_of, step, step_backward, step_jvp
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
    steps_of,
)


class ProjectedLSTMStep(Function):
    r"""One step of an LSTM whose hidden state is a projection from H to P dimensions.

        a         = x Wx + prev_h Wh + b       (N, 4H)
        u, next_c = LSTMStep's                 (N, H) each: u = o * tanh(next_c)
        next_h    = u Wr                       (N, H)(H, P) -> (N, P)

    Backward. u reaches the loss through next_h alone:

        du          = dnext_h Wr^T             (N, P)(P, H) -> (N, H)
        dWr         = u^T dnext_h              (H, N)(N, P) -> (H, P)
        da, dprev_c = LSTMStep's, of du and dnext_c    (N, 4H), (N, H)

    and the rest is the affine layer's:

        dx      = da Wx^T                      (N, 4H)(4H, D) -> (N, D)
        dprev_h = da Wh^T                      (N, 4H)(4H, P) -> (N, P)
        dWx     = x^T da                       (D, N)(N, 4H) -> (D, 4H)
        dWh     = prev_h^T da                  (P, N)(N, 4H) -> (P, 4H)
        db      = sum_n da                     (4H,)

    The backward computes the gates and u again, as in LSTMStep.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, prev_h: Tensor, prev_c: Tensor, Wx: Tensor, Wh: Tensor, Wr: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
        u, next_c = step(x @ Wx + prev_h @ Wh + b, prev_c)
        return u @ Wr, next_c

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        _, next_c = output
        ctx.save_for_backward(*inputs, next_c)
        ctx.save_for_forward(*inputs, next_c)

    @staticmethod
    def backward(ctx: Any, dnext_h: Tensor, dnext_c: Tensor) -> tuple:
        x, prev_h, prev_c, Wx, Wh, Wr, b, next_c = ctx.saved_tensors
        need_x, need_prev_h, need_prev_c, need_Wx, need_Wh, need_Wr, need_b = ctx.needs_input_grad
        gates, tanh_c = gates_of(x @ Wx + prev_h @ Wh + b), torch.tanh(next_c)
        o = gates[2]
        du = dnext_h @ Wr.T
        dWr = (o * tanh_c).T @ dnext_h if need_Wr else None
        da, dprev_c = step_backward(du, dnext_c, slopes_of(prev_c, gates, tanh_c))
        dx = da @ Wx.T if need_x else None
        dprev_h = da @ Wh.T if need_prev_h else None
        dWx = x.T @ da if need_Wx else None
        dWh = prev_h.T @ da if need_Wh else None
        db = da.sum(0) if need_b else None
        return dx, dprev_h, dprev_c if need_prev_c else None, dWx, dWh, dWr, db


class ProjectedLSTMStepWithJVP(ProjectedLSTMStep):
    r"""`ProjectedLSTMStep` with its forward mode.

    The tangent of each line:

        ta          = tx Wx + x tWx + tprev_h Wh + prev_h tWh + tb
        tu, tnext_c = `step_jvp` of ta and tprev_c
        tnext_h     = tu Wr + u tWr
    """

    @staticmethod
    def jvp(
        ctx: Any,
        tx: Tensor,
        tprev_h: Tensor,
        tprev_c: Tensor,
        tWx: Tensor,
        tWh: Tensor,
        tWr: Tensor,
        tb: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x, prev_h, prev_c, Wx, Wh, Wr, b, next_c = ctx.saved_tensors
        gates, tanh_c = gates_of(x @ Wx + prev_h @ Wh + b), torch.tanh(next_c)
        ta = tx @ Wx + x @ tWx + tprev_h @ Wh + prev_h @ tWh + tb
        tu, tnext_c = step_jvp(ta, tprev_c, prev_c, gates, tanh_c)
        o = gates[2]
        return tu @ Wr + (o * tanh_c) @ tWr, tnext_c


class ProjectedLSTM(Function):
    r"""An LSTM with a projected hidden state over whole sequences, packed step after step, as in LSTM.

    x is (r, D), h (r, P), u and c (r, H):

        a_t      = x_t Wx + h_{t-1}[:n_t] Wh + b    (n_t, 4H)
        u_t, c_t = step(a_t, c_{t-1}[:n_t])         as in LSTMStep, (n_t, H) each
        h_t      = u_t Wr                           (n_t, P)

    Backward, through time. From t = T down to 1, with LSTMStep's formulas:

        dnext_h_t = dh_t + [da_{t+1} Wh^T; 0]       (n_t, P), the 0s for rows that end here; dh_T where t is T
        du_t      = dnext_h_t Wr^T                  (n_t, P)(P, H) -> (n_t, H)
        dnext_c   = dc_t + [dprev_c_{t+1}; 0]       (n_t, H), likewise
        da_t, dprev_c_t = LSTMStep's, of du_t       (n_t, 4H), (n_t, H)

        dh_0 = [da_1 Wh^T; 0]                       dc_0 = [dprev_c_1; 0]

    The gradients of the weights are those of LSTM, from da (r, 4H), and one more product over r rows:

        dWr = u^T dnext_h                           (H, r)(r, P) -> (H, P)

    Index. x may instead be a table (R, D) whose row index[k] is the input of packed row k, as in RNN.

    For a first derivative the forward caches the gates; for others they are computed again, as in LSTMStep.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        h0: Tensor,
        Wx: Tensor,
        Wh: Tensor,
        Wr: Tensor,
        b: Tensor,
        c0: Tensor,
        index: Tensor | None,
        batch_sizes: BatchSizes,
        cache: dict[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        a = gather_rows(torch.addmm(b, x, Wx), index)  # (r, 4H)
        steps = steps_of(batch_sizes, h0)
        return _run(a, h0, c0, Wh, Wr, steps) if cache is None else run_(a, h0, c0, Wh, Wr, steps, cache)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.batch_sizes, ctx.cache = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor, dc: Tensor) -> tuple:
        x, h0, Wx, Wh, Wr, b, c0, index, h, c = ctx.saved_tensors
        need_x, need_h0, need_Wx, need_Wh, need_Wr, need_b, need_c0, *_ = ctx.needs_input_grad
        steps = steps_of(ctx.batch_sizes, h0)
        prev_h, prev_c = shifted_states(h0, h, steps), shifted_states(c0, c, steps)  # (r, P), (r, H)
        if ctx.cache is not None and may_overwrite(dh, dc):
            gates, tanh_c = ctx.cache["gates"], ctx.cache["tanh_c"]
            dnext_h, da, dprev_c = through_time_(dh, dc, prev_c, Wh, Wr, steps, gates, tanh_c)
            o = gates.chunk(4, dim=1)[2]
        else:
            gates, tanh_c = gates_of(gather_rows(x @ Wx + b, index) + prev_h @ Wh), torch.tanh(c)
            dnext_h, da, dprev_c = _through_time(dh, dc, Wh, Wr, steps, slopes_of(prev_c, gates, tanh_c))
            o = gates[2]
        dh0 = resize_rows(first_step(da, steps) @ Wh.T, h0.shape[0]) if need_h0 else None
        dc0 = resize_rows(dprev_c, h0.shape[0]) if need_c0 else None
        dWr = (o * tanh_c).T @ dnext_h if need_Wr else None
        dWh = prev_h.T @ da if need_Wh else None
        db = da.sum(0) if need_b else None
        da = scatter_sum(da, index, x.shape[0]) if need_x or need_Wx else da  # (R, 4H)
        dx = da @ Wx.T if need_x else None
        dWx = x.T @ da if need_Wx else None
        return dx, dh0, dWx, dWh, dWr, db, dc0, None, None, None


class ProjectedLSTMWithJVP(ProjectedLSTM):
    r"""`ProjectedLSTM` with its forward mode.

    The tangent of each line:

        ta_t = tx_t Wx + x_t tWx + th_{t-1}[:n_t] Wh + h_{t-1}[:n_t] tWh + tb
        tu_t, tc_t = `step_jvp` of ta_t and tc_{t-1}[:n_t]
        th_t = tu_t Wr + u_t tWr
    """

    @staticmethod
    def jvp(
        ctx: Any,
        tx: Tensor,
        th0: Tensor,
        tWx: Tensor,
        tWh: Tensor,
        tWr: Tensor,
        tb: Tensor,
        tc0: Tensor,
        *_: None,
    ) -> tuple[Tensor, Tensor]:
        x, h0, Wx, Wh, Wr, b, c0, index, h, c = ctx.saved_tensors
        steps = steps_of(ctx.batch_sizes, h0)
        prev_h, prev_c = shifted_states(h0, h, steps), shifted_states(c0, c, steps)
        gates, tanh_c = gates_of(gather_rows(x @ Wx + b, index) + prev_h @ Wh), torch.tanh(c)
        of_a = gather_rows(tx @ Wx + x @ tWx + tb, index) + prev_h @ tWh  # (r, 4H)
        o = gates[2]
        of_h = (o * tanh_c) @ tWr  # (r, P)

        def step(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
            (tprev_h, tprev_c), (of_a_t, of_h_t, prev_c_t, *gates_t, tanh_c_t), (Wh, Wr) = state, rows, constants
            tu, tc = step_jvp(of_a_t + tprev_h @ Wh, tprev_c, prev_c_t, gates_t, tanh_c_t)
            tangents = tu @ Wr + of_h_t, tc
            return tangents, tangents

        th, tc = over_time(step, (th0, tc0), (of_a, of_h, prev_c, *gates, tanh_c), (Wh, Wr), steps)[1]
        return th, tc


def projected_lstm_step(
    x: Tensor, prev_h: Tensor, prev_c: Tensor, Wx: Tensor, Wh: Tensor, Wr: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM with a projected hidden state (Sak, Senior and Beaufays 2014).

    Args:
        x: (N, D) floating-point.
        prev_h: (N, P).
        prev_c: (N, H).
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (P, 4H).
        Wr: (H, P).
        b: (4H,).

    Returns:
        next_h (N, P) and next_c (N, H), dtype of x; the autocast dtype under autocast.

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit.
    """
    x, prev_h, prev_c, Wx, Wh, Wr, b = autocast(x, prev_h, prev_c, Wx, Wh, Wr, b)
    states = {"prev_h": (prev_h, "N P"), "prev_c": (prev_c, "N H")}
    check_floats("projected_lstm_step", {}, x=(x, "N D"), **states, **_weights(Wx, Wh, Wr, b))
    return apply(ProjectedLSTMStep, ProjectedLSTMStepWithJVP, x, prev_h, prev_c, Wx, Wh, Wr, b)


def projected_lstm(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    Wr: Tensor,
    b: Tensor,
    lengths: Tensor | None = None,
    c0: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """An LSTM with a projected hidden state over a sequence.

    Args:
        x: (N, T, D) floating-point.
        h0: (N, P), the hidden state before the first step.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (P, 4H).
        Wr: (H, P).
        b: (4H,).
        lengths: (N,) integers, 0 <= lengths <= T: how many steps each sequence has; None for T. Padding is neither read
            nor computed. Under torch.compile, export, vmap, CUDA graph capture and on the meta device lengths cannot be
            read: their range is then not checked, and all T steps are computed, with the same result.
        c0: (N, H), the cell state before the first step; None for zero.
        return_state: return the last state too.

    Returns:
        h (N, T, P), dtype of x (the autocast dtype under autocast); zero past the end of each sequence. With
        `return_state`, h and (last_h, last_c), (N, P) and (N, H): the state after the last step of each sequence, h0
        and c0 where it has none.

    Raises:
        IndexError: a length is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape does not fit.
    """
    x, h0, Wx, Wh, Wr, b = autocast(x, h0, Wx, Wh, Wr, b)
    axes: dict[str, int] = {}
    check_floats("projected_lstm", axes, x=(x, "N T D"), h0=(h0, "N P"), **_weights(Wx, Wh, Wr, b))
    c0 = _cell_state("projected_lstm", h0, c0, axes)
    check_lengths("projected_lstm", lengths, axes, like=x)
    packed = Packing.of(axes["N"], axes["T"], lengths)
    x = packed.pack(zero_padding(x, packed.padding))
    h, c = _apply(x, packed.sort(h0), Wx, Wh, Wr, b, packed.sort(c0), None, packed.batch_sizes)
    out = zero_padding(packed.unpack(h), packed.padding)
    if not return_state:
        return out
    c = zero_padding(packed.unpack(c), packed.padding)
    return out, (last_state(h0, out, lengths), last_state(c0, c, lengths))


def packed_projected_lstm(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    Wr: Tensor,
    b: Tensor,
    batch_sizes: int | Sequence[int],
    index: Tensor | None = None,
    c0: Tensor | None = None,
    return_cells: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`projected_lstm` over sequences that are packed, step after step, longest first (see `packing`).

    Args:
        x: (r, D) floating-point, or with `index` a table (R, D) of inputs.
        h0: (N, P), the hidden states before the first step, in the order of the sequences.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (P, 4H).
        Wr: (H, P).
        b: (4H,).
        batch_sizes: how many sequences have a step 1, a step 2 and so on: at most N, never increasing, r in all. A
            number T instead: all have T steps.
        index: (r,) integers, 0 <= index < R: the row of x that is the input of each packed row. The range is checked
            wherever values can be read, as in `projected_lstm`.
        c0: (N, H), the cell states before the first step; None for zero.
        return_cells: return the cell states too.

    Returns:
        h (r, P), dtype of x (the autocast dtype under autocast). With `return_cells`, h and c (r, H): of both,
        `packing.last_rows` takes the states after the last step of each sequence.

    Raises:
        IndexError: an index is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape or `batch_sizes` does not fit.
    """
    x, h0, Wx, Wh, Wr, b = autocast(x, h0, Wx, Wh, Wr, b)
    axes: dict[str, int] = {}
    check_floats("packed_projected_lstm", axes, x=(x, "R D"), h0=(h0, "N P"), **_weights(Wx, Wh, Wr, b))
    c0 = _cell_state("packed_projected_lstm", h0, c0, axes)
    batch_sizes, index = check_packed("packed_projected_lstm", batch_sizes, index, axes, like=x)
    h, c = _apply(x, h0, Wx, Wh, Wr, b, c0, index, batch_sizes)
    return (h, c) if return_cells else h


def _apply(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    Wr: Tensor,
    b: Tensor,
    c0: Tensor,
    index: Tensor | None,
    batch_sizes: BatchSizes,
) -> tuple[Tensor, Tensor]:
    cache = new_cache(x, h0, Wx, Wh, Wr, b, c0, index)
    return apply(ProjectedLSTM, ProjectedLSTMWithJVP, x, h0, Wx, Wh, Wr, b, c0, index, batch_sizes, cache)


def _weights(Wx: Tensor, Wh: Tensor, Wr: Tensor, b: Tensor) -> dict[str, tuple[Tensor, str]]:
    """The weights with the axes of their shapes; Wr, which has H itself, first."""
    return {"Wr": (Wr, "H P"), "Wx": (Wx, "D 4H"), "Wh": (Wh, "P 4H"), "b": (b, "4H")}


def _cell_state(function: str, h0: Tensor, c0: Tensor | None, axes: dict[str, int]) -> Tensor:
    """c0 (N, H), checked; zero instead of None."""
    if c0 is None:
        return h0.new_zeros(axes["N"], axes["H"])
    (c0,) = autocast(c0)
    check_floats(function, axes, h0=(h0, "N P"), c0=(c0, "N H"))
    return c0


# The loops over time, for derivatives of any order. `_inplace.projected_lstm` has the faster ones.


def _run(a: Tensor, h0: Tensor, c0: Tensor, Wh: Tensor, Wr: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
    """h (r, P) and c (r, H) of x Wx + b (r, 4H)."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (prev_h, prev_c), (a_t,), (Wh, Wr) = state, rows, constants
        u, c = step(a_t + prev_h @ Wh, prev_c)  # (n, H) each
        state = u @ Wr, c
        return state, state

    _, (h, c) = over_time(body, (h0, c0), (a,), (Wh, Wr), steps)
    return h, c


def _through_time(
    dh: Tensor, dc: Tensor, Wh: Tensor, Wr: Tensor, steps: Steps, slopes: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """dnext_h (r, P), da (r, 4H), and dprev_c (n_1, H) of the first step."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (dprev_h, dprev_c), (dh_t, dc_t, *slopes_t), (Wh, Wr) = state, rows, constants
        dnext_h = dh_t + dprev_h
        da, dprev_c = step_backward(dnext_h @ Wr.T, dc_t + dprev_c, slopes_t)
        return (da @ Wh.T, dprev_c), (dnext_h, da)

    zeros = torch.zeros_like(first_step(dh, steps)), torch.zeros_like(first_step(dc, steps))
    (_, dprev_c), (dnext_h, da) = over_time(body, zeros, (dh, dc, *slopes), (Wh, Wr), steps, reverse=True)
    return dnext_h, da, dprev_c
