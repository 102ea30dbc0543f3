"""Lets many threads share one connection, without a thread of its own.

One of the waiting threads, the reader, waits for the socket; the others sleep. The
reader wakes the threads whose answers it has read. A thread that stops waiting wakes
another one, which becomes the reader.

A signal handler or a finalizer may use the connection in a thread that is already using
it. It then runs between two calls of that thread (see `core`):

- The mutex keeps threads from sending or receiving at the same time. Its owner may lock
  it again, and unlocks it completely to wait.
- The reader may read again in the same way. If other code has read its answer, the bell
  wakes it.
- A sleeping thread looks at its answer about once a second. So it does not depend on a
  reader that a signal handler blocks, or that an exception has ended.
"""

import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count

from lockd.client import forking
from lockd.client.core import ClientCore
from lockd.client.grants import AnyGrant, Hold
from lockd.client.inbox import Inbox, News
from lockd.client.reply import MOST_LEFT, PATIENCE, Reply
from lockd.client.strands import LoneStrand, Strand, strand_of_thread
from lockd.client.threads.bell import Bell
from lockd.client.threads.grants import Grant
from lockd.client.wire import Wire
from lockd.errors import ConnectionLostError, LockdError
from lockd.hints import TYPE_CHECKING, Any, Final
from lockd.lean import Lock, RLock, ref, socket
from lockd.terms import ResourceKey

if TYPE_CHECKING:
    from lockd.terms import WorkOutcome

#: Seconds after which a sleeping thread looks for itself.
_NAP: Final = 1.0

#: Seconds after which a thread that closes the client looks again.
_GLANCE: Final = 0.05


