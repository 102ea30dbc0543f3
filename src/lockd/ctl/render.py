"""How lockctl shows things: a table on a terminal, tabs when piped, or JSON.

rich is loaded only to draw on a terminal: it costs more time than a lock does.
"""

import pwd
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lockd.names import plain

if TYPE_CHECKING:
    from rich.text import Text

Row = Sequence[object]

#: The columns that stay whole where the terminal is too narrow for all.
_UNBROKEN = {"PID", "USER", "MODE", "FOR", "TOKEN"}


def show_table(columns: Sequence[str], rows: Iterable[Row], *, empty: str) -> None:
    """Shows one record per line.

    On a terminal there is a heading, `UUID` is left out where nobody has one, and
    `empty` is said if there are no rows. Piped, there are only the rows, with one tab
    between columns.

    Args:
        columns: their headings.
        rows: their cells; None is shown as `-`.
        empty: the sentence that is said on a terminal when there is nothing to show.
    """
    lines = [[_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(line) + "\n" for line in lines)
    elif lines:
        shown = [
            number
            for number, column in enumerate(columns)
            if column != "UUID" or any(line[number] != "-" for line in lines)
        ]
        _draw(_pick(columns, shown), [_pick(line, shown) for line in lines])
    else:
        print(empty)


def show_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Shows one fact per line: what it is, and its value; piped, with one tab between.

    Values are shown as the cells of `show_table` are.
    """
    lines = [[name, _cell(value)] for name, value in facts]
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(line) + "\n" for line in lines)
    else:
        _draw(["", ""], lines, heading=False)


def show_json(value: Any) -> None:
    """Shows a value as JSON, indented on a terminal, on one line when piped."""
    import json

    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(value, indent=indent, ensure_ascii=False))


def say(sentence: str) -> None:
    """Says something to the person at the terminal, if there still is one."""
    with suppress(OSError):
        print(f"lockctl: {sentence}", file=sys.stderr, flush=True)


def since(seconds: float) -> str:
    """Returns a moment, given in seconds since 1970, in local time."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def ordinal(number: int) -> str:
    """Returns `1st`, `2nd`, `3rd`, `4th`, ..."""
    teen = number % 100 in (11, 12, 13)
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def user(uid: int) -> str:
    """Returns the name of a user; the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def purpose(party: Mapping[str, Any]) -> str | None:
    """Returns what a holder or waiter says about its lock: label and reason."""
    return ": ".join(filter(None, (party["label"], party["reason"]))) or None


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else plain(str(value))


def _pick(cells: Sequence[str], numbers: Iterable[int]) -> list[str]:
    return [cells[number] for number in numbers]


def _shorten(column: str, cell: "Text") -> "Text":
    # A command line has no end; JSON and pipes get all of it.
    if column == "COMMAND":
        cell.no_wrap, cell.overflow = True, "ellipsis"
    return cell


def _draw(
    columns: Sequence[str], lines: Iterable[Sequence[str]], *, heading: bool = True
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    style = "bold" if heading else ""
    table = Table(box=None, pad_edge=False, header_style=style, show_header=heading)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in _UNBROKEN)
    for line in lines:
        # Text, as what a client calls itself may look like rich's markup.
        cells = map(Text, line)
        table.add_row(*map(_shorten, columns, cells))
    Console().print(table)
