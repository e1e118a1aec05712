"""Fault: URLs of photographs whose servers, redirects and names do what they should not.

The servers run here; each case is a `load_image` of its own in a process that counts seconds, bytes and descriptors.
Two such processes: one where the addresses are judged as they are, and one where 127.0.0.1 stands in for a public
address, names are resolved by a table, and 127.0.0.2 is the private machine that nobody may reach.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from tests.faults.figures import Family, Figures
from tests.helpers import photo_server
from tests.helpers.photo_server import PHOTO, Server, serving

CLIENT = Path(__file__).with_name("url_client.py")
TIMEOUT = 1.0  # seconds that a fetch is given
SECONDS = TIMEOUT + 4.0  # and may take, decoding and a busy machine counted
ENOUGH = 60.0  # seconds for one that is to succeed, on any machine
MAX_BYTES = 200_000
RECEIVED = (MAX_BYTES + 2**20 + 2**17) / 2**20  # MiB: the content, its framing, and one read
MEMORY = 256.0  # MiB of all cases of a process together, sixteen at a time


@dataclass
class Case:
    """A URL and how it is fetched.

    Attributes:
        kind: of the fault, and what repeats it.
        url: to load.
        stand_in: by the process where 127.0.0.1 is public; else by the one where addresses are what they are.
        allow_private: of `load_image`.
        sound: a photograph may come of it.
    """

    kind: str
    url: str
    stand_in: bool = True
    allow_private: bool = False
    sound: bool = False


@dataclass(frozen=True)
class Web:
    """The servers: http and https by name, the private machine, and one that never answers a connection."""

    public: Server
    secure: Server | None
    silent: Server

    def http(self, path: str, host: str = "photos.example") -> str:
        return f"http://{host}:{self.public.server_port}/{path}"

    def https(self, path: str, host: str = "photos.example") -> str:
        assert self.secure is not None
        return f"https://{host}:{self.secure.server_port}/{path}"

    def redirect(self, draw: random.Random, target: str) -> str:
        """To `target`, by any of the statuses."""
        return self.http(f"to/{draw.choice((301, 302, 303, 307, 308))}?url={quote(target, safe='')}")


Maker = Callable[[Web, random.Random], Case]


def answered(path: str | Callable[[random.Random], str], **options: bool) -> Maker:
    """A path of the server's own."""
    return lambda web, draw: Case("", web.http(path if isinstance(path, str) else path(draw)), **options)


def one_of(folder: str, *names: object) -> Callable[[random.Random], str]:
    """`folder/name` with one of the names, escaped."""
    return lambda draw: f"{folder}/{quote(str(draw.choice(names)), safe='')}"


def at(*hosts: str, path: str = "photo", secure: bool = False, **options: bool) -> Maker:
    """Of one of these hosts."""
    return lambda web, draw: Case("", (web.https if secure else web.http)(path, draw.choice(hosts)), **options)


def redirected(*targets: str) -> Maker:
    """To one of the targets, in which PORT is the server's."""
    return lambda web, draw: Case(
        "", web.redirect(draw, draw.choice(targets).replace("PORT", str(web.public.server_port)))
    )


def private(*hosts: str) -> Maker:
    """Of one of these hosts, all of which are this machine or its network."""
    return at(*hosts, path="photo/private", stand_in=False)


def spelt(*urls: str) -> Maker:
    return lambda web, draw: Case("", draw.choice(urls).replace("PORT", str(web.public.server_port)))


