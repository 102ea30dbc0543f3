"""The loop: serves all ready clients in turns, and closes those that end.

A single trio task waits for the poller. So one turn of the loop serves every ready
client without task switches. It reads and carries out requests, and sends each client's
answers in one piece at the end.
"""

import logging
import select
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any, Final, TypeVar

import trio

from lockd.daemon.activity.life import Life
from lockd.daemon.clients.admission import Admission, Newcomer
from lockd.daemon.clients.gate import Gate
from lockd.daemon.clients.half_messages import HalfMessages, completes
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.clients.limits import Limiter
from lockd.daemon.clients.peer import Peer
from lockd.daemon.clients.shares import Shares, Waiting, drop
from lockd.daemon.replies.answers import Answers
from lockd.daemon.replies.feed import Told
from lockd.daemon.requests.dispatch import Dispatcher
from lockd.daemon.requests.runtime import Runtime
from lockd.daemon.requests.sessions import Sessions
from lockd.daemon.requests.virtlockd import Virtlockd
from lockd.daemon.system.defects import attempt
from lockd.daemon.system.listener import CLIENTS, Role
from lockd.daemon.system.poller import Poller
from lockd.errors import ProtocolError

logger = logging.getLogger(__name__)

LINGER: Final = 0.001
"""Seconds that a turn waits for more before the loop returns to trio's scheduler."""

TURNS: Final = 0.005
"""Seconds after which it returns in any case: timeouts and signals wait."""

# As attributes of `select` they would be looked up for every request.
OUT_OF_BAND: Final = select.EPOLLPRI
READABLE: Final = select.EPOLLIN
HUNG_UP: Final = select.EPOLLHUP | select.EPOLLERR

ADMITTING: Final = 0.0005
"""Seconds of a turn for admitting the new connections of one user."""

Served = TypeVar("Served", Peer, Newcomer)


