"""The assignment's own sequence, from one step to captions learnt by heart, under the assignment's own names."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from torch_caption import cs231n, functions
from torch_caption.cs231n import (
    CaptioningRNN,
    CaptioningSolver,
    decode_captions,
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    image_from_url,
    load_coco_data,
    rel_error,
    sample_coco_minibatch,
)
from torch_caption.errors import DataError

N, T, D, H, V, M = 2, 3, 4, 5, 6, 7
rng = np.random.default_rng(231)
WORDS = rng.integers(V, size=(N, T))

# name of the forward -> its inputs, in order; the words of the embedding have no gradient and are bound here
LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "affine": {"x": (N, 2, 3, D), "w": (6 * D, M), "b": (M,)},
    "rnn_step": {"x": (N, D), "prev_h": (N, H), "Wx": (D, H), "Wh": (H, H), "b": (H,)},
    "rnn": {"x": (N, T, D), "h0": (N, H), "Wx": (D, H), "Wh": (H, H), "b": (H,)},
    "word_embedding": {"W": (V, D)},
    "temporal_affine": {"x": (N, T, D), "w": (D, M), "b": (M,)},
    "lstm_step": {
        "x": (N, D),
        "prev_h": (N, H),
        "prev_c": (N, H),
        "Wx": (D, 4 * H),
        "Wh": (H, 4 * H),
        "b": (4 * H,),
    },
    "lstm": {"x": (N, T, D), "h0": (N, H), "Wx": (D, 4 * H), "Wh": (H, 4 * H), "b": (4 * H,)},
}


def forward(name: str, inputs: dict[str, Any]) -> tuple[tuple, Any]:
    """The outputs, always a tuple, and the cache."""
    words = {"word_embedding": [torch.from_numpy(WORDS) if isinstance(inputs.get("W"), torch.Tensor) else WORDS]}
    *outs, cache = getattr(cs231n, f"{name}_forward")(*words.get(name, []), *inputs.values())
    return tuple(outs), cache


def backward(name: str, douts: tuple, cache: Any) -> tuple:
    gradients = getattr(cs231n, f"{name}_backward")(*douts, cache)
    return gradients if isinstance(gradients, tuple) else (gradients,)


def make(name: str, dtype: type = np.float64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal(shape).astype(dtype) for key, shape in LAYERS[name].items()}


def upstream(outs: tuple) -> tuple:
    rng = np.random.default_rng(1)
    return tuple(rng.standard_normal(out.shape).astype(out.dtype) for out in outs)


class QuietHandler(SimpleHTTPRequestHandler):
    """A local server of files that prints nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=LAYERS)
def layer(request) -> str:
    return request.param


