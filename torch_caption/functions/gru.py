"""The gated recurrent unit: one step, and a sequence of them. The gates are in the order r, z, n along 3H."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import apply, autocast, check_floats, check_lengths, may_overwrite, new_cache, zero_padding
from ._inplace.gru import run_, through_time_
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


class GRUStep(Function):
    r"""One step of a GRU.

        ax     = x Wx + b                      (N, 3H), cut into ax_r ax_z ax_n (N, H) each
        ah     = prev_h Wh                     (N, 3H), cut into ah_r ah_z ah_n
        u      = ah_n + bn                     (N, H)
        r      = sigmoid(a_r)                  a_r = ax_r + ah_r
        z      = sigmoid(a_z)                  a_z = ax_z + ah_z
        n      = tanh(a_n)                     a_n = ax_n + r * u
        next_h = n + z * (prev_h - n)          (N, H), which is (1 - z) n + z prev_h

    Backward. n and z reach the loss through next_h alone, u and r through n; sigmoid' = s (1 - s), tanh' = 1 - tanh^2:

        dn   = dnext_h * (1 - z)               (N, H)
        da_n = dn * (1 - n^2)
        da_z = dn * z * (prev_h - n)           the gradient of z is dnext_h * (prev_h - n)
        du   = da_n * r
        da_r = du * u * (1 - r)                the gradient of r is da_n * u

    The gradients of ax and ah differ in the block of n alone: r multiplies ah_n and not ax_n. With
    dax = [da_r da_z da_n] and dah = [da_r da_z du] (N, 3H) the rest is that of two affine layers, beside what reaches
    prev_h past the gates:

        direct  = dnext_h * z                  (N, H)
        dx      = dax Wx^T                     (N, 3H)(3H, D) -> (N, D)
        dprev_h = direct + dah Wh^T            (N, 3H)(3H, H) -> (N, H)
        dWx     = x^T dax                      (D, N)(N, 3H) -> (D, 3H)
        dWh     = prev_h^T dah                 (H, N)(N, 3H) -> (H, 3H)
        db      = sum_n dax                    (3H,)
        dbn     = sum_n du                     (H,)

    The code has both in one tensor, da = [du da_r da_z da_n] (N, 4H): its last 3H columns are dax, and its first 3H are
    dah with the block of n in front. `n_first` puts Wh into this order for the product with dah, and `n_last` puts the
    product that is dWh into that of Wh.

    The backward computes the gates again: saved as outputs without a gradient they would be constants to a second
    derivative, which would then be wrong.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, bn: Tensor) -> Tensor:
        return step(x @ Wx + b, prev_h @ Wh, bn, prev_h)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, dnext_h: Tensor) -> tuple:
        x, prev_h, Wx, Wh, b, bn = ctx.saved_tensors
        need_x, need_prev_h, need_Wx, need_Wh, need_b, need_bn = ctx.needs_input_grad
        da, direct = step_backward(dnext_h, prev_h, gates_of(x @ Wx + b, prev_h @ Wh, bn))
        du, dax, dah = parts_of(da)
        dx = dax @ Wx.T if need_x else None
        dprev_h = direct + dah @ n_first(Wh).T if need_prev_h else None
        dWx = x.T @ dax if need_Wx else None
        dWh = n_last(prev_h.T @ dah) if need_Wh else None
        db = dax.sum(0) if need_b else None
        dbn = du.sum(0) if need_bn else None
        return dx, dprev_h, dWx, dWh, db, dbn


class GRUStepWithJVP(GRUStep):
    r"""`GRUStep` with its forward mode.

    The tangents of ax and ah, then `step_jvp`:

        tax = tx Wx + x tWx + tb
        tah = tprev_h Wh + prev_h tWh
    """

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, tprev_h: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor, tbn: Tensor) -> Tensor:
        x, prev_h, Wx, Wh, b, bn = ctx.saved_tensors
        tax = tx @ Wx + x @ tWx + tb
        tah = tprev_h @ Wh + prev_h @ tWh
        return step_jvp(tax, tah, tbn, tprev_h, prev_h, gates_of(x @ Wx + b, prev_h @ Wh, bn))