class Server:
    """Runs the turns of the loop.

    Args:
        poller: watches descriptors.
        runtime: carries out commands.
        answers: has the peers.
        dispatcher: handles requests.
        virtlockd: handles libvirt's calls.
        limiter: limits the clients.
        keeping: keeps the state for a successor.
        sessions: opens and closes sessions.
        life: numbers sessions.
    """

    def __init__(
        self,
        poller: Poller,
        runtime: Runtime,
        answers: Answers,
        dispatcher: Dispatcher,
        virtlockd: Virtlockd,
        limiter: Limiter,
        keeping: Keeping,
        sessions: Sessions,
        life: Life,
    ) -> None:
        self._poller = poller
        self._runtime = runtime
        self._answers = answers
        self._dispatcher = dispatcher
        self._virtlockd = virtlockd
        self._limiter = limiter
        self._keeping = keeping
        self._sessions = sessions
        self._gate = Gate(
            poller,
            answers.counts,
            lambda: limiter.is_shared,
            self.take_in,
            limiter.make_room,
        )
        self._admission = Admission(
            poller, life, keeping, limiter, self._gate, answers.counts.count_refusal
        )
        self._shares = Shares(lambda: limiter.is_shared)
        # Not `_shares`: a busy client does not delay its user's new connections.
        self._arrivals = Shares(lambda: limiter.is_shared, ADMITTING)
        #: Peers by user whose requests did not fit into a turn, the longest waiting
        #: first.
        self._unfinished: Waiting = {}
        #: Peers to close, which are not served any more.
        self._leaving: Waiting = {}
        self._incomplete = HalfMessages()
        self._sleep = trio.CancelScope()

    def listen(self, listener: socket.socket, role: Role = CLIENTS) -> None:
        """Accepts the clients of a listening socket, which this object then owns.

        Args:
            role: its role. A client of the admin socket may do everything.
        """
        self._gate.listen(listener, role)

    def adopt(self, peer: Peer) -> None:
        """Serves a client of a predecessor."""
        self._sessions.adopt(peer)
        self._answers.behind.add(peer)
        self._guarded(self._go_on, peer)

    def _go_on(self, peer: Peer) -> None:
        self._watch(peer)
        self._expect_rest(peer)
        if peer.watched is not None:
            self._dispatcher.watch(peer, peer.watched or None)

    def stop_accepting(self) -> None:
        """Stops accepting. New clients wait for the next daemon at the socket."""
        self._gate.stop()

    def finish_turn(self) -> None:
        """Carries out all that was read, and sends what the sockets accept."""
        self.let_all_in()
        for peer in self._answers.peers.values():
            self._guarded(self._finish_receiving, peer)
            self._answers.behind.add(peer)
        self._answers.feed.tell_all(self._tell)
        self.end_turn()
        while self._leaving:
            for peers in list(self._leaving.values()):
                self._close_peer(next(iter(peers)))
                self._answers.feed.tell_all(self._tell)
                self._send_answers()

    async def run(self) -> None:
        """Serves until it is cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._runtime.run, self.end_turn)
            while True:
                if self._has_work():
                    await trio.lowlevel.checkpoint()
                else:
                    deadline = self._next_deadline()
                    with trio.CancelScope(deadline=deadline) as self._sleep:
                        await trio.lowlevel.wait_readable(self._poller.fileno())
                    if trio.current_time() >= deadline:
                        self._keep_deadlines()
                        self.end_turn()
                self._take_turns()

    def _finish_receiving(self, peer: Peer) -> None:
        peer.finish_receiving(self._taker(peer))

    def _guarded(self, serve: Callable[..., None], peer: Peer, *args: object) -> None:
        """Runs a step for one client; a failure ends only its connection.

        The loop runs all its steps for a client through here, or catches their
        failures itself.
        """
        try:
            serve(peer, *args)
        except Exception as error:
            self._blame(peer, error)

    def _blame(self, peer: Peer, error: Exception) -> None:
        """Ends the connection of a client whose step has failed.

        A failure in the lock table ends the daemon, because then nobody knows who holds
        what.
        """
        if self._runtime.is_broken:
            peer.abandon()
            raise error
        self._answers.blame(peer, error)

    def _has_work(self) -> bool:
        newcomers, is_watched = self._admission.newcomers, self._answers.feed.is_watched
        if not (newcomers or is_watched or self._unfinished or self._leaving):
            return False  # as after most turns
        rests = map(self._shares.rests, self._users_who_wait())
        return not (all(rests) and all(map(self._arrivals.rests, newcomers)))

    def _users_who_wait(self) -> Iterator[int]:
        return chain(self._unfinished, self._leaving, self._answers.feed.behind())

    def _next_deadline(self) -> float:
        deadline = self._incomplete.next_deadline
        if any(True for _ in self._users_who_wait()):
            deadline = min(deadline, self._shares.deadline)
        if self._admission.newcomers:
            deadline = min(deadline, self._arrivals.deadline)
        return min(deadline, self._gate.next_deadline)

    def _keep_deadlines(self) -> None:
        """Ends clients whose incomplete message is too old; accepts clients again."""
        now, timeout = trio.current_time(), self._limiter.limits.message_timeout
        for peer, begun_at in self._incomplete.overdue(now):
            put_off = self._unfinished.get(peer.user, ())
            if peer.outbox.is_behind or peer in put_off:
                # The daemon has not read from it, and the rest may have arrived.
                self._incomplete.put_off(peer, begun_at, now + timeout)
            elif not completes(peer, begun_at, self._serve_guarded):
                message = f"a message was not complete after {timeout:g} s"
                self._incomplete.forget(peer)
                self._guarded(self._refuse_all, peer, message)
        self._gate.keep_deadlines(now)

    def _refuse_all(self, peer: Peer, message: str) -> None:
        """Sends the reason for the end of a conversation (protocol 3.2)."""
        self._answers.behind.add(peer)
        peer.close_after_answers()
        logger.info("session %d is closed: %s", peer.session, message)
        peer.send_error(None, ProtocolError(message))

    def _take_turns(self) -> None:
        """Serves until no client is ready, or other tasks must run.

        A client that gets an answer often sends the next request at once. Waiting for
        it here for a moment, and not in trio, saves two task switches for each request.
        """
        until = self._shares.now() + TURNS
        while self.take_turn():
            now = self._shares.now()
            self._answers.counts.turns.observe(now - self._poller.woke)
            if now > until:
                break

    def take_turn(self) -> bool:
        """Serves all ready clients. Returns whether there were any."""
        self._shares.begin()
        if self._admission.newcomers:
            self._arrivals.begin()
        if busy := self._has_work():
            self._poller.stay_awake()
        if self._unfinished:
            receive = partial(self._guarded, self._receive)
            self._give_turns(self._shares, self._unfinished, receive)
        any_ready = self._poller.act(0 if busy else LINGER)
        if self._admission.newcomers:
            self._give_turns(self._arrivals, self._admission.newcomers, self._let_in)
        if not (any_ready or busy):
            return False
        if self._incomplete or self._gate.pauses:
            self._keep_deadlines()
        self._end_turn()
        return True

    def _give_turns(
        self,
        shares: Shares,
        waiting: Mapping[int, Collection[Served]],
        serve: Callable[[Served], None],
    ) -> None:
        """Serves waiting peers or connections, within each user's share of the turn."""
        for uid, of_user in list(waiting.items()):
            for _ in range(len(of_user)):
                if not of_user or not shares.has_time(uid):
                    break
                began = shares.now()
                serve(next(iter(of_user)))
                shares.charge(uid, began)

    def _receive(self, peer: Peer) -> None:
        """Serves a peer that had to wait."""
        drop(self._unfinished, peer)
        if peer.is_closing:
            return
        self._poller.change(peer.fileno(), peer.wanted_events)
        self._serve_now(peer)

    def _put_off(self, peer: Peer) -> None:
        """Makes a peer wait for a later turn."""
        self._unfinished.setdefault(peer.user, {})[peer] = None
        if self._shares.rests(peer.user):
            # It would wake the loop all the time.
            self._poller.change(peer.fileno(), 0)

    def _serve_now(self, peer: Peer) -> None:
        peer.receive(self._taker(peer))
        self._answers.behind.add(peer)
        if peer.connection.has_partial or peer in self._incomplete:
            self._expect_rest(peer)

    def _expect_rest(self, peer: Peer) -> None:
        timeout = self._limiter.limits.message_timeout
        self._incomplete.look(peer, trio.current_time() + timeout)

    def _serve_guarded(self, peer: Peer) -> None:
        self._guarded(self._serve_now, peer)

    def _taker(self, peer: Peer) -> Callable[[Peer, Any], None]:
        return self._virtlockd.take if peer.is_libvirt else self._dispatcher.take

    def end_turn(self) -> None:
        """Sends all pending answers, and closes the peers that end."""
        self._end_turn()
        if self._has_work():
            # Another task has called this while the loop sleeps.
            self._sleep.cancel()

    def _end_turn(self) -> None:
        self._send_answers()
        if self._leaving:
            close = partial(self._guarded, self._close_peer_and_tell)
            self._give_turns(self._shares, self._leaving, close)
        self._runtime.end_turn()
        self._keeping.tidy()

    def _tell_watchers(self) -> None:
        feed, most = self._answers.feed, self._limiter.limits.unread_bytes
        feed.tell(self._shares, self._tell)
        for peer in feed.forget(most):
            logger.warning(
                "session %d is closed: it is %d bytes behind", peer.session, most
            )
            peer.close_after_answers()
            self._answers.behind.add(peer)

    def _tell(self, peer: Peer, events: Iterable[Told]) -> None:
        self._guarded(self._answers.tell_events, peer, events)

    def _send_answers(self) -> None:
        feed, behind = self._answers.feed, self._answers.behind
        if feed.is_watched:
            # If there is time, record them together with their cause.
            self._tell_watchers()
        if not behind:
            self._keeping.commit(())
        while behind:
            peers = list(behind)
            behind.clear()
            began = self._shares.now()
            if not self._keeping.commit(peers):
                behind.update(peers)
                return
            for peer in peers:
                try:
                    self._send_to(peer)
                except Exception as error:
                    self._blame(peer, error)
            if feed.is_watched:
                # A user pays for the events that the user's requests cause.
                self._shares.charge_all([x.user for x in peers], began)

    def _send_to(self, peer: Peer) -> None:
        if not peer.is_leaving:
            peer.flush()
            is_behind, slow = peer.outbox.is_behind, self._limiter.slow
            if is_behind or peer in self._incomplete or peer in slow:
                self._answers.behind.update(self._limiter.note_unread(peer))
            if peer.outbox.missed_notices:
                self._sessions.tell_missed(peer)
            if peer.has_said_all and self._dispatcher.is_done_with(peer):
                peer.close_after_answers()
        if peer.is_closing:
            peer.leave()
            self._leaving.setdefault(peer.user, {})[peer] = None
            self._poller.unwatch(peer.fileno())
        elif peer.has_more:
            self._put_off(peer)

    def close(self) -> None:
        """Closes everything. Every client sees EOF."""
        self._runtime.stop_telling()
        for peer in list(self._answers.peers.values()):
            self._close_peer(peer)
        self._runtime.end_turn()
        self._admission.close()
        self._gate.close()

    # Clients.

    def take_in(self, sock: socket.socket, role: Role) -> None:
        """Takes a new connection. It is admitted soon, or rejected."""
        self._admission.arrive(sock, role)

    def let_all_in(self) -> None:
        """Admits all waiting connections at once."""
        for newcomer in list(chain.from_iterable(self._admission.newcomers.values())):
            self._let_in(newcomer)

    def _let_in(self, newcomer: Newcomer) -> None:
        if came := self._admission.admit(newcomer):
            self._guarded(self._open, came.peer, came.name, came.pidfd)

    def _open(self, peer: Peer, name: str, pidfd: int | None) -> None:
        """Opens the session of a client. A failure closes it in the usual way."""
        self._sessions.open(peer, name, pidfd)
        try:
            self._watch(peer)
        except OSError as error:
            # Close it properly, so that no successor restores it.
            peer.close_after_answers()
            self._answers.behind.add(peer)
            self._gate.complain(error)

    def _watch(self, peer: Peer) -> None:
        def serve(events: int) -> None:
            try:
                self._serve(peer, events)
            except Exception as error:
                self._blame(peer, error)

        self._poller.watch(peer.fileno(), peer.wanted_events, serve)
        if not peer.is_inheritable:
            died = partial(self._guarded, self._end_with_process, peer)
            self._runtime.processes.watch_peer(peer.session, died)

    def _end_with_process(self, peer: Peer) -> None:
        """Ends the session of a dead process, even if another one has its socket."""
        peer.end_with_process()
        self._answers.behind.add(peer)

    def _serve(self, peer: Peer, events: int) -> None:
        if events & OUT_OF_BAND:
            self._refuse_all(peer, "this socket takes no out-of-band bytes (MSG_OOB)")
            return
        if events & READABLE:
            uid = peer.user
            if self._shares.has_time(uid):
                began = self._shares.now()
                self._serve_now(peer)
                self._shares.charge(uid, began)
            else:
                self._put_off(peer)
            return
        if events & HUNG_UP:
            peer.close_after_answers()
        # The end of the turn sends what waits to be written.
        self._answers.behind.add(peer)

    def _close_peer_and_tell(self, peer: Peer) -> None:
        self._close_peer(peer)
        # Other clients may have got its locks.
        self._send_answers()

    def _close_peer(self, peer: Peer) -> None:
        peer.leave()
        drop(self._unfinished, peer)
        drop(self._leaving, peer)
        self._incomplete.forget(peer)
        self._answers.behind.discard(peer)
        attempt(self._poller.unwatch, peer.fileno())
        self._sessions.close(peer)
