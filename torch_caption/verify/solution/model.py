"""A model solution of the assignment's functions, of which `mistakes` are made.

Plain torch in float64, in the form that a student writes: each `*_forward` returns its outputs and a cache, each
`*_backward` the gradients in the order of the inputs. A test compares all of it with `torch_caption.functions`.
`mistakes.Mistake` replaces a line of this file; the file is therefore read as text too, and each line that a mistake
replaces occurs once in its function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, cat, exp, log, sigmoid, stack, tanh, zeros_like

Params = dict[str, Tensor]


# Words and the vocabulary layer --------------------------------------------------------------------------------------


def word_embedding_forward(x: Tensor, W: Tensor) -> tuple[Tensor, Any]:
    out = W[x]
    return out, (x, W)


def word_embedding_backward(dout: Tensor, cache: Any) -> Tensor:
    x, W = cache
    dW = zeros_like(W)
    dW = dW.index_put((x,), dout, accumulate=True)
    return dW


def temporal_affine_forward(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    out = x @ w + b
    return out, (x, w)


def temporal_affine_backward(dout: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, w = cache
    N, T, D = x.shape
    M = w.shape[1]
    dx = dout @ w.T
    dw = x.reshape(N * T, D).T @ dout.reshape(N * T, M)
    db = dout.sum((0, 1))
    return dx, dw, db


def temporal_softmax_loss(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    N, T, V = x.shape
    mask = mask.to(x.dtype)
    shifted = x - x.amax(2, keepdim=True)
    p = exp(shifted) / exp(shifted).sum(2, keepdim=True)
    log_p = shifted - log(exp(shifted).sum(2, keepdim=True))
    right = log_p.gather(2, y.unsqueeze(2)).squeeze(2)
    loss = -(right * mask).sum() / N
    dx = p - one_hot(y, V)
    dx = dx / N
    dx = dx * mask.unsqueeze(2)
    return loss, dx


def one_hot(y: Tensor, V: int) -> Tensor:
    return (y.unsqueeze(-1) == torch.arange(V)).double()


# The vanilla RNN -----------------------------------------------------------------------------------------------------


def rnn_step_forward(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    a = x @ Wx + prev_h @ Wh + b
    next_h = tanh(a)
    return next_h, (x, prev_h, Wx, Wh, a, next_h)


def rnn_step_backward(dnext_h: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, prev_h, Wx, Wh, a, next_h = cache
    da = dnext_h * (1 - next_h**2)
    dx = da @ Wx.T
    dprev_h = da @ Wh.T
    dWx = x.T @ da
    dWh = prev_h.T @ da
    db = da.sum(0)
    return dx, dprev_h, dWx, dWh, db


def rnn_forward(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    N, T, D = x.shape
    prev_h, h, caches = h0, [], []
    for t in range(T):
        next_h, cache = rnn_step_forward(x[:, t], prev_h, Wx, Wh, b)
        h.append(next_h)
        caches.append(cache)
        prev_h = next_h
    return stack(h, 1), caches


def rnn_backward(dh: Tensor, caches: Any) -> Any:
    T = len(caches)
    dprev_h = zeros_like(dh[:, 0])
    dxs = [zeros_like(caches[0][0])] * T
    dWx, dWh, db = zeros_like(caches[0][2]), zeros_like(caches[0][3]), 0 * dh[0, 0]
    for t in reversed(range(T)):
        dnext_h = dh[:, t] + dprev_h
        dx, dprev_h, dWx_t, dWh_t, db_t = rnn_step_backward(dnext_h, caches[t])
        dxs[t] = dx
        dWx = dWx + dWx_t
        dWh = dWh + dWh_t
        db = db + db_t
    dh0 = dprev_h
    return stack(dxs, 1), dh0, dWx, dWh, db


# The LSTM ------------------------------------------------------------------------------------------------------------


def lstm_step_forward(
    x: Tensor, prev_h: Tensor, prev_c: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, attn: Any = None, Wattn: Any = None
) -> tuple[Tensor, Tensor, Any]:
    a = x @ Wx + prev_h @ Wh + b
    if attn is not None:
        a = a + attn @ Wattn
    a_i, a_f, a_o, a_g = a.chunk(4, 1)
    i, f, o, g = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o), tanh(a_g)
    next_c = f * prev_c + i * g
    next_h = o * tanh(next_c)
    return next_h, next_c, (x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c, a_i, a_f, a_o, a_g)


def lstm_step_backward(dnext_h: Tensor, dnext_c: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c, a_i, a_f, a_o, a_g = cache
    dc = dnext_c + dnext_h * o * (1 - tanh(next_c) ** 2)
    di = dc * g
    df = dc * prev_c
    do = dnext_h * tanh(next_c)
    dg = dc * i
    dprev_c = dc * f
    da_i = di * i * (1 - i)
    da_f = df * f * (1 - f)
    da_o = do * o * (1 - o)
    da_g = dg * (1 - g**2)
    da = cat([da_i, da_f, da_o, da_g], 1)
    dx = da @ Wx.T
    dprev_h = da @ Wh.T
    dWx = x.T @ da
    dWh = prev_h.T @ da
    db = da.sum(0)
    return dx, dprev_h, dprev_c, dWx, dWh, db


def lstm_forward(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    N, T, D = x.shape
    prev_h, prev_c, h, caches = h0, zeros_like(h0), [], []
    for t in range(T):
        next_h, next_c, cache = lstm_step_forward(x[:, t], prev_h, prev_c, Wx, Wh, b)
        h.append(next_h)
        caches.append(cache)
        prev_h, prev_c = next_h, next_c
    return stack(h, 1), caches


def lstm_backward(dh: Tensor, caches: Any) -> Any:
    T = len(caches)
    dprev_h, dprev_c = zeros_like(dh[:, 0]), zeros_like(dh[:, 0])
    dxs = [zeros_like(caches[0][0])] * T
    dWx, dWh, db = zeros_like(caches[0][3]), zeros_like(caches[0][4]), 0 * caches[0][3][0]
    for t in reversed(range(T)):
        dnext_h = dh[:, t] + dprev_h
        dnext_c = dprev_c
        dx, dprev_h, dprev_c, dWx_t, dWh_t, db_t = lstm_step_backward(dnext_h, dnext_c, caches[t])
        dxs[t] = dx
        dWx = dWx + dWx_t
        dWh = dWh + dWh_t
        db = db + db_t
    dh0 = dprev_h
    return stack(dxs, 1), dh0, dWx, dWh, db


# Attention: forward alone, which autograd differentiates -------------------------------------------------------------


def dot_product_attention(prev_h: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    N, H, *positions = A.shape
    A = A.reshape(N, H, -1)
    scores = (prev_h.unsqueeze(2) * A).sum(1)
    scores = scores / H**0.5
    weights = torch.softmax(scores, 1)
    attn = (weights.unsqueeze(1) * A).sum(2)
    return attn, weights.reshape(N, *positions)


def attention_forward(x: Tensor, A: Tensor, Wx: Tensor, Wh: Tensor, Wattn: Tensor, b: Tensor) -> Tensor:
    h0 = A.mean((2, 3))
    c0 = h0
    prev_h, prev_c, h = h0, c0, []
    for t in range(x.shape[1]):
        attn, _ = dot_product_attention(prev_h, A)
        next_h, next_c, _ = lstm_step_forward(x[:, t], prev_h, prev_c, Wx, Wh, b, attn, Wattn)
        h.append(next_h)
        prev_h, prev_c = next_h, next_c
    return stack(h, 1)


# The captioner -------------------------------------------------------------------------------------------------------


def captioner_loss(
    features: Tensor, captions: Tensor, params: Params, cell: str, null: int, backward: bool = True
) -> tuple[Tensor, Params]:
    captions_in = captions[:, :-1]
    captions_out = captions[:, 1:]
    mask = captions_out != null
    W_proj, b_proj, W_embed = params["W_proj"], params["b_proj"], params["W_embed"]
    Wx, Wh, b, W_vocab, b_vocab = (params[name] for name in ("Wx", "Wh", "b", "W_vocab", "b_vocab"))
    x, of_words = word_embedding_forward(captions_in, W_embed)
    if cell == "attention":
        A = (features.movedim(1, -1) @ W_proj + b_proj).movedim(-1, 1)
        h = attention_forward(x, A, Wx, Wh, params["Wattn"], b)
    else:
        h0 = features @ W_proj + b_proj
        sequence_forward = rnn_forward if cell == "rnn" else lstm_forward
        h, of_sequence = sequence_forward(x, h0, Wx, Wh, b)
    scores, of_scores = temporal_affine_forward(h, W_vocab, b_vocab)
    loss, dscores = temporal_softmax_loss(scores, captions_out, mask)
    grads: Params = {}
    if not backward:
        return loss, grads
    dh, grads["W_vocab"], grads["b_vocab"] = temporal_affine_backward(dscores, of_scores)
    sequence_backward = rnn_backward if cell == "rnn" else lstm_backward
    dx, dh0, grads["Wx"], grads["Wh"], grads["b"] = sequence_backward(dh, of_sequence)
    grads["W_embed"] = word_embedding_backward(dx, of_words)
    grads["W_proj"] = features.T @ dh0
    grads["b_proj"] = dh0.sum(0)
    return loss, grads


def captioner_sample(
    features: Tensor, max_length: int, params: Params, cell: str, null: int, start: int, end: int
) -> Tensor:
    N = features.shape[0]
    W_proj, b_proj, W_embed = params["W_proj"], params["b_proj"], params["W_embed"]
    Wx, Wh, b, W_vocab, b_vocab = (params[name] for name in ("Wx", "Wh", "b", "W_vocab", "b_vocab"))
    if cell == "attention":
        A = (features.movedim(1, -1) @ W_proj + b_proj).movedim(-1, 1)
        prev_h = A.mean((2, 3))
        prev_c = prev_h
    else:
        prev_h = features @ W_proj + b_proj
        prev_c = zeros_like(prev_h)
    word = torch.full((N,), start)
    words = []
    for t in range(max_length):
        x = W_embed[word]
        if cell == "rnn":
            next_h, _ = rnn_step_forward(x, prev_h, Wx, Wh, b)
            next_c = prev_c
        else:
            attn = dot_product_attention(prev_h, A)[0] if cell == "attention" else None
            next_h, next_c, _ = lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b, attn, params.get("Wattn"))
        scores = next_h @ W_vocab + b_vocab
        word = scores.argmax(1)
        words.append(word)
        prev_h, prev_c = next_h, next_c
    return stack(words, 1)
