"""Keeps all that was started under a lock company until it has ended.

One loop, woken only by signals: those for the command, SIGCHLD for an end, SIGIO for
the daemon's socket, SIGALRM for the end of a patience.

First the command runs, and gets the signals that lockctl gets. When it has ended, what
it left behind keeps the lock, and lockctl waits for that. All of it is stopped if the
lock is lost, if the command died of a signal that asks to end, or if lockctl gets one
while it waits: whoever stops a command wants the whole of it to stop.
"""

import os
import signal
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from lockd.ctl.run import offspring
from lockd.ctl.run.child import Command
from lockd.ctl.run.signals import ENDING, FORWARDED
from lockd.ctl.run.witness import Witness
from lockd.errors import LockLostError

_JOB_CONTROL: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_PATIENCE: Final = 1.0
"""Seconds after which what a command left behind is worth a word."""


class Supervisor:
    """Watches one started command. The watched signals are blocked meanwhile.

    Args:
        command: what runs.
        witness: gets what is sent to the command's process group.
        check_lock: raises `LockLostError` if the lock is lost; must not block.
        on_lost: called once, before a command without its lock is stopped.
        on_left: called if the command left processes behind that run on.
        stop_signal: what stops processes.
        kill_after: seconds until they are sent SIGKILL.
        watched: the signals to act on; others do not concern this run.
        alone: whether what the command leaves behind is nobody's business.

    Attributes:
        lost: why the command was stopped; None while its lock is held.
    """

    def __init__(
        self,
        command: Command,
        witness: Witness,
        check_lock: Callable[[], None],
        on_lost: Callable[[LockLostError], None],
        on_left: Callable[[], None],
        *,
        stop_signal: int,
        kill_after: float,
        watched: Collection[int],
        alone: bool,
    ) -> None:
        self.lost: LockLostError | None = None
        self._command = command
        self._witness = witness
        self._check_lock = check_lock
        self._on_lost = on_lost
        self._on_left = on_left
        self._stop_signal = stop_signal
        self._kill_after = kill_after
        self._watched = watched
        self._alone = alone
        #: How the command ended; None while it runs.
        self._status: int | None = None
        self._stopping = self._killing = False

    def run(self) -> int:
        """Returns the wait status of the command, once all has ended."""
        while self._somebody_runs():
            try:
                self._check_lock()
            except LockLostError as error:
                # Of a command that has just ended it is not told that it lost its lock.
                if not self._somebody_runs():
                    break
                self._lose(error)
            self._handle(signal.sigwaitinfo(self._watched))
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert self._status is not None
        return self._status

    def _somebody_runs(self) -> bool:
        """Takes note of who has ended or stopped; tells whether anybody is left."""
        while self._status is None or not self._alone:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._command.pid:
                self._note(status)
        return False

    def _note(self, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self._ended(status)
        # The shell sees only this process, and wants to see its job stopped.
        elif os.WSTOPSIG(status) in _JOB_CONTROL and not self._stopping:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _ended(self, status: int) -> None:
        self._status = status
        self._witness.end()
        if self._stopping or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in ENDING):
            self._stop()
        else:
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE)

    def _handle(self, info: signal.struct_siginfo) -> None:
        signum = info.si_signo
        # The kernel's, not of another process: our own timer (sigaction(2)).
        if signum == signal.SIGALRM and info.si_code > 0:
            self._patience_is_over()
        elif signum not in FORWARDED:
            if self._killing:
                self._send(signal.SIGKILL)
        elif self._status is None:
            if not self._has_it_already(signum):
                self._send(signum)
        elif signum in ENDING:
            self._stop()
        elif signum == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _has_it_already(self, signum: int) -> bool:
        """Tells whether the command, too, was sent a signal that we got."""
        # In this order: what the witness got has to be asked for.
        got = self._witness.got(signum)
        return got and os.getpgid(self._command.pid) == os.getpgrp()

    def _patience_is_over(self) -> None:
        if self._stopping:
            self._killing = True
            self._send(signal.SIGKILL)
        elif self._status is not None:
            self._on_left()

    def _lose(self, error: LockLostError) -> None:
        if self.lost is None:
            self.lost = error
            self._on_lost(error)
            self._stop()

    def _stop(self) -> None:
        """Has the command end, or what it left behind; by force when it is time."""
        self._send(self._stop_signal)
        self._send(signal.SIGCONT)
        if not self._stopping:
            self._stopping = True
            # 0 would disarm the timer.
            signal.setitimer(signal.ITIMER_REAL, self._kill_after or 1e-6)

    def _send(self, signum: int) -> None:
        """Signals the command while it runs; what it left behind after that.

        SIGKILL is for all: who is killed leaves nobody behind.
        """
        if self._status is None:
            # Our child, and not reaped: the pid is its own. It may have become root's.
            with suppress(PermissionError):
                os.kill(self._command.pid, signum)
        if not self._alone and (self._status is not None or signum == signal.SIGKILL):
            offspring.send_all(signum)
