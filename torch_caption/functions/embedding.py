"""Word ids to word vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._common import apply, check_floats, check_integers, check_range, flatten_rows, may_overwrite, readable


class WordEmbedding(Function):
    r"""One row of W for every word; here D is the width of a word vector, cs231n's W.

        out[n, t] = W[x[n, t]]                 (N, T, D)

    Backward. Row v of W was read once for every occurrence of word v, and each adds its gradient:

        dW[v] = sum_{n,t: x[n,t] = v} dout[n, t]        (V, D)

    A word that repeats must add up, which plain assignment `dW[x] = dout` would lose.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, W: Tensor) -> Tensor:
        return W.index_select(0, x.reshape(x.numel())).reshape(*x.shape, W.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, W = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        ctx.V = W.shape[0]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        _, need_W = ctx.needs_input_grad
        if not need_W:
            return None, None
        dW = dout.new_zeros(ctx.V, dout.shape[-1])
        if may_overwrite(x, dout):
            return None, dW.index_add_(0, x.reshape(-1), flatten_rows(dout))
        index = x.reshape(x.numel(), 1).expand(x.numel(), dout.shape[-1])
        return None, dW.scatter_add(0, index, flatten_rows(dout))


class WordEmbeddingWithJVP(WordEmbedding):
    """`WordEmbedding` with its forward mode: tout = tW[x]."""

    @staticmethod
    def jvp(ctx: Any, _: None, tW: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return WordEmbedding.forward(x, tW)


def word_embedding(x: Tensor, W: Tensor) -> Tensor:
    """Word vectors of word ids.

    Args:
        x: (N, T) integers, 0 <= x < V. The range is checked wherever values can be read, which under torch.compile,
            export, vmap, CUDA graph capture and on the meta device they cannot.
        W: (V, D) floating-point; row v is the vector of word v.

    Returns:
        (N, T, D), dtype of W, also under autocast: the product that follows rounds it.

    Raises:
        IndexError: a word id is negative or not below V; the message names it, its row and column.
        TypeError: x does not hold integers, W is not floating-point, or the devices differ.
        ValueError: a shape does not fit.
    """
    check_floats("word_embedding", {}, W=(W, "V D"))
    check_words("word_embedding", "x", x, W, "W has {high} rows")
    return apply(WordEmbedding, WordEmbeddingWithJVP, x.long(), W)


def check_words(function: str, name: str, x: Tensor, W: Tensor, meaning: str) -> None:
    """Check that `x` (N, T) holds rows of W; raises as `word_embedding` does. For `meaning` see `check_range`."""
    check_integers(function, name, x, "N T", {}, like=W)
    check_range(function, name, x, W.shape[0], meaning)


def distinct_words(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The distinct words (u,) of x (r,), and the index (r,) of each word of x among them.

    x itself and None where values cannot be read: how many words there are would be a value.
    """
    if not readable(x):
        return x, None
    words, index = torch.unique(x, return_inverse=True)
    return words, index
