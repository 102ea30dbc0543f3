"""The process that holds a reserved lock: `sleep`, detached from the terminal.

`lockctl acquire --for` starts it, and `lockctl release` ends it. It begins to sleep
when it has the lock. If lockctl ends before, the process ends too.
"""

import os
import signal
import socket
from contextlib import suppress
from typing import Final, NoReturn, Self

from lockd.errors import UnavailableError

MARK: Final = "LOCKD_RESERVED"
"""The variable in its environment that says its own pid."""

_GO: Final = b"go"


class Sleeper:
    """A process that waits for its start, then sleeps, then ends.

    Args:
        seconds: how long it sleeps.
    """

    def __init__(self, seconds: int) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            _sleep(theirs.detach(), seconds)
        theirs.close()
        self._started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Ends it, if it has not been started."""
        self._ours.close()
        if not self._started:
            os.waitpid(self.pid, 0)

    def start(self) -> None:
        """Lets it begin to sleep.

        Raises:
            UnavailableError: it cannot be executed, or was killed before.
        """
        with suppress(BrokenPipeError):
            self._ours.send(_GO)
            error = self._ours.recv(16)
            # Its side of the socket was closed, because it executes the program.
            self._started = not error
            if error:
                why = os.strerror(int(error))
                raise UnavailableError(f"cannot run 'sleep': {why}: install it")
            return
        raise UnavailableError("the process that should hold the lock was killed")


def _sleep(lockctl: int, seconds: int) -> NoReturn:
    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        # Nobody shall wait for the end of a file that this process does not use.
        os.closerange(3, lockctl)
        os.closerange(lockctl + 1, os.sysconf("SC_OPEN_MAX"))
        if os.read(lockctl, len(_GO)):
            words = ("sleep", str(seconds))
            os.execvpe(words[0], words, os.environ | {MARK: str(os.getpid())})
    except OSError as error:
        os.write(lockctl, b"%d" % (error.errno or 0))
    finally:
        os._exit(1)


def end(pid: int) -> bool:
    """Ends a process if it holds a reserved lock. Returns whether it does."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            is_sleeper = f"{MARK}={pid}".encode() in file.read().split(b"\0")
        # The pidfd was opened before: this is the process whose environment was read.
        if is_sleeper:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return is_sleeper
