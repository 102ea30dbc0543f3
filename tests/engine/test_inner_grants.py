"""A program takes what a program around it holds, which waits for its end."""

from collections.abc import Sequence

import pytest

from engine.ledger import decoded, mended, without
from engine.scene import (
    ALICE,
    BOB,
    CAROL,
    CAST,
    DAVE,
    DISK,
    FILE,
    GUARDED,
    TAPE,
    acquire,
    convert,
    converted,
    grant,
    granted,
    new_engine,
    owner,
    queued,
    refusal,
    release,
)
from engine.snapshots import dump
from engine.waits.test_cycles import steps_of
from lockd.engine import commands as c
from lockd.engine import effects as e
from lockd.engine.invariants import check
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import records, snapshot
from lockd.terms import EXCLUSIVE, SHARED, SLOT, Mode, ResourceKey

ERIN, FRED = 5, 6


@pytest.fixture
def engine() -> LockEngine:
    """Erin and Fred are there, too."""
    engine = new_engine()
    for session, name in ((ERIN, "erin"), (FRED, "fred")):
        CAST[session] = name
        engine.handle(c.OpenSession(session, owner(name, session)), now=0.0)
    return engine


@pytest.fixture(autouse=True)
def _checked(engine: LockEngine) -> object:
    yield
    check(engine)
    loaded = snapshot.load(records.assemble(decoded(engine)))
    assert loaded.problems == []
    found, known = (dump(x)["resources"] for x in (loaded.engine, engine))
    assert sorted(found, key=str) == sorted(known, key=str)
    for session in (ERIN, FRED):
        CAST.pop(session, None)


def enter(engine: LockEngine, session: int, *tokens: int) -> None:
    assert engine.handle(c.EnterGrants(session, tokens), now=0.0) == []


def family(
    engine: LockEngine, *children: int, mode: Mode = EXCLUSIVE, key: ResourceKey = DISK
) -> None:
    """Alice holds the disk under token 1; the children are inside."""
    acquire(engine, ALICE, 1, key, mode=mode)
    for child in children:
        enter(engine, child, 1)


def holders(engine: LockEngine, key: ResourceKey = DISK) -> list[int]:
    return [grant.session for grant in engine.holders(key)]


def waiters(engine: LockEngine, key: ResourceKey = DISK) -> list[int]:
    return [waiter.session for waiter in engine.situation(key).waiters]


def who_got_it(effects: Sequence[e.Effect]) -> list[int]:
    return [effect.session for effect in effects if isinstance(effect, e.Granted)]


# What is granted.


def test_child_is_granted_what_its_parent_holds(engine: LockEngine) -> None:
    family(engine, BOB)
    assert acquire(engine, BOB, 1, DISK) == [
        granted(BOB, 1, grant(DISK, BOB, 2, inside=(1,)))
    ]
    assert holders(engine) == [ALICE, BOB]


def test_grandchild_names_both_that_are_around_it(engine: LockEngine) -> None:
    family(engine, BOB)
    acquire(engine, BOB, 1, DISK)
    enter(engine, CAROL, 1, 2)
    assert acquire(engine, CAROL, 1, DISK) == [
        granted(CAROL, 1, grant(DISK, CAROL, 3, inside=(1, 2)))
    ]


def test_who_names_only_the_innermost_is_inside_all(engine: LockEngine) -> None:
    family(engine, BOB)
    acquire(engine, BOB, 1, DISK)
    enter(engine, CAROL, 2)
    (answer,) = acquire(engine, CAROL, 1, DISK)
    assert isinstance(answer, e.Granted)
    assert answer.grants[0].inside == (1, 2)


def test_shared_inside_exclusive_is_exclusive(engine: LockEngine) -> None:
    family(engine, BOB)
    (answer,) = acquire(engine, BOB, 1, DISK, mode=SHARED)
    assert isinstance(answer, e.Granted)
    assert answer.grants[0].mode == EXCLUSIVE


def test_shared_inside_shared_goes_before_who_waits_for_all(engine: LockEngine) -> None:
    family(engine, BOB, CAROL, mode=SHARED)
    acquire(engine, DAVE, 1, DISK)
    for child, token in ((BOB, 2), (CAROL, 3)):
        inner = grant(DISK, child, token, SHARED, inside=(1,))
        assert acquire(engine, child, 1, DISK, mode=SHARED) == [
            granted(child, 1, inner)
        ]


def test_several_at_once_are_granted_inside_each(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, TAPE)
    enter(engine, BOB, 1, 2)
    (answer,) = acquire(engine, BOB, 1, TAPE, DISK)
    assert isinstance(answer, e.Granted)
    assert [x.inside for x in answer.grants] == [(2,), (1,)]


def test_second_shared_acquire_of_a_strand_is_counted(engine: LockEngine) -> None:
    family(engine, BOB)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    (answer,) = acquire(engine, BOB, 2, DISK, mode=SHARED)
    assert isinstance(answer, e.Granted)
    assert answer.grants[0].count == 2
    assert refusal(acquire(engine, BOB, 3, DISK)).code == "already_held"


def test_strand_that_holds_it_itself_is_not_inside(engine: LockEngine) -> None:
    family(engine, ALICE)
    assert refusal(acquire(engine, ALICE, 2, DISK)).code == "already_held"


