"""Whose products of matrices they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_caption.agreement import assert_agrees, leaves
from torch_caption.compare import cases
from torch_caption.functions import _products
from torch_caption.functions._products import LARGE, products

W = torch.ones(2, 4)
ROWS = LARGE // W.numel()


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture
def exact(monkeypatch) -> None:
    """oneDNN is there, and exact."""
    monkeypatch.setattr(_products, "_onednn_is_exact", lambda: True)


@pytest.mark.usefixtures("exact")
def test_the_setting_holds_within_the_block_alone():
    before = setting()
    with products(ROWS, W, fast=True):
        assert setting() == "bf16"
        with products(ROWS, W, fast=True):
            pass
        assert setting() == "bf16"
    assert setting() == before
    with pytest.raises(ZeroDivisionError), products(ROWS, W, fast=True):
        _ = 1 / 0
    assert setting() == before


@pytest.mark.usefixtures("exact")
def test_what_was_set_before_comes_back(monkeypatch):
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    try:
        with products(ROWS, W, fast=True):
            pass
        assert setting() == "ieee"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("rows", "w", "fast"),
    [(ROWS, W.double(), True), (ROWS, W.bfloat16(), True), (ROWS, W, False), (ROWS - 1, W, True)],
)
def test_nothing_is_set_for_others(rows, w, fast):
    before = setting()
    with products(rows, w, fast):
        assert setting() == before


@pytest.mark.usefixtures("exact")
def test_threads_leave_the_setting_as_it_was():
    """The second enters before the first leaves."""
    before, entered, left = setting(), threading.Barrier(2), threading.Barrier(2)

    def first() -> None:
        with products(ROWS, W, fast=True):
            entered.wait()
        left.wait()

    thread = threading.Thread(target=first)
    thread.start()
    with products(ROWS, W, fast=True):
        entered.wait()
        left.wait()
        assert setting() == "bf16"
    thread.join()
    assert setting() == before


@pytest.fixture
def library(monkeypatch) -> Iterator[Callable]:
    """`library(product)` makes `product` multiply float32 where oneDNN would; elsewhere products are rounded once."""
    plain = torch.Tensor.__matmul__

    def make(product: Callable[[Tensor, Tensor], Tensor]) -> None:
        def multiply(x: Tensor, w: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                return plain(x, w)
            exact = plain(x.double(), w.double())
            return product(x, w) if setting() == "bf16" else (exact * (1 + ERROR)).float()

        monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)

    _products._onednn_is_exact.cache_clear()
    yield make
    _products._onednn_is_exact.cache_clear()


ERROR = 1e-6


def test_a_library_that_rounds_is_not_taken(library):
    """Where oneDNN computes in bfloat16, a product shows it."""
    library(lambda x, w: torch.mm(x.bfloat16(), w.bfloat16()).float())
    assert not _products._onednn_is_exact()


@pytest.mark.parametrize(("times", "taken"), [(0.5, True), (2.0, True), (20.0, False)])
def test_a_library_that_sums_in_another_order_is_taken(library, times, taken):
    """Its errors are others, but of the same size."""
    library(lambda x, w: (torch.mm(x.double(), w.double()) * (1 + times * ERROR)).float())
    assert _products._onednn_is_exact() == taken


def test_a_library_that_is_not_there_is_not_taken(library, monkeypatch):
    library(lambda x, w: torch.mm(x.double(), w.double()).float())
    assert _products._onednn_is_exact()
    _products._onednn_is_exact.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not _products._onednn_is_exact()


def test_a_new_setting_is_made_and_taken_back():
    before, block = setting(), _products._OneDNN()
    for _ in range(2):
        with block:
            assert setting() == "bf16"
        assert setting() == before


class Settings(TorchDispatchMode):
    """Notes the setting under which each product of matrices runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            self.seen.append(setting())
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("label", ["rnn", "lstm", "attention_lstm", "temporal_affine_softmax_loss"])
@pytest.mark.parametrize("larger", ["N", "H"])
def test_products_with_the_weights_are_large_by_rows_and_weights(monkeypatch, label, larger):
    """Those of the recurrence by a step's rows, those of the loss by all that count; and never of the plain path."""
    sizes = {"N": 2, "T": 3, "D": 4, "H": 3, "V": 5, "L": 6, larger: 7}
    case = next(case for case in cases(sizes, torch.float32) if case.label == label)
    args = dict(zip(case.names, case.args, strict=False))
    rows, w = (sizes["N"], args["Wh"]) if "Wh" in args else (sizes["N"] * sizes["T"], args["w"])
    if "mask" in args:
        args["mask"] = torch.ones_like(args["mask"], dtype=torch.bool)
    inputs = [arg for arg in args.values() if isinstance(arg, Tensor) and arg.requires_grad]

    def settings(large: int, create_graph: bool = False) -> set[str]:
        monkeypatch.setattr(_products, "LARGE", large)
        with Settings() as forward:
            out = leaves(case.hand(*args.values(), *case.args[len(args) :]))[0]
        with Settings() as backward:
            torch.autograd.grad(out.sum(), inputs, create_graph=create_graph)
        return set(backward.seen if create_graph else forward.seen + backward.seen)

    before = setting()
    assert settings(rows * w.numel()) == {"bf16"}
    assert settings(rows * w.numel() + 1) == {before}
    assert settings(0, create_graph=True) <= {before}


@pytest.mark.parametrize("exact", [True, False])
def test_either_library_gives_the_oracles_gradients(monkeypatch, exact):
    if exact and not _products._onednn_is_exact():
        pytest.skip("oneDNN is not there, or rounds to bfloat16, on this processor")
    monkeypatch.setattr(_products, "_onednn_is_exact", lambda: exact)
    monkeypatch.setattr(_products, "LARGE", 0)
    for case in cases({"N": 16, "T": 5, "D": 32, "H": 64, "V": 100, "L": 9}, torch.float32):
        assert_agrees(case.hand, case.auto, case.args, case.names)
