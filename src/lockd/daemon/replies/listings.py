"""Listings of the engine's state: one map for each entry.

A listing is a generator with pauses (`pages.Listing`). The state may change between two
steps, so each step looks again.
"""

from collections.abc import (
    Callable,
    Collection,
    Generator,
    Mapping,
    Sequence,
)
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import trio

from lockd.daemon.clients.faces import Look, Memory
from lockd.daemon.clients.finder import Finder
from lockd.daemon.clients.peer import Peer
from lockd.daemon.clients.redaction import Redaction, is_own
from lockd.daemon.replies import views
from lockd.daemon.replies.filters import (
    Looked,
    is_of_somebody,
    leads_to,
    means,
    parties_of,
)
from lockd.daemon.replies.pages import RUN, Entry, Listing, Place, in_order
from lockd.engine.commands import Owner
from lockd.engine.effects import Grant
from lockd.engine.lock_engine import LockEngine, RequestView, ResourceView
from lockd.lockspaces.base import Lockspace
from lockd.protocol.methods import (
    ListLockspacesParams,
    ListParams,
    ListSessionsParams,
    ListWaitersParams,
)
from lockd.terms import Mode, ResourceKey

Map = dict[str, Any]
T = TypeVar("T")


class Scene(NamedTuple):
    """The data for a listing, and its reader.

    Attributes:
        engine: has the locks.
        peers: all clients by session.
        lockspaces: all lockspaces by name.
        finder: knows which of them the peer may know of.
        peer: the reader.
        sees: whether the peer asked for a lockspace and may see into it.
        redaction: hides what the peer may not see.
        memory: looks up processes.
    """

    engine: LockEngine
    peers: Mapping[int, Peer]
    lockspaces: Mapping[str, Lockspace]
    finder: Finder
    peer: Peer
    sees: Callable[[str], bool]
    redaction: Redaction
    memory: Memory

    def look(self, lockspace: str | None) -> Look:
        """Returns a function that looks up the commands that the peer may see."""
        return self.redaction.look(self.peer, lockspace, self.memory)


def resources(scene: Scene, wanted: ListParams, place: Place) -> Listing:
    """Yields the resources with holders or waiters, sorted by name (`list`)."""
    engine, looked = scene.engine, Looked(scene.memory)
    is_picked = _picker(scene, wanted, looked)
    named = is_of_somebody(wanted) or wanted.fencing_token is not None
    # The place has a token if not all holders of the resource have been named.
    begin, (named_to,) = ResourceKey(*place[:2]), place[2:] or (None,)
    for key in in_order(
        _keys(scene, wanted), _comes(begin, wanted.lockspace, named_to is not None)
    ):
        found = None if key is None else engine.resources.get(key)
        if key is None or found is None:
            yield None
            continue
        if not scene.sees(key.lockspace) or (
            is_picked is not None and not is_picked(found, trio.current_time())
        ):
            looked.skip()
        elif named and len(found.holders) > 1:
            after = named_to if key == begin else None
            yield from _named(scene, wanted, found, looked, after)
        else:
            yield Entry(key, _resource(scene, found))
            looked.keep()
        if looked.enough():
            yield None


def _named(
    scene: Scene,
    wanted: ListParams,
    found: ResourceView,
    looked: Looked,
    after: int | None = None,
) -> Listing:
    """Yields the entries of a resource that name all holders that match the filters.

    Args:
        scene: the data.
        wanted: the filters.
        found: the resource; it matches because of a holder or a waiter.
        looked: counts the holders.
        after: the holders up to this token have been named.
    """
    key, is_first, meant = found.key, after is None, list[Grant]()
    tokens = [grant.fencing_token for grant in found.holders.values()]
    for token in looked.at(token for token in tokens if token > (after or 0)):
        grant = scene.engine.grant_of(token)
        if grant is None:
            continue
        if wanted.fencing_token in (None, token) and means(
            wanted, grant.owner, scene.memory, trio.current_time()
        ):
            meant.append(grant)
        if len(meant) > views.IN_LIST:
            place = (*key, meant[-2].fencing_token)
            yield Entry(place, _resource(scene, found, meant[:-1]))
            is_first = False
            del meant[:-1]
        if looked.enough():
            yield None
            if scene.engine.resources.get(key) is not found:
                return
    if meant or is_first:
        yield Entry(key, _resource(scene, found, meant))


