"""The state of the engine: who holds what, and how a grant is entered and ended."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from lockd.engine.changes import Changes, Kind
from lockd.engine.commands import AddLockspace
from lockd.engine.deadlines import Deadlines
from lockd.engine.effects import Effect, Ended, Grant, LastHolder, Situation
from lockd.engine.resource import Resource
from lockd.engine.session import OwnerState, Request, Session, claim_of
from lockd.engine.tally import Tally
from lockd.engine.texts import PLAIN, Texts
from lockd.terms import ResourceKey

MAX_LAST_HOLDERS: Final = 1024
"""How many resources are remembered with their last holder (protocol 7.4)."""


class LockState:
    """All that the engine knows.

    Args:
        last_token: every fencing token will be greater than this.
    """

    def __init__(self, last_token: int = 0) -> None:
        self.last_token = last_token
        #: The turn of the youngest request.
        self.last_order = 0
        #: Grants that were made, requests that were refused, grants that ended.
        self.granted = self.refused = self.ended = 0
        self.waiting = 0
        #: How many grants, and how many unanswered requests, a uid has. The grants that
        #: a request for several waits for are among them: nothing is asked when they
        #: come, and there may be more of them than of requests.
        self.held_by_user, self.waiting_by_user = Tally(), Tally()
        #: How many bytes both of them say.
        self.text_by_user = Texts()
        self.lockspaces: dict[str, AddLockspace] = {}
        self.resources: dict[ResourceKey, Resource] = {}
        self.owners: dict[int, OwnerState] = {}
        self.sessions: dict[int, Session] = {}
        self.last_holders: OrderedDict[ResourceKey, LastHolder] = OrderedDict()
        self._deadlines = Deadlines()
        self._unsettled: list[Resource] = []
        #: What changed and was not yet told; None if nobody wants to know.
        self.changed: Changes | None = None
        self._effects: list[Effect] = []

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} sessions={len(self.sessions)} "
            f"owners={len(self.owners)} resources={len(self.resources)} "
            f"waiting={self.waiting} last_token={self.last_token}>"
        )

    @property
    def held(self) -> int:
        """How many grants there are."""
        return self.granted - self.ended

    # What others ask.

    def situation(self, key: ResourceKey) -> Situation:
        """Describes who holds a resource and who waits, also if nobody does."""
        return (self.resources.get(key) or Resource(key)).situation()

    def holds(self, key: ResourceKey, fencing_token: int) -> bool:
        """Tells whether a grant is still held."""
        resource = self.resources.get(key)
        holders = resource.holders.values() if resource else ()
        return any(grant.fencing_token == fencing_token for grant in holders)

    def grant_of(self, fencing_token: int) -> Grant | None:
        """Finds a grant by its fencing token."""
        owners = self.owners.values()
        found = (owner.grants.get(fencing_token) for owner in owners)
        return next(filter(None, found), None)

    def _touch(self, kind: Kind, name: str | int, thing: Request | None = None) -> None:
        """Notes that something is new, other or gone, where speed is no matter."""
        if self.changed is not None:
            self.changed[kind, name] = thing

    # Grants.

    def _put(self, grant: Grant) -> None:
        """Enters a grant, or exchanges it for another state of it."""
        self._resource(grant.key).holders[grant.owner_id] = grant
        owner = self.owners[grant.owner_id]
        before = owner.grants.get(grant.fencing_token)
        owner.claims ^= claim_of(grant) ^ (claim_of(before) if before else 0)
        owner.grants[grant.fencing_token] = grant
        if self.changed is not None:
            self.changed["grant", grant.fencing_token] = grant

    def _held(self, owner: OwnerState, key: ResourceKey) -> Grant | None:
        resource = self.resources.get(key)
        return None if resource is None else resource.holders.get(owner.owner_id)

    def _resource(self, key: ResourceKey) -> Resource:
        resource = self.resources.get(key)
        if resource is None:
            resource = self.resources[key] = Resource(key)
        return resource

    def _end(self, grant: Grant, cause: str, now: float) -> None:
        """Ends a grant; a convert that waits for it must be answered before."""
        resource = self.resources[grant.key]
        del resource.holders[grant.owner_id]
        owner = self.owners[grant.owner_id]
        owner.claims ^= claim_of(owner.grants.pop(grant.fencing_token))
        self.ended += 1
        self.held_by_user.remove(grant.owner.uid)
        label, reason = grant.label, grant.reason
        if label is not None or reason is not None or len(grant.key.resource) > PLAIN:
            self.text_by_user.drop(grant.owner.uid, (grant.key,), label, reason)
        if self.changed is not None:
            self.changed["grant", grant.fencing_token] = None
        self._remember(LastHolder(grant, now, cause))
        self._effects.append(Ended(grant, cause))
        if resource.has_line or resource.anchor is not None:
            self._unsettled.append(resource)
        elif not resource.holders:
            del self.resources[grant.key]

    def _remember(self, last: LastHolder) -> None:
        memory = self.last_holders
        memory[last.grant.key] = last
        memory.move_to_end(last.grant.key)
        if self.changed is not None:
            self.changed["last", last.grant.key] = (self.ended, last)
        if len(memory) > MAX_LAST_HOLDERS:
            forgotten, _ = memory.popitem(last=False)
            if self.changed is not None:
                self.changed["last", forgotten] = None
