"""The screen about one lock."""

from asyncio import sleep
from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from lockd.ctl.render import Thing, obstacle, ordinal, slots_of
from lockd.ctl.table import cells_of, text_of
from lockd.ctl.top.dialogs import Showing
from lockd.ctl.top.follower import Follower
from lockd.ctl.top.tables import Row, mode_in_slot, picked
from lockd.errors import LockdError
from lockd.names import plain
from lockd.terms import SLOT, ResourceKey
from lockd.text import counted, duration

_LOOK_COLUMNS: Final = picked(
    "STATE", "NAME", "PID", "USER", "MODE", "FOR", ("TOKEN", 70), ("UNIT", 110),
    ("COMMAND", 110), ("REASON", 90),
)  # fmt: skip


class Look(Showing):
    """One lock: its holders, its queue, its last holder.

    If the screen is too narrow for some columns, their cells of the chosen line are
    below all lines.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace,q", "app.pop_screen"),
        Binding("b", "break_chosen"),
        Binding("question_mark,h", "app.help"),
    ]

    def __init__(self, follower: Follower, key: ResourceKey, interval: float) -> None:
        super().__init__(follower, "Esc back  b break the chosen holder  ? help")
        self._key, self._interval = key, interval
        self._story = Static("", id="story")
        self._more = Static("", id="more")
        self._found: Thing | None = None

    def compose(self) -> ComposeResult:
        """Yields the widgets."""
        yield Static(Text(plain(str(self._key)), "bold"), id="title")
        yield self._story
        yield self.lines
        yield self._more
        yield self.said

    def on_mount(self) -> None:
        """Queries at once, then at every interval."""
        self.run_worker(self._follow(), group="look")

    async def _follow(self) -> None:
        # One query at a time: an answer may take longer than the interval.
        while True:
            await self._read()
            await sleep(self._interval)

    async def _read(self) -> None:
        try:
            self._found = await self.follower.query(self._key)
        except LockdError as error:
            self.say(str(error))
            return
        rows = [*_parties(self._key, self._found)]
        self.lines.show(
            _LOOK_COLUMNS, rows, "Nobody holds it, and nobody waits for it."
        )
        self._story.update(Text(plain(self._told(self._found))))

    def on_lines_moved(self) -> None:
        """Shows the cells of the chosen line that have no column."""
        row, width = self.lines.chosen, self.size.width
        missing = [
            f"  {column.title:<9}{text_of(column, row.cells)}"
            # Few lines may fit, so the most important comes first.
            for column in reversed(_LOOK_COLUMNS)
            if row is not None and width < column.screen and row.cells[column.title]
        ]
        self._more.update(Text("\n".join(missing)))

    def _told(self, found: Thing) -> str:
        by = str(found["holder_count"])
        if any(x["mode"] == SLOT for x in found["holders"]):
            by += f" in {slots_of(found)}"
        if not found["holders"] and found["outside"]:
            by = obstacle(found["outside"])
        parts = [f"held by {by}, waited for by {found['waiter_count']}"]
        usual = self.follower.board.usual(self._key)
        if usual is not None:
            parts.append(f"usually held for {duration(usual)}")
        if grants := self.follower.board.grants(self._key):
            parts.append(f"granted {counted(grants, 'time')} since top began")
        if last := found["last_holder"]:
            how = last["ended"].replace("_", " ")
            if (outcome := last.get("outcome")) in ("failed", "died"):
                how = f"{how} ({outcome})"
            parts.append(
                f"held last by {last['name']} (pid {last['pid']}) for "
                f"{duration(last['held_for'])}, {how} {duration(last['ended_ago'])} ago"
            )
        return "; ".join(parts)

    async def action_break_chosen(self) -> None:
        """Breaks the lock of the chosen holder."""
        row = self.lines.chosen
        if row is None or row.party is None:
            self.say("choose a holder: a waiter has no lock to break")
            return
        self.run_worker(self.ask_and_break(row), group="break")


def _parties(key: ResourceKey, found: Thing) -> list[Row]:
    rows = []
    for holder in found["holders"]:
        token = holder["fencing_token"]
        act = {"STATE": "holds", "FOR": holder["held_for"], "TOKEN": token}
        cells = cells_of(holder) | act | mode_in_slot(holder)
        rows.append(Row(("holds", token), cells, key, holder))
    for place, waiter in enumerate(found["waiters"], 1):
        state = "converts" if waiter["converting"] else f"{ordinal(place)} waits"
        cells = cells_of(waiter) | {"STATE": state, "FOR": waiter["waited"]}
        rows.append(Row(("waits", waiter["session"], place), cells, key, None))
    return rows
