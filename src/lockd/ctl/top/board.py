"""The known state of locks and waits, from listings and events.

It has no I/O and no clock: the caller passes the time. Events report every grant and
its end, but not all details. A lock that an event has changed is *vague* until it is
queried again.
"""

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Final

from lockd.ctl.render import Thing, key_of
from lockd.terms import ResourceKey

REMEMBERED: Final = 20_000
"""How many resources have a history here; free ones count too."""

SAMPLES: Final = 9
"""How many of the last holds count for the usual time of a hold."""

ENOUGH: Final = 3
"""The fewest holds for a usual time."""

OVER: Final = 2.0
"""A hold of this many times the usual time is too long."""

NOTICED: Final = 1.0
"""A hold of at most this many seconds over the usual time is not too long."""

ENDED: Final = ("timeout", "cancelled")
"""Codes of refusals that only a waiting request gets."""


class Party:
    """A holder, waiter or session.

    Attributes:
        told: its fields: a holder or waiter of the protocol (7.2, 7.3), or the part of
            it that an event has.
        since: when it began to hold or wait.
    """

    __slots__ = ("since", "told")

    def __init__(self, told: Thing, since: float) -> None:
        self.told = told
        self.since = since


class LockStatus:
    """What is known of one resource with a holder or a waiter.

    Attributes:
        key: its name.
        holders: the known holders, the first one first.
        waiters: the known waiters, in the order of the queue.
        holder_count: the number of holders; some may be unknown.
        waiter_count: the number of waiters.
        outside: the process that locks its file outside lockd, if the daemon knows it.
        slots: how many slots it has; None without slots, or if it is unknown.
        slots_taken: how many of these are held.
        slots_removed: how many are held that it had once.
        last: its last holder (7.4), after a query.
        asked: the time of the daemon's last answer about it.
        heard: the time of its last event.
        vague: whether an event has changed it since the last answer.
    """

    __slots__ = (
        "asked",
        "heard",
        "holder_count",
        "holders",
        "key",
        "last",
        "outside",
        "slots",
        "slots_removed",
        "slots_taken",
        "vague",
        "waiter_count",
        "waiters",
    )

    def __init__(self, key: ResourceKey) -> None:
        self.key = key
        self.holders: list[Party] = []
        self.waiters: list[Party] = []
        self.holder_count = 0
        self.waiter_count = 0
        self.outside: Thing | None = None
        self.slots: int | None = None
        self.slots_taken = self.slots_removed = 0
        self.last: Thing | None = None
        self.asked = self.heard = 0.0
        self.vague = True

    @property
    def is_free(self) -> bool:
        """Whether it has neither holders nor waiters."""
        return not (self.holder_count or self.waiter_count)


class _Past:
    """The history of a resource: how often it was granted, and how long it was held."""

    __slots__ = ("grants", "times")

    def __init__(self) -> None:
        self.grants = 0
        self.times: list[float] = []


