"""The elementary steps of the engine: wait, move up, open an anchor, grant, end.

Every step that may let a request move up marks its resource as *unsettled*. `settle`
runs before the engine returns: at each such resource it grants the first request, then
the next, until one has to wait. So a grant follows from the state of the table and
never from the event that changed it. No wake-up can be lost.

If a lockspace has anchors, moving up ends with `OpenAnchor` and continues in
`anchor_answered`. A request for several resources moves up when it is first at all of
them. It is granted when all its anchors are open, and holds nothing before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from lockd.engine.commands import Acquire, AnchorRefused
from lockd.engine.effects import (
    BreakOverdue,
    CloseAnchor,
    Effect,
    Ended,
    Grant,
    Granted,
    LastHolder,
    OpenAnchor,
    Overdue,
    Queued,
    Refused,
    WaitEdge,
)
from lockd.engine.lock_state import LockState
from lockd.engine.request_state import (
    ABANDONED,
    ANSWERED,
    DELAYED,
    NEW,
    OPENING,
    PAUSED,
    QUEUED,
)
from lockd.engine.resource import Resource
from lockd.engine.session import Request, Session, Strand
from lockd.engine.waits.cycles import find_cycle, find_cycle_through
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey, WorkOutcome

TRY_PATIENCE: Final = 10.0
"""Seconds that a request with timeout 0 waits for a slow anchor."""


class LockTable:
    """Moves requests and grants in a `LockState`, and collects the effects."""

    def __init__(self, state: LockState) -> None:
        self._state = state
        self._deadlines = state.deadlines
        for request in state.requests():
            for when in (request.deadline, request.retry_at):
                if when is not None:
                    self._deadlines.add(when, request.order, request)
        for grant in state.grants():
            if grant.notices is not None:
                state.heed(grant)
        self._unsettled: list[Resource] = []
        self._effects: list[Effect] = []

    def tell(self, effect: Effect) -> None:
        """Appends an effect."""
        self._effects.append(effect)

    @property
    def has_work(self) -> bool:
        """Whether a resource is unsettled or an effect pending.

        Never between commands.
        """
        return bool(self._unsettled or self._effects)

    def next_deadline(self) -> float | None:
        """Returns when the next request or grant is due; None without any."""
        return self._deadlines.first()

    # Waiting.

    def wait(self, request: Request, now: float) -> None:
        """Puts a new request into the lines, or refuses it because of a deadlock."""
        request.become(QUEUED)
        for key in request.keys:
            resource = self._state.resource(key)
            resource.enqueue(request)
            self._state.look_who_is_wanted(resource)
        cycle = find_cycle(request, self._state.resources)
        if (request.converting or request.inside) and not cycle:
            # It goes before others, so these now wait for its strand too.
            cycle = find_cycle_through(
                request.strand, self._state.resources, but=request
            )
        if cycle:
            self.refuse(request, "deadlock", now, cycle=cycle)
        else:
            self._announce(request)

    def _announce(self, request: Request) -> None:
        """Tells the session that its request waits, and starts its timeout."""
        self._effects.append(
            Queued(
                request.session.session_id,
                request.number,
                request.keys,
                request.mode,
                request.converting,
            )
        )
        if request.deadline is not None:
            self._deadlines.add(request.deadline, request.order, request)

    def pass_time(self, now: float) -> None:
        """Carries out what is due.

        Refuses the requests that have timed out, ends the pauses that are over, and
        tells which grants are overdue.
        """
        while (when := self._deadlines.first()) is not None and when <= now:
            request = self._deadlines.take_first()
            if isinstance(request, Grant):
                self._tell_overdue(request)
            elif when == request.deadline:
                # The deadline counts, even if the tick comes late.
                self.refuse(request, "timeout", when)
            else:
                request.end_pause()
                self._state.mark("request", request.order, request)
                self._unsettled += [self._state.resources[x] for x in request.keys]

    def _tell_overdue(self, grant: Grant) -> None:
        state, notices = self._state, grant.notices
        assert notices is not None
        grant = grant.replace(notices=replace(notices, overdue=True))
        state.put_grant(grant)
        told, key = notices.overdue_to, grant.key
        session = told if told in state.sessions else None
        waiters = state.resources[key].line_length()
        self._effects.append(Overdue(session, grant, waiters))
        if state.lockspaces[key.lockspace].on_overdue == "break":
            self._effects.append(BreakOverdue(grant))

    # Answering.

    def answered(self, request: Request) -> None:
        """Removes a request from everything: it waits for nothing from now on."""
        state = self._state
        request.become(ABANDONED if request.opening else ANSWERED)
        state.remove_request(request)
        for key in request.keys:
            # An idle resource has been dropped together with its line.
            resource = state.resources.get(key)
            if resource is not None and resource.has_line:
                resource.dequeue(request)
                self._unsettled.append(resource)

    def refuse(
        self,
        request: Request,
        code: str,
        now: float,
        *,
        key: ResourceKey | None = None,
        message: str = "",
        cycle: Sequence[WaitEdge] = (),
        max_waiting: int | None = None,
        nested: bool = False,
    ) -> None:
        """Refuses a request that was added, in any state."""
        resource = self._state.resources.get(key or self._obstacle(request))
        self._state.count_refusal()
        self._effects.append(
            Refused(
                request.session.session_id,
                request.number,
                code,
                message,
                resource.situation(request) if resource else None,
                now - request.since,
                request.outside,
                tuple(cycle),
                max_waiting,
                nested=nested,
            )
        )
        self.answered(request)

    def _obstacle(self, request: Request) -> ResourceKey:
        """Returns a resource where the request has to wait, or its first one."""
        for key in request.keys:
            resource = self._state.resources.get(key)
            if resource and not resource.lets_pass(request):
                return key
        return request.keys[0]

    # Moving up.

    def settle(self, now: float) -> list[Effect]:
        """Moves up every request that can. Returns the effects since the last call."""
        if self._unsettled:
            # Settling one resource may append others to this list.
            for resource in self._unsettled:
                self._settle(resource, now)
            self._unsettled.clear()
        effects, self._effects = self._effects, []
        return effects

    def look_again(self, resource: Resource) -> None:
        """Makes `settle` look who can move up at a resource."""
        self._unsettled.append(resource)

    def _settle(self, resource: Resource, now: float) -> None:
        resources = self._state.resources
        while resource.pending is None:
            request = resource.front()
            if request is None or request.state is PAUSED:
                break
            others = (resources[key] for key in request.keys)
            if not all(other.lets_pass(request) for other in others):
                break
            self.move_up(request, now)
        if resource.pending is None:
            self._tidy(resource)
        self._state.look_who_is_wanted(resource)

    def _tidy(self, resource: Resource) -> None:
        """Closes an anchor without holders; drops an idle resource."""
        if not resource.holders:
            if resource.anchor is not None:
                resource.anchor_is(None)
                self._effects.append(CloseAnchor(resource.key))
            if resource.is_idle:
                self._state.resources.pop(resource.key, None)

    def move_up(self, request: Request, now: float) -> None:
        """Grants the first request of a line, or asks for its anchors first."""
        state = self._state
        to_open: list[Resource] = []
        open_already: list[Resource] = []
        for key in request.keys:
            resource = state.resource(key)
            resource.dequeue(request)
            if request.inside and resource.join(request):
                open_already.append(resource)
            elif state.lockspaces[key.lockspace].anchored:
                to_open.append(resource)
        if not to_open:
            return self._grant_request(request, now)
        request.become(OPENING if request.state is NEW else DELAYED)
        request.open_anchors(len(to_open))
        for resource in open_already:
            resource.open_anchor(request, resource.mode or request.mode)
        for resource in to_open:
            self._open_anchor(resource, request, request.mode)
        return None

    # Anchors.

    def _open_anchor(self, resource: Resource, request: Request, mode: Mode) -> None:
        resource.open_anchor(request, mode)
        self._state.mark("request", request.order, request)
        in_use = bool(resource.holders)
        create, whole = request.wish.create, resource.gets_whole(request)
        self._effects.append(OpenAnchor(resource.key, mode, create, in_use, whole))

    def open_again(self, request: Request) -> None:
        """Asks again for the pending anchors of a request: the old answers are lost."""
        found = filter(None, map(self._state.resources.get, request.keys))
        pending = [x for x in found if x.pending is request]
        asked = [x for x in pending if not x.still_around(request)]
        request.open_anchors(len(asked))
        for resource in asked:
            self._open_anchor(resource, request, resource.anchor_wanted or request.mode)

    def anchor_delayed(self, resource: Resource, now: float) -> None:
        """Notes that an anchor is slow: the request now waits, and can time out."""
        request = resource.pending
        if request is not None and request.state is OPENING:
            if request.tries:
                request.allow_until(now + TRY_PATIENCE)
            request.become(DELAYED)
            self._state.mark("request", request.order, request)
            self._announce(request)

    def anchor_answered(
        self, resource: Resource, refusal: AnchorRefused | None, now: float
    ) -> None:
        """Continues after an anchor is open or refused."""
        request = resource.pending
        assert request is not None
        self._state.mark("request", request.order, request)
        if refusal is None:
            resource.anchor_is(resource.anchor_wanted)
        if not request.hear(refusal):
            return None
        if request.state is ABANDONED:
            if request.converting and resource.holders:
                return self._finish_given_up_convert(resource, request, now)
            return self._forget_abandoned(request)
        self._end_opening(request)
        if request.refusal is None:
            return self._grant_request(request, now)
        return self._anchor_failed(request, request.refusal, now)

    def _end_opening(self, request: Request) -> None:
        for key in request.keys:
            resource = self._state.resources[key]
            resource.end_opening()
            self._unsettled.append(resource)

    def _forget_abandoned(self, request: Request) -> None:
        request.become(ANSWERED)
        self._end_opening(request)

    def _finish_given_up_convert(
        self, resource: Resource, request: Request, now: float
    ) -> None:
        """Makes anchor and holders agree after an abandoned convert.

        A convert to shared stays in force: others may share the anchor by now. A
        convert to exclusive is undone. If even that fails, the anchor stays exclusive,
        which is safe.
        """
        held = resource.holders.get(request.strand)
        if resource.anchor == SHARED and held is not None and held.mode == EXCLUSIVE:
            self._state.put_grant(held.replace(mode=SHARED))
            self._refuse_uncovered(resource, now)
        elif request.refusal is not None:
            resource.anchor_is(resource.mode)
        if resource.mode is not None and resource.anchor != resource.mode:
            request.open_anchors(1)
            self._open_anchor(resource, request, resource.mode)
        else:
            self._forget_abandoned(request)

    def _anchor_failed(
        self, request: Request, refusal: AnchorRefused, now: float
    ) -> None:
        request.look_outside(refusal.outside)
        if refusal.code != "busy" or request.tries or request.goes_down:
            return self.refuse(
                request,
                refusal.code,
                now,
                key=refusal.key,
                message=refusal.message,
            )
        # It keeps its place, the first one.
        for key in request.keys:
            self._state.resources[key].enqueue_first(request)
        was_announced = request.is_announced
        retry_at = request.pause_until_later(now)
        self._deadlines.add(retry_at, request.order, request)
        if cycle := find_cycle(request, self._state.resources):
            self.refuse(request, "deadlock", now, cycle=cycle)
        elif not was_announced:
            self._announce(request)
        return None

    # Granting.

    def _grant_request(self, request: Request, now: float) -> None:
        self.answered(request)
        session, since = request.session, request.since
        if request.converting:
            held = self._state.held_by(request.strand, request.keys[0])
            assert held is not None
            self._convert_grant(session, request.number, held, request.mode, now, since)
        else:
            inner = request if request.inside else None
            self.grant(session, request.strand, request.wish, now, since, inner)

    def grant(
        self,
        session: Session,
        strand: Strand,
        wish: Acquire,
        now: float,
        since: float,
        inner: Request | None = None,
    ) -> None:
        """Grants all resources of a wish together; `inner` is a request from inside."""
        state, grants = self._state, list[Grant]()
        previous: tuple[LastHolder, ...] = ()
        for key in wish.keys:
            held = state.held_by(strand, key) if strand.held else None
            if held is None:
                grant = state.add_grant(session, strand.number, key, wish, now, inner)
                previous += state.trouble(key, grant.inside)
            else:
                # Two shared requests of one strand waited: they share one counted hold.
                grant = state.put_another(held, wish, now)
            grants.append(grant)
        session_id, waited = session.session_id, now - since
        granted = tuple(grants)
        self._effects.append(
            Granted(session_id, wish.request, granted, waited, False, previous)
        )

    def _convert_grant(
        self,
        session: Session,
        number: int,
        held: Grant,
        mode: Mode,
        now: float,
        since: float,
    ) -> None:
        grant = held.replace(mode=mode)
        self._state.put_grant(grant)
        resource = self._state.resources[grant.key]
        self._unsettled.append(resource)
        self._effects.append(
            Granted(session.session_id, number, (grant,), now - since, True)
        )
        self._refuse_uncovered(resource, now)

    def _refuse_uncovered(self, resource: Resource, now: float) -> None:
        """Refuses those inside that want more than is held around them now."""
        key = resource.key
        for request in resource.uncovered():
            self.refuse(request, "already_held", now, key=key, nested=True)

    # Ending.

    def end(
        self, grant: Grant, cause: str, now: float, outcome: WorkOutcome = None
    ) -> None:
        """Ends a grant. The caller must answer a waiting convert of it first."""
        to_settle = self._state.remove_grant(grant, cause, now, outcome)
        self._effects.append(Ended(grant, cause))
        if to_settle is not None:
            self._unsettled.append(to_settle)

    def give_up_convert(self, strand: Strand, key: ResourceKey, now: float) -> None:
        """Refuses the waiting convert, if any, of a grant that is about to end."""
        request = strand.convert_of(key)
        if request is not None:
            message = "it was released while it waited to be converted"
            self.refuse(request, "not_held", now, message=message)
