"""The settings of the process: the package gives right values under each of them, and changes none."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.random_arguments import FLOATS, example
from tests.helpers.tiny_data import write_tiny
from torch_caption import functions
from torch_caption.verify.gradcheck import leaves

ROOT = Path(__file__).resolve().parents[2]
# Everything that computes, in a process of its own: the setting is made before the package is imported.
EVERYTHING = """
import sys
from pathlib import Path
import torch
{setting}
from torch_caption.inference import captions as captioning
from torch_caption.checkpoints import format as checkpoint
from torch_caption.verify import compare
from torch_caption import cs231n
from torch_caption.decoding import METHODS, DecodingOptions
from torch_caption.cli import evaluate, sample as sampling
from torch_caption.training.log import read_log
from torch_caption.checkpoints import run_folder as runs
from torch_caption.training import trainer as training
from torch_caption.verify.gradcheck import assert_agrees
from torch_caption.model.cells import CELLS
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import batches, open_data
from torch_caption.model.dropout import dropout

cpu, directory, out = torch.device("cpu"), Path({directory!r}), Path({out!r})
sizes = dict(N=2, T=3, D=4, H=5, P=8, V=6, L=7)
for dtype in (torch.float64, torch.float32):
    for case in compare.cases(sizes, dtype):
        assert_agrees(case.hand, case.auto, case.args, case.names)
        outs = [o for o in torch.utils._pytree.tree_leaves(case.hand(*case.args)) if o is not None]
        assert {{o.device for o in outs}} == {{cpu}} and {{o.dtype for o in outs}} == {{dtype}}, case.label
compare.gradient_norms(T=3, N=2, H=4)
x = torch.ones(3, 5, device=cpu, dtype=torch.float32)
assert dropout(x, 0.5).dtype == x.dtype

found = {{}}
common = dict(data=str(directory), hidden_dim=16, wordvec_dim=8, batch_size=5, epochs=2, lr=1e-2, score_images=6)
common |= dict(max_length=6, tensorboard=False, max_train=20, device="cpu", dropout=0.1)
options = dict(scheduled_sampling=0.5, ema=0.9, label_smoothing=0.1, feature_dropout=0.1)
for cell in ("rnn", "attention"):
    run = training.fit(TrainConfig(**common, **options, cell_type=cell, out=out / cell))
    training.fit(TrainConfig(**common, **options, cell_type=cell, out=out / cell, resume=str(run)))
    found[cell] = [{{k: v for k, v in record.items() if k != "seconds"}} for record in read_log(run)]
    model = checkpoint.build_model(checkpoint.load(run / "best.safetensors")).eval()
    assert {{(p.device, p.dtype) for p in model.parameters()}} == {{(cpu, torch.float32)}}
    data = open_data(directory, grids=CELLS[cell].attends, max_train=20)
    images = captioning.some_images(data["val"], 3, seed=0)
    for method in METHODS:
        captions = captioning.caption_images(model, data["val"], images, DecodingOptions(method, max_length=6), seed=3)
        found[cell, method] = [c[0].text for c in captions.values()]
    features = data["val"].features_of(images)
    words = model.sample(features, 6)
    assert model.alternatives(features, words).words.device == cpu
    if CELLS[cell].attends:
        captioning.attention_maps(model, data.vocabulary, features, found[cell, "greedy"])
    sampling.run(sampling.SampleConfig(checkpoint=run, count=2, device="cpu", json=out / cell / "captions.json"))
    evaluate.run(evaluate.EvaluateConfig(checkpoint=run, device="cpu"))
for workers in (0, 1):
    loader = batches(open_data(directory)["train"], 5, workers=workers)
    assert {{t.device for batch in loader for t in batch}} == {{cpu}}
