"""The four tables of `lockctl top`: their columns, rows and orders.

Its functions are pure: they take a board and a time, and return lines of text.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from rich.cells import cell_len, set_cell_size

from lockd.ctl.render import Thing, held_by, is_overdue
from lockd.ctl.table import COLUMNS, Column, cells_of, cut, text_of
from lockd.ctl.top.board import Board, LockStatus
from lockd.terms import (
    DEFAULT_LOCKSPACE,
    DIRECT_LOCKSPACE,
    EXCLUSIVE,
    SHARED,
    SLOT,
    ResourceKey,
)


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        id: identifies its lock, wait, hold or session over time.
        cells: the cells by column title; they are sorted unformatted.
        key: its lock; None for a session.
        party: the holder whose lock can be broken.
        mark: the character before it.
    """

    id: object
    cells: dict[str, Any]
    key: ResourceKey | None
    party: Thing | None
    mark: str = " "


class Table(NamedTuple):
    """A table: its name, the columns of its default order, its columns, its rows."""

    name: str
    sort: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: Callable[[Board, float], Iterator[Row]]


def called(key: ResourceKey) -> str:
    """Returns the name of a lock, with its lockspace unless that is a default one."""
    plain_file = key.lockspace == DIRECT_LOCKSPACE and key.resource.startswith("/")
    if plain_file or key.lockspace == DEFAULT_LOCKSPACE:
        return key.resource
    return str(key)


def lines_of(
    columns: Sequence[Column], rows: Sequence[Row], width: int
) -> tuple[str, list[str]]:
    """Returns the heading and the lines of rows, each exactly `width` cells wide."""
    shown = [column for column in columns if width >= column.screen]
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
            _fit(text_of(column, row.cells), wide, right=column.right)
            for column, wide in zip(shown, widths, strict=True)
        )
        for row in rows
    ]
    return set_cell_size(heading, width), [set_cell_size(x, width) for x in lines]