class ThreadLink:
    """A connection that threads share.

    Attributes:
        sock: its socket.
        left: the releases whose answers nobody waits for.
        forked: whether this process is a forked child, and the session its parent's.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._descriptor = sock.fileno()
        self._mutex: Any = RLock()
        self._core = ClientCore(partial(_make_grant, ref(self)), "thread")
        self.left = self._core.left
        self._wire = Wire(sock, self._core)
        self._seat: Any = RLock()
        self._reading = False
        self._bell = Bell(self._descriptor)
        # The sleeping threads: the lock of each, and whether it is the main thread.
        self._sleepers: dict[Lock, bool] = {}
        # Invariant: the descriptor is open while a thread waits. Otherwise the thread
        # could wait for another file with the same number.
        self._waiting: set[Lock] = set()
        self._closing = False
        self.forked = False
        forking.disown_in_children(self)

    def __repr__(self) -> str:
        return f"<ThreadLink {self._core!r}, {len(self._waiting)} waiting>"

    @property
    def lost(self) -> bool:
        """Whether the connection has ended, and this client has not closed it."""
        self.catch_up()
        ended = self._core.ended is not None
        return ended and not self._closing and not self.forked

    def check_owned(self) -> None:
        """Checks that the session belongs to this process.

        Raises:
            ForkedSessionError: it is the parent's.
        """
        if self.forked:
            raise forking.forked()
        if sys.is_finalizing():
            # Dead threads may hold the mutex; the session ends by itself.
            self._core.close()

    def perform(self, *replies: Reply) -> None:
        """Sends requests and waits for all answers.

        Raises:
            LockdError: an earlier release was refused, for which nobody has waited. The
                requests were not sent; an acquire may have been, and is undone.
        """
        self.check_owned()
        if self.left.refused and replies[0].method != "release":
            self.left.tell(self.strand() or 0)
        try:
            for reply in replies:
                self._core.start(reply)
            for reply in replies:
                self._wait(reply)
            if self.left.refused and replies[0].method == "acquire":
                self.left.tell(self.strand() or 0)
        except BaseException as error:
            try:
                self.abandon(*replies)
            except BaseException:
                self.abandon(*replies)
                raise
            finally:
                _tell_fate(error, replies)
            raise

    def release(
        self, *grants: AnyGrant, outcome: "WorkOutcome" = None, wait: bool = True
    ) -> list[Reply]:
        """Releases grants.

        Args:
            grants: the grants.
            outcome: how the work under the locks ended.
            wait: whether to wait for the daemon's answers.

        Returns:
            The replies that are done: the caller raises their errors. A refusal that
            comes later is raised elsewhere (`LeftReleases`).
        """
        self.check_owned()
        try:
            replies = self._start_release(grants, outcome, wait=wait)
            if wait or self._core.outgoing or len(self.left.unanswered) > MOST_LEFT:
                for reply in replies:
                    self._wait(reply)
            done = []
            for reply in replies:
                if reply.done:  # another thread may have read the answer already
                    self.left.remove(reply)
                    done.append(reply)
        except BaseException as error:
            # A signal, perhaps before all requests were sent; this sends each once.
            replies = self._start_release(grants, outcome, wait=wait)
            _tell_fate(error, replies)
            raise
        return done

    def _start_release(
        self, grants: tuple[AnyGrant, ...], outcome: "WorkOutcome", *, wait: bool
    ) -> list[Reply]:
        release = self._core.release
        with self._mutex:
            if not wait:
                # So an earlier loss is raised now, and no answer stays unread.
                self._hear()
            replies = [release(grant, outcome, wait=wait) for grant in grants]
            self._wire.push()
        return replies

    def hear_out(self) -> None:
        """Waits for the answers that nobody has waited for, if the daemon answers.

        Raises:
            LockdError: one is a refusal.
        """
        if self.forked:
            return
        waker = Lock()
        deadline = time.monotonic() + PATIENCE
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        try:
            self._waiting.add(waker)
            while self.left.unanswered and time.monotonic() < deadline:
                self.check_owned()
                # Briefly: another thread may read the answers.
                self._unlocked(partial(poll.poll, _GLANCE * 1000))
                self.catch_up()
        finally:
            try:
                self._leave(waker)
            except BaseException:
                # A signal at this moment must not leave the others without a reader.
                self._leave(waker)
                raise
        self.left.tell(None)

    def abandon(self, *replies: Reply) -> None:
        """Gives up requests; releases what they bring."""
        cancelled = [reply for reply in replies if self._core.abandon(reply)]
        self._push()
        for reply in cancelled:
            self._wait(reply)

    def catch_up(self) -> None:
        """Processes all that has been received; never waits."""
        if self.forked or sys.is_finalizing():
            return
        with self._mutex:
            self._hear()
            self._wire.push()

    def strand(self) -> Strand | None:
        """Returns the strand of the calling thread; None if the session has none."""
        return None if self._core.program.whole else strand_of_thread()

    def lone_strand(self) -> Strand | None:
        """Returns a strand for one acquire; None if the session has none."""
        return None if self._core.program.whole else LoneStrand()

    def find_held(self, key: ResourceKey) -> tuple[int, int | None]:
        """Returns the strand of the calling thread, and its token for a lock."""
        strand = self.strand() or 0
        return strand, self._core.token_of(key, strand)

    def open_events(self) -> Inbox:
        """Returns an inbox that receives the events of a watch."""
        self.check_owned()
        inbox = self._open_inbox()
        self._core.tell_events_to(inbox.put)
        return inbox

    def close_events(self, inbox: Inbox) -> None:
        """Stops passing events to an inbox."""
        if self.forked:
            return
        with suppress(ValueError):  # a second call after an exception
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

    def wait_item(self, inbox: Inbox) -> Any:
        """Waits for the next item of an inbox and returns it."""
        self.check_owned()
        while True:
            self._wait(inbox)
            with suppress(IndexError):  # another thread was faster
                return inbox.take()

    def call_when_lost(self, on_lost: Callable[[Grant], None]) -> None:
        """Starts a thread that calls `on_lost` with every grant that is lost."""
        inbox = self._open_inbox()
        numbers = count()
        self._core.tell_losses_to(lambda grant: inbox.put(grant, next(numbers)))
        target = partial(self._report_losses, inbox, on_lost)
        import threading  # not for those who do without

        threading.Thread(target=target, name="lockd-on-lost", daemon=True).start()

    def close(self) -> None:
        """Ends the session. Waiting calls raise `ConnectionLostError`."""
        if self.forked:
            return
        try:
            self._close()
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        self._closing = True
        self._core.close()
        with self._mutex:
            with suppress(OSError):  # the daemon was faster, or it is closed
                self.sock.shutdown(socket.SHUT_RDWR)
            self._close_if_unused()

    def disown(self) -> None:
        """Closes a forked child's copy of the socket. Takes no lock, sends nothing."""
        self.forked = True
        self.sock.close()
        self._bell.close()

    def _open_inbox(self) -> Inbox:
        self._core.check_connected()
        inbox = Inbox()
        self._core.on_end.append(inbox.end)
        if self._core.ended:
            inbox.end(ConnectionLostError("the connection ended meanwhile"))
        return inbox

    def _report_losses(self, inbox: Inbox, on_lost: Callable[[Grant], None]) -> None:
        while True:
            try:
                grant = self.wait_item(inbox)
            except LockdError:
                return
            if grant.hold.tell():
                on_lost(grant)

    # Waiting.

    def _hear(self) -> None:
        heard = self._wire.pull_all()
        if self._reading and (heard or self._core.ended):
            self._bell.ring()

    def _push(self) -> None:
        with self._mutex:
            self._wire.push()

    def _wait(self, awaited: Reply | Inbox) -> None:
        """Waits until an object is done."""
        outgoing = self._core.outgoing
        if outgoing:
            with self._mutex:
                self._wire.push()
        waker = Lock()
        try:
            self._waiting.add(waker)
            while not awaited.done or outgoing:
                if self.forked:
                    raise forking.forked()
                if not self._read(awaited):
                    self._sleep(awaited, waker)
                if outgoing:
                    self._push()
        finally:
            try:
                self._leave(waker)
            except BaseException:
                # A signal at this moment must not leave the others without a reader.
                self._leave(waker)
                raise

    def _read(self, awaited: Reply | Inbox) -> bool:
        """Reads until an object is done, or there is something to send.

        Returns whether it has read: false if another thread is reading.
        """
        core = self._core
        again = self._seat._is_owned()
        taken: list[bool] = []
        try:
            # One call: an exception cannot come between the call and its result.
            taken.extend(map(self._seat.acquire, (False,)))
            if taken[0]:
                self._reading = True
                if core.arrived:  # an exception has ended their reader
                    core.take_in()
                wait = not awaited.done or bool(core.outgoing)
                while wait and not self.forked:
                    # Without the mutex, even if this code interrupted its owner.
                    owned = self._mutex._is_owned()
                    self._bell.wait(
                        self._unlocked if owned else None, sends=bool(core.outgoing)
                    )
                    with self._mutex:
                        self._wire.pull()
                    wait = not awaited.done and not core.outgoing
        finally:
            if taken and taken[0]:
                self._reading = again
                try:
                    if again:
                        self._bell.ring()
                finally:
                    self._seat.release()
        return taken[0]

    def _sleep(self, awaited: Reply | Inbox, waker: Lock) -> None:
        if self._core.outgoing:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN | select.POLLOUT)
            self._unlocked(partial(poll.poll, _NAP * 1000))
            return
        import threading  # loaded already, where another thread reads

        waker.acquire(blocking=False)
        main = threading.current_thread() is threading.main_thread()
        self._sleepers[waker] = main
        awaited.wake_with(partial(_open, waker))
        # From here on, a thread that stops reading finds this one among the sleepers.
        if awaited.done or not self._reading:
            return
        if not self._unlocked(partial(waker.acquire, timeout=_NAP)):
            self.catch_up()

    def _unlocked(self, wait: Callable[[], Any]) -> Any:
        """Waits without the mutex, even if this code interrupted its owner."""
        if not self._mutex._is_owned():
            return wait()
        saved: list[Any] = []
        try:
            saved.extend(map(_SAVE, (self._mutex,)))
            return wait()
        finally:
            if saved:
                _RESTORE(self._mutex, saved[0])

    def _leave(self, waker: Lock) -> None:
        self._waiting.discard(waker)
        if self._sleepers:
            self._sleepers.pop(waker, None)
            if not self._reading:
                self._rouse()
        if self._closing:
            with self._mutex:
                self._close_if_unused()

    def _rouse(self) -> None:
        # Prefer a thread other than the main thread, which a signal handler may block.
        # For the main thread, wake its last wait: it interrupted the earlier ones.
        sleepers = list(self._sleepers.items())
        others = [waker for waker, main in sleepers if not main]
        for waker in (others or [waker for waker, _ in sleepers])[-1:]:
            _open(waker)

    def _close_if_unused(self) -> None:
        if not self._waiting:
            self.sock.close()
            self._bell.close()


#: The methods with which `threading.Condition` unlocks a lock completely to wait.
_SAVE: Final[Any] = getattr(type(RLock()), "_release_save")  # noqa: B009
_RESTORE: Final[Any] = getattr(type(RLock()), "_acquire_restore")  # noqa: B009


def _open(waker: Lock) -> None:
    with suppress(RuntimeError):  # it is open
        waker.release()


def _make_grant(link: "ref[ThreadLink]", hold: Hold) -> Grant:
    found = link()
    if found is None:
        raise ConnectionLostError("the client is closed: open another one")
    return Grant(hold, found)


def _tell_fate(
    error: BaseException, replies: "tuple[Reply, ...] | list[Reply]"
) -> None:
    """Notes in an exception what happened to the requests it interrupted."""
    if isinstance(error, LockdError):
        return
    for reply in replies:
        if (fate := reply.fate()) is not None:
            error.add_note(f"lockd: {fate}")
