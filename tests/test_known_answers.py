"""The values that cs231n prints in its notebooks, eight digits each, from its own inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_caption import functions
from torch_caption.functions import reference
from torch_caption.model.captioner import CaptioningRNN

HALF_A_DIGIT = 5e-9  # of the eighth decimal, by which a printed value may be off

RNN_STEP = [
    [-0.58172089, -0.50182032, -0.41232771, -0.31410098],
    [0.66854692, 0.79562378, 0.87755553, 0.92795967],
    [0.97934501, 0.99144213, 0.99646691, 0.99854353],
]
RNN = [
    [
        [-0.42070749, -0.27279261, -0.11074945, 0.05740409, 0.22236251],
        [-0.39525808, -0.22554661, -0.04094540, 0.14649412, 0.32397316],
        [-0.42305111, -0.24223728, -0.04287027, 0.15997045, 0.35014525],
    ],
    [
        [-0.55857474, -0.39065825, -0.19198182, 0.02378408, 0.23735671],
        [-0.27150199, -0.07088804, 0.13562939, 0.33099728, 0.50158768],
        [-0.51014825, -0.30524429, -0.06755202, 0.17806392, 0.40333043],
    ],
]
EMBEDDING = [
    [
        [0.0, 0.07142857, 0.14285714],
        [0.64285714, 0.71428571, 0.78571429],
        [0.21428571, 0.28571429, 0.35714286],
        [0.42857143, 0.50000000, 0.57142857],
    ],
    [
        [0.42857143, 0.50000000, 0.57142857],
        [0.21428571, 0.28571429, 0.35714286],
        [0.0, 0.07142857, 0.14285714],
        [0.64285714, 0.71428571, 0.78571429],
    ],
]
LSTM_STEP_H = [
    [0.24635157, 0.28610883, 0.32240467, 0.35525807, 0.38474904],
    [0.49223563, 0.55611431, 0.61507696, 0.66844003, 0.71591810],
    [0.56735664, 0.66310127, 0.74419266, 0.80889665, 0.85829900],
]
LSTM_STEP_C = [
    [0.32986176, 0.39145139, 0.45155600, 0.51014116, 0.56717407],
    [0.66382255, 0.76674007, 0.87195994, 0.97902709, 1.08751345],
    [0.74192008, 0.90592151, 1.07717006, 1.25120233, 1.42395676],
]
LSTM = [
    [
        [0.01764008, 0.01823233, 0.01882671, 0.01942320],
        [0.11287491, 0.12146228, 0.13018446, 0.13902939],
        [0.31358768, 0.33338627, 0.35304453, 0.37250975],
    ],
    [
        [0.45767879, 0.47610920, 0.49368870, 0.51041945],
        [0.67048450, 0.69350089, 0.71486014, 0.73464490],
        [0.81733511, 0.83677871, 0.85403753, 0.86935314],
    ],
]
# The Euclidean norm and the sum of each gradient; sums whose true value is zero are written as zero.
CAPTIONER_GRADIENTS = {
    "rnn": {
        "W_embed": (0.077724889, 0.023778788),
        "W_proj": (0.31371550, -0.30738242),
        "b_proj": (0.056842562, 0.012464306),
        "Wx": (0.0058897788, 0.025438639),
        "Wh": (0.043922523, -1.1833716),
        "b": (0.0040293575, -0.018109410),
        "W_vocab": (27.706537, 0.0),
        "b_vocab": (4.4580160, 0.0),
    },
    "lstm": {
        "W_embed": (0.026306429, -0.0070528922),
        "W_proj": (2.7469555e-09, 6.7923990e-09),
        "b_proj": (1.5312980e-09, -8.5730278e-10),
        "Wx": (0.0065991181, -0.10338272),
        "Wh": (0.0041375187, 0.11328454),
        "b": (0.00069767417, 0.0034261096),
        "W_vocab": (27.718513, 0.0),
        "b_vocab": (4.5113024, 0.0),
    },
}
FEATURES = {"rnn": (-1.5, 0.3), "lstm": (-0.5, 1.7)}


def ls(first: float, last: float, *shape: int) -> Tensor:
    """Equal steps from first to last, in a tensor of that shape."""
    return torch.linspace(first, last, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def assert_printed(value: Tensor, printed: list) -> None:
    torch.testing.assert_close(value, torch.tensor(printed, dtype=torch.float64), rtol=0, atol=1.001 * HALF_A_DIGIT)


@pytest.fixture(params=[functions, reference], ids=["functions", "reference"])
def ops(request):
    return request.param


def test_rnn_step(ops):
    N, D, H = 3, 10, 4
    x, prev_h = ls(-0.4, 0.7, N, D), ls(-0.2, 0.5, N, H)
    Wx, Wh, b = ls(-0.1, 0.9, D, H), ls(-0.3, 0.7, H, H), ls(-0.2, 0.4, H)
    assert_printed(ops.rnn_step(x, prev_h, Wx, Wh, b), RNN_STEP)


def test_rnn(ops):
    N, T, D, H = 2, 3, 4, 5
    x, h0 = ls(-0.1, 0.3, N, T, D), ls(-0.3, 0.1, N, H)
    Wx, Wh, b = ls(-0.2, 0.4, D, H), ls(-0.4, 0.1, H, H), ls(-0.7, 0.1, H)
    assert_printed(ops.rnn(x, h0, Wx, Wh, b), RNN)


def test_word_embedding(ops):
    x = torch.tensor([[0, 3, 1, 2], [2, 1, 0, 3]])
    assert_printed(ops.word_embedding(x, ls(0, 1, 5, 3)), EMBEDDING)


def test_lstm_step(ops):
    N, D, H = 3, 4, 5
    x, prev_h, prev_c = ls(-0.4, 1.2, N, D), ls(-0.3, 0.7, N, H), ls(-0.4, 0.9, N, H)
    Wx, Wh, b = ls(-2.1, 1.3, D, 4 * H), ls(-0.7, 2.2, H, 4 * H), ls(0.3, 0.7, 4 * H)
    next_h, next_c = ops.lstm_step(x, prev_h, prev_c, Wx, Wh, b)
    assert_printed(next_h, LSTM_STEP_H)
    assert_printed(next_c, LSTM_STEP_C)


def test_lstm(ops):
    N, D, H, T = 2, 5, 4, 3
    x, h0 = ls(-0.4, 0.6, N, T, D), ls(-0.4, 0.8, N, H)
    Wx, Wh, b = ls(-0.2, 0.9, D, 4 * H), ls(-0.3, 0.6, H, 4 * H), ls(0.2, 0.7, 4 * H)
    assert_printed(ops.lstm(x, h0, Wx, Wh, b), LSTM)


def captioner(cell_type: str, scale: float = 1.0) -> tuple[CaptioningRNN, Tensor, Tensor]:
    """cs231n's model, features and captions; `scale` shrinks the parameters."""
    N, D, W, H, T = 10, 20, 30, 40, 13
    word_to_idx = {"<NULL>": 0, "cat": 2, "dog": 3}  # V is 3, and "dog" lies outside
    model = CaptioningRNN(word_to_idx, D, W, H, cell_type).double()
    model.load_params({name: scale * ls(-1.4, 1.3, *p.shape).numpy() for name, p in model.named_parameters()})
    captions = torch.arange(N * T).remainder(3).reshape(N, T)
    return model, ls(*FEATURES[cell_type], N, D), captions


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_captioner_gradients(cell_type):
    model, features, captions = captioner(cell_type)
    model(features, captions).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == CAPTIONER_GRADIENTS[cell_type].keys()
    for name, (norm, total) in CAPTIONER_GRADIENTS[cell_type].items():
        # half a unit of the eighth digit is at most 5e-8 of the value
        assert gradients[name].norm().item() == pytest.approx(norm, rel=5.1e-8), name
        assert gradients[name].sum().item() == pytest.approx(total, rel=5.1e-8, abs=1e-13), name
