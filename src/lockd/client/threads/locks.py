"""Locks for code that uses `threading.Lock`."""

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, Self

from lockd.client import arguments, forking
from lockd.client.locks import AnyLock, Held
from lockd.client.reply import Reply
from lockd.client.strands import Strand
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
    Entering a false result raises the error. The end of the body releases what this
    acquire has acquired, whatever else the lock holds.
    """

    __slots__ = ("_lock", "_outcome")

    def __init__(self, lock: "Lock", outcome: Held[Grant] | LockdError) -> None:
        self._lock = lock
        self._outcome = outcome

    def __repr__(self) -> str:
        if isinstance(self._outcome, Held):
            return f"<Acquired True: {self._outcome.grant!r}>"
        return f"<Acquired False: {self._outcome}>"

    def __bool__(self) -> bool:
        return isinstance(self._outcome, Held)

    @property
    def refusal(self) -> LockdError | None:
        """Why the lock was not acquired; None if it was."""
        return None if isinstance(self._outcome, Held) else self._outcome

    def __enter__(self) -> "Lock":
        if not isinstance(self._outcome, Held):
            raise self._outcome
        self._lock._open_body(self._outcome)
        return self._lock

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        if isinstance(self._outcome, Held):
            self._lock._leave(exc, self._outcome)


class Connected(Protocol):
    """What gives a lock its link to the daemon."""

    @property
    def forked(self) -> bool:
        """Whether this process is a forked child that may not ask for a link."""

    def link(self) -> ThreadLink:
        """Returns the link for the next request."""


class Lock(AnyLock[Grant]):
    """One lock of the daemon, for one thread at a time, or for several if shared.

    It excludes all other threads and all other clients, first come, first served. A
    lock is not re-entrant.

    In a `with` statement, the lock belongs to the thread. If the thread asks for it
    again, or if waiting would close a cycle, the daemon rejects the request at once. A
    lock of `acquire` belongs to no thread, as with `threading.Lock`: any thread may
    release it. So the daemon cannot detect a deadlock with it.

    The end of a `with` body releases what it entered, and `release` takes back an
    `acquire`, of the calling thread first.

    If the lock is lost while a `with` body runs, the end of the body raises
    `LockLostError`, unless another exception is raised.
    """

    def __init__(
        self,
        connection: Connected,
        params: dict[str, Any],
        timeout: float | None,
    ) -> None:
        # Not its ident: a later thread may get the same.
        super().__init__(params, timeout, threading.current_thread)
        self._connection = connection

    @property
    def is_locked(self) -> bool:
        """Whether the lock is held through this object."""
        return self.locked()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> Acquired:
        """Waits for the lock.

        Args:
            blocking: False does not wait, and allows no timeout.
            timeout: seconds to wait; -1 waits without a limit; None: that of
                `lock()`.

        The lock then belongs to no thread. A thread that acquires it twice waits until
        another one releases it.

        Returns:
            A true object, or a false one if the lock is busy or the timeout passed.

        Raises:
            AlreadyHeldError: the process that this session acts for holds the lock.
            RequestError: the daemon rejected the request for another reason.
        """
        patience = self._patience(timeout)
        if not blocking:
            arguments.no_patience("timeout", timeout)
            patience = 0
        try:
            held = self._acquire(patience, ThreadLink.lone_strand, entered=False)
        except (BusyError, AcquireTimeoutError) as refusal:
            return Acquired(self, refusal)
        except AlreadyHeldError as refusal:
            if blocking:
                raise
            return Acquired(self, refusal)
        return Acquired(self, held)

    def release(self, *, wait: bool = True) -> None:
        """Releases the lock. Any thread may call it.

        If several threads hold it (shared), this is the last `acquire` of the calling
        thread; without one, what its `with` body entered; without that, what another
        thread acquired.

        Args:
            wait: as for `Grant.release`.

        Raises:
            LockLostError: the lock had been lost.
            NotHeldError: the lock is not held through this object.
        """
        arguments.checked("release", {"wait": wait})
        self._check_owned()
        self._release(self._to_release(), wait=wait)

    def _at_fork_reinit(self) -> None:
        # A condition, or another user of a `threading.Lock`, unlocks it so in a child.
        self._bodies.clear()
        for held in list(self._holds):
            self._holds.pop(held, None)
            if not held.grant.link.forked:
                held.grant.link.release(held.grant)

    def _release(self, held: Held[Grant], *, wait: bool) -> None:
        link = held.grant.link
        try:
            if not self._holds.pop(held, False):
                raise self._not_held()  # another thread was faster
            replies = link.release(held.grant, wait=wait)
        except BaseException:
            # The interruption may have come first.
            self._holds.pop(held, None)
            link.release(held.grant, wait=wait)
            raise
        for reply in replies:
            reply.outcome()

    def __enter__(self) -> Self:
        self._acquire(self._timeout, ThreadLink.strand, entered=True)
        return self

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        self._leave(exc)

    def _leave(
        self, exc: BaseException | None, entered: Held[Grant] | None = None
    ) -> None:
        if self._connection.forked:
            return  # the lock is the parent's
        try:
            held = self._to_leave(entered)
            if not held.grant.link.forked:  # else the parent entered it
                self._release(held, wait=False)
        except LockdError:
            if exc is None:
                raise

    def _acquire(
        self,
        timeout: float,
        strand_of: Callable[[ThreadLink], Strand | None],
        *,
        entered: bool,
    ) -> Held[Grant]:
        link = self._connection.link()
        reply = self._request(timeout, strand_of(link))
        try:
            if self._holds:
                self._forget_ended()
            link.perform(reply)
            reply.outcome()
            (grant,) = reply.grants
            held = Held(self._caller(), grant)
            self._holds[held] = True
            if entered:
                self._open_body(held)
            return held
        except BaseException:
            self._take_back(reply, link)
            raise

    def _take_back(self, reply: Reply, link: ThreadLink) -> None:
        for held in list(self._holds):
            if held.grant in reply.grants:
                self._bodies.pop(held, None)
                self._holds.pop(held, None)
        link.abandon(reply)

    def _check_owned(self) -> None:
        if self._connection.forked:
            raise forking.forked()