class GRU(Function):
    r"""A GRU over whole sequences, packed step after step (see `packing`).

    At step t = 1..T the first n_t of the N sequences are present, n_1 >= n_2 >= ..., and r is the sum of all n_t; x
    (r, D) and h (r, H) hold n_1 rows of step 1, then n_2 of step 2 and so on. Where all are T long, n_t is N. h_0 is
    the state before the first step.

        ax_t = x_t Wx + b                      (n_t, 3H)
        ah_t = h_{t-1}[:n_t] Wh                (n_t, 3H)
        h_t  = step(ax_t, ah_t, h_{t-1}[:n_t])  as in GRUStep, (n_t, H)

    Backward, through time. h_t reaches the loss through its own output and, in the rows that are present at t + 1,
    through that step, past its gates and through them. From t = T down to 1, with GRUStep's formulas:

        dnext_h = dh_t + [direct_{t+1} + dah_{t+1} Wh^T; 0]  (n_t, H), the 0s for rows that end here; dh_T where t is T
        du_t, dax_t, dah_t, direct_t = GRUStep's

        dh_0 = [direct_1 + dah_1 Wh^T; 0]      (N, H), the 0s for sequences without a step

    All steps share the weights, so their gradients sum over batch and time, one product over r rows:

        dx  = dax Wx^T                         (r, 3H)(3H, D) -> (r, D)
        dWx = x^T dax                          (D, r)(r, 3H) -> (D, 3H)
        dWh = [h_0[:n_1] .. h_{T-1}[:n_T]]^T dah  (H, r)(r, 3H) -> (H, 3H)
        db  = sum_r dax                        (3H,)
        dbn = sum_r du                         (H,)

    Index. x may instead be a table (R, D) whose row index[k] is the input of packed row k, as in RNN.

    For a first derivative the forward caches the gates; for others they are computed again, as in GRUStep.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        h0: Tensor,
        Wx: Tensor,
        Wh: Tensor,
        b: Tensor,
        bn: Tensor,
        index: Tensor | None,
        batch_sizes: BatchSizes,
        cache: dict[str, Tensor] | None,
    ) -> Tensor:
        steps = steps_of(batch_sizes, h0)
        if cache is None:
            return _run(gather_rows(torch.addmm(b, x, Wx), index), h0, Wh, bn, steps)
        return run_(x, h0, Wx, n_first(Wh), b, bn, index, steps, cache)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.batch_sizes, ctx.cache = inputs
        ctx.save_for_backward(*tensors, output)
        ctx.save_for_forward(*tensors, output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple:
        x, h0, Wx, Wh, b, bn, index, h = ctx.saved_tensors
        need_x, need_h0, need_Wx, need_Wh, need_b, need_bn, *_ = ctx.needs_input_grad
        steps = steps_of(ctx.batch_sizes, h0)
        prev_h = shifted_states(h0, h, steps)  # (r, H)
        Wh_n = n_first(Wh)
        fast = ctx.cache is not None and may_overwrite(dh)
        if fast:
            da, direct = through_time_(dh, prev_h, Wh_n, steps, **ctx.cache)
        else:
            gates = gates_of(gather_rows(x @ Wx + b, index), prev_h @ Wh, bn)
            da, direct = _through_time(dh, prev_h, Wh_n, steps, gates)
        du, dax, dah = parts_of(da)
        dh0 = resize_rows(direct + first_step(dah, steps) @ Wh_n.T, h0.shape[0]) if need_h0 else None
        dWh = n_last(prev_h.T @ dah) if need_Wh else None
        db = dax.sum(0) if need_b else None
        dbn = du.sum(0) if need_bn else None
        dax = scatter_sum(dax, index, x.shape[0]) if need_x or need_Wx else dax  # (R, 3H)
        dx = dax @ Wx.T if need_x else None
        dWx = x.T @ dax if need_Wx else None
        return dx, dh0, dWx, dWh, db, dbn, None, None, None


class GRUWithJVP(GRU):
    r"""`GRU` with its forward mode.

    The tangent of each line:

        tax_t = tx_t Wx + x_t tWx + tb
        tah_t = th_{t-1}[:n_t] Wh + h_{t-1}[:n_t] tWh
        th_t  = `step_jvp` of tax_t, tah_t and th_{t-1}[:n_t]
    """

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, th0: Tensor, tWx: Tensor, tWh: Tensor, tb: Tensor, tbn: Tensor, *_: None) -> Tensor:
        x, h0, Wx, Wh, b, bn, index, h = ctx.saved_tensors
        steps = steps_of(ctx.batch_sizes, h0)
        prev_h = shifted_states(h0, h, steps)
        tax, htWh = gather_rows(tx @ Wx + x @ tWx + tb, index), prev_h @ tWh  # (r, 3H)
        gates = gates_of(gather_rows(x @ Wx + b, index), prev_h @ Wh, bn)

        def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
            (tprev_h,), (tax_t, htWh_t, prev_h_t, *gates_t), (Wh, tbn) = state, rows, constants
            th = step_jvp(tax_t, tprev_h @ Wh + htWh_t, tbn, tprev_h, prev_h_t, gates_t)
            return (th,), (th,)

        (th,) = over_time(body, (th0,), (tax, htWh, prev_h, *gates), (Wh, tbn), steps)[1]
        return th


def gru_step(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, bn: Tensor) -> Tensor:
    """One step of a GRU (Cho et al. 2014, with the reset gate after the product, as in cuDNN and torch.nn.GRU).

        r      = sigmoid(x Wx_r + b_r + prev_h Wh_r)
        z      = sigmoid(x Wx_z + b_z + prev_h Wh_z)
        n      = tanh(x Wx_n + b_n + r * (prev_h Wh_n + bn))
        next_h = (1 - z) * n + z * prev_h

    In terms of torch.nn.GRU: Wx and Wh are its weights transposed; b is the sum of its two biases for r and z, and
    bias_ih for n, whose bias_hh is bn.

    Args:
        x: (N, D) floating-point.
        prev_h: (N, H).
        Wx: (D, 3H), gates in the order r, z, n.
        Wh: (H, 3H).
        b: (3H,).
        bn: (H,), the bias of n inside its product with the reset gate.

    Returns:
        next_h (N, H), dtype of x; the autocast dtype under autocast.

    Raises:
        TypeError: a dtype or device differs, or a value is not a floating-point tensor.
        ValueError: a shape does not fit.
    """
    x, prev_h, Wx, Wh, b, bn = autocast(x, prev_h, Wx, Wh, b, bn)
    inputs, weights = {"x": (x, "N D"), "prev_h": (prev_h, "N H")}, {"Wx": (Wx, "D 3H"), "Wh": (Wh, "H 3H")}
    check_floats("gru_step", {}, **inputs, **weights, b=(b, "3H"), bn=(bn, "H"))
    return apply(GRUStep, GRUStepWithJVP, x, prev_h, Wx, Wh, b, bn)


def gru(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, bn: Tensor, lengths: Tensor | None = None) -> Tensor:
    """A GRU over a sequence, with the formulas of `gru_step`.

    Args:
        x: (N, T, D) floating-point.
        h0: (N, H), the state before the first step.
        Wx: (D, 3H), gates in the order r, z, n.
        Wh: (H, 3H).
        b: (3H,); in terms of torch.nn.GRU bias_ih + bias_hh for r and z, and bias_ih for n.
        bn: (H,), the bias of n inside its product with the reset gate: torch.nn.GRU's bias_hh of n.
        lengths: (N,) integers, 0 <= lengths <= T: how many steps each sequence has; None for T. Padding is neither read
            nor computed. Under torch.compile, export, vmap, CUDA graph capture and on the meta device lengths cannot be
            read: their range is then not checked, and all T steps are computed, with the same result.

    Returns:
        h (N, T, H), dtype of x (the autocast dtype under autocast); zero past the end of each sequence.

    Raises:
        IndexError: a length is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape does not fit.
    """
    x, h0, Wx, Wh, b, bn = autocast(x, h0, Wx, Wh, b, bn)
    axes: dict[str, int] = {}
    inputs, weights = {"x": (x, "N T D"), "h0": (h0, "N H")}, {"Wx": (Wx, "D 3H"), "Wh": (Wh, "H 3H")}
    check_floats("gru", axes, **inputs, **weights, b=(b, "3H"), bn=(bn, "H"))
    check_lengths("gru", lengths, axes, like=x)
    packed = Packing.of(axes["N"], axes["T"], lengths)
    x, h0 = packed.pack(zero_padding(x, packed.padding)), packed.sort(h0)
    cache = new_cache(x, h0, Wx, Wh, b, bn)
    h = apply(GRU, GRUWithJVP, x, h0, Wx, Wh, b, bn, None, packed.batch_sizes, cache)
    return zero_padding(packed.unpack(h), packed.padding)


def packed_gru(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    bn: Tensor,
    batch_sizes: int | Sequence[int],
    index: Tensor | None = None,
) -> Tensor:
    """`gru` over sequences that are packed, step after step, longest first (see `packing`).

    Args:
        x: (r, D) floating-point, or with `index` a table (R, D) of inputs.
        h0: (N, H), the states before the first step, in the order of the sequences.
        Wx: (D, 3H), gates in the order r, z, n.
        Wh: (H, 3H).
        b: (3H,), as in `gru`.
        bn: (H,), as in `gru`.
        batch_sizes: how many sequences have a step 1, a step 2 and so on: at most N, never increasing, r in all. A
            number T instead: all have T steps.
        index: (r,) integers, 0 <= index < R: the row of x that is the input of each packed row. The range is checked
            wherever values can be read, as in `gru`.

    Returns:
        h (r, H), dtype of x (the autocast dtype under autocast).

    Raises:
        IndexError: an index is out of range.
        TypeError: a dtype or device differs, or a value is not a tensor of the right kind.
        ValueError: a shape or `batch_sizes` does not fit.
    """
    x, h0, Wx, Wh, b, bn = autocast(x, h0, Wx, Wh, b, bn)
    axes: dict[str, int] = {}
    inputs, weights = {"x": (x, "R D"), "h0": (h0, "N H")}, {"Wx": (Wx, "D 3H"), "Wh": (Wh, "H 3H")}
    check_floats("packed_gru", axes, **inputs, **weights, b=(b, "3H"), bn=(bn, "H"))
    batch_sizes, index = check_packed("packed_gru", batch_sizes, index, axes, like=x)
    cache = new_cache(x, h0, Wx, Wh, b, bn, index)
    return apply(GRU, GRUWithJVP, x, h0, Wx, Wh, b, bn, index, batch_sizes, cache)


def gates_of(ax: Tensor, ah: Tensor, bn: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, r, z, n (..., H) of x Wx + b and prev_h Wh (..., 3H)."""
    (ax_r, ax_z, ax_n), (ah_r, ah_z, ah_n) = ax.chunk(3, dim=-1), ah.chunk(3, dim=-1)
    u = ah_n + bn
    r = torch.sigmoid(ax_r + ah_r)
    z = torch.sigmoid(ax_z + ah_z)
    n = torch.tanh(ax_n + r * u)
    return u, r, z, n


