"""The recent events of resources, for users who ask later.

It keeps a few events of the most recently used resources, so its memory is limited. It
does not have events of an earlier daemon.

It runs for every request. So it stores one value for a whole grant when that ends;
this value also has the time of the grant. It turns the values into events on request.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final, NamedTuple

from lockd.engine.commands import Owner
from lockd.engine.effects import Ended, Grant, Granted, Queued, Refused
from lockd.engine.lock_engine import SessionView
from lockd.terms import Mode, ResourceKey

MAX_RESOURCES: Final = 1024
"""How many resources have a history (protocol 7.10)."""

MAX_EVENTS: Final = 16
"""How many events of a resource a user gets (protocol 7.10)."""


MAX_NOTES: Final = 20
"""The most values to store for a resource."""


class Event(NamedTuple):
    """An event.

    `span` is the seconds that the lock was held, or that the request waited.

    A wait and its refusal have the same `request`.
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


class FormerHolder:
    """The holder of a grant that ended. It has few attributes, to save memory."""

    __slots__ = ("cause", "fencing_token", "mode", "owner", "session", "since", "when")

    def __init__(self, grant: Grant, when: float, cause: str) -> None:
        self.since = grant.since
        self.when = when
        self.owner = grant.owner
        self.session = grant.session
        self.mode = grant.mode
        self.fencing_token = grant.fencing_token
        self.cause = cause


Note = FormerHolder | Event


class History:
    """The last events of the most recently used resources.

    Attributes:
        hears: the function for each kind of effect; it takes the effect and the time.
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

    def ended(self, effect: Ended, now: float) -> None:
        """Records a holder whose grant ended."""
        grant = effect.grant
        self._add(grant.key, FormerHolder(grant, now, effect.cause))

    def granted(self, effect: Granted, now: float) -> None:
        """Records a conversion. A new grant is recorded when it ends."""
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
        """Records that a request waits."""
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
        """Records the refusal of a request for a resource."""
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
        """Returns the last events of a resource, the oldest first.

        Args:
            key: the resource.
            holders: its current grants.
        """
        events: list[Event] = []
        for note in self._notes.get(key, ()):
            events += [note] if isinstance(note, Event) else _held(note)
        events += [_granted(grant) for grant in holders]
        # Python's sort keeps the order of events at the same time.
        events.sort(key=attrgetter("when"))
        return list(_with_waits(events))[-MAX_EVENTS:]


def _held(past: FormerHolder) -> list[Event]:
    who = (past.owner, past.session, past.mode, past.fencing_token)
    held = past.when - past.since
    return [
        Event(past.since, "granted", *who),
        Event(past.when, "released", *who, cause=past.cause, span=held),
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
    """Adds the duration of the wait to each grant and refusal.

    A session has one wait for a resource at a time. Any other request meanwhile is
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
