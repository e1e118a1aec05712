"""Pictures read ahead by threads."""

from __future__ import annotations

import threading

from torch_caption.encoders.stream import stream
from torch_caption.errors import ImageError


def test_batches_keep_the_order_and_report_errors():
    def read(number: int) -> str:
        if number in (1, 4):
            raise ImageError(f"damaged {number}")
        return f"read {number}"

    batches = list(stream(range(7), read, batch_size=3, workers=3))
    assert [batch.stop for batch in batches] == [3, 6, 7]
    assert [batch.read for batch in batches] == [
        {0: "read 0", 2: "read 2"},
        {3: "read 3", 5: "read 5"},
        {6: "read 6"},
    ]
    assert {k: str(e) for batch in batches for k, e in batch.failed.items()} == {1: "damaged 1", 4: "damaged 4"}
    later = list(stream(range(7), read, start=3, batch_size=3))
    assert [(batch.stop, batch.read) for batch in later] == [(batch.stop, batch.read) for batch in batches[1:]]


def test_at_most_two_batches_are_read_ahead():
    begun, lock = [0], threading.Lock()

    def count(_: int) -> None:
        with lock:
            begun[0] += 1

    batches = stream(range(40), count, batch_size=2)
    for done, _ in enumerate(batches, 1):
        assert begun[0] <= 2 * (done + 2)
        if done == 5:
            break
    batches.close()
    assert begun[0] <= 14
