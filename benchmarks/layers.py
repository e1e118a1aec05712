"""The layers of torch_caption.layers against those of torch.nn: training, packed sequences, the modes of torch.func.

A ratio is the time of torch.nn over ours: above 1, ours is faster.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from benchmarks.agreement import TOLERANCE, require
from benchmarks.options import Options
from benchmarks.tables import Column, Table
from benchmarks.timing import QUICK, Contender, Effort, race
from benchmarks.workload import new_lengths
from torch_caption import functions, layers
from torch_caption.layers.weights import gru_weights, rnn_weights

NAMES = ("RNN", "GRU", "LSTM")
OURS, TORCH = "ours", "torch.nn"
PATIENCE = 3.0
TIMES = (Column("ours ms", ".1f"), Column("torch.nn ms", ".1f"), Column("ratio", ".2f"))


@dataclass(frozen=True)
class Shape:
    """A layer and its input."""

    N: int
    T: int
    H: int
    num_layers: int = 1
    bidirectional: bool = False
    packed: bool = False


def shapes(quick: bool) -> list[Shape]:
    if quick:
        return [Shape(3, 4, 5), Shape(3, 4, 5, 2, True, packed=True)]
    sizes = [(32, 64, 512), (64, 20, 128), (32, 1024, 512)]
    variants = [(1, False), (2, False), (1, True)]
    made = [Shape(*size, *variant, packed=packed) for size in sizes for variant in variants for packed in (False, True)]
    return [*made, Shape(32, 200, 512, packed=True), Shape(32, 500, 512, packed=True)]


def tables(options: Options) -> Iterator[Table]:
    """Training of each layer, then the modes of torch.func, then the layer over its function."""
    effort = QUICK if options.quick else Effort(options.seconds, least=2, patience=PATIENCE)
    measure = trained if options.quick else _in_new_process(trained)
    for name in NAMES:
        rows = [(*_columns(shape), *measure(name, shape, effort)) for shape in shapes(options.quick)]
        heads = (*(Column(letter, "d") for letter in "NTH"), Column("layers", "d"), Column("directions", "d"))
        yield Table("layers", f"{name}, forward and backward", (*heads, Column("input"), *TIMES), tuple(rows))
    yield modes_table(options.quick, effort)
    yield overhead_table(options.quick, effort)


def trained(name: str, shape: Shape, effort: Effort) -> tuple[float, float, float]:
    """Times of forward and backward."""
    return _raced(training(name, shape, *new_input(shape)), effort, f"{name} {shape}")


def _in_new_process(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, each call in a process of its own with as many threads.

    The time of packed torch.nn layers depends on what was freed before: glibc returns a large block to the system until
    a larger one was freed, and their backward makes one for each step. After other rows it is a third.
    """

    def call(*args: Any) -> Any:
        threads = torch.get_num_threads()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(threads,)) as executor:
            return executor.submit(function, *args).result()

    return call


def _columns(shape: Shape) -> tuple[Any, ...]:
    directions = 1 + shape.bidirectional
    return shape.N, shape.T, shape.H, shape.num_layers, directions, "packed" if shape.packed else "padded"


def _raced(contenders: list[Contender], effort: Effort, label: str) -> tuple[float, float, float]:
    """Milliseconds of ours and of the other, and their ratio; the results of both are compared first."""
    expected: dict[str, Tensor] = {}

    def check(contender: Contender, found: Any) -> None:
        named = {str(k): x for k, x in enumerate(found)}
        if expected:
            require(f"{contender.name}, {label}", named, expected, TOLERANCE["float32"])
        expected.update(named)

    times = race(contenders, effort, check=check, label=label)
    ours, other = (times[c.key].median * 1e3 for c in contenders)
    return ours, other, other / ours


def new_input(shape: Shape) -> tuple[Tensor, Tensor | None]:
    """x (T, N, H), and lengths (N,) if it is to be packed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.T, shape.N, shape.H, generator=generator)
    return x, new_lengths(shape.N, shape.T, generator) if shape.packed else None


def new_layers(name: str, H: int, **options: Any) -> dict[str, nn.Module]:
    """Ours and torch.nn's, with the same weights."""
    made = {}
    for label, source in {OURS: layers, TORCH: nn}.items():
        torch.manual_seed(0)
        made[label] = getattr(source, name)(H, H, **options)
    return made


