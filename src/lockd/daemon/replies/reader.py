"""Takes the requests that change nothing: who holds what, who waits, who is there."""

from collections.abc import Callable, Mapping
from typing import Any

import trio

from lockd.daemon.activity.history import History
from lockd.daemon.clients.faces import Memory
from lockd.daemon.clients.finder import Finder
from lockd.daemon.clients.peer import Peer
from lockd.daemon.clients.redaction import Redaction
from lockd.daemon.replies import listings, views
from lockd.daemon.replies.answers import Answers
from lockd.daemon.replies.listings import Scene, Wanted
from lockd.daemon.replies.pages import Listing, Pages
from lockd.engine.lock_engine import LockEngine
from lockd.lockspaces.base import Lockspace
from lockd.protocol import methods as m
from lockd.terms import ResourceKey

Map = dict[str, Any]

Begin = Callable[[tuple[Any, ...]], Listing]


class Reader:
    """Answers from the state of the engine, at this moment.

    Args:
        history: what happened to each resource.
        lockspaces: all there are, by name.
        finder: knows what a name means.
        redaction: knows what is kept from whom.
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
            "list": self._list,
            "list_waiters": self._list_waiters,
            "list_sessions": self._list_sessions,
            "list_lockspaces": self._list_lockspaces,
        }

    def forget(self, peer: Peer) -> None:
        """Drops what a peer had begun to read."""
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

    # Listings.

    def _scene(self, peer: Peer, lockspace: str | None) -> Scene:
        sees = self._finder.visible(peer, lockspace)
        return Scene(self._engine, peer, sees, self._redaction, self._memory)

    def _list(self, peer: Peer, msgid: int, params: m.ListParams) -> None:
        scene = self._scene(peer, params.lockspace)
        wanted = Wanted(
            params.lockspace,
            params.owner,
            params.uid,
            params.pid,
            params.unit,
            params.path,
            bool(params.waiting),
            params.fencing_token,
        )
        keys = None
        if params.inode is not None:
            keys = self._keys_of_file(params.inode)
        if params.fencing_token is not None:
            grant = self._engine.grant_of(params.fencing_token)
            keys = [] if grant is None else [grant.key]

        def begin(after: tuple[Any, ...]) -> Listing:
            return listings.resources(scene, wanted, ResourceKey(*after), keys)

        what = ("list", wanted, params.inode)
        self._send_page(peer, msgid, "resources", what, params, begin, ("", ""))

    def _keys_of_file(self, inode: tuple[int, int]) -> list[ResourceKey]:
        """Returns what is anchored in a file, under whatever name that is."""
        found = []
        for space in self._lockspaces.values():
            resource = space.resource_of_file(inode)
            if resource is not None:
                found.append(ResourceKey(space.name, resource))
        return found

    def _list_waiters(
        self, peer: Peer, msgid: int, params: m.ListWaitersParams
    ) -> None:
        scene = self._scene(peer, params.lockspace)

        def begin(after: tuple[Any, ...]) -> Listing:
            key, place = ResourceKey(*after[:2]), after[2]
            return listings.waiters(scene, params.lockspace, key, place)

        what, start = ("list_waiters", params.lockspace), ("", "", 0)
        self._send_page(peer, msgid, "waiters", what, params, begin, start)

    def _list_sessions(
        self, peer: Peer, msgid: int, params: m.ListSessionsParams
    ) -> None:
        scene = self._scene(peer, None)

        def begin(after: tuple[Any, ...]) -> Listing:
            return listings.sessions(scene, self._answers.peers, *after)

        what = "list_sessions"
        self._send_page(peer, msgid, "sessions", what, params, begin, (-1,))

    def _list_lockspaces(
        self, peer: Peer, msgid: int, params: m.ListLockspacesParams
    ) -> None:
        scene, known = self._scene(peer, None), self._finder.known(peer)

        def begin(after: tuple[Any, ...]) -> Listing:
            return listings.lockspaces(scene, known, *after)

        what = "list_lockspaces"
        self._send_page(peer, msgid, "lockspaces", what, params, begin, ("",))

    def _send_page(
        self,
        peer: Peer,
        msgid: int,
        name: str,
        what: Any,
        params: m.ListParams
        | m.ListWaitersParams
        | m.ListSessionsParams
        | m.ListLockspacesParams,
        begin: Begin,
        start: tuple[Any, ...],
    ) -> None:
        who = (peer.credentials.uid, peer.session)
        after: Any = params.after
        if after is not None and not isinstance(after, tuple):
            after = (after,)
        found, place = self._pages.page(
            who, what, after, params.limit, begin, start, trio.current_time()
        )
        following: Any = place
        if place is not None and len(place) == 1:
            (following,) = place
        peer.send_result(msgid, {name: found, "next": following})


def facts_of(
    engine: LockEngine, key: ResourceKey, redaction: Redaction, peer: Peer
) -> Map:
    """Who holds a resource, who waits, who held it last (protocol `query`)."""
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
