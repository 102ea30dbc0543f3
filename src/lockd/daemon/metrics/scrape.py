"""Serves metrics over HTTP: one GET for each connection.

Clients may be slow, hostile or many. So the bytes and the time of each are limited, and
so is their number. If all permits are taken, the oldest holder must make room. So
silent clients cannot block others.

A browser on this host may connect too. A web page may point its own name here (DNS
rebinding) and read the answer. So the server only answers requests for this host.
"""

import logging
import re
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Final, NamedTuple

import trio

from lockd.daemon.metrics.exposition import CONTENT_TYPES, Format
from lockd.daemon.system.defects import defect
from lockd.names import quoted

logger = logging.getLogger(__name__)

PATH: Final = b"/metrics"

MAX_HEAD: Final = 8_192
"""The most bytes of a request."""

AT_ONCE: Final = 8
"""The most connections at the same time."""

PATIENCE: Final = 5.0
"""Seconds that a connection may take, from accept to close."""

ENOUGH: Final = 0.1
"""Seconds that it may take in any case, even if others wait for its permit."""

PAUSE: Final = 1.0
"""Seconds to wait after accept(2) has failed."""

_REQUEST: Final = re.compile(rb"([A-Z]+) ([!-~]+) HTTP/1\.[01]\r?\n")
_END: Final = re.compile(rb"\r?\n\r?\n")
_ACCEPT: Final = re.compile(rb"\naccept:([^\r\n]*)", re.IGNORECASE)
_HOST: Final = re.compile(rb"\nhost:[ \t]*([^\r\n]*?)[ \t]*(?=\r?\n|$)", re.IGNORECASE)
_PORT: Final = re.compile(r":[0-9]*$")

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}

_ASK: Final = (
    "ask for the metrics by an IP address, as localhost, or by the name of the host"
)

Text = Callable[[Format], str]


async def serve(listener: socket.socket, text: Text) -> None:
    """Serves at a listening socket until it is cancelled.

    Args:
        listener: the socket.
        text: returns the metrics.
    """
    door = trio.socket.from_stdlib_socket(listener)
    permits = Permits()
    async with trio.open_nursery() as nursery:
        while True:
            try:
                sock, _ = await door.accept()
            except OSError as error:
                logger.warning("cannot accept a request for metrics: %s", error)
                await trio.sleep(PAUSE)
            else:
                permit = await permits.take()
                nursery.start_soon(_serve_one, sock, text, permit)


class Permits:
    """Limits the connections at the same time.

    The oldest holder makes room for others.
    """

    def __init__(self) -> None:
        self._free = trio.Semaphore(AT_ONCE)
        #: The oldest first.
        self._taken: dict[trio.CancelScope, float] = {}

    async def take(self) -> "Permit":
        """Waits for a permit, at most `ENOUGH` seconds."""
        if self._free.value == 0:
            scope, since = next(iter(self._taken.items()))
            scope.deadline = min(scope.deadline, since + ENOUGH)
        await self._free.acquire()
        now = trio.current_time()
        scope = trio.CancelScope(deadline=now + PATIENCE)
        self._taken[scope] = now
        return Permit(scope, partial(self._give_back, scope))

    def _give_back(self, scope: trio.CancelScope) -> None:
        del self._taken[scope]
        self._free.release()


class Permit(NamedTuple):
    """Allows one connection for a limited time."""

    scope: trio.CancelScope
    give_back: Callable[[], None]


async def _serve_one(sock: trio.socket.SocketType, text: Text, permit: Permit) -> None:
    try:
        with sock, permit.scope:
            await _converse(trio.SocketStream(sock), text)
    except trio.BrokenResourceError:
        pass  # it has disconnected
    except Exception as error:
        defect(error)  # it ends only this connection
    finally:
        permit.give_back()


async def _converse(stream: trio.SocketStream, text: Text) -> None:
    head = b""
    while not _END.search(head) and len(head) <= MAX_HEAD:
        data = await stream.receive_some(MAX_HEAD)
        if not data:
            return
        head += data
    is_ours = stream.socket.family == socket.AF_UNIX  # no browser connects there
    await stream.send_all(answer(head, text, is_ours=is_ours))
    # With unread bytes, the kernel would discard the answer.
    await stream.send_eof()
    while await stream.receive_some(MAX_HEAD):
        pass


def answer(head: bytes, text: Text, *, is_ours: bool = False) -> bytes:
    """Returns the answer to a request.

    Args:
        head: all received bytes, at least up to the empty line, or too many.
        text: returns the metrics.
        is_ours: whether to accept any host name.
    """
    end = _END.search(head)
    request = _REQUEST.match(head)
    if end is None or end.start() > MAX_HEAD:
        return _response(431, f"more than {MAX_HEAD} bytes")
    if request is None:
        return _response(400, "this is not an HTTP/1.1 request")
    for host in _HOST.findall(head[: end.start()]):
        name = _PORT.sub("", host.decode("latin-1"))
        if not (is_ours or is_this_host(name)):
            return _response(421, f"{quoted(name)} is not this host: {_ASK}")
    method, target = request.groups()
    if method not in (b"GET", b"HEAD"):
        return _response(405, "use GET or HEAD", "Allow: GET, HEAD")
    if target.partition(b"?")[0] != PATH:
        return _response(404, f"the metrics are at {PATH.decode()}")
    wanted = format_for(head[: end.start()])
    try:
        body = text(wanted)
    except Exception as error:
        return _response(500, defect(error).message)
    kind = f"Content-Type: {CONTENT_TYPES[wanted]}"
    return _response(200, body, kind, head_only=method == b"HEAD")


def is_this_host(name: str) -> bool:
    """Returns whether a name always means this host: an address, or its own name.

    Nobody can point an address elsewhere, nor `localhost` (RFC 6761).
    """
    name = name.lower().rstrip(".")
    own = socket.gethostname().lower()
    if name in ("localhost", own, own.partition(".")[0]) or name.endswith(".localhost"):
        return True
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def format_for(head: bytes) -> Format:
    """Returns the format that a request accepts; OpenMetrics if it accepts both."""
    accepted = b",".join(_ACCEPT.findall(head)).lower()
    plain = (
        b"text/plain" in accepted and b"application/openmetrics-text" not in accepted
    )
    return "plain" if plain else "openmetrics"


def _response(status: int, body: str, *fields: str, head_only: bool = False) -> bytes:
    content = body.encode()
    if status != 200:
        content += b"\n"
        fields = (*fields, "Content-Type: text/plain; charset=utf-8")
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        *fields,
        f"Content-Length: {len(content)}",
        "Connection: close",
    ]
    head = "\r\n".join([*lines, "", ""]).encode()
    return head if head_only else head + content