@pytest.fixture(params=["rnn", "lstm"])
def cell_type(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _numpy_seed() -> None:
    np.random.seed(231)  # noqa: NPY002  (what the notebooks do)


def test_layer_gradients(layer):
    inputs = make(layer)
    outs, cache = forward(layer, inputs)
    douts = upstream(outs)
    gradients = backward(layer, douts, cache)
    assert len(gradients) == len(inputs)
    for (name, value), gradient in zip(inputs.items(), gradients, strict=True):
        numerical = np.zeros_like(value)
        for k, dout in enumerate(douts):
            # x is perturbed in place: the lambda reads it back from `inputs`
            numerical += eval_numerical_gradient_array(lambda _, k=k: forward(layer, inputs)[0][k], value, dout)
        assert gradient.shape == value.shape
        np.testing.assert_allclose(gradient, numerical, rtol=1e-7, atol=1e-8, err_msg=f"d{name}")


def test_layer_equals_function(layer):
    """The wrapper's output is the public function's, to the last bit."""
    inputs = make(layer)
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    if layer == "affine":
        tensors[0] = tensors[0].reshape(N, -1)
    if layer == "word_embedding":
        tensors.insert(0, torch.from_numpy(WORDS))
    expected = getattr(functions, layer)(*tensors)
    for out, tensor in zip(
        forward(layer, inputs)[0], expected if isinstance(expected, tuple) else [expected], strict=True
    ):
        np.testing.assert_array_equal(out, tensor.numpy())


def test_backward_is_the_hand_derived_one(layer, monkeypatch):
    """The gradients are what the class's own backward says: doubled there, they are doubled here."""
    names = {
        "rnn_step": "RNNStep",
        "rnn": "RNN",
        "word_embedding": "WordEmbedding",
        "lstm_step": "LSTMStep",
        "lstm": "LSTM",
    }
    function = getattr(functions, names.get(layer, "Affine"))
    outs, cache = forward(layer, make(layer))
    douts = upstream(outs)
    gradients = backward(layer, douts, cache)
    derived = function.backward
    doubled = staticmethod(lambda *args: tuple(None if d is None else 2 * d for d in derived(*args)))
    monkeypatch.setattr(function, "backward", doubled)
    for twice, gradient in zip(backward(layer, douts, cache), gradients, strict=True):
        np.testing.assert_array_equal(twice, 2 * gradient)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layer_keeps_kind_and_dtype(layer, dtype):
    inputs = make(layer, dtype)
    outs, cache = forward(layer, inputs)
    gradients = backward(layer, upstream(outs), cache)
    assert {type(a) for a in outs + gradients} == {np.ndarray}
    assert {a.dtype for a in outs + gradients} == {np.dtype(dtype)}

    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.no_grad():
        tensor_outs, cache = forward(layer, tensors)
        tensor_gradients = backward(layer, tuple(map(torch.from_numpy, upstream(outs))), cache)
    for tensor, array in zip(tensor_outs + tensor_gradients, outs + gradients, strict=True):
        assert isinstance(tensor, torch.Tensor)
        assert not tensor.requires_grad
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_cache_stands_on_its_own(layer, kind):
    """Used twice, and after inputs, outputs and earlier gradients were overwritten, it gives the same gradients."""
    inputs = {name: kind(value) for name, value in make(layer).items()}
    outs, cache = forward(layer, inputs)
    douts = upstream(tuple(map(np.asarray, outs)))
    first = backward(layer, douts, cache)
    kept = [np.asarray(gradient).copy() for gradient in first]
    for array in (*inputs.values(), *outs, *first):
        array[...] = 7
    for again, gradient in zip(backward(layer, douts, cache), kept, strict=True):
        np.testing.assert_array_equal(again, gradient)


def test_inputs_are_left_alone(layer):
    inputs = make(layer)
    before = {name: value.copy() for name, value in inputs.items()}
    for value in inputs.values():
        value.setflags(write=False)
    outs, cache = forward(layer, inputs)
    douts = upstream(outs)
    for dout in douts:
        dout.setflags(write=False)
    backward(layer, douts, cache)
    for name, value in inputs.items():
        np.testing.assert_array_equal(value, before[name])


def test_layer_takes_any_strides(layer):
    inputs = make(layer)
    odd = {name: np.flip(np.flip(value).copy()) for name, value in inputs.items()}  # negative strides, the same values
    assert all(min(value.strides) < 0 for value in odd.values())
    for a, b in zip(forward(layer, odd)[0], forward(layer, inputs)[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_mixed_dtypes_are_promoted():
    inputs = make("rnn", np.float32)
    inputs["b"] = inputs["b"].astype(np.float64)
    (h,), cache = forward("rnn", inputs)
    assert h.dtype == np.float64
    assert backward("rnn", (h,), cache)[0].dtype == np.float64


def test_wrong_upstream_shape():
    (out,), cache = forward("rnn", make("rnn"))
    with pytest.raises(ValueError, match=r"upstream gradient has shape \(2, 5\), the output \(2, 3, 5\)"):
        backward("rnn", (out[:, 0],), cache)


def test_negative_word():
    with pytest.raises(IndexError, match=r"-1"):
        cs231n.word_embedding_forward(np.array([[0, -1]]), np.ones((V, D)))


def test_repeated_words_add_up():
    dout = np.ones((1, 4, D))
    _, cache = cs231n.word_embedding_forward(np.array([[2, 2, 0, 2]], dtype=np.int32), np.zeros((3, D)))
    np.testing.assert_array_equal(cs231n.word_embedding_backward(dout, cache)[:, 0], [1, 0, 3])


@pytest.mark.parametrize(
    ("n", "t", "v", "p", "low", "high"),
    [(100, 1, 10, 1.0, 2.29, 2.31), (100, 10, 10, 1.0, 22.9, 23.1), (5000, 10, 10, 0.1, 2.2, 2.4)],
)
def test_temporal_softmax_loss_of_equal_scores(n, t, v, p, low, high):
    """Nearly equal scores cost log V for every word that counts."""
    rng = np.random.default_rng(0)
    x, y, mask = 0.001 * rng.standard_normal((n, t, v)), rng.integers(v, size=(n, t)), rng.random((n, t)) <= p
    loss, dx = cs231n.temporal_softmax_loss(x, y, mask)
    assert low < loss < high
    assert dx.shape == x.shape


@pytest.mark.parametrize("mask_dtype", [bool, np.int64, np.uint8, np.float32, np.float64])
def test_temporal_softmax_loss_gradient(mask_dtype, capsys):
    rng = np.random.default_rng(0)
    x, y, mask = rng.standard_normal((N, T, V)), rng.integers(V, size=(N, T)), rng.random((N, T)) > 0.5
    loss, dx = cs231n.temporal_softmax_loss(x, y, mask.astype(mask_dtype), verbose=True)
    assert str((N, T, V)) in capsys.readouterr().out
    assert isinstance(loss, np.float64)
    numerical = eval_numerical_gradient(lambda x: cs231n.temporal_softmax_loss(x, y, mask)[0], x, verbose=False)
    np.testing.assert_allclose(dx, numerical, rtol=1e-7, atol=1e-9)


def test_temporal_softmax_loss_keeps_kind_and_dtype():
    x, y, mask = np.ones((N, T, V), np.float32), WORDS, np.ones((N, T))
    loss, dx = cs231n.temporal_softmax_loss(x, y, mask)
    assert loss.dtype == dx.dtype == np.float32
    loss, dx = cs231n.temporal_softmax_loss(*map(torch.from_numpy, (x, y, mask)))
    assert isinstance(loss, torch.Tensor)
    assert loss.dtype == dx.dtype == torch.float32
    assert not loss.requires_grad


def test_numerical_gradient_restores_and_prints(capsys):
    x = rng.standard_normal((2, 3)).astype(np.float32)
    before = x.copy()
    gradient = eval_numerical_gradient(lambda x: (x.astype(np.float64) ** 2).sum(), x, h=1e-3)
    np.testing.assert_array_equal(x, before)
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, 2 * x, rtol=1e-2, atol=1e-3)
    assert capsys.readouterr().out.count("\n") == x.size
    eval_numerical_gradient(lambda x: x.sum(), x, verbose=False)
    assert not capsys.readouterr().out


def test_numerical_gradient_restores_after_an_error():
    x = np.ones(3)
    with pytest.raises(ZeroDivisionError):
        eval_numerical_gradient(lambda x: 1 // 0, x, verbose=False)
    np.testing.assert_array_equal(x, 1)


def test_numerical_gradient_of_tensors():
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    df = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(eval_numerical_gradient(lambda x: (x**2).sum(), x, verbose=False), 2 * x.detach())
    torch.testing.assert_close(eval_numerical_gradient_array(lambda x: x**2, x, df), 2 * x.detach())


def test_numerical_gradient_of_a_function_that_returns_its_argument():
    x, df = np.arange(3.0), np.array([2.0, 3.0, 4.0])
    np.testing.assert_allclose(eval_numerical_gradient_array(lambda x: x, x, df), df)


def test_numerical_gradient_needs_real_numbers():
    with pytest.raises(ValueError, match="floating array or tensor, not int64"):
        eval_numerical_gradient(lambda x: x.sum(), np.arange(3))


def test_rel_error():
    assert rel_error(np.array([1.0, 2.0]), np.array([1.0, 3.0])) == pytest.approx(0.2)
    assert rel_error(np.zeros(2), np.zeros(2)) == 0.0
    assert rel_error(np.array(0.0), np.array(1e-9)) == pytest.approx(0.1)


def small_captioner(cell_type: str, dtype: type = np.float64) -> tuple[CaptioningRNN, np.ndarray, np.ndarray]:
    """A captioner of a few words, two images' features and their captions, the second padded."""
    word_to_idx = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "dog": 4}
    model = CaptioningRNN(word_to_idx, input_dim=6, wordvec_dim=4, hidden_dim=5, cell_type=cell_type, dtype=dtype)
    model.params["W_embed"] *= 100  # cs231n's first word vectors are so small that numerical gradients drown
    places = (2, 2) if cell_type == "attention" else ()
    features = np.random.default_rng(0).standard_normal((2, 6, *places)).astype(dtype)
    return model, features, np.array([[1, 3, 4, 3, 2], [1, 4, 2, 0, 0]])


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "attention"])
def test_captioner_gradients(cell_type):
    model, features, captions = small_captioner(cell_type)
    loss, grads = model.loss(features, captions)
    assert isinstance(loss, float)
    assert grads.keys() == model.params.keys()
    for name in sorted(grads):
        numerical = eval_numerical_gradient(
            lambda _: model.loss(features, captions)[0], model.params[name], verbose=False, h=1e-6
        )
        assert np.abs(grads[name]).max() > 1e-4, name
        np.testing.assert_allclose(grads[name], numerical, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize(
    ("cell_type", "first", "last", "expected"), [("rnn", -1.5, 0.3, 9.83235591003), ("lstm", -0.5, 1.7, 9.82445935443)]
)
def test_captioner_known_loss(cell_type, first, last, expected):
    """The notebook's check: "dog" has id 3 although V is 3, and every entry of params is replaced while iterating."""
    model = CaptioningRNN({"<NULL>": 0, "cat": 2, "dog": 3}, 20, 30, 40, cell_type=cell_type, dtype=np.float64)
    for name, value in model.params.items():
        model.params[name] = np.linspace(-1.4, 1.3, num=value.size).reshape(*value.shape)
    features = np.linspace(first, last, num=200).reshape(10, 20)
    captions = (np.arange(130) % 3).reshape(10, 13)
    loss, _ = model.loss(features, captions)
    assert loss == pytest.approx(expected, rel=0, abs=5.1e-12)


def test_captioner_shapes_and_dtype(cell_type):
    model, features, captions = small_captioner(cell_type, np.float32)
    gates = {"rnn": 1, "lstm": 4}[cell_type]
    shapes = {
        "W_proj": (6, 5),
        "b_proj": (5,),
        "W_embed": (5, 4),
        "Wx": (4, 5 * gates),
        "Wh": (5, 5 * gates),
        "b": (5 * gates,),
        "W_vocab": (5, 5),
        "b_vocab": (5,),
    }
    assert {name: value.shape for name, value in model.params.items()} == shapes
    _, grads = model.loss(features, captions)
    assert {name: value.shape for name, value in grads.items()} == shapes
    assert {value.dtype for value in (*model.params.values(), *grads.values())} == {np.dtype(np.float32)}


def test_params_are_live(cell_type):
    model, features, captions = small_captioner(cell_type)
    before, grads = model.loss(features, captions)
    model.params["b_vocab"][0] += 0.5
    in_place, _ = model.loss(features, captions)
    assert in_place != before
    model.params["b_vocab"] = model.params["b_vocab"] - [0.5, 0, 0, 0, 0]
    assert model.loss(features, captions)[0] == pytest.approx(before, rel=1e-14)
    for name in model.params:
        model.params[name] -= 1e-2 * grads[name]
    assert model.loss(features, captions)[0] < before
    model.params["b_vocab"][:] = [0, 0, 0, 0, 1e3]
    np.testing.assert_array_equal(model.sample(features), 4)


def test_params_that_do_not_fit(cell_type):
    model, features, captions = small_captioner(cell_type)
    model.params["Wh"] = model.params["Wh"][:-1]
    with pytest.raises(ValueError, match="Wh"):
        model.loss(features, captions)


def test_loss_leaves_its_inputs_and_params(cell_type):
    model, features, captions = small_captioner(cell_type)
    kept = {name: value.copy() for name, value in model.params.items()}
    features.setflags(write=False)
    captions.setflags(write=False)
    _, grads = model.loss(features, captions)
    for gradient in grads.values():
        gradient[...] = np.nan
    first = model.loss(features, captions)[0]
    assert first == model.loss(torch.from_numpy(features.copy()), torch.from_numpy(captions.copy()))[0]
    model.sample(features)
    for name, value in model.params.items():
        np.testing.assert_array_equal(value, kept[name])


def test_first_weights_follow_numpy_seed(cell_type):
    def first(seed: int) -> np.ndarray:
        np.random.seed(seed)  # noqa: NPY002
        return small_captioner(cell_type)[0].params["Wh"]

    weights = first(3)
    torch.rand(1)  # torch's own generator has no part in it, and stays where it is
    state = torch.get_rng_state()
    np.testing.assert_array_equal(first(3), weights)
    assert (first(4) != weights).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_sample_is_the_likeliest_word_fed_back(cell_type):
    """Every word of the sample is the one that the layers, called by hand, score highest, past <END> too."""
    model, _, _ = small_captioner(cell_type)
    rng = np.random.default_rng(7)
    features = rng.standard_normal((20, 6))
    for name, value in model.params.items():
        model.params[name] = 2 * rng.standard_normal(value.shape)
    p = model.params
    sampled = model.sample(features, max_length=7)
    assert sampled.shape == (20, 7)
    assert np.issubdtype(sampled.dtype, np.integer)

    h, _ = cs231n.affine_forward(features, p["W_proj"], p["b_proj"])
    c, word = np.zeros_like(h), np.full((20, 1), 1)
    for t in range(7):
        x = cs231n.word_embedding_forward(word, p["W_embed"])[0][:, 0]
        if cell_type == "lstm":
            h, c, _ = cs231n.lstm_step_forward(x, h, c, p["Wx"], p["Wh"], p["b"])
        else:
            h, _ = cs231n.rnn_step_forward(x, h, p["Wx"], p["Wh"], p["b"])
        word = cs231n.affine_forward(h, p["W_vocab"], p["b_vocab"])[0].argmax(1)[:, None]
        np.testing.assert_array_equal(sampled[:, t], word[:, 0])
    after_end = (sampled == 2).cumsum(1)[:, :-1] > 0
    assert (sampled[:, 1:][after_end] > 2).any()  # words go on after <END>
    assert (sampled[:, :-1][~after_end] == 0).any()  # and <NULL> is not barred before it


def test_sample_needs_a_start():
    model = CaptioningRNN({"<NULL>": 0, "cat": 1}, 2, 2, 2)
    with pytest.raises(ValueError, match="<START>"):
        model.sample(np.zeros((1, 2)))


def test_unknown_cell():
    with pytest.raises(ValueError, match="gru"):
        CaptioningRNN({"<NULL>": 0}, cell_type="gru")


def descend(rule: Callable, config: dict, steps: int = 4, decay: float = 1.0) -> np.ndarray:
    """w after some steps on the loss 1/2 |w|^2 + sum w, the rate decaying after every one."""
    w = np.linspace(-1, 2, 6).reshape(2, 3)
    for _ in range(steps):
        w, config = rule(w, w + 1, config)
        config["learning_rate"] *= decay
    return w


def test_sgd():
    w, config = cs231n.sgd(np.array([1.0, 2.0]), np.array([10.0, -20.0]))
    np.testing.assert_allclose(w, [0.9, 2.2])
    assert config == {"learning_rate": 1e-2}


def test_sgd_momentum():
    """v = mu v - lr dw, with the rate of its own step in each term: a decayed rate does not shrink the old velocity."""
    w = np.linspace(-1, 2, 6).reshape(2, 3)
    v, lr = 0, 0.1
    for _ in range(4):
        v = 0.8 * v - lr * (w + 1)
        w = w + v
        lr *= 0.5
    np.testing.assert_allclose(descend(cs231n.sgd_momentum, {"learning_rate": 0.1, "momentum": 0.8}, decay=0.5), w)


def test_rmsprop():
    w = np.linspace(-1, 2, 6).reshape(2, 3)
    cache = 0
    for _ in range(4):
        dw = w + 1
        cache = 0.99 * cache + 0.01 * dw**2
        w = w - 0.01 * dw / (np.sqrt(cache) + 1e-8)
    np.testing.assert_allclose(descend(cs231n.rmsprop, {}), w)


def test_adam():
    """Assignment 3's rule, computed by hand: eps is added to sqrt(v), which is not corrected."""
    w = np.linspace(-1, 2, 6).reshape(2, 3)
    m = v = 0
    for t in range(1, 5):
        dw = w + 1
        m, v = 0.9 * m + 0.1 * dw, 0.999 * v + 0.001 * dw**2
        w = w - 0.05 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(descend(cs231n.adam, {"learning_rate": 0.05}), w, rtol=1e-12)


def test_adam_adds_eps_before_the_correction():
    """At the first step m = 0.1 g, v = 0.001 g^2 and lr_t = lr sqrt(0.001) / 0.1. With g = 1e-8 / sqrt(0.001) the root
    of v is eps itself: half of lr. Corrected before, as in assignment 2, the root is g, and the step 0.969 lr."""
    g = 1e-8 / np.sqrt(0.001)
    w, _ = cs231n.adam(np.array([0.0, 0.0, 0.0]), np.array([g, -1.0, 0.0]), {"learning_rate": 0.01})
    np.testing.assert_allclose(w, [-0.005, 0.01, 0], rtol=1e-6)


def test_adam_goes_on_from_the_course_own_state():
    """m, v and t as the course's config has them; t = 9 makes this the tenth step."""
    config = {"learning_rate": 0.1, "m": np.array([0.5]), "v": np.array([0.04]), "t": 9}
    w, config = cs231n.adam(np.array([1.0]), np.array([-1.0]), config)
    assert config["t"] == 10
    np.testing.assert_allclose(config["m"], [0.35])
    np.testing.assert_allclose(config["v"], [0.04096])
    lr_t = 0.1 * np.sqrt(1 - 0.999**10) / (1 - 0.9**10)
    np.testing.assert_allclose(w, [1 - lr_t * 0.35 / (np.sqrt(0.04096) + 1e-8)], rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "theirs", "eps"),
    [
        (cs231n.sgd_momentum, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), {}),
        (cs231n.rmsprop, lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.99, eps=1e-8), {}),
        (cs231n.adam, lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-30), {"epsilon": 1e-30}),  # torch adds it elsewhere
    ],
)
def test_rules_agree_with_torch_at_a_steady_rate(rule, theirs, eps):
    w = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(2, 3)
    optimizer = theirs([w])
    for _ in range(4):
        w.grad = w + 1
        optimizer.step()
    np.testing.assert_allclose(descend(rule, {"learning_rate": 0.01} | eps), w.numpy(), rtol=1e-9)


