"""Sequences of different length without their padding: rows step after step, longest sequence first.

    sequence   steps                packed, r = 9 rows
    0          a b .  .             e f g h        order  = 1 2 0    the sequences, longest first
    1          e f g h              i j k          sizes  = 3 3 2 1  rows of steps 1 to 4
    2          i j k .              a b            rows   = e i a | f j b | g k | h

What goes on at a step are the first of the rows that went on before it, so a recurrence takes leading rows of its last
state and copies nothing, and padding is in no product at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor
from torch.autograd import Function

from ._common import apply, check_integers, check_range, may_write, past_end, readable, rows
from ._torch_internals import has_static_value, in_forward_mode, in_torch_func, scan


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


class Uniform(NamedTuple):
    """T steps of N sequences each, where T is symbolic (a SymInt): no list of steps can be made."""

    T: int
    N: int


Steps = tuple[int, ...]
"""How many rows each step has, step by step; or `Uniform`, a tuple too, which says it of all steps at once."""

Rows = tuple[Tensor, ...]
"""The rows of one step, (n_t, ...) each, of several packed sequences."""

Constants = tuple[Tensor, ...]
"""What is the same at every step: weights, and the images of the sequences."""

Step = Callable[[Rows, Rows, Constants], tuple[Rows, Rows]]
"""One step of a recurrence, as `over_time` takes it."""


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
            _check_traceable(T)
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


def of_each_step(sizes: Sizes, h0: Tensor) -> Steps:
    """`sizes` one by one, for the N sequences that begin with h0 (N, H).

    Where all have T steps, N is taken from a shape: a tracer knows it there by its symbol.
    """
    if isinstance(sizes, tuple):
        return sizes
    return Uniform(sizes, h0.shape[0]) if _is_symbolic(sizes) else (h0.shape[0],) * sizes


def _check_traceable(T: int) -> None:
    """Check that a loop over T steps can be recorded, where something records.

    Raises:
        RuntimeError: torch.jit.trace records, for which a size is a tensor; or T is symbolic under torch.func or in
            forward mode, neither of which scan supports.
    """
    if isinstance(T, Tensor):
        raise RuntimeError("torch.jit.trace cannot record a loop over T time steps: use torch.export.export")
    if _is_symbolic(T) and (in_torch_func() or in_forward_mode()):
        raise RuntimeError(
            "a loop over a symbolic number of time steps cannot be traced under torch.func or in forward mode: "
            "make the time axis static (torch.export.Dim.STATIC)"
        )


def _is_symbolic(T: int) -> bool:
    """Whether a tracer knows T by a symbol. torch.compile, which makes a graph for each T, is not asked."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return False
    return not has_static_value(T)


def over_time(
    step: Step,
    state: Rows,
    sequences: Rows,
    constants: Constants,
    steps: Steps,
    reverse: bool = False,
) -> tuple[Rows, Rows]:
    """Carry a state through packed sequences.

    Args:
        step: takes the state (n_t, ...), the rows of step t of each sequence and the constants, and returns the next
            state and the outputs of step t; it reads no other tensor. A recurrence goes on with the leading rows of its
            state. In reverse, what comes back through time is zero for the rows that end at step t.
        state: (N, ...) each, the state before the step that is taken first.
        sequences: (r, ...) each.
        constants: passed to each step.
        steps: how many rows each step has.
        reverse: begin with the last step.

    Returns:
        the state after the step that is taken last, and the outputs (r, ...) in the order of the steps.
    """
    if isinstance(steps, Uniform):
        return _scanned(step, state, sequences, constants, steps, reverse)
    order = range(len(steps))
    rows_of_steps = per_step(steps, *sequences)
    outputs: list[Rows] = []
    for t in reversed(order) if reverse else order:
        state, out = step(tuple(resized(part, steps[t]) for part in state), rows_of_steps[t], constants)
        outputs.append(out)
    if not steps:  # a step of no rows knows the widths of the outputs
        _, out = step(tuple(resized(part, 0) for part in state), tuple(x.narrow(0, 0, 0) for x in sequences), constants)
        return state, out
    return state, tuple(map(torch.cat, zip(*(reversed(outputs) if reverse else outputs), strict=True)))


