import pytest

from engine.scene import ALICE, BOB, CAROL, DISK, FILE, acquire, convert, owner
from lockd.engine.commands import OpenSession
from lockd.engine.lock_engine import LockEngine
from lockd.engine.resource import MAX_NAMED, Resource, compatible
from lockd.engine.session import Strand
from lockd.terms import EXCLUSIVE, SHARED, Mode


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        (SHARED, SHARED, True),
        (SHARED, EXCLUSIVE, False),
        (EXCLUSIVE, SHARED, False),
        (EXCLUSIVE, EXCLUSIVE, False),
    ],
)
def test_only_shared_beside_shared_is_compatible(
    held: Mode, wanted: Mode, expected: bool
) -> None:
    assert compatible(held, wanted) is expected


def crowd(engine: LockEngine, size: int) -> range:
    sessions = range(1000, 1000 + size)
    for session in sessions:
        engine.handle(OpenSession(session, owner(f"s{session}", session)), now=0.0)
    return sessions


def test_new_resource_admits_everybody() -> None:
    resource = Resource(DISK)
    assert resource.is_idle
    assert not resource.has_line
    assert resource.mode is None
    assert resource.front() is None
    assert resource.admits(EXCLUSIVE, Strand())


def test_holder_is_admitted_beside_itself(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    resource = engine.state.resources[DISK]
    alice, bob = (engine.state.owners[x].whole for x in (ALICE, BOB))
    assert resource.admits(EXCLUSIVE, alice)
    assert not resource.admits(EXCLUSIVE, bob)
    assert resource.admits(SHARED, bob)


def test_converts_stand_before_waiters(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 1, DISK)
    convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    resource = engine.state.resources[DISK]
    assert [r.converting for r in resource.line()] == [True, False]
    assert resource.front() is next(resource.line())
    assert resource.line_length() == 2


def test_situation_names_few_and_counts_all(engine: LockEngine) -> None:
    sessions = crowd(engine, 2 * MAX_NAMED)
    holders, waiters = sessions[: MAX_NAMED + 1], sessions[MAX_NAMED + 1 :]
    for session in holders:
        acquire(engine, session, 1, DISK, mode=SHARED)
    for session in [*waiters, ALICE, BOB]:
        acquire(engine, session, 1, DISK)
    situation = engine.situation(DISK)
    assert [g.session for g in situation.holders] == [*holders[:MAX_NAMED]]
    assert situation.holder_count == MAX_NAMED + 1
    assert [w.session for w in situation.waiters] == [*waiters, ALICE]
    assert situation.waiter_count == MAX_NAMED + 1


def test_request_that_opens_the_anchor_counts_as_waiting(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, FILE)
    assert [w.session for w in engine.situation(FILE).waiters] == [ALICE]
    assert repr(engine.state.resources[FILE]) == (
        "<Resource files:file holders=0 inner=0 converting=0 waiting=0 anchor=None "
        "pending=True>"
    )


def test_idle_lines_cost_nothing(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    resource = engine.state.resources[DISK]
    assert resource.waiting is resource.converting is Resource(FILE).waiting
