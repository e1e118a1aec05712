"""Recurrent layers of torch.nn and ours side by side, for the tests of torch that have a counterpart here.

test_layer_arguments.py, test_layer_weights.py, test_layer_gradients.py and test_packed_sequences.py have those of
torch's test_nn.py, test_modules.py, test_pruning.py and test_packed_sequence.py that test_torch_nn.py and
test_modules.py do not verify. Where torch's test needs a GPU, its part on a CPU is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
)

from torch_caption import layers

SEQUENCES = ("RNN", "RNN relu", "LSTM", "LSTM projected", "GRU")
CELLS = ("RNNCell", "RNNCell relu", "LSTMCell", "GRUCell")
NAMES = (*SEQUENCES, *CELLS)
T, N, D, H, P = 4, 3, 2, 5, 3


def make(package: Any, name: str, *sizes: int, **options: Any) -> nn.Module:
    """A layer of `package` by its name in NAMES."""
    name, _, kind = name.partition(" ")
    if kind:
        options = {**options, **({"proj_size": P} if kind == "projected" else {"nonlinearity": kind})}
    return getattr(package, name)(*(sizes or (D, H)), **{"dtype": torch.float64, **options})


def pair(name: str, *sizes: int, **options: Any) -> tuple[nn.Module, nn.Module]:
    """torch.nn's and ours, with the same weights."""
    torch.manual_seed(0)
    theirs, ours = make(nn, name, *sizes, **options), make(layers, name, *sizes, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def normal(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def is_cell(name: str) -> bool:
    return name in CELLS


def states(name: str, rows: int = 1, batch: int = N) -> Any:
    """`hx` of a layer; of a cell (N, H), else (rows, N, H)."""
    lead = (batch,) if is_cell(name) else (rows, batch)
    h = normal(*lead, P if "projected" in name else H, seed=2)
    return (h, normal(*lead, H, seed=3)) if name.startswith("LSTM") else h


def arguments(name: str, rows: int = 1) -> tuple[Tensor, Any]:
    return normal(*((N, D) if is_cell(name) else (T, N, D))), states(name, rows)


def tensors(out: Any) -> Iterator[Tensor]:
    """The tensors of arguments or of a result, in order."""
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, PackedSequence):
        yield out.data
    elif out is not None:
        for part in out:
            yield from tensors(part)


def loss_of(out: Any) -> Tensor:
    """A weighted sum of all outputs."""
    parts = [(x * normal(*x.shape, seed=4 + k).detach()).sum() for k, x in enumerate(tensors(out))]
    return torch.stack(parts).sum()


def gradients(loss: Tensor, module: nn.Module, args: Any, **options: Any) -> tuple[Tensor, ...]:
    weights = (p for _, p in sorted(module.named_parameters()))
    inputs = [x for x in (*tensors(args), *weights) if x.requires_grad]
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True, **options)


def close(found: Any, expected: Any, atol: float = 1e-10) -> None:
    pairs = itertools.zip_longest(tensors(found), tensors(expected))
    for x, y in pairs:
        torch.testing.assert_close(x, y, rtol=0, atol=atol)


def assert_as_torch(theirs: nn.Module, ours: nn.Module, *args: Any) -> None:
    """Outputs and all gradients."""
    expected, found = theirs(*args), ours(*args)
    close(found, expected)
    close(gradients(loss_of(found), ours, args), gradients(loss_of(expected), theirs, args))


def assert_same_error(theirs: nn.Module, ours: nn.Module, *args: Any, kind: type[Exception] | None = None) -> None:
    """Both raise, one type of exception."""
    with pytest.raises((RuntimeError, ValueError, TypeError)) as expected:
        theirs(*args)
    with pytest.raises(kind or expected.type):
        ours(*args)
    assert kind in (None, expected.type)