@pytest.mark.parametrize("rule", [cs231n.sgd, cs231n.sgd_momentum, cs231n.rmsprop, cs231n.adam])
def test_rules_keep_float32_and_their_arguments(rule):
    w, dw = np.ones((2, 3), np.float32), np.full((2, 3), 2, np.float32)
    config: dict[str, Any] = {"learning_rate": 0.1}
    for _ in range(2):
        next_w, config = rule(w, dw, config)
        assert next_w.dtype == np.float32
    np.testing.assert_array_equal(w, 1)
    np.testing.assert_array_equal(dw, 2)


def toy_data(images: int = 20, length: int = 8, dim: int = 16, words: int = 12) -> dict[str, Any]:
    """Random captions of random features, one an image, in the dictionary's form, urls left out."""
    rng = np.random.default_rng(5)
    captions = np.zeros((images, length), dtype=np.int32)
    captions[:, 0] = 1
    for row, n in zip(captions, rng.integers(2, length - 1, size=images), strict=True):
        row[1:n], row[n] = rng.integers(4, 4 + words, size=n - 1), 2
    idx_to_word = ["<NULL>", "<START>", "<END>", "<UNK>", *(f"word{i}" for i in range(words))]
    return {
        "train_captions": captions,
        "train_image_idxs": rng.permutation(images).astype(np.int32),
        "train_features": rng.standard_normal((images, dim)).astype(np.float32),
        "idx_to_word": idx_to_word,
        "word_to_idx": {word: i for i, word in enumerate(idx_to_word)},
    }


