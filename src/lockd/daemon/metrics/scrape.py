"""Answers those who collect metrics: one GET over HTTP a connection, and no more.

Whoever asks may be slow, hostile or many: what is read of one is bounded, and so are
the time for it and the number of them. Where all permits are given whoever has had one
for longest makes room, so that nobody who says nothing holds up who asks.

A browser on this host is one of those who can connect. A page that it shows may have
its own name point here (DNS rebinding), and read what we answer; so we answer only who
asked for this host.
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
"""Bytes of a request."""

AT_ONCE: Final = 8
"""Connections that are served at the same time."""

PATIENCE: Final = 5.0
"""Seconds that one may take, from accept to close."""

ENOUGH: Final = 0.1
"""Seconds that it may take in any case, when others wait for its permit."""

PAUSE: Final = 1.0
"""Seconds until the next try to accept, when that failed."""

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
        text: returns the metrics.
    """
    door = trio.socket.from_stdlib_socket(listener)
    permits = Permits()
    async with trio.open_nursery() as nursery:
        while True:
            try:
                sock, _ = await door.accept()
            except OSError as error:
                logger.warning("who asks for metrics is not served: %s", error)
                await trio.sleep(PAUSE)
            else:
                permit = await permits.take()
                nursery.start_soon(_serve_one, sock, text, permit)


class Permits:
    """One for each connection that is served at once: whoever came first makes room."""

    def __init__(self) -> None:
        self._free = trio.Semaphore(AT_ONCE)
        #: The one that was taken first is the first.
        self._taken: dict[trio.CancelScope, float] = {}

    async def take(self) -> "Permit":
        """Waits for a permit, for `ENOUGH` at most."""
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
    """Lets one connection be served, until its time is over."""

    scope: trio.CancelScope
    give_back: Callable[[], None]


async def _serve_one(sock: trio.socket.SocketType, text: Text, permit: Permit) -> None:
    try:
        with sock, permit.scope:
            await _converse(trio.SocketStream(sock), text)
    except trio.BrokenResourceError:
        pass  # it went away
    except Exception as error:
        defect(error)  # it costs this one its connection, and nobody else anything
    finally:
        permit.give_back()


async def _converse(stream: trio.SocketStream, text: Text) -> None:
    head = b""
    while not _END.search(head) and len(head) <= MAX_HEAD:
        data = await stream.receive_some(MAX_HEAD)
        if not data:
            return
        head += data
    is_ours = stream.socket.family == socket.AF_UNIX  # where no browser comes
    await stream.send_all(answer(head, text, is_ours=is_ours))
    # What it has sent and we have not read would have the kernel throw the answer away.
    await stream.send_eof()
    while await stream.receive_some(MAX_HEAD):
        pass


def answer(head: bytes, text: Text, *, is_ours: bool = False) -> bytes:
    """Returns the answer to a request.

    Args:
        head: all that came, at least up to the empty line, or too much.
        is_ours: whether whoever asks means us, by whatever name.
    """
    end = _END.search(head)
    request = _REQUEST.match(head)
    if end is None or end.start() > MAX_HEAD:
        return _response(431, f"more than {MAX_HEAD} bytes")
    if request is None:
        return _response(400, "this is no request of HTTP/1.1")
    for host in _HOST.findall(head[: end.start()]):
        name = _PORT.sub("", host.decode("latin-1"))
        if not (is_ours or is_this_host(name)):
            return _response(421, f"{quoted(name)} is not this host: {_ASK}")
    method, target = request.groups()
    if method not in (b"GET", b"HEAD"):
        return _response(405, "only GET is answered", "Allow: GET, HEAD")
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
    """Tells whether a name means this host to everybody: an address, or its own name.

    Nobody can have an address point elsewhere, nor `localhost` (RFC 6761).
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
    """Returns the format that a request accepts: OpenMetrics, if it does not mind."""
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
