"""The clock of the daemon: CLOCK_MONOTONIC as it is (clock_gettime(2)).

trio's own clock begins anywhere anew in each process. Times that a daemon leaves to its
successor must mean the same to both.
"""

import time

import trio


class MonotonicClock(trio.abc.Clock):
    """Seconds since the machine was started, but for those that it slept."""

    def start_clock(self) -> None:
        """Does nothing: it goes already."""

    #: Returns the time. Without a call in between: it is asked several times a request.
    current_time = staticmethod(time.monotonic)

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Returns how many seconds there are until a time."""
        return deadline - time.monotonic()
