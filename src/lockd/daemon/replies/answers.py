"""Turns the effects of the engine into answers and notifications of peers."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import trio

from lockd.daemon.activity.counts import Counts
from lockd.daemon.clients.access import Access
from lockd.daemon.clients.peer import ARRAY, Peer
from lockd.daemon.clients.redaction import Redaction
from lockd.daemon.replies import views
from lockd.daemon.replies.events import events_of
from lockd.daemon.replies.feed import Feed, Told
from lockd.daemon.replies.sentences import sentence
from lockd.daemon.system.defects import attempt, defect
from lockd.engine import effects as e
from lockd.engine.lock_engine import SessionView
from lockd.engine.usage import Tally, add_to, take_from
from lockd.errors import CodedError, error_for_code

Notice = e.Overdue | e.Wanted | e.Unwanted


class Answers:
    """The peers, and their pending answers.

    Args:
        access: has the rights.
        counts: counts effects.

    Attributes:
        peers: by session.
        behind: the peers to send something to, or to close, at the end of the turn.
        feed: the events for watching peers.
        late_by_user: how many requests of each user wait for something outside the lock
            table.
        counts: the counters.
        redaction: hides what a peer may not see.
        carriers: the function for each kind of effect; it takes the effect and the
            time.
    """

    def __init__(self, access: Access, counts: Counts) -> None:
        self.redaction = Redaction(access)
        self.peers: dict[int, Peer] = {}
        self.behind: set[Peer] = set()
        self.late_by_user: Tally = {}
        self.feed = Feed()
        #: For each watcher, whether it may see the events in a lockspace.
        self._sees: dict[Peer, Callable[[str], bool]] = {}
        self.counts = counts
        self.carriers: dict[type, Callable[[Any, float], None]] = {
            e.Granted: self._answer_granted,
            e.Completed: self._answer_completed,
            e.Refused: self._answer_refused,
            e.Lost: self._tell_lost,
            e.Overdue: self._tell_notice,
            e.Wanted: self._tell_notice,
            e.Unwanted: self._tell_notice,
        }

    def add_peer(self, peer: Peer) -> None:
        """Adds a peer."""
        self.peers[peer.session] = peer
        if peer.outbox.missed_notices:
            self.behind.add(peer)
        if peer.late:
            add_to(self.late_by_user, peer.user, len(peer.late))

    def remove_peer(self, peer: Peer) -> None:
        """Removes a peer. Its pending answers are dropped."""
        if self.peers.pop(peer.session, None) is not None and peer.late:
            take_from(self.late_by_user, peer.user, len(peer.late))
        self.behind.discard(peer)
        self.feed.remove(peer)
        self._sees.pop(peer, None)
        self.counts.end_session(peer.session, trio.current_time())

    def add_watcher(self, peer: Peer, sees: Callable[[str], bool]) -> None:
        """Makes a peer watch the lockspaces that it may see."""
        self._sees[peer] = sees
        self.feed.add(peer)

    def expect(
        self, peer: Peer, msgid: int, what: object
    ) -> Callable[[CodedError | None], None]:
        """Notes that a request waits for `RELOAD` or `CHANGE`.

        Until the answer, its msgid is in use, and it counts as an unanswered request of
        its user. Its client stays connected even if it sends no more requests.

        Returns:
            The function that answers it; it takes None or an error.
        """
        peer.late[msgid] = what
        add_to(self.late_by_user, peer.user)
        return partial(self.conclude, peer.session, msgid)

    def conclude(self, session: int, msgid: int, error: CodedError | None) -> None:
        """Answers a late request (`expect`): with success, or with an error."""
        peer = self.peers.get(session)
        if peer is None or peer.late.pop(msgid, None) is None:
            return
        take_from(self.late_by_user, peer.user)
        try:
            if error is None:
                peer.send_result(msgid)
            else:
                peer.send_error(msgid, error)
        except Exception as problem:
            self.blame(peer, problem)
        self.behind.add(peer)

    def blame(self, peer: Peer, error: Exception) -> None:
        """Ends the connection of a client after a defect in its name."""
        defect(error)
        attempt(peer.abandon)
        self.behind.add(peer)

    def blame_for(self, effect: e.Effect, error: Exception) -> None:
        """Ends the connection of the client that an effect concerns, after a defect."""
        session: int = getattr(getattr(effect, "grant", effect), "session", 0)
        peer = self.peers.get(session)
        if peer is None:
            defect(error)
        else:
            self.blame(peer, error)

    def _answer_granted(self, effect: e.Granted, now: float) -> None:
        peer = self.peers.get(effect.session)
        if peer is None:
            return
        grants, waited = effect.grants, effect.waited
        results = [views.grant_result(grant, waited) for grant in grants]
        for last in effect.previous:
            place = [grant.key for grant in grants].index(last.grant.key)
            named = self.redaction.names(last, peer)
            results[place]["previous"] = views.previous(last, now, named=named)
        if peer.expected and peer.expected.pop(effect.request, None) is ARRAY:
            peer.send_result(effect.request, {"grants": results})
        else:
            peer.send_result(effect.request, {"grant": results[0]})
        self.behind.add(peer)

    def _answer_completed(self, effect: e.Completed, now: float) -> None:
        peer = self.peers.get(effect.session)
        if peer is None:
            return
        peer.send_result(effect.request, peer.expected.pop(effect.request, None))
        self.behind.add(peer)

    def _answer_refused(self, effect: e.Refused, now: float) -> None:
        peer = self.peers.get(effect.session)
        if peer is None:
            return
        peer.expected.pop(effect.request, None)
        effect = self.redaction.refusal(effect, peer)
        facts = self._facts(effect, peer, now) if peer.connection.greeted else None
        # libvirt's users cannot follow the advice.
        said = sentence(
            effect, now, advises=not peer.is_libvirt, pid=peer.credentials.pid
        )
        error = error_for_code(effect.code, said, facts)
        peer.send_error(effect.request, error)
        self.behind.add(peer)

    def _facts(self, effect: e.Refused, peer: Peer, now: float) -> dict[str, Any]:
        found = effect.situation
        lockspace = None if found is None else found.key.lockspace
        return views.facts(effect, now, self.redaction.look(peer, lockspace))

    def _tell_lost(self, effect: e.Lost, now: float) -> None:
        peer = self.peers.get(effect.session)
        if peer is None:
            return
        told = {
            "lockspace": effect.grant.key.lockspace,
            "resource": effect.grant.key.resource,
            "fencing_token": effect.grant.fencing_token,
            "cause": effect.cause,
        }
        if effect.reason is not None:
            told["reason"] = effect.reason
        peer.connection.send_notification("lost", told)
        self.behind.add(peer)

    def _tell_notice(self, effect: Notice, now: float) -> None:
        peer = self.peers.get(effect.session or 0)
        if peer is None:
            return
        if peer.outbox.is_behind and not isinstance(effect, e.Overdue):
            # Others may come and go for ever while it reads nothing.
            peer.outbox.miss_notices()
            self.behind.add(peer)  # to be recorded
            return
        told = views.notice(effect, now)
        if not self.redaction.sees(peer, effect.grant.key.lockspace):
            told["waiter_count"] = None
        peer.connection.send_notification("notice", told)
        self.behind.add(peer)

    def tell_missed(self, peer: Peer, notices: Iterable[Notice], now: float) -> None:
        """Tells a peer that has read everything how it is with its locks now."""
        peer.outbox.miss_notices(False)
        for effect in notices:
            self._tell_notice(effect, now)

    def tell_watchers(
        self, effects: list[e.Effect], sessions: Mapping[int, SessionView]
    ) -> None:
        """Queues the events of effects for the watchers."""
        for effect in effects:
            try:
                for event in events_of(effect, sessions):
                    self.feed.append(event)
            except Exception as error:
                self.blame_for(effect, error)

    def tell_events(self, peer: Peer, events: Iterable[Told]) -> None:
        """Sends to a watcher the events that it may see."""
        if peer.is_closing:
            return
        sees = self._sees[peer]
        for lockspace, message in events:
            if sees(lockspace):
                peer.connection.send_encoded(message)
                self.behind.add(peer)
