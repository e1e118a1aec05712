"""Scaled dot-product attention over the spatial positions of an image, and an LSTM that attends at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import apply, autocast, check_floats, check_lengths, flatten_rows, may_overwrite, new_cache, zero_padding
from ._inplace.attention import run_, through_time_
from .lstm import gates_of, last_state, slopes_of, step, step_backward, step_jvp
from .packing import (
    BatchSizes,
    Constants,
    Packing,
    Rows,
    Steps,
    Uniform,
    cat_steps,
    check_packed,
    first_step,
    gather_rows,
    over_time,
    pad_packed,
    resize_rows,
    scatter_sum,
    shifted_states,
    split_steps,
    steps_of,
)


class DotProductAttention(Function):
    r"""Scaled dot-product attention: a weighted mean of the features at the spatial positions of an image.

    A holds the features, H each, of L positions: they are both keys and values, and the state is the query. The dot
    products are divided by sqrt(H), so that those of independent numbers of variance 1 have variance 1 for every H:

        s       = prev_h A / sqrt(H)           (N, 1, H)(N, H, L) -> (N, L)
        weights = softmax(s)                   (N, L), e^s / sum_l e^s
        attn    = weights A^T                  (N, 1, L)(N, L, H) -> (N, H)

    Backward. The weights reach the loss directly and through attn:

        dw      = dweights + dattn A           (N, L)

    Each weight depends on every s_l, dweights_k / ds_l = weights_k ([k = l] - weights_l), so that

        ds      = weights * (dw - sum_l weights * dw)      (N, L)

    and A, a factor of both products, has the sum of two outer products:

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
        ds = _attention_backward(dattn, dweights, A, weights)
        dprev_h = _weighted_sum(ds, A) * _scale(A) if need_prev_h else None
        dA = _outer(dattn, weights) + _outer(prev_h, ds) * _scale(A) if need_A else None
        return dprev_h, dA


class DotProductAttentionWithJVP(DotProductAttention):
    r"""`DotProductAttention` with its forward mode.

    The tangent of each line:

        ts       = (tprev_h A + prev_h tA) / sqrt(H)
        tweights = weights * (ts - sum_l weights * ts)
        tattn    = tweights A^T + weights tA^T
    """

    @staticmethod
    def jvp(ctx: Any, tprev_h: Tensor, tA: Tensor) -> tuple[Tensor, Tensor]:
        prev_h, A, weights = ctx.saved_tensors
        return _attend_jvp(tprev_h, tA, prev_h, A, weights)


