"""The names of cs231n's assignment 3, question 2, over this package's own functions.

The notebooks `RNN_Captioning.ipynb` and `LSTM_Captioning.ipynb` run with only their imports changed: in each import
line the assignment's module becomes `torch_caption.cs231n`, also in `from ... import *`.

==========================  ========================================================================
the assignment's module     replacement from here
==========================  ========================================================================
`cs231n.layers`             `affine_forward`, `affine_backward`
`cs231n.rnn_layers`         the steps, sequences, embedding, temporal layers of both cells
`cs231n.gradient_check`     `eval_numerical_gradient`, `eval_numerical_gradient_array`
`cs231n.classifiers.rnn`    `CaptioningRNN`
`cs231n.captioning_solver`  `CaptioningSolver`
`cs231n.optim`              `sgd`, `sgd_momentum`, `rmsprop`, `adam`
`cs231n.coco_utils`         `load_coco_data`, `sample_coco_minibatch`, `decode_captions`
`cs231n.image_utils`        `image_from_url`
==========================  ========================================================================

`rel_error`, which the notebooks define themselves, is here too.

No formula is duplicated. A `*_forward` runs the public function of `torch_caption.functions` on copies of its inputs
and returns the graph of that call as its cache; the `*_backward` runs the hand-derived `backward` of the function's
class on that graph. A cache therefore serves any number of backward passes, and changing the inputs or the
output afterwards does not change them.

NumPy arrays in, NumPy arrays out; where any floating input is a tensor, tensors out, on its device and without a graph
of their own. Inputs are never modified. Floating inputs of several dtypes are promoted to the widest. Bad shapes,
dtypes and word indices are the errors of `torch_caption.functions`.

Random numbers (initial weights, minibatches, the choice of `max_train` captions) come from NumPy's global state, so the
notebooks' `np.random.seed(231)` makes them reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_caption import functions
from torch_caption.data import dataset
from torch_caption.data.vocabulary import END, NULL, START
from torch_caption.errors import ImageError
from torch_caption.io.images import load_image
from torch_caption.model import captioner

__all__ = [
    "CaptioningRNN",
    "CaptioningSolver",
    "adam",
    "affine_backward",
    "affine_forward",
    "decode_captions",
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "image_from_url",
    "load_coco_data",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "rel_error",
    "rmsprop",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "sample_coco_minibatch",
    "sgd",
    "sgd_momentum",
    "temporal_affine_backward",
    "temporal_affine_forward",
    "temporal_softmax_loss",
    "word_embedding_backward",
    "word_embedding_forward",
]

# Any: results have the kind of the inputs, NumPy arrays or tensors, and callers would have to narrow a union.
Array = Any
UpdateRule = Callable[[np.ndarray, np.ndarray, dict[str, Any]], tuple[np.ndarray, dict[str, Any]]]


@dataclass(frozen=True)
class Cache:
    """The cache of a `*_forward` for its `*_backward`: the graph of one call.

    Attributes:
        inputs: private copies of the differentiable inputs, in the order in which their gradients are returned.
        outputs: of the function.
        numpy: whether gradients are returned as NumPy arrays.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    numpy: bool


def _is_numpy(*arrays: Array) -> bool:
    return not any(isinstance(array, Tensor) for array in arrays)


def _copy(array: Array) -> Tensor:
    """A tensor in new memory, for any strides or writeability of `array`."""
    return array.detach().clone() if isinstance(array, Tensor) else torch.from_numpy(np.array(array, order="C"))


def _integers(array: Array) -> Tensor:
    """Word indices as int64; other values are unchanged and refused by the function."""
    indices = _copy(array)
    unsuitable = indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool
    return indices if unsuitable else indices.long()


def _returned(tensor: Tensor, numpy: bool) -> Array:
    """A copy, which the caller may change."""
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return copy.numpy() if numpy else copy


def _forward(function: Callable[..., Any], *inputs: Array) -> tuple[Any, ...]:
    """(output, ..., cache) of `function` at its differentiable inputs."""
    copies = [_copy(array) for array in inputs]
    dtype = reduce(torch.promote_types, (copy.dtype for copy in copies))
    if not dtype.is_floating_point:
        dtype = torch.float64  # as in NumPy's products with real numbers
    leaves = tuple(copy.to(dtype).requires_grad_() for copy in copies)
    with torch.enable_grad():
        outputs = function(*leaves)
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    cache = Cache(leaves, outputs, _is_numpy(*inputs))
    return *(_returned(out, cache.numpy) for out in outputs), cache