def _keys(scene: Scene, wanted: ListParams) -> Collection[ResourceKey]:
    """Returns the names of all resources that may match."""
    if wanted.fencing_token is not None:
        grant = scene.engine.grant_of(wanted.fencing_token)
        return [] if grant is None else [grant.key]
    if wanted.inode is not None:
        # Each lockspace may have the file under another name.
        return [
            ResourceKey(space.name, resource)
            for space in scene.lockspaces.values()
            if (resource := space.resource_of_file(wanted.inode)) is not None
        ]
    return scene.engine.resources


def _comes(
    after: ResourceKey, lockspace: str | None, goes_on: bool
) -> Callable[[ResourceKey], bool]:
    """Returns a function: whether a key comes after one, or is the one that goes on."""
    if lockspace is None:
        return lambda key: key > after or (goes_on and key == after)
    return lambda key: (
        key[0] == lockspace and (key > after or (goes_on and key == after))
    )


def _resource(scene: Scene, found: ResourceView, meant: Sequence[Grant] = ()) -> Map:
    """Returns a resource, and of its holders those that are meant, if there are any."""
    now = trio.current_time()
    situation = scene.redaction.situation(scene.engine.situation(found.key), scene.peer)
    must_fence = scene.engine.must_fence
    look = scene.look(found.key.lockspace)
    shown = views.situation(situation, now, views.IN_LIST, look, must_fence)
    outside = situation.outside
    shown["outside"] = None if outside is None else views.outside(outside)
    if meant:
        shown["holders"] = [
            views.holder(_veiled(scene, grant), now, look, must_fence)
            for grant in meant
        ]
    return shown


def _veiled(scene: Scene, grant: Grant) -> Grant:
    if is_own(grant.owner, scene.peer) or _shows(scene, grant.key):
        return grant
    return grant.replace(label=None, reason=None)


def _shows(scene: Scene, key: ResourceKey) -> bool:
    return scene.redaction.shows_details(scene.peer, key.lockspace)


def _picker(
    scene: Scene, wanted: ListParams, looked: Looked
) -> Callable[[ResourceView, float], bool] | None:
    """Returns a function: whether a resource matches the filters. None if all match."""
    of_somebody = is_of_somebody(wanted)
    if not (of_somebody or wanted.path is not None or wanted.waiting):
        return None
    leads = None if wanted.path is None else leads_to(wanted.path)

    def is_picked(found: ResourceView, now: float) -> bool:
        if wanted.waiting and not found.has_line:
            return False
        if of_somebody and not any(
            means(wanted, owner, scene.memory, now)
            for owner, _ in looked.at(parties_of(found))
        ):
            return False
        if leads is None or leads(found.key.resource):
            return True
        shows = _shows(scene, found.key)
        return any(
            label is not None and leads(label)
            for owner, label in looked.at(parties_of(found))
            if shows or is_own(owner, scene.peer)
        )

    return is_picked


def waiters(scene: Scene, wanted: ListWaitersParams, place: Place) -> Listing:
    """Yields the waiting requests, sorted by name and queue (`list_waiters`)."""
    table, lockspace = scene.engine.resources, wanted.lockspace
    after, number = ResourceKey(*place[:2]), place[2]

    def is_waited_for(key: ResourceKey) -> bool:
        found = table.get(key)
        return found is not None and found.has_line and lockspace in (None, key[0])

    for key in in_order(table, is_waited_for):
        if key is None or key not in table:
            yield None
        elif key >= after and scene.sees(key.lockspace):
            first = number if key == after else 0
            yield from _line(scene, table[key], first)


def _line(scene: Scene, found: ResourceView, first: int) -> Listing:
    looked = Looked(scene.memory)
    before: RequestView | None = None
    for place, request in enumerate(list(found.line()), 1):
        if place > first and not request.is_answered:
            if before is not None and before.wish.slot != request.wish.slot:
                # Each slot has a line of its own for those inside it.
                before = None
            item = _waiter(scene, found, place, request, before)
            yield Entry((*found.key, place), item)
        before = request
        if looked.enough():
            yield None


