"""Wakes a thread that polls a socket when no bytes have come.

A signal handler may run in a thread that is in poll(2), and read what the thread waits
for. Python then resumes the poll (PEP 475), which would never end.
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