def step(ax: Tensor, ah: Tensor, bn: Tensor, prev_h: Tensor) -> Tensor:
    """next_h (N, H) of x Wx + b and prev_h Wh (N, 3H)."""
    _, _, z, n = gates_of(ax, ah, bn)
    return n + z * (prev_h - n)


def step_backward(dnext_h: Tensor, prev_h: Tensor, gates: Any) -> tuple[Tensor, Tensor]:
    """da = [du da_r da_z da_n] (N, 4H) and direct (N, H): the formulas of GRUStep."""
    u, r, z, n = gates
    dn = dnext_h * (1 - z)
    da_n = dn * (1 - n * n)
    da_z = dn * z * (prev_h - n)
    du = da_n * r
    da_r = du * u * (1 - r)
    return torch.cat([du, da_r, da_z, da_n], dim=-1), dnext_h * z


def step_jvp(tax: Tensor, tah: Tensor, tbn: Tensor, tprev_h: Tensor, prev_h: Tensor, gates: Any) -> Tensor:
    """The tangent of next_h (N, H), from those of ax and ah (N, 3H), of bn and of prev_h."""
    u, r, z, n = gates
    (tax_r, tax_z, tax_n), (tah_r, tah_z, tah_n) = tax.chunk(3, dim=-1), tah.chunk(3, dim=-1)
    tu = tah_n + tbn
    tr = (tax_r + tah_r) * r * (1 - r)
    tz = (tax_z + tah_z) * z * (1 - z)
    tn = (tax_n + tr * u + r * tu) * (1 - n * n)
    return tn + tz * (prev_h - n) + z * (tprev_h - tn)


