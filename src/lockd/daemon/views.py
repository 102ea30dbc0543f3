"""How the engine's values look on the wire: maps shaped by protocol 7 and 4.3."""

import time
from functools import lru_cache
from typing import Any

from lockd.daemon.credentials import command_of, unit_of
from lockd.engine.commands import Owner
from lockd.engine.effects import Grant, LastHolder, Refused, Situation, Wait, Waiter
from lockd.terms import OutsideHolder

Map = dict[str, Any]

IN_LIST = 4
"""How many holders and waiters of each resource a listing names (protocol 7.5)."""


def grant_result(grant: Grant, waited: float) -> Map:
    """A grant as the answer to whoever asked for it."""
    return {
        "lockspace": grant.key.lockspace,
        "resource": grant.key.resource,
        "mode": grant.mode,
        "fencing_token": grant.fencing_token,
        "waited": waited,
    }


@lru_cache(maxsize=256)
def _process(pid: int, now: float) -> tuple[str | None, str | None]:
    """Looks command and unit of a process up, once for all that one answer says."""
    return (command_of(pid), unit_of(pid)) if pid else (None, None)


def party(owner: Owner, session: int, now: float) -> Map:
    """Who somebody is (protocol 7.1)."""
    command, unit = _process(owner.pid, now)
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


def holder(grant: Grant, now: float) -> Map:
    """Who holds (protocol 7.2)."""
    return party(grant.owner, grant.session, now) | {
        "mode": grant.mode,
        "fencing_token": grant.fencing_token,
        "count": grant.count,
        "since": wall_time(grant.since, now),
        "held_for": now - grant.since,
        "label": grant.label,
        "reason": grant.reason,
    }


def waiter(waiting: Waiter, now: float) -> Map:
    """Who waits (protocol 7.3)."""
    return party(waiting.owner, waiting.session, now) | {
        "mode": waiting.mode,
        "converting": waiting.converting,
        "since": wall_time(waiting.since, now),
        "waited": now - waiting.since,
        "label": waiting.label,
        "reason": waiting.reason,
    }


def last_holder(last: LastHolder | None, now: float) -> Map | None:
    """Who held last, and how it ended (protocol 7.4)."""
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
        "ended_ago": now - last.ended,
    }


def situation(found: Situation, now: float, most: int | None = None) -> Map:
    """Who holds a resource and who waits (protocol 4.3, 7.5)."""
    return {
        "lockspace": found.key.lockspace,
        "resource": found.key.resource,
        "holders": [holder(grant, now) for grant in found.holders[:most]],
        "holder_count": found.holder_count,
        "waiters": [waiter(waiting, now) for waiting in found.waiters[:most]],
        "waiter_count": found.waiter_count,
    }


def facts(refused: Refused, now: float) -> Map:
    """What explains a refusal (protocol 4.3)."""
    found: Map = {}
    if refused.situation is not None:
        found |= situation(refused.situation, now)
    if refused.waited is not None:
        found["waited"] = refused.waited
    if refused.outside is not None:
        found["outside"] = outside(refused.outside)
    if refused.cycle:
        found["cycle"] = [link(wait) for wait in refused.cycle]
    return found


def outside(found: OutsideHolder) -> Map:
    """Who locks a file from outside lockd, as far as the kernel tells."""
    return {"mode": found.mode, "pid": found.pid, "command": found.command}


def link(wait: Wait) -> Map:
    """One link of a cycle."""
    return {
        "name": wait.owner.name,
        "pid": wait.owner.pid,
        "session": wait.session,
        "lockspace": wait.key.lockspace or None,
        "resource": wait.key.resource or None,
    }


def wall_time(since: float, now: float) -> float:
    """Returns seconds since 1970, for people: no decision depends on it."""
    return time.time() - (now - since)
