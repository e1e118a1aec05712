"""A correct solution of cs231n's functions of 2025, which autograd differentiates, as a student may write it."""

import torch


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    next_h = torch.tanh(x @ Wx + prev_h @ Wh + b)
    return next_h


def rnn_forward(x, h0, Wx, Wh, b):
    N, T, D = x.shape
    states = []
    state = h0
    for t in range(T):
        state = rnn_step_forward(x[:, t], state, Wx, Wh, b)
        states.append(state)
    return torch.stack(states, dim=1)


def word_embedding_forward(x, W):
    out = W[x]
    return out


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    H = prev_h.shape[1]
    a = x @ Wx + prev_h @ Wh + b
    i = torch.sigmoid(a[:, :H])
    f = torch.sigmoid(a[:, H : 2 * H])
    o = torch.sigmoid(a[:, 2 * H : 3 * H])
    g = torch.tanh(a[:, 3 * H :])
    next_c = f * prev_c + i * g
    next_h = o * torch.tanh(next_c)
    return next_h, next_c


def lstm_forward(x, h0, Wx, Wh, b):
    N, T, D = x.shape
    states = []
    state, cell = h0, torch.zeros_like(h0)
    for t in range(T):
        state, cell = lstm_step_forward(x[:, t], state, cell, Wx, Wh, b)
        states.append(state)
    return torch.stack(states, dim=1)


def temporal_affine_forward(x, w, b):
    N, T, D = x.shape
    M = b.shape[0]
    out = (x.reshape(N * T, D) @ w).reshape(N, T, M) + b
    return out


def temporal_softmax_loss(x, y, mask, verbose=False):
    N, T, V = x.shape
    flat = torch.nn.functional.cross_entropy(x.reshape(N * T, V), y.reshape(N * T), reduction="none")
    loss = (flat * mask.reshape(N * T)).sum() / N
    return loss


class CaptioningRNN:
    def __init__(
        self, word_to_idx, input_dim=512, wordvec_dim=128, hidden_dim=128, cell_type="rnn", dtype=torch.float32
    ):
        self.cell_type = cell_type
        self.word_to_idx = word_to_idx
        self._null = word_to_idx["<NULL>"]
        self._start = word_to_idx.get("<START>", None)
        self._end = word_to_idx.get("<END>", None)
        V = len(word_to_idx)
        size = {"lstm": 4, "rnn": 1}[cell_type] * hidden_dim
        self.params = {
            "W_embed": torch.randn(V, wordvec_dim) / 100,
            "W_proj": torch.randn(input_dim, hidden_dim) / input_dim**0.5,
            "b_proj": torch.zeros(hidden_dim),
            "Wx": torch.randn(wordvec_dim, size) / wordvec_dim**0.5,
            "Wh": torch.randn(hidden_dim, size) / hidden_dim**0.5,
            "b": torch.zeros(size),
            "W_vocab": torch.randn(hidden_dim, V) / hidden_dim**0.5,
            "b_vocab": torch.zeros(V),
        }
        for k, v in self.params.items():
            self.params[k] = v.to(dtype).requires_grad_()

    def loss(self, features, captions):
        captions_in = captions[:, :-1]
        captions_out = captions[:, 1:]
        mask = captions_out != self._null
        W_proj, b_proj = self.params["W_proj"], self.params["b_proj"]
        first = features @ W_proj + b_proj
        embedded = word_embedding_forward(captions_in, self.params["W_embed"])
        run = rnn_forward if self.cell_type == "rnn" else lstm_forward
        h = run(embedded, first, self.params["Wx"], self.params["Wh"], self.params["b"])
        scores = temporal_affine_forward(h, self.params["W_vocab"], self.params["b_vocab"])
        loss = temporal_softmax_loss(scores, captions_out, mask)
        return loss

    def sample(self, features, max_length=30):
        N = features.shape[0]
        captions = torch.full((N, max_length), self._null, dtype=torch.long)
        W_proj, b_proj = self.params["W_proj"], self.params["b_proj"]
        Wx, Wh, b = self.params["Wx"], self.params["Wh"], self.params["b"]
        h = features @ W_proj + b_proj
        c = torch.zeros_like(h)
        words = torch.full((N,), self._start, dtype=torch.long)
        for t in range(max_length):
            embedded = word_embedding_forward(words, self.params["W_embed"])
            if self.cell_type == "rnn":
                h = rnn_step_forward(embedded, h, Wx, Wh, b)
            else:
                h, c = lstm_step_forward(embedded, h, c, Wx, Wh, b)
            scores = h @ self.params["W_vocab"] + self.params["b_vocab"]
            words = scores.argmax(dim=1)
            captions[:, t] = words
        return captions