def test_another_strand_of_the_holder_may_be_inside(engine: LockEngine) -> None:
    family(engine, ALICE)
    (answer,) = acquire(engine, ALICE, 2, DISK, strand=7)
    assert isinstance(answer, e.Granted)
    assert answer.grants[0].inside == (1,)


def test_stranger_waits_behind_everybody_inside(engine: LockEngine) -> None:
    family(engine, BOB)
    acquire(engine, DAVE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    assert who_got_it(release(engine, BOB, 2, DISK)) == []
    assert who_got_it(release(engine, ALICE, 2, DISK)) == [DAVE]


# Turns.


def test_siblings_take_turns_in_their_order(engine: LockEngine) -> None:
    family(engine, BOB, CAROL, DAVE)
    acquire(engine, BOB, 1, DISK)
    assert acquire(engine, CAROL, 1, DISK) == [queued(CAROL, 1, DISK)]
    acquire(engine, DAVE, 1, DISK)
    assert who_got_it(release(engine, BOB, 2, DISK)) == [CAROL]
    assert who_got_it(release(engine, CAROL, 2, DISK)) == [DAVE]


def test_siblings_that_share_take_turns_inside_exclusive(engine: LockEngine) -> None:
    family(engine, BOB, CAROL)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    shared = queued(CAROL, 1, DISK, mode=SHARED)
    assert acquire(engine, CAROL, 1, DISK, mode=SHARED) == [shared]


def test_sibling_stands_before_strangers(engine: LockEngine) -> None:
    family(engine, BOB, CAROL)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, DAVE, 1, DISK)
    acquire(engine, CAROL, 1, DISK)
    assert waiters(engine) == [CAROL, DAVE]
    assert who_got_it(release(engine, ALICE, 2, DISK)) == []
    assert who_got_it(release(engine, BOB, 2, DISK)) == [CAROL]
    assert who_got_it(release(engine, CAROL, 2, DISK)) == [DAVE]


def test_who_is_deeper_inside_goes_first(engine: LockEngine) -> None:
    """Bob waits for Carol, so she must not wait for Dave, who waits for Bob."""
    family(engine, BOB, DAVE)
    acquire(engine, BOB, 1, DISK)
    enter(engine, CAROL, 1, 2)
    enter(engine, ERIN, 1, 2)
    acquire(engine, CAROL, 1, DISK)
    assert acquire(engine, DAVE, 1, DISK) == [queued(DAVE, 1, DISK)]
    assert acquire(engine, ERIN, 1, DISK) == [queued(ERIN, 1, DISK)]
    assert waiters(engine) == [ERIN, DAVE]
    assert who_got_it(release(engine, CAROL, 2, DISK)) == [ERIN]
    release(engine, BOB, 2, DISK)
    assert who_got_it(release(engine, ERIN, 2, DISK)) == [DAVE]


@pytest.mark.parametrize("depth", [1, 2])
def test_who_waits_inside_what_is_over_comes_after_those_inside_what_is_held(
    depth: int, engine: LockEngine
) -> None:
    """Dave waits inside one or two that have ended, when Carol begins anew.

    She waits for Erin and Fred inside, so these must not wait for him.
    """
    acquire(engine, ALICE, 1, DISK)
    enter(engine, BOB, 1)
    tokens = tuple(range(1, depth + 1))
    if depth == 2:
        acquire(engine, BOB, 1, DISK)
    for child in (CAROL, DAVE, ERIN):
        enter(engine, child, *tokens)
    assert who_got_it(acquire(engine, ERIN, 1, DISK)) == [ERIN]
    acquire(engine, CAROL, 1, DISK)
    acquire(engine, DAVE, 1, DISK)
    for session in (ALICE, BOB)[:depth]:
        release(engine, session, 2, DISK)
    assert who_got_it(release(engine, ERIN, 2, DISK)) == [CAROL]
    token = engine.situation(DISK).holders[0].fencing_token
    enter(engine, ERIN, token)
    enter(engine, FRED, token)
    assert who_got_it(acquire(engine, ERIN, 3, DISK)) == [ERIN]
    assert acquire(engine, FRED, 1, DISK) == [queued(FRED, 1, DISK)]
    assert waiters(engine) == [FRED, DAVE]
    assert who_got_it(release(engine, ERIN, 4, DISK)) == [FRED]
    release(engine, CAROL, 2, DISK)
    assert who_got_it(release(engine, FRED, 2, DISK)) == [DAVE]


def test_try_inside_is_busy_while_a_sibling_has_it(engine: LockEngine) -> None:
    family(engine, BOB, CAROL)
    acquire(engine, BOB, 1, DISK)
    assert refusal(acquire(engine, CAROL, 1, DISK, timeout=0)).code == "busy"


def test_as_many_as_may_wait_are_those_inside(engine: LockEngine) -> None:
    family(engine, BOB, CAROL, DAVE)
    acquire(engine, ERIN, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    assert acquire(engine, CAROL, 1, DISK, max_waiting=1) == [queued(CAROL, 1, DISK)]
    assert refusal(acquire(engine, DAVE, 1, DISK, max_waiting=1)).code == "busy"


def test_wait_inside_can_time_out_and_be_cancelled(engine: LockEngine) -> None:
    family(engine, BOB, CAROL, DAVE)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, DISK, timeout=5.0)
    acquire(engine, DAVE, 1, DISK)
    assert refusal(engine.handle(c.Tick(), now=5.0)).code == "timeout"
    refused, _ = engine.handle(c.Cancel(DAVE, 2, 1), now=5.0)
    assert isinstance(refused, e.Refused)
    assert refused.code == "cancelled"
    assert waiters(engine) == []


