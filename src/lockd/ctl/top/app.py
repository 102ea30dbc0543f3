"""The screens of `lockctl top`, drawn by textual.

Nothing depends on colours: the chosen line is marked and reversed, headings are bold.
The colours of the terminal stay unchanged.
"""

from typing import ClassVar

import anyio
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, Static

from lockd.ctl.render import Thing
from lockd.ctl.top.board import Board
from lockd.ctl.top.dialogs import Help, Showing
from lockd.ctl.top.follower import Follower
from lockd.ctl.top.look import Look
from lockd.ctl.top.tables import TABLES, matches, sorted_rows
from lockd.names import plain, quoted
from lockd.terms import ResourceKey
from lockd.text import counted, duration


class Tables(Showing):
    """The four tables."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(number), f"turn_to({number})") for number in range(1, 5)),
        Binding("tab", "turn_to(0)", priority=True),
        Binding("slash", "filter"),
        Binding("escape", "unfilter"),
        Binding("s", "sort(1)"),
        Binding("S", "sort(-1)"),
        Binding("r", "turn_around"),
        Binding("p", "pause"),
        Binding("enter", "look"),
        Binding("b", "break_chosen"),
        Binding("question_mark,h", "app.help"),
        Binding("q", "app.quit"),
    ]
    CSS = "#filter { display: none; }"

    def __init__(self, socket: str | None, interval: float) -> None:
        super().__init__(
            Follower(Board(), socket, interval, self.wanted),
            "Enter look  b break  / filter  s sort  r flip  ? help  q end",
        )
        self._interval = interval
        self._head = Static("", id="facts")
        self._tabs = Static("", id="tabs")
        self._filter = Input(placeholder="filter", compact=True, id="filter")
        self._table = TABLES[0]
        self._order: dict[str, tuple[str, bool]] = {
            table.name: (table.sort[0], False) for table in TABLES
        }
        self._wanted = ""
        self._paused = False
        self._counts: tuple[float, Thing] | None = None
        self._rate = 0.0

    def compose(self) -> ComposeResult:
        """Yields the widgets."""
        yield self._head
        yield self._tabs
        yield self.lines
        yield self._filter
        yield self.said

    def on_mount(self) -> None:
        """Draws at once, then at every interval."""
        self.lines.focus()
        self.draw()
        self.set_interval(self._interval, self._draw_if_moving)

    def wanted(self) -> tuple[list[ResourceKey], bool]:
        """Returns the locks on the screen, and whether sessions are on it."""
        rows = self.lines.on_screen
        keys = [row.key for row in rows if row.key is not None]
        return list(dict.fromkeys(keys)), self._table.name == "sessions"

    def _draw_if_moving(self) -> None:
        if not self._paused:
            self.draw()

    def draw(self) -> None:
        """Draws the current state."""
        now = anyio.current_time()
        table, board = self._table, self.follower.board
        by, turned = self._order[table.name]
        rows = list(table.rows(board, now))
        everything = len(rows)
        if self._wanted:
            rows = [row for row in rows if matches(row, self._wanted)]
        rows = sorted_rows(table, rows, by, turned=turned)
        self.lines.show(table.columns, rows, self._why_empty())
        self._head.update(self._facts(now))
        names = [
            f"[{number} {t.name}]" if t is table else f" {number} {t.name} "
            for number, t in enumerate(TABLES, 1)
        ]
        order = f"by {by}{', reversed' if turned else ''}"
        how = [
            f"{len(rows)} of {everything}" if self._wanted else f"{len(rows)}",
            order,
        ]
        if self._wanted:
            how.append(f"filter {quoted(self._wanted, 20)}")
        if self._paused:
            how.append("PAUSED")
        line = "".join(names) + "  " + ", ".join(how)
        self._tabs.update(Text(line, no_wrap=True))

    def _why_empty(self) -> str:
        if self._table.name == "sessions":
            is_read = self.follower.board.sessions is not None
        else:
            is_read = self.follower.progress is None
        if not is_read:
            return "Not read yet."
        return "No line has this text: Esc shows all." if self._wanted else "Nothing."

    def _facts(self, now: float) -> Text:
        facts, follower = self.follower.board.facts, self.follower
        if follower.trouble is not None:
            text = f"NOT CONNECTED, retrying every second: {follower.trouble}"
            return Text(plain(text), "reverse")
        if not facts:
            return Text("reading ...")
        about = [
            f"lockd {facts['version']}",
            f"pid {facts['pid']}",
            f"up {duration(facts['uptime'])}",
        ]
        counts = [
            f"{facts['held']} held",
            f"{facts['waiting']} waiting",
            counted(facts["sessions"], "session"),
            f"{self._grants_a_second(now, facts):.0f} grants/s",
        ]
        while about and len(", ".join(about + counts)) > self.size.width:
            del about[0]
        what = filter(None, [follower.progress, follower.news])
        return Text(", ".join([*about, *counts, *what]))

    def _grants_a_second(self, now: float, facts: Thing) -> float:
        if self._counts is None or self._counts[1]["epoch"] != facts["epoch"]:
            self._counts = now, facts
        then, before = self._counts
        if facts is not before and now > then:
            self._rate = (facts["granted"] - before["granted"]) / (now - then)
            self._counts = now, facts
        return self._rate

    # The keys.

    def action_turn_to(self, number: int) -> None:
        """Shows another table; 0 means the next one."""
        place = TABLES.index(self._table) + 1 if number == 0 else number - 1
        self._table = TABLES[place % len(TABLES)]
        self.lines.choose_first()
        self.draw()

    def action_sort(self, by: int) -> None:
        """Sorts by another column on the screen."""
        width = self.size.width
        titles = [c.title for c in self._table.columns if width >= c.screen]
        now, _ = self._order[self._table.name]
        place = titles.index(now) if now in titles else 0
        chosen = titles[(place + by) % len(titles)]
        self._order[self._table.name] = chosen, False
        self.draw()

    def action_turn_around(self) -> None:
        """Reverses the order."""
        by, turned = self._order[self._table.name]
        self._order[self._table.name] = by, not turned
        self.draw()

    def action_pause(self) -> None:
        """Pauses the screen, or resumes it."""
        self._paused = not self._paused
        self.draw()

    def action_filter(self) -> None:
        """Opens the filter."""
        self._filter.display = True
        self._filter.focus()

    def action_unfilter(self) -> None:
        """Clears the filter."""
        self._filter.value = ""
        self._leave_filter()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filters by the text typed so far."""
        self._wanted = event.value.strip().casefold()
        self.lines.choose_first()
        self.draw()

    def on_input_submitted(self) -> None:
        """Returns to the lines and keeps the filter."""
        self._leave_filter()

    def _leave_filter(self) -> None:
        self._filter.display = False
        self.lines.focus()

    def action_look(self) -> None:
        """Opens the screen of the chosen lock."""
        row = self.lines.chosen
        if row is not None and row.key is not None:
            self.app.push_screen(Look(self.follower, row.key, self._interval))

    def action_break_chosen(self) -> None:
        """Breaks the chosen lock if it has a single holder."""
        row = self.lines.chosen
        if row is None or row.key is None:
            return
        if row.party is None:
            self.say("nobody holds it alone: Enter shows the holders to choose from")
            return
        self.run_worker(self.ask_and_break(row), group="break")


class Top(App[None]):
    """`lockctl top`.

    Args:
        socket: the socket of the daemon; None for the default.
        interval: seconds between two updates of the screen.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    Input { background: ansi_default; color: ansi_default; }
    #said, #facts, #tabs, #title, #story { height: auto; max-height: 3; }
    #more { height: auto; max-height: 25%; }
    """

    def __init__(self, socket: str | None, interval: float) -> None:
        super().__init__(ansi_color=True)
        self.tables = Tables(socket, interval)

    def on_mount(self) -> None:
        """Starts the follower."""
        self.push_screen(self.tables)
        self.run_worker(self.tables.follower.run(), group="follower")

    def action_help(self) -> None:
        """Shows the keys."""
        self.push_screen(Help())
