"""http and https URLs: the client of downloads and photographs, urllib with limits.

A photograph's URL may be untrusted. So each host, also of a redirect, is resolved once, all its addresses must be
public, and the connection goes to a checked address: DNS cannot change it in between. Proxies of the environment are
for downloads only, since the address behind a proxy cannot be checked.
"""

from __future__ import annotations

import http
import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from torch_caption.io.exits import one_line
from torch_caption.io.text import printable

MAX_URL = 2**13
MAX_REDIRECTS = 5
CHUNK = 2**18
_NOT_ESCAPED = "%/:=&?~+!$,;'()*@[]"
_UNICAST = ipaddress.ip_network("2000::/3")  # the assigned addresses of IPv6
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 over IPv6; by RFC 6052 gateways drop addresses that are not public


class FetchError(Exception):
    """A URL that is refused or cannot be read; the message is one line, without the URL.

    Attributes:
        status: of an unsuccessful response; None without a response.
        again: a retry may succeed.
    """

    def __init__(self, message: str, *, status: int | None = None, again: bool = False) -> None:
        super().__init__(printable(message))
        self.status = status
        self.again = again


def open_url(
    url: str, *, timeout: float, headers: Mapping[str, str] | None = None, connections: _Connections | None = None
) -> http.client.HTTPResponse:
    """The successful response to a GET request, after at most 5 redirects; `pieces` reads its content.

    Args:
        url: http or https, of at most 8,192 characters, without a user name.
        timeout: seconds for connecting and for each read.
        headers: additional headers of the request.
        connections: handlers of connections; None is urllib's default, with the environment's proxies.

    Raises:
        FetchError: the URL or a redirect is refused, the server cannot be reached or responds with an error.
    """
    opener = urllib.request.OpenerDirector()  # build_opener would also open file: and ftp:
    usual = (urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler())
    for way in usual if connections is None else (connections,):
        opener.add_handler(way)
    for handler in (_Redirects(), urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler()):
        opener.add_handler(handler)
    every = {"User-Agent": "torch_caption", "Accept-Encoding": "identity"}
    with _reported():
        return opener.open(urllib.request.Request(_checked(url), headers={**every, **(headers or {})}), timeout=timeout)