def reproduced(model: CaptioningRNN, data: dict[str, Any]) -> int:
    """How many training captions the model says word for word, up to <END>, without its <START>."""
    sampled = decode_captions(model.sample(data["train_features"][data["train_image_idxs"]]), data["idx_to_word"])
    truth = decode_captions(data["train_captions"][:, 1:], data["idx_to_word"])
    assert all(caption.endswith("<END>") for caption in truth)
    return sum(a == b for a, b in zip(sampled, truth, strict=True))


@pytest.mark.parametrize("update_rule", ["sgd", "sgd_momentum", "rmsprop", "adam", cs231n.adam])
def test_solver_learns(update_rule, cell_type):
    data = toy_data()
    model = CaptioningRNN(data["word_to_idx"], 16, 16, 32, cell_type)
    everything = data["train_features"][data["train_image_idxs"]], data["train_captions"]
    before, _ = model.loss(*everything)
    rate = {"sgd": 0.1, "sgd_momentum": 0.02}.get(update_rule, 5e-3)
    solver = CaptioningSolver(
        model,
        data,
        update_rule=update_rule,
        optim_config={"learning_rate": rate},
        batch_size=10,
        num_epochs=30,
        verbose=False,
    )
    solver.train()
    assert len(solver.loss_history) == 60
    assert solver.epoch == 30
    assert model.loss(*everything)[0] < 0.8 * before


