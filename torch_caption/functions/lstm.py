"""Long short-term memory: one step, and a sequence of them. The gates are in the order i, f, o, g along 4H."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import apply, autocast, check_choice, check_floats, check_lengths, may_overwrite, new_cache, zero_padding
from ._inplace.lstm import in_gate_order, run_, through_time_
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

GATE_ORDERS = ("ifog", "ifgo")


class LSTMStep(Function):
    r"""One step of an LSTM.

        a      = x Wx + prev_h Wh + b          (N, 4H), cut into a_i a_f a_o a_g (N, H) each
        i f o  = sigmoid(a_i) sigmoid(a_f) sigmoid(a_o)
        g      = tanh(a_g)
        next_c = f * prev_c + i * g            (N, H)
        next_h = o * tanh(next_c)              (N, H)

    Backward. The cell state reaches the loss directly and through next_h; sigmoid' = s (1 - s), tanh' = 1 - tanh^2:

        dc      = dnext_c + dnext_h * o * (1 - tanh(next_c)^2)
        da_i    = dc * g * i (1 - i)
        da_f    = dc * prev_c * f (1 - f)
        da_o    = dnext_h * tanh(next_c) * o (1 - o)
        da_g    = dc * i * (1 - g^2)
        dprev_c = dc * f                       (N, H)

    and with da = [da_i da_f da_o da_g] (N, 4H) the rest is the affine layer's:

        dx      = da Wx^T                      (N, 4H)(4H, D) -> (N, D)
        dprev_h = da Wh^T                      (N, 4H)(4H, H) -> (N, H)
        dWx     = x^T da                       (D, N)(N, 4H) -> (D, 4H)
        dWh     = prev_h^T da                  (H, N)(N, 4H) -> (H, 4H)
        db      = sum_n da                     (4H,)

    The backward computes the gates again: saved as outputs without a gradient they would be constants to a second
    derivative, which would then be wrong. With the gate order ifgo, torch.nn's, a_g comes before a_o in a and in da.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, prev_h: Tensor, prev_c: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, gate_order: str
    ) -> tuple[Tensor, Tensor]:
        return step(x @ Wx + prev_h @ Wh + b, prev_c, gate_order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.gate_order = inputs
        _, next_c = output
        ctx.save_for_backward(*tensors, next_c)
        ctx.save_for_forward(*tensors, next_c)

    @staticmethod
    def backward(ctx: Any, dnext_h: Tensor, dnext_c: Tensor) -> tuple:
        x, prev_h, prev_c, Wx, Wh, b, next_c = ctx.saved_tensors
        need_x, need_prev_h, need_prev_c, need_Wx, need_Wh, need_b, _ = ctx.needs_input_grad
        gates = gates_of(x @ Wx + prev_h @ Wh + b, ctx.gate_order)
        slopes = slopes_of(prev_c, gates, torch.tanh(next_c))
        da, dprev_c = step_backward(dnext_h, dnext_c, slopes, ctx.gate_order)
        dx = da @ Wx.T if need_x else None
        dprev_h = da @ Wh.T if need_prev_h else None
        dWx = x.T @ da if need_Wx else None
        dWh = prev_h.T @ da if need_Wh else None
        db = da.sum(0) if need_b else None
        return dx, dprev_h, dprev_c if need_prev_c else None, dWx, dWh, db, None


class LSTMStepWithJVP(LSTMStep):
    r"""`LSTMStep` with its forward mode: ta = tx Wx + x tWx + tprev_h Wh + prev_h tWh + tb, then `step_jvp`."""

    @staticmethod
    def jvp(
        ctx: Any, tx: Tensor, tprev_h: Tensor, tprev_c: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor, _: None
    ) -> tuple[Tensor, Tensor]:
        x, prev_h, prev_c, Wx, Wh, b, next_c = ctx.saved_tensors
        ta = tx @ Wx + x @ tWx + tprev_h @ Wh + prev_h @ tWh + tb
        gates = gates_of(x @ Wx + prev_h @ Wh + b, ctx.gate_order)
        return step_jvp(ta, tprev_c, prev_c, gates, torch.tanh(next_c), ctx.gate_order)


class LSTM(Function):
    r"""An LSTM over whole sequences, packed step after step (see `packing`).

    At step t = 1..T the first n_t of the N sequences are present, n_1 >= n_2 >= ..., and r is the sum of all n_t; x
    (r, D), h and c (r, H) hold n_1 rows of step 1, then n_2 of step 2 and so on. Where all are T long, n_t is N. h_0
    and c_0 are the states before the first step.

        a_t      = x_t Wx + h_{t-1}[:n_t] Wh + b    (n_t, 4H)
        h_t, c_t = step(a_t, c_{t-1}[:n_t])         as in LSTMStep, (n_t, H) each

    Backward, through time. h_t and c_t reach the loss through their own outputs and, in the rows that are present at
    t + 1, through that step. From t = T down to 1, with LSTMStep's formulas:

        dnext_h = dh_t + [da_{t+1} Wh^T; 0]    (n_t, H), the 0s for rows that end here; dh_T where t is T
        dnext_c = dc_t + [dprev_c_{t+1}; 0]    (n_t, H), likewise
        da_t, dprev_c_t = LSTMStep's           (n_t, 4H), (n_t, H)

        dh_0 = [da_1 Wh^T; 0]                  dc_0 = [dprev_c_1; 0]

    All steps share the weights, so their gradients sum over batch and time, one product over r rows:

        dx  = da Wx^T                          (r, 4H)(4H, D) -> (r, D)
        dWx = x^T da                           (D, r)(r, 4H) -> (D, 4H)
        dWh = [h_0[:n_1] .. h_{T-1}[:n_T]]^T da  (H, r)(r, 4H) -> (H, 4H)
        db  = sum_r da                         (4H,)

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
        b: Tensor,
        c0: Tensor,
        index: Tensor | None,
        batch_sizes: BatchSizes,
        gate_order: str,
        cache: dict[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        a = gather_rows(torch.addmm(b, x, Wx), index)  # (r, 4H)
        steps = steps_of(batch_sizes, h0)
        if cache is None:
            return _run(a, h0, c0, Wh, steps, gate_order)
        return run_(a, h0, c0, Wh, steps, gate_order, cache)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.batch_sizes, ctx.gate_order, ctx.cache = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor, dc: Tensor) -> tuple:
        x, h0, Wx, Wh, b, c0, index, h, c = ctx.saved_tensors
        need_x, need_h0, need_Wx, need_Wh, need_b, need_c0, *_ = ctx.needs_input_grad
        steps = steps_of(ctx.batch_sizes, h0)
        fast = ctx.cache is not None and may_overwrite(dh, dc)
        if fast:
            da, dprev_c = through_time_(dh, dc, c0, c, Wh, steps, ctx.gate_order, **ctx.cache)
        else:
            prev_h, prev_c = shifted_states(h0, h, steps), shifted_states(c0, c, steps)  # (r, H)
            gates = gates_of(gather_rows(x @ Wx + b, index) + prev_h @ Wh, ctx.gate_order)
            da, dprev_c = _through_time(dh, dc, Wh, steps, slopes_of(prev_c, gates, torch.tanh(c)), ctx.gate_order)
        dh0 = resize_rows(first_step(da, steps) @ Wh.T, h0.shape[0]) if need_h0 else None
        dc0 = resize_rows(dprev_c, h0.shape[0]) if need_c0 else None
        dWh = (states_product(h0, h, da, steps) if fast else prev_h.T @ da) if need_Wh else None
        db = da.sum(0) if need_b else None
        da = scatter_sum(da, index, x.shape[0]) if need_x or need_Wx else da  # (R, 4H)
        dx = da @ Wx.T if need_x else None
        dWx = x.T @ da if need_Wx else None
        return dx, dh0, dWx, dWh, db, dc0, None, None, None, None


class LSTMWithJVP(LSTM):
    r"""`LSTM` with its forward mode.

    The tangent of each line:

        ta_t = tx_t Wx + x_t tWx + th_{t-1}[:n_t] Wh + h_{t-1}[:n_t] tWh + tb
        th_t, tc_t = `step_jvp` of ta_t and tc_{t-1}[:n_t]
    """

    @staticmethod
    def jvp(
        ctx: Any, tx: Tensor, th0: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor, tc0: Tensor, *_: None
    ) -> tuple[Tensor, Tensor]:
        x, h0, Wx, Wh, b, c0, index, h, c = ctx.saved_tensors
        steps = steps_of(ctx.batch_sizes, h0)
        prev_h, prev_c = shifted_states(h0, h, steps), shifted_states(c0, c, steps)
        direct = gather_rows(tx @ Wx + x @ tWx + tb, index) + prev_h @ tWh  # (r, 4H)
        gates = gates_of(gather_rows(x @ Wx + b, index) + prev_h @ Wh, ctx.gate_order)

        def step(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
            (tprev_h, tprev_c), (direct_t, prev_c_t, *gates_t, tanh_c_t), (Wh,) = state, rows, constants
            tangents = step_jvp(direct_t + tprev_h @ Wh, tprev_c, prev_c_t, gates_t, tanh_c_t, ctx.gate_order)
            return tangents, tangents

        th, tc = over_time(step, (th0, tc0), (direct, prev_c, *gates, torch.tanh(c)), (Wh,), steps)[1]
        return th, tc


def lstm_step(
    x: Tensor, prev_h: Tensor, prev_c: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, gate_order: str = "ifog"
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    Args:
        x: (N, D) floating-point.
        prev_h: (N, H).
        prev_c: (N, H).
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        b: (4H,).
        gate_order: ifog, or ifgo: gates in the order i, f, g, o, that of torch.nn.LSTMCell, whose weights are then
            given transposed.

    Returns:
        next_h (N, H) and next_c (N, H), dtype of x; the autocast dtype under autocast.

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit, or `gate_order` is another.
    """
    x, prev_h, prev_c, Wx, Wh, b = autocast(x, prev_h, prev_c, Wx, Wh, b)
    states = {"prev_h": (prev_h, "N H"), "prev_c": (prev_c, "N H")}
    check_floats("lstm_step", {}, x=(x, "N D"), **states, Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), b=(b, "4H"))
    check_choice("lstm_step", "gate_order", gate_order, GATE_ORDERS)
    return apply(LSTMStep, LSTMStepWithJVP, x, prev_h, prev_c, Wx, Wh, b, gate_order)