def _scanned(
    step: Step, state: Rows, sequences: Rows, constants: Constants, steps: Uniform, reverse: bool
) -> tuple[Rows, Rows]:
    """`over_time` as one operator of a graph, which then holds for every T."""

    xs = [x.reshape(*steps, *x.shape[1:]) for x in sequences]
    state, out = scan(step, state, [x.flip(0) for x in xs] if reverse else xs, constants)
    out = [x.flip(0) for x in out] if reverse else out
    # By way of one axis: two axes merged have a stride that is known for N > 0 alone, which torch.export would demand.
    return state, tuple(x.reshape(x.numel()).reshape(steps.T * steps.N, *x.shape[2:]) for x in out)


def steps_of(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """(r, D) as T steps (n_t, D)."""
    return x.split(sizes) if sizes else ()


def per_step(sizes: Sequence[int], *sequences: Tensor) -> list[Rows]:
    """Several packed sequences (r, ...) as T tuples of (n_t, ...)."""
    return list(zip(*(steps_of(s, sizes) for s in sequences), strict=True))


def side_by_side(x: Tensor, steps: Steps, N: int) -> Tensor:
    """(r, H) as (N, T, H), zeros where a sequence has ended."""
    if isinstance(steps, Uniform):
        return x.reshape(*steps, x.shape[1]).transpose(0, 1)
    rows_of_steps = [resized(x_t, N) for x_t in steps_of(x, steps)]
    return torch.stack(rows_of_steps, dim=1) if steps else x.reshape(N, 0, x.shape[1])


def first(h: Tensor, steps: Steps) -> Tensor:
    """The rows of the first step, (n_1, H)."""
    if isinstance(steps, Uniform):
        return h.narrow(0, 0, steps.N)
    return h.narrow(0, 0, steps[0] if steps else 0)


def previous(h0: Tensor, h: Tensor, steps: Steps) -> Tensor:
    """What each step started from, (r, H): of h0 (N, H), then of each step of h (r, H), the rows that went on."""
    if isinstance(steps, Uniform):
        return torch.cat([h0, h]).narrow(0, 0, h.shape[0])
    before = [h0, *steps_of(h, steps)]
    return joined([state.narrow(0, 0, n) for state, n in zip(before, steps, strict=False)], like=h)


def joined(steps: Sequence[Tensor], like: Tensor) -> Tensor:
    """T steps (n_t, H) as (r, H); `like` (..., H) gives the width where T is 0."""
    return torch.cat(list(steps)) if steps else like.narrow(0, 0, 0).clone()


def resized(x: Tensor, n: int) -> Tensor:
    """The first n rows of x (m, H), and zeros for those that it lacks."""
    m = x.shape[0]
    if m == n:
        return x
    return x.narrow(0, 0, n) if n < m else torch.cat([x, x.new_zeros(n - m, *x.shape[1:])])


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
    if isinstance(sizes, Tensor) and torch.jit.is_tracing():
        _check_traceable(sizes)
    sizes = sizes if isinstance(sizes, int | SymInt) else tuple(sizes)
    if not isinstance(sizes, tuple):
        _check_traceable(sizes)
        r = N * sizes
    elif all(before >= n >= 0 for before, n in zip((N, *sizes), sizes, strict=False)):
        r = sum(sizes)
    else:
        raise ValueError(f"{function}: sizes must fall from at most N = {N} to 0 or more, but are {list(sizes)}")
    if index is not None:
        check_integers(function, "index", index, "r", {"r": r}, like)
        check_range(function, "index", index, R, "x has {high} rows")
        return sizes, index.long()
    if r != R:
        raise ValueError(f"{function}: sizes add up to {r}, but x has {R} rows")
    return sizes, None


def _placed(x: Tensor, places: Tensor, R: int) -> Tensor:
    """(R, D): the rows of x (r, D) in their places, zeros elsewhere."""
    out = x.new_zeros(R, x.shape[1])
    return out.index_copy_(0, places, x) if may_write(x, places) else out.index_copy(0, places, x)
