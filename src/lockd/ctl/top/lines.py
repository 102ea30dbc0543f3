"""The widget that shows rows: a heading, and lines with one chosen."""

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget

from lockd.ctl.table import Column
from lockd.ctl.top.tables import Row, lines_of


class Lines(Widget, can_focus=True):
    """A heading and lines, one of them chosen. Draws only what is on the screen.

    The same row stays chosen while the lines move.
    """

    DEFAULT_CSS = "Lines { height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)"),
        Binding("down,j", "move(1)"),
        Binding("pageup", "move_page(-1)"),
        Binding("pagedown", "move_page(1)"),
        Binding("home", "move(-10_000_000)"),
        Binding("end", "move(10_000_000)"),
    ]

    class Moved(Message):
        """Sent when another line may be chosen, or its content may have changed."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 (textual's name)
        super().__init__(id=id)
        self._columns: Sequence[Column] = ()
        self._rows: list[Row] = []
        self._empty = ""
        self._chosen = 0
        self._first = 0

    def show(self, columns: Sequence[Column], rows: list[Row], empty: str) -> None:
        """Shows other rows, or `empty` if there are none."""
        before = self.chosen
        self._columns, self._rows, self._empty = columns, rows, empty
        if before is not None and self._row_at(self._chosen) != before.id:
            ids = (number for number, row in enumerate(rows) if row.id == before.id)
            self._chosen = next(ids, self._chosen)
        self.action_move(0)

    @property
    def chosen(self) -> Row | None:
        """The chosen row."""
        return self._rows[self._chosen] if self._chosen < len(self._rows) else None

    @property
    def on_screen(self) -> list[Row]:
        """The rows on the screen."""
        return self._rows[self._first : self._first + self._page]

    def choose_first(self) -> None:
        """Chooses the first line."""
        self._chosen = 0
        self.action_move(0)

    def action_move(self, by: int) -> None:
        """Moves the choice down, or up."""
        self._chosen = max(0, min(self._chosen + by, len(self._rows) - 1))
        page = self._page
        self._first = max(self._first, self._chosen - page + 1)
        self._first = min(self._first, self._chosen, max(len(self._rows) - page, 0))
        self.refresh()
        self.post_message(self.Moved())

    def action_move_page(self, by: int) -> None:
        """Moves the choice down or up by pages."""
        self.action_move(by * self._page)

    def on_resize(self) -> None:
        """Keeps the chosen line on the screen."""
        self.action_move(0)

    def render(self) -> Text:
        """Draws the lines on the screen."""
        heading, lines = lines_of(self._columns, self.on_screen, self.size.width)
        text = Text(no_wrap=True)
        text.append(heading, "bold underline")
        for number, line in enumerate(lines, self._first):
            if number == self._chosen:
                line = ">" + line[1:] if line[0] == " " else line
                text.append("\n" + line, "reverse")
            else:
                text.append("\n" + line)
        if not self._rows:
            text.append("\n  " + self._empty)
        return text

    @property
    def _page(self) -> int:
        return max(self.size.height - 1, 1)

    def _row_at(self, number: int) -> object:
        return self._rows[number].id if number < len(self._rows) else None