# The end of what is around.


def test_inner_grant_keeps_the_lock_when_the_outer_ends(engine: LockEngine) -> None:
    family(engine, BOB)
    acquire(engine, DAVE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    assert who_got_it(release(engine, ALICE, 2, DISK)) == []
    assert holders(engine) == [BOB]
    assert who_got_it(release(engine, BOB, 2, DISK)) == [DAVE]


def test_token_of_the_outer_is_valid_until_the_last_inside_ends(
    engine: LockEngine,
) -> None:
    family(engine, BOB)
    acquire(engine, BOB, 1, DISK)
    enter(engine, CAROL, 1, 2)
    acquire(engine, CAROL, 1, DISK)
    for session in (ALICE, BOB):
        release(engine, session, 2, DISK)
        assert engine.holds(DISK, 1)
        assert engine.holds(DISK, 3)
    release(engine, CAROL, 2, DISK)
    assert not engine.holds(DISK, 1)


def test_token_that_became_invalid_stays_so(engine: LockEngine) -> None:
    """The next sibling begins anew when nobody is left around it."""
    family(engine, BOB, CAROL)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, DISK)
    release(engine, ALICE, 2, DISK)
    *_, answer, _ = release(engine, BOB, 2, DISK)
    assert isinstance(answer, e.Granted)
    assert answer.grants[0].inside == ()
    assert not engine.holds(DISK, 1)


def test_child_that_comes_after_the_end_is_a_stranger(engine: LockEngine) -> None:
    family(engine, BOB, CAROL)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, DAVE, 1, DISK)
    release(engine, ALICE, 2, DISK)
    assert acquire(engine, CAROL, 1, DISK) == [queued(CAROL, 1, DISK)]
    assert waiters(engine) == [DAVE, CAROL]


def test_lock_that_is_broken_leaves_those_inside(engine: LockEngine) -> None:
    family(engine, BOB)
    acquire(engine, BOB, 1, DISK)
    lost, ended, _ = engine.handle(c.BreakGrant(DAVE, 1, 1, "x"), now=0.0)
    assert isinstance(lost, e.Lost)
    assert isinstance(ended, e.Ended)
    assert (lost.session, ended.grant.fencing_token) == (ALICE, 1)
    assert holders(engine) == [BOB]


# The next two: a fenced owner keeps its lock until it is dead, whoever is around or
# inside. Nobody else is killed: its own connection still speaks for it.


def fenced_at(engine: LockEngine, session: int) -> None:
    family(engine, BOB, CAROL, key=GUARDED)
    acquire(engine, BOB, 1, GUARDED)
    acquire(engine, CAROL, 1, GUARDED)
    acquire(engine, DAVE, 1, GUARDED)
    (fence,) = engine.handle(c.CloseSession(session), now=0.0)
    assert fence == e.Fence(session, owner(CAST[session], session))
    assert holders(engine, GUARDED) == [ALICE, BOB]


def test_outer_that_is_fenced_leaves_those_inside(engine: LockEngine) -> None:
    fenced_at(engine, ALICE)
    # Whoever is inside may still take it: until the death, nobody else may.
    enter(engine, ERIN, 1)
    assert acquire(engine, ERIN, 1, GUARDED) == [queued(ERIN, 1, GUARDED)]
    assert who_got_it(engine.handle(c.OwnerFenced(ALICE), now=0.0)) == []
    assert who_got_it(release(engine, BOB, 2, GUARDED)) == [CAROL]
    assert who_got_it(release(engine, CAROL, 2, GUARDED)) == [ERIN]
    assert who_got_it(release(engine, ERIN, 2, GUARDED)) == [DAVE]


def test_inner_that_is_fenced_keeps_its_turn_until_it_is_dead(
    engine: LockEngine,
) -> None:
    fenced_at(engine, BOB)
    assert who_got_it(release(engine, ALICE, 2, GUARDED)) == []
    assert holders(engine, GUARDED) == [BOB]
    assert who_got_it(engine.handle(c.OwnerFenced(BOB), now=0.0)) == [CAROL]


def test_process_inside_that_dies_lets_the_next_sibling_in(engine: LockEngine) -> None:
    family(engine, BOB, CAROL)
    engine.handle(c.RegisterOwner(BOB, 1, 100, owner("make", 700)), now=0.0)
    acquire(engine, BOB, 2, DISK)
    acquire(engine, CAROL, 1, DISK)
    assert who_got_it(engine.handle(c.EndOwner(100), now=0.0)) == [CAROL]


def test_inner_hears_only_of_trouble_that_nobody_around_heard_of(
    engine: LockEngine,
) -> None:
    acquire(engine, DAVE, 1, DISK)
    engine.handle(c.CloseSession(DAVE), now=0.0)
    (outer,) = acquire(engine, ALICE, 1, DISK)
    enter(engine, BOB, 2)
    enter(engine, CAROL, 2)
    (inner,) = acquire(engine, BOB, 1, DISK)
    engine.handle(c.CloseSession(BOB), now=0.0)
    (next_one,) = acquire(engine, CAROL, 1, DISK)
    heard = [x.previous for x in (outer, inner, next_one) if isinstance(x, e.Granted)]
    assert [[last.grant.session for last in x] for x in heard] == [[DAVE], [], [BOB]]


# What is refused.


