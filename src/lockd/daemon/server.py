"""Takes clients in and lets them go; goes round those that have something to say.

A single trio task waits for the poller, so a turn of the loop serves every client that
is ready without a task switch for each: reads, carries out, and sends each client's
answers in one piece at the end.
"""

import logging
import os
import select
import socket
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from lockd.daemon.answers import Answers
from lockd.daemon.credentials import NO_DESCRIPTORS, identify, name_of
from lockd.daemon.dispatch import Dispatcher
from lockd.daemon.peer import Peer
from lockd.daemon.poller import Poller
from lockd.daemon.runtime import Runtime

logger = logging.getLogger(__name__)

ACCEPTS_PER_TURN: Final = 64
"""New clients taken in before the others have their turn."""

LINGER: Final = 0.001
"""Seconds that a turn waits for more before the loop goes back to trio's scheduler."""

TURNS: Final = 0.005
"""Seconds after which it goes back anyhow: timeouts and signals wait no longer."""

COMPLAINT_PAUSE: Final = 10.0
"""Seconds between two log lines about clients that had to be turned away."""


class Server:
    """The turns of the loop, and the clients.

    Args:
        poller: what is watched.
        runtime: is told when a turn ends.
        answers: knows who is behind.
        dispatcher: takes the requests.
    """

    def __init__(
        self,
        poller: Poller,
        runtime: Runtime,
        answers: Answers,
        dispatcher: Dispatcher,
    ) -> None:
        self._poller = poller
        self._runtime = runtime
        self._answers = answers
        self._dispatcher = dispatcher
        self._listeners: list[socket.socket] = []
        self._admins = (0, os.geteuid())
        #: Peers that asked for more than a turn has time for.
        self._unfinished: set[Peer] = set()
        # Closed when no other is left, so that a client can be turned away and does
        # not stay at the head of the backlog for ever.
        self._spare_fd = _open_spare()
        self._next_complaint = 0.0

    def listen(self, listener: socket.socket, *, admin: bool = False) -> None:
        """Takes in the clients of a listening socket, which is ours from now on.

        Args:
            admin: whether whoever may connect there may do everything.
        """
        listener.setblocking(False)
        self._listeners.append(listener)
        action = partial(self._accept_all, listener, admin)
        self._poller.watch(listener.fileno(), select.EPOLLIN, action)

    def adopt(self, peer: Peer) -> None:
        """Goes on serving a client of the daemon before."""
        self._answers.add_peer(peer)
        self._watch(peer)
        self._answers.behind.add(peer)

    def finish_turn(self) -> None:
        """Carries out all that was read, and sends what the sockets take."""
        for peer in self._unfinished:
            peer.finish_receiving(self._dispatcher.take)
            self._answers.behind.add(peer)
        self.end_turn()

    async def run(self) -> None:
        """Serves until it is cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._runtime.run, self.end_turn)
            while True:
                if self._unfinished:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self._poller.fileno())
                self._take_turns()

    def _take_turns(self) -> None:
        """Serves until nobody asks for anything, or the other tasks have their due.

        Whoever got an answer often asks again at once. Waiting a moment for that here,
        and not in trio, saves two task switches a request.
        """
        until = trio.current_time() + TURNS
        while self._take_turn():
            if trio.current_time() > until:
                break

    def _take_turn(self) -> bool:
        """Serves whoever is ready; tells whether anybody was."""
        unfinished, self._unfinished = self._unfinished, set()
        any_ready = self._poller.act(0 if unfinished else LINGER)
        for peer in unfinished:
            if peer.has_more:
                peer.receive(self._dispatcher.take)
                self._answers.behind.add(peer)
        if not (any_ready or unfinished):
            return False
        self.end_turn()
        return True

    def end_turn(self) -> None:
        """Sends what every client is to be told, and closes those that are done."""
        behind = self._answers.behind
        while behind:
            peer = behind.pop()
            peer.flush()
            if peer.is_closing:
                self._close_peer(peer)
            elif peer.has_more:
                self._unfinished.add(peer)
        self._runtime.end_turn()

    def close(self) -> None:
        """Closes everything: every client sees EOF."""
        for listener in self._listeners:
            self._poller.unwatch(listener.fileno())
            listener.close()
        for peer in list(self._answers.peers.values()):
            self._close_peer(peer)
        self._runtime.end_turn()
        if self._spare_fd is not None:
            os.close(self._spare_fd)

    # Clients.

    def _accept_all(self, listener: socket.socket, admin: bool, events: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in NO_DESCRIPTORS:
                    logger.warning("a client could not be accepted: %s", error)
                    return
                self._turn_away(listener, error)
            else:
                self._open_peer(sock, admin)

    def _turn_away(self, listener: socket.socket, error: OSError) -> None:
        if self._spare_fd is not None:
            os.close(self._spare_fd)
        with suppress(OSError):  # it went away by itself
            listener.accept()[0].close()
        self._spare_fd = _open_spare()
        self._complain(error)

    def _complain(self, error: OSError) -> None:
        now = trio.current_time()
        if now >= self._next_complaint:
            self._next_complaint = now + COMPLAINT_PAUSE
            logger.error("clients are turned away: %s", error)

    def _open_peer(self, sock: socket.socket, came_as_admin: bool) -> None:
        sock.setblocking(False)
        try:
            identity = identify(sock)
        except OSError as error:
            sock.close()
            self._complain(error)
            return
        uid = identity.credentials.uid
        peer = Peer(
            self._dispatcher.new_session(),
            sock,
            identity,
            trio.current_time(),
            partial(self._poller.change, sock.fileno()),
            is_admin=(came_as_admin or uid in self._admins) and not identity.is_foreign,
        )
        name = name_of(identity.credentials.pid)
        self._dispatcher.open_session(peer, name, identity.pidfd)
        self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        action = partial(self._serve, peer)
        self._poller.watch(peer.fileno(), peer.wanted_events, action)

    def _serve(self, peer: Peer, events: int) -> None:
        if events & select.EPOLLIN:
            peer.receive(self._dispatcher.take)
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            peer.is_closing = True
        # What waits to be written is sent at the end of the turn.
        self._answers.behind.add(peer)

    def _close_peer(self, peer: Peer) -> None:
        self._poller.unwatch(peer.fileno())
        peer.close()
        self._dispatcher.close_session(peer)


def _open_spare() -> int | None:
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # another process was faster (ENFILE): next time, perhaps
        return None
