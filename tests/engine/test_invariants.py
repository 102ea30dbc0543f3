"""Every law is broken once by hand: the check must name it."""

from collections.abc import Callable

import pytest

from engine.scene import (
    ALICE,
    BOB,
    CARD,
    CAROL,
    DAVE,
    DISK,
    FILE,
    OTHER_FILE,
    TAPE,
    acquire,
    convert,
    grant,
    new_engine,
)
from lockd.engine.commands import (
    AnchorOpened,
    AnchorRefused,
    CloseSession,
    EnterGrants,
)
from lockd.engine.effects import Completed
from lockd.engine.invariants import BrokenLawError, check
from lockd.engine.lock_engine import LockEngine
from lockd.engine.request_state import ANSWERED
from lockd.engine.resource import Resource
from lockd.engine.session import Strand
from lockd.terms import EXCLUSIVE, SHARED

Vandal = Callable[[LockEngine], None]


def busy_engine() -> LockEngine:
    """Alice and Carol share the disk, Bob waits; Bob holds the tape and the file."""
    engine = new_engine()
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, BOB, 2, FILE)
    engine.handle(AnchorOpened(FILE), now=0.0)
    acquire(engine, BOB, 3, DISK, timeout=60.0)
    check(engine)
    return engine


def exclusive_beside_shared(engine: LockEngine) -> None:
    engine.state.put_grant(grant(DISK, ALICE, 1, EXCLUSIVE))


def exclusive_beside_exclusive(engine: LockEngine) -> None:
    engine.state.put_grant(grant(DISK, ALICE, 1, EXCLUSIVE))
    engine.state.put_grant(grant(DISK, CAROL, 2, EXCLUSIVE))


def sibling_in_the_chain(engine: LockEngine) -> None:
    for session, token in ((ALICE, 6), (CAROL, 7)):
        more = grant(TAPE, session, token, EXCLUSIVE, inside=(3,))
        engine.state.put_grant(more)


def inner_requests_out_of_turn(engine: LockEngine) -> None:
    for session in (CAROL, DAVE, ALICE):
        engine.handle(EnterGrants(session, (3,)), now=0.0)
        acquire(engine, session, 9, TAPE)
    inner = engine.state.resources[TAPE].inner
    inner.move_to_end(next(iter(inner)))


def inner_request_among_others(engine: LockEngine) -> None:
    (waiter,) = engine.state.resources[DISK].waiting
    waiter.inside = {DISK: (1,)}


def resource_without_purpose(engine: LockEngine) -> None:
    engine.state.resources[CARD] = Resource(CARD)


def forgotten_waiter(engine: LockEngine) -> None:
    for session, token in ((ALICE, 1), (CAROL, 2)):
        owner = engine.state.owners[session]
        del engine.state.resources[DISK].holders[owner.whole]
        del engine.state.owners[session].grants[token]


def waiters_out_of_turn(engine: LockEngine) -> None:
    acquire(engine, DAVE, 1, DISK)
    engine.state.resources[DISK].waiting.move_to_end(
        next(iter(engine.state.resources[DISK].waiting))
    )


def answered_in_line(engine: LockEngine) -> None:
    next(iter(engine.state.resources[DISK].waiting)).become(ANSWERED)


def convert_without_hold(engine: LockEngine) -> None:
    convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    del engine.state.resources[DISK].holders[engine.state.owners[ALICE].whole]


def anchor_without_holder(engine: LockEngine) -> None:
    engine.state.resources[TAPE].anchor = EXCLUSIVE


def anchor_too_weak(engine: LockEngine) -> None:
    engine.state.resources[FILE].anchor = SHARED


def grant_that_its_owner_does_not_know(engine: LockEngine) -> None:
    engine.state.owners[BOB].grants.clear()


def owner_without_purpose(engine: LockEngine) -> None:
    engine.state.owners[DAVE].sessions.clear()


def grant_of_a_session_that_is_gone(engine: LockEngine) -> None:
    engine.state.owners[ALICE].sessions.clear()


def session_of_another_owner(engine: LockEngine) -> None:
    del engine.state.owners[DAVE]


def miscounted_waiters(engine: LockEngine) -> None:
    engine.state.waiting += 1


def waiter_in_no_line(engine: LockEngine) -> None:
    engine.state.resources[DISK].waiting.clear()


def endless_wait(engine: LockEngine) -> None:
    engine.table._deadlines._heap.clear()


def token_held_twice(engine: LockEngine) -> None:
    engine.state.put_grant(grant(TAPE, BOB, 2))


def token_from_the_future(engine: LockEngine) -> None:
    engine.state.last_token = 1


def circle_of_waiters(engine: LockEngine) -> None:
    acquire(engine, DAVE, 1, TAPE)
    (request,) = engine.state.resources[TAPE].waiting
    request.session = engine.state.sessions[ALICE]


def strand_without_purpose(engine: LockEngine) -> None:
    engine.state.owners[DAVE].strands = {(DAVE, 7): Strand((DAVE, 7))}


def miscounted_strand(engine: LockEngine) -> None:
    engine.state.owners[ALICE].whole.hold(1)


def work_left_undone(engine: LockEngine) -> None:
    engine.table.tell(Completed(ALICE, 1))


@pytest.mark.parametrize(
    ("vandal", "law"),
    [
        (exclusive_beside_shared, "is held in several modes"),
        (exclusive_beside_exclusive, r"2 is held beside \[1\], inside \(\)"),
        (sibling_in_the_chain, r"7 is held beside \[3, 6\], inside \(3,\)"),
        (inner_request_among_others, "a request from inside stands behind others"),
        (inner_requests_out_of_turn, "those inside are out of turn"),
        (resource_without_purpose, "card: is kept though nobody needs it"),
        (forgotten_waiter, "the first in line waits though nothing is in its way"),
        (waiters_out_of_turn, "the line is out of turn"),
        (answered_in_line, "an answered request is still in line"),
        (convert_without_hold, "who wants to convert holds nothing"),
        (anchor_without_holder, "but anchored exclusive"),
        (anchor_too_weak, "but anchored shared"),
        (grant_that_its_owner_does_not_know, "owners and resources disagree"),
        (owner_without_purpose, "owner 4 is kept though nobody needs it"),
        (grant_of_a_session_that_is_gone, "holds locks after its session ended"),
        (session_of_another_owner, "acts for an owner that is not there"),
        (miscounted_waiters, "2 are counted as waiting, not 1"),
        (waiter_in_no_line, "a request waits that is not in line"),
        (endless_wait, "a request would wait beyond its time"),
        (token_held_twice, "a fencing token is held twice"),
        (token_from_the_future, "a fencing token is ahead of the last one, 1"),
        (circle_of_waiters, "requests wait for each other"),
        (strand_without_purpose, "is kept for nothing"),
        (miscounted_strand, "strands of owner 1"),
        (work_left_undone, "work was left undone"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_broken_law_is_named(vandal: Vandal, law: str) -> None:
    engine = busy_engine()
    vandal(engine)
    with pytest.raises(BrokenLawError, match=law):
        check(engine)


def test_pausing_request_is_no_forgotten_waiter(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE)
    engine.handle(AnchorRefused(FILE, "busy"), now=0.0)
    check(engine)


def test_waiter_for_several_is_held_up_by_an_opening_anchor(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE)
    acquire(engine, BOB, 1, OTHER_FILE, FILE)
    check(engine)
    engine.handle(CloseSession(BOB), now=0.0)
    engine.handle(AnchorOpened(FILE), now=0.0)
