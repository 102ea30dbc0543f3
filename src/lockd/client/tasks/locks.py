"""Locks for tasks: one like `anyio.Lock`, and a body that a loss cancels."""

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio

from lockd.client.locks import AnyLock, Held
from lockd.client.reply import Reply
from lockd.client.strands import Strand
from lockd.client.tasks.link import Grant, TaskLink
from lockd.errors import BusyError, LockdError, WrongTaskError


class Released:
    """A release that was sent. Awaiting it waits for the daemon's answer."""

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
    """Releases all locks, even if some releases fail.

    Args:
        link: the connection.
        grants: the grants to release.
        locks: the `Lock` objects to release.
        by_name: requests that release one lock each.

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
    # Send all of them before the first wait, which may be cancelled.
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


class _WouldBlockError(BusyError, anyio.WouldBlock):
    """What `acquire_nowait` raises, here and in anyio."""


class Lock(AnyLock[Grant]):
    """One lock of the daemon, for one task at a time, or for several if shared.

    It has the methods of `anyio.Lock`, with the parameters of `lockd.Lock`, and serves
    `anyio.Condition`. It excludes all other tasks and all other clients, first come,
    first served. A lock is not re-entrant.

    In `async with`, the lock belongs to the task. If the task asks for it again, or if
    waiting would close a cycle, the daemon rejects the request at once. A lock of
    `acquire` belongs to no task, as with `asyncio.Lock`: any task may release it. So
    the daemon cannot detect a deadlock with it.

    The end of an `async with` body releases what it entered, and `release` takes back
    an `acquire`, of the calling task first.

    A loss cancels no task: the end of the `async with` body raises `LockLostError`,
    unless another exception is raised. (`Client.hold` cancels its body.)
    """

    def __init__(
        self, link: TaskLink, params: dict[str, Any], timeout: float | None
    ) -> None:
        super().__init__(params, timeout, link.loop.task)
        self.link = link
        self._waiting = 0

    async def acquire(self, *, timeout: float | None = None) -> Grant:
        """Waits for the lock.

        The lock then belongs to no task. A task that acquires it twice waits until
        another one releases it.

        Unlike `lockd.Lock` it raises after a timeout: a task that ignores the result
        must not believe that it holds the lock.

        Args:
            timeout: seconds to wait; -1 waits without a limit; None: that of
                `lock()`.

        Raises:
            AcquireTimeoutError: the timeout passed.
            BusyError: `timeout` is 0, and the lock has a holder or a waiter.
            AlreadyHeldError: the process that this session acts for holds the lock.
            RequestError: the daemon rejected the request for another reason.
        """
        patience = self._patience(timeout)
        return await self._acquire(patience, self.link.lone_strand(), entered=False)

    async def acquire_nowait(self) -> Grant:
        """Acquires the lock if it is free; waits only for the daemon's answer.

        So it must be awaited, unlike that of anyio.

        Raises:
            BusyError: the lock has a holder or a waiter; also an `anyio.WouldBlock`.
            RequestError: as for `acquire`.
        """
        try:
            return await self.acquire(timeout=0)
        except BusyError as error:
            raise _WouldBlockError(error.message, error.facts) from None

    def statistics(self) -> anyio.LockStatistics:
        """Returns what this object knows: whether it is held, by which task.

        `tasks_waiting` counts the tasks of this program that wait through this object.
        `Client.query` tells of all others.
        """
        self._check_owned()
        holders = [held.who for held in list(self._holds) if held.grant.held]
        tasks = anyio.get_running_tasks() if holders else []
        return anyio.LockStatistics(
            locked=bool(holders),
            owner=next((x for x in tasks if x.id == id(holders[-1])), None),
            tasks_waiting=self._waiting,
        )

    def release(self) -> Released:
        """Releases the lock. Any task may call it.

        If several tasks hold it (shared), this is the last `acquire` of the calling
        task; without one, what its `async with` body entered; without that, what
        another task acquired.

        The request is sent at once, before all later requests of this client. Awaiting
        the result waits for the daemon's answer.

        Raises:
            LockLostError: the lock had been lost. The call raises it if the client
                knows it already; otherwise awaiting the result does.
            NotHeldError: the lock is not held through this object.
        """
        self._check_owned()
        held = self._to_release()
        self._holds.pop(held, None)
        (reply,) = self.link.start_release(held.grant)
        if reply.done:
            reply.outcome()
        return Released(self.link, reply)

    async def _leave(self) -> None:
        """Releases what an `async with` body entered."""
        self._check_owned()
        held = self._to_leave()
        self._holds.pop(held, None)
        await self.link.release(held.grant, wait=False)

    async def __aenter__(self) -> Self:
        await self._acquire(self._timeout, self.link.strand(), entered=True)
        return self

    async def __aexit__(self, _: object, exc: BaseException | None, __: object) -> None:
        try:
            await self._leave()
        except LockdError:
            if exc is None:
                raise

    async def _acquire(
        self, timeout: float, strand: Strand | None, *, entered: bool
    ) -> Grant:
        reply = self._request(timeout, strand)
        self._waiting += 1
        try:
            # The caller has asked for a strand, which checks the loop.
            await self.link.perform_checked(reply)
        finally:
            self._waiting -= 1
        reply.outcome()
        grant: Grant = reply.grants[0]
        if self._holds:
            self._forget_ended()
        held = Held(self._caller(), grant)
        self._holds[held] = True
        if entered:
            self._open_body(held)
        return grant

    def _check_owned(self) -> None:
        self.link.check_owned()


class Body(AbstractAsyncContextManager[Grant, bool]):
    """Holds a lock while a body runs, and cancels the body when the lock is lost.

    The task that entered the body must leave it, as for any cancel scope.

    Args:
        link: the connection.
        params: the parameters of the request.
    """

    def __init__(self, link: TaskLink, params: dict[str, Any]) -> None:
        self._link = link
        self._params = params

    async def __aenter__(self) -> Grant:
        link = self._link
        link.check_owned()
        self._task = link.loop.task()
        strand = link.strand_of(self._task)
        own = {} if strand is None else {"strand": strand}
        reply = Reply("acquire", self._params | own, checked=True)
        await link.perform_checked(reply)
        reply.outcome()
        grant: Grant = reply.grants[0]
        self._grant = grant
        self._scope = link.scopes[grant] = link.loop.scope()
        # The bytes that brought the grant may also have brought its loss.
        if grant.hold.lost:
            self._scope.cancel()
        self._scope.__enter__()
        return grant

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        link = self._link
        own = link.loop.runs(self._task)
        if not own:
            link.check_loop()
        link.scopes.pop(self._grant, None)
        if not own:
            with suppress(LockdError):
                await link.release_here(self._grant, wait=False)
            raise WrongTaskError(
                "only the task that entered hold() may leave it; another task left "
                "this one, so the lock was released: use lock(), which any task may "
                "release"
            )
        try:
            swallowed = bool(self._scope.__exit__(exc_type, exc, traceback))
        except BaseException:
            with suppress(LockdError):
                await link.release_here(self._grant, wait=False)
            raise
        try:
            await link.release_here(self._grant, wait=False)
        except LockdError:
            if exc is None or swallowed:
                raise
        return swallowed
