"""Lets the tasks of one trio or asyncio program share one connection.

A reader passes received bytes to the core, which wakes the tasks that wait for them.
All other code runs between two checkpoints, so this module needs no lock.

Cancellation: a cancelled task cancels its requests, and waits in a shield for the
answers. The daemon answers every request. If it hangs, the task stops waiting after
some seconds, and the link later releases what the request brings. The reader is
shielded too, because a cancelled program needs these answers; `stop` ends it.
"""

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final, Self
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from lockd.client import arguments, forking, paths
from lockd.client.core import ClientCore, UnheardError
from lockd.client.grants import AnyGrant, Hold
from lockd.client.inbox import Inbox, News
from lockd.client.reply import MOST_LEFT, PATIENCE, Reply
from lockd.client.requests import Opening
from lockd.client.strands import LoneStrand, Strand
from lockd.client.tasks.loop import Scope, current_loop
from lockd.client.wire import Wire
from lockd.errors import InvalidRequestError, LockdError, WrongTaskError
from lockd.terms import ResourceKey, WorkOutcome

#: A connect cannot wait while the daemon's backlog is full; it can only retry
#: (unix(7)).
_BACKLOG_PAUSE: Final = 0.01


@asynccontextmanager
async def open_link(
    address: paths.Address, opening: Opening
) -> AsyncIterator[tuple["TaskLink", Any]]:
    """Opens a connection and a conversation while the body runs.

    Args:
        address: where the daemon listens.
        opening: the first requests.

    Yields:
        The connection, and the result of the first request.

    Raises:
        ConnectionLostError: no daemon listens there, or it closed the connection.
        DeniedError: this user may not connect there.
        RequestError: the daemon rejected one of the requests.
    """
    async with AsyncExitStack() as stack:
        attempts = 0
        while True:
            attempts += 1
            try:
                opened = _try_to_open(address, opening.requests())
                found = await stack.enter_async_context(opened)
                break
            except UnheardError:
                if attempts == paths.ATTEMPTS:
                    raise
            except InvalidRequestError:
                if not opening.say_less():
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
                    await link.hear_out()
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:
                    # Raised below: here the task group would wrap it.
                    failure = error
                finally:
                    link.stop()
        finally:
            if failure is not None:
                raise failure


async def _open_socket(address: paths.Address) -> socket.socket:
    sock = paths.new_socket(socket.socket)
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


class Grant(AnyGrant):
    """A lock that an async client holds or held. The end of `async with` releases it.

    Its attributes reflect all that the daemon has sent so far.
    """

    __slots__ = ()

    link: "TaskLink"

    async def release(self, outcome: WorkOutcome = None, *, wait: bool = True) -> None:
        """Releases the lock. A second call does nothing.

        Args:
            outcome: how the work under the lock ended: "ok", "failed" or "died". After
                the last two, the next grants of the lock have it in `previous`.
            wait: whether to wait for the daemon's answer. Then the lock is free for
                others when this returns. False is what the end of an `async with` body
                does: `lockd.aio.Client` says what follows.

        The request is sent at once, even if the wait for it is cancelled.

        Raises:
            LockLostError: the lock had been lost.
            ForkedSessionError: it is the parent's.
        """
        arguments.checked("release", {"outcome": outcome, "wait": wait})
        await self.link.release(self, outcome, wait=wait)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, exc: BaseException | None, __: object) -> None:
        try:
            await self.release(wait=False)
        except LockdError:
            if exc is None:
                raise