def _backward(cache: Cache, *douts: Array) -> tuple[Array, ...]:
    """The gradient of each of the cache's inputs, by the hand-derived backward of its function."""
    gradients = []
    for out, dout in zip(cache.outputs, douts, strict=True):
        gradient = torch.as_tensor(_copy(dout), dtype=out.dtype, device=out.device)
        if gradient.shape != out.shape:
            raise ValueError(f"the upstream gradient has shape {tuple(gradient.shape)}, the output {tuple(out.shape)}")
        gradients.append(gradient)
    results = torch.autograd.grad(cache.outputs, cache.inputs, gradients, retain_graph=True)
    return tuple(_returned(result, cache.numpy) for result in results)


def affine_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """An affine layer on whole examples: x (N, d_1, ..., d_k) is flattened to (N, D), D = d_1 ... d_k.

    Args:
        x: (N, d_1, ..., d_k). w: (D, M). b: (M,).

    Returns:
        out (N, M), cache.
    """
    return _forward(lambda x, w, b: functions.affine(x.reshape(x.shape[0], math.prod(x.shape[1:])), w, b), x, w, b)


def affine_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """dx (N, d_1, ..., d_k), dw (D, M), db (M,) from dout (N, M)."""
    return _backward(cache, dout)


def rnn_step_forward(x: Array, prev_h: Array, Wx: Array, Wh: Array, b: Array) -> tuple[Array, Cache]:
    """One tanh step: x (N, D), prev_h (N, H), Wx (D, H), Wh (H, H), b (H,) -> next_h (N, H), cache."""
    return _forward(functions.rnn_step, x, prev_h, Wx, Wh, b)


def rnn_step_backward(dnext_h: Array, cache: Cache) -> tuple[Array, ...]:
    """dx, dprev_h, dWx, dWh, db from dnext_h (N, H)."""
    return _backward(cache, dnext_h)


def rnn_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> tuple[Array, Cache]:
    """A vanilla RNN over a sequence: x (N, T, D), h0 (N, H), weights as in `rnn_step_forward` -> h (N, T, H), cache."""
    return _forward(functions.rnn, x, h0, Wx, Wh, b)


def rnn_backward(dh: Array, cache: Cache) -> tuple[Array, ...]:
    """dx, dh0, dWx, dWh, db from dh (N, T, H), the gradient that reaches each timestep from outside the recurrence."""
    return _backward(cache, dh)


def word_embedding_forward(x: Array, W: Array) -> tuple[Array, Cache]:
    """The rows of W (V, D) with the indices x (N, T) -> out (N, T, D), cache.

    Raises:
        IndexError: an index is negative or >= V. NumPy's own indexing would take a negative one from the end.
    """
    words = _integers(x)
    return _forward(lambda W: functions.word_embedding(words.to(W.device), W), W)


def word_embedding_backward(dout: Array, cache: Cache) -> Array:
    """dW (V, D) from dout (N, T, D); words have no gradient."""
    (dW,) = _backward(cache, dout)
    return dW


def lstm_step_forward(
    x: Array, prev_h: Array, prev_c: Array, Wx: Array, Wh: Array, b: Array
) -> tuple[Array, Array, Cache]:
    """One LSTM step, gates i, f, o, g along 4H.

    Args:
        x: (N, D). prev_h, prev_c: (N, H). Wx: (D, 4H). Wh: (H, 4H). b: (4H,).

    Returns:
        next_h (N, H), next_c (N, H), cache.
    """
    next_h, next_c, cache = _forward(functions.lstm_step, x, prev_h, prev_c, Wx, Wh, b)
    return next_h, next_c, cache


def lstm_step_backward(dnext_h: Array, dnext_c: Array, cache: Cache) -> tuple[Array, ...]:
    """dx, dprev_h, dprev_c, dWx, dWh, db from dnext_h (N, H) and dnext_c (N, H)."""
    return _backward(cache, dnext_h, dnext_c)


def lstm_forward(x: Array, h0: Array, Wx: Array, Wh: Array, b: Array) -> tuple[Array, Cache]:
    """An LSTM over a sequence, its first cell state zero: x (N, T, D), h0 (N, H) -> h (N, T, H), cache."""
    return _forward(functions.lstm, x, h0, Wx, Wh, b)


def lstm_backward(dh: Array, cache: Cache) -> tuple[Array, ...]:
    """dx, dh0, dWx, dWh, db from dh (N, T, H)."""
    return _backward(cache, dh)


