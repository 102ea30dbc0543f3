"""What a holder hears: that it holds too long, and that others wait for it."""

from collections import OrderedDict
from typing import Any

import pytest

from engine.ledger import Ledger
from engine.scene import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    DISK,
    FILE,
    GUARDED,
    TAPE,
    acquire,
    convert,
    owner,
    release,
)
from engine.snapshots import dump
from lockd.engine.commands import (
    AddLockspace,
    AnchorOpened,
    AnchorRefused,
    BreakGrant,
    Cancel,
    CloseSession,
    Command,
    EndOwner,
    RegisterOwner,
    Release,
    Tick,
)
from lockd.engine.effects import (
    BreakOverdue,
    Completed,
    Effect,
    Ended,
    Fence,
    Granted,
    Lost,
    Overdue,
    Unwanted,
    Wanted,
)
from lockd.engine.invariants import check
from lockd.engine.lock_engine import LockEngine
from lockd.engine.lock_state import MAX_LISTENERS
from lockd.engine.recovery import records, snapshot
from lockd.terms import EXCLUSIVE, SHARED, SLOT

Told = tuple[str, int | None, int, int]
"""What was told, to which session, the token, how many wait."""


def told(effects: list[Effect]) -> list[Told]:
    return [
        (type(x).__name__.lower(), x.session, x.grant.fencing_token, x.waiter_count)
        for x in effects
        if isinstance(x, Overdue | Wanted | Unwanted)
    ]


def do(engine: LockEngine, command: Command, now: float = 0.0) -> list[Told]:
    effects = engine.handle(command, now=now)
    check(engine)
    return told(effects)


def ask(engine: LockEngine, session: int, request: int, *keys: Any, **more: Any) -> Any:
    effects = acquire(engine, session, request, *keys, **more)
    check(engine)
    return told(effects)


def tick(engine: LockEngine, now: float) -> list[Told]:
    return do(engine, Tick(), now)


def reloaded(engine: LockEngine) -> LockEngine:
    """Returns what goes on after an upgrade; what a crash leaves is the same."""
    ledger = Ledger()
    ledger.begin(engine)
    loaded = ledger.recover()
    assert (loaded.problems, loaded.damaged, loaded.orphans) == ([], [], [])
    assert dump(loaded.engine) == dump(engine)
    check(loaded.engine)
    return loaded.engine


# Overdue.


def test_overdue_is_told_once_at_its_time(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, max_hold=5.0, now=1.0)
    assert engine.next_deadline() == 6.0
    assert tick(engine, 5.9) == []
    assert tick(engine, 6.0) == [("overdue", ALICE, 1, 0)]
    assert engine.next_deadline() is None
    assert tick(engine, 99.0) == []
    (held,) = engine.holders(DISK)
    assert held.is_overdue


def test_overdue_says_how_many_wait(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, max_hold=5.0)
    ask(engine, BOB, 1, DISK)
    ask(engine, CAROL, 1, DISK)
    assert tick(engine, 5.0) == [("overdue", ALICE, 1, 2)]


def test_overdue_of_an_ended_grant_is_not_told(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, max_hold=5.0)
    release(engine, ALICE, 2, DISK)
    assert engine.next_deadline() is None
    assert tick(engine, 9.0) == []


def test_time_in_the_line_does_not_count(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK)
    ask(engine, BOB, 1, DISK, max_hold=5.0)
    release(engine, ALICE, 2, DISK, now=4.0)
    assert tick(engine, 8.0) == []
    assert tick(engine, 9.0) == [("overdue", BOB, 2, 0)]


def test_each_of_several_resources_is_told(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, TAPE, max_hold=5.0)
    release(engine, ALICE, 2, TAPE)
    assert tick(engine, 5.0) == [("overdue", ALICE, 1, 0)]


def test_smaller_of_both_times_counts(engine: LockEngine) -> None:
    engine.handle(AddLockspace("memory", False, max_hold=5.0), now=0.0)
    ask(engine, ALICE, 1, DISK, max_hold=9.0)
    ask(engine, BOB, 1, TAPE, max_hold=2.0)
    assert tick(engine, 2.0) == [("overdue", BOB, 2, 0)]
    assert tick(engine, 5.0) == [("overdue", ALICE, 1, 0)]


