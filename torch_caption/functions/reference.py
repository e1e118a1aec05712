"""The oracle: every public function of `torch_caption.functions` in plain differentiable torch.

Written for sight and not for speed; nothing is checked, and torch.autograd makes the gradients. Shapes and names are
those of `torch_caption.functions`, where they are described.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import SymInt, Tensor


def affine(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x @ w + b


def temporal_affine(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x @ w + b


def word_embedding(x: Tensor, W: Tensor) -> Tensor:
    return W[x.long()]


def rnn_step(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, nonlinearity: str = "tanh") -> Tensor:
    return {"tanh": torch.tanh, "relu": torch.relu}[nonlinearity](x @ Wx + prev_h @ Wh + b)


def rnn(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    lengths: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    h, steps = h0, [h0]
    for t in range(x.shape[1]):
        h = rnn_step(x[:, t], h, Wx, Wh, b, nonlinearity)
        steps.append(h)
    return _blank(torch.stack(steps, dim=1)[:, 1:], lengths)


def packed_rnn(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    batch_sizes: int | Sequence[int],
    index: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    x = x if index is None else x[index.long()]
    h, steps = h0, [h0[:0]]
    for x_t in _steps(x, batch_sizes, h0):
        h = rnn_step(x_t, h[: len(x_t)], Wx, Wh, b, nonlinearity)
        steps.append(h)
    return torch.cat(steps)


def lstm_step(
    x: Tensor, prev_h: Tensor, prev_c: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, gate_order: str = "ifog"
) -> tuple[Tensor, Tensor]:
    a = (x @ Wx + prev_h @ Wh + b).chunk(4, dim=1)
    a_i, a_f, a_o, a_g = (a[gate_order.index(gate)] for gate in "ifog")
    i, f, o, g = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.sigmoid(a_o), torch.tanh(a_g)
    next_c = f * prev_c + i * g
    return o * torch.tanh(next_c), next_c


def lstm(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    lengths: Tensor | None = None,
    c0: Tensor | None = None,
    return_state: bool = False,
    gate_order: str = "ifog",
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    h, c = h0, torch.zeros_like(h0) if c0 is None else c0
    steps_h, steps_c = [h], [c]
    for t in range(x.shape[1]):
        h, c = lstm_step(x[:, t], h, c, Wx, Wh, b, gate_order)
        steps_h.append(h)
        steps_c.append(c)
    hs, cs = torch.stack(steps_h, dim=1), torch.stack(steps_c, dim=1)  # (N, 1 + T, H)
    out = _blank(hs[:, 1:], lengths)
    if not return_state:
        return out
    n = torch.arange(x.shape[0], device=x.device)
    last = x.shape[1] if lengths is None else lengths.long()
    return out, (hs[n, last], cs[n, last])


def packed_lstm(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    batch_sizes: int | Sequence[int],
    index: Tensor | None = None,
    c0: Tensor | None = None,
    return_cells: bool = False,
    gate_order: str = "ifog",
) -> Tensor | tuple[Tensor, Tensor]:
    x = x if index is None else x[index.long()]
    h, c = h0, torch.zeros_like(h0) if c0 is None else c0
    steps_h, steps_c = [h0[:0]], [c[:0]]
    for x_t in _steps(x, batch_sizes, h0):
        n = len(x_t)
        h, c = lstm_step(x_t, h[:n], c[:n], Wx, Wh, b, gate_order)
        steps_h.append(h)
        steps_c.append(c)
    return (torch.cat(steps_h), torch.cat(steps_c)) if return_cells else torch.cat(steps_h)


def projected_lstm_step(
    x: Tensor, prev_h: Tensor, prev_c: Tensor, Wx: Tensor, Wh: Tensor, Wr: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    u, next_c = lstm_step(x, prev_h, prev_c, Wx, Wh, b)
    return u @ Wr, next_c


def projected_lstm(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    Wr: Tensor,
    b: Tensor,
    lengths: Tensor | None = None,
    c0: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    h, c = h0, x.new_zeros(x.shape[0], Wr.shape[0]) if c0 is None else c0
    steps_h, steps_c = [h], [c]
    for t in range(x.shape[1]):
        h, c = projected_lstm_step(x[:, t], h, c, Wx, Wh, Wr, b)
        steps_h.append(h)
        steps_c.append(c)
    hs, cs = torch.stack(steps_h, dim=1), torch.stack(steps_c, dim=1)  # (N, 1 + T, P), (N, 1 + T, H)
    out = _blank(hs[:, 1:], lengths)
    if not return_state:
        return out
    n = torch.arange(x.shape[0], device=x.device)
    last = x.shape[1] if lengths is None else lengths.long()
    return out, (hs[n, last], cs[n, last])


def packed_projected_lstm(
    x: Tensor,
    h0: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    Wr: Tensor,
    b: Tensor,
    batch_sizes: int | Sequence[int],
    index: Tensor | None = None,
    c0: Tensor | None = None,
    return_cells: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    x = x if index is None else x[index.long()]
    h, c = h0, x.new_zeros(h0.shape[0], Wr.shape[0]) if c0 is None else c0
    steps_h, steps_c = [h[:0]], [c[:0]]
    for x_t in _steps(x, batch_sizes, h0):
        n = len(x_t)
        h, c = projected_lstm_step(x_t, h[:n], c[:n], Wx, Wh, Wr, b)
        steps_h.append(h)
        steps_c.append(c)
    return (torch.cat(steps_h), torch.cat(steps_c)) if return_cells else torch.cat(steps_h)


def gru_step(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, bn: Tensor) -> Tensor:
    ax_r, ax_z, ax_n = (x @ Wx + b).chunk(3, dim=1)
    ah_r, ah_z, ah_n = (prev_h @ Wh).chunk(3, dim=1)
    r, z = torch.sigmoid(ax_r + ah_r), torch.sigmoid(ax_z + ah_z)
    n = torch.tanh(ax_n + r * (ah_n + bn))
    return (1 - z) * n + z * prev_h


def gru(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, bn: Tensor, lengths: Tensor | None = None) -> Tensor:
    h, steps = h0, [h0]
    for t in range(x.shape[1]):
        h = gru_step(x[:, t], h, Wx, Wh, b, bn)
        steps.append(h)
    return _blank(torch.stack(steps, dim=1)[:, 1:], lengths)


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
    x = x if index is None else x[index.long()]
    h, steps = h0, [h0[:0]]
    for x_t in _steps(x, batch_sizes, h0):
        h = gru_step(x_t, h[: len(x_t)], Wx, Wh, b, bn)
        steps.append(h)
    return torch.cat(steps)


def dot_product_attention(prev_h: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    N, H, *positions = A.shape
    scores = torch.einsum("nh,nhl->nl", prev_h, A.flatten(2)) / H**0.5
    weights = torch.softmax(scores, dim=1)
    attn = torch.einsum("nl,nhl->nh", weights.to(A.dtype), A.flatten(2))
    return attn, weights.reshape(N, *positions)


def attention_lstm_step(
    x: Tensor, prev_h: Tensor, prev_c: Tensor, A: Tensor, Wx: Tensor, Wh: Tensor, Wattn: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    attn, _ = dot_product_attention(prev_h, A)
    return lstm_step(x, prev_h, prev_c, Wx, Wh, b + attn @ Wattn)


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
    N, T, _ = x.shape
    mean = A.flatten(2).mean(dim=2)
    h, c = mean if h0 is None else h0, mean if c0 is None else c0
    steps_h, steps_c, steps_weights = [h], [c], [A.new_zeros(N, *A.shape[2:])]
    for t in range(T):
        steps_weights.append(dot_product_attention(h, A)[1])
        h, c = attention_lstm_step(x[:, t], h, c, A, Wx, Wh, Wattn, b)
        steps_h.append(h)
        steps_c.append(c)
    hs, cs, weights = (torch.stack(steps, dim=1) for steps in (steps_h, steps_c, steps_weights))  # (N, 1 + T, ...)
    n = torch.arange(N, device=x.device)
    last = T if lengths is None else lengths.long()
    out = _blank(hs[:, 1:], lengths)
    state = [(hs[n, last], cs[n, last])] if return_state else []
    maps = [_blank(weights[:, 1:].flatten(2), lengths).reshape(N, T, *A.shape[2:])] if return_weights else []
    return (out, *state, *maps) if return_state or return_weights else out


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
    x = x if index is None else x[index.long()]
    mean = A.flatten(2).mean(dim=2)
    h, c, steps = mean if h0 is None else h0, mean if c0 is None else c0, [mean[:0]]
    for x_t in _steps(x, batch_sizes, mean):
        n = len(x_t)
        h, c = attention_lstm_step(x_t, h[:n], c[:n], A[:n], Wx, Wh, Wattn, b)
        steps.append(h)
    return torch.cat(steps)


def temporal_softmax_loss(
    x: Tensor, y: Tensor, mask: Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    y = torch.where(mask, y, 0) if mask.dtype == torch.bool else y
    x = x if x.dtype == torch.float64 else x.float()
    log_p = torch.log_softmax(x, dim=-1)
    right = log_p.gather(-1, y.long().unsqueeze(-1)).squeeze(-1)  # (N, T)
    expected = (1 - label_smoothing) * right + label_smoothing * log_p.mean(dim=-1) if label_smoothing else right
    weighted = torch.where(mask, expected, 0) if mask.dtype == torch.bool else expected * mask
    return -weighted if reduction == "none" else -weighted.sum() / max(x.shape[0], 1)


def temporal_affine_softmax_loss(
    h: Tensor,
    w: Tensor,
    b: Tensor,
    y: Tensor,
    mask: Tensor,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    return temporal_softmax_loss(temporal_affine(h, w, b), y, mask, label_smoothing, reduction)


def _steps(x: Tensor, batch_sizes: int | Sequence[int], h0: Tensor) -> tuple[Tensor, ...]:
    """Packed rows, step by step; a number of steps is one that all sequences have."""
    return x.split([h0.shape[0]] * int(batch_sizes) if isinstance(batch_sizes, int | SymInt) else list(batch_sizes))


def _blank(h: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero past the end of each row."""
    if lengths is None:
        return h
    t = torch.arange(h.shape[1], device=h.device)
    return torch.where((t < lengths.long().unsqueeze(1)).unsqueeze(2), h, 0)
