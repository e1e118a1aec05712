"""One training step, against every peer and against the arithmetic it takes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.agreement import TOLERANCE, Disagreement, kept, require
from benchmarks.assignment import Assignment
from benchmarks.options import Options
from benchmarks.peers import PEERS, Loop, Packed, Padded, gradient
from benchmarks.tables import Column, Table
from benchmarks.timing import (
    QUICK,
    Contender,
    Effort,
    Key,
    Times,
    fastest_product,
    onednn,
    peak,
    peak_contenders,
    products_note,
    race,
)
from benchmarks.workload import SHAPES, TINY, Batch, Shape, new_batch, new_model, step_flops
from torch_caption.io.exits import one_line
from torch_caption.model.captioner import CaptioningRNN

OURS = "ours"
COMPILED = "(e) (a) by torch.compile"
PRECISIONS = "float32", "bfloat16"
CLAIMED, SLOW = 2.0, 0.5  # the weights of those that the claims are about, and of those that take the longest

COLUMNS = (
    Column("who"),
    Column("precision"),
    Column("ms", ".1f"),
    Column("quartiles", ".1f"),
    Column("over (a) float32", ".2f"),
    Column("over (a)", ".2f"),
    Column("over the best peer", ".2f"),
    Column("share of the limit", ".0%"),
    Column("runs", "d"),
)
SUMMARY = (Column("cell"), Column("shape"), *COLUMNS[1:])
LIMIT = (
    "the limit: 6 words (G W H + G H^2 + H V) + 4 N F H flops, <NULL> left out, G=1 for the rnn and 4 for the lstm, at "
    "the peak of the same race, the best of its products of 4096 x 4096"
)


@dataclass(frozen=True)
class Step(Contender):
    """A training step; `run` returns the loss, and `gradients` what its backward left, under our names."""

    gradients: Callable[[], Mapping[str, Tensor]] = dict


@dataclass
class Compiler:
    """torch.compile, as long as its time lasts.

    Attributes:
        seconds: how much of it there is.
        spent: how much of it has gone.
    """

    seconds: float
    spent: float = 0.0

    def step(
        self, module: nn.Module, batch: Batch, precision: str, name: str = COMPILED, mode: str = "default"
    ) -> Step | str:
        """The step of the compiled module, its compilation done; or why there is none."""
        if self.spent >= self.seconds:
            return f"after {self.spent:.0f} s of compilation (--compile-seconds {self.seconds:g})"
        if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
            return "for want of a C++ compiler"
        begin = time.perf_counter()
        made = module_step(name, module, torch.compile(module, dynamic=False, mode=mode), batch, precision)
        try:
            made.run()
        except torch._dynamo.exc.TorchDynamoException as error:
            return f"for a {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        finally:
            self.spent += time.perf_counter() - begin
        return made


def tables(options: Options) -> Iterator[Table]:
    """A table of each cell and shape, then one of all of ours."""
    effort = QUICK if options.quick else Effort(options.seconds)
    compiler = Compiler(options.compile_seconds)
    summary = []
    for cell in options.cells:
        for shape in (TINY,) if options.quick else SHAPES:
            table = measure(cell, shape, effort, compiler)
            summary += [(cell, shape.name, *row[1:]) for row in table.rows if row[0] == OURS]
            yield table
    notes = (LIMIT, products_note(), f"torch.compile took {compiler.spent:.0f} s, which is not counted")
    yield Table("step", "one training step, ours", SUMMARY, tuple(summary), notes)


def measure(cell: str, shape: Shape, effort: Effort, compiler: Compiler) -> Table:
    """The table of one cell and shape."""
    model, batch = new_model(shape, cell), new_batch(shape)
    steps, left_out = contenders(model, batch, compiler)
    where = f"{cell}, {shape.name}"
    check = same_as_first(where)
    check(steps[0], steps[0].run())
    for peer in [step for step in steps if step.precision == "bfloat16" and step.name != OURS]:
        try:
            check(peer, peer.run())
        except Disagreement as error:  # on a CPU with AMX, nn.LSTM gives h0 a wrong gradient
            steps.remove(peer)
            left_out[", ".join(peer.key)] = f"as it is wrong: {error}"
        except RuntimeError as error:  # on a CPU with AVX2 alone, nn.LSTM does not run in bfloat16
            steps.remove(peer)
            left_out[", ".join(peer.key)] = f"as it fails: {one_line(error)}"
    times = race([*steps, *peak_contenders(effort)], effort, check=check, label=f"step, {where}")
    flops = step_flops(shape, cell, batch.words)
    limits = {precision: flops / peak(times, precision, effort) for precision in PRECISIONS}
    notes = [f"limit {1e3 * limits[of]:.1f} ms in {of}, {peak_note(times, of, effort)}" for of in PRECISIONS]
    notes += [f"{name} left out {reason}" for name, reason in left_out.items()]
    ordered = sorted(steps, key=lambda step: (PRECISIONS.index(step.precision), step.name != OURS, step.name))
    rows = tuple(row(step.key, times, limits[step.precision]) for step in ordered)
    return Table("step", f"training step, {cell}, {shape.name}: {shape}", COLUMNS, rows, (str(batch), *notes))


def contenders(model: CaptioningRNN, batch: Batch, compiler: Compiler) -> tuple[list[Step], dict[str, str]]:
    """Ours, in float32 first, and each peer in each precision; and who is left out, with the reason."""
    torch.compiler.reset()  # it would compile for variable sizes, having seen others before
    modules = [peer(model) for peer in PEERS]
    steps, left_out = [], {}
    for precision in PRECISIONS:
        steps.append(module_step(OURS, model, model, batch, precision))
        steps += [module_step(module.label, module, module, batch, precision) for module in modules]
        compiled = compiler.step(modules[0], batch, precision)
        if isinstance(compiled, Step):
            steps.append(compiled)
        else:
            left_out[f"{COMPILED}, {precision}"] = compiled
    steps.append(numpy_step(model, batch))
    return steps, left_out


def module_step(name: str, owner: Any, module: Any, batch: Batch, precision: str) -> Step:
    """Gradients away, loss, backward; no optimizer, which is the same for all. Ours has its products as in train.py.

    Args:
        owner: has the weights: a `CaptioningRNN` or a peer.
        module: what is called; a compiled one is not its owner.
    """
    device = batch.features.device.type

    def run() -> Tensor:
        module.zero_grad(set_to_none=True)
        with onednn() if name.startswith(OURS) else nullcontext():
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = module(batch.features, batch.captions)
            loss.backward()
        return loss.detach()

    def gradients() -> dict[str, Tensor]:
        if isinstance(owner, Padded):
            return owner.gradients()
        return {name: gradient(parameter) for name, parameter in owner.named_parameters()}

    weight = CLAIMED if name in (OURS, Padded.label, Packed.label) else SLOW if name == Loop.label else 1.0
    return Step(name, run, precision, weight, gradients=gradients)


def numpy_step(model: CaptioningRNN, batch: Batch) -> Step:
    """The assignment's step; NumPy's threads spin for a while after it, and are given the time."""
    peer = Assignment(model)
    features, captions = batch.features.numpy(), batch.captions.numpy()
    found: dict[str, Tensor] = {}

    def run() -> Tensor:
        loss, grads = peer.loss(features, captions)
        found.update({name: torch.from_numpy(grad) for name, grad in grads.items()})
        return torch.tensor(loss)

    return Step(peer.label, run, weight=SLOW, rest=0.1, gradients=lambda: found)


def same_as_first(where: str) -> Callable[[Contender, Any], None]:
    """A check that holds the loss and gradients of every step against the first one's, which is ours in float32.

    Args:
        where: the cell and shape, for the error.
    """
    expected: dict[str, Tensor] = {}

    def check(contender: Contender, loss: Any) -> None:
        if isinstance(contender, Step):
            found = {"loss": loss, **contender.gradients()}
            if not expected:
                expected.update(kept(found))
            require(", ".join([*contender.key, where]), found, expected, TOLERANCE[contender.precision])

    return check


def row(key: Key, times: Mapping[Key, Times], limit: float) -> tuple[Any, ...]:
    """A contender's line."""
    name, precision = key
    mine = times[key]
    a = [times.get((Padded.label, of)) for of in ("float32", precision)]
    return (
        *(name, precision, 1e3 * mine.median, tuple(1e3 * t for t in mine.quartiles)),
        *(t and t.median / mine.median for t in a),
        best_peer(times, precision) / mine.median if name == OURS else None,
        *(limit / mine.median, len(mine.seconds)),
    )


def best_peer(times: Mapping[Key, Times], precision: str) -> float:
    """The least median among the peers of a precision, in seconds."""
    return min(t.median for (name, of), t in times.items() if name.startswith("(") and of == precision)


def peak_note(times: Mapping[Key, Times], precision: str, effort: Effort) -> str:
    """The peak of a race, with its quartiles and the product that it is of."""
    key = fastest_product(times, precision)
    fast, slow = times[key].quartiles
    median, low, high = (2e-9 * effort.product**3 / seconds for seconds in (times[key].median, slow, fast))
    return f"at {median:.0f} GFLOP/s (quartiles {low:.0f}-{high:.0f}, {key[0]})"
