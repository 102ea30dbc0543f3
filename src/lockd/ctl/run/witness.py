"""Finds out whether a signal that lockctl got was also sent to the command.

A terminal signals all processes of its foreground group. So does `kill %1` in a shell,
and a service manager signals each process of a unit. Then the command already has the
signal. If only lockctl got it, lockctl must forward it. The kernel does not say which
case it is. So lockctl has a child that only receives signals: a witness in the same
process group, session and control group as the command. If the witness got a signal, so
did the command.
"""

import os
import select
from contextlib import suppress

from lockd.ctl.run.signals import FORWARDED
from lockd.hints import Final
from lockd.lean import signal, socket

_PATIENCE: Final = 0.1
"""Seconds until a signal for several processes has reached all of them. The kernel
signals a group at once, its youngest process first, so the witness gets it before
lockctl. A service manager signals one process after another."""


class Witness:
    """A child that gets signals for the process group. It ends with lockctl.

    The caller must have blocked the signals that lockctl forwards.
    """

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._ours.close()
                _watch(theirs)
            finally:
                os._exit(0)
        theirs.close()
        self._pidfd = os.pidfd_open(self._pid)
        #: Outstanding answers, if the witness was stopped for some time.
        self._awaited = 0

    def got(self, signum: int) -> bool:
        """Returns whether the witness also got a signal that lockctl has just got.

        The question uses up the signal of the witness.
        """
        with suppress(OSError):  # somebody killed it
            self._ours.send(bytes([signum]))
            self._awaited += 1
            while select.select([self._ours], [], [], 2 * _PATIENCE)[0]:
                answer = self._ours.recv(1)
                self._awaited -= 1
                if self._awaited == 0 or not answer:
                    return answer == b"y"
        return False

    def end(self) -> None:
        """Ends the witness, and waits for its end."""
        # By pidfd: if it was killed and reaped, another process may have its pid.
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._ours.close()
        os.close(self._pidfd)


def _watch(lockctl: socket.socket) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    while question := lockctl.recv(1):
        got = signal.sigtimedwait([question[0]], _PATIENCE)
        lockctl.send(b"n" if got is None else b"y")
