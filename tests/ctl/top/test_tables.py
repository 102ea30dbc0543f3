"""What `lockctl top` shows of a board, without a screen."""

from typing import Any

import pytest
from rich.cells import cell_len

from ctl.top.said import (
    HOLDS,
    LOCKS,
    WAITS,
    event,
    granted,
    party,
    released,
    rows,
    told,
)
from lockd.ctl.top.board import Board
from lockd.ctl.top.tables import TABLES, lines_of, matches, sorted_rows


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


def test_lock_with_slots_tells_how_many_are_taken() -> None:
    board = Board()
    slots = {"mode": "slot", "slot": 2}
    one = told([1, 2, 3], name="gpu") | {"slots": 4, "slots_taken": 3}
    one["holders"] = [holder | slots for holder in one["holders"]]
    board.take(one, 10.0)
    (row,) = rows(board, LOCKS)
    assert row.cells["HELD BY"] == "3 of 4: p1"
    assert [row.cells["MODE"] for row in rows(board, HOLDS)] == 3 * ["slot 2"]
    # What a grant says by itself counts, too.
    board.hear(granted(5, name="cpu") | slots | {"slots": 8}, 11.0)
    found = {row.cells["NAME"]: row.cells["HELD BY"] for row in rows(board, LOCKS)}
    assert found["cpu"] == "1 of 8: p5"


def test_slot_inside_a_slot_is_taken_once() -> None:
    board = Board()
    slot = {"mode": "slot", "slot": 0, "slots": 2}
    board.hear(granted(1, name="gpu") | slot, 10.0)
    board.hear(granted(2, name="gpu") | slot | {"inside": [1]}, 11.0)
    (row,) = rows(board, LOCKS)
    assert row.cells["HELD BY"] == "1 of 2: p1"
    board.hear(event("released", 1, "gpu", fencing_token=1, **slot), 12.0)
    (row,) = rows(board, LOCKS)
    assert row.cells["HELD BY"] == "1 of 2: p2"


def test_removed_slots_are_told_apart() -> None:
    board = Board()
    one = told([1, 2, 3], name="gpu")
    one["holders"] = [
        holder | {"mode": "slot", "slot": slot}
        for slot, holder in enumerate(one["holders"])
    ]
    board.take(one | {"slots": 2, "slots_taken": 2, "slots_removed": 1}, 10.0)
    (row,) = rows(board, LOCKS)
    assert row.cells["HELD BY"] == "2 of 2 +1: p1"
    # Until the daemon says more, an event counts.
    gone = {"fencing_token": 1, "slot": 0, "slots": 2, "cause": "released"}
    board.hear(event("released", 1, "gpu", **gone), 11.0)
    (row,) = rows(board, LOCKS)
    assert row.cells["HELD BY"] == "1 of 2 +1: p2"
    gone |= {"fencing_token": 3, "slot": 2}
    board.hear(event("released", 3, "gpu", **gone), 12.0)
    (row,) = rows(board, LOCKS)
    assert row.cells["HELD BY"] == "1 of 2: p2"


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
    shown = [column for column in table.columns if width >= column.screen]
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
