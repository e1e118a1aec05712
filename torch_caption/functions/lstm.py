"""Long short-term memory: one step, and a sequence of them. Gates stand in the order i, f, o, g along 4H."""

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
    per_step,
    previous,
    read,
    resized,
)


class LSTMStep(Function):
    r"""One step of an LSTM.

        a      = x Wx + prev_h Wh + b          (N, 4H), cut into a_i a_f a_o a_g (N, H) each
        i f o  = sigmoid(a_i) sigmoid(a_f) sigmoid(a_o)
        g      = tanh(a_g)
        next_c = f * prev_c + i * g            (N, H)
        next_h = o * tanh(next_c)              (N, H)

    Backward. The cell state reaches the loss by itself and through next_h; sigmoid' = s (1 - s), tanh' = 1 - tanh^2:

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

    The gates are computed again in backward: kept as outputs without a gradient they would be constants to a second
    derivative, which would then be wrong.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, prev_h: Tensor, prev_c: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return step(x @ Wx + prev_h @ Wh + b, prev_c)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        _, next_c = output
        ctx.save_for_backward(*inputs, next_c)
        ctx.save_for_forward(*inputs, next_c)

    @staticmethod
    def backward(ctx: Any, dnext_h: Tensor, dnext_c: Tensor) -> tuple:
        x, prev_h, prev_c, Wx, Wh, b, next_c = ctx.saved_tensors
        need_x, need_prev_h, need_prev_c, need_Wx, need_Wh, need_b = ctx.needs_input_grad
        gates = gates_of(x @ Wx + prev_h @ Wh + b)
        da, dprev_c = step_backward(dnext_h, dnext_c, prev_c, gates, torch.tanh(next_c))
        dx = da @ Wx.T if need_x else None
        dprev_h = da @ Wh.T if need_prev_h else None
        dWx = x.T @ da if need_Wx else None
        dWh = prev_h.T @ da if need_Wh else None
        db = da.sum(0) if need_b else None
        return dx, dprev_h, dprev_c if need_prev_c else None, dWx, dWh, db


class LSTMStepWithJVP(LSTMStep):
    r"""`LSTMStep` with its forward mode: ta = tx Wx + x tWx + tprev_h Wh + prev_h tWh + tb, then `step_jvp`."""

    @staticmethod
    def jvp(
        ctx: Any, tx: Tensor, tprev_h: Tensor, tprev_c: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, prev_h, prev_c, Wx, Wh, b, next_c = ctx.saved_tensors
        ta = tx @ Wx + x @ tWx + tprev_h @ Wh + prev_h @ tWh + tb
        return step_jvp(ta, tprev_c, prev_c, gates_of(x @ Wx + prev_h @ Wh + b), torch.tanh(next_c))


class LSTM(Function):
    r"""An LSTM over whole sequences, packed step after step (see `packing`).

    At step t = 1..T the first n_t of the N sequences go on, n_1 >= n_2 >= ..., and r is the sum of all n_t; x (r, D), h
    and c (r, H) hold n_1 rows of step 1, then n_2 of step 2 and so on. Where all are T long, n_t is N. h_0 and c_0 are
    the states before the first step.

        a_t      = x_t Wx + h_{t-1}[:n_t] Wh + b    (n_t, 4H)
        h_t, c_t = step(a_t, c_{t-1}[:n_t])         as in LSTMStep, (n_t, H) each

    Backward, through time. h_t and c_t reach the loss by their own outputs and, in the rows that go on, by the step
    after them. From t = T down to 1, with LSTMStep's formulas:

        dnext_h = dh_t + [da_{t+1} Wh^T; 0]    (n_t, H), the 0s for rows that end here; dh_T where t is T
        dnext_c = dc_t + [dprev_c_{t+1}; 0]    (n_t, H), likewise
        da_t, dprev_c_t = LSTMStep's           (n_t, 4H), (n_t, H)

        dh_0 = [da_1 Wh^T; 0]                  dc_0 = [dprev_c_1; 0]

    The weights served all steps, so their gradients sum over batch and time, one product over r rows:

        dx  = da Wx^T                          (r, 4H)(4H, D) -> (r, D)
        dWx = x^T da                           (D, r)(r, 4H) -> (D, 4H)
        dWh = [h_0[:n_1] .. h_{T-1}[:n_T]]^T da  (H, r)(r, 4H) -> (H, 4H)
        db  = sum_r da                         (4H,)

    Index. x may instead be a table (R, D) of which row index[k] is the input at place k, as in RNN.

    For a first derivative the gates are noted in forward; for others they are computed again, as in LSTMStep.
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
        sizes: Sizes,
        notes: dict[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        a = read(torch.addmm(b, x, Wx), index)  # (r, 4H)
        each = of_each_step(sizes, h0)
        return _run(a, h0, c0, Wh, each) if notes is None else _run_(a, h0, c0, Wh, each, notes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.sizes, ctx.notes = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor, dc: Tensor) -> tuple:
        x, h0, Wx, Wh, b, c0, index, h, c = ctx.saved_tensors
        need_x, need_h0, need_Wx, need_Wh, need_b, need_c0, *_ = ctx.needs_input_grad
        sizes = of_each_step(ctx.sizes, h0)
        prev_h, prev_c = previous(h0, h, sizes), previous(c0, c, sizes)  # (r, H)
        fast = ctx.notes is not None and may_write(dh, dc)
        if fast:
            da, dprev_c = _through_time_(dh, dc, prev_c, Wh, sizes, **ctx.notes)
        else:
            gates = gates_of(read(x @ Wx + b, index) + prev_h @ Wh)
            da, dprev_c = _through_time(dh, dc, prev_c, Wh, sizes, gates, torch.tanh(c))
        dh0 = resized(first(da, sizes) @ Wh.T, h0.shape[0]) if need_h0 else None
        dc0 = resized(dprev_c, h0.shape[0]) if need_c0 else None
        dWh = prev_h.T @ da if need_Wh else None
        db = da.sum(0) if need_b else None
        da = collected(da, index, x.shape[0]) if need_x or need_Wx else da  # (R, 4H)
        dx = da @ Wx.T if need_x else None
        dWx = x.T @ da if need_Wx else None
        return dx, dh0, dWx, dWh, db, dc0, None, None, None


class LSTMWithJVP(LSTM):
    r"""`LSTM` with its forward mode.

    ta_t = tx_t Wx + x_t tWx + th_{t-1}[:n_t] Wh + h_{t-1}[:n_t] tWh + tb
    th_t, tc_t = `step_jvp` of ta_t and tc_{t-1}[:n_t]
    """

    @staticmethod
    def jvp(
        ctx: Any, tx: Tensor, th0: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor, tc0: Tensor, *_: None
    ) -> tuple[Tensor, Tensor]:
        x, h0, Wx, Wh, b, c0, index, h, c = ctx.saved_tensors
        sizes = of_each_step(ctx.sizes, h0)
        prev_h, prev_c = previous(h0, h, sizes), previous(c0, c, sizes)
        direct = read(tx @ Wx + x @ tWx + tb, index) + prev_h @ tWh  # (r, 4H)
        gates = gates_of(read(x @ Wx + b, index) + prev_h @ Wh)

        def step(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
            (tprev_h, tprev_c), (direct_t, prev_c_t, *gates_t, tanh_c_t), (Wh,) = state, rows, constants
            tangents = step_jvp(direct_t + tprev_h @ Wh, tprev_c, prev_c_t, gates_t, tanh_c_t)
            return tangents, tangents

        th, tc = over_time(step, (th0, tc0), (direct, prev_c, *gates, torch.tanh(c)), (Wh,), sizes)[1]
        return th, tc


def lstm_step(x: Tensor, prev_h: Tensor, prev_c: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    Args:
        x: (N, D) floating-point.
        prev_h: (N, H).
        prev_c: (N, H).
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        b: (4H,).

    Returns:
        next_h (N, H) and next_c (N, H), dtype of x; the autocast dtype under autocast.

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit.
    """
    x, prev_h, prev_c, Wx, Wh, b = autocast(x, prev_h, prev_c, Wx, Wh, b)
    states = {"prev_h": (prev_h, "N H"), "prev_c": (prev_c, "N H")}
    check_floats("lstm_step", {}, x=(x, "N D"), **states, Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), b=(b, "4H"))
    return apply(LSTMStep, LSTMStepWithJVP, x, prev_h, prev_c, Wx, Wh, b)


def lstm(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    lengths: Tensor | None = None,
    c0: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """An LSTM over a sequence.

    Args:
        x: (N, T, D) floating-point.
        h0: (N, H), the hidden state before the first step.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        b: (4H,).
        lengths: (N,) integers, 0 <= lengths <= T: how many steps each row has; None for T. What is past a row's end is
            neither read nor computed. Under torch.compile, export, vmap, CUDA graph capture and on the meta device
            lengths cannot be read: their range is then not checked, and all T steps are computed, to the same effect.
        c0: (N, H), the cell state before the first step; None for zero.
        return_state: return the last state too.

    Returns:
        h (N, T, H), dtype of x (the autocast dtype under autocast); zero past a row's end. With `return_state`,
        h and (last_h, last_c), (N, H) each: the state after the last step of each row, h0 and c0 where it has none.

    Raises:
        IndexError: a length is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape does not fit.
    """
    x, h0, Wx, Wh, b = autocast(x, h0, Wx, Wh, b)
    sizes: dict[str, int] = {}
    check_floats("lstm", sizes, x=(x, "N T D"), h0=(h0, "N H"), Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), b=(b, "4H"))
    (c0,) = (torch.zeros_like(h0),) if c0 is None else autocast(c0)
    check_floats("lstm", sizes, h0=(h0, "N H"), c0=(c0, "N H"))
    check_lengths("lstm", lengths, sizes, like=x)
    packed = Packing.of(sizes["N"], sizes["T"], lengths)
    x = packed.pack(blank(x, packed.unread))
    state = packed.sort(h0), packed.sort(c0)
    h, c = _apply(x, state[0], Wx, Wh, b, state[1], None, packed.sizes)
    out = blank(packed.unpack(h), packed.unread)
    if not return_state:
        return out
    c = blank(packed.unpack(c), packed.unread)
    return out, (last_state(h0, out, lengths), last_state(c0, c, lengths))


def packed_lstm(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    sizes: int | Sequence[int],
    index: Tensor | None = None,
    c0: Tensor | None = None,
) -> Tensor:
    """`lstm` over sequences that are packed, step after step, longest first (see `packing`).

    Args:
        x: (r, D) floating-point, or with `index` a table (R, D) of inputs.
        h0: (N, H), the hidden states before the first step, in the order of the sequences.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        b: (4H,).
        sizes: how many sequences have a step 1, a step 2 and so on: at most N, never more than before, r in all. A
            number T instead: all have T steps.
        index: (r,) integers, 0 <= index < R: which row of x is read at each place. The range is checked wherever values
            can be read, as in `lstm`.
        c0: (N, H), the cell states before the first step; None for zero.

    Returns:
        h (r, H), dtype of x (the autocast dtype under autocast).

    Raises:
        IndexError: an index is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape or `sizes` does not fit.
    """
    x, h0, Wx, Wh, b = autocast(x, h0, Wx, Wh, b)
    letters: dict[str, int] = {}
    check_floats("packed_lstm", letters, x=(x, "R D"), h0=(h0, "N H"), Wx=(Wx, "D 4H"), Wh=(Wh, "H 4H"), b=(b, "4H"))
    (c0,) = (torch.zeros_like(h0),) if c0 is None else autocast(c0)
    check_floats("packed_lstm", letters, h0=(h0, "N H"), c0=(c0, "N H"))
    sizes, index = check_packed("packed_lstm", sizes, index, letters, like=x)
    return _apply(x, h0, Wx, Wh, b, c0, index, sizes)[0]


def _apply(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    c0: Tensor,
    index: Tensor | None,
    sizes: Sizes,
) -> tuple[Tensor, Tensor]:
    return apply(LSTM, LSTMWithJVP, x, h0, Wx, Wh, b, c0, index, sizes, take_notes(x, h0, Wx, Wh, b, c0, index))


def gates_of(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """i, f, o, g (..., H) of the pre-activations (..., 4H)."""
    a_i, a_f, a_o, a_g = a.chunk(4, dim=-1)
    return torch.sigmoid(a_i), torch.sigmoid(a_f), torch.sigmoid(a_o), torch.tanh(a_g)


def step(a: Tensor, prev_c: Tensor) -> tuple[Tensor, Tensor]:
    """next_h and next_c (N, H) of the pre-activations (N, 4H)."""
    i, f, o, g = gates_of(a)
    next_c = f * prev_c + i * g
    return o * torch.tanh(next_c), next_c


def step_backward(
    dnext_h: Tensor, dnext_c: Tensor, prev_c: Tensor, gates: Any, tanh_c: Tensor
) -> tuple[Tensor, Tensor]:
    """da (N, 4H) and dprev_c (N, H): the formulas of LSTMStep."""
    i, f, o, g = gates
    dc = dnext_c + dnext_h * o * (1 - tanh_c * tanh_c)
    da_i = dc * g * i * (1 - i)
    da_f = dc * prev_c * f * (1 - f)
    da_o = dnext_h * tanh_c * o * (1 - o)
    da_g = dc * i * (1 - g * g)
    return torch.cat([da_i, da_f, da_o, da_g], dim=-1), dc * f


def step_(ifo: Tensor, gates: Sequence[Tensor], prev_c: Tensor, h: Tensor, c: Tensor, tanh_c: Tensor) -> None:
    """`step` in place: ifo (n, 3H) and `gates` (n, H) each are views of the pre-activations, which become gates."""
    i, f, o, g = gates
    ifo.sigmoid_()
    tanh_(g)
    torch.mul(i, g, out=c).addcmul_(f, prev_c)
    torch.mul(o, tanh_(tanh_c.copy_(c)), out=h)


def step_backward_(
    dnext_h: Tensor,
    dc: Tensor,
    coming: Tensor | None,
    prev_c: Tensor,
    gates: Tensor,
    parts: Sequence[Tensor],
    tanh_c: Tensor,
    da: Tensor,
    da_parts: Sequence[Tensor],
) -> Tensor:
    """`step_backward` in place: da (n, 4H) is written, dprev_c (n, H) returned; each factor over the last.

    `parts` and `da_parts` are the four parts of `gates` and `da`. `coming` (m, H) is what reaches the cell states of
    the rows that go on from the step after this one.
    """
    (i, f, o, g), (da_i, da_f, da_o, da_g) = parts, da_parts
    dnext_c = torch.addcmul(dc, tanh_slope(tanh_c).mul_(o), dnext_h)
    if coming is not None:
        dnext_c[: len(coming)] += coming
    torch.addcmul(gates, gates, gates, value=-1, out=da)  # s (1 - s), for three of the gates
    da_i.mul_(g).mul_(dnext_c)
    da_f.mul_(prev_c).mul_(dnext_c)
    da_o.mul_(tanh_c).mul_(dnext_h)
    torch.mul(tanh_slope(g), i, out=da_g).mul_(dnext_c)
    return dnext_c.mul_(f)


def step_jvp(ta: Tensor, tprev_c: Tensor, prev_c: Tensor, gates: Any, tanh_c: Tensor) -> tuple[Tensor, Tensor]:
    """Tangents of next_h and next_c (N, H), from those of the pre-activations (N, 4H) and of prev_c."""
    i, f, o, g = gates
    ta_i, ta_f, ta_o, ta_g = ta.chunk(4, dim=-1)
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


# The loops over time, each twice: for derivatives of any order, and written in place for speed.


def _run(a: Tensor, h0: Tensor, c0: Tensor, Wh: Tensor, sizes: Steps) -> tuple[Tensor, Tensor]:
    """h and c (r, H) of x Wx + b (r, 4H)."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (prev_h, prev_c), (a_t,), (Wh,) = state, rows, constants
        state = step(a_t + prev_h @ Wh, prev_c)  # (n, H) each
        return state, state

    _, (h, c) = over_time(body, (h0, c0), (a,), (Wh,), sizes)
    return h, c


def _run_(
    a: Tensor, h0: Tensor, c0: Tensor, Wh: Tensor, sizes: Steps, notes: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """`_run`, its gates written over a; they and tanh(c) are noted."""
    r, H = a.shape[0], h0.shape[1]
    h, c, tanh_c = (a.new_empty(r, H) for _ in range(3))
    prev_h, prev_c = h0, c0
    ifo, (i, f, o, g) = a[:, : 3 * H], a.chunk(4, dim=1)
    for a_t, ifo_t, i_t, f_t, o_t, g_t, h_t, c_t, tanh_c_t in per_step(sizes, a, ifo, i, f, o, g, h, c, tanh_c):
        n = len(a_t)
        a_t.addmm_(prev_h[:n], Wh)
        step_(ifo_t, (i_t, f_t, o_t, g_t), prev_c[:n], h_t, c_t, tanh_c_t)
        prev_h, prev_c = h_t, c_t
    notes.update(gates=a, tanh_c=tanh_c)
    return h, c


def gates_(a: Tensor) -> tuple[Tensor, ...]:
    """i, f, o, g (n, H) of the pre-activations a (n, 4H), written over them."""
    H = a.shape[1] // 4
    a[:, : 3 * H].sigmoid_()
    tanh_(a[:, 3 * H :])
    return a.chunk(4, dim=1)


def _through_time(
    dh: Tensor, dc: Tensor, prev_c: Tensor, Wh: Tensor, sizes: Steps, gates: Sequence[Tensor], tanh_c: Tensor
) -> tuple[Tensor, Tensor]:
    """da (r, 4H), and dprev_c (n_1, H) of the first step."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (dprev_h, dprev_c), (dh_t, dc_t, prev_c_t, *gates_t, tanh_c_t), (Wh,) = state, rows, constants
        da, dprev_c = step_backward(dh_t + dprev_h, dc_t + dprev_c, prev_c_t, gates_t, tanh_c_t)
        return (da @ Wh.T, dprev_c), (da,)

    zeros = (torch.zeros_like(first(prev_c, sizes)), torch.zeros_like(first(prev_c, sizes)))
    (_, dprev_c), (da,) = over_time(body, zeros, (dh, dc, prev_c, *gates, tanh_c), (Wh,), sizes, reverse=True)
    return da, dprev_c


def _through_time_(
    dh: Tensor, dc: Tensor, prev_c: Tensor, Wh: Tensor, sizes: Steps, gates: Tensor, tanh_c: Tensor
) -> tuple[Tensor, Tensor]:
    """`_through_time` in one tensor for da: LSTMStep's formulas, each factor written over the last."""
    da, dh = torch.empty_like(gates), dh.clone(memory_format=torch.contiguous_format)
    after, dprev_c = None, first(prev_c, sizes)
    steps = per_step(sizes, da, *da.chunk(4, 1), gates, *gates.chunk(4, 1), dh, dc, prev_c, tanh_c)
    for da_t, *parts, gates_t, i, f, o, g, dh_t, dc_t, prev_c_t, tanh_c_t in reversed(steps):
        if after is not None:
            dh_t[: len(after)].addmm_(after, Wh.T)
        coming = None if after is None else dprev_c
        after = da_t
        dprev_c = step_backward_(dh_t, dc_t, coming, prev_c_t, gates_t, (i, f, o, g), tanh_c_t, da_t, parts)
    return da, dprev_c
