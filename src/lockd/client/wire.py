"""Carries the bytes between a socket and a core; never waits."""

import select
from collections import deque
from collections.abc import Callable
from itertools import repeat
from operator import getitem, setitem

from lockd.client.core import CLOSED, ClientCore
from lockd.hints import Any, Final
from lockd.lean import socket

_READ_SIZE: Final = 65_536


class Wire:
    """The socket of one connection, in non-blocking mode.

    A signal handler may run, and raise, after any call of a function. So sending and
    noting what was sent is one call here: the next item of an iterator whose parts are
    all written in C. The same holds for receiving. The kernel may accept only a part of
    a piece. The rest then replaces the piece.
    """

    def __init__(self, sock: socket.socket, core: ClientCore) -> None:
        self.sock = sock
        self._core = core
        sock.setblocking(False)
        pieces: deque[bytes] = core.outgoing
        first = map(getitem, repeat(pieces), repeat(0))
        sent = map(sock.send, first, repeat(socket.MSG_NOSIGNAL))
        rests = map(getitem, first, map(slice, sent, repeat(None)))
        replace: Callable[[Any, int, Any], None] = setitem
        self._sends = map(replace, repeat(pieces), repeat(0), rests)
        received = zip(map(sock.recv, repeat(_READ_SIZE)), core.numbers, strict=False)
        self._receipts = map(core.arrived.append, received)
        #: Those that nobody uses now. A signal handler may come in while one is used.
        self._polls: list[select.poll] = []

    def push(self) -> None:
        """Sends what the kernel accepts. The rest stays in `core.outgoing`."""
        pieces = self._core.outgoing
        try:
            while pieces:
                next(self._sends)
                # No call between the tests and the removal.
                if pieces and not pieces[0]:
                    pieces.popleft()
        except (OSError, IndexError) as error:
            if _is_handlers(error):
                raise
            # Otherwise the kernel's buffer is full, or a signal handler has sent
            # everything.
            if not isinstance(error, BlockingIOError | IndexError):
                # The daemon's last words may be unread: the reader will find them.
                pieces.clear()

    def pull_all(self) -> bool:
        """Receives all bytes that have come. Returns whether there were any."""
        core = self._core
        heard = False
        while core.ended is None:
            try:
                poll = self._polls.pop()
            except IndexError:
                poll = select.poll()
                poll.register(self.sock, select.POLLIN)
            # To receive nothing would raise, which takes three times as long.
            found = poll.poll(0)
            self._polls.append(poll)
            if not found:
                break
            self.pull()
            heard = True
        if core.arrived:
            core.take_in()
        return heard

    def pull(self) -> None:
        """Receives some bytes and passes them to the core."""
        core = self._core
        if core.ended is not None:
            return
        try:
            next(self._receipts)
        except OSError as error:
            if _is_handlers(error):
                raise
            if isinstance(error, ConnectionResetError):  # it closed with unread bytes
                core.end(CLOSED)
            elif not isinstance(error, BlockingIOError):
                core.end(f"the connection to the daemon failed: {error.strerror}")
        if core.arrived:
            core.take_in()


def _is_handlers(error: Exception) -> bool:
    """Returns whether a signal handler raised this, and not the interrupted call.

    A call of C has no frame; a handler has one.
    """
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None
