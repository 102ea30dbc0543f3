from typing import Any

import pytest

from engine.ledger import Ledger, busy, decoded, mended, without
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
    granted,
    release,
)
from engine.scene import grant as grant_of
from lockd.engine.commands import (
    AnchorOpened,
    AnchorRefused,
    CloseSession,
    Tick,
)
from lockd.engine.effects import CloseAnchor, Granted
from lockd.engine.lock_engine import LockEngine
from lockd.engine.recovery import records, snapshot
from lockd.engine.recovery.records import Record
from lockd.terms import EXCLUSIVE, SHARED, ResourceKey


@pytest.fixture
def ledger(engine: LockEngine) -> Ledger:
    """What is written down of the engine from now on."""
    ledger = Ledger()
    ledger.begin(engine)
    return ledger


def told(engine: LockEngine) -> dict[str, Any]:
    """Returns what changed since the last call, a value for each kind and name."""
    return {f"{kind} {name}": value for kind, name, value in records.changes(engine)}


def test_engine_marks_nothing_while_nobody_wants_to_know(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    assert engine.state.changed is None


def test_change_is_told_once(engine: LockEngine, ledger: Ledger) -> None:
    acquire(engine, ALICE, 1, DISK)
    assert told(engine).keys() == {"counts 0", "grant 1"}
    assert told(engine) == {}


def test_release_is_told_with_the_last_holder(
    engine: LockEngine, ledger: Ledger
) -> None:
    acquire(engine, ALICE, 1, DISK)
    ledger.follow(engine)
    release(engine, ALICE, 2, DISK)
    changes = told(engine)
    assert changes.keys() == {"counts 0", "grant 1", f"last {DISK}"}
    assert changes["grant 1"] is None


def test_nothing_is_told_of_what_came_and_went(
    engine: LockEngine, ledger: Ledger
) -> None:
    told(engine)
    acquire(engine, ALICE, 1, FILE)
    engine.handle(AnchorOpened(FILE), now=0.0)
    release(engine, ALICE, 2, FILE)
    assert told(engine).keys() == {"counts 0", f"last {FILE}"}


def test_refusal_changes_the_counts_alone(engine: LockEngine, ledger: Ledger) -> None:
    release(engine, ALICE, 1, DISK)
    assert told(engine).keys() == {"counts 0"}


def test_cost_of_a_change_depends_neither_on_holders_nor_on_waiters(
    engine: LockEngine, ledger: Ledger
) -> None:
    for number in range(1, 300):
        acquire(engine, ALICE, number, ResourceKey("memory", f"r{number}"))
        acquire(engine, BOB, number, ResourceKey("memory", "r1"), mode=SHARED)
    ledger.follow(engine)
    acquire(engine, CAROL, 1, DISK)
    assert told(engine).keys() == {"counts 0", "grant 300"}
    acquire(engine, DAVE, 1, ResourceKey("memory", "r1"))
    assert told(engine).keys() == {"counts 0", "request 300"}
    engine.handle(CloseSession(DAVE), now=0.0)
    assert told(engine).keys() == {f"session {DAVE}", f"owner {DAVE}", "request 300"}


def test_values_are_plain_when_they_are_decoded(engine: LockEngine) -> None:
    busy(engine)
    assert snapshot.load(records.assemble(decoded(engine))).problems == []


def test_line_is_what_it_was(engine: LockEngine, ledger: Ledger) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 1, DISK)
    acquire(engine, DAVE, 1, TAPE, DISK)
    convert(engine, BOB, 2, DISK, EXCLUSIVE)
    ledger.follow(engine)
    assert ledger.recover().engine.situation(DISK) == engine.situation(DISK)


def test_last_holders_keep_their_order(engine: LockEngine, ledger: Ledger) -> None:
    keys = [ResourceKey("memory", name) for name in "cabd"]
    for again in (keys, reversed(keys), keys[:2]):
        acquire(engine, ALICE, 1, *again)
        release(engine, ALICE, 2, *keys)
        ledger.follow(engine)
        found = ledger.recover().engine.last_holders
        assert list(found) == list(engine.last_holders)
        ledger.begin(engine)
        assert list(ledger.recover().engine.last_holders) == list(found)


def test_half_opened_request_goes_on(engine: LockEngine, ledger: Ledger) -> None:
    acquire(engine, ALICE, 1, FILE, OTHER_FILE)
    engine.handle(AnchorOpened(FILE), now=0.0)
    ledger.follow(engine)
    recovered = ledger.recover().engine
    (answer,) = recovered.handle(AnchorOpened(OTHER_FILE), now=0.0)
    assert isinstance(answer, Granted)
    released = release(recovered, ALICE, 2, FILE, OTHER_FILE)
    assert [x for x in released if isinstance(x, CloseAnchor)] == [
        CloseAnchor(FILE),
        CloseAnchor(OTHER_FILE),
    ]


def test_pause_that_is_over_is_told(engine: LockEngine, ledger: Ledger) -> None:
    acquire(engine, ALICE, 1, FILE, mode=SHARED)
    engine.handle(AnchorOpened(FILE), now=0.0)
    acquire(engine, BOB, 1, FILE, mode=SHARED)
    engine.handle(AnchorRefused(FILE, "busy"), now=0.0)
    convert(engine, ALICE, 2, FILE, EXCLUSIVE)
    ledger.follow(engine)
    engine.handle(Tick(), now=1.0)
    ledger.follow(engine)


def test_tokens_go_on(engine: LockEngine, ledger: Ledger) -> None:
    acquire(engine, ALICE, 1, DISK)
    release(engine, ALICE, 2, DISK)
    ledger.follow(engine)
    recovered = ledger.recover().engine
    expected = granted(BOB, 1, grant_of(DISK, BOB, 2))
    assert acquire(recovered, BOB, 1, DISK) == [expected]


# What cannot be read.


def test_record_of_an_unknown_kind_is_named(engine: LockEngine) -> None:
    loaded = mended([*decoded(engine), ("lease", 7, None)])
    (problem,) = loaded.problems
    assert "record 7 of lease" in problem


def test_records_of_another_version_are_refused(engine: LockEngine) -> None:
    newer = snapshot.VERSION + 1
    others = without(engine, "counts", 0)
    counts: Record = ("counts", 0, [newer, newer, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="cannot be read"):
        snapshot.load(records.assemble([counts, *others]))


def test_nothing_makes_an_empty_engine() -> None:
    assert mended([]).engine.owners == {}
