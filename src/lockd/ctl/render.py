"""How lockctl shows things: a table on a terminal, tabs when piped, or JSON.

rich is loaded only to draw on a terminal: it costs more time than a lock does.
"""

import pwd
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from lockd.ctl.streams import UnwrittenError, draw
from lockd.names import plain
from lockd.terms import ResourceKey

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = Sequence[object]

#: What may be cut short where the terminal is too narrow, and to how many cells.
_LEAST: Final = {
    "COMMAND": 12,
    "REASON": 11,
    "UNIT": 12,
    "CLIENT": 8,
    "HELD BY": 8,
    "NAME": 12,
    "LOCKED": 16,
    "PATH": 12,
    "BEHIND": 12,
    "UNDER": 16,
    "STATE": 12,
    "EVENT": 8,
}

#: What is left out, in this order, where that is not enough: a number goes whole.
_DISPENSABLE: Final = (
    *("UUID", "CLIENT", "COMMAND", "UNIT", "SINCE", "USER", "REASON", "LOCKSPACE"),
    *("FOR", "MODE", "CONNECTED", "PLACE", "PID", "WAITING", "WHEN"),
)

_NARROWEST: Final = 6
"""To how many cells text is cut where there is no room even for that."""

#: What is left out where nobody has one.
_OPTIONAL: Final = {
    *("UUID", "UNIT", "REASON", "CLIENT", "COMMAND", "TOKEN", "PATH", "UNDER")
}

VERSION: Final = 1
"""Of the shapes in docs/json.md; it rises when something in them goes or changes."""


def show_table(columns: Sequence[str], rows: Iterable[Row], *, empty: str) -> None:
    """Shows one record per line.

    On a terminal there is a heading, some columns are left out where nobody has such a
    thing or there is no room, and `empty` is said if there are no rows. Piped, there
    are only the rows, with one tab between columns.

    Args:
        columns: their headings.
        rows: their cells; None is shown as `-`.
        empty: the sentence that is said on a terminal when there is nothing to show.
    """
    lines = ([_cell(value) for value in row] for row in rows)
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(line) + "\n" for line in lines)
        return
    shown = list(lines)
    if shown:
        _draw(columns, shown)
    elif empty:
        print(empty)


def show_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Shows one fact per line: what it is, and its value; piped, with one tab between.

    Values are shown as the cells of `show_table` are.
    """
    lines = [[plain(name), _cell(value)] for name, value in facts]
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


def show_json(**things: Any) -> None:
    """Shows named things as one JSON object, with the version of its shape.

    Indented on a terminal; piped it is one line. Nothing is written before all is
    known: who reads it gets the whole object, or none.
    """
    if sys.stdout.isatty():
        whole = {name: _whole(thing) for name, thing in things.items()}
        print(to_json({"version": VERSION} | whole, indent=2))
        return
    # Of very many things the text takes less room than they do.
    text = [f'{{"version": {VERSION}']
    for name, thing in things.items():
        text.append(f', "{name}": ')
        if isinstance(thing, Iterator):
            text.append("[")
            for number, each in enumerate(thing):
                text.append(", " * (number > 0) + to_json(each))
            text.append("]")
        else:
            text.append(to_json(thing))
    text.append("}\n")
    sys.stdout.writelines(text)


def to_json(thing: Any, *, indent: int | None = None) -> str:
    """Returns JSON that standard output can take, whatever its encoding is.

    What a terminal would act upon is escaped as JSON has it, so nothing of it is lost.
    """
    import json

    unicode = sys.stdout.encoding.lower() == "utf-8"
    text = json.dumps(thing, indent=indent, ensure_ascii=not unicode)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text
    )


def _whole(thing: Any) -> Any:
    return list(thing) if isinstance(thing, Iterator) else thing


def say(sentence: str) -> None:
    """Says something to the person at the terminal, if there still is one."""
    with suppress(OSError, UnwrittenError):
        print(f"lockctl: {plain(sentence)}", file=sys.stderr, flush=True)


def since(seconds: float) -> str:
    """Returns a moment, given in seconds since 1970, in local time."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def clock(seconds: float) -> str:
    """Returns a moment, given in seconds since 1970, as a time of this day if it is."""
    moment = datetime.fromtimestamp(seconds)
    today = moment.date() == datetime.now().date()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def ordinal(number: int) -> str:
    """Returns `1st`, `2nd`, `3rd`, `4th`, ..."""
    teen = number % 100 in (11, 12, 13)
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


