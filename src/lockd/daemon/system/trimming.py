"""Gives memory back that a burst took, whether or not others work meanwhile.

What comes and goes is freed when it goes; but the allocator of the C library keeps what
lies between things that stay, for the next burst. malloc_trim(3) gives that back. It
takes about a millisecond for each 10 MiB, for which everybody waits, so it is done now
and then, and only while there is much more memory than there was at the start.
"""

import logging
import os
from functools import cache
from typing import Final

logger = logging.getLogger(__name__)

PAGE: Final = os.sysconf("SC_PAGE_SIZE")

SPARE: Final = 8 * 2**20
"""Bytes over the least that there ever was, up to which nothing is done."""

PAUSE: Final = 15.0
LONGEST_PAUSE: Final = 30.0
"""Seconds between two times: more each time that gave little back, as what is held does
not go by itself; but who lets go of it sees its memory go within half a minute."""


class Trimming:
    """Decides when memory is given back.

    Args:
        least: bytes that the process takes at least: what it had before it took
            anything over (`at_start`).
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._pause = PAUSE
        self._next = 0.0

    def look(self, now: float) -> bool:
        """Gives memory back if it is time for that; tells whether it was.

        To be called about once a second.
        """
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
    """Returns a descriptor that stays: to look is to be done when none is free, too."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def resident() -> int:
    """Returns how many bytes of memory are this process's own, and nobody else's."""
    _, all_, shared, *_ = os.pread(_statm(), 128, 0).split()
    return (int(all_) - int(shared)) * PAGE


@cache
def at_start() -> int:
    """Returns how many bytes were this process's own when this was first asked."""
    return resident()


def trim() -> None:
    """Gives memory back that nothing is in, where the C library can do that."""
    try:
        # Only a call into the C library: no memory has to be writable and executable
        # for it (MemoryDenyWriteExecute= of the unit), as for a callback out of it.
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, MemoryError, OSError, AttributeError) as error:
        logger.debug("no memory is given back: %s", error)
