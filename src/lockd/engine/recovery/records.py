"""The engine's state as separate records, which survive a crash.

A record is a kind, a name and a value. A change rewrites only the records it affects,
so its cost does not grow with the number of locks and waiters. The kinds:

    counts      0                  `VERSION` and `READABLE_FROM` of `snapshot`, then its
                                   `COUNTS`: last token, last order, statistics
    lockspace   its name           the command that added it
    owner       its number         without its grants
    session     its number         without its requests
    grant       fencing token      the whole grant
    request     its order          with the anchors that are being opened for it
    last        its key            the last holder of a resource, and a rank by age

Resources have no records; they follow from the others:

- The holders are the grants, in the order of their tokens.
- The lines are the requests, in their order. A request without an opening anchor stands
  in the line of each of its keys.
- An anchor that is not being opened has the mode of the resource.
"""

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, Final

from msgspec import convert, to_builtins

from lockd.engine.changes import COUNTS
from lockd.engine.commands import AddLockspace
from lockd.engine.effects import LastHolder
from lockd.engine.lock_engine import LockEngine
from lockd.engine.lock_state import LockState
from lockd.engine.recovery import snapshot
from lockd.engine.recovery.shapes import (
    GrantRecord,
    LastRecord,
    OwnerName,
    ResourceRecord,
    Standing,
)
from lockd.engine.recovery.snapshot import Plain
from lockd.engine.request_state import ANSWERED
from lockd.engine.session import OwnerState, Request
from lockd.terms import SLOT, ResourceKey

Record = tuple[str, Any, Any]
"""Kind, name, value. `msgspec` encodes all of it; decoding gives plain data. In the
result of `changes`, a value of None deletes the record, and that of a last holder is
what `last_record` takes."""

TYPES: Final[dict[str, type[Any]]] = {"grant": GrantRecord}
"""The types as which frequent kinds may be decoded directly."""

_COUNTERS_AT: Final = 2
"""Where the counters begin in the record of counts: after the two versions."""

_LAST_TOKEN = _COUNTERS_AT + COUNTS.index("last_token")
_LAST_ORDER = _COUNTERS_AT + COUNTS.index("last_order")

# Reporting.


def follow(engine: LockEngine) -> None:
    """Makes the engine mark its changes from now on."""
    engine.state.follow()


def changes(engine: LockEngine) -> list[Record]:
    """Returns what has changed since the last call, or since `follow`.

    The value of a last holder has its rank and itself: `last_record` makes the value to
    record. Most of them are replaced before there is time to record them.
    """
    state = engine.state
    changed = state.changed
    assert changed is not None
    found: list[Record] = []
    before, counts = changed.counts, _counts(state)
    if changed.tell_counts(counts):
        found.append(("counts", 0, counts))
    # What came and went since the last call has no record to remove.
    for token, grant in changed.grants.items():
        if grant is not None:
            found.append(("grant", token, snapshot.dump_grant(grant)))
        elif token <= before[_LAST_TOKEN]:
            found.append(("grant", token, None))
    for key, ranked in changed.last_holders.items():
        found.append(("last", key, ranked))
    for (kind, name), thing in changed.others.items():
        value = _VALUES[kind](state, thing or name)
        if value is None and kind == "request" and name > before[_LAST_ORDER]:
            continue
        found.append((kind, name, value))
    changed.clear()
    return found


def everything(engine: LockEngine) -> list[Record]:
    """Returns all records."""
    return list(_everything(engine.state))


def _everything(state: LockState) -> Iterator[Record]:
    yield "counts", 0, _counts(state)
    yield from (("lockspace", x, y) for x, y in state.lockspaces.items())
    for owner_id, owner in state.owners.items():
        yield "owner", owner_id, snapshot.dump_owner(owner)
        for token, grant in owner.grants.items():
            yield "grant", token, snapshot.dump_grant(grant)
    for session_id, session in state.sessions.items():
        yield "session", session_id, snapshot.dump_session(session)
    for request in state.all_requests():
        yield "request", request.order, _request(state, request)
    eldest = state.ended - len(state.last_holders) + 1
    for rank, (key, last) in enumerate(state.last_holders.items(), eldest):
        yield "last", key, last_record((rank, last))


