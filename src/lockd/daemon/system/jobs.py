"""Work in threads. Apart, because boxes that do not know each other start threads."""

import signal
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def undisturbed(job: Callable[[], T]) -> T:
    """Runs a job in this thread, with all signals blocked.

    Otherwise the thread might take a signal that is meant for a successor (`handover`).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    return job()