def temporal_affine_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """The same affine layer at every timestep: x (N, T, D), w (D, M), b (M,) -> out (N, T, M), cache."""
    return _forward(functions.temporal_affine, x, w, b)


def temporal_affine_backward(dout: Array, cache: Cache) -> tuple[Array, ...]:
    """dx (N, T, D), dw (D, M), db (M,) from dout (N, T, M)."""
    return _backward(cache, dout)


def temporal_softmax_loss(x: Array, y: Array, mask: Array, verbose: bool = False) -> tuple[Array, Array]:
    """Cross entropy summed over the timesteps where `mask` holds and averaged over the N captions.

    Args:
        x: scores (logits) (N, T, V). y: correct words (N, T), integers. mask: (N, T), boolean or real weights.
        verbose: print the shape of the gradient.

    Returns:
        loss, a scalar of x's kind and dtype; dx (N, T, V).
    """
    words, weights = _integers(y), _copy(mask)
    if weights.dtype is not torch.bool and not weights.is_floating_point():
        weights = weights.double()  # zeros and ones written as integers
    out, cache = _forward(lambda x: functions.temporal_softmax_loss(x, words.to(x.device), weights.to(x.device)), x)
    (dx,) = _backward(cache, torch.ones_like(cache.outputs[0]))
    if verbose:
        print("dx:", tuple(dx.shape))
    return (out[()] if cache.numpy else out), dx


def _difference(f: Callable[[Any], Any], x: Array, at: tuple[int, ...], h: float) -> Any:
    """f(x) with x[at] + h, minus f(x) with x[at] - h; x is restored exactly."""
    old = x[at].item()
    values = []
    try:
        for step in (h, -h):
            with torch.no_grad():
                x[at] = old + step
            value = f(x)
            # f may return x or a view of it, which the next change of x would change
            values.append(value.detach().clone() if isinstance(value, Tensor) else np.array(value))
    finally:
        with torch.no_grad():
            x[at] = old
    return values[0] - values[1]


def _zeros_like(x: Array) -> Array:
    if isinstance(x, Tensor) and x.is_floating_point():
        return torch.zeros_like(x, requires_grad=False)
    if isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.floating):
        return np.zeros_like(x)
    raise ValueError(
        f"a numerical gradient needs a floating array or tensor, not {getattr(x, 'dtype', type(x).__name__)}"
    )


def eval_numerical_gradient(f: Callable[[Any], Any], x: Array, verbose: bool = True, h: float = 1e-5) -> Array:
    """The gradient of a scalar function by central differences, (f(x + h) - f(x - h)) / 2h for each entry of x.

    Args:
        f: maps x to a number. It may ignore its argument and read x itself: x is changed in place during each call and
            restored exactly.
        x: a floating array or tensor.
        verbose: print every entry's index and gradient.
        h: the step.

    Returns:
        of x's kind, shape and dtype.

    Raises:
        ValueError: x is not floating.
    """
    gradient = _zeros_like(x)
    for at in np.ndindex(*x.shape):
        gradient[at] = float(_difference(f, x, at, h)) / (2 * h)
        if verbose:
            print(at, float(gradient[at]))
    return gradient


def eval_numerical_gradient_array(f: Callable[[Any], Any], x: Array, df: Array, h: float = 1e-5) -> Array:
    """The gradient of sum(f(x) * df) by central differences, for a function whose value is an array.

    Args:
        f: maps x to an array of df's shape. x: floating. df: the upstream gradient. h: the step.

    Returns:
        of x's kind, shape and dtype.

    Raises:
        ValueError: x is not floating.
    """
    gradient = _zeros_like(x)
    for at in np.ndindex(*x.shape):
        gradient[at] = float((_difference(f, x, at, h) * df).sum()) / (2 * h)
    return gradient


def rel_error(x: Array, y: Array) -> float:
    """The maximum of `|x - y| / max(1e-8, |x| + |y|)` over all entries; 0 for empty arrays."""
    x, y = np.asarray(x), np.asarray(y)
    return float(np.max(np.abs(x - y) / np.maximum(1e-8, np.abs(x) + np.abs(y)), initial=0.0))


def _random_seed() -> int:
    """A seed from NumPy's global state, which the notebooks seed."""
    return int(np.random.randint(2**31))  # noqa: NPY002