def training(name: str, shape: Shape, x: Tensor, lengths: Tensor | None) -> list[Contender]:
    """Forward and backward, of the sum of all outputs, to x and the weights."""
    made = new_layers(name, shape.H, num_layers=shape.num_layers, bidirectional=shape.bidirectional)

    def step(layer: nn.Module) -> tuple[Tensor, ...]:
        inputs = x.clone().requires_grad_()
        packed = inputs if lengths is None else pack_padded_sequence(inputs, lengths, enforce_sorted=False)
        out, _ = layer(packed)
        h = out.data if isinstance(out, PackedSequence) else out
        return torch.autograd.grad(h.sum(), (inputs, *layer.parameters()))

    return [Contender(label, partial(step, layer)) for label, layer in made.items()]


# The modes of torch.func ---------------------------------------------------------------------------------------------


def modes_table(quick: bool, effort: Effort) -> Table:
    """Ours against what one does with torch.nn.LSTM."""
    N, T, H, models = (3, 4, 5, 2) if quick else (64, 20, 128, 16)
    x = torch.randn(T, N, H, generator=torch.Generator().manual_seed(0))
    made = new_layers("LSTM", H)
    rows = []
    for what, contenders in {
        "per-sample gradients, against a loop of nn.LSTM": per_sample(made, x)[:2],
        "per-sample gradients, against vmap of nn.LSTM": per_sample(made, x)[::2],
        "per-sample gradients, against Opacus' DPLSTM": per_sample_opacus(made, x),
        "jvp, against two backwards of nn.LSTM": directional(made, x),
        f"{models} stacked models by vmap, against a loop of nn.LSTM": ensemble(H, x, models),
        "a Hessian of a small model, against two backwards a row": hessians(),
    }.items():
        if contenders:
            rows.append((what, *_raced(contenders, effort, what)))
    title = f"modes, LSTM, N={N} T={T} H={H}"
    return Table("layers", title, (Column("what"), *TIMES), tuple(rows))


