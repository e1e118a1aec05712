"""A correct solution of EECS 498's captioning functions and modules, as a student may write it."""

import math

import torch
from torch import nn


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    next_h = torch.tanh(x.mm(Wx) + prev_h.mm(Wh) + b)
    cache = (x, prev_h, Wx, Wh, next_h)
    return next_h, cache


def rnn_step_backward(dnext_h, cache):
    x, prev_h, Wx, Wh, next_h = cache
    dz = dnext_h * (1 - next_h.square())
    dx = dz.mm(Wx.t())
    dprev_h = dz.mm(Wh.t())
    dWx = x.t().mm(dz)
    dWh = prev_h.t().mm(dz)
    db = dz.sum(dim=0)
    return dx, dprev_h, dWx, dWh, db


def rnn_forward(x, h0, Wx, Wh, b):
    hs, cache, h = [], [], h0
    for t in range(x.shape[1]):
        h, step = rnn_step_forward(x[:, t, :], h, Wx, Wh, b)
        hs.append(h)
        cache.append(step)
    return torch.stack(hs, dim=1), cache


def rnn_backward(dh, cache):
    N, T, H = dh.shape
    dxs = []
    dWx, dWh, db = 0, 0, 0
    dprev = torch.zeros(N, H, dtype=dh.dtype)
    for t in range(T - 1, -1, -1):
        dx_t, dprev, dWx_t, dWh_t, db_t = rnn_step_backward(dh[:, t] + dprev, cache[t])
        dxs.append(dx_t)
        dWx, dWh, db = dWx + dWx_t, dWh + dWh_t, db + db_t
    dx = torch.stack(dxs[::-1], dim=1)
    dh0 = dprev
    return dx, dh0, dWx, dWh, db


class RNN(nn.Module):
    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, hidden_dim).div(math.sqrt(input_dim)))
        self.Wh = nn.Parameter(torch.randn(hidden_dim, hidden_dim).div(math.sqrt(hidden_dim)))
        self.b = nn.Parameter(torch.zeros(hidden_dim))

    def forward(self, x, h0):
        hn, _ = rnn_forward(x, h0, self.Wx, self.Wh, self.b)
        return hn

    def step_forward(self, x, prev_h):
        next_h, _ = rnn_step_forward(x, prev_h, self.Wx, self.Wh, self.b)
        return next_h


class WordEmbedding(nn.Module):
    def __init__(self, vocab_size, embed_size):
        super().__init__()
        self.W_embed = nn.Parameter(torch.randn(vocab_size, embed_size).div(math.sqrt(vocab_size)))

    def forward(self, x):
        out = self.W_embed[x]
        return out


def temporal_softmax_loss(x, y, ignore_index=None):
    N, T, V = x.shape
    loss = nn.functional.cross_entropy(x.reshape(-1, V), y.reshape(-1), ignore_index=ignore_index, reduction="sum")
    loss = loss / N
    return loss


class LSTM(nn.Module):
    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, hidden_dim * 4).div(math.sqrt(input_dim)))
        self.Wh = nn.Parameter(torch.randn(hidden_dim, hidden_dim * 4).div(math.sqrt(hidden_dim)))
        self.b = nn.Parameter(torch.zeros(hidden_dim * 4))

    def step_forward(self, x, prev_h, prev_c):
        a = x.mm(self.Wx) + prev_h.mm(self.Wh) + self.b
        ai, af, ao, ag = torch.chunk(a, 4, dim=1)
        i, f, o, g = ai.sigmoid(), af.sigmoid(), ao.sigmoid(), ag.tanh()
        next_c = f * prev_c + i * g
        next_h = o * next_c.tanh()
        return next_h, next_c

    def forward(self, x, h0):
        h, c = h0, torch.zeros_like(h0)
        hs = []
        for t in range(x.shape[1]):
            h, c = self.step_forward(x[:, t], h, c)
            hs.append(h)
        hn = torch.stack(hs, dim=1)
        return hn


def dot_product_attention(prev_h, A):
    N, H, D_a, _ = A.shape
    flat = A.reshape(N, H, D_a * D_a)
    scores = torch.bmm(prev_h.unsqueeze(1), flat).squeeze(1) / math.sqrt(H)
    weights = torch.softmax(scores, dim=1)
    attn = torch.bmm(flat, weights.unsqueeze(2)).squeeze(2)
    attn_weights = weights.reshape(N, D_a, D_a)
    return attn, attn_weights


