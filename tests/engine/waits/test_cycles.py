import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from engine.scene import (
    ALICE,
    BOB,
    CARD,
    CAROL,
    CAST,
    DISK,
    TAPE,
    acquire,
    convert,
    converted,
    grant,
    granted,
    owner,
    queued,
    refusal,
    release,
)
from lockd.engine.commands import (
    AddLockspace,
    Cancel,
    CloseSession,
    OpenSession,
    RegisterOwner,
)
from lockd.engine.effects import Ended, LastHolder, Refused, WaitEdge
from lockd.engine.lock_engine import LockEngine
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey


def wait(session: int, key: ResourceKey) -> WaitEdge:
    return WaitEdge(owner(CAST[session], session), session, key)


def test_two_sessions_that_want_what_the_other_holds(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    assert acquire(engine, ALICE, 2, TAPE) == [queued(ALICE, 2, TAPE)]
    refused = refusal(acquire(engine, BOB, 2, DISK))
    assert refused.code == "deadlock"
    assert refused.cycle == (wait(BOB, DISK), wait(ALICE, TAPE))
    assert refused.situation is not None
    assert refused.situation.holders == (grant(DISK, ALICE, 1),)
    assert refused.situation.waiter_count == 0


def test_who_is_refused_a_deadlock_keeps_what_it_holds(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, ALICE, 2, TAPE)
    acquire(engine, BOB, 2, DISK)
    assert engine.holds(TAPE, 2)
    assert granted(ALICE, 2, grant(TAPE, ALICE, 3)) in release(engine, BOB, 3, TAPE)


def test_three_sessions_in_a_ring(engine: LockEngine) -> None:
    for session, key in ((ALICE, DISK), (BOB, TAPE), (CAROL, CARD)):
        acquire(engine, session, 1, key)
    acquire(engine, ALICE, 2, TAPE)
    acquire(engine, BOB, 2, CARD)
    refused = refusal(acquire(engine, CAROL, 2, DISK))
    assert refused.cycle == (wait(CAROL, DISK), wait(ALICE, TAPE), wait(BOB, CARD))


def test_chain_without_a_ring_is_no_deadlock(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    assert acquire(engine, BOB, 2, DISK) == [queued(BOB, 2, DISK)]
    assert acquire(engine, CAROL, 1, TAPE) == [queued(CAROL, 1, TAPE)]


def test_ring_through_a_place_in_a_queue(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, CAROL, 1, DISK)
    # Bob would fit beside Alice, but not before Carol, who waits for Alice.
    assert acquire(engine, BOB, 2, DISK, mode=SHARED) == [
        queued(BOB, 2, DISK, mode=SHARED)
    ]
    refused = refusal(acquire(engine, ALICE, 2, TAPE))
    assert refused.cycle == (wait(ALICE, TAPE), wait(BOB, DISK), wait(CAROL, DISK))


def test_ring_through_a_request_for_several(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, CARD)
    acquire(engine, BOB, 2, TAPE, DISK)
    refused = refusal(acquire(engine, ALICE, 2, CARD))
    assert refused.cycle == (wait(ALICE, CARD), wait(BOB, DISK))


def test_of_two_upgraders_the_second_is_refused_at_once(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    refused = refusal(convert(engine, BOB, 2, DISK, EXCLUSIVE))
    assert refused.code == "deadlock"
    assert refused.cycle == (wait(BOB, DISK), wait(ALICE, DISK))
    assert converted(ALICE, 2, grant(DISK, ALICE, 1)) in release(engine, BOB, 3, DISK)


def test_shared_holder_that_waits_behind_who_waits_for_it(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 1, DISK)
    refused = refusal(acquire(engine, BOB, 2, DISK, mode=SHARED))
    assert refused.cycle == (wait(BOB, DISK), wait(CAROL, DISK))


def test_who_waits_to_share_twice_does_not_wait_for_who_will_share_too(
    engine: LockEngine,
) -> None:
    acquire(engine, BOB, 1, DISK)
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 1, DISK, mode=SHARED)
    assert acquire(engine, ALICE, 2, DISK, mode=SHARED) == [
        queued(ALICE, 2, DISK, mode=SHARED)
    ]


def test_holder_behind_a_shared_waiter_does_not_wait_for_it(engine: LockEngine) -> None:
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, TAPE)
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 2, DISK, mode=SHARED)
    assert acquire(engine, ALICE, 2, TAPE) == [queued(ALICE, 2, TAPE)]


def test_shared_waiter_waits_for_a_shared_request_for_several(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, TAPE)
    acquire(engine, CAROL, 1, DISK)
    acquire(engine, BOB, 1, DISK, TAPE, mode=SHARED)
    refused = refusal(acquire(engine, ALICE, 2, DISK, mode=SHARED))
    assert refused.cycle == (wait(ALICE, DISK), wait(BOB, TAPE))


def test_shared_waiter_does_not_wait_for_what_else_the_one_before_it_wants(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, TAPE)
    acquire(engine, CAROL, 1, DISK)
    acquire(engine, BOB, 1, DISK, CARD, mode=SHARED)
    acquire(engine, BOB, 2, TAPE)
    assert acquire(engine, ALICE, 2, DISK, mode=SHARED) == [
        queued(ALICE, 2, DISK, mode=SHARED)
    ]