def test_exclusive_inside_shared_is_refused(engine: LockEngine) -> None:
    family(engine, BOB, mode=SHARED)
    refused = refusal(acquire(engine, BOB, 1, DISK))
    assert (refused.code, refused.nested) == ("already_held", True)


def test_some_inside_and_some_not_is_invalid(engine: LockEngine) -> None:
    family(engine, BOB)
    refused = refusal(acquire(engine, BOB, 1, TAPE, DISK))
    assert refused.code == "invalid"
    assert refused.message == (
        "'memory:disk' is held by the command that this is part of, and 'memory:tape' "
        "is not: ask for them one after the other"
    )


def test_whole_inside_what_is_not_whole_is_refused(engine: LockEngine) -> None:
    family(engine, BOB)
    refused = refusal(acquire(engine, BOB, 1, DISK, whole=True))
    assert (refused.code, refused.message) == (
        "already_held",
        "its file is not locked whole",
    )


def test_inside_a_whole_lock_it_is_whole(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, whole=True)
    enter(engine, BOB, 1)
    (answer,) = acquire(engine, BOB, 1, DISK)
    assert isinstance(answer, e.Granted)
    assert answer.grants[0].whole


def test_outer_cannot_be_converted_while_somebody_is_inside(engine: LockEngine) -> None:
    family(engine, BOB)
    acquire(engine, BOB, 1, DISK)
    refused = refusal(convert(engine, ALICE, 2, DISK, SHARED))
    assert (refused.code, refused.nested) == ("in_use", True)
    release(engine, BOB, 2, DISK)
    assert who_got_it(convert(engine, ALICE, 3, DISK, SHARED)) == [ALICE]


def test_inner_keeps_the_mode_of_the_outer(engine: LockEngine) -> None:
    family(engine, BOB)
    acquire(engine, BOB, 1, DISK)
    assert convert(engine, BOB, 2, DISK, SHARED) == [
        converted(BOB, 2, grant(DISK, BOB, 2, inside=(1,)))
    ]


def test_inner_shared_grant_cannot_become_exclusive(engine: LockEngine) -> None:
    family(engine, BOB, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    refused = refusal(convert(engine, BOB, 2, DISK, EXCLUSIVE))
    assert (refused.code, refused.nested) == ("already_held", True)
    release(engine, ALICE, 2, DISK)
    assert who_got_it(convert(engine, BOB, 3, DISK, EXCLUSIVE)) == [BOB]


def test_who_waits_inside_for_more_than_is_left_is_refused(engine: LockEngine) -> None:
    """Carol waits for the tape inside; then the disk around her becomes shared."""
    acquire(engine, ALICE, 1, DISK, TAPE)
    enter(engine, BOB, 1, 2)
    enter(engine, CAROL, 1, 2)
    acquire(engine, BOB, 1, TAPE)
    assert acquire(engine, CAROL, 1, DISK, TAPE) == [queued(CAROL, 1, DISK, TAPE)]
    answer, refused = convert(engine, ALICE, 2, DISK, SHARED)
    assert isinstance(answer, e.Granted)
    assert isinstance(refused, e.Refused)
    assert (refused.session, refused.code, refused.nested) == (
        CAROL,
        "already_held",
        True,
    )


def test_sibling_that_is_alone_converts_past_one_that_waits(engine: LockEngine) -> None:
    family(engine, BOB, CAROL)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, DISK)
    release(engine, ALICE, 2, DISK)
    assert who_got_it(convert(engine, BOB, 2, DISK, SHARED)) == [BOB]
    assert waiters(engine) == [CAROL]
    assert who_got_it(release(engine, BOB, 3, DISK)) == [CAROL]


# Deadlocks.


def test_two_siblings_crosswise_are_a_deadlock(engine: LockEngine) -> None:
    family(engine, BOB, CAROL)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, TAPE)
    acquire(engine, BOB, 2, TAPE)
    assert refusal(acquire(engine, CAROL, 2, DISK)).code == "deadlock"


def test_grant_at_once_may_close_a_circle(engine: LockEngine) -> None:
    """Dave waits for the disk; Bob would have it too, and waits for Dave.

    The other session of Bob's process is not inside.
    """
    for session in (BOB, CAROL):
        command = c.RegisterOwner(session, 1, 100, owner("make", 700))
        engine.handle(command, now=0.0)
    family(engine, BOB)
    acquire(engine, DAVE, 1, TAPE)
    acquire(engine, DAVE, 2, DISK)
    acquire(engine, CAROL, 2, TAPE)
    refused = refusal(acquire(engine, BOB, 2, DISK))
    assert refused.code == "deadlock"
    assert holders(engine) == [ALICE]
    assert waiters(engine) == [DAVE]


