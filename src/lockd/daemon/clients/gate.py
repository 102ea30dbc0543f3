"""The listening sockets: accepts clients, or rejects them when resources run out.

New clients do not delay connected ones. A turn spends little time on `accept`. If there
is no descriptor even to reject a client, the socket is not polled for a while.
"""

import logging
import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import Final

import trio

from lockd.daemon.activity.counts import Counts
from lockd.daemon.clients.shares import REST
from lockd.daemon.system.credentials import NO_DESCRIPTORS
from lockd.daemon.system.listener import Listening, Role
from lockd.daemon.system.poller import Poller

logger = logging.getLogger(__name__)

ACCEPTING: Final = 0.0005
"""Seconds of a turn to accept clients, for each socket."""

ACCEPT_PAUSE: Final = 0.1
"""Seconds without accepting when no descriptor is free even to reject a client."""

SO_PASSRIGHTS: Final = 83
"""Since Linux 6.16: 0 makes the kernel refuse passed descriptors."""

COMPLAINT_PAUSE: Final = 10.0
"""Seconds between two log lines about rejected clients."""


class Gate:
    """Accepts connections.

    Args:
        poller: watches the sockets.
        counts: counts the rejected clients.
        is_shared: returns whether other users are connected and need time.
        arrive: called with each connection and its role.
        make_room: closes descriptors that nobody needs; returns whether there were any.
    """

    def __init__(
        self,
        poller: Poller,
        counts: Counts,
        is_shared: Callable[[], bool],
        arrive: Callable[[socket.socket, Role], None],
        make_room: Callable[[], bool],
    ) -> None:
        self._poller = poller
        self._counts = counts
        self._is_shared = is_shared
        self._arrive = arrive
        self._make_room = make_room
        self._listeners: list[Listening] = []
        #: The sockets where accepting pauses, and until when.
        self._pauses: dict[Listening, float] = {}
        # It is closed when no other descriptor is free. Then a client can be rejected,
        # and does not stay at the head of the backlog.
        self._spare_fd = _open_spare()
        self._next_complaint = 0.0
        #: Like `trio.current_time`, which looks the clock up each time.
        self._now = trio.lowlevel.current_clock().current_time

    def listen(self, listener: socket.socket, role: Role) -> None:
        """Accepts the clients of a listening socket, which this object then owns."""
        listener.setblocking(False)
        with suppress(OSError):  # an older kernel: passed descriptors are closed unseen
            listener.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        listening = Listening(listener, role)
        self._listeners.append(listening)
        self._watch(listening)

    def stop(self) -> None:
        """Stops accepting. New clients wait for the next daemon at the socket."""
        self._pauses.clear()
        for listening in self._listeners:
            self._poller.unwatch(listening.socket.fileno())

    def close(self) -> None:
        """Closes the listening sockets. New clients are refused."""
        for listener, _ in self._listeners:
            self._poller.unwatch(listener.fileno())
            listener.close()
        if self._spare_fd is not None:
            os.close(self._spare_fd)

    @property
    def pauses(self) -> bool:
        """Whether accepting pauses at a socket."""
        return bool(self._pauses)

    @property
    def next_deadline(self) -> float:
        """When to accept again after a pause (`keep_deadlines`)."""
        return min(self._pauses.values(), default=inf)

    def keep_deadlines(self, now: float) -> None:
        """Accepts clients again after a pause."""
        if not self._pauses:
            return
        for listening in [x for x, until in self._pauses.items() if until <= now]:
            del self._pauses[listening]
            if self._spare_fd is None:
                self._spare_fd = _open_spare()
            self._watch(listening)

    def complain(self, error: Exception) -> None:
        """Counts a rejected client. Logs this now and then."""
        self._counts.count_turned_away()
        now = self._now()
        if now >= self._next_complaint:
            self._next_complaint = now + COMPLAINT_PAUSE
            logger.error("clients are rejected: %s", error)

    def _watch(self, listening: Listening) -> None:
        action = partial(self._accept_all, listening)
        self._poller.watch(listening.socket.fileno(), select.EPOLLIN, action)

    def _accept_all(self, listening: Listening, events: int) -> None:
        until = self._now() + ACCEPTING
        while self._now() < until:
            try:
                sock, _ = listening.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in NO_DESCRIPTORS:
                    logger.warning("a client could not be accepted: %s", error)
                    return
                if self._make_room():
                    continue
                self._turn_away(listening, error)
                if listening in self._pauses:
                    return
            else:
                self._arrive(sock, listening.role)
        if self._is_shared():
            self._pause(listening, REST)

    def _turn_away(self, listening: Listening, error: OSError) -> None:
        self.complain(error)
        if self._spare_fd is not None:
            os.close(self._spare_fd)
        try:
            listening.socket.accept()[0].close()
        except BlockingIOError:
            pass  # it has disconnected
        except OSError:
            # Another descriptor took the place of the spare one.
            self._pause(listening, ACCEPT_PAUSE)
        self._spare_fd = _open_spare()

    def _pause(self, listening: Listening, pause: float) -> None:
        """Stops watching a socket for a while: it would wake the loop all the time."""
        self._pauses[listening] = self._now() + pause
        self._poller.unwatch(listening.socket.fileno())


def _open_spare() -> int | None:
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # another process was faster (ENFILE): try later
        return None
