"""What the captioner accepts and refuses: options, inputs, and weights from arrays and files."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.small_captioner import (
    CAPTIONS,
    WORDS,
    D,
    N,
    T,
    V,
    make,
)
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS

# Weights in and out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, "weights of mine"])
def test_params_round_trip(model, features, tmp_path, path):
    """As arrays, which are copies, or in a file written as named, with no ending added."""
    params, other = model.params(), make(model.cell_type, seed=1, num_layers=model.num_layers)
    assert all(isinstance(value, np.ndarray) and value.dtype == np.float64 for value in params.values())
    params["b"][:] = 7
    assert not (model.b == 7).any()
    if path is None:
        other.load_params(model.params())
    else:
        model.save_npz(tmp_path / path)
        with np.load(tmp_path / path) as arrays:
            assert set(arrays.files) == set(params)
        other.load_npz(tmp_path / path)
    assert torch.equal(other(features, CAPTIONS), model(features, CAPTIONS))


@pytest.mark.parametrize("kind", ["float32", "fortran", "read-only", "strided", "big-endian", "integers", "lists"])
def test_params_of_any_layout(kind):
    model = make()
    kinds: dict[str, Callable] = {
        "float32": lambda x: x.astype(np.float32),
        "fortran": np.asfortranarray,
        "read-only": lambda x: np.broadcast_to(x, x.shape),
        "strided": lambda x: np.repeat(x, 2, axis=0)[::-2],
        "big-endian": lambda x: x.astype(">f8"),
        "integers": lambda x: (10 * x).astype(int),
        "lists": lambda x: x.tolist(),
    }
    params = {name: kinds[kind](value) for name, value in model.params().items()}
    model.load_params(params)
    for name, value in model.params().items():
        np.testing.assert_array_equal(value, np.asarray(params[name]).astype(np.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("Wh"), r"^params lack \['Wh'\] and contain unknown nothing$"),
        (lambda p: p.update(W=p["b"]), r"^params lack nothing and contain unknown \['W'\]$"),
        (lambda p: p.update(b_vocab=p["b_vocab"][1:]), r"^params\['b_vocab'\] must be \(8,\), but is \(7,\)$"),
        (lambda p: p.update(W_vocab=p["W_vocab"].T), r"^params\['W_vocab'\] must be \(5, 8\), but is \(8, 5\)$"),
        (lambda p: p.update(b_vocab=p["b_vocab"].astype(object)), "must be real numbers, but are object"),
        (lambda p: p.update(b_vocab=p["b_vocab"] + 0j), "must be real numbers, but are complex128"),
    ],
)
def test_params_that_do_not_fit_change_nothing(change, message):
    model = make()
    before = model.params()
    params = {name: value + 1 for name, value in before.items()}
    change(params)
    with pytest.raises(ValueError, match=message):
        model.load_params(params)
    for name, value in model.params().items():
        np.testing.assert_array_equal(value, before[name])


def damaged(path, model) -> None:
    np.savez_compressed(path, **model.params())
    content = bytearray(path.read_bytes())
    content[60:100] = bytes(40)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, model: None,
        lambda path, model: path.mkdir(),
        lambda path, model: path.write_bytes(b"not an archive"),
        lambda path, model: path.write_bytes(pickle.dumps(model.params())),
        lambda path, model: np.savez(path, b=model.params()["b"]),
        lambda path, model: np.savez(path, **{**model.params(), "b": np.array([{}])}),
        damaged,
    ],
    ids=["missing", "folder", "text", "pickle", "lacking", "objects", "damaged"],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_invalid_npz_is_named(write, tmp_path):
    model = make()
    path = tmp_path / "weights.npz"
    write(path, model)
    before = model.params()
    with pytest.raises(ValueError, match=r"weights\.npz: ") as caught:
        model.load_npz(path)
    assert str(caught.value).count("weights.npz") == 1
    for name, value in model.params().items():
        np.testing.assert_array_equal(value, before[name])


def test_copied_pickled_and_saved(model, features):
    expected = model(features, CAPTIONS)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(other(features, CAPTIONS), expected)
        assert other.W_proj is not model.W_proj
    other = make(model.cell_type, seed=1, num_layers=model.num_layers)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(features, CAPTIONS), expected)
    assert set(model.state_dict()) == set(model.params())


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_to_idx": {"cat": 0}}, "^word_to_idx lacks <NULL>$"),
        ({"cell_type": "nonesuch"}, f"^cell_type must be one of {', '.join(CELLS)}, but is 'nonesuch'$"),
        ({"gradients": "numerical"}, "^gradients must be one of hand, auto, but is 'numerical'$"),
        ({"input_dim": 0}, "^CaptioningRNN: input_dim must be an integer of at least 1, but is 0$"),
        ({"wordvec_dim": -1}, "^CaptioningRNN: wordvec_dim must be an integer of at least 1, but is -1$"),
        ({"hidden_dim": 0}, "^CaptioningRNN: hidden_dim must be an integer of at least 1, but is 0$"),
        ({"hidden_dim": 2.5}, "^CaptioningRNN: hidden_dim must be an integer of at least 1, but is 2.5$"),
        ({"dropout": 1.0}, "^dropout must be at least 0 and below 1, but is 1.0$"),
        ({"dropout": -0.1}, "^dropout must be at least 0 and below 1, but is -0.1$"),
        ({"label_smoothing": 1.0}, "^label_smoothing must be at least 0 and below 1, but is 1.0$"),
        ({"num_layers": 0}, "^CaptioningRNN: num_layers must be an integer of at least 1, but is 0$"),
        ({"num_layers": 2, "layer_dropout": 1.0}, "^layer_dropout must be at least 0 and below 1, but is 1.0$"),
        ({"layer_dropout": 0.1}, "^layer_dropout needs num_layers of at least 2: it is between layers$"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        CaptioningRNN(**{"word_to_idx": WORDS, **options})


def with_negative(captions: Tensor) -> Tensor:
    captions = captions.clone()
    captions[1, 1] = -1
    return captions


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("features", lambda x: x[:, :3], ValueError, rf"^features must be \(N, {D}\), but are \(4, 3\)$"),
        ("features", lambda x: x[0], ValueError, rf"^features must be \(N, {D}\), but are \(7,\)$"),
        ("features", Tensor.float, TypeError, "^CaptioningRNN: features is float32, but b_proj is float64$"),
        ("features", Tensor.long, TypeError, "^CaptioningRNN: features must be floating-point, but is int64$"),
        ("features", lambda x: x.to("meta"), TypeError, "^CaptioningRNN: features is on meta, but b_proj is on cpu$"),
        ("captions", lambda x: x[:3], ValueError, r"^captions must be \(4, T\) with T >= 1, but are \(3, 6\)$"),
        ("captions", lambda x: x[0], ValueError, r"^captions must be \(4, T\) with T >= 1, but are \(6,\)$"),
        ("captions", lambda x: x[:, :0], ValueError, r"^captions must be \(4, T\) with T >= 1, but are \(4, 0\)$"),
        ("captions", Tensor.float, TypeError, "CaptioningRNN: captions must hold integers, but is float32"),
        ("captions", with_negative, IndexError, r"CaptioningRNN: captions\[1, 1\] is -1, but there are 8 words"),
        ("inputs", lambda x: CAPTIONS, ValueError, r"^inputs must be \(4, 5\), but is \(4, 6\)$"),
        ("inputs", lambda x: x + V, IndexError, r"CaptioningRNN: inputs\[0, 0\] is 9, but there are 8 words"),
        ("inputs", Tensor.float, TypeError, "CaptioningRNN: inputs must hold integers, but is float32"),
        ("weights", lambda x: x[:, :1], ValueError, r"^weights must be \(4, 5\), but is \(4, 1\)$"),
    ],
)
def test_refused_inputs(features, name, change, error, message):
    given = {"features": features, "captions": CAPTIONS, "inputs": CAPTIONS[:, :-1], "weights": torch.ones(N, T - 1)}
    with pytest.raises(error, match=message):
        make()(**{**given, name: change(given[name])})


def not_tensors(features: Tensor) -> dict[str, Any]:
    """What is given in the place of a tensor, and what is said of it."""
    packed = torch.nn.utils.rnn.pack_sequence([*features])
    return {
        "a NumPy array; torch.from_numpy makes a tensor of it": features.numpy(),
        "a PackedSequence; torch.nn.utils.rnn.pad_packed_sequence makes a tensor and lengths of it": packed,
        "a list": features.tolist(),
    }


def test_every_method_refuses_non_tensors(features):
    model, attentive = make(), make("attention")
    words = CAPTIONS[:, 1:]
    calls: list[tuple[str, Callable[[Any], Any]]] = [
        ("features", lambda x: model(x, CAPTIONS)),
        ("captions", lambda x: model(features, x)),
        ("inputs", lambda x: model(features, CAPTIONS, x)),
        ("weights", lambda x: model(features, CAPTIONS, weights=x)),
        ("features", model.begin),
        ("features", model.sample),
        ("features", model.beam_search),
        ("features", lambda x: model.alternatives(x, words)),
        ("words", lambda x: model.alternatives(features, x)),
        ("words", lambda x: model.step(x, model.begin(features))),
        ("words", lambda x: attentive.attention(features.unsqueeze(2), x)),
        ("features", lambda x: attentive.attention(x, words)),
        ("features", lambda x: model.stepper(1).begin(x)),
    ]
    for name, call in calls:
        for kind, value in not_tensors(features).items():
            with pytest.raises(TypeError, match=f"^CaptioningRNN: {name} must be a tensor, but is {re.escape(kind)}$"):
                call(value)