def pieces(response: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
    """The content of a response, piece by piece.

    Raises:
        FetchError: it is compressed, has more than `most` bytes, or ends early.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise FetchError(f"sent compressed ({encoding}), which was not requested")
    left = most
    while left >= (response.length or 0):
        with _reported():
            piece = response.read1(CHUNK)
        if not piece:
            if response.length:
                raise FetchError(f"cut off, {response.length:,} bytes are missing", again=True)
            return
        left -= len(piece)
        if left >= 0:
            yield piece
    raise FetchError(f"more than {most:,} bytes")


def read_url(url: str, *, timeout: float, most: int, allow_private: bool = False) -> bytes:
    """The content of a URL, directly from public addresses.

    Args:
        timeout: seconds for everything: name resolution, connections, redirects, the last byte. The work runs in a
            thread, since Python has no timeout for name resolution, and a socket's timeout restarts with each byte.
        most: maximum size in bytes.
        allow_private: also from addresses that are not public.

    Raises:
        FetchError: as `open_url` and `pieces`; an address that is not public, a redirect from https to http, or a
            timeout.
    """
    connections = _Connections(allow_private)
    outcome: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def read() -> bytes:
        with open_url(url, timeout=timeout, connections=connections) as response:
            if response.status != http.HTTPStatus.OK:
                raise FetchError(f"the server responds {response.status} {response.reason}")
            return b"".join(pieces(response, most))

    def work() -> None:
        try:
            outcome.put(read())
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        found = outcome.get(timeout=timeout)
    except queue.Empty:
        raise FetchError(f"not received within {timeout:g} seconds", again=True) from None
    finally:
        connections.end()
    if isinstance(found, Exception):
        raise found
    return found


def is_public(address: str) -> bool:
    """Whether an IP address is unicast and public; for an embedded IPv4 address, whether that is."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # another address family than IP
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    return ip.is_global and not ip.is_multicast and (ip.version == 4 or ip in _UNICAST or ip in _NAT64)


def _checked(url: str) -> str:
    """The URL with its host in ASCII and invalid characters escaped."""
    if len(url) > MAX_URL:
        raise FetchError(f"a URL of more than {MAX_URL:,} characters")
    try:
        parts = urlsplit(url)
        netloc = parts.netloc.encode("idna").decode("ascii")
        host, _ = parts.hostname, parts.port  # which may not be a number
    except ValueError as error:
        raise FetchError(f"not a URL: {one_line(error)}") from None
    if parts.scheme not in ("http", "https"):
        raise FetchError("only http and https URLs are fetched")
    if not host:
        raise FetchError("a URL without a host")
    if "@" in netloc:  # http://public.example@localhost/ resembles public.example
        raise FetchError("a URL with a user name before its host; remove it")
    path, query = (quote(part, safe=_NOT_ESCAPED, errors="replace") for part in (parts.path, parts.query))
    return parts._replace(netloc=netloc, path=path, query=query, fragment="").geturl()


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()  # its content would be read without a limit
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            target = _checked(newurl)
        except FetchError as error:
            raise FetchError(f"redirected to {newurl}: {error}") from None
        if req.type == "https" and not target.startswith("https:"):
            raise FetchError(f"redirected from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, target)


class _Connections(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """The connections of one `read_url`: to checked addresses, with a common end."""

    def __init__(self, allow_private: bool) -> None:
        super().__init__()
        self._allow_private = allow_private
        self._ended = False
        self._sockets: list[socket.socket] = []

    def http_open(self, req: Any) -> Any:
        return self.do_open(partial(self._made, _Connection), req)

    def https_open(self, req: Any) -> Any:
        context = ssl.create_default_context()
        return self.do_open(partial(self._made, _SecureConnection), req, context=context)

    def _made(self, kind: type[_Connection], host: str, **options: Any) -> _Connection:
        connection = kind(host, **options)
        connection.connected = self._connected
        return connection

    def _connected(self, host: str, port: int, timeout: float) -> socket.socket:
        addresses: list[Any] = [found[-1][:2] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        for address in addresses:
            if not self._allow_private and not is_public(address[0]):
                of = "" if host == address[0] else f" ({host})"
                raise FetchError(f"leads to {address[0]}{of}, not a public address")
        for left, address in zip(range(len(addresses))[::-1], addresses, strict=True):
            try:
                sock = socket.create_connection(address, timeout / len(addresses))
                break
            except OSError:
                if not left:
                    raise
        sock.settimeout(2 * timeout)  # `end` was called before
        self._sockets.append(sock.dup())  # a duplicate: TLS takes the other one
        if self._ended:
            self.end()
        return sock

    def end(self) -> None:
        """Shut all connections down, also those in use, and refuse new ones."""
        self._ended = True
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class _Connection(http.client.HTTPConnection):
    connected: Callable[[str, int, float], socket.socket]

    def connect(self) -> None:
        self.sock = self.connected(self.host, self.port, self.timeout)  # type: ignore[arg-type]


class _SecureConnection(http.client.HTTPSConnection, _Connection):
    """`connect` is HTTPSConnection's, which calls the one above."""


@contextmanager
def _reported() -> Iterator[None]:
    """In the block, errors of urllib, http.client and the network become FetchErrors."""
    try:
        yield
    except HTTPError as error:
        error.close()
        raise FetchError(f"the server responds {error.code} {one_line(error.reason)}", status=error.code) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: such as a chunk of zz bytes
        reason = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise FetchError(f"the certificate is not valid: {reason.verify_message}") from error
        again = not isinstance(reason, ValueError | http.client.InvalidURL)
        raise FetchError(f"cannot be fetched: {one_line(reason)}", again=again) from error