class CaptioningRNN:
    """The assignment's captioner: NumPy parameters in a dictionary, over `torch_caption.model.captioner.CaptioningRNN`.

    Args:
        word_to_idx: word -> id, with <NULL>, and <START> for sampling. V is its length; ids beyond V are accepted, as
            in the assignment's own check, if no caption contains them.
        input_dim: D of the features. wordvec_dim: W. hidden_dim: H.
        cell_type: "rnn" or "lstm"; or "attention", whose features are grids (N, D, a, a).
        dtype: np.float32 or np.float64, of the parameters and of all arithmetic.

    Attributes:
        params: W_proj b_proj W_embed Wx Wh b W_vocab b_vocab, and with "attention" Wattn; a plain dictionary that is
            read in every call: entries may be replaced or changed in place.
    """

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        dtype: Any = np.float32,
    ) -> None:
        self.cell_type = cell_type
        self.dtype = np.dtype(dtype)
        self.word_to_idx = word_to_idx
        self.idx_to_word = {idx: word for word, idx in word_to_idx.items()}
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(_random_seed())
            model = captioner.CaptioningRNN(word_to_idx, input_dim, wordvec_dim, hidden_dim, cell_type)
        self._model = model.to(torch.from_numpy(np.empty(0, self.dtype)).dtype)
        self.params: dict[str, np.ndarray] = {name: np.array(value) for name, value in self._model.params().items()}

    def _read(self, features: Array) -> Tensor:
        """Load `params` into the model; returns the features as a tensor of its dtype."""
        self._model.load_params(self.params)
        return _copy(features).to(self._model.dtype)

    def loss(self, features: Array, captions: Array) -> tuple[float, dict[str, np.ndarray]]:
        """The loss of predicting captions[:, 1:] from captions[:, :-1], without <NULL>, and its gradients.

        Args:
            features: (N, D). captions: (N, T) integers.

        Returns:
            loss, the sum over time averaged over the N captions; grads, an array for every entry of `params`.
        """
        with torch.enable_grad():
            parameters = dict(self._model.named_parameters())
            inputs = self._read(features)
            loss = self._model(inputs, _integers(captions))
            gradients = torch.autograd.grad(loss, list(parameters.values()))
        grads = {name: _returned(gradient, numpy=True) for name, gradient in zip(parameters, gradients, strict=True)}
        return loss.item(), grads

    @torch.no_grad()
    def sample(self, features: Array, max_length: int = 30) -> np.ndarray:
        """The most probable word at each of `max_length` timesteps, which is the next input; does not stop at <END>.

        Args:
            features: (N, D).

        Returns:
            (N, max_length) int64, without <START>.

        Raises:
            ValueError: the vocabulary has no <START>.
        """
        if self._model.start is None:
            raise ValueError(f"sampling starts with {START}, which the vocabulary lacks")
        inputs = self._read(features)
        state = self._model.begin(inputs)
        words = inputs.new_full((len(inputs),), self._model.start, dtype=torch.int64)
        sampled = inputs.new_full((len(inputs), max_length), self._model.null, dtype=torch.int64)
        for t in range(max_length):
            scores, state = self._model.step(words, state)
            words = scores.argmax(1)
            sampled[:, t] = words
        return sampled.numpy()


