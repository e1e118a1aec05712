"""Packed sequences of recurrent layers, ours beside torch.nn's, as torch's own tests verify them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    unpack_sequence,
)

from tests.helpers.torch_layers import (
    SEQUENCES,
    D,
    N,
    T,
    assert_as_torch,
    close,
    gradients,
    loss_of,
    make,
    normal,
    pair,
    states,
    tensors,
)
from torch_caption import layers

LENGTHS = [([4], True), ([4], False), ([4, 4, 3, 1, 1], True), ([4, 4, 3, 1, 1], False), ([2, 1, 3, 4, 2], False)]


@pytest.mark.parametrize("has_hx", [False, True])
@pytest.mark.parametrize(("lengths", "enforce_sorted"), LENGTHS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_packed_as_each_sequence_alone(name: str, lengths: list[int], enforce_sorted: bool, has_hx: bool) -> None:
    """Outputs, last states and all gradients; the gradient is zero in the padding."""
    module = make(layers, name, num_layers=2, bidirectional=True)
    x = normal(max(lengths), len(lengths), D)
    hx = states(name, 4, len(lengths)) if has_hx else None
    out, last = module(pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), hx)
    padded, found_lengths = pad_packed_sequence(out)
    assert found_lengths.tolist() == lengths
    alone = []
    for k, length in enumerate(lengths):
        parts = tuple(h[:, k : k + 1] for h in tensors(hx))
        mine = (parts if len(parts) == 2 else parts[0]) if has_hx else None
        each, *state = tensors(module(x[:length, k : k + 1], mine))
        alone.append((nn.functional.pad(each, (0, 0, 0, 0, 0, max(lengths) - length)), *state))
    expected = [torch.cat(parts, dim=1) for parts in zip(*alone, strict=True)]
    close((padded, last), expected)
    found = gradients(loss_of((padded, last)), module, (x, hx))
    close(found, gradients(loss_of(expected), module, (x, hx)))
    assert all(not found[0][length:, k].any() for k, length in enumerate(lengths))


@pytest.mark.parametrize("name", SEQUENCES)
def test_casts_of_packed_sequences(name: str) -> None:
    """The result has the dtype of the weights; another one is refused, as by torch.nn's RNN and GRU."""
    module = make(layers, name)
    packed = pack_sequence([normal(n, D, seed=n).detach() for n in (2, 4, 1)], enforce_sorted=False)
    assert module(packed)[0].data.dtype == torch.float64
    for cast in ("float", "long", "int", "short", "char", "byte"):
        with pytest.raises(ValueError, match="does not match weight dtype"):
            module(getattr(packed, cast)())
    out, last = module.float()(packed.float())
    assert {x.dtype for x in tensors((out, last))} == {torch.float32}


@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_packed_result(name: str, enforce_sorted: bool) -> None:
    """All fields, and what may be done with it, are as of torch.nn."""
    lengths = [4, 3, 1] if enforce_sorted else [1, 4, 3]
    packed = pack_padded_sequence(normal(T, N, D), lengths, enforce_sorted=enforce_sorted)
    expected, found = (module(packed)[0] for module in pair(name))
    close(found, expected)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        a, b = getattr(found, field), getattr(expected, field)
        assert (a is None) == (b is None) == (enforce_sorted and field != "batch_sizes")
        assert a is None or torch.equal(a, b)
    assert found.to("cpu") is found
    assert found.double() is found
    assert found.to(torch.float32).data.dtype == torch.float32
    assert not found.is_cuda
    assert found.is_pinned() == expected.is_pinned()
    for batch_first in (False, True):
        for total in (None, T, T + 3):
            options = {"batch_first": batch_first, "total_length": total}
            assert pad_packed_sequence(found, **options)[0].shape == pad_packed_sequence(expected, **options)[0].shape
            close(pad_packed_sequence(found, **options), pad_packed_sequence(expected, **options))
    with pytest.raises(ValueError, match="Expected total_length to be at least the length of the longest"):
        pad_packed_sequence(found, total_length=T - 1)
    close(unpack_sequence(found), unpack_sequence(expected))


@pytest.mark.parametrize("name", SEQUENCES)
def test_packed_sequences_of_other_axes(name: str) -> None:
    module = make(layers, name)
    for axes in ((), (2, D), (D + 1,)):
        with pytest.raises(RuntimeError, match=r"dimensions|input_size"):
            module(pack_sequence([normal(3, *axes), normal(2, *axes)]))


@pytest.mark.parametrize("name", SEQUENCES)
def test_packed_without_a_padded_tensor(name: str) -> None:
    """Made of its parts, without indices of an order."""
    x, batch_sizes = normal(5, D), torch.tensor([2, 2, 1])
    assert_as_torch(*pair(name), PackedSequence(x, batch_sizes))
