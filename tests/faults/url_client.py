"""The process that fetches the URLs of `hostile_urls.py`, sixteen at a time, and measures what it takes.

Cases as JSON on stdin; a line of JSON for each on stdout, and one more for the process.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from PIL import Image

from tests.helpers.usage import descriptors, memory
from torch_caption.io import images
from torch_caption.io.images import ImageError, load_image, shown

PUBLIC, PRIVATE = "127.0.0.1", "127.0.0.2"
NAMES = {
    "photos.example": [PUBLIC],
    "other.example": [PUBLIC],
    "xn--bcher-kva.example": [],
    "bücher.example": [],
    "mixed.example": [PUBLIC, PRIVATE],
    "inside.example": [PRIVATE],
    "six.example": ["::1"],
    "mapped.example": ["::ffff:127.0.0.2"],
    "metadata.example": ["169.254.169.254"],
    "many.example": [PUBLIC] * 1000,
    "nothing.example": [],
    "odd.example": ["/run/socket"],
}
received = threading.local()


def stand_in() -> None:
    """127.0.0.1 is a public address, and names are resolved by the table."""
    is_public, getaddrinfo = images.is_public, socket.getaddrinfo
    turns: dict[int, int] = {}

    def resolve(host: str, port: int, **options: Any) -> list[tuple]:
        if host == "slow.example":
            time.sleep(30)
        if host == "rebinding.example":  # public for the first connection, private for the next
            turns[port] = turns.get(port, -1) + 1
            addresses = [(PUBLIC, PRIVATE)[turns[port] % 2]]
        elif host in NAMES:
            addresses = NAMES[host]
        else:
            return list(getaddrinfo(host, port, flags=socket.AI_NUMERICHOST, **options))
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        at = port + 1 if host == "many.example" else port  # where nobody listens
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in a], socket.SOCK_STREAM, 6, "", (a, at, 0, 0)[: 4 if ":" in a else 2]) for a in addresses]

    images.is_public = lambda address: address == PUBLIC or is_public(address)
    socket.getaddrinfo = resolve


def count_bytes() -> None:
    """Of every socket, for the thread that reads it."""

    def counting(read: Callable[..., int]) -> Callable[..., int]:
        def recv_into(*args: Any) -> int:
            size = read(*args)
            received.size = getattr(received, "size", 0) + size
            return size

        return recv_into

    ssl.SSLSocket.recv_into = counting(ssl.SSLSocket.recv_into)  # it calls nothing of the socket below
    plain = socket.socket.recv_into
    socket.socket.recv_into = counting(plain)


def fetched(case: dict[str, Any], max_bytes: int) -> dict[str, Any]:
    received.size = 0
    started = time.monotonic()
    try:
        picture = load_image(
            case["url"],
            allow_private=case["allow_private"],
            timeout=case["timeout"],
            max_bytes=max_bytes,
            max_pixels=2**22,
        )
        outcome, said = "picture", str(picture.size)
    except ImageError as error:
        outcome, said = "refused", str(error)
    except BaseException as error:
        outcome, said = "other error", repr(error)
    seconds = time.monotonic() - started
    name = shown(case["url"])
    return {"outcome": outcome, "said": said, "name": name, "seconds": seconds, "received": received.size}


def main() -> None:
    task = json.load(sys.stdin)
    if task["stand_in"]:
        stand_in()
    if task["certificate"]:
        trusting = ssl.create_default_context(cafile=task["certificate"])
        ssl.create_default_context = lambda: trusting
    count_bytes()
    Image.preinit()  # what is loaded on first use is no leak
    before, used = descriptors(), memory("VmRSS")
    with ThreadPoolExecutor(16) as pool:
        for answer in pool.map(lambda case: fetched(case, task["max_bytes"]), task["cases"]):
            print(json.dumps(answer))
    gc.collect()
    print(json.dumps({"descriptors": descriptors() - before, "memory": memory() - used}))
    sys.stdout.flush()
    os._exit(0)  # a name server may still be asked


if __name__ == "__main__":
    main()
