"""Threads and tasks of one session: each holds and waits for itself."""

import pytest

from engine.scene import (
    ALICE,
    BOB,
    CAST,
    DISK,
    FILE,
    GUARDED,
    TAPE,
    converted,
    grant,
    granted,
    owner,
    refusal,
)
from engine.snapshots import dump
from lockd.engine.commands import (
    Acquire,
    AnchorOpened,
    BreakGrant,
    CloseSession,
    Convert,
    OpenSession,
    RegisterOwner,
    Release,
)
from lockd.engine.effects import Completed, Effect, Ended, Queued, WaitEdge
from lockd.engine.invariants import check
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import snapshot
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey

ONE, TWO = 1, 2
PROCESS = 50


def ask(
    engine: LockEngine,
    session: int,
    strand: int,
    number: int,
    *keys: ResourceKey,
    mode: Mode = EXCLUSIVE,
    timeout: float | None = None,
) -> list[Effect]:
    command = Acquire(session, number, keys, mode, timeout, strand=strand)
    effects = engine.handle(command, now=0.0)
    check(engine)
    return effects


def free(engine: LockEngine, session: int, number: int, token: int) -> list[Effect]:
    effects = engine.handle(Release(session, number, fencing_token=token), now=0.0)
    check(engine)
    return effects


def turn(
    engine: LockEngine, session: int, number: int, token: int, mode: Mode
) -> list[Effect]:
    command = Convert(session, number, None, mode, fencing_token=token)
    effects = engine.handle(command, now=0.0)
    check(engine)
    return effects


def together(engine: LockEngine, *sessions: int) -> None:
    for session in sessions:
        who = owner("guest", PROCESS)
        engine.handle(RegisterOwner(session, 99, PROCESS, who), now=0.0)


def test_two_strands_exclude_each_other(engine: LockEngine) -> None:
    ask(engine, ALICE, ONE, 1, DISK)
    (queued,) = ask(engine, ALICE, TWO, 2, DISK)
    assert queued == Queued(ALICE, 2, (DISK,), EXCLUSIVE)
    (waiter,) = engine.situation(DISK).waiters
    assert (waiter.session, waiter.strand) == (ALICE, TWO)
    assert free(engine, ALICE, 3, 1) == [
        Ended(grant(DISK, ALICE, 1, strand=ONE), "released"),
        granted(ALICE, 2, grant(DISK, ALICE, 2, strand=TWO)),
        Completed(ALICE, 3),
    ]


def test_strand_and_the_whole_owner_exclude_each_other(engine: LockEngine) -> None:
    ask(engine, ALICE, 0, 1, DISK)
    assert refusal(ask(engine, ALICE, ONE, 2, DISK, timeout=0)).code == "busy"
    assert refusal(ask(engine, ALICE, 0, 3, DISK, timeout=0)).code == "already_held"


@pytest.mark.parametrize("timeout", [None, 0, 5.0])
def test_same_strand_holds_it_already(
    timeout: float | None, engine: LockEngine
) -> None:
    ask(engine, ALICE, ONE, 1, DISK)
    refused = refusal(ask(engine, ALICE, ONE, 2, DISK, timeout=timeout))
    assert refused.code == "already_held"


def test_same_strand_waits_already(engine: LockEngine) -> None:
    ask(engine, BOB, 0, 1, DISK)
    ask(engine, ALICE, ONE, 1, DISK)
    assert refusal(ask(engine, ALICE, ONE, 2, DISK)).code == "already_held"
    assert [type(x) for x in ask(engine, ALICE, TWO, 3, DISK)] == [Queued]


def test_shared_is_counted_by_strand(engine: LockEngine) -> None:
    ask(engine, ALICE, ONE, 1, DISK, mode=SHARED)
    ask(engine, ALICE, ONE, 2, DISK, mode=SHARED)
    ask(engine, ALICE, TWO, 3, DISK, mode=SHARED)
    assert [(x.strand, x.count) for x in engine.holders(DISK)] == [(ONE, 2), (TWO, 1)]
    assert engine.holds(DISK, 1)
    assert engine.holds(DISK, 2)


