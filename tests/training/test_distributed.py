"""Several ranks compute what one process does, stop and resume together, and report why they end.

`test_ranks_compute_what_one_process_does` starts ranks once, which make every check of this file in turn, in groups of
two, three and four.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer

from tests.helpers.rings import ringed
from tests.helpers.tiny_data import write_tiny
from tests.helpers.training import CPU, EVERY_OPTION, data_for
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import batches
from torch_caption.model.dropout import dropout
from torch_caption.training import distributed, trainer
from torch_caption.training.log import read_log
from torch_caption.training.objectives import Targets, make_objective
from torch_caption.training.state import initial_state
from torch_caption.training.trainer import fit, train_step, validate

ROOT = Path(__file__).resolve().parents[2]
STEPS = 50
# Checks, which every rank of a group makes ----------------------------------------------------------------------------

Check = Callable[[Path, int], None]
CHECKS: list[tuple[Check, tuple[int, ...], bool]] = []


def ranks(*sizes: int, slow: bool = False, **arguments: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the check in groups of these sizes; in the inner ring in a group of two, unless it is slow."""

    def add(check: Callable[..., None]) -> Callable[..., None]:
        CHECKS.append((partial(check, **arguments), sizes, slow))
        return check

    return add


def named(check: Check, size: int) -> str:
    assert isinstance(check, partial)
    return " ".join([check.func.__name__, *map(str, check.keywords.values()), f"{size} ranks"])


@contextmanager
def group(folder: Path, name: str, size: int) -> Iterator[None]:
    """The first `size` ranks as a group."""
    store = dist.FileStore(str(folder / name.replace(" ", "_")), size)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    yield
    dist.barrier()
    dist.destroy_process_group()


def config_of(folder: Path, **changes: Any) -> TrainConfig:
    """Twenty-four captions in batches of seven: the last has three, so that of four ranks one has none."""
    settings: dict[str, Any] = {"hidden_dim": 16, "wordvec_dim": 8, "batch_size": 7, "epochs": 3, "lr": 1e-2}
    settings |= {"dropout": 0.0, "feature_dropout": 0.0, "score_images": 0, "max_length": 6, "tensorboard": False}
    return TrainConfig(**settings | {"data": str(folder / "tiny"), "out": folder / "runs"} | changes)


