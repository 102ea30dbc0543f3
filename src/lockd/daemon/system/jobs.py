"""What is done in a thread of its own."""

import signal
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def undisturbed(job: Callable[[], T]) -> T:
    """Does a job in this thread, to which no signal is delivered from now on.

    It would not be there for a successor (`handover`).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    return job()
