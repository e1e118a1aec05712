"""The peers: the same captioner, and the same recurrent layer, as users of torch.nn write them.

Each takes its weights from a `CaptioningRNN`, so that all compute the same, and gives its gradients back under our
names and in our layout: weights transposed to (in, out), gates in the order i, f, o, g where torch has i, f, g, o.
torch.nn adds two biases; the first takes the value of our one, the second is zero, and each has the gradient of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from torch_caption.model.captioner import CaptioningRNN


def gradient(parameter: Tensor) -> Tensor:
    """What the last backward left there.

    Raises:
        ValueError: it left nothing.
    """
    if parameter.grad is None:
        raise ValueError(f"a parameter {tuple(parameter.shape)} has no gradient")
    return parameter.grad


def regated(weight: Tensor, gates: int) -> Tensor:
    """(GH, ...) with the last two of four gates swapped: from our order to torch's, and back."""
    if gates == 1:
        return weight
    i, f, third, fourth = weight.chunk(4)
    return torch.cat([i, f, fourth, third])


@torch.no_grad()
def take_recurrent(layer: nn.Module, Wx: Tensor, Wh: Tensor, b: Tensor) -> None:
    """Our weights into an nn.RNN, nn.LSTM or one of their cells."""
    weight_ih, weight_hh, bias_ih, bias_hh = layer.parameters()
    gates = Wh.shape[1] // Wh.shape[0]
    weight_ih.copy_(regated(Wx.T, gates))
    weight_hh.copy_(regated(Wh.T, gates))
    bias_ih.copy_(regated(b, gates))
    bias_hh.zero_()


@torch.no_grad()
def take_others(peer: Padded | Speaker, model: CaptioningRNN) -> None:
    """The weights beside the recurrent ones, into layers called proj, embed and out."""
    peer.proj.weight.copy_(model.W_proj.T)
    peer.proj.bias.copy_(model.b_proj)
    peer.embed.weight.copy_(model.W_embed)
    peer.out.weight.copy_(model.W_vocab.T)
    peer.out.bias.copy_(model.b_vocab)


def recurrent_gradients(layer: nn.Module) -> dict[str, Tensor]:
    """Its gradients under our names and in our layout."""
    weight_ih, weight_hh, bias_ih, _ = layer.parameters()
    gates = weight_hh.shape[0] // weight_hh.shape[1]
    return {
        "Wx": regated(gradient(weight_ih), gates).T,
        "Wh": regated(gradient(weight_hh), gates).T,
        "b": regated(gradient(bias_ih), gates),
    }


State = Tensor | tuple[Tensor, ...]


