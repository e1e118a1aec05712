"""Errors as one line and an exit status."""

from __future__ import annotations

import pytest

from torch_caption.guard import Failure, guarded


class Busy(Failure):
    status = 75


class Gone(Failure, OSError):
    pass


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("train.h5: row 3\n  is nan"), 2, "error: train.h5: row 3 is nan\n"),
        (FileNotFoundError(2, "No such file", "x"), 2, "error: [Errno 2] No such file: 'x'\n"),
        (ValueError(), 2, "error: ValueError\n"),
        (ArithmeticError("step 4: the loss is nan"), 1, "error: step 4: the loss is nan\n"),
        (MemoryError(), 1, "error: MemoryError\n"),
        (Failure("the server is gone"), 1, "error: the server is gone\n"),
        (Gone("the server is gone"), 1, "error: the server is gone\n"),
        (Busy("later"), 75, "error: later\n"),
        (KeyboardInterrupt(), 130, ""),
        (KeyboardInterrupt("run it again"), 130, "stopped: run it again\n"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    assert guarded(main) == status
    assert capsys.readouterr() == ("", said)


def test_what_works_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: "anything") == 0
    assert capsys.readouterr() == ("", "")


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(KeyError):
        guarded(lambda: {}["x"])
