"""Anchors, pauses and deadlines."""

import pytest

from engine.scene import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    DISK,
    FILE,
    OTHER_FILE,
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
    Acquire,
    AnchorDelayed,
    AnchorOpened,
    AnchorRefused,
    Cancel,
    CloseSession,
    Command,
    EndOwner,
    RegisterOwner,
    Tick,
)
from lockd.engine.effects import (
    CloseAnchor,
    Completed,
    Effect,
    Ended,
    ForgetOwner,
    Granted,
    OpenAnchor,
    Queued,
    Refused,
)
from lockd.engine.lock_engine import LockEngine
from lockd.engine.lock_table import TRY_PATIENCE
from lockd.terms import EXCLUSIVE, SHARED, OutsideHolder, ResourceKey


def opened(
    engine: LockEngine, key: ResourceKey = FILE, now: float = 0.0
) -> list[Effect]:
    return engine.handle(AnchorOpened(key), now=now)


def refused(
    engine: LockEngine, code: str, key: ResourceKey = FILE, now: float = 0.0
) -> list[Effect]:
    command = AnchorRefused(key, code, "its words", OutsideHolder(EXCLUSIVE, 4711))
    return engine.handle(command, now=now)


def open_anchor(
    key: ResourceKey = FILE, mode: object = EXCLUSIVE, in_use: bool = False
) -> OpenAnchor:
    return OpenAnchor(key, mode, None, in_use)  # type: ignore[arg-type]


# Opening and closing.


def test_grant_waits_for_the_anchor(engine: LockEngine) -> None:
    assert acquire(engine, ALICE, 1, FILE) == [open_anchor()]
    assert engine.situation(FILE).holder_count == 0
    assert opened(engine, now=1.0) == [
        granted(ALICE, 1, grant(FILE, ALICE, 1, since=1.0), waited=1.0)
    ]


def test_wish_to_create_reaches_the_anchor(engine: LockEngine) -> None:
    command = Acquire(ALICE, 1, (FILE,), EXCLUSIVE, create=False)
    assert engine.handle(command, now=0.0) == [OpenAnchor(FILE, EXCLUSIVE, False)]
    opened(engine)