def test_time_of_the_lockspace_is_not_told_to_who_did_not_ask(
    engine: LockEngine,
) -> None:
    engine.handle(AddLockspace("memory", False, max_hold=5.0), now=0.0)
    ask(engine, ALICE, 1, DISK)
    assert tick(engine, 5.0) == [("overdue", None, 1, 0)]


def test_new_time_of_a_lockspace_counts_for_later_grants(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK)
    engine.handle(AddLockspace("memory", False, max_hold=5.0), now=0.0)
    ask(engine, BOB, 1, TAPE)
    engine.handle(AddLockspace("memory", False), now=0.0)
    assert tick(engine, 9.0) == [("overdue", None, 2, 0)]


def test_convert_keeps_the_time(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, max_hold=5.0)
    convert(engine, ALICE, 2, DISK, SHARED, now=3.0)
    assert tick(engine, 5.0) == [("overdue", ALICE, 1, 0)]
    convert(engine, ALICE, 3, DISK, EXCLUSIVE, now=6.0)
    assert tick(engine, 99.0) == []
    assert engine.holders(DISK)[0].is_overdue


def test_each_shared_holder_that_asked_is_told(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, mode=SHARED, max_hold=5.0)
    ask(engine, BOB, 1, DISK, mode=SHARED)
    ask(engine, CAROL, 1, DISK, mode=SHARED, max_hold=5.0)
    found = [("overdue", CAROL, 3, 0), ("overdue", ALICE, 1, 0)]
    assert tick(engine, 5.0) == found


def test_counted_hold_has_the_earliest_time(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, mode=SHARED)
    ask(engine, ALICE, 2, DISK, mode=SHARED, max_hold=9.0)
    ask(engine, ALICE, 3, DISK, mode=SHARED, max_hold=5.0)
    ask(engine, ALICE, 4, DISK, mode=SHARED, max_hold=50.0)
    release(engine, ALICE, 5, DISK)
    assert tick(engine, 5.0) == [("overdue", ALICE, 1, 0)]
    ask(engine, ALICE, 6, DISK, mode=SHARED, max_hold=1.0, now=6.0)
    assert tick(engine, 99.0) == []


def test_times_of_ended_grants_do_not_pile_up(engine: LockEngine) -> None:
    for request in range(1, 1000):
        ask(engine, ALICE, request, DISK, max_hold=3600.0)
        release(engine, ALICE, 0, DISK)
    assert len(engine.state.deadlines) < 100
    assert engine.next_deadline() is None


def test_times_and_timeouts_come_due_in_one_order(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, max_hold=2.0)
    ask(engine, BOB, 1, DISK, timeout=1.0)
    ask(engine, CAROL, 1, DISK, timeout=2.0)
    effects = [type(x).__name__ for x in engine.handle(Tick(), now=3.0)]
    assert effects == ["Refused", "Overdue", "Refused"]


def test_session_that_acquired_hears_for_a_process(engine: LockEngine) -> None:
    for session in (ALICE, BOB):
        who = owner("guest", 77)
        engine.handle(RegisterOwner(session, 1, 9, who), now=0.0)
    ask(engine, ALICE, 2, DISK, max_hold=5.0, wanted=True)
    ask(engine, BOB, 2, TAPE, max_hold=5.0, wanted=True)
    ask(engine, BOB, 3, FILE, max_hold=5.0)
    assert ask(engine, CAROL, 1, DISK, TAPE) == [
        ("wanted", ALICE, 1, 1),
        ("wanted", BOB, 2, 1),
    ]
    # ALICE leaves her lock to the process; nobody hears for her.
    assert do(engine, CloseSession(ALICE)) == []
    assert tick(engine, 5.0) == [("overdue", BOB, 2, 1), ("overdue", None, 1, 1)]
    assert do(engine, Cancel(CAROL, 2, 1)) == [("unwanted", BOB, 2, 0)]
    assert do(engine, EndOwner(9)) == []


