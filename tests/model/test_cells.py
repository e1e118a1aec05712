"""The cells, and the recurrent layer made of one."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.rings import ringed
from torch_caption import functions
from torch_caption.functions import reference
from torch_caption.model.cell import Cell
from torch_caption.model.cells import CELLS, make_cell
from torch_caption.model.recurrent import Recurrent
from torch_caption.verify.gradcheck import assert_agrees

N, T, D, H, L = 2, 3, 4, 5, 6


def test_gradients_choose_the_functions(cell_type):
    assert make_cell(cell_type).ops is functions
    assert make_cell(cell_type, "hand").ops is functions
    assert make_cell(cell_type, "auto").ops is reference


def test_refused_names():
    with pytest.raises(ValueError, match=rf"^cell_type must be one of {', '.join(CELLS)}, but is 'nonesuch'$"):
        make_cell("nonesuch")
    with pytest.raises(ValueError, match=rf"^cell_type must be one of {', '.join(CELLS)}, but is 'nonesuch'$"):
        Recurrent(D, H, "nonesuch")
    with pytest.raises(ValueError, match=r"^gradients must be one of hand, auto, but is 'numerical'$"):
        make_cell("rnn", "numerical")


def image_of(cell_type: str, randn: Callable[..., Tensor]) -> Tensor:
    """What the cell begins with: h0, or places to look at."""
    return randn(N, L, H) if CELLS[cell_type].attends else randn(N, H)


def weights_of(cell_type: str, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    weights = make_cell(cell_type).weights(D, H)
    return {name: randn(*w.shape) for name, w in weights.items()}


def test_first_state(cell_type, randn):
    """h0 itself, with a cell at zero; or the mean of the places twice, and the places."""
    image = image_of(cell_type, randn)
    h, *others = make_cell(cell_type).begin(image)
    if cell_type == "attention":
        c, places = others
        torch.testing.assert_close(h, image.mean(1))
        assert torch.equal(c, h)
        assert c.data_ptr() != h.data_ptr()  # they are written over
        assert places is image
    else:
        assert h is image
        assert not any(c.any() for c in others)


def test_a_sequence_is_steps(cell_type, randn):
    cell, weights = make_cell(cell_type), weights_of(cell_type, randn)
    x, image = randn(N, T, D), image_of(cell_type, randn)
    state = cell.begin(image)
    hs = []
    for x_t in x.unbind(1):
        state = cell.step(x_t, state, weights)
        hs.append(state[0])
    torch.testing.assert_close(cell.sequence(x, cell.begin(image), weights), torch.stack(hs, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("own", [True, False], ids=["own", "inherited"])
def test_a_step_in_place_is_a_step(cell_type, randn, own):
    cell, weights = make_cell(cell_type), weights_of(cell_type, randn)
    x, image = randn(N, D), image_of(cell_type, randn)
    with torch.no_grad():
        expected = cell.step(x, cell.begin(image), weights)
        state = tuple(part.clone() for part in cell.begin(image))
        step_ = cell.step_ if own else functools.partial(Cell.step_, cell)
        step_(cell.views(x @ weights["Wx"] + weights["b"]), state, weights)
    torch.testing.assert_close(state, expected, rtol=0, atol=1e-12)


def test_a_sequence_resumes_from_any_state(cell_type, randn):
    """Half a sequence, then the other half from the state between."""
    cell, weights = make_cell(cell_type), weights_of(cell_type, randn)
    x, image = randn(N, T, D), image_of(cell_type, randn)
    middle = cell.step(x[:, 0], cell.begin(image), weights)
    whole = cell.sequence(x, cell.begin(image), weights)
    torch.testing.assert_close(cell.sequence(x[:, 1:], middle, weights), whole[:, 1:], rtol=0, atol=1e-12)


def test_both_gradients_agree(cell_type, randn):
    hand, auto = make_cell(cell_type), make_cell(cell_type, "auto")
    weights, lengths = weights_of(cell_type, randn), torch.tensor([3, 1])

    def of(cell: Cell) -> Callable[..., Tensor]:
        def call(x: Tensor, image: Tensor, *values: Tensor) -> Tensor:
            return cell.sequence(x, cell.begin(image), dict(zip(weights, values, strict=True)), lengths)

        return call

    args = randn(N, T, D), image_of(cell_type, randn), *weights.values()
    assert_agrees(of(hand), of(auto), args, ("x", "image", *weights))


def test_recurrent_layer(cell_type, randn):
    layer = Recurrent(D, H, cell_type).double()
    x, image, lengths = randn(N, T, D), image_of(cell_type, randn), torch.tensor([1, 3])
    weights = dict(layer.named_parameters())
    assert tuple(weights) == CELLS[cell_type].names
    if cell_type == "attention":
        expected = functions.attention_lstm(x, image.mT, **weights, lengths=lengths)
        with pytest.raises(
            ValueError, match=r"^Recurrent: this cell attends to an image: give its positions \(N, L, H\)$"
        ):
            layer(x)
    else:
        operation = getattr(functions, cell_type)
        expected = operation(x, image, **weights, lengths=lengths)
        assert torch.equal(layer(x), operation(x, torch.zeros(N, H, dtype=torch.float64), **weights))
    torch.testing.assert_close(layer(x, image, lengths), expected)
    layer(x, image).sum().backward()
    assert all(p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("cell_type", ringed(CELLS, {"rnn"}))
def test_recurrent_layer_is_copied_saved_and_compiled(cell_type):
    layer = Recurrent(D, H, cell_type)
    x, image = torch.randn(N, T, D), torch.randn(N, L, H) if layer.cell.attends else None
    expected = layer(x, image)
    assert torch.equal(copy.deepcopy(layer)(x, image), expected)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x, image), expected)
    other = Recurrent(D, H, cell_type)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x, image), expected)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, image)
    torch.testing.assert_close(compiled, expected)
    compiled.sum().backward()
    assert all(p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize(("sizes", "wrong"), [((0, 4), "input_dim"), ((4, 0), "hidden_dim"), ((4, 2.5), "hidden_dim")])
def test_recurrent_refuses_sizes(cell_type, sizes, wrong):
    value = dict(zip(("input_dim", "hidden_dim"), sizes, strict=True))[wrong]
    with pytest.raises(ValueError, match=rf"^Recurrent: {wrong} must be an integer of at least 1, but is {value}$"):
        Recurrent(*sizes, cell_type)


def test_recurrent_takes_numpy_integers_as_sizes(cell_type):
    assert Recurrent(np.int64(D), np.int32(H), cell_type).Wh.shape[0] == H


def test_recurrent_names_the_wrong_input(cell_type):
    """Whatever is wrong with x is said of x, and of h0 of h0, under the names that this layer has."""
    layer = Recurrent(D, H, cell_type)
    x, h0 = torch.randn(N, T, D), torch.randn(N, L, H) if layer.cell.attends else torch.randn(N, H)
    shape = "N, L, H" if layer.cell.attends else "N, H"
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((N,), T), batch_first=True)
    cases: list[tuple[type[Exception], Any, Any, str]] = [
        (ValueError, x[..., 1:], h0, rf"x must be \(N, T, D\) with .*D = {D}, but is \({N}, {T}, {D - 1}\)"),
        (ValueError, x[:, 0], h0, rf"x must be \(N, T, D\) with .*D = {D}, but is \({N}, {D}\)"),
        (ValueError, x, h0[..., 1:], rf"h0 must be \({shape}\) with N = {N}, H = {H}, but is .*"),
        (ValueError, x, h0[0], rf"h0 must be \({shape}\) with N = {N}, H = {H}, but is .*"),
        (ValueError, x, h0[1:], rf"h0 must be \({shape}\) with N = {N}, H = {H}, but is .*"),
        (TypeError, x.double(), h0, "x is float64, but b is float32"),
        (TypeError, x.long(), h0, "x must be floating-point, but is int64"),
        (TypeError, x, h0.double(), "h0 is float64, but b is float32"),
        (TypeError, x.numpy(), h0, "x must be a tensor, but is a NumPy array; torch.from_numpy makes a tensor of it"),
        (TypeError, packed, h0, "x must be a tensor, but is a PackedSequence; .*pad_packed_sequence makes .*"),
        (TypeError, x, h0.numpy(), "h0 must be a tensor, but is a NumPy array; .*"),
    ]
    for error, wrong_x, wrong_h0, message in cases:
        with pytest.raises(error, match=f"^Recurrent: {message}$"):
            layer(wrong_x, wrong_h0)
        if wrong_x is not x and not layer.cell.attends:
            with pytest.raises(error, match=f"^Recurrent: {message}$"):
                layer(wrong_x)


def test_recurrent_needs_a_spatial_position():
    with pytest.raises(ValueError, match=rf"^Recurrent: h0 must have at least one spatial position, but is \({N}, 0,"):
        Recurrent(D, H, "attention")(torch.ones(N, T, D), torch.ones(N, 0, H))
