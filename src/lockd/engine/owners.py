"""Sessions and owners: how they begin and end, and what happens to their locks.

An owner ends with its own session, or with its process. If one of its locks requires
fencing (`LockState.must_fence`), the engine asks for `Fence` and keeps these grants
until `OwnerFenced`.

A handler returns its answer to the sender of the command, if the command has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from msgspec.structs import replace

from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.engine.lock_state import LockState
from lockd.engine.lock_table import LockTable
from lockd.engine.resource import Resource, Seekers, compatible
from lockd.engine.session import OWNER_IS_DEAD, OwnerState, Request, Session, Strand
from lockd.terms import SHARED


class Owners:
    """Handles the commands about sessions and owners."""

    def __init__(self, state: LockState, table: LockTable) -> None:
        self._state = state
        self._table = table

    # Beginning.

    def open_session(self, command: c.OpenSession, now: float) -> None:
        """Adds a session with an owner of its own."""
        owner = OwnerState(command.session, command.owner)
        self._state.add_owner(owner)
        self._state.add_session(Session(command.session, owner))

    def register_owner(self, command: c.RegisterOwner, now: float) -> e.Effect:
        """Sets the owner for whom a session acts."""
        session = self._state.sessions[command.session]
        owner = session.owner
        if session.registered or owner.grants or session.requests:
            message = "register an owner once, before the first lock"
            return self._state.refusal(command, "invalid", message)
        if command.owner_id != owner.owner_id:
            owner = self._join_process(session, command)
        session.register(owner)
        owner.introduce(command)
        self._state.mark("session", session.session_id)
        self._state.mark("owner", owner.owner_id)
        return e.Completed(command.session, command.request)

    def _join_process(self, session: Session, command: c.RegisterOwner) -> OwnerState:
        """Returns the owner of a process, and removes the session's own."""
        self._state.remove_owner(session.session_id)
        owner = self._state.owners.get(command.owner_id)
        if owner is None:
            owner = OwnerState(command.owner_id, command.owner, is_process=True)
            self._state.add_owner(owner)
        owner.sessions[session.session_id] = session
        return owner

    def enter_grants(self, command: c.EnterGrants, now: float) -> None:
        """Puts a session inside grants, whose holders wait for its end."""
        self._state.enter(self._state.sessions[command.session], command.tokens)

    # Ending.

    def close_session(self, command: c.CloseSession, now: float) -> None:
        """Removes a session, and ends what depends on it."""
        session = self._state.sessions[command.session]
        owner = session.owner
        for request in list(session.requests.values()):
            self._table.answered(request)
        self._state.remove_session(session)
        if not owner.is_process:
            self._end_or_fence(owner, now)
        elif owner.ended and owner.fencing is None:
            self._end_all(owner, "owner_died", now)
        else:
            self._forget_if_idle(owner)

    def disconnect_owner(self, command: c.DisconnectOwner, now: float) -> None:
        """Ends the grants of a process that closed its own session; may fence it."""
        owner = self._state.owners[command.owner_id]
        self._end_or_fence(owner, now)
        # Other sessions may act for it while its process lives.
        owner.end(ended=owner.fencing is not None)

    def end_owner(self, command: c.EndOwner, now: float) -> None:
        """Ends the grants of a dead process."""
        self._end_all(self._state.owners[command.owner_id], "owner_died", now)

    def owner_fenced(self, command: c.OwnerFenced, now: float) -> None:
        """Ends the grants of a process that was fenced and is dead now."""
        owner = self._state.owners.get(command.owner_id)
        # It may have released everything and disconnected before its process was dead.
        if owner is not None:
            self._end_all(owner, owner.fencing or "owner_died", now)

    def _end_or_fence(self, owner: OwnerState, now: float) -> None:
        """Ends an owner whose process may live; fences it if a lock requires that."""
        self._refuse_waiting(owner, now, "cancelled", "its owner's own session ended")
        for grant in list(owner.grants.values()):
            if not self._state.must_fence(grant):
                self._lose(grant, "disconnected", now)
        if owner.grants:
            self._fence(owner, "disconnected")
        self._forget_if_idle(owner)

    def _end_all(self, owner: OwnerState, cause: str, now: float) -> None:
        """Ends the grants of an owner whose process is dead, unless they linger."""
        self._refuse_waiting(owner, now, *OWNER_IS_DEAD)
        if owner.lingers and cause == "owner_died":
            return
        for grant in list(owner.grants.values()):
            self._lose(grant, cause, now)
        self._forget_if_idle(owner)

    def _refuse_waiting(
        self, owner: OwnerState, now: float, code: str, message: str
    ) -> None:
        """Refuses the waiting requests of an owner that has ended, and later ones."""
        owner.end()
        self._state.mark("owner", owner.owner_id)
        for request in owner.waiting():
            self._table.refuse(request, code, now, message=message)

    def _fence(self, owner: OwnerState, cause: str) -> None:
        if owner.fencing is None:
            owner.fence(cause)
            self._state.mark("owner", owner.owner_id)
            self._table.tell(e.Fence(owner.owner_id, owner.identity))

    def _lose(self, grant: e.Grant, cause: str, now: float) -> None:
        """Ends a grant. Tells the session that acquired it, unless it already knows."""
        if self._state.owners[grant.owner_id].fencing != "broken":
            self._tell_lost(grant, cause)
        self._table.end(grant, cause, now)

    def _tell_lost(self, grant: e.Grant, cause: str, reason: str | None = None) -> None:
        if grant.session in self._state.sessions:
            self._table.tell(e.Lost(grant.session, grant, cause, reason))

    def _forget_if_idle(self, owner: OwnerState) -> None:
        if owner.sessions or owner.grants:
            return
        self._state.remove_owner(owner.owner_id)
        if owner.is_process:
            self._table.tell(e.ForgetOwner(owner.owner_id))

    # Holders that listen.

    def tell_wanted(self) -> Iterator[e.Wanted | e.Unwanted]:
        """Tells holders that somebody waits for them, or that nobody does any more."""
        for resource, new in self._state.listened.items():
            seekers = _seekers(resource)
            for strand in resource.to_tell(seekers, new):
                wanted = _is_sought(resource, strand, seekers)
                yield from self._tell_one(resource, strand, wanted)
        self._state.listened.clear()

    def _tell_one(
        self, resource: Resource, strand: Strand, wanted: bool
    ) -> Iterator[e.Wanted | e.Unwanted]:
        grant = resource.holders[strand]
        notices = grant.notices
        if notices is None or notices.wanted is wanted:
            return
        grant = grant.replace(notices=replace(notices, wanted=wanted))
        self._state.put_grant(grant)
        session, count = notices.wanted_to, resource.line_length()
        if session in self._state.sessions:
            yield (e.Wanted if wanted else e.Unwanted)(session, grant, count)

    # Others than the holder: its user, an admin, a successor of the daemon.

    def release_for_owner(self, command: c.ReleaseForOwner, now: float) -> e.Effect:
        """Releases a grant of a process for which no session acts.

        While a session acts for it, only such a session may release it. If lockd kills
        the process, the grant ends with its death, not before.
        """
        token = command.fencing_token
        grant = self._state.grant_of(token)
        if grant is None:
            message = f"you hold no lock with the fencing token {token}"
            return self._state.refusal(command, "not_held", message)
        owner = self._state.owners[grant.owner_id]
        if owner.sessions or owner.fencing is not None:
            message = "its holder uses it: end that, or take it with `lockctl break`"
            return self._state.refusal(command, "denied", message, grant.key)
        if grant.count > 1:
            self._state.put_grant(grant.replace(count=grant.count - 1))
        else:
            self._table.end(grant, "released", now, command.outcome)
            self._forget_if_idle(owner)
        return e.Completed(command.session, command.request)

    def break_grant(self, command: c.BreakGrant, now: float) -> e.Effect:
        """Takes a grant from its holder.

        Fences the holder first if the lock requires that.
        """
        token = command.fencing_token
        grant = self._state.grant_of(token)
        if grant is None:
            told = "`lockctl show NAME` prints the token of a lock"
            message = f"no lock has the fencing token {token}: {told}"
            return self._state.refusal(command, "not_found", message)
        owner = self._state.owners[grant.owner_id]
        self._table.give_up_convert(owner.strand_of(grant), grant.key, now)
        if command.fence and self._state.must_fence(grant):
            # All its other grants end with the process.
            for doomed in list(owner.grants.values()) if owner.fencing is None else ():
                self._tell_lost(doomed, "broken", command.reason)
            self._fence(owner, "broken")
        else:
            if owner.fencing != "broken":
                self._tell_lost(grant, "broken", command.reason)
            self._table.end(grant, "broken", now)
            self._forget_if_idle(owner)
        return e.Completed(command.session, command.request)

    def fence_again(self) -> None:
        """Asks again for the death of every process that is being killed."""
        for owner in self._state.owners.values():
            if owner.fencing is not None and owner.grants:
                self._table.tell(e.Fence(owner.owner_id, owner.identity))