def test_solver_first_step_is_the_rule():
    """One iteration moves every parameter by the rule's step on the minibatch that the seed draws."""
    data = toy_data()
    model = CaptioningRNN(data["word_to_idx"], 16, 8, 8, dtype=np.float64)
    start = {name: value.copy() for name, value in model.params.items()}
    solver = CaptioningSolver(model, data, batch_size=10, optim_config={"learning_rate": 0.1}, verbose=False)
    np.random.seed(1)  # noqa: NPY002
    captions, features, _ = sample_coco_minibatch(data, 10)
    loss, grads = model.loss(features, captions)
    np.random.seed(1)  # noqa: NPY002
    solver._step()
    assert solver.loss_history == [loss]
    for name, value in model.params.items():
        np.testing.assert_allclose(value, start[name] - 0.1 * grads[name], rtol=1e-14, atol=1e-16)


def test_solver_prints_and_decays(capsys):
    data = toy_data()
    model = CaptioningRNN(data["word_to_idx"], 16, 4, 4)
    solver = CaptioningSolver(
        model, data, optim_config={"learning_rate": 0.1}, lr_decay=0.5, batch_size=7, num_epochs=3, print_every=4
    )
    solver.train()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"(Iteration {t + 1} / 6) loss: {solver.loss_history[t]:f}" for t in (0, 4)]
    assert {config["learning_rate"] for config in solver.optim_configs.values()} == {0.1 * 0.5**3}


