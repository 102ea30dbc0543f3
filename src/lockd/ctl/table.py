"""The columns of all tables of lockctl, and the printing of tables.

It describes each column once, for the commands and for `lockctl top`. A row is a map
from titles of columns to cells.

rich is loaded only for a terminal: loading it takes longer than taking a lock.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lockd.ctl.render import Thing, clock, inside_of, purpose, since, user
from lockd.ctl.streams import draw
from lockd.names import plain
from lockd.text import duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Cells = Mapping[str, Any]
"""A row. A cell that is None or missing is shown as `-`."""


class Column(NamedTuple):
    """A column.

    A command makes a column as wide as its longest cell, and narrower on a narrow
    terminal. `top` has fixed widths, so that nothing moves.

    Attributes:
        title: its heading.
        show: returns the text of a cell.
        least: the width to which a command may cut it; None: never.
        optional: whether a command omits it if all its cells are empty.
        width: its width in `top`; 0: it shares the remaining width.
        right: whether `top` aligns it to the right.
        down: whether `top` sorts the greatest cell to the top.
        screen: how wide the screen must be for `top` to show it.
    """

    title: str
    show: Callable[[Any], str] = str
    least: int | None = None
    optional: bool = False
    width: int = 0
    right: bool = False
    down: bool = False
    screen: int = 0


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


# Commands omit these, in this order, if a table is still too wide after cutting.
_DISPENSABLE: Final = (
    Column("UUID", optional=True),
    Column("CLIENT", least=8, optional=True),
    Column("COMMAND", least=12, optional=True),
    Column("UNIT", least=12, optional=True, width=16),
    Column("SINCE", since),
    Column("USER", width=8),
    Column("REASON", least=11, optional=True),
    Column("LOCKSPACE"),
    Column("FOR", duration, width=6, right=True, down=True),
    Column("MODE", width=6),
    Column("CONNECTED", duration, width=9, right=True, down=True),
    Column("PLACE"),
    Column("PID", width=7, right=True),
    Column("WAITING", width=7, right=True, down=True),
    Column("WHEN", clock),
)

# Commands always show these.
_NEEDED: Final = (
    Column("#", width=4, right=True),
    Column("BEHIND", least=12),
    Column("EVENT", least=8),
    Column("FILE SYSTEM"),
    Column("GRANTS", width=7, right=True, down=True),
    Column("GUEST"),
    Column("GUEST PID"),
    Column("HELD", width=6, right=True, down=True),
    Column("HELD BY", least=8, width=14),
    Column("HOLDERS"),
    Column("INSIDE", optional=True, width=15, right=True),
    Column("KIND"),
    Column("LOCKED", least=16),
    Column("NAME", least=12),
    Column("ON DISCONNECT"),
    Column("OVER", _times, width=6, right=True, down=True),
    Column("OVERDUE", optional=True),
    Column("PATH", least=12, optional=True),
    Column("SESSION", width=7, right=True),
    Column("SLOT", optional=True, width=4, right=True),
    Column("SLOTS", least=8, optional=True),
    Column("STATE", least=12, width=12),
    Column("TOKEN", optional=True, width=15, right=True),
    Column("UNDER", least=16, optional=True),
    Column("USUAL", duration, width=6, right=True, down=True),
    Column("VIRTLOCKD"),
    Column("WAIT", width=5, right=True, down=True),
    Column("WAITER", width=12),
    Column("WAITS", duration, width=6, right=True, down=True),
)

COLUMNS: Final = {column.title: column for column in (*_DISPENSABLE, *_NEEDED)}
"""All columns by title."""

_NARROWEST: Final = 6
"""The width to which text is cut if there is too little room even for `least`."""


def cells_of(party: Thing) -> dict[str, Any]:
    """Returns the cells for a holder, waiter or session.

    An event or a lock outside lockd has fewer fields than a listing: the rest is None.
    """
    uid = party.get("uid")
    return {
        "NAME": party.get("name"),
        "PID": party.get("pid"),
        "USER": None if uid is None else user(uid),
        "COMMAND": party.get("command"),
        "UNIT": party.get("unit"),
        "MODE": party.get("mode"),
        "REASON": purpose(party),
        "INSIDE": inside_of([party]),
    }


def text_of(column: Column, row: Cells) -> str:
    """Returns the text of a cell, safe to print."""
    return _text(row.get(column.title), column.show)


def show_table(titles: Sequence[str], rows: Iterable[Cells], *, empty: str) -> None:
    """Prints one row per line.

    A terminal gets a heading, and `empty` if there are no rows. It omits columns that
    are empty or do not fit. Piped output has only the rows, with one tab between
    columns.

    Args:
        titles: the columns, in order.
        rows: their cells.
        empty: the sentence for a terminal if there are no rows.
    """
    columns = [COLUMNS[title] for title in titles]
    lines = ([text_of(column, row) for column in columns] for row in rows)
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(line) + "\n" for line in lines)
        return
    shown = list(lines)
    if shown:
        _draw(columns, shown)
    elif empty:
        print(empty)


def show_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Prints one fact per line: its name and its value; piped, with one tab between."""
    lines = [[plain(name), _text(value)] for name, value in facts]
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(line) + "\n" for line in lines)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    _print(Console(), table)


