"""Opacus: its tests of DPRNN, DPGRU and DPLSTM with our layers in their place, and our own of the captioner."""

from __future__ import annotations

import re
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from torch_caption import layers
from torch_caption.model.captioner import CaptioningRNN

pytest.importorskip("opacus", reason="requirements-opacus.txt is not installed")

from opacus.grad_sample import GradSampleModule
from opacus.tests.dp_layers import dp_rnn_test as of_outputs
from opacus.tests.grad_samples import dp_rnn_test as of_samples

from torch_caption.model.opacus import register_with_opacus

pytestmark = [pytest.mark.exhaustive, pytest.mark.filterwarnings("ignore:.*Full backward hook is firing")]
OURS = {"DPRNN": layers.RNN, "DPGRU": layers.GRU, "DPLSTM": layers.LSTM}


@pytest.fixture(autouse=True)
def nondeterministic_algorithms() -> Iterator[None]:
    """Opacus' tests change the setting of the process."""
    yield
    torch.use_deterministic_algorithms(False)


def passes(test: Callable) -> None:
    result = unittest.TestResult()
    test(result)
    assert result.testsRun == 1
    assert [text for _, text in result.errors + result.failures] == []


def test_outputs_and_gradients_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, ours in OURS.items():
        monkeypatch.setattr(of_outputs, name, ours)
    passes(of_outputs.DPLSTM_test("test_rnn"))


def test_per_sample_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors: Opacus' hooks take no PackedSequence of a module that has weights itself."""
    register_with_opacus()
    for name, ours in OURS.items():
        monkeypatch.setattr(of_samples, name, ours)
    monkeypatch.setattr(of_samples, "MODELS", [*OURS.values()])

    def padded(self: unittest.TestCase, x: object, module: torch.nn.Module, **options: object) -> None:
        if isinstance(x, torch.Tensor):
            for reduction in ("sum", "mean"):
                self.run_test_with_reduction(x, module, batch_first=options["batch_first"], loss_reduction=reduction)

    monkeypatch.setattr(of_samples.RNN_test, "run_test", padded)
    passes(of_samples.RNN_test("test_rnn"))


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "attention"])
def test_a_captioner(cell: str) -> None:
    register_with_opacus()
    words = {word: k for k, word in enumerate(["<NULL>", "<START>", "<END>", "<UNK>", "a", "dog"])}
    model = CaptioningRNN(words, 3, 4, 5, cell, num_layers=2).double()
    features = torch.randn(4, 3, *([6] if cell == "attention" else []), dtype=torch.float64)
    captions = torch.tensor([[1, 4, 5, 2], [1, 4, 2, 0], [1, 2, 0, 0], [1, 5, 5, 5]])
    sampled = GradSampleModule(model, loss_reduction="sum")
    sampled(features, captions, reduction="none").sum().backward()
    for k in range(4):
        alone = torch.autograd.grad(model.forward(features[k : k + 1], captions[k : k + 1]), [*model.parameters()])
        for p, wanted in zip(model.parameters(), alone, strict=True):
            torch.testing.assert_close(p.grad_sample[k], wanted, rtol=0, atol=1e-12)


def test_the_recipe_of_the_page() -> None:
    """With the blocks before it."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "layers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert any("GradSampleModule" in block for block in blocks)
    exec(compile("\n".join(blocks), "layers.md", "exec"), {})
