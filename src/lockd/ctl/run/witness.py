"""Tells whether a signal that lockctl got was sent to others, too.

A terminal signals all processes of its foreground group, so does `kill %1` in a shell,
and a service manager signals each process of a unit. Then the command has the signal
already. A signal that was sent to lockctl alone has to be passed on to it. The kernel
does not tell lockctl which of the two it was. So lockctl has a child that does nothing
but get signals: a witness in the same process group, session and control group as the
command. What the witness got, the command got.
"""

import os
import select
import signal
import socket
from contextlib import suppress
from typing import Final

from lockd.ctl.run.signals import FORWARDED

_PATIENCE: Final = 0.1
"""Seconds within which a signal for many reaches all of them. The kernel signals a
group at once, its youngest process first, so the witness has it before lockctl;
a service manager signals one after another."""


class Witness:
    """A child that gets what is sent to the process group; ends when lockctl does.

    To be started while the signals that lockctl passes on are blocked.
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
        #: Answers that are still to come, if it was stopped for some time.
        self._awaited = 0

    def got(self, signum: int) -> bool:
        """Tells whether a signal that we got just now came to the witness, too.

        What it got is used up: the next question is about the next signal.
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
        """Ends the witness, and waits until it is gone."""
        # By pidfd: if it was killed, it was reaped perhaps, and its pid is another's.
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
