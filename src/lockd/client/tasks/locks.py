"""Locks for tasks: one like `anyio.Lock`, and a body that is cancelled at a loss."""

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio

from lockd.client.local_queues import Ticket, time_left
from lockd.client.locks import AnyLock, Held, not_admitted
from lockd.client.reply import Reply
from lockd.client.tasks.link import Grant, TaskLink
from lockd.errors import LockdError, WrongTaskError
from lockd.text import exact_duration


class Released:
    """A release that is on its way; to await it waits until the daemon has done it."""

    __slots__ = ("_link", "_reply")

    def __init__(self, link: TaskLink, reply: Reply) -> None:
        self._link = link
        self._reply = reply

    def __await__(self) -> Generator[Any, Any, None]:
        yield from self._link.wait_for(self._reply).__await__()
        self._reply.outcome()


async def release_all(
    link: TaskLink,
    grants: Iterable[Grant],
    locks: Iterable["Lock"],
    by_name: Iterable[Reply],
) -> None:
    """Releases all of them, though some fail.

    Args:
        link: the connection.
        grants: by which locks are released.
        locks: those that hold them.
        by_name: requests that release a lock each.

    Raises:
        LockdError: the first failure.
    """

    def start(reply: Reply) -> Released:
        link.start(reply)
        return Released(link, reply)

    started = [Released(link, reply) for reply in link.start_release(*grants)]
    starts: list[Callable[[], Released]] = [lock.release for lock in locks]
    starts += [partial(start, reply) for reply in by_name]
    failures: list[LockdError] = []
    # All are on their way before the first wait, which may be cancelled.
    for start_one in starts:
        try:
            started.append(start_one())
        except LockdError as failure:
            failures.append(failure)
    for released in started:
        try:
            await released
        except LockdError as failure:
            failures.append(failure)
    if failures:
        raise failures[0]


class Lock(AnyLock[Grant]):
    """One lock of the daemon, for one task at a time (or, shared, for several).

    To be used like `anyio.Lock`, with the words of `lockd.Lock`. Locks of the same name
    that belong to one client exclude each other, first come, first served; they exclude
    everybody else's through the daemon. They are not re-entrant.

    Any task may release the lock, also one that did not acquire it. Nobody is cancelled
    when the lock is lost: the end of an `async with` body raises `LockLostError` then,
    unless another exception is on its way. `Client.hold` cancels its body.
    """

    def __init__(
        self, link: TaskLink, params: dict[str, Any], timeout: float | None
    ) -> None:
        super().__init__(params, timeout)
        self.link = link

    async def acquire(self, *, timeout: float | None = None) -> Grant:
        """Waits for the lock.

        Unlike `lockd.Lock` it raises if the time is over: whoever does not look at the
        result must not take the lock for held.

        Args:
            timeout: seconds to wait; negative waits for ever; if not given, the lock's.

        Raises:
            AcquireTimeoutError: it was not granted in time.
            BusyError: with `timeout` 0, somebody holds it or waits for it.
            AlreadyHeldError: this task holds it, and would wait for ever.
            RequestError: the daemon refused for another reason.
        """
        patience = self._patience(timeout)
        ticket = self.link.enter_queue(self._key, self._mode)
        try:
            grant = await self._acquire(ticket, None if patience < 0 else patience)
        except BaseException:
            self.link.leave_queue(ticket)
            raise
        self.link.keep_ticket(ticket, grant.hold)
        self._holds.append(Held(ticket, grant))
        return grant

    async def acquire_nowait(self) -> Grant:
        """Takes the lock if it is free now; only the daemon's answer is waited for.

        Raises:
            BusyError: somebody holds it or waits for it.
            RequestError: as for `acquire`.
        """
        return await self.acquire(timeout=0)

    def release(self) -> Released:
        """Releases the lock; any task may.

        It is on its way at once, and before all that this client asks from now on. To
        await the result waits until the daemon has done it.

        Raises:
            LockLostError: it had been lost; as far as has been heard, or, awaited, at
                all.
            NotHeldError: it is not held through this object.
        """
        self._check_owned()
        held = self._last_held()
        self._holds.remove(held)
        try:
            (reply,) = self.link.start_release(held.grant)
        finally:
            self.link.leave_queue(held.ticket)
        if reply.done:
            reply.outcome()
        return Released(self.link, reply)

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.link.wait_patiently(self.release())
        except LockdError:
            if exc is None:
                raise

    async def _acquire(self, ticket: Ticket, timeout: float | None) -> Grant:
        started = anyio.current_time()
        if not ticket.done and not await self.link.wait_admitted(ticket, timeout):
            raise not_admitted(
                ticket, "task", timeout or 0, exact_duration(timeout or 0)
            )
        reply = self._request()
        if timeout is not None:
            waited = anyio.current_time() - started
            reply.params["timeout"] = time_left(timeout, waited)
        await self.link.perform(reply)
        reply.outcome()
        grant: Grant = reply.grants[0]
        return grant

    def _check_owned(self) -> None:
        self.link.check_owned()

    def _caller(self) -> object:
        return self.link.task()


class Body(AbstractAsyncContextManager[Grant, bool]):
    """Holds a lock while a body runs, and cancels the body when the lock is lost.

    It must be left by the task that entered it, as every cancel scope.
    """

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    async def __aenter__(self) -> Grant:
        grant = await self._lock.acquire()
        self._task = self._lock.link.task()
        self._scope = self._lock.link.scopes[grant] = anyio.CancelScope()
        # It may have been lost already, in the same bytes that brought it.
        if grant.lost:
            self._scope.cancel()
        self._scope.__enter__()
        return grant

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        link = self._lock.link
        link.check_loop()
        del link.scopes[self._lock.grant]
        if self._task != link.task():
            with suppress(LockdError):
                self._lock.release()
            raise WrongTaskError(
                "a body of hold() can only be left by the task that entered it, and "
                "another one did: the lock was released; what lock() returns can be "
                "released by any task"
            )
        try:
            swallowed = bool(self._scope.__exit__(exc_type, exc, traceback))
        except BaseException:
            with suppress(LockdError):
                await link.wait_patiently(self._lock.release())
            raise
        try:
            await link.wait_patiently(self._lock.release())
        except LockdError:
            if exc is None or swallowed:
                raise
        return swallowed
