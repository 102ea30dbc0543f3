"""What `lockctl top` knows, and what it makes of that: without a screen or a daemon."""

from collections.abc import Sequence
from typing import Any

import pytest
from rich.cells import cell_len

from lockd.ctl.top.board import Board
from lockd.ctl.top.tables import TABLES, Row, lines_of, matches, sorted_rows
from lockd.terms import ResourceKey

LOCKS, WAITS, HOLDS, SESSIONS = TABLES
KEY = ResourceKey("default", "job")


def party(session: int, **more: Any) -> dict[str, Any]:
    return {
        "name": f"p{session}",
        "pid": session,
        "uid": 0,
        "command": "x",
        "unit": None,
        "session": session,
        "mode": "exclusive",
        "label": None,
        "reason": None,
        **more,
    }


def told(
    holders: list[int], waiters: Sequence[int] = (), name: str = "job"
) -> dict[str, Any]:
    return {
        "lockspace": "default",
        "resource": name,
        "holders": [party(x, fencing_token=x, held_for=10.0) for x in holders],
        "holder_count": len(holders),
        "waiters": [party(x, waited=5.0, converting=False) for x in waiters],
        "waiter_count": len(waiters),
    }


def event(
    what: str, session: int = 1, name: str = "job", **more: Any
) -> dict[str, Any]:
    return {
        "event": what,
        "lockspace": "default",
        "resource": name,
        "session": session,
        "name": f"p{session}",
        "pid": session,
        **more,
    }


def granted(session: int, name: str = "job") -> dict[str, Any]:
    more = {"mode": "exclusive", "fencing_token": session}
    return event("granted", session, name, **more)


def released(session: int) -> dict[str, Any]:
    return event("released", session, fencing_token=session, cause="released")


def rows(board: Board, table: Any, now: float = 100.0) -> list[Row]:
    return sorted_rows(table, list(table.rows(board, now)), table.sort[0], turned=False)


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


def test_hold_over_its_usual_time_is_marked_and_comes_first() -> None:
    board = Board()
    for _ in range(3):
        board.hear(granted(1), 10.0)
        board.hear(released(1), 12.0)
    board.take(told([5], name="old"), 90.0)
    board.hear(granted(2), 90.0)
    found = rows(board, HOLDS)
    assert [(row.cells["NAME"], row.mark) for row in found] == [
        ("job", "!"),
        ("old", " "),
    ]
    assert found[0].cells["OVER"] == 5.0


def test_longest_wait_comes_first() -> None:
    board = Board()
    board.take(told([1], [2, 3]), 50.0)
    board.take(told([4], [5], name="other"), 10.0)
    found = rows(board, WAITS)
    assert [row.cells["WAITER"] for row in found] == ["p5", "p2", "p3"]
    assert found[0].cells["WAITS"] == 95.0


def test_lock_for_which_most_wait_comes_first_and_turned_around_last() -> None:
    board = Board()
    board.take(told([1], [2], name="a"), 10.0)
    board.take(told([1], [2, 3], name="b"), 10.0)
    board.take(told([1], name="c"), 10.0)
    found = rows(board, LOCKS)
    assert [row.cells["NAME"] for row in found] == ["b", "a", "c"]
    turned = sorted_rows(LOCKS, found, "WAIT", turned=True)
    assert [row.cells["NAME"] for row in turned] == ["a", "b", "c"]


def test_only_a_lone_holder_can_be_broken_from_the_list() -> None:
    board = Board()
    board.take(told([1, 2], name="site"), 10.0)
    board.take(told([3], name="job"), 10.0)
    parties = {row.cells["NAME"]: row.party for row in rows(board, LOCKS)}
    assert parties["site"] is None
    assert parties["job"] is not None


def test_filter_finds_any_cell() -> None:
    board = Board()
    board.take(told([77], name="Backup"), 10.0)
    (row,) = rows(board, LOCKS)
    assert matches(row, "backup")
    assert matches(row, "p77")
    assert matches(row, "default:") is False
    assert not matches(row, "nightly")


@pytest.mark.parametrize(
    "name",
    ["x" * 200, "日本語の名前ロック" * 9, "/x" + "ロ" * 99, "e\u0301" * 99, "日本"],
)
def test_every_line_is_as_wide_as_the_screen(name: str) -> None:
    board = Board()
    board.take(told([1], [2], name=name), 10.0)
    board.take_sessions([party(1, held=1, waiting=0, connected_for=3.0)], 10.0)
    for table in TABLES:
        for width in (40, 80, 100, 150, 300):
            heading, lines = lines_of(table.columns, rows(board, table), width)
            assert {cell_len(line) for line in (heading, *lines)} == {width}
            assert len(lines) == 1
            assert heading.split()[0] in {"NAME", "SESSION"}


def test_columns_stay_below_their_headings_where_characters_are_wide() -> None:
    board = Board()
    names = (
        "日本語",
        "/srv/" + "日本語のロック" * 9,
        "日本語の名前ロック" * 9,
        "plain",
    )
    for name in names:
        board.take(told([12345], name=name), 10.0)
    heading, lines = lines_of(LOCKS.columns, rows(board, LOCKS), 80)
    place = heading.index("HELD BY")
    assert {cell_len(line[: line.index("p12345")]) for line in lines} == {place}
    assert any("ロック p12345" in " ".join(line.split()) for line in lines)


@pytest.mark.parametrize("width", [40, 57, 58, 60, 75, 76, 80, 100, 200])
@pytest.mark.parametrize("table", [LOCKS, WAITS, HOLDS])
def test_names_have_room_and_no_column_is_cut(table: Any, width: int) -> None:
    shown = [column for column in table.columns if width >= column.least]
    heading, _ = lines_of(table.columns, [], width)
    assert heading.split() == " ".join(column.title for column in shown).split()
    following = heading.index(shown[1].title, len("  NAME"))
    room = following - shown[1].right * (shown[1].width - len(shown[1].title))
    assert room - len("  ") >= 10


def test_control_characters_do_not_reach_the_terminal() -> None:
    board = Board()
    board.hear({**granted(1, "a"), "name": "x\x1b[31m\n"}, 10.0)
    _, (line,) = lines_of(LOCKS.columns, rows(board, LOCKS), 80)
    assert line.isprintable()


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