def steps(config: TrainConfig, optimizer: Callable[..., Optimizer]) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of the first steps, then the weights and their average, of all ranks that there are."""
    data = data_for(config.cell_type, config.data)
    state = initial_state(config, data, CPU)
    state.optimizer = optimizer(state.model.parameters(), lr=1e-2)
    objective = make_objective(config, data["train"])
    replica = distributed.Replica(state.model)
    share = distributed.rank(), distributed.size()
    loader = batches(objective.rows, config.batch_size, seed=config.seed, share=share)
    order = loader.order
    losses = []
    state.model.train()
    while state.progress.step < STEPS:
        order.set_epoch(state.progress.epoch)
        for features, batch in loader:
            part = replica.share(len(batch), order.size(state.progress.position))
            before = state.progress.nats
            trainer._train_batch(state, config, objective, features, batch, 4, part)
            losses.append((state.progress.nats - before) / part.of)
        state.progress = state.progress.next_epoch()
    weights = dict(state.model.state_dict())
    if state.average is not None:
        weights |= {f"mean of {name}": weight for name, weight in state.average.state_dict().items()}
    return losses[:STEPS], weights


TOLERANCES = {  # of the loss, relative, and of the weights, against the greatest of each
    ("float64", Adam): (1e-11, 1e-11),
    ("float32", SGD): (1e-6, 1e-6),
    ("float32", Adam): (1e-6, 1e-3),
}


@ranks(2, 4, cell_type="rnn", options={})
@ranks(2, 4, slow=True, cell_type="lstm", options={})
@ranks(2, 4, slow=True, cell_type="attention", options={})
@ranks(3, cell_type="rnn", options=EVERY_OPTION | {"scheduled_sampling": 0.0, "clip": 0.5})
def check_steps_equal_those_of_one(folder: Path, size: int, cell_type: str, options: dict[str, Any]) -> None:
    for (dtype, optimizer), (of_loss, of_weights) in TOLERANCES.items():
        config = config_of(folder, cell_type=cell_type, dtype=dtype, **options)
        losses, weights = alone(partial(steps, config, optimizer))
        ours, mine = steps(config, optimizer)
        far = max(abs(a - b) / abs(b) for a, b in zip(ours, losses, strict=True))
        assert far <= of_loss, f"{dtype} {optimizer.__name__}: losses differ by {far:.1e}"
        for name, weight in weights.items():
            far = float((mine[name] - weight).abs().max() / weight.abs().max())
            assert far <= of_weights, f"{dtype} {optimizer.__name__}: {name} differs by {far:.1e}"
        assert losses[-1] < losses[0]
        for other in distributed.gathered(mine):
            assert all(torch.equal(other[name], mine[name]) for name in mine)


def alone(make: Callable[[], Any]) -> Any:
    """What `make` returns in one process, which is no rank; the others wait."""

    def apart() -> Any:
        joined = distributed._joined
        distributed._joined = lambda: False
        try:
            return make()
        finally:
            distributed._joined = joined

    return distributed.from_first(apart)


@ranks(2, 4, cell_type="rnn")
@ranks(3, cell_type="attention")
def check_validation_is_shared(folder: Path, size: int, cell_type: str) -> None:
    config = config_of(folder, cell_type=cell_type, dtype="float64")
    data = data_for(config.cell_type, config.data)
    model = initial_state(config, data, CPU).model
    for batch_size in (1, 5, 256):
        whole = alone(partial(validate, model, data["val"], batch_size=batch_size))
        assert math.isclose(validate(model, data["val"], batch_size=batch_size), whole, rel_tol=1e-13)


@ranks(2, slow=True)
def check_a_whole_run_is_that_of_one(folder: Path, size: int) -> None:
    """Records and best weights; rank 0 alone writes files."""
    config = config_of(folder, dtype="float64", workers=1, ema=0.9, score_images=6)
    run = fit(config)
    before = sorted(path.name for path in config.out.iterdir())
    one = alone(partial(fit, config))
    assert sorted({*before, one.name, "last.txt"}) == sorted({path.name for path in config.out.iterdir()})
    assert len(distributed.gathered(one.name)) == size
    assert one != run
    keys = ("train_loss", "val_loss", "gradient_norm", "CIDEr", "lr")
    for ours, theirs in zip(read_log(run), read_log(one), strict=True):
        assert all(math.isclose(ours[key], theirs[key], rel_tol=1e-9) for key in keys)
        assert ours["step"] == theirs["step"]
    best, expected = (checkpoints.load(r / "best.safetensors").weights for r in (run, one))
    assert all(torch.allclose(best[name], expected[name], rtol=1e-9) for name in expected)
    assert len(distributed.gathered(run)) == size
    assert set(distributed.gathered(run)) == {run}


@ranks(2, options={})
@ranks(4, options={"cell_type": "lstm", "ema": 0.9})
@ranks(3, options={"cell_type": "attention", "scheduled_sampling": 0.5})
def check_a_resumed_run_ends_as_if_never_stopped(folder: Path, size: int, options: dict[str, Any]) -> None:
    """A signal to one rank stops all after the same step."""
    config = config_of(folder, dropout=0.5, feature_dropout=0.2, **options)
    whole = fit(config)
    with stopping(rank=1, step=6):
        run = stopped(config)
    saved = checkpoints.load(run / "last.safetensors")
    assert saved.progress["step"] in (6, 7)  # the signal may come after the flags of step 6 were sent
    assert saved.random.keys() == {f"{rank}/torch" for rank in range(size)}
    torch.manual_seed(99 + distributed.rank())
    assert fit(replace(config, resume="last")) == run
    ours, theirs = (checkpoints.load(r / "last.safetensors") for r in (run, whole))
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)
    records = [[{k: v for k, v in line.items() if k != "seconds"} for line in read_log(r)] for r in (run, whole)]
    assert records[0] == records[1]


@ranks(2, 3)
def check_fewer_or_more_ranks_resume(folder: Path, size: int) -> None:
    """To the same weights, but for rounding, where there is no dropout."""
    config = config_of(folder, dtype="float64")
    whole = alone(partial(fit, config))

    def one() -> Path:
        with stopping(rank=0, step=5):
            return stopped(config)

    for resumed_alone in (False, True):
        if resumed_alone:
            with stopping(rank=1, step=5):
                run = stopped(config)
            alone(partial(fit, replace(config, resume="last")))
        else:
            run = alone(one)
            fit(replace(config, resume="last"))
        ours, theirs = (checkpoints.load(r / "last.safetensors") for r in (run, whole))
        assert ours.progress["step"] == theirs.progress["step"] == 12
        assert all(torch.allclose(ours.weights[name], w, rtol=1e-9, atol=1e-12) for name, w in theirs.weights.items())


@contextmanager
def stopping(rank: int, step: int) -> Iterator[None]:
    """Ctrl-C for one rank, in the middle of its step of that number."""
    numbers = iter(range(1, 10**6))

    def stopped_step(*args: Any, **kwargs: Any) -> tuple[float, float]:
        if next(numbers) == step and distributed.rank() == rank:
            signal.raise_signal(signal.SIGINT)
        return train_step(*args, **kwargs)

    trainer.train_step = stopped_step
    try:
        yield
    finally:
        trainer.train_step = train_step


def stopped(config: TrainConfig) -> Path:
    """The run that ends by Ctrl-C."""
    try:
        fit(config)
    except KeyboardInterrupt:
        return runs.find(config.out)
    raise AssertionError("it was not stopped")


@ranks(2, 4)
def check_ranks_have_different_dropout_masks_and_equal_weights(folder: Path, size: int) -> None:
    config = config_of(folder, dropout=0.5)
    state = initial_state(config, data_for(config.cell_type, config.data), CPU)
    assert len({json.dumps(weight) for weight in distributed.gathered(state.model.W_proj.tolist())}) == 1
    masks = distributed.gathered(dropout(torch.ones(40), 0.5).tolist())
    assert len({tuple(mask) for mask in masks}) == size
    _, weights = steps(config, SGD)
    for other in distributed.gathered(weights):
        assert all(torch.equal(other[name], weights[name]) for name in weights)


@ranks(2, 4)
def check_rewards_are_those_of_all_captions(folder: Path, size: int) -> None:
    """Twelve images in batches of five: of four ranks two have none in the last."""
    begun = fit(config_of(folder, epochs=1, dtype="float64"))
    config = config_of(
        folder, dtype="float64", objective="scst", init_from=begun, epochs=2, batch_size=5, score_images=6
    )
    seen: list[tuple[int, float]] = []
    train_batch = trainer._train_batch

    def watched(state: Any, config: TrainConfig, objective: Any, *args: Any) -> None:
        targets = objective.targets

        def kept(*given: Any) -> Targets:
            result: Targets = targets(*given)
            seen.append(result.rewarded())
            return result

        objective.targets = kept
        try:
            train_batch(state, config, objective, *args)
        finally:
            objective.targets = targets

    trainer._train_batch = watched
    try:
        run = fit(config)
    finally:
        trainer._train_batch = train_batch
    of_all = [entry for entries in distributed.gathered(seen) for entry in entries]
    samples = 12 * config.samples
    assert sum(n for n, _ in of_all) == 2 * samples
    expected = sum(rewards for _, rewards in of_all) / samples
    assert math.isclose(sum(record["reward"] for record in read_log(run)), expected, rel_tol=1e-9)


@ranks(2, 3)
def check_a_non_finite_loss_of_one_rank_stops_all(folder: Path, size: int) -> None:
    config = config_of(folder)
    data = data_for(config.cell_type, config.data)
    state = initial_state(config, data, CPU)
    before = {name: weight.clone() for name, weight in state.model.state_dict().items()}
    share = distributed.Replica(state.model).share(2, 2 * size)
    features, captions = data["train"].__getitems__([0, 1])
    if distributed.rank() == 1:
        features[0, 0] = math.nan
    with pytest.raises(trainer.NonFiniteError, match="the loss is nan"):
        train_step(state.model, state.optimizer, features, captions, share=share)
    assert all(torch.equal(weight, before[name]) for name, weight in state.model.state_dict().items())


@ranks(2, slow=True)
def check_a_compiled_model_has_the_same_gradient(folder: Path, size: int) -> None:
    config = config_of(folder, dtype="float64", dropout=0.0)
    data = data_for(config.cell_type, config.data)
    model = initial_state(config, data, CPU).model
    rows = [list(range(k, 8, size)) for k in range(size)]
    shares = [(features, captions[:, :4]) for features, captions in map(data["train"].__getitems__, rows)]
    expected = torch.autograd.grad(sum(model(f.double(), c) for f, c in shares) / size, list(model.parameters()))
    model.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    features, captions = shares[distributed.rank()]
    replica = distributed.Replica(model)  # whose hooks go with it
    replica.share(4, 8).loss(features.double(), captions).backward()
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-11, atol=1e-14)


@ranks(2, cell_type="rnn")
@ranks(2, slow=True, cell_type="lstm")
@ranks(2, slow=True, cell_type="attention")
def check_functions_under_the_hooks_of_ddp(folder: Path, size: int, cell_type: str) -> None:
    """Gradients added up over two batches before they are averaged, and forward mode of the same model."""
    config = config_of(folder, cell_type=cell_type, dtype="float64")
    data = data_for(config.cell_type, config.data)
    model = initial_state(config, data, CPU).model
    rows = [list(range(k, 24, 4)) for k in range(4)]  # two batches a rank
    quarters = [data["train"].__getitems__(quarter) for quarter in rows]
    weights = list(model.parameters())
    expected = torch.autograd.grad(sum(model(f.double(), c) for f, c in quarters) / size, weights)
    engine = DistributedDataParallel(model, gradient_as_bucket_view=True)
    (f0, c0), (f1, c1) = quarters[2 * distributed.rank() :][:2]
    with engine.no_sync():
        engine(f0.double(), c0).backward()
    assert not torch.allclose(distributed.gathered(model.Wh.grad)[0], distributed.gathered(model.Wh.grad)[1])
    engine(f1.double(), c1).backward()
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-11, atol=1e-14)
    values = {name: weight.detach() for name, weight in engine.module.named_parameters()}
    tangents = {name: torch.ones_like(weight) for name, weight in values.items()}
    call = partial(torch.func.functional_call, engine.module)
    _, slope = torch.func.jvp(lambda v: call(v, (f0.double(), c0)), (values,), (tangents,))
    own = torch.autograd.grad(model(f0.double(), c0), weights)
    assert math.isclose(float(slope), float(sum(g.sum() for g in own)), rel_tol=1e-10)


def make_checks(rank: int, folder: Path, count: int) -> None:
    """The program of a rank, which writes its failures to a file of its own."""
    torch.set_num_threads(1)
    os.environ["RANK"] = str(rank)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    trainer.report.closing = lambda *_: None  # curves and captions, which take longer than the runs
    failures = {}
    checks = [(check, sizes) for check, sizes, slow in CHECKS if count > 2 or not slow]
    for check, size in [(check, size) for check, sizes in checks for size in sizes if rank < size <= count]:
        name = named(check, size)
        started = time.monotonic()
        try:
            with group(folder, name, size):
                check(distributed.from_first(partial(place, folder, name)), size)
        except BaseException:
            failures[name] = traceback.format_exc()
            break  # the others of its group lose it, and fail as well
        print(f"{time.monotonic() - started:5.1f} s  {name}", file=sys.stderr, flush=True)
    (folder / f"failures-{rank}.json").write_text(json.dumps(failures), encoding="utf-8")


def place(folder: Path, name: str) -> Path:
    own = folder / f"{name} ".replace(" ", "-")
    own.mkdir()
    (own / "tiny").symlink_to(folder / "tiny", target_is_directory=True)
    return own


@pytest.mark.parametrize("count", ringed([2, 4], [2]))
def test_ranks_compute_what_one_process_does(tmp_path: Path, count: int) -> None:
    write_tiny(tmp_path / "tiny", pictures=True, grids=True)
    torch.multiprocessing.start_processes(make_checks, (tmp_path, count), nprocs=count, start_method="spawn")
    failures = [json.loads((tmp_path / f"failures-{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]
    reports = [f"rank {rank}: {name}\n{text}" for rank, found in enumerate(failures) for name, text in found.items()]
    assert not reports, "\n".join(reports)
