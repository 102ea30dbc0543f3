"""The requests of a session: acquire, convert, release, cancel.

A handler returns the answer, or has `LockTable` give it now or later. An answer that is
returned comes after all other effects.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.engine.lock_state import LockState
from lockd.engine.lock_table import LockTable
from lockd.engine.resource import Resource
from lockd.engine.session import (
    NOWHERE,
    Inside,
    OwnerState,
    Request,
    Session,
    Strand,
)
from lockd.engine.waits.cycles import find_cycle_through, find_cycles
from lockd.names import quoted
from lockd.terms import EXCLUSIVE, SHARED, SLOT, Mode, ResourceKey, WorkOutcome

_MIXED = (
    "{} is held by the command that this is part of, and {} is not: ask for them one "
    "after the other"
)


class Requests:
    """Handles the commands of a session about its locks."""

    def __init__(self, state: LockState, table: LockTable) -> None:
        self._state = state
        self._table = table

    # Acquire.

    def acquire(self, command: c.Acquire, now: float) -> e.Effect | None:
        """Grants a free lock at once; any other request waits or is refused."""
        state = self._state
        session = state.sessions[command.session]
        owner = session.owner
        if owner.ended or owner.fencing or command.request in session.requests:
            return state.refusal(command, *owner.why_not)
        if command.mode == SLOT:
            slots = state.slots_of(command.keys[0]) or command.slots
            if slots is None or command.slots not in (None, slots):
                return self._other_slots(command, slots)
            said_by = state.slots_said_by(command.keys[0], owner.identity)
            command = command.replace(slots=slots, slots_said_by=said_by)
        strand = owner.whole
        if command.strand:
            strand = owner.strand((command.session, command.strand))
        if strand.held:
            for key in command.keys:
                if (held := state.held_by(strand, key)) is not None:
                    return self._acquire_again(command, strand, held, now)
        inside = NOWHERE
        if session.within:
            inside = state.inside(session, command.keys)
        if inside:
            if refused := self._why_not_inside(command, inside):
                return refused
            command = self._in_slot(command, inside)
        elif self._is_free(command.keys, command.mode, strand):
            if not state.lockspaces[command.keys[0].lockspace].anchored:
                self._table.grant(session, strand, command, now, now)
                return None
            self._table.move_up(self._new_request(session, strand, command, now), now)
            return None
        if strand.requests and (again := _waits_already(strand, command)):
            message = "another request of yours waits for it"
            return state.refusal(command, "already_held", message, again)
        request = self._new_request(session, strand, command, now, inside)
        if inside and self._let_in(request, now):
            return None
        most = command.max_waiting
        if most and (crowded := self._crowded(request, most)):
            self._table.refuse(request, "busy", now, key=crowded, max_waiting=most)
        else:
            self._wait_or_refuse(request, now)
        return None

    def _other_slots(self, command: c.Acquire, slots: int | None) -> e.Refused:
        """Refuses a request that expects another number of slots than there is."""
        state, (key,) = self._state, command.keys
        mismatch = e.Mismatch(key, command.slots, slots)
        resource = state.resources.get(key)
        if state.configured_slots(key) is not None:
            mismatch = replace(mismatch, configured="now")
        elif resource is not None and resource.slots is not None:
            owner = resource.slots.said_by
            before: Literal["before"] | None = None if owner else "before"
            mismatch = replace(mismatch, owner=owner, configured=before)
        refusal = state.refusal(command, "invalid", "", key)
        return refusal.replace(mismatch=mismatch)

    def _why_not_inside(self, command: c.Acquire, inside: Inside) -> e.Refused | None:
        """Refuses what is partly outside, or what those around do not hold so."""
        state = self._state
        for key in command.keys:
            if key not in inside:
                first, other = (quoted(str(x)) for x in (next(iter(inside)), key))
                message = _MIXED.format(first, other)
                return state.refusal(command, "invalid", message)
        for key in command.keys:
            resource = state.resources[key]
            if not resource.covers(command):
                whole = resource.mode in (EXCLUSIVE, command.mode)
                whole = whole and command.mode != SLOT
                message = "its file is not locked whole" if whole else ""
                return state.refusal(command, "already_held", message, key, nested=True)
        return None

    def _in_slot(self, command: c.Acquire, inside: Inside) -> c.Acquire:
        """Returns a command with the slot that it is inside of, if it wants one."""
        if command.mode != SLOT:
            return command
        (key,) = command.keys
        slot = self._state.resources[key].slot_inside(inside[key])
        return command.replace(slot=slot)

    def _let_in(self, request: Request, now: float) -> bool:
        """Grants a request from inside, unless it has to wait."""
        resources = [self._state.resources[key] for key in request.keys]
        if not all(resource.lets_pass(request) for resource in resources):
            return False
        if cycle := self._cycle_if_let_in(request, resources):
            self._table.refuse(request, "deadlock", now, cycle=cycle)
        else:
            self._table.move_up(request, now)
        return True

    def _cycle_if_let_in(
        self, request: Request, resources: list[Resource]
    ) -> tuple[e.WaitEdge, ...]:
        """Returns the cycle that an immediate grant would close.

        Those in line waited for the grant around it, and now wait for its strand too.
        """
        strand = request.strand
        if len(strand.requests) < 2 and not strand.insiders:
            return ()
        for resource in resources:
            resource.enqueue(request)
        cycle = find_cycle_through(strand, self._state.resources, but=request)
        for resource in resources:
            resource.dequeue(request)
        return cycle

    def _is_free(
        self, keys: tuple[ResourceKey, ...], mode: Mode, strand: Strand
    ) -> bool:
        for key in keys:
            resource = self._state.resources.get(key)
            if resource is not None and (
                resource.has_outer_line or not resource.admits(mode, strand)
            ):
                return False
        return True

    def _crowded(self, request: Request, most: int) -> ResourceKey | None:
        """Returns the resource with the longest line, if `most` or more wait there."""
        found = filter(None, map(self._state.resources.get, request.keys))
        longest = max(found, key=lambda resource: resource.count_before(request))
        return longest.key if longest.count_before(request) >= most else None

    def _acquire_again(
        self, command: c.Acquire, strand: Strand, held: e.Grant, now: float
    ) -> e.Effect | None:
        """Counts another acquire of a shared hold; refuses everything else."""
        if command.whole > held.whole:
            message = "its file is not locked whole"
            return self._state.refusal(command, "already_held", message, held.key)
        # Inside, it may hold exclusively what it asked for shared.
        if (
            command.mode == SHARED
            and (held.mode == SHARED or held.inside)
            and command.keys == (held.key,)
            and strand.convert_of(held.key) is None
        ):
            grant = self._state.put_another(held, command, now)
            # Before it hears whether somebody waits.
            granted = e.Granted(command.session, command.request, (grant,))
            self._table.tell(granted)
            return None
        return self._state.refusal(command, "already_held", "", held.key)

    def _new_request(
        self,
        session: Session,
        strand: Strand,
        command: c.Acquire,
        now: float,
        inside: Inside = NOWHERE,
    ) -> Request:
        order = self._state.next_order()
        request = Request(session, strand, order, command, now, inside=inside)
        self._state.add_request(request)
        return request

    def _wait_or_refuse(self, request: Request, now: float) -> None:
        if request.tries:
            self._table.refuse(request, "busy", now)
        else:
            self._table.wait(request, now)

    # Convert.

    def convert(self, command: c.Convert, now: float) -> e.Effect | None:
        """Changes the mode of a held lock, at once or when other holders allow it."""
        session = self._state.sessions[command.session]
        owner = session.owner
        if owner.ended or owner.fencing or command.request in session.requests:
            return self._state.refusal(command, *owner.why_not)
        if command.key is not None:
            held = self._state.held_by(owner.whole, command.key)
            if held is None:
                return self._state.refusal(command, "not_held", "", command.key)
        else:
            held = owner.grants.get(command.fencing_token or 0)
            if held is None:
                return self._unknown_token(command)
        if SLOT in (held.mode, command.mode):
            message = "a lock cannot be converted from or to a slot: release it first"
            return self._state.refusal(command, "invalid", message)
        if held.count > 1:
            message = f"it is held {held.count} times"
            return self._state.refusal(command, "in_use", message, held.key)
        strand = owner.strand_of(held)
        if any(strand.waits_for(held.key)):
            message = "another request of yours waits for it"
            return self._state.refusal(command, "already_held", message, held.key)
        resource = self._state.resources[held.key]
        around = held.inside and resource.around(held.inside)
        # Inside, it keeps the mode of what is around it, which covers a shared one.
        if held.mode == command.mode or (around and command.mode == SHARED):
            return e.Granted(command.session, command.request, (held,), converted=True)
        if around:
            key = held.key
            return self._state.refusal(command, "already_held", "", key, nested=True)
        alone = len(resource.holders) == 1 and resource.pending is None
        if not alone and resource.has_inside(held):
            return self._state.refusal(command, "in_use", "", held.key, nested=True)
        if held.whole and command.mode == EXCLUSIVE:
            # flock(2) drops the old lock before it takes the new one.
            message = "a file that is locked whole cannot be upgraded: release it first"
            return self._state.refusal(command, "invalid", message)
        request = self._new_convert(session, strand, held.key, command, now)
        self._start_convert(request, held, now)
        return None

    def _unknown_token(self, command: c.Convert | c.Release) -> e.Refused:
        message = f"you hold no lock with the fencing token {command.fencing_token}"
        return self._state.refusal(command, "not_held", message)

    def _new_convert(
        self,
        session: Session,
        strand: Strand,
        key: ResourceKey,
        command: c.Convert,
        now: float,
    ) -> Request:
        timeout = None if command.mode == SHARED else command.timeout
        wish = c.Acquire(
            command.session, command.request, (key,), command.mode, timeout
        )
        order = self._state.next_order()
        request = Request(session, strand, order, wish, now, converting=True)
        self._state.add_request(request)
        return request

    def _start_convert(self, request: Request, held: e.Grant, now: float) -> None:
        if not self._state.resources[held.key].lets_pass(request):
            self._wait_or_refuse(request, now)
        elif cycle := self._cycle_if_raised(request, held):
            self._table.refuse(request, "deadlock", now, cycle=cycle)
        else:
            self._table.move_up(request, now)

    def _cycle_if_raised(
        self, request: Request, held: e.Grant
    ) -> tuple[e.WaitEdge, ...]:
        """Returns the cycle that an immediate upgrade would close.

        A waiter for several resources may be compatible with the shared hold and wait
        elsewhere. It would then have to wait for the exclusive one.
        """
        strand = request.strand
        if request.mode == SHARED or not (len(strand.requests) > 1 or strand.insiders):
            return ()
        self._state.put_grant(held.replace(mode=EXCLUSIVE))
        cycle = find_cycle_through(strand, self._state.resources, but=request)
        self._state.put_grant(held)
        return cycle

    # Slots.

    def change_slots(self, lockspace: str, now: float) -> None:
        """Gives the resources of a lockspace as many slots as are configured now.

        Nobody loses a slot. But a request that waited for any of several slots may now
        wait for one that never becomes free: then it is refused.
        """
        fewer: list[Request] = []
        for key, resource in self._state.resources.items():
            if resource.slots is None or key.lockspace != lockspace:
                continue
            count, before = self._state.configured_slots(key), resource.slots.count
            if count is None or count == before:
                continue
            self._state.change_slots(resource, count)
            self._table.look_again(resource)
            if count < before:
                fewer += resource.wanting_slots()
        # After all have changed: a resource with more slots may free one with fewer.
        for request, cycle in find_cycles(fewer, self._state.resources):
            self._table.refuse(request, "deadlock", now, cycle=cycle)

    # Release, cancel.

    def release(self, command: c.Release, now: float) -> e.Effect:
        """Releases the locks that are named and held; refuses if one is not held."""
        state = self._state
        owner = state.sessions[command.session].owner
        missing = None
        if command.fencing_token is not None:
            held = owner.grants.get(command.fencing_token)
            if held is None:
                return self._unknown_token(command)
            self._release_one(owner, held, now, command.outcome)
        for key in command.keys:
            held = state.held_by(owner.whole, key)
            if held is None:
                missing = key
            else:
                self._release_one(owner, held, now, command.outcome)
        if missing is not None:
            return self._state.refusal(command, "not_held", "", missing)
        return e.Completed(command.session, command.request)

    def _release_one(
        self, owner: OwnerState, held: e.Grant, now: float, outcome: WorkOutcome
    ) -> None:
        if held.count > 1:
            self._state.put_grant(held.replace(count=held.count - 1))
            return
        resource = self._state.resources[held.key]
        if resource.converting or resource.pending is not None:
            self._table.give_up_convert(owner.strand_of(held), held.key, now)
        self._table.end(held, "released", now, outcome)

    def cancel(self, command: c.Cancel, now: float) -> e.Effect:
        """Refuses a waiting request, unless it converts to shared."""
        request = self._state.sessions[command.session].requests.get(command.target)
        if request is not None and not request.goes_down:
            self._table.refuse(request, "cancelled", now)
        return e.Completed(command.session, command.request)


def _waits_already(strand: Strand, command: c.Acquire) -> ResourceKey | None:
    """Returns a resource for which the strand waits, not both times shared."""
    for key in command.keys:
        for other in strand.waits_for(key):
            if not command.mode == other.mode == SHARED:
                return key
    return None
