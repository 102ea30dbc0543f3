"""Makes a daemon behave under valgrind as it does without.

Python loads this module at its start.

- valgrind lacks two system calls before its version 3.24. What stands in for them here
  says that a process lives, and sends it nothing: enough if nobody is killed.
- Everything takes fifty times as long, but the daemon limits the time of a turn. So its
  clock only shows how often it is asked.
"""

import os
import signal
import time
from itertools import count
from typing import Final

_STEP: Final = 1e-5


def _pidfd_open(pid: int, flags: int = 0) -> int:
    os.kill(pid, 0)  # raises if it does not exist
    return os.eventfd(0)


def _pidfd_send_signal(pidfd: int, signum: int) -> None:
    pass


os.pidfd_open = _pidfd_open
signal.pidfd_send_signal = _pidfd_send_signal  # type: ignore[assignment]
time.monotonic = time.perf_counter = count(time.monotonic(), _STEP).__next__
