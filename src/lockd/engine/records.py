"""The engine as records that change one by one: what outlives a crash.

A record is a kind, a name and a value. A change costs the records that it is about,
however much is held and however many wait. Kinds, names and values:

    counts      0                  `VERSION` and `READABLE_FROM` of `snapshot`, then its
                                   `COUNTS`: tokens and turns given, statistics
    lockspace   its name           the command that added it
    owner       its number         without what it holds
    session     its number         without what it waits for
    grant       fencing token      the whole grant
    request     its turn           with the anchors that are being opened for it
    last        its key            the last holder of a resource, and a rank by age

Resources are not recorded. Holders follow from the grants, in the order of their
tokens; lines from the requests, in the order of their turns: a request for which no
anchor is being opened stands in the line of each of its keys. An anchor that is not
being opened is held as the resource is.
"""

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter, itemgetter
from typing import Any, Final

from msgspec import Struct, convert, to_builtins

from lockd.engine import snapshot
from lockd.engine.commands import AddLockspace
from lockd.engine.effects import Grant, LastHolder
from lockd.engine.lock_engine import LockEngine
from lockd.engine.lock_state import COUNTS, LockState
from lockd.engine.request_state import ANSWERED
from lockd.engine.session import OwnerState, Request
from lockd.engine.snapshot import Plain, ResourceRecord
from lockd.terms import Mode, ResourceKey

Record = tuple[str, Any, Any]
"""Kind, name, value; all that `msgspec` encodes, and plain data when it is decoded.
Of `changes`, the value is None if there is no such record any more."""

TYPES: Final = {"grant": Grant}
"""What values may be decoded as at once, of kinds of which there are many."""

_counts_of = attrgetter(*COUNTS)
_VERSIONS = snapshot.VERSION, snapshot.READABLE_FROM
_LAST_TOKEN = len(_VERSIONS) + COUNTS.index("last_token")
_LAST_ORDER = len(_VERSIONS) + COUNTS.index("last_order")

# Telling.


def follow(engine: LockEngine) -> None:
    """Lets the engine mark from now on what changes."""
    engine.state.follow()


def changes(engine: LockEngine) -> list[Record]:
    """Returns what is new, other or gone since the last call, or since `follow`.

    Together they count or not at all: in between, the laws may not hold.
    """
    state = engine.state
    changed = state.changed
    assert changed is not None
    found: list[Record] = []
    before, counts = changed.counts, _counts(state)
    if changed.tell_counts(counts):
        found.append(("counts", 0, counts))
    for (kind, name), thing in changed.items():
        make = _VALUES.get(kind)
        value = thing if make is None else make(state, thing or name)
        # What came and went since the last call was never told.
        if value is None and (
            (kind == "grant" and name > before[_LAST_TOKEN])
            or (kind == "request" and name > before[_LAST_ORDER])
        ):
            continue
        found.append((kind, name, value))
    changed.clear()
    return found


def everything(engine: LockEngine) -> list[Record]:
    """Returns all records that there are."""
    return list(_everything(engine.state))


def _everything(state: LockState) -> Iterator[Record]:
    yield "counts", 0, _counts(state)
    yield from (("lockspace", x, y) for x, y in state.lockspaces.items())
    for owner_id, owner in state.owners.items():
        yield "owner", owner_id, snapshot.dump_owner(owner)
        yield from (("grant", x, y) for x, y in owner.grants.items())
    for session_id, session in state.sessions.items():
        yield "session", session_id, snapshot.dump_session(session)
    for request in snapshot.all_requests(state):
        yield "request", request.order, _request(state, request)
    eldest = state.ended - len(state.last_holders) + 1
    for rank, (key, last) in enumerate(state.last_holders.items(), eldest):
        yield "last", key, (rank, last)


def _counts(state: LockState) -> tuple[int, ...]:
    found: tuple[int, ...] = _VERSIONS + _counts_of(state)
    return found


def _owner(state: LockState, owner_id: int) -> Plain | None:
    owner = state.owners.get(owner_id)
    return None if owner is None else snapshot.dump_owner(owner)


def _session(state: LockState, session_id: int) -> list[Any] | None:
    session = state.sessions.get(session_id)
    return None if session is None else snapshot.dump_session(session)


def _request(state: LockState, request: Request) -> Plain | None:
    """Returns a request that waits, or whose anchors do; None if it is over."""
    if request.state is ANSWERED:
        return None
    opening = [
        (key, resource.anchor, resource.anchor_wanted)
        for key in request.keys
        if (resource := state.resources.get(key)) and resource.pending is request
    ]
    return snapshot.dump_request(request) | {"anchors": opening}


_VALUES: dict[str, Callable[[LockState, Any], Any]] = {
    "lockspace": lambda state, name: state.lockspaces[name],
    "owner": _owner,
    "session": _session,
    "request": _request,
}


# Taking up.


