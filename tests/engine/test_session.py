from engine.scene import ALICE, BOB, CAROL, DISK, TAPE, acquire, convert, owner
from lockd.engine.commands import RegisterOwner
from lockd.engine.lock_engine import LockEngine
from lockd.terms import EXCLUSIVE, SHARED


def test_owner_waits_with_all_its_sessions(engine: LockEngine) -> None:
    for session in (ALICE, BOB):
        command = RegisterOwner(session, 9, 100, owner("guest", 700))
        engine.handle(command, now=0.0)
    acquire(engine, CAROL, 1, DISK)
    acquire(engine, CAROL, 2, TAPE)
    acquire(engine, ALICE, 1, DISK)
    acquire(engine, BOB, 1, TAPE)
    guest = engine.state.owners[100]
    assert len(guest.waiting()) == 2
    assert [r.session.session_id for r in guest.waiting()] == [ALICE, BOB]
    assert all(request.owner is guest for request in guest.waiting())


def test_only_a_convert_to_shared_goes_down(engine: LockEngine) -> None:
    acquire(engine, ALICE, 1, DISK, mode=SHARED)
    acquire(engine, BOB, 1, DISK, mode=SHARED)
    acquire(engine, CAROL, 1, DISK, mode=EXCLUSIVE)
    convert(engine, ALICE, 2, DISK, EXCLUSIVE)
    line = [*engine.state.resources[DISK].line()]
    assert [request.converting for request in line] == [True, False]
    assert not any(request.goes_down for request in line)
