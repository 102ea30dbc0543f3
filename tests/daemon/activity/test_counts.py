"""What is counted is what is: checked against the lock table, whatever happens."""

import random
from collections import Counter

import pytest

from lockd.daemon.activity.counts import WAIT_BOUNDS, Counts, Histogram, Line
from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.engine.lock_engine import LockEngine
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey

SPACES = ("memory", "files")


def test_histogram_counts_each_below_its_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.0, 1.0, 1.5, 2.0, 2.1, 99.0):
        histogram.observe(seconds)
    assert histogram.counts == [2, 2, 2]
    assert histogram.total == 105.6


class Begun:
    def __init__(self, since: float) -> None:
        self.since = since


def test_line_gives_what_is_old_once_and_in_order() -> None:
    line: Line[int, Begun] = Line()
    things = {number: Begun(number) for number in range(5)}
    line.young.update(things)
    assert line.remove(1) is None
    assert line.take_old(2) == [things[0], things[2]]
    assert line.take_old(2) == []
    assert line.oldest() is things[0]
    assert len(line) == 4
    assert line.remove(0) is things[0]
    assert line.remove(0) is None
    assert line.oldest() is things[2]


def test_line_looks_at_no_more_than_it_gives() -> None:
    looked = 0

    class Counting(Begun):
        @property
        def since(self) -> float:
            nonlocal looked
            looked += 1
            return self._since

        @since.setter
        def since(self, value: float) -> None:
            self._since = value

    line: Line[int, Counting] = Line()
    line.young.update({number: Counting(number) for number in range(1_000)})
    assert len(line.take_old(2)) == 3
    assert looked == 4


class Daemon:
    """An engine whose effects are counted, as `Runtime` and `Answers` have it."""

    def __init__(self) -> None:
        self.engine = LockEngine()
        self.now = 0.0
        self.ended: list[tuple[str, float]] = []
        self.counts = Counts(lambda what, how, now: self.ended.append((how, now)))
        self.to_open: list[e.OpenAnchor] = []
        for name in SPACES:
            self.counts.space(name)
            self.do(c.AddLockspace(name, anchored=name == "files"))

    def do(self, command: c.Command) -> None:
        for effect in self.engine.handle(command, now=self.now):
            hear = self.counts.hears.get(type(effect))
            if hear is not None:
                hear(effect, self.now)
            if isinstance(effect, e.OpenAnchor):
                self.to_open.append(effect)

    def open_session(self, session: int) -> None:
        self.do(c.OpenSession(session, c.Owner("x", session, 1000)))

    def close_session(self, session: int) -> None:
        self.counts.end_session(session, self.now)
        self.do(c.CloseSession(session))

    def acquire(self, session: int, request: int, *keys: ResourceKey) -> None:
        self.do(c.Acquire(session, request, keys, EXCLUSIVE, None))

    def check(self) -> None:
        """Compares with what the table has."""
        engine, spaces = self.engine, self.counts.spaces
        held = Counter(
            grant.key.lockspace
            for owner in engine.owners.values()
            for grant in owner.grants.values()
        )
        waiting = {
            (session.session_id, request.number): request
            for session in engine.sessions.values()
            for request in session.requests.values()
            if request.is_announced
        }
        # Nothing is left of who does not wait.
        remembered = self.counts._waiting.items()
        assert {(s, r) for s, waits in remembered for r in waits} == {*waiting}
        assert all(waits for _, waits in remembered)
        for name, space in spaces.items():
            assert space.held_count == held[name]
            lines = space.waiting.young | space.waiting.told
            assert {*lines} == {
                x for x, r in waiting.items() if r.keys[0].lockspace == name
            }
            since = [wait.since for wait in space.waiting.young.values()]
            assert since == sorted(since)
            if space.slow_hold:
                watched = space.held.young | space.held.told
                grants = [g for o in engine.owners.values() for g in o.grants.values()]
                modes = {token: grant.mode for token, grant in watched.items()}
                assert modes == {
                    g.fencing_token: g.mode for g in grants if g.key.lockspace == name
                }


