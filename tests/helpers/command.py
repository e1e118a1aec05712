"""Commands called in this process."""

from __future__ import annotations

import re

import pytest

from torch_caption.__main__ import main

SMALL = [
    *("--hidden-dim", "16", "--wordvec-dim", "8", "--batch-size", "5", "--lr", "0.01"),
    *("--max-length", "6", "--feature-dropout", "0", "--dropout", "0"),
]


def refusal(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command refuses its arguments."""
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: [^\n]*\n", err)
    return err