def test_solver_with_more_batch_than_data():
    data = toy_data(images=3)
    solver = CaptioningSolver(CaptioningRNN(data["word_to_idx"], 16, 4, 4), data, num_epochs=2, verbose=False)
    solver.train()
    assert len(solver.loss_history) == 2


def test_solver_refuses():
    data = toy_data()
    model = CaptioningRNN(data["word_to_idx"], 16, 4, 4)
    with pytest.raises(ValueError, match="'adagrad'; there are sgd, sgd_momentum, rmsprop, adam"):
        CaptioningSolver(model, data, update_rule="adagrad")
    with pytest.raises(ValueError, match="batch_size is 0"):
        CaptioningSolver(model, data, batch_size=0)
    with pytest.raises(TypeError, match="learning_rate"):
        CaptioningSolver(model, data, learning_rate=1e-3)


@pytest.mark.parametrize("lr_decay", [1.0, 0.99])
def test_overfit_toy(cell_type, lr_decay):
    data = toy_data()
    model = CaptioningRNN(data["word_to_idx"], input_dim=16, wordvec_dim=32, hidden_dim=64, cell_type=cell_type)
    solver = CaptioningSolver(
        model,
        data,
        update_rule="adam",
        num_epochs=80,
        batch_size=10,
        optim_config={"learning_rate": 5e-3},
        lr_decay=lr_decay,
        verbose=False,
    )
    solver.train()
    assert solver.loss_history[-1] < 0.1
    assert reproduced(model, data) == 20


def test_decode_captions():
    idx_to_word = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat"]
    captions = np.array([[1, 4, 5, 2, 0, 4], [0, 4, 0, 5, 3, 5]])
    assert decode_captions(captions, idx_to_word) == ["<START> a cat <END>", "a cat <UNK> cat"]
    assert decode_captions(captions[0], idx_to_word) == "<START> a cat <END>"
    assert decode_captions(torch.from_numpy(captions[:1]), dict(enumerate(idx_to_word))) == ["<START> a cat <END>"]
    assert decode_captions(captions[:0], idx_to_word) == []
    with pytest.raises(ValueError, match=r"not \(1, 1, 3\)"):
        decode_captions(np.zeros((1, 1, 3), int), idx_to_word)


