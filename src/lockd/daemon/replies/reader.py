"""Answers requests that change nothing: about locks, queues and sessions."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import trio

from lockd.daemon.activity.history import History
from lockd.daemon.clients.faces import Memory
from lockd.daemon.clients.finder import Finder
from lockd.daemon.clients.peer import Peer
from lockd.daemon.clients.redaction import Redaction
from lockd.daemon.replies import views
from lockd.daemon.replies.answers import Answers
from lockd.daemon.replies.listings import LISTED, Listed, Scene
from lockd.daemon.replies.pages import Pages
from lockd.engine.lock_engine import LockEngine
from lockd.lockspaces.base import Lockspace
from lockd.protocol import methods as m
from lockd.terms import ResourceKey

Map = dict[str, Any]


class Reader:
    """Answers from the current state of the engine.

    Args:
        engine: has the locks.
        history: has the events of resources.
        lockspaces: all lockspaces by name.
        answers: has the peers.
        finder: finds lockspaces and resources by name.
        redaction: hides what a peer may not see.

    Attributes:
        handlers: the function for each method.
    """

    def __init__(
        self,
        engine: LockEngine,
        history: History,
        lockspaces: Mapping[str, Lockspace],
        answers: Answers,
        finder: Finder,
        redaction: Redaction,
    ) -> None:
        self._engine = engine
        self._history = history
        self._lockspaces = lockspaces
        self._answers = answers
        self._finder = finder
        self._redaction = redaction
        self._pages = Pages()
        self._memory = Memory()
        self.handlers: dict[str, Callable[[Peer, int, Any], None]] = {
            "query": self._query,
            "check": self._check,
        }
        for method, what in LISTED.items():
            self.handlers[method] = partial(self._list, what)

    def forget(self, peer: Peer) -> None:
        """Drops the unfinished listings of a peer."""
        self._pages.forget((peer.credentials.uid, peer.session))

    def _query(self, peer: Peer, msgid: int, params: m.ResourceParams) -> None:
        key = self._finder.key(peer, params.lockspace, params.resource, "list")
        found = facts_of(self._engine, key, self._redaction, peer)
        holders = self._engine.holders(key)
        now = trio.current_time()
        past = [views.happening(x, now) for x in self._history.of(key, holders)]
        peer.send_result(msgid, found | {"history": past})

    def _check(self, peer: Peer, msgid: int, params: m.CheckParams) -> None:
        key = self._finder.key(peer, params.lockspace, params.resource, "list")
        current = self._engine.holds(key, params.fencing_token)
        peer.send_result(msgid, {"current": current})

    def _list(
        self, what: Listed, peer: Peer, msgid: int, params: m.ListingParams
    ) -> None:
        sees = self._finder.visible(peer, getattr(params, "lockspace", None))
        scene = Scene(
            self._engine,
            self._answers.peers,
            self._lockspaces,
            self._finder,
            peer,
            sees,
            self._redaction,
            self._memory,
        )
        found, place = self._pages.page(
            (peer.credentials.uid, peer.session),
            params,
            partial(what.begin, scene, params),
            what.start,
            trio.current_time(),
        )
        peer.send_result(msgid, {what.name: found, "next": place})


def facts_of(
    engine: LockEngine, key: ResourceKey, redaction: Redaction, peer: Peer
) -> Map:
    """Returns holders, waiters and last holder of a resource (protocol `query`)."""
    now = trio.current_time()
    last = redaction.last_holder(engine.last_holders.get(key), peer)
    situation = redaction.situation(engine.situation(key), peer)
    look = redaction.look(peer, key.lockspace)
    found = views.situation(situation, now, look=look, must_fence=engine.must_fence)
    outside = situation.outside
    return found | {
        "last_holder": views.last_holder(last, now),
        "outside": None if outside is None else views.outside(outside),
    }
