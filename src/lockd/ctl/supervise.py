"""Keeps a started command company until it has ended, and its lock with it.

One loop, woken only by signals: those for the command, SIGCHLD for its end, SIGIO for
the daemon's socket, SIGALRM for the end of the patience with a command that has lost
its lock.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from lockd.ctl.command import Command
from lockd.ctl.signals import FORWARDED, WATCHED, has_it_already
from lockd.errors import LockLostError

_JOB_CONTROL: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


class Supervisor:
    """Watches one started command. All watched signals are blocked meanwhile.

    Args:
        command: what runs.
        check_lock: raises `LockLostError` if the lock is lost; must not block.
        on_lost: called once, before a command without its lock is stopped.
        stop_signal: what such a command is sent first.
        kill_after: seconds until it is sent SIGKILL.

    Attributes:
        lost: why the command was stopped; None while its lock is held.
    """

    def __init__(
        self,
        command: Command,
        check_lock: Callable[[], None],
        on_lost: Callable[[LockLostError], None],
        *,
        stop_signal: int,
        kill_after: float,
    ) -> None:
        self.lost: LockLostError | None = None
        self._command = command
        self._check_lock = check_lock
        self._on_lost = on_lost
        self._stop_signal = stop_signal
        self._kill_after = kill_after

    def run(self) -> int:
        """Returns the wait status of the command, once it has ended."""
        while (status := self._poll()) is None:
            try:
                self._check_lock()
            except LockLostError as error:
                # A lock ends with its command too: then this was no loss.
                if (status := self._poll()) is not None:
                    return status
                self._stop_command(error)
            self._handle(signal.sigwaitinfo(WATCHED))
        return status

    def _poll(self) -> int | None:
        status = self._command.poll()
        if status is None or not os.WIFSTOPPED(status):
            return status
        # The shell sees only this process, and wants to see its job stopped.
        if os.WSTOPSIG(status) in _JOB_CONTROL and self.lost is None:
            os.kill(os.getpid(), signal.SIGSTOP)
        return None

    def _handle(self, info: signal.struct_siginfo) -> None:
        if info.si_signo == signal.SIGALRM and self.lost is not None:
            self._send(signal.SIGKILL)
        elif info.si_signo in FORWARDED and not has_it_already(self._command.pid, info):
            self._send(info.si_signo)

    def _stop_command(self, error: LockLostError) -> None:
        if self.lost is None:
            self.lost = error
            self._on_lost(error)
            self._send(self._stop_signal)
            self._send(signal.SIGCONT)
            # 0 would disarm the timer.
            signal.setitimer(signal.ITIMER_REAL, self._kill_after or 1e-6)

    def _send(self, signum: int) -> None:
        # It is our child and not reaped: the pid is its own. It may have become root's.
        with suppress(PermissionError):
            os.kill(self._command.pid, signum)