def test_strands_of_two_sessions_never_meet(engine: LockEngine) -> None:
    together(engine, ALICE, BOB)
    ask(engine, ALICE, ONE, 1, DISK)
    assert refusal(ask(engine, BOB, ONE, 1, DISK, timeout=0)).code == "busy"
    ask(engine, ALICE, 0, 2, TAPE)
    assert refusal(ask(engine, BOB, 0, 2, TAPE, timeout=0)).code == "already_held"


def test_any_session_of_the_owner_releases_by_token(engine: LockEngine) -> None:
    together(engine, ALICE, BOB)
    ask(engine, ALICE, ONE, 1, DISK)
    assert free(engine, BOB, 1, 1)[-1] == Completed(BOB, 1)
    assert engine.holders(DISK) == ()


def test_name_means_the_whole_owner(engine: LockEngine) -> None:
    ask(engine, ALICE, ONE, 1, DISK)
    by_name = engine.handle(Release(ALICE, 2, (DISK,)), now=0.0)
    assert refusal(by_name).code == "not_held"
    by_name = engine.handle(Convert(ALICE, 3, DISK, SHARED), now=0.0)
    assert refusal(by_name).code == "not_held"
    assert engine.holds(DISK, 1)


def test_locks_of_a_thread_that_is_gone_are_held_on(engine: LockEngine) -> None:
    ask(engine, ALICE, ONE, 1, DISK)
    assert [type(x) for x in ask(engine, ALICE, TWO, 2, DISK)] == [Queued]


def test_end_of_the_session_ends_all_its_strands(engine: LockEngine) -> None:
    ask(engine, ALICE, ONE, 1, DISK)
    ask(engine, ALICE, TWO, 2, DISK)
    ask(engine, ALICE, 0, 3, TAPE)
    engine.handle(CloseSession(ALICE), now=0.0)
    check(engine)
    assert not engine.resources
    assert not engine.waiting


def test_process_keeps_the_locks_of_a_session_that_ended(engine: LockEngine) -> None:
    together(engine, ALICE, BOB)
    ask(engine, ALICE, ONE, 1, DISK)
    engine.handle(CloseSession(ALICE), now=0.0)
    check(engine)
    assert engine.holds(DISK, 1)
    assert turn(engine, BOB, 1, 1, SHARED) == [
        converted(BOB, 1, engine.holders(DISK)[0].replace(mode=SHARED))
    ]
    free(engine, BOB, 2, 1)
    assert not engine.resources


def test_two_strands_that_want_what_the_other_holds(engine: LockEngine) -> None:
    ask(engine, ALICE, ONE, 1, DISK)
    ask(engine, ALICE, TWO, 2, TAPE)
    ask(engine, ALICE, ONE, 3, TAPE)
    refused = refusal(ask(engine, ALICE, TWO, 4, DISK))
    assert refused.code == "deadlock"
    who = owner(CAST[ALICE], ALICE)
    assert refused.cycle == (
        WaitEdge(who, ALICE, DISK, TWO),
        WaitEdge(who, ALICE, TAPE, ONE),
    )


def test_strands_with_one_lock_each_are_no_deadlock(engine: LockEngine) -> None:
    """Two programs with two threads each, crosswise: everybody is served."""
    ask(engine, ALICE, ONE, 1, DISK)
    ask(engine, BOB, ONE, 1, TAPE)
    assert [type(x) for x in ask(engine, ALICE, TWO, 2, TAPE)] == [Queued]
    assert [type(x) for x in ask(engine, BOB, TWO, 2, DISK)] == [Queued]


