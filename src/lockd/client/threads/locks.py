"""Locks for code that was written for `threading.Lock` or `filelock.FileLock`."""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from lockd.client import arguments, requests
from lockd.client.grants import Uncopied
from lockd.client.reply import Reply
from lockd.client.threads.connection import Connection
from lockd.client.threads.grants import Grant
from lockd.client.threads.link import ThreadLink
from lockd.client.turns import Turn, time_left
from lockd.errors import (
    AcquireTimeoutError,
    AlreadyHeldError,
    BusyError,
    LockdError,
    NotHeldError,
)
from lockd.names import quoted
from lockd.terms import Mode, ResourceKey


def release_all(
    connection: Connection,
    grants: Iterable[Grant],
    locks: Iterable["Lock"],
    by_name: Iterable[Reply],
) -> None:
    """Releases all of them, though some fail.

    Args:
        connection: the connection.
        grants: by which locks are released.
        locks: those that hold them.
        by_name: requests that release a lock each.

    Raises:
        LockdError: the first failure.
    """
    outcomes: list[Callable[[], Any]] = [
        *(reply.outcome for reply in connection.last.release(*grants)),
        *(lock.release for lock in locks),
        *(partial(connection.ask, reply) for reply in by_name),
    ]
    failures: list[LockdError] = []
    for outcome in outcomes:
        try:
            outcome()
        except LockdError as failure:
            failures.append(failure)
    if failures:
        raise failures[0]


class _Hold(NamedTuple):
    turn: Turn
    grant: Grant
    link: ThreadLink


class Acquired:
    """Whether a lock was acquired: true or false, and a context manager.

    So both `if lock.acquire(timeout=5):` and `with lock.acquire(timeout=5):` say what
    they mean. To enter a false one raises the refusal.
    """

    __slots__ = ("_lock", "_refusal")

    def __init__(self, lock: "Lock", refusal: LockdError | None) -> None:
        self._lock = lock
        self._refusal = refusal

    def __bool__(self) -> bool:
        return self._refusal is None

    def __enter__(self) -> "Lock":
        if self._refusal is not None:
            raise self._refusal
        return self._lock

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.__exit__(exc_type, exc, traceback)


