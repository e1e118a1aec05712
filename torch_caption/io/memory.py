"""Out-of-memory errors, of the machine or a GPU, as one line with the requested size and what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch_caption.errors import OutOfMemory, TorchCaptionError

# torch and NumPy have several messages for failed allocations, but classes for only two of them.
_NO_MEMORY = re.compile(
    "can(no|')t allocate memory|not enough memory|out of memory|bad_alloc|ALLOC_FAILED"
    "|(size calculation|integer multiplication) overflow|overflow when unpacking"
    "|maximum (allowed dimension|possible size)",
    re.IGNORECASE,
)
_REQUESTED = re.compile(r"allocate (\d[\d.]*) (\w+)")


def lacks_memory(error: Exception) -> bool:
    """Whether an allocation failed, on the machine or a GPU."""
    if isinstance(error, RuntimeError | ValueError | TypeError):
        return type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


@contextmanager
def within_memory(*smaller: str, kept: Callable[[], str] | None = None) -> Iterator[None]:
    """In the block, errors of failed allocations become OutOfMemory.

    Args:
        smaller: the flags to reduce.
        kept: returns a line about the saved work.

    Raises:
        OutOfMemory: with the requested size, and what to do.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, MemoryError, OSError) as error:
        if isinstance(error, TorchCaptionError) or not lacks_memory(error):
            raise
        names = " or ".join(filter(None, (", ".join(smaller[:-1]), *smaller[-1:])))
        advice = f"make {names} smaller" if smaller else "use a machine with more"
        raise OutOfMemory("; ".join([_shortage(str(error)), advice, *([kept()] if kept else [])])) from error


def _shortage(message: str) -> str:
    where = " on the GPU" if "CUDA" in message else ""
    requested = _REQUESTED.search(message)
    if requested is None:
        return f"not enough memory{where}"
    amount = f"{int(requested[1]):,}" if requested[1].isdecimal() else requested[1]
    return f"not enough memory{where}: {amount} {requested[2]} more were requested"