def test_anchor_is_closed_after_its_last_holder(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    opened(engine)
    acquire(engine, BOB, 1, FILE, mode=SHARED)
    opened(engine)
    assert release(engine, ALICE, 2, FILE) == [
        Ended(grant(FILE, ALICE, 1, SHARED), "released"),
        Completed(ALICE, 2),
    ]
    assert release(engine, BOB, 2, FILE) == [
        Ended(grant(FILE, BOB, 2, SHARED), "released"),
        CloseAnchor(FILE),
        Completed(BOB, 2),
    ]


def test_anchor_is_handed_to_the_next_without_being_closed(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE)
    opened(engine)
    assert acquire(engine, BOB, 1, FILE) == [queued(BOB, 1, FILE)]
    assert release(engine, ALICE, 2, FILE) == [
        Ended(grant(FILE, ALICE, 1), "released"),
        open_anchor(),
        Completed(ALICE, 2),
    ]
    assert opened(engine) == [granted(BOB, 1, grant(FILE, BOB, 2))]


def test_shared_newcomer_has_the_open_anchor_checked(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    opened(engine)
    assert acquire(engine, BOB, 1, FILE, mode=SHARED) == [
        open_anchor(mode=SHARED, in_use=True)
    ]
    assert opened(engine) == [granted(BOB, 1, grant(FILE, BOB, 2, SHARED))]


def test_nobody_moves_while_an_anchor_is_being_opened(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    assert acquire(engine, BOB, 1, FILE, mode=SHARED) == [
        queued(BOB, 1, FILE, mode=SHARED)
    ]
    assert refusal(acquire(engine, CAROL, 1, FILE, timeout=0)).code == "busy"
    assert opened(engine) == [
        granted(ALICE, 1, grant(FILE, ALICE, 1, SHARED)),
        open_anchor(mode=SHARED, in_use=True),
    ]
    opened(engine)


def test_several_are_granted_when_all_their_anchors_are_open(
    engine: LockEngine,
) -> None:
    assert acquire(engine, ALICE, 1, FILE, OTHER_FILE) == [
        open_anchor(),
        open_anchor(OTHER_FILE),
    ]
    assert opened(engine, OTHER_FILE) == []
    assert opened(engine) == [
        granted(ALICE, 1, grant(FILE, ALICE, 1), grant(OTHER_FILE, ALICE, 2))
    ]


def test_several_close_what_was_opened_when_one_is_refused(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE, OTHER_FILE)
    assert opened(engine) == []
    answer, closed = refused(engine, "io", OTHER_FILE)
    assert isinstance(answer, Refused)
    assert (answer.code, answer.message) == ("io", "its words")
    assert answer.situation is not None
    assert answer.situation.key == OTHER_FILE
    assert closed == CloseAnchor(FILE)


def test_first_refusal_of_several_is_the_one_that_is_told(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, OTHER_FILE)
    refused(engine, "not_found")
    assert refusal(refused(engine, "io", OTHER_FILE)).code == "not_found"


# Refusals and pauses.


@pytest.mark.parametrize("code", ["io", "not_found", "denied", "unavailable"])
def test_failing_file_refuses_the_request(engine: LockEngine, code: str) -> None:
    acquire(engine, ALICE, 1, FILE)
    answer = refusal(refused(engine, code))
    assert (answer.session, answer.code, answer.message) == (ALICE, code, "its words")
    assert engine.resources == {}


def test_failing_file_lets_the_next_try(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE)
    acquire(engine, BOB, 1, FILE)
    answer, again = refused(engine, "io")
    assert isinstance(answer, Refused)
    assert again == open_anchor()
    assert opened(engine) == [granted(BOB, 1, grant(FILE, BOB, 1))]


def test_try_of_a_file_locked_from_outside_names_who_locks_it(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE, timeout=0)
    answer = refusal(refused(engine, "busy"))
    assert (answer.code, answer.outside) == ("busy", OutsideHolder(EXCLUSIVE, 4711))


def test_file_locked_from_outside_is_tried_again_after_growing_pauses(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE)
    assert refused(engine, "busy") == [queued(ALICE, 1, FILE)]
    pauses, now = [], 0.0
    for _ in range(8):
        due = engine.next_deadline()
        assert due is not None
        pauses.append(round(due - now, 6))
        now = due
        assert engine.handle(Tick(), now=now) == [open_anchor()]
        assert refused(engine, "busy", now=now) == []
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5]
    engine.handle(Cancel(ALICE, 2, 1), now=now)


def test_nobody_overtakes_who_pauses(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE)
    refused(engine, "busy")
    assert acquire(engine, BOB, 1, FILE) == [queued(BOB, 1, FILE)]
    assert refusal(acquire(engine, CAROL, 1, FILE, timeout=0)).code == "busy"
    assert [w.session for w in engine.situation(FILE).waiters] == [ALICE, BOB]
    engine.handle(Tick(), now=0.01)
    assert opened(engine, now=0.01) == [
        granted(ALICE, 1, grant(FILE, ALICE, 1, since=0.01), waited=0.01)
    ]


def test_queue_moves_on_when_who_pauses_leaves(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE)
    refused(engine, "busy")
    acquire(engine, BOB, 1, FILE)
    assert engine.handle(CloseSession(ALICE), now=0.0) == [open_anchor()]
    opened(engine)


def test_pausing_request_that_runs_out_of_time_hears_who_locks_the_file(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE, timeout=0.005)
    refused(engine, "busy")
    answer = refusal(engine.handle(Tick(), now=0.005))
    assert (answer.code, answer.outside) == ("timeout", OutsideHolder(EXCLUSIVE, 4711))
    assert engine.next_deadline() is None


def test_request_for_several_pauses_in_all_its_lines(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, OTHER_FILE)
    opened(engine)
    assert refused(engine, "busy", OTHER_FILE) == [
        queued(ALICE, 1, FILE, OTHER_FILE),
        CloseAnchor(FILE),
    ]
    assert acquire(engine, BOB, 1, FILE) == [queued(BOB, 1, FILE)]
    assert engine.handle(Tick(), now=0.01) == [open_anchor(), open_anchor(OTHER_FILE)]
    opened(engine, now=0.01)
    opened(engine, OTHER_FILE, now=0.01)


def test_pause_that_would_close_a_ring_is_a_deadlock(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, OTHER_FILE)
    opened(engine, OTHER_FILE)
    acquire(engine, BOB, 1, FILE, mode=SHARED)
    opened(engine)
    acquire(engine, BOB, 2, OTHER_FILE)
    acquire(engine, ALICE, 2, FILE, mode=SHARED)
    convert(engine, BOB, 3, FILE, EXCLUSIVE)
    # Back in line, Alice is behind Bob's upgrade, and Bob waits for Alice.
    answer, upgrade = refused(engine, "busy")
    assert isinstance(answer, Refused)
    assert (answer.session, answer.request, answer.code) == (ALICE, 2, "deadlock")
    assert [edge.session for edge in answer.cycle] == [ALICE, BOB]
    assert upgrade == open_anchor(in_use=True)
    opened(engine)


# Slow file systems.


def test_slow_anchor_lets_a_request_run_out_of_time(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, timeout=3.0)
    assert engine.next_deadline() is None
    assert engine.handle(AnchorDelayed(FILE), now=0.0) == [queued(ALICE, 1, FILE)]
    assert engine.next_deadline() == 3.0
    assert refusal(engine.handle(Tick(), now=3.0)).code == "timeout"
    assert opened(engine, now=4.0) == [CloseAnchor(FILE)]


def test_try_has_patience_with_a_slow_anchor(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, OTHER_FILE, timeout=0)
    engine.handle(AnchorDelayed(FILE), now=0.0)
    assert engine.handle(AnchorDelayed(OTHER_FILE), now=1.0) == []
    assert engine.next_deadline() == TRY_PATIENCE
    assert refusal(engine.handle(Tick(), now=TRY_PATIENCE)).code == "timeout"
    opened(engine)
    opened(engine, OTHER_FILE)


def test_delay_is_of_no_interest_to_who_has_given_up(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE)
    engine.handle(Cancel(ALICE, 2, 1), now=0.0)
    assert engine.handle(AnchorDelayed(FILE), now=0.0) == []
    opened(engine)
    assert engine.resources == {}


# Giving up while the anchor is being opened.


@pytest.mark.parametrize("command", [Cancel(ALICE, 2, 1), CloseSession(ALICE)])
def test_anchor_that_comes_too_late_serves_the_next(
    engine: LockEngine, command: Command
) -> None:
    acquire(engine, ALICE, 1, FILE)
    acquire(engine, BOB, 1, FILE)
    engine.handle(command, now=0.0)
    assert [w.session for w in engine.situation(FILE).waiters] == [BOB]
    assert opened(engine) == [open_anchor()]
    assert opened(engine) == [granted(BOB, 1, grant(FILE, BOB, 1))]


def test_anchor_that_comes_too_late_for_everybody_is_closed(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE)
    answer, done = engine.handle(Cancel(ALICE, 2, 1), now=0.0)
    assert isinstance(answer, Refused)
    assert (answer.code, done) == ("cancelled", Completed(ALICE, 2))
    assert opened(engine) == [CloseAnchor(FILE)]
    assert engine.resources == {}


def test_refusal_that_comes_too_late_is_nobodys(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE)
    engine.handle(Cancel(ALICE, 2, 1), now=0.0)
    assert refused(engine, "io") == []
    assert engine.resources == {}


# Converting what is anchored.


def test_upgrade_asks_the_anchor_first(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    opened(engine)
    assert convert(engine, ALICE, 2, FILE, EXCLUSIVE) == [open_anchor(in_use=True)]
    assert opened(engine) == [converted(ALICE, 2, grant(FILE, ALICE, 1))]


def test_downgrade_asks_the_anchor_first(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE)
    opened(engine)
    acquire(engine, BOB, 1, FILE, mode=SHARED)
    assert convert(engine, ALICE, 2, FILE, SHARED) == [
        open_anchor(mode=SHARED, in_use=True)
    ]
    assert opened(engine) == [
        converted(ALICE, 2, grant(FILE, ALICE, 1, SHARED)),
        open_anchor(mode=SHARED, in_use=True),
    ]
    opened(engine)


def test_refused_upgrade_keeps_the_shared_hold(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    opened(engine)
    convert(engine, ALICE, 2, FILE, EXCLUSIVE, timeout=0)
    answer = refusal(refused(engine, "busy"))
    assert answer.code == "busy"
    assert engine.situation(FILE).holders == (grant(FILE, ALICE, 1, SHARED),)


def test_waiting_upgrade_tries_a_file_locked_from_outside_again(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    opened(engine)
    convert(engine, ALICE, 2, FILE, EXCLUSIVE)
    assert refused(engine, "busy") == [
        Queued(ALICE, 2, (FILE,), EXCLUSIVE, converting=True)
    ]
    assert engine.handle(Tick(), now=0.01) == [open_anchor(in_use=True)]
    assert opened(engine, now=0.01) == [
        converted(ALICE, 2, grant(FILE, ALICE, 1), waited=0.01)
    ]


@pytest.mark.parametrize("code", ["busy", "io"])
def test_downgrade_never_waits_whatever_the_anchor_answers(
    engine: LockEngine, code: str
) -> None:
    acquire(engine, ALICE, 1, FILE)
    opened(engine)
    convert(engine, ALICE, 2, FILE, SHARED)
    assert refusal(refused(engine, code)).code == code
    assert engine.situation(FILE).holders == (grant(FILE, ALICE, 1),)
    assert engine.next_deadline() is None


def test_upgrade_given_up_while_the_anchor_opens_is_taken_back(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    opened(engine)
    convert(engine, ALICE, 2, FILE, EXCLUSIVE)
    engine.handle(Cancel(ALICE, 3, 2), now=0.0)
    assert opened(engine) == [open_anchor(mode=SHARED, in_use=True)]
    assert opened(engine) == []
    assert engine.situation(FILE).holders == (grant(FILE, ALICE, 1, SHARED),)


def test_upgrade_given_up_and_refused_leaves_all_as_it_was(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    opened(engine)
    convert(engine, ALICE, 2, FILE, EXCLUSIVE)
    engine.handle(Cancel(ALICE, 3, 2), now=0.0)
    assert refused(engine, "busy") == []
    assert engine.situation(FILE).holders == (grant(FILE, ALICE, 1, SHARED),)


def test_anchor_that_cannot_be_taken_back_is_held_more_strongly(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    opened(engine)
    convert(engine, ALICE, 2, FILE, EXCLUSIVE)
    engine.handle(Cancel(ALICE, 3, 2), now=0.0)
    opened(engine)
    assert refused(engine, "io") == []
    assert engine.situation(FILE).holders == (grant(FILE, ALICE, 1, SHARED),)


def test_downgrade_is_not_cancelled(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE)
    opened(engine)
    convert(engine, ALICE, 2, FILE, SHARED)
    assert engine.handle(Cancel(ALICE, 3, 2), now=0.0) == [Completed(ALICE, 3)]
    assert opened(engine) == [converted(ALICE, 2, grant(FILE, ALICE, 1, SHARED))]


def test_downgrade_holds_though_the_session_that_asked_is_gone(
    engine: LockEngine,
) -> None:
    for session in (ALICE, BOB):
        command = RegisterOwner(session, 9, 100, owner("guest", 700))
        engine.handle(command, now=0.0)
    acquire(engine, ALICE, 1, FILE)
    opened(engine)
    convert(engine, BOB, 1, FILE, SHARED)
    assert engine.handle(CloseSession(BOB), now=0.0) == []
    assert opened(engine) == []
    assert [g.mode for g in engine.situation(FILE).holders] == [SHARED]
    ended, closed = engine.handle(EndOwner(100), now=0.0)[1:]
    assert isinstance(ended, Ended)
    assert closed == CloseAnchor(FILE)
    assert engine.handle(CloseSession(ALICE), now=0.0) == [ForgetOwner(100)]


def test_holder_that_leaves_while_its_upgrade_opens_frees_the_anchor(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    opened(engine)
    convert(engine, ALICE, 2, FILE, EXCLUSIVE)
    assert engine.handle(CloseSession(ALICE), now=0.0) == [
        Ended(grant(FILE, ALICE, 1, SHARED), "disconnected")
    ]
    assert opened(engine) == [CloseAnchor(FILE)]


# Time and memory.


def test_deadlines_of_answered_requests_do_not_pile_up(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    for request in range(1, 1000):
        acquire(engine, BOB, request, DISK, timeout=3600.0)
        engine.handle(Cancel(BOB, 0, request), now=0.0)
    assert len(engine.state.deadlines) < 100
    assert engine.next_deadline() is None


def test_deadlines_come_due_in_their_order(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    for session, timeout in ((BOB, 3.0), (CAROL, 1.0), (DAVE, 2.0)):
        acquire(engine, session, 1, DISK, timeout=timeout)
    effects = engine.handle(Tick(), now=2.5)
    assert [x.session for x in effects if isinstance(x, Refused)] == [CAROL, DAVE]
    assert engine.next_deadline() == 3.0


def test_waiters_come_before_the_answer_to_the_release(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, TAPE)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, CAROL, 1, DISK)
    effects = release(engine, ALICE, 2, DISK, TAPE)
    assert [type(x) for x in effects] == [Ended, Ended, Granted, Granted, Completed]