def lstm(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    lengths: Tensor | None = None,
    c0: Tensor | None = None,
    return_state: bool = False,
    gate_order: str = "ifog",
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """An LSTM over a sequence.

    Args:
        x: (N, T, D) floating-point.
        h0: (N, H), the hidden state before the first step.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        b: (4H,).
        lengths: (N,) integers, 0 <= lengths <= T: how many steps each sequence has; None for T. Padding is neither read
            nor computed. Under torch.compile, export, vmap, CUDA graph capture and on the meta device lengths cannot be
            read: their range is then not checked, and all T steps are computed, with the same result.
        c0: (N, H), the cell state before the first step; None for zero.
        return_state: return the last state too.
        gate_order: as in `lstm_step`.

    Returns:
        h (N, T, H), dtype of x (the autocast dtype under autocast); zero past the end of each sequence. With
        `return_state`, h and (last_h, last_c), (N, H) each: the state after the last step of each sequence, h0 and c0
        where it has none.

    Raises:
        IndexError: a length is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape does not fit, or `gate_order` is another.
    """
    x, h0, Wx, Wh, b = autocast(x, h0, Wx, Wh, b)
    axes: dict[str, int] = {}
    check_floats("lstm", axes, x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), b=(b, "4H"))
    (c0,) = (torch.zeros_like(h0),) if c0 is None else autocast(c0)
    check_floats("lstm", axes, h0=(h0, "N H"), c0=(c0, "N H"))
    check_lengths("lstm", lengths, axes, like=x)
    check_choice("lstm", "gate_order", gate_order, GATE_ORDERS)
    packed = Packing.of(axes["N"], axes["T"], lengths)
    x = packed.pack(zero_padding(x, packed.padding))
    h, c = _apply(x, packed.sort(h0), Wx, Wh, b, packed.sort(c0), None, packed.batch_sizes, gate_order)
    out = zero_padding(packed.unpack(h), packed.padding)
    if not return_state:
        return out
    c = zero_padding(packed.unpack(c), packed.padding)
    return out, (last_state(h0, out, lengths), last_state(c0, c, lengths))


