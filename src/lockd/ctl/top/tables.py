"""What `lockctl top` shows of a board: four tables, their columns, how they are sorted.

Pure: a board and a moment in, lines of text out.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from rich.cells import cell_len, set_cell_size

from lockd.ctl import render
from lockd.ctl.top.board import Board, Lock, Map
from lockd.names import plain
from lockd.terms import DEFAULT_LOCKSPACE, DIRECT_LOCKSPACE, SHARED, ResourceKey
from lockd.text import duration


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        id: stays the same while the line is about the same thing.
        cells: what is compared when the table is sorted, by the columns' titles.
        key: the lock that it is about; None of a session.
        party: the one that it is about: whose lock would be broken.
        mark: what stands before it.
    """

    id: object
    cells: dict[str, Any]
    key: ResourceKey | None
    party: Map | None
    mark: str = " "


class Column(NamedTuple):
    """A column: how wide, and how its cells are shown.

    Attributes:
        title: its heading.
        width: in cells; 0: it shares what the others leave.
        show: makes text of a cell.
        right: whether the text stands at the right.
        least: how wide the screen must be for this column to be there.
        down: whether the greatest cell comes first where it is sorted by.
    """

    title: str
    width: int
    show: Callable[[Any], str] = str
    right: bool = False
    least: int = 0
    down: bool = False


class Table(NamedTuple):
    """A table: its name, by which columns it is sorted, its columns, its lines."""

    name: str
    sort: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: Callable[[Board, float], Iterator[Row]]


def called(key: ResourceKey) -> str:
    """Returns how a lock is called: its lockspace is named if it is no usual one."""
    plain_file = key.lockspace == DIRECT_LOCKSPACE and key.resource.startswith("/")
    if plain_file or key.lockspace == DEFAULT_LOCKSPACE:
        return key.resource
    return str(key)