def test_who_takes_a_hold_again_hears_in_the_place_of_who_is_gone(
    engine: LockEngine,
) -> None:
    for session in (ALICE, BOB, CAROL):
        who = owner("guest", 77)
        engine.handle(RegisterOwner(session, 1, 9, who), now=0.0)
    ask(engine, ALICE, 2, DISK, mode=SHARED)
    ask(engine, DAVE, 2, DISK)
    shared = {"mode": SHARED, "max_hold": 5.0, "wanted": True}
    # ALICE asked for nothing, so BOB is the first who hears.
    assert ask(engine, BOB, 2, DISK, **shared) == [("wanted", BOB, 1, 1)]
    assert ask(engine, CAROL, 2, DISK, **shared) == []
    do(engine, CloseSession(BOB))
    assert ask(engine, CAROL, 3, DISK, **shared) == [("wanted", CAROL, 1, 1)]
    assert tick(engine, 5.0) == [("overdue", CAROL, 1, 1)]


# On overdue: break.


@pytest.fixture
def strict(engine: LockEngine) -> LockEngine:
    breaks = {"max_hold": 5.0, "on_overdue": "break"}
    engine.handle(AddLockspace("memory", False, **breaks), now=0.0)  # type: ignore[arg-type]
    engine.handle(AddLockspace("guarded", False, "kill", **breaks), now=0.0)  # type: ignore[arg-type]
    return engine


def test_overdue_is_broken_where_the_lockspace_says_so(strict: LockEngine) -> None:
    ask(strict, ALICE, 1, DISK)
    ask(strict, BOB, 1, DISK, max_hold=2.0)
    effects = strict.handle(Tick(), now=5.0)
    assert told(effects) == [("overdue", None, 1, 1)]
    assert isinstance(effects[-1], BreakOverdue)
    assert effects[-1].grant.fencing_token == 1
    lost, ended, granted, done = strict.handle(BreakGrant(0, 0, 1, "late"), now=5.0)
    assert isinstance(lost, Lost)
    assert (lost.session, lost.cause, lost.reason) == (ALICE, "broken", "late")
    assert isinstance(ended, Ended)
    assert ended.cause == "broken"
    assert isinstance(granted, Granted)
    assert granted.session == BOB
    assert done == Completed(0, 0)
    check(strict)


def test_own_time_is_broken_there_too(strict: LockEngine) -> None:
    ask(strict, ALICE, 1, DISK, max_hold=2.0)
    effects = strict.handle(Tick(), now=2.0)
    assert [type(x) for x in effects] == [Overdue, BreakOverdue]


def test_overdue_is_fenced_first_where_disconnect_kills(strict: LockEngine) -> None:
    ask(strict, ALICE, 1, GUARDED)
    assert isinstance(strict.handle(Tick(), now=5.0)[-1], BreakOverdue)
    effects = strict.handle(BreakGrant(0, 0, 1, "late"), now=5.0)
    assert [type(x) for x in effects] == [Lost, Fence, Completed]
    assert tick(strict, 99.0) == []
    assert len(strict.holders(GUARDED)) == 1


# Wanted.


def test_wanted_is_told_with_the_first_waiter_and_unwanted_with_the_last(
    engine: LockEngine,
) -> None:
    ask(engine, ALICE, 1, DISK, wanted=True)
    assert ask(engine, BOB, 1, DISK) == [("wanted", ALICE, 1, 1)]
    assert ask(engine, CAROL, 1, DISK) == []
    assert do(engine, Cancel(BOB, 2, 1)) == []
    assert do(engine, CloseSession(CAROL)) == [("unwanted", ALICE, 1, 0)]
    assert ask(engine, BOB, 3, DISK, timeout=3.0) == [("wanted", ALICE, 1, 1)]
    assert tick(engine, 3.0) == [("unwanted", ALICE, 1, 0)]


def test_who_did_not_ask_hears_nothing(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK)
    assert ask(engine, BOB, 1, DISK) == []
    assert do(engine, Cancel(BOB, 2, 1)) == []


