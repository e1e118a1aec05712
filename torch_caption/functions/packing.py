"""Sequences of different length without their padding: rows step after step, longest sequence first.

    sequence   steps                packed, r = 9 rows
    0          a b .  .             e f g h        order  = 1 2 0    the sequences, longest first
    1          e f g h              i j k          sizes  = 3 3 2 1  rows of steps 1 to 4
    2          i j k .              a b            rows   = e i a | f j b | g k | h

What goes on at a step are the first of the rows that went on before it, so a recurrence takes leading rows of its last
state and copies nothing, and padding is in no product at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import apply, check_integers, check_range, may_write, past_end, readable, rows


class Pack(Function):
    r"""Rows of a table, none of them twice.

        out[k] = x[places[k]]                  (R, D) -> (r, D)

    Backward. Each row that was taken was read once, by one place; the others have no part:

        dx[places[k]] = dout[k], 0 elsewhere   (r, D) -> (R, D)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, places: Tensor) -> Tensor:
        return x.index_select(0, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, places = inputs
        ctx.save_for_backward(places)
        ctx.save_for_forward(places)
        ctx.R = x.shape[0]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple:
        (places,) = ctx.saved_tensors
        return _placed(dout, places, ctx.R) if ctx.needs_input_grad[0] else None, None


class PackWithJVP(Pack):
    """`Pack` with its forward mode: tout[k] = tx[places[k]]."""

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, _: None) -> Tensor:
        (places,) = ctx.saved_tensors
        return tx.index_select(0, places)


class Unpack(Function):
    r"""Rows put into their places in a table, zeros elsewhere: what the backward of `Pack` does.

        out[places[k]] = x[k], 0 elsewhere     (r, D) -> (R, D)

    Backward. Each row was written once, so it is what `Pack` does:

        dx[k] = dout[places[k]]                (R, D) -> (r, D)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, places: Tensor, R: int) -> Tensor:
        return _placed(x, places, R)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, places, ctx.R = inputs
        ctx.save_for_backward(places)
        ctx.save_for_forward(places)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple:
        (places,) = ctx.saved_tensors
        return dout.index_select(0, places) if ctx.needs_input_grad[0] else None, None, None


class UnpackWithJVP(Unpack):
    """`Unpack` with its forward mode: tout[places[k]] = tx[k], 0 elsewhere."""

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, _: None, __: None) -> Tensor:
        (places,) = ctx.saved_tensors
        return _placed(tx, places, ctx.R)


Sizes = int | tuple[int, ...]
"""How many sequences have a step 1, a step 2 and so on; or a number of steps, which all of them have."""


@dataclass(frozen=True)
class Packing:
    """Where each step of N sequences of at most T steps goes.

    Attributes:
        N, T: the shape of the batch.
        sizes: how many sequences have a step 1, a step 2 and so on, never more than before; T alone where all have T.
        order: (N,) int64, the sequences, longest first; None where all are T long and stay as they are.
        places: (r,) int64, n T + t of each packed row; None likewise.
        unread: (N, T, 1) boolean, True past the end of each row, if there are lengths and they could not be read: that
            much of what is packed is padding.
    """

    N: int
    T: int
    sizes: Sizes
    order: Tensor | None = None
    places: Tensor | None = None
    unread: Tensor | None = None

    @classmethod
    def of(cls, N: int, T: int, lengths: Tensor | None = None) -> Packing:
        """The packing of `lengths` (N,); of N sequences of T steps where it is None, or where it cannot be read.

        Under torch.compile, export, vmap, CUDA graph capture and on the meta device lengths cannot be read. Padding is
        then packed like the rest, and `unread` says where it is.
        """
        if lengths is None or not readable(lengths):
            return cls(N, T, T, unread=past_end(lengths, T))
        ordered, order = lengths.long().sort(descending=True, stable=True)
        steps = torch.arange(T, device=lengths.device).unsqueeze(1)
        going = steps < ordered  # (T, N)
        sizes = [n for n in going.sum(1).tolist() if n]
        return cls(N, T, tuple(sizes), order, (order * T + steps)[going])

    def words(self, x: Tensor) -> Tensor:
        """Integers or booleans (N, T) as (r,)."""
        return x.t().reshape(-1) if self.places is None else x.reshape(-1).index_select(0, self.places)

    def pack(self, x: Tensor) -> Tensor:
        """(N, T, D) as (r, D)."""
        if self.places is None:
            return rows(x.transpose(0, 1))
        return apply(Pack, PackWithJVP, rows(x), self.places)

    def unpack(self, h: Tensor) -> Tensor:
        """(r, H) as (N, T, H), zeros past the end of each sequence."""
        if self.places is None:
            return h.reshape(self.T, self.N, h.shape[-1]).transpose(0, 1)
        return apply(Unpack, UnpackWithJVP, h, self.places, self.N * self.T).reshape(self.N, self.T, h.shape[-1])

    def sort(self, h: Tensor) -> Tensor:
        """(N, H), longest sequence first."""
        return h if self.order is None else apply(Pack, PackWithJVP, h, self.order)


def lengths_of(real: Tensor) -> Tensor:
    """How many steps (N,) each row of `real` (N, T) boolean has: all up to the last that is True."""
    counts = torch.arange(1, real.shape[1] + 1, device=real.device)
    return torch.cat([real.new_zeros(real.shape[0], 1, dtype=torch.int64), real * counts], dim=1).amax(1)


def of_each_step(sizes: Sizes, h0: Tensor) -> tuple[int, ...]:
    """`sizes` one by one, for the N sequences that begin with h0 (N, H).

    Where all have T steps, N is taken from a shape: a tracer knows it there by its symbol.
    """
    return (h0.shape[0],) * sizes if isinstance(sizes, int) else sizes


def steps_of(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """(r, D) as T steps (n_t, D)."""
    return x.split(sizes) if sizes else ()


def joined(steps: Sequence[Tensor], like: Tensor) -> Tensor:
    """T steps (n_t, H) as (r, H); `like` (..., H) gives the width where T is 0."""
    return torch.cat(list(steps)) if steps else like.narrow(0, 0, 0).clone()


def first(h: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of the first step, (n_1, H)."""
    return h.narrow(0, 0, sizes[0] if sizes else 0)


