"""Locks for code that uses `threading.Lock` or `filelock.FileLock`."""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Self

from lockd.client.local_queues import Ticket, time_left
from lockd.client.locks import AnyLock, Held, not_admitted
from lockd.client.reply import Reply
from lockd.client.threads.connection import Connection
from lockd.client.threads.grants import Grant
from lockd.client.threads.link import ThreadLink
from lockd.errors import (
    AcquireTimeoutError,
    AlreadyHeldError,
    BusyError,
    LockdError,
)


def release_all(
    connection: Connection,
    grants: Iterable[Grant],
    locks: Iterable["Lock"],
    by_name: Iterable[Reply],
) -> None:
    """Releases all locks, even if some releases fail.

    Args:
        connection: the connection.
        grants: the grants to release.
        locks: the `Lock` objects to release.
        by_name: requests that release one lock each.

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


class Acquired:
    """The result of an acquire: true or false, and a context manager.

    So both `if lock.acquire(timeout=5):` and `with lock.acquire(timeout=5):` work.
    Entering a false result raises the error.
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

    def __exit__(self, *exc_info: Any) -> None:
        self._lock.__exit__(*exc_info)


class Lock(AnyLock[Grant]):
    """One lock of the daemon, for one thread at a time, or for several if shared.

    Locks of one client with the same name exclude each other like `threading.Lock`,
    first come, first served. The daemon excludes all other clients. A lock is not
    re-entrant. The daemon rejects deadlocks between sessions. It does not detect
    deadlocks between threads of one client.

    If the lock is lost while a `with` body runs, the end of the body raises
    `LockLostError`, unless another exception is raised.
    """

    def __init__(
        self,
        connection: Connection,
        params: dict[str, Any],
        timeout: float | None,
    ) -> None:
        super().__init__(params, timeout)
        self._connection = connection

    @property
    def is_locked(self) -> bool:
        """Whether the lock is held through this object."""
        return self.locked()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> Acquired:
        """Waits for the lock.

        Args:
            blocking: False does not wait.
            timeout: seconds to wait; negative waits without a limit; None: that of
                `lock()`.

        Returns:
            A true object, or a false one if the lock is busy or the timeout passed.

        Raises:
            AlreadyHeldError: this thread holds the lock, and would wait for itself.
            RequestError: the daemon rejected the request for another reason.
        """
        try:
            self._acquire(self._patience(timeout) if blocking else 0)
        except (BusyError, AcquireTimeoutError) as refusal:
            return Acquired(self, refusal)
        except AlreadyHeldError as refusal:
            if blocking:
                raise
            return Acquired(self, refusal)
        return Acquired(self, None)

    def release(self) -> None:
        """Releases the lock. Any thread may call it.

        Raises:
            LockLostError: the lock had been lost.
            NotHeldError: the lock is not held through this object.
        """
        self._check_owned()
        held = self._last_held()
        link = held.grant.link
        try:
            if not self._drop(held.ticket):
                raise self._not_held()  # another thread was faster
            (reply,) = link.release(held.grant)
        except BaseException:
            link.release(held.grant)
            raise
        finally:
            link.leave_queue(held.ticket)
        reply.outcome()

    def __enter__(self) -> Self:
        self._acquire(self._timeout)
        return self

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
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
        ticket = Ticket(self._key, self._mode, self._caller())
        reply = self._request()
        try:
            self._forget_ended(ticket.who)
            link.enter_queue(ticket)
            if not ticket.done and not link.wait_admitted(ticket, timeout):
                raise not_admitted(ticket, "thread", timeout)
            if timeout >= 0:
                reply.params["timeout"] = time_left(timeout, time.monotonic() - started)
            link.perform(reply)
            reply.outcome()
            (grant,) = reply.grants
            link.keep_ticket(ticket, grant.hold)
            self._holds.append(Held(ticket, grant))
        except BaseException:
            self._take_back(ticket, reply, link)
            raise

    def _take_back(self, ticket: Ticket, reply: Reply, link: ThreadLink) -> None:
        self._drop(ticket)
        try:
            link.abandon(reply)
        finally:
            link.leave_queue(ticket)

    def _check_owned(self) -> None:
        self._connection.last.check_owned()

    def _caller(self) -> object:
        # Not its ident: a later thread may get the same.
        return threading.current_thread()

    def _forget_ended(self, who: object) -> None:
        for held in list(self._holds):
            if held.ticket.who is who and not held.grant.held:
                self._drop(held.ticket)

    def _drop(self, ticket: Ticket) -> bool:
        for held in list(self._holds):
            if held.ticket is ticket:
                with suppress(ValueError):  # another thread was faster
                    self._holds.remove(held)
                    return True
        return False
