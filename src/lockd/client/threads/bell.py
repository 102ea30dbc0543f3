"""Wakes a thread that waits for a socket, though nothing has come there.

A thread can be interrupted in poll(2) by a signal handler that reads what the thread
waits for. Python then goes on with the poll (PEP 475), which would last for ever.
"""

import os
from contextlib import suppress


class Bell:
    """A descriptor that is readable from `ring` until `hush`."""

    def __init__(self) -> None:
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

    def hush(self) -> None:
        """Makes the descriptor unreadable."""
        with suppress(OSError):
            os.eventfd_read(self._descriptor)

    def close(self) -> None:
        """Closes the descriptor."""
        # No call between the load and the store: it is closed once.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
