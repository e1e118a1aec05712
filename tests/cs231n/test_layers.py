"""The assignment's layers, losses, gradient checks and captioner, under the assignment's own names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.rings import ringed
from torch_caption import cs231n, functions
from torch_caption.cs231n import (
    CaptioningRNN,
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    rel_error,
)

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


@pytest.fixture(params=LAYERS)
def layer(request) -> str:
    return request.param


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


@pytest.mark.parametrize("cell_type", ringed(["rnn", "lstm", "attention"], {"rnn"}))
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


def test_captioner_keeps_float32(cell_type):
    model, features, captions = small_captioner(cell_type, np.float32)
    _, grads = model.loss(features, captions)
    assert {name: value.shape for name, value in grads.items()} == {k: v.shape for k, v in model.params.items()}
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


def test_sample_feeds_back_the_likeliest_word(cell_type):
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


def test_star_import_brings_every_name():
    names: dict[str, Any] = {}
    exec("from torch_caption.cs231n import *", names)
    assert set(cs231n.__all__) <= names.keys()
    for layer in LAYERS:
        assert {f"{layer}_forward", f"{layer}_backward"} <= names.keys()
