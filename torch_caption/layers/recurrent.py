"""Recurrent layers: `torch.nn.RNN`, `LSTM` and `GRU` with hand-derived gradients.

All sequences run packed, step after step (see `functions.packing`): of a tensor (T, N, D) that is a view.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torch_caption.functions import Pack, Packing, packed_gru, packed_lstm, packed_projected_lstm, packed_rnn
from torch_caption.functions._common import apply, check_lengths, zero_padding
from torch_caption.functions.packing import BatchSizes, PackWithJVP, last_rows

from .weights import check_device, gru_weights, ifog_weights, rnn_weights

States = tuple[Tensor, ...]
"""(h,), or (h, c) of an LSTM."""


class _Recurrent(nn.RNNBase):
    """What the layers share. Of `nn.RNNBase` they have the constructor, the weights and their names.

    Weights are read by name at each call, so that any of them may be replaced: by a parametrization, pruning, a buffer,
    `functional_call`, a replica.
    """

    def flatten_parameters(self) -> None:
        """Nothing: the weights need no common memory."""

    def forward(self, input: Tensor | PackedSequence, hx: Any = None, lengths: Tensor | None = None) -> Any:
        """Run the layers over sequences.

        Args:
            input: (T, N, D) floating-point, (N, T, D) with `batch_first`, (T, D) without a batch axis, or a
                PackedSequence.
            hx: the initial states of all layers and directions, (num_layers * directions, N, H), without N if `input`
                has no batch axis; of an LSTM two of them, h_0 and c_0. Zero if None.
            lengths: (N,) integers, 0 <= lengths <= T: how many steps each sequence has. Padding is neither read nor
                computed, except under torch.compile, export, vmap, CUDA graph capture and on the meta device, where
                lengths cannot be read.

        Returns:
            the hidden states of the last layer, like `input`, H for each direction, zero past the end of each sequence;
            and the states after the last step, like `hx`.

        Raises:
            IndexError: a length is out of range.
            RuntimeError: a size or device does not fit, or T is 0.
            TypeError: `lengths` are not integers or on another device, or the dtype of a state differs.
            ValueError: another number of axes, another dtype, or `lengths` with a PackedSequence or without a batch.
        """
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError(f"{self._owner}: a PackedSequence has its own lengths")
            sizes = tuple(input.batch_sizes.tolist())
            packed = Packing(sizes[0], len(sizes), sizes, input.sorted_indices)
            self.check_input(input.data, input.batch_sizes)
            h, states = self._in_order(input.data, self._initial(input.data, hx, sizes[0], batched=True), packed)
            return input._replace(data=h), self._as_hx(states)
        if input.dim() not in (2, 3):
            raise ValueError(f"{self._owner}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        if lengths is not None and not batched:
            raise ValueError(f"{self._owner}: lengths need a batch axis")
        x = input if batched else input.unsqueeze(0 if self.batch_first else 1)
        self.check_input(x, None)
        x = x if self.batch_first else x.transpose(0, 1)
        N, T, _ = x.shape
        if T == 0:
            raise RuntimeError(f"Expected sequence length to be larger than 0 in {self._owner}")
        check_lengths(self._owner, lengths, {"N": N, "T": T}, like=x)
        packed = Packing.of(N, T, lengths)
        first = self._initial(x, hx, N, batched)
        h, states = self._in_order(packed.pack(zero_padding(x, packed.padding)), first, packed)
        out = zero_padding(packed.unpack(h), packed.padding)
        out = out if self.batch_first else out.transpose(0, 1)
        if not batched:
            out, states = out.squeeze(0 if self.batch_first else 1), tuple(part.squeeze(1) for part in states)
        return out, self._as_hx(states)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """As in `nn.RNNBase`, with the weights that the layer has now."""
        weight = self.weight_ih_l0
        if input.dtype != weight.dtype and not torch.is_autocast_enabled(input.device.type):
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
            )
        axes = 3 if batch_sizes is None else 2
        if input.dim() != axes:
            raise RuntimeError(f"input must have {axes} dimensions, got {input.dim()}")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        check_device(input, cast(Tensor, weight), "parameter")

    @property
    def _owner(self) -> str:
        return type(self).__name__

    @property
    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def _widths(self) -> tuple[int, ...]:
        """The width of each state."""
        return (self.hidden_size,)

    def _as_states(self, hx: Any) -> States:
        """`hx` as a tuple of states."""
        return (hx,)

    def _as_hx(self, states: States) -> Any:
        """A tuple of states as it is returned."""
        return states[0]

    def _initial(self, x: Tensor, hx: Any, N: int, batched: bool) -> States:
        """The initial states (num_layers * directions, N, H), zero where `hx` is None.

        Raises:
            RuntimeError: they do not fit.
        """
        rows, widths = self.num_layers * len(self._directions), self._widths()
        if hx is None:
            return tuple(x.new_zeros(rows, N, width) for width in widths)
        states = self._as_states(hx)
        axes = 3 if batched else 2
        if any(state.dim() != axes for state in states):
            got = ", ".join(f"{state.dim()}-D" for state in states)
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {axes}-D but got {got}")
        states = states if batched else tuple(state.unsqueeze(1) for state in states)
        for k, (state, width) in enumerate(zip(states, widths, strict=True)):
            name = "hidden" if len(states) == 1 else f"hidden[{k}]"
            self.check_hidden_size(state, (rows, N, width), f"Expected {name} size {{}}, got {{}}")
            check_device(x, state, "hidden")
        return states

    def _in_order(self, x: Tensor, states: States, packed: Packing) -> tuple[Tensor, States]:
        """`_layers` of states in the order of the caller's sequences."""
        order = packed.sorted_indices
        if order is None:
            return self._layers(x, states, packed)
        h, last = self._layers(x, tuple(part.index_select(1, order) for part in states), packed)
        inverse = torch.argsort(order)
        return h, tuple(part.index_select(1, inverse) for part in last)

    def _layers(self, x: Tensor, states: States, packed: Packing) -> tuple[Tensor, States]:
        """The hidden states (r, H) of the last layer, and the last states, of packed x (r, D)."""
        mirror = _mirror(packed, x.device) if self.bidirectional else None
        last: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer and self.training and self.dropout:
                x = nn.functional.dropout(x, self.dropout)
            outputs = []
            for suffix in self._directions:
                first = tuple(part[len(last)] for part in states)
                turned = mirror if suffix else None
                rows = self._run(turned(x) if turned else x, first, packed.batch_sizes, f"_l{layer}{suffix}")
                last.append([_last(*pair, packed) for pair in zip(first, rows, strict=True)])
                outputs.append(turned(rows[0]) if turned else rows[0])
            x = torch.cat(outputs, dim=1) if self.bidirectional else outputs[0]
        return x, tuple(torch.stack(part) for part in zip(*last, strict=True))

    def _run(self, x: Tensor, first: States, batch_sizes: BatchSizes, suffix: str) -> States:
        """The states (r, H) after each step of the layer and direction `suffix`, of packed x (r, D)."""
        raise NotImplementedError

    def _weights(self, suffix: str) -> list[Any]:
        """weight_ih, weight_hh, bias_ih, bias_hh of a layer and direction; without biases None in their places."""
        weights = [getattr(self, f"weight_{part}{suffix}") for part in ("ih", "hh")]
        return weights + [getattr(self, f"bias_{part}{suffix}") if self.bias else None for part in ("ih", "hh")]


