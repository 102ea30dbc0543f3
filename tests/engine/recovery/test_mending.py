"""Damaged records cost only those whom they are about."""

from engine.ledger import busy, decoded, mended, spoiled, without
from engine.scene import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    DISK,
    GUARDED,
    TAPE,
    acquire,
    granted,
    owner,
    release,
)
from engine.scene import grant as grant_of
from lockd.engine.commands import EndOwner, RegisterOwner
from lockd.engine.lock_engine import LockEngine
from lockd.terms import SHARED


def test_damaged_record_costs_only_those_whom_it_is_about(engine: LockEngine) -> None:
    busy(engine)
    whole = decoded(engine)
    seen = 0
    for index, (kind, name, value) in enumerate(whole):
        for other in spoiled(value):
            loaded = mended([*whole[:index], (kind, name, other), *whole[index + 1 :]])
            if name != DAVE and GUARDED.lockspace not in str(value):
                seen += bool(loaded.problems)
                (kept,) = loaded.engine.owners[DAVE].grants.values()
                assert kept.key == GUARDED
    assert seen > 100


def test_owner_that_is_lost_is_made_up_from_what_it_holds(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    loaded = mended(without(engine, "owner", ALICE))
    assert loaded.problems == [f"owner {ALICE} is missing"]
    assert (loaded.damaged, loaded.orphans) == ([], [])
    assert loaded.engine.situation(DISK) == engine.situation(DISK)


def test_lost_session_ends_as_if_it_had_closed(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    loaded = mended(without(engine, "session", ALICE))
    assert loaded.orphans == [ALICE]
    assert [x.session for x in loaded.engine.situation(DISK).holders] == [BOB]


def test_locks_of_a_dead_process_end_with_a_session_that_is_lost(
    engine: LockEngine,
) -> None:
    guest = owner("guest", 700)
    command = RegisterOwner(ALICE, 1, 100, guest, None, until="both")
    engine.handle(command, now=0.0)
    acquire(engine, ALICE, 2, DISK)
    engine.handle(EndOwner(100), now=0.0)
    assert engine.holds(DISK, 1)
    loaded = mended(without(engine, "session", ALICE))
    assert loaded.orphans == [100]
    assert loaded.engine.situation(DISK).holder_count == 0


def test_nobody_is_granted_what_a_lost_grant_may_hold(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, DISK)
    acquire(engine, DAVE, 1, TAPE)
    loaded = mended(without(engine, "grant", 1))
    assert loaded.damaged == [BOB, CAROL]
    assert "2 grants are counted, 1 are there" in loaded.problems
    assert loaded.engine.situation(DISK).holder_count == 0
    assert loaded.engine.situation(TAPE) == engine.situation(TAPE)


def test_lost_request_leaves_the_others_in_line(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, DISK)
    loaded = mended(without(engine, "request", 1))
    assert (loaded.damaged, loaded.orphans) == ([], [])
    assert [x.session for x in loaded.engine.situation(DISK).waiters] == [CAROL]


def test_tokens_are_not_used_again_when_the_counts_are_lost(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    loaded = mended(without(engine, "counts", 0))
    assert loaded.problems == ["the counts are missing"]
    assert acquire(loaded.engine, CAROL, 1, GUARDED) == [
        granted(CAROL, 1, grant_of(GUARDED, CAROL, 3))
    ]


def test_old_grant_beside_a_newer_one_is_not_believed(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    old = [record for record in decoded(engine) if record[0] == "grant"]
    release(engine, ALICE, 2, DISK)
    acquire(engine, BOB, 1, DISK)
    loaded = mended([*decoded(engine), *old], "one may be old")
    assert loaded.damaged == [ALICE]
    assert [x.session for x in loaded.engine.situation(DISK).holders] == [BOB]


def test_circle_that_an_old_grant_closes_is_broken(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    old = [record for record in decoded(engine) if record[0] == "grant"]
    release(engine, ALICE, 2, DISK)
    acquire(engine, CAROL, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, BOB, 2, DISK)
    acquire(engine, ALICE, 3, TAPE)
    loaded = mended([*decoded(engine), *old], "one may be old")
    assert loaded.damaged == [ALICE, BOB]
    assert [x.session for x in loaded.engine.situation(DISK).holders] == [CAROL]


def test_process_that_nobody_acts_for_any_more_is_forgotten(engine: LockEngine) -> None:
    engine.handle(RegisterOwner(ALICE, 1, 100, owner("guest", 700)), now=0.0)
    loaded = mended(without(engine, "session", ALICE))
    assert loaded.orphans == [100]
    assert 100 not in loaded.engine.owners
