"""Whose products of matrices they are."""

from __future__ import annotations

import threading

import pytest
import torch

from torch_caption.agreement import assert_agrees
from torch_caption.compare import cases
from torch_caption.functions import _products
from torch_caption.functions._products import LARGE, products

ONE = torch.ones(1)


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture
def exact(monkeypatch) -> None:
    """oneDNN is there, and exact."""
    monkeypatch.setattr(_products, "_onednn_is_exact", lambda: True)


@pytest.mark.usefixtures("exact")
def test_the_setting_holds_within_the_block_alone():
    before = setting()
    with products(LARGE, ONE, fast=True):
        assert setting() == "bf16"
        with products(LARGE, ONE, fast=True):
            pass
        assert setting() == "bf16"
    assert setting() == before
    with pytest.raises(ZeroDivisionError), products(LARGE, ONE, fast=True):
        _ = 1 / 0
    assert setting() == before


@pytest.mark.usefixtures("exact")
def test_what_was_set_before_comes_back(monkeypatch):
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    try:
        with products(LARGE, ONE, fast=True):
            pass
        assert setting() == "ieee"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("rows", "w", "fast"),
    [(LARGE, ONE.double(), True), (LARGE, ONE.bfloat16(), True), (LARGE, ONE, False), (LARGE - 1, ONE, True)],
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
        with products(LARGE, ONE, fast=True):
            entered.wait()
        left.wait()

    thread = threading.Thread(target=first)
    thread.start()
    with products(LARGE, ONE, fast=True):
        entered.wait()
        left.wait()
        assert setting() == "bf16"
    thread.join()
    assert setting() == before


def test_a_library_that_rounds_is_not_taken(monkeypatch):
    """Where oneDNN computes in bfloat16, a product shows it."""
    _products._onednn_is_exact.cache_clear()
    rounded = torch.Tensor.__matmul__

    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if setting() == "bf16" and x.dtype == torch.float32:
            return rounded(x.bfloat16(), w.bfloat16()).float()
        return rounded(x, w)

    with monkeypatch.context() as context:
        context.setattr(torch.Tensor, "__matmul__", product)
        assert not _products._onednn_is_exact()
    _products._onednn_is_exact.cache_clear()
    assert _products._onednn_is_exact() in (True, False)


@pytest.mark.parametrize("exact", [True, False])
def test_either_library_gives_the_oracles_gradients(monkeypatch, exact):
    if exact and not _products._onednn_is_exact():
        pytest.skip("oneDNN is not there, or rounds to bfloat16, on this processor")
    monkeypatch.setattr(_products, "_onednn_is_exact", lambda: exact)
    monkeypatch.setattr(_products, "LARGE", 0)
    for case in cases({"N": 16, "T": 5, "D": 32, "H": 64, "V": 100, "L": 9}, torch.float32):
        assert_agrees(case.hand, case.auto, case.args, case.names)
