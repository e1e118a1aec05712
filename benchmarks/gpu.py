"""The training step on a GPU: launched kernel by kernel, captured in a CUDA graph, and by torch.compile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.options import Options
from benchmarks.peers import Packed, Padded
from benchmarks.step import COMPILED, OURS, Compiler, Step, module_step, same_as_first
from benchmarks.tables import Column, Table
from benchmarks.timing import QUICK, Contender, Effort, Key, Times, operands, race
from benchmarks.workload import SHAPES, TINY, Batch, Shape, new_batch, new_model, step_flops

SKIPPED = "gpu: skipped, PyTorch finds no CUDA device here"
PRECISIONS = "float32", "tf32", "bfloat16"
COLUMNS = (
    *(Column("who"), Column("precision"), Column("ms", ".3f"), Column("quartiles", ".3f")),
    *(Column("over (a)", ".2f"), Column("over (a) captured", ".2f"), Column("share of the limit", ".0%")),
    Column("runs", "d"),
)
PRODUCT = 8192
DEVICE = "cuda"


def tables(options: Options) -> Iterator[Table]:
    """A table of each cell and shape; one line where there is no GPU."""
    if not torch.cuda.is_available():
        yield Table("gpu", SKIPPED)
        return
    effort = QUICK if options.quick else Effort(options.seconds, least=5, most=99, product=PRODUCT)
    compiler = Compiler(2 * options.compile_seconds)
    for cell in options.cells:
        for shape in (TINY,) if options.quick else SHAPES:
            yield measure(cell, shape, effort, compiler)


def measure(cell: str, shape: Shape, effort: Effort, compiler: Compiler) -> Table:
    """Every precision on its own, because its setting is the whole device's."""
    batch = new_batch(shape, DEVICE)
    rows: list[tuple[Any, ...]] = []
    notes: list[str] = []
    check = same_as_first(f"{cell}, {shape.name}")
    torch.compiler.reset()  # it would compile for variable sizes, having seen others before
    for precision in PRECISIONS:
        with allowing(precision):
            steps, left_out = contenders(cell, shape, batch, precision, compiler)
            times = race(
                [*steps, product(precision, effort)],
                effort,
                check=check,
                wait=torch.cuda.synchronize,
                label=f"gpu, {cell}, {shape.name}, {precision}",
            )
        speed = 2 * effort.product**3 / times["product", precision].median
        limit = step_flops(shape, cell, batch.words) / speed
        rows += [row(step.key, times, limit) for step in steps]
        notes.append(f"limit {1e3 * limit:.3f} ms in {precision}, at {speed / 1e12:.0f} TFLOP/s")
        notes += left_out
    title = f"gpu: training step, {cell}, {shape.name}: {shape}"
    return Table("gpu", title, COLUMNS, tuple(rows), (str(batch), *notes))


@contextlib.contextmanager
def allowing(precision: str) -> Iterator[None]:
    """Products and cuDNN's recurrences in full float32, or in tf32 where that is the precision."""
    settings: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.rnn]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def contenders(
    cell: str, shape: Shape, batch: Batch, precision: str, compiler: Compiler
) -> tuple[list[Step], list[str]]:
    """Ours and the peers as they are, captured, and compiled; and a line for each that cannot be had.

    The packed peer cannot be captured: its lengths have to be on the processor.
    """
    model = new_model(shape, cell, DEVICE)
    padded, packed = Padded(model), Packed(model)
    plain: tuple[tuple[str, nn.Module], ...] = ((OURS, model), (Padded.label, padded), (Packed.label, packed))
    steps = [module_step(name, module, module, batch, precision) for name, module in plain]
    for name, module in ((f"{OURS}, captured", model), (f"{Padded.label}, captured", padded)):
        steps.append(captured(module_step(name, module, module, batch, precision), module))
    left_out = []
    for name, module in ((f"{OURS}, compiled", model), (COMPILED, padded)):
        for mode in ("default", "reduce-overhead"):
            made = compiler.step(module, batch, precision, name=f"{name}, {mode}", mode=mode)
            if isinstance(made, Step):
                steps.append(made)
            else:
                left_out.append(f"{name}, {mode}, {precision} left out {made}")
    return steps, left_out


def captured(step: Step, module: nn.Module) -> Step:
    """The same step replayed from a CUDA graph, as PyTorch's notes on graphs have it: warmed up on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step.run()
    written = [(parameter, parameter.grad) for parameter in module.parameters()]  # the graph's own: replays write there

    def replay() -> Tensor:
        graph.replay()
        return loss

    def gradients() -> Mapping[str, Tensor]:
        for parameter, grad in written:  # another step has put its own gradients in their place
            parameter.grad = grad
        return step.gradients()

    return Step(step.name, replay, step.precision, step.weight, gradients=gradients)


def product(precision: str, effort: Effort) -> Contender:
    """The product whose speed stands for the device's peak."""
    a, b, out = operands(effort.product, precision, DEVICE)
    return Contender("product", lambda: torch.mm(a, b, out=out), precision)


def row(key: Key, times: dict[Key, Times], limit: float) -> tuple[Any, ...]:
    """A contender's line."""
    name, precision = key
    mine = times[key]
    over = (times[other, precision].median / mine.median for other in (Padded.label, f"{Padded.label}, captured"))
    return (
        *(name, precision, 1e3 * mine.median, tuple(1e3 * t for t in mine.quartiles)),
        *(*over, limit / mine.median, len(mine.seconds)),
    )
