"""The only entry to the engine: `LockEngine.handle(command, now=...)`.

The engine consists of `LockState` (who holds what), `LockTable` (how requests move),
`Requests` and `Owners` (a handler for each command). Each knows only those before it.
The laws that hold between two commands are in `invariants`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.engine.lock_state import LockState
from lockd.engine.lock_table import LockTable
from lockd.engine.owners import Owners
from lockd.engine.requests import Requests
from lockd.terms import Mode, OutsideHolder, ResourceKey


class LockEngine:
    """The locks of one daemon.

    Other rooms change it with `handle` only, and read it through the methods below.
    `state` and `table` are for this room: `snapshot`, `records` and `invariants`. A
    test checks that no other module uses them.

    Args:
        last_token: every fencing token will be greater than this.
        state: the state of an earlier engine; replaces `last_token`.
    """

    def __init__(self, last_token: int = 0, *, state: LockState | None = None) -> None:
        self.state = state = state or LockState(last_token)
        self.table = table = LockTable(state)
        self._requests = requests = Requests(state, table)
        self._owners = owners = Owners(state, table)
        self._handlers: dict[type, Callable[[Any, float], e.Effect | None]] = {
            c.AddLockspace: self._add_lockspace,
            c.OpenSession: owners.open_session,
            c.RegisterOwner: owners.register_owner,
            c.EnterGrants: owners.enter_grants,
            c.CloseSession: owners.close_session,
            c.DisconnectOwner: owners.disconnect_owner,
            c.EndOwner: owners.end_owner,
            c.OwnerFenced: owners.owner_fenced,
            c.Acquire: requests.acquire,
            c.Convert: requests.convert,
            c.Release: requests.release,
            c.ReleaseForOwner: owners.release_for_owner,
            c.Cancel: requests.cancel,
            c.BreakGrant: owners.break_grant,
            c.AnchorOpened: self._anchor_opened,
            c.AnchorRefused: self._anchor_refused,
            c.AnchorDelayed: self._anchor_delayed,
            c.Resume: self._resume,
            c.Tick: self._tick,
        }
        # Read-only views for other rooms.
        self.lockspaces: Mapping[str, c.AddLockspace] = state.lockspaces
        self.resources: Mapping[ResourceKey, ResourceView] = state.resources
        self.owners: Mapping[int, OwnerView] = state.owners
        self.sessions: Mapping[int, SessionView] = state.sessions
        self.last_holders: Mapping[ResourceKey, e.LastHolder] = state.last_holders
        self.held_by_user: Mapping[int, int] = state.usage.held
        self.waiting_by_user: Mapping[int, int] = state.usage.waiting
        self.text_by_user: Mapping[int, int] = state.usage.text

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} sessions={len(self.sessions)} "
            f"owners={len(self.owners)} resources={len(self.resources)} "
            f"waiting={self.waiting} last_token={self.last_token}>"
        )

    def handle(self, command: c.Command, *, now: float) -> list[e.Effect]:
        """Carries out a command.

        Returns the effects, in the order in which to perform them.

        The caller must perform every effect, and answer each `OpenAnchor` and `Fence`
        with a command of its own. Each request has exactly one answer: `Granted`,
        `Refused` or `Completed`. The answer may come with a later command.

        Args:
            command: must name lockspaces, sessions and owners that exist.
            now: seconds of a clock that never goes back.
        """
        answer = self._handlers[type(command)](command, now)
        effects = self.table.settle(now)
        if self.state.listened:
            effects += self._owners.tell_wanted()
        if answer is not None:
            effects.append(answer)
        return effects

    def next_deadline(self) -> float | None:
        """Returns when the next `Tick` is due; None if nothing has a deadline."""
        return self.table.next_deadline()

    # Lockspaces, anchors and time.

    def _add_lockspace(self, command: c.AddLockspace, now: float) -> None:
        self.state.add_lockspace(command)
        self._requests.change_slots(command.name, now)

    def _anchor_opened(self, command: c.AnchorOpened, now: float) -> None:
        self.table.anchor_answered(self.state.resources[command.key], None, now)

    def _anchor_refused(self, command: c.AnchorRefused, now: float) -> None:
        self.table.anchor_answered(self.state.resources[command.key], command, now)

    def _anchor_delayed(self, command: c.AnchorDelayed, now: float) -> None:
        self.table.anchor_delayed(self.state.resources[command.key], now)

    def _resume(self, command: c.Resume, now: float) -> None:
        """Asks again for every anchor and every death without an answer."""
        resources = self.state.resources.values()
        for request in {x.pending: None for x in resources if x.pending}:
            self.table.open_again(request)
        self._owners.fence_again()

    def _tick(self, command: c.Tick, now: float) -> None:
        self.table.pass_time(now)

    # Reading: numbers.

    @property
    def last_token(self) -> int:
        """The youngest fencing token."""
        return self.state.last_token

    @property
    def granted(self) -> int:
        """How many grants were ever made."""
        return self.state.granted

    @property
    def refused(self) -> int:
        """How many requests were ever refused."""
        return self.state.refused

    @property
    def ended(self) -> int:
        """How many grants have ended."""
        return self.state.ended

    @property
    def held(self) -> int:
        """How many grants exist."""
        return self.state.held

    @property
    def waiting(self) -> int:
        """How many requests are unanswered."""
        return self.state.waiting

    # Reading: who holds what.

    def has_registered(self, session_id: int) -> bool:
        """Returns whether a session has registered an owner."""
        return self.state.sessions[session_id].registered

    def owner_of(self, session_id: int) -> c.Owner:
        """Returns the owner for whom a session acts."""
        return self.state.sessions[session_id].owner.identity

    def grants(self) -> Iterator[e.Grant]:
        """Yields all grants."""
        return self.state.grants()

    def grant_of(self, fencing_token: int) -> e.Grant | None:
        """Returns the grant with a fencing token."""
        return self.state.grant_of(fencing_token)

    def held_by(self, session_id: int) -> int:
        """Returns how many grants the owner has for whom a session acts."""
        return len(self.state.sessions[session_id].owner.grants)

    def grants_of(self, session_id: int) -> Sequence[e.Grant]:
        """Returns the grants of the owner for whom a session acts."""
        return tuple(self.sessions[session_id].owner.grants.values())

    def key_in_use(self, lockspace: str, resource: str) -> ResourceKey | None:
        """Returns the key of a resource that has a holder or a waiter."""
        name: Any = (lockspace, resource)  # equal to the key, and made in no time
        found = self.state.resources.get(name)
        return None if found is None else found.key

    def holders(self, key: ResourceKey) -> Sequence[e.Grant]:
        """Returns the grants of a resource, oldest first."""
        resource = self.resources.get(key)
        return tuple(resource.holders.values()) if resource else ()

    def holds(self, key: ResourceKey, fencing_token: int) -> bool:
        """Returns whether a resource is held with a fencing token, or inside it.

        A grant that ended stays valid while its resource, or its slot, is held inside
        it. Nobody outside the chain was granted that since. So what is guarded saw no
        greater token than those of the chain, and all of these name the outermost.
        """
        return any(
            fencing_token == grant.fencing_token or fencing_token in grant.inside
            for grant in self.holders(key)
        )

    def must_fence(self, grant: e.Grant) -> bool:
        """Returns whether the holder must be dead before its lock ends."""
        return self.state.must_fence(grant)

    def wanted_now(self, session_id: int) -> Iterator[e.Wanted | e.Unwanted]:
        """Yields what a session should have heard last of whether it is wanted."""
        for grant in self.grants_of(session_id):
            notices = grant.notices
            if notices is not None and notices.wanted_to == session_id:
                kind = e.Wanted if notices.wanted else e.Unwanted
                count = self.resources[grant.key].line_length()
                yield kind(session_id, grant, count)

    # Reading: who waits.

    def has_request(self, session_id: int, number: int) -> bool:
        """Returns whether a session has an unanswered request with a number."""
        return number in self.state.sessions[session_id].requests

    def situation(self, key: ResourceKey) -> e.Situation:
        """Returns the holders and waiters of a resource. Both may be empty.

        Its slots are told also if nobody holds or wants one, but they are configured.
        """
        found = self.state.situation(key)
        if found.slots is None and (slots := self.state.configured_slots(key)):
            return found.replace(slots=slots)
        return found

    def announced(self) -> Iterator[RequestView]:
        """Yields the requests whose sessions know that they wait (`Queued`)."""
        return (x for x in self.state.requests() if x.is_announced)

    # Reading: anchors.

    def needs_anchor(self, key: ResourceKey) -> bool:
        """Returns whether an anchor is open or being opened."""
        resource = self.state.resources.get(key)
        return resource is not None and bool(resource.anchor or resource.pending)

    def opens_for(self, key: ResourceKey) -> int | None:
        """Returns the session for which an anchor is being opened.

        None if its request has been answered.
        """
        request = self.state.resources[key].pending
        if request is None or request.is_answered:
            return None
        return request.session.session_id


# The attributes of the engine's objects that other rooms may read. The type checker
# rejects any other use. The classes themselves have the docstrings.
# ruff: noqa: D102


class OwnerView(Protocol):
    """An `OwnerState`."""

    @property
    def owner_id(self) -> int: ...
    @property
    def identity(self) -> c.Owner: ...
    @property
    def grants(self) -> Mapping[int, e.Grant]: ...


class SessionView(Protocol):
    """A `Session`."""

    @property
    def session_id(self) -> int: ...
    @property
    def owner(self) -> OwnerView: ...
    @property
    def registered(self) -> bool: ...
    @property
    def requests(self) -> Mapping[int, RequestView]: ...
    @property
    def claims(self) -> int: ...


class StrandView(Protocol):
    """A `Strand`."""

    @property
    def number(self) -> int: ...


class RequestView(Protocol):
    """A `Request`."""

    @property
    def session(self) -> SessionView: ...
    @property
    def strand(self) -> StrandView: ...
    @property
    def owner(self) -> OwnerView: ...
    @property
    def number(self) -> int: ...
    @property
    def keys(self) -> tuple[ResourceKey, ...]: ...
    @property
    def mode(self) -> Mode: ...
    @property
    def since(self) -> float: ...
    @property
    def converting(self) -> bool: ...
    @property
    def inside(self) -> Mapping[ResourceKey, tuple[int, ...]]: ...
    @property
    def wish(self) -> c.Acquire: ...
    @property
    def outside(self) -> OutsideHolder | None: ...
    @property
    def is_answered(self) -> bool: ...
    @property
    def is_announced(self) -> bool: ...


class SlotsView(Protocol):
    """The `Slots` of a resource."""

    @property
    def count(self) -> int: ...


class HoldersView(Protocol):
    """The `Holders` of a resource."""

    def __len__(self) -> int: ...
    def values(self) -> Collection[e.Grant]: ...
    def items(self) -> Collection[tuple[StrandView, e.Grant]]: ...


class ResourceView(Protocol):
    """A `Resource`."""

    @property
    def key(self) -> ResourceKey: ...
    @property
    def holders(self) -> HoldersView: ...
    @property
    def mode(self) -> Mode | None: ...
    @property
    def anchor(self) -> Mode | None: ...
    @property
    def has_line(self) -> bool: ...
    @property
    def slots(self) -> SlotsView | None: ...
    def line(self) -> Iterator[RequestView]: ...
    def line_length(self) -> int: ...
