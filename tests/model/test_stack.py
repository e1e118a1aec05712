"""Several layers of a cell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.helpers.rings import ringed
from tests.helpers.small_captioner import CAPTIONS, V, make
from torch_caption.functions import reference
from torch_caption.functions.packing import Packing
from torch_caption.model import stack
from torch_caption.model.cell import Cell, Weights
from torch_caption.model.cells import CELLS, make_cell
from torch_caption.verify.gradcheck import assert_agrees

N, T, D, H, L = 2, 3, 4, 5, 6
LAYERS = 3


def make_stack(cell_type: str, randn: Callable[..., Tensor]) -> tuple[Cell, dict[str, Tensor], Tensor, Tensor]:
    """A cell of three layers, its weights, an input (N, T, D) and an image."""
    cell = make_cell(cell_type, num_layers=LAYERS)
    weights = {name: randn(*w.shape) for name, w in cell.weights(D, H).items()}
    return cell, weights, randn(N, T, D), randn(N, L, H) if cell.attends else randn(N, H)


def of_layer(weights: Weights, k: int) -> dict[str, Tensor]:
    """The weights of layer k, counted from 1, by their names in the functions."""
    suffix = f"_l{k}" if k > 1 else ""
    return {name: weights[name + suffix] for name in ("Wx", "Wh", "b", "bn", "Wattn") if name + suffix in weights}


def one_by_one(
    cell_type: str, weights: Weights, x: Tensor, image: Tensor, between: Callable[[Tensor], Tensor] = lambda h: h
) -> list[Tensor]:
    """The hidden states of each layer, from cells of one layer that all begin with the image."""
    cell, hs = make_cell(cell_type), [x]
    for k in range(1, LAYERS + 1):
        below = hs[-1] if k == 1 else between(hs[-1])
        hs.append(cell.sequence(below, cell.begin(image), of_layer(weights, k)))
    return hs[1:]


def test_one_layer_is_the_cell_itself(cell_type):
    assert type(make_cell(cell_type, num_layers=1)) is CELLS[cell_type]


def test_names_and_shapes(cell_type):
    G, names = CELLS[cell_type].gates, CELLS[cell_type].names
    cell = make_cell(cell_type, num_layers=2)
    weights = cell.weights(D, H)
    shapes = {"Wx": (D, G * H), "Wh": (H, G * H), "b": (G * H,), "bn": (H,), "Wattn": (H, G * H)}
    expected = {name: shapes[name] for name in names}
    expected |= {f"{name}_l2": shape for name, shape in expected.items()} | {"Wx_l2": (H, G * H)}
    assert {name: tuple(w.shape) for name, w in weights.items()} == expected
    assert cell.names == tuple(weights)
    assert set(make(cell_type, num_layers=2).params()) - set(make(cell_type).params()) == {f"{n}_l2" for n in names}


def test_a_layer_reads_the_one_below(cell_type, randn):
    cell, weights, x, image = make_stack(cell_type, randn)
    *_, expected = one_by_one(cell_type, weights, x, image)
    torch.testing.assert_close(cell.sequence(x, cell.begin(image), weights), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell_type", ["rnn", "lstm"])
def test_gradients_are_those_of_torch_nn(cell_type, randn):
    cell, weights, x, h0 = make_stack(cell_type, randn)
    layer = {"rnn": nn.RNN, "lstm": nn.LSTM}[cell_type](D, H, LAYERS, batch_first=True, dtype=torch.float64)
    order = [0, 1, 3, 2][: cell.gates]  # torch's gates are i, f, g, o

    def permuted(w: Tensor) -> Tensor:
        return torch.cat([w.chunk(cell.gates, dim=-1)[k] for k in order], dim=-1)

    def ours(x: Tensor, h0: Tensor, *values: Tensor) -> Tensor:
        return cell.sequence(x, cell.begin(h0), dict(zip(weights, values, strict=True)))

    def theirs(x: Tensor, h0: Tensor, *values: Tensor) -> Tensor:
        named = {}
        for k in range(LAYERS):
            own = of_layer(dict(zip(weights, values, strict=True)), k + 1)
            named |= {f"weight_ih_l{k}": permuted(own["Wx"]).T, f"weight_hh_l{k}": permuted(own["Wh"]).T}
            named |= {f"bias_ih_l{k}": permuted(own["b"]), f"bias_hh_l{k}": torch.zeros_like(own["b"])}
        begin = h0.expand(LAYERS, N, H).contiguous()
        return functional_call(layer, named, (x, (begin, torch.zeros_like(begin)) if cell_type == "lstm" else begin))[0]

    assert_agrees(ours, theirs, (x, h0, *weights.values()), ("x", "h0", *weights))


def test_a_sequence_is_steps(cell_type, randn):
    """The state is that of the last layer, then those below it, then what all layers share."""
    cell, weights, x, image = make_stack(cell_type, randn)
    state = cell.begin(image)
    expected = one_by_one(cell_type, weights, x, image)
    parts = (len(state) - cell.constant) // LAYERS
    for t, x_t in enumerate(x.unbind(1)):
        state = cell.step(x_t, state, weights)
        for k, h in enumerate(reversed(expected)):
            torch.testing.assert_close(state[k * parts], h[:, t], rtol=0, atol=1e-12)
    assert len(state) == parts * LAYERS + cell.constant
    assert cell.constant == CELLS[cell_type].constant
    assert all(part is image for part in state[len(state) - cell.constant :])


@pytest.mark.parametrize("own", [True, False], ids=["own", "inherited"])
def test_a_step_in_place_is_a_step(cell_type, randn, own, monkeypatch):
    """From the state of `begin_`, no part of which overwrites another."""
    cell, weights, x, image = make_stack(cell_type, randn)
    if not own:
        monkeypatch.setattr(CELLS[cell_type], "step_", Cell.step_)
    with torch.no_grad():
        expected, state = cell.begin(image), cell.begin_(image.clone())
        for x_t in x.unbind(1):
            expected = cell.step(x_t, expected, weights)
            cell.step_(cell.views(x_t @ weights["Wx"] + weights["b"]), state, weights)
    torch.testing.assert_close(state, expected, rtol=0, atol=1e-12)


def test_packed_sequences(cell_type, randn):
    """Of words that repeat, each row of its own length."""
    cell, weights, x, image = make_stack(cell_type, randn)
    lengths = torch.tensor([1, 3])
    packed = Packing.of(N, T, lengths)
    expected = cell.sequence(x, cell.begin(image), weights, lengths)
    state = cell.begin(image[packed.sorted_indices])
    table, index = x.flatten(0, 1), packed.indices
    found = cell.packed(table, state, weights, packed.batch_sizes, index)
    torch.testing.assert_close(packed.unpack(found), expected, rtol=0, atol=1e-12)
    found = cell.packed(table[index], state, weights, packed.batch_sizes)
    torch.testing.assert_close(packed.unpack(found), expected, rtol=0, atol=1e-12)


def test_layer_dropout_is_between_layers(cell_type, randn, monkeypatch):
    """Not on the input nor on the output."""
    _, weights, x, image = make_stack(cell_type, randn)
    cell = make_cell(cell_type, num_layers=LAYERS, layer_dropout=0.25)
    monkeypatch.setattr(stack, "dropout", lambda h, p: h * 4 * p + 1)
    *_, expected = one_by_one(cell_type, weights, x, image, between=lambda h: h + 1)
    torch.testing.assert_close(cell.sequence(x, cell.begin(image), weights), expected, rtol=0, atol=1e-12)
    packed = cell.packed(x.transpose(0, 1).flatten(0, 1), cell.begin(image), weights, T)
    torch.testing.assert_close(Packing.of(N, T).unpack(packed), expected, rtol=0, atol=1e-12)


def test_layer_dropout_in_training_alone(cell_type, features):
    model, plain = (make(cell_type, num_layers=2, layer_dropout=p) for p in (0.5, 0.0))
    expected = plain(features, CAPTIONS)
    first, second = model(features, CAPTIONS), model(features, CAPTIONS)
    assert len({loss.item() for loss in (expected, first, second)}) == 3
    assert torch.equal(model.eval()(features, CAPTIONS), expected)
    assert torch.equal(model.train().sample(features), plain.sample(features))  # a step drops nothing


def test_captions_of_a_trained_stack(cell_type, features):
    """Greedy, by five beams and by alternatives: those of the model's own steps."""
    model = make(cell_type, num_layers=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(features, CAPTIONS)
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    length = CAPTIONS.shape[1] - 1
    assert torch.equal(model.sample(features, length), CAPTIONS[:, 1:])
    beams = model.beam_search(features, max_length=length)
    assert torch.equal(beams.words[:, 0], CAPTIONS[:, 1:])
    torch.testing.assert_close(-beams.log_probs[:, 0].mean(), loss.detach(), rtol=0.2, atol=0)
    assert model.alternatives(features, CAPTIONS[:, 1:], k=V - 2).words.shape == (4, length, V - 2)


@pytest.mark.parametrize("cell_type", ringed(CELLS, {"rnn"}))
def test_a_stack_is_compiled(cell_type, features):
    torch._dynamo.reset()
    model = make(cell_type, num_layers=2, layer_dropout=0.5)
    captions = CAPTIONS[:, :4]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(features, captions).backward()
    assert all(p.grad.any() for p in model.parameters())
    torch.testing.assert_close(compiled.eval()(features, captions), model(features, captions))


def test_all_layers_have_the_same_gradients(cell_type):
    cell = make_cell(cell_type, "auto", num_layers=2)
    assert {layer.ops for layer, *_ in cell.layers(cell.begin(torch.zeros(N, L, H)), cell.weights(D, H))} == {reference}
    assert cell.ops is reference