def _seekers(resource: Resource) -> Seekers:
    """Returns who waits until holders release it: a strand, and those inside.

    A holder that wants another mode waits for all others. One that is no holder waits
    for each of them, and so do two holders: None stands for these. A holder that shares
    has nobody in `waiting` who excludes it.
    """
    mode, found, waiting = resource.mode, dict[Strand, None](), resource.waiting
    if mode is None:
        return ()
    if mode == SHARED and len(waiting) > resource.sharing:
        return (None,)
    for request in chain(resource.converting, () if mode == SHARED else waiting):
        if not compatible(mode, request.mode):
            found[request.strand] = None
            if len(found) > 1 or request.strand not in resource.holders:
                return (None,)
    in_slots = resource.slots.queued() if resource.slots else ()
    inner = (x for x in resource.inner if not compatible(mode, x.mode))
    return (*found, *inner, *in_slots)


def _is_sought(resource: Resource, strand: Strand, seekers: Seekers) -> bool:
    """Returns whether one of the seekers waits until a strand releases a resource."""
    return any(
        seeker.strand is not strand and _is_apart(resource, seeker, strand)
        if isinstance(seeker, Request)
        else seeker is not strand
        for seeker in seekers
    )


def _is_apart(resource: Resource, request: Request, strand: Strand) -> bool:
    """Returns whether a request from inside waits for what a strand holds."""
    slot = request.wish.slot
    if slot not in (None, resource.holders[strand].slot):
        return False
    return not resource.is_inside(request, strand)
