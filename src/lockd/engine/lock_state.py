"""All that the engine knows: who holds what, and who waits.

While the engine runs, grants, requests, sessions and owners are added and removed here
only. Each step also updates the counts, the users' amounts and the marks for `records`.
`lock_table` decides which request is next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from lockd.engine.changes import Changes, Kind
from lockd.engine.commands import (
    Acquire,
    AddLockspace,
    BreakGrant,
    Convert,
    Owner,
    RegisterOwner,
    Release,
    ReleaseForOwner,
)
from lockd.engine.deadlines import Deadlines
from lockd.engine.effects import Grant, HolderNotices, LastHolder, Refused, Situation
from lockd.engine.resource import Resource
from lockd.engine.session import Inside, OwnerState, Request, Session, Strand
from lockd.engine.usage import Usage
from lockd.terms import SLOT, ResourceKey, WorkOutcome

MAX_LAST_HOLDERS: Final = 1024
"""For how many resources the engine remembers the last holder (protocol 7.4)."""

MAX_LISTENERS: Final = 64
"""How many holders of a resource hear that they are wanted (protocol 5.13). All of them
may have to hear it in one step."""


class LockState:
    """All that the engine knows.

    Args:
        last_token: every fencing token will be greater than this.
        counts: the counters named in `COUNTS`, of an engine that is restored.
    """

    def __init__(self, last_token: int = 0, **counts: int) -> None:
        self.last_token = last_token
        #: The order of the youngest request.
        self.last_order = counts.get("last_order", 0)
        #: Grants made, requests refused, grants ended.
        self.granted = counts.get("granted", 0)
        self.refused = counts.get("refused", 0)
        self.ended = counts.get("ended", 0)
        #: Unanswered requests.
        self.waiting = 0
        self.usage = Usage()
        self.lockspaces: dict[str, AddLockspace] = {}
        self.resources: dict[ResourceKey, Resource] = {}
        self.owners: dict[int, OwnerState] = {}
        self.sessions: dict[int, Session] = {}
        #: The owner of each grant, by fencing token.
        self.holder_of: dict[int, OwnerState] = {}
        self.deadlines = Deadlines()
        #: Where a holder may have to hear that it is wanted, or not any more, and who
        #: is new there. After a loss of records that may be so from the start.
        self.listened: dict[Resource, list[Strand]] = {}
        #: The oldest first.
        self.last_holders: OrderedDict[ResourceKey, LastHolder] = OrderedDict()
        #: What changed since the last report; None if nobody asks for changes.
        self.changed: Changes | None = None

    @property
    def held(self) -> int:
        """How many grants exist."""
        return self.granted - self.ended

    def follow(self) -> None:
        """Begins to mark changes for `records`."""
        self.changed = Changes()

    def mark(self, kind: Kind, name: str | int, thing: Request | None = None) -> None:
        """Marks something as new, changed or removed."""
        if self.changed is not None:
            self.changed.others[kind, name] = thing

    # Lockspaces, owners, sessions.

    def add_lockspace(self, lockspace: AddLockspace) -> None:
        """Adds a lockspace, or replaces it."""
        self.lockspaces[lockspace.name] = lockspace
        self.mark("lockspace", lockspace.name)

    def configured_slots(self, key: ResourceKey) -> int | None:
        """Returns how many slots a resource has by the configuration."""
        return self.lockspaces[key.lockspace].slots_of(key.resource)

    def slots_of(self, key: ResourceKey) -> int | None:
        """Returns how many slots a resource has; None if nobody has said it."""
        resource = self.resources.get(key)
        if resource is None or resource.slots is None:
            return self.configured_slots(key)
        return resource.slots.count

    def slots_said_by(self, key: ResourceKey, asker: Owner) -> Owner | None:
        """Returns who says how many slots there are, as `asker` wants one of them.

        None is the configuration.
        """
        resource = self.resources.get(key)
        if resource is None or resource.slots is None:
            return None if self.configured_slots(key) else asker
        return resource.slots.said_by

    def change_slots(
        self, resource: Resource, count: int, said_by: Owner | None = None
    ) -> None:
        """Changes how many slots a resource has, for all who hold or wait for one."""
        resource.change_slots(count, said_by)
        for grant in list(resource.holders.values()):
            if grant.slot is not None:
                self.put_grant(grant.replace(slots=count, slots_said_by=said_by))
        for request in resource.wanting_slots():
            request.expect_slots(count, said_by)
            self.mark("request", request.order, request)

    def add_owner(self, owner: OwnerState) -> None:
        """Adds an owner with its grants."""
        self.owners[owner.owner_id] = owner
        self.holder_of.update(dict.fromkeys(owner.grants, owner))
        self.mark("owner", owner.owner_id)

    def remove_owner(self, owner_id: int) -> None:
        """Removes an owner without grants and sessions."""
        del self.owners[owner_id]
        self.mark("owner", owner_id)

    def add_session(self, session: Session) -> None:
        """Adds a session, and attaches it to its owner."""
        session.owner.sessions[session.session_id] = session
        self.sessions[session.session_id] = session
        self._let_in(session, self._grants_of(session.within))
        self.mark("session", session.session_id)

    def enter(self, session: Session, tokens: Sequence[int]) -> None:
        """Puts a session inside the grants with these tokens.

        Ignores tokens that are not held, and those of other users: nobody but root may
        cause that another user's request is refused for a deadlock.
        """
        held, uid = self._grants_of(tokens), session.owner.identity.uid
        own = {x: grant for x, grant in held.items() if uid in (0, grant.owner.uid)}
        session.enter([token for token in tokens if token in own])
        self._let_in(session, own)
        self.mark("session", session.session_id)

    def inside(self, session: Session, keys: Sequence[ResourceKey]) -> Inside:
        """Returns the grants of these resources that a session is inside of."""
        within, found = set(session.within), dict[ResourceKey, tuple[int, ...]]()
        for key in keys:
            resource = self.resources.get(key)
            if resource is not None and (tokens := resource.around(within)):
                found[key] = tokens
        return found

    def _let_in(self, session: Session, grants: dict[int, Grant]) -> None:
        for grant in grants.values():
            self.owners[grant.owner_id].strand_of(grant).let_in(grant, session)

    def remove_session(self, session: Session) -> None:
        """Removes a session without requests."""
        for token, grant in self._grants_of(session.within).items():
            strand = self.owners[grant.owner_id].strand_of(grant)
            strand.let_out(token, session.session_id)
        del session.owner.sessions[session.session_id]
        del self.sessions[session.session_id]
        self.mark("session", session.session_id)

    # Resources.

    def resource(self, key: ResourceKey) -> Resource:
        """Returns a resource. Creates it if nobody holds it or waits for it."""
        resource = self.resources.get(key)
        if resource is None:
            resource = self.resources[key] = Resource(key)
        return resource

    def situation(self, key: ResourceKey) -> Situation:
        """Returns the holders and waiters of a resource. Both may be empty."""
        return (self.resources.get(key) or Resource(key)).situation()

    # Requests.

    def next_order(self) -> int:
        """Returns the order of a new request."""
        self.last_order += 1
        return self.last_order

    def add_request(self, request: Request) -> None:
        """Adds an unanswered request."""
        request.session.put(request)
        request.owner.put_request(request)
        self.waiting += 1
        self.usage.add_request(request)
        if self.changed is not None:
            self.changed.others["request", request.order] = request

    def remove_request(self, request: Request) -> None:
        """Removes an answered request."""
        request.session.remove(request)
        request.owner.remove_request(request)
        self.waiting -= 1
        self.usage.remove_request(request)
        if self.changed is not None:
            self.changed.others["request", request.order] = request

    def count_refusal(self) -> None:
        """Counts a refused request."""
        self.refused += 1

    def refusal(
        self,
        command: Acquire
        | Convert
        | Release
        | ReleaseForOwner
        | BreakGrant
        | RegisterOwner,
        code: str,
        message: str = "",
        key: ResourceKey | None = None,
        *,
        nested: bool = False,
    ) -> Refused:
        """Counts and returns the answer to a command that never becomes a request."""
        self.count_refusal()
        situation = None if key is None else self.situation(key)
        session, request = command.session, command.request
        return Refused(session, request, code, message, situation, nested=nested)

    def requests(self) -> Iterator[Request]:
        """Yields all unanswered requests."""
        return (r for s in self.sessions.values() for r in s.requests.values())

    def all_requests(self) -> list[Request]:
        """Returns the unanswered and the abandoned requests, in their order."""
        pending = (resource.pending for resource in self.resources.values())
        requests = {*self.requests(), *filter(None, pending)}
        return sorted(requests, key=lambda request: request.order)

    # Grants.

    def add_grant(
        self,
        session: Session,
        strand: int,
        key: ResourceKey,
        wish: Acquire,
        now: float,
        request: Request | None = None,
    ) -> Grant:
        """Makes a grant with the next fencing token.

        Args:
            strand: the number of the strand of this session; 0 for the whole owner.
            key: one of those that `wish` names.
            request: the request, if it is from inside.
        """
        self.last_token += 1
        self.granted += 1
        owner = session.owner
        resource = self.resource(key)
        mode, whole = wish.mode, wish.whole
        inside: tuple[int, ...] = ()
        if request is not None:
            mode, whole, inside = resource.joined_by(request)
        slot = None
        if wish.mode == SLOT:
            slot = resource.take_slot(wish, self.last_token)
        grant = Grant(
            key,
            owner.owner_id,
            owner.identity,
            session.session_id,
            mode,
            self.last_token,
            now,
            1,
            wish.label,
            wish.reason,
            strand,
            whole,
            self._notices(key, wish, now),
            slot,
            wish.slots,
            wish.slots_said_by,
            inside,
        )
        resource.holders[owner.put(grant)] = grant
        self.holder_of[self.last_token] = owner
        self.usage.add_grant(grant)
        if grant.notices is not None:
            self.heed(grant)
        if self.changed is not None:
            self.changed.grants[self.last_token] = grant
        return grant

    def put_grant(self, grant: Grant) -> None:
        """Replaces the grant with the same fencing token."""
        strand = self.owners[grant.owner_id].put(grant)
        self.resource(grant.key).holders[strand] = grant
        if self.changed is not None:
            self.changed.grants[grant.fencing_token] = grant

    def put_another(self, held: Grant, wish: Acquire, now: float) -> Grant:
        """Counts another acquire of a shared hold. Returns the grant."""
        count, whole = held.count + 1, wish.whole or held.whole
        notices = self._notices(held.key, wish, now, held.notices)
        grant = held.replace(count=count, whole=whole, notices=notices)
        self.put_grant(grant)
        if grant.notices != held.notices:
            self.heed(grant)
        return grant

    def _notices(
        self,
        key: ResourceKey,
        wish: Acquire,
        now: float,
        before: HolderNotices | None = None,
    ) -> HolderNotices | None:
        """Returns what is told of a grant. The first session that asks hears it.

        If many listen already, a grant that is new among them is not told of.
        """
        limit, own = self.lockspaces[key.lockspace].max_hold, wish.max_hold
        if limit is own is None and not wish.wanted:
            return before
        before = before or HolderNotices()
        if own is not None and before.overdue_to not in self.sessions:
            before = replace(before, overdue_to=wish.session)
        crowd = before.wanted_to is None and self.resources[key].listeners
        has_room = not crowd or len(crowd) < MAX_LISTENERS
        if wish.wanted and has_room and before.wanted_to not in self.sessions:
            before = replace(before, wanted_to=wish.session, wanted=False)
        ends = [now + seconds for seconds in (limit, own) if seconds is not None]
        if before.due is not None:
            ends.append(before.due)
        return replace(before, due=min(ends, default=None))

    def heed(self, grant: Grant) -> None:
        """Begins to watch the time of a grant, and who waits for it."""
        owner, notices = self.owners[grant.owner_id], grant.notices
        resource = self.resources[grant.key]
        if notices is not None and notices.wanted_to is not None:
            resource.listen(strand := owner.strand_of(grant))
            self.listened.setdefault(resource, []).append(strand)
        if notices is not None and notices.due is not None and not notices.overdue:
            self.deadlines.add(notices.due, -grant.fencing_token, owner)

    def look_who_is_wanted(self, resource: Resource) -> None:
        """Notes that some waiters or holders of a resource are others than before."""
        if resource.listeners:
            self.listened.setdefault(resource, [])

    def remove_grant(
        self, grant: Grant, cause: str, now: float, outcome: WorkOutcome = None
    ) -> Resource | None:
        """Ends a grant. Returns its resource, or None if nothing is left of it."""
        key, token = grant.key, grant.fencing_token
        resource = self.resources[key]
        strand = self.holder_of.pop(token).remove(token)
        del resource.holders[strand]
        if resource.listeners:
            resource.stop_listening(strand)
        if grant.slot is not None:
            resource.free_slot(grant.slot, token)
        self.ended += 1
        self.usage.remove_grant(grant)
        if self.changed is not None:
            self.changed.grants[token] = None
        self._remember(LastHolder(grant, now, cause, outcome))
        if resource.anchor is not None or not resource.is_idle:
            return resource
        del self.resources[key]
        return None

    def _remember(self, last: LastHolder) -> None:
        memory = self.last_holders
        memory[last.grant.key] = last
        memory.move_to_end(last.grant.key)
        if self.changed is not None:
            self.changed.last_holders[last.grant.key] = (self.ended, last)
        if len(memory) > MAX_LAST_HOLDERS:
            forgotten, _ = memory.popitem(last=False)
            if self.changed is not None:
                self.changed.last_holders[forgotten] = None

    def trouble(
        self, key: ResourceKey, inside: tuple[int, ...] = ()
    ) -> tuple[LastHolder, ...]:
        """Returns the last hold of a resource, if it did not end well.

        Args:
            key: the resource.
            inside: the tokens around the new grant. The outermost heard of all that
                ended before it.
        """
        last = self.last_holders.get(key)
        # The first two are almost always true, and cheaper than a call.
        if last is None or (last.outcome is None and last.cause == "released"):
            return ()
        if inside and last.grant.fencing_token < inside[0]:
            return ()
        return () if last.ended_well else (last,)

    def count_again(self) -> int:
        """Recounts the grants after a loss. Returns how many exist."""
        self.holder_of = {
            token: owner for owner in self.owners.values() for token in owner.grants
        }
        self.ended = self.granted - len(self.holder_of)
        return self.held

    def grants(self) -> Iterator[Grant]:
        """Yields all grants."""
        return (g for owner in self.owners.values() for g in owner.grants.values())

    def grant_of(self, fencing_token: int) -> Grant | None:
        """Returns the grant with a fencing token."""
        owner = self.holder_of.get(fencing_token)
        return None if owner is None else owner.grants[fencing_token]

    def _grants_of(self, tokens: Iterable[int]) -> dict[int, Grant]:
        """Returns the grants with these tokens, as far as they are held."""
        held = (token for token in tokens if token in self.holder_of)
        return {token: self.holder_of[token].grants[token] for token in held}

    def held_by(self, strand: Strand, key: ResourceKey) -> Grant | None:
        """Returns the grant of a strand at a resource."""
        resource = self.resources.get(key)
        return None if resource is None else resource.holders.get(strand)

    def must_fence(self, grant: Grant) -> bool:
        """Returns whether the holder must be dead before its lock ends."""
        lockspace = self.lockspaces[grant.key.lockspace]
        owner = self.owners[grant.owner_id]
        return "kill" in (owner.on_disconnect, lockspace.on_disconnect)
