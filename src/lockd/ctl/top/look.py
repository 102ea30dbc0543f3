"""The screen about one lock."""

from asyncio import sleep
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from lockd.ctl.render import obstacle, ordinal, purpose, user
from lockd.ctl.top.board import Map
from lockd.ctl.top.dialogs import Showing
from lockd.ctl.top.feed import Feed
from lockd.ctl.top.tables import Column, Row, text_of
from lockd.errors import LockdError
from lockd.names import plain
from lockd.terms import ResourceKey
from lockd.text import counted, duration

_LOOK_COLUMNS: Final = (
    Column("STATE", 12),
    Column("NAME", 0),
    Column("PID", 7, right=True),
    Column("USER", 8),
    Column("MODE", 6),
    Column("FOR", 6, duration, right=True),
    Column("TOKEN", 15, right=True, least=70),
    Column("UNIT", 16, least=110),
    Column("COMMAND", 0, least=110),
    Column("REASON", 0, least=90),
)


class Look(Showing):
    """One lock: who holds it, who waits in which order, who held it last.

    Where columns have no room, what they say of the chosen line stands below all lines.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace,q", "app.pop_screen"),
        Binding("b", "break_chosen"),
        Binding("question_mark,h", "app.help"),
    ]

    def __init__(self, feed: Feed, key: ResourceKey, interval: float) -> None:
        super().__init__(feed, "Esc back  b break the chosen holder  ? help")
        self._key, self._interval = key, interval
        self._story = Static("", id="story")
        self._more = Static("", id="more")
        self._found: Map | None = None

    def compose(self) -> ComposeResult:
        """Lays it out."""
        yield Static(Text(plain(str(self._key)), "bold"), id="title")
        yield self._story
        yield self.lines
        yield self._more
        yield self.said

    def on_mount(self) -> None:
        """Asks at once, then again and again."""
        self.run_worker(self._follow(), group="look")

    async def _follow(self) -> None:
        # One question at a time: an answer may take longer than the pause.
        while True:
            await self._read()
            await sleep(self._interval)

    async def _read(self) -> None:
        try:
            self._found = await self.feed.query(self._key)
        except LockdError as error:
            self.say(str(error))
            return
        rows = [*_parties(self._key, self._found)]
        self.lines.show(
            _LOOK_COLUMNS, rows, "Nobody holds it, and nobody waits for it."
        )
        self._story.update(Text(plain(self._told(self._found))))

    def on_lines_moved(self) -> None:
        """Shows what is not in the line that is chosen."""
        row, width = self.lines.chosen, self.size.width
        missing = [
            f"  {column.title:<9}{text_of(column, row)}"
            # Few lines may have room: it begins with what says most.
            for column in reversed(_LOOK_COLUMNS)
            if row is not None and width < column.least and row.cells[column.title]
        ]
        self._more.update(Text("\n".join(missing)))

    def _told(self, found: Map) -> str:
        by = str(found["holder_count"])
        if not found["holders"] and found["outside"]:
            by = obstacle(found["outside"])
        parts = [f"held by {by}, waited for by {found['waiter_count']}"]
        usual = self.feed.board.usual(self._key)
        if usual is not None:
            parts.append(f"usually held for {duration(usual)}")
        if grants := self.feed.board.grants(self._key):
            parts.append(f"granted {counted(grants, 'time')} since top began")
        if last := found["last_holder"]:
            how = last["ended"].replace("_", " ")
            parts.append(
                f"held last by {last['name']} (pid {last['pid']}) for "
                f"{duration(last['held_for'])}, {how} {duration(last['ended_ago'])} ago"
            )
        return "; ".join(parts)

    async def action_break_chosen(self) -> None:
        """Breaks the lock of the holder that is chosen."""
        row = self.lines.chosen
        if row is None or row.party is None:
            self.say("choose a holder: who waits has nothing that could be broken")
            return
        self.run_worker(self.ask_and_break(row), group="break")


def _parties(key: ResourceKey, found: Map) -> list[Row]:
    rows = []
    for holder in found["holders"]:
        cells = _cells("holds", holder, holder["held_for"])
        rows.append(Row(("holds", holder["fencing_token"]), cells, key, holder))
    for place, waiter in enumerate(found["waiters"], 1):
        state = "converts" if waiter["converting"] else f"{ordinal(place)} waits"
        cells = _cells(state, waiter, waiter["waited"])
        rows.append(Row(("waits", waiter["session"], place), cells, key, None))
    return rows


def _cells(state: str, told: Map, seconds: float) -> dict[str, Any]:
    return {
        "STATE": state,
        "NAME": told["name"],
        "PID": told["pid"],
        "USER": user(told["uid"]),
        "MODE": "shared" if told["mode"] == "shared" else "excl",
        "FOR": seconds,
        "TOKEN": told.get("fencing_token"),
        "UNIT": told["unit"],
        "COMMAND": told["command"],
        "REASON": purpose(told),
    }
