"""Answers those who collect metrics: one GET over HTTP a connection, and no more.

Whoever asks may be slow, hostile or many: what is read of one is bounded, and so are
the time for it and the number of them. Others wait to be accepted, which holds up
nobody but those who ask for metrics.
"""

import logging
import re
import socket
from collections.abc import Callable
from typing import Final

import trio

from lockd.daemon.defects import defect
from lockd.daemon.exposition import CONTENT_TYPES, Format

logger = logging.getLogger(__name__)

PATH: Final = b"/metrics"

MAX_HEAD: Final = 8_192
"""Bytes of a request."""

AT_ONCE: Final = 8
"""Connections that are served at the same time."""

PATIENCE: Final = 5.0
"""Seconds that one may take, from accept to close."""

PAUSE: Final = 1.0
"""Seconds until the next try to accept, when that failed."""

_REQUEST: Final = re.compile(rb"([A-Z]+) ([!-~]+) HTTP/1\.[01]\r?\n")
_END: Final = re.compile(rb"\r?\n\r?\n")
_ACCEPT: Final = re.compile(rb"\naccept:([^\r\n]*)", re.IGNORECASE)

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}

Text = Callable[[Format], str]


async def serve(listener: socket.socket, text: Text) -> None:
    """Serves at a listening socket until it is cancelled.

    Args:
        text: returns the metrics.
    """
    door = trio.socket.from_stdlib_socket(listener)
    places = trio.Semaphore(AT_ONCE)
    async with trio.open_nursery() as nursery:
        while True:
            await places.acquire()
            try:
                sock, _ = await door.accept()
            except OSError as error:
                places.release()
                logger.warning("who asks for metrics is not served: %s", error)
                await trio.sleep(PAUSE)
            else:
                nursery.start_soon(_serve_one, sock, text, places)


async def _serve_one(
    sock: trio.socket.SocketType, text: Text, places: trio.Semaphore
) -> None:
    try:
        with sock, trio.move_on_after(PATIENCE):
            await _converse(trio.SocketStream(sock), text)
    except trio.BrokenResourceError:
        pass  # it went away
    finally:
        places.release()


async def _converse(stream: trio.SocketStream, text: Text) -> None:
    head = b""
    while not _END.search(head) and len(head) <= MAX_HEAD:
        data = await stream.receive_some(MAX_HEAD)
        if not data:
            return
        head += data
    await stream.send_all(answer(head, text))
    # What it has sent and we have not read would have the kernel throw the answer away.
    await stream.send_eof()
    while await stream.receive_some(MAX_HEAD):
        pass


def answer(head: bytes, text: Text) -> bytes:
    """Returns the answer to a request.

    Args:
        head: all that came, at least up to the empty line, or too much.
    """
    end = _END.search(head)
    request = _REQUEST.match(head)
    if end is None or end.start() > MAX_HEAD:
        return _response(431, f"more than {MAX_HEAD} bytes")
    if request is None:
        return _response(400, "this is no request of HTTP/1.1")
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
