"""How sessions and owners begin and end, and what becomes of their locks."""

import pytest

from engine.scene import (
    ALICE,
    BOB,
    CAROL,
    CAST,
    DISK,
    GUARDED,
    TAPE,
    acquire,
    convert,
    grant,
    granted,
    owner,
    refusal,
    release,
)
from engine.snapshots import dump
from lockd.engine.commands import (
    BreakGrant,
    CloseSession,
    DisconnectOwner,
    EndOwner,
    OpenSession,
    Owner,
    OwnerFenced,
    RegisterOwner,
    ReleaseForOwner,
)
from lockd.engine.effects import (
    Completed,
    Effect,
    Ended,
    Fence,
    ForgetOwner,
    Grant,
    Granted,
    LastHolder,
    Lost,
    Refused,
)
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import snapshot
from lockd.terms import EXCLUSIVE, SHARED

GUEST = 100
"""The number of a registered process, for which others act."""


def registered(engine: LockEngine, session: int) -> list[Effect]:
    command = RegisterOwner(session, 99, GUEST, owner("guest", 700))
    return engine.handle(command, now=0.0)


def guest_grant(session: int, fencing_token: int) -> Grant:
    who = owner("guest", 700)
    return Grant(DISK, GUEST, who, session, EXCLUSIVE, fencing_token, 0.0)


def guest_released(engine: LockEngine, session: int, token: int) -> list[Effect]:
    return engine.handle(ReleaseForOwner(session, 50, token), now=0.0)


# Sessions that end.


def test_waiter_is_granted_when_holder_disconnects(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    assert engine.handle(CloseSession(ALICE), now=1.0) == [
        Ended(grant(DISK, ALICE, 1), "disconnected"),
        granted(
            *(BOB, 1, grant(DISK, BOB, 2, since=1.0)),
            waited=1.0,
            after=LastHolder(grant(DISK, ALICE, 1), 1.0, "disconnected"),
        ),
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
        granted(
            *(BOB, 1, grant(DISK, BOB, 2)),
            after=LastHolder(held, 0.0, "owner_died"),
        ),
    ]


def test_lock_that_is_left_to_a_process_is_released_for_it(engine: LockEngine) -> None:
    registered(engine, ALICE)
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    engine.handle(CloseSession(ALICE), now=0.0)
    assert guest_released(engine, CAROL, 1) == [
        Ended(guest_grant(ALICE, 1), "released"),
        ForgetOwner(GUEST),
        granted(BOB, 1, grant(DISK, BOB, 2)),
        Completed(CAROL, 50),
    ]
    refused = refusal(guest_released(engine, CAROL, 1))
    assert (refused.code, refused.message) == (
        "not_held",
        "you hold no lock with the fencing token 1",
    )


def test_process_that_holds_more_is_not_forgotten_with_one_lock(
    engine: LockEngine,
) -> None:
    registered(engine, ALICE)
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, ALICE, 2, TAPE, mode=SHARED)
    acquire(engine, ALICE, 3, TAPE, mode=SHARED)
    engine.handle(CloseSession(ALICE), now=0.0)
    assert ForgetOwner(GUEST) not in guest_released(engine, CAROL, 1)
    assert guest_released(engine, CAROL, 2) == [Completed(CAROL, 50)]
    assert engine.holds(TAPE, 2)
    assert ForgetOwner(GUEST) in guest_released(engine, CAROL, 2)


def test_lock_is_not_released_in_the_place_of_a_session(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    refused = refusal(guest_released(engine, BOB, 1))
    assert refused.code == "denied"
    assert refused.situation is not None
    assert refused.situation.holders == (grant(DISK, ALICE, 1),)
    registered(engine, BOB)
    registered(engine, CAROL)
    acquire(engine, BOB, 1, TAPE)
    engine.handle(CloseSession(BOB), now=0.0)
    # Another session acts for the process: it is the one to release the lock.
    assert refusal(guest_released(engine, ALICE, 2)).code == "denied"
    assert engine.holds(TAPE, 2)


def test_lock_of_a_process_that_is_being_killed_ends_with_its_death(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, GUARDED)
    engine.handle(CloseSession(ALICE), now=0.0)
    assert refusal(guest_released(engine, BOB, 1)).code == "denied"
    assert engine.holds(GUARDED, 1)


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
        engine = snapshot.load(dump(engine)).engine
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
        granted(
            *(BOB, 1, grant(GUARDED, BOB, 2, since=5.0)),
            waited=5.0,
            after=LastHolder(grant(GUARDED, ALICE, 1), 5.0, "disconnected"),
        ),
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
        granted(
            *(BOB, 1, grant(DISK, BOB, 2)),
            after=LastHolder(grant(DISK, ALICE, 1), 0.0, "broken"),
        ),
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
        granted(
            *(BOB, 1, grant(GUARDED, BOB, 2)),
            after=LastHolder(held, 0.0, "broken"),
        ),
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
        granted(
            *(BOB, 1, grant(GUARDED, BOB, 2)),
            after=LastHolder(held, 0.0, "broken"),
        ),
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
