"""What happened to a resource lately, for who asks afterwards.

A few events of each of the resources that something happened to last: the memory is
bounded, and what a daemon before this one saw is not in it.

It lies on the way of every request, so it keeps one value for a whole hold, the one
with which the engine tells of its end: when it was granted stands in there. That is put
where it belongs after the answers have left, and events are made of it when somebody
asks.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final, NamedTuple

from msgspec import Struct

from lockd.engine.commands import Owner
from lockd.engine.effects import Ended, Grant, Granted, Queued, Refused
from lockd.engine.lock_engine import SessionView
from lockd.terms import Mode, ResourceKey

MAX_RESOURCES: Final = 1024
"""How many resources have a history (protocol 7.10)."""

MAX_EVENTS: Final = 16
"""How many events of each are told (protocol 7.10)."""


MAX_FRESH: Final = 512
AT_ONCE: Final = 8
"""How many holds may wait for being put where they belong, and how many are after each
turn. In a flood more come than that, and some are left out."""


MAX_NOTES: Final = 20
"""How many of them are kept, at most."""


class Event(NamedTuple):
    """Something that happened; `span` is how long it was held, or waited for.

    A wait and its refusal are known by the number of their `request`.
    """

    when: float
    what: str
    owner: Owner
    session: int
    mode: Mode | None
    fencing_token: int | None = None
    code: str | None = None
    cause: str | None = None
    span: float | None = None
    request: int | None = None


class Hold(Struct, frozen=True, gc=False):
    """A grant that ended. Little of it is kept: what is kept cannot be used again."""

    since: float
    when: float
    owner: Owner
    session: int
    mode: Mode
    fencing_token: int
    cause: str


Note = Hold | Event


class History:
    """The last events of the resources that were used last.

    Attributes:
        hears: what is to be told each kind of effect, and when it happens.
    """

    def __init__(self, sessions: Mapping[int, SessionView]) -> None:
        self.hears: dict[type, Callable[[Any, float], None]] = {
            Ended: self.ended,
            Granted: self.granted,
            Queued: self.queued,
            Refused: self.refused,
        }
        self._sessions = sessions
        self._notes: OrderedDict[ResourceKey, list[Note]] = OrderedDict()
        #: Those that are not in `_notes` yet.
        self._holds: deque[Hold] = deque(maxlen=MAX_FRESH)
        self._keys: deque[ResourceKey] = deque(maxlen=MAX_FRESH)

    def ended(self, effect: Ended, now: float) -> None:
        """Remembers a hold."""
        grant = effect.grant
        self._keys.append(grant.key)
        self._holds.append(
            Hold(
                grant.since,
                now,
                grant.owner,
                grant.session,
                grant.mode,
                grant.fencing_token,
                effect.cause,
            )
        )

    def granted(self, effect: Granted, now: float) -> None:
        """Remembers that a held lock is in another mode now; what is new is held."""
        if not effect.converted:
            return
        for grant in effect.grants:
            event = Event(
                now,
                "converted",
                grant.owner,
                grant.session,
                grant.mode,
                grant.fencing_token,
            )
            self._add(grant.key, event)

    def queued(self, effect: Queued, now: float) -> None:
        """Remembers that somebody waits."""
        owner = self._sessions[effect.session].owner.identity
        event = Event(
            now,
            "waiting",
            owner,
            effect.session,
            effect.mode,
            request=effect.request,
        )
        for key in effect.keys:
            self._add(key, event)

    def refused(self, effect: Refused, now: float) -> None:
        """Remembers that somebody did not get a resource, if it was about one."""
        if effect.situation is not None:
            owner = self._sessions[effect.session].owner.identity
            event = Event(
                now,
                "refused",
                owner,
                effect.session,
                None,
                code=effect.code,
                request=effect.request,
            )
            self._add(effect.situation.key, event)

    def settle(self) -> None:
        """Puts some holds where they belong, when the answers have left."""
        holds = self._holds
        for _ in range(min(AT_ONCE, len(holds))):
            self._add(self._keys.popleft(), holds.popleft())

    def _add(self, key: ResourceKey, note: Note) -> None:
        notes = self._notes.get(key)
        if notes is None:
            self._notes[key] = [note]
            if len(self._notes) > MAX_RESOURCES:
                self._notes.popitem(last=False)
            return
        self._notes.move_to_end(key)
        notes.append(note)
        if len(notes) > MAX_NOTES:
            del notes[:-MAX_EVENTS]

    def of(self, key: ResourceKey, holders: Iterable[Grant]) -> list[Event]:
        """Returns the last events of a resource, the earliest first.

        Args:
            holders: who holds it now.
        """
        events: list[Event] = []
        fresh = [x for x, y in zip(self._holds, self._keys, strict=True) if y == key]
        for note in (*self._notes.get(key, ()), *fresh):
            events += [note] if isinstance(note, Event) else _hold(note)
        events += [_granted(grant) for grant in holders]
        # Python's sort leaves in their order what happened in one moment.
        events.sort(key=attrgetter("when"))
        return list(_with_waits(events))[-MAX_EVENTS:]


def _hold(hold: Hold) -> list[Event]:
    who = (hold.owner, hold.session, hold.mode, hold.fencing_token)
    held = hold.when - hold.since
    return [
        Event(hold.since, "granted", *who),
        Event(hold.when, "released", *who, cause=hold.cause, span=held),
    ]


def _granted(grant: Grant) -> Event:
    return Event(
        grant.since,
        "granted",
        grant.owner,
        grant.session,
        grant.mode,
        grant.fencing_token,
    )


def _with_waits(events: Iterable[Event]) -> Iterator[Event]:
    """Adds to each grant and each refusal how long its session waited for it.

    A session waits for a resource once at a time; what else it asks meanwhile is
    refused at once.
    """
    waits: dict[int, Event] = {}
    for event in events:
        if event.what == "waiting":
            waits[event.session] = event
            yield event
        elif event.what == "released":
            yield event
        else:
            began = event.when
            wait = waits.get(event.session)
            if wait is not None and event.request in (None, wait.request):
                began = waits.pop(event.session).when
            yield event._replace(span=event.when - began)