def test_minibatch():
    data = toy_data()
    data["train_urls"] = np.array([f"http://example.com/{i}.jpg" for i in range(20)])
    captions, features, urls = sample_coco_minibatch(data, batch_size=50)
    assert (captions.shape, features.shape, urls.shape) == ((50, 8), (50, 16), (50,))
    for caption, feature, url in zip(captions, features, urls, strict=True):
        image = int(url.split("/")[-1].split(".")[0])
        np.testing.assert_array_equal(feature, data["train_features"][image])
        rows = data["train_captions"][data["train_image_idxs"] == image]
        assert (rows == caption).all(1).any()


def test_minibatch_without_urls_or_split():
    _, _, urls = sample_coco_minibatch(toy_data(), batch_size=3)
    assert urls.tolist() == ["", "", ""]
    with pytest.raises(ValueError, match="no split 'test'; there are train"):
        sample_coco_minibatch(toy_data(), split="test")
    with pytest.raises(ValueError, match="'train' has no captions"):
        sample_coco_minibatch(toy_data(images=0), split="train")


def write_coco(folder: Path, *, urls: bool = False) -> dict[str, Any]:
    """A data directory in the assignment's layout, of the toy data, with pictures for train."""
    data = toy_data()
    folder.mkdir(parents=True, exist_ok=True)
    words = {key: data[key] for key in ("idx_to_word", "word_to_idx")}
    (folder / "coco2014_vocab.json").write_text(json.dumps(words), encoding="utf-8")
    with h5py.File(folder / "coco2014_captions.h5", "w") as file:
        for split in ("train", "val"):
            file[f"{split}_captions"] = data["train_captions"]
            file[f"{split}_image_idxs"] = data["train_image_idxs"]
    for split in ("train", "val"):
        for suffix, width in (("", 16), ("_pca", 6)):
            with h5py.File(folder / f"{split}2014_vgg16_fc7{suffix}.h5", "w") as file:
                file["features"] = data["train_features"][:, :width]
    names = [f"{i}.png" for i in range(20)]
    (folder / "images").mkdir()
    for i, name in enumerate(names):
        Image.new("RGB", (5, 4), (i, 0, 255)).save(folder / "images" / name)
    (folder / "train2014_images.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    if urls:
        lines = [f"http://example.invalid/{name}" for name in names]
        (folder / "val2014_urls.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return data


@pytest.fixture
def coco(tmp_path) -> Path:
    write_coco(tmp_path)
    return tmp_path


def test_load_coco_data(coco):
    toy, data = toy_data(), load_coco_data(coco)
    per_split = ("captions", "image_idxs", "features", "urls")
    assert data.keys() == {f"{split}_{what}" for split in ("train", "val") for what in per_split} | {
        "idx_to_word",
        "word_to_idx",
    }
    for name, value in data.items():
        assert isinstance(value, np.ndarray) or len(value) == 16, name
    np.testing.assert_array_equal(data["train_captions"], toy["train_captions"])
    np.testing.assert_array_equal(data["val_image_idxs"], toy["train_image_idxs"])
    np.testing.assert_array_equal(data["train_features"], toy["train_features"][:, :6])
    assert data["train_features"].dtype == np.float32
    assert {data[f"{split}_{what}"].dtype for split in ("train", "val") for what in per_split[:2]} == {
        np.dtype("int32")
    }
    assert data["word_to_idx"] == toy["word_to_idx"]
    assert data["idx_to_word"] == toy["idx_to_word"]
    assert data["val_urls"].tolist() == [""] * 20
    np.testing.assert_array_equal(load_coco_data(coco, pca_features=False)["train_features"], toy["train_features"])


def test_load_coco_data_urls(tmp_path):
    write_coco(tmp_path, urls=True)
    data = load_coco_data(tmp_path)
    assert data["val_urls"][3] == "http://example.invalid/3.png"
    picture = image_from_url(data["train_urls"][3])
    assert (picture.shape, picture.dtype) == ((4, 5, 3), np.uint8)
    np.testing.assert_array_equal(picture[0, 0], [3, 0, 255])
    picture[...] = 0  # the caller's own


def pairs(data: dict[str, Any]) -> set[tuple[int, ...]]:
    """(image, word, word, ...) of every training caption."""
    images, captions = data["train_image_idxs"].tolist(), data["train_captions"].tolist()
    return {(image, *caption) for image, caption in zip(images, captions, strict=True)}


def test_load_coco_data_max_train(coco):
    data = load_coco_data(coco, max_train=5)
    whole = load_coco_data(coco)
    assert data["train_captions"].shape == (5, 8)
    assert data["val_captions"].shape == (20, 8)
    assert data["train_features"].shape == (20, 6)
    assert pairs(data) <= pairs(whole)
    np.random.seed(2)  # noqa: NPY002
    first = load_coco_data(coco, max_train=5)["train_captions"]
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(load_coco_data(coco, max_train=5)["train_captions"], first)
    assert (load_coco_data(coco, max_train=5)["train_captions"] != first).any()


def test_load_coco_data_where_there_is_none(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        load_coco_data(tmp_path / "nowhere")


def test_image_that_cannot_be_had(tmp_path, capsys):
    for source in ("", str(tmp_path / "missing.jpg"), "http://127.0.0.1:9/a.jpg"):
        picture = image_from_url(source)
        assert (picture.ndim, picture.shape[2], picture.dtype) == (3, 3, np.uint8)
        assert capsys.readouterr().out.startswith("no picture: ")


def test_image_from_url(tmp_path):
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "a.png")
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            picture = image_from_url(f"http://127.0.0.1:{server.server_port}/a.png", allow_private=True)
        finally:
            server.shutdown()
            thread.join()
    np.testing.assert_array_equal(picture, np.broadcast_to(np.array([1, 2, 3], np.uint8), (4, 5, 3)))


def test_star_import_brings_every_name():
    names: dict[str, Any] = {}
    exec("from torch_caption.cs231n import *", names)
    assert set(cs231n.__all__) <= names.keys()
    for layer in LAYERS:
        assert {f"{layer}_forward", f"{layer}_backward"} <= names.keys()


def test_notebook(tmp_path, cell_type, monkeypatch, capsys):
    """The notebook's cells on small data: look at the data, train on a few captions, caption train and val pictures."""
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "cs231n" / "datasets" / "coco_captioning")
    data = load_coco_data(pca_features=True)
    for name, value in data.items():
        print(name, type(value), value.shape if isinstance(value, np.ndarray) else len(value))
    axes = Figure().subplots()
    captions, features, urls = sample_coco_minibatch(data, batch_size=3)
    for caption, url in zip(captions, urls, strict=True):
        axes.imshow(image_from_url(url))
        axes.set_title(decode_captions(caption, data["idx_to_word"]))

    small = load_coco_data(max_train=10)
    model = CaptioningRNN(
        cell_type=cell_type,
        word_to_idx=data["word_to_idx"],
        input_dim=data["train_features"].shape[1],
        hidden_dim=48,
        wordvec_dim=24,
    )
    solver = CaptioningSolver(
        model,
        small,
        update_rule="adam",
        num_epochs=60,
        batch_size=10,
        optim_config={"learning_rate": 1e-2},
        lr_decay=0.995,
        verbose=True,
        print_every=10,
    )
    solver.train()
    axes.plot(solver.loss_history)
    assert solver.loss_history[-1] < 0.1 * solver.loss_history[0]
    assert "(Iteration 1 / 60) loss: " in capsys.readouterr().out
    for split in ("train", "val"):
        captions, features, urls = sample_coco_minibatch(small, split=split, batch_size=2)
        truth = decode_captions(captions, data["idx_to_word"])
        sampled = decode_captions(model.sample(features), data["idx_to_word"])
        for gt, sample, url in zip(truth, sampled, urls, strict=True):
            axes.imshow(image_from_url(url))
            axes.set_title(f"{split}\n{sample}\nGT:{gt}")
            if split == "train":
                assert f"<START> {sample}" == gt


@pytest.fixture(scope="module")
def flickr(shared_data) -> dict[str, Any]:
    """50 captions of 50 different images, with the whole vocabulary."""
    data = load_coco_data(shared_data / "flickr8k_cs231n")
    _, rows = np.unique(data["train_image_idxs"], return_index=True)
    rows = rows[:: len(rows) // 50][:50]
    small = {**data, "train_captions": data["train_captions"][rows], "train_image_idxs": data["train_image_idxs"][rows]}
    assert len(set(small["train_image_idxs"].tolist())) == 50
    return small


def overfit(data: dict[str, Any], cell_type: str) -> tuple[CaptioningRNN, list[float]]:
    model = CaptioningRNN(
        cell_type=cell_type,
        word_to_idx=data["word_to_idx"],
        input_dim=data["train_features"].shape[1],
        hidden_dim=512,
        wordvec_dim=256,
    )
    solver = CaptioningSolver(
        model,
        data,
        update_rule="adam",
        num_epochs=50,
        batch_size=25,
        optim_config={"learning_rate": 5e-3},
        lr_decay=1.0,
        verbose=False,
    )
    solver.train()
    return model, solver.loss_history


@pytest.mark.exhaustive
@pytest.mark.realdata
def test_overfit_photographs(flickr, cell_type):
    """The assignment's last exercise: 50 captions learnt by heart. Its bar for the loss is the rnn's."""
    model, losses = overfit(flickr, cell_type)
    assert len(losses) == 100
    if cell_type == "rnn":
        assert losses[-1] < 0.1
    assert reproduced(model, flickr) == 50
