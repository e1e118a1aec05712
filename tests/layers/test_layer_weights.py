"""The weights of recurrent layers, ours beside torch.nn's, as torch's own tests verify them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from tests.helpers.torch_layers import NAMES, SEQUENCES, arguments, assert_as_torch, loss_of, make, pair
from torch_caption import layers


def weight_norm(module: nn.Module, weight: str) -> Callable:
    torch.nn.utils.weight_norm(module, weight)
    return torch.nn.utils.remove_weight_norm


def pruned(module: nn.Module, weight: str) -> Callable:
    prune.l1_unstructured(module, weight, amount=0.5)
    return prune.remove


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [weight_norm, pruned])
@pytest.mark.parametrize(
    ("name", "weight"), [*itertools.product(SEQUENCES, ["weight_ih_l0"]), ("LSTM projected", "weight_hr_l0")]
)
def test_the_list_of_weights(name: str, weight: str, change: Callable) -> None:
    """A reparametrized weight is a tensor among the parameters; without it all are parameters again."""
    module = make(layers, name)
    names = [key for key, _ in module.named_parameters()]

    def parameters() -> list[str]:
        pairs = zip(names, module._flat_weights, strict=True)
        return [key for key, w in pairs if isinstance(w, nn.Parameter)]

    remove = change(module, weight)
    assert parameters() == [key for key in names if key != weight]
    remove(module, weight)
    assert parameters() == names
    assert sorted(key for key, _ in module.named_parameters()) == sorted(names)
    assert isinstance(module._parameters[weight], nn.Parameter)


@pytest.mark.parametrize("name", SEQUENCES)
def test_conversion_without_one_of_the_weights(name: str) -> None:
    theirs, ours = pair(name, num_layers=2)
    weight = ours.weight_hh_l0
    del ours.weight_hh_l0
    assert not hasattr(ours, "weight_hh_l0")
    ours.float()
    ours.double()
    ours.load_state_dict(theirs.state_dict(), strict=False)  # which lost digits as float32
    ours.weight_hh_l0 = weight
    assert_as_torch(theirs, ours, *arguments(name, 2))


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_weight_in_other_memory(name: str) -> None:
    """The new memory is used, and remains shared with its owner."""
    theirs, ours = pair(name)
    args = arguments(name)
    value = ours.weight_hh_l0.detach().clone()
    with torch.no_grad():
        ours.weight_hh_l0.set_(value)
    assert_as_torch(theirs, ours, *args)
    value.mul_(2)
    with torch.no_grad():
        theirs.weight_hh_l0.mul_(2)
    assert_as_torch(theirs, ours, *args)


@pytest.mark.parametrize("name", SEQUENCES)
def test_tied_weights_after_an_optimizer_step(name: str) -> None:
    theirs, ours = pair(name, bidirectional=True)
    x, hx = arguments(name, 2)
    for module in (theirs, ours):
        module.bias_ih_l0_reverse = module.bias_ih_l0
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        loss_of(module(x, hx)).backward()
        optimizer.step()
    assert_as_torch(theirs, ours, x, hx)


@pytest.mark.parametrize("kind", ["swap", "overwrite", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_conversion(name: str, kind: str) -> None:
    """To another dtype and back, by each of the ways that torch has to convert parameters."""
    options = {"swap": "swap_module_params", "overwrite": "overwrite_module_params"}
    option = f"{options[kind]}_on_conversion" if kind in options else None
    theirs, ours = pair(name)
    args = arguments(name)
    if option:
        getattr(torch.__future__, f"set_{option}")(True)
    try:
        for module in (theirs, ours):
            loss_of(module(*args)).backward()
            assert module.to(torch.float32).to(torch.float64) is module
            module.zero_grad()
    finally:
        if option:
            getattr(torch.__future__, f"set_{option}")(False)
    assert_as_torch(theirs, ours, *args)
    assert ours.to("cpu") is ours