def sorted_rows(table: Table, rows: list[Row], by: str, *, turned: bool) -> list[Row]:
    """Returns rows in the order of a column; rows without a cell there come last.

    Rows with equal cells are in the default order of the table.
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
    """Returns whether a row has a text in any of its cells, ignoring case."""
    found = (str(cell) for cell in row.cells.values() if cell is not None)
    if row.key is not None and wanted in str(row.key).casefold():
        return True
    return any(wanted in text.casefold() for text in found)


def _fit(text: str, width: int, *, right: bool) -> str:
    text = cut(text, width)
    if right:
        return " " * (width - cell_len(text)) + text
    return set_cell_size(text, width)


# The rows.


def _locks(board: Board, now: float) -> Iterator[Row]:
    for lock in board.locks.values():
        first = lock.holders[0] if lock.holders else None
        held = now - first.since if first else None
        over = board.over(lock.key, held) if held is not None else 0
        about: Thing = {} if first is None else cells_of(first.told)
        if first is None and lock.outside is not None:
            about["PID"] = lock.outside["pid"]
        cells = about | {
            "NAME": called(lock.key),
            "HELD BY": _holders(lock),
            "FOR": held,
            "WAIT": lock.waiter_count or None,
            "GRANTS": board.grants(lock.key) or None,
        }
        party = first.told if first and lock.holder_count == 1 else None
        late = any(is_overdue(holder.told) for holder in lock.holders)
        yield Row(lock.key, cells, lock.key, party, "!" if over or late else " ")
    for key, grants in board.ever_granted():
        if key not in board.locks:
            yield Row(key, {"NAME": called(key), "GRANTS": grants}, key, None)


def _waits(board: Board, now: float) -> Iterator[Row]:
    for lock in board.locks.values():
        first = lock.holders[0] if lock.holders else None
        for place, waiter in enumerate(lock.waiters, 1):
            cells = cells_of(waiter.told) | {
                "NAME": called(lock.key),
                "#": place,
                "WAITS": now - waiter.since,
                "WAITER": waiter.told["name"],
                "HELD BY": _holders(lock),
                "FOR": now - first.since if first else None,
            }
            row_id = (lock.key, waiter.told["session"])
            party = first.told if first and lock.holder_count == 1 else None
            yield Row(row_id, cells, lock.key, party)


def _holds(board: Board, now: float) -> Iterator[Row]:
    for lock in board.locks.values():
        for holder in lock.holders:
            held = now - holder.since
            over = board.over(lock.key, held)
            cells = cells_of(holder.told) | {
                "NAME": called(lock.key),
                "HELD BY": holder.told["name"],
                "FOR": held,
                "USUAL": board.usual(lock.key),
                "OVER": over or None,
                "WAIT": lock.waiter_count or None,
            }
            cells |= mode_in_slot(holder.told)
            row_id = (lock.key, holder.told["fencing_token"])
            mark = "!" if over or is_overdue(holder.told) else " "
            yield Row(row_id, cells, lock.key, holder.told, mark)


def mode_in_slot(holder: Thing) -> dict[str, str]:
    """Returns the cell for the mode of a holder that has a slot."""
    slot = holder.get("slot")  # an older daemon does not send it
    return {} if slot is None else {"MODE": f"{SLOT} {slot}"}


def _sessions(board: Board, now: float) -> Iterator[Row]:
    for session in board.sessions or ():
        told = session.told
        cells = cells_of(told) | {
            "SESSION": told["session"],
            "HELD": told["held"] or None,
            "WAITING": told["waiting"] or None,
            "CONNECTED": now - session.since,
        }
        yield Row(told["session"], cells, None, None)


def _holders(lock: LockStatus) -> str | None:
    first = lock.holders[0].told if lock.holders else None
    if first is not None and first.get("mode") == SLOT and lock.slots is not None:
        removed = f" +{lock.slots_removed}" if lock.slots_removed else ""
        return f"{lock.slots_taken} of {lock.slots}{removed}: {first['name']}"
    return held_by(first, lock.holder_count, lock.outside)


# The widths from which a screen has room for more columns.
_SMALL: Final = 58
_USUAL: Final = 76
_WIDE: Final = 100
_WIDER: Final = 130


def picked(*wanted: str | tuple[str, int] | Column) -> tuple[Column, ...]:
    """Returns columns by title; a pair also has the least width of the screen."""
    return tuple(x if isinstance(x, Column) else _as_shown(x) for x in wanted)


def _as_shown(wanted: str | tuple[str, int]) -> Column:
    title, screen = (wanted, 0) if isinstance(wanted, str) else wanted
    column = COLUMNS[title]._replace(screen=screen)
    # A mode is short, to save space.
    return column._replace(show=_short) if title == "MODE" else column


def _short(mode: str) -> str:
    return {SHARED: "shared", EXCLUSIVE: "excl"}.get(mode, mode)


TABLES: Final = (
    Table(
        "locks", ("WAIT", "GRANTS", "NAME"),
        picked(
            "NAME", "HELD BY", ("PID", _SMALL), ("USER", _USUAL), "FOR", "WAIT",
            ("GRANTS", _SMALL), ("REASON", _WIDE), ("UNIT", _WIDER),
        ),
        _locks,
    ),
    Table(
        "waits", ("WAITS", "NAME"),
        picked(
            "NAME", "#", "WAITER", ("PID", _SMALL), "WAITS", ("MODE", _USUAL),
            COLUMNS["HELD BY"]._replace(screen=_SMALL, width=12), ("FOR", _USUAL),
            ("REASON", _WIDE), ("UNIT", _WIDER),
        ),
        _waits,
    ),
    Table(
        "holds", ("OVER", "FOR", "NAME"),
        picked(
            "NAME", "HELD BY", ("PID", _SMALL), "FOR", ("USUAL", _SMALL), "OVER",
            ("WAIT", _USUAL), ("MODE", _USUAL), ("REASON", _WIDE), ("UNIT", _WIDER),
            ("INSIDE", _WIDER),
        ),
        _holds,
    ),
    Table(
        "sessions", ("HELD", "CONNECTED"),
        picked(
            "SESSION", "NAME", ("PID", _SMALL), ("USER", _USUAL), "CONNECTED", "HELD",
            "WAITING", ("COMMAND", _WIDE), ("UNIT", _WIDER),
        ),
        _sessions,
    ),
)  # fmt: skip
"""The tables, in the order of their keys: 1, 2, 3, 4."""
