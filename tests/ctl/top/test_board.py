"""What `lockctl top` knows of locks, by listings and events."""

import pytest

from ctl.top.said import HOLDS, KEY, LOCKS, event, granted, released, rows, told
from lockd.ctl.top.board import Board


def test_events_move_the_queue_on() -> None:
    board = Board()
    board.take(told([1], [2, 3]), 10.0)
    board.hear(released(1), 11.0)
    board.hear(granted(2), 11.0)
    lock = board.locks[KEY]
    assert [x.told["session"] for x in lock.holders] == [2]
    assert [x.told["session"] for x in lock.waiters] == [3]
    assert (lock.holder_count, lock.waiter_count) == (1, 1)
    assert lock.vague


def test_a_waiter_that_is_granted_keeps_what_it_said_of_itself() -> None:
    board = Board()
    board.take(told([1], [2]), 10.0)
    board.hear(released(1), 11.0)
    board.hear(granted(2), 11.0)
    assert board.locks[KEY].holders[0].told["command"] == "x"


def test_queue_of_which_not_all_are_known_is_counted() -> None:
    board = Board()
    board.take({**told([1], [2]), "waiter_count": 1_000}, 10.0)
    board.hear(released(1), 11.0)
    board.hear(granted(7), 11.0)
    assert board.locks[KEY].waiter_count == 999


def test_what_was_heard_since_it_was_asked_for_counts() -> None:
    board = Board()
    board.hear(event("waiting", 7), 10.2)
    # On its way while that happened: the answer does not have it.
    board.take(told([1]), 10.4, 10.0)
    lock = board.locks[KEY]
    assert [x.told["session"] for x in lock.waiters] == [7]
    assert lock.vague
    board.take(told([1], [7]), 10.6, 10.5)
    assert (lock.holder_count, lock.waiter_count) == (1, 1)
    assert not lock.vague


def test_event_that_a_listing_had_already_counts_once() -> None:
    board = Board()
    board.take(told([1]), 10.0)
    board.hear(granted(1), 10.1)
    assert board.locks[KEY].holder_count == 1


def test_lock_that_nobody_holds_or_wants_is_forgotten_but_not_that_it_was_hot() -> None:
    board = Board()
    for _ in range(3):
        board.hear(granted(1), 10.0)
        board.hear(released(1), 11.0)
    assert board.locks == {}
    (row,) = rows(board, LOCKS)
    assert (row.cells["NAME"], row.cells["GRANTS"]) == ("job", 3)


def test_refusals_and_ends_of_what_is_unknown_are_nothing() -> None:
    board = Board()
    board.hear(event("refused", code="busy"), 10.0)
    board.hear(released(1), 10.0)
    board.hear(event("lost", fencing_token=3, cause="broken", mode="shared"), 10.0)
    assert board.locks == {}


def test_overdue_lock_has_a_mark_until_its_end() -> None:
    board = Board()
    board.take(told([1]), 10.0)
    board.hear(event("overdue", fencing_token=1, mode="exclusive"), 20.0)
    for rows_of in (LOCKS, HOLDS):
        assert [row.mark for row in rows(board, rows_of)] == ["!"]
    board.hear(released(1), 21.0)
    board.hear(event("overdue", fencing_token=1, mode="exclusive"), 21.0)
    assert board.locks == {}


def test_usual_time_is_that_of_the_holds_that_were_seen() -> None:
    board = Board()
    for _ in range(3):
        board.hear(granted(1), 10.0)
        board.hear(released(1), 14.0)
    assert board.usual(KEY) == 4.0
    assert board.over(KEY, 7.9) == 0
    assert board.over(KEY, 12.0) == 3.0


def test_a_hold_or_two_do_not_tell_what_is_usual() -> None:
    board = Board()
    for _ in range(2):
        board.hear(granted(1), 10.0)
        board.hear(released(1), 10.009)
    assert board.usual(KEY) is None
    assert board.over(KEY, 135.0) == 0
    board.hear(granted(1), 20.0)
    board.hear(released(1), 20.009)
    assert board.over(KEY, 135.0) > 0


def test_hold_of_the_last_holder_counts_though_it_was_not_seen() -> None:
    board = Board()
    last = {"held_for": 3.0, "name": "x", "pid": 1, "ended": "released"}
    board.take({**told([1]), "last_holder": last}, 10.0)
    board.hear(released(1), 10.0)
    assert board.usual(KEY) is None
    board.hear(granted(2), 20.0)
    board.hear(released(2), 22.0)
    assert board.usual(KEY) == 3.0


@pytest.mark.parametrize("known", [True, False])
def test_who_gives_up_waits_no_more(known: bool) -> None:
    board = Board()
    board.take({**told([1], [2, 3]), "waiter_count": 9}, 10.0)
    board.hear(event("refused", 3 if known else 7, code="timeout"), 11.0)
    lock = board.locks[KEY]
    assert lock.waiter_count == 8
    assert [x.told["session"] for x in lock.waiters] == ([2] if known else [2, 3])


def test_who_did_not_want_to_wait_leaves_the_queue_alone() -> None:
    board = Board()
    board.take({**told([1], [2]), "waiter_count": 9}, 10.0)
    board.hear(event("refused", 7, code="busy"), 11.0)
    assert board.locks[KEY].waiter_count == 9


def test_daemon_that_counts_fewer_who_wait_is_noticed() -> None:
    board = Board()
    board.take(told([1], [2, 3]), 10.0)
    assert board.gone == 0  # it has not counted yet
    board.facts = {"waiting": 1}
    assert board.gone == 1
    board.facts = {"waiting": 5}  # some may wait where we may not look
    assert board.gone == 0


def test_what_another_daemon_serves_now_is_forgotten_but_not_what_was() -> None:
    board = Board()
    for _ in range(3):
        board.hear(granted(1), 10.0)
        board.hear(released(1), 12.0)
    board.hear(granted(2), 13.0)
    board.forget_all()
    assert board.locks == {}
    assert board.usual(KEY) == 2.0


def test_listing_that_lacks_a_lock_ends_it() -> None:
    board = Board()
    board.take(told([1], name="gone"), 10.0)
    board.take(told([1], name="here"), 20.0)
    board.forget_unheard(15.0)
    assert [key.resource for key in board.locks] == ["here"]


def test_listing_that_lacks_what_was_heard_of_before_ends_it_too() -> None:
    board = Board()
    board.hear(event("waiting", 1, "gone"), 10.0)
    board.hear(event("waiting", 1, "since"), 16.0)
    board.forget_unheard(15.0)
    assert [key.resource for key in board.locks] == ["since"]