class AttentionLSTM(Function):
    r"""An LSTM over whole sequences that attends to an image at every step, packed step after step (see `packing`).

    At step t = 1..T the first n_t of the N sequences are present, n_1 >= n_2 >= ..., and r is the sum of all n_t; x
    (r, D), h and c (r, H) hold n_1 rows of step 1, then n_2 of step 2 and so on. h_0 and c_0 are the states before the
    first step; A (N, H, L) holds the positions of each sequence's image, in the order of the sequences.

        attn_t, weights_t = attention of h_{t-1}[:n_t] over A[:n_t]    as in DotProductAttention, (n_t, H) and (n_t, L)
        a_t      = x_t Wx + h_{t-1}[:n_t] Wh + attn_t Wattn + b        (n_t, 4H)
        h_t, c_t = step(a_t, c_{t-1}[:n_t])                            as in LSTMStep, (n_t, H) each

    Backward, through time. h_t reaches the loss through its own output and, in the rows present at t + 1, through that
    step: as its state and as its query. From t = T down to 1:

        dnext_h_t  = dh_t + [dprev_h_{t+1}; 0]     (n_t, H), the 0s for rows that end here; dh_T where t is T
        dnext_c_t  = dc_t + [dprev_c_{t+1}; 0]     (n_t, H), likewise
        da_t, dprev_c_t = LSTMStep's               (n_t, 4H), (n_t, H)
        dattn_t    = da_t Wattn^T                  (n_t, 4H)(4H, H) -> (n_t, H)
        ds_t       = DotProductAttention's, of dattn_t and dweights_t  (n_t, L)
        dprev_h_t  = da_t Wh^T + ds_t A[:n_t]^T / sqrt(H)              (n_t, H)

        dh_0 = [dprev_h_1; 0]                      dc_0 = [dprev_c_1; 0]

    All steps and sequences share the weights, and all T_n steps of sequence n its A:

        dx     = da Wx^T                           (r, 4H)(4H, D) -> (r, D)
        dWx    = x^T da                            (D, r)(r, 4H) -> (D, 4H)
        dWh    = [h_0[:n_1] .. h_{T-1}[:n_T]]^T da (H, r)(r, 4H) -> (H, 4H)
        dWattn = attn^T da                         (H, r)(r, 4H) -> (H, 4H)
        db     = sum_r da                          (4H,)
        dA[n]  = dattn[n]^T weights[n] + prev_h[n]^T ds[n] / sqrt(H)   (H, T_n)(T_n, L) -> (H, L)

    Index. x may instead be a table (R, D) whose row index[k] is the input of packed row k, as in RNN.

    For a first derivative the forward caches the gates and attn; for others they are computed again, as in LSTMStep.
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
        batch_sizes: BatchSizes,
        cache: dict[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        a = gather_rows(torch.addmm(b, x, Wx), index)  # (r, 4H)
        steps = steps_of(batch_sizes, h0)
        if cache is None:
            return _run(a, h0, c0, A, Wh, Wattn, steps)
        return run_(a, h0, c0, A, Wh, Wattn, steps, cache)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.batch_sizes, ctx.cache = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor, dc: Tensor, dweights: Tensor) -> tuple:
        x, h0, A, Wx, Wh, Wattn, b, c0, index, h, c, weights = ctx.saved_tensors
        need_x, need_h0, need_A, need_Wx, need_Wh, need_Wattn, need_b, need_c0, *_ = ctx.needs_input_grad
        N, steps = h0.shape[0], steps_of(ctx.batch_sizes, h0)
        prev_h, prev_c = shifted_states(h0, h, steps), shifted_states(c0, c, steps)  # (r, H)
        fast = ctx.cache is not None and may_overwrite(dh, dc, dweights)
        if fast:
            attn, gates, tanh_c = (ctx.cache[name] for name in ("attn", "gates", "tanh_c"))
            da, dattn, ds, dprev_h, dprev_c = through_time_(
                dh, dc, dweights, prev_c, A, Wh, Wattn, steps, weights, gates, tanh_c
            )
        else:
            attn = _weighted_sums(weights, A, steps)
            gates = gates_of(gather_rows(x @ Wx + b, index) + prev_h @ Wh + attn @ Wattn)
            slopes = slopes_of(prev_c, gates, torch.tanh(c))
            da, dattn, ds, dprev_h, dprev_c = _through_time(dh, dc, dweights, A, Wh, Wattn, steps, weights, slopes)
        dh0 = resize_rows(dprev_h, N) if need_h0 else None
        dc0 = resize_rows(dprev_c, N) if need_c0 else None
        dA = _outer_sums(((dattn, weights), (prev_h * _scale(A), ds)), steps, N) if need_A else None
        dWh = prev_h.T @ da if need_Wh else None
        dWattn = attn.T @ da if need_Wattn else None
        db = da.sum(0) if need_b else None
        da = scatter_sum(da, index, x.shape[0]) if need_x or need_Wx else da  # (R, 4H)
        dx = da @ Wx.T if need_x else None
        dWx = x.T @ da if need_Wx else None
        return dx, dh0, dA, dWx, dWh, dWattn, db, dc0, None, None, None


class AttentionLSTMWithJVP(AttentionLSTM):
    r"""`AttentionLSTM` with its forward mode.

    The tangent of each line:

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
        steps = steps_of(ctx.batch_sizes, h0)
        prev_h, prev_c, attn = (
            shifted_states(h0, h, steps),
            shifted_states(c0, c, steps),
            _weighted_sums(weights, A, steps),
        )
        direct = gather_rows(tx @ Wx + x @ tWx + tb, index) + prev_h @ tWh + attn @ tWattn  # (r, 4H)
        gates = gates_of(gather_rows(x @ Wx + b, index) + prev_h @ Wh + attn @ Wattn)

        def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
            (tprev_h, tprev_c), (A, tA, Wh, Wattn) = state, constants
            direct_t, prev_h_t, prev_c_t, weights_t, *gates_t, tanh_c_t = rows
            n = prev_h_t.shape[0]
            tattn, tweights = _attend_jvp(tprev_h, resize_rows(tA, n), prev_h_t, resize_rows(A, n), weights_t)
            ta = direct_t + tprev_h @ Wh + tattn @ Wattn
            state = step_jvp(ta, tprev_c, prev_c_t, gates_t, tanh_c_t)
            return state, (*state, tweights)

        sequences = direct, prev_h, prev_c, weights, *gates, torch.tanh(c)
        th, tc, tweights = over_time(body, (th0, tc0), sequences, (A, tA, Wh, Wattn), steps)[1]
        return th, tc, tweights


