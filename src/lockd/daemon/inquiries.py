"""Answers to those who only ask: the engine's state as plain maps, at this moment."""

import heapq
import os
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import trio

from lockd import __version__
from lockd.daemon import views
from lockd.daemon.credentials import unit_of
from lockd.daemon.peer import Peer
from lockd.daemon.veil import Veil
from lockd.engine.effects import Situation
from lockd.engine.lock_engine import LockEngine
from lockd.lockspaces.base import Lockspace
from lockd.terms import ResourceKey

if TYPE_CHECKING:
    from lockd.daemon.keeping import Keeping

Map = dict[str, Any]


def resource(engine: LockEngine, key: ResourceKey, veil: Veil, peer: Peer) -> Map:
    """Who holds a resource, who waits, who held it last (protocol `query`)."""
    now = trio.current_time()
    last = veil.last_holder(engine.last_holders.get(key), peer)
    found = views.situation(veil.situation(engine.situation(key), peer), now)
    return found | {"last_holder": views.last_holder(last, now)}


def page(
    engine: LockEngine,
    sees: Callable[[str], bool],
    veiled: Callable[[Situation], Situation],
    after: ResourceKey | None,
    limit: int,
) -> Map:
    """One page of what is held or waited for, in the order of names (`list`)."""
    keys: Iterable[ResourceKey] = (
        key
        for key in engine.resources
        if (after is None or key > after) and sees(key.lockspace)
    )
    found = heapq.nsmallest(limit + 1, keys)
    now = trio.current_time()
    resources = [
        views.situation(veiled(engine.situation(key)), now, views.IN_LIST)
        for key in found[:limit]
    ]
    following = list(found[limit - 1]) if len(found) > limit else None
    return {"resources": resources, "next": following}


def lockspaces(
    engine: LockEngine,
    spaces: Collection[Lockspace],
    sees: Callable[[str], bool],
) -> list[Map]:
    """Some lockspaces, and how many resources are held in those that are seen into."""
    held = dict.fromkeys((space.name for space in spaces), 0)
    for key, found in engine.resources.items():
        if key.lockspace in held:
            held[key.lockspace] += bool(found.holders)
    return [
        {
            "name": space.name,
            "kind": space.kind,
            "path": space.path,
            "on_disconnect": space.on_disconnect,
            "held": held[space.name] if sees(space.name) else None,
        }
        for space in spaces
    ]


def sessions(
    engine: LockEngine, peers: Iterable[Peer], sees: Callable[[str], bool]
) -> list[Map]:
    """All sessions, and how much each holds and waits for where that may be seen."""
    now = trio.current_time()
    return [_session(engine, peer, now, sees) for peer in peers]


def _session(
    engine: LockEngine, peer: Peer, now: float, sees: Callable[[str], bool]
) -> Map:
    session = engine.sessions[peer.session]
    held = session.owner.grants.values()
    waiting = session.requests.values()
    return views.party(session.owner.identity, peer.session, now) | {
        "client": peer.client,
        "since": views.wall_time(peer.since, now),
        "connected_for": now - peer.since,
        "held": sum(sees(grant.key.lockspace) for grant in held),
        "waiting": sum(sees(request.keys[0].lockspace) for request in waiting),
    }


def statistics(engine: LockEngine) -> Map:
    """Counts of what is, and of what was since the start."""
    return {
        "sessions": len(engine.sessions),
        "owners": len(engine.owners),
        "resources": len(engine.resources),
        "held": engine.held,
        "waiting": engine.waiting,
        "granted": engine.granted,
        "refused": engine.refused,
        "released": engine.ended,
        "last_fencing_token": engine.last_token,
    }


def program() -> Map:
    """What answers: which version, as which process, started by which unit."""
    pid = os.getpid()
    return {"version": __version__, "pid": pid, "unit": unit_of(pid)}


def kept(engine: LockEngine, keeping: "Keeping | None") -> Map:
    """What would survive if this process were killed now."""
    if keeping is None:
        return {"by": None, "locks": 0, "connections": 0, "in_flight": 0, "bytes": 0}
    return {
        "by": "service manager",
        # Nobody has an answer that is not recorded, and no file is locked that is not
        # in flight: it is all or nothing.
        "locks": engine.held,
        "connections": len(engine.sessions),
        "in_flight": keeping.in_flight,
        "bytes": keeping.record_bytes,
    }
