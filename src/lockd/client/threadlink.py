"""Lets many threads use one connection, without a thread of its own.

Of the threads that wait for an answer one, the reader, waits for the socket; the others
sleep. The reader gives what comes to the core, which wakes those whose answer it is. A
thread that leaves makes sure that somebody reads if anybody still waits. One mutex
guards the core, the socket and all that is here, and nobody waits while holding it.

An exception can therefore interrupt a wait, by a signal, in any thread: it abandons its
own requests and hands the reading on, and the others do not notice.
"""

import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from lockd.client import forking, paths
from lockd.client.core import ClientCore, Grant, Reply, UnheardError
from lockd.client.inbox import Inbox
from lockd.client.turns import Turn, Turns
from lockd.client.wire import Wire
from lockd.errors import ConnectionLostError
from lockd.terms import Mode, ResourceKey


def open_link(
    place: paths.Place, make_opening: Callable[[], list[Reply]]
) -> tuple["ThreadLink", Any]:
    """Opens a connection and a conversation on it.

    Args:
        place: where the daemon listens.
        make_opening: returns the requests that come first.

    Returns:
        The connection, and the result of the first request.

    Raises:
        ConnectionLostError: no daemon listens there, or it ended the connection.
        DeniedError: this user may not connect there.
        RequestError: the daemon refused one of the requests.
    """
    attempts = 0
    while True:
        attempts += 1
        link = ThreadLink(_open_socket(place))
        try:
            opening = make_opening()
            link.perform(*opening)
            welcome, *_ = [reply.outcome() for reply in opening]
            return link, welcome
        except BaseException as error:
            link.close()
            if not isinstance(error, UnheardError) or attempts == paths.ATTEMPTS:
                raise


def _open_socket(place: paths.Place) -> socket.socket:
    sock = paths.new_socket()
    try:
        paths.connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


