import pytest

from lockd.engine import snapshot
from lockd.engine.commands import (
    Acquire,
    BreakGrant,
    Cancel,
    CloseSession,
    DisconnectOwner,
    EndOwner,
    OpenSession,
    Owner,
    OwnerFenced,
    RegisterOwner,
    Release,
    Tick,
)
from lockd.engine.effects import (
    Completed,
    Effect,
    Ended,
    Fence,
    ForgetOwner,
    Grant,
    Granted,
    Lost,
    Queued,
    Refused,
)
from lockd.engine.lock_engine import LockEngine
from lockd.terms import EXCLUSIVE, SHARED
from scene import (
    ALICE,
    BOB,
    CAROL,
    CAST,
    DAVE,
    DISK,
    GUARDED,
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

GUEST = 100
"""The number of a registered process, for which others act."""


def registered(engine: LockEngine, session: int) -> list[Effect]:
    command = RegisterOwner(session, 99, GUEST, owner("guest", 700))
    return engine.handle(command, now=0.0)


def guest_grant(session: int, fencing_token: int) -> Grant:
    who = owner("guest", 700)
    return Grant(DISK, GUEST, who, session, EXCLUSIVE, fencing_token, 0.0)


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


def test_tokens_go_on_above_those_of_an_earlier_daemon() -> None:
    engine = LockEngine(last_token=41)
    assert repr(engine) == (
        "<LockEngine sessions=0 owners=0 resources=0 waiting=0 last_token=41>"
    )


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
    assert engine.handle(CloseSession(ALICE), now=0.0) == [
        Ended(grant(DISK, ALICE, 1, SHARED, count=2), "disconnected"),
        granted(BOB, 1, grant(DISK, BOB, 2)),
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


def test_looking_perturbs_nothing(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    before = engine.situation(DISK)
    assert engine.situation(TAPE).holder_count == 0
    assert engine.holds(DISK, 1)
    assert not engine.holds(DISK, 2)
    assert not engine.holds(TAPE, 1)
    assert TAPE not in engine.resources
    assert engine.situation(DISK) == before


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


# Sessions that end.


def test_waiter_is_granted_when_holder_disconnects(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    assert engine.handle(CloseSession(ALICE), now=1.0) == [
        Ended(grant(DISK, ALICE, 1), "disconnected"),
        granted(BOB, 1, grant(DISK, BOB, 2, since=1.0), waited=1.0),
    ]
    assert ALICE not in engine.owners


def test_queue_moves_on_when_its_first_disconnects(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, DISK, mode=SHARED)
    assert engine.handle(CloseSession(BOB), now=0.0) == [
        granted(CAROL, 1, grant(DISK, CAROL, 2, SHARED))
    ]


def test_sessions_of_one_process_are_independent(engine: LockEngine) -> None:
    for session in (11, 12):
        engine.handle(OpenSession(session, Owner("worker", 500, 0)), now=0.0)
    acquire(engine, 11, 1, DISK)
    acquire(engine, 12, 1, TAPE)
    engine.handle(CloseSession(11), now=0.0)
    assert not engine.holds(DISK, 1)
    assert engine.holds(TAPE, 2)


def test_nothing_is_kept_of_a_session_that_ended(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    for session in CAST:
        engine.handle(CloseSession(session), now=0.0)
    assert (engine.sessions, engine.owners, engine.resources) == ({}, {}, {})
    assert engine.waiting == 0


# Owners that are not the peer.


def test_registered_name_is_shown_with_the_grant(engine: LockEngine) -> None:
    who = Owner("vm-3", 1, 1000, uuid="u", id=3)
    command = RegisterOwner(ALICE, 1, ALICE, who)
    assert engine.handle(command, now=0.0) == [Completed(ALICE, 1)]
    acquire(engine, ALICE, 2, DISK)
    assert engine.situation(DISK).holders[0].owner == who


def test_registration_after_the_first_lock_is_refused(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    assert refusal(registered(engine, ALICE)).code == "invalid"
    acquire(engine, BOB, 1, DISK)
    assert refusal(registered(engine, BOB)).code == "invalid"
    registered(engine, CAROL)
    assert refusal(registered(engine, CAROL)).code == "invalid"


def test_session_registers_its_own_owner_once(engine: LockEngine) -> None:
    command = RegisterOwner(ALICE, 1, ALICE, owner("vm", ALICE))
    assert engine.handle(command, now=0.0) == [Completed(ALICE, 1)]
    again = RegisterOwner(ALICE, 2, ALICE, owner("another", ALICE))
    assert refusal(engine.handle(again, now=0.0)).code == "invalid"


def test_grants_of_a_process_outlive_the_session_that_took_them(
    engine: LockEngine,
) -> None:
    registered(engine, ALICE)
    held = guest_grant(ALICE, 1)
    assert acquire(engine, ALICE, 1, DISK) == [granted(ALICE, 1, held)]
    acquire(engine, BOB, 1, DISK)
    assert engine.handle(CloseSession(ALICE), now=0.0) == []
    assert engine.handle(EndOwner(GUEST), now=0.0) == [
        Ended(held, "owner_died"),
        ForgetOwner(GUEST),
        granted(BOB, 1, grant(DISK, BOB, 2)),
    ]


def test_process_that_leaves_is_fenced_before_its_locks_are_given_away(
    engine: LockEngine,
) -> None:
    registered(engine, ALICE)
    acquire(engine, ALICE, 1, GUARDED)
    acquire(engine, ALICE, 2, DISK)
    acquire(engine, BOB, 1, GUARDED)
    lost, ended, fence = engine.handle(DisconnectOwner(GUEST), now=0.0)
    assert isinstance(lost, Lost)
    assert lost.cause == "disconnected"
    assert ended == Ended(lost.grant, "disconnected")
    assert lost.grant.key == DISK
    assert fence == Fence(GUEST, owner("guest", 700))
    assert engine.situation(GUARDED).holder_count == 1
    effects = engine.handle(OwnerFenced(GUEST), now=0.0)
    assert isinstance(effects[-1], Granted)
    assert effects[-1].session == BOB


def test_process_that_only_closed_its_session_can_be_acted_for(
    engine: LockEngine,
) -> None:
    registered(engine, ALICE)
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, ALICE, 2, TAPE)
    refused, _, ended = engine.handle(DisconnectOwner(GUEST), now=0.0)
    assert isinstance(refused, Refused)
    assert (refused.request, refused.code) == (2, "cancelled")
    assert ended == Ended(guest_grant(ALICE, 1), "disconnected")
    (again,) = acquire(engine, ALICE, 3, DISK)
    assert isinstance(again, Granted)
    assert again.grants[0].owner_id == GUEST


def test_sessions_of_one_process_share_its_grants(engine: LockEngine) -> None:
    registered(engine, ALICE)
    registered(engine, BOB)
    acquire(engine, ALICE, 1, DISK)
    assert refusal(acquire(engine, BOB, 1, DISK)).code == "already_held"
    assert release(engine, BOB, 2, DISK) == [
        Ended(guest_grant(ALICE, 1), "released"),
        Completed(BOB, 2),
    ]


def test_process_is_forgotten_with_its_last_session_and_grant(
    engine: LockEngine,
) -> None:
    registered(engine, ALICE)
    registered(engine, BOB)
    assert engine.handle(CloseSession(ALICE), now=0.0) == []
    assert engine.handle(CloseSession(BOB), now=0.0) == [ForgetOwner(GUEST)]


def test_sessions_of_a_dead_process_are_told_and_get_nothing_more(
    engine: LockEngine,
) -> None:
    registered(engine, ALICE)
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, ALICE, 2, TAPE)
    refused, lost, ended = engine.handle(EndOwner(GUEST), now=0.0)
    assert isinstance(refused, Refused)
    assert (refused.request, refused.code) == (2, "not_found")
    assert lost == Lost(ALICE, guest_grant(ALICE, 1), "owner_died")
    assert ended == Ended(guest_grant(ALICE, 1), "owner_died")
    assert refusal(acquire(engine, ALICE, 3, DISK)).code == "not_found"
    assert refusal(convert(engine, ALICE, 4, DISK, SHARED)).code == "not_found"
    assert engine.handle(CloseSession(ALICE), now=0.0) == [ForgetOwner(GUEST)]


def registered_until_both(engine: LockEngine, session: int) -> None:
    who = owner("guest", 700)
    engine.handle(RegisterOwner(session, 99, GUEST, who, until="both"), now=0.0)


def test_grants_until_both_outlive_the_process_while_a_session_acts_for_it(
    engine: LockEngine,
) -> None:
    registered_until_both(engine, ALICE)
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, ALICE, 2, TAPE)
    acquire(engine, BOB, 1, DISK)
    assert engine.handle(EndOwner(GUEST), now=0.0) == []
    assert refusal(acquire(engine, ALICE, 3, GUARDED)).code == "not_found"
    ended, granted_to, done = release(engine, ALICE, 4, DISK)
    assert ended == Ended(guest_grant(ALICE, 1), "released")
    assert isinstance(granted_to, Granted)
    assert done == Completed(ALICE, 4)
    died, forgotten = engine.handle(CloseSession(ALICE), now=0.0)
    assert isinstance(died, Ended)
    assert (died.grant.key, died.cause) == (TAPE, "owner_died")
    assert forgotten == ForgetOwner(GUEST)


@pytest.mark.parametrize("reloaded", [False, True])
def test_grants_until_both_end_with_whichever_is_last(
    engine: LockEngine, reloaded: bool
) -> None:
    registered_until_both(engine, ALICE)
    registered(engine, BOB)
    acquire(engine, ALICE, 1, DISK)
    assert engine.handle(CloseSession(ALICE), now=0.0) == []
    assert engine.handle(EndOwner(GUEST), now=0.0) == []
    if reloaded:
        engine = snapshot.load(snapshot.dump(engine)).engine
    assert engine.handle(CloseSession(BOB), now=0.0) == [
        Ended(guest_grant(ALICE, 1), "owner_died"),
        ForgetOwner(GUEST),
    ]


def test_grants_until_both_end_with_the_process_if_no_session_is_left(
    engine: LockEngine,
) -> None:
    registered_until_both(engine, ALICE)
    acquire(engine, ALICE, 1, DISK)
    assert engine.handle(CloseSession(ALICE), now=0.0) == []
    assert engine.handle(EndOwner(GUEST), now=0.0) == [
        Ended(guest_grant(ALICE, 1), "owner_died"),
        ForgetOwner(GUEST),
    ]


def test_grant_until_both_of_a_dead_process_can_be_broken_where_it_is_fenced(
    engine: LockEngine,
) -> None:
    registered_until_both(engine, ALICE)
    acquire(engine, ALICE, 1, GUARDED)
    engine.handle(EndOwner(GUEST), now=0.0)
    lost, fence, done = engine.handle(BreakGrant(BOB, 1, 1, "why"), now=0.0)
    assert isinstance(lost, Lost)
    assert fence == Fence(GUEST, owner("guest", 700))
    assert done == Completed(BOB, 1)
    (ended,) = engine.handle(OwnerFenced(GUEST), now=0.0)
    assert ended == Ended(lost.grant, "broken")
    assert engine.handle(CloseSession(ALICE), now=0.0) == [ForgetOwner(GUEST)]


# Fence, then release.


def test_nobody_is_granted_before_the_fenced_process_is_dead(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, GUARDED)
    acquire(engine, BOB, 1, GUARDED)
    assert engine.handle(CloseSession(ALICE), now=0.0) == [
        Fence(ALICE, owner("alice", ALICE))
    ]
    assert engine.situation(GUARDED).holders == (grant(GUARDED, ALICE, 1),)
    assert engine.handle(OwnerFenced(ALICE), now=5.0) == [
        Ended(grant(GUARDED, ALICE, 1), "disconnected"),
        granted(BOB, 1, grant(GUARDED, BOB, 2, since=5.0), waited=5.0),
    ]


def test_owner_asks_for_its_own_fencing(engine: LockEngine) -> None:
    command = RegisterOwner(ALICE, 9, ALICE, owner("vm", ALICE), "kill")
    engine.handle(command, now=0.0)
    acquire(engine, ALICE, 1, DISK)
    assert engine.handle(CloseSession(ALICE), now=0.0) == [
        Fence(ALICE, owner("vm", ALICE))
    ]
    assert engine.holds(DISK, 1)
    engine.handle(OwnerFenced(ALICE), now=0.0)
    assert not engine.holds(DISK, 1)


def test_only_what_must_wait_for_the_fence_waits_for_it(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, ALICE, 2, GUARDED)
    assert engine.handle(CloseSession(ALICE), now=0.0) == [
        Ended(grant(DISK, ALICE, 1), "disconnected"),
        Fence(ALICE, owner("alice", ALICE)),
    ]


def test_session_without_locks_is_not_fenced(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, GUARDED)
    release(engine, ALICE, 2, GUARDED)
    assert engine.handle(CloseSession(ALICE), now=0.0) == []


def test_broken_grant_is_told_and_then_passes_on(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    assert engine.handle(BreakGrant(CAROL, 1, 1, "stuck"), now=0.0) == [
        Lost(ALICE, grant(DISK, ALICE, 1), "broken", "stuck"),
        Ended(grant(DISK, ALICE, 1), "broken"),
        granted(BOB, 1, grant(DISK, BOB, 2)),
        Completed(CAROL, 1),
    ]


def test_broken_guarded_grant_passes_on_when_its_holder_is_dead(
    engine: LockEngine,
) -> None:
    held = grant(GUARDED, ALICE, 1)
    acquire(engine, ALICE, 1, GUARDED)
    acquire(engine, BOB, 1, GUARDED)
    assert engine.handle(BreakGrant(CAROL, 1, 1, "stuck"), now=0.0) == [
        Lost(ALICE, held, "broken", "stuck"),
        Fence(ALICE, owner("alice", ALICE)),
        Completed(CAROL, 1),
    ]
    assert refusal(acquire(engine, ALICE, 2, DISK)).code == "unavailable"
    assert engine.handle(CloseSession(ALICE), now=0.0) == []
    assert engine.handle(OwnerFenced(ALICE), now=0.0) == [
        Ended(held, "broken"),
        granted(BOB, 1, grant(GUARDED, BOB, 2)),
    ]


@pytest.mark.parametrize("before", ["nothing", "disconnect", "break"])
def test_guarded_grant_of_who_cannot_be_ended_passes_on_with_the_break(
    engine: LockEngine, before: str
) -> None:
    acquire(engine, ALICE, 1, GUARDED)
    acquire(engine, BOB, 1, GUARDED)
    if before == "disconnect":
        engine.handle(CloseSession(ALICE), now=0.0)
    elif before == "break":
        engine.handle(BreakGrant(CAROL, 1, 1, "stuck"), now=0.0)
    held = grant(GUARDED, ALICE, 1)
    lost = [Lost(ALICE, held, "broken", "stuck")] if before == "nothing" else []
    assert engine.handle(BreakGrant(CAROL, 2, 1, "stuck", fence=False), now=0.0) == [
        *lost,
        Ended(held, "broken"),
        granted(BOB, 1, grant(GUARDED, BOB, 2)),
        Completed(CAROL, 2),
    ]
    # Its death, if it comes, is nobody's business any more.
    assert engine.handle(OwnerFenced(ALICE), now=0.0) == []


def test_breaking_again_fences_only_once(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, GUARDED)
    engine.handle(BreakGrant(CAROL, 1, 1, "stuck"), now=0.0)
    assert Fence(ALICE, owner("alice", ALICE)) not in engine.handle(
        BreakGrant(CAROL, 2, 1, "stuck"), now=0.0
    )


def test_who_released_all_before_its_death_is_fenced_in_vain(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, GUARDED)
    engine.handle(BreakGrant(CAROL, 1, 1, "stuck"), now=0.0)
    release(engine, ALICE, 2, GUARDED)
    engine.handle(CloseSession(ALICE), now=0.0)
    assert engine.handle(OwnerFenced(ALICE), now=0.0) == []


def test_break_gives_up_the_convert_of_the_broken(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    refused, lost, *_ = engine.handle(BreakGrant(CAROL, 1, 1, "stuck"), now=0.0)
    assert isinstance(refused, Refused)
    assert (refused.session, refused.request, refused.code) == (ALICE, 2, "not_held")
    assert isinstance(lost, Lost)


def test_grant_of_a_session_that_is_gone_is_broken_without_telling_it(
    engine: LockEngine,
) -> None:
    registered(engine, ALICE)
    acquire(engine, ALICE, 1, DISK)
    engine.handle(CloseSession(ALICE), now=0.0)
    assert engine.handle(BreakGrant(CAROL, 1, 1, "stuck"), now=0.0) == [
        Ended(guest_grant(ALICE, 1), "broken"),
        ForgetOwner(GUEST),
        Completed(CAROL, 1),
    ]


def test_breaking_what_is_not_held_is_refused(engine: LockEngine) -> None:
    refused = refusal(engine.handle(BreakGrant(CAROL, 1, 7, "stuck"), now=0.0))
    assert refused.code == "not_found"
    assert "token 7: " in refused.message