KINDS: dict[str, Maker] = {
    # redirects
    "redirect to the private machine": redirected("http://127.0.0.2:PORT/photo", "//127.0.0.2:PORT/photo"),
    "redirect to a private name": redirected("http://inside.example:PORT/photo", "http://mixed.example:PORT/photo"),
    "redirect to metadata": redirected("http://169.254.169.254/latest/meta-data/", "http://metadata.example/"),
    "redirect to a file": redirected("file:///etc/passwd", "FILE:///etc/passwd", "file://photos.example/etc/passwd"),
    "redirect to ftp": redirected("ftp://photos.example/a.jpg"),
    "redirect to data": redirected("data:image/png;base64,iVBORw0KGgo="),
    "redirect to a script": redirected("javascript:alert(1)", "vbscript:x", "about:blank", "gopher://photos.example/"),
    "redirect to no URL": redirected("http://[::1/a", "http://a:b:c/", "http://:80/", "https:///x", "http://\x01/"),
    "redirect to itself": answered("round"),
    "redirects too many": answered(lambda draw: f"hops/{draw.randint(6, 50)}"),
    "redirect that floods": answered("flooding_redirect"),
    "redirect far too long": answered("far_redirect"),
    "redirect without a target": answered(lambda draw: draw.choice(("lost", "status/301", "status/308"))),
    "redirect from https to http": at("photos.example", path="secure", secure=True),
    # bodies
    "endless": answered(lambda draw: draw.choice(("endless", "endless_chunks"))),
    "slow drip": answered(lambda draw: draw.choice(("drip", "chunk_drip"))),
    "slow drip of headers": answered(lambda draw: draw.choice(("drip_headers", "drip_headers/lines"))),
    "silence": answered("silence"),
    "huge length": answered(lambda draw: draw.choice(("giant", f"length/{draw.randrange(10**6, 10**15)}"))),
    "length of 20,000 digits": answered("long_length", sound=True),
    "length too small": answered(lambda draw: f"length/{draw.randrange(len(PHOTO))}"),
    "length too large": answered(lambda draw: f"length/{draw.randrange(len(PHOTO) + 1, 10**5)}"),
    "length that is none": answered(lambda draw: f"length/{draw.choice(('-1', '-5', '0x20', 'many', ''))}", sound=True),
    "two lengths": answered("two_lengths"),
    "nothing": answered("empty"),
    "wrong type": answered(one_of("file", "text", "vector", "postscript", "pickle", "icon")),
    "page for a picture": answered(lambda draw: draw.choice(("page", "file/page"))),
    "packed bomb": answered(one_of("encoding", "gzip", "deflate", "br", "zstd", "GZIP", "x")),
    "packed on its way": answered(one_of("transfer", "gzip", "gzip, chunked", "chunked, x")),
    "bomb in a picture": answered(
        one_of("file", "png exif bomb", "png chunks", "jpeg scans", "gif comments", "bmp runs")
    ),
    "picture of too many pixels": answered(
        one_of("file", "png of 2 ** 31 x 1", "webp of 2 ** 24 x 2 ** 24", "gif of 65535 x 65535")
    ),
    "100,000 frames": answered(one_of("file", "gif of 100,000 frames", "webp of 100,000 frames")),
    # framing
    "chunk of a length that is none": answered(one_of("chunk", "-1", "-5", "zz", "", "1e9", "\0", "f" * 40, " ")),
    "chunk size without end": answered("long_chunk"),
    "chunks that are mostly extensions": answered("wasteful_chunks"),
    "chunk cut short": answered("short_chunk"),
    "trailers without end": answered("trailers", sound=True),
    "100,000 headers": answered("many_headers"),
    "header of a gigabyte": answered("long_header"),
    "status line of a gigabyte": answered("long_status"),
    "100 Continue without end": answered("continues"),
    "other status": answered(one_of("status", 101, 103, 201, 204, 206, 300, 304, 403, 404, 500, 999)),
    "HTTP/0.9": answered("raw"),
    "other protocol": answered(one_of("version", "ICY", "SSH-2.0-x", "HTTPS/1.1", "HTTP", "\0", "220 ftp")),
    "nonsense": answered("nonsense"),
    "connection closed at once": answered("hangup"),
    "connection reset in the middle": answered(lambda draw: f"reset/{draw.randrange(len(PHOTO))}"),
    "nobody accepts": lambda web, draw: Case("", f"http://photos.example:{web.silent.server_port}/"),
    # names
    "name that is public once": at("rebinding.example", path="hops/2"),
    "name of mixed addresses": at("mixed.example"),
    "name of a private machine": at("inside.example", "six.example", "mapped.example", "metadata.example"),
    "name of a thousand addresses": at("many.example"),
    "name of no address": at("nothing.example", "odd.example"),
    "name server that never answers": at("slow.example"),
    "this machine": private("127.0.0.1", "localhost", "LOCALHOST.", "127.1.2.3", "0.0.0.0", "0"),
    "this machine by IPv6": private("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]"),
    "this machine as one number": private("2130706433", "0x7f000001", "017700000001"),
    "this machine in odd numbers": private("0x7f.1", "127.1", "0177.0.0.1", "0x7f.0x0.0x0.0x1"),
    "this machine in other letters": private(
        "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\u24db\u24de\u24d2alhost"
    ),
    "link-local addresses": private("169.254.169.254", "[fe80::1%25lo]", "[fe80::1%lo]", "[fe80::1]"),
    # spellings
    "user and password": spelt(
        "http://me:secret@photos.example:PORT/photo", "http://photos.example@127.0.0.1:PORT/photo"
    ),
    "ports that are none": spelt(
        "http://photos.example:99999/", "http://photos.example:-1/", "http://photos.example:x/"
    ),
    "line breaks": spelt(
        "http://photos.example:PORT/nowhere\r\nX: y\r\n\r\nGET /photo HTTP/1.1",
        "http://photos.example\r\n:PORT/nowhere",
    ),
    "nulls": spelt("http://photos.example:PORT/\0", "http://photos\0.example:PORT/photo", "http://\0/"),
    "letters that are none": spelt(
        "http://photos.example:PORT/\udc80", "http://\udc80.example/", "http://photos.example?\udfff"
    ),
    "URL of a megabyte": lambda web, draw: Case("", web.http("a" * draw.randrange(9_000, 10**6))),
    "host of a megabyte": spelt("http://" + "a" * 10**6 + "/", "http://" + "a." * 3000 + "example/"),
    "host of other letters": spelt(
        "http://b\u00fccher.example:PORT/photo", "http://xn--a.example/", "http://\u202e.example/"
    ),
    "host that is odd": spelt(
        "http://.photos.example/", "http://..", "http://%31.example/", "https://.photos.example:PORT/"
    ),
    "no host": spelt("http://", "http:///a.jpg", "https://?a", "http://#", "http://:80"),
    "other schemes": spelt(
        "file:///etc/passwd", "ftp://photos.example/a", "data://x", "jar:http://x!/a", "http+unix://x/"
    ),
    # TLS
    "certificate of our own": at("127.0.0.1", secure=True, stand_in=False, allow_private=True),
    "certificate of another": at("other.example", "127.0.0.1", secure=True),
    "plain text for TLS": lambda web, draw: Case("", web.http("photo").replace("http", "https", 1)),
    "TLS for plain text": lambda web, draw: Case("", web.https("photo").replace("https", "http", 1)),
    "handshake without end": lambda web, draw: Case("", f"https://photos.example:{web.silent.server_port}/"),
    # and the same without any fault, lest everything be refused
    "none, over TLS": at("photos.example", secure=True, sound=True),
    "none": lambda web, draw: Case("", draw.choice((web.http("photo"), web.http("hops/5"))), sound=True),
}


