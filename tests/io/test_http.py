"""URLs of photographs, from a server on this machine that misbehaves on request."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import photo_server
from tests.helpers.photo_server import PHOTO, Server, quarters, server_context, serving
from torch_caption.errors import ImageError
from torch_caption.io import http
from torch_caption.io.http import FetchError, is_public, read_url
from torch_caption.io.images import load_image

fetch = partial(read_url, timeout=10.0, most=200_000)
fetch_here = partial(fetch, allow_private=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.mark.parametrize(
    "path", ["photo", "unmeasured", "chunked", "hops/5", "flooding_redirect", "photo?size=large&name=a b é#top"]
)
def test_a_photograph_is_read_from_a_url(server, path):
    assert load_image(f"{server.url}/{path}", allow_private=True).tobytes() == quarters().tobytes()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server, status):
    for target in (f"{server.url}/photo", "/photo", f"//127.0.0.1:{server.server_port}/photo", "../../photo"):
        assert fetch_here(f"{server.url}/to/{status}?url={target}") == PHOTO


def test_the_request_is_escaped_and_goes_past_proxies(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    fetch_here(f"{server.url}/photo/a b%20c/é?q=1 2&r=[3]#part")
    path, headers = server.requests[-1]
    assert path == "/photo/a%20b%20c/%C3%A9?q=1%202&r=[3]"
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert headers["Accept-Encoding"] == "identity"
    assert "torch_caption" in headers["User-Agent"]
    assert "Authorization" not in headers


ANSWERS = {
    "missing": ("nothing", "the server responds 404 Not Found"),
    "empty": ("empty", "empty$"),
    "page": ("page", "not a picture in JPEG"),
    "short": ("short", "cut off, 1 bytes are missing"),
    "short chunk": ("short_chunk", "cannot be fetched: IncompleteRead"),
    "compressed": ("compressed", r"sent compressed \(gzip\)"),
    "endless": ("endless", "more than 200,000 bytes"),
    "nonsense": ("nonsense", "cannot be fetched"),
    "hangup": ("hangup", "cannot be fetched: Remote end closed connection"),
    "six redirects": ("hops/6", "the server responds 30. .*infinite loop"),
    "redirect to a file": (
        "to/302?url=file:///etc/passwd",
        "the server responds 302 .*file:///etc/passwd' is not allowed",
    ),
    "redirect to ftp": ("to/302?url=ftp://example.com/a.jpg", "only http and https"),
    "chunk of -1 bytes": ("negative_chunk", "more than 200,000 bytes|cannot be fetched"),
    "endless header": ("long_header", "cannot be fetched: got more than 65536 bytes"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_bad_answers_are_one_line(server, kind):
    path, message = ANSWERS[kind]
    with pytest.raises(ImageError, match=message) as error:
        load_image(f"{server.url}/{path}", allow_private=True, max_bytes=200_000)
    assert str(error.value).isprintable()
    assert str(error.value).startswith(f"{server.url}/{path}")


@pytest.mark.parametrize("path", ["drip", "drip_headers", "silence", "trailers"])
def test_the_deadline_is_for_the_whole_answer(server, path):
    begin = time.monotonic()
    with pytest.raises(FetchError, match=r"not received within 0\.3 seconds"):
        fetch_here(f"{server.url}/{path}", timeout=0.3)
    assert time.monotonic() - begin < 5  # the server never ends


def test_the_deadline_includes_name_resolution(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(20) and [])
    with pytest.raises(FetchError, match=r"not received within 0\.2 seconds"):
        fetch("http://slow.example/a.jpg", timeout=0.2)
    release.set()


# Only public addresses

PRIVATE = [
    "127.1.2.3", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "198.18.0.1",
    "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "::127.0.0.1",
    "::ffff:10.0.0.1", "2002:7f00:1::", "2001:0:1::1", "64:ff9b:1::1", "5f00::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "2002:808:808::", "64:ff9b::808:808"]


def test_public_addresses_are_distinguished():
    assert not [*filter(is_public, PRIVATE)]
    assert [*filter(is_public, PUBLIC)] == PUBLIC


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "LOCALHOST", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0177.0.0.1", "127.1",
     "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021"],
)  # fmt: skip
def test_no_spelling_of_a_private_address_is_connected_to(server, host):
    """Some systems resolve a spelling, others refuse the name."""
    asked = len(server.requests)
    with pytest.raises(ImageError, match=r"not a public address|cannot be fetched: .Errno|not a URL"):
        load_image(f"http://{host}:{server.server_port}/photo", timeout=60)
    assert len(server.requests) == asked


class Names:
    """A name service: host -> its addresses, one list for each query."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **hosts: list[list[str]]) -> None:
        self.hosts = {name.replace("_", "."): answers for name, answers in hosts.items()}
        self.asked: list[str] = []
        monkeypatch.setattr(socket, "getaddrinfo", self)
        monkeypatch.setattr(http, "is_public", lambda address: address == "127.0.0.1")

    def __call__(self, host: str, port: int, *options: int, **named: int) -> list[tuple]:
        addresses = [host]
        if host in self.hosts:
            self.asked.append(host)
            addresses = self.hosts[host].pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