class Lock(Uncopied):
    """One lock of the daemon, for one thread at a time (or, shared, for several).

    Locks of the same name that belong to one client exclude each other like
    `threading.Lock`, first come, first served; they exclude everybody else's through
    the daemon. They are not re-entrant. Deadlocks between sessions are refused by the
    daemon; threads of one client that wait for each other, in opposite orders, are not
    noticed.

    Where the lock is lost while a `with` body runs, the end of the body raises
    `LockLostError`, unless another exception is on its way.
    """

    def __init__(
        self,
        connection: Connection,
        key: ResourceKey,
        mode: Mode,
        timeout: float | None,
        options: dict[str, Any],
    ) -> None:
        self._connection = connection
        self._key = key
        self._mode: Mode = mode
        self._timeout = -1 if timeout is None else timeout
        self._options = options
        self._holds: list[_Hold] = []

    def __repr__(self) -> str:
        state = "held" if self.locked() else "not held"
        return f"<Lock {self._key} {self._mode} {state}>"

    @property
    def grant(self) -> Grant:
        """What is held; by this thread, if several hold it.

        Raises:
            NotHeldError: nothing is.
        """
        return self._hold().grant

    @property
    def fencing_token(self) -> int:
        """The fencing token of what is held."""
        return self.grant.fencing_token

    @property
    def is_locked(self) -> bool:
        """Whether the lock is held through this object."""
        return self.locked()

    def locked(self) -> bool:
        """Returns whether the lock is held through this object; not if it was lost."""
        return any(hold.grant.held for hold in list(self._holds))

    def check(self) -> None:
        """Checks that the lock is still held, as far as the daemon has said.

        Raises:
            LockLostError: it was lost.
            NotHeldError: it is not held through this object.
        """
        self._connection.last.check_owned()
        self.grant.check()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> Acquired:
        """Waits for the lock.

        Args:
            blocking: false only tries.
            timeout: seconds to wait; negative waits for ever; if not given, the lock's.

        Returns:
            True, or what is false if it was busy or the time is over.

        Raises:
            AlreadyHeldError: this thread holds it, and would wait for ever.
            RequestError: the daemon refused for another reason.
        """
        if not blocking:
            timeout = 0
        elif timeout is None:
            timeout = self._timeout
        else:
            timeout = arguments.patience("timeout", timeout)
        try:
            self._acquire(timeout)
        except (BusyError, AcquireTimeoutError) as refusal:
            return Acquired(self, refusal)
        except AlreadyHeldError as refusal:
            if blocking:
                raise
            return Acquired(self, refusal)
        return Acquired(self, None)

    def release(self) -> None:
        """Releases the lock; any thread may.

        Raises:
            LockLostError: it had been lost.
            NotHeldError: it is not held through this object.
        """
        self._connection.last.check_owned()
        hold = self._hold()
        try:
            if not self._drop(hold.turn):
                raise self._not_held()  # another thread was faster
            (reply,) = hold.link.release(hold.grant)
        except BaseException:
            hold.link.release(hold.grant)
            raise
        finally:
            hold.link.leave_line(hold.turn)
        reply.outcome()

    def __enter__(self) -> Self:
        self._acquire(self._timeout)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection.last.forked:
            return  # the lock is the parent's
        try:
            self.release()
        except LockdError:
            if exc is None:
                raise

    def _acquire(self, timeout: float) -> None:
        started = time.monotonic()
        link = self._connection.link()
        # Not its number: a later thread may get the same.
        turn = Turn(self._key, self._mode, threading.current_thread())
        reply = requests.request("acquire", **self._key._asdict(), **self._options)
        reply.params["mode"] = self._mode
        try:
            self._forget_ended(turn.who)
            link.enter_line(turn)
            if not turn.done and not link.wait_turn(turn, timeout):
                raise self._refusal(turn, timeout)
            if timeout >= 0:
                reply.params["timeout"] = time_left(timeout, time.monotonic() - started)
            link.perform(reply)
            reply.outcome()
            (grant,) = reply.grants
            link.keep_turn(turn, grant.hold)
            self._holds.append(_Hold(turn, grant, link))
        except BaseException:
            self._take_back(turn, reply, link)
            raise

    def _take_back(self, turn: Turn, reply: Reply, link: ThreadLink) -> None:
        self._drop(turn)
        try:
            link.abandon(reply)
        finally:
            link.leave_line(turn)

    def _forget_ended(self, who: object) -> None:
        for hold in list(self._holds):
            if hold.turn.who is who and not hold.grant.held:
                self._drop(hold.turn)

    def _hold(self) -> _Hold:
        holds = list(self._holds)
        if not holds:
            raise self._not_held()
        own = [hold for hold in holds if hold.turn.who is threading.current_thread()]
        return (own or holds)[-1]

    def _drop(self, turn: Turn) -> bool:
        for hold in list(self._holds):
            if hold.turn is turn:
                with suppress(ValueError):  # another thread was faster
                    self._holds.remove(hold)
                    return True
        return False

    def _refusal(self, turn: Turn, timeout: float) -> LockdError:
        sentence = (
            f"{quoted(self._key.resource)} is held by another thread of this process"
        )
        if not timeout:
            step = "ask with a timeout to wait for it"
            return BusyError(f"{sentence}: {step}", turn.facts())
        return AcquireTimeoutError(
            f"{sentence}, after {timeout:g} s: ask again with a longer timeout",
            turn.facts() | {"waited": timeout},
        )

    def _not_held(self) -> NotHeldError:
        return NotHeldError(
            f"{quoted(self._key.resource)} is not held by this lock: acquire it first"
        )
