"""Programs inside the lock of a program that waits for their end."""

import sys
from types import FrameType
from typing import Any

from engine.scene import (
    ALICE,
    BOB,
    CARD,
    CAROL,
    CAST,
    DAVE,
    DISK,
    TAPE,
    acquire,
    convert,
    grant,
    granted,
    owner,
    queued,
    refusal,
    release,
)
from engine.snapshots import dump
from lockd.engine.commands import (
    BreakGrant,
    CloseSession,
    EnterGrants,
    OpenSession,
    Owner,
)
from lockd.engine.effects import Granted, WaitEdge
from lockd.engine.invariants import check
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import snapshot
from lockd.terms import EXCLUSIVE, SHARED, ResourceKey


def enter(engine: LockEngine, session: int, *tokens: int) -> None:
    assert engine.handle(EnterGrants(session, tokens), now=0.0) == []
    check(engine)


def test_who_is_inside_would_wait_for_its_parent_for_ever(engine: LockEngine) -> None:
    """Bob waits for Dave, who waits for the disk, whose holder waits for Bob."""
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, DAVE, 1, TAPE)
    acquire(engine, DAVE, 2, DISK)
    enter(engine, BOB, 1)
    refused = refusal(acquire(engine, BOB, 1, TAPE))
    assert refused.code == "deadlock"
    bob, dave = owner(CAST[BOB], BOB), owner(CAST[DAVE], DAVE)
    inside = grant(DISK, ALICE, 1)
    assert refused.cycle == (
        WaitEdge(bob, BOB, TAPE),
        WaitEdge(dave, DAVE, DISK, inside=inside),
    )


def test_grandchild_would_wait_for_its_grandparent(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, DAVE, 1, CARD)
    acquire(engine, DAVE, 2, DISK)
    enter(engine, BOB, 1)
    acquire(engine, BOB, 1, TAPE)
    enter(engine, CAROL, 1, 3)
    assert refusal(acquire(engine, CAROL, 1, CARD)).code == "deadlock"


