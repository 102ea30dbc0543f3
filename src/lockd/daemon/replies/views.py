"""The engine's values as maps for the wire (protocol 7 and 4.3)."""

import time
from collections.abc import Callable
from typing import Any, Final

from lockd.daemon.activity.history import Event
from lockd.daemon.clients.faces import Look, look_up
from lockd.engine.commands import Owner
from lockd.engine.effects import (
    Grant,
    LastHolder,
    Overdue,
    Refused,
    Situation,
    Unwanted,
    WaitEdge,
    Waiter,
    Wanted,
)
from lockd.terms import OutsideHolder, ResourceKey

Map = dict[str, Any]

IN_LIST = 4
"""How many holders and waiters of each resource a listing names (protocol 7.5)."""


def grant_result(grant: Grant, waited: float) -> Map:
    """Returns a grant as the answer to its request (protocol 7.11)."""
    key = grant.key
    found: Map = {
        "lockspace": key.lockspace,
        "resource": key.resource,
        "mode": grant.mode,
        "fencing_token": grant.fencing_token,
        "waited": waited,
    }
    if grant.slot is not None:
        found |= {"slot": grant.slot, "slots": grant.slots}
    if grant.inside:
        found["inside"] = grant.inside
    return found


def previous(last: LastHolder, now: float, *, named: bool) -> Map:
    """Returns a hold that did not end well, as a part of the next grant.

    Args:
        last: the hold.
        now: the time.
        named: whether the peer may see the holder.
    """
    grant = last.grant
    return {
        "ended": last.cause,
        "outcome": last.outcome,
        "name": grant.owner.name if named else None,
        "pid": grant.owner.pid if named else None,
        "fencing_token": grant.fencing_token if named else None,
        "ago": now - last.ended,
    }


def notice(effect: Overdue | Wanted | Unwanted, now: float) -> Map:
    """Returns what a holder hears of its lock (protocol 7.14)."""
    grant = effect.grant
    return {
        "what": type(effect).__name__.lower(),
        "lockspace": grant.key.lockspace,
        "resource": grant.key.resource,
        "fencing_token": grant.fencing_token,
        "held_for": now - grant.since,
        "waiter_count": effect.waiter_count,
    }


Fences = Callable[[Grant], bool]
"""Returns whether a holder must be dead before its lock ends."""


def party(owner: Owner, session: int, now: float, look: Look = look_up) -> Map:
    """Returns an owner (protocol 7.1)."""
    command, unit = look(owner, now)
    return {
        "name": owner.name,
        "uuid": owner.uuid,
        "id": owner.id,
        "pid": owner.pid,
        "uid": owner.uid,
        "command": command,
        "unit": unit,
        "session": session,
    }


def holder(
    grant: Grant, now: float, look: Look = look_up, must_fence: Fences | None = None
) -> Map:
    """Returns a holder (protocol 7.2); with `must_fence` also its fate (7.5)."""
    found = party(grant.owner, grant.session, now, look)
    if must_fence is not None:
        found["on_disconnect"] = "kill" if must_fence(grant) else "release"
    return found | {
        "strand": grant.strand,
        "mode": grant.mode,
        "slot": grant.slot,
        "fencing_token": grant.fencing_token,
        "inside": grant.inside,
        "count": grant.count,
        "since": wall_time(grant.since, now),
        "held_for": now - grant.since,
        "overdue": grant.is_overdue,
        "label": grant.label,
        "reason": grant.reason,
    }


def waiter(waiting: Waiter, now: float, look: Look = look_up) -> Map:
    """Returns a waiter (protocol 7.3)."""
    return party(waiting.owner, waiting.session, now, look) | {
        "strand": waiting.strand,
        "mode": waiting.mode,
        "converting": waiting.converting,
        "inside": waiting.inside,
        "since": wall_time(waiting.since, now),
        "waited": now - waiting.since,
        "label": waiting.label,
        "reason": waiting.reason,
    }


