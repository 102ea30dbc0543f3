"""What sessions ask for: acquire, convert, release, cancel."""

from typing import Any

import pytest

from engine.scene import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    DISK,
    FILE,
    TAPE,
    acquire,
    convert,
    converted,
    grant,
    granted,
    queued,
    refusal,
    release,
)
from lockd.engine.commands import (
    Acquire,
    AnchorOpened,
    AnchorRefused,
    Cancel,
    CloseSession,
    Release,
    Tick,
)
from lockd.engine.effects import (
    Completed,
    Ended,
    Granted,
    LastHolder,
    OpenAnchor,
    Queued,
    Refused,
)
from lockd.engine.lock_engine import LockEngine
from lockd.terms import EXCLUSIVE, SHARED, WorkOutcome

# Who gets it, and when.


def test_free_resource_is_granted_at_once(engine: LockEngine) -> None:
    assert acquire(engine, ALICE, 1, DISK) == [granted(ALICE, 1, grant(DISK, ALICE, 1))]


def test_exclusive_excludes_both_modes(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    assert acquire(engine, BOB, 1, DISK) == [queued(BOB, 1, DISK)]
    assert acquire(engine, CAROL, 1, DISK, mode=SHARED) == [
        queued(CAROL, 1, DISK, mode=SHARED)
    ]


def test_shared_holders_stand_side_by_side(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    assert acquire(engine, BOB, 1, DISK, mode=SHARED) == [
        granted(BOB, 1, grant(DISK, BOB, 2, SHARED))
    ]
    assert acquire(engine, CAROL, 1, DISK) == [queued(CAROL, 1, DISK)]


def test_waiter_is_granted_when_holder_releases(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, now=1.0)
    assert release(engine, ALICE, 2, DISK, now=4.0) == [
        Ended(grant(DISK, ALICE, 1), "released"),
        granted(BOB, 1, grant(DISK, BOB, 2, since=4.0), waited=3.0),
        Completed(ALICE, 2),
    ]


def test_waiters_are_granted_in_the_order_of_their_coming(engine: LockEngine) -> None:
    for session in (ALICE, CAROL, BOB, DAVE):
        acquire(engine, session, 1, DISK)
    order = []
    for holder in (ALICE, CAROL, BOB):
        effects = release(engine, holder, 2, DISK)
        order += [x.session for x in effects if isinstance(x, Granted)]
    assert order == [CAROL, BOB, DAVE]


def test_reader_does_not_overtake_a_waiting_writer(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK)
    assert acquire(engine, CAROL, 1, DISK, mode=SHARED) == [
        queued(CAROL, 1, DISK, mode=SHARED)
    ]
    effects = release(engine, ALICE, 2, DISK)
    assert granted(BOB, 1, grant(DISK, BOB, 2)) in effects
    assert not [x for x in effects if isinstance(x, Granted) and x.session == CAROL]


def test_steady_stream_of_readers_does_not_starve_a_writer(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK)
    for request in range(2, 50):
        acquire(engine, CAROL, request, DISK, mode=SHARED)
        engine.handle(Cancel(CAROL, 1000 + request, request), now=0.0)
    assert granted(BOB, 1, grant(DISK, BOB, 2)) in release(engine, ALICE, 2, DISK)


def test_adjacent_readers_are_granted_together(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 1, DISK, mode=SHARED)
    acquire(engine, DAVE, 1, DISK)
    assert release(engine, ALICE, 2, DISK)[1:-1] == [
        granted(BOB, 1, grant(DISK, BOB, 2, SHARED)),
        granted(CAROL, 1, grant(DISK, CAROL, 3, SHARED)),
    ]


def test_readers_around_a_writer_are_not_one_batch(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 1, DISK)
    acquire(engine, DAVE, 1, DISK, mode=SHARED)
    assert release(engine, ALICE, 2, DISK)[1:-1] == [
        granted(BOB, 1, grant(DISK, BOB, 2, SHARED))
    ]
    assert release(engine, BOB, 2, DISK)[1:-1] == [
        granted(CAROL, 1, grant(DISK, CAROL, 3))
    ]
    assert release(engine, CAROL, 2, DISK)[1:-1] == [
        granted(DAVE, 1, grant(DISK, DAVE, 4, SHARED))
    ]


def test_writer_between_readers_closes_no_cycle(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    assert acquire(engine, BOB, 1, DISK, mode=SHARED) == [
        queued(BOB, 1, DISK, mode=SHARED)
    ]
    assert acquire(engine, CAROL, 1, DISK) == [queued(CAROL, 1, DISK)]


def test_tokens_rise_over_all_resources_and_are_not_used_again(
    engine: LockEngine,
) -> None:
    tokens = []
    for request in range(1, 8, 2):
        for key in (DISK, TAPE):
            (effect,) = acquire(engine, ALICE, request, key)
            assert isinstance(effect, Granted)
            tokens.append(effect.grants[0].fencing_token)
        release(engine, ALICE, request + 1, DISK, TAPE)
    assert tokens == [1, 2, 3, 4, 5, 6, 7, 8]


def test_labels_and_reasons_come_back_with_grant_and_waiter(engine: LockEngine) -> None:
    for session in (ALICE, BOB):
        command = Acquire(session, 1, (DISK,), EXCLUSIVE, label="/dev/x", reason="fsck")
        engine.handle(command, now=0.0)
    situation = engine.situation(DISK)
    (holder,), (waiter,) = situation.holders, situation.waiters
    assert (holder.label, holder.reason) == ("/dev/x", "fsck")
    assert (waiter.label, waiter.reason) == ("/dev/x", "fsck")


# Tries, timeouts, cancels.


def test_try_is_refused_with_who_holds_and_who_waits(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    refused = refusal(acquire(engine, CAROL, 1, DISK, timeout=0))
    assert (refused.code, refused.waited) == ("busy", 0.0)
    assert refused.situation is not None
    assert refused.situation.holders == (grant(DISK, ALICE, 1),)
    assert [w.session for w in refused.situation.waiters] == [BOB]


def test_try_is_refused_when_somebody_waits_even_if_it_would_fit(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK)
    refused = refusal(acquire(engine, CAROL, 1, DISK, mode=SHARED, timeout=0))
    assert refused.code == "busy"


def test_try_of_what_is_free_is_granted(engine: LockEngine) -> None:
    assert acquire(engine, ALICE, 1, DISK, timeout=0) == [
        granted(ALICE, 1, grant(DISK, ALICE, 1))
    ]


def test_request_is_refused_when_as_many_wait_as_it_allows(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    assert acquire(engine, BOB, 1, DISK, max_waiting=1) == [queued(BOB, 1, DISK)]
    refused = refusal(acquire(engine, CAROL, 1, DISK, max_waiting=1))
    assert (refused.code, refused.waited, refused.max_waiting) == ("busy", 0.0, 1)
    assert refused.situation is not None
    assert refused.situation.holders == (grant(DISK, ALICE, 1),)
    assert [w.session for w in refused.situation.waiters] == [BOB]
    assert acquire(engine, DAVE, 1, DISK, max_waiting=2) == [queued(DAVE, 1, DISK)]
    assert engine.situation(DISK).waiter_count == 2


def test_of_several_resources_the_longest_line_counts(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, TAPE)
    acquire(engine, BOB, 1, TAPE)
    refused = refusal(acquire(engine, CAROL, 1, DISK, TAPE, max_waiting=1))
    assert refused.situation is not None
    assert (refused.code, refused.situation.key) == ("busy", TAPE)


def test_who_converts_is_in_the_line_too(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    assert refusal(acquire(engine, CAROL, 1, DISK, max_waiting=1)).code == "busy"


def test_request_that_may_wait_behind_nobody_is_a_try(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, max_waiting=0)
    assert refusal(acquire(engine, BOB, 1, DISK, max_waiting=0)).code == "busy"
    command = Acquire(BOB, 2, (FILE,), EXCLUSIVE, max_waiting=0)
    engine.handle(command, now=0.0)
    refused = refusal(engine.handle(AnchorRefused(FILE, "busy"), now=0.0))
    assert (refused.session, refused.code) == (BOB, "busy")


def test_first_in_line_may_wait_for_a_file_that_is_locked_outside(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE, max_waiting=1)
    assert engine.handle(AnchorRefused(FILE, "busy"), now=0.0) == [
        queued(ALICE, 1, FILE)
    ]
    assert refusal(acquire(engine, BOB, 1, FILE, max_waiting=1)).code == "busy"


def test_free_resource_is_granted_whoever_may_wait(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    shared = grant(DISK, BOB, 2, SHARED)
    assert acquire(engine, BOB, 1, DISK, mode=SHARED, max_waiting=1) == [
        granted(BOB, 1, shared)
    ]


def test_file_is_opened_and_granted_whole_for_who_asks_so(engine: LockEngine) -> None:
    assert acquire(engine, ALICE, 1, FILE, mode=SHARED, whole=True) == [
        OpenAnchor(FILE, SHARED, whole=True)
    ]
    whole = grant(FILE, ALICE, 1, SHARED, whole=True)
    assert engine.handle(AnchorOpened(FILE), now=0.0) == [granted(ALICE, 1, whole)]
    assert acquire(engine, BOB, 1, FILE, mode=SHARED) == [
        OpenAnchor(FILE, SHARED, in_use=True)
    ]
    assert engine.handle(AnchorOpened(FILE), now=0.0) == [
        granted(BOB, 1, grant(FILE, BOB, 2, SHARED))
    ]


def test_waiter_that_wants_it_whole_tries_it_whole_again(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, whole=True)
    engine.handle(AnchorRefused(FILE, "busy"), now=0.0)
    assert engine.handle(Tick(), now=0.01) == [OpenAnchor(FILE, EXCLUSIVE, whole=True)]


def test_shared_hold_is_counted_again_if_it_is_as_whole_as_is_asked(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    engine.handle(AnchorOpened(FILE), now=0.0)
    again = refusal(acquire(engine, ALICE, 2, FILE, mode=SHARED, whole=True))
    assert again.code == "already_held"
    assert "not locked whole" in again.message
    release(engine, ALICE, 3, FILE)
    acquire(engine, ALICE, 4, FILE, mode=SHARED, whole=True)
    engine.handle(AnchorOpened(FILE), now=0.0)
    for number, whole in ((5, True), (6, False)):
        (answer,) = acquire(engine, ALICE, number, FILE, mode=SHARED, whole=whole)
        assert isinstance(answer, Granted)
        assert answer.grants[0].whole


def test_two_waiting_shared_requests_share_a_whole_hold_if_one_asked_so(
    engine: LockEngine,
) -> None:
    acquire(engine, BOB, 1, FILE)
    engine.handle(AnchorOpened(FILE), now=0.0)
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    acquire(engine, ALICE, 2, FILE, mode=SHARED, whole=True)
    release(engine, BOB, 2, FILE)
    engine.handle(AnchorOpened(FILE), now=0.0)
    engine.handle(AnchorOpened(FILE), now=0.0)
    (held,) = engine.holders(FILE)
    assert (held.count, held.whole) == (2, True)


def test_whole_file_can_be_shared_but_not_taken_back(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, whole=True)
    engine.handle(AnchorOpened(FILE), now=0.0)
    assert convert(engine, ALICE, 2, FILE, SHARED) == [
        OpenAnchor(FILE, SHARED, in_use=True)
    ]
    engine.handle(AnchorOpened(FILE), now=0.0)
    refused = refusal(convert(engine, ALICE, 3, FILE, EXCLUSIVE))
    assert refused.code == "invalid"
    assert "locked whole" in refused.message
    (held,) = engine.holders(FILE)
    assert (held.mode, held.whole) == (SHARED, True)


def test_waiter_is_refused_when_its_time_is_over(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, timeout=5.0, now=1.0)
    assert engine.next_deadline() == 6.0
    assert engine.handle(Tick(), now=5.9) == []
    refused = refusal(engine.handle(Tick(), now=6.2))  # the tick comes late
    assert (refused.session, refused.code, refused.waited) == (BOB, "timeout", 5.0)
    assert engine.next_deadline() is None


def test_grant_before_the_deadline_is_the_only_answer(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, timeout=5.0)
    assert granted(BOB, 1, grant(DISK, BOB, 2, since=5.0), waited=5.0) in release(
        engine, ALICE, 2, DISK, now=5.0
    )
    assert engine.next_deadline() is None
    assert engine.handle(Tick(), now=5.0) == []


def test_timeout_before_the_release_is_the_only_answer(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, timeout=5.0)
    assert refusal(engine.handle(Tick(), now=5.0)).code == "timeout"
    assert release(engine, ALICE, 2, DISK, now=5.0) == [
        Ended(grant(DISK, ALICE, 1), "released"),
        Completed(ALICE, 2),
    ]


def test_queue_moves_on_when_its_first_runs_out_of_time(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, timeout=5.0)
    acquire(engine, CAROL, 1, DISK, mode=SHARED)
    refused, moved_up = engine.handle(Tick(), now=5.0)
    assert isinstance(refused, Refused)
    assert moved_up == granted(
        CAROL, 1, grant(DISK, CAROL, 2, SHARED, since=5.0), waited=5.0
    )


def test_cancelled_request_is_answered_before_the_cancel(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, DISK, mode=SHARED)
    refused, moved_up, done = engine.handle(Cancel(BOB, 2, 1), now=2.0)
    assert isinstance(refused, Refused)
    assert (refused.request, refused.code, refused.waited) == (1, "cancelled", 2.0)
    assert moved_up == granted(
        CAROL, 1, grant(DISK, CAROL, 2, SHARED, since=2.0), waited=2.0
    )
    assert done == Completed(BOB, 2)


def test_cancel_that_comes_too_late_changes_nothing(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    assert engine.handle(Cancel(ALICE, 2, 1), now=0.0) == [Completed(ALICE, 2)]
    assert engine.holds(DISK, 1)


def test_session_cannot_cancel_the_request_of_another(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 7, DISK)
    assert engine.handle(Cancel(CAROL, 2, 7), now=0.0) == [Completed(CAROL, 2)]
    assert engine.situation(DISK).waiter_count == 1


def test_request_number_in_use_is_refused(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    assert refusal(acquire(engine, BOB, 1, TAPE)).code == "invalid"
    assert refusal(convert(engine, BOB, 1, TAPE, SHARED)).code == "invalid"
    assert engine.situation(DISK).waiter_count == 1


# Holding twice.


def test_owner_that_holds_gets_already_held(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    refused = refusal(acquire(engine, ALICE, 2, DISK))
    assert refused.code == "already_held"
    assert refused.situation is not None
    assert refused.situation.holders == (grant(DISK, ALICE, 1),)
    assert refusal(acquire(engine, ALICE, 3, DISK, mode=SHARED)).code == "already_held"


def test_owner_that_waits_gets_already_held(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    assert refusal(acquire(engine, BOB, 2, DISK)).code == "already_held"
    assert refusal(acquire(engine, BOB, 3, DISK, timeout=0)).code == "already_held"
    assert refusal(acquire(engine, BOB, 4, TAPE, DISK)).code == "already_held"
    assert refusal(acquire(engine, ALICE, 4, TAPE, DISK)).code == "already_held"


def test_shared_on_shared_is_counted(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    twice = grant(DISK, ALICE, 1, SHARED, count=2)
    assert acquire(engine, ALICE, 2, DISK, mode=SHARED) == [granted(ALICE, 2, twice)]
    assert release(engine, ALICE, 3, DISK) == [Completed(ALICE, 3)]
    assert engine.holds(DISK, 1)
    assert release(engine, ALICE, 4, DISK) == [
        Ended(grant(DISK, ALICE, 1, SHARED), "released"),
        Completed(ALICE, 4),
    ]


def test_counted_hold_leaves_no_ghost_when_its_session_ends(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, ALICE, 2, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK)
    twice = grant(DISK, ALICE, 1, SHARED, count=2)
    assert engine.handle(CloseSession(ALICE), now=0.0) == [
        Ended(twice, "disconnected"),
        granted(
            *(BOB, 1, grant(DISK, BOB, 2)),
            after=LastHolder(twice, 0.0, "disconnected"),
        ),
    ]


def test_counted_hold_may_be_entered_past_a_waiter(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK)
    twice = grant(DISK, ALICE, 1, SHARED, count=2)
    assert acquire(engine, ALICE, 2, DISK, mode=SHARED) == [granted(ALICE, 2, twice)]


def test_shared_requests_of_one_owner_that_waited_become_one_hold(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    assert acquire(engine, BOB, 2, DISK, mode=SHARED) == [
        queued(BOB, 2, DISK, mode=SHARED)
    ]
    assert release(engine, ALICE, 2, DISK)[1:-1] == [
        granted(BOB, 1, grant(DISK, BOB, 2, SHARED)),
        granted(BOB, 2, grant(DISK, BOB, 2, SHARED, count=2)),
    ]


# Releasing.


def test_release_of_what_is_not_held_is_refused(engine: LockEngine) -> None:
    assert refusal(release(engine, ALICE, 1, DISK)).code == "not_held"
    acquire(engine, BOB, 1, DISK)
    refused = refusal(release(engine, ALICE, 2, DISK))
    assert refused.code == "not_held"
    assert refused.situation is not None
    assert refused.situation.holders == (grant(DISK, BOB, 1),)


def test_release_of_several_releases_those_that_are_held(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    ended, refused = release(engine, ALICE, 2, TAPE, DISK)
    assert ended == Ended(grant(DISK, ALICE, 1), "released")
    assert isinstance(refused, Refused)
    assert refused.code == "not_held"


def test_stale_release_by_token_does_not_touch_a_newer_grant(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, DISK)
    by_token = Release(ALICE, 2, fencing_token=1)
    assert engine.handle(by_token, now=0.0) == [
        Ended(grant(DISK, ALICE, 1), "released"),
        Completed(ALICE, 2),
    ]
    acquire(engine, ALICE, 3, DISK)
    refused = refusal(engine.handle(Release(ALICE, 4, fencing_token=1), now=0.0))
    assert refused.code == "not_held"
    assert "fencing token 1" in refused.message
    assert engine.holds(DISK, 2)


def test_nobody_releases_by_the_token_of_another(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    stolen = Release(BOB, 1, fencing_token=1)
    assert refusal(engine.handle(stolen, now=0.0)).code == "not_held"


# Several resources in one request.


def test_several_are_granted_all_together(engine: LockEngine) -> None:
    assert acquire(engine, ALICE, 1, DISK, TAPE) == [
        granted(ALICE, 1, grant(DISK, ALICE, 1), grant(TAPE, ALICE, 2))
    ]


def test_several_hold_nothing_while_one_is_missing(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, TAPE)
    assert acquire(engine, BOB, 1, DISK, TAPE) == [queued(BOB, 1, DISK, TAPE)]
    assert engine.situation(DISK).holders == ()
    assert acquire(engine, CAROL, 1, DISK) == [queued(CAROL, 1, DISK)]
    assert release(engine, ALICE, 2, TAPE) == [
        Ended(grant(TAPE, ALICE, 1), "released"),
        granted(BOB, 1, grant(DISK, BOB, 2), grant(TAPE, BOB, 3)),
        Completed(ALICE, 2),
    ]


def test_try_of_several_names_the_one_in_the_way(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, TAPE)
    refused = refusal(acquire(engine, BOB, 1, DISK, TAPE, timeout=0))
    assert refused.code == "busy"
    assert refused.situation is not None
    assert refused.situation.key == TAPE


def test_giving_several_up_wakes_who_waits_for_any_of_them(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, TAPE)
    acquire(engine, BOB, 1, DISK, TAPE)
    acquire(engine, CAROL, 1, DISK)
    assert engine.handle(CloseSession(BOB), now=0.0) == [
        granted(CAROL, 1, grant(DISK, CAROL, 2))
    ]


def test_opposite_orders_of_several_do_not_deadlock(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, TAPE)
    assert acquire(engine, BOB, 1, TAPE, DISK) == [queued(BOB, 1, TAPE, DISK)]
    assert acquire(engine, CAROL, 1, DISK, TAPE) == [queued(CAROL, 1, DISK, TAPE)]
    assert granted(BOB, 1, grant(TAPE, BOB, 3), grant(DISK, BOB, 4)) in release(
        engine, ALICE, 2, TAPE, DISK
    )


# Converting.


def test_downgrade_lets_waiting_readers_in(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    assert convert(engine, ALICE, 2, DISK, SHARED) == [
        converted(ALICE, 2, grant(DISK, ALICE, 1, SHARED)),
        granted(BOB, 1, grant(DISK, BOB, 2, SHARED)),
    ]


def test_downgrade_never_waits_whatever_its_timeout(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    assert convert(engine, ALICE, 2, DISK, SHARED, timeout=0) == [
        converted(ALICE, 2, grant(DISK, ALICE, 1, SHARED))
    ]


def test_sole_holder_is_upgraded_past_who_waits(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK)
    assert convert(engine, ALICE, 2, DISK, EXCLUSIVE) == [
        converted(ALICE, 2, grant(DISK, ALICE, 1))
    ]


def test_upgrade_waits_for_the_other_holders_before_all_waiters(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 1, DISK)
    assert convert(engine, BOB, 2, DISK, EXCLUSIVE, now=1.0) == [
        Queued(BOB, 2, (DISK,), EXCLUSIVE, converting=True)
    ]
    assert [w.converting for w in engine.situation(DISK).waiters] == [True, False]
    assert release(engine, ALICE, 2, DISK, now=3.0) == [
        Ended(grant(DISK, ALICE, 1, SHARED), "released"),
        converted(BOB, 2, grant(DISK, BOB, 2), waited=2.0),
        Completed(ALICE, 2),
    ]


def test_try_to_upgrade_is_busy_beside_another_holder(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    refused = refusal(convert(engine, ALICE, 2, DISK, EXCLUSIVE, timeout=0))
    assert refused.code == "busy"
    assert refused.situation is not None
    assert [g.mode for g in refused.situation.holders] == [SHARED, SHARED]


def test_upgrade_that_runs_out_of_time_keeps_the_shared_hold(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    convert(engine, ALICE, 2, DISK, EXCLUSIVE, timeout=1.0)
    assert refusal(engine.handle(Tick(), now=1.0)).code == "timeout"
    assert engine.situation(DISK).holders[0] == grant(DISK, ALICE, 1, SHARED)


def test_convert_to_the_same_mode_is_granted(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    assert convert(engine, ALICE, 2, DISK, EXCLUSIVE) == [
        converted(ALICE, 2, grant(DISK, ALICE, 1))
    ]


def test_convert_of_what_is_not_held_is_refused(engine: LockEngine) -> None:
    assert refusal(convert(engine, ALICE, 1, DISK, SHARED)).code == "not_held"
    acquire(engine, BOB, 1, DISK)
    assert refusal(convert(engine, ALICE, 1, DISK, SHARED)).code == "not_held"


def test_counted_hold_is_not_converted(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, ALICE, 2, DISK, mode=SHARED)
    refused = refusal(convert(engine, ALICE, 3, DISK, EXCLUSIVE))
    assert (refused.code, refused.message) == ("in_use", "it is held 2 times")


def test_second_convert_of_one_hold_is_refused(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    assert refusal(convert(engine, ALICE, 3, DISK, EXCLUSIVE)).code == "already_held"
    assert refusal(acquire(engine, ALICE, 4, DISK, mode=SHARED)).code == "already_held"


def test_another_holder_may_still_count_beside_a_waiting_convert(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    twice = grant(DISK, BOB, 2, SHARED, count=2)
    assert acquire(engine, BOB, 2, DISK, mode=SHARED) == [granted(BOB, 2, twice)]


def test_release_gives_up_the_convert_that_waits_for_it(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    refused, ended, done = release(engine, ALICE, 3, DISK)
    assert isinstance(refused, Refused)
    assert (refused.request, refused.code) == (2, "not_held")
    assert ended == Ended(grant(DISK, ALICE, 1, SHARED), "released")
    assert done == Completed(ALICE, 3)


# How the last hold ended.


def ended(engine: LockEngine, outcome: WorkOutcome, **more: Any) -> LastHolder:
    """Lets Alice take the disk, and release it with an outcome."""
    (answer,) = acquire(engine, ALICE, 1, DISK, **more)
    assert isinstance(answer, Granted)
    held = answer.grants[0]
    command = Release(ALICE, 2, (), held.fencing_token, outcome)
    assert engine.handle(command, now=7.0)[0] == Ended(held, "released")
    return LastHolder(held, 7.0, "released", outcome)


@pytest.mark.parametrize("outcome", [None, "ok"])
def test_holder_hears_nothing_of_a_hold_that_ended_well(
    engine: LockEngine, outcome: WorkOutcome
) -> None:
    ended(engine, outcome)
    assert acquire(engine, BOB, 1, DISK) == [granted(BOB, 1, grant(DISK, BOB, 2))]


@pytest.mark.parametrize("outcome", ["failed", "died"])
def test_next_holders_hear_of_work_that_failed_until_some_ends_well(
    engine: LockEngine, outcome: WorkOutcome
) -> None:
    last = ended(engine, outcome)
    assert engine.last_holders[DISK] == last
    for session, token in ((BOB, 2), (CAROL, 3)):
        told = granted(session, 1, grant(DISK, session, token, SHARED), after=last)
        assert acquire(engine, session, 1, DISK, mode=SHARED) == [told]
    again = grant(DISK, CAROL, 3, SHARED, count=2)
    # It has heard of it.
    assert acquire(engine, CAROL, 2, DISK, mode=SHARED) == [granted(CAROL, 2, again)]
    release(engine, BOB, 2, DISK)
    well = grant(DISK, DAVE, 4, SHARED)
    assert acquire(engine, DAVE, 1, DISK, mode=SHARED) == [granted(DAVE, 1, well)]


def test_of_several_locks_only_those_in_trouble_are_told(engine: LockEngine) -> None:
    last = ended(engine, "failed")
    (answer,) = acquire(engine, BOB, 1, TAPE, DISK)
    assert isinstance(answer, Granted)
    assert answer.previous == (last,)


def test_only_the_last_release_of_a_counted_hold_says_how_it_ended(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, ALICE, 2, DISK, mode=SHARED)
    engine.handle(Release(ALICE, 3, (DISK,), outcome="failed"), now=0.0)
    engine.handle(Release(ALICE, 4, (DISK,), outcome="ok"), now=0.0)
    assert engine.last_holders[DISK].outcome == "ok"
