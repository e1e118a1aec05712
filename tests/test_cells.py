"""The cells, and the recurrent layer made of one."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from torch_caption import functions, reference
from torch_caption.agreement import assert_agrees
from torch_caption.cells import CELLS, Recurrent, make_cell

N, T, D, H = 2, 3, 4, 5


@pytest.fixture(params=CELLS)
def cell_type(request) -> str:
    return request.param


def test_gradients_come_from_where_they_are_asked(cell_type):
    assert make_cell(cell_type).ops is functions
    assert make_cell(cell_type, "hand").ops is functions
    assert make_cell(cell_type, "auto").ops is reference


def test_unknown_names():
    with pytest.raises(ValueError, match=r"^cell_type must be one of rnn, lstm, but is 'gru'$"):
        make_cell("gru")
    with pytest.raises(ValueError, match=r"^cell_type must be one of rnn, lstm, but is 'gru'$"):
        Recurrent(D, H, "gru")
    with pytest.raises(ValueError, match=r"^gradients must be one of hand, auto, but is 'numerical'$"):
        make_cell("rnn", "numerical")


def test_first_weights(cell_type):
    torch.manual_seed(0)
    cell = make_cell(cell_type)
    weights = cell.weights(400, 100)
    width = {"rnn": 100, "lstm": 400}[cell_type]
    assert {name: tuple(w.shape) for name, w in weights.items()} == {
        "Wx": (400, width),
        "Wh": (100, width),
        "b": (width,),
    }
    assert not weights["b"].any()
    for name, fan_in in {"Wx": 400, "Wh": 100}.items():
        w = weights[name] * fan_in**0.5
        error = w.numel() ** -0.5
        assert abs(w.mean()) < 4 * error
        assert abs(w.std() - 1) < 4 * error
        assert 2.5 < w.abs().max() < 7  # normal, not uniform


def test_a_sequence_is_steps(cell_type, randn):
    cell = make_cell(cell_type)
    width = cell.gates * H
    x, h0, Wx, Wh, b = randn(N, T, D), randn(N, H), randn(D, width), randn(H, width), randn(width)
    state = cell.begin(h0)
    assert state[0] is h0
    hs = []
    for x_t in x.unbind(1):
        state = cell.step(x_t, state, Wx, Wh, b)
        hs.append(state[0])
    torch.testing.assert_close(cell.sequence(x, cell.begin(h0), Wx, Wh, b), torch.stack(hs, 1), rtol=0, atol=1e-12)


def test_a_sequence_goes_on_from_any_state(cell_type, randn):
    """Half a sequence, then the other half from the state between."""
    cell = make_cell(cell_type)
    width = cell.gates * H
    x, h0, weights = randn(N, T, D), randn(N, H), (randn(D, width), randn(H, width), randn(width))
    middle = cell.step(x[:, 0], cell.begin(h0), *weights)
    whole = cell.sequence(x, cell.begin(h0), *weights)
    torch.testing.assert_close(cell.sequence(x[:, 1:], middle, *weights), whole[:, 1:], rtol=0, atol=1e-12)


def test_both_gradients_agree(cell_type, randn):
    hand, auto = make_cell(cell_type), make_cell(cell_type, "auto")
    width = hand.gates * H
    args = (randn(N, T, D), hand.begin(randn(N, H)), randn(D, width), randn(H, width), randn(width))
    assert_agrees(hand.sequence, auto.sequence, (*args, torch.tensor([3, 1])))


def test_recurrent_layer(cell_type, randn):
    layer = Recurrent(D, H, cell_type).double()
    x, h0, lengths = randn(N, T, D), randn(N, H), torch.tensor([1, 3])
    operation = {"rnn": functions.rnn, "lstm": functions.lstm}[cell_type]
    weights = (layer.Wx, layer.Wh, layer.b)
    assert {name for name, _ in layer.named_parameters()} == {"Wx", "Wh", "b"}
    assert torch.equal(layer(x, h0, lengths), operation(x, h0, *weights, lengths))
    assert torch.equal(layer(x), operation(x, torch.zeros(N, H, dtype=torch.float64), *weights))
    layer(x).sum().backward()
    assert all(p.grad.any() for p in layer.parameters())


def test_recurrent_layers_stack_and_learn(cell_type):
    """Inside any model of torch: two layers learn to say whether the first input was positive."""
    torch.manual_seed(0)
    layers = nn.ModuleList([Recurrent(1, 8, cell_type), Recurrent(8, 8, cell_type)])
    head = nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*layers.parameters(), *head.parameters()], lr=0.02)
    x = torch.randn(64, 5, 1)
    target = (x[:, 0, 0] > 0).float()
    losses = []
    for _ in range(80):
        h = x
        for layer in layers:
            h = layer(h)
        loss = nn.functional.binary_cross_entropy_with_logits(head(h[:, -1]).squeeze(1), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]


def test_recurrent_layer_is_copied_saved_and_compiled(cell_type):
    layer = Recurrent(D, H, cell_type)
    x = torch.randn(N, T, D)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    other = Recurrent(D, H, cell_type)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, expected)
    compiled.sum().backward()
    assert all(p.grad.any() for p in layer.parameters())
