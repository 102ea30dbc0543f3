"""The one door of the engine: `LockEngine.handle(command, now=...)`.

Each command has one handler here; what the handlers do to the table is in
`lock_table`, and the laws that hold between two commands are in `invariants`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.engine.lock_table import TRY_PATIENCE, LockTable
from lockd.engine.session import OWNER_IS_DEAD, OwnerState, Request, Session
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey


class LockEngine(LockTable):
    """The lock table of one daemon, and all that can happen to it."""

    def __init__(self, last_token: int = 0) -> None:
        super().__init__(last_token)
        self._answer: e.Effect | None = None
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            c.AddLockspace: self._add_lockspace,
            c.OpenSession: self._open_session,
            c.RegisterOwner: self._register_owner,
            c.CloseSession: self._close_session,
            c.DisconnectOwner: self._disconnect_owner,
            c.EndOwner: self._end_owner_process,
            c.OwnerFenced: self._owner_fenced,
            c.Acquire: self._acquire,
            c.Convert: self._convert,
            c.Release: self._release,
            c.Cancel: self._cancel,
            c.BreakGrant: self._break_grant,
            c.AnchorOpened: self._anchor_opened,
            c.AnchorRefused: self._anchor_refused,
            c.AnchorDelayed: self._anchor_delayed,
            c.Resume: self._resume,
            c.Tick: self._tick,
        }

    def handle(self, command: c.Command, *, now: float) -> list[e.Effect]:
        """Takes in what happened; returns what is to be done, in that order.

        Args:
            command: must name lockspaces, sessions and owners that exist.
            now: seconds of a clock that never goes back.

        You must carry out every effect, and answer each `OpenAnchor` and `Fence` with
        a command of its own. A request is answered by exactly one `Granted`, `Refused`
        or `Completed`, now or in the effects of a later command.
        """
        self._handlers[type(command)](command, now)
        if self._unsettled:
            self._settle_all(now)
        if self._answer is not None:
            self._effects.append(self._answer)
            self._answer = None
        effects, self._effects = self._effects, []
        return effects

    # Answers to the sender of a command come after all other effects.

    def _complete(self, command: c.Release | c.Cancel | c.BreakGrant) -> None:
        self._answer = e.Completed(command.session, command.request)

    def _refuse(
        self,
        command: c.Acquire | c.Convert | c.Release | c.BreakGrant | c.RegisterOwner,
        code: str,
        message: str = "",
        key: ResourceKey | None = None,
    ) -> None:
        self.refused += 1
        situation = None if key is None else self.situation(key)
        self._answer = e.Refused(
            command.session, command.request, code, message, situation
        )

    # Sessions and owners.

    def _add_lockspace(self, command: c.AddLockspace, now: float) -> None:
        self.lockspaces[command.name] = command
        self._touch("lockspace", command.name)

    def _open_session(self, command: c.OpenSession, now: float) -> None:
        owner = OwnerState(command.session, command.owner)
        session = Session(command.session, owner)
        owner.sessions[command.session] = session
        self.owners[command.session] = owner
        self.sessions[command.session] = session
        self._touch("owner", command.session)
        self._touch("session", command.session)

    def _register_owner(self, command: c.RegisterOwner, now: float) -> None:
        session = self.sessions[command.session]
        owner = session.owner
        if session.registered or owner.grants or session.requests:
            message = "an owner is registered once, before the first lock"
            return self._refuse(command, "invalid", message)
        if command.owner_id != owner.owner_id:
            owner = self._join_process(session, command)
        session.registered = True
        owner.introduce(command)
        self._touch("session", session.session_id)
        self._touch("owner", owner.owner_id)
        self._answer = e.Completed(command.session, command.request)
        return None

    def _join_process(self, session: Session, command: c.RegisterOwner) -> OwnerState:
        del self.owners[session.session_id]
        self._touch("owner", session.session_id)
        owner = self.owners.get(command.owner_id)
        if owner is None:
            owner = OwnerState(command.owner_id, command.owner, is_process=True)
            self.owners[command.owner_id] = owner
        owner.sessions[session.session_id] = session
        session.owner = owner
        return owner

    def _close_session(self, command: c.CloseSession, now: float) -> None:
        session = self.sessions.pop(command.session)
        self._touch("session", command.session)
        owner = session.owner
        for request in list(session.requests.values()):
            self._answered(request)
        del owner.sessions[session.session_id]
        if not owner.is_process:
            self._end_owner(owner, now)
        elif owner.ended and owner.fencing is None:
            self._release_all(owner, "owner_died", now)
        else:
            self._forget_if_idle(owner)

    def _end_owner(self, owner: OwnerState, now: float) -> None:
        """Ends an owner whose process may live: fenced first where that is asked."""
        self._refuse_waiting(owner, now, "cancelled", "its owner's own session ended")
        for grant in list(owner.grants.values()):
            if not self.must_fence(grant):
                self._lose(grant, "disconnected", now)
        if owner.grants:
            self._fence(owner, "disconnected")
        self._forget_if_idle(owner)

    def _disconnect_owner(self, command: c.DisconnectOwner, now: float) -> None:
        owner = self.owners[command.owner_id]
        self._end_owner(owner, now)
        # Others may act for it while its process lives.
        owner.ended = owner.fencing is not None

    def _end_owner_process(self, command: c.EndOwner, now: float) -> None:
        self._release_all(self.owners[command.owner_id], "owner_died", now)

    def must_fence(self, grant: e.Grant) -> bool:
        """Tells whether the holder is dead before the lock is taken from it."""
        lockspace = self.lockspaces[grant.key.lockspace]
        owner = self.owners[grant.owner_id]
        return "kill" in (owner.on_disconnect, lockspace.on_disconnect)

    def _fence(self, owner: OwnerState, cause: str) -> None:
        if owner.fencing is None:
            owner.fencing = cause
            self._touch("owner", owner.owner_id)
            self._effects.append(e.Fence(owner.owner_id, owner.identity))

    def _owner_fenced(self, command: c.OwnerFenced, now: float) -> None:
        owner = self.owners.get(command.owner_id)
        # It may have released everything and gone before its process was dead.
        if owner is not None:
            self._release_all(owner, owner.fencing or "owner_died", now)

    def _release_all(self, owner: OwnerState, cause: str, now: float) -> None:
        """Ends all grants of an owner whose process is dead, unless they linger."""
        self._refuse_waiting(owner, now, *OWNER_IS_DEAD)
        if owner.lingers and cause == "owner_died":
            return
        for grant in list(owner.grants.values()):
            self._lose(grant, cause, now)
        self._forget_if_idle(owner)

    def _refuse_waiting(
        self, owner: OwnerState, now: float, code: str, message: str
    ) -> None:
        """Refuses what waits for an owner that has ended, and all that will come."""
        owner.ended = True
        self._touch("owner", owner.owner_id)
        for request in owner.waiting():
            self._refuse_request(request, code, now, message=message)

    def _lose(self, grant: e.Grant, cause: str, now: float) -> None:
        """Ends a grant, and tells the session that acquired it, unless it was told."""
        if self.owners[grant.owner_id].fencing != "broken":
            self._tell_lost(grant, cause)
        self._end(grant, cause, now)

    def _tell_lost(self, grant: e.Grant, cause: str, reason: str | None = None) -> None:
        if grant.session in self.sessions:
            self._effects.append(e.Lost(grant.session, grant, cause, reason))

    def _forget_if_idle(self, owner: OwnerState) -> None:
        if owner.sessions or owner.grants:
            return
        del self.owners[owner.owner_id]
        self._touch("owner", owner.owner_id)
        if owner.is_process:
            self._effects.append(e.ForgetOwner(owner.owner_id))

    # Acquire.

    def _acquire(self, command: c.Acquire, now: float) -> None:
        session = self.sessions[command.session]
        owner = session.owner
        if owner.ended or owner.fencing or command.request in session.requests:
            return self._refuse(command, *owner.why_not)
        for key in command.keys:
            if owner.grants and (held := self._held(owner, key)) is not None:
                return self._acquire_again(command, held)
        if self._is_free(command.keys, command.mode, owner):
            if not self.lockspaces[command.keys[0].lockspace].anchored:
                return self._grant(
                    session,
                    command.request,
                    command.keys,
                    command.mode,
                    now,
                    now,
                    command.label,
                    command.reason,
                )
            return self._move_up(self._new_request(session, command, now), now)
        if owner.waiting_count and (again := self._waits_already(owner, command)):
            message = "this owner waits for it already"
            return self._refuse(command, "already_held", message, again)
        request = self._new_request(session, command, now)
        if request.tries:
            return self._refuse_request(request, "busy", now)
        return self._wait(request, now)

    def _is_free(
        self, keys: tuple[ResourceKey, ...], mode: Mode, owner: OwnerState
    ) -> bool:
        for key in keys:
            resource = self.resources.get(key)
            if resource is not None and (
                resource.has_line or not resource.admits(mode, owner.owner_id)
            ):
                return False
        return True

    def _acquire_again(self, command: c.Acquire, held: e.Grant) -> None:
        """Counts a shared hold that is asked for again; refuses anything else."""
        owner = self.owners[held.owner_id]
        if (
            command.mode == held.mode == SHARED
            and command.keys == (held.key,)
            and not self._converting(owner, held.key)
        ):
            grant = replace(held, count=held.count + 1)
            self._put(grant)
            self._answer = e.Granted(command.session, command.request, (grant,))
        else:
            self._refuse(command, "already_held", "", held.key)

    def _waits_already(
        self, owner: OwnerState, command: c.Acquire
    ) -> ResourceKey | None:
        for key in command.keys:
            for other in self.resources[key].line() if key in self.resources else ():
                if other.owner is owner and not command.mode == other.mode == SHARED:
                    return key
        return None

    def _new_request(self, session: Session, command: c.Acquire, now: float) -> Request:
        self.last_order += 1
        request = Request(
            session,
            command.request,
            self.last_order,
            command.keys,
            command.mode,
            now,
            command.timeout,
            create=command.create,
            label=command.label,
            reason=command.reason,
        )
        self._track(request)
        return request

    # Convert.

    def _convert(self, command: c.Convert, now: float) -> None:
        session = self.sessions[command.session]
        owner = session.owner
        held = self._held(owner, command.key)
        if owner.ended or owner.fencing or command.request in session.requests:
            return self._refuse(command, *owner.why_not)
        if held is None:
            return self._refuse(command, "not_held", "", command.key)
        if held.count > 1:
            message = f"it is held {held.count} times"
            return self._refuse(command, "in_use", message, command.key)
        line = self.resources[command.key].line()
        if any(other.owner is owner for other in line):
            message = "another request of this owner waits for it"
            return self._refuse(command, "already_held", message, command.key)
        if held.mode == command.mode:
            self._answer = e.Granted(
                command.session, command.request, (held,), converted=True
            )
            return None
        return self._start_convert(self._new_convert(session, command, now), held, now)

    def _new_convert(self, session: Session, command: c.Convert, now: float) -> Request:
        self.last_order += 1
        request = Request(
            session,
            command.request,
            self.last_order,
            (command.key,),
            command.mode,
            now,
            None if command.mode == SHARED else command.timeout,
            converting=True,
        )
        self._track(request)
        return request

    def _start_convert(self, request: Request, held: e.Grant, now: float) -> None:
        resource = self.resources[held.key]
        if not self._lets_pass(resource, request):
            if request.tries:
                return self._refuse_request(request, "busy", now)
            return self._wait(request, now)
        if cycle := self._cycle_if_raised(request, held):
            return self._refuse_request(request, "deadlock", now, cycle=cycle)
        return self._move_up(request, now)

    def _cycle_if_raised(self, request: Request, held: e.Grant) -> tuple[e.Wait, ...]:
        """Looks for a cycle that an upgrade would close although it need not wait.

        A waiter for several resources may be compatible with the shared hold and wait
        elsewhere; the exclusive one would then be waited for by it.
        """
        others = [r for r in request.owner.waiting() if r is not request]
        if not others or request.mode == SHARED:
            return ()
        self._put(replace(held, mode=EXCLUSIVE))
        cycle = self._cycle_of(others)
        self._put(held)
        return cycle

    def _converting(self, owner: OwnerState, key: ResourceKey) -> Request | None:
        resource = self.resources[key]
        if not resource.converting and resource.pending is None:
            return None
        for request in resource.line():
            if request.converting and request.owner is owner:
                return request
        return None

    # Release, cancel, break.

    def _release(self, command: c.Release, now: float) -> None:
        owner = self.sessions[command.session].owner
        missing = None
        if command.fencing_token is not None:
            held = owner.grants.get(command.fencing_token)
            if held is None:
                message = f"no lock is held with fencing token {command.fencing_token}"
                return self._refuse(command, "not_held", message)
            self._release_one(owner, held, now)
        for key in command.keys:
            held = self._held(owner, key)
            if held is None:
                missing = key
            else:
                self._release_one(owner, held, now)
        if missing is not None:
            return self._refuse(command, "not_held", "", missing)
        return self._complete(command)

    def _release_one(self, owner: OwnerState, held: e.Grant, now: float) -> None:
        if held.count > 1:
            self._put(replace(held, count=held.count - 1))
            return
        self._give_up_convert(owner, held.key, now)
        self._end(held, "released", now)

    def _give_up_convert(self, owner: OwnerState, key: ResourceKey, now: float) -> None:
        request = self._converting(owner, key)
        if request is not None:
            message = "it was released while it waited to be converted"
            self._refuse_request(request, "not_held", now, message=message)

    def _cancel(self, command: c.Cancel, now: float) -> None:
        request = self.sessions[command.session].requests.get(command.target)
        if request is not None and not request.goes_down:
            self._refuse_request(request, "cancelled", now)
        self._complete(command)

    def _break_grant(self, command: c.BreakGrant, now: float) -> None:
        token = command.fencing_token
        grant = self.grant_of(token)
        if grant is None:
            told = "`lockctl show NAME` tells the token of a lock"
            message = f"no lock is held with fencing token {token}: {told}"
            return self._refuse(command, "not_found", message)
        owner = self.owners[grant.owner_id]
        self._give_up_convert(owner, grant.key, now)
        if command.fence and self.must_fence(grant):
            # All that it holds goes with the process.
            for doomed in list(owner.grants.values()) if owner.fencing is None else ():
                self._tell_lost(doomed, "broken", command.reason)
            self._fence(owner, "broken")
        else:
            if owner.fencing != "broken":
                self._tell_lost(grant, "broken", command.reason)
            self._end(grant, "broken", now)
            self._forget_if_idle(owner)
        return self._complete(command)

    # Anchors and time.

    def _anchor_opened(self, command: c.AnchorOpened, now: float) -> None:
        self._anchor_answered(self.resources[command.key], None, now)

    def _anchor_refused(self, command: c.AnchorRefused, now: float) -> None:
        self._anchor_answered(self.resources[command.key], command, now)

    def _anchor_delayed(self, command: c.AnchorDelayed, now: float) -> None:
        """Lets a request run out of time while its anchor is being opened."""
        request = self.resources[command.key].pending
        if request is not None and not (request.answered or request.announced):
            if request.tries:
                request.deadline = now + TRY_PATIENCE
            self._touch("request", request.order, request)
            self._announce(request)

    def _resume(self, command: c.Resume, now: float) -> None:
        """Asks again for every anchor and every death that was not answered."""
        pending = {x.pending: None for x in self.resources.values() if x.pending}
        for request in pending:
            self._ask_again(request)
        for owner in self.owners.values():
            if owner.fencing is not None and owner.grants:
                self._effects.append(e.Fence(owner.owner_id, owner.identity))

    def _tick(self, command: c.Tick, now: float) -> None:
        while (when := self.next_deadline()) is not None and when <= now:
            request = self._deadlines.take_first()
            if when == request.deadline:
                # That is when it ended, even if the tick comes late.
                self._refuse_request(request, "timeout", when)
            else:
                request.retry_at = None
                self._touch("request", request.order, request)
                self._unsettled += [self.resources[key] for key in request.keys]