def test_upgrade_that_makes_others_wait_for_its_owner(engine: LockEngine) -> None:
    acquire(engine, CAROL, 1, TAPE)
    acquire(engine, BOB, 1, CARD)
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 2, DISK, mode=SHARED)
    # Bob would share the disk with Alice, and waits only for Carol's tape.
    acquire(engine, BOB, 2, DISK, TAPE, mode=SHARED)
    acquire(engine, ALICE, 2, CARD)
    refused = refusal(convert(engine, ALICE, 3, DISK, EXCLUSIVE))
    assert refused.code == "deadlock"
    assert refused.cycle == (wait(ALICE, CARD), wait(BOB, DISK))


def test_upgrade_that_need_not_wait_but_closes_a_ring(engine: LockEngine) -> None:
    acquire(engine, CAROL, 1, TAPE)
    acquire(engine, BOB, 1, CARD)
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 2, DISK, TAPE, mode=SHARED)
    acquire(engine, ALICE, 2, CARD)
    refused = refusal(convert(engine, ALICE, 3, DISK, EXCLUSIVE))
    assert refused.code == "deadlock"
    assert refused.cycle == (wait(ALICE, CARD), wait(BOB, DISK))
    assert engine.situation(DISK).holders == (grant(DISK, ALICE, 3, SHARED),)


def test_upgrade_beside_a_wait_elsewhere_closes_no_ring(engine: LockEngine) -> None:
    acquire(engine, BOB, 1, CARD)
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, ALICE, 2, CARD)
    acquire(engine, CAROL, 1, DISK)
    assert convert(engine, ALICE, 3, DISK, EXCLUSIVE) == [
        converted(ALICE, 3, grant(DISK, ALICE, 2))
    ]


def test_sessions_of_one_process_are_one_party(engine: LockEngine) -> None:
    for session in (ALICE, BOB):
        command = RegisterOwner(session, 9, 100, owner("guest", 700))
        engine.handle(command, now=0.0)
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, CAROL, 1, TAPE)
    acquire(engine, CAROL, 2, DISK)
    refused = refusal(acquire(engine, BOB, 1, TAPE))
    assert [edge.session for edge in refused.cycle] == [BOB, CAROL]


def test_ring_is_gone_when_one_of_its_waits_is_given_up(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, ALICE, 2, TAPE)
    engine.handle(Cancel(ALICE, 3, 2), now=0.0)
    assert acquire(engine, BOB, 2, DISK) == [queued(BOB, 2, DISK)]


def test_long_chain_is_searched_in_full(engine: LockEngine) -> None:
    keys = [ResourceKey("memory", f"r{i}") for i in range(4)]
    for session, key in zip(CAST, keys, strict=True):
        acquire(engine, session, 1, key)
    for session, key in zip([*CAST][:-1], keys[1:], strict=True):
        acquire(engine, session, 2, key)
    last = [*CAST][-1]
    assert [x.session for x in refusal(acquire(engine, last, 2, keys[0])).cycle] == [
        last,
        *[*CAST][:-1],
    ]


def test_who_leaves_a_refused_ring_leaves_nothing_behind(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, ALICE, 2, TAPE)
    assert isinstance(acquire(engine, BOB, 2, DISK)[0], Refused)
    ended, passed_on = engine.handle(CloseSession(BOB), now=0.0)
    assert ended == Ended(grant(TAPE, BOB, 2), "disconnected")
    after = LastHolder(grant(TAPE, BOB, 2), 0.0, "disconnected")
    assert passed_on == granted(ALICE, 2, grant(TAPE, ALICE, 3), after=after)


# What a search costs.


def steps_of(act: Callable[[], object]) -> int:
    """Returns how many lines of Python an act takes."""
    steps = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        steps += event == "line"
        return trace

    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(None)
    return steps


def crowd(count: int) -> LockEngine:
    """Alice holds ten names, and shares a card with Bob; so many wait for all ten."""
    engine = LockEngine()
    engine.handle(AddLockspace("memory", anchored=False), now=0.0)
    for session in range(1, count + 3):
        engine.handle(OpenSession(session, owner(f"s{session}", session)), now=0.0)
    acquire(engine, ALICE, 1, *TEN)
    for session in (ALICE, BOB):
        acquire(engine, session, 2, CARD, mode=SHARED)
    for session in range(3, count + 3):
        acquire(engine, session, 1, *TEN)
    return engine


TEN = tuple(ResourceKey("memory", f"name {number}") for number in range(10))


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_search_looks_at_each_place_in_a_line_once(mode: Mode) -> None:
    def steps_with(count: int) -> int:
        engine = crowd(count)
        return steps_of(lambda: acquire(engine, BOB, 3, *TEN, mode=mode, timeout=9))

    few, many = steps_with(50), steps_with(100)
    assert few < many < 2.5 * few


def test_convert_searches_once_for_all_requests_of_its_owner() -> None:
    def steps_with(count: int) -> int:
        engine = crowd(50)
        for number in range(count):
            acquire(engine, BOB, 10 + number, *TEN, mode=SHARED)
        return steps_of(lambda: convert(engine, BOB, 3, CARD, EXCLUSIVE))

    few, many = steps_with(10), steps_with(40)
    assert few < many < 2.5 * few
