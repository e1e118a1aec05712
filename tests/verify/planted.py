"""Mistakes planted in correct solutions: a line, its wrong replacement, and what the diagnosis must say."""

from __future__ import annotations

from typing import NamedTuple


class Planted(NamedTuple):
    """One fault in a solution of `tests/verify/solutions`.

    Attributes:
        solution: the file.
        function: the function or class that has the fault.
        right, wrong: the text, once in that function, and its replacement.
        named: words of the sentence that names the mistake; "" where no mistake can be named.
    """

    solution: str
    function: str
    right: str
    wrong: str
    named: str


NUMPY = [
    # the RNN, forward
    (
        "rnn_step_forward",
        "np.tanh(np.dot(x, Wx) + np.dot(prev_h, Wh) + b)",
        "np.dot(x, Wx) + np.dot(prev_h, Wh) + b",
        "tanh is missing",
    ),
    ("rnn_step_forward", " + b)", ")", "bias b is not added"),
    ("rnn_step_forward", "np.dot(prev_h, Wh)", "np.dot(prev_h, Wh.T)", "Wh^T"),
    ("rnn_step_forward", "np.dot(x, Wx) + np.dot(prev_h, Wh)", "np.dot(prev_h, Wh)", "x Wx is not added"),
    ("rnn_step_forward", "np.tanh(", "sigmoid(", "sigmoid and not tanh"),
    (
        "rnn_step_forward",
        "np.tanh(np.dot(x, Wx) + np.dot(prev_h, Wh) + b)",
        "np.maximum(0, np.dot(x, Wx) + np.dot(prev_h, Wh) + b)",
        "ReLU",
    ),
    (
        "rnn_step_forward",
        "next_h = np.tanh(np.dot(x, Wx)",
        "x *= 1.5\n    next_h = np.tanh(np.dot(x / 1.5, Wx)",
        "modifies its input x",
    ),
    (
        "rnn_step_forward",
        "    cache = (x,",
        "    next_h = next_h + 1e-3 * np.random.rand(*next_h.shape)\n    cache = (x,",
        "random",
    ),
    (
        "rnn_step_forward",
        "    cache = (x,",
        "    next_h = next_h.astype(np.float32).astype(np.float64)\n    cache = (x,",
        "float32",
    ),
    ("rnn_step_forward", "np.tanh(", "np.sin(", ""),
    # the RNN, backward
    ("rnn_step_backward", "(1 - next_h * next_h)", "(1 - np.tanh(next_h) ** 2)", "tanh is applied twice"),
    ("rnn_step_backward", "(1 - next_h * next_h)", "(1 - (np.dot(x, Wx) + np.dot(prev_h, Wh)) ** 2)", ""),
    ("rnn_step_backward", "(1 - next_h * next_h)", "(1 - np.arctanh(next_h) ** 2)", "pre-activation"),
    ("rnn_step_backward", "(1 - next_h * next_h)", "(1 - next_h)", "square is missing"),
    ("rnn_step_backward", "(1 - next_h * next_h)", "next_h * (1 - next_h)", "sigmoid"),
    ("rnn_step_backward", "(1 - next_h * next_h) * dnext_h", "dnext_h", "not differentiated"),
    ("rnn_step_backward", "np.dot(dtanh, Wh.T)", "np.dot(dtanh, Wh)", "not by its transpose"),
    ("rnn_step_backward", "np.dot(dtanh, Wh.T)", "np.zeros_like(prev_h)", "dprev_h is zero"),
    ("rnn_step_backward", "np.sum(dtanh, axis=0)", "np.mean(dtanh, axis=0)", "db is averaged"),
    ("rnn_step_backward", "np.sum(dtanh, axis=0)", "dtanh", "not summed over axis 0"),
    ("rnn_step_backward", "np.sum(dtanh, axis=0)", "dtanh[-1]", "last row alone"),
    ("rnn_step_backward", "np.dot(prev_h.T, dtanh)", "np.dot(dtanh.T, prev_h)", "dWh is transposed"),
    ("rnn_step_backward", "np.dot(x.T, dtanh)", "np.dot(dtanh.T, x)", "dWx is transposed"),
    ("rnn_step_backward", "np.dot(x.T, dtanh)", "np.dot(x.T, dtanh) / x.shape[0]", "dWx is averaged"),
    ("rnn_step_backward", "np.dot(dtanh, Wx.T)", "2 * np.dot(dtanh, Wx.T)", "counted twice"),
    ("rnn_step_backward", "np.dot(dtanh, Wx.T)", "-np.dot(dtanh, Wx.T)", "wrong sign"),
    (
        "rnn_step_backward",
        "dtanh = (1 - next_h * next_h) * dnext_h",
        "dnext_h *= 1 - next_h * next_h\n    dtanh = dnext_h",
        "upstream gradient dnext_h",
    ),
    (
        "rnn_step_backward",
        "return dx, dprev_h, dWx, dWh, db",
        "return dx, dprev_h, dWx, dWh, db * np.nan",
        "non-finite",
    ),
    ("rnn_step_backward", "return dx, dprev_h, dWx, dWh, db", "return dx, dprev_h, dWx, dWh, db * 3.5", "3.5 times"),
    (
        "rnn_step_backward",
        "return dx, dprev_h, dWx, dWh, db",
        "return dx, dprev_h, dWx, dWh, db * x.shape[1]",
        "D times",
    ),
    # the RNN over time
    ("rnn_forward", "x[:, step, :], state, Wx", "x[:, step, :], h0, Wx", "Each step starts from h0"),
    ("rnn_forward", "h[:, step, :] = state", "h[:, T - 1 - step, :] = state", "reverse"),
    ("rnn_forward", "x[:, step, :], state", "x[:, 0, :], state", "first x"),
    ("rnn_forward", "state = h0", "state = np.zeros_like(h0)", "h0 is not used"),
    ("rnn_backward", "dh[:, step, :] + dprev", "dh[:, step, :]", "is not added to dh_t"),
    ("rnn_backward", "dWx += dWx_t", "dWx = dWx_t", "dWx is that of the first step"),
    ("rnn_backward", "dWh += dWh_t", "dWh = dWh_t", "dWh is that of the first step"),
    ("rnn_backward", "db += db_t", "db = db_t", "db is that of the first step"),
    ("rnn_backward", "db += db_t", "db += db_t / T", "averaged over time"),
    ("rnn_backward", "dh0 = dprev", "dh0 = np.zeros((N, H))", "dh0 is zero"),
    ("rnn_backward", "dx[:, step, :] = dx_t", "dx[:, T - 1 - step, :] = dx_t", "reverse order of time"),
    (
        "rnn_backward",
        "dcurrent = dh[:, step, :] + dprev",
        "dcurrent = dh[:, -1, :] if step == T - 1 else dprev",
        "Only the last step's dh",
    ),
    ("rnn_backward", "range(T - 1, -1, -1)", "range(T)", "forward in time"),
    ("rnn_backward", "range(T - 1, -1, -1)", "range(T - 1, 0, -1)", "before the first step"),
    (
        "rnn_backward",
        "dcurrent = dh[:, step, :] + dprev",
        "dcurrent = dh[:, step, :]\n        dcurrent += dprev",
        "upstream gradient dh",
    ),
    # the embedding
    ("word_embedding_backward", "np.add.at(dW, x, dout)", "dW[x] += dout", "overwritten"),
    ("word_embedding_backward", "np.add.at(dW, x, dout)", "pass", "dW is zero"),
    (
        "word_embedding_backward",
        "np.add.at(dW, x, dout)",
        "np.add.at(dW, x, dout / x.shape[0])",
        "averaged over the batch",
    ),
    ("word_embedding_backward", "np.zeros_like(W)", "W.copy()", ""),
    ("word_embedding_forward", "W[x, :]", "W[x - 1, :]", "word before"),
    # the LSTM's step, forward
    (
        "lstm_step_forward",
        "sigmoid(a[:, 2 * H : 3 * H])\n    g = np.tanh(a[:, 3 * H : 4 * H])",
        "sigmoid(a[:, 3 * H : 4 * H])\n    g = np.tanh(a[:, 2 * H : 3 * H])",
        "i, f, g, o",
    ),
    (
        "lstm_step_forward",
        "i = sigmoid(a[:, 0:H])\n    f = sigmoid(a[:, H : 2 * H])",
        "f = sigmoid(a[:, 0:H])\n    i = sigmoid(a[:, H : 2 * H])",
        "f, i, o, g",
    ),
    ("lstm_step_forward", "g = np.tanh(", "g = sigmoid(", "g is a sigmoid"),
    ("lstm_step_forward", "f * prev_c + i * g", "f * prev_h + i * g", "prev_h instead of prev_c"),
    ("lstm_step_forward", "f * prev_c + i * g", "i * prev_c + f * g", "i and f are exchanged"),
    ("lstm_step_forward", "f * prev_c + i * g", "f * prev_c + g", "i does not multiply"),
    ("lstm_step_forward", "tanh_c = np.tanh(next_c)", "tanh_c = next_c", "lacks the tanh"),
    ("lstm_step_forward", "return next_h, next_c, cache", "return next_c, next_h, cache", "wrong order"),
    ("lstm_step_forward", "np.dot(prev_h, Wh) + b", "np.dot(prev_h, Wh)", "bias b is not added"),
    # its backward
    ("lstm_step_backward", "dnext_c + dnext_h * o * (1 - tanh_c**2)", "dnext_c", "path through next_h"),
    (
        "lstm_step_backward",
        "dnext_c + dnext_h * o * (1 - tanh_c**2)",
        "dnext_h * o * (1 - tanh_c**2)",
        "dnext_c is not added",
    ),
    ("lstm_step_backward", "(1 - tanh_c**2)", "(1 - next_c**2)", "taken at next_c"),
    ("lstm_step_backward", "* o * (1 - tanh_c**2)", "* (1 - tanh_c**2)", "o is missing"),
    (
        "lstm_step_backward",
        "do = dnext_h * tanh_c",
        "do = (dnext_c + dnext_h * o * (1 - tanh_c**2)) * tanh_c",
        "do takes dc",
    ),
    ("lstm_step_backward", "do = dnext_h * tanh_c", "do = dnext_h * next_c", "lacks the tanh"),
    ("lstm_step_backward", "df = dcell * prev_c", "df = dcell * next_c", "df takes next_c"),
    ("lstm_step_backward", "di = dcell * g", "di = dnext_c * g", "di takes dnext_c"),
    ("lstm_step_backward", "dprev_c = dcell * f", "dprev_c = dnext_c * f", "dprev_c lacks the path"),
    ("lstm_step_backward", "dprev_c = dcell * f", "dprev_c = dcell * i", "dc * i; it is dc * f"),
    ("lstm_step_backward", "di * i * (1 - i)", "di", "i is not differentiated"),
    ("lstm_step_backward", "df * f * (1 - f)", "df * (1 - f**2)", "slope of f is that of tanh"),
    ("lstm_step_backward", "dg * (1 - g**2)", "dg * g * (1 - g)", "slope of g is that of the sigmoid"),
    ("lstm_step_backward", "dg * (1 - g**2)", "dg * (1 - np.tanh(g) ** 2)", "tanh is applied twice"),
    ("lstm_step_backward", "(dai, daf, dao, dag)", "(dai, daf, dag, dao)", "i, f, g, o"),
    ("lstm_step_backward", "np.sum(da, axis=0)", "np.sum(da, axis=0, keepdims=True)", "shape"),
    # the LSTM over time
    (
        "lstm_forward",
        "state, cell, step_cache = lstm_step_forward(x[:, step, :], state, cell,",
        "state, _, step_cache = lstm_step_forward(x[:, step, :], state, cell,",
        "cell state is not carried on",
    ),
    ("lstm_forward", "state, cell = h0, np.zeros((N, H))", "state, cell = h0, h0", "begins with h0"),
    ("lstm_forward", "h[:, step, :] = state", "h[:, step, :] = cell", "h holds the cell states"),
    ("lstm_backward", "dx_t, dprev, dcell, dWx_t", "dx_t, dprev, _, dWx_t", "not carried back"),
    ("lstm_backward", "dh[:, step, :] + dprev", "dh[:, step, :]", "is not added to dh_t"),
    ("lstm_backward", "dWh += dWh_t", "dWh = dWh_t", "dWh is that of the first step"),
    # the vocabulary layer and the loss
    ("temporal_affine_forward", ".reshape(N, T, M) + b", ".reshape(N, T, M)", "bias b is not added"),
    ("temporal_affine_backward", "dout.sum(axis=(0, 1))", "dout.sum(axis=0)", "not summed over axis 0"),
    ("temporal_affine_backward", "dout.sum(axis=(0, 1))", "dout[:, -1].sum(axis=0)", "last time step"),
    (
        "temporal_affine_backward",
        "flat.T.dot(x.reshape(N * T, D)).T",
        "flat.T.dot(x.reshape(N * T, D))",
        "dw is transposed",
    ),
    ("temporal_affine_backward", "flat.dot(w.T).reshape(N, T, D)", "0 * x", "dx is zero"),
    (
        "temporal_softmax_loss",
        "np.sum(mask_flat * logs[np.arange(N * T), y_flat]) / N",
        "np.sum(logs[np.arange(N * T), y_flat]) / N",
        "only in dx",
    ),
    ("temporal_softmax_loss", "    mask_flat = mask.reshape(N * T)", "    mask_flat = np.ones(N * T)", "counts <NULL>"),
    ("temporal_softmax_loss", "y_flat]) / N", "y_flat]) / mask_flat.sum()", "averaged over the words"),
    ("temporal_softmax_loss", "y_flat]) / N", "y_flat])", "not divided by N"),
    ("temporal_softmax_loss", "dx_flat /= N", "pass", "dx is not divided by N"),
    ("temporal_softmax_loss", "dx_flat *= mask_flat[:, None]", "pass", "<NULL> has a gradient"),
    ("temporal_softmax_loss", "y_flat] -= 1", "y_flat] -= 0", "1 is not subtracted"),
    (
        "temporal_softmax_loss",
        "shifted = x_flat - np.max(x_flat, axis=1, keepdims=True)",
        "shifted = x_flat",
        "special case",
    ),
    ("temporal_softmax_loss", "dx_flat /= N", "dx_flat /= N * T", "averaged over the time steps"),
    # the captioner
    ("CaptioningRNN", "captions_out = captions[:, 1:]", "captions_out = captions[:, :-1]", "not shifted"),
    ("CaptioningRNN", "mask = captions_out != self._null", "mask = np.ones_like(captions_out)", "counts <NULL>"),
    (
        "CaptioningRNN",
        "mask = captions_out != self._null",
        "mask = captions_in != self._null",
        "mask is of the input words",
    ),
    ("CaptioningRNN", "features.T.dot(dfirst)", "np.zeros_like(W_proj)", "gradient of W_proj is zero"),
    ("CaptioningRNN", "dfirst.sum(axis=0)", "dfirst.mean(axis=0)", "b_proj is an average"),
    ("CaptioningRNN", "first = features.dot(W_proj) + b_proj", "first = features.dot(W_proj)", "b_proj is not added"),
    ("CaptioningRNN", "words = np.full(N, self._start)", "words = np.full(N, self._null)", "begins with <NULL>"),
    (
        "CaptioningRNN",
        "            captions[:, t] = words",
        "            captions[:, t] = words\n            words = np.full(N, self._null)",
        "feeds <NULL> back",
    ),
    (
        "CaptioningRNN",
        "            captions[:, t] = words",
        "            captions[:, t] = words\n            words = np.full(N, self._start)",
        "not fed back",
    ),
    (
        "CaptioningRNN",
        "h, c, _ = lstm_step_forward(embedded, h, c, Wx, Wh, b)",
        "h, _, _ = lstm_step_forward(embedded, h, c, Wx, Wh, b)",
        "cell state on",
    ),
    ("CaptioningRNN", "scores = h.dot(W_vocab) + b_vocab", "scores = h.dot(W_vocab)", "b_vocab is not added"),
    ("CaptioningRNN", "np.argmax(scores, axis=1)", "np.argmin(scores, axis=1)", "smallest score"),
]
TORCH = [
    ("rnn_step_forward", " + b)", ")", "bias b is not added"),
    ("rnn_step_forward", "torch.tanh(", "torch.relu(", "ReLU"),
    (
        "rnn_step_forward",
        "torch.tanh(x @ Wx + prev_h @ Wh + b)",
        "torch.tanh(x.float() @ Wx.float() + prev_h.float() @ Wh.float() + b.float()).double()",
        "float32",
    ),
    ("rnn_step_forward", "prev_h @ Wh", "prev_h.detach() @ Wh", ""),
    ("rnn_forward", "x[:, t], state, Wx", "x[:, t], h0, Wx", "Each step starts from h0"),
    ("rnn_forward", "torch.stack(states, dim=1)", "torch.stack(states, dim=0)", "shape"),
    ("word_embedding_forward", "W[x]", "W[x].flip(1)", "reverse order"),
    ("lstm_step_forward", "f * prev_c + i * g", "f * prev_c + (1 - f) * g", "1 - f stands"),
    ("lstm_step_forward", "o * torch.tanh(next_c)", "o * next_c", "lacks the tanh"),
    ("lstm_step_forward", "torch.tanh(a[:, 3 * H :])", "torch.sigmoid(a[:, 3 * H :])", "g is a sigmoid"),
    ("lstm_step_forward", "o * torch.tanh(next_c)", "o * torch.tanh(prev_c)", "prev_c instead of next_c"),
    ("lstm_forward", "state, cell = lstm_step_forward", "state, _ = lstm_step_forward", "cell state is not carried on"),
    ("temporal_affine_forward", ".reshape(N, T, M) + b", ".reshape(N, T, M)", "bias b is not added"),
    ("temporal_softmax_loss", ".sum() / N", ".sum() / N / T", "averaged over the time steps"),
    ("temporal_softmax_loss", ".sum() / N", ".sum() / mask.sum()", "averaged over the words"),
    ("temporal_softmax_loss", "(flat * mask.reshape(N * T)).sum()", "flat.sum()", "mask is not used"),
    ("CaptioningRNN", "captions_in = captions[:, :-1]", "captions_in = captions[:, 1:]", "reads its own target"),
    (
        "CaptioningRNN",
        "first = features @ W_proj + b_proj",
        "first = torch.tanh(features @ W_proj + b_proj)",
        "h0 is a tanh",
    ),
    (
        "CaptioningRNN",
        "first = features @ W_proj + b_proj",
        "first = 0 * (features @ W_proj) + b_proj",
        "does not depend on the image",
    ),
    (
        "CaptioningRNN",
        "words = torch.full((N,), self._start, dtype=torch.long)",
        "words = torch.full((N,), self._end, dtype=torch.long)",
        "begins with <END>",
    ),
    (
        "CaptioningRNN",
        "captions[:, t] = words",
        "captions[:, 0], captions[:, t + 1 : t + 2] = self._start, words[:, None]",
        "one column late",
    ),
    ("CaptioningRNN", "captions[:, t] = words", "captions[:, max(t - 1, 0)] = words", "one column early"),
    (
        "CaptioningRNN",
        "h = features @ W_proj + b_proj",
        "h = torch.zeros(N, b_proj.shape[0], dtype=b_proj.dtype)",
        "does not use the image",
    ),
]
EECS = [
    ("rnn_step_backward", "dz.mm(Wh.t())", "dz.mm(Wh)", "not by its transpose"),
    ("rnn_backward", "dh[:, t] + dprev", "dh[:, t]", "is not added to dh_t"),
    ("WordEmbedding", "self.W_embed[x]", "self.W_embed[x - 1]", "word before"),
    ("temporal_softmax_loss", "loss = loss / N", "loss = loss / (N * T)", "averaged over the time steps"),
    ("temporal_softmax_loss", "loss = loss / N", "loss = loss * 1.0", "not divided by N"),
    ("LSTM", "f * prev_c + i * g", "f * prev_c", "i * g is not added"),
    ("LSTM", "h, c = self.step_forward", "h, _ = self.step_forward", "cell state is not carried on"),
    ("dot_product_attention", " / math.sqrt(H)", "", "not divided by sqrt(H)"),
    ("dot_product_attention", "/ math.sqrt(H)", "/ H", "divided by H"),
    ("dot_product_attention", "torch.softmax(scores, dim=1)", "torch.softmax(scores, dim=0)", "over the batch"),
    ("AttentionLSTM", "+ attn.mm(self.Wattn)", "+ 0 * attn.mm(self.Wattn)", "attn Wattn is not added"),
    ("AttentionLSTM", "h, c = h0, h0", "h, c = h0, torch.zeros_like(h0)", "begins with zero"),
    ("AttentionLSTM", "A.mean(dim=(2, 3))", "A.sum(dim=(2, 3))", "sum of A"),
    ("AttentionLSTM", "dot_product_attention(h, A)", "dot_product_attention(h0, A)", "attends with h0"),
    ("AttentionLSTM", "dot_product_attention(h, A)", "dot_product_attention(c, A)", "query is the cell state"),
    ("AttentionLSTM", "+ attn.mm(self.Wattn)", "+ attn.mm(self.Wh)", "attn is multiplied by Wh"),
    ("AttentionLSTM", "h, c = h0, h0", "h, c = 0 * h0, 0 * h0", "h0 and c0 are zero"),
    ("CaptioningRNN", "captions_out = captions[:, 1:]", "captions_out = captions[:, :-1]", "not shifted"),
    (
        "CaptioningRNN",
        "h, c = self.cell.step_forward(x, h, c)",
        "h, _ = self.cell.step_forward(x, h, c)",
        "cell state on",
    ),
    (
        "CaptioningRNN",
        "words = torch.full((N,), self._start)",
        "words = torch.full((N,), self._null)",
        "begins with <NULL>",
    ),
]
PLANTED = [
    Planted(solution, *entry)
    for solution, entries in {"numpy_solution": NUMPY, "pytorch_solution": TORCH, "eecs_solution": EECS}.items()
    for entry in entries
]