def packed_lstm(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    batch_sizes: int | Sequence[int],
    index: Tensor | None = None,
    c0: Tensor | None = None,
    return_cells: bool = False,
    gate_order: str = "ifog",
) -> Tensor | tuple[Tensor, Tensor]:
    """`lstm` over sequences that are packed, step after step, longest first (see `packing`).

    Args:
        x: (r, D) floating-point, or with `index` a table (R, D) of inputs.
        h0: (N, H), the hidden states before the first step, in the order of the sequences.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        b: (4H,).
        batch_sizes: how many sequences have a step 1, a step 2 and so on: at most N, never increasing, r in all. A
            number T instead: all have T steps.
        index: (r,) integers, 0 <= index < R: the row of x that is the input of each packed row. The range is checked
            wherever values can be read, as in `lstm`.
        c0: (N, H), the cell states before the first step; None for zero.
        return_cells: return the cell states too.
        gate_order: as in `lstm_step`.

    Returns:
        h (r, H), dtype of x (the autocast dtype under autocast). With `return_cells`, h and c (r, H): of both,
        `packing.last_rows` takes the states after the last step of each sequence.

    Raises:
        IndexError: an index is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape or `batch_sizes` does not fit, or `gate_order` is another.
    """
    x, h0, Wx, Wh, b = autocast(x, h0, Wx, Wh, b)
    axes: dict[str, int] = {}
    check_floats("packed_lstm", axes, x=(x, "R D"), h0=(h0, "N H"), Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), b=(b, "4H"))
    (c0,) = (torch.zeros_like(h0),) if c0 is None else autocast(c0)
    check_floats("packed_lstm", axes, h0=(h0, "N H"), c0=(c0, "N H"))
    batch_sizes, index = check_packed("packed_lstm", batch_sizes, index, axes, like=x)
    check_choice("packed_lstm", "gate_order", gate_order, GATE_ORDERS)
    h, c = _apply(x, h0, Wx, Wh, b, c0, index, batch_sizes, gate_order)
    return (h, c) if return_cells else h


