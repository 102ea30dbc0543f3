"""Lets the tasks of one trio or asyncio program use one connection.

A reader task gives what comes to the core, which wakes those whose answer it is.
Everything else happens between two checkpoints, so nothing here needs a lock.

Cancellation: whoever is cancelled still waits, shielded, for the definite answer to
what it takes back. The daemon answers every request; one that hangs is not waited for
longer than some seconds, and what comes of it then is given back. The reader is
shielded too, or a cancelled program could not hear these answers; `stop` ends it.
"""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self

import anyio
import anyio.lowlevel
from anyio import NoEventLoopError
from anyio.abc import TaskGroup
from anyio.lowlevel import EventLoopToken, current_token

from lockd.client import forking, paths
from lockd.client.core import ClientCore, UnheardError
from lockd.client.grants import AnyGrant, Hold
from lockd.client.inbox import Inbox
from lockd.client.local_queues import LocalQueues, Ticket
from lockd.client.reply import Reply
from lockd.client.wire import Wire
from lockd.errors import LockdError, WrongTaskError
from lockd.terms import Mode, ResourceKey

#: unix(7): while the daemon's backlog is full a connect cannot wait, only try again.
_BACKLOG_PAUSE: Final = 0.01

PATIENCE: Final = 5.0
"""Seconds that the daemon has to answer whoever was cancelled."""


@asynccontextmanager
async def open_link(
    address: paths.Address, make_opening: Callable[[], list[Reply]]
) -> AsyncIterator[tuple["TaskLink", Any]]:
    """Opens a connection and a conversation on it, for as long as the body runs.

    Args:
        address: where the daemon listens.
        make_opening: returns the requests that come first.

    Yields:
        The connection, and the result of the first request.

    Raises:
        ConnectionLostError: no daemon listens there, or it ended the connection.
        DeniedError: this user may not connect there.
        RequestError: the daemon refused one of the requests.
    """
    async with AsyncExitStack() as stack:
        attempts = 0
        while True:
            attempts += 1
            try:
                opened = _try_to_open(address, make_opening())
                found = await stack.enter_async_context(opened)
                break
            except UnheardError:
                if attempts == paths.ATTEMPTS:
                    raise
        yield found


@asynccontextmanager
async def _try_to_open(
    address: paths.Address, opening: list[Reply]
) -> AsyncIterator[tuple["TaskLink", Any]]:
    failure: BaseException | None = None
    with await _open_socket(address) as sock:
        try:
            async with anyio.create_task_group() as tasks:
                link = TaskLink(sock, tasks)
                try:
                    await link.perform(*opening)
                    welcome, *_ = [reply.outcome() for reply in opening]
                    yield link, welcome
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:
                    # Raised below: the group would put a group around it here.
                    failure = error
                finally:
                    link.stop()
        finally:
            if failure is not None:
                raise failure


async def _open_socket(address: paths.Address) -> socket.socket:
    sock = paths.new_socket()
    sock.setblocking(False)
    try:
        while True:
            try:
                paths.connect(sock, address)
                return sock
            except BlockingIOError:
                await anyio.sleep(_BACKLOG_PAUSE)
    except BaseException:
        sock.close()
        raise


def _current_loop() -> EventLoopToken | None:
    """Returns what stands for the event loop that runs in this thread, if one does."""
    try:
        return current_token()
    except NoEventLoopError:
        return None


class Grant(AnyGrant):
    """One lock that an async client holds, or held; or an `async with` until its end.

    What it says is what the daemon has said so far, to the last byte that has come.
    """

    __slots__ = ()

    link: "TaskLink"

    async def release(self) -> None:
        """Releases the lock; to release it again does nothing.

        It is on its way at once, whatever becomes of the wait.

        Raises:
            LockLostError: it had been lost.
            ForkedSessionError: it is the parent's.
        """
        (reply,) = self.link.start_release(self)
        await self.link.wait_for(reply)
        reply.outcome()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.release()
        except LockdError:
            if exc is None:
                raise


