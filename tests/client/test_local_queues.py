import pytest

from lockd.client.grants import Hold
from lockd.client.local_queues import LocalQueues, Ticket, time_left
from lockd.errors import AlreadyHeldError, ConnectionLostError
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey

DISK = ResourceKey("default", "disk")
GRANT = {**DISK._asdict(), "mode": EXCLUSIVE, "fencing_token": 7}


@pytest.fixture
def queues() -> LocalQueues:
    return LocalQueues()


def enter(queues: LocalQueues, who: int, mode: Mode = EXCLUSIVE) -> Ticket:
    ticket = Ticket(DISK, mode, who)
    queues.enter(ticket)
    return ticket


def test_tickets_are_admitted_one_after_the_other(queues: LocalQueues) -> None:
    queue = [enter(queues, who) for who in range(3)]
    for first in range(3):
        assert [ticket.done for ticket in queue[first:]] == [True] + [False] * (
            2 - first
        )
        queues.leave(queue[first])
    assert not queues._queues


def test_other_locks_have_other_queues(queues: LocalQueues) -> None:
    enter(queues, 1)
    other = Ticket(ResourceKey("other", "disk"), EXCLUSIVE, 2)
    queues.enter(other)
    assert other.done


def test_shared_tickets_are_admitted_together_and_overtake_nobody(
    queues: LocalQueues,
) -> None:
    readers = [enter(queues, who, SHARED) for who in (1, 2)]
    writer = enter(queues, 3)
    late = enter(queues, 4, SHARED)
    assert [ticket.done for ticket in (*readers, writer, late)] == [
        True,
        True,
        False,
        False,
    ]
    queues.leave(readers[0])
    assert not writer.done
    queues.leave(readers[1])
    assert writer.done
    assert not late.done
    queues.leave(writer)
    assert late.done


def test_place_in_queue_can_be_given_up(queues: LocalQueues) -> None:
    first, second, third = (enter(queues, who) for who in range(3))
    queues.leave(second)
    assert not third.done
    queues.leave(first)
    assert third.done
    assert not second.done


def test_writer_that_gives_up_lets_readers_in(queues: LocalQueues) -> None:
    enter(queues, 1, SHARED)
    writer = enter(queues, 2)
    reader = enter(queues, 3, SHARED)
    queues.leave(writer)
    assert reader.done


@pytest.mark.parametrize(
    ("held", "wanted"),
    [(EXCLUSIVE, EXCLUSIVE), (EXCLUSIVE, SHARED), (SHARED, EXCLUSIVE)],
)
def test_second_ticket_of_ones_own_is_refused(
    queues: LocalQueues, held: Mode, wanted: Mode
) -> None:
    ticket = enter(queues, 1, held)
    with pytest.raises(AlreadyHeldError):
        enter(queues, 1, wanted)
    queues.leave(ticket)
    assert enter(queues, 1, wanted).done


def test_second_shared_ticket_of_ones_own_does_not_wait_behind_others(
    queues: LocalQueues,
) -> None:
    first = enter(queues, 1, SHARED)
    writer = enter(queues, 2)
    second = enter(queues, 1, SHARED)
    assert second.done
    queues.leave(first)
    assert not writer.done
    queues.leave(second)
    assert writer.done


def test_ticket_whose_lock_has_ended_is_over(queues: LocalQueues) -> None:
    hold = Hold(GRANT)
    first, second, third = (enter(queues, who) for who in range(3))
    queues.keep(first, hold)
    queues.clear(DISK)
    assert not second.done
    hold.lose("broken", "")
    queues.clear(DISK)
    assert second.done
    # This one was lost before its ticket could note it.
    queues.keep(second, hold)
    assert third.done


def test_ticket_wakes_once(queues: LocalQueues) -> None:
    first, second = enter(queues, 1), enter(queues, 2)
    woken: list[bool] = []
    second.wake_with(lambda: woken.append(second.done))
    queues.leave(first)
    queues.end(ConnectionLostError("over"))
    assert woken == [True]


def test_end_of_the_connection_wakes_the_whole_queue(queues: LocalQueues) -> None:
    queue = [enter(queues, who) for who in range(3)]
    queues.end(ConnectionLostError("over"))
    assert all(ticket.done for ticket in queue)
    for ticket in queue:
        queues.leave(ticket)


def test_what_is_left_of_a_timeout_is_never_a_try() -> None:
    assert time_left(0, 0) == 0
    assert time_left(5, 2) == 3
    assert time_left(5, 7) > 0
