"""Gives memory back that a burst took, when it is over.

What comes and goes is freed when it goes; but the allocator of the C library keeps what
lies between things that stay, for the next burst. malloc_trim(3) gives that back. It
takes about a millisecond for each 10 MiB, so it is done once after each burst, when
nobody waits.
"""

import logging
from typing import Final

logger = logging.getLogger(__name__)

BUSY: Final = 100
"""Requests and sessions in a second that are a burst."""

QUIET: Final = 10.0
"""Seconds after the last of them after which it is over."""


class Trimming:
    """Decides when memory is given back."""

    def __init__(self) -> None:
        self._done = 0
        #: When there was a burst after which nothing was given back yet.
        self._busy_at: float | None = None

    def look(self, done: int, now: float) -> bool:
        """Gives memory back if it is time for that; tells whether it was.

        To be called about once a second.

        Args:
            done: how many requests and sessions there were, ever.
        """
        if done - self._done >= BUSY:
            self._busy_at = now
        self._done = done
        if self._busy_at is None or now - self._busy_at < QUIET:
            return False
        self._busy_at = None
        trim()
        return True


def trim() -> None:
    """Gives memory back that nothing is in, where the C library can do that."""
    try:
        # Only a call into the C library: no memory has to be writable and executable
        # for it (MemoryDenyWriteExecute= of the unit), as for a callback out of it.
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, MemoryError, OSError, AttributeError) as error:
        logger.debug("no memory is given back: %s", error)
