"""What happened to a resource lately, for who asks afterwards.

A few events of each of the resources that something happened to last: the memory is
bounded, and what a daemon before this one saw is not in it. On the way of every
request, so it keeps the engine's own values, and makes nothing of them until asked.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

from lockd.engine.commands import Owner
from lockd.engine.effects import Effect, Ended, Grant, Granted, Queued, Refused
from lockd.engine.session import Session
from lockd.terms import Mode, ResourceKey

MAX_RESOURCES: Final = 1024
"""How many resources have a history (protocol 7.10)."""

MAX_EVENTS: Final = 16
"""How many events of each are told (protocol 7.10)."""


class Denial(NamedTuple):
    """A request that waits, or was refused: not yet, or not any more, a grant.

    Attributes:
        code: why it was refused; None if it waits.
    """

    owner: Owner
    session: int
    mode: Mode | None
    code: str | None


Event = tuple[float, Effect | Denial, Grant | None]
"""When something happened, what, and to which grant if there is one."""


class History:
    """The last events of the resources that were used last."""

    def __init__(self) -> None:
        self._events: OrderedDict[ResourceKey, list[Event]] = OrderedDict()

    def note(
        self, effects: list[Effect], sessions: Mapping[int, Session], now: float
    ) -> None:
        """Remembers what came of one command."""
        for effect in effects:
            kind = type(effect)
            if kind is Granted:
                for grant in effect.grants:  # type: ignore[union-attr]
                    self._add(grant.key, (now, effect, grant))
            elif kind is Ended:
                grant = effect.grant  # type: ignore[union-attr]
                self._add(grant.key, (now, effect, grant))
            elif isinstance(effect, Queued):
                denial = _denial(effect.session, effect.mode, None, sessions)
                for key in effect.keys:
                    self._add(key, (now, denial, None))
            elif isinstance(effect, Refused) and effect.situation is not None:
                # Its situation names up to 32 others: too much to keep.
                denial = _denial(effect.session, None, effect.code, sessions)
                self._add(effect.situation.key, (now, denial, None))

    def _add(self, key: ResourceKey, event: Event) -> None:
        events = self._events.get(key)
        if events is None:
            self._events[key] = [event]
            if len(self._events) > MAX_RESOURCES:
                self._events.popitem(last=False)
            return
        self._events.move_to_end(key)
        events.append(event)
        if len(events) >= 2 * MAX_EVENTS:
            del events[:MAX_EVENTS]

    def of(self, key: ResourceKey) -> list[Event]:
        """Returns the last events of a resource, the earliest first."""
        return self._events.get(key, [])[-MAX_EVENTS:]


def _denial(
    session: int,
    mode: Mode | None,
    code: str | None,
    sessions: Mapping[int, Session],
) -> Denial:
    return Denial(sessions[session].owner.identity, session, mode, code)