@pytest.mark.parametrize("seed", range(40))
def test_counts_are_what_the_table_has_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    daemon = Daemon()
    slow_hold = chance.choice([0.0, 1.0])
    daemon.counts.set_thresholds("memory", 0.0, slow_hold, daemon.engine)
    sessions, last = [1, 2, 3, 4], 4
    for session in sessions:
        daemon.open_session(session)
    for number in range(300):
        daemon.now += chance.choice([0.0, 0.1, 3.0])
        session = chance.choice(sessions)
        keys = [
            ResourceKey(space, name)
            for space in (chance.choice(SPACES),)
            for name in chance.sample("abc", chance.choice([1, 1, 2]))
        ]
        mode: Mode = chance.choice([EXCLUSIVE, SHARED])
        match chance.randrange(10):
            case 0 | 1 | 2 | 3:
                timeout = chance.choice([None, 0, 1.0])
                daemon.do(c.Acquire(session, number, tuple(keys), mode, timeout))
            case 4:
                daemon.do(c.Convert(session, number, keys[0], mode, None))
            case 5 | 6:
                daemon.do(c.Release(session, number, tuple(keys), None))
            case 7:
                target = chance.choice([*daemon.engine.sessions[session].requests, 0])
                daemon.do(c.Cancel(session, number, target))
            case 8 if daemon.to_open:
                key = daemon.to_open.pop(0).key
                if chance.random() < 0.3:
                    daemon.do(c.AnchorRefused(key, "busy", "busy", None))
                else:
                    daemon.do(c.AnchorOpened(key))
            case 9 if chance.random() < 0.3:
                daemon.close_session(session)
                sessions.remove(session)
                last += 1
                sessions.append(last)
                daemon.open_session(last)
            case _:
                daemon.do(c.Tick())
                for space in daemon.counts.spaces.values():
                    space.waiting.take_old(daemon.now - 2)
                    space.held.take_old(daemon.now - 2)
        daemon.check()
    # Who takes over begins with the same.
    heir = Daemon()
    heir.engine = daemon.engine
    heir.counts.adopt(heir.engine)
    heir.check()


def test_waits_are_counted_by_how_long_they_were() -> None:
    daemon = Daemon()
    key = ResourceKey("memory", "a")
    for session in (1, 2):
        daemon.open_session(session)
    daemon.acquire(1, 1, key)
    daemon.acquire(2, 1, key)
    daemon.now = 7.0
    daemon.do(c.Release(1, 2, (key,), None))
    space = daemon.counts.spaces["memory"]
    assert space.granted == 2
    assert space.waits.counts[0] == 1
    assert space.waits.counts[WAIT_BOUNDS.index(10.0)] == 1
    assert space.waits.total == space.holds.total == 7.0
    assert space.ends["released"] == 1


def test_hold_that_is_counted_again_is_no_new_grant() -> None:
    daemon = Daemon()
    daemon.open_session(1)
    key = ResourceKey("memory", "a")
    for number in (1, 2):
        daemon.do(c.Acquire(1, number, (key,), SHARED, None))
    assert daemon.counts.spaces["memory"].granted == 1


def test_conversion_is_no_new_grant() -> None:
    daemon = Daemon()
    daemon.open_session(1)
    key = ResourceKey("memory", "a")
    daemon.acquire(1, 1, key)
    daemon.do(c.Convert(1, 2, key, SHARED, None))
    space = daemon.counts.spaces["memory"]
    assert (space.granted, space.converted) == (1, 1)


def test_end_of_what_was_told_of_is_told_and_of_nothing_else() -> None:
    daemon = Daemon()
    key, other = ResourceKey("memory", "a"), ResourceKey("memory", "b")
    space = daemon.counts.spaces["memory"]
    space.set_thresholds(5.0, 5.0)
    for session in (1, 2, 3):
        daemon.open_session(session)
    daemon.acquire(1, 1, key)
    daemon.acquire(2, 1, key)
    daemon.acquire(3, 1, key)
    daemon.now = 6.0
    daemon.acquire(1, 2, other)
    waits, holds = space.take_slow(6.0)
    assert [wait.session for wait in waits] == [2, 3]
    assert [grant.key for grant in holds] == [key]
    assert space.take_slow(6.0) == ([], [])
    assert (space.slow_waits, space.slow_holds) == (2, 1)
    daemon.do(c.Release(1, 3, (other,), None))
    assert daemon.ended == []
    daemon.close_session(3)
    daemon.do(c.Release(1, 4, (key,), None))
    assert daemon.ended == [(x, 6.0) for x in ("disconnected", "released", "granted")]


def test_code_that_nobody_knows_makes_no_new_label() -> None:
    counts = Counts()
    before = set(counts.refusals)
    counts.count_refusal("unknown")
    assert set(counts.refusals) == before
    assert counts.refusals["invalid"] == 1