def test_waiter_cannot_ask_for_the_holder(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK)
    assert ask(engine, BOB, 1, DISK, wanted=True, max_hold=1.0) == []
    assert tick(engine, 9.0) == []


def test_try_is_no_waiter(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, wanted=True)
    assert ask(engine, BOB, 1, DISK, timeout=0) == []


def test_who_gets_it_while_others_wait_is_wanted_at_once(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK)
    ask(engine, BOB, 1, DISK, wanted=True)
    ask(engine, CAROL, 1, DISK)
    effects = release(engine, ALICE, 2, DISK)
    kinds = [type(x).__name__ for x in effects]
    assert kinds == ["Ended", "Granted", "Wanted", "Completed"]
    assert told(effects) == [("wanted", BOB, 2, 1)]
    check(engine)


def test_end_of_a_wanted_grant_says_no_more(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, wanted=True)
    ask(engine, BOB, 1, DISK)
    assert do(engine, Release(ALICE, 2, (DISK,))) == []
    assert do(engine, Release(BOB, 2, (DISK,))) == []


def test_shared_holder_is_not_in_the_way_of_who_shares(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, TAPE)
    ask(engine, BOB, 1, DISK, mode=SHARED, wanted=True)
    # CAROL waits at the disk, but not for BOB.
    assert ask(engine, CAROL, 1, DISK, TAPE, mode=SHARED) == []
    assert ask(engine, DAVE, 1, DISK) == [("wanted", BOB, 2, 2)]


def test_each_shared_holder_that_asked_is_wanted(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, mode=SHARED, wanted=True)
    ask(engine, BOB, 1, DISK, mode=SHARED)
    ask(engine, CAROL, 1, DISK, mode=SHARED, wanted=True)
    found = [("wanted", ALICE, 1, 1), ("wanted", CAROL, 3, 1)]
    assert ask(engine, DAVE, 1, DISK) == found


def test_convert_of_another_holder_wants_it_and_the_own_does_not(
    engine: LockEngine,
) -> None:
    ask(engine, ALICE, 1, DISK, mode=SHARED, wanted=True)
    ask(engine, BOB, 1, DISK, mode=SHARED, wanted=True)
    effects = convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    assert told(effects) == [("wanted", BOB, 2, 1)]
    # BOB is gone: ALICE has it alone, and nobody waits.
    assert do(engine, Release(BOB, 2, (DISK,))) == []
    assert engine.holders(DISK)[0].mode == EXCLUSIVE


def test_convert_to_shared_lets_who_shares_in(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, wanted=True)
    assert ask(engine, BOB, 1, DISK, mode=SHARED) == [("wanted", ALICE, 1, 1)]
    effects = convert(engine, ALICE, 2, DISK, SHARED)
    assert told(effects) == [("unwanted", ALICE, 1, 0)]
    check(engine)


def test_convert_to_exclusive_gets_in_the_way(engine: LockEngine) -> None:
    ask(engine, BOB, 1, TAPE)
    ask(engine, ALICE, 1, DISK, mode=SHARED, wanted=True)
    ask(engine, CAROL, 1, DISK, TAPE, mode=SHARED)
    effects = convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    assert told(effects) == [("wanted", ALICE, 2, 1)]
    check(engine)


def test_refused_deadlock_was_no_waiter(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, wanted=True)
    ask(engine, BOB, 1, TAPE)
    ask(engine, ALICE, 2, TAPE)
    assert ask(engine, BOB, 2, DISK) == []


def test_holders_that_have_heard_it_all_are_not_looked_at(engine: LockEngine) -> None:
    for strand in range(1, 50):
        ask(engine, ALICE, strand, DISK, mode=SHARED, strand=strand, wanted=True)
    assert len(ask(engine, BOB, 1, DISK)) == 49
    resource = engine.state.resources[DISK]
    resource.listeners = Untouched(resource.listeners)
    assert ask(engine, CAROL, 1, DISK) == []
    assert do(engine, Cancel(CAROL, 2, 1)) == []
    assert resource.listeners.looked_at == 2  # by the checks of the laws