def lines_of(
    columns: Sequence[Column], rows: Sequence[Row], width: int
) -> tuple[str, list[str]]:
    """Returns the heading and the lines of rows, each exactly so many cells wide."""
    shown = [column for column in columns if width >= column.least]
    shares = [column for column in shown if not column.width]
    fixed = sum(column.width for column in shown) + len(shown) - 1
    share = max((width - 2 - fixed) // max(len(shares), 1), 4)
    widths = [column.width or share for column in shown]
    heading = "  " + " ".join(
        _fit(column.title, wide, right=column.right)
        for column, wide in zip(shown, widths, strict=True)
    )
    lines = [
        row.mark
        + " "
        + " ".join(
            _fit(text_of(column, row), wide, right=column.right)
            for column, wide in zip(shown, widths, strict=True)
        )
        for row in rows
    ]
    return set_cell_size(heading, width), [set_cell_size(x, width) for x in lines]


def sorted_rows(table: Table, rows: list[Row], by: str, *, turned: bool) -> list[Row]:
    """Returns rows in the order of a column; those without a cell there come last.

    Where that leaves it open the order is that in which the table is sorted at first.
    """
    for title in reversed(table.sort):
        rows = _ordered(table, rows, title, turned=False)
    return _ordered(table, rows, by, turned=turned)


def _ordered(table: Table, rows: list[Row], by: str, *, turned: bool) -> list[Row]:
    column = next(column for column in table.columns if column.title == by)
    filled = [row for row in rows if row.cells.get(by) is not None]
    empty = [row for row in rows if row.cells.get(by) is None]
    filled.sort(key=lambda row: row.cells[by], reverse=column.down != turned)
    return filled + empty


def matches(row: Row, wanted: str) -> bool:
    """Tells whether a row has a text in any of its cells, whatever the case."""
    found = (str(cell) for cell in row.cells.values() if cell is not None)
    if row.key is not None and wanted in str(row.key).casefold():
        return True
    return any(wanted in text.casefold() for text in found)


def text_of(column: Column, row: Row) -> str:
    """Returns what a row has in a column, as it may stand on a terminal."""
    cell = row.cells.get(column.title)
    return "-" if cell is None or cell == "" else plain(column.show(cell))


def _fit(text: str, width: int, *, right: bool) -> str:
    size = cell_len(text)
    if size > width:
        if text[0] == "/":
            # Of a path the end says more.
            text = "…" + text[len(set_cell_size(text, size - width + 1)) :]
        else:
            text = set_cell_size(text, width - 1) + "…"
    if right:
        return " " * (width - cell_len(text)) + text
    return set_cell_size(text, width)


# The rows.


def _locks(board: Board, now: float) -> Iterator[Row]:
    for lock in board.locks.values():
        first = lock.holders[0] if lock.holders else None
        held = now - first.since if first else None
        over = board.over(lock.key, held) if held is not None else 0
        cells: dict[str, Any] = {
            "NAME": called(lock.key),
            "HELD BY": _holders(lock),
            "FOR": held,
            "WAIT": lock.waiter_count or None,
            "GRANTS": board.grants(lock.key) or None,
        }
        if first is not None:
            cells |= _who(first.told)
        elif lock.outside is not None:
            cells["PID"] = lock.outside["pid"]
        party = first.told if first and lock.holder_count == 1 else None
        yield Row(lock.key, cells, lock.key, party, "!" if over else " ")
    for key, grants in board.ever_granted():
        if key not in board.locks:
            yield Row(key, {"NAME": called(key), "GRANTS": grants}, key, None)


def _waits(board: Board, now: float) -> Iterator[Row]:
    for lock in board.locks.values():
        first = lock.holders[0] if lock.holders else None
        for place, waiter in enumerate(lock.waiters, 1):
            cells: dict[str, Any] = {
                "NAME": called(lock.key),
                "#": place,
                "WAITS": now - waiter.since,
                "WAITER": waiter.told["name"],
                "HELD BY": _holders(lock),
                "FOR": now - first.since if first else None,
            }
            row_id = (lock.key, waiter.told["session"])
            party = first.told if first and lock.holder_count == 1 else None
            yield Row(row_id, cells | _who(waiter.told), lock.key, party)


def _holds(board: Board, now: float) -> Iterator[Row]:
    for lock in board.locks.values():
        for holder in lock.holders:
            held = now - holder.since
            over = board.over(lock.key, held)
            cells: dict[str, Any] = {
                "NAME": called(lock.key),
                "HELD BY": holder.told["name"],
                "FOR": held,
                "USUAL": board.usual(lock.key),
                "OVER": over or None,
                "WAIT": lock.waiter_count or None,
            }
            row_id = (lock.key, holder.told["fencing_token"])
            mark = "!" if over else " "
            yield Row(row_id, cells | _who(holder.told), lock.key, holder.told, mark)


def _sessions(board: Board, now: float) -> Iterator[Row]:
    for session in board.sessions or ():
        told = session.told
        cells: dict[str, Any] = {
            "SESSION": told["session"],
            "NAME": told["name"],
            "HELD": told["held"] or None,
            "WAITS": told["waiting"] or None,
            "CONNECTED": now - session.since,
            "COMMAND": told["command"],
            "UNIT": told["unit"],
        }
        yield Row(told["session"], cells | _who(told), None, None)


def _holders(lock: Lock) -> str | None:
    if not lock.holders:
        if lock.outside is None:
            return None
        return render.obstacle(lock.outside | {"pid": None})
    more = lock.holder_count - 1
    name: str = lock.holders[0].told["name"]
    return f"{name} +{more}" if more else name


def _who(told: Map) -> dict[str, Any]:
    """Returns the cells about a person; an event says less than a listing does."""
    uid = told.get("uid")
    return {
        "PID": told["pid"],
        "USER": None if uid is None else _user(uid),
        "MODE": "shared" if told.get("mode") == SHARED else "excl",
        "REASON": render.purpose({"label": None, "reason": None, **told}),
        "UNIT": told.get("unit"),
        "COMMAND": told.get("command"),
    }


_user = lru_cache(maxsize=1_000)(render.user)


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


# From how many cells on there is room for more than what a table is about, and a name.
_SMALL: Final = 58
_USUAL: Final = 76
_WIDE: Final = 100

_NAME: Final = Column("NAME", 0)
_PID: Final = Column("PID", 7, right=True, least=_SMALL)
_USER: Final = Column("USER", 8, least=_USUAL)
_FOR: Final = Column("FOR", 6, duration, right=True, down=True)
_MODE: Final = Column("MODE", 6, least=_USUAL)
_REASON: Final = Column("REASON", 0, least=_WIDE)
_UNIT: Final = Column("UNIT", 16, least=_WIDE + 30)

TABLES: Final = (
    Table(
        "locks", ("WAIT", "GRANTS", "NAME"),
        (
            _NAME, Column("HELD BY", 14), _PID, _USER, _FOR,
            Column("WAIT", 5, right=True, down=True),
            Column("GRANTS", 7, right=True, down=True, least=_SMALL), _REASON, _UNIT,
        ),
        _locks,
    ),
    Table(
        "waits", ("WAITS", "NAME"),
        (
            _NAME, Column("#", 4, right=True), Column("WAITER", 12), _PID,
            Column("WAITS", 6, duration, right=True, down=True), _MODE,
            Column("HELD BY", 12, least=_SMALL), _FOR._replace(least=_USUAL),
            _REASON, _UNIT,
        ),
        _waits,
    ),
    Table(
        "holds", ("OVER", "FOR", "NAME"),
        (
            _NAME, Column("HELD BY", 14), _PID, _FOR,
            Column("USUAL", 6, duration, right=True, down=True, least=_SMALL),
            Column("OVER", 6, _times, right=True, down=True),
            Column("WAIT", 5, right=True, down=True, least=_USUAL), _MODE,
            _REASON, _UNIT,
        ),
        _holds,
    ),
    Table(
        "sessions", ("HELD", "CONNECTED"),
        (
            Column("SESSION", 7, right=True), _NAME, _PID, _USER,
            Column("CONNECTED", 9, duration, right=True, down=True),
            Column("HELD", 6, right=True, down=True),
            Column("WAITS", 5, right=True, down=True),
            Column("COMMAND", 0, least=_WIDE), _UNIT,
        ),
        _sessions,
    ),
)  # fmt: skip
"""The tables, in the order of their keys: 1, 2, 3, 4."""