def previous(h0: Tensor, h: Tensor, sizes: Sequence[int]) -> Tensor:
    """What each step started from, (r, H): of h0 (N, H), then of each step of h (r, H), the rows that went on."""
    before = [h0, *steps_of(h, sizes)]
    return joined([state.narrow(0, 0, n) for state, n in zip(before, sizes, strict=False)], like=h)


def grown(back: Tensor, n: int) -> Tensor:
    """(m, H) with zeros for the rows that end here, (n, H): what comes back through time reaches those that go on."""
    m = back.shape[0]
    return back if m == n else torch.cat([back, back.new_zeros(n - m, back.shape[1])])


def read(table: Tensor, index: Tensor | None) -> Tensor:
    """The rows (r, D) of a table (R, D) that `index` (r,) names; without one the table itself."""
    return table if index is None else table.index_select(0, index)


def collected(dout: Tensor, index: Tensor | None, R: int) -> Tensor:
    """The gradient (R, D) of the table that `read` read: each of its rows sums over the places (r, D) that read it."""
    if index is None:
        return dout
    table = dout.new_zeros(R, dout.shape[1])
    return table.index_add_(0, index, dout) if may_write(dout, index) else table.index_add(0, index, dout)


def check_packed(
    function: str, sizes: int | Sequence[int], index: Tensor | None, letters: dict[str, int], like: Tensor
) -> tuple[Sizes, Tensor | None]:
    """Check `sizes` and `index` against x (R, D) and h0 (N, H); return them, the index as int64.

    Raises:
        IndexError: an index is out of range.
        TypeError: an index is not a tensor of integers, or on another device than `like`.
        ValueError: the sizes grow, are more than N or below 1, or do not add up to the rows.
    """
    N, R = letters["N"], letters["R"]
    sizes = sizes if isinstance(sizes, int) else tuple(sizes)
    if isinstance(sizes, int):
        r = N * sizes
    elif all(before >= n >= 0 for before, n in zip((N, *sizes), sizes, strict=False)):
        r = sum(sizes)
    else:
        raise ValueError(f"{function}: sizes must fall from at most N = {N} to 0 or more, but are {list(sizes)}")
    if index is not None:
        check_integers(function, "index", index, "r", {"r": r}, like)
        check_range(function, "index", index, 0, R, f"x has {R} rows")
        return sizes, index.long()
    if r != R:
        raise ValueError(f"{function}: sizes add up to {r}, but x has {R} rows")
    return sizes, None


def _placed(x: Tensor, places: Tensor, R: int) -> Tensor:
    """(R, D): the rows of x (r, D) in their places, zeros elsewhere."""
    out = x.new_zeros(R, x.shape[1])
    return out.index_copy_(0, places, x) if may_write(x, places) else out.index_copy(0, places, x)