def assemble(records: Iterable[Record], problems: Iterable[str] = ()) -> Plain:
    """Returns what `snapshot.load` takes; its `Loaded.problems` name what is missing.

    Not all of it is plain data: what was checked here need not be checked again.

    Args:
        records: all that there are, decoded, in any order.
        problems: what is known to be lost of them, a sentence each.
    """
    pieces = _Assembly(list(problems))
    for kind, name, value in records:
        try:
            pieces.add(kind, value)
        except Exception as error:
            pieces.problems.append(f"record {name!r} of {kind}: {error!r}")
    return pieces.put_together()


class _Standing(Struct):
    """What of a request says where it stands."""

    order: int
    keys: tuple[ResourceKey, ...]
    converting: bool
    anchors: list[tuple[ResourceKey, Mode | None, Mode | None]]


class _OwnerName(Struct):
    owner_id: int


class _Assembly:
    """The records by their kinds, as far as they can be read."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        self.counts: list[int] = []
        self.lockspaces: list[AddLockspace] = []
        self.owners: dict[int, Plain] = {}
        self.sessions: dict[int, list[Any]] = {}
        self.grants: dict[int, Grant] = {}
        self.requests: dict[int, tuple[_Standing, Plain]] = {}
        self.last: list[tuple[int, LastHolder]] = []

    def add(self, kind: str, value: Any) -> None:
        match kind:
            case "counts":
                self.counts = convert(value, list[int])
            case "lockspace":
                self.lockspaces.append(convert(value, AddLockspace))
            case "owner":
                self.owners[convert(value, _OwnerName).owner_id] = value
            case "session":
                self.sessions[convert(value[0], int)] = value
            case "grant":
                grant = convert(value, Grant)
                self.grants[grant.fencing_token] = grant
            case "request":
                place = convert(value, _Standing)
                self.requests[place.order] = (place, value)
            case "last":
                self.last.append(convert(value, tuple[int, LastHolder]))
            case _:
                raise ValueError("nobody knows this kind")

    def put_together(self) -> Plain:
        self.grants = dict(sorted(self.grants.items()))
        self.requests = dict(sorted(self.requests.items()))
        version, readable_from, counts = self._counts()
        return {
            "version": version,
            "readable_from": readable_from,
            "counts": counts,
            "lockspaces": [to_builtins(x) for x in self.lockspaces],
            "owners": self._owners(),
            "sessions": [x for _, x in sorted(self.sessions.items())],
            "requests": [value for _, value in self.requests.values()],
            "resources": self._resources(),
            "last_holders": [x for _, x in sorted(self.last, key=itemgetter(0))],
            "problems": self.problems,
        }

    def _counts(self) -> tuple[int, int, Plain]:
        versions, counts = self.counts[:2], self.counts[2:]
        if len(counts) < len(COUNTS):
            self.problems.append("the counts are missing")
            versions = [snapshot.VERSION, snapshot.READABLE_FROM]
            counts = [0] * len(COUNTS)
        found = dict(zip(COUNTS, counts, strict=False))
        found["last_token"] = max(found["last_token"], *self.grants, 0)
        found["last_order"] = max(found["last_order"], *self.requests, 0)
        found["granted"] = max(found["granted"], len(self.grants))
        return versions[0], versions[1], found

    def _owners(self) -> list[Plain]:
        grants: dict[int, list[Grant]] = {}
        for grant in self.grants.values():
            if grant.owner_id not in self.owners:
                self._make_up_owner(grant)
            grants.setdefault(grant.owner_id, []).append(grant)
        return [
            owner | {"grants": grants.get(owner_id, [])}
            for owner_id, owner in sorted(self.owners.items())
        ]

    def _make_up_owner(self, grant: Grant) -> None:
        """Gives a grant somebody to hold it, so that it ends as any other."""
        self.problems.append(f"owner {grant.owner_id} is missing")
        is_process = grant.owner_id != grant.session
        owner = OwnerState(grant.owner_id, grant.owner, is_process=is_process)
        self.owners[grant.owner_id] = snapshot.dump_owner(owner)

    def _resources(self) -> list[ResourceRecord]:
        found: dict[ResourceKey, ResourceRecord] = {}
        for grant in self.grants.values():
            resource = _resource(found, grant.key)
            resource.holders.append((grant.owner_id, grant.fencing_token))
        for order, (place, _) in self.requests.items():
            for key, anchor, wanted in place.anchors:
                resource = _resource(found, key)
                resource.opens(order, anchor, wanted)
            if not place.anchors:
                for key in place.keys:
                    resource = _resource(found, key)
                    line = resource.converting if place.converting else resource.waiting
                    line.append(order)
        return list(found.values())


def _resource(
    found: dict[ResourceKey, ResourceRecord], key: ResourceKey
) -> ResourceRecord:
    resource = found.get(key)
    if resource is None:
        resource = found[key] = ResourceRecord(key)
    return resource
