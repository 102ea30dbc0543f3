"""The common part of the screens of `lockctl top`: the keys, and breaking a lock."""

from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Input, Static

from lockd.ctl.render import Thing, purpose, user
from lockd.ctl.top.follower import Follower
from lockd.ctl.top.lines import Lines
from lockd.ctl.top.tables import Row
from lockd.errors import LockdError
from lockd.names import plain, quoted
from lockd.terms import ResourceKey
from lockd.text import duration

SAID: Final = 10.0
"""Seconds for which a message stays in the last line, at least."""

_KEYS: Final = (
    ("1 2 3 4", "locks, waits, holds, sessions; Tab shows the next"),
    ("Up Down j k", "choose a line; PgUp PgDn Home End move further"),
    ("/", "filter: show the lines that contain the text, as you type"),
    ("Esc", "clear the filter; close the screen"),
    ("s S", "sort by the next column, by the previous column"),
    ("r", "reverse the order"),
    ("Enter", "look into a lock: holders, queue, last holder"),
    ("b", "break the chosen lock: shows its holder, asks for a reason"),
    ("p", "pause the screen; top still follows all events"),
    ("? h", "this page"),
    ("q", "quit"),
)

_WORDS: Final = (
    "GRANTS counts grants since top began. WAIT counts waiters. USUAL is the usual",
    "time of a hold, from at least three holds that top saw. ! marks a hold of more",
    "than twice that time.",
)


_RULES: Final = {
    "kill": "lockd kills its process first, and all its locks end.",
    "release": "The holder is notified, but may run on: make sure it does no harm.",
}
"""What happens to a holder, by its `on_disconnect` (protocol 7.5)."""


class Help(ModalScreen[None]):
    """The screen with the keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q,question_mark,h", "dismiss"),
    ]
    CSS = "Help { background: ansi_default; }"

    def compose(self) -> ComposeResult:
        """Yields the widgets."""
        lines = [f"  {keys:<14}{what}" for keys, what in _KEYS]
        words = [f"  {line}" for line in _WORDS]
        text = "\n".join(["lockctl top", "", *lines, "", *words, "", "Esc goes back."])
        with VerticalScroll():
            yield Static(Text(text))


class Break(ModalScreen[str | None]):
    """Shows the victim of a break. Returns the reason, or None to break nothing.

    The most important lines are at the top; the rest can be scrolled to.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)"),
        Binding("up", "scroll(-1)"),
        Binding("down", "scroll(1)"),
    ]
    CSS = """
    Break { background: ansi_default; }
    #victim { height: auto; max-height: 60%; scrollbar-size-vertical: 1; }
    """

    def __init__(self, key: ResourceKey, victim: Thing) -> None:
        super().__init__()
        told = victim
        facts = [
            ("lock", str(key)),
            ("holder", f"{told['name']}, pid {told['pid']}, user {user(told['uid'])}"),
            (
                "holds",
                f"{told['mode']}, for {duration(told['held_for'])}, "
                f"token {told['fencing_token']}",
            ),
            ("reason", purpose(told)),
            ("unit", told["unit"]),
            ("command", told["command"]),
        ]
        lines = [f"  {name:<9}{plain(what)}" for name, what in facts if what]
        self._rule = told["on_disconnect"]
        self._victim = VerticalScroll(
            Static(Text("\n".join(lines))), id="victim", can_focus=False
        )

    def compose(self) -> ComposeResult:
        """Yields the widgets."""
        yield Static("Break this lock? Type why: Enter breaks it, Esc does not.")
        yield self._victim
        yield Static(_RULES[self._rule])
        yield Input(placeholder="why it is broken", compact=True)

    def action_scroll(self, by: int) -> None:
        """Scrolls the victim."""
        self._victim.scroll_relative(y=by, animate=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Returns the reason. Without a reason it does nothing."""
        if reason := event.value.strip():
            self.dismiss(reason)


class Showing(Screen[None]):
    """The base of the screens: it shows messages, and breaks locks.

    A screen holds references to the widgets that it changes and never queries for them:
    an answer may arrive while textual removes the screen.

    Args:
        follower: the state of the daemon.
        keys: the last line while there is no message.
    """

    def __init__(self, follower: Follower, keys: str) -> None:
        super().__init__()
        self.follower = follower
        self.lines = Lines(id="lines")
        self.said = Static(keys, id="said")
        self._keys = keys

    def on_mount(self) -> None:
        """Shows the keys again after each message."""
        self._keys_again = self.set_interval(SAID, self._show_keys)

    def say(self, sentence: str) -> None:
        """Shows a message in the last line."""
        self.said.update(Text(plain(sentence)))
        self._keys_again.reset()

    def _show_keys(self) -> None:
        self.said.update(self._keys)

    async def ask_and_break(self, row: Row) -> None:
        """Breaks the lock of a row's holder, if the user confirms."""
        if row.key is None or row.party is None:
            return
        key, token = row.key, row.party["fencing_token"]
        try:
            # An event has fewer details than the user needs to decide.
            found = await self.follower.query(key)
            victim = next(
                (x for x in found["holders"] if x["fencing_token"] == token), None
            )
            if victim is None:
                self.say(f"{row.party['name']} has released {quoted(str(key))} already")
                return
            reason = await self.app.push_screen_wait(Break(key, victim))
            if reason is None:
                self.say("nothing was broken")
                return
            await self.follower.break_grant(token, reason)
        except LockdError as error:
            self.say(str(error))
        else:
            self.say(f"the lock of {victim['name']} on {quoted(str(key))} was broken")
