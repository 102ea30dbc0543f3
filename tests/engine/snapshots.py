"""The whole engine as plain data, as `snapshot.load` reads it."""

from msgspec import to_builtins

from lockd.engine.changes import COUNTS
from lockd.engine.effects import Grant
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import snapshot
from lockd.engine.recovery.snapshot import Plain
from lockd.engine.resource import Resource


def dump(engine: LockEngine) -> Plain:
    """Returns the state of an engine. Does not change the engine."""
    state = engine.state
    return {
        "version": snapshot.VERSION,
        "readable_from": snapshot.READABLE_FROM,
        "counts": {name: getattr(state, name) for name in COUNTS},
        "lockspaces": [to_builtins(x) for x in state.lockspaces.values()],
        "owners": [
            snapshot.dump_owner(x)
            | {
                "grants": [
                    to_builtins(snapshot.dump_grant(y)) for y in x.grants.values()
                ]
            }
            for x in state.owners.values()
        ],
        "sessions": [snapshot.dump_session(x) for x in state.sessions.values()],
        "requests": [snapshot.dump_request(x) for x in state.all_requests()],
        # Resources have no order.
        "resources": [_dump_resource(x) for _, x in sorted(state.resources.items())],
        "last_holders": [
            to_builtins(snapshot.dump_last(x)) for x in state.last_holders.values()
        ],
    }


def _dump_grant(grant: Grant) -> Plain:
    plain: Plain = to_builtins(snapshot.dump_grant(grant))
    return plain


def _dump_resource(resource: Resource) -> Plain:
    pending = resource.pending
    return {
        "key": list(resource.key),
        "holders": [
            [grant.owner_id, grant.fencing_token] for grant in resource.holders.values()
        ],
        "converting": [request.order for request in resource.converting],
        "waiting": [x.order for x in (*resource.inner, *resource.waiting)],
        "anchor": resource.anchor,
        "anchor_wanted": resource.anchor_wanted,
        "pending": None if pending is None else pending.order,
        "whole": pending is not None and resource.gets_whole(pending),
    }
