"""The processes that were started under a lock: the command and all its descendants.

lockctl is their subreaper (prctl(2)): a process that loses its parent becomes a child
of lockctl, not of process 1. So all of them are below lockctl, and all have ended when
lockctl has no child.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lockd.hints import Any, Final
from lockd.lean import signal

_PR_SET_CHILD_SUBREAPER: Final = 36


def adopt_orphans() -> None:
    """Makes this process the new parent of every descendant that loses its parent."""
    # `ctypes.CDLL(None).prctl` calls this. To load the rest of `ctypes` takes a tenth
    # of the time that Python takes to start.
    import _ctypes

    this_program: Any = None
    prctl = _ctypes.dlsym(_ctypes.dlopen(this_program, 0), "prctl")
    _ctypes.call_function(prctl, (_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def descendants() -> list[int]:
    """Returns the pids of all processes below this one, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (parent := _parent_of(int(entry))) is not None:
            children.setdefault(parent, []).append(int(entry))
    found = children.get(os.getpid(), [])
    for pid in found:  # the loop appends to this list
        found += children.get(pid, ())
    return found


def send_all(signum: int) -> None:
    """Sends a signal to all processes below this one."""
    below = descendants()
    ours = {os.getpid(), *below}
    for pid in below:
        # It may have ended, or become another user's by a set-user-ID program.
        with suppress(ProcessLookupError, PermissionError), _opened(pid) as pidfd:
            # Another process may have its pid now.
            if _parent_of(pid) in ours:
                signal.pidfd_send_signal(pidfd, signum)


@contextmanager
def _opened(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _parent_of(pid: int) -> int | None:
    """Returns the parent of a process; None if it has ended (proc_pid_stat(5))."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state in (b"Z", b"X") else int(parent)
