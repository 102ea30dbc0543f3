"""What the campaign finds in records that were made up for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from torture.board import EXCLUSIVE, MAY_OVERTAKE, SHARED, Board, now
from torture.judge import Judge
from torture.places import MEMORY, POOLS, Place
from torture.worker import Hold


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Board(tmp_path / "complaints") as made:
        yield made


def held(
    board: Board,
    slot: int,
    times: tuple[int, int, int, int],
    token: int,
    mode: int = EXCLUSIVE,
    value: int = -1,
    place: Place = MEMORY[0],
    around: int = 0,
    flags: int = 0,
) -> None:
    """A record: asked for, queued, granted, ended."""
    *begun, ended = times
    sent, queued, granted = begun
    index = board.begin(
        slot, place.number, mode, (sent, queued, granted), token, flags, around
    )
    if value >= 0:
        board.set_value(slot, index, value)
        board.set_counter(place.number, board.counter(place.number) + 1)
    board.set_end(slot, index, ended)


def found(board: Board) -> dict[str, int]:
    judge = Judge()
    judge.judge(board)
    return dict(judge.found)


def test_nothing_is_wrong_with_one_after_the_other(board: Board) -> None:
    held(board, 1, (10, 0, 20, 30), 1, value=0)
    held(board, 2, (11, 12, 31, 40), 2, value=1)
    held(board, 3, (13, 14, 41, 60), 3, SHARED)
    held(board, 4, (13, 14, 42, 50), 4, SHARED)
    assert found(board) == {}


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_two_at_a_time_are_found(board: Board, mode: int) -> None:
    held(board, 1, (10, 0, 20, 31), 1)
    held(board, 2, (11, 12, 30, 40), 2, mode)
    assert found(board) == {"overlap": 1}


def test_short_hold_within_a_long_one_is_found(board: Board) -> None:
    held(board, 1, (10, 0, 20, 90), 1, SHARED)
    held(board, 2, (10, 0, 21, 22), 2, SHARED)
    held(board, 3, (10, 0, 30, 40), 3)
    assert found(board) == {"overlap": 1}


def test_who_held_for_no_time_that_is_known_is_in_nobodys_way(board: Board) -> None:
    held(board, 1, (10, 0, 20, 40), 1)
    held(board, 2, (5, 0, 30, 25), 2)
    assert found(board) == {}


def test_two_in_one_slot_are_found_and_two_in_a_pool_are_not(board: Board) -> None:
    first, second, *_ = POOLS[0]
    held(board, 1, (10, 0, 20, 40), 1, place=first)
    held(board, 2, (11, 12, 21, 40), 2, place=second)
    assert found(board) == {}
    held(board, 3, (13, 14, 30, 50), 3, place=first)
    assert found(board) == {"overlap": 1}


def test_slot_while_somebody_has_the_whole_pool_is_found(board: Board) -> None:
    held(board, 1, (10, 0, 20, 40), 1, place=POOLS[0][0])
    held(board, 1, (20, 0, 20, 40), 0, place=POOLS[0][1])
    held(board, 2, (11, 12, 30, 50), 2, place=POOLS[0][1])
    assert found(board) == {"overlap": 1}


def test_who_overtakes_to_another_slot_is_found(board: Board) -> None:
    held(board, 1, (10, 12, 40, 50), 2, place=POOLS[0][0])
    held(board, 2, (13, 14, 20, 30), 1, place=POOLS[0][1])
    assert found(board) == {"queue order": 1}


def test_turns_inside_are_no_overlap(board: Board) -> None:
    held(board, 1, (10, 0, 20, 32), 1)
    held(board, 2, (21, 22, 24, 30), 2, around=1)
    held(board, 2, (25, 0, 26, 27), 3, around=2)
    held(board, 3, (23, 24, 31, 40), 4, around=1)
    held(board, 4, (11, 12, 41, 50), 5)
    assert found(board) == {}


def test_two_at_a_time_inside_are_found(board: Board) -> None:
    held(board, 1, (10, 0, 20, 50), 1)
    held(board, 2, (21, 22, 24, 32), 2, around=1)
    held(board, 3, (23, 24, 31, 40), 3, around=1)
    assert found(board) == {"overlap": 1}


def test_turn_beside_what_is_deeper_inside_is_found(board: Board) -> None:
    held(board, 1, (10, 0, 20, 25), 1)
    held(board, 2, (21, 22, 24, 30), 2, around=1)
    held(board, 2, (25, 0, 26, 35), 3, around=2)
    held(board, 3, (23, 24, 31, 40), 4, around=1)
    assert found(board) == {"overlap": 1}


@pytest.mark.parametrize("at", [28, 32, 38])
def test_somebody_outside_before_the_last_inside_is_done_is_found(
    board: Board, at: int
) -> None:
    held(board, 1, (10, 0, 20, 25), 1)
    held(board, 2, (21, 22, 24, 30), 2, around=1)
    held(board, 3, (23, 24, 34, 40), 4, around=1)
    held(board, 4, (11, 12, at, 50), 3 if at < 34 else 5)
    assert found(board) == {"overlap": 1}


def test_who_may_have_been_inside_goes_between_those_who_were(board: Board) -> None:
    held(board, 1, (10, 0, 20, 25), 1)
    held(board, 2, (21, 22, 24, 30), 2, around=1)
    held(board, 3, (21, 26, 31, 35), 3, flags=MAY_OVERTAKE)
    held(board, 3, (32, 0, 33, 34), 4, around=3)
    held(board, 4, (23, 24, 36, 40), 5, around=1)
    held(board, 5, (11, 12, 41, 50), 6)
    assert found(board) == {}


@pytest.mark.parametrize("times", [(24, 29), (37, 45), (39, 52)])
def test_who_may_have_been_inside_and_is_beside_another_is_found(
    board: Board, times: tuple[int, int]
) -> None:
    held(board, 1, (10, 0, 20, 25), 1)
    held(board, 2, (21, 22, 28, 30), 2, around=1)
    held(board, 4, (11, 12, 41, 50), 4)
    token = 2 if times[0] < 28 else 3
    held(board, 3, (21, 23, *times), token, flags=MAY_OVERTAKE)
    assert found(board)["overlap"] > 0


def test_who_overtakes_inside_is_found(board: Board) -> None:
    held(board, 1, (10, 0, 20, 50), 1)
    held(board, 2, (21, 22, 34, 40), 3, around=1)
    held(board, 3, (23, 24, 25, 30), 2, around=1)
    assert found(board) == {"queue order": 1}


def test_who_overtakes_is_found(board: Board) -> None:
    held(board, 1, (10, 12, 40, 50), 2)
    held(board, 2, (13, 14, 20, 30), 1)
    assert found(board) == {"queue order": 1}


def test_who_overtakes_nobody_that_was_queued_before_is_not(board: Board) -> None:
    held(board, 1, (10, 14, 40, 50), 2)
    held(board, 2, (13, 15, 20, 30), 1)
    assert found(board) == {}


def test_token_that_comes_again_is_found(board: Board) -> None:
    held(board, 1, (10, 0, 20, 30), 7)
    held(board, 2, (25, 0, 31, 40), 7)
    assert found(board)["token"] > 0


def test_token_of_an_earlier_round_is_found(board: Board) -> None:
    judge = Judge()
    held(board, 1, (10, 0, 20, 30), 7)
    judge.judge(board)
    board.clear()
    held(board, 1, (50, 0, 60, 70), 6)
    judge.judge(board)
    assert judge.found == {"token": 1}


def test_lost_count_is_found(board: Board) -> None:
    held(board, 1, (10, 0, 20, 30), 1, value=0)
    held(board, 2, (25, 0, 31, 40), 2, value=0)
    assert found(board) == {"counter": 1}


def test_count_of_the_killed_may_be_there_or_not(board: Board) -> None:
    for slot, is_counted in ((1, True), (2, False)):
        index = board.begin(slot, 0, EXCLUSIVE, (10 * slot, 0, 10 * slot + 1), slot)
        board.set_value(slot, index, 0)
        if is_counted:
            board.set_counter(0, 1)
        board.end_all(slot)
        board.set_end(slot, index, 10 * slot + 5)
    assert found(board) == {}


def test_what_was_complained_of_is_found(board: Board) -> None:
    board.complain("lost connection", "a worker")
    assert found(board) == {"lost connection": 1}


def test_who_is_killed_as_it_writes_down_a_conversion_is_not_at_fault(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = MEMORY[0]
    hold = Hold(board, 1, place, SHARED, (1, 0, now()), token=1)
    other = Hold(board, 2, place, SHARED, (2, 0, now()), token=2)
    other.end()
    hold.end()

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(board, "tally", kill)
    with pytest.raises(Killed):
        hold.again(EXCLUSIVE)
    board.end_all(1)
    assert found(board) == {}
