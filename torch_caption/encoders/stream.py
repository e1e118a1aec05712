"""Pictures read by threads, and processed in batches at the same time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from torch_caption.errors import ImageError

BATCH = 16

Source = TypeVar("Source")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Batch(Generic[Read]):
    """A batch of a list of sources.

    Attributes:
        stop: the index in the list after the batch's last source.
        read: of each source that can be read, by its index and in order, what `read` returned.
        failed: of the others the errors.
    """

    stop: int
    read: dict[int, Read]
    failed: dict[int, ImageError]


def stream(
    sources: Sequence[Source],
    read: Callable[[Source], Read],
    *,
    start: int = 0,
    batch_size: int = BATCH,
    workers: int = 2,
) -> Generator[Batch[Read]]:
    """The sources, batch by batch, in their order, while threads read the next ones.

    At most two batches are read ahead, which bounds the memory. The batches do not depend on the
    start of the stream.

    Args:
        read: called in a thread; it may raise ImageError.
        start: the first index, a multiple of `batch_size`.
        workers: threads.
    """

    def result(source: Source) -> Read | ImageError:
        try:
            return read(source)
        except ImageError as error:
            return error

    def submit(first: int) -> list[Future[Read | ImageError]]:
        return [pool.submit(result, source) for source in sources[first : first + batch_size]]

    with ThreadPoolExecutor(workers) as pool:
        firsts = iter(range(start, len(sources), batch_size))
        ahead = [submit(first) for first in islice(firsts, 2)]
        stop = start
        try:
            while ahead:
                futures = ahead.pop(0)
                found = {stop + index: future.result() for index, future in enumerate(futures)}
                stop += len(futures)
                ahead += [submit(following) for following in islice(firsts, 1)]
                yield _batch(stop, found)
        finally:
            for futures in ahead:
                for future in futures:
                    future.cancel()


def _batch(stop: int, found: Mapping[int, Read | ImageError]) -> Batch[Read]:
    failed = {index: value for index, value in found.items() if isinstance(value, ImageError)}
    return Batch(stop, {k: v for k, v in found.items() if not isinstance(v, ImageError)}, failed)
