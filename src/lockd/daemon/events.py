"""What happened, as those who watch are told (protocol 7.6)."""

from collections.abc import Iterator
from typing import Any

from lockd.engine import effects as e
from lockd.terms import ResourceKey

Event = dict[str, Any]


def events_of(effect: e.Effect) -> Iterator[Event]:
    """Goes through the events that an effect is to an onlooker; most are none."""
    if isinstance(effect, e.Granted):
        for grant in effect.grants:
            yield _of_grant("converted" if effect.converted else "granted", grant)
    elif isinstance(effect, e.Ended):
        yield _of_grant("released", effect.grant) | {"cause": effect.cause}
    elif isinstance(effect, e.Lost):
        yield _of_grant("lost", effect.grant) | {"cause": effect.cause}
    elif isinstance(effect, e.Queued):
        for key in effect.keys:
            yield _event("waiting", key, effect.session) | {"mode": effect.mode}
    elif isinstance(effect, e.Refused) and effect.situation is not None:
        key = effect.situation.key
        yield _event("refused", key, effect.session) | {"code": effect.code}


def _of_grant(what: str, grant: e.Grant) -> Event:
    return _event(what, grant.key, grant.session) | {
        "name": grant.owner.name,
        "pid": grant.owner.pid,
        "mode": grant.mode,
        "fencing_token": grant.fencing_token,
    }


def _event(what: str, key: ResourceKey, session: int) -> Event:
    return {
        "event": what,
        "lockspace": key.lockspace,
        "resource": key.resource,
        "session": session,
    }
