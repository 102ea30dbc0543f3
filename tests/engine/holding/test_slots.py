"""Slots: N numbered places of one resource."""

from functools import partial
from random import Random

import pytest

from engine.ledger import decoded, mended
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
from engine.waits.test_cycles import steps_of
from lockd.engine.commands import (
    Acquire,
    AddLockspace,
    CloseSession,
    EnterGrants,
    OpenSession,
    Tick,
)
from lockd.engine.effects import (
    Effect,
    Granted,
    Mismatch,
    Refused,
    WaitEdge,
    Wanted,
)
from lockd.engine.invariants import check
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import records, snapshot
from lockd.engine.recovery.shapes import Loaded
from lockd.terms import EXCLUSIVE, SHARED, SLOT, Mode, ResourceKey

EVE, FRED = 5, 6


@pytest.fixture(autouse=True)
def more(engine: LockEngine) -> None:
    for session, name in ((EVE, "eve"), (FRED, "fred")):
        engine.handle(OpenSession(session, owner(name, session)), now=0.0)


def take(
    engine: LockEngine,
    session: int,
    request: int,
    slots: int | None = 2,
    key: ResourceKey = DISK,
    **more: float,
) -> list[Effect]:
    effects = acquire(engine, session, request, key, mode=SLOT, slots=slots, **more)
    check(engine)
    return effects


def slot_of(effects: list[Effect]) -> int | None:
    found = [x for x in effects if isinstance(x, Granted)]
    return found[0].grants[0].slot if found else None


def configure(engine: LockEngine, *slots: tuple[str, int]) -> list[Effect]:
    command = AddLockspace("memory", anchored=False, slots=slots)
    effects = engine.handle(command, now=0.0)
    check(engine)
    return effects


in_line = partial(queued, mode=SLOT)
slot_grant = partial(
    grant, DISK, mode=SLOT, slots=2, slots_said_by=owner("alice", ALICE)
)


# Numbers.


def test_each_holder_has_the_lowest_free_slot(engine: LockEngine) -> None:
    found = slot_grant(ALICE, 1, slot=0)
    assert take(engine, ALICE, 1) == [granted(ALICE, 1, found)]
    found = slot_grant(BOB, 2, slot=1)
    assert take(engine, BOB, 1) == [granted(BOB, 1, found)]
    assert take(engine, CAROL, 1) == [in_line(CAROL, 1, DISK)]
    found = slot_grant(CAROL, 3, slot=0)
    assert granted(CAROL, 1, found) in release(engine, ALICE, 2, DISK)
    assert engine.situation(DISK).slots == 2


def test_slot_in_the_middle_is_given_again(engine: LockEngine) -> None:
    for session in (ALICE, BOB, CAROL):
        take(engine, session, 1, 4)
    release(engine, BOB, 2, DISK)
    assert [slot_of(take(engine, x, 3, 4)) for x in (DAVE, EVE, FRED)] == [1, 3, None]


