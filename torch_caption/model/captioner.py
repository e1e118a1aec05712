"""The captioner of cs231n assignment 3: from image features to words."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_caption import decoding
from torch_caption.data.vocabulary import END, NULL, START, UNK
from torch_caption.decoding import Alternatives, Decoded, DecodingOptions, State, TokenIds
from torch_caption.functions._common import autocast, check_floats, check_tensor
from torch_caption.functions.embedding import check_words, distinct_words
from torch_caption.functions.packing import Packing, lengths_from_mask
from torch_caption.functions.softmax import check_reduction
from torch_caption.model.cell import check_sizes
from torch_caption.model.cells import make_cell
from torch_caption.model.dropout import dropout
from torch_caption.model.stepper import InferenceStepper

IGNORED = -100
"""In captions the same as <NULL>: the id that torch.nn's losses ignore by default."""


class CaptioningRNN(nn.Module):
    """A recurrent network that captions image features (cs231n assignment 3, question 2).

        h0     = features W_proj + b_proj      (N, D) -> (N, H)
        x      = W_embed[words]                (N, T) -> (N, T, W)
        h      = rnn, lstm or gru of x from h0 (N, T, W) -> (N, T, H)
        logits = h W_vocab + b_vocab           (N, T, H) -> (N, T, V)

    With "attention" the features are a grid, D numbers at each of L spatial positions, and every position is projected:

        A      = W_proj^T features + b_proj    (N, D, L) -> (N, H, L)
        h      = attention_lstm of x over A    (N, T, W) -> (N, T, H)

    Parameters have cs231n's names, shapes and initial values: W_proj (D, H), b_proj (H,), W_embed (V, W), Wx (W, GH),
    Wh (H, GH), b (GH,), W_vocab (H, V), b_vocab (V,), with G = 1 for "rnn", 3 for "gru" and 4 for "lstm" and
    "attention"; "gru" also has bn (H,), and "attention" Wattn (H, 4H). They have torch's default device and dtype.

    With several layers, layer k > 1 reads the hidden states of the one below instead of x, and has parameters of its
    own, Wx_lk (H, GH), Wh_lk, b_lk and with "attention" Wattn_lk. All layers begin at h0, or attend to A; logits are
    those of the last layer's h.

    Args:
        word_to_idx: ids of the words, including <NULL>; V is its size. Without <START> nothing can be decoded; without
            <END> every caption has the maximum length. An id of V or more is an error only if a caption contains it.
        input_dim: D, the width of the features.
        wordvec_dim: W.
        hidden_dim: H.
        cell_type: a name in `cells.CELLS`.
        gradients: "hand" for the derivatives of `torch_caption.functions`, "auto" for torch.autograd's, of the same
            model through `torch_caption.functions.reference`.
        dropout: the dropout probability on word vectors and hidden states in training (Zaremba et al. 2014).
        label_smoothing: the label-smoothing factor in training.
        tied: tie the vocabulary layer's weight to the word vectors, W_vocab = W_embed^T (Press & Wolf 2017). There is
            then no W_vocab, and if H is not W there is W_out (H, W), which projects h to the width of a word vector:
            logits = h W_out W_embed^T + b_vocab.
        num_layers: of the recurrence.
        layer_dropout: the dropout probability on hidden states between layers in training. Those of the last layer have
            `dropout`.

    Raises:
        ValueError: an argument is out of its range.
    """

    W_proj: Tensor
    b_proj: Tensor
    W_embed: Tensor
    Wx: Tensor
    Wh: Tensor
    b: Tensor
    W_vocab: Tensor
    W_out: Tensor
    b_vocab: Tensor

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        gradients: str = "hand",
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        tied: bool = False,
        num_layers: int = 1,
        layer_dropout: float = 0.0,
    ):
        super().__init__()
        if NULL not in word_to_idx:
            raise ValueError(f"word_to_idx lacks {NULL}")
        sizes = {"input_dim": input_dim, "wordvec_dim": wordvec_dim, "hidden_dim": hidden_dim}
        check_sizes("CaptioningRNN", **sizes, num_layers=num_layers)
        shares = {"dropout": dropout, "label_smoothing": label_smoothing, "layer_dropout": layer_dropout}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, but is {share}")
        if layer_dropout and num_layers == 1:
            raise ValueError("layer_dropout needs num_layers of at least 2: it is between layers")
        self.cell_type = cell_type
        self.gradients = gradients
        self.input_dim, self.wordvec_dim, self.hidden_dim = input_dim, wordvec_dim, hidden_dim
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.tied = tied
        self.num_layers = num_layers
        self.layer_dropout = layer_dropout
        self.null = word_to_idx[NULL]
        self.start, self.end, self.unk = (word_to_idx.get(word) for word in (START, END, UNK))
        self.word_to_idx = dict(word_to_idx)
        self.cell = make_cell(cell_type, gradients, num_layers)
        self._training_cell = make_cell(cell_type, gradients, num_layers, layer_dropout)
        V, D, W, H = len(word_to_idx), input_dim, wordvec_dim, hidden_dim
        self.vocab_size = V
        weights = {
            "W_proj": torch.randn(D, H) / D**0.5,
            "b_proj": torch.zeros(H),
            "W_embed": torch.randn(V, W) / 100,
            **self.cell.weights(W, H),
        }
        if not tied:
            weights["W_vocab"] = torch.randn(H, V) / H**0.5
        elif H != W:
            weights["W_out"] = torch.randn(H, W) / H**0.5
        weights["b_vocab"] = torch.zeros(V)
        self._names = tuple(weights)
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.W_proj.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.W_proj.dtype

    @property
    def constant(self) -> int:
        """As in `decoding.Stepper`."""
        return self.cell.constant

    def forward(
        self,
        features: Tensor,
        captions: Tensor,
        inputs: Tensor | None = None,
        weights: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """The loss of captions under the model: negative log-likelihood in nats, summed over time, mean over N.

        Each word is predicted from those before it and the image. <NULL> is padding and is not predicted.

        Args:
            features: (N, D) floating-point; (N, D, L) or (N, D, a, a) for "attention".
            captions: (N, T) integers, each beginning with <START>; T is at least 1. After it, -100 is <NULL>.
            inputs: (N, T-1) integers, the input tokens; by default captions[:, :-1], which is teacher forcing.
            weights: (N, T-1) floating-point factors of the loss of each word; constants, without a gradient.
            reduction: "mean", or "none" for the loss of each caption, (N,).

        Returns:
            a differentiable scalar, or (N,).

        Raises:
            IndexError: a word id is out of range.
            TypeError: a dtype or device does not fit.
            ValueError: a shape does not fit, or there is no such reduction.
        """
        check_reduction("CaptioningRNN", reduction)
        image = self._project(features)
        N = features.shape[0]
        given = {"captions": captions, "inputs": inputs, "weights": weights}
        for name, x in given.items():
            if x is not None or name == "captions":
                check_tensor("CaptioningRNN", name, x)
        if captions.dim() != 2 or captions.shape[0] != N or captions.shape[1] < 1:
            raise ValueError(f"captions must be ({N}, T) with T >= 1, but are {tuple(captions.shape)}")
        start, words = captions[:, :1], captions[:, 1:]
        captions = torch.cat([start, words.masked_fill(words == IGNORED, self.null)], dim=1)
        check_words("CaptioningRNN", "captions", captions, self.W_embed, "there are {high} words")
        targets = captions[:, 1:]
        for name, x in {"inputs": inputs, "weights": weights}.items():
            if x is not None and x.shape != targets.shape:
                raise ValueError(f"{name} must be {tuple(targets.shape)}, but is {tuple(x.shape)}")
        if inputs is not None:
            check_words("CaptioningRNN", "inputs", inputs, self.W_embed, "there are {high} words")
        real = targets != self.null
        packed = Packing.of(N, targets.shape[1], lengths_from_mask(real))
        x, index = self._vectors(packed.pack_integers(captions[:, :-1] if inputs is None else inputs))
        if packed.sorted_indices is not None:  # a lookup of rows, as of word vectors in W_embed
            order = packed.sorted_indices.unsqueeze(0)
            image = self.cell.ops.word_embedding(order, image.flatten(1)).reshape(image.shape)
        cell = self._training_cell if self.training else self.cell
        h = self._drop(cell.packed(x, cell.begin(image), self.recurrent(), packed.batch_sizes, index))  # (r, H)
        y = packed.pack_integers(targets)
        part = real if weights is None else weights.detach() * real
        share = packed.pack_integers(part).to(self.b_vocab.dtype)  # (r,), of each word in the loss
        if reduction == "mean":
            share = share / max(N, 1)
        h, w = self._vocabulary_layer(h)
        smoothing = self.label_smoothing if self.training else 0.0
        # The loss treats the packed rows as one sequence.
        loss = self.cell.ops.temporal_affine_softmax_loss(
            h.unsqueeze(0), w, self.b_vocab, y.unsqueeze(0), share.unsqueeze(0), smoothing, reduction
        )
        return loss if reduction == "mean" else packed.unpack(loss.mT).sum((1, 2))  # (r, 1) -> (N, T-1, 1) -> (N,)

    def _vocabulary_layer(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the vocabulary layer from h (n, H), and the weight of that layer.

        Tied, the weight is W_embed^T: autograd adds the gradients of W_embed from here and from the embedding.
        """
        if not self.tied:
            return h, self.W_vocab
        if self.hidden_dim != self.wordvec_dim:
            h = self.cell.ops.affine(h, self.W_out, self.b_vocab.new_zeros(self.wordvec_dim))
        return h, self.W_embed.T

    @torch.no_grad()
    def scale_logits_(self, temperature: float) -> None:
        """Divide all logits by a temperature, permanently (in place): below 1, probable words become more probable.

        Raises:
            ValueError: the temperature is not positive, or the logits have no weight of their own (tied, and H is W).
        """
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, but is {temperature}")
        if self.tied and self.hidden_dim == self.wordvec_dim:
            raise ValueError("tied word vectors with H = W: the logits have no weight of their own to scale")
        for w in (self.W_out if self.tied else self.W_vocab, self.b_vocab):
            w.div_(temperature)

    def _vectors(self, words: Tensor) -> tuple[Tensor, Tensor | None]:
        """The vectors (R, W) of words (r,), and the index of each word's vector; None if each word has its own.

        A batch repeats words, and a repeated word is projected once. With dropout the vectors of one word differ.
        """
        words, index = (words, None) if self.training and self.dropout else distinct_words(words)
        x = self.cell.ops.word_embedding(words.unsqueeze(0), self.W_embed).squeeze(0)
        return self._drop(x), index

    def recurrent(self) -> dict[str, Tensor]:
        """The weights of the recurrence, Wx, Wh, b and with "attention" Wattn, of each layer, by name."""
        return {name: getattr(self, name) for name in self.cell.names}

    def begin(self, features: Tensor) -> State:
        """The state before the first word, from features as in `forward`.

        Raises:
            TypeError: the features are not a floating-point tensor, or of another dtype or device.
            ValueError: the features are of another shape.
        """
        return self.cell.begin(self._project(features))

    def _project(self, features: Tensor) -> Tensor:
        """h0 (N, H) of features (N, D), or positions (N, L, H) of a grid if the cell attends.

        Raises:
            TypeError: the features are not a floating-point tensor, or of another dtype or device.
            ValueError: the features are of another shape.
        """
        return self.cell.ops.affine(self._image(features), self.W_proj, self.b_proj)

    def _image(self, features: Tensor) -> Tensor:
        """The input of the projection, (N, D), or (N, L, D) of a grid; under autocast in its dtype.

        Raises:
            TypeError: the features are not a floating-point tensor, or of another dtype or device.
            ValueError: the features are of another shape.
        """
        D = self.input_dim
        check_tensor("CaptioningRNN", "features", features)
        if not self.cell.attends:
            if features.dim() != 2 or features.shape[1] != D:
                raise ValueError(f"features must be (N, {D}), but are {tuple(features.shape)}")
        elif features.dim() not in (3, 4) or features.shape[1] != D or 0 in features.shape[2:]:
            raise ValueError(
                f"the cell {self.cell_type} attends to a grid: features must be (N, {D}, L) or (N, {D}, a, a), "
                f"but are {tuple(features.shape)}"
            )
        else:
            features = features.flatten(2).mT  # (N, L, D)
        features, b = autocast(features, self.b_proj)
        check_floats("CaptioningRNN", {}, features=(features, "... D"), b_proj=(b, "H"))
        return features

    @torch.no_grad()
    def attention(self, features: Tensor, words: Tensor) -> Tensor:
        """The attention weights at each word of given captions; with several layers those of the last.

        Args:
            features: (N, D, L) or (N, D, a, a) floating-point.
            words: (N, T) integers, the captions without their <START>, as `sample` returns them.

        Returns:
            weights (N, T, L) or (N, T, a, a), positive and of sum 1 for each word; zero at <NULL>.

        Raises:
            TypeError: features or words are not tensors of the right kind.
            ValueError: a shape does not fit, the cell does not attend, or the vocabulary has no <START>.
        """
        if not self.cell.attends:
            raise ValueError(f"the cell {self.cell_type} has no attention")
        check_tensor("CaptioningRNN", "words", words)
        starts = words.new_full((words.shape[0], 1), self.token_ids().start)
        inputs = torch.cat([starts, words], dim=1)[:, :-1]
        h = self.cell.ops.word_embedding(inputs, self.W_embed)
        lengths = lengths_from_mask(words != self.null)
        *below, (_, (*_, A), last) = self.cell.layers(self.begin(features), self.recurrent())
        for cell, state, weights in below:
            h = cell.sequence(h, state, weights, lengths)
        _, weights = self.cell.ops.attention_lstm(h, A.mT, **last, lengths=lengths, return_weights=True)
        return weights.reshape(*words.shape, *features.shape[2:])

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (N, V) of the word after `words` (N,), and the next state."""
        check_tensor("CaptioningRNN", "words", words)
        x = self.cell.ops.word_embedding(words.unsqueeze(1), self.W_embed).squeeze(1)  # (N, W)
        state = self.cell.step(x, state, self.recurrent())
        h, w = self._vocabulary_layer(state[0])
        return self.cell.ops.affine(h, w, self.b_vocab), state

    def decode(
        self, features: Tensor, options: DecodingOptions | None = None, generator: torch.Generator | None = None
    ) -> Decoded:
        """Captions of each image by any method: see `torch_caption.decoding`.

        Args:
            features: as in `forward`.
            options: greedy by default.
            generator: for random sampling; by default torch's global one.

        Returns:
            K captions of each image, words (N, K, max_length): K is 1 in greedy decoding, `samples` in sampling and
            `n_best` in beam search.

        Raises:
            TypeError: the features are not a floating-point tensor, or of another dtype or device.
            ValueError: an option is out of its range, a shape does not fit, or the vocabulary has no <START>.
        """
        options = options or DecodingOptions()
        check_tensor("CaptioningRNN", "features", features)
        stepper = self.stepper(len(features) * options.rows * options.length)
        return decoding.decode(stepper, features, self.token_ids(), options, generator)

    def sample(self, features: Tensor, max_length: int = 30) -> Tensor:
        """The greedy caption of each image, words (N, max_length): cs231n's name for `decode`."""
        return self.decode(features, DecodingOptions(max_length=max_length)).words.squeeze(1)

    def beam_search(self, features: Tensor, beam_size: int = 5, max_length: int = 30, **options: Any) -> Decoded:
        """`decode` by beam search; `options` are further fields of `DecodingOptions`."""
        return self.decode(features, DecodingOptions("beam", max_length, beam_size=beam_size, **options))

    def alternatives(self, features: Tensor, words: Tensor, k: int = 5) -> Alternatives:
        """The k most probable words at each step of given captions, and the log-probabilities of the captions' words.

        Args:
            features: as in `forward`.
            words: (N, T) integers, as `sample` returns them.

        Raises:
            TypeError: features or words are not tensors of the right kind.
            ValueError: as `torch_caption.decoding.alternatives`, or the vocabulary has no <START>.
        """
        for name, x in {"features": features, "words": words}.items():
            check_tensor("CaptioningRNN", name, x)
        return decoding.alternatives(self.stepper(words.numel()), features, words, self.token_ids(), k)

    def token_ids(self) -> TokenIds:
        """The ids of the special tokens, for decoding.

        Raises:
            ValueError: the vocabulary has no <START>.
        """
        if self.start is None:
            raise ValueError(f"the vocabulary has no {START} to begin a caption with")
        return TokenIds(self.start, self.end, self.null, self.unk, self.word_to_idx)

    def blank(self, n: int, positions: int = 1) -> Tensor:
        """Zero features of n images, (n, D), or (n, D, positions) for a cell that attends."""
        return self.W_proj.new_zeros(n, self.input_dim, *([positions] if self.cell.attends else []))

    def stepper(self, words: int) -> InferenceStepper:
        """A copy of this model for inference: the same `begin` and `step`, faster and without a gradient.

        Args:
            words: the maximum number of input tokens, over all rows and steps.
        """
        return InferenceStepper(self.cell, {name: getattr(self, name) for name in self._names}, self._image, words)

    def params(self) -> dict[str, np.ndarray]:
        """The weights as cs231n's dictionary of NumPy arrays (copies)."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.named_parameters()}

    @torch.no_grad()
    def load_params(self, params: Mapping[str, np.ndarray]) -> None:
        """Load the weights from cs231n's dictionary of arrays, cast to the dtype of this model.

        Raises:
            ValueError: a name is missing or unknown, or a shape does not fit; the model is then unchanged.
        """
        own = dict(self.named_parameters())
        missing, unknown = sorted(own.keys() - params.keys()), sorted(params.keys() - own.keys())
        if missing or unknown:
            raise ValueError(f"params lack {missing or 'nothing'} and contain unknown {unknown or 'nothing'}")
        arrays = {name: np.asarray(params[name]) for name in own}
        for name, p in own.items():
            if arrays[name].dtype.kind not in "iuf":
                raise ValueError(f"params[{name!r}] must be real numbers, but are {arrays[name].dtype}")
            if arrays[name].shape != tuple(p.shape):
                raise ValueError(f"params[{name!r}] must be {tuple(p.shape)}, but is {arrays[name].shape}")
        for name, p in own.items():
            p.copy_(torch.from_numpy(np.array(arrays[name], dtype=np.float64, order="C")))

    def save_npz(self, path: str | Path) -> None:
        """Write the weights as an .npz of cs231n's dictionary."""
        with Path(path).open("wb") as file:
            np.savez(file, allow_pickle=False, **self.params())

    def load_npz(self, path: str | Path) -> None:
        """Load the weights from an .npz of cs231n's dictionary; nothing in it is executed.

        Raises:
            ValueError: the file is missing or not an .npz, or its arrays do not fit; the message names the file.
        """
        try:
            with Path(path).open("rb") as file:
                if not zipfile.is_zipfile(file):
                    raise ValueError("not an .npz file")
                file.seek(0)
                with np.load(file, allow_pickle=False) as arrays:
                    self.load_params({name: arrays[name] for name in arrays.files})
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        except (ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: {error}") from error

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout) if self.training and self.dropout else x
