"""The cells, and the recurrent layer made of one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_caption import functions
from torch_caption.functions import reference
from torch_caption.model.cell import Cell
from torch_caption.model.cells import CELLS, make_cell
from torch_caption.verify.gradcheck import assert_agrees

N, T, D, H, L = 2, 3, 4, 5, 6


def test_gradients_choose_the_functions(cell_type):
    assert make_cell(cell_type).ops is functions
    assert make_cell(cell_type, "hand").ops is functions
    assert make_cell(cell_type, "auto").ops is reference


def test_refused_names():
    with pytest.raises(ValueError, match=rf"^cell_type must be one of {', '.join(CELLS)}, but is 'nonesuch'$"):
        make_cell("nonesuch")
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
