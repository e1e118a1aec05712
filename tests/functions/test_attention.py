"""Attention over the spatial positions of an image, and the LSTM that attends before each step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.random_arguments import example, tensor
from torch_caption.functions import (
    attention_lstm,
    attention_lstm_step,
    dot_product_attention,
    packed_attention_lstm,
)
from torch_caption.verify.gradcheck import assert_agrees

N, T, D, H, L = 2, 3, 4, 5, 7  # of `example`


def first(N: int, H: int) -> Tensor:
    return tensor(torch.Generator().manual_seed(1), (N, H)).requires_grad_()


# What it means -------------------------------------------------------------------------------------------------------


def of_the_assignment(prev_h: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The course's words in loops: a softmax over a x a of <prev_h, A[:, i, j]> / sqrt(H), then the weighted sum."""
    N, H, a, _ = A.shape
    attn, weights = np.zeros((N, H)), np.zeros((N, a, a))
    for n in range(N):
        for i in range(a):
            for j in range(a):
                weights[n, i, j] = np.exp(sum(prev_h[n, k] * A[n, k, i, j] for k in range(H)) / np.sqrt(H))
        weights[n] /= weights[n].sum()
        for i in range(a):
            for j in range(a):
                attn[n] += weights[n, i, j] * A[n, :, i, j]
    return attn, weights


def test_attention_is_the_assignments(randn):
    prev_h, A = randn(N, H), randn(N, H, 4, 4)
    attn, weights = dot_product_attention(prev_h, A)
    expected = of_the_assignment(prev_h.detach().numpy(), A.detach().numpy())
    np.testing.assert_allclose(attn.detach(), expected[0], rtol=1e-12)
    np.testing.assert_allclose(weights.detach(), expected[1], rtol=1e-12)


def test_sequence_is_the_assignments(randn):
    """h0 = c0 = the mean of A; then a = x Wx + prev_h Wh + attn Wattn + b, cut into i f o g."""
    x, A, Wx, Wh, Wattn, b = (p.detach().numpy() for p in example("attention_lstm").values())
    A = randn(N, H, 4, 4).detach().numpy()
    h = c = A.mean(axis=(2, 3))

    def sigmoid(a: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-a))

    found, looked = attention_lstm(*map(torch.tensor, (x, A, Wx, Wh, Wattn, b)), return_weights=True)
    for t in range(T):
        attn, weights = of_the_assignment(h, A)
        np.testing.assert_allclose(looked[:, t], weights, rtol=1e-12)
        a = x[:, t] @ Wx + h @ Wh + attn @ Wattn + b
        i, f, o, g = sigmoid(a[:, :H]), sigmoid(a[:, H : 2 * H]), sigmoid(a[:, 2 * H : 3 * H]), np.tanh(a[:, 3 * H :])
        c = f * c + i * g
        h = o * np.tanh(c)
        np.testing.assert_allclose(found[:, t], h, rtol=1e-11)


def test_a_zero_query_attends_uniformly():
    _, A = example("dot_product_attention").values()
    attn, weights = dot_product_attention(torch.zeros(N, H, dtype=torch.float64), A)
    torch.testing.assert_close(attn, A.mean(2))
    torch.testing.assert_close(weights, torch.full((N, L), 1 / L, dtype=torch.float64))


def test_large_logits_do_not_overflow():
    prev_h, A = (1e4 * x for x in example("dot_product_attention", dtype=torch.float32).values())
    attn, weights = dot_product_attention(prev_h, A)
    assert attn.isfinite().all()
    assert (weights.amax(1) == 1).all()


def test_a_grid_is_a_row_of_spatial_positions(randn):
    """Rows one after the other; outputs and gradients, and the weights keep the grid's shape."""
    x, _, *layer = example("attention_lstm").values()
    grid = randn(N, H, 3, 2)

    def in_a_row(x: Tensor, A: Tensor, *layer: Tensor) -> tuple[Tensor, Tensor]:
        h, weights = attention_lstm(x, A.flatten(2), *layer, return_weights=True)
        return h, weights.reshape(N, T, 3, 2)

    def as_grid(*args: Tensor) -> tuple[Tensor, Tensor]:
        return attention_lstm(*args, return_weights=True)

    assert_agrees(as_grid, in_a_row, (x, grid, *layer), ("x", "A", "Wx", "Wh", "Wattn", "b"))
    prev_h = first(N, H)
    assert dot_product_attention(prev_h, grid)[1].shape == (N, 3, 2)
    step = attention_lstm_step(x[:, 0], prev_h, prev_h, grid, *layer)
    torch.testing.assert_close(step, attention_lstm_step(x[:, 0], prev_h, prev_h, grid.flatten(2), *layer))


# Packed --------------------------------------------------------------------------------------------------------------


# Refusals, beside those of `test_common` ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": torch.ones(2, 5, 0).double()}, r"A must have at least one position, but is \(2, 5, 0\)"),
        ({"A": torch.ones(2, 5, 3, 0).double()}, r"A must have at least one position, but is \(2, 5, 3, 0\)"),
        ({"A": torch.ones(2, 4, 3).double()}, r"A must be \(N, H, L\) with .*H = 5, but is \(2, 4, 3\)"),
        ({"h0": torch.ones(2, 4).double()}, r"h0 must be \(N, H\) with N = 2, H = 5, but is \(2, 4\)"),
        ({"c0": torch.ones(3, 5).double()}, r"c0 must be \(N, H\) with N = 2, H = 5, but is \(3, 5\)"),
    ],
)
@pytest.mark.parametrize("function", [attention_lstm, packed_attention_lstm])
def test_bad_images_and_states_are_refused(function, change, message):
    args = {**example("attention_lstm"), "h0": first(2, 5)}
    if function is packed_attention_lstm:
        args |= {"x": args["x"].detach()[0].repeat(2, 1), "batch_sizes": (2, 2, 2)}
    with pytest.raises(ValueError, match=f"^{function.__name__}: {message}"):
        function(**{**args, **change})