class Board:
    """The known state.

    Attributes:
        locks: the resources with a holder or a waiter.
        sessions: the sessions of the last answer; None before the first.
        facts: the daemon's counters (7.7) of the last answer.
        heard: the number of events so far.
    """

    def __init__(self) -> None:
        self.locks: dict[ResourceKey, LockStatus] = {}
        self.sessions: list[Party] | None = None
        self.facts: Thing = {}
        self.heard = 0
        self._past: dict[ResourceKey, _Past] = {}

    # Updates from the daemon.

    def take(self, told: Thing, now: float, asked: float | None = None) -> None:
        """Takes the daemon's answer about a resource (7.5, or a `query`).

        Args:
            told: the answer.
            now: the current time.
            asked: the time of the question, if not `now`. An event since then may be
                newer than the answer, so it wins, and the lock must be queried again.
        """
        key = key_of(told)
        lock = self.locks.get(key) or LockStatus(key)
        if asked is not None and lock.heard >= asked:
            lock.asked = now
            return
        lock.holders = [Party(x, now - x["held_for"]) for x in told["holders"]]
        lock.waiters = [Party(x, now - x["waited"]) for x in told["waiters"]]
        lock.holder_count = told["holder_count"]
        lock.waiter_count = told["waiter_count"]
        lock.outside = told.get("outside")
        lock.slots = told.get("slots")  # an older daemon does not send it
        lock.slots_taken = told.get("slots_taken") or 0
        lock.slots_removed = told.get("slots_removed") or 0
        lock.asked, lock.vague = now, False
        if "last_holder" in told:
            lock.last = told["last_holder"]
            if lock.last is not None and not self._past_of(key).times:
                self._past_of(key).times.append(lock.last["held_for"])
        self._keep_or_forget(lock)

    def take_sessions(self, told: Iterable[Thing], now: float) -> None:
        """Takes the list of sessions."""
        self.sessions = [Party(x, now - x["connected_for"]) for x in told]

    def take_facts(self, told: Thing) -> None:
        """Takes the daemon's counters (7.7)."""
        self.facts = told

    def hear(self, event: Thing, now: float) -> None:
        """Takes an event (7.6)."""
        self.heard += 1
        key = key_of(event)
        lock = self.locks.get(key)
        what = event["event"]
        if lock is None:
            if what not in ("granted", "waiting"):
                return
            lock = LockStatus(key)
        if what == "granted":
            self._past_of(key).grants += 1
            self._granted(lock, event, now)
        elif what == "waiting":
            lock.waiters.append(Party(event, now))
            lock.waiter_count += 1
        elif what == "refused":
            if self._leave_queue(lock, event["session"]) or event["code"] in ENDED:
                lock.waiter_count = max(lock.waiter_count - 1, len(lock.waiters))
        elif what == "released":
            self._released(lock, event["fencing_token"], now)
            _count_slot(lock, event, -1)
        elif what in ("converted", "overdue"):
            new = {"mode": event["mode"]} if what == "converted" else {what: True}
            for holder in lock.holders:
                if holder.told["fencing_token"] == event["fencing_token"]:
                    holder.told = holder.told | new
        lock.vague, lock.heard = True, now
        self._keep_or_forget(lock)

    def forget_unheard(self, since: float) -> None:
        """Removes locks without an answer or event since a listing began."""
        for lock in list(self.locks.values()):
            if max(lock.asked, lock.heard) < since:
                del self.locks[lock.key]

    def forget(self, key: ResourceKey) -> None:
        """Removes a resource that we may not see any more."""
        self.locks.pop(key, None)

    def forget_all(self) -> None:
        """Forgets locks and sessions, but not the history.

        Another daemon may serve now.
        """
        self.locks.clear()
        self.sessions = None

    # Questions.

    @property
    def gone(self) -> int:
        """How many more waiters are here than the daemon counts. They may have left.

        No event reports the end of a session that waits. The daemon counts a waiter for
        several locks once, this board counts it for each of them.
        """
        here = sum(lock.waiter_count for lock in self.locks.values())
        counted: int = self.facts.get("waiting", here)
        return max(here - counted, 0)

    def grants(self, key: ResourceKey) -> int:
        """Returns how often a resource was granted since the start."""
        past = self._past.get(key)
        return past.grants if past else 0

    def usual(self, key: ResourceKey) -> float | None:
        """Returns the usual time of a hold in seconds; None if it is unknown."""
        past = self._past.get(key)
        return median(past.times) if past and len(past.times) >= ENOUGH else None

    def over(self, key: ResourceKey, held_for: float) -> float:
        """Returns how many times the usual time a hold takes; 0 if not too long."""
        usual = self.usual(key)
        if usual is None or held_for < max(usual * OVER, usual + NOTICED):
            return 0.0
        return held_for / max(usual, 0.001)

    def ever_granted(self) -> Iterator[tuple[ResourceKey, int]]:
        """Yields the resources that were granted, free ones too, and how often."""
        for key, past in self._past.items():
            if past.grants:
                yield key, past.grants

    # Internals.

    def _granted(self, lock: LockStatus, event: Thing, now: float) -> None:
        if waiter := self._leave_queue(lock, event["session"]):
            # The waiter has more details than the event.
            event = waiter.told | event
        # Nobody overtakes: if there is a queue, the new holder was in it.
        lock.waiter_count = max(lock.waiter_count - 1, len(lock.waiters))
        tokens = {holder.told["fencing_token"] for holder in lock.holders}
        if event["fencing_token"] not in tokens:
            lock.holders.append(Party(event, now))
            lock.holder_count += 1
            _count_slot(lock, event, 1)

    def _leave_queue(self, lock: LockStatus, session: int) -> Party | None:
        for waiter in lock.waiters:
            if waiter.told["session"] == session:
                lock.waiters.remove(waiter)
                return waiter
        return None

    def _released(self, lock: LockStatus, token: int, now: float) -> None:
        for holder in lock.holders:
            if holder.told["fencing_token"] == token:
                lock.holders.remove(holder)
                times = self._past_of(lock.key).times
                times.append(now - holder.since)
                del times[:-SAMPLES]
                break
        lock.holder_count = max(lock.holder_count - 1, len(lock.holders))

    def _keep_or_forget(self, lock: LockStatus) -> None:
        if lock.is_free:
            self.locks.pop(lock.key, None)
        else:
            self.locks[lock.key] = lock

    def _past_of(self, key: ResourceKey) -> _Past:
        past = self._past.get(key)
        if past is None:
            if len(self._past) >= REMEMBERED:
                del self._past[next(iter(self._past))]
            past = self._past[key] = _Past()
        return past


def _count_slot(lock: LockStatus, event: Thing, change: int) -> None:
    """Counts a slot that was taken or released."""
    slot, slots = event.get("slot"), event.get("slots")
    if slot is None or slots is None:
        return
    token = event["fencing_token"]
    others = [x.told for x in lock.holders if x.told["fencing_token"] != token]
    if any(other.get("slot") == slot for other in others):
        return  # one is inside the other
    lock.slots = slots
    if slot < slots:
        lock.slots_taken = max(lock.slots_taken + change, 0)
    else:
        lock.slots_removed = max(lock.slots_removed + change, 0)
