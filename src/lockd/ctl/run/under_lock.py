"""Holds a lock while a command runs, or explains why not.

The order matters: first the child, so that it can be the owner; then the lock; then the
command; and after its end the release. If lockctl ends in between, either the command
never runs, or the lock lasts as long as the command. `supervise` handles the
descendants of the command.
"""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import SimpleNamespace

from lockd.client import within
from lockd.ctl import exits
from lockd.ctl.run import offspring, signals
from lockd.ctl.run.child import Command, execute
from lockd.ctl.run.supervise import Supervisor
from lockd.ctl.run.witness import Witness
from lockd.ctl.streams import say
from lockd.errors import (
    AcquireTimeoutError,
    BusyError,
    CodedError,
    LockdError,
    LockLostError,
)
from lockd.hints import TYPE_CHECKING, Final, NoReturn
from lockd.names import plain, quoted

if TYPE_CHECKING:
    from lockd.client.threads.grants import Grant
    from lockd.terms import Mode, WorkOutcome

PREVIOUS: Final = "LOCKD_PREVIOUS"
"""The variable that says how the last hold ended, if not well."""

#: Seconds of waiting after which to explain the wait.
_PATIENCE = 1.0

#: How many processes that a command left behind are named.
_SHOWN = 3


class Plan(SimpleNamespace):
    """The options of `lockctl run`. `owner` is the name that others see."""

    socket: str | None
    lockspace: str
    names: tuple[str, ...]
    mode: "Mode"
    slots: int | None
    timeout: float | None
    max_waiting: int | None
    whole: bool
    max_hold: int | None
    words: tuple[str, ...]
    owner: str
    close: bool
    conflict_status: int | None
    reason: str | None
    label: str | None
    stop_signal: int
    kill_after: float
    status_fd: int | None
    verbose: bool
    quiet: bool


class Ending:
    """How a run ended: a word, an exit status, and the signal if any."""

    def __init__(self, outcome: str, status: int, signum: int | None = None) -> None:
        self.outcome = outcome
        self.status = status
        self.signum = signum