class TaskLink:
    """A connection that tasks share.

    Attributes:
        scopes: the bodies that are cancelled when their grant is lost.
    """

    def __init__(self, sock: socket.socket, tasks: TaskGroup) -> None:
        self.scopes: dict[AnyGrant, anyio.CancelScope] = {}
        self._sock = sock
        self._queues = LocalQueues()
        self._core = ClientCore(self._make_grant, self._queues.clear)
        self._core.tell_losses_to(self._cancel_body)
        self._wire = Wire(sock, self._core)
        self._core.on_end.append(self._queues.end)
        self._tasks = tasks
        self._loop = _current_loop()
        self._reading = anyio.CancelScope(shield=True)
        self._flushing: anyio.CancelScope | None = None
        self._forked = False
        forking.disown_in_children(self)
        tasks.start_soon(self._read)

    def __repr__(self) -> str:
        return f"<TaskLink {self._core!r}>"

    @property
    def forked(self) -> bool:
        """Whether this process is a forked child: the session is its parent's."""
        return self._forked

    def check_owned(self) -> None:
        """Checks that the session belongs to this process, and to this event loop.

        Raises:
            ForkedSessionError: it is the parent's.
            WrongTaskError: it is another loop's.
        """
        if self._forked:
            raise forking.forked()
        self.check_loop()

    @property
    def runs_here(self) -> bool:
        """Whether the event loop that runs here is the one that opened it."""
        return _current_loop() == self._loop

    def check_loop(self) -> None:
        """Checks that the event loop that runs here is the one that opened it.

        Another one could not be woken by what the daemon says, and would wait for ever.

        Raises:
            WrongTaskError: it is not.
        """
        if not self.runs_here:
            raise WrongTaskError(
                "this client belongs to the event loop that opened it, and another one "
                "runs here, or none: open a client in each loop, with connect()"
            )

    def task(self) -> object:
        """Returns what stands for the task that runs here."""
        # Not its number: a later task may get the same.
        return anyio.get_current_task().coro

    async def perform(self, *replies: Reply) -> None:
        """Sends requests and waits until all are answered."""
        self.check_owned()
        try:
            self._start(*replies)
            for reply in replies:
                await self._wait(reply)
        except BaseException:
            await self.abandon(*replies)
            raise

    async def ask(self, reply: Reply) -> Any:
        """Sends a request, waits for the answer, and returns its result."""
        await self.perform(reply)
        return reply.outcome()

    def start(self, *replies: Reply) -> None:
        """Sends requests, which can be waited for."""
        self.check_owned()
        self._start(*replies)

    def start_release(self, *grants: AnyGrant) -> list[Reply]:
        """Asks for the release of grants; returns what can be waited for."""
        self.check_owned()
        replies = [self._core.release(grant) for grant in grants]
        self._push()
        return replies

    async def wait_for(self, reply: Reply) -> None:
        """Waits until a request that was started is answered."""
        self.check_owned()
        await self._wait(reply)

    async def wait_patiently(self, awaitable: Awaitable[None]) -> None:
        """Waits for what the daemon is to do; puts off a cancellation for some seconds.

        It comes all the same, whenever a daemon that hangs goes on.

        Args:
            awaitable: what can be awaited again.
        """
        with anyio.move_on_after(PATIENCE, shield=True):
            await awaitable
            return
        await awaitable

    async def abandon(self, *replies: Reply) -> None:
        """Gives up requests; what they bring is given back."""
        cancelled = [reply for reply in replies if self._core.abandon(reply)]
        self._push()
        with anyio.move_on_after(PATIENCE, shield=True):
            for reply in cancelled:
                await self._wait(reply)

    def catch_up(self) -> None:
        """Takes note of all that the daemon has said so far; never waits."""
        # Another thread could not wake the tasks: there what the reader heard counts.
        if self.runs_here and not self._forked:
            while self._wire.pull():
                pass
            self._push()

    def enter_queue(self, key: ResourceKey, mode: Mode) -> Ticket:
        """Takes the calling task's place among those who want the same lock."""
        self.check_owned()
        self._core.check_connected()
        ticket = Ticket(key, mode, self.task())
        self._queues.enter(ticket)
        return ticket

    async def wait_admitted(self, ticket: Ticket, timeout: float | None) -> bool:
        """Waits until a ticket is admitted; returns false when the time is over."""
        event = anyio.Event()
        ticket.wake_with(event.set)
        with anyio.move_on_after(timeout):
            await event.wait()
        return ticket.done

    def keep_ticket(self, ticket: Ticket, hold: Hold) -> None:
        """Keeps a ticket until what its owner got ends, or until it leaves."""
        self._queues.keep(ticket, hold)

    def leave_queue(self, ticket: Ticket) -> None:
        """Takes a ticket out of its queue."""
        self._queues.leave(ticket)

    def open_events(self) -> Inbox:
        """Returns an inbox into which the events of a watch come."""
        self.check_owned()
        self._core.check_connected()
        inbox = Inbox()
        self._core.on_end.append(inbox.end)
        self._core.tell_events_to(inbox.put)
        return inbox

    def close_events(self, inbox: Inbox) -> None:
        """Lets events pass unheard from now on."""
        self._core.on_end.remove(inbox.end)
        self._core.tell_no_events_to(inbox.put)

    async def wait_item(self, inbox: Inbox) -> Any:
        """Waits for the next item of an inbox and returns it."""
        self.check_owned()
        while True:
            await self._wait(inbox)
            with suppress(IndexError):  # another task was faster
                return inbox.take()

    def stop(self) -> None:
        """Gives up what is held; those who wait get `ConnectionLostError`.

        The socket is to be closed when the tasks have ended, as they may wait for it.
        """
        self._reading.cancel()
        if self._flushing is not None:
            self._flushing.cancel()
        self._core.close()

    def hang_up(self) -> None:
        """Ends the session from any thread: the reader finds the end."""
        with suppress(OSError):  # the daemon was faster
            self._sock.shutdown(socket.SHUT_RDWR)

    def disown(self) -> None:
        """Closes a forked child's copy of the socket; sends nothing."""
        self._forked = True
        self._sock.close()

    def _start(self, *replies: Reply) -> None:
        for reply in replies:
            self._core.start(reply)
        self._push()

    async def _wait(self, awaited: Reply | Inbox) -> None:
        if awaited.done:
            await anyio.lowlevel.checkpoint()
        else:
            event = anyio.Event()
            awaited.wake_with(event.set)
            await event.wait()

    def _make_grant(self, hold: Hold) -> AnyGrant:
        return Grant(hold, self)

    async def _read(self) -> None:
        with self._reading:
            while not self._core.ended:
                await anyio.wait_readable(self._sock)
                self._wire.pull()
                self._push()

    def _push(self) -> None:
        self._wire.push()
        if self._core.outgoing and self._flushing is None:
            self._flushing = anyio.CancelScope(shield=True)
            self._tasks.start_soon(self._flush, self._flushing)

    async def _flush(self, scope: anyio.CancelScope) -> None:
        with scope:
            while self._core.outgoing:
                await anyio.wait_writable(self._sock)
                self._wire.push()
        self._flushing = None

    def _cancel_body(self, grant: AnyGrant) -> None:
        scope = self.scopes.get(grant)
        if scope is not None:
            scope.cancel()