def test_second_upgrade_is_refused_between_strands_too(engine: LockEngine) -> None:
    ask(engine, ALICE, ONE, 1, DISK, mode=SHARED)
    ask(engine, ALICE, TWO, 2, DISK, mode=SHARED)
    assert [type(x) for x in turn(engine, ALICE, 3, 1, EXCLUSIVE)] == [Queued]
    assert refusal(turn(engine, ALICE, 4, 2, EXCLUSIVE)).code == "deadlock"


def test_convert_by_an_unknown_token_is_refused(engine: LockEngine) -> None:
    ask(engine, BOB, 0, 1, DISK)
    refused = refusal(turn(engine, ALICE, 1, 1, SHARED))
    assert (refused.code, refused.message) == (
        "not_held",
        "you hold no lock with the fencing token 1",
    )


def test_release_gives_up_the_convert_of_its_strand_only(engine: LockEngine) -> None:
    for strand in (ONE, TWO):
        ask(engine, ALICE, strand, strand, DISK, mode=SHARED)
    ask(engine, BOB, 0, 1, DISK, mode=SHARED)
    turn(engine, ALICE, 3, 1, EXCLUSIVE)
    effects = free(engine, ALICE, 4, 2)
    assert effects[-1] == Completed(ALICE, 4)
    assert engine.waiting == 1
    effects = free(engine, ALICE, 5, 1)
    assert effects[0].code == "not_held"  # type: ignore[union-attr]


def test_break_takes_the_lock_of_one_strand(engine: LockEngine) -> None:
    for strand in (ONE, TWO):
        ask(engine, ALICE, strand, strand, DISK, mode=SHARED)
    engine.handle(BreakGrant(BOB, 1, 1, "x"), now=0.0)
    check(engine)
    assert [x.strand for x in engine.holders(DISK)] == [TWO]


def test_anchor_is_opened_once_for_all_strands(engine: LockEngine) -> None:
    ask(engine, ALICE, ONE, 1, FILE, mode=SHARED)
    ask(engine, ALICE, TWO, 2, FILE, mode=SHARED)
    engine.handle(AnchorOpened(FILE), now=0.0)
    engine.handle(AnchorOpened(FILE), now=0.0)
    check(engine)
    assert [x.strand for x in engine.holders(FILE)] == [ONE, TWO]


def test_state_survives_with_its_strands(engine: LockEngine) -> None:
    ask(engine, ALICE, ONE, 1, DISK)
    ask(engine, ALICE, TWO, 2, DISK)
    ask(engine, ALICE, TWO, 3, TAPE)
    loaded = snapshot.load(dump(engine)).engine
    check(loaded)
    assert dump(loaded) == dump(engine)
    assert refusal(ask(loaded, ALICE, ONE, 4, TAPE)).code == "deadlock"


def test_older_state_has_whole_owners_only(engine: LockEngine) -> None:
    ask(engine, ALICE, 0, 1, DISK)
    ask(engine, BOB, 0, 1, DISK)
    old = dump(engine) | {"version": 2, "readable_from": 1}
    for record in old["requests"]:
        del record["strand"]
    for record in old["owners"]:
        for held in record["grants"]:
            held.pop("strand", None)
    loaded = snapshot.load(old)
    assert loaded.problems == []
    assert dump(loaded.engine) == dump(engine)


def test_killed_process_loses_the_locks_of_all_strands(engine: LockEngine) -> None:
    ask(engine, ALICE, ONE, 1, GUARDED)
    engine.handle(CloseSession(ALICE), now=0.0)
    check(engine)
    engine.handle(OpenSession(60, owner("later", 60)), now=0.0)
    assert [type(x) for x in ask(engine, 60, ONE, 1, GUARDED)] == [Queued]


def test_strand_that_was_refused_leaves_nothing(engine: LockEngine) -> None:
    ask(engine, BOB, 0, 1, DISK)
    for strand in range(1, 100):
        refusal(ask(engine, ALICE, strand, strand, DISK, timeout=0))
    assert not engine.state.owners[ALICE].strands
