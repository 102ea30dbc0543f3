"""Takes clients in and lets them go; goes round those that have something to say.

A single trio task waits for the poller, so a turn of the loop serves every client that
is ready without a task switch for each: reads, carries out, and sends each client's
answers in one piece at the end.
"""

import logging
import select
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from math import inf
from typing import Any, Final, TypeVar

import trio

from lockd.daemon.activity.life import Life
from lockd.daemon.clients.admission import Admission, Newcomer
from lockd.daemon.clients.gate import Gate
from lockd.daemon.clients.keeping import Keeping
from lockd.daemon.clients.limits import Limiter
from lockd.daemon.clients.peer import Peer
from lockd.daemon.clients.shares import Shares
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
"""Seconds that a turn waits for more before the loop goes back to trio's scheduler."""

TURNS: Final = 0.005
"""Seconds after which it goes back anyhow: timeouts and signals wait no longer."""


ADMITTING: Final = 0.0005
"""Seconds of a turn for admitting the newcomers of one user."""

Waiting = dict[int, dict[Peer, None]]
"""Peers by their user's uid."""

Served = TypeVar("Served", Peer, Newcomer)


class Server:
    """The turns of the loop, and the clients.

    Args:
        poller: what is watched.
        runtime: is told when a turn ends.
        answers: knows who is behind.
        dispatcher: takes the requests.
        virtlockd: takes the calls of those who take us for virtlockd.
        limiter: knows how many clients there may be.
        keeping: keeps what is to outlive this process.
        sessions: is told whose session begins and ends.
        life: has the numbers of sessions.
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
            poller, answers.counts, lambda: limiter.is_shared, self.take_in
        )
        self._admission = Admission(
            poller, life, keeping, limiter, self._gate, answers.counts.count_refusal
        )
        self._shares = Shares(lambda: limiter.is_shared)
        # Apart: who asks for much does not keep its own user's newcomers out.
        self._arrivals = Shares(lambda: limiter.is_shared, ADMITTING)
        #: Peers that asked for more than a turn has time for, by user; who waits
        #: longest first.
        self._unfinished: Waiting = {}
        #: Peers that are to be closed, and are not served any more.
        self._leaving: Waiting = {}
        #: Until when which message must be complete, the earliest first.
        self._incomplete: dict[Peer, tuple[float, int]] = {}
        self._sleep = trio.CancelScope()

    def listen(self, listener: socket.socket, role: Role = CLIENTS) -> None:
        """Takes in the clients of a listening socket, which is ours from now on.

        Args:
            role: who comes there. Whoever may connect as an admin may do everything.
        """
        self._gate.listen(listener, role)

    def adopt(self, peer: Peer) -> None:
        """Goes on serving a client of the daemon before."""
        self._sessions.adopt(peer)
        self._answers.behind.add(peer)
        self._guarded(self._go_on, peer)

    def _go_on(self, peer: Peer) -> None:
        self._watch(peer)
        self._expect_rest(peer)
        if peer.watched is not None:
            self._dispatcher.watch(peer, peer.watched or None)

    def stop_accepting(self) -> None:
        """Leaves who comes at the door, for whoever listens there next."""
        self._gate.stop()

    def finish_turn(self) -> None:
        """Carries out all that was read, and sends what the sockets take."""
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
        """Does something for one client; what fails costs this one its connection.

        All that is done in the name of a client goes through here. What fails in the
        lock table ends the daemon: nobody knows who holds what then.
        """
        try:
            serve(peer, *args)
        except Exception as error:
            if self._runtime.is_broken:
                peer.abandon()
                raise
            self._answers.blame(peer, error)

    def _has_work(self) -> bool:
        return not (
            all(map(self._shares.rests, self._users_who_wait()))
            and all(map(self._arrivals.rests, self._admission.newcomers))
        )

    def _users_who_wait(self) -> Iterator[int]:
        return chain(self._unfinished, self._leaving, self._answers.feed.behind())

    def _next_deadline(self) -> float:
        deadline = next((when for when, _ in self._incomplete.values()), inf)
        if any(True for _ in self._users_who_wait()):
            deadline = min(deadline, self._shares.deadline)
        if self._admission.newcomers:
            deadline = min(deadline, self._arrivals.deadline)
        return min(deadline, self._gate.next_deadline)

    def _keep_deadlines(self) -> None:
        """Ends who leaves a message unfinished; takes in clients again."""
        now = trio.current_time()
        while self._incomplete:
            peer, (deadline, begun_at) = next(iter(self._incomplete.items()))
            if deadline > now:
                break
            del self._incomplete[peer]
            timeout = self._limiter.limits.message_timeout
            put_off = self._unfinished.get(peer.user, ())
            if peer.is_behind or peer in put_off:
                # It is not read from: the rest may be there.
                self._incomplete[peer] = now + timeout, begun_at
                continue
            said = begun_at, peer.connection.partial_bytes
            # The rest may have come while this process had no processor.
            self._guarded(self._serve_now, peer)
            conversation = peer.connection
            if said == (conversation.begun_at, conversation.partial_bytes):
                message = f"a message was not complete after {timeout:g} seconds"
                self._guarded(self._refuse_all, peer, message)
        self._gate.keep_deadlines(now)

    def _refuse_all(self, peer: Peer, message: str) -> None:
        """Tells a client that its conversation is over (protocol 3.2), and why."""
        self._answers.behind.add(peer)
        peer.close_after_answers()
        logger.info("session %d is closed: %s", peer.session, message)
        peer.send_error(None, ProtocolError(message))

    def _take_turns(self) -> None:
        """Serves until nobody asks for anything, or the other tasks have their due.

        Whoever got an answer often asks again at once. Waiting a moment for that here,
        and not in trio, saves two task switches a request.
        """
        until = self._shares.now() + TURNS
        while self.take_turn():
            now = self._shares.now()
            self._answers.counts.turns.observe(now - self._poller.woke)
            if now > until:
                break

    def take_turn(self) -> bool:
        """Serves whoever is ready; tells whether anybody was."""
        self._shares.begin()
        self._arrivals.begin()
        if busy := self._has_work():
            self._poller.stay_awake()
        receive = partial(self._guarded, self._receive)
        self._give_turns(self._shares, self._unfinished, receive)
        any_ready = self._poller.act(0 if busy else LINGER)
        self._give_turns(self._arrivals, self._admission.newcomers, self._let_in)
        if not (any_ready or busy):
            return False
        if self._incomplete or self._gate.next_deadline < inf:
            self._keep_deadlines()
        self.end_turn()
        return True

    def _give_turns(
        self,
        shares: Shares,
        waiting: Mapping[int, Collection[Served]],
        serve: Callable[[Served], None],
    ) -> None:
        """Serves those who wait, each user's for what it has of the turn."""
        for uid, of_user in list(waiting.items()):
            for _ in range(len(of_user)):
                if not of_user or not shares.has_time(uid):
                    break
                began = shares.now()
                serve(next(iter(of_user)))
                shares.charge(uid, began)

    def _receive(self, peer: Peer) -> None:
        """Serves a peer that was put off."""
        _drop(self._unfinished, peer)
        if peer.is_closing:
            return
        self._poller.change(peer.fileno(), peer.wanted_events)
        self._serve_now(peer)

    def _put_off(self, peer: Peer) -> None:
        """Lets a peer wait for a later turn."""
        self._unfinished.setdefault(peer.user, {})[peer] = None
        if self._shares.rests(peer.user):
            # It would wake us all the time.
            self._poller.change(peer.fileno(), 0)

    def _serve_now(self, peer: Peer) -> None:
        peer.receive(self._taker(peer))
        self._answers.behind.add(peer)
        if peer.connection.has_partial or peer in self._incomplete:
            self._expect_rest(peer)

    def _taker(self, peer: Peer) -> Callable[[Peer, Any], None]:
        return self._virtlockd.take if peer.is_libvirt else self._dispatcher.take

    def _expect_rest(self, peer: Peer) -> None:
        """Begins to wait for the rest of a message, or goes on waiting, or ends it."""
        begun_at = peer.connection.begun_at
        if not peer.connection.has_partial:
            self._incomplete.pop(peer, None)
        elif self._incomplete.get(peer, (0, -1))[1] != begun_at:
            # Whoever sends one message after the other has always begun one.
            self._incomplete.pop(peer, None)
            timeout = self._limiter.limits.message_timeout
            self._incomplete[peer] = trio.current_time() + timeout, begun_at

    def end_turn(self) -> None:
        """Sends what every client is to be told, and closes those that are done."""
        self._send_answers()
        close = partial(self._guarded, self._close_peer_and_tell)
        self._give_turns(self._shares, self._leaving, close)
        self._runtime.end_turn()
        self._keeping.tidy()
        if self._has_work():
            # Another task may have called, while ours sleeps.
            self._sleep.cancel()

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
        if self._answers.feed.is_watched:
            # Recorded with what they tell of, if there is time.
            self._tell_watchers()
        behind = self._answers.behind
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
                self._guarded(self._send_to, peer)
            if self._answers.feed.is_watched:
                # What it takes to tell its watchers is a user's.
                self._shares.charge_all([x.user for x in peers], began)

    def _send_to(self, peer: Peer) -> None:
        if not peer.is_leaving:
            peer.flush()
            if peer.is_behind or peer in self._incomplete or peer in self._limiter.slow:
                self._answers.behind.update(self._limiter.note_unread(peer))
            if peer.has_said_all and self._dispatcher.is_done_with(peer):
                peer.close_after_answers()
        if peer.is_closing:
            peer.leave()
            self._leaving.setdefault(peer.user, {})[peer] = None
            self._poller.unwatch(peer.fileno())
        elif peer.has_more:
            self._put_off(peer)

    def close(self) -> None:
        """Closes everything: every client sees EOF."""
        for peer in list(self._answers.peers.values()):
            self._close_peer(peer)
        self._runtime.end_turn()
        self._admission.close()
        self._gate.close()

    # Clients.

    def take_in(self, sock: socket.socket, role: Role) -> None:
        """Begins to serve who connected, soon, or says why not."""
        self._admission.arrive(sock, role)

    def let_all_in(self) -> None:
        """Takes in at once all who wait for that."""
        for newcomer in list(chain.from_iterable(self._admission.newcomers.values())):
            self._let_in(newcomer)

    def _let_in(self, newcomer: Newcomer) -> None:
        came = self._admission.admit(newcomer)
        if came is not None:
            self._guarded(self._open, *came)

    def _open(self, peer: Peer, name: str, pidfd: int | None) -> None:
        """Opens the session of a client; its end is the same, wherever this fails."""
        self._sessions.open(peer, name, pidfd)
        try:
            self._watch(peer)
        except OSError as error:
            # Nobody may believe that it is there, least of all who comes after us.
            peer.close_after_answers()
            self._answers.behind.add(peer)
            self._gate.complain(error)

    def _watch(self, peer: Peer) -> None:
        action = partial(self._guarded, self._serve, peer)
        self._poller.watch(peer.fileno(), peer.wanted_events, action)
        if not peer.is_inheritable:
            died = partial(self._guarded, self._end_with_process, peer)
            self._runtime.processes.watch_peer(peer.session, died)

    def _end_with_process(self, peer: Peer) -> None:
        """Ends the session of a process that has died, whoever has its socket."""
        peer.end_with_process()
        self._answers.behind.add(peer)

    def _serve(self, peer: Peer, events: int) -> None:
        if events & select.EPOLLPRI:
            self._refuse_all(
                peer, "bytes out of band (MSG_OOB) are not for this socket"
            )
            return
        if events & select.EPOLLIN:
            uid = peer.user
            if self._shares.has_time(uid):
                began = self._shares.now()
                self._serve_now(peer)
                self._shares.charge(uid, began)
            else:
                self._put_off(peer)
            return
        if events & (select.EPOLLHUP | select.EPOLLERR):
            peer.close_after_answers()
        # What waits to be written is sent at the end of the turn.
        self._answers.behind.add(peer)

    def _close_peer_and_tell(self, peer: Peer) -> None:
        self._close_peer(peer)
        # Others may have got its locks.
        self._send_answers()

    def _close_peer(self, peer: Peer) -> None:
        peer.leave()
        _drop(self._unfinished, peer)
        _drop(self._leaving, peer)
        self._incomplete.pop(peer, None)
        self._answers.behind.discard(peer)
        attempt(self._poller.unwatch, peer.fileno())
        self._sessions.close(peer)


def _drop(waiting: Waiting, peer: Peer) -> None:
    uid = peer.user
    peers = waiting.get(uid)
    if peers is not None:
        peers.pop(peer, None)
        if not peers:
            del waiting[uid]