def dot_product_attention(prev_h: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention of a state over the positions of an image (Luong et al. 2015, Vaswani et al. 2017).

    Args:
        prev_h: (N, H) floating-point, the query.
        A: (N, H, L), or (N, H, a, b) in rows and columns: the features at each position, both keys and values.

    Returns:
        attn (N, H), the weighted mean over the positions, and the weights (N, L) or (N, a, b), which are positive and
        sum to 1; both of the dtype of prev_h, the autocast dtype under autocast.

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit, or A has no position.
    """
    prev_h, A = autocast(prev_h, A)
    check_floats("dot_product_attention", {}, prev_h=(prev_h, "N H"), A=(A, _letters(A)))
    attn, weights = apply(
        DotProductAttention, DotProductAttentionWithJVP, prev_h, _flatten_positions("dot_product_attention", A)
    )
    return attn, weights.reshape(A.shape[0], *A.shape[2:])


def attention_lstm_step(
    x: Tensor, prev_h: Tensor, prev_c: Tensor, A: Tensor, Wx: Tensor, Wh: Tensor, Wattn: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of `attention_lstm`: attention of prev_h over A, then `lstm_step` with attn Wattn added to its gates.

    Args:
        x: (N, D) floating-point.
        prev_h: (N, H).
        prev_c: (N, H).
        A: (N, H, L) or (N, H, a, b), the positions of each row's image.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        Wattn: (H, 4H).
        b: (4H,).

    Returns:
        next_h (N, H) and next_c (N, H), dtype of x; the autocast dtype under autocast.

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit, or A has no position.
    """
    x, prev_h, prev_c, A, Wx, Wh, Wattn, b = autocast(x, prev_h, prev_c, A, Wx, Wh, Wattn, b)
    states = {"prev_h": (prev_h, "N H"), "prev_c": (prev_c, "N H")}
    check_floats("attention_lstm_step", {}, x=(x, "N D"), **states, **_layer(A, Wx, Wh, Wattn, b))
    A = _flatten_positions("attention_lstm_step", A)
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
    """An LSTM over a sequence that attends to an image at every step (as Xu et al. 2015, with dot products).

    Args:
        x: (N, T, D) floating-point.
        A: (N, H, L) or (N, H, a, b), the positions of each sequence's image.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        Wattn: (H, 4H), the weights of attn.
        b: (4H,).
        lengths: (N,) integers, 0 <= lengths <= T: how many steps each sequence has; None for T. Padding is neither read
            nor computed. Under torch.compile, export, vmap, CUDA graph capture and on the meta device lengths cannot be
            read: their range is then not checked, and all T steps are computed, with the same result.
        h0, c0: (N, H), the states before the first step; None for the mean of A over its positions.
        return_state: return the last state too.
        return_weights: return the attention weights of each step too.

    Returns:
        h (N, T, H), dtype of x (the autocast dtype under autocast); zero past the end of each sequence. With
        `return_state` or `return_weights` a tuple: h, then (last_h, last_c), (N, H) each, the state after the last step
        of each sequence, h0 and c0 where it has none; then the weights (N, T, L) or (N, T, a, b), zero past the end.

    Raises:
        IndexError: a length is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape does not fit, or A has no position.
    """
    x, A, Wx, Wh, Wattn, b = autocast(x, A, Wx, Wh, Wattn, b)
    axes: dict[str, int] = {}
    check_floats("attention_lstm", axes, x=(x, "N T D"), **_layer(A, Wx, Wh, Wattn, b))
    positions = _flatten_positions("attention_lstm", A)
    h0, c0 = _initial_states("attention_lstm", positions, h0, c0, axes)
    check_lengths("attention_lstm", lengths, axes, like=x)
    packed = Packing.of(axes["N"], axes["T"], lengths)
    x = packed.pack(zero_padding(x, packed.padding))
    if packed.sorted_indices is not None:
        positions = packed.sort(positions.flatten(1)).reshape(positions.shape)
    outputs = _apply(x, packed.sort(h0), positions, Wx, Wh, Wattn, b, packed.sort(c0), None, packed.batch_sizes)
    h, c, weights = (zero_padding(packed.unpack(part), packed.padding) for part in outputs)
    state = (last_state(h0, h, lengths), last_state(c0, c, lengths)) if return_state else None
    shaped = weights.reshape(*weights.shape[:2], *A.shape[2:]) if return_weights else None
    results = [part for part in (h, state, shaped) if part is not None]
    return tuple(results) if len(results) > 1 else h


def packed_attention_lstm(
    x: Tensor,
    A: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    Wattn: Tensor,
    b: Tensor,
    batch_sizes: int | Sequence[int],
    index: Tensor | None = None,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
) -> Tensor:
    """`attention_lstm` over sequences that are packed, step after step, longest first (see `packing`).

    Args:
        x: (r, D) floating-point, or with `index` a table (R, D) of inputs.
        A: (N, H, L) or (N, H, a, b), the positions of each sequence's image, in the order of the sequences.
        Wx: (D, 4H), gates in the order i, f, o, g.
        Wh: (H, 4H).
        Wattn: (H, 4H).
        b: (4H,).
        batch_sizes: how many sequences have a step 1, a step 2 and so on: at most N, never increasing, r in all. A
            number T instead: all have T steps.
        index: (r,) integers, 0 <= index < R: the row of x that is the input of each packed row. The range is checked
            wherever values can be read, as in `attention_lstm`.
        h0, c0: (N, H), the states before the first step; None for the mean of A over its positions.

    Returns:
        h (r, H), dtype of x (the autocast dtype under autocast).

    Raises:
        IndexError: an index is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape or `batch_sizes` does not fit, or A has no position.
    """
    x, A, Wx, Wh, Wattn, b = autocast(x, A, Wx, Wh, Wattn, b)
    axes: dict[str, int] = {}
    check_floats("packed_attention_lstm", axes, x=(x, "R D"), **_layer(A, Wx, Wh, Wattn, b))
    A = _flatten_positions("packed_attention_lstm", A)
    h0, c0 = _initial_states("packed_attention_lstm", A, h0, c0, axes)
    batch_sizes, index = check_packed("packed_attention_lstm", batch_sizes, index, axes, like=x)
    return _apply(x, h0, A, Wx, Wh, Wattn, b, c0, index, batch_sizes)[0]


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
    batch_sizes: BatchSizes,
) -> tuple[Tensor, Tensor, Tensor]:
    cache = new_cache(x, h0, A, Wx, Wh, Wattn, b, c0, index)
    return apply(AttentionLSTM, AttentionLSTMWithJVP, x, h0, A, Wx, Wh, Wattn, b, c0, index, batch_sizes, cache)


