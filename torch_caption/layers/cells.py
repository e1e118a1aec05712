"""One step of a recurrent layer: `torch.nn.RNNCell`, `LSTMCell` and `GRUCell` with hand-derived gradients."""

from __future__ import annotations

from torch import Tensor, nn

from torch_caption.functions import gru_step, lstm_step, rnn_step

from .weights import check_device, gru_weights, rnn_weights


class RNNCell(nn.RNNCell):
    """`torch.nn.RNNCell`, with its constructor and weights, over `functions.rnn_step`."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next hidden state (N, H), or (H,), of x (N, D), or (D,), and of hx, zero if None.

        Raises:
            RuntimeError: a size or device does not fit, or the nonlinearity is unknown.
            TypeError: a dtype differs.
            ValueError: another number of axes.
        """
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        x, (h,) = _batched(self, input, [hx])
        Wx, Wh, b = rnn_weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return _as_given(input, rnn_step(x, h, Wx, Wh, b, self.nonlinearity))


class LSTMCell(nn.LSTMCell):
    """`torch.nn.LSTMCell`, with its constructor and weights, over `functions.lstm_step`."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The next hidden and cell states, (N, H) or (H,) each, of x (N, D), or (D,), and of hx, zeros if None.

        Raises:
            RuntimeError: a size or device does not fit.
            TypeError: a dtype differs.
            ValueError: another number of axes.
        """
        x, (h, c) = _batched(self, input, [None, None] if hx is None else list(hx))
        Wx, Wh, b = rnn_weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        next_h, next_c = lstm_step(x, h, c, Wx, Wh, b, gate_order="ifgo")
        return _as_given(input, next_h), _as_given(input, next_c)


class GRUCell(nn.GRUCell):
    """`torch.nn.GRUCell`, with its constructor and weights, over `functions.gru_step`."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next hidden state (N, H), or (H,), of x (N, D), or (D,), and of hx, zero if None.

        Raises:
            RuntimeError: a size or device does not fit.
            TypeError: a dtype differs.
            ValueError: another number of axes.
        """
        x, (h,) = _batched(self, input, [hx])
        Wx, Wh, b, bn = gru_weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return _as_given(input, gru_step(x, h, Wx, Wh, b, bn))


def _batched(cell: nn.RNNCellBase, x: Tensor, states: list[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
    """x (N, D) and the states (N, H), zero where None, with N = 1 if there is no batch axis.

    Raises:
        RuntimeError, ValueError: of the types of torch.nn.
    """
    owner, D, H = type(cell).__name__, cell.input_size, cell.hidden_size
    if x.dim() not in (1, 2):
        raise ValueError(f"{owner}: Expected input to be 1D or 2D, got {x.dim()}D instead")
    if x.shape[-1] != D:
        raise RuntimeError(f"{owner}: input has inconsistent input_size: got {x.shape[-1]} expected {D}")
    check_device(x, cell.weight_ih, "parameter")
    batched = []
    for k, state in enumerate(states):
        name = "hidden" if len(states) == 1 else f"hx[{k}]"
        h = x.new_zeros(*x.shape[:-1], H) if state is None else state
        if h.dim() not in (1, 2):
            raise ValueError(f"{owner}: Expected {name} to be 1D or 2D, got {h.dim()}D instead")
        if h.shape[-1] != H:
            raise RuntimeError(f"{owner}: {name} has inconsistent hidden_size: got {h.shape[-1]}, expected {H}")
        if h.shape[:-1] != x.shape[:-1]:
            raise RuntimeError(f"{owner}: Input batch size {_batch(x)} doesn't match {name} batch size {_batch(h)}")
        check_device(x, h, "hidden")
        batched.append(_rows(h))
    return _rows(x), batched


def _rows(x: Tensor) -> Tensor:
    """(1, D) of x (D,)."""
    return x if x.dim() == 2 else x.unsqueeze(0)


def _as_given(x: Tensor, h: Tensor) -> Tensor:
    """h (N, H), or (H,) if x has no batch axis."""
    return h if x.dim() == 2 else h.squeeze(0)


def _batch(x: Tensor) -> str:
    return str(x.shape[0]) if x.dim() == 2 else "none"
