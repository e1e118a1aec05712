"""Which library multiplies float32 matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from torch_caption.cli import evaluate, train
from torch_caption.functions.matmul import prefer_onednn
from torch_caption.verify.compare import cases
from torch_caption.verify.gradcheck import assert_agrees

ROOT = Path(__file__).resolve().parents[2]
ERROR = 1e-6


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    before = setting()
    torch.backends.mkldnn.matmul.fp32_precision = "none"  # a test that ran train.py may have chosen another
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.fixture
def library(monkeypatch) -> Callable:
    """`library(product)` makes `product` multiply float32 where oneDNN would; elsewhere products are rounded once."""
    plain = torch.Tensor.__matmul__

    def make(product: Callable[[Tensor, Tensor], Tensor]) -> None:
        def multiply(x: Tensor, w: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                return plain(x, w)
            exact = plain(x.double(), w.double())
            return product(x, w) if setting() == "bf16" else (exact * (1 + ERROR)).float()

        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)

    return make


@pytest.mark.parametrize("before", ["none", "bf16"])
def test_a_library_that_rounds_to_bfloat16_is_not_chosen_and_the_setting_is_restored(library, before):
    """A setting that allowed bfloat16 before makes no library exact."""
    torch.backends.mkldnn.matmul.fp32_precision = before
    library(lambda x, w: torch.mm(x.bfloat16(), w.bfloat16()).float())
    assert not prefer_onednn()
    assert setting() == before


@pytest.mark.parametrize(("times", "chosen"), [(0.5, True), (2.0, True), (20.0, False)])
def test_a_library_that_sums_in_another_order_is_chosen(library, times, chosen):
    """Its errors are others, but of the same size; a second call finds the same."""
    library(lambda x, w: (torch.mm(x.double(), w.double()) * (1 + times * ERROR)).float())
    for _ in range(2):
        assert prefer_onednn() == chosen
        assert (setting() == "bf16") == chosen


def test_an_absent_library_is_not_chosen(library, monkeypatch):
    before = setting()
    library(lambda x, w: torch.mm(x.double(), w.double()).float())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not prefer_onednn()
    assert setting() == before


def test_the_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    prefer_onednn()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("precision", ["none", "bf16"])
def test_either_library_gives_the_oracles_gradients(precision):
    if precision == "bf16" and not prefer_onednn():
        pytest.skip("oneDNN is not there, or rounds to bfloat16, on this processor")
    torch.backends.mkldnn.matmul.fp32_precision = precision
    for case in cases({"N": 16, "T": 5, "D": 32, "H": 64, "P": 24, "V": 100, "L": 9}, torch.float32):
        assert_agrees(case.hand, case.auto, case.args, case.names)


@pytest.mark.parametrize("command", [train, evaluate])
def test_programs_of_large_products_prefer_onednn(command, monkeypatch):
    """Once, before they begin."""
    events: list[str] = []
    monkeypatch.setattr(command, "prefer_onednn", lambda: events.append("prefer"))
    monkeypatch.setattr(command, "fit" if command is train else "run", lambda *_: events.append("run"))
    command.main([], "")
    assert events == ["prefer", "run"]