def sgd(w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """w - lr dw. config: learning_rate (1e-2)."""
    config = {} if config is None else config
    lr = config.setdefault("learning_rate", 1e-2)
    return w - lr * dw, config


def sgd_momentum(
    w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """v <- mu v - lr dw; w + v. config: learning_rate (1e-2), momentum mu (0.9), velocity v (zeros)."""
    config = {} if config is None else config
    lr, mu = config.setdefault("learning_rate", 1e-2), config.setdefault("momentum", 0.9)
    config["velocity"] = mu * config.get("velocity", np.zeros_like(w)) - lr * dw
    return w + config["velocity"], config


def rmsprop(w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """r <- decay r + (1 - decay) dw^2; w - lr dw / (sqrt(r) + eps).

    config: learning_rate (1e-2), decay_rate (0.99), epsilon (1e-8), cache r (zeros).
    """
    config = {} if config is None else config
    lr, decay = config.setdefault("learning_rate", 1e-2), config.setdefault("decay_rate", 0.99)
    eps = config.setdefault("epsilon", 1e-8)
    config["cache"] = decay * config.get("cache", np.zeros_like(w)) + (1 - decay) * dw**2
    return w - lr * dw / (np.sqrt(config["cache"]) + eps), config


def adam(w: np.ndarray, dw: np.ndarray, config: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """m <- beta1 m + (1 - beta1) dw; v <- beta2 v + (1 - beta2) dw^2; w - lr_t m / (sqrt(v) + eps).

    lr_t = lr sqrt(1 - beta2^t) / (1 - beta1^t) corrects the bias of m and v, which are initially zero; t is 1 at the
    first step. This is the rule of assignment 3, the efficient form of Kingma and Ba (2015, end of section 2).
    Assignment 2 and `torch.optim.Adam` correct v before eps is added. So eps is larger here by 1 / sqrt(1 - beta2^t),
    32 times at the first step: gradients near 1e-8, as of rare words, give smaller steps, and only this rule reproduces
    the losses of assignment 3's notebooks.

    config: learning_rate (1e-3), beta1 (0.9), beta2 (0.999), epsilon (1e-8), m and v (zeros), t (0).
    """
    config = {} if config is None else config
    lr, eps = config.setdefault("learning_rate", 1e-3), config.setdefault("epsilon", 1e-8)
    beta1, beta2 = config.setdefault("beta1", 0.9), config.setdefault("beta2", 0.999)
    config["t"] = t = config.get("t", 0) + 1
    config["m"] = m = beta1 * config.get("m", np.zeros_like(w)) + (1 - beta1) * dw
    config["v"] = v = beta2 * config.get("v", np.zeros_like(w)) + (1 - beta2) * dw**2
    lr_t = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
    return w - lr_t * (m / (np.sqrt(v) + eps)), config


# These rules do not use torch.optim for two reasons: a rule may be any callable of this form, and the velocity of
# torch.optim.SGD excludes the learning rate, which gives different numbers if the rate decays.
UPDATE_RULES: dict[str, UpdateRule] = {"sgd": sgd, "sgd_momentum": sgd_momentum, "rmsprop": rmsprop, "adam": adam}


class CaptioningSolver:
    """Minibatch training of a `CaptioningRNN`.

    Args:
        model: any object with `.params` and `.loss(features, captions) -> loss, grads`.
        data: the dictionary of `load_coco_data`.
        update_rule: "sgd", "sgd_momentum", "rmsprop", "adam", or a callable (w, dw, config) -> (next_w, config).
        optim_config: the rule's settings, such as {"learning_rate": 5e-3}; each parameter has its own copy.
        lr_decay: the learning rate's factor after each epoch.
        batch_size: captions per minibatch, sampled with replacement. num_epochs: epochs of `train`.
        print_every: iterations between two printed losses. verbose: print them at all.

    Attributes:
        loss_history: the loss of every iteration. epoch: completed epochs.

    Raises:
        ValueError: an unknown update rule, or a batch_size or print_every below 1.
    """

    def __init__(
        self,
        model: Any,
        data: Mapping[str, Any],
        *,
        update_rule: str | UpdateRule = "sgd",
        optim_config: Mapping[str, Any] | None = None,
        lr_decay: float = 1.0,
        batch_size: int = 100,
        num_epochs: int = 10,
        print_every: int = 10,
        verbose: bool = True,
    ) -> None:
        if not callable(update_rule) and update_rule not in UPDATE_RULES:
            raise ValueError(f"update_rule is {update_rule!r}; there are {', '.join(UPDATE_RULES)}, or a callable")
        for name, value in (("batch_size", batch_size), ("print_every", print_every)):
            if value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        self.model = model
        self.data = data
        self.update_rule: UpdateRule = update_rule if callable(update_rule) else UPDATE_RULES[update_rule]
        self.lr_decay = lr_decay
        self.batch_size = batch_size
        self.num_epochs = num_epochs
        self.print_every = print_every
        self.verbose = verbose
        self.epoch = 0
        self.loss_history: list[float] = []
        self.optim_configs: dict[str, dict[str, Any]] = {name: dict(optim_config or {}) for name in model.params}

    def _step(self) -> None:
        captions, features, _ = sample_coco_minibatch(self.data, batch_size=self.batch_size, split="train")
        loss, grads = self.model.loss(features, captions)
        self.loss_history.append(loss)
        for name, config in self.optim_configs.items():
            w, self.optim_configs[name] = self.update_rule(self.model.params[name], grads[name], config)
            self.model.params[name] = w

    def train(self) -> None:
        """Run `num_epochs` epochs of max(M // batch_size, 1) iterations each, for M training captions."""
        iterations_per_epoch = max(len(self.data["train_captions"]) // self.batch_size, 1)
        iterations = self.num_epochs * iterations_per_epoch
        for t in range(iterations):
            self._step()
            if self.verbose and t % self.print_every == 0:
                print(f"(Iteration {t + 1} / {iterations}) loss: {self.loss_history[-1]:f}")
            if (t + 1) % iterations_per_epoch == 0:
                self.epoch += 1
                for config in self.optim_configs.values():
                    if "learning_rate" in config:
                        config["learning_rate"] *= self.lr_decay


def load_coco_data(
    base_dir: str | Path = "cs231n/datasets/coco_captioning", max_train: int | None = None, pca_features: bool = True
) -> dict[str, Any]:
    """A data directory in cs231n's layout, loaded into a dictionary.

    Args:
        base_dir: the directory; by default that of the assignment's archive, which
            `python -m torch_caption download DIR` downloads.
        max_train: use a random subset of this many training captions.
        pca_features: read `*_vgg16_fc7_pca.h5`, else `*_vgg16_fc7.h5`.

    Returns:
        for every split, such as train: train_captions (M, T) int32, train_image_idxs (M,) int32,
        train_features (images, D) float32, train_urls (images,) strings; and idx_to_word, word_to_idx. If
        the picture is in the directory, its entry in urls is the path of the file; without a name or URL it is empty.

    Raises:
        torch_caption.data.dataset.DataError: a file is missing or wrong; the message names file, dataset, row and
            value.
    """
    source = dataset.open_data(base_dir, pca=pca_features, max_train=max_train, in_memory="no", seed=_random_seed())
    data: dict[str, Any] = {}
    for name, split in source.splits.items():
        images = range(split.num_images)
        data[f"{name}_captions"] = split.captions.numpy().astype(np.int32)  # as in the course's file
        data[f"{name}_image_idxs"] = split.image_idxs.numpy().astype(np.int32)
        data[f"{name}_features"] = split.features_of(list(images)).numpy()
        pictures = [str(split.image_path(image) or split.image_name(image) or "") for image in images]
        data[f"{name}_urls"] = np.array(pictures, dtype=str)
    data["idx_to_word"] = list(source.vocabulary.words)
    data["word_to_idx"] = dict(source.vocabulary.word_to_idx)
    return data


def sample_coco_minibatch(
    data: Mapping[str, Any], batch_size: int = 100, split: str = "train"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`batch_size` captions of a split, sampled with replacement: captions (B, T), features (B, D), urls (B,).

    The urls are empty strings if `data` has none.
    """
    if f"{split}_captions" not in data:
        there = sorted(name.removesuffix("_captions") for name in data if name.endswith("_captions"))
        raise ValueError(f"no split {split!r}; there are {', '.join(there)}")
    captions = np.asarray(data[f"{split}_captions"])
    if not len(captions):
        raise ValueError(f"the split {split!r} has no captions")
    rows = np.random.choice(len(captions), batch_size)  # noqa: NPY002
    images = np.asarray(data[f"{split}_image_idxs"])[rows]
    urls = data.get(f"{split}_urls")
    names = np.full(batch_size, "") if urls is None else np.asarray(urls)[images]
    return captions[rows], np.asarray(data[f"{split}_features"])[images], names


def decode_captions(captions: Array, idx_to_word: Sequence[str] | Mapping[int, str]) -> str | list[str]:
    """Word ids as text, including <START> and <END>, without <NULL>, up to <END>.

    Args:
        captions: (T,) or (N, T) integers.

    Returns:
        one string for (T,), a list of N strings for (N, T).
    """
    rows = np.asarray(captions)
    if rows.ndim not in (1, 2):
        raise ValueError(f"captions are of shape (T,) or (N, T), not {rows.shape}")
    decoded = []
    for row in np.atleast_2d(rows):
        words: list[str] = []
        for idx in row:
            word = idx_to_word[int(idx)]
            if word != NULL:
                words.append(word)
            if word == END:
                break
        decoded.append(" ".join(words))
    return decoded[0] if rows.ndim == 1 else decoded


def image_from_url(url: str | Path, *, allow_private: bool = False) -> np.ndarray:
    """The picture at a URL or path as (h, w, 3) uint8.

    Many of the assignment's links are dead. For a missing picture the reason is printed and a grey picture is returned,
    so that a notebook continues. `torch_caption.io.images.load_image` raises an error instead.

    Args:
        allow_private: also fetch from addresses of the local network.
    """
    try:
        return np.array(load_image(str(url), allow_private=allow_private))
    except ImageError as error:
        print(f"no picture: {error}")
        return np.full((224, 224, 3), 128, dtype=np.uint8)