class AttentionLSTM(nn.Module):
    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(input_dim, hidden_dim * 4).div(math.sqrt(input_dim)))
        self.Wh = nn.Parameter(torch.randn(hidden_dim, hidden_dim * 4).div(math.sqrt(hidden_dim)))
        self.Wattn = nn.Parameter(torch.randn(hidden_dim, hidden_dim * 4).div(math.sqrt(hidden_dim)))
        self.b = nn.Parameter(torch.zeros(hidden_dim * 4))

    def step_forward(self, x, prev_h, prev_c, attn):
        a = x.mm(self.Wx) + prev_h.mm(self.Wh) + self.b + attn.mm(self.Wattn)
        ai, af, ao, ag = torch.chunk(a, 4, dim=1)
        i, f, o, g = ai.sigmoid(), af.sigmoid(), ao.sigmoid(), ag.tanh()
        next_c = f * prev_c + i * g
        next_h = o * next_c.tanh()
        return next_h, next_c

    def forward(self, x, A):
        h0 = A.mean(dim=(2, 3))
        h, c = h0, h0
        hs = []
        for t in range(x.shape[1]):
            attn, _ = dot_product_attention(h, A)
            h, c = self.step_forward(x[:, t], h, c, attn)
            hs.append(h)
        hn = torch.stack(hs, dim=1)
        return hn


class ImageEncoder(nn.Module):
    def __init__(self, pretrained=True, verbose=True):
        super().__init__()
        raise RuntimeError("pretrained weights are downloaded here")

    def forward(self, images):
        return images


class CaptioningRNN(nn.Module):
    def __init__(
        self,
        word_to_idx,
        input_dim=512,
        wordvec_dim=128,
        hidden_dim=128,
        cell_type="rnn",
        image_encoder_pretrained=True,
        ignore_index=None,
    ):
        super().__init__()
        self.cell_type = cell_type
        self.word_to_idx = word_to_idx
        vocab_size = len(word_to_idx)
        self._null = word_to_idx["<NULL>"]
        self._start = word_to_idx.get("<START>", None)
        self.ignore_index = ignore_index
        self.image_encoder = ImageEncoder(pretrained=image_encoder_pretrained)
        if cell_type == "attn":
            self.projection = nn.Conv2d(input_dim, hidden_dim, kernel_size=1)
        else:
            self.projection = nn.Linear(input_dim, hidden_dim)
        self.embedding = WordEmbedding(vocab_size, wordvec_dim)
        self.cell = {"rnn": RNN, "lstm": LSTM, "attn": AttentionLSTM}[cell_type](wordvec_dim, hidden_dim)
        self.scores = nn.Linear(hidden_dim, vocab_size)

    def forward(self, images, captions):
        captions_in = captions[:, :-1]
        captions_out = captions[:, 1:]
        features = self.image_encoder(images)
        if self.cell_type == "attn":
            first = self.projection(features)
        else:
            first = self.projection(features.mean(dim=(2, 3)))
        h = self.cell(self.embedding(captions_in), first)
        loss = temporal_softmax_loss(self.scores(h), captions_out, ignore_index=self.ignore_index)
        return loss

    def sample(self, images, max_length=15):
        N = images.shape[0]
        captions = self._null * images.new(N, max_length).fill_(1).long()
        if self.cell_type == "attn":
            attn_weights_all = images.new(N, max_length, 4, 4).fill_(0).float()
        features = self.image_encoder(images)
        if self.cell_type == "attn":
            A = self.projection(features)
            h = A.mean(dim=(2, 3))
            c = h
        else:
            h = self.projection(features.mean(dim=(2, 3)))
            c = torch.zeros_like(h)
        words = torch.full((N,), self._start)
        for t in range(max_length):
            x = self.embedding(words)
            if self.cell_type == "rnn":
                h = self.cell.step_forward(x, h)
            elif self.cell_type == "lstm":
                h, c = self.cell.step_forward(x, h, c)
            else:
                attn, attn_weights_all[:, t] = dot_product_attention(h, A)
                h, c = self.cell.step_forward(x, h, c, attn)
            words = self.scores(h).argmax(dim=1)
            captions[:, t] = words
        if self.cell_type == "attn":
            return captions, attn_weights_all.cpu()
        return captions