class RNN(_Recurrent):
    """`torch.nn.RNN`, with its constructor and weights, over `functions.packed_rnn`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: int | None = None,
    ) -> None:
        """Take the arguments of `torch.nn.RNN`.

        Raises:
            TypeError: an argument is of another type.
            ValueError: a size, the dropout probability or the nonlinearity is out of its range; `proj_size`.
        """
        _refuse_projection(proj_size)
        modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
        if nonlinearity not in modes:
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        options: dict[str, Any] = {"batch_first": batch_first, "dropout": dropout, "bidirectional": bidirectional}
        super().__init__(
            modes[nonlinearity], input_size, hidden_size, num_layers, bias, **options, device=device, dtype=dtype
        )
        self.nonlinearity = nonlinearity

    def _run(self, x: Tensor, first: States, batch_sizes: BatchSizes, suffix: str) -> States:
        (h0,), (Wx, Wh, b) = first, rnn_weights(*self._weights(suffix))
        return (packed_rnn(x, h0, Wx, Wh, b, batch_sizes, nonlinearity=self.nonlinearity),)


class GRU(_Recurrent):
    """`torch.nn.GRU`, with its constructor and weights, over `functions.packed_gru`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        proj_size: int | None = None,
    ) -> None:
        """Take the arguments of `torch.nn.GRU`.

        Raises:
            TypeError: an argument is of another type.
            ValueError: a size or the dropout probability is out of its range; `proj_size`.
        """
        _refuse_projection(proj_size)
        options: dict[str, Any] = {"batch_first": batch_first, "dropout": dropout, "bidirectional": bidirectional}
        super().__init__("GRU", input_size, hidden_size, num_layers, bias, **options, device=device, dtype=dtype)

    def _run(self, x: Tensor, first: States, batch_sizes: BatchSizes, suffix: str) -> States:
        (h0,), (Wx, Wh, b, bn) = first, gru_weights(*self._weights(suffix))
        return (packed_gru(x, h0, Wx, Wh, b, bn, batch_sizes),)


