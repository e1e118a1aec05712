"""Layers against their namesakes in torch.nn: torch's own samples, and random ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.testing._internal.common_modules import ErrorModuleInput, ModuleErrorEnum, ModuleInput, module_db

from torch_caption import layers

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
TOLERANCE = 1e-10


def samples(name: str, training: bool) -> list[ModuleInput]:
    (info,) = (info for info in module_db if info.name == f"nn.{name}")
    return list(info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=True, training=training))


def pair(name: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """A module of torch.nn and ours, with the same weights."""
    theirs = getattr(nn, name)(*args, **{"dtype": torch.float64, **kwargs})
    ours = getattr(layers, name)(*args, **{"dtype": torch.float64, **kwargs})
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensors(x: Any, name: str = "input") -> Iterator[tuple[str, Tensor]]:
    """The tensors in arguments or results, by name."""
    if isinstance(x, Tensor):
        yield name, x
    elif isinstance(x, PackedSequence):
        yield f"{name}.data", x.data
    elif x is not None:
        for k, part in enumerate(x):
            yield from tensors(part, f"{name}[{k}]")


def gradients(module: nn.Module, args: tuple) -> dict[str, Tensor]:
    """Outputs, and the gradients of a weighted sum of them, by name."""
    outputs = dict(tensors(module(*args), "output"))
    inputs = {name: x for name, x in tensors(args) if x.requires_grad} | dict(module.named_parameters())
    weights = torch.Generator().manual_seed(0)
    loss = sum((out * torch.randn(out.shape, dtype=out.dtype, generator=weights)).sum() for out in outputs.values())
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return outputs | {f"d{name}": grad for name, grad in zip(inputs, grads, strict=True)}


def assert_same(theirs: nn.Module, ours: nn.Module, args: tuple, tolerance: float = TOLERANCE) -> None:
    expected, found = gradients(theirs, args), gradients(ours, args)
    assert found.keys() == expected.keys()
    wrong = {name: (x - found[name]).abs().max().item() for name, x in expected.items() if x.numel()}
    assert {name: error for name, error in wrong.items() if not error <= tolerance} == {}
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in expected.items()}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", NAMES)
def test_samples_of_torch(name: str, training: bool) -> None:
    """All of those that torch tests its own modules with."""
    for sample in samples(name, training):
        made, called = sample.constructor_input, sample.forward_input
        assert_same(*pair(name, *made.args, **made.kwargs), (*called.args, *called.kwargs.values()))


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_torch(name: str) -> None:
    """All of those that torch tests its own modules with."""
    (info,) = (info for info in module_db if info.name == f"nn.{name}")
    errors: list[ErrorModuleInput] = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=False, training=False
    )
    assert errors
    for error in errors:
        made, called = error.module_error_input.constructor_input, error.module_error_input.forward_input
        make = lambda: getattr(layers, name)(*made.args, **made.kwargs)  # noqa: B023, E731
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                make()
        else:
            module = make()
            with pytest.raises(error.error_type):
                module(*called.args, **called.kwargs)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, int]]:
    """Options of a layer, and sizes."""
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    return options, {letter: draw(st.integers(1, 5)) for letter in "NTDH"}


@pytest.mark.parametrize("name", ["RNN", "RNN relu", "LSTM", "LSTM projected", "GRU"])
@settings(max_examples=20)  # of up to half a second each
@given(sequences(), st.booleans(), st.integers(0, 2**31))
def test_random_sequences(name: str, drawn: tuple, has_hx: bool, seed: int) -> None:
    """Padded, packed and with `lengths`: outputs, states and all gradients."""
    (options, sizes), (name, _, kind) = drawn, name.partition(" ")
    N, T, D, H = (sizes[letter] for letter in "NTDH")
    if kind == "projected":
        H += 1
        options = {**options, "proj_size": H - 1}
    elif kind:
        options = {**options, "nonlinearity": kind}
    generator = torch.Generator().manual_seed(seed)
    theirs, ours = pair(name, D, H, **options)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    rows = options["num_layers"] * (1 + options["bidirectional"])
    hx: Any = normal(rows, N, options.get("proj_size", H))
    hx = (hx, normal(rows, N, H)) if name == "LSTM" else hx
    hx = hx if has_hx else None
    x = normal(*((N, T, D) if options["batch_first"] else (T, N, D)))
    assert_same(theirs, ours, (x, hx))
    lengths = torch.randint(1, T + 1, (N,), generator=generator)
    packed = pack_sequence([normal(int(n), D) for n in lengths], enforce_sorted=False)
    assert_same(theirs, ours, (PackedSequence(packed.data.detach().requires_grad_(), *packed[1:]), hx))
    assert_padded_as_packed(theirs, ours, x, hx, lengths)


def assert_padded_as_packed(theirs: nn.Module, ours: nn.Module, x: Tensor, hx: Any, lengths: Tensor) -> None:
    """Ours with `lengths` gives what torch.nn gives for the packed sequences; padding is not read."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, weight in theirs.named_parameters():
                self.register_parameter(name, weight)

        def forward(self, x: Tensor, hx: Any, lengths: Tensor) -> Any:
            first = theirs.batch_first
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
            out, last = theirs(packed, hx)
            T = x.shape[1 if first else 0]
            return nn.utils.rnn.pad_packed_sequence(out, batch_first=first, total_length=T)[0], last

    padding = torch.arange(x.shape[1 if theirs.batch_first else 0]).unsqueeze(1) >= lengths  # (T, N)
    padding = (padding.t() if theirs.batch_first else padding).unsqueeze(2)
    x = x.detach().masked_fill(padding, torch.nan).requires_grad_()
    assert_same(Packed(), ours, (x, hx, lengths))


@pytest.mark.parametrize("name", NAMES)
def test_first_weights_are_those_of_torch(name: str) -> None:
    made = []
    for module in (getattr(nn, name), getattr(layers, name)):
        torch.manual_seed(0)
        made.append(module(3, 4))
    assert list(made[0].state_dict()) == list(made[1].state_dict())
    assert all(map(torch.equal, made[0].state_dict().values(), made[1].state_dict().values()))
    assert repr(made[0]) == repr(made[1])
    torch.manual_seed(1)
    made[0].reset_parameters()
    torch.manual_seed(1)
    made[1].reset_parameters()
    assert all(map(torch.equal, made[0].parameters(), made[1].parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_loads_in_both_directions(name: str) -> None:
    theirs, ours = pair(name, 3, 4)
    other = copy.deepcopy(theirs)
    nn.init.zeros_(other.weight_ih if name.endswith("Cell") else other.weight_ih_l0)
    other.load_state_dict(ours.state_dict(), strict=True)
    assert all(map(torch.equal, other.parameters(), theirs.parameters()))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_dropout_is_that_of_torch(name: str) -> None:
    """The same random numbers."""
    theirs, ours = pair(name, 3, 4, num_layers=3, dropout=0.5)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.manual_seed(0)
    expected, _ = theirs(x)
    torch.manual_seed(0)
    found, _ = ours(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    assert torch.equal(ours.eval()(x)[0], ours(x)[0])