def test_new_listener_is_told_alone(engine: LockEngine) -> None:
    shared = {"mode": SHARED, "wanted": True}
    for strand in range(1, 50):
        ask(engine, ALICE, strand, DISK, strand=strand, **shared)
    resource = engine.state.resources[DISK]
    resource.listeners = Untouched(resource.listeners)
    ask(engine, BOB, 1, DISK, **shared)
    do(engine, Release(BOB, 2, (DISK,)))
    assert resource.listeners.looked_at == 2  # by the checks of the laws


def test_listeners_are_not_told_who_else_comes_first(engine: LockEngine) -> None:
    for strand in range(1, 50):
        ask(engine, ALICE, strand, DISK, mode=SHARED, strand=strand, wanted=True)
    ask(engine, BOB, 1, DISK)
    ask(engine, CAROL, 1, DISK)
    resource = engine.state.resources[DISK]
    resource.listeners = Untouched(resource.listeners)
    assert do(engine, Cancel(BOB, 2, 1)) == []
    assert resource.listeners.looked_at == 1  # by the check of the laws


class Untouched(dict[Any, Any]):
    """A dictionary that counts who goes through all of it."""

    looked_at = 0

    def __iter__(self) -> Any:
        self.looked_at += 1
        return super().__iter__()


def test_who_shares_is_not_looked_at_in_a_long_line(engine: LockEngine) -> None:
    """CAROL waits for the tape; all others stand behind her, in nobody's way."""
    ask(engine, ALICE, 1, TAPE)
    ask(engine, BOB, 1, DISK, mode=SHARED, wanted=True)
    ask(engine, CAROL, 1, DISK, TAPE, mode=SHARED)
    for strand in range(1, 200):
        acquire(engine, CAROL, 1 + strand, DISK, mode=SHARED, strand=strand)
    resource = engine.state.resources[DISK]
    resource.waiting = line = Counted(resource.waiting)
    acquire(engine, DAVE, 1, DISK, mode=SHARED)
    engine.handle(Cancel(DAVE, 2, 1), now=0.0)
    assert 0 < line.looked_at < 50
    assert ask(engine, DAVE, 3, DISK) == [("wanted", BOB, 2, 201)]
    assert do(engine, Cancel(DAVE, 4, 3)) == [("unwanted", BOB, 2, 200)]


class Counted(OrderedDict[Any, Any]):
    """A line that counts how many in it are looked at."""

    looked_at = 0

    def __iter__(self) -> Any:
        for request in super().__iter__():
            self.looked_at += 1
            yield request


@pytest.mark.parametrize("mode", [{"mode": SHARED}, {"mode": SLOT, "slots": 100}])
def test_a_limited_number_of_holders_hears(
    engine: LockEngine, mode: dict[str, Any]
) -> None:
    for strand in range(1, MAX_LISTENERS + 3):
        ask(engine, ALICE, strand, DISK, strand=strand, wanted=True, **mode)
    wanted = ask(engine, BOB, 1, DISK)
    assert [x[2] for x in wanted] == [*range(1, MAX_LISTENERS + 1)]
    assert len(do(engine, Cancel(BOB, 2, 1))) == MAX_LISTENERS
    # The end of one who hears makes room for the next who asks.
    do(engine, Release(ALICE, 100, (), fencing_token=1))
    ask(engine, CAROL, 1, DISK, wanted=True, **mode)
    ask(engine, CAROL, 2, DISK, strand=1, wanted=True, **mode)
    wanted = ask(engine, BOB, 3, DISK)
    later = MAX_LISTENERS + 3
    assert [x[2] for x in wanted] == [*range(2, MAX_LISTENERS + 1), later]


