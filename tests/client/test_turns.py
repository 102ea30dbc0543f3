import pytest

from lockd.client.grants import Hold
from lockd.client.turns import Turn, Turns, time_left
from lockd.errors import AlreadyHeldError, ConnectionLostError
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey

DISK = ResourceKey("default", "disk")
GRANT = {**DISK._asdict(), "mode": EXCLUSIVE, "fencing_token": 7}


@pytest.fixture
def turns() -> Turns:
    return Turns()


def enter(turns: Turns, who: int, mode: Mode = EXCLUSIVE) -> Turn:
    turn = Turn(DISK, mode, who)
    turns.enter(turn)
    return turn


def test_turns_come_one_after_the_other(turns: Turns) -> None:
    line = [enter(turns, who) for who in range(3)]
    for first in range(3):
        assert [turn.done for turn in line[first:]] == [True] + [False] * (2 - first)
        turns.leave(line[first])
    assert not turns._lines


def test_other_locks_have_other_lines(turns: Turns) -> None:
    enter(turns, 1)
    other = Turn(ResourceKey("other", "disk"), EXCLUSIVE, 2)
    turns.enter(other)
    assert other.done


def test_shared_turns_come_together_and_overtake_nobody(turns: Turns) -> None:
    readers = [enter(turns, who, SHARED) for who in (1, 2)]
    writer = enter(turns, 3)
    late = enter(turns, 4, SHARED)
    assert [turn.done for turn in (*readers, writer, late)] == [
        True,
        True,
        False,
        False,
    ]
    turns.leave(readers[0])
    assert not writer.done
    turns.leave(readers[1])
    assert writer.done
    assert not late.done
    turns.leave(writer)
    assert late.done


def test_place_in_line_can_be_given_up(turns: Turns) -> None:
    first, second, third = (enter(turns, who) for who in range(3))
    turns.leave(second)
    assert not third.done
    turns.leave(first)
    assert third.done
    assert not second.done


def test_writer_that_gives_up_lets_readers_in(turns: Turns) -> None:
    enter(turns, 1, SHARED)
    writer = enter(turns, 2)
    reader = enter(turns, 3, SHARED)
    turns.leave(writer)
    assert reader.done


@pytest.mark.parametrize(
    ("held", "wanted"),
    [(EXCLUSIVE, EXCLUSIVE), (EXCLUSIVE, SHARED), (SHARED, EXCLUSIVE)],
)
def test_second_turn_of_ones_own_is_refused(
    turns: Turns, held: Mode, wanted: Mode
) -> None:
    turn = enter(turns, 1, held)
    with pytest.raises(AlreadyHeldError):
        enter(turns, 1, wanted)
    turns.leave(turn)
    assert enter(turns, 1, wanted).done


def test_second_shared_turn_of_ones_own_does_not_wait_behind_others(
    turns: Turns,
) -> None:
    first = enter(turns, 1, SHARED)
    writer = enter(turns, 2)
    second = enter(turns, 1, SHARED)
    assert second.done
    turns.leave(first)
    assert not writer.done
    turns.leave(second)
    assert writer.done


def test_turn_in_which_nothing_is_held_any_more_is_over(turns: Turns) -> None:
    hold = Hold(GRANT)
    first, second, third = (enter(turns, who) for who in range(3))
    turns.keep(first, hold)
    turns.clear(DISK)
    assert not second.done
    hold.lose("broken", "")
    turns.clear(DISK)
    assert second.done
    # This one was lost before its turn could be told what was got in it.
    turns.keep(second, hold)
    assert third.done


def test_turn_wakes_once(turns: Turns) -> None:
    first, second = enter(turns, 1), enter(turns, 2)
    woken: list[bool] = []
    second.wake_with(lambda: woken.append(second.done))
    turns.leave(first)
    turns.end(ConnectionLostError("over"))
    assert woken == [True]


def test_end_of_the_connection_wakes_the_whole_line(turns: Turns) -> None:
    line = [enter(turns, who) for who in range(3)]
    turns.end(ConnectionLostError("over"))
    assert all(turn.done for turn in line)
    for turn in line:
        turns.leave(turn)


def test_what_is_left_of_a_timeout_is_never_a_try() -> None:
    assert time_left(0, 0) == 0
    assert time_left(5, 2) == 3
    assert time_left(5, 7) > 0