training.fit(TrainConfig(**common, objective="scst", init_from=out / "rnn", out=out / "scst"))
import numpy as np
np.random.seed(0)
course = cs231n.CaptioningRNN(data.vocabulary.word_to_idx, 8, 8, 16)
course.loss(np.ones((3, 8)), words.numpy())
assert course.sample(np.ones((3, 8))).shape == (3, 30)
print("FOUND", {{str(k): v for k, v in found.items()}})
"""


def everything(directory: Path, out: Path, setting: str) -> dict[str, Any]:
    """What `EVERYTHING` finds under a setting."""
    script = EVERYTHING.format(setting=setting, directory=str(directory), out=str(out))
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        env=os.environ | {"PATH": ""},  # without Java, which takes half of the time
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ast.literal_eval(ran.stdout.rpartition("FOUND ")[2])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data") / "tiny", grids=True)


@pytest.mark.exhaustive
def test_the_default_device_changes_no_value(directory, tmp_path):
    """On the meta device, which every system has, a tensor made without a device loses its values."""
    found = everything(directory, tmp_path / "meta", 'torch.set_default_device("meta")')
    assert found == everything(directory, tmp_path / "cpu", "")


@pytest.mark.exhaustive
def test_the_default_dtype_is_that_of_no_result(directory, tmp_path):
    """A model alone has its first weights in it, as torch.nn's layers do; `EVERYTHING` holds the dtypes of the rest."""
    found = everything(directory, tmp_path, "torch.set_default_dtype(torch.float64)")
    for cell in ("rnn", "attention"):
        first, last = found[cell]
        assert last["val_loss"] < first["val_loss"]


def test_modules_are_made_on_the_default_device_in_the_default_dtype():
    """As torch.nn's do: it is how a model is made on a GPU, or of its sizes alone."""
    from torch_caption import layers
    from torch_caption.model.captioner import CaptioningRNN
    from torch_caption.model.cells import CELLS

    words = {"<NULL>": 0, "<START>": 1, "<END>": 2}
    before = torch.get_default_dtype()
    made = [partial(getattr(layers, name), 3, 4) for name in layers.__all__]
    for make in [*made, *(partial(CaptioningRNN, words, 3, 4, 5, cell) for cell in CELLS)]:
        with torch.device("meta"):
            module = make()
        assert all(p.is_meta for p in module.parameters())
        try:
            torch.set_default_dtype(torch.float64)
            module = make()
        finally:
            torch.set_default_dtype(before)
        assert {p.dtype for p in module.parameters()} == {torch.float64}


# What the functions leave alone --------------------------------------------------------------------------------------

LARGE = {"N": 64, "T": 4, "D": 32, "H": 256}  # products of 2^22 multiplications and more


def state() -> tuple[Any, ...]:
    """The settings of the process that a product, a random number or an error could depend on."""
    return (
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.mkldnn.fp32_precision,
        torch.backends.fp32_precision,
        torch.backends.mkldnn.enabled,
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_rng_state().tolist(),
    )


class Watching(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the settings under which each product of matrices runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if "mm" in func.overloadpacket.__name__:
            self.seen.append(state())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("function", FLOATS)
def test_no_function_changes_a_setting(function):
    args = example(function, torch.float32, **LARGE)
    inputs = [arg for arg in args.values() if isinstance(arg, Tensor) and arg.requires_grad]
    before = state()
    with Watching() as watching:
        outs = leaves(getattr(functions, function)(**args))
        grads = torch.autograd.grad([out.sum() for out in outs], inputs, create_graph=False)
    assert len(grads) == len(inputs)
    assert all(seen == before for seen in watching.seen)
    assert state() == before


def test_threads_may_read_and_set_the_precision_while_others_compute():
    """Nothing is raised, no setting is lost, and the results are those of one thread."""
    cases: list[Callable[[], list[Tensor]]] = []
    for function in ("rnn", "lstm", "gru", "attention_lstm", "temporal_affine_softmax_loss"):

        def compute(function: str = function) -> list[Tensor]:
            args = example(function, torch.float32, **LARGE)
            outs = leaves(getattr(functions, function)(**args))
            grads = torch.autograd.grad(outs[0].sum(), [arg for arg in args.values() if arg.requires_grad])
            return [outs[0].detach(), *grads]

        cases.append(compute)
    expected, wrong, done = [case() for case in cases], [], threading.Event()

    def work(case: Callable[[], list[Tensor]], alone: list[Tensor]) -> None:
        try:
            for _ in range(5):
                for found, one in zip(case(), alone, strict=True):
                    torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-4)
        except Exception as error:
            wrong.append(error)

    def turn() -> None:
        try:
            while not done.is_set():
                for precision in ("high", "highest"):
                    torch.set_float32_matmul_precision(precision)
                    for _ in range(20):
                        assert torch.get_float32_matmul_precision() == precision
        except Exception as error:
            wrong.append(error)

    settings = [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul]
    before = [setting.fp32_precision for setting in settings]
    workers = [threading.Thread(target=work, args=pair) for pair in zip(cases, expected, strict=True)]
    turner = threading.Thread(target=turn)
    for thread in (turner, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    turner.join()
    for setting, precision in zip(settings, before, strict=True):
        setting.fp32_precision = precision
    assert wrong == []