def test_several_waiters_get_the_slots_that_a_release_frees(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    for session in (BOB, CAROL, DAVE):
        take(engine, session, 1)
    found = [x for x in release(engine, ALICE, 2, DISK) if isinstance(x, Granted)]
    assert [(x.session, x.grants[0].slot) for x in found] == [(BOB, 0), (CAROL, 1)]


def test_strand_has_one_slot(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    refused = refusal(take(engine, ALICE, 2))
    assert refused.code == "already_held"
    # Another strand of its session may have the next one.
    assert slot_of(acquire(engine, ALICE, 3, DISK, mode=SLOT, slots=2, strand=1)) == 1


def test_strand_waits_for_one_slot(engine: LockEngine) -> None:
    take(engine, ALICE, 1, 1)
    take(engine, BOB, 1, 1)
    assert refusal(take(engine, BOB, 2, 1)).code == "already_held"


def test_there_may_be_a_thousand_slots(engine: LockEngine) -> None:
    for number in range(1024):
        effects = acquire(
            engine, ALICE, number, DISK, mode=SLOT, slots=1024, strand=number + 1
        )
        assert slot_of(effects) == number
    assert take(engine, BOB, 1, 1024) == [in_line(BOB, 1, DISK)]


# Other modes.


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_slot_excludes_every_other_mode(engine: LockEngine, mode: Mode) -> None:
    take(engine, ALICE, 1)
    assert acquire(engine, BOB, 1, DISK, mode=mode) == [queued(BOB, 1, DISK, mode=mode)]
    release(engine, ALICE, 2, DISK)
    check(engine)
    assert take(engine, CAROL, 1) == [in_line(CAROL, 1, DISK)]
    assert slot_of(release(engine, BOB, 2, DISK)) == 0


def test_nobody_overtakes_who_waits_to_have_it_alone(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    acquire(engine, BOB, 1, DISK)
    assert take(engine, CAROL, 1) == [in_line(CAROL, 1, DISK)]
    assert refusal(take(engine, DAVE, 1, timeout=0)).code == "busy"
    release(engine, ALICE, 2, DISK)
    assert [x.session for x in engine.holders(DISK)] == [BOB]
    release(engine, BOB, 2, DISK)
    assert [x.session for x in engine.holders(DISK)] == [CAROL]


@pytest.mark.parametrize(
    ("held", "wanted"), [(SLOT, EXCLUSIVE), (SLOT, SLOT), (EXCLUSIVE, SLOT)]
)
def test_slot_is_never_converted(engine: LockEngine, held: Mode, wanted: Mode) -> None:
    acquire(engine, ALICE, 1, DISK, mode=held, slots=2)
    refused = refusal(convert(engine, ALICE, 2, DISK, wanted))
    assert refused.code == "invalid"
    assert "cannot be converted from or to a slot" in refused.message


# How many there are.


def test_first_who_asks_says_how_many_there_are(engine: LockEngine) -> None:
    take(engine, ALICE, 1, 4)
    refused = refusal(take(engine, BOB, 1, 3))
    assert refused.code == "invalid"
    assert refused.mismatch == Mismatch(DISK, 3, 4, owner("alice", ALICE))
    assert slot_of(take(engine, BOB, 2, None)) == 1
    assert slot_of(take(engine, CAROL, 1, 4)) == 2


def test_who_waits_has_said_how_many_there_are(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, DAVE, 1, DISK, mode=SHARED)
    take(engine, BOB, 1, 4)
    refused = refusal(take(engine, CAROL, 1, 3))
    assert refused.mismatch == Mismatch(DISK, 3, 4, owner("bob", BOB))


def test_nobody_has_said_how_many_there_are(engine: LockEngine) -> None:
    refused = refusal(take(engine, ALICE, 1, None))
    assert (refused.code, refused.mismatch) == ("invalid", Mismatch(DISK, None, None))
    assert engine.resources == {}


def test_how_many_there_were_is_forgotten_with_the_last(engine: LockEngine) -> None:
    take(engine, ALICE, 1, 4)
    acquire(engine, BOB, 1, DISK)
    release(engine, ALICE, 2, DISK)
    assert engine.situation(DISK).slots is None
    # Bob holds it, but no slot of it.
    assert take(engine, CAROL, 1, 3) == [in_line(CAROL, 1, DISK)]
    assert engine.situation(DISK).slots == 3
    engine.handle(CloseSession(CAROL), now=0.0)
    assert take(engine, DAVE, 1, 2) == [in_line(DAVE, 1, DISK)]


def test_waiter_that_gives_up_leaves_no_number_behind(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    take(engine, BOB, 1, 4, timeout=1.0)
    engine.handle(Tick(), now=1.0)
    check(engine)
    assert engine.situation(DISK).slots is None


# The configuration.


def test_first_pattern_that_matches_counts(engine: LockEngine) -> None:
    configure(engine, ("disk", 3), ("d*", 1), ("t?pe", 2))
    assert [slot_of(take(engine, x, 1, None)) for x in (ALICE, BOB)] == [0, 1]
    refused = refusal(take(engine, CAROL, 1, 1))
    assert refused.mismatch == Mismatch(DISK, 1, 3, None, "now")
    assert refusal(take(engine, CAROL, 2, 3, TAPE)).mismatch == Mismatch(
        TAPE, 3, 2, None, "now"
    )
    assert slot_of(take(engine, CAROL, 3, 5, CARD)) == 0


def test_fewer_slots_take_nothing_away(engine: LockEngine) -> None:
    configure(engine, ("disk", 3))
    for session in (ALICE, BOB, CAROL, DAVE):
        take(engine, session, 1, None)
    assert configure(engine, ("disk", 2)) == []
    assert [(x.slot, x.slots) for x in engine.holders(DISK)] == [(0, 2), (1, 2), (2, 2)]
    # The greatest number is free now, but not given again.
    assert slot_of(release(engine, CAROL, 2, DISK)) is None
    assert slot_of(release(engine, BOB, 2, DISK)) == 1


def test_more_slots_are_given_at_once(engine: LockEngine) -> None:
    for session in (ALICE, BOB, CAROL):
        take(engine, session, 1, 1)
    found = [x for x in configure(engine, ("*", 4)) if isinstance(x, Granted)]
    assert [(x.session, x.grants[0].slot) for x in found] == [(BOB, 1), (CAROL, 2)]
    assert {x.grants[0].slots for x in found} == {4}


def test_number_stays_when_it_is_not_configured_any_more(engine: LockEngine) -> None:
    configure(engine, ("disk", 2))
    take(engine, ALICE, 1, None)
    configure(engine)
    # Nobody who has one has said so.
    was_configured = Mismatch(DISK, 3, 2, None, "before")
    assert refusal(take(engine, BOB, 1, 3)).mismatch == was_configured
    later = after_a_crash(engine)
    assert refusal(take(later, BOB, 1, 3)).mismatch == was_configured
    release(engine, ALICE, 2, DISK)
    assert slot_of(take(engine, BOB, 2, 3)) == 0


def test_who_has_said_the_number_may_have_gone(engine: LockEngine) -> None:
    take(engine, ALICE, 1, 4)
    take(engine, BOB, 1, None)
    release(engine, ALICE, 2, DISK)
    said = Mismatch(DISK, 3, 4, owner("alice", ALICE))
    for each in (engine, after_a_crash(engine)):
        assert refusal(take(each, CAROL, 1, 3)).mismatch == said
    # What is configured then replaces it, and stays.
    configure(engine, ("disk", 2))
    configure(engine)
    assert refusal(take(engine, CAROL, 2, 4)).mismatch == Mismatch(
        DISK, 4, 2, None, "before"
    )


def test_who_has_said_the_configured_number_has_said_it(engine: LockEngine) -> None:
    take(engine, ALICE, 1, 2)
    configure(engine, ("disk", 2))
    later = after_a_crash(engine)
    assert refusal(take(later, BOB, 1, 3)).mismatch == Mismatch(DISK, 3, 2, None, "now")
    configure(later)
    said = Mismatch(DISK, 3, 2, owner("alice", ALICE))
    assert refusal(take(later, BOB, 2, 3)).mismatch == said


def test_who_waits_says_the_number_after_a_crash(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    take(engine, BOB, 1, 4)
    take(engine, CAROL, 1, None)
    engine.handle(CloseSession(BOB), now=0.0)
    later = after_a_crash(engine)
    said = Mismatch(DISK, 3, 4, owner("bob", BOB))
    assert refusal(take(later, DAVE, 1, 3)).mismatch == said


# How many are taken.


def test_taken_slots_are_not_counted_by_their_holders(engine: LockEngine) -> None:
    configure(engine, ("disk", 4))
    for session in (ALICE, BOB, CAROL, DAVE):
        take(engine, session, 1, None)

    def counted() -> tuple[int | None, ...]:
        found = engine.situation(DISK)
        return found.slots, found.slots_taken, found.slots_removed

    assert counted() == (4, 4, 0)
    release(engine, ALICE, 2, DISK)
    assert counted() == (4, 3, 0)
    # The numbers 2 and 3 stay until they are released.
    configure(engine, ("disk", 2))
    assert counted() == (2, 1, 2)
    release(engine, DAVE, 2, DISK)
    assert counted() == (2, 1, 1)
    acquire(engine, EVE, 1, DISK)
    release(engine, BOB, 2, DISK)
    release(engine, CAROL, 2, DISK)
    assert [x.mode for x in engine.holders(DISK)] == [EXCLUSIVE]


def test_other_lockspace_keeps_its_slots(engine: LockEngine) -> None:
    take(engine, ALICE, 1, 2)
    engine.handle(AddLockspace("guarded", False, "kill", slots=(("*", 1),)), now=0.0)
    assert engine.situation(DISK).slots == 2


# Deadlocks.


def wait(session: int, key: ResourceKey) -> WaitEdge:
    return WaitEdge(owner(CAST[session], session), session, key)


def test_who_waits_for_any_slot_does_not_wait_for_all(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    acquire(engine, BOB, 1, TAPE)
    take(engine, CAROL, 1)
    assert acquire(engine, ALICE, 2, TAPE) == [queued(ALICE, 2, TAPE)]
    # Carol waits for nothing and will leave her slot.
    assert take(engine, BOB, 2) == [in_line(BOB, 2, DISK)]
    assert slot_of(release(engine, CAROL, 2, DISK)) == 1


def test_all_who_have_slots_wait_for_who_wants_one(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    acquire(engine, BOB, 1, TAPE)
    take(engine, CAROL, 1)
    acquire(engine, ALICE, 2, TAPE)
    take(engine, BOB, 2)
    refused = refusal(acquire(engine, CAROL, 2, TAPE))
    assert refused.code == "deadlock"
    assert refused.cycle == (wait(CAROL, TAPE), wait(BOB, DISK))


def test_last_who_has_a_slot_waits_for_another(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    acquire(engine, ALICE, 9, CARD)
    acquire(engine, BOB, 1, TAPE)
    take(engine, CAROL, 1)
    acquire(engine, ALICE, 2, TAPE)
    take(engine, BOB, 2)
    refused = refusal(acquire(engine, CAROL, 2, CARD))
    assert refused.code == "deadlock"
    waits = (wait(CAROL, CARD), wait(ALICE, TAPE), wait(BOB, DISK))
    assert refused.cycle == waits


def test_who_stands_before_takes_the_only_slot_that_gets_free(
    engine: LockEngine,
) -> None:
    take(engine, ALICE, 1)
    take(engine, CAROL, 1)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, ALICE, 2, TAPE)
    acquire(engine, ALICE, 3, CARD)
    # Dave goes first, and never leaves: he also waits for Alice, who waits for Bob.
    take(engine, DAVE, 1)
    acquire(engine, DAVE, 2, CARD)
    refused = refusal(take(engine, BOB, 2))
    assert refused.code == "deadlock"
    assert refused.cycle[0] == wait(BOB, DISK)


def test_who_stands_before_gives_the_slot_back(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    take(engine, CAROL, 1)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, ALICE, 2, TAPE)
    take(engine, DAVE, 1)
    take(engine, EVE, 1)
    assert take(engine, BOB, 2) == [in_line(BOB, 2, DISK)]
    release(engine, CAROL, 2, DISK)
    release(engine, DAVE, 2, DISK)
    assert slot_of(release(engine, EVE, 2, DISK)) == 1


def test_who_wants_it_alone_waits_for_all_slots(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    take(engine, CAROL, 1)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, ALICE, 2, TAPE)
    assert refusal(acquire(engine, BOB, 2, DISK)).code == "deadlock"
    # Behind one who waits for all, everybody waits for all.
    acquire(engine, DAVE, 1, DISK)
    assert refusal(take(engine, BOB, 3)).code == "deadlock"


def test_fewer_slots_may_end_the_wait_for_any(engine: LockEngine) -> None:
    configure(engine, ("disk", 2))
    take(engine, ALICE, 1, None)
    take(engine, CAROL, 1, None)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, ALICE, 2, TAPE)
    take(engine, DAVE, 1, None)
    take(engine, BOB, 2, None)
    refused = refusal(configure(engine, ("disk", 1)))
    assert (refused.session, refused.code) == (BOB, "deadlock")
    assert refused.cycle == (wait(BOB, DISK), wait(ALICE, TAPE))


def test_fewer_slots_refuse_nobody_who_gets_what_others_give_back(
    engine: LockEngine,
) -> None:
    configure(engine, ("disk", 2), ("tape", 1))
    take(engine, ALICE, 1, None)
    take(engine, CAROL, 1, None)
    take(engine, BOB, 1, None, TAPE)
    take(engine, BOB, 2, None)
    assert take(engine, ALICE, 2, None, TAPE) == [in_line(ALICE, 2, TAPE)]
    # Alice waits for Bob's only slot, and Bob for that of Alice: but there are two now.
    found = configure(engine, ("disk", 1), ("tape", 2))
    assert [(x.session, slot_of([x])) for x in found if isinstance(x, Granted)] == [
        (ALICE, 1)
    ]
    assert not any(isinstance(x, Refused) for x in found)


def test_fewer_slots_refuse_one_of_those_who_wait_for_each_other(
    engine: LockEngine,
) -> None:
    configure(engine, ("disk", 2))
    take(engine, ALICE, 1, None)
    take(engine, CAROL, 1, None)
    for session, key in ((BOB, TAPE), (DAVE, CARD)):
        acquire(engine, session, 1, key)
    acquire(engine, ALICE, 2, TAPE)
    acquire(engine, ALICE, 3, CARD)
    take(engine, EVE, 1, None)
    take(engine, BOB, 2, None)
    take(engine, DAVE, 2, None)
    refused = [x for x in configure(engine, ("disk", 1)) if isinstance(x, Refused)]
    # Alice waits for both. Eve stands before them, and would get the slot first.
    assert [(x.session, x.cycle[0]) for x in refused] == [
        (BOB, wait(BOB, DISK)),
        (DAVE, wait(DAVE, DISK)),
    ]


def test_refusal_of_one_is_enough_if_it_lets_another_give_its_slot_back(
    engine: LockEngine,
) -> None:
    configure(engine, ("disk", 3))
    take(engine, ALICE, 1, None)
    take(engine, CAROL, 1, None)
    take(engine, EVE, 1, None)
    for session, key in ((BOB, TAPE), (DAVE, CARD)):
        acquire(engine, session, 1, key)
    acquire(engine, ALICE, 2, TAPE)
    acquire(engine, CAROL, 2, CARD)
    take(engine, BOB, 2, None)
    take(engine, DAVE, 2, None)
    # Nobody waits for Eve, who has the third.
    refused = [x for x in configure(engine, ("disk", 2)) if isinstance(x, Refused)]
    assert [(x.session, x.cycle[0]) for x in refused] == [(BOB, wait(BOB, DISK))]


@pytest.mark.parametrize("change", [-1, 1])
def test_change_of_the_slots_takes_each_place_once(change: int) -> None:
    def steps_with(count: int) -> int:
        engine = LockEngine()
        slots: tuple[tuple[str, int], ...] = (("disk", count),)
        engine.handle(AddLockspace("memory", anchored=False, slots=slots), now=0.0)
        locks = [ResourceKey("memory", f"lock-{number}") for number in range(count)]
        for number in range(2 * count):
            who = owner(f"s{number}", number)
            engine.handle(OpenSession(number, who), now=0.0)
            if number >= count:
                acquire(engine, number, 2, locks[number - count])
            acquire(engine, number, 1, DISK, mode=SLOT)
        # Half of those who have a slot wait for the locks of those who want one.
        for number in range(0, count, 2):
            acquire(engine, number, 2, locks[number])
        slots = (("disk", count + change),)
        command = AddLockspace("memory", anchored=False, slots=slots)
        effects: list[Effect] = []
        steps = steps_of(lambda: effects.extend(engine.handle(command, now=0.0)))
        assert not any(isinstance(x, Refused) for x in effects)
        check(engine)
        return steps

    few, many = steps_with(25), steps_with(50)
    assert few < many < 2.5 * few


def test_end_of_a_search_for_any_slot_takes_each_place_once() -> None:
    def steps_with(count: int) -> int:
        engine = LockEngine()
        engine.handle(AddLockspace("memory", anchored=False), now=0.0)
        for session in range(1, count + 5):
            engine.handle(OpenSession(session, owner(f"s{session}", session)), now=0.0)
        acquire(engine, ALICE, 1, DISK, mode=SLOT, slots=2)
        acquire(engine, BOB, 1, DISK, mode=SLOT, slots=2)
        acquire(engine, CAROL, 1, TAPE)
        acquire(engine, ALICE, 2, TAPE)
        for session in range(5, count + 5):
            acquire(engine, session, 1, DISK, mode=SLOT, slots=2)
        # Each of them would get a slot and give it back, before Carol has hers.
        command = Acquire(CAROL, 2, (DISK,), SLOT, slots=2)
        return steps_of(lambda: engine.handle(command, now=0.0))

    few, many = steps_with(50), steps_with(100)
    assert few < many < 2.5 * few


# Inside a slot.


def enter(engine: LockEngine, session: int, *tokens: int) -> None:
    engine.handle(EnterGrants(session, tokens), now=0.0)
    check(engine)


def inside_of(engine: LockEngine) -> dict[int, tuple[int | None, tuple[int, ...]]]:
    """Returns the slot of each holder, and the tokens around it."""
    return {x.session: (x.slot, x.inside) for x in engine.holders(DISK)}


def test_program_within_a_slot_gets_the_same(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    take(engine, CAROL, 1)
    enter(engine, BOB, 2)
    assert slot_of(take(engine, BOB, 1)) == 1
    enter(engine, DAVE, 2, 3)
    assert slot_of(take(engine, DAVE, 1, None)) == 1
    assert inside_of(engine) == {
        ALICE: (0, ()),
        CAROL: (1, ()),
        BOB: (1, (2,)),
        DAVE: (1, (2, 3)),
    }
    found = engine.situation(DISK)
    assert (found.holder_count, found.slots_taken, found.slots_removed) == (4, 2, 0)
    # Nobody else gets the slot before the last of them has ended.
    assert take(engine, EVE, 1) == [in_line(EVE, 1, DISK)]
    for session in (CAROL, DAVE):
        assert slot_of(release(engine, session, 9, DISK)) is None
        check(engine)
    assert slot_of(release(engine, BOB, 9, DISK)) == 1


def test_only_slot_is_not_waited_for_inside_it(engine: LockEngine) -> None:
    take(engine, ALICE, 1, 1)
    take(engine, CAROL, 1, 1)
    enter(engine, BOB, 1)
    assert slot_of(take(engine, BOB, 1, 1)) == 0


def test_programs_within_one_slot_take_turns(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    for session in (BOB, CAROL, DAVE):
        enter(engine, session, 1)
    assert slot_of(take(engine, BOB, 1)) == 0
    for session in (CAROL, DAVE):
        assert take(engine, session, 1) == [in_line(session, 1, DISK)]
    assert refusal(take(engine, CAROL, 2, timeout=0)).code == "already_held"
    # They are in nobody's way who wants another slot.
    assert slot_of(take(engine, EVE, 1)) == 1
    assert take(engine, FRED, 1) == [in_line(FRED, 1, DISK)]
    found = release(engine, BOB, 2, DISK)
    assert [(x.session, slot_of([x])) for x in found if isinstance(x, Granted)] == [
        (CAROL, 0)
    ]
    assert slot_of(release(engine, ALICE, 2, DISK)) is None
    # Dave stands before Fred.
    found = release(engine, CAROL, 2, DISK)
    assert [(x.session, slot_of([x])) for x in found if isinstance(x, Granted)] == [
        (DAVE, 0)
    ]
    check(engine)
    assert engine.holders(DISK)[-1].inside == ()
    assert slot_of(release(engine, DAVE, 2, DISK)) == 0


def test_try_inside_a_slot_fails_beside_another(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    for session in (BOB, CAROL):
        enter(engine, session, 1)
    take(engine, BOB, 1)
    assert refusal(take(engine, CAROL, 1, timeout=0)).code == "busy"
    take(engine, CAROL, 2)
    enter(engine, DAVE, 1)
    refused = refusal(take(engine, DAVE, 1, max_waiting=1))
    assert (refused.code, refused.max_waiting) == ("busy", 1)
    # Those inside another slot do not count.
    take(engine, EVE, 1)
    for session in (FRED,):
        enter(engine, session, 3)
    assert slot_of(take(engine, FRED, 1, max_waiting=1)) == 1


def test_removed_slot_stays_that_of_those_inside_it(engine: LockEngine) -> None:
    configure(engine, ("disk", 2))
    take(engine, ALICE, 1, None)
    take(engine, CAROL, 1, None)
    for session in (BOB, DAVE):
        enter(engine, session, 2)
    take(engine, BOB, 1, None)
    take(engine, DAVE, 1, None)
    configure(engine, ("disk", 1))
    release(engine, CAROL, 2, DISK)
    found = engine.situation(DISK)
    assert (found.slots, found.slots_taken, found.slots_removed) == (1, 1, 1)
    assert slot_of(release(engine, BOB, 2, DISK)) == 1
    check(engine)


@pytest.mark.parametrize("around", [SLOT, EXCLUSIVE, SHARED])
@pytest.mark.parametrize("wanted", [SLOT, EXCLUSIVE, SHARED])
def test_slot_has_nothing_but_slots_inside(
    engine: LockEngine, around: Mode, wanted: Mode
) -> None:
    acquire(engine, ALICE, 1, DISK, mode=around, slots=2)
    enter(engine, BOB, 1)
    effects = acquire(engine, BOB, 1, DISK, mode=wanted, slots=2)
    check(engine)
    if SLOT in (around, wanted) and around != wanted:
        refused = refusal(effects)
        assert (refused.code, refused.nested, refused.message) == (
            "already_held",
            True,
            "",
        )
    else:
        assert (around, wanted) == (SHARED, EXCLUSIVE) or engine.grants_of(BOB)


def test_slot_that_was_granted_last_counts_within_two(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    take(engine, CAROL, 1)
    enter(engine, BOB, 1, 2)
    take(engine, BOB, 1)
    assert inside_of(engine)[BOB] == (1, (2,))


def test_holder_is_wanted_by_those_inside_its_slot_only(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    take(engine, CAROL, 1, wanted=True)
    for session in (BOB, DAVE, EVE):
        enter(engine, session, 1)
    take(engine, BOB, 1, wanted=True)
    effects = take(engine, DAVE, 1)
    assert [(x.session, x.grant.slot) for x in effects if isinstance(x, Wanted)] == [
        (BOB, 0)
    ]


def test_who_waits_inside_a_slot_closes_a_cycle(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    take(engine, CAROL, 1)
    for session in (BOB, DAVE):
        enter(engine, session, 1)
    take(engine, BOB, 1)
    acquire(engine, DAVE, 1, TAPE)
    acquire(engine, BOB, 2, TAPE)
    # Carol's slot would be of no use to Dave.
    refused = refusal(take(engine, DAVE, 2))
    assert refused.code == "deadlock"
    assert [x.session for x in refused.cycle] == [DAVE, BOB]


def test_who_waits_inside_another_slot_closes_none(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    take(engine, CAROL, 1)
    for session in (BOB, DAVE):
        enter(engine, session, 1)
    enter(engine, EVE, 2)
    take(engine, BOB, 1)
    acquire(engine, EVE, 1, TAPE)
    acquire(engine, BOB, 2, TAPE)
    take(engine, DAVE, 1)
    # Dave waits inside slot 0 until Bob has the tape of Eve, who wants slot 1.
    assert slot_of(take(engine, EVE, 2)) == 1


def test_any_slot_may_be_one_with_others_inside(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    take(engine, CAROL, 1)
    for session in (BOB, DAVE):
        enter(engine, session, 1)
    acquire(engine, EVE, 1, TAPE)
    acquire(engine, CAROL, 2, TAPE)
    take(engine, BOB, 1)
    take(engine, DAVE, 1)
    # Slot 0 gets free after Bob and Dave.
    assert take(engine, EVE, 2) == [in_line(EVE, 2, DISK)]
    # But not if Dave waits for Eve.
    refused = refusal(acquire(engine, DAVE, 2, TAPE))
    assert refused.code == "deadlock"


def test_those_inside_slots_outlive_a_crash(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    take(engine, CAROL, 1)
    for session in (BOB, DAVE):
        enter(engine, session, 1)
    take(engine, BOB, 1)
    take(engine, DAVE, 1)
    release(engine, ALICE, 2, DISK)
    later = after_a_crash(engine)
    assert inside_of(later) == {CAROL: (1, ()), BOB: (0, (1,))}
    assert take(later, EVE, 1) == [in_line(EVE, 1, DISK)]
    assert slot_of(release(later, BOB, 2, DISK)) == 0
    assert [x.session for x in later.holders(DISK)] == [CAROL, DAVE]


def test_records_of_one_slot_leave_the_youngest_and_those_around_it(
    engine: LockEngine,
) -> None:
    take(engine, ALICE, 1)
    stale = [x for x in records.everything(engine) if x[0] == "grant"]
    release(engine, ALICE, 2, DISK)
    take(engine, BOB, 1)
    enter(engine, CAROL, 2)
    take(engine, CAROL, 1)
    whole = [*stale, *records.everything(engine)]
    loaded = snapshot.load(records.assemble(whole, ["some are old"]))
    assert inside_of(loaded.engine) == {BOB: (0, ()), CAROL: (0, (2,))}
    check(loaded.engine)


# What outlives a daemon.


def after_a_crash(engine: LockEngine) -> LockEngine:
    loaded = snapshot.load(records.assemble(records.everything(engine)))
    assert loaded.problems == []
    assert dump(loaded.engine) == dump(engine)
    check(loaded.engine)
    return loaded.engine


def test_slots_and_their_waiters_outlive_a_crash(engine: LockEngine) -> None:
    configure(engine, ("tape", 1))
    for session in (ALICE, BOB, CAROL, DAVE):
        take(engine, session, 1, 3)
    take(engine, ALICE, 2, None, TAPE)
    take(engine, BOB, 2, None, TAPE)
    release(engine, BOB, 3, DISK)
    later = after_a_crash(engine)
    assert later.situation(DISK) == engine.situation(DISK)
    assert slot_of(take(later, EVE, 1, 3)) is None
    assert refusal(take(later, FRED, 1, 2)).mismatch == Mismatch(
        DISK, 2, 3, owner("alice", ALICE)
    )
    assert slot_of(release(later, CAROL, 3, DISK)) == 2
    assert slot_of(release(later, ALICE, 4, TAPE)) == 0


def test_older_daemon_refuses_what_may_have_slots(engine: LockEngine) -> None:
    # It would take a grant in a mode that it does not know for a damaged record.
    assert dump(engine)["readable_from"] == snapshot.VERSION == 5


def test_state_of_an_older_daemon_has_no_slots(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK)
    old = dump(engine) | {"version": 4, "readable_from": 3}
    del old["lockspaces"][0]["slots"]
    for record in (old["owners"][0]["grants"][0], old["requests"][0]):
        record.pop("slots", None), record.pop("slots_said_by", None)
    loaded = snapshot.load(old)
    assert (loaded.problems, dump(loaded.engine)) == ([], dump(engine))


def test_two_records_of_one_slot_leave_the_younger(engine: LockEngine) -> None:
    take(engine, ALICE, 1)
    stale = [x for x in records.everything(engine) if x[0] == "grant"]
    release(engine, ALICE, 2, DISK)
    take(engine, BOB, 1)
    take(engine, CAROL, 1)
    whole = [*stale, *records.everything(engine)]
    loaded = snapshot.load(records.assemble(whole, ["some are old"]))
    assert [(x.session, x.slot) for x in loaded.engine.holders(DISK)] == [
        (BOB, 0),
        (CAROL, 1),
    ]
    check(loaded.engine)


def test_record_that_is_dropped_does_not_say_how_many_there_are(
    engine: LockEngine,
) -> None:
    configure(engine, ("disk", 2))
    take(engine, ALICE, 1, None)
    stale = [x for x in records.everything(engine) if x[0] == "grant"]
    release(engine, ALICE, 2, DISK)
    configure(engine, ("disk", 3))
    take(engine, BOB, 1, None)
    whole = [*stale, *records.everything(engine)]
    loaded = snapshot.load(records.assemble(whole, ["some are old"]))
    check(loaded.engine)
    assert loaded.engine.situation(DISK).slots == 3
    assert slot_of(take(loaded.engine, CAROL, 1, None)) == 1


def test_who_has_a_slot_and_waits_for_one_in_an_older_record_is_ended(
    engine: LockEngine,
) -> None:
    take(engine, ALICE, 1)
    take(engine, BOB, 1)
    take(engine, CAROL, 1)
    stale = [x for x in records.everything(engine) if x[0] == "request"]
    release(engine, ALICE, 2, DISK)
    whole = [*stale, *records.everything(engine)]
    loaded = snapshot.load(records.assemble(whole, ["some are old"]))
    assert loaded.damaged == [CAROL]
    loaded.engine.handle(CloseSession(CAROL), now=0.0)
    check(loaded.engine)
    assert [x.session for x in loaded.engine.holders(DISK)] == [BOB]


def with_other_slots(engine: LockEngine, slots: int) -> Loaded:
    """Loads records that are older than the configuration."""
    old = [x for x in decoded(engine) if x[0] != "lockspace"]
    configure(engine, ("disk", slots))
    return mended([*old, *(x for x in decoded(engine) if x[0] == "lockspace")])


def test_who_wants_one_while_another_has_all_of_it_outlives_a_crash(
    engine: LockEngine,
) -> None:
    acquire(engine, ALICE, 1, DISK)
    take(engine, BOB, 1)
    later = after_a_crash(engine)
    assert slot_of(release(later, ALICE, 2, DISK)) == 0


def test_who_waits_before_a_slot_that_older_records_lack_is_ended(
    engine: LockEngine,
) -> None:
    configure(engine, ("disk", 2))
    for session in (ALICE, BOB, CAROL):
        take(engine, session, 1, None)
    loaded = with_other_slots(engine, 3)
    assert loaded.problems == [
        "not all records agree on the slots of 'memory:disk'",
        f"request 1 of session {CAROL}: somebody before it may be missing",
    ]
    assert loaded.damaged == [CAROL]
    assert [(x.session, x.slots) for x in loaded.engine.holders(DISK)] == [
        (ALICE, 3),
        (BOB, 3),
    ]
    assert slot_of(take(loaded.engine, DAVE, 1, None)) == 2


def test_who_waits_for_a_slot_that_only_older_records_have_is_ended(
    engine: LockEngine,
) -> None:
    configure(engine, ("disk", 2))
    take(engine, ALICE, 1, None)
    take(engine, CAROL, 1, None)
    acquire(engine, BOB, 1, TAPE)
    acquire(engine, ALICE, 2, TAPE)
    take(engine, BOB, 2, None)
    loaded = with_other_slots(engine, 1)
    assert loaded.problems == [
        "not all records agree on the slots of 'memory:disk'",
        f"session {ALICE} waits for itself",
        f"session {BOB} waits for itself",
    ]
    assert loaded.damaged == [ALICE, BOB]


# By chance.


@pytest.mark.parametrize("seed", range(20))
def test_never_more_than_n_hold_it_and_nobody_starves(seed: int) -> None:
    random, engine = Random(seed), LockEngine()
    engine.handle(AddLockspace("memory", anchored=False), now=0.0)
    for session in range(1, 9):
        engine.handle(OpenSession(session, owner(f"s{session}", session)), now=0.0)
    slots = random.randint(1, 4)
    held: dict[int, int | None] = {}
    line: list[int] = []
    for number in range(1_000):
        session = random.randint(1, 8)
        if session in held:
            effects = release(engine, session, number, DISK)
            del held[session]
        elif session in line:
            continue
        elif random.random() < 0.1:
            effects = acquire(engine, session, number, DISK)
        else:
            effects = take(engine, session, number, slots)
        for effect in effects:
            assert not isinstance(effect, Refused)
            if isinstance(effect, Granted):
                got = effect.grants[0]
                if got.session in line:
                    assert line.pop(0) == got.session
                free = set(range(slots)) - set(held.values())
                assert got.slot == (min(free) if got.mode == SLOT else None)
                assert got.mode == SLOT or not held
                held[got.session] = got.slot
        if session not in held and engine.sessions[session].requests:
            line.append(session)
        assert None not in held.values() or len(held) == 1
    assert len({x for x in held.values() if x is not None}) <= slots