def first_state(cell_type: str, h0: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """What a layer begins with: h0, and for the LSTM cells of zero."""
    return h0 if cell_type == "rnn" else (h0, torch.zeros_like(h0))


# The captioner -------------------------------------------------------------------------------------------------------


class Padded(nn.Module):
    """(a) nn.Embedding, nn.RNN or nn.LSTM over the padded batch, nn.Linear, F.cross_entropy that ignores <NULL>."""

    label: ClassVar[str] = "(a) torch.nn"
    layers: ClassVar[dict[str, Callable[..., nn.Module]]] = {
        "rnn": lambda D, H: nn.RNN(D, H, batch_first=True),
        "lstm": lambda D, H: nn.LSTM(D, H, batch_first=True),
    }

    def __init__(self, model: CaptioningRNN):
        super().__init__()
        D, W, H, V = model.input_dim, model.wordvec_dim, model.hidden_dim, model.vocab_size
        self.cell_type, self.null, self.dropout = model.cell_type, model.null, model.dropout
        self.proj = nn.Linear(D, H)
        self.embed = nn.Embedding(V, W)
        self.rnn = self.layers[model.cell_type](W, H)
        self.out = nn.Linear(H, V)
        self.to(model.W_proj)
        take_recurrent(self.rnn, model.Wx, model.Wh, model.b)
        take_others(self, model)

    def forward(self, features: Tensor, captions: Tensor) -> Tensor:
        """The loss of captions (N, T + 1) given features (N, F), as `CaptioningRNN` has it."""
        words, targets = captions[:, :-1], captions[:, 1:]
        h, _ = self.rnn(self.drop(self.embed(words)), first_state(self.cell_type, self.proj(features).unsqueeze(0)))
        return self.nats(self.drop(h).flatten(0, 1), targets.flatten()) / len(captions)

    def nats(self, h: Tensor, targets: Tensor) -> Tensor:
        """The loss of words (r,), summed, from hidden states (r, H)."""
        return F.cross_entropy(self.out(h), targets, ignore_index=self.null, reduction="sum")

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def gradients(self) -> dict[str, Tensor]:
        """What the last backward left, under our names and in our layout."""
        return {
            "W_proj": gradient(self.proj.weight).T,
            "b_proj": gradient(self.proj.bias),
            "W_embed": gradient(self.embed.weight),
            **recurrent_gradients(self.rnn),
            "W_vocab": gradient(self.out.weight).T,
            "b_vocab": gradient(self.out.bias),
        }

    @property
    def device(self) -> torch.device:
        """The device of the weights, as `CaptioningRNN.device`."""
        return self.proj.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Their data type."""
        return self.proj.weight.dtype


class Packed(Padded):
    """(b) The same over pack_padded_sequence, scores being computed of real words only."""

    label = "(b) torch.nn, packed"

    def forward(self, features: Tensor, captions: Tensor) -> Tensor:
        words, targets = captions[:, :-1], captions[:, 1:]
        lengths = (targets != self.null).sum(1).cpu()
        x = pack_padded_sequence(self.drop(self.embed(words)), lengths, batch_first=True, enforce_sorted=False)
        y = pack_padded_sequence(targets, lengths, batch_first=True, enforce_sorted=False)
        h, _ = self.rnn(x, first_state(self.cell_type, self.proj(features).unsqueeze(0)))
        return self.nats(self.drop(h.data), y.data) / len(captions)


class Loop(Padded):
    """(c) A Python loop of nn.RNNCell or nn.LSTMCell under autograd.

    It takes the steps by `unbind`: with x[:, t] autograd fills a tensor of all T steps with zeros at every step, and
    the time grows with T squared.
    """

    label = "(c) loop, autograd"
    layers: ClassVar[dict[str, Callable[..., nn.Module]]] = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell}

    def forward(self, features: Tensor, captions: Tensor) -> Tensor:
        words, targets = captions[:, :-1], captions[:, 1:]
        x = self.drop(self.embed(words))
        h = unroll(self.rnn, x, first_state(self.cell_type, self.proj(features)))
        return self.nats(self.drop(h).flatten(0, 1), targets.flatten()) / len(captions)


class Speaker(nn.Module):
    """The stepper of a plain decoding loop: the logits of the next words, from the last words and a state.

    An nn.RNNCell or nn.LSTMCell; with attention an nn.LSTMCell over the word and the attended features of the grid.
    """

    def __init__(self, model: CaptioningRNN):
        super().__init__()
        D, W, H, V = model.input_dim, model.wordvec_dim, model.hidden_dim, model.vocab_size
        self.cell_type = model.cell_type
        attends = model.cell_type == "attention"
        self.proj, self.embed, self.out = nn.Linear(D, H), nn.Embedding(V, W), nn.Linear(H, V)
        self.rnn = nn.LSTMCell(W + H, H) if attends else Loop.layers[model.cell_type](W, H)
        self.to(model.W_proj)
        take_recurrent(
            self.rnn, torch.cat([model.Wx, model.get_parameter("Wattn")]) if attends else model.Wx, model.Wh, model.b
        )
        take_others(self, model)

    def begin(self, features: Tensor) -> State:
        """Of images (N, D), or grids (N, D, L)."""
        if self.cell_type != "attention":
            return first_state(self.cell_type, self.proj(features))
        positions = self.proj(features.mT)
        mean = positions.mean(1)
        return mean, mean, positions

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """Scores (N, V) of the words after these (N,), and the state there."""
        x = self.embed(words)
        if self.cell_type != "attention":
            state = self.rnn(x, state)
            return self.out(state if isinstance(state, Tensor) else state[0]), state
        h, c, positions = state
        weights = torch.softmax(torch.bmm(positions, h.unsqueeze(2)).squeeze(2) / h.shape[1] ** 0.5, dim=1)
        attn = torch.bmm(weights.unsqueeze(1), positions).squeeze(1)
        h, c = self.rnn(torch.cat([x, attn], dim=1), (h, c))
        return self.out(h), (h, c, positions)


class PackedFused(Packed):
    """(f) The packed one with F.linear_cross_entropy in chunks, which never holds all scores."""

    label = "(f) packed, linear_cross_entropy"

    def nats(self, h: Tensor, targets: Tensor) -> Tensor:
        return chunked_cross_entropy(h, self.out.weight, self.out.bias, targets)


def chunked_cross_entropy(h: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """The summed loss of words (r,) from hidden states (r, H), scores being computed a chunk of rows at a time."""
    options = nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(h, weight, targets, linear_bias=bias, reduction="sum", options=options)


def unroll(cell: nn.Module, x: Tensor, state: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Hidden states (N, T, H) of an nn.RNNCell or nn.LSTMCell over x (N, T, D)."""
    steps = []
    for x_t in x.unbind(1):
        state = cell(x_t, state)
        steps.append(state if isinstance(state, Tensor) else state[0])
    return torch.stack(steps, dim=1)


# The recurrent layer alone -------------------------------------------------------------------------------------------


class PaddedLayer(nn.Module):
    """nn.RNN or nn.LSTM over the padded batch; what stands past a row's end is left as it comes out."""

    label: ClassVar[str] = "padded"
    layers: ClassVar[dict[str, Callable[..., nn.Module]]] = Padded.layers

    def __init__(self, cell_type: str, Wx: Tensor, Wh: Tensor, b: Tensor):
        super().__init__()
        self.cell_type = cell_type
        self.rnn = self.layers[cell_type](Wx.shape[0], Wh.shape[0]).to(Wx)
        take_recurrent(self.rnn, Wx, Wh, b)

    def forward(self, x: Tensor, h0: Tensor, lengths: Tensor | None) -> Tensor:
        """Hidden states (N, T, H) of x (N, T, D) from h0 (N, H)."""
        return self.rnn(x, first_state(self.cell_type, h0.unsqueeze(0)))[0]

    def gradients(self) -> dict[str, Tensor]:
        """What the last backward left, under our names and in our layout."""
        return recurrent_gradients(self.rnn)


class PackedLayer(PaddedLayer):
    """The same over pack_padded_sequence, zero past a row's end."""

    label = "packed"

    def forward(self, x: Tensor, h0: Tensor, lengths: Tensor | None) -> Tensor:
        N, T = x.shape[:2]
        lengths = torch.full((N,), T) if lengths is None else lengths.cpu()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h, _ = self.rnn(packed, first_state(self.cell_type, h0.unsqueeze(0)))
        return pad_packed_sequence(h, batch_first=True, total_length=T)[0]


class LoopLayer(PaddedLayer):
    """A Python loop of nn.RNNCell or nn.LSTMCell."""

    label = "loop"
    layers = Loop.layers

    def forward(self, x: Tensor, h0: Tensor, lengths: Tensor | None) -> Tensor:
        return unroll(self.rnn, x, first_state(self.cell_type, h0))


HAS_CHUNKED = hasattr(F, "linear_cross_entropy")  # since torch 2.13
PEERS: tuple[type[Padded], ...] = (Padded, Packed, Loop, *([PackedFused] if HAS_CHUNKED else []))