def _layer(A: Tensor, Wx: Tensor, Wh: Tensor, Wattn: Tensor, b: Tensor) -> dict[str, tuple[Tensor, str]]:
    """The layer's arguments with the axes of their shapes."""
    return {"A": (A, _letters(A)), "Wx": (Wx, "D 4H"), "Wh": (Wh, "H 4H"), "Wattn": (Wattn, "H 4H"), "b": (b, "4H")}


def _letters(A: Any) -> str:
    """The axes of A: its positions in one axis, or in rows and columns."""
    return "N H a b" if isinstance(A, Tensor) and A.dim() == 4 else "N H L"


def _flatten_positions(function: str, A: Tensor) -> Tensor:
    """(N, H, a, b) as (N, H, L).

    Raises:
        ValueError: A has no position.
    """
    if 0 in A.shape[2:]:
        raise ValueError(f"{function}: A must have at least one position, but is {tuple(A.shape)}")
    return A.flatten(2)


def _initial_states(
    function: str, A: Tensor, h0: Tensor | None, c0: Tensor | None, axes: dict[str, int]
) -> tuple[Tensor, Tensor]:
    """h0 and c0 (N, H), checked; the mean of A (N, H, L), the attention of a zero query, for one that is None."""
    if h0 is None or c0 is None:
        mean, _ = apply(DotProductAttention, DotProductAttentionWithJVP, torch.zeros_like(A[:, :, 0]), A)
        h0, c0 = mean if h0 is None else h0, mean.clone() if c0 is None else c0  # Dynamo takes no tensor twice
    h0, c0 = autocast(h0, c0)
    check_floats(function, axes, A=(A, "N H L"), h0=(h0, "N H"), c0=(c0, "N H"))
    return h0, c0


def _scale(A: Tensor) -> float:
    """1 / sqrt(H)."""
    return A.shape[1] ** -0.5


