"""Supervises all processes that were started under a lock until they have ended.

Only signals wake its loop: those for the command, SIGCHLD for an end, SIGIO for the
daemon's socket, SIGALRM for the end of a wait.

At first the command runs, and gets the signals that lockctl gets. After its end, its
descendants keep the lock, and lockctl waits for them. In three cases lockctl stops all
of them:

- the lock is lost, or overdue;
- the command died of a signal that asks to end;
- lockctl gets such a signal while it waits.
"""

import os
from collections.abc import Callable, Collection
from contextlib import suppress

from lockd.ctl.run import offspring
from lockd.ctl.run.child import Command
from lockd.ctl.run.signals import ENDING, FORWARDED
from lockd.ctl.run.witness import Witness
from lockd.errors import LockLostError
from lockd.hints import Final
from lockd.lean import signal

_JOB_CONTROL: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_PATIENCE: Final = 1.0
"""Seconds after which to report processes that a command left behind."""


class Supervisor:
    """Supervises one started command. The caller has blocked the watched signals.

    Args:
        command: the running command.
        witness: gets signals that are sent to the command's process group.
        check_lock: raises `LockLostError` if the lock is lost; must not block. Returns
            whether the lock is overdue.
        on_lost: called once, before a command without its lock is stopped.
        on_overdue: called once, before a command is stopped that holds the lock for too
            long.
        on_left: called if the command left running processes behind.
        stop_signal: the signal that stops processes.
        kill_after: seconds until they get SIGKILL.
        watched: the signals to act on.
        alone: whether to ignore the descendants of the command.

    Attributes:
        lost: why the command was stopped; None while it has its lock.
        overdue: whether the command was stopped because it held the lock for too long.
    """

    def __init__(
        self,
        command: Command,
        witness: Witness,
        check_lock: Callable[[], bool],
        on_lost: Callable[[LockLostError], None],
        on_overdue: Callable[[], None],
        on_left: Callable[[], None],
        *,
        stop_signal: int,
        kill_after: float,
        watched: Collection[int],
        alone: bool,
    ) -> None:
        self.lost: LockLostError | None = None
        self.overdue = False
        self._command = command
        self._witness = witness
        self._check_lock = check_lock
        self._on_lost = on_lost
        self._on_overdue = on_overdue
        self._on_left = on_left
        self._stop_signal = stop_signal
        self._kill_after = kill_after
        self._watched = watched
        self._alone = alone
        #: The wait status of the command; None while it runs.
        self._status: int | None = None
        self._stopping = self._killing = False

    def run(self) -> int:
        """Returns the wait status of the command after all processes have ended."""
        while self._somebody_runs():
            try:
                # A command that has just ended need not hear of it.
                if self._check_lock() and self._somebody_runs():
                    self._run_out_of_time()
            except LockLostError as error:
                if not self._somebody_runs():
                    break
                self._lose(error)
            self._handle(signal.sigwaitinfo(self._watched))
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert self._status is not None
        return self._status

    def _somebody_runs(self) -> bool:
        """Reaps children that ended or stopped. Returns whether any is left."""
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
        # The kernel sent it, not another process: our own timer (sigaction(2)).
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
        """Returns whether the command also got a signal that lockctl got."""
        # In this order: asking the witness uses up its signal.
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

    def _run_out_of_time(self) -> None:
        if not (self.overdue or self.lost):
            self.overdue = True
            self._on_overdue()
            self._stop()

    def _stop(self) -> None:
        """Stops the command or its descendants, after `kill_after` seconds by force."""
        self._send(self._stop_signal)
        self._send(signal.SIGCONT)
        if not self._stopping:
            self._stopping = True
            # 0 would disarm the timer.
            signal.setitimer(signal.ITIMER_REAL, self._kill_after or 1e-6)

    def _send(self, signum: int) -> None:
        """Signals the command while it runs, and its descendants afterwards.

        SIGKILL goes to all of them at once.
        """
        if self._status is None:
            # The child is not reaped, so the pid is its own. It may have become root's.
            with suppress(PermissionError):
                os.kill(self._command.pid, signum)
        if not self._alone and (self._status is not None or signum == signal.SIGKILL):
            offspring.send_all(signum)
