"""Sequences of different length without padding: rows step after step, longest sequence first.

    sequence   steps      longest first   packed, r = 9 rows
    0          a b . .    e f g h         sorted_indices = 1 2 0
    1          e f g h    i j k           batch_sizes    = 3 3 2 1
    2          i j k .    a b             rows           = e i a | f j b | g k | h

The sequences that have a step t are the first n_t of those that have a step t - 1, so a recurrence takes the leading
rows of its last state without a copy, and no product contains padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor
from torch.autograd import Function

from ._common import apply, check_integers, check_range, flatten_rows, may_overwrite, padding_mask, readable
from ._torch_internals import has_static_value, in_forward_mode, in_torch_func, scan


class Pack(Function):
    r"""Rows of a table, each of them at most once.

        out[k] = x[indices[k]]                (R, D) -> (r, D)

    Backward. Each selected row was read once; the gradient of the others is zero:

        dx[indices[k]] = dout[k], 0 elsewhere (r, D) -> (R, D)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, indices: Tensor) -> Tensor:
        return x.index_select(0, indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, indices = inputs
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)
        ctx.R = x.shape[0]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple:
        (indices,) = ctx.saved_tensors
        return scatter_rows(dout, indices, ctx.R) if ctx.needs_input_grad[0] else None, None


class PackWithJVP(Pack):
    """`Pack` with its forward mode: tout[k] = tx[indices[k]]."""

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, _: None) -> Tensor:
        (indices,) = ctx.saved_tensors
        return tx.index_select(0, indices)


