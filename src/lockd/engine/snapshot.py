"""The whole engine as plain data, and back: what a daemon hands to its successor.

Plain means dicts, lists, texts, numbers, booleans and None, so that any encoding can
carry it. Times stay what they were: the successor must go on with the same clock.
Sessions, owners and requests keep their numbers, lines their order.
"""

from typing import Any, Final

from msgspec import convert, to_builtins

from lockd.engine.commands import AddLockspace, AnchorRefused, Owner
from lockd.engine.effects import Grant, LastHolder
from lockd.engine.lock_engine import LockEngine
from lockd.engine.resource import Resource
from lockd.engine.session import OwnerState, Request, Session
from lockd.terms import OutsideHolder, ResourceKey

VERSION: Final = 1
"""Raised whenever what `dump` writes can no longer be read by an older `load`."""

Plain = dict[str, Any]

_COUNTS = ("last_token", "last_order", "granted", "refused", "ended")
_REQUEST_FIELDS = (
    "order",
    "mode",
    "since",
    "deadline",
    "tries",
    "converting",
    "create",
    "label",
    "reason",
    "opening",
    "retry_at",
    "pause",
    "announced",
    "answered",
)


def dump(engine: LockEngine) -> Plain:
    """Returns the state of an engine as plain data; the engine is not changed."""
    requests = _all_requests(engine)
    return {
        "version": VERSION,
        "counts": {name: getattr(engine, name) for name in _COUNTS},
        "lockspaces": [to_builtins(x) for x in engine.lockspaces.values()],
        "owners": [_dump_owner(owner) for owner in engine.owners.values()],
        "sessions": [
            [session.session_id, session.owner.owner_id, session.registered]
            for session in engine.sessions.values()
        ],
        "requests": [_dump_request(request) for request in requests],
        "resources": [_dump_resource(x) for x in engine.resources.values()],
        "last_holders": [to_builtins(x) for x in engine.last_holders.values()],
    }


def load(data: Plain) -> LockEngine:
    """Returns an engine that goes on exactly where the dumped one was.

    Raises:
        ValueError: the data is of another version.
    """
    if data["version"] != VERSION:
        raise ValueError(
            f"a snapshot of version {data['version']} cannot be read, only {VERSION}"
        )
    engine = LockEngine()
    for name in _COUNTS:
        setattr(engine, name, data["counts"][name])
    for lockspace in data["lockspaces"]:
        engine.lockspaces[lockspace["name"]] = convert(lockspace, AddLockspace)
    for owner in data["owners"]:
        engine.owners[owner["owner_id"]] = _load_owner(owner)
    for session_id, owner_id, registered in data["sessions"]:
        _load_session(engine, session_id, owner_id).registered = registered
    requests = {x["order"]: _load_request(engine, x) for x in data["requests"]}
    for resource in data["resources"]:
        _load_resource(engine, resource, requests)
    for last in data["last_holders"]:
        last_holder = convert(last, LastHolder)
        engine.last_holders[last_holder.grant.key] = last_holder
    return engine


def _all_requests(engine: LockEngine) -> list[Request]:
    """Returns who waits, and the answered requests whose anchors are still awaited."""
    requests = {r: None for s in engine.sessions.values() for r in s.requests.values()}
    for resource in engine.resources.values():
        if resource.pending is not None:
            requests[resource.pending] = None
    return sorted(requests, key=lambda request: request.order)


def _dump_owner(owner: OwnerState) -> Plain:
    return {
        "owner_id": owner.owner_id,
        "identity": to_builtins(owner.identity),
        "is_process": owner.is_process,
        "on_disconnect": owner.on_disconnect,
        "fencing": owner.fencing,
        "ended": owner.ended,
        "grants": [to_builtins(grant) for grant in owner.grants.values()],
    }


def _load_owner(data: Plain) -> OwnerState:
    identity = convert(data["identity"], Owner)
    owner = OwnerState(data["owner_id"], identity, is_process=data["is_process"])
    owner.on_disconnect = data["on_disconnect"]
    owner.fencing = data["fencing"]
    owner.ended = data["ended"]
    for plain in data["grants"]:
        grant = convert(plain, Grant)
        owner.grants[grant.fencing_token] = grant
    return owner


def _load_session(engine: LockEngine, session_id: int, owner_id: int) -> Session:
    owner = engine.owners[owner_id]
    session = Session(session_id, owner)
    owner.sessions[session_id] = session
    engine.sessions[session_id] = session
    return session


def _dump_request(request: Request) -> Plain:
    return {
        "session": request.session.session_id,
        "owner": request.owner.owner_id,
        "number": request.number,
        "keys": [list(key) for key in request.keys],
        "refusal": None if request.refusal is None else to_builtins(request.refusal),
        "outside": None if request.outside is None else list(request.outside),
    } | {name: getattr(request, name) for name in _REQUEST_FIELDS}


def _load_request(engine: LockEngine, data: Plain) -> Request:
    # An answered request may belong to a session that is gone.
    session = engine.sessions.get(data["session"]) or Session(
        data["session"],
        engine.owners.get(data["owner"])
        or OwnerState(data["owner"], Owner(name="", pid=0, uid=0)),
    )
    keys = tuple(ResourceKey(*key) for key in data["keys"])
    request = Request(
        session, data["number"], data["order"], keys, data["mode"], data["since"], None
    )
    for name in _REQUEST_FIELDS:
        setattr(request, name, data[name])
    if data["outside"] is not None:
        request.outside = OutsideHolder(*data["outside"])
    if data["refusal"] is not None:
        request.refusal = convert(data["refusal"], AnchorRefused)
    if not request.answered:
        engine.adopt(request)
    return request


def _dump_resource(resource: Resource) -> Plain:
    pending = resource.pending
    return {
        "key": list(resource.key),
        "holders": [
            [grant.owner_id, grant.fencing_token] for grant in resource.holders.values()
        ],
        "converting": [request.order for request in resource.converting],
        "waiting": [request.order for request in resource.waiting],
        "anchor": resource.anchor,
        "anchor_wanted": resource.anchor_wanted,
        "pending": None if pending is None else pending.order,
    }


def _load_resource(
    engine: LockEngine, data: Plain, requests: dict[int, Request]
) -> None:
    resource = Resource(ResourceKey(*data["key"]))
    for owner_id, token in data["holders"]:
        resource.holders[owner_id] = engine.owners[owner_id].grants[token]
    for order in [*data["converting"], *data["waiting"]]:
        resource.enqueue(requests[order])
    resource.anchor = data["anchor"]
    resource.anchor_wanted = data["anchor_wanted"]
    if data["pending"] is not None:
        resource.pending = requests[data["pending"]]
    engine.resources[resource.key] = resource