def test_stranger_that_waits_closes_no_circle(engine: LockEngine) -> None:
    family(engine, BOB)
    acquire(engine, DAVE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    assert who_got_it(acquire(engine, BOB, 2, DISK)) == [BOB]


def test_two_that_share_wait_for_each_other_inside_exclusive(
    engine: LockEngine,
) -> None:
    """Bob and Carol would share, but inside an exclusive lock they take turns."""
    family(engine, BOB, CAROL, ERIN)
    acquire(engine, ERIN, 1, DISK)
    acquire(engine, CAROL, 1, TAPE)
    acquire(engine, BOB, 1, DISK, mode=SHARED, strand=1)
    acquire(engine, BOB, 2, TAPE, strand=1)
    refused = refusal(acquire(engine, CAROL, 2, DISK, mode=SHARED))
    assert refused.code == "deadlock"


# Files.


def opened(engine: LockEngine, key: ResourceKey = FILE) -> list[e.Effect]:
    return engine.handle(c.AnchorOpened(key), now=0.0)


def file_family(engine: LockEngine, *children: int, mode: Mode = EXCLUSIVE) -> None:
    family(engine, mode=mode, key=FILE)
    opened(engine)
    for child in children:
        enter(engine, child, 1)


def test_file_is_not_opened_again_inside(engine: LockEngine) -> None:
    file_family(engine, BOB)
    (answer,) = acquire(engine, BOB, 1, FILE)
    assert isinstance(answer, e.Granted)


def test_file_is_closed_when_the_last_of_the_tree_is_gone(engine: LockEngine) -> None:
    file_family(engine, BOB)
    acquire(engine, BOB, 1, FILE)
    assert not any(
        isinstance(x, e.CloseAnchor) for x in release(engine, ALICE, 2, FILE)
    )
    assert any(isinstance(x, e.CloseAnchor) for x in release(engine, BOB, 2, FILE))


def test_file_changes_hands_without_being_closed(engine: LockEngine) -> None:
    file_family(engine, BOB, CAROL)
    acquire(engine, BOB, 1, FILE)
    acquire(engine, CAROL, 1, FILE)
    release(engine, ALICE, 2, FILE)
    ended, opening, _ = release(engine, BOB, 2, FILE)
    assert isinstance(ended, e.Ended)
    assert opening == e.OpenAnchor(FILE, EXCLUSIVE)
    assert who_got_it(opened(engine)) == [CAROL]


def test_who_is_inside_waits_while_the_outer_is_converted(engine: LockEngine) -> None:
    file_family(engine, BOB, CAROL, mode=SHARED)
    convert(engine, ALICE, 2, FILE, EXCLUSIVE)
    shared = queued(BOB, 1, FILE, mode=SHARED)
    assert acquire(engine, BOB, 1, FILE, mode=SHARED) == [shared]
    acquire(engine, CAROL, 1, FILE, mode=SHARED)
    effects = opened(engine)
    assert who_got_it(effects) == [ALICE, BOB]
    *_, inner = (x for x in effects if isinstance(x, e.Granted))
    assert inner.grants[0].mode == EXCLUSIVE


def test_who_waits_inside_is_refused_when_the_outer_becomes_shared(
    engine: LockEngine,
) -> None:
    file_family(engine, BOB)
    convert(engine, ALICE, 2, FILE, SHARED)
    assert acquire(engine, BOB, 1, FILE) == [queued(BOB, 1, FILE)]
    refused = [x for x in opened(engine) if isinstance(x, e.Refused)]
    assert [(x.session, x.code) for x in refused] == [(BOB, "already_held")]


def test_several_files_of_which_one_is_free_by_now(engine: LockEngine) -> None:
    """Nobody gets in beside the file that is still held while the other is opened."""
    other = ResourceKey("files", "other")
    acquire(engine, ALICE, 1, FILE, other)
    opened(engine)
    opened(engine, other)
    for child in (BOB, CAROL, DAVE):
        enter(engine, child, 1, 2)
    acquire(engine, BOB, 1, FILE)
    acquire(engine, CAROL, 1, FILE, other)
    acquire(engine, DAVE, 1, FILE)
    release(engine, ALICE, 2, other)
    effects = release(engine, BOB, 2, FILE)
    opening = [x for x in effects if isinstance(x, e.OpenAnchor)]
    assert [x.key for x in opening] == [other]
    assert who_got_it(effects) == []
    assert who_got_it(opened(engine, other)) == [CAROL]
    assert waiters(engine, FILE) == [DAVE]


def test_file_that_is_opened_for_one_of_several_is_asked_for_again(
    engine: LockEngine,
) -> None:
    other = ResourceKey("files", "other")
    acquire(engine, ALICE, 1, FILE, other)
    opened(engine)
    opened(engine, other)
    enter(engine, BOB, 1, 2)
    enter(engine, CAROL, 1, 2)
    acquire(engine, CAROL, 1, FILE)
    acquire(engine, BOB, 1, FILE, other)
    release(engine, ALICE, 2, other)
    release(engine, CAROL, 2, FILE)
    asked = engine.handle(c.Resume(), now=0.0)
    assert [x.key for x in asked if isinstance(x, e.OpenAnchor)] == [other]
    assert who_got_it(opened(engine, other)) == [BOB]


# After a crash.


def busy_family(engine: LockEngine) -> None:
    """Bob holds inside Alice, Carol inside Bob; Erin and Dave and Fred wait."""
    family(engine, BOB, DAVE)
    acquire(engine, BOB, 1, DISK)
    enter(engine, CAROL, 1, 2)
    enter(engine, ERIN, 1, 2)
    acquire(engine, CAROL, 1, DISK)
    acquire(engine, FRED, 1, DISK)
    acquire(engine, DAVE, 1, DISK)
    acquire(engine, ERIN, 1, DISK)
    release(engine, ALICE, 2, DISK)


def test_line_and_chain_survive(engine: LockEngine) -> None:
    busy_family(engine)
    loaded = snapshot.load(records.assemble(decoded(engine))).engine
    check(loaded)
    assert waiters(loaded) == [ERIN, DAVE, FRED]
    assert who_got_it(release(loaded, CAROL, 2, DISK)) == [ERIN]
    release(loaded, BOB, 2, DISK)
    assert who_got_it(release(loaded, ERIN, 2, DISK)) == [DAVE]
    assert who_got_it(release(loaded, DAVE, 2, DISK)) == [FRED]


@pytest.mark.parametrize("token", [2, 3])
def test_lost_grant_of_a_chain_leaves_the_others(
    token: int, engine: LockEngine
) -> None:
    busy_family(engine)
    loaded = mended(without(engine, "grant", token))
    assert len(loaded.engine.holders(DISK)) == 1


def test_older_request_is_inside_nothing(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    old = dump(engine)
    for request in old["requests"]:
        del request["inside"]
    for each in old["owners"]:
        for held in each["grants"]:
            held.pop("inside", None)
    old |= {"version": 4, "readable_from": 3}
    assert dump(snapshot.load(old).engine) == dump(engine)


def test_older_daemon_does_not_read_what_it_would_mistake(engine: LockEngine) -> None:
    """It would take holders of a chain for holders that exclude each other."""
    assert snapshot.READABLE_FROM == 5


def test_children_cost_no_more_because_there_are_strangers(engine: LockEngine) -> None:
    """The line of those inside is short, however long the other one is."""
    family(engine, BOB)
    for session in range(100, 600):
        engine.handle(c.OpenSession(session, owner("stranger", session)), now=0.0)
        acquire(engine, session, 1, DISK)
    line = engine.state.resources[DISK]
    assert (len(line.inner), len(line.waiting)) == (0, 500)
    (answer,) = acquire(engine, BOB, 1, DISK)
    assert isinstance(answer, e.Granted)
    assert answer.grants[0].replace(inside=()) == grant(DISK, BOB, 2)


# Who is told that others wait.


def told(effects: Sequence[e.Effect]) -> list[tuple[str, int]]:
    return [
        (type(effect).__name__, effect.grant.session)
        for effect in effects
        if isinstance(effect, e.Wanted | e.Unwanted)
    ]


def test_holder_is_not_wanted_by_who_waits_inside(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, wanted=True)
    enter(engine, BOB, 1)
    enter(engine, CAROL, 1)
    acquire(engine, BOB, 1, DISK, wanted=True)
    assert told(acquire(engine, CAROL, 1, DISK)) == [("Wanted", BOB)]
    assert told(acquire(engine, DAVE, 1, DISK)) == [("Wanted", ALICE)]
    assert told(engine.handle(c.CloseSession(DAVE), now=0.0)) == [("Unwanted", ALICE)]


def test_grant_inside_may_be_overdue(engine: LockEngine) -> None:
    family(engine, BOB)
    acquire(engine, BOB, 1, DISK, max_hold=5.0)
    (overdue,) = engine.handle(c.Tick(), now=5.0)
    assert isinstance(overdue, e.Overdue)
    assert (overdue.session, overdue.grant.inside) == (BOB, (1,))


def test_circle_through_two_requests_of_a_strand_inside(engine: LockEngine) -> None:
    """Dave waits for Carol, whose second request comes after his: it is less deep."""
    family(engine, BOB, DAVE, ERIN)
    acquire(engine, BOB, 1, DISK)
    enter(engine, CAROL, 1, 2)
    acquire(engine, ERIN, 1, DISK)
    acquire(engine, CAROL, 1, DISK, strand=1)
    acquire(engine, CAROL, 2, DISK, mode=SHARED, strand=2)
    release(engine, BOB, 2, DISK)
    acquire(engine, DAVE, 1, DISK)
    refused = refusal(acquire(engine, CAROL, 3, DISK, mode=SHARED, strand=2))
    assert refused.code == "deadlock"


# A strand that is inside with one session, and outside with another.


def test_strand_that_waits_outside_does_not_wait_for_itself_inside(
    engine: LockEngine,
) -> None:
    family(engine, BOB)
    acquire(engine, DAVE, 1, TAPE)
    process = owner("process", 9)
    for session in (BOB, CAROL):
        engine.handle(c.RegisterOwner(session, 1, 9, process), now=0.0)
    acquire(engine, CAROL, 2, TAPE)
    acquire(engine, CAROL, 3, DISK, mode=SHARED)
    # It gets the lock inside, and only there.
    assert who_got_it(acquire(engine, BOB, 2, DISK, mode=SHARED)) == [BOB]
    assert waiters(engine) == [CAROL]
    assert who_got_it(release(engine, ALICE, 2, DISK)) == [CAROL]


# Slots have nothing but slots inside (`test_slots`).


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_other_modes_are_not_granted_inside_a_slot(
    engine: LockEngine, mode: Mode
) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SLOT, slots=2)
    enter(engine, BOB, 1)
    assert refusal(acquire(engine, BOB, 1, DISK, mode=mode)).code == "already_held"


def test_slot_is_not_granted_inside_an_exclusive_lock(engine: LockEngine) -> None:
    family(engine, BOB)
    effects = acquire(engine, BOB, 1, DISK, mode=SLOT, slots=2)
    assert refusal(effects).code == "already_held"


def test_search_among_siblings_looks_at_each_once() -> None:
    def steps_with(count: int) -> int:
        engine = LockEngine()
        engine.handle(c.AddLockspace("memory", anchored=False), now=0.0)
        for session in range(1, count + 4):
            engine.handle(c.OpenSession(session, owner("s", session)), now=0.0)
        acquire(engine, 1, 1, DISK)
        for session in range(2, count + 4):
            engine.handle(c.EnterGrants(session, (1,)), now=0.0)
        for session in range(2, count + 3):
            acquire(engine, session, 1, DISK)
        command = c.Acquire(count + 3, 1, (DISK,), EXCLUSIVE)
        return steps_of(lambda: engine.handle(command, now=0.0))

    few, many = steps_with(50), steps_with(100)
    assert few < many < 2.5 * few


# Files of several, and strands on both sides.


def open_files(engine: LockEngine, *keys: ResourceKey) -> list[e.Effect]:
    return [x for key in keys for x in engine.handle(c.AnchorOpened(key), now=0.0)]


ONE, TWO, THREE = (ResourceKey("files", name) for name in ("one", "two", "three"))


def test_one_further_inside_goes_first_after_a_busy_file(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, ONE, mode=SHARED)
    acquire(engine, ALICE, 2, TWO)
    open_files(engine, ONE, TWO)
    for child in (BOB, CAROL, DAVE):
        enter(engine, child, 1, 2)
    acquire(engine, BOB, 1, ONE, mode=SHARED)
    acquire(engine, CAROL, 1, TWO)
    acquire(engine, DAVE, 1, ONE, TWO, mode=SHARED)
    release(engine, ALICE, 3, TWO)
    release(engine, CAROL, 2, TWO)
    enter(engine, ERIN, 1, 3)
    acquire(engine, ERIN, 1, ONE, mode=SHARED)
    busy = engine.handle(c.AnchorRefused(TWO, "busy"), now=0.0)
    assert who_got_it(busy) == [ERIN]
    assert waiters(engine, ONE) == [DAVE]


def test_file_that_stays_open_for_one_inside_is_exclusive(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, ONE)
    acquire(engine, ALICE, 2, TWO)
    acquire(engine, DAVE, 1, THREE)
    open_files(engine, ONE, TWO, THREE)
    for child in (BOB, CAROL):
        enter(engine, child, 1, 2)
    acquire(engine, CAROL, 1, ONE)
    acquire(engine, BOB, 1, ONE, TWO, mode=SHARED)
    release(engine, ALICE, 3, TWO)
    release(engine, CAROL, 2, ONE)
    release(engine, ALICE, 4, ONE)
    # Bob will hold it exclusively, so Dave waits for him.
    acquire(engine, DAVE, 2, ONE, mode=SHARED)
    assert refusal(acquire(engine, BOB, 2, THREE)).code == "deadlock"
    assert who_got_it(open_files(engine, TWO)) == [BOB]


def test_strand_that_is_inside_and_outside_waits_for_others_between(
    engine: LockEngine,
) -> None:
    """Erin waits for the strand, which would wait behind Erin."""
    process = owner("process", 9)
    for session in (BOB, DAVE):
        engine.handle(c.RegisterOwner(session, 1, 9, process), now=0.0)
    family(engine, BOB, CAROL)
    acquire(engine, CAROL, 1, DISK)
    acquire(engine, BOB, 2, DISK, mode=SHARED)
    acquire(engine, ERIN, 1, DISK, mode=SHARED)
    effects = acquire(engine, DAVE, 3, DISK, mode=SHARED)
    assert refusal(effects).code == "deadlock"


def test_file_that_stays_open_for_one_inside_stays_whole(engine: LockEngine) -> None:
    """All around Bob end while his other file is opened, also over a restart."""
    acquire(engine, ALICE, 1, ONE, whole=True)
    acquire(engine, ALICE, 2, TWO)
    open_files(engine, ONE, TWO)
    for child in (BOB, CAROL):
        enter(engine, child, 1, 2)
    acquire(engine, CAROL, 1, TWO)
    acquire(engine, BOB, 1, ONE, TWO)
    release(engine, ALICE, 3, TWO)
    effects = release(engine, CAROL, 2, TWO)
    assert [x for x in effects if isinstance(x, e.OpenAnchor)] == [
        e.OpenAnchor(TWO, EXCLUSIVE)
    ]
    release(engine, ALICE, 4, ONE)
    loaded = snapshot.load(records.assemble(decoded(engine))).engine
    assert loaded.handle(c.Resume(), now=0.0) == [
        e.OpenAnchor(ONE, EXCLUSIVE, whole=True),
        e.OpenAnchor(TWO, EXCLUSIVE),
    ]
    open_files(loaded, ONE)
    for each in (engine, loaded):
        assert who_got_it(open_files(each, TWO)) == [BOB]
        wholes = [x.whole for key in (ONE, TWO) for x in each.holders(key)]
        assert wholes == [True, False]
        convert(each, BOB, 2, ONE, SHARED)
        open_files(each, ONE)
        assert refusal(convert(each, BOB, 3, ONE, EXCLUSIVE)).code == "invalid"


def test_file_is_whole_for_its_next_holder_only_if_it_asks(engine: LockEngine) -> None:
    """It stayed whole for Bob, and is opened again for Dave, with nobody around."""
    test_file_that_stays_open_for_one_inside_stays_whole(engine)
    acquire(engine, DAVE, 1, ONE)
    effects = release(engine, BOB, 4, ONE)
    assert e.OpenAnchor(ONE, EXCLUSIVE) in effects
    open_files(engine, ONE)
    assert [x.whole for x in engine.holders(ONE)] == [False]


def test_file_that_is_opened_again_is_whole_only_if_it_is_asked_for(
    engine: LockEngine,
) -> None:
    """Nothing is left around Carol when it is her turn."""
    acquire(engine, ALICE, 1, ONE, whole=True)
    open_files(engine, ONE)
    for child in (BOB, CAROL):
        enter(engine, child, 1)
    acquire(engine, BOB, 1, ONE)
    acquire(engine, CAROL, 1, ONE)
    release(engine, ALICE, 2, ONE)
    assert e.OpenAnchor(ONE, EXCLUSIVE) in release(engine, BOB, 2, ONE)
    assert who_got_it(open_files(engine, ONE)) == [CAROL]
    assert [x.whole for x in engine.holders(ONE)] == [False]


def test_older_record_of_an_open_file_says_nothing_of_whole(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, ONE)
    old = decoded(engine)
    for kind, _, value in old:
        for opening in value["anchors"] if kind == "request" else ():
            assert opening.pop() is False
    loaded = snapshot.load(records.assemble(old))
    assert loaded.problems == []
    assert dump(loaded.engine) == dump(engine)


def wait_with_open_file(engine: LockEngine) -> None:
    """Bob will hold both files inside; one stays open while the other is opened."""
    acquire(engine, ALICE, 1, ONE)
    acquire(engine, ALICE, 2, TWO)
    open_files(engine, ONE, TWO)
    for child in (BOB, CAROL, DAVE):
        enter(engine, child, 1, 2)
    acquire(engine, CAROL, 1, TWO)
    acquire(engine, BOB, 1, ONE, TWO)
    release(engine, ALICE, 3, TWO)
    release(engine, CAROL, 2, TWO)


def test_outer_cannot_be_converted_while_somebody_gets_inside(
    engine: LockEngine,
) -> None:
    """Else it would wait until Bob has released it: a convert to shared never waits."""
    wait_with_open_file(engine)
    refused = refusal(convert(engine, ALICE, 4, ONE, SHARED))
    assert (refused.code, refused.nested) == ("in_use", True)
    assert who_got_it(open_files(engine, TWO)) == [BOB]


def test_outer_is_converted_once_nobody_gets_inside_any_more(
    engine: LockEngine,
) -> None:
    wait_with_open_file(engine)
    engine.handle(c.CloseSession(BOB), now=0.0)
    shared = queued(ALICE, 4, ONE, mode=SHARED)
    assert convert(engine, ALICE, 4, ONE, SHARED) == [shared.replace(converting=True)]
    effects = open_files(engine, TWO)
    assert e.OpenAnchor(ONE, SHARED, in_use=True) in effects
    assert who_got_it(open_files(engine, ONE)) == [ALICE]


def test_as_many_as_may_wait_count_who_gets_inside(engine: LockEngine) -> None:
    wait_with_open_file(engine)
    assert refusal(acquire(engine, DAVE, 1, ONE, max_waiting=1)).code == "busy"
    assert acquire(engine, DAVE, 2, ONE, max_waiting=2) == [queued(DAVE, 2, ONE)]


def test_convert_to_shared_goes_before_one_who_waits_inside_for_several(
    engine: LockEngine,
) -> None:
    """Both can go at once: the other file is looked at first."""
    acquire(engine, ALICE, 1, ONE, TWO, THREE)
    open_files(engine, ONE, TWO, THREE)
    for child in (BOB, CAROL, DAVE):
        enter(engine, child, 1, 2, 3)
    acquire(engine, CAROL, 1, THREE)
    acquire(engine, BOB, 1, TWO, ONE, THREE)
    release(engine, ALICE, 2, THREE)
    release(engine, CAROL, 2, THREE)
    engine.handle(c.CloseSession(BOB), now=0.0)
    convert(engine, ALICE, 3, ONE, SHARED)
    acquire(engine, DAVE, 1, TWO, ONE)
    effects = open_files(engine, THREE)
    assert who_got_it(effects) == []
    assert e.OpenAnchor(ONE, SHARED, in_use=True) in effects
    converted, refused = open_files(engine, ONE)
    assert who_got_it([converted]) == [ALICE]
    assert isinstance(refused, e.Refused)
    assert (refused.session, refused.code) == (DAVE, "already_held")


def test_convert_to_shared_that_is_stuck_after_a_loss_ends_with_its_session(
    engine: LockEngine,
) -> None:
    """The record of a grant inside is old, and that of who opened a file is lost."""
    acquire(engine, ALICE, 1, ONE, TWO)
    open_files(engine, ONE, TWO)
    for child in (BOB, CAROL):
        enter(engine, child, 1, 2)
    acquire(engine, CAROL, 1, ONE)
    (old,) = (x for x in decoded(engine) if (x[0], x[1]) == ("grant", 3))
    release(engine, CAROL, 2, ONE)
    acquire(engine, CAROL, 3, TWO)
    acquire(engine, BOB, 1, ONE, TWO)
    release(engine, ALICE, 2, TWO)
    release(engine, CAROL, 4, TWO)
    engine.handle(c.CloseSession(BOB), now=0.0)
    convert(engine, ALICE, 3, ONE, SHARED)
    (opening,) = (x for x in decoded(engine) if x[0] == "request" and x[2]["anchors"])
    loaded = mended([old, *without(engine, "request", opening[1])], "some are old")
    assert ALICE in loaded.damaged
    assert holders(loaded.engine, ONE) == [CAROL]
