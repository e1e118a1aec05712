"""The names of cs231n's assignment 3 as given from 2025 on, in PyTorch, over this package's own functions.

The notebooks run with only their imports changed: the assignment's modules become `torch_caption.cs231n_pytorch`.

====================================  ===========================================================
the assignment's module               replacement from here
====================================  ===========================================================
`cs231n.rnn_layers_pytorch`           the forward functions, which autograd differentiates
`cs231n.classifiers.rnn_pytorch`      `CaptioningRNN`
`cs231n.captioning_solver_pytorch`    `CaptioningSolverPytorch`
`cs231n.coco_utils`, `image_utils`    as in `torch_caption.cs231n`
====================================  ===========================================================

A forward function returns its outputs alone. Their gradients are hand-derived: autograd calls the backward of
`torch_caption.functions`. Bad shapes, dtypes and word indices are the errors of that module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_caption import functions
from torch_caption.cs231n import (
    decode_captions,
    image_from_url,
    load_coco_data,
    rel_error,
    sample_coco_minibatch,
)
from torch_caption.data.vocabulary import END, NULL, START
from torch_caption.functions import lstm as lstm_forward
from torch_caption.functions import lstm_step as lstm_step_forward
from torch_caption.functions import rnn as rnn_forward
from torch_caption.functions import rnn_step as rnn_step_forward
from torch_caption.functions import temporal_affine as temporal_affine_forward
from torch_caption.functions import word_embedding as word_embedding_forward

__all__ = [
    "CaptioningRNN",
    "CaptioningSolverPytorch",
    "affine_forward",
    "decode_captions",
    "image_from_url",
    "load_coco_data",
    "lstm_forward",
    "lstm_step_forward",
    "rel_error",
    "rnn_forward",
    "rnn_step_forward",
    "sample_coco_minibatch",
    "temporal_affine_forward",
    "temporal_softmax_loss",
    "word_embedding_forward",
]


def affine_forward(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """An affine layer on whole examples: x (N, d_1, ..., d_k), w (D, M), b (M,) -> (N, M), D = d_1 ... d_k."""
    return functions.affine(x.reshape(x.shape[0], math.prod(x.shape[1:])), w, b)


def temporal_softmax_loss(x: Tensor, y: Tensor, mask: Tensor, verbose: bool = False) -> Tensor:
    """Cross entropy summed over the time steps where `mask` holds and averaged over the N captions.

    Args:
        x: scores (logits) (N, T, V). y: correct words (N, T), integers. mask: (N, T), boolean or real weights.
        verbose: print the shape of the loss.

    Returns:
        loss, a scalar.
    """
    loss = functions.temporal_softmax_loss(x, y, mask if mask.is_floating_point() else mask.bool())
    if verbose:
        print("loss:", tuple(loss.shape))
    return loss


class CaptioningRNN:
    """The assignment's captioner with tensors as parameters, which autograd differentiates.

    Args:
        word_to_idx: word -> id, with <NULL>, and <START> for sampling.
        input_dim: D of the features. wordvec_dim: W. hidden_dim: H.
        cell_type: "rnn" or "lstm".
        dtype: of the parameters.

    Attributes:
        params: W_proj b_proj W_embed Wx Wh b W_vocab b_vocab, a dictionary that is read in every call.

    Raises:
        ValueError: another cell type.
    """

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if cell_type not in ("rnn", "lstm"):
            raise ValueError(f'Invalid cell_type "{cell_type}"; there are rnn and lstm')
        self.cell_type = cell_type
        self.dtype = dtype
        self.word_to_idx = word_to_idx
        self.idx_to_word = {idx: word for word, idx in word_to_idx.items()}
        self._null, self._start, self._end = word_to_idx[NULL], word_to_idx.get(START), word_to_idx.get(END)
        D, W, H, V, gates = input_dim, wordvec_dim, hidden_dim, len(word_to_idx), 4 if cell_type == "lstm" else 1
        made = {
            "W_embed": torch.randn(V, W) / 100,
            "W_proj": torch.randn(D, H) / D**0.5,
            "b_proj": torch.zeros(H),
            "Wx": torch.randn(W, gates * H) / W**0.5,
            "Wh": torch.randn(H, gates * H) / H**0.5,
            "b": torch.zeros(gates * H),
            "W_vocab": torch.randn(H, V) / H**0.5,
            "b_vocab": torch.zeros(V),
        }
        self.params: dict[str, Tensor] = {name: value.to(dtype) for name, value in made.items()}

    def loss(self, features: Tensor, captions: Tensor) -> Tensor:
        """The loss of predicting captions[:, 1:] from captions[:, :-1], without <NULL>.

        Args:
            features: (N, D). captions: (N, T) integers.

        Returns:
            a scalar, the sum over time averaged over the N captions.
        """
        words, targets, params = captions[:, :-1], captions[:, 1:], self.params
        h0 = affine_forward(features, params["W_proj"], params["b_proj"])
        x = word_embedding_forward(words, params["W_embed"])
        sequence: Any = rnn_forward if self.cell_type == "rnn" else lstm_forward
        h = sequence(x, h0, params["Wx"], params["Wh"], params["b"])
        scores = temporal_affine_forward(h, params["W_vocab"], params["b_vocab"])
        return temporal_softmax_loss(scores, targets, targets != self._null)

    @torch.no_grad()
    def sample(self, features: Tensor, max_length: int = 30) -> Tensor:
        """The most probable word at each of `max_length` time steps, which is the next input.

        Args:
            features: (N, D).

        Returns:
            (N, max_length) int64, without <START>.

        Raises:
            ValueError: the vocabulary has no <START>.
        """
        if self._start is None:
            raise ValueError(f"sampling starts with {START}, which the vocabulary lacks")
        params = self.params
        weights = params["Wx"], params["Wh"], params["b"]
        h = affine_forward(features, params["W_proj"], params["b_proj"])
        c = torch.zeros_like(h)
        word = torch.full((len(features),), self._start, device=h.device)
        words = []
        for _ in range(max_length):
            x = word_embedding_forward(word.unsqueeze(1), params["W_embed"]).squeeze(1)
            if self.cell_type == "rnn":
                h = rnn_step_forward(x, h, *weights)
            else:
                h, c = lstm_step_forward(x, h, c, *weights)
            word = functions.affine(h, params["W_vocab"], params["b_vocab"]).argmax(1)
            words.append(word)
        return torch.stack(words, 1) if words else word.new_zeros(len(features), 0)


class CaptioningSolverPytorch:
    """Minibatch training of a captioner with torch.optim.Adam.

    Args:
        model: any object with `.params`, tensors by name, and `.loss(features, captions)`, a scalar tensor.
        data: the dictionary of `load_coco_data`.
        learning_rate: of Adam.
        batch_size: captions per minibatch, sampled with replacement. num_epochs: epochs of `train`.
        print_every: iterations between two printed losses. verbose: print them at all.

    Attributes:
        loss_history: the loss of every iteration.

    Raises:
        ValueError: a batch_size or print_every below 1.
    """

    def __init__(
        self,
        model: Any,
        data: Mapping[str, Any],
        *,
        learning_rate: float = 0.001,
        batch_size: int = 100,
        num_epochs: int = 10,
        print_every: int = 10,
        verbose: bool = True,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("print_every", print_every)):
            if value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        self.model = model
        self.data = data
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.num_epochs = num_epochs
        self.print_every = print_every
        self.verbose = verbose
        self.optim = torch.optim.Adam(list(model.params.values()), learning_rate)
        self.epoch = 0
        self.loss_history: list[float] = []

    def _step(self) -> None:
        captions, features, _ = sample_coco_minibatch(self.data, batch_size=self.batch_size, split="train")
        loss = self.model.loss(torch.from_numpy(features), torch.from_numpy(captions).long())
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        self.loss_history.append(loss.item())

    def train(self) -> None:
        """Run `num_epochs` epochs of max(M // batch_size, 1) iterations each, for M training captions.

        The parameters require grad meanwhile.
        """
        for value in self.model.params.values():
            value.requires_grad_()
        iterations_per_epoch = max(len(self.data["train_captions"]) // self.batch_size, 1)
        iterations = self.num_epochs * iterations_per_epoch
        for t in range(iterations):
            self._step()
            if self.verbose and t % self.print_every == 0:
                print(f"(Iteration {t + 1} / {iterations}) loss: {self.loss_history[-1]:f}")
            self.epoch += (t + 1) % iterations_per_epoch == 0
        for value in self.model.params.values():
            value.requires_grad_(False)