def parts_of(da: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """du (N, H), dax (N, 3H), and dah (N, 3H) with the block of n in front, of da = [du da_r da_z da_n] (N, 4H)."""
    H = da.shape[1] // 4
    return da[:, :H], da[:, H:], da[:, : 3 * H]


def n_first(Wh: Tensor) -> Tensor:
    """Wh (H, 3H) with its blocks in the order n, r, z."""
    return torch.cat([Wh[:, 2 * Wh.shape[0] :], Wh[:, : 2 * Wh.shape[0]]], dim=1)


def n_last(dWh: Tensor) -> Tensor:
    """The inverse of `n_first`."""
    return torch.cat([dWh[:, dWh.shape[0] :], dWh[:, : dWh.shape[0]]], dim=1)


# The loops over time, for derivatives of any order. `_inplace.gru` has the faster ones.


def _run(ax: Tensor, h0: Tensor, Wh: Tensor, bn: Tensor, steps: Steps) -> Tensor:
    """h (r, H) of x Wx + b (r, 3H)."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (prev_h,), (ax_t,), (Wh, bn) = state, rows, constants
        h = step(ax_t, prev_h @ Wh, bn, prev_h)  # (n, H)
        return (h,), (h,)

    _, (h,) = over_time(body, (h0,), (ax,), (Wh, bn), steps)
    return h


def _through_time(dh: Tensor, prev_h: Tensor, Wh: Tensor, steps: Steps, gates: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """da (r, 4H), and direct (n_1, H) of the first step; Wh with the block of n in front."""

    def body(state: Rows, rows: Rows, constants: Constants) -> tuple[Rows, Rows]:
        (gated, direct), (dh_t, prev_h_t, *gates_t), (Wh,) = state, rows, constants
        da, direct = step_backward(dh_t + direct + gated, prev_h_t, gates_t)
        _, _, dah = parts_of(da)
        return (dah @ Wh.T, direct), (da,)

    zeros = (torch.zeros_like(first_step(prev_h, steps)), torch.zeros_like(first_step(prev_h, steps)))
    (_, direct), (da,) = over_time(body, zeros, (dh, prev_h, *gates), (Wh,), steps, reverse=True)
    return da, direct
