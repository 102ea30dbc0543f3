"""Releases memory after a burst, even while the daemon is busy.

Freed memory stays with the allocator of the C library if it lies between used blocks.
malloc_trim(3) returns it to the kernel. That takes about a millisecond for each 10 MiB,
and everybody waits. So it happens rarely, and only while there is much more memory than
at the start.
"""

import logging
import os
from functools import cache
from typing import Final

logger = logging.getLogger(__name__)

PAGE: Final = os.sysconf("SC_PAGE_SIZE")

SPARE: Final = 8 * 2**20
"""Bytes over the minimum up to which nothing happens."""

PAUSE: Final = 15.0
LONGEST_PAUSE: Final = 30.0
"""Seconds between two trims. The pause grows while trims release little, because held
memory does not go by itself. It stays short enough to release memory within half a
minute after its user has freed it."""


class Trimming:
    """Decides when to trim.

    Args:
        least: the least bytes that the process takes (`at_start`).
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._pause = PAUSE
        self._next = 0.0

    def look(self, now: float) -> bool:
        """Trims if it is due. Returns whether it did. Call it about once a second."""
        before = resident()
        self._least = min(self._least, before)
        if before < self._least + SPARE or now < self._next:
            return False
        trim()
        gave_much = before - resident() > before // 8
        self._pause = PAUSE if gave_much else min(2 * self._pause, LONGEST_PAUSE)
        self._next = now + self._pause
        return True


@cache
def _statm() -> int:
    """Returns a descriptor that stays open, because none may be free later."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def resident() -> int:
    """Returns how many bytes of memory belong to this process alone."""
    _, all_, shared, *_ = os.pread(_statm(), 128, 0).split()
    return (int(all_) - int(shared)) * PAGE


@cache
def at_start() -> int:
    """Returns the result of `resident` at the first call."""
    return resident()


def trim() -> None:
    """Returns freed memory to the kernel, if the C library can."""
    try:
        # A plain call needs no writable and executable memory, as a callback would
        # (MemoryDenyWriteExecute= in the unit).
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, MemoryError, OSError, AttributeError) as error:
        logger.debug("cannot return memory to the system: %s", error)