class TaskLink:
    """A connection that tasks share.

    Attributes:
        loop: the event loop of the tasks.
        scopes: the bodies to cancel when their grant is lost.
        left: the releases whose answers nobody waits for.
        forked: whether this process is a forked child, and the session its parent's.
    """

    def __init__(self, sock: socket.socket, tasks: TaskGroup) -> None:
        self.loop = current_loop()
        self.scopes: dict[AnyGrant, Scope] = {}
        self._sock = sock
        # Without the task, its strand goes, too.
        self._strands: WeakKeyDictionary[Any, Strand] = WeakKeyDictionary()
        self._core = ClientCore(self._make_grant, "task")
        self._core.tell_losses_to(self._cancel_body)
        self.left = self._core.left
        self._wire = Wire(sock, self._core)
        self._serving = anyio.CancelScope(shield=True)
        #: Set when the kernel accepts no more bytes for now.
        self._full = self.loop.event()
        self.forked = False
        forking.disown_in_children(self)
        tasks.start_soon(self._serve)

    def __repr__(self) -> str:
        return f"<TaskLink {self._core!r}>"

    def check_owned(self) -> None:
        """Checks that the session belongs to this process, and to this event loop.

        Raises:
            ForkedSessionError: it is the parent's.
            WrongTaskError: it belongs to another event loop.
        """
        if self.forked:
            raise forking.forked()
        self.check_loop()

    def check_loop(self) -> None:
        """Checks that the current event loop is the one that opened the connection.

        The link could not wake the tasks of another loop, which would wait for ever.

        Raises:
            WrongTaskError: it is another one.
        """
        if not self.loop.runs_here:
            raise WrongTaskError(
                "this client works only in the event loop that opened it: open a "
                "client in each loop, with connect()"
            )

    def strand(self) -> Strand | None:
        """Returns the strand of the current task; None if the session has none."""
        self.check_owned()
        return self.strand_of(self.loop.task())

    def strand_of(self, task: object) -> Strand | None:
        """Returns the strand of a task; None if the session has none."""
        if self._core.program.whole:
            return None
        return self._strands.get(task) or self._strands.setdefault(task, Strand())

    def lone_strand(self) -> Strand | None:
        """Returns a strand for one acquire; None if the session has none."""
        self.check_owned()
        return None if self._core.program.whole else LoneStrand()

    def find_held(self, key: ResourceKey) -> tuple[int, int | None]:
        """Returns the strand of the current task, and its token for a lock."""
        strand = self.strand() or 0
        return strand, self._core.token_of(key, strand)

    async def perform(self, *replies: Reply) -> None:
        """Sends requests and waits for all answers.

        Raises:
            LockdError: an earlier release was refused, for which nobody has waited. The
                requests were not sent; an acquire may have been, and is undone.
        """
        self.check_owned()
        await self.perform_checked(*replies)

    async def perform_checked(self, *replies: Reply) -> None:
        """Does the same as `perform`, after `check_owned`."""
        if self.left.refused and replies[0].method != "release":
            self.left.tell(self.strand() or 0)
        try:
            self._start(*replies)
            for reply in replies:
                await self._wait(reply)
            if self.left.refused and replies[0].method == "acquire":
                self.left.tell(self.strand() or 0)
        except BaseException:
            await self.abandon(*replies)
            raise

    async def ask(self, reply: Reply) -> Any:
        """Sends a request, waits for the answer, and returns its result."""
        await self.perform(reply)
        return reply.outcome()

    def start(self, *replies: Reply) -> None:
        """Sends requests. `wait_for` waits for an answer."""
        self.check_owned()
        self._start(*replies)

    def start_release(self, *grants: AnyGrant) -> list[Reply]:
        """Sends the release of grants. Returns a reply for each."""
        self.check_owned()
        replies = [self._core.release(grant) for grant in grants]
        self._push()
        return replies

    async def release(
        self, grant: AnyGrant, outcome: WorkOutcome = None, *, wait: bool = True
    ) -> None:
        """Releases a grant.

        Args:
            grant: the grant.
            outcome: how the work under the lock ended.
            wait: whether to wait for the daemon's answer.

        Raises:
            LockLostError: the lock had been lost.
        """
        self.check_owned()
        await self.release_here(grant, outcome, wait=wait)

    async def release_here(
        self, grant: AnyGrant, outcome: WorkOutcome = None, *, wait: bool
    ) -> None:
        """Does the same as `release`, after `check_loop`."""
        if self.forked:
            raise forking.forked()
        if not wait:
            # So a loss before this moment is told now.
            self._wire.pull_all()
        reply = self._core.release(grant, outcome, wait=wait)
        self._push()
        if wait or len(self.left.unanswered) > MOST_LEFT:
            await self._wait(reply)
            self.left.remove(reply)
        reply.outcome()

    async def hear_out(self) -> None:
        """Waits for the answers that nobody has waited for, if the daemon answers.

        Raises:
            LockdError: one is a refusal.
        """
        with anyio.move_on_after(PATIENCE):
            for reply in list(self.left.unanswered):
                await self._wait(reply)
        self.left.tell(None)

    async def wait_for(self, reply: Reply) -> None:
        """Waits for the answer to a request that was sent."""
        self.check_owned()
        await self._wait(reply)

    async def abandon(self, *replies: Reply) -> None:
        """Gives up requests; releases what they bring."""
        cancelled = [reply for reply in replies if self._core.abandon(reply)]
        self._push()
        with anyio.move_on_after(PATIENCE, shield=True):
            for reply in cancelled:
                await self._wait(reply)

    def catch_up(self) -> None:
        """Processes all that has been received; never waits."""
        # Other threads cannot wake the tasks, so they only see what the reader has
        # read.
        if self.loop.runs_here and not self.forked:
            self._wire.pull_all()
            self._push()

    def open_events(self) -> Inbox:
        """Returns an inbox that receives the events of a watch."""
        self.check_owned()
        self._core.check_connected()
        inbox = Inbox()
        self._core.on_end.append(inbox.end)
        self._core.tell_events_to(inbox.put)
        return inbox

    def close_events(self, inbox: Inbox) -> None:
        """Stops passing events to an inbox."""
        self._core.on_end.remove(inbox.end)
        self._core.tell_no_events_to(inbox.put)

    def open_notices(self) -> News:
        """Returns an inbox for the grants of which notices say something new."""
        self.check_owned()
        self._core.check_connected()
        return self._core.open_news()

    def close_notices(self, news: News) -> None:
        """Stops passing grants to an inbox."""
        self._core.close_news(news)

    async def wait_item(self, inbox: Inbox) -> Any:
        """Waits for the next item of an inbox and returns it."""
        self.check_owned()
        while True:
            await self._wait(inbox)
            with suppress(IndexError):  # another task was faster
                return inbox.take()

    def stop(self) -> None:
        """Ends the session. Waiting calls raise `ConnectionLostError`.

        The caller closes the socket after the tasks have ended: they may still wait for
        it.
        """
        self._serving.cancel()
        self._core.close()

    def hang_up(self) -> None:
        """Shuts the connection down, from any thread. The reader notices."""
        with suppress(OSError):  # the daemon was faster
            self._sock.shutdown(socket.SHUT_RDWR)

    def disown(self) -> None:
        """Closes a forked child's copy of the socket. Sends nothing."""
        self.forked = True
        self._sock.close()

    def _start(self, *replies: Reply) -> None:
        for reply in replies:
            self._core.start(reply)
        self._push()

    async def _wait(self, awaited: Reply | Inbox) -> None:
        if awaited.done:
            await anyio.lowlevel.checkpoint()
        else:
            event = self.loop.event()
            awaited.wake_with(event.set)
            await event.wait()

    def _make_grant(self, hold: Hold) -> AnyGrant:
        return Grant(hold, self)

    async def _serve(self) -> None:
        with self._serving:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._flush)
                await self.loop.while_readable(self._sock, self._take)
                tasks.cancel_scope.cancel()

    def _take(self) -> bool:
        self._wire.pull()
        if self._core.outgoing:
            self._push()
        return self._core.ended is None

    def _push(self) -> None:
        self._wire.push()
        if self._core.outgoing:
            self._full.set()

    async def _flush(self) -> None:
        while True:
            await self._full.wait()
            while self._core.outgoing:
                await anyio.wait_writable(self._sock)
                self._wire.push()
            self._full = self.loop.event()

    def _cancel_body(self, grant: AnyGrant) -> None:
        scope = self.scopes.get(grant)
        if scope is not None:
            scope.cancel()