def test_the_next_address_is_tried_and_the_last_failure_reported(monkeypatch, server):
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        addresses = [("127.0.0.1", taken.getsockname()[1]), ("127.0.0.1", server.server_port)]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        assert fetch_here("http://photos.example/photo") == PHOTO
        found.pop()
        with pytest.raises(FetchError, match="cannot be fetched"):
            fetch_here("http://photos.example/photo")


def test_the_checked_address_is_the_one_connected_to(server, monkeypatch):
    """A name that is public when it is checked and private afterwards is resolved once."""
    names = Names(monkeypatch, photos_example=[["127.0.0.1"], ["127.0.0.2"]])
    assert fetch(f"http://photos.example:{server.server_port}/photo") == PHOTO
    assert names.asked == ["photos.example"]
    assert server.requests[-1][1]["Host"] == f"photos.example:{server.server_port}"


def test_one_private_address_among_public_ones_is_refused(server, monkeypatch):
    Names(monkeypatch, photos_example=[["127.0.0.1", "10.0.0.1"]])
    with pytest.raises(FetchError, match=r"leads to 10\.0\.0\.1 \(photos\.example\), not a public address"):
        fetch(f"http://photos.example:{server.server_port}/photo")


@pytest.mark.parametrize("target", ["http://10.0.0.1/", "//inside.example/photo"])
def test_redirects_are_checked_again(server, monkeypatch, target):
    Names(monkeypatch, photos_example=[["127.0.0.1"]], inside_example=[["192.168.0.7"]])
    with pytest.raises(FetchError, match=r"leads to .*not a public address"):
        fetch(f"http://photos.example:{server.server_port}/to/302?url={target}")
    assert fetch(f"http://127.0.0.1:{server.server_port}/to/302?url=/photo") == PHOTO


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://", "a URL without a host"),
        ("http://a b/", "cannot be fetched: URL can't contain"),
        ("http://a:port/", "not a URL"),
        ("http://" + "a" * 64 + ".example/", "not a URL: .*label"),
        ("gopher://example.com/", "only http and https"),
        ("photo.jpg", "only http and https"),
        ("http://photos.example@127.0.0.1/", "a user name"),
        ("http://a/" + "a" * 8192, "more than 8,192 characters"),
    ],
)
def test_an_invalid_url_is_refused(url, message):
    with pytest.raises(FetchError, match=message):
        fetch(url, timeout=60)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of our own for photos.example."""
    path = photo_server.certificate(tmp_path_factory.mktemp("tls"))
    if path is None:
        pytest.skip("no openssl program that makes a certificate with a subjectAltName")
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[Server]:
    with serving(context=server_context(certificate)) as server:
        yield server


def test_tls_verifies_the_name_and_is_not_left_by_a_redirect(secure, certificate, monkeypatch):
    Names(monkeypatch, photos_example=[["127.0.0.1"]] * 3, other_example=[["127.0.0.1"]])
    with pytest.raises(FetchError, match="the certificate is not valid"):
        fetch(f"https://photos.example:{secure.server_port}/photo")
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    assert fetch(f"https://photos.example:{secure.server_port}/photo") == PHOTO
    with pytest.raises(FetchError, match=r"the certificate is not valid: .*other\.example"):
        fetch(f"https://other.example:{secure.server_port}/photo")
    with pytest.raises(FetchError, match="redirected from https to http://"):
        fetch(f"https://photos.example:{secure.server_port}/to_http")


def test_the_deadline_includes_the_handshake():
    expected = pytest.raises(FetchError, match=r"not received within 0\.3 seconds")
    with socket.create_server(("127.0.0.1", 0)) as silent, expected:
        fetch_here(f"https://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.3)


# Resources


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted on Linux")
def test_no_descriptor_and_no_file_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    photo = tmp_path / "a.png"
    photo.write_bytes(PHOTO)
    sources = [photo, PHOTO, PHOTO[:-30], tmp_path, f"{server.url}/photo", f"{server.url}/hops/3"]
    sources += [f"{server.url}/{path}" for path in ("short", "nothing", "endless", "nonsense", "to/302?url=file:///x")]
    sources += [f"https://127.0.0.1:{server.server_port}/photo"]

    def load_all() -> None:
        for source in sources:
            with contextlib.suppress(ImageError):
                load_image(source, allow_private=True, max_bytes=100_000)

    def open_here() -> int:
        return len(os.listdir("/proc/self/fd"))

    load_all()
    before = open_here()
    for _ in range(5):
        load_all()
    until = time.monotonic() + 10  # until the threads of the server have closed theirs
    while open_here() > before and time.monotonic() < until:
        time.sleep(0.05)
    assert open_here() <= before
    assert list(tmp_path.iterdir()) == [photo]
