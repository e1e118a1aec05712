"""(d) The captioner in NumPy, forward and backward, as cs231n's assignment has its students write it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy import ndarray as Array

from torch_caption.model.captioner import CaptioningRNN


class Assignment:
    """Loss and gradients in float32, by the formulas of the assignment's rnn_layers.py.

    Args:
        model: where the weights come from (copies).
    """

    label: ClassVar[str] = "(d) NumPy"

    def __init__(self, model: CaptioningRNN):
        self.params = model.params()
        self.null = model.null
        self.forward_layer, self.backward_layer = LAYERS[model.cell_type]

    def loss(self, features: Array, captions: Array) -> tuple[float, dict[str, Array]]:
        """The loss of captions (N, T + 1) given features (N, F), and every weight's gradient."""
        p = self.params
        N = len(captions)
        words, targets = captions[:, :-1], captions[:, 1:]
        h0 = features @ p["W_proj"] + p["b_proj"]  # (N, H)
        x = p["W_embed"][words]  # (N, T, W)
        h, cache = self.forward_layer(x, h0, p["Wx"], p["Wh"], p["b"])
        scores = h @ p["W_vocab"] + p["b_vocab"]  # (N, T, V)
        loss, dscores = temporal_softmax_loss(scores, targets, targets != self.null)
        grads = {"b_vocab": dscores.sum(axis=(0, 1))}
        rows = dscores.reshape(-1, dscores.shape[-1])
        grads["W_vocab"] = h.reshape(len(rows), -1).T @ rows
        dh = (rows @ p["W_vocab"].T).reshape(h.shape)
        dx, dh0, grads["Wx"], grads["Wh"], grads["b"] = self.backward_layer(dh, cache)
        grads["W_embed"] = np.zeros_like(p["W_embed"])
        np.add.at(grads["W_embed"], words, dx)
        grads["W_proj"], grads["b_proj"] = features.T @ dh0, dh0.sum(axis=0)
        return loss / N, grads


def temporal_softmax_loss(scores: Array, y: Array, mask: Array) -> tuple[float, Array]:
    """Cross-entropy summed over time and batch, and its gradient over N: scores (N, T, V), y and mask (N, T)."""
    N, T, V = scores.shape
    flat, y, mask = scores.reshape(N * T, V), y.reshape(-1), mask.reshape(-1)
    probs = np.exp(flat - flat.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    place = np.arange(N * T)
    loss = -float(np.sum(mask * np.log(probs[place, y])))
    dscores = probs
    dscores[place, y] -= 1
    dscores *= mask[:, None] / np.float32(N)
    return loss, dscores.reshape(N, T, V)


def rnn_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> tuple[Array, tuple]:
    """h (N, T, H) of x (N, T, D), and what the backward needs."""
    prev_h, h = h0, np.empty((*x.shape[:2], h0.shape[1]), dtype=x.dtype)
    for t in range(x.shape[1]):
        prev_h = np.tanh(x[:, t] @ Wx + prev_h @ Wh + b)
        h[:, t] = prev_h
    return h, (x, h0, Wx, Wh, h)


def rnn_backward(dh: Array, cache: tuple) -> tuple[Array, ...]:
    """dx, dh0, dWx, dWh, db of dh (N, T, H)."""
    x, h0, Wx, Wh, h = cache
    dx, dWx, dWh, db = np.empty_like(x), np.zeros_like(Wx), np.zeros_like(Wh), np.zeros(Wh.shape[1], dtype=x.dtype)
    dprev_h = np.zeros_like(h0)
    for t in reversed(range(x.shape[1])):
        prev_h = h[:, t - 1] if t else h0
        da = (dh[:, t] + dprev_h) * (1 - h[:, t] ** 2)
        dx[:, t], dprev_h = da @ Wx.T, da @ Wh.T
        dWx += x[:, t].T @ da
        dWh += prev_h.T @ da
        db += da.sum(axis=0)
    return dx, dprev_h, dWx, dWh, db


def lstm_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> tuple[Array, tuple]:
    """h (N, T, H) of x (N, T, D), and what the backward needs; the first cell is zero."""
    H = h0.shape[1]
    prev_h, prev_c = h0, np.zeros_like(h0)
    h, steps = np.empty((*x.shape[:2], H), dtype=x.dtype), []
    for t in range(x.shape[1]):
        a = x[:, t] @ Wx + prev_h @ Wh + b  # (N, 4H)
        i, f, o = (sigmoid(a[:, k * H : (k + 1) * H]) for k in range(3))
        g = np.tanh(a[:, 3 * H :])
        next_c = f * prev_c + i * g
        tanh_c = np.tanh(next_c)
        steps.append((i, f, o, g, prev_h, prev_c, tanh_c))
        prev_h, prev_c = o * tanh_c, next_c
        h[:, t] = prev_h
    return h, (x, h0, Wx, Wh, steps)


def lstm_backward(dh: Array, cache: tuple) -> tuple[Array, ...]:
    """dx, dh0, dWx, dWh, db of dh (N, T, H)."""
    x, h0, Wx, Wh, steps = cache
    dx, dWx, dWh, db = np.empty_like(x), np.zeros_like(Wx), np.zeros_like(Wh), np.zeros(Wh.shape[1], dtype=x.dtype)
    dprev_h, dprev_c = np.zeros_like(h0), np.zeros_like(h0)
    for t in reversed(range(x.shape[1])):
        i, f, o, g, prev_h, prev_c, tanh_c = steps[t]
        dnext_h = dh[:, t] + dprev_h
        dc = dprev_c + dnext_h * o * (1 - tanh_c**2)
        gates = (dc * g * i * (1 - i), dc * prev_c * f * (1 - f), dnext_h * tanh_c * o * (1 - o), dc * i * (1 - g**2))
        da = np.concatenate(gates, axis=1)  # (N, 4H)
        dx[:, t], dprev_h, dprev_c = da @ Wx.T, da @ Wh.T, dc * f
        dWx += x[:, t].T @ da
        dWh += prev_h.T @ da
        db += da.sum(axis=0)
    return dx, dprev_h, dWx, dWh, db


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)) without overflow."""
    z = np.exp(-np.abs(a))
    return np.where(a >= 0, 1, z) / (1 + z)


LAYERS = {"rnn": (rnn_forward, rnn_backward), "lstm": (lstm_forward, lstm_backward)}
