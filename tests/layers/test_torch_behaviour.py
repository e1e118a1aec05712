"""Behaviours of recurrent layers that torch's own tests verify, each for ours beside torch.nn's.

Those of test_nn.py, test_modules.py, test_pruning.py and test_packed_sequence.py in torch's repository that
test_torch_nn.py and test_modules.py do not verify. Where torch's test needs a GPU, its part on a CPU is here.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import prune
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    unpack_sequence,
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


# Constructors and old versions ---------------------------------------------------------------------------------------


def test_nonlinearity() -> None:
    """A keyword, or the fourth argument, of a cell the fourth as well; an attribute afterwards."""
    assert layers.RNN(D, H).nonlinearity == layers.RNNCell(D, H).nonlinearity == "tanh"
    assert layers.RNN(D, H, nonlinearity="relu").nonlinearity == layers.RNNCell(D, H, nonlinearity="relu").nonlinearity
    assert layers.RNN(D, H, 1, "relu").nonlinearity == layers.RNNCell(D, H, True, "relu").nonlinearity == "relu"
    with pytest.raises(ValueError, match="Unknown nonlinearity"):
        layers.RNN(D, H, nonlinearity="selu")


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_state_of_a_version_without_projections(name: str) -> None:
    """The pickled attributes of torch 1.7 have no `proj_size`."""
    theirs, ours = pair(name)
    old = dict(theirs.__dict__)
    del old["proj_size"]
    restored = make(layers, name)
    restored.__setstate__(old)
    x = normal(T, N, D)
    close(restored(x), theirs(x))
    assert restored.proj_size == ours.proj_size == 0


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("name", SEQUENCES)
def test_saved_with_its_dropout(name: str, p: float, training: bool) -> None:
    """A loaded module samples its own masks in training, and is equal to the saved one otherwise."""
    module = make(layers, name, D, 20, num_layers=2, dropout=p).train(training)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    loaded.flatten_parameters()
    x = normal(T, N, D)
    first, second, third = (list(tensors(m(x))) for m in (module, module, loaded))
    fixed = p == 0 or not training
    assert all(torch.equal(a, b) == fixed for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) == fixed for a, b in zip(first, third, strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_saved_cells(name: str) -> None:
    module, args = make(layers, name), arguments(name)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    close(torch.load(file, weights_only=False)(*args), module(*args), atol=0)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_dropout_may_be_changed(name: str, training: bool) -> None:
    """It is read at each call."""
    theirs, ours = pair(name, D, 20, num_layers=2)
    theirs.train(training)
    ours.train(training)
    x = normal(T, N, D)
    for p in (0.0, 0.5, 0.0, 0.7, 1.0, 0.2):
        results = []
        for module in (theirs, ours):
            module.dropout = p
            torch.manual_seed(0)
            results.append(module(x))
        close(results[1], results[0])
        again = ours(x)
        assert torch.equal(again[0], results[1][0]) == (p in (0, 1) or not training)


# Sizes and errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", SEQUENCES)
def test_an_empty_batch(name: str, bidirectional: bool) -> None:
    theirs, ours = pair(name, bidirectional=bidirectional, num_layers=2)
    x = torch.zeros(T, 0, D, dtype=torch.float64, requires_grad=True)
    assert_as_torch(theirs, ours, x)
    ours(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert all(p.grad is not None and not p.grad.any() for p in ours.parameters())


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((0, H), {}),
        ((D, 0), {}),
        ((D, -1), {}),
        ((D, 2.5), {}),
        ((D, H, 0), {}),
        ((D, H), {"proj_size": 2}),
        ((D, H), {"proj_size": H}),
        ((D, H), {"dropout": 1.1}),
        ((D, H), {"dropout": -0.1}),
        ((D, H), {"projection": 2}),
        ((D,), {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_arguments_of_a_constructor(name: str, sizes: tuple, options: dict[str, Any]) -> None:
    """Both take them, or both raise one type of exception."""
    outcomes = []
    for package in (nn, layers):
        try:
            outcomes.append(repr(getattr(package, name)(*sizes, **options)))
        except (TypeError, ValueError) as error:
            outcomes.append(type(error).__name__)
    assert outcomes[1] == outcomes[0]


@pytest.mark.parametrize("has_hx", [False, True])
@pytest.mark.parametrize("sizes", [(0, D, H), (N, 0, H), (N, D, 0)], ids=["N = 0", "D = 0", "H = 0"])
@pytest.mark.parametrize("name", CELLS)
def test_cells_of_size_zero(name: str, sizes: tuple[int, int, int], has_hx: bool) -> None:
    batch, features, width = sizes
    h = torch.zeros(batch, width, dtype=torch.float64, requires_grad=True)
    hx = ((h, h.detach().requires_grad_()) if name == "LSTMCell" else h) if has_hx else None
    assert_as_torch(*pair(name, features, width), normal(batch, features), hx)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_without_steps(name: str, bidirectional: bool, batched: bool) -> None:
    x = torch.zeros((0, N, D) if batched else (0, D), dtype=torch.float64)
    for module in pair(name, bidirectional=bidirectional):
        with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
            module(x)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_sizes_that_do_not_fit(name: str, packed: bool) -> None:
    """One axis at a time, of the input or of one of the states.

    For packed sequences torch.nn's LSTM does not check the states and may end the process: ours alone.
    """
    theirs, ours = pair(name, num_layers=2)
    x, hx = arguments(name, 2)
    good = tuple(tensors(hx))

    def of(x: Tensor) -> Tensor | PackedSequence:
        return pack_padded_sequence(x, [T] * x.shape[1]) if packed else x

    def assert_refused(x: Tensor, *states: Tensor) -> None:
        hx = states if len(states) == 2 else states[0]
        if packed:
            with pytest.raises(RuntimeError, match="Expected"):
                ours(of(x), hx)
        else:
            assert_same_error(theirs, ours, x, hx, kind=RuntimeError)

    assert_as_torch(theirs, ours, of(x), hx)
    assert_refused(normal(T, 7, D), *good)
    assert_refused(normal(T, N, 7), *good)
    for k, state in enumerate(good):
        for axis in range(3):
            shape = list(state.shape)
            shape[axis] = 7
            assert_refused(x, *good[:k], normal(*shape), *good[k + 1 :])


def test_a_projection_and_its_cell_have_their_own_widths() -> None:
    theirs, ours = pair("LSTM projected")
    x, (h, c) = arguments("LSTM projected")
    assert_same_error(theirs, ours, x, (c, c), kind=RuntimeError)
    assert_same_error(theirs, ours, x, (h, h), kind=RuntimeError)


@pytest.mark.parametrize("name", CELLS)
def test_cells_do_not_broadcast(name: str) -> None:
    theirs, ours = pair(name)
    x, hx = arguments(name)
    good = tuple(tensors(hx))

    def assert_refused(x: Tensor, *states: Tensor) -> None:
        assert_same_error(theirs, ours, x, states if len(states) == 2 else states[0], kind=RuntimeError)

    assert_refused(normal(N, 1), *good)
    assert_refused(normal(1, D), *good)
    for k in range(len(good)):
        for shape in ((1, H), (N, 1), (N, H + 1)):
            assert_refused(x, *good[:k], normal(*shape), *good[k + 1 :])


@pytest.mark.parametrize("name", NAMES)
def test_two_devices(name: str) -> None:
    theirs, ours = pair(name)
    x, hx = arguments(name)
    good = tuple(tensors(hx))
    with pytest.raises(RuntimeError, match="Input and parameter tensors are not at the same device"):
        ours(x.to("meta"))
    with pytest.raises(RuntimeError, match="Input and parameter tensors are not at the same device"):
        make(layers, name).to("meta")(x)
    for k in range(len(good)):
        mixed = (*good[:k], good[k].to("meta"), *good[k + 1 :])
        with pytest.raises(RuntimeError, match="Input and hidden tensors are not at the same device"):
            ours(x, mixed if len(good) == 2 else mixed[0])
    if not is_cell(name):
        assert_same_error(theirs, ours, x.to("meta"), kind=RuntimeError)


# States --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", SEQUENCES)
def test_the_first_state_is_zero(name: str, bidirectional: bool) -> None:
    module = make(layers, name, num_layers=2, bidirectional=bidirectional)
    x, hx = arguments(name, 4 if bidirectional else 2)
    zero = tuple(torch.zeros_like(h) for h in tensors(hx))
    close(module(x), module(x, zero if len(zero) == 2 else zero[0]), atol=0)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", CELLS)
def test_a_loop_over_a_cell(name: str, bias: bool) -> None:
    """Six steps from one input, and one gradient through all of them."""
    results = []
    for module in pair(name, bias=bias):
        x, first = arguments(name)
        hx = first
        for _ in range(6):
            hx = module(x, hx)
        results.append((*tensors(hx), *gradients(loss_of(hx), module, (x, first))))
    close(results[1], results[0])


# Weights -------------------------------------------------------------------------------------------------------------


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


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_retained_graph(name: str) -> None:
    module, args = make(layers, name, **({} if is_cell(name) else {"num_layers": 2})), arguments(name, 2)
    loss = loss_of(module(*args))
    first = gradients(loss, module, args, retain_graph=True)
    for _ in range(3):
        close(gradients(loss, module, args, retain_graph=True), first, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_one_output_alone(name: str) -> None:
    theirs, ours = pair(name)
    args = arguments(name)
    for expected, found in zip(tensors(theirs(*args)), tensors(ours(*args)), strict=True):
        wanted = gradients(loss_of(expected), theirs, args, retain_graph=True)
        dx, *rest = gradients(loss_of(found), ours, args, retain_graph=True)
        close((dx, *rest), wanted)
        assert dx.any()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_one_weight_alone(name: str) -> None:
    module, args = make(layers, name), [x.detach() for x in arguments(name)[:1]]
    weights = dict(sorted(module.named_parameters()))
    expected = dict(zip(weights, gradients(loss_of(module(*args)), module, ()), strict=True))
    for key, weight in weights.items():
        module.requires_grad_(False)
        weight.requires_grad_(True)
        close(gradients(loss_of(module(*args)), module, ()), [expected[key]], atol=1e-12)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", NAMES)
def test_numerical_derivatives(name: str, bias: bool) -> None:
    """First and second, with respect to the input, the states and all weights."""
    module = make(layers, name, 2, 4 if "projected" in name else 2, bias=bias)
    width = module.hidden_size
    lead = (1,) if is_cell(name) else (1, 1)
    hx = [normal(*lead, P if "projected" in name else width, seed=2)]
    hx += [normal(*lead, width, seed=3)] if name.startswith("LSTM") else []
    names, weights = zip(*module.named_parameters(), strict=True)

    def f(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        hx, given = rest[: -len(names)], dict(zip(names, rest[-len(names) :], strict=True))
        return tuple(tensors(torch.func.functional_call(module, given, (x, hx if len(hx) == 2 else hx[0]))))

    args = (normal(*((1, 2) if is_cell(name) else (2, 1, 2))), *hx, *weights)
    assert gradcheck(f, args)
    assert gradgradcheck(f, args)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "LSTM projected", "GRU"])
def test_double_backward_of_many_layers(name: str, dtype: torch.dtype) -> None:
    theirs, ours = pair(name, num_layers=6, batch_first=True)
    results = []
    for module, dtype_of in ((theirs, torch.float64), (ours, dtype)):
        x = normal(N, T, D).detach().to(dtype_of).requires_grad_()
        module.to(dtype_of)
        (dx,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
        assert dx.dtype == dtype_of
        results.append((dx, *gradients(dx.square().sum(), module, (x,))))
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    for expected, found in zip(*results, strict=True):
        scale = 1.0 if dtype == torch.float64 else max(expected.abs().max().item(), 1e-4)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * scale)


def spread(x: Tensor) -> Tensor:
    """x with a stride of 2 in its last axis, as a leaf."""
    return x.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_()


@pytest.mark.parametrize(
    ("name", "batch_first"), [*itertools.product(SEQUENCES, [False, True]), *((name, False) for name in CELLS)]
)
def test_non_contiguous_tensors(name: str, batch_first: bool) -> None:
    """Inputs, states and incoming gradients, each of them contiguous or not."""
    options = {} if is_cell(name) else {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    theirs, ours = pair(name, **options)
    x, hx = arguments(name, 4)
    x = x.detach().transpose(0, 1).contiguous().requires_grad_() if batch_first else x
    incoming = [normal(*out.shape, seed=9).detach() for out in tensors(theirs(x, hx))]

    def results(module: nn.Module, x: Tensor, hx: Any, incoming: list[Tensor]) -> tuple[Tensor, ...]:
        outputs = list(tensors(module(x, hx)))
        return (*outputs, *torch.autograd.grad(outputs, [x, *tensors(hx), *module.parameters()], incoming))

    expected = results(theirs, x, hx, incoming)
    strided = spread(x), tuple(spread(h) for h in hx) if isinstance(hx, tuple) else spread(hx)
    assert not strided[0].is_contiguous()
    for args, grads in itertools.product([(x, hx), strided], [incoming, [spread(g) for g in incoming]]):
        close(results(ours, *args, grads), expected)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", SEQUENCES)
def test_memory_of_results(name: str, batch_first: bool) -> None:
    """Outputs have the strides of torch.nn's; gradients of weights are contiguous in `.grad`."""
    theirs, ours = pair(name, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = normal(T, N, D)
    for module in (theirs, ours):
        module.to(memory_format=torch.contiguous_format)
    for expected, found in zip(tensors(theirs(x)), tensors(ours(x)), strict=True):
        assert found.stride() == expected.stride()
    loss_of(ours(x)).backward()
    assert all(p.grad is not None and p.grad.is_contiguous() for p in ours.parameters())


# Packed sequences ----------------------------------------------------------------------------------------------------

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