def _attend(prev_h: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """attn (n, H) and weights (n, L)."""
    # A tensor: torch.onnx rounds a Python number to float32.
    H = torch.full((), A.shape[1], dtype=torch.promote_types(A.dtype, torch.float32), device=A.device)
    weights = torch.softmax(_dot_products(prev_h, A) * H.rsqrt(), dim=1)
    return _weighted_sum(weights, A), weights


def _dot_products(h: Tensor, A: Tensor) -> Tensor:
    """Dot products (n, L) of h (n, H) with each position of A (n, H, L)."""
    return torch.bmm(h.unsqueeze(1), A).squeeze(1)


def _weighted_sum(weights: Tensor, A: Tensor) -> Tensor:
    """Sums (n, H) over the positions of A (n, H, L), weighted by weights (n, L)."""
    return torch.bmm(weights.unsqueeze(1), A.transpose(1, 2)).squeeze(1)  # scan does not take A.mT beside A


def _outer(h: Tensor, weights: Tensor) -> Tensor:
    """Outer products (n, H, L) of h (n, H) and weights (n, L)."""
    return h.unsqueeze(2) * weights.unsqueeze(1)


def _attention_backward(dattn: Tensor, dweights: Tensor, A: Tensor, weights: Tensor) -> Tensor:
    """ds (n, L): the formulas of DotProductAttention."""
    return _softmax_backward(dweights + _dot_products(dattn, A), weights)


def _softmax_backward(dw: Tensor, weights: Tensor) -> Tensor:
    """The derivative of softmax, which is its own transpose: weights * (dw - sum_l weights * dw)."""
    return weights * (dw - (weights * dw).sum(1, keepdim=True))


def _attend_jvp(tprev_h: Tensor, tA: Tensor, prev_h: Tensor, A: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Tangents of attn (n, H) and of the weights (n, L)."""
    tweights = _softmax_backward((_dot_products(tprev_h, A) + _dot_products(prev_h, tA)) * _scale(A), weights)
    return _weighted_sum(tweights, A) + _weighted_sum(weights, tA), tweights


def _weighted_sums(weights: Tensor, A: Tensor, steps: Steps) -> Tensor:
    """attn (r, H) of all steps."""
    if isinstance(steps, Uniform):
        return flatten_rows((pad_packed(weights, steps, steps.N) @ A.mT).transpose(0, 1))
    attn = [_weighted_sum(weights_t, A.narrow(0, 0, weights_t.shape[0])) for weights_t in split_steps(weights, steps)]
    return cat_steps(attn, like=A[:, :, 0])


def _outer_sums(pairs: Sequence[tuple[Tensor, Tensor]], steps: Steps, N: int) -> Tensor:
    """The sum (N, H, L) over all steps and pairs of the outer products of (r, H) and (r, L)."""
    left = torch.cat([pad_packed(h, steps, N) for h, _ in pairs], dim=1)  # (N, 2 T, H)
    right = torch.cat([pad_packed(weights, steps, N) for _, weights in pairs], dim=1)  # (N, 2 T, L)
    return (right.mT @ left).mT  # in memory position by position, as the captioner's A


# The loops over time, for derivatives of any order. `_inplace.attention` has the faster ones.


def _run(
    a: Tensor, h0: Tensor, c0: Tensor, A: Tensor, Wh: Tensor, Wattn: Tensor, steps: Steps
) -> tuple[Tensor, Tensor, Tensor]:
    """h and c (r, H) and weights (r, L) of x Wx + b (r, 4H)."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (prev_h, prev_c), (a_t,), (A, Wh, Wattn) = state, rows, constants
        attn, weights = _attend(prev_h, resize_rows(A, prev_h.shape[0]))
        state = step(a_t + prev_h @ Wh + attn @ Wattn, prev_c)  # (n, H) each
        return state, (*state, weights)

    _, (h, c, weights) = over_time(body, (h0, c0), (a,), (A, Wh, Wattn), steps)
    return h, c, weights


def _through_time(
    dh: Tensor,
    dc: Tensor,
    dweights: Tensor,
    A: Tensor,
    Wh: Tensor,
    Wattn: Tensor,
    steps: Steps,
    weights: Tensor,
    slopes: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """da (r, 4H), dattn (r, H), ds (r, L), and dprev_h and dprev_c (n_1, H) of the first step."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (dprev_h, dprev_c), (A, Wh, Wattn) = state, constants
        dh_t, dc_t, dweights_t, weights_t, *slopes_t = rows
        A_t = resize_rows(A, dh_t.shape[0])
        da, dprev_c = step_backward(dh_t + dprev_h, dc_t + dprev_c, slopes_t)
        dattn = da @ Wattn.T
        ds = _attention_backward(dattn, dweights_t, A_t, weights_t)
        dprev_h = da @ Wh.T + _weighted_sum(ds, A_t) * _scale(A)
        return (dprev_h, dprev_c), (da, dattn, ds)

    zeros = (torch.zeros_like(first_step(dh, steps)), torch.zeros_like(first_step(dc, steps)))
    sequences = dh, dc, dweights, weights, *slopes
    (dprev_h, dprev_c), (da, dattn, ds) = over_time(body, zeros, sequences, (A, Wh, Wattn), steps, reverse=True)
    return da, dattn, ds, dprev_h, dprev_c