class Unpack(Function):
    r"""Rows written to a table of zeros: the backward of `Pack`.

        out[indices[k]] = x[k], 0 elsewhere   (r, D) -> (R, D)

    Backward. Each row was written once, so the backward is `Pack`:

        dx[k] = dout[indices[k]]              (R, D) -> (r, D)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, indices: Tensor, R: int) -> Tensor:
        return scatter_rows(x, indices, R)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, indices, ctx.R = inputs
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple:
        (indices,) = ctx.saved_tensors
        return dout.index_select(0, indices) if ctx.needs_input_grad[0] else None, None, None


class UnpackWithJVP(Unpack):
    """`Unpack` with its forward mode: tout[indices[k]] = tx[k], 0 elsewhere."""

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, _: None, __: None) -> Tensor:
        (indices,) = ctx.saved_tensors
        return scatter_rows(tx, indices, ctx.R)


BatchSizes = int | tuple[int, ...]
"""How many sequences have a step 1, a step 2 and so on; or T, the number of steps that all of them have."""


class Uniform(NamedTuple):
    """T steps of N sequences each, where T is symbolic (a SymInt): no list of steps can be made."""

    T: int
    N: int


Steps = tuple[int, ...]
"""How many rows each step has; or `Uniform`, a tuple too, where the number of steps is symbolic."""

Rows = tuple[Tensor, ...]
"""The rows of one step, (n_t, ...) each, of several packed sequences."""

Constants = tuple[Tensor, ...]
"""Tensors that are the same at every step: weights, and the images of the sequences."""

Step = Callable[[Rows, Rows, Constants], tuple[Rows, Rows]]
"""One step of a recurrence, as `over_time` takes it."""


@dataclass(frozen=True)
class Packing:
    """Where each step of N sequences of at most T steps goes.

    As `torch.nn.utils.rnn.PackedSequence`, with its names, but without data, so that one packing serves inputs, states,
    targets and masks, and with a derivative of any order.

    Attributes:
        N, T: the shape of the batch.
        batch_sizes: how many sequences have a step 1, a step 2 and so on, never increasing; T alone where all have T.
        sorted_indices: (N,) int64, the sequences, longest first; None where all are T long and keep their order.
        indices: (r,) int64, n T + t of each packed row; None likewise.
        padding: (N, T, 1) boolean, True past the end of each row, if there are lengths and they could not be read: the
            padding is then packed too.
    """

    N: int
    T: int
    batch_sizes: BatchSizes
    sorted_indices: Tensor | None = None
    indices: Tensor | None = None
    padding: Tensor | None = None

    @classmethod
    def of(cls, N: int, T: int, lengths: Tensor | None = None) -> Packing:
        """The packing of `lengths` (N,); of N sequences of T steps where it is None, or where it cannot be read.

        Under torch.compile, export, vmap, CUDA graph capture and on the meta device lengths cannot be read. Padding is
        then packed like the rest, and `padding` has its indices.
        """
        if lengths is None or not readable(lengths):
            _check_traceable(T)
            return cls(N, T, T, padding=padding_mask(lengths, T))
        sorted_lengths, sorted_indices = lengths.long().sort(descending=True, stable=True)
        steps = torch.arange(T, device=lengths.device).unsqueeze(1)
        present = steps < sorted_lengths  # (T, N)
        batch_sizes = [n for n in present.sum(1).tolist() if n]
        return cls(N, T, tuple(batch_sizes), sorted_indices, (sorted_indices * T + steps)[present])

    def pack_integers(self, x: Tensor) -> Tensor:
        """Integers or booleans (N, T) as (r,)."""
        return x.t().reshape(-1) if self.indices is None else x.reshape(-1).index_select(0, self.indices)

    def pack(self, x: Tensor) -> Tensor:
        """(N, T, D) as (r, D)."""
        if self.indices is None:
            return flatten_rows(x.transpose(0, 1))
        return apply(Pack, PackWithJVP, flatten_rows(x), self.indices)

    def unpack(self, h: Tensor) -> Tensor:
        """(r, H) as (N, T, H), zeros past the end of each sequence."""
        if self.indices is None:
            return h.reshape(self.T, self.N, h.shape[-1]).transpose(0, 1)
        return apply(Unpack, UnpackWithJVP, h, self.indices, self.N * self.T).reshape(self.N, self.T, h.shape[-1])

    def sort(self, h: Tensor) -> Tensor:
        """(N, H), longest sequence first."""
        return h if self.sorted_indices is None else apply(Pack, PackWithJVP, h, self.sorted_indices)


def lengths_from_mask(real: Tensor) -> Tensor:
    """How many steps (N,) each row of `real` (N, T) boolean has: all up to the last that is True."""
    counts = torch.arange(1, real.shape[1] + 1, device=real.device)
    return torch.cat([real.new_zeros(real.shape[0], 1, dtype=torch.int64), real * counts], dim=1).amax(1)


def steps_of(batch_sizes: BatchSizes, h0: Tensor) -> Steps:
    """`batch_sizes` one by one, for the N sequences that begin with h0 (N, H).

    Where all have T steps, N is taken from a shape: where a tracer has its symbol.
    """
    if isinstance(batch_sizes, tuple):
        return batch_sizes
    return Uniform(batch_sizes, h0.shape[0]) if _is_symbolic(batch_sizes) else (h0.shape[0],) * batch_sizes


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
    """Whether T is a symbol of a tracer; not for torch.compile, which makes a graph for each T."""
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
            state and the outputs of step t; it reads no other tensor. The state it takes is the leading n_t rows of the
            last one; in reverse it is a gradient, zero for the rows that end at step t.
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
    rows_of_steps = zip_steps(steps, *sequences)
    outputs: list[Rows] = []
    for t in reversed(order) if reverse else order:
        state, out = step(tuple(resize_rows(part, steps[t]) for part in state), rows_of_steps[t], constants)
        outputs.append(out)
    if not steps:  # a step without rows gives the widths of the outputs
        _, out = step(
            tuple(resize_rows(part, 0) for part in state), tuple(x.narrow(0, 0, 0) for x in sequences), constants
        )
        return state, out
    return state, tuple(map(torch.cat, zip(*(reversed(outputs) if reverse else outputs), strict=True)))


def _scanned(
    step: Step, state: Rows, sequences: Rows, constants: Constants, steps: Uniform, reverse: bool
) -> tuple[Rows, Rows]:
    """`over_time` as one operator of a graph, which then holds for every T."""
    xs = [x.reshape(*steps, *x.shape[1:]) for x in sequences]
    state, out = scan(step, state, [x.flip(0) for x in xs] if reverse else xs, constants)
    out = tuple(x.flip(0) for x in out) if reverse else out
    # Through one axis: merging two axes gives a stride that is known only for N > 0, which torch.export would demand.
    return state, tuple(x.reshape(x.numel()).reshape(steps.T * steps.N, *x.shape[2:]) for x in out)


def split_steps(x: Tensor, batch_sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """(r, D) as T steps (n_t, D)."""
    return x.split(batch_sizes) if batch_sizes else ()


def zip_steps(batch_sizes: Sequence[int], *sequences: Tensor) -> list[Rows]:
    """Several packed sequences (r, ...) as T tuples of (n_t, ...)."""
    return list(zip(*(split_steps(s, batch_sizes) for s in sequences), strict=True))


def pad_packed(x: Tensor, steps: Steps, N: int) -> Tensor:
    """(r, H) as (N, T, H), zeros where a sequence has ended."""
    if isinstance(steps, Uniform):
        return x.reshape(*steps, x.shape[1]).transpose(0, 1)
    rows_of_steps = [resize_rows(x_t, N) for x_t in split_steps(x, steps)]
    return torch.stack(rows_of_steps, dim=1) if steps else x.reshape(N, 0, x.shape[1])


def first_step(h: Tensor, steps: Steps) -> Tensor:
    """The rows of the first step, (n_1, H)."""
    if isinstance(steps, Uniform):
        return h.narrow(0, 0, steps.N)
    return h.narrow(0, 0, steps[0] if steps else 0)


def shifted_states(h0: Tensor, h: Tensor, steps: Steps) -> Tensor:
    """The state before each step, (r, H): the leading rows of h0 (N, H), then those of each step of h (r, H)."""
    if isinstance(steps, Uniform):
        return torch.cat([h0, h]).narrow(0, 0, h.shape[0])
    before = [h0, *split_steps(h, steps)]
    return cat_steps([state.narrow(0, 0, n) for state, n in zip(before, steps, strict=False)], like=h)


def states_product(h0: Tensor, h: Tensor, da: Tensor, steps: Steps) -> Tensor:
    """The states before each step, transposed, times da (r, M): the gradient (H, M) of a recurrent weight.

    Where all sequences have all steps, without a copy of the states.
    """
    if isinstance(steps, Uniform) or not steps or steps[0] != steps[-1]:
        return shifted_states(h0, h, steps).T @ da
    n, r = steps[0], da.shape[0]
    return h0.narrow(0, 0, n).T @ da.narrow(0, 0, n) + h.narrow(0, 0, r - n).T @ da.narrow(0, n, r - n)


def last_rows(first: Tensor, h: Tensor, batch_sizes: BatchSizes) -> Tensor:
    """The state after the last step of each sequence, (N, H), in the order of the sequences.

    That is a row of h (r, H), or of `first` (N, H) where a sequence has no step. h is split only where sequences end:
    into rows of sequences that continue and rows of those that end, in turn.
    """
    steps = steps_of(batch_sizes, first)
    if isinstance(steps, Uniform):
        return torch.cat([first, h]).narrow(0, h.shape[0], steps.N)
    sizes, continuing = [], 0
    for n, following in zip(steps, (*steps[1:], 0), strict=False):
        continuing += following
        if following != n:
            sizes += [continuing, n - following]
            continuing = 0
    present = steps[0] if steps else 0
    none = first.split([present, first.shape[0] - present])[1]
    return torch.cat([*reversed(split_steps(h, sizes)[1::2]), none])


def cat_steps(steps: Sequence[Tensor], like: Tensor) -> Tensor:
    """T steps (n_t, H) as (r, H); `like` (..., H) gives the width where T is 0."""
    return torch.cat(list(steps)) if steps else like.narrow(0, 0, 0).clone()


def resize_rows(x: Tensor, n: int) -> Tensor:
    """The first n rows of x (m, H), with rows of zeros added where m < n."""
    m = x.shape[0]
    if m == n:
        return x
    return x.narrow(0, 0, n) if n < m else torch.cat([x, x.new_zeros(n - m, *x.shape[1:])])


def gather_rows(table: Tensor, index: Tensor | None) -> Tensor:
    """table[index] (r, D) of a table (R, D); the table itself without an index (r,)."""
    return table if index is None else table.index_select(0, index)


def scatter_sum(dout: Tensor, index: Tensor | None, R: int) -> Tensor:
    """The gradient (R, D) of the table of `gather_rows`: each row sums the rows of dout (r, D) that read it."""
    if index is None:
        return dout
    table = dout.new_zeros(R, dout.shape[1])
    return table.index_add_(0, index, dout) if may_overwrite(dout, index) else table.index_add(0, index, dout)


def check_packed(
    function: str, batch_sizes: int | Sequence[int], index: Tensor | None, axes: dict[str, int], like: Tensor
) -> tuple[BatchSizes, Tensor | None]:
    """Check `batch_sizes` and `index` against x (R, D) and h0 (N, H); return them, the index as int64.

    Raises:
        IndexError: an index is out of range.
        TypeError: an index is not a tensor of integers, or on another device than `like`.
        ValueError: batch_sizes increase, are more than N or below 1, or do not add up to the rows.
    """
    N, R = axes["N"], axes["R"]
    if isinstance(batch_sizes, Tensor) and torch.jit.is_tracing():
        _check_traceable(batch_sizes)
    batch_sizes = batch_sizes if isinstance(batch_sizes, int | SymInt) else tuple(batch_sizes)
    if not isinstance(batch_sizes, tuple):
        _check_traceable(batch_sizes)
        r = N * batch_sizes
    elif all(before >= n >= 0 for before, n in zip((N, *batch_sizes), batch_sizes, strict=False)):
        r = sum(batch_sizes)
    else:
        raise ValueError(
            f"{function}: batch_sizes must not increase, from at most N = {N} to 0 or more, but are {list(batch_sizes)}"
        )
    if index is not None:
        check_integers(function, "index", index, "r", {"r": r}, like)
        check_range(function, "index", index, R, "x has {high} rows")
        return batch_sizes, index.long()
    if r != R:
        raise ValueError(f"{function}: batch_sizes add up to {r}, but x has {R} rows")
    return batch_sizes, None


def scatter_rows(x: Tensor, indices: Tensor, R: int) -> Tensor:
    """(R, D): x (r, D) at the rows `indices`, zeros elsewhere."""
    out = x.new_zeros(R, x.shape[1])
    return out.index_copy_(0, indices, x) if may_overwrite(x, indices) else out.index_copy(0, indices, x)
