"""One part after another, each table printed as soon as it is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import (
    checkpoint,
    decoding,
    distributed,
    epoch,
    gpu,
    growth,
    layers,
    loading,
    machine,
    memory,
    modes,
    photographs,
    step,
)
from benchmarks.options import Options, Part
from benchmarks.tables import Table, paragraph

MEASURES: dict[Part, Callable[[Options], Iterator[Table]]] = {
    "step": step.tables,
    "layers": layers.tables,
    "modes": modes.tables,
    "decoding": decoding.tables,
    "loading": loading.tables,
    "growth": growth.tables,
    "memory": memory.tables,
    "epoch": epoch.tables,
    "distributed": distributed.tables,
    "checkpoint": checkpoint.tables,
    "photographs": photographs.tables,
    "gpu": gpu.tables,
}


def run(options: Options) -> list[Table]:
    """Measure the parts that `options` names; print their tables, write them, and return them.

    Raises:
        Disagreement: a peer computes something else than ours.
        ValueError: an option cannot be used.
    """
    options.check()
    options = options.small() if options.quick else options
    if options.threads:
        torch.set_num_threads(options.threads)
    facts = machine.describe()
    print(paragraph("measured on", facts), end="\n\n", flush=True)
    made: list[Table] = []
    seconds: dict[str, float] = {}
    before = machine.used()
    for part in options.only:
        begin = time.perf_counter()
        for table in MEASURES[part](options):
            print(table, end="\n\n", flush=True)
            made.append(table)
        seconds[part] = round(time.perf_counter() - begin, 1)
    took = ", ".join(f"{part} {s:.0f}" for part, s in seconds.items())
    busy = machine.others(before, max(sum(seconds.values()), 0.1))
    print(f"{sum(seconds.values()):.0f} s in all: {took}; other processes had {busy:.0%} of the processor meanwhile")
    if options.json:
        content: dict[str, Any] = {"machine": facts, "seconds": seconds, "others": busy}
        content["tables"] = [table.plain() for table in made]
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8", newline="\n")
    return made
