"""How time grows with T, H, N and V: a recurrent layer alone, and the whole training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.agreement import TOLERANCE, kept, require
from benchmarks.assignment import Assignment
from benchmarks.options import Options
from benchmarks.peers import Loop, LoopLayer, Packed, PackedLayer, Padded, PaddedLayer, gradient
from benchmarks.step import CLAIMED, OURS, module_step, numpy_step, same_as_first
from benchmarks.tables import Column, Table
from benchmarks.timing import QUICK, Contender, Effort, Key, Times, peak, peak_contenders, products_note, race
from benchmarks.workload import Shape, layer_flops, new_batch, new_lengths, new_model, step_flops
from torch_caption import functions
from torch_caption.model.cells import make_cell

PATIENCE = 1.0  # seconds: packed sequences of 1024 steps take a minute
LAYER_PEERS: tuple[type[PaddedLayer], ...] = (PaddedLayer, PackedLayer, LoopLayer)


@dataclass(frozen=True)
class Layer:
    """Sizes of a recurrent layer's inputs; `ragged` ones end at lengths of their own, 35 % of N T being past an end."""

    N: int
    T: int
    W: int
    H: int
    ragged: bool


def layers(quick: bool) -> dict[str, list[Layer]]:
    """By what grows."""
    if quick:
        return {"T": [Layer(3, T, 4, 5, ragged) for ragged in (False, True) for T in (3, 6)]}
    over_T = [Layer(32, T, 256, 512, ragged) for ragged in (False, True) for T in (16, 64, 256, 1024)]
    over_H = [Layer(32, 16, 256, H, ragged=True) for H in (64, 512, 2048)]
    return {"T": over_T, "H": over_H, "N": [Layer(1, 16, 256, 512, ragged=True)]}


def shapes(quick: bool) -> dict[str, list[Shape]]:
    """Whole steps, by what grows."""
    if quick:
        return {"V": [Shape("", N=3, T=4, F=5, W=6, H=7, V=V) for V in (11, 23)]}
    over_V = [Shape("", 32, 16, 512, 256, 512, V) for V in (1004, 10000, 50000)]
    over_H = [Shape("", 32, 16, 512, 256, H, 1004) for H in (64, 512, 2048)]
    return {"V": over_V, "H": over_H, "N": [Shape("", 1, 16, 512, 256, 512, 1004)]}


def tables(options: Options) -> Iterator[Table]:
    """Of each cell: the layer with T, H and N, then the step with V, H and N."""
    effort = QUICK if options.quick else Effort(options.seconds / 5, least=1, patience=PATIENCE)
    for cell in options.cells:
        speed = peak_speed(effort)
        for what, sizes in layers(options.quick).items():
            title = f"recurrent layer, {cell}, forward and backward of all inputs, with {what}: W={sizes[0].W}"
            rows = tuple(layer_row(cell, layer, effort, speed) for layer in sizes)
            yield Table("growth", title, LAYER_COLUMNS, rows, LAYER_NOTES)
        for what, steps in shapes(options.quick).items():
            title = f"training step, {cell}, with {what}: T={steps[0].T} F={steps[0].F} W={steps[0].W}"
            rows = tuple(step_row(cell, shape, effort, speed) for shape in steps)
            yield Table("growth", title, STEP_COLUMNS, rows, (*STEP_NOTES, products_note()))


def peak_speed(effort: Effort) -> float:
    """The machine's peak in flops a second."""
    return peak(race(peak_contenders(effort, ("float32",)), effort, label="peak"), "float32", effort)


# The layer -----------------------------------------------------------------------------------------------------------

FIGURES = (
    Column("ms", ".1f"),
    Column("quartiles", ".1f"),
    Column("us a word", ".2f"),
    Column("share of the limit", ".0%"),
)
LAYER_COLUMNS = (
    *(Column(letter, ",d") for letter in "NTH"),
    *(Column("lengths"), *FIGURES),
    *(Column(f"over {peer.label}", ".2f") for peer in LAYER_PEERS),
    Column("over the best", ".2f"),
)
LAYER_NOTES = (
    "a word: a timestep of a row, those past a row's end left out; the same time a word is time linear in T",
    f"packed needs lengths; a peer whose run takes more than {PATIENCE:g} s is run once",
)


@dataclass(frozen=True)
class Pass(Contender):
    """Forward and backward of a layer; `run` returns h, and `gradients` what the backward left."""

    gradients: Callable[[], Mapping[str, Tensor]] = dict


def layer_row(cell: str, layer: Layer, effort: Effort, speed: float) -> tuple[Any, ...]:
    """Time ours and its peers at one size."""
    generator = torch.Generator().manual_seed(0)
    lengths = new_lengths(layer.N, layer.T, generator) if layer.ragged else None
    words = layer.N * layer.T if lengths is None else int(lengths.sum())
    passes = layer_passes(cell, layer, lengths, generator)
    label = f"layer, {cell}, N={layer.N} T={layer.T} H={layer.H}"
    times = race(passes, effort, check=same_layer(lengths, label), label=label)
    limit = layer_flops(cell, words, layer.W, layer.H) / speed
    names = [peer.label for peer in LAYER_PEERS]
    lengths_text = "of their own" if layer.ragged else "all T"
    return layer.N, layer.T, layer.H, lengths_text, *figures(times, words, limit), *ratios(times, names)