OVER_TLS = {
    "redirect from https to http",
    "certificate of our own",
    "certificate of another",
    "TLS for plain text",
    "none, over TLS",
}
"""Left out where there is no openssl program to make a certificate with."""


def drawn(web: Web, cases: int, seed: int) -> Iterator[Case]:
    """Every kind, over and over, each time by other numbers."""
    kinds = [kind for kind in KINDS if web.secure or kind not in OVER_TLS]
    for number in range(cases):
        kind = kinds[number % len(kinds)]
        turn = number // len(kinds)
        case = KINDS[kind](web, random.Random(f"{seed} {turn} {kind}"))
        case.kind = f"{kind}, seed {seed}, {turn}"
        yield case


def run(cases: int, seed: int, folder: Path) -> Figures:
    figures = Figures()
    figures.expect("tracebacks", "wrong", "fetched from private", "leaked descriptors", "crashes")
    certificate = photo_server.certificate(folder)
    with ExitStack() as stack:
        public = stack.enter_context(serving())
        context = photo_server.server_context(certificate) if certificate else None
        secure = stack.enter_context(serving(context=context)) if context else None
        silent = stack.enter_context(Server())  # nobody serves: a connection waits for ever
        inside = []
        if sys.platform == "linux":  # elsewhere 127.0.0.2 is not this machine
            inside = [stack.enter_context(serving("127.0.0.2", public.server_port))]
        urls = [*drawn(Web(public, secure, silent), cases, seed)]
        with ThreadPoolExecutor(2) as pool:
            for part in pool.map(lambda way: _fetched(urls, way, certificate), (True, False)):
                figures.add(part)
        asked = [path for server in inside for path, _ in server.requests]
        asked += [path for path, _ in public.requests if path.endswith("/private")]
        for path in asked:
            figures.wrong("fetched from private", path)
    figures.seen["kinds"] = len({case.kind.split(", seed")[0] for case in urls})
    return figures


def _fetched(urls: list[Case], stand_in: bool, certificate: Path | None) -> Figures:
    """What one of the two processes made of its cases."""
    figures = Figures()
    mine = [case for case in urls if case.stand_in is stand_in]
    content = {
        "cases": [asdict(case) | {"timeout": ENOUGH if _is_control(case) else TIMEOUT} for case in mine],
        "max_bytes": MAX_BYTES,
        "stand_in": stand_in,
        "certificate": str(certificate) if certificate and stand_in else None,
    }
    process = subprocess.run(
        [sys.executable, str(CLIENT)], input=json.dumps(content), capture_output=True, encoding="utf-8", check=False
    )
    if process.returncode or process.stderr:
        figures.wrong("crashes", f"status {process.returncode}: {process.stderr[-300:]}")
        return figures
    *answers, end = map(json.loads, process.stdout.splitlines())
    figures.cases = len(answers)
    if end["descriptors"] > 0:
        figures.wrong("leaked descriptors", f"{end['descriptors']} in {len(mine)} cases")
    figures.measured("MiB memory", end["memory"], MEMORY)
    for case, answer in zip(mine, answers, strict=True):
        _judge(case, answer, figures)
    return figures


def _is_control(case: Case) -> bool:
    """Nothing is wrong with it."""
    return case.kind.startswith("none")


def _judge(case: Case, answer: dict, figures: Figures) -> None:
    where = f"{case.kind}: {case.url[:100]!a}: {answer['said'][:300]!a}"
    if not _is_control(case):
        figures.measured("s", answer["seconds"], SECONDS)
    figures.measured("MiB received", answer["received"] / 2**20, RECEIVED)
    if answer["outcome"] == "other error":
        figures.wrong("tracebacks", where)
    elif answer["outcome"] == "picture":
        figures.saw("pictures")
        if not case.sound:
            figures.wrong("wrong", where)
    else:
        figures.saw("refused")
        if not answer["said"].isprintable() or not answer["said"].startswith(answer["name"]):
            figures.wrong("wrong", where)
        if _is_control(case):
            figures.wrong("wrong", where)


FAMILY = Family("hostile URLs", run, short=len(KINDS), full=4 * len(KINDS))
