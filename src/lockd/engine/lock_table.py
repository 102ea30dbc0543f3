"""The elementary moves of the engine: wait, move up, grant.

Theory of operation. Whatever may let somebody move up marks its resource *unsettled*;
before the engine returns, `settle_all` grants the request at the front of every such
resource, and the next, until one has to wait. So grants follow from the state of the
table, never from the event that changed it, and no wake-up can be lost.

Where an anchor is needed, moving up ends in `OpenAnchor` and goes on in
`anchor_answered`. A request for several resources moves up when it is at the front of
all of them, and is granted when all their anchors are open; it holds nothing before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from lockd.engine.commands import AnchorRefused
from lockd.engine.effects import (
    CloseAnchor,
    Grant,
    Granted,
    OpenAnchor,
    Queued,
    Refused,
    Wait,
)
from lockd.engine.lock_state import LockState
from lockd.engine.resource import Resource
from lockd.engine.session import Request, Session
from lockd.engine.texts import PLAIN
from lockd.engine.waitgraph import find_cycle
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey

FIRST_PAUSE: Final = 0.010
LAST_PAUSE: Final = 0.500
"""Seconds between two tries of a file that is locked from outside (protocol 5.8)."""

TRY_PATIENCE: Final = 10.0
"""Seconds that a try waits for an anchor that does not answer at once."""


class LockTable(LockState):
    """Who waits, and whose turn it is; `LockEngine` says what moves it."""

    def adopt(self, request: Request) -> None:
        """Takes up a request that waited in the engine whose snapshot is loaded."""
        self._track(request)
        for when in (request.deadline, request.retry_at):
            if when is not None:
                self._deadlines.add(when, request, self.waiting)

    # Waiting.

    def _track(self, request: Request) -> None:
        request.session.requests[request.number] = request
        request.session.waits ^= request.order
        self.waiting += 1
        if not request.converting:  # which says nothing that its lock does not
            self.text_by_user.take_up(
                request.uid, request.keys, request.label, request.reason
            )
            if len(request.keys) > 1:
                self.held_by_user.add(request.uid, len(request.keys))
        self.waiting_by_user.add(request.uid)
        if self.changed is not None:
            self.changed["request", request.order] = request

    def _wait(self, request: Request, now: float) -> None:
        """Gives a tracked request its place in the lines, or refuses a deadlock."""
        for key in request.keys:
            self._resource(key).enqueue(request)
        # A convert goes before who waits, so that they now wait for its owner, too.
        new = request.owner.waiting() if request.converting else [request]
        if cycle := self._cycle_of(new):
            self._refuse_request(request, "deadlock", now, cycle=cycle)
        else:
            self._announce(request)

    def _cycle_of(self, requests: Sequence[Request]) -> tuple[Wait, ...]:
        cycles = (find_cycle(r, self.resources, self.owners) for r in requests)
        return next(filter(None, cycles), ())

    def _announce(self, request: Request) -> None:
        if request.announced:
            return
        request.announced = True
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
            self._deadlines.add(request.deadline, request, self.waiting)

    def next_deadline(self) -> float | None:
        """Returns when `Tick` is due; None if nothing waits for time."""
        return self._deadlines.first()

    # Answering.

    def _answered(self, request: Request) -> None:
        """Takes a request out of everything: from now on it waits for nothing."""
        request.answered = True
        del request.session.requests[request.number]
        request.session.waits ^= request.order
        self.waiting -= 1
        if not request.converting:
            self.text_by_user.drop(
                request.uid, request.keys, request.label, request.reason
            )
            if len(request.keys) > 1:
                self.held_by_user.remove(request.uid, len(request.keys))
        self.waiting_by_user.remove(request.uid)
        if self.changed is not None:
            self.changed["request", request.order] = request
        for key in request.keys:
            # An idle resource has been dropped, and with it the place in its line.
            resource = self.resources.get(key)
            if resource is not None and (resource.converting or resource.waiting):
                resource.dequeue(request)
                self._unsettled.append(resource)

    def _refuse_request(
        self,
        request: Request,
        code: str,
        now: float,
        *,
        key: ResourceKey | None = None,
        message: str = "",
        cycle: Sequence[Wait] = (),
    ) -> None:
        resource = self.resources.get(key or self._obstacle(request))
        self.refused += 1
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
            )
        )
        self._answered(request)

    def _obstacle(self, request: Request) -> ResourceKey:
        """Returns the resource that stands in a request's way; any, if none does."""
        for key in request.keys:
            resource = self.resources.get(key)
            if resource and not self._lets_pass(resource, request):
                return key
        return request.keys[0]

    # Moving up.

    def _settle_all(self, now: float) -> None:
        # Settling one resource may unsettle others, which then have their turn.
        for resource in self._unsettled:
            self._settle(resource, now)
        self._unsettled.clear()

    def _settle(self, resource: Resource, now: float) -> None:
        while resource.pending is None:
            request = resource.front()
            if request is None or request.retry_at is not None:
                break
            others = (self.resources[key] for key in request.keys)
            if not all(self._lets_pass(other, request) for other in others):
                break
            self._move_up(request, now)
        if resource.pending is None:
            self._tidy(resource)

    def _lets_pass(self, resource: Resource, request: Request) -> bool:
        """Tells whether nobody and nothing at this resource is before the request.

        It may stand in the line or be about to; a convert goes before who waits.
        """
        line = resource.converting
        if not line and not request.converting:
            line = resource.waiting
        return (
            resource.pending is None
            and next(iter(line), request) is request
            and resource.admits(request.mode, request.owner.owner_id)
        )

    def _tidy(self, resource: Resource) -> None:
        """Makes the anchor follow the holders; drops what nobody needs."""
        if not resource.holders:
            if resource.anchor is not None:
                resource.anchor = None
                self._effects.append(CloseAnchor(resource.key))
            if resource.is_idle:
                self.resources.pop(resource.key, None)

    def _move_up(self, request: Request, now: float) -> None:
        """Grants a request whose turn it is, or has its anchors opened first."""
        to_open: list[Resource] = []
        for key in request.keys:
            resource = self._resource(key)
            resource.dequeue(request)
            if self.lockspaces[key.lockspace].anchored:
                to_open.append(resource)
        if not to_open:
            return self._grant_request(request, now)
        request.opening = len(to_open)
        for resource in to_open:
            self._open_anchor(resource, request, request.mode)
        return None

    def _open_anchor(self, resource: Resource, request: Request, mode: Mode) -> None:
        resource.pending = request
        resource.anchor_wanted = mode
        if self.changed is not None:
            self.changed["request", request.order] = request
        self._effects.append(
            OpenAnchor(resource.key, mode, request.create, bool(resource.holders))
        )

    def _ask_again(self, request: Request) -> None:
        """Has all anchors of a request opened anew: no answer will come any more."""
        found = filter(None, map(self.resources.get, request.keys))
        asked = [resource for resource in found if resource.pending is request]
        request.refusal = None
        request.opening = len(asked)
        for resource in asked:
            self._open_anchor(resource, request, resource.anchor_wanted or request.mode)

    def _anchor_answered(
        self, resource: Resource, refusal: AnchorRefused | None, now: float
    ) -> None:
        request = resource.pending
        assert request is not None
        if self.changed is not None:
            self.changed["request", request.order] = request
        if refusal is None:
            resource.anchor = resource.anchor_wanted
        else:
            request.refusal = request.refusal or refusal
        request.opening -= 1
        if request.opening:
            return None
        if request.answered and request.converting and resource.holders:
            return self._finish_given_up_convert(resource, request, now)
        self._close_opening(request)
        if not request.answered:
            if request.refusal is None:
                self._grant_request(request, now)
            else:
                self._anchor_failed(request, request.refusal, now)
        return None

    def _close_opening(self, request: Request) -> None:
        for key in request.keys:
            resource = self.resources[key]
            resource.pending = resource.anchor_wanted = None
            self._unsettled.append(resource)

    def _finish_given_up_convert(
        self, resource: Resource, request: Request, now: float
    ) -> None:
        """Brings anchor and holders together after a convert that nobody waits for.

        What was asked down stays down: the anchor may be shared with others by now.
        What was asked up is taken back; if even that fails, the anchor is held more
        strongly than need be, which is safe.
        """
        held = resource.holders.get(request.owner.owner_id)
        if resource.anchor == SHARED and held is not None and held.mode == EXCLUSIVE:
            self._put(replace(held, mode=SHARED))
        elif request.refusal is not None:
            resource.anchor = resource.mode
        if resource.mode is not None and resource.anchor != resource.mode:
            request.opening = 1
            self._open_anchor(resource, request, resource.mode)
        else:
            self._close_opening(request)

    def _anchor_failed(
        self, request: Request, refusal: AnchorRefused, now: float
    ) -> None:
        request.refusal = None
        request.outside = refusal.outside
        if refusal.code != "busy" or request.tries:
            return self._refuse_request(
                request,
                refusal.code,
                now,
                key=refusal.key,
                message=refusal.message,
            )
        # It keeps its place, which is the first one.
        for key in request.keys:
            self.resources[key].enqueue_first(request)
        request.pause = min(max(2 * request.pause, FIRST_PAUSE), LAST_PAUSE)
        request.retry_at = now + request.pause
        self._deadlines.add(request.retry_at, request, self.waiting)
        if cycle := self._cycle_of([request]):
            self._refuse_request(request, "deadlock", now, cycle=cycle)
        else:
            self._announce(request)
        return None

    # Granting.

    def _grant_request(self, request: Request, now: float) -> None:
        self._answered(request)
        session, number = request.session, request.number
        if request.converting:
            held = self._held(session.owner, request.keys[0])
            assert held is not None
            self._convert_grant(session, number, held, request.mode, now, request.since)
        else:
            self._grant(
                session,
                number,
                request.keys,
                request.mode,
                now,
                request.since,
                request.label,
                request.reason,
            )

    def _grant(
        self,
        session: Session,
        number: int,
        keys: tuple[ResourceKey, ...],
        mode: Mode,
        now: float,
        since: float,
        label: str | None,
        reason: str | None,
    ) -> None:
        grants = []
        for key in keys:
            held = self._held(session.owner, key)
            if held is None:
                self.last_token += 1
                self.granted += 1
                uid = session.owner.identity.uid
                self.held_by_user.add(uid)
                if label is not None or reason is not None or len(key.resource) > PLAIN:
                    self.text_by_user.take_up(uid, (key,), label, reason)
                grant = Grant(
                    key,
                    session.owner.owner_id,
                    session.owner.identity,
                    session.session_id,
                    mode,
                    self.last_token,
                    now,
                    1,
                    label,
                    reason,
                )
            else:
                # Two shared requests of one owner waited: a hold, counted.
                grant = replace(held, count=held.count + 1)
            self._put(grant)
            grants.append(grant)
        self._effects.append(
            Granted(session.session_id, number, tuple(grants), now - since)
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
        grant = replace(held, mode=mode)
        self._put(grant)
        self._unsettled.append(self.resources[grant.key])
        self._effects.append(
            Granted(session.session_id, number, (grant,), now - since, True)
        )
