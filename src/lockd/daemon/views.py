"""How the engine's values look on the wire and to people: plain maps, sentences.

The maps have the shapes of protocol 7 and 4.3.
"""

import time
from collections.abc import Mapping
from typing import Any

from lockd.daemon.credentials import command_of, unit_of
from lockd.engine.commands import Owner
from lockd.engine.effects import Grant, LastHolder, Refused, Situation, Wait, Waiter
from lockd.names import quoted
from lockd.terms import EXCLUSIVE, OutsideHolder
from lockd.text import duration

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


def party(owner: Owner, session: int) -> Map:
    """Who somebody is (protocol 7.1)."""
    return {
        "name": owner.name,
        "uuid": owner.uuid,
        "id": owner.id,
        "pid": owner.pid,
        "uid": owner.uid,
        "command": command_of(owner.pid) if owner.pid else None,
        "unit": unit_of(owner.pid) if owner.pid else None,
        "session": session,
    }


def holder(grant: Grant, now: float) -> Map:
    """Who holds (protocol 7.2)."""
    return party(grant.owner, grant.session) | {
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
    return party(waiting.owner, waiting.session) | {
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
        "lockspace": wait.key.lockspace,
        "resource": wait.key.resource,
    }


def wall_time(since: float, now: float) -> float:
    """Returns seconds since 1970, for people: no decision depends on it."""
    return time.time() - (now - since)


def sentence(refused: Refused, now: float) -> str:
    """What a refusal says to people: what stands in the way, who, since when, why."""
    what = _SENTENCES.get(refused.code, "")
    parts = [part for part in (what, refused.message) if part]
    name = "the lock"
    if refused.situation is not None:
        name = quoted(str(refused.situation.key))
        parts += _who(refused.situation, now)
    if refused.outside is not None:
        parts.append(_outside(refused.outside))
    if refused.cycle:
        parts.append(_cycle(refused.cycle))
    return f"{name}: " + "; ".join(parts) if refused.situation else "; ".join(parts)


_SENTENCES: Mapping[str, str] = {
    "busy": "not free",
    "timeout": "not granted in time",
    "cancelled": "no longer waited for",
    "deadlock": "waiting would never end",
    "not_held": "not held by this owner",
    "already_held": "this owner has it, or waits for it, already",
}


def _who(found: Situation, now: float) -> list[str]:
    parts = [_held_by(grant, now) for grant in found.holders[:3]]
    if found.holder_count > 3:
        parts.append(f"and by {found.holder_count - 3} more")
    if found.waiter_count == 1:
        parts.append(f"{_called(found.waiters[0].owner)} waits")
    elif found.waiter_count:
        first = _called(found.waiters[0].owner)
        parts.append(f"{found.waiter_count} wait, first {first}")
    return parts


def _held_by(grant: Grant, now: float) -> str:
    how = "exclusively" if grant.mode == EXCLUSIVE else "shared"
    held_for = duration(now - grant.since)
    reason = f" for {quoted(grant.reason)}" if grant.reason else ""
    return f"held {how} by {_called(grant.owner)} since {held_for} ago{reason}"


def _called(owner: Owner) -> str:
    return f"{quoted(owner.name)} (pid {owner.pid}, uid {owner.uid})"


def _outside(found: OutsideHolder) -> str:
    how = "exclusively" if found.mode == EXCLUSIVE else "shared"
    if found.pid is None:
        return f"held {how} by a process that the kernel does not name"
    return f"held {how} by {quoted(found.command or 'unknown')} (pid {found.pid})"


def _cycle(cycle: tuple[Wait, ...]) -> str:
    links = [
        f"{_called(wait.owner)} waits for {quoted(str(wait.key))}" for wait in cycle
    ]
    return ", held or queued for by ".join([*links, "the first"])
