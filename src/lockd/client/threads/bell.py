"""Wakes a thread that polls a socket when no bytes have come.

A signal handler may run in a thread that is in poll(2), and read what the thread waits
for. Python then resumes the poll (PEP 475), which would never end.
"""

import os
import select
from collections.abc import Callable
from contextlib import suppress

from lockd.hints import Any


class Bell:
    """A descriptor that is readable from `ring` until somebody has waited.

    Args:
        awaited: the descriptor of the socket.
    """

    def __init__(self, awaited: int) -> None:
        self._awaited = awaited
        #: Those that nobody uses now. A signal handler may come in while one is used.
        self._polls: list[select.poll] = []
        self._descriptor = -1
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        self.close()

    def fileno(self) -> int:
        """Returns the descriptor, for poll(2)."""
        return self._descriptor

    def ring(self) -> None:
        """Makes the descriptor readable."""
        with suppress(OSError):  # closed: nobody waits for it
            os.eventfd_write(self._descriptor, 1)

    def wait(
        self,
        around: Callable[[Callable[[], Any]], Any] | None = None,
        *,
        sends: bool = False,
    ) -> None:
        """Waits until the socket is ready, or the bell rings.

        Args:
            around: calls a function; None to call it directly.
            sends: whether to wait for room to send, too. protocol 3.4: the daemon may
                stop reading while the client does not read. So a writer also waits for
                input.
        """
        try:
            poll = self._polls.pop()
        except IndexError:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            poll.register(self._awaited, select.POLLIN)
        if sends:
            poll.modify(self._awaited, select.POLLIN | select.POLLOUT)
        found = poll.poll() if around is None else around(poll.poll)
        if len(found) > 1 or found[0][0] != self._awaited:
            with suppress(OSError):
                os.eventfd_read(self._descriptor)
        if not sends:
            self._polls.append(poll)

    def close(self) -> None:
        """Closes the descriptor."""
        # No call between the load and the store: it is closed once.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