class ThreadLink:
    """A connection that threads share.

    Attributes:
        sock: its socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._core = ClientCore()
        self._wire = Wire(sock, self._core)
        self._turns = Turns()
        self._core.on_end.append(self._turns.end)
        self._mutex = threading.Lock()
        self._reader: Reply | None = None
        self._sleepers: dict[Reply, threading.Lock] = {}
        # Invariant: the descriptor is open while anybody waits, lest a wait is for
        # somebody else's file that got the same number.
        self._waiting: set[Reply] = set()
        self._closing = False
        self._forked = False
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        forking.disown_in_children(self)

    def __repr__(self) -> str:
        return f"<ThreadLink {self._core!r}, {len(self._waiting)} waiting>"

    @property
    def forked(self) -> bool:
        """Whether this process is a forked child: the session is its parent's."""
        return self._forked

    def check_owned(self) -> None:
        """Checks that the session belongs to this process.

        Raises:
            ForkedSessionError: it is the parent's.
        """
        if self._forked:
            raise forking.forked()

    def perform(self, *replies: Reply) -> None:
        """Sends requests and waits until all are answered."""
        self.check_owned()
        try:
            with self._mutex:
                for reply in replies:
                    self._core.start(reply)
                self._wire.push()
            for reply in replies:
                self._wait(reply)
        except BaseException:
            self.abandon(*replies)
            raise

    def release(self, *grants: Grant) -> list[Reply]:
        """Releases grants and waits until the daemon has done so."""
        self.check_owned()
        try:
            replies = self._start_release(grants)
        except BaseException:
            # A signal, before all were asked for: to ask twice does no harm.
            self._start_release(grants)
            raise
        for reply in replies:
            self._wait(reply)
        return replies

    def abandon(self, *replies: Reply) -> None:
        """Gives up requests; what they bring is given back."""
        with self._mutex:
            cancelled = [reply for reply in replies if self._core.abandon(reply)]
            self._wire.push()
        for reply in cancelled:
            self._wait(reply)

    def catch_up(self) -> None:
        """Takes note of all that the daemon has said so far.

        If another thread is about to read that, it does so as well.
        """
        self.check_owned()
        with self._mutex:
            # An answer to the reader, taken here, would leave it waiting.
            while self._reader is None and self._wire.pull():
                pass
            self._wire.push()

    def enter_line(self, key: ResourceKey, mode: Mode) -> Turn:
        """Takes the calling thread's place among those who want the same lock."""
        self.check_owned()
        with self._mutex:
            self._core.check_connected()
            # Not its number: a later thread may get the same.
            return self._turns.enter(key, mode, threading.current_thread())

    def wait_turn(self, turn: Turn, timeout: float) -> bool:
        """Waits until a turn has come; a negative timeout waits for ever."""
        waker = threading.Lock()
        waker.acquire()
        with self._mutex:
            if turn.come:
                return True
            turn.wake = waker.release
        return waker.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))

    def leave_line(self, turn: Turn) -> None:
        """Gives up a turn, or a place in the line."""
        with self._mutex:
            turn.wake = None
            self._turns.leave(turn)

    def open_events(self) -> Inbox:
        """Returns an inbox into which the events of a watch come."""
        self.check_owned()
        with self._mutex:
            inbox = self._open_inbox()
            self._core.on_event = inbox.put
        return inbox

    def close_events(self, inbox: Inbox) -> None:
        """Lets events pass unheard from now on."""
        if self._forked:
            return
        with self._mutex:
            self._core.on_end.remove(inbox.end)
            if self._core.on_event == inbox.put:
                self._core.on_event = None

    def wait_item(self, inbox: Inbox) -> Any:
        """Waits for the next item of an inbox and returns it."""
        self.check_owned()
        with self._mutex:
            reply = inbox.take()
        try:
            self._wait(reply)
        except BaseException:
            with self._mutex:
                inbox.take_back(reply)
            raise
        return reply.outcome()

    def call_when_lost(self, on_lost: Callable[[Grant], None]) -> None:
        """Starts a thread that calls with every grant that is lost."""
        with self._mutex:
            inbox = self._open_inbox()
            self._core.on_lost = inbox.put
        target = partial(self._report_losses, inbox, on_lost)
        threading.Thread(target=target, name="lockd-on-lost", daemon=True).start()

    def close(self) -> None:
        """Ends the session; those who wait get `ConnectionLostError`."""
        if self._forked:
            return
        with self._mutex:
            self._core.close()
            if not self._closing:
                self._closing = True
                with suppress(OSError):  # the daemon was faster
                    self.sock.shutdown(socket.SHUT_RDWR)
            self._close_if_unused()

    def disown(self) -> None:
        """Closes a forked child's copy of the socket; takes no lock, sends nothing."""
        self._forked = True
        self.sock.close()

    def _open_inbox(self) -> Inbox:
        self._core.check_connected()
        inbox = Inbox()
        self._core.on_end.append(inbox.end)
        return inbox

    def _report_losses(self, inbox: Inbox, on_lost: Callable[[Grant], None]) -> None:
        while True:
            try:
                grant = self.wait_item(inbox)
            except ConnectionLostError:
                return
            on_lost(grant)

    def _start_release(self, grants: tuple[Grant, ...]) -> list[Reply]:
        with self._mutex:
            replies = [self._core.release(grant) for grant in grants]
            self._wire.push()
        return replies

    def _wait(self, reply: Reply) -> None:
        try:
            self._waiting.add(reply)
            while True:
                with self._mutex:
                    self._wire.push()
                    if reply.done and not self._core.outgoing:
                        return
                    wait = self._way_to_wait(reply)
                wait()
        finally:
            try:
                self._leave(reply)
            except BaseException:
                # A signal now must not leave the others without a reader.
                self._leave(reply)
                raise

    def _way_to_wait(self, reply: Reply) -> Callable[[], object]:
        if self._reader is None or self._reader is reply:
            self._reader = reply
            return self._read
        if self._core.outgoing:
            return self._poll_both_ways
        waker = self._sleepers[reply] = threading.Lock()
        waker.acquire()
        reply.wake = partial(self._rouse, reply)
        return waker.acquire

    def _rouse(self, reply: Reply) -> None:
        waker = self._sleepers.pop(reply, None)
        if waker is not None:
            waker.release()

    def _read(self) -> None:
        if self._core.outgoing:
            self._poll_both_ways()
        else:
            self._readable.poll()
        with self._mutex:
            self._wire.pull()

    def _poll_both_ways(self) -> None:
        # protocol 3.4: while nobody reads, the daemon may not either. So whoever wants
        # to write waits for input too, lest the reader has left meanwhile.
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | select.POLLOUT)
        poll.poll()

    def _leave(self, reply: Reply) -> None:
        with self._mutex:
            self._waiting.discard(reply)
            self._sleepers.pop(reply, None)
            if self._reader is reply:
                self._reader = None
            if self._reader is None and self._sleepers:
                self._rouse(next(iter(self._sleepers)))
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._closing and not self._waiting:
            self.sock.close()
