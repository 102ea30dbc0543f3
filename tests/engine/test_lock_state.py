"""What the state remembers and counts."""

from engine.scene import ALICE, BOB, CAROL, DISK, TAPE, acquire, grant, release
from lockd.engine.commands import CloseSession
from lockd.engine.effects import LastHolder
from lockd.engine.lock_engine import LockEngine
from lockd.engine.lock_state import MAX_LAST_HOLDERS
from lockd.terms import ResourceKey


def test_last_holder_is_remembered_with_how_it_ended(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    engine.handle(CloseSession(ALICE), now=7.0)
    assert engine.last_holders[DISK] == LastHolder(
        grant(DISK, ALICE, 1), 7.0, "disconnected"
    )


def test_memory_of_last_holders_is_bounded(engine: LockEngine) -> None:
    keys = [ResourceKey("memory", f"r{i}") for i in range(MAX_LAST_HOLDERS + 10)]
    for request, key in enumerate([*keys, keys[20]]):
        acquire(engine, ALICE, 2 * request, key)
        release(engine, ALICE, 2 * request + 1, key)
    remembered = list(engine.last_holders)
    assert len(remembered) == MAX_LAST_HOLDERS
    assert remembered[0] == keys[10]
    assert remembered[-1] == keys[20]


def test_counts_tell_what_happened(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, DISK)
    acquire(engine, CAROL, 1, DISK, timeout=0)
    acquire(engine, CAROL, 2, TAPE)
    release(engine, ALICE, 2, DISK)
    counts = (engine.granted, engine.refused, engine.ended, engine.held, engine.waiting)
    assert counts == (3, 1, 1, 2, 0)