def _apply(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    c0: Tensor,
    index: Tensor | None,
    batch_sizes: BatchSizes,
    gate_order: str,
) -> tuple[Tensor, Tensor]:
    cache = new_cache(x, h0, Wx, Wh, b, c0, index)
    return apply(LSTM, LSTMWithJVP, x, h0, Wx, Wh, b, c0, index, batch_sizes, gate_order, cache)


def gates_of(a: Tensor, gate_order: str = "ifog") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """i, f, o, g (..., H) of the pre-activations (..., 4H)."""
    a_i, a_f, a_o, a_g = in_gate_order(a.chunk(4, dim=-1), gate_order)
    return torch.sigmoid(a_i), torch.sigmoid(a_f), torch.sigmoid(a_o), torch.tanh(a_g)


def step(a: Tensor, prev_c: Tensor, gate_order: str = "ifog") -> tuple[Tensor, Tensor]:
    """next_h and next_c (N, H) of the pre-activations (N, 4H)."""
    i, f, o, g = gates_of(a, gate_order)
    next_c = f * prev_c + i * g
    return o * torch.tanh(next_c), next_c


def slopes_of(prev_c: Tensor, gates: Any, tanh_c: Tensor) -> tuple[Tensor, ...]:
    """The factors (N, H) of LSTMStep's backward that no gradient is in: a sequence computes those of all its steps at
    once."""
    i, f, o, g = gates
    return o * (1 - tanh_c * tanh_c), g * i * (1 - i), prev_c * f * (1 - f), tanh_c * o * (1 - o), i * (1 - g * g), f


