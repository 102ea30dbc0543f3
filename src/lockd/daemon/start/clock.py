"""The daemon's clock: CLOCK_MONOTONIC (clock_gettime(2)).

trio's own clock starts at a random time in each process. But a daemon and its successor
must read the recorded times in the same way.
"""

import time

import trio


class MonotonicClock(trio.abc.Clock):
    """Seconds since the machine was started, without its sleep."""

    def start_clock(self) -> None:
        """Does nothing: the clock already runs."""

    #: Returns the time, without another call: it is called several times in a request.
    current_time = staticmethod(time.monotonic)

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Returns how many seconds remain until a deadline."""
        return deadline - time.monotonic()
