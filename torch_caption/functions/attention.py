"""Scaled dot-product attention over the places of an image, and an LSTM that looks at the image before each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import apply, autocast, blank, check_floats, check_lengths, may_write, rows, take_notes
from .lstm import gates_of, last_state, step, step_, step_backward, step_backward_, step_jvp
from .packing import (
    Constants,
    Packing,
    Rows,
    Sizes,
    Steps,
    Uniform,
    check_packed,
    collected,
    first,
    joined,
    of_each_step,
    over_time,
    per_step,
    previous,
    read,
    resized,
    side_by_side,
    steps_of,
)


class DotProductAttention(Function):
    r"""Scaled dot-product attention: a mean of the places of an image, weighted by their likeness to a state.

    A holds L places of H numbers each. A state asks for a place by the dot product with it; over sqrt(H), so that the
    scores of independent numbers of variance 1 have variance 1 for every H:

        s       = prev_h A / sqrt(H)           (N, 1, H)(N, H, L) -> (N, L)
        weights = softmax(s)                   (N, L), e^s / sum_l e^s
        attn    = weights A^T                  (N, 1, L)(N, L, H) -> (N, H)

    Backward. The weights reach the loss by themselves and through attn:

        dw      = dweights + dattn A           (N, L)

    Each weight hangs on every score, dweights_k / ds_l = weights_k ([k = l] - weights_l), so that

        ds      = weights * (dw - sum_l weights * dw)      (N, L)

    and A, read by both products, has the sum of two outer products:

        dprev_h = ds A^T / sqrt(H)             (N, 1, L)(N, L, H) -> (N, H)
        dA      = dattn^T weights + prev_h^T ds / sqrt(H)  (N, H, 1)(N, 1, L) -> (N, H, L)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(prev_h: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        return _attend(prev_h, A)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        _, weights = output
        ctx.save_for_backward(*inputs, weights)
        ctx.save_for_forward(*inputs, weights)

    @staticmethod
    def backward(ctx: Any, dattn: Tensor, dweights: Tensor) -> tuple:
        prev_h, A, weights = ctx.saved_tensors
        need_prev_h, need_A = ctx.needs_input_grad
        ds = _scores_backward(dattn, dweights, A, weights)
        dprev_h = _mix(ds, A) * _scale(A) if need_prev_h else None
        dA = _outer(dattn, weights) + _outer(prev_h, ds) * _scale(A) if need_A else None
        return dprev_h, dA


class DotProductAttentionWithJVP(DotProductAttention):
    r"""`DotProductAttention` with its forward mode.

    ts       = (tprev_h A + prev_h tA) / sqrt(H)
    tweights = weights * (ts - sum_l weights * ts)
    tattn    = tweights A^T + weights tA^T
    """

    @staticmethod
    def jvp(ctx: Any, tprev_h: Tensor, tA: Tensor) -> tuple[Tensor, Tensor]:
        prev_h, A, weights = ctx.saved_tensors
        return _attend_jvp(tprev_h, tA, prev_h, A, weights)


class AttentionLSTM(Function):
    r"""An LSTM over whole sequences that looks at an image before each step, packed step after step (see `packing`).

    At step t = 1..T the first n_t of the N sequences go on, n_1 >= n_2 >= ..., and r is the sum of all n_t; x (r, D), h
    and c (r, H) hold n_1 rows of step 1, then n_2 of step 2 and so on. h_0 and c_0 are the states before the first
    step; A (N, H, L) holds the places of each sequence's image, in the order of the sequences.

        attn_t, weights_t = attention of h_{t-1}[:n_t] over A[:n_t]    as in DotProductAttention, (n_t, H) and (n_t, L)
        a_t      = x_t Wx + h_{t-1}[:n_t] Wh + attn_t Wattn + b        (n_t, 4H)
        h_t, c_t = step(a_t, c_{t-1}[:n_t])                            as in LSTMStep, (n_t, H) each

    Backward, through time. h_t reaches the loss by its own output and, in the rows that go on, by the next step: as a
    state of the recurrence and as what asks the image. From t = T down to 1:

        dnext_h_t  = dh_t + [dprev_h_{t+1}; 0]     (n_t, H), the 0s for rows that end here; dh_T where t is T
        dnext_c_t  = dc_t + [dprev_c_{t+1}; 0]     (n_t, H), likewise
        da_t, dprev_c_t = LSTMStep's               (n_t, 4H), (n_t, H)
        dattn_t    = da_t Wattn^T                  (n_t, 4H)(4H, H) -> (n_t, H)
        ds_t       = DotProductAttention's, of dattn_t and dweights_t  (n_t, L)
        dprev_h_t  = da_t Wh^T + ds_t A[:n_t]^T / sqrt(H)              (n_t, H)

        dh_0 = [dprev_h_1; 0]                      dc_0 = [dprev_c_1; 0]

    The weights served all steps and all sequences, and A all steps of its own sequence n, T_n of them:

        dx     = da Wx^T                           (r, 4H)(4H, D) -> (r, D)
        dWx    = x^T da                            (D, r)(r, 4H) -> (D, 4H)
        dWh    = [h_0[:n_1] .. h_{T-1}[:n_T]]^T da (H, r)(r, 4H) -> (H, 4H)
        dWattn = attn^T da                         (H, r)(r, 4H) -> (H, 4H)
        db     = sum_r da                          (4H,)
        dA[n]  = dattn[n]^T weights[n] + prev_h[n]^T ds[n] / sqrt(H)   (H, T_n)(T_n, L) -> (H, L)

    Index. x may instead be a table (R, D) of which row index[k] is the input at place k, as in RNN.

    For a first derivative the gates and attn are noted in forward; for others they are computed again, as in LSTMStep.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        h0: Tensor,
        A: Tensor,
        Wx: Tensor,
        Wh: Tensor,
        Wattn: Tensor,
        b: Tensor,
        c0: Tensor,
        index: Tensor | None,
        sizes: Sizes,
        notes: dict[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        a = read(torch.addmm(b, x, Wx), index)  # (r, 4H)
        each = of_each_step(sizes, h0)
        if notes is None:
            return _run(a, h0, c0, A, Wh, Wattn, each)
        return _run_(a, h0, c0, A, Wh, Wattn, each, notes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.sizes, ctx.notes = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor, dc: Tensor, dweights: Tensor) -> tuple:
        x, h0, A, Wx, Wh, Wattn, b, c0, index, h, c, weights = ctx.saved_tensors
        need_x, need_h0, need_A, need_Wx, need_Wh, need_Wattn, need_b, need_c0, *_ = ctx.needs_input_grad
        N, sizes = h0.shape[0], of_each_step(ctx.sizes, h0)
        prev_h, prev_c = previous(h0, h, sizes), previous(c0, c, sizes)  # (r, H)
        fast = ctx.notes is not None and may_write(dh, dc, dweights)
        through_time = dh, dc, dweights, prev_c, A, Wh, Wattn, sizes, weights
        if fast:
            attn, gates, tanh_c = (ctx.notes[name] for name in ("attn", "gates", "tanh_c"))
            da, dattn, ds, dprev_h, dprev_c = _through_time_(*through_time, gates, tanh_c)
        else:
            attn = _mix_all(weights, A, sizes)
            gates = gates_of(read(x @ Wx + b, index) + prev_h @ Wh + attn @ Wattn)
            da, dattn, ds, dprev_h, dprev_c = _through_time(*through_time, gates, torch.tanh(c))
        dh0 = resized(dprev_h, N) if need_h0 else None
        dc0 = resized(dprev_c, N) if need_c0 else None
        dA = _outer_all(((dattn, weights), (prev_h * _scale(A), ds)), sizes, N) if need_A else None
        dWh = prev_h.T @ da if need_Wh else None
        dWattn = attn.T @ da if need_Wattn else None
        db = da.sum(0) if need_b else None
        da = collected(da, index, x.shape[0]) if need_x or need_Wx else da  # (R, 4H)
        dx = da @ Wx.T if need_x else None
        dWx = x.T @ da if need_Wx else None
        return dx, dh0, dA, dWx, dWh, dWattn, db, dc0, None, None, None


class AttentionLSTMWithJVP(AttentionLSTM):
    r"""`AttentionLSTM` with its forward mode.

    tattn_t, tweights_t = DotProductAttention's, of th_{t-1}[:n_t] and tA[:n_t]
    ta_t = tx_t Wx + x_t tWx + th_{t-1}[:n_t] Wh + h_{t-1}[:n_t] tWh + tattn_t Wattn + attn_t tWattn + tb
    th_t, tc_t = `step_jvp` of ta_t and tc_{t-1}[:n_t]
    """

    @staticmethod
    def jvp(
        ctx: Any,
        tx: Tensor,
        th0: Tensor,
        tA: Tensor,
        tWx: Tensor,
        tWh: Tensor,
        tWattn: Tensor,
        tb: Tensor,
        tc0: Tensor,
        *_: None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, h0, A, Wx, Wh, Wattn, b, c0, index, h, c, weights = ctx.saved_tensors
        sizes = of_each_step(ctx.sizes, h0)
        prev_h, prev_c, attn = previous(h0, h, sizes), previous(c0, c, sizes), _mix_all(weights, A, sizes)
        direct = read(tx @ Wx + x @ tWx + tb, index) + prev_h @ tWh + attn @ tWattn  # (r, 4H)
        gates = gates_of(read(x @ Wx + b, index) + prev_h @ Wh + attn @ Wattn)

        def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
            (tprev_h, tprev_c), (A, tA, Wh, Wattn) = state, constants
            direct_t, prev_h_t, prev_c_t, weights_t, *gates_t, tanh_c_t = rows
            n = prev_h_t.shape[0]
            tattn, tweights = _attend_jvp(tprev_h, resized(tA, n), prev_h_t, resized(A, n), weights_t)
            ta = direct_t + tprev_h @ Wh + tattn @ Wattn
            state = step_jvp(ta, tprev_c, prev_c_t, gates_t, tanh_c_t)
            return state, (*state, tweights)

        sequences = direct, prev_h, prev_c, weights, *gates, torch.tanh(c)
        th, tc, tweights = over_time(body, (th0, tc0), sequences, (A, tA, Wh, Wattn), sizes)[1]
        return th, tc, tweights


def dot_product_attention(prev_h: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention of a state over the places of an image (Luong et al. 2015, Vaswani et al. 2017).

    Args:
        prev_h: (N, H) floating-point, what asks.
        A: (N, H, L) places, or (N, H, a, a) places in rows and columns; what is asked and what answers.

    Returns:
        attn (N, H), the mean of the places by their weights, and the weights (N, L) or (N, a, a), which are positive
        and sum to 1; both of the dtype of prev_h, the autocast dtype under autocast.

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit, or there is no place.
    """
    prev_h, A = autocast(prev_h, A)
    check_floats("dot_product_attention", {}, prev_h=(prev_h, "N H"), A=(A, _places(A)))
    attn, weights = apply(
        DotProductAttention, DotProductAttentionWithJVP, prev_h, _in_a_row("dot_product_attention", A)
    )
    return attn, weights.reshape(A.shape[0], *A.shape[2:])


def attention_lstm_step(
    x: Tensor, prev_h: Tensor, prev_c: Tensor, A: Tensor, Wx: Tensor, Wh: Tensor, Wattn: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of `attention_lstm`: where prev_h looks in A, then `lstm_step` with attn Wattn added to its gates.

    Args:
        x: (N, D) floating-point.
        prev_h: (N, H).
        prev_c: (N, H).
        A: (N, H, L) or (N, H, a, a), the places of each row's image.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        Wattn: (H, 4H).
        b: (4H,).

    Returns:
        next_h (N, H) and next_c (N, H), dtype of x; the autocast dtype under autocast.

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit, or there is no place.
    """
    x, prev_h, prev_c, A, Wx, Wh, Wattn, b = autocast(x, prev_h, prev_c, A, Wx, Wh, Wattn, b)
    states = {"prev_h": (prev_h, "N H"), "prev_c": (prev_c, "N H")}
    check_floats("attention_lstm_step", {}, x=(x, "N D"), **states, **_layer(A, Wx, Wh, Wattn, b))
    A = _in_a_row("attention_lstm_step", A)
    next_h, next_c, _ = _apply(x, prev_h, A, Wx, Wh, Wattn, b, prev_c, None, 1)
    return next_h, next_c


def attention_lstm(
    x: Tensor,
    A: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    Wattn: Tensor,
    b: Tensor,
    lengths: Tensor | None = None,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    return_state: bool = False,
    return_weights: bool = False,
) -> Any:
    """An LSTM over a sequence that looks at an image before each step (as in Xu et al. 2015, with dot products).

    Args:
        x: (N, T, D) floating-point.
        A: (N, H, L) or (N, H, a, a), the places of each sequence's image.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        Wattn: (H, 4H), of what was looked at.
        b: (4H,).
        lengths: (N,) integers, 0 <= lengths <= T: how many steps each row has; None for T. What is past a row's end is
            neither read nor computed. Under torch.compile, export, vmap, CUDA graph capture and on the meta device
            lengths cannot be read: their range is then not checked, and all T steps are computed, to the same effect.
        h0, c0: (N, H), the states before the first step; None for the mean of A over its places.
        return_state: return the last state too.
        return_weights: return where each step looked too.

    Returns:
        h (N, T, H), dtype of x (the autocast dtype under autocast); zero past a row's end. With `return_state` or
        `return_weights` a tuple: h, then (last_h, last_c), (N, H) each, the state after the last step of each row, h0
        and c0 where it has none; then the weights (N, T, L) or (N, T, a, a), zero past a row's end.

    Raises:
        IndexError: a length is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape does not fit, or there is no place.
    """
    x, A, Wx, Wh, Wattn, b = autocast(x, A, Wx, Wh, Wattn, b)
    sizes: dict[str, int] = {}
    check_floats("attention_lstm", sizes, x=(x, "N T D"), **_layer(A, Wx, Wh, Wattn, b))
    places = _in_a_row("attention_lstm", A)
    h0, c0 = _first_states("attention_lstm", places, h0, c0, sizes)
    check_lengths("attention_lstm", lengths, sizes, like=x)
    packed = Packing.of(sizes["N"], sizes["T"], lengths)
    x = packed.pack(blank(x, packed.unread))
    if packed.order is not None:
        places = packed.sort(places.flatten(1)).reshape(places.shape)
    steps = _apply(x, packed.sort(h0), places, Wx, Wh, Wattn, b, packed.sort(c0), None, packed.sizes)
    h, c, weights = (blank(packed.unpack(part), packed.unread) for part in steps)
    state = (last_state(h0, h, lengths), last_state(c0, c, lengths)) if return_state else None
    looked = weights.reshape(*weights.shape[:2], *A.shape[2:]) if return_weights else None
    results = [part for part in (h, state, looked) if part is not None]
    return tuple(results) if len(results) > 1 else h


def packed_attention_lstm(
    x: Tensor,
    A: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    Wattn: Tensor,
    b: Tensor,
    sizes: int | Sequence[int],
    index: Tensor | None = None,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
) -> Tensor:
    """`attention_lstm` over sequences that are packed, step after step, longest first (see `packing`).

    Args:
        x: (r, D) floating-point, or with `index` a table (R, D) of inputs.
        A: (N, H, L) or (N, H, a, a), the places of each sequence's image, in the order of the sequences.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        Wattn: (H, 4H).
        b: (4H,).
        sizes: how many sequences have a step 1, a step 2 and so on: at most N, never more than before, r in all. A
            number T instead: all have T steps.
        index: (r,) integers, 0 <= index < R: which row of x is read at each place. The range is checked wherever values
            can be read, as in `attention_lstm`.
        h0, c0: (N, H), the states before the first step; None for the mean of A over its places.

    Returns:
        h (r, H), dtype of x (the autocast dtype under autocast).

    Raises:
        IndexError: an index is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape or `sizes` does not fit, or there is no place.
    """
    x, A, Wx, Wh, Wattn, b = autocast(x, A, Wx, Wh, Wattn, b)
    letters: dict[str, int] = {}
    check_floats("packed_attention_lstm", letters, x=(x, "R D"), **_layer(A, Wx, Wh, Wattn, b))
    A = _in_a_row("packed_attention_lstm", A)
    h0, c0 = _first_states("packed_attention_lstm", A, h0, c0, letters)
    sizes, index = check_packed("packed_attention_lstm", sizes, index, letters, like=x)
    return _apply(x, h0, A, Wx, Wh, Wattn, b, c0, index, sizes)[0]


def _apply(
    x: Tensor,
    h0: Tensor,
    A: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    Wattn: Tensor,
    b: Tensor,
    c0: Tensor,
    index: Tensor | None,
    sizes: Sizes,
) -> tuple[Tensor, Tensor, Tensor]:
    notes = take_notes(x, h0, A, Wx, Wh, Wattn, b, c0, index)
    return apply(AttentionLSTM, AttentionLSTMWithJVP, x, h0, A, Wx, Wh, Wattn, b, c0, index, sizes, notes)


def _layer(A: Tensor, Wx: Tensor, Wh: Tensor, Wattn: Tensor, b: Tensor) -> dict[str, tuple[Tensor, str]]:
    """The layer's arguments with the letters of their shapes."""
    return {"A": (A, _places(A)), "Wx": (Wx, "D 4H"), "Wh": (Wh, "H 4H"), "Wattn": (Wattn, "H 4H"), "b": (b, "4H")}


def _places(A: Any) -> str:
    """The letters of A's shape: its places in a row, or in rows and columns."""
    return "N H a b" if isinstance(A, Tensor) and A.dim() == 4 else "N H L"


def _in_a_row(function: str, A: Tensor) -> Tensor:
    """(N, H, a, b) as (N, H, L).

    Raises:
        ValueError: there is no place to look at.
    """
    if 0 in A.shape[2:]:
        raise ValueError(f"{function}: A must have at least one place, but is {tuple(A.shape)}")
    return A.flatten(2)


def _first_states(
    function: str, A: Tensor, h0: Tensor | None, c0: Tensor | None, sizes: dict[str, int]
) -> tuple[Tensor, Tensor]:
    """h0 and c0 (N, H), checked; the mean of A (N, H, L) for one that is None: what asks for nothing sees all alike."""
    if h0 is None or c0 is None:
        mean, _ = apply(DotProductAttention, DotProductAttentionWithJVP, torch.zeros_like(A[:, :, 0]), A)
        h0, c0 = mean if h0 is None else h0, mean.clone() if c0 is None else c0  # Dynamo takes no tensor twice
    h0, c0 = autocast(h0, c0)
    check_floats(function, sizes, A=(A, "N H L"), h0=(h0, "N H"), c0=(c0, "N H"))
    return h0, c0


def _scale(A: Tensor) -> float:
    """1 / sqrt(H)."""
    return A.shape[1] ** -0.5


def _attend(prev_h: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """attn (n, H) and weights (n, L)."""
    # A tensor: torch.onnx rounds a number to float32, whatever it is multiplied by.
    H = torch.full((), A.shape[1], dtype=torch.promote_types(A.dtype, torch.float32), device=A.device)
    weights = torch.softmax(_ask(prev_h, A) * H.rsqrt(), dim=1)
    return _mix(weights, A), weights


def _ask(h: Tensor, A: Tensor) -> Tensor:
    """Dot products (n, L) of h (n, H) with each place of A (n, H, L)."""
    return torch.bmm(h.unsqueeze(1), A).squeeze(1)


def _mix(weights: Tensor, A: Tensor) -> Tensor:
    """Sums (n, H) of the places of A (n, H, L) by weights (n, L)."""
    return torch.bmm(weights.unsqueeze(1), A.transpose(1, 2)).squeeze(1)  # scan does not take A.mT beside A


def _outer(h: Tensor, weights: Tensor) -> Tensor:
    """Outer products (n, H, L) of h (n, H) and weights (n, L)."""
    return h.unsqueeze(2) * weights.unsqueeze(1)


def _scores_backward(dattn: Tensor, dweights: Tensor, A: Tensor, weights: Tensor) -> Tensor:
    """ds (n, L): the formulas of DotProductAttention."""
    return _through_softmax(dweights + _ask(dattn, A), weights)


def _through_softmax(dw: Tensor, weights: Tensor) -> Tensor:
    """The derivative of softmax, which is its own transpose: weights * (dw - sum_l weights * dw)."""
    return weights * (dw - (weights * dw).sum(1, keepdim=True))


def _attend_jvp(tprev_h: Tensor, tA: Tensor, prev_h: Tensor, A: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Tangents of attn (n, H) and of the weights (n, L)."""
    tweights = _through_softmax((_ask(tprev_h, A) + _ask(prev_h, tA)) * _scale(A), weights)
    return _mix(tweights, A) + _mix(weights, tA), tweights


def _mix_all(weights: Tensor, A: Tensor, sizes: Steps) -> Tensor:
    """attn (r, H) of all steps."""
    if isinstance(sizes, Uniform):
        return rows((side_by_side(weights, sizes, sizes.N) @ A.mT).transpose(0, 1))
    steps = [_mix(weights_t, A.narrow(0, 0, weights_t.shape[0])) for weights_t in steps_of(weights, sizes)]
    return joined(steps, like=A[:, :, 0])


def _outer_all(pairs: Sequence[tuple[Tensor, Tensor]], sizes: Steps, N: int) -> Tensor:
    """The sum (N, H, L) over all steps and pairs of the outer products of (r, H) and (r, L)."""
    left = torch.cat([side_by_side(h, sizes, N) for h, _ in pairs], dim=1)  # (N, 2 T, H)
    right = torch.cat([side_by_side(weights, sizes, N) for _, weights in pairs], dim=1)  # (N, 2 T, L)
    return (right.mT @ left).mT  # in memory place by place, as the captioner holds A


# The loops over time, each twice: for derivatives of any order, and written in place for speed.


def _run(
    a: Tensor, h0: Tensor, c0: Tensor, A: Tensor, Wh: Tensor, Wattn: Tensor, sizes: Steps
) -> tuple[Tensor, Tensor, Tensor]:
    """h and c (r, H) and weights (r, L) of x Wx + b (r, 4H)."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (prev_h, prev_c), (a_t,), (A, Wh, Wattn) = state, rows, constants
        attn, weights = _attend(prev_h, resized(A, prev_h.shape[0]))
        state = step(a_t + prev_h @ Wh + attn @ Wattn, prev_c)  # (n, H) each
        return state, (*state, weights)

    _, (h, c, weights) = over_time(body, (h0, c0), (a,), (A, Wh, Wattn), sizes)
    return h, c, weights


def _run_(
    a: Tensor,
    h0: Tensor,
    c0: Tensor,
    A: Tensor,
    Wh: Tensor,
    Wattn: Tensor,
    sizes: Steps,
    notes: dict[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """`_run`, its gates written over a; they, attn and tanh(c) are noted."""
    (r, _), (_, H, L) = a.shape, A.shape
    h, c, tanh_c, attn = (a.new_empty(r, H) for _ in range(4))
    weights = a.new_empty(r, L)
    prev_h, prev_c = h0, c0
    steps = per_step(sizes, a, a[:, : 3 * H], *a.chunk(4, dim=1), weights, attn, h, c, tanh_c)
    for a_t, ifo_t, *gates_t, weights_t, attn_t, h_t, c_t, tanh_c_t in steps:
        n = len(a_t)
        attend_(prev_h[:n], A[:n], weights_t, attn_t)
        a_t.addmm_(prev_h[:n], Wh).addmm_(attn_t, Wattn)
        step_(ifo_t, gates_t, prev_c[:n], h_t, c_t, tanh_c_t)
        prev_h, prev_c = h_t, c_t
    notes.update(gates=a, tanh_c=tanh_c, attn=attn)
    return h, c, weights


def attend_(prev_h: Tensor, A: Tensor, weights: Tensor, attn: Tensor) -> None:
    """`_attend` of prev_h (n, H) and A (n, H, L), written to weights (n, L) and attn (n, H)."""
    torch.bmm(prev_h.unsqueeze(1), A, out=weights.unsqueeze(1)).mul_(_scale(A))
    weights.copy_(torch.softmax(weights, dim=1))
    torch.bmm(weights.unsqueeze(1), A.mT, out=attn.unsqueeze(1))


def _through_time(
    dh: Tensor,
    dc: Tensor,
    dweights: Tensor,
    prev_c: Tensor,
    A: Tensor,
    Wh: Tensor,
    Wattn: Tensor,
    sizes: Steps,
    weights: Tensor,
    gates: Sequence[Tensor],
    tanh_c: Tensor,
) -> tuple[Tensor, ...]:
    """da (r, 4H), dattn (r, H), ds (r, L), and dprev_h and dprev_c (n_1, H) of the first step."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (dprev_h, dprev_c), (A, Wh, Wattn) = state, constants
        dh_t, dc_t, dweights_t, prev_c_t, weights_t, *gates_t, tanh_c_t = rows
        A_t = resized(A, dh_t.shape[0])
        da, dprev_c = step_backward(dh_t + dprev_h, dc_t + dprev_c, prev_c_t, gates_t, tanh_c_t)
        dattn = da @ Wattn.T
        ds = _scores_backward(dattn, dweights_t, A_t, weights_t)
        dprev_h = da @ Wh.T + _mix(ds, A_t) * _scale(A)
        return (dprev_h, dprev_c), (da, dattn, ds)

    zeros = (torch.zeros_like(first(prev_c, sizes)), torch.zeros_like(first(prev_c, sizes)))
    sequences = dh, dc, dweights, prev_c, weights, *gates, tanh_c
    (dprev_h, dprev_c), (da, dattn, ds) = over_time(body, zeros, sequences, (A, Wh, Wattn), sizes, reverse=True)
    return da, dattn, ds, dprev_h, dprev_c


def _through_time_(
    dh: Tensor,
    dc: Tensor,
    dweights: Tensor,
    prev_c: Tensor,
    A: Tensor,
    Wh: Tensor,
    Wattn: Tensor,
    sizes: Steps,
    weights: Tensor,
    gates: Tensor,
    tanh_c: Tensor,
) -> tuple[Tensor, ...]:
    """`_through_time` in one tensor each for da, dattn and ds."""
    da, dattn = torch.empty_like(gates), torch.empty_like(tanh_c)
    dh, ds = (x.clone(memory_format=torch.contiguous_format) for x in (dh, dweights))
    dprev_h, dprev_c = torch.zeros_like(first(prev_c, sizes)), None
    steps = per_step(sizes, da, *da.chunk(4, 1), gates, *gates.chunk(4, 1), dh, dc, prev_c, tanh_c, dattn, ds, weights)
    befores = [dprev_h, *steps_of(dh, sizes)]  # where what each step hands back is added
    for before, (da_t, *parts) in reversed([*zip(befores, steps, strict=False)]):
        *da_parts, gates_t, i, f, o, g, dh_t, dc_t, prev_c_t, tanh_c_t, dattn_t, ds_t, weights_t = parts
        n = len(da_t)
        dprev_c = step_backward_(dh_t, dc_t, dprev_c, prev_c_t, gates_t, (i, f, o, g), tanh_c_t, da_t, da_parts)
        back = before[:n]
        torch.mm(da_t, Wattn.T, out=dattn_t)
        back.addmm_(da_t, Wh.T)
        ds_t.unsqueeze(1).baddbmm_(dattn_t.unsqueeze(1), A[:n])
        ds_t.sub_((ds_t * weights_t).sum(1, keepdim=True)).mul_(weights_t)
        back.unsqueeze(1).baddbmm_(ds_t.unsqueeze(1), A[:n].mT, alpha=_scale(A))
    return da, dattn, ds, dprev_h, first(prev_c, sizes) if dprev_c is None else dprev_c