class LSTM(_Recurrent):
    """`torch.nn.LSTM`, with its constructor and weights, over `functions.packed_lstm`, or with `proj_size`
    `functions.packed_projected_lstm`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Take the arguments of `torch.nn.LSTM`.

        Raises:
            TypeError: an argument is of another type.
            ValueError: a size or the dropout probability is out of its range.
        """
        options: dict[str, Any] = {"batch_first": batch_first, "dropout": dropout, "bidirectional": bidirectional}
        options["proj_size"] = proj_size
        super().__init__("LSTM", input_size, hidden_size, num_layers, bias, **options, device=device, dtype=dtype)

    def _widths(self) -> tuple[int, ...]:
        return self.proj_size or self.hidden_size, self.hidden_size

    def _as_states(self, hx: Any) -> States:
        return tuple(hx)

    def _as_hx(self, states: States) -> Any:
        return states

    def _run(self, x: Tensor, first: States, batch_sizes: BatchSizes, suffix: str) -> States:
        h0, c0 = first
        options: dict[str, Any] = {"batch_sizes": batch_sizes, "c0": c0, "return_cells": True}
        if not self.proj_size:
            Wx, Wh, b = rnn_weights(*self._weights(suffix))
            return cast(States, packed_lstm(x, h0, Wx, Wh, b, **options, gate_order="ifgo"))
        Wx, Wh, b = ifog_weights(*self._weights(suffix))
        return cast(States, packed_projected_lstm(x, h0, Wx, Wh, getattr(self, f"weight_hr{suffix}").T, b, **options))


def _refuse_projection(proj_size: int | None) -> None:
    """Of an RNN or GRU.

    Raises:
        ValueError: `proj_size` is given.
    """
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


def _mirror(packed: Packing, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What reverses each sequence of packed rows (r, D); it is its own inverse."""
    N, T = packed.N, packed.T
    if packed.padding is not None:
        lengths = (~packed.padding).sum(1)  # (N, 1)
        t = torch.arange(T, device=device)
        mirrored = torch.where(t < lengths, lengths - 1 - t, t)  # (N, T)
        index = (mirrored * N + torch.arange(N, device=device).unsqueeze(1)).t().reshape(-1)
    elif isinstance(packed.batch_sizes, tuple):
        batch_sizes = torch.tensor(packed.batch_sizes, device=device)
        present = torch.arange(N, device=device) < batch_sizes.unsqueeze(1)  # (T, N)
        t, n = present.nonzero(as_tuple=True)  # of each row
        index = (batch_sizes.cumsum(0) - batch_sizes)[present.sum(0)[n] - 1 - t] + n
    else:
        return lambda x: x.reshape(T, N, x.shape[1]).flip(0).reshape(x.shape)
    return lambda x: apply(Pack, PackWithJVP, x, index)


def _last(first: Tensor, h: Tensor, packed: Packing) -> Tensor:
    """The state (N, H) after each sequence's last step; `first` where it has none."""
    if packed.padding is None:
        return last_rows(first, h, packed.batch_sizes)
    n = torch.arange(packed.N, device=h.device)
    return torch.cat([first, h]).index_select(0, (~packed.padding).sum((1, 2)) * packed.N + n)