def test_who_shared_a_hold_hears_after_its_own_release(engine: LockEngine) -> None:
    """Sessions that act for one process have one hold: the first that asked hears."""
    for session in (ALICE, BOB):
        who = owner("guest", 77)
        engine.handle(RegisterOwner(session, 1, 9, who), now=0.0)
        ask(engine, session, 2, DISK, mode=SHARED, max_hold=5.0, wanted=True)
    do(engine, Release(ALICE, 3, (DISK,)))
    assert ask(engine, CAROL, 1, DISK) == [("wanted", ALICE, 1, 1)]
    assert tick(engine, 5.0) == [("overdue", ALICE, 1, 1)]
    # Nobody hears after her end, until one asks anew.
    do(engine, CloseSession(ALICE))
    assert do(engine, Cancel(CAROL, 2, 1)) == []
    ask(engine, BOB, 3, DISK, mode=SHARED, wanted=True)
    assert ask(engine, CAROL, 3, DISK) == [("wanted", BOB, 1, 1)]


# Anchors.


def test_file_is_wanted_only_while_somebody_waits_in_line(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, FILE, mode=SHARED, wanted=True)
    assert do(engine, AnchorOpened(FILE)) == []
    # It is being opened for BOB, who shares it: nobody is in his way.
    assert ask(engine, BOB, 1, FILE, mode=SHARED) == []
    assert ask(engine, CAROL, 1, FILE) == [("wanted", ALICE, 1, 2)]
    assert do(engine, AnchorOpened(FILE)) == []
    assert do(engine, Cancel(CAROL, 2, 1)) == [("unwanted", ALICE, 1, 0)]


def test_time_of_a_file_begins_when_it_is_open(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, FILE, max_hold=5.0)
    do(engine, AnchorRefused(FILE, "busy"))
    tick(engine, 1.0)
    do(engine, AnchorOpened(FILE), 2.0)
    assert tick(engine, 6.9) == []
    assert tick(engine, 7.0) == [("overdue", ALICE, 1, 0)]


# Upgrades and crashes.


def test_what_was_told_is_not_told_again_by_a_successor(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, max_hold=5.0, wanted=True)
    ask(engine, BOB, 1, DISK)
    assert tick(engine, 5.0) == [("overdue", ALICE, 1, 1)]
    successor = reloaded(engine)
    assert successor.next_deadline() is None
    assert tick(successor, 99.0) == []
    assert do(successor, Cancel(BOB, 2, 1)) == [("unwanted", ALICE, 1, 0)]


def test_what_was_not_told_is_told_by_a_successor(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK, max_hold=5.0, wanted=True)
    ask(engine, BOB, 1, TAPE, max_hold=50.0)
    ask(engine, CAROL, 1, TAPE, max_hold=7.0, wanted=True)
    successor = reloaded(engine)
    assert successor.next_deadline() == 5.0
    assert tick(successor, 6.0) == [("overdue", ALICE, 1, 0)]
    assert ask(successor, BOB, 2, DISK) == [("wanted", ALICE, 1, 1)]
    # CAROL asked before: the request remembers that.
    assert do(successor, Release(BOB, 3, (TAPE,)), 10.0) == []
    assert ask(successor, DAVE, 3, TAPE) == [("wanted", CAROL, 3, 1)]
    assert tick(successor, 17.0) == [("overdue", CAROL, 3, 1)]


def test_lost_waiter_is_found_by_the_successor(engine: LockEngine) -> None:
    """A record that is lost may have been about the only one who waited."""
    ask(engine, ALICE, 1, DISK, wanted=True)
    ask(engine, BOB, 1, DISK)
    left = [x for x in records.everything(engine) if x[0] != "request"]
    found = snapshot.load(records.assemble(left))
    check(found.engine)
    assert do(found.engine, Tick()) == [("unwanted", ALICE, 1, 0)]


def test_records_of_an_older_daemon_load(engine: LockEngine) -> None:
    ask(engine, ALICE, 1, DISK)
    ask(engine, BOB, 1, DISK)
    old = dump(engine)
    old["version"] = 4
    for space in old["lockspaces"]:
        del space["max_hold"], space["on_overdue"]
    for request in old["requests"]:
        del request["max_hold"], request["wanted"]
    for record in old["owners"]:
        for held in record["grants"]:
            held.pop("notices", None)
    loaded = snapshot.load(old)
    assert loaded.problems == []
    assert dump(loaded.engine) == dump(engine)
