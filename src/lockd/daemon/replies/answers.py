"""From the engine to the peers: carries each effect to the session that it concerns."""

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
from lockd.engine.usage import Tally
from lockd.errors import CodedError, error_for_code


class Answers:
    """The peers, and what they are still to be told.

    Args:
        access: knows what a peer may see.
        counts: counts all that goes by here.

    Attributes:
        peers: by session.
        behind: the peers that have something to be sent, or are to be closed, when the
            turn ends.
        feed: what happened, for the peers that watch.
        late_by_user: how many requests of each user wait for something that is not the
            lock table's.
        counts: what is counted of that.
        redaction: what is kept from whom.
    """

    def __init__(self, access: Access, counts: Counts) -> None:
        self.redaction = Redaction(access)
        self.peers: dict[int, Peer] = {}
        self.behind: set[Peer] = set()
        self.late_by_user = Tally()
        self.feed = Feed()
        #: What tells in which lockspaces a watcher sees what happens.
        self._sees: dict[Peer, Callable[[str], bool]] = {}
        self.counts = counts
        #: What is done for each kind of effect, which happens now.
        self.carriers: dict[type, Callable[[Any, float], None]] = {
            e.Granted: self._answer_granted,
            e.Completed: self._answer_completed,
            e.Refused: self._answer_refused,
            e.Lost: self._tell_lost,
        }

    def add_peer(self, peer: Peer) -> None:
        """Carries answers to a peer from now on."""
        self.peers[peer.session] = peer
        if peer.late:
            self.late_by_user.add(peer.user, len(peer.late))

    def remove_peer(self, peer: Peer) -> None:
        """Forgets a peer: what concerns it is dropped from now on."""
        if self.peers.pop(peer.session, None) is not None and peer.late:
            self.late_by_user.remove(peer.user, len(peer.late))
        self.behind.discard(peer)
        self.feed.remove(peer)
        self._sees.pop(peer, None)
        self.counts.end_session(peer.session, trio.current_time())

    def add_watcher(self, peer: Peer, sees: Callable[[str], bool]) -> None:
        """Tells a peer what happens in the lockspaces that it sees."""
        self._sees[peer] = sees
        self.feed.add(peer)

    def expect(
        self, peer: Peer, msgid: int, what: object
    ) -> Callable[[CodedError | None], None]:
        """Knows that a request waits for `RELOAD` or `CHANGE` from now on.

        Until it is answered its msgid is in use, it is one of the unanswered requests
        of its user, and its client is not done with, though it asks no more.

        Returns:
            What concludes it, to be called with None or with why it is refused.
        """
        peer.late[msgid] = what
        self.late_by_user.add(peer.user)
        return partial(self.conclude, peer.session, msgid)

    def conclude(self, session: int, msgid: int, error: CodedError | None) -> None:
        """Answers a request that is late (`expect`): it is done, or refused."""
        peer = self.peers.get(session)
        if peer is None or peer.late.pop(msgid, None) is None:
            return
        self.late_by_user.remove(peer.user)
        try:
            if error is None:
                peer.send_result(msgid)
            else:
                peer.send_error(msgid, error)
        except Exception as problem:
            self.blame(peer, problem)
        self.behind.add(peer)

    def blame(self, peer: Peer, error: Exception) -> None:
        """Has a defect cost the client in whose name it happened its connection."""
        defect(error)
        attempt(peer.abandon)
        self.behind.add(peer)

    def blame_for(self, effect: e.Effect, error: Exception) -> None:
        """Has a defect in telling of an effect cost the client that it concerns."""
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
        if peer.expected and peer.expected.pop(effect.request, None) is ARRAY:
            results = [views.grant_result(grant, waited) for grant in grants]
            peer.send_result(effect.request, {"grants": results})
        else:
            result = {"grant": views.grant_result(grants[0], waited)}
            peer.send_result(effect.request, result)
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
        # libvirt asks as it always did, whatever it is told.
        said = sentence(effect, now, advises=not peer.is_libvirt)
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

    def tell_watchers(
        self, effects: list[e.Effect], sessions: Mapping[int, SessionView]
    ) -> None:
        """Has those who watch be told what happened, when the turn ends."""
        for effect in effects:
            try:
                for event in events_of(effect, sessions):
                    self.feed.append(event)
            except Exception as error:
                self.blame_for(effect, error)

    def tell_events(self, peer: Peer, events: Iterable[Told]) -> None:
        """Tells one of them what it may see of that."""
        if peer.is_closing:
            return
        sees = self._sees[peer]
        for lockspace, message in events:
            if sees(lockspace):
                peer.connection.send_encoded(message)
                self.behind.add(peer)
