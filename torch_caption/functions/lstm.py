"""Long short-term memory: one step, and a sequence of them. Gates stand in the order i, f, o, g along 4H."""

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
        return _step(x @ Wx + prev_h @ Wh + b, prev_c)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        _, next_c = output
        ctx.save_for_backward(*inputs, next_c)
        ctx.save_for_forward(*inputs, next_c)

    @staticmethod
    def backward(ctx: Any, dnext_h: Tensor, dnext_c: Tensor) -> tuple:
        x, prev_h, prev_c, Wx, Wh, b, next_c = ctx.saved_tensors
        need_x, need_prev_h, need_prev_c, need_Wx, need_Wh, need_b = ctx.needs_input_grad
        gates = _gates(x @ Wx + prev_h @ Wh + b)
        da, dprev_c = _step_backward(dnext_h, dnext_c, prev_c, gates, torch.tanh(next_c))
        dx = da @ Wx.T if need_x else None
        dprev_h = da @ Wh.T if need_prev_h else None
        dWx = x.T @ da if need_Wx else None
        dWh = prev_h.T @ da if need_Wh else None
        db = da.sum(0) if need_b else None
        return dx, dprev_h, dprev_c if need_prev_c else None, dWx, dWh, db


class LSTMStepWithJVP(LSTMStep):
    r"""`LSTMStep` with its forward mode: ta = tx Wx + x tWx + tprev_h Wh + prev_h tWh + tb, then `_step_jvp`."""

    @staticmethod
    def jvp(
        ctx: Any, tx: Tensor, tprev_h: Tensor, tprev_c: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, prev_h, prev_c, Wx, Wh, b, next_c = ctx.saved_tensors
        ta = tx @ Wx + x @ tWx + tprev_h @ Wh + prev_h @ tWh + tb
        return _step_jvp(ta, tprev_c, prev_c, _gates(x @ Wx + prev_h @ Wh + b), torch.tanh(next_c))


class LSTM(Function):
    r"""An LSTM over a whole sequence; h_0 and c_0 are the states before the first step.

        a_t = x_t Wx + h_{t-1} Wh + b          (N, 4H)     t = 1..T
        h_t, c_t = step(a_t, c_{t-1})          as in LSTMStep

    Backward, through time. h_t and c_t reach the loss by their own outputs and, unless they are the last, by the
    step after them. From t = T down to 1, with LSTMStep's formulas:

        dnext_h = dh_t + da_{t+1} Wh^T         (N, H), the second term from t = T-1 on
        dnext_c = dc_t + dc'_{t+1} * f_{t+1}   (N, H), likewise; dc' is that step's whole dc
        da_t    = LSTMStep's [da_i da_f da_o da_g] (N, 4H)

        dh_0 = da_1 Wh^T                       dc_0 = dc'_1 * f_1

    The weights served all steps, so their gradients sum over batch and time, one product over r = N T rows:

        dx  = da Wx^T                          (N, T, 4H)(4H, D) -> (N, T, D)
        dWx = x^T da                           (D, r)(r, 4H) -> (D, 4H)
        dWh = [h_0 .. h_{T-1}]^T da            (H, r)(r, 4H) -> (H, 4H)
        db  = sum_r da                         (4H,)

    Lengths. Row n ends after lengths[n] steps: its h and c there are 0, whatever x holds, and so is all that comes
    back through them. With dh and dc set to 0 past the end, da is 0 there too, and the formulas above hold unchanged.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, c0: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        h, c, steps_h, steps_c = h0, c0, [], []
        for xWx in (x @ Wx + b).unbind(1):
            h, c = _step(xWx + h @ Wh, c)  # (N, H) each
            steps_h.append(h)
            steps_c.append(c)
        ended = past_end(lengths, x.shape[1])
        return blank(stack_time(steps_h, like=h0), ended), blank(stack_time(steps_c, like=c0), ended)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.save_for_forward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor, dc: Tensor) -> tuple:
        x, h0, Wx, Wh, b, c0, lengths, h, c = ctx.saved_tensors
        need_x, need_h0, need_Wx, need_Wh, need_b, need_c0, _ = ctx.needs_input_grad
        ended = past_end(lengths, x.shape[1])
        x, dh, dc = blank(x, ended), blank(dh, ended), blank(dc, ended)
        per_step = _per_step(dh, dc, previous(c0, c), *_gates(x @ Wx + previous(h0, h) @ Wh + b), torch.tanh(c))
        steps: list[Tensor] = []
        dprev_c = torch.zeros_like(c0)  # nothing comes from beyond the last step
        for dh_t, dc_t, prev_c, *gates, tanh_c in reversed(per_step):
            dnext_h = dh_t + steps[-1] @ Wh.T if steps else dh_t  # (N, H)
            da_t, dprev_c = _step_backward(dnext_h, dc_t + dprev_c, prev_c, gates, tanh_c)
            steps.append(da_t)
        da = stack_time(steps[::-1], like=torch.cat([h0] * 4, dim=1))  # (N, T, 4H)
        dx = da @ Wx.T if need_x else None
        dh0 = (first_step(da) @ Wh.T).sum(1) if need_h0 else None
        dWx = rows(x).T @ rows(da) if need_Wx else None
        dWh = rows(previous(h0, h)).T @ rows(da) if need_Wh else None
        db = rows(da).sum(0) if need_b else None
        return dx, dh0, dWx, dWh, db, dprev_c if need_c0 else None, None


class LSTMWithJVP(LSTM):
    r"""`LSTM` with its forward mode.

    ta_t = tx_t Wx + x_t tWx + th_{t-1} Wh + h_{t-1} tWh + tb
    th_t, tc_t = `_step_jvp` of ta_t and tc_{t-1}
    """

    @staticmethod
    def jvp(
        ctx: Any, tx: Tensor, th0: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor, tc0: Tensor, _: None
    ) -> tuple[Tensor, Tensor]:
        x, h0, Wx, Wh, b, c0, lengths, h, c = ctx.saved_tensors
        ended = past_end(lengths, x.shape[1])
        x, prev_h = blank(x, ended), previous(h0, h)
        direct = blank(tx, ended) @ Wx + x @ tWx + prev_h @ tWh + tb  # (N, T, 4H)
        per_step = _per_step(direct, previous(c0, c), *_gates(x @ Wx + prev_h @ Wh + b), torch.tanh(c))
        th, tc, steps_h, steps_c = th0, tc0, [], []
        for direct_t, prev_c, *gates, tanh_c in per_step:
            th, tc = _step_jvp(direct_t + th @ Wh, tc, prev_c, gates, tanh_c)
            steps_h.append(th)
            steps_c.append(tc)
        return blank(stack_time(steps_h, like=th0), ended), blank(stack_time(steps_c, like=tc0), ended)


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
        lengths: (N,) integers, 0 <= lengths <= T: how many steps each row has; None for T. The range is checked
            wherever values can be read, which under torch.compile, export, vmap, CUDA graph capture and on the meta
            device they cannot.
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
    h, c = apply(LSTM, LSTMWithJVP, x, h0, Wx, Wh, b, c0, lengths)
    return (h, (_last(h0, h, lengths), _last(c0, c, lengths))) if return_state else h


def _gates(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """i, f, o, g (..., H) of the pre-activations (..., 4H)."""
    a_i, a_f, a_o, a_g = a.chunk(4, dim=-1)
    return torch.sigmoid(a_i), torch.sigmoid(a_f), torch.sigmoid(a_o), torch.tanh(a_g)


def _step(a: Tensor, prev_c: Tensor) -> tuple[Tensor, Tensor]:
    """next_h and next_c (N, H) of the pre-activations (N, 4H)."""
    i, f, o, g = _gates(a)
    next_c = f * prev_c + i * g
    return o * torch.tanh(next_c), next_c


def _step_backward(
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


def _step_jvp(ta: Tensor, tprev_c: Tensor, prev_c: Tensor, gates: Any, tanh_c: Tensor) -> tuple[Tensor, Tensor]:
    """Tangents of next_h and next_c (N, H), from those of the pre-activations (N, 4H) and of prev_c."""
    i, f, o, g = gates
    ta_i, ta_f, ta_o, ta_g = ta.chunk(4, dim=-1)
    ti, tf, to = ta_i * i * (1 - i), ta_f * f * (1 - f), ta_o * o * (1 - o)
    tg = ta_g * (1 - g * g)
    tnext_c = tf * prev_c + f * tprev_c + ti * g + i * tg
    return to * tanh_c + o * (1 - tanh_c * tanh_c) * tnext_c, tnext_c


def _per_step(*sequences: Tensor) -> list[tuple[Tensor, ...]]:
    """Several (N, T, ...) sequences as T tuples of (N, ...)."""
    return list(zip(*(s.unbind(1) for s in sequences), strict=True))


def _last(first: Tensor, h: Tensor, lengths: Tensor | None) -> Tensor:
    """The state (N, H) after each row's last step; `first` where a row has none."""
    states = torch.cat([first.unsqueeze(1), h], dim=1)  # (N, 1 + T, H)
    if lengths is None:
        return states[:, -1]
    last = lengths.long().reshape(-1, 1, 1).expand(-1, 1, states.shape[2])
    return states.gather(1, last).squeeze(1)