def _loss(layer: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    out: Tensor = functional_call(layer, dict(weights), (x,))[0]
    return out.square().sum()


def per_sample(made: dict[str, nn.Module], x: Tensor) -> list[Contender]:
    """`vmap` of `grad`, a loop over samples, and `vmap` of `grad` of nn.LSTM, which in float32 is a loop too."""
    theirs = made[TORCH]

    def mapped(layer: nn.Module) -> tuple[Tensor, ...]:
        weights = {name: p.detach() for name, p in layer.named_parameters()}
        single = grad(lambda weights, x: _loss(layer, weights, x))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of an operator without a batching rule
            return tuple(vmap(single, (None, 1))(weights, x).values())

    def loop() -> tuple[Tensor, ...]:
        samples = x.split(1, dim=1)
        grads = [torch.autograd.grad(theirs(x_n)[0].square().sum(), list(theirs.parameters())) for x_n in samples]
        return tuple(map(torch.stack, zip(*grads, strict=True)))

    mapped_theirs = Contender("vmap of torch.nn", partial(mapped, theirs))
    return [Contender(OURS, partial(mapped, made[OURS])), Contender(TORCH, loop), mapped_theirs]


def per_sample_opacus(made: dict[str, nn.Module], x: Tensor) -> list[Contender]:
    """The norm of each sample's gradient, which differential privacy clips."""
    with contextlib.suppress(ImportError):
        from opacus.grad_sample import GradSampleModule  # type: ignore[import-untyped]
        from opacus.layers import DPLSTM  # type: ignore[import-untyped]

        theirs = DPLSTM(x.shape[2], x.shape[2])
        theirs.load_state_dict(made[OURS].state_dict())
        sampled = GradSampleModule(theirs, batch_first=False, loss_reduction="sum")
        ours = per_sample(made, x)[0]

        def norms(gradients: Iterable[Tensor]) -> tuple[Tensor]:
            return (torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0),)

        def opacus() -> tuple[Tensor]:
            sampled.zero_grad(set_to_none=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, of a backward hook where no input requires grad
                sampled(x)[0].square().sum().backward()
            return norms(p.grad_sample for p in sampled.parameters())

        return [Contender(OURS, lambda: norms(ours.run())), Contender("Opacus", opacus)]
    return []


def directional(made: dict[str, nn.Module], x: Tensor) -> list[Contender]:
    """The derivative of the outputs along a direction of x."""
    tangent = torch.ones_like(x)
    ours, theirs = made[OURS], made[TORCH]

    def forward() -> tuple[Tensor, ...]:
        return (jvp(lambda x: ours(x)[0], (x,), (tangent,))[1].detach(),)

    def twice() -> tuple[Tensor, ...]:
        inputs = x.clone().requires_grad_()
        out = theirs(inputs)[0]
        u = torch.zeros_like(out, requires_grad=True)
        (pulled,) = torch.autograd.grad(out, inputs, u, create_graph=True)
        return (torch.autograd.grad(pulled, u, tangent)[0],)

    return [Contender(OURS, forward), Contender(TORCH, twice)]


def ensemble(H: int, x: Tensor, models: int) -> list[Contender]:
    """Forward and backward of several models on one input."""
    ours = [layers.LSTM(H, H) for _ in range(models)]
    theirs = [nn.LSTM(H, H) for _ in range(models)]
    for a, b in zip(ours, theirs, strict=True):
        b.load_state_dict(a.state_dict())
    stacked, _ = stack_module_state(ours)
    names = list(stacked)

    def stack() -> tuple[Tensor, ...]:
        losses = vmap(lambda weights: _loss(ours[0], weights, x))(stacked)
        return torch.autograd.grad(losses.sum(), list(stacked.values()))

    def loop() -> tuple[Tensor, ...]:
        grads = [torch.autograd.grad(model(x)[0].square().sum(), list(model.parameters())) for model in theirs]
        return tuple(torch.stack([part[k] for part in grads]) for k in range(len(names)))

    return [Contender(OURS, stack), Contender(TORCH, loop)]


def hessians() -> list[Contender]:
    """Of the loss, by the input x (8, 1, 4)."""
    x = torch.randn(8, 1, 4, generator=torch.Generator().manual_seed(0))
    made = new_layers("LSTM", 4)

    def ours() -> tuple[Tensor, ...]:
        weights = dict(made[OURS].named_parameters())
        return (torch.func.hessian(lambda x: _loss(made[OURS], weights, x))(x).detach(),)

    def theirs() -> tuple[Tensor, ...]:
        inputs = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(made[TORCH](inputs)[0].square().sum(), inputs, create_graph=True)
        rows = [torch.autograd.grad(entry, inputs, retain_graph=True)[0] for entry in dx.flatten()]
        return (torch.stack(rows).reshape(*x.shape, *x.shape),)

    return [Contender(OURS, ours), Contender(TORCH, theirs)]


# The layer over its function -----------------------------------------------------------------------------------------


def overhead_table(quick: bool, effort: Effort) -> Table:
    """What the layer adds to the function that it calls."""
    sizes = [(3, 4, 5)] if quick else [(32, 64, 512), (64, 20, 128)]
    rows = tuple(
        (name, N, T, H, *_raced(overhead(name, N, T, H), effort, f"{name}, layer over function"))
        for name in NAMES
        for N, T, H in sizes
    )
    columns = (Column("layer"), *(Column(letter, "d") for letter in "NTH"))
    times = (Column("layer ms", ".2f"), Column("function ms", ".2f"), Column("function / layer", ".3f"))
    return Table("layers", "the layer over its function, forward and backward", (*columns, *times), rows)


def overhead(name: str, N: int, T: int, H: int) -> list[Contender]:
    x = torch.randn(T, N, H, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer = new_layers(name, H)[OURS]
    packed: Callable[..., Tensor] = getattr(functions, f"packed_{name.lower()}")
    weights_of = gru_weights if name == "GRU" else rnn_weights
    options = {"gate_order": "ifgo"} if name == "LSTM" else {}
    weights = [w.detach().clone().requires_grad_() for w in weights_of(*layer.parameters())]
    h0 = torch.zeros(N, H)

    def by_layer() -> tuple[Tensor, ...]:
        out = layer(x)[0]
        return torch.autograd.grad(out.sum(), (x, *layer.parameters()))[:1]

    def by_function() -> tuple[Tensor, ...]:
        h = packed(x.reshape(T * N, H), h0, *weights, T, **options)
        return torch.autograd.grad(h.sum(), (x, *weights))[:1]

    return [Contender("layer", by_layer), Contender("function", by_function)]