def test_two_trees_that_want_what_the_other_has(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    enter(engine, CAROL, 1)
    enter(engine, DAVE, 2)
    assert acquire(engine, CAROL, 1, TAPE) == [queued(CAROL, 1, TAPE)]
    refused = refusal(acquire(engine, DAVE, 1, DISK))
    assert refused.code == "deadlock"
    assert [(x.session, x.key) for x in refused.cycle] == [(DAVE, DISK), (CAROL, TAPE)]
    assert [x.inside and x.inside.session for x in refused.cycle] == [ALICE, BOB]


def test_parent_closes_the_circle_itself(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    enter(engine, CAROL, 1)
    acquire(engine, CAROL, 1, TAPE)
    assert refusal(acquire(engine, BOB, 2, DISK)).code == "deadlock"


def test_who_is_inside_waits_for_a_stranger(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    enter(engine, CAROL, 1)
    assert acquire(engine, CAROL, 1, TAPE) == [queued(CAROL, 1, TAPE)]


def test_who_outlived_the_lock_is_inside_nothing(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    enter(engine, BOB, 1)
    release(engine, ALICE, 2, DISK)
    check(engine)
    acquire(engine, ALICE, 3, DISK)
    assert acquire(engine, BOB, 1, DISK) == [queued(BOB, 1, DISK)]


def test_token_that_nobody_holds_is_ignored(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    enter(engine, BOB, 0, 7, 2**62)
    assert acquire(engine, BOB, 1, DISK) == [queued(BOB, 1, DISK)]


def test_upgrade_waits_for_who_is_inside(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, TAPE)
    enter(engine, CAROL, 1)
    acquire(engine, CAROL, 1, TAPE)
    acquire(engine, BOB, 2, DISK, mode=SHARED)
    # Alice waits for Carol, who waits for Bob, who would have to wait for Alice.
    assert refusal(convert(engine, BOB, 3, DISK, EXCLUSIVE)).code == "deadlock"


def test_end_of_one_child_keeps_the_others_inside(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    enter(engine, BOB, 1)
    enter(engine, CAROL, 1)
    engine.handle(CloseSession(BOB), now=0.0)
    check(engine)
    (answer,) = acquire(engine, CAROL, 1, DISK)
    assert answer == granted(CAROL, 1, grant(DISK, CAROL, 2, inside=(1,)))


def test_lock_that_is_broken_has_nobody_inside(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    enter(engine, BOB, 1)
    engine.handle(BreakGrant(DAVE, 1, 1, "x"), now=0.0)
    check(engine)
    acquire(engine, CAROL, 1, DISK)
    assert acquire(engine, BOB, 1, DISK) == [queued(BOB, 1, DISK)]


def test_state_survives_with_who_is_inside(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, ALICE, 2, TAPE)
    enter(engine, BOB, 1, 2)
    release(engine, ALICE, 3, TAPE)
    loaded = snapshot.load(dump(engine)).engine
    check(loaded)
    assert dump(loaded) == dump(engine)
    assert acquire(loaded, BOB, 1, DISK) == [
        granted(BOB, 1, grant(DISK, BOB, 3, inside=(1,)))
    ]


def test_older_state_has_nobody_inside(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    old = dump(engine)
    old["sessions"] = [record[:3] for record in old["sessions"]]
    assert dump(snapshot.load(old).engine) == dump(engine)


def test_upgrade_at_once_may_close_the_circle_of_a_child(engine: LockEngine) -> None:
    """Bob waits for both, and shares the first: only the upgrade is in his way."""
    acquire(engine, DAVE, 1, CARD)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    enter(engine, CAROL, 3)
    acquire(engine, CAROL, 1, TAPE)
    acquire(engine, BOB, 2, DISK, CARD, mode=SHARED)
    assert refusal(convert(engine, ALICE, 2, DISK, EXCLUSIVE)).code == "deadlock"


def test_cycle_through_a_child_names_the_parent(engine: LockEngine) -> None:
    """Carol is within what Alice shares, and waits for Bob, who shares it too."""
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, BOB, 2, DISK, mode=SHARED)
    enter(engine, CAROL, 1)
    acquire(engine, CAROL, 1, TAPE)
    refused = refusal(convert(engine, BOB, 3, DISK, EXCLUSIVE))
    assert refused.code == "deadlock"
    link, _ = refused.cycle
    assert (link.session, link.key) == (BOB, DISK)
    assert link.inside is not None
    assert link.inside.session == ALICE


def test_lock_of_another_user_is_ignored(engine: LockEngine) -> None:
    """Else a user could have the requests of others be refused."""
    acquire(engine, ALICE, 1, DISK)
    for session, uid in ((50, 2000), (51, 0)):
        engine.handle(OpenSession(session, Owner("other", session, uid)), now=0.0)
        enter(engine, session, 1)
    assert acquire(engine, 50, 1, DISK) == [queued(50, 1, DISK)]
    (answer,) = acquire(engine, 51, 1, DISK)
    assert isinstance(answer, Granted)
    assert answer.grants[0].inside == (1,)


def test_end_of_a_child_costs_no_more_because_there_are_more(
    engine: LockEngine,
) -> None:
    def steps(count: int) -> int:
        first = engine.last_token + 1
        keys = [ResourceKey("memory", f"{count}-{n}") for n in range(count)]
        for number, key in enumerate(keys):
            acquire(engine, ALICE, 1_000 * count + number, key)
        sessions = range(1_000 * count, 1_001 * count)
        for session in sessions:
            engine.handle(OpenSession(session, owner("child", session)), now=0.0)
            tokens = tuple(range(first, first + count))
            engine.handle(EnterGrants(session, tokens), now=0.0)
        found = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal found
            found += 1
            return trace

        sys.settrace(trace)
        try:
            engine.handle(CloseSession(sessions[0]), now=0.0)
        finally:
            sys.settrace(None)
        return found

    # Linear in the tokens of the one that ends, whoever else is inside.
    assert steps(40) < 8 * steps(10)
