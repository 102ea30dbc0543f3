"""The heap of what is due; `test_lock_table` and `test_notices` test its use."""

from engine.scene import DISK, owner
from lockd.engine.commands import Acquire
from lockd.engine.deadlines import Deadlines
from lockd.engine.request_state import ANSWERED, QUEUED
from lockd.engine.session import OwnerState, Request, Session


def request(number: int, timeout: float | None) -> Request:
    session = Session(1, OwnerState(1, owner("alice", 1)))
    wish = Acquire(1, number, (DISK,), "exclusive", timeout)
    return Request(session, session.owner.whole, number, wish, 0.0)


def test_earliest_comes_first() -> None:
    deadlines = Deadlines()
    late, early = request(1, 5.0), request(2, 3.0)
    for one, when in (late, 5.0), (early, 3.0):
        deadlines.add(when, one.order, one)
    assert deadlines.first() == 3.0
    assert deadlines.take_first() is early
    assert deadlines.first() == 5.0
    assert deadlines.take_first() is late
    assert deadlines.first() is None


def test_what_is_answered_is_skipped() -> None:
    deadlines, one = Deadlines(), request(1, 5.0)
    deadlines.add(5.0, one.order, one)
    one.become(QUEUED)
    one.become(ANSWERED)
    assert deadlines.first() is None


def test_what_is_answered_takes_no_room() -> None:
    deadlines = Deadlines()
    for number in range(10_000):
        one = request(number, 1_000.0)
        deadlines.add(1_000.0, number, one)
        one.become(QUEUED)
        one.become(ANSWERED)
    assert len(deadlines) <= 128
