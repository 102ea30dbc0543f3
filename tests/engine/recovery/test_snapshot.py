import json

import pytest

from engine.ledger import busy
from engine.scene import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    DISK,
    FILE,
    GUARDED,
    OTHER_FILE,
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
    AnchorOpened,
    AnchorRefused,
    BreakGrant,
    Cancel,
    CloseSession,
    DisconnectOwner,
    OwnerFenced,
    RegisterOwner,
    Tick,
)
from lockd.engine.effects import CloseAnchor, Ended, Granted, Refused
from lockd.engine.invariants import check
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import snapshot
from lockd.engine.recovery.shapes import Loaded
from lockd.terms import EXCLUSIVE, SHARED, OutsideHolder


def reloaded(engine: LockEngine) -> LockEngine:
    """Passes an engine through text, as from a daemon to its successor."""
    dumped = dump(engine)
    loaded = snapshot.load(json.loads(json.dumps(dumped))).engine
    check(loaded)
    assert dump(loaded) == dumped
    assert repr(loaded) == repr(engine)
    return loaded


def test_holders_and_queue_are_what_they_were(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, CAROL, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK)
    before = engine.situation(DISK)
    engine = reloaded(engine)
    assert engine.situation(DISK) == before
    assert release(engine, ALICE, 2, DISK)[1:-1] == [
        granted(CAROL, 1, grant(DISK, CAROL, 2, SHARED))
    ]


def test_tokens_go_on(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    release(engine, ALICE, 2, DISK)
    engine = reloaded(engine)
    assert acquire(engine, ALICE, 3, DISK) == [granted(ALICE, 3, grant(DISK, ALICE, 2))]


def test_tokens_rise_above_all_that_may_have_been_given(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    data = dump(engine)
    assert snapshot.load(data, last_token=41).engine.last_token == 41
    assert snapshot.load(data, last_token=0).engine.last_token == 1


def test_deadlines_and_pauses_go_on(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, timeout=9.0)
    acquire(engine, CAROL, 1, FILE)
    outside = OutsideHolder(EXCLUSIVE, 4711, "qemu")
    engine.handle(AnchorRefused(FILE, "busy", outside=outside), now=0.0)
    engine = reloaded(engine)
    (pausing,) = engine.sessions[CAROL].requests.values()
    assert pausing.outside == outside
    assert engine.next_deadline() == 0.01
    engine.handle(Tick(), now=0.01)
    engine.handle(AnchorOpened(FILE), now=0.01)
    assert engine.next_deadline() == 9.0
    assert refusal(engine.handle(Tick(), now=9.0)).code == "timeout"


def test_waiting_convert_goes_on(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 1, DISK)
    convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    engine = reloaded(engine)
    (answer,) = [x for x in release(engine, BOB, 2, DISK) if isinstance(x, Granted)]
    assert (answer.session, answer.converted) == (ALICE, True)


def test_opening_anchor_is_still_awaited(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE, OTHER_FILE)
    engine.handle(AnchorRefused(FILE, "io", "its words"), now=0.0)
    engine = reloaded(engine)
    answer, closed = engine.handle(AnchorOpened(OTHER_FILE), now=0.0)
    assert isinstance(answer, Refused)
    assert (answer.code, answer.message) == ("io", "its words")
    assert closed == CloseAnchor(OTHER_FILE)


@pytest.mark.parametrize("leaves", [True, False])
def test_opening_anchor_of_who_gave_up_is_still_awaited(
    engine: LockEngine, leaves: bool
) -> None:
    acquire(engine, ALICE, 1, FILE)
    engine.handle(CloseSession(ALICE) if leaves else Cancel(ALICE, 2, 1), now=0.0)
    engine = reloaded(engine)
    assert engine.handle(AnchorOpened(FILE), now=0.0) == [CloseAnchor(FILE)]
    assert engine.resources == {}


def test_fencing_goes_on(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, GUARDED)
    engine.handle(BreakGrant(BOB, 1, 1, "stuck"), now=0.0)
    engine = reloaded(engine)
    assert refusal(acquire(engine, ALICE, 2, DISK)).code == "unavailable"
    engine.handle(CloseSession(ALICE), now=0.0)
    assert engine.handle(OwnerFenced(ALICE), now=0.0) == [
        Ended(grant(GUARDED, ALICE, 1), "broken")
    ]


def test_process_is_still_shared_by_its_sessions(engine: LockEngine) -> None:
    for session in (ALICE, BOB):
        command = RegisterOwner(session, 9, 100, owner("guest", 700))
        engine.handle(command, now=0.0)
    acquire(engine, ALICE, 1, DISK)
    engine = reloaded(engine)
    assert refusal(acquire(engine, BOB, 1, DISK)).code == "already_held"
    assert engine.state.owners[100].sessions.keys() == {ALICE, BOB}


def test_last_holders_are_still_known(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, TAPE)
    release(engine, ALICE, 2, DISK, TAPE, now=3.0)
    assert reloaded(engine).last_holders == engine.last_holders


def test_dump_changes_nothing(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK, timeout=1.0)
    assert dump(engine) == dump(engine)
    check(engine)


def test_snapshot_of_another_version_is_refused(engine: LockEngine) -> None:
    newer = snapshot.VERSION + 1
    data = dump(engine) | {"version": newer, "readable_from": newer}
    with pytest.raises(ValueError, match="cannot be read"):
        snapshot.load(data)


# Damage.

LISTS = ("lockspaces", "owners", "sessions", "requests", "resources", "last_holders")


def spoiled(record: object) -> list[object]:
    """Returns what a record may have become."""
    if isinstance(record, dict):
        changed = [record | {key: [[]]} for key in record]
        missing = [{k: v for k, v in record.items() if k != key} for key in record]
        return [None, *changed, *missing]
    assert isinstance(record, list)
    return [None, record[:-1], [*record[:-1], "x"], [9_999, *record[1:]]]


@pytest.mark.parametrize("kind", LISTS)
def test_damaged_record_costs_only_those_whom_it_is_about(
    engine: LockEngine, kind: str
) -> None:
    busy(engine)
    whole = dump(engine)
    seen = 0
    for index, record in enumerate(whole[kind]):
        for other in spoiled(record):
            records = list(whole[kind])
            records[index] = other
            try:
                loaded = snapshot.load(whole | {kind: records})
            except ValueError:
                raise AssertionError((kind, index, other)) from None
            if not loaded.problems:
                continue
            seen += 1
            finish(loaded)
            check(loaded.engine)
            if str(DAVE) not in str(record) and GUARDED.lockspace not in str(record):
                (kept,) = loaded.engine.owners[DAVE].grants.values()
                assert kept.key == GUARDED
    assert seen or not whole[kind]


def finish(loaded: Loaded) -> None:
    """Ends what is damaged, as whoever loads has to."""
    engine = loaded.engine
    for session in loaded.damaged:
        if session in engine.sessions:
            engine.handle(CloseSession(session), now=0.0)
    for owner_id in loaded.orphans:
        if owner_id in engine.owners:
            engine.handle(DisconnectOwner(owner_id), now=0.0)


@pytest.mark.parametrize(
    "data", [{}, {"version": "x"}, {"version": 1}, {"version": 0, "readable_from": 0}]
)
def test_what_is_no_snapshot_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no snapshot"):
        snapshot.load(data)


def test_newer_snapshot_that_says_so_is_read(engine: LockEngine) -> None:
    busy(engine)
    data = dump(engine) | {"version": snapshot.VERSION + 1, "more": 5}
    assert snapshot.load(data).problems == []