def last_holder(last: LastHolder | None, now: float) -> Map | None:
    """Returns the last holder, and how its grant ended (protocol 7.4)."""
    if last is None:
        return None
    grant = last.grant
    return {
        "name": grant.owner.name,
        "uuid": grant.owner.uuid,
        "id": grant.owner.id,
        "pid": grant.owner.pid,
        "uid": grant.owner.uid,
        "mode": grant.mode,
        "fencing_token": grant.fencing_token,
        "label": grant.label,
        "reason": grant.reason,
        "held_for": last.ended - grant.since,
        "ended": last.cause,
        "outcome": last.outcome,
        "ended_ago": now - last.ended,
    }


def situation(
    found: Situation,
    now: float,
    most: int | None = None,
    look: Look = look_up,
    must_fence: Fences | None = None,
) -> Map:
    """Returns the holders and waiters of a resource (protocol 4.3, 7.5)."""
    return {
        "lockspace": found.key.lockspace,
        "resource": found.key.resource,
        "holders": [
            holder(grant, now, look, must_fence) for grant in found.holders[:most]
        ],
        "holder_count": found.holder_count,
        "waiters": [waiter(waiting, now, look) for waiting in found.waiters[:most]],
        "waiter_count": found.waiter_count,
        "slots": found.slots,
        "slots_taken": found.slots_taken,
        "slots_removed": found.slots_removed,
    }


def happening(event: Event, now: float) -> Map:
    """Returns an event of a resource (protocol 7.10)."""
    found: Map = {
        "event": event.what,
        "since": wall_time(event.when, now),
        "ago": now - event.when,
        "session": event.session,
        "name": event.owner.name,
        "pid": event.owner.pid,
        "uid": event.owner.uid,
        "mode": event.mode,
    }
    span = "held_for" if event.what == "released" else "waited"
    further = {
        "fencing_token": event.fencing_token,
        "code": event.code,
        "cause": event.cause,
        span: event.span,
    }
    return found | {name: x for name, x in further.items() if x is not None}


EXPLAINED: Final = {
    *("busy", "timeout", "deadlock", "already_held", "not_held", "in_use"),
}
"""The codes of refusals whose facts name holders and waiters (protocol 4.3)."""


def facts(refused: Refused, now: float, look: Look = look_up) -> Map:
    """Returns the facts of a refusal (protocol 4.3)."""
    found: Map = {}
    if refused.code not in EXPLAINED:
        return found
    held_outside = refused.outside
    if refused.situation is not None:
        found |= situation(refused.situation, now, look=look)
        held_outside = held_outside or refused.situation.outside
    if refused.waited is not None:
        found["waited"] = refused.waited
    if held_outside is not None:
        found["outside"] = outside(held_outside)
    if refused.cycle:
        found["cycle"] = [edge(x) for x in refused.cycle]
    return found


def outside(found: OutsideHolder) -> Map:
    """Returns who locks a file outside lockd, or in lockd under another name."""
    told: Map = {"mode": found.mode, "pid": found.pid, "command": found.command}
    told |= {"by": found.by, "start": found.start, "length": found.length}
    if found.key is not None:
        told |= {"lockspace": found.key.lockspace, "resource": found.key.resource}
    return told


def edge(found: WaitEdge) -> Map:
    """Returns one edge of a cycle."""
    inside = found.inside
    return _at(found.owner, found.session, found.key) | {
        "strand": found.strand,
        "inside": inside and _at(inside.owner, inside.session, inside.key),
    }


def _at(owner: Owner, session: int, key: ResourceKey) -> Map:
    """Returns a party of a cycle, and its resource."""
    return {
        "name": owner.name,
        "pid": owner.pid,
        "session": session,
        "lockspace": key.lockspace or None,
        "resource": key.resource or None,
    }


def wall_time(since: float, now: float) -> float:
    """Returns seconds since 1970, for people. No decision depends on it."""
    return time.time() - (now - since)
