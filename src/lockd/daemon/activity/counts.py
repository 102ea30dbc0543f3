"""The daemon's counters: plain numbers, counted where things happen.

There is a number for each lockspace, code or method, never for a resource or client. So
their amount stays small. All begin at zero with each program that serves. `metrics`
describes them.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from lockd.engine import effects as e
from lockd.engine.lock_engine import LockEngine
from lockd.errors import ERRORS_BY_CODE
from lockd.terms import Mode, ResourceKey

WAIT_BOUNDS: Final[tuple[float, ...]] = (
    *(0.001, 0.005, 0.025, 0.1, 0.5),
    *(1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0),
)
"""Seconds from a request to its grant."""

HOLD_BOUNDS: Final[tuple[float, ...]] = (
    *(0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 300.0),
    *(1_800.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0),
)
"""Seconds from a grant to its end: up to a week."""

TURN_BOUNDS: Final[tuple[float, ...]] = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
"""Seconds of a turn of the loop."""

CAUSES: Final = ("released", "disconnected", "owner_died", "broken")
"""The causes of the end of a grant (protocol 7.4)."""


class Histogram:
    """Counts durations in buckets.

    Args:
        bounds: seconds, rising. `counts` has one more bucket for longer durations.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Counts a duration."""
        bounds = self.bounds
        is_short = seconds <= bounds[0]  # as most are
        self.counts[0 if is_short else bisect_left(bounds, seconds)] += 1
        self.total += seconds

    def __add__(self, other: "Histogram") -> "Histogram":
        """Returns the sum of two histograms with the same bounds."""
        both = Histogram(self.bounds)
        both.counts = [x + y for x, y in zip(self.counts, other.counts, strict=True)]
        both.total = self.total + other.total
        return both


class _Begun(Protocol):
    @property
    def since(self) -> float: ...


K = TypeVar("K")
T = TypeVar("T", bound=_Begun)


class Line(Generic[K, T]):
    """Things in the order of their beginnings. Those that have been reported are apart.

    So only the first must be checked to find out whether any has become old.
    """

    __slots__ = ("told", "young")

    def __init__(self) -> None:
        self.young: dict[K, T] = {}
        self.told: dict[K, T] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self.told)

    def oldest(self) -> T | None:
        """Returns the oldest thing; None without any."""
        for things in self.told, self.young:
            for thing in things.values():
                return thing
        return None

    def take_old(self, latest: float) -> list[T]:
        """Returns what began at `latest` or before, and marks it as reported."""
        found = []
        for key, thing in self.young.items():
            if thing.since > latest:
                break
            found.append((key, thing))
        for key, thing in found:
            del self.young[key]
            self.told[key] = thing
        return [thing for _, thing in found]

    def remove(self, key: K) -> T | None:
        """Removes a thing. Returns it if it has been reported."""
        if self.young.pop(key, None) is not None:
            return None
        return self.told.pop(key, None)

    def clear(self) -> None:
        """Removes everything."""
        self.young.clear()
        self.told.clear()


class Wait:
    """A waiting request."""

    __slots__ = ("keys", "mode", "request", "session", "since", "space")

    def __init__(
        self,
        session: int,
        request: int,
        keys: tuple[ResourceKey, ...],
        mode: Mode,
        since: float,
        space: "Space",
    ) -> None:
        self.session = session
        self.request = request
        self.keys = keys
        self.mode = mode
        self.since = since
        self.space = space


class Space:
    """The counters of one lockspace.

    Attributes:
        before: how many grants existed when counting began.
        waits, holds: the durations until a grant, and until its end.
        ended_otherwise: how many grants ended, by cause, without a release.
        converted: how many grants were converted.
        waiting: the waiting requests by session and msgid.
        held: the grants by fencing token, if slow holds are reported.
        overdue: how many grants were held for longer than `max_hold`.
        slow_wait, slow_hold: seconds after which to report one; 0 for never.
    """

    __slots__ = (
        *(
            "name",
            "before",
            "waits",
            "holds",
            "ended_otherwise",
            "inside",
            "converted",
            "overdue",
            "waiting",
            "held",
        ),
        *("slow_wait", "slow_hold", "slow_waits", "slow_holds"),
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.before = 0
        self.waits = Histogram(WAIT_BOUNDS)
        self.holds = Histogram(HOLD_BOUNDS)
        self.ended_otherwise = dict.fromkeys(CAUSES[1:], 0)
        #: How many grants were made inside others.
        self.inside = 0
        self.converted = self.overdue = 0
        self.waiting: Line[tuple[int, int], Wait] = Line()
        self.held: Line[int, e.Grant] = Line()
        self.slow_wait = self.slow_hold = 0.0
        #: How many were reported.
        self.slow_waits = self.slow_holds = 0

    def set_thresholds(self, slow_wait: float, slow_hold: float) -> None:
        """Sets the durations from which a wait or a hold is slow."""
        self.slow_wait, self.slow_hold = slow_wait, slow_hold

    def take_slow(self, now: float) -> tuple[list[Wait], list[e.Grant]]:
        """Returns what has become slow, and counts it as reported."""
        waits, holds = self.skip_slow(now)
        self.slow_waits += len(waits)
        self.slow_holds += len(holds)
        return waits, holds

    def skip_slow(self, now: float) -> tuple[list[Wait], list[e.Grant]]:
        """Returns what has become slow, without counting it."""
        waits, holds = list[Wait](), list[e.Grant]()
        if self.slow_wait:
            waits = self.waiting.take_old(now - self.slow_wait)
        if self.slow_hold:
            holds = self.held.take_old(now - self.slow_hold)
        return waits, holds

    @property
    def granted(self) -> int:
        """How many grants were made."""
        return sum(self.waits.counts)

    @property
    def held_count(self) -> int:
        """How many grants exist."""
        return self.before + self.granted - sum(self.holds.counts)

    @property
    def ends(self) -> dict[str, int]:
        """How many grants ended, by cause."""
        others = self.ended_otherwise
        released = sum(self.holds.counts) - sum(others.values())
        return {CAUSES[0]: released} | others


OnSlowEnd = Callable[[Wait | e.Grant, str, float], None]
"""Called when a reported thing ends: with the thing, how it ended, and when."""

OnOverdue = Callable[[e.Overdue, float], None]
"""Called when a grant becomes overdue, and when that is."""


class Counts:
    """The counters of the daemon.

    Args:
        on_slow_end: called when a reported thing ends.
        on_overdue: called when a grant becomes overdue.

    Attributes:
        spaces: the counters of each lockspace.
        requests: by method.
        refusals: by code.
        turned_away: how many clients were rejected.
        turns: the durations of the turns of the loop.
        hears: the function for each kind of effect; it takes the effect and the time.
    """

    def __init__(
        self,
        on_slow_end: OnSlowEnd = lambda thing, outcome, now: None,
        on_overdue: OnOverdue = lambda effect, now: None,
    ) -> None:
        self.spaces: dict[str, Space] = {}
        self.requests: defaultdict[str, int] = defaultdict(int)
        self.refusals = dict.fromkeys(ERRORS_BY_CODE, 0)
        self.turned_away = 0
        self.turns = Histogram(TURN_BOUNDS)
        self._on_slow_end = on_slow_end
        self._on_overdue = on_overdue
        #: The waiting requests of each session.
        self._waiting: dict[int, dict[int, Wait]] = {}
        self.hears: dict[type, Callable[[Any, float], None]] = {
            e.Granted: self.count_granted,
            e.Ended: self.count_ended,
            e.Queued: self.count_queued,
            e.Refused: self.count_refused,
            e.Overdue: self.count_overdue,
        }

    def space(self, name: str) -> Space:
        """Returns the counters of a lockspace, which may be new."""
        if name not in self.spaces:
            self.spaces[name] = Space(name)
        return self.spaces[name]

    def adopt(self, engine: LockEngine) -> None:
        """Counts the existing grants and waiting requests."""
        for grant in engine.grants():
            self.space(grant.key.lockspace).before += 1
        for request in sorted(engine.announced(), key=lambda request: request.since):
            session = request.session.session_id
            self._wait(
                *(session, request.number, request.keys),
                *(request.mode, request.since),
            )

    def set_thresholds(
        self, name: str, slow_wait: float, slow_hold: float, engine: LockEngine
    ) -> None:
        """Sets the durations from which a wait or a hold is slow in a lockspace."""
        space = self.space(name)
        watched = bool(space.slow_hold)
        space.set_thresholds(slow_wait, slow_hold)
        if bool(slow_hold) is not watched:
            self._watch_holds(space, engine)

    def _watch_holds(self, space: Space, engine: LockEngine) -> None:
        """Starts or stops recording the grants of a lockspace in `held`."""
        space.held.clear()
        if space.slow_hold:
            for grant in sorted(engine.grants(), key=lambda grant: grant.since):
                if grant.key.lockspace == space.name:
                    space.held.young[grant.fencing_token] = grant

    # Events.

    def count_granted(self, effect: e.Granted, now: float) -> None:
        """Counts a granted request."""
        # A single path for all cases would make the common ones slower.
        grants = effect.grants
        space = self.spaces[grants[0].key.lockspace]
        if self._waiting:
            self._end_wait(effect.session, effect.request, "granted", now)
        if grants[0].inside and not effect.converted:
            space.inside += len(grants)
        if effect.waited or effect.converted or len(grants) > 1 or space.slow_hold:
            _count_grants(space, effect)
        elif grants[0].count == 1:
            space.waits.counts[0] += 1

    def count_ended(self, effect: e.Ended, now: float) -> None:
        """Counts an ended grant."""
        grant = effect.grant
        space = self.spaces[grant.key.lockspace]
        if effect.cause != "released":  # releases are the remainder
            space.ended_otherwise[effect.cause] += 1
        space.holds.observe(now - grant.since)
        if space.slow_hold and space.held.remove(grant.fencing_token) is not None:
            self._on_slow_end(grant, effect.cause, now)

    def count_queued(self, effect: e.Queued, now: float) -> None:
        """Counts a request that begins to wait."""
        self._wait(effect.session, effect.request, effect.keys, effect.mode, now)

    def _wait(
        self,
        session: int,
        request: int,
        keys: tuple[ResourceKey, ...],
        mode: Mode,
        since: float,
    ) -> None:
        space = self.space(keys[0].lockspace)
        wait = Wait(session, request, keys, mode, since, space)
        self._waiting.setdefault(session, {})[request] = wait
        space.waiting.young[session, request] = wait

    def count_refused(self, effect: e.Refused, now: float) -> None:
        """Ends the wait of a refused request."""
        self._end_wait(effect.session, effect.request, effect.code, now)

    def _end_wait(self, session: int, request: int, outcome: str, now: float) -> None:
        """Ends the wait of a request, if it waited."""
        waits = self._waiting.get(session)
        wait = None if waits is None else waits.pop(request, None)
        if waits is None or wait is None:
            return
        if not waits:
            del self._waiting[session]
        self._end(wait, outcome, now)

    def end_session(self, session: int, now: float) -> None:
        """Ends the waits of a session that has ended."""
        for wait in self._waiting.pop(session, {}).values():
            self._end(wait, "disconnected", now)

    def end_all(self, now: float) -> None:
        """Ends all waits and holds, because the daemon ends."""
        self._waiting.clear()
        for space in self.spaces.values():
            told: list[Wait | e.Grant] = [*space.waiting.told.values()]
            told += space.held.told.values()
            space.waiting.clear()
            space.held.clear()
            for thing in told:
                self._on_slow_end(thing, "disconnected", now)

    def _end(self, wait: Wait, outcome: str, now: float) -> None:
        if wait.space.waiting.remove((wait.session, wait.request)) is not None:
            self._on_slow_end(wait, outcome, now)

    def count_overdue(self, effect: e.Overdue, now: float) -> None:
        """Counts and reports a grant that is held for too long."""
        self.spaces[effect.grant.key.lockspace].overdue += 1
        self._on_overdue(effect, now)

    def count_turned_away(self) -> None:
        """Counts a rejected client."""
        self.turned_away += 1

    def count_refusal(self, code: str) -> None:
        """Counts an error that a client gets.

        A code that only libvirt knows stands for a call at the wrong time.
        """
        self.refusals[code if code in self.refusals else "invalid"] += 1


def _count_grants(space: Space, effect: e.Granted) -> None:
    for grant in effect.grants:
        if effect.converted:
            space.converted += 1
            for things in space.held.young, space.held.told:
                if grant.fencing_token in things:
                    things[grant.fencing_token] = grant
        elif grant.count == 1:  # a hold that is counted again is no new grant
            space.waits.observe(effect.waited)
            if space.slow_hold:
                space.held.young[grant.fencing_token] = grant