def cut(text: str, width: int) -> str:
    """Cuts text that is too wide, and marks the cut.

    A path is cut at its beginning, because its end says more; a name before its `+1`.
    """
    from rich.cells import cell_len, set_cell_size

    excess = cell_len(text) - width
    if excess <= 0:
        return text
    if text.startswith("/"):
        return "…" + text[len(set_cell_size(text, excess + 1)) :]
    name, _, more = text.rpartition(" +")
    if name and more.isdecimal():
        return f"{set_cell_size(name, width - len(more) - 3)}… +{more}"
    return set_cell_size(text, width - 1) + "…"


def _text(cell: object, show: Callable[[Any], str] = str) -> str:
    return "-" if cell is None or cell == "" else plain(show(cell))


def _draw(columns: Sequence[Column], lines: list[list[str]]) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = {
        column: max(cell_len(column.title), *(cell_len(line[place]) for line in lines))
        for place, column in enumerate(columns)
        if not column.optional or any(line[place] != "-" for line in lines)
    }
    _fit(widths, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, width in widths.items():
        table.add_column(column.title, width=width, no_wrap=True, overflow="ellipsis")
    picked = [place for place, column in enumerate(columns) if column in widths]
    for line in lines:
        # Text, because a client's name may look like rich's markup.
        cells = zip(picked, widths.values(), strict=True)
        table.add_row(*(Text(cut(line[place], width)) for place, width in cells))
    _print(console, table)


def _print(console: "Console", table: "Table") -> None:
    # The cells are escaped. rich adds codes for the terminal.
    with console.capture() as drawn:
        console.print(table)
    draw(drawn.get())


def _fit(widths: dict[Column, int], room: int) -> None:
    """Makes columns narrower, and omits some, until they fit."""
    for column in (None, *_DISPENSABLE):
        if column is not None:
            widths.pop(column, None)
        excess = sum(widths.values()) + 2 * (len(widths) - 1) - room
        spare = _spare(widths)
        if excess <= sum(spare.values()):
            break
    else:
        spare = _spare(widths, _NARROWEST)
    # Narrow the widest first.
    while excess > 0 and spare:
        widest = max(spare, key=lambda x: (widths[x], spare[x]))
        widths[widest] -= 1
        excess -= 1
        spare[widest] -= 1
        if not spare[widest]:
            del spare[widest]


def _spare(widths: dict[Column, int], least: int | None = None) -> dict[Column, int]:
    """Returns the columns that can be narrower, and by how much."""
    spare = {
        column: width - (column.least if least is None else least)
        for column, width in widths.items()
        if column.least is not None
    }
    return {column: cells for column, cells in spare.items() if cells > 0}
