"""What is held and waited for, as far as it was heard: from listings, then from events.

No I/O and no clock: whoever hears something says when. Events tell of every grant and
of its end, but not all about who it is; a lock that they changed is *vague* until it is
asked for again.
"""

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Final

from lockd.ctl.render import Thing, key_of
from lockd.terms import ResourceKey

REMEMBERED: Final = 20_000
"""Of how many resources, free ones too, it is known what happened to them."""

SAMPLES: Final = 9
"""From how many holds, the last ones, is told how long one usually takes."""

ENOUGH: Final = 3
"""From how many holds at least; fewer do not tell what is usual."""

OVER: Final = 2.0
"""How many times as long as usual is too long."""

NOTICED: Final = 1.0
"""Seconds over the usual time of which nobody speaks."""

ENDED: Final = ("timeout", "cancelled")
"""The codes of refusals that only those get who have waited."""


class Party:
    """Somebody who holds or waits.

    Attributes:
        told: what the daemon says of it: a holder or waiter of the protocol (7.2, 7.3),
            or as much of that as an event has.
        since: when that began.
    """

    __slots__ = ("since", "told")

    def __init__(self, told: Thing, since: float) -> None:
        self.told = told
        self.since = since


class Lock:
    """One resource that is held or waited for.

    Attributes:
        key: which.
        holders: those that are known by name, the first one first.
        waiters: likewise, in the order of the queue.
        holder_count: how many hold it; more than are known, perhaps.
        waiter_count: how many wait for it.
        outside: who locks its file past lockd, as far as the daemon met him.
        last: who held it last (7.4), once that was asked for.
        asked: when all of this was last told by the daemon.
        heard: when an event was last heard of it.
        vague: whether an event has changed it since.
    """

    __slots__ = (
        "asked",
        "heard",
        "holder_count",
        "holders",
        "key",
        "last",
        "outside",
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
        self.last: Thing | None = None
        self.asked = self.heard = 0.0
        self.vague = True

    @property
    def is_free(self) -> bool:
        """Whether nobody holds it or waits for it."""
        return not (self.holder_count or self.waiter_count)


class _Past:
    """What happened to a resource: how often it was granted, how long it was held."""

    __slots__ = ("grants", "times")

    def __init__(self) -> None:
        self.grants = 0
        self.times: list[float] = []


class Board:
    """All that is known.

    Attributes:
        locks: what is held or waited for.
        sessions: who is connected, when that was last asked; None before the first
            answer.
        facts: the daemon's counters (7.7), when they were last asked for.
        heard: how many events have come.
    """

    def __init__(self) -> None:
        self.locks: dict[ResourceKey, Lock] = {}
        self.sessions: list[Party] | None = None
        self.facts: Thing = {}
        self.heard = 0
        self._past: dict[ResourceKey, _Past] = {}

    # What the daemon says.

    def take(self, told: Thing, now: float, asked: float | None = None) -> None:
        """Takes in what the daemon says of a resource (7.5, or a `query`).

        Args:
            asked: when it was asked, if not just now. What was heard since may be newer
                than what is told, and counts; it has to be asked once more.
        """
        key = key_of(told)
        lock = self.locks.get(key) or Lock(key)
        if asked is not None and lock.heard >= asked:
            lock.asked = now
            return
        lock.holders = [Party(x, now - x["held_for"]) for x in told["holders"]]
        lock.waiters = [Party(x, now - x["waited"]) for x in told["waiters"]]
        lock.holder_count = told["holder_count"]
        lock.waiter_count = told["waiter_count"]
        lock.outside = told.get("outside")
        lock.asked, lock.vague = now, False
        if "last_holder" in told:
            lock.last = told["last_holder"]
            if lock.last is not None and not self._past_of(key).times:
                self._past_of(key).times.append(lock.last["held_for"])
        self._keep_or_forget(lock)

    def take_sessions(self, told: Iterable[Thing], now: float) -> None:
        """Takes in who is connected."""
        self.sessions = [Party(x, now - x["connected_for"]) for x in told]

    def take_facts(self, told: Thing) -> None:
        """Takes in the daemon's counters (7.7)."""
        self.facts = told

    def hear(self, event: Thing, now: float) -> None:
        """Takes in an event (7.6)."""
        self.heard += 1
        key = key_of(event)
        lock = self.locks.get(key)
        what = event["event"]
        if lock is None:
            if what not in ("granted", "waiting"):
                return
            lock = Lock(key)
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
        elif what == "converted":
            for holder in lock.holders:
                if holder.told["fencing_token"] == event["fencing_token"]:
                    holder.told = holder.told | {"mode": event["mode"]}
        lock.vague, lock.heard = True, now
        self._keep_or_forget(lock)

    def forget_unheard(self, since: float) -> None:
        """Forgets what was neither told nor heard of since a listing began."""
        for lock in list(self.locks.values()):
            if max(lock.asked, lock.heard) < since:
                del self.locks[lock.key]

    def forget(self, key: ResourceKey) -> None:
        """Forgets a resource of which the daemon does not tell us any more."""
        self.locks.pop(key, None)

    def forget_all(self) -> None:
        """Forgets what is, but not what was: another daemon may serve now."""
        self.locks.clear()
        self.sessions = None

    # What is asked of it.

    @property
    def gone(self) -> int:
        """How many more wait here than the daemon counted, and so have left, perhaps.

        No event tells of a session that ends while it waits. Who waits for several
        locks at once is counted once by the daemon, and here for each of them.
        """
        here = sum(lock.waiter_count for lock in self.locks.values())
        counted: int = self.facts.get("waiting", here)
        return max(here - counted, 0)

    def grants(self, key: ResourceKey) -> int:
        """Returns how often a resource was seen to be granted."""
        past = self._past.get(key)
        return past.grants if past else 0

    def usual(self, key: ResourceKey) -> float | None:
        """Returns how long a resource is usually held, in seconds, if that is known."""
        past = self._past.get(key)
        return median(past.times) if past and len(past.times) >= ENOUGH else None

    def over(self, key: ResourceKey, held_for: float) -> float:
        """Returns how many times the usual time it is held; 0 if not too long."""
        usual = self.usual(key)
        if usual is None or held_for < max(usual * OVER, usual + NOTICED):
            return 0.0
        return held_for / max(usual, 0.001)

    def ever_granted(self) -> Iterator[tuple[ResourceKey, int]]:
        """Goes through what was seen to be granted, and how often; free locks too."""
        for key, past in self._past.items():
            if past.grants:
                yield key, past.grants

    # Inside.

    def _granted(self, lock: Lock, event: Thing, now: float) -> None:
        if waiter := self._leave_queue(lock, event["session"]):
            # It says more about itself than the event does.
            event = waiter.told | event
        # Nobody overtakes: while there is a queue, who gets the lock was in it.
        lock.waiter_count = max(lock.waiter_count - 1, len(lock.waiters))
        tokens = {holder.told["fencing_token"] for holder in lock.holders}
        if event["fencing_token"] not in tokens:
            lock.holders.append(Party(event, now))
            lock.holder_count += 1

    def _leave_queue(self, lock: Lock, session: int) -> Party | None:
        for waiter in lock.waiters:
            if waiter.told["session"] == session:
                lock.waiters.remove(waiter)
                return waiter
        return None

    def _released(self, lock: Lock, token: int, now: float) -> None:
        for holder in lock.holders:
            if holder.told["fencing_token"] == token:
                lock.holders.remove(holder)
                times = self._past_of(lock.key).times
                times.append(now - holder.since)
                del times[:-SAMPLES]
                break
        lock.holder_count = max(lock.holder_count - 1, len(lock.holders))

    def _keep_or_forget(self, lock: Lock) -> None:
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