def _counts(state: LockState) -> tuple[int, ...]:
    return (
        snapshot.VERSION,
        snapshot.READABLE_FROM,
        # In the order of `COUNTS`. Each turn asks for them.
        state.last_token,
        state.last_order,
        state.granted,
        state.refused,
        state.ended,
    )


def _owner(state: LockState, owner_id: int) -> Plain | None:
    owner = state.owners.get(owner_id)
    return None if owner is None else snapshot.dump_owner(owner)


def _session(state: LockState, session_id: int) -> list[Any] | None:
    session = state.sessions.get(session_id)
    return None if session is None else snapshot.dump_session(session)


def _request(state: LockState, request: Request) -> Plain | None:
    """Returns a request that waits or has an opening anchor; None for any other."""
    if request.state is ANSWERED:
        return None
    opening = [
        (key, resource.anchor, resource.anchor_wanted, resource.gets_whole(request))
        for key in request.keys
        if (resource := state.resources.get(key)) and resource.pending is request
    ]
    return snapshot.dump_request(request) | {"anchors": opening}


def last_record(ranked: tuple[int, LastHolder]) -> tuple[int, LastRecord]:
    """Returns the record of a last holder that `changes` has returned."""
    rank, last = ranked
    return rank, snapshot.dump_last(last)


_VALUES: Final[dict[str, Callable[[LockState, Any], Any]]] = {
    "lockspace": lambda state, name: state.lockspaces[name],
    "owner": _owner,
    "session": _session,
    "request": _request,
}


# Restoring.


def assemble(records: Iterable[Record], problems: Iterable[str] = ()) -> Plain:
    """Returns data for `snapshot.load`. `Loaded.problems` will name what is missing.

    Some of it is not plain: a value that was converted here needs no second check.

    Args:
        records: all of them, decoded, in any order.
        problems: known losses, a sentence each.
    """
    pieces = _Assembly(list(problems))
    for kind, name, value in records:
        try:
            pieces.add(kind, value)
        except Exception as error:
            pieces.problems.append(f"record {name!r} of {kind}: {error!r}")
    return pieces.put_together()


class _Assembly:
    """The readable records by kind."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        self.counts: list[int] = []
        self.lockspaces: list[AddLockspace] = []
        self.owners: dict[int, Plain] = {}
        self.sessions: dict[int, list[Any]] = {}
        self.grants: dict[int, GrantRecord] = {}
        self.requests: dict[int, tuple[Standing, Plain]] = {}
        self.last: list[tuple[int, LastRecord]] = []

    def add(self, kind: str, value: Any) -> None:
        match kind:
            case "counts":
                self.counts = convert(value, list[int])
            case "lockspace":
                self.lockspaces.append(convert(value, AddLockspace))
            case "owner":
                self.owners[convert(value, OwnerName).owner_id] = value
            case "session":
                self.sessions[convert(value[0], int)] = value
            case "grant":
                is_read = isinstance(value, GrantRecord)
                grant = value if is_read else convert(value, GrantRecord)
                if grant.mode == SLOT and None in (grant.slot, grant.slots):
                    raise ValueError("it is of an unknown slot")
                self.grants[grant.fencing_token] = grant
            case "request":
                place = convert(value, Standing)
                self.requests[place.order] = (place, value)
            case "last":
                self.last.append(convert(value, tuple[int, LastRecord]))
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
        grants: dict[int, list[GrantRecord]] = {}
        for grant in self.grants.values():
            if grant.owner_id not in self.owners:
                self._make_up_owner(grant)
            grants.setdefault(grant.owner_id, []).append(grant)
        return [
            owner | {"grants": grants.get(owner_id, [])}
            for owner_id, owner in sorted(self.owners.items())
        ]

    def _make_up_owner(self, grant: GrantRecord) -> None:
        """Adds an owner for a grant without one, so that the grant can end."""
        self.problems.append(f"owner {grant.owner_id} is missing")
        is_process = grant.owner_id != grant.session
        owner = OwnerState(grant.owner_id, grant.owner, is_process=is_process)
        self.owners[grant.owner_id] = snapshot.dump_owner(owner)

    def _resources(self) -> list[ResourceRecord]:
        found: dict[ResourceKey, ResourceRecord] = {}
        for order, (place, _) in self.requests.items():
            for opening in place.anchors:
                resource = _resource(found, opening.key)
                resource.opens(
                    *(order, opening.anchor, opening.wanted), whole=opening.whole
                )
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