def _waiter(
    scene: Scene,
    found: ResourceView,
    place: int,
    request: RequestView,
    before: RequestView | None,
) -> Map:
    now, owner = trio.current_time(), request.owner
    shows = _shows(scene, found.key) or is_own(owner.identity, scene.peer)
    inside = request.inside.get(found.key, ())
    behind = [] if before is None else [_waiter_before(before)]
    if before is None:
        others = (
            grant
            for strand, grant in found.holders.items()
            if not (request.converting and strand is request.strand)
            and grant.fencing_token not in inside
            and request.wish.slot in (None, grant.slot)
        )
        behind = [_holder_before(grant) for grant in islice(others, views.IN_LIST)]
    session = request.session.session_id
    look = scene.look(found.key.lockspace)
    outside = scene.redaction.outside(request.outside, scene.peer)
    return views.party(owner.identity, session, now, look) | {
        "lockspace": found.key.lockspace,
        "resource": found.key.resource,
        "owner": owner.owner_id,
        "strand": request.strand.number,
        "place": place,
        "mode": request.mode,
        "converting": request.converting,
        "inside": inside,
        "since": views.wall_time(request.since, now),
        "waited": now - request.since,
        "label": request.wish.label if shows else None,
        "reason": request.wish.reason if shows else None,
        "behind": behind,
        "outside": None if outside is None else views.outside(outside),
    }


def _holder_before(grant: Grant) -> Map:
    """Returns a holder for which the first in a queue waits."""
    return _before(grant.owner, grant.owner_id, grant.session, grant.mode) | {
        "strand": grant.strand,
        "fencing_token": grant.fencing_token,
    }


def _waiter_before(request: RequestView) -> Map:
    """Returns the request directly before another in a queue."""
    owner, session = request.owner, request.session.session_id
    return _before(owner.identity, owner.owner_id, session, request.mode) | {
        "strand": request.strand.number
    }


def _before(owner: Owner, owner_id: int, session: int, mode: Mode) -> Map:
    return {
        "owner": owner_id,
        "name": owner.name,
        "pid": owner.pid,
        "uid": owner.uid,
        "session": session,
        "mode": mode,
        "fencing_token": None,
    }


def lockspaces(scene: Scene, _: ListLockspacesParams, place: Place) -> Listing:
    """Yields the lockspaces that the peer may know of, with their held resources."""
    spaces = scene.finder.known(scene.peer)
    held = dict.fromkeys((space.name for space in spaces), 0)
    for number, found in enumerate(list(scene.engine.resources.values()), 1):
        if found.key.lockspace in held:
            held[found.key.lockspace] += bool(found.holders)
        if number % (4 * RUN) == 0:
            yield None
    for space in sorted(spaces, key=lambda space: space.name):
        if (space.name,) > place:
            rules = scene.engine.lockspaces[space.name]
            item = {
                "name": space.name,
                "kind": space.kind,
                "path": space.path,
                "file_system": space.file_system,
                "on_disconnect": space.on_disconnect,
                "outside": space.outside,
                "max_hold": rules.max_hold,
                "on_overdue": rules.on_overdue,
                "slots": [{"pattern": x, "slots": y} for x, y in rules.slots],
                "held": held[space.name] if scene.sees(space.name) else None,
            }
            yield Entry((space.name,), item)


def sessions(scene: Scene, _: ListSessionsParams, place: Place) -> Listing:
    """Yields all sessions, with the locks and requests that the peer may see."""
    peers, looked, look = scene.peers, Looked(scene.memory), scene.look(None)
    numbers = in_order([(x,) for x in peers], lambda number: number > place)
    for number in numbers:
        peer = None if number is None else peers.get(number[0])
        if number is None or peer is None:
            yield None
            continue
        session = scene.engine.sessions[peer.session]
        held = yield from _count(scene, [x.key for x in session.owner.grants.values()])
        asked = [x.keys[0] for x in session.requests.values()]
        waiting = yield from _count(scene, asked)
        now = trio.current_time()
        item = views.party(session.owner.identity, peer.session, now, look) | {
            "client": peer.client,
            "since": views.wall_time(peer.since, now),
            "connected_for": now - peer.since,
            "held": held,
            "waiting": waiting,
        }
        yield Entry(number, item)
        if looked.enough():
            yield None


def _count(scene: Scene, keys: list[ResourceKey]) -> Generator[None, None, int]:
    """Counts the keys that the peer may see, with pauses."""
    seen = 0
    for number, key in enumerate(keys, 1):
        seen += scene.sees(key.lockspace)
        if number % RUN == 0:
            yield None
    return seen


class Listed(NamedTuple):
    """A kind of listing.

    Attributes:
        name: its name in the answer.
        start: a place before all entries.
        begin: starts such a listing after a place.
    """

    name: str
    start: Place
    begin: Callable[[Scene, Any, Place], Listing]


LISTED: Final = {
    "list": Listed("resources", ("", ""), resources),
    "list_waiters": Listed("waiters", ("", "", 0), waiters),
    "list_sessions": Listed("sessions", (-1,), sessions),
    "list_lockspaces": Listed("lockspaces", ("",), lockspaces),
}
"""The kinds of listings by method."""