def step_backward(
    dnext_h: Tensor, dnext_c: Tensor, slopes: Sequence[Tensor], gate_order: str = "ifog"
) -> tuple[Tensor, Tensor]:
    """da (N, 4H) and dprev_c (N, H): the formulas of LSTMStep."""
    of_h, of_i, of_f, of_o, of_g, f = slopes
    dc = dnext_c + dnext_h * of_h
    da = in_gate_order((dc * of_i, dc * of_f, dnext_h * of_o, dc * of_g), gate_order)
    return torch.cat([*da], dim=-1), dc * f


def step_jvp(
    ta: Tensor, tprev_c: Tensor, prev_c: Tensor, gates: Any, tanh_c: Tensor, gate_order: str = "ifog"
) -> tuple[Tensor, Tensor]:
    """Tangents of next_h and next_c (N, H), from those of the pre-activations (N, 4H) and of prev_c."""
    i, f, o, g = gates
    ta_i, ta_f, ta_o, ta_g = in_gate_order(ta.chunk(4, dim=-1), gate_order)
    ti, tf, to = ta_i * i * (1 - i), ta_f * f * (1 - f), ta_o * o * (1 - o)
    tg = ta_g * (1 - g * g)
    tnext_c = tf * prev_c + f * tprev_c + ti * g + i * tg
    return to * tanh_c + o * (1 - tanh_c * tanh_c) * tnext_c, tnext_c


def last_state(first: Tensor, h: Tensor, lengths: Tensor | None) -> Tensor:
    """The state (N, H) after each row's last step; `first` where a row has none."""
    states = torch.cat([first.unsqueeze(1), h], dim=1)  # (N, 1 + T, H)
    if lengths is None:
        return states[:, -1]
    last = lengths.long().unsqueeze(1).unsqueeze(2).expand(-1, 1, states.shape[2])
    return states.gather(1, last).squeeze(1)


# The loops over time, for derivatives of any order. `_inplace.lstm` has the faster ones.


def _run(a: Tensor, h0: Tensor, c0: Tensor, Wh: Tensor, steps: Steps, gate_order: str) -> tuple[Tensor, Tensor]:
    """h and c (r, H) of x Wx + b (r, 4H)."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (prev_h, prev_c), (a_t,), (Wh,) = state, rows, constants
        state = step(a_t + prev_h @ Wh, prev_c, gate_order)  # (n, H) each
        return state, state

    _, (h, c) = over_time(body, (h0, c0), (a,), (Wh,), steps)
    return h, c


def _through_time(
    dh: Tensor, dc: Tensor, Wh: Tensor, steps: Steps, slopes: Sequence[Tensor], gate_order: str
) -> tuple[Tensor, Tensor]:
    """da (r, 4H), and dprev_c (n_1, H) of the first step."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (dprev_h, dprev_c), (dh_t, dc_t, *slopes_t), (Wh,) = state, rows, constants
        da, dprev_c = step_backward(dh_t + dprev_h, dc_t + dprev_c, slopes_t, gate_order)
        return (da @ Wh.T, dprev_c), (da,)

    zeros = (torch.zeros_like(first_step(dh, steps)), torch.zeros_like(first_step(dc, steps)))
    (_, dprev_c), (da,) = over_time(body, zeros, (dh, dc, *slopes), (Wh,), steps, reverse=True)
    return da, dprev_c
