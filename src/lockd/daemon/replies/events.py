"""Events as watchers get them (protocol 7.6)."""

from collections.abc import Iterator, Mapping
from typing import Any

from lockd.engine import effects as e
from lockd.engine.commands import Owner
from lockd.engine.lock_engine import SessionView
from lockd.terms import ResourceKey

Event = dict[str, Any]


def events_of(effect: e.Effect, sessions: Mapping[int, SessionView]) -> Iterator[Event]:
    """Yields the events of an effect. Most effects have none."""
    if isinstance(effect, e.Granted):
        for grant in effect.grants:
            yield _of_grant("converted" if effect.converted else "granted", grant)
    elif isinstance(effect, e.Ended):
        yield _of_grant("released", effect.grant) | {"cause": effect.cause}
    elif isinstance(effect, e.Queued):
        owner = sessions[effect.session].owner.identity
        for key in effect.keys:
            event = _event("waiting", key, effect.session, owner)
            yield event | {"mode": effect.mode}
    elif isinstance(effect, e.Refused) and effect.situation is not None:
        owner = sessions[effect.session].owner.identity
        event = _event("refused", effect.situation.key, effect.session, owner)
        yield event | {"code": effect.code}
    elif isinstance(effect, e.Overdue):
        yield _of_grant("overdue", effect.grant)


def _of_grant(what: str, grant: e.Grant) -> Event:
    event = _event(what, grant.key, grant.session, grant.owner) | {
        "mode": grant.mode,
        "fencing_token": grant.fencing_token,
    }
    if grant.slot is not None:
        event |= {"slot": grant.slot, "slots": grant.slots}
    if grant.inside:
        event["inside"] = grant.inside
    return event


def _event(what: str, key: ResourceKey, session: int, owner: Owner) -> Event:
    return {
        "event": what,
        "lockspace": key.lockspace,
        "resource": key.resource,
        "session": session,
        "name": owner.name,
        "pid": owner.pid,
        "uid": owner.uid,
    }