@cache
def user(uid: int) -> str:
    """Returns the name of a user; the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def purpose(party: Mapping[str, Any]) -> str | None:
    """Returns what a holder or waiter says about its lock: label and reason."""
    return ": ".join(filter(None, (party["label"], party["reason"]))) or None


def outsider(program: str | None, pid: int | None, where: str = "outside lockd") -> str:
    """Returns who locks a file past lockd, as far as that is known."""
    known = f" (pid {pid})" if pid else ""
    return f"{plain(program or 'a process')}{known} {where}"


def obstacle(outside: Mapping[str, Any]) -> str:
    """Returns who locks a file that somebody waits for, as the daemon tells it.

    That is a process past lockd, or a holder in lockd under another name of the file.
    """
    name = other_name(outside)
    where = "outside lockd" if name is None else f"as {plain(name)}"
    return outsider(outside["command"], outside["pid"], where)


def other_name(outside: Mapping[str, Any]) -> str | None:
    """Returns under which other name a file is held in lockd; None if past it."""
    if outside.get("resource") is None:
        return None
    return str(ResourceKey(outside["lockspace"], outside["resource"]))


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else plain(str(value))


def _draw(columns: Sequence[str], lines: list[list[str]]) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = {
        column: max(cell_len(column), *(cell_len(line[number]) for line in lines))
        for number, column in enumerate(columns)
        if column not in _OPTIONAL or any(line[number] != "-" for line in lines)
    }
    _fit(widths, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, width in widths.items():
        table.add_column(column, width=width, no_wrap=True, overflow="ellipsis")
    picked = [number for number, column in enumerate(columns) if column in widths]
    for line in lines:
        # Text, as what a client calls itself may look like rich's markup.
        cells = zip(picked, widths.values(), strict=True)
        table.add_row(*(Text(_cut(line[number], width)) for number, width in cells))
    _print(console, table)


def _print(console: "Console", table: "Table") -> None:
    # The cells are escaped; what rich adds to them is for the terminal.
    with console.capture() as drawn:
        console.print(table)
    draw(drawn.get())


def _cut(text: str, width: int) -> str:
    """Cuts a path at its beginning, as its end says more, and a name before its `+1`.

    Other text is cut later.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    if text.startswith("/"):
        return "…" + text[1 - width :]
    name, _, more = text.rpartition(" +")
    if name and more.isdecimal():
        return f"{set_cell_size(name, width - len(more) - 3)}… +{more}"
    return text


def _fit(widths: dict[str, int], room: int) -> None:
    """Makes columns narrower, and leaves some out, until they fit."""
    for column in (None, *_DISPENSABLE):
        if column is not None:
            widths.pop(column, None)
        excess = sum(widths.values()) + 2 * (len(widths) - 1) - room
        spare = _spare(widths, _LEAST)
        if excess <= sum(spare.values()):
            break
    else:
        spare = _spare(widths, dict.fromkeys(_LEAST, _NARROWEST))
    # The widest gives first.
    while excess > 0 and spare:
        widest = max(spare, key=lambda x: (widths[x], spare[x]))
        widths[widest] -= 1
        excess -= 1
        spare[widest] -= 1
        if not spare[widest]:
            del spare[widest]


def _spare(widths: dict[str, int], least: Mapping[str, int]) -> dict[str, int]:
    """Returns which columns can be narrower, and by how many cells."""
    spare = {x: widths[x] - least[x] for x in widths if x in least}
    return {x: cells for x, cells in spare.items() if cells > 0}