class OurLayer(nn.Module):
    """`functions.rnn` or `functions.lstm` as a module, in the form of its peers."""

    label = OURS

    def __init__(self, cell_type: str, **weights: Tensor):
        super().__init__()
        self.function = getattr(functions, cell_type)
        self.weights = nn.ParameterDict(weights)

    def forward(self, x: Tensor, h0: Tensor, lengths: Tensor | None) -> Tensor:
        """Hidden states (N, T, H) of x (N, T, D) from h0 (N, H)."""
        return self.function(x, h0, **self.weights, lengths=lengths)

    def gradients(self) -> dict[str, Tensor]:
        """What the last backward left."""
        return {name: gradient(weight) for name, weight in self.weights.items()}


def layer_passes(cell: str, layer: Layer, lengths: Tensor | None, generator: torch.Generator) -> list[Pass]:
    """Ours first, then the peers, on one input and one gradient of the output, zero past every row's end."""
    torch.manual_seed(0)
    weights = make_cell(cell).weights(layer.W, layer.H)
    x = torch.randn(layer.N, layer.T, layer.W, generator=generator).requires_grad_()
    h0 = torch.randn(layer.N, layer.H, generator=generator).requires_grad_()
    dh = torch.randn(layer.N, layer.T, layer.H, generator=generator)
    if lengths is not None:
        dh[torch.arange(layer.T) >= lengths.unsqueeze(1)] = 0

    def one(module: OurLayer | PaddedLayer) -> Pass:
        def run() -> Tensor:
            module.zero_grad(set_to_none=True)
            x.grad = h0.grad = None
            h = module(x, h0, lengths)
            h.backward(dh)
            return h.detach()

        return Pass(
            module.label,
            run,
            weight=CLAIMED if module.label == OURS else 1.0,
            gradients=lambda: {"x": gradient(x), "h0": gradient(h0), **module.gradients()},
        )

    peers = [peer for peer in LAYER_PEERS if lengths is not None or peer is not PackedLayer]
    return [one(OurLayer(cell, **weights)), *(one(peer(cell, **weights)) for peer in peers)]


def same_layer(lengths: Tensor | None, label: str) -> Callable[[Contender, Any], None]:
    """A check that holds h, up to each row's end, and the gradients of every pass against ours, the first."""
    expected: dict[str, Tensor] = {}

    def check(contender: Contender, h: Any) -> None:
        if not isinstance(contender, Pass):
            return
        if lengths is not None:
            h = h.masked_fill((torch.arange(h.shape[1]) >= lengths.unsqueeze(1)).unsqueeze(2), 0)
        found = {"h": h, **contender.gradients()}
        if not expected:
            expected.update(kept(found))
        require(f"{contender.name}, {label}", found, expected, TOLERANCE["float32"])

    return check


# The whole step ------------------------------------------------------------------------------------------------------

MODULES: tuple[type[Padded], ...] = (Padded, Packed, Loop)  # (f) takes seconds at V=50,000, and is never the best
STEP_PEERS = (*(peer.label for peer in MODULES), Assignment.label)
STEP_COLUMNS = (
    *(Column(letter, ",d") for letter in "NHV"),
    *FIGURES,
    *(Column(f"over {label[:3]}", ".2f") for label in STEP_PEERS),
    Column("over the best", ".2f"),
)
STEP_NOTES = (
    "the limit is linear in V, so that an even share of it is time linear in V",
    f"peers: {', '.join(STEP_PEERS)}",
)


def step_row(cell: str, shape: Shape, effort: Effort, speed: float) -> tuple[Any, ...]:
    """Time ours and its peers at one shape."""
    model, batch = new_model(shape, cell), new_batch(shape)
    modules = [peer(model) for peer in MODULES]
    steps = [module_step(OURS, model, model, batch, "float32")]
    steps += [module_step(module.label, module, module, batch, "float32") for module in modules]
    steps.append(numpy_step(model, batch))
    where = f"{cell}, {shape}"
    times = race(steps, effort, check=same_as_first(where), label=f"step, {where}")
    limit = step_flops(shape, cell, batch.words) / speed
    return shape.N, shape.H, shape.V, *figures(times, batch.words, limit), *ratios(times, STEP_PEERS)


def figures(times: Mapping[Key, Times], words: int, limit: float) -> tuple[Any, ...]:
    """Ours: ms, quartiles, microseconds a word, share of the arithmetic limit."""
    ours = times[OURS, "float32"]
    return 1e3 * ours.median, tuple(1e3 * t for t in ours.quartiles), 1e6 * ours.median / words, limit / ours.median


def ratios(times: Mapping[Key, Times], peers: Sequence[str]) -> tuple[float | None, ...]:
    """How many times as fast as each peer ours is, None for one that did not run, and as the fastest of them."""
    ours = times[OURS, "float32"].median
    over = [times[name, "float32"].median / ours if (name, "float32") in times else None for name in peers]
    return *over, min(ratio for ratio in over if ratio is not None)