class Run:
    """One `lockctl run`, from the request for the lock to the exit status."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._inherited = signals.block()
        # That of a command around this one says nothing about our locks.
        os.environ.pop(PREVIOUS, None)
        self._grants: Sequence[Grant] = ()
        self._granted_at = 0.0
        self._held: float | None = None
        #: Whether to explain a long wait.
        self._curious = plan.verbose or (sys.stderr.isatty() and not plan.quiet)

    def in_child(self) -> NoReturn:
        """Runs the command in a child that owns the lock."""
        # Before the connection, so that the two children do not share it.
        witness = Witness()
        command = Command(self._plan.words, self._inherited)
        if not self._plan.close:
            # Do it here, before the lock: it takes some milliseconds.
            offspring.adopt_orphans()
        try:
            self._acquire(command.pid)
        except signals.Interrupted as interrupt:
            command.abandon()
            self._finish(_killed("interrupted", interrupt.signum))
        except LockdError as error:
            command.abandon()
            self._finish(self._refused(error))
        self._granted_at = time.monotonic()
        command.start(self._environment(), self._session.to_bequeath())
        ending = self._supervise(command, witness)
        self._held = time.monotonic() - self._granted_at
        self._finish(self._release(ending))

    def in_place(self) -> NoReturn:
        """Becomes the command, which inherits the session and so the lock."""
        try:
            self._acquire(None)
        except signals.Interrupted as interrupt:
            exits.die_of(interrupt.signum)
        except LockdError as error:
            self._finish(self._refused(error))
        self._session.outlive_exec()
        try:
            execute(self._plan.words, self._environment(), self._inherited)
        except OSError as error:
            self._finish(self._not_executed(error.errno or 0))

    def _acquire(self, owner_pid: int | None) -> None:
        # Only now: who runs in a child has forked before, and a fork copies all that is
        # loaded.
        from lockd.ctl.run.session import Session

        plan = self._plan
        pid = owner_pid or os.getpid()
        self._session = Session(plan.socket, "lockctl run")
        with signals.interruptible(lambda: self._remind(pid), _PATIENCE):
            self._session.acquire(
                plan.names,
                plan.lockspace,
                mode=plan.mode,
                slots=plan.slots,
                timeout=plan.timeout,
                max_waiting=plan.max_waiting,
                whole=plan.whole or None,
                max_hold=plan.max_hold,
                label=plan.label,
                reason=plan.reason,
                owner=plan.owner,
                owner_pid=owner_pid,
                inheritable=True if owner_pid is None else None,
            )
        self._grants = self._session.grants
        if plan.verbose:
            first = self._grants[0]
            slot = "" if first.slot is None else f", slot {first.slot} of {first.slots}"
            inside = f", inside {first.inside[-1]}" if first.inside else ""
            say(
                f"got {self._names()} after {first.waited:.3f} s, "
                f"fencing token {first.fencing_token}{slot}{inside}"
            )

    def _remind(self, pid: int) -> None:
        from lockd.ctl.look.state import explain_wait

        session, names = self._session, self._session.asks_for
        if not names:
            return
        with suppress(LockdError):
            where = session.socket, self._plan.lockspace, names
            wait = explain_wait(*where, session.number, pid)
            if wait is not None and (self._curious or wait.is_for_ancestor):
                say(wait.sentence)

    def _environment(self) -> dict[str, str]:
        grants = self._session.grants
        found = {
            # The name as the user typed it: the locale may be unable to encode the
            # daemon's.
            "LOCKD_NAME": "\n".join(self._plan.names),
            "LOCKD_LOCKSPACE": self._plan.lockspace,
            # All of a tree name the outermost: what is guarded has seen its token, and
            # would reject it after a greater one.
            "LOCKD_TOKEN": "\n".join(
                str(grant.inside[0] if grant.inside else grant.fencing_token)
                for grant in grants
            ),
            "LOCKD_WAITED": f"{grants[0].waited:.3f}",
            "LOCKD_SOCKET": self._session.socket,
            within.VARIABLE: self._session.within(),
        }
        if grants[0].slot is not None:
            # Without slots, those of a command around this one stay.
            found |= {"LOCKD_SLOT": f"{grants[0].slot}"}
            found |= {"LOCKD_SLOTS": f"{grants[0].slots}"}
        troubles = [_trouble(grant) for grant in grants]
        return found | ({PREVIOUS: "\n".join(troubles)} if any(troubles) else {})

    def _supervise(self, command: Command, witness: Witness) -> Ending:
        plan = self._plan
        self._session.signal_input()
        supervisor = Supervisor(
            command,
            witness,
            self._check,
            self._tell_loss,
            self._tell_overdue,
            self._tell_left,
            stop_signal=plan.stop_signal,
            kill_after=plan.kill_after,
            watched=self._inherited.watched,
            alone=plan.close,
        )
        status = supervisor.run()
        if supervisor.overdue:
            return Ending("overdue", exits.LOST)
        if supervisor.lost is not None:
            return Ending("lost", exits.LOST)
        if os.WIFSIGNALED(status):
            return _killed("killed", os.WTERMSIG(status))
        if number := command.exec_errno():
            return self._not_executed(number)
        return Ending("exited", os.WEXITSTATUS(status))

    def _release(self, ending: Ending) -> Ending:
        """Releases the lock. Returns the final ending."""
        # Ignore a daemon that is gone.
        with suppress(signals.Interrupted, LockdError), signals.interruptible():
            self._session.release(_outcome_of(ending))
        # After fencing, the end of the command arrives before the reason.
        error = self._session.broken()
        if error is None or ending.outcome in ("lost", "overdue"):
            return ending
        say(str(error))
        return Ending("lost", exits.LOST)

    def _check(self) -> bool:
        """Returns whether the lock is overdue.

        Raises:
            LockLostError: it is lost.
        """
        self._session.check()
        return self._session.is_overdue

    def _tell_overdue(self) -> None:
        limit = self._session.limit_passed(self._plan.max_hold)
        more = "" if self._plan.close else " and all that it started"
        say(
            f"{self._names()} is held for longer than {limit}; stopping the command"
            f"{more}"
        )

    def _tell_loss(self, error: LockLostError) -> None:
        say(f"{error}; stopping the command")

    def _tell_left(self) -> None:
        if not self._curious:
            return
        from lockd.procs import name_of  # most commands leave nothing behind

        left = offspring.descendants()
        shown = ", ".join(f"{plain(name_of(pid))} (pid {pid})" for pid in left[:_SHOWN])
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        say(
            f"the command has ended; {self._names()} stays locked until the processes "
            f"that it started have ended: {shown}{more}"
        )

    def _names(self) -> str:
        return ", ".join(quoted(name) for name in self._plan.names)

    def _refused(self, error: LockdError) -> Ending:
        status = exits.status_of(error)
        is_conflict = isinstance(error, BusyError | AcquireTimeoutError)
        if is_conflict and self._plan.conflict_status is not None:
            status = self._plan.conflict_status
        if not (is_conflict and self._plan.quiet):
            say(f"{error}{self._culprit(error)}")
        return Ending(
            error.code if isinstance(error, CodedError) else "unreachable", status
        )

    def _culprit(self, error: LockdError) -> str:
        """Returns the program that has locked a file past lockd, if only we see it."""
        if not isinstance(error, CodedError) or not error.facts.get("outside"):
            return ""
        from lockd.ctl.look.state import culprit

        with suppress(LockdError):
            if found := culprit(self._session.socket, error):
                return f"; that is {found}"
        return ""

    def _not_executed(self, number: int) -> Ending:
        say(f"cannot run {quoted(self._plan.words[0])}: {os.strerror(number)}")
        return Ending("not_executed", exits.status_of_exec_failure(number))

    def _finish(self, ending: Ending) -> NoReturn:
        if self._plan.status_fd is not None:
            self._report(self._plan.status_fd, ending)
        if ending.signum is not None:
            exits.die_of(ending.signum)
        # An orderly end of Python would take a sixth of the total time.
        os._exit(ending.status)

    def _report(self, descriptor: int, ending: Ending) -> None:
        # Nobody else needs them.
        import json

        from lockd.ctl.render import VERSION

        grants = self._grants
        facts = {
            "version": VERSION,
            "outcome": ending.outcome,
            "exit_status": ending.status,
            "signal": ending.signum,
            "lockspace": self._plan.lockspace,
            "names": self._plan.names,
            "fencing_token": grants[0].fencing_token if grants else None,
            "fencing_tokens": [grant.fencing_token for grant in grants],
            "slot": grants[0].slot if grants else None,
            "slots": grants[0].slots if grants else None,
            "waited": grants[0].waited if grants else None,
            "held": self._held,
        }
        with suppress(OSError):  # nobody reads it
            os.write(descriptor, json.dumps(facts).encode() + b"\n")


def _outcome_of(ending: Ending) -> "WorkOutcome":
    """Returns how a command ended, for the next holder of its locks."""
    if ending.signum is not None:
        return "died"
    return "failed" if ending.status else "ok"


def _trouble(grant: "Grant") -> str:
    """Returns in a word how the last hold ended; empty if it ended well."""
    previous = grant.previous
    if previous is None:
        return ""
    if previous["ended"] == "broken":
        return "broken"
    if previous["ended"] == "released" and previous["outcome"] == "failed":
        return "failed"
    return "died"


def _killed(outcome: str, signum: int) -> Ending:
    return Ending(outcome, 128 + signum, signum)
