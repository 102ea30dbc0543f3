"""Plays `lockctl top` on a screen that textual makes up."""

import asyncio
from collections.abc import Awaitable, Callable

from textual.pilot import Pilot
from textual.widgets import Static

from lockd.ctl.top.app import Top
from lockd.ctl.top.lines import Lines

Play = Callable[["Screen"], Awaitable[None]]

INTERVAL = 0.05
LIMIT = 20


class Screen:
    """What is on the screen, and the keyboard."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot

    @property
    def text(self) -> str:
        shown = []
        screen = self.pilot.app.screen
        for widget in screen.query("Static, Lines"):
            if isinstance(widget, Lines):
                shown.append(widget.render().plain)
            elif isinstance(widget, Static):
                shown.append(str(widget.render()))
        return "\n".join(shown)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        await self.pilot.press(*text)

    async def until(self, *texts: str, gone: tuple[str, ...] = ()) -> str:
        """Waits until all of some texts are on the screen, and none of others."""
        try:
            async with asyncio.timeout(LIMIT):
                while True:
                    shown = self.text
                    left = any(x in shown for x in gone)
                    if not left and all(x in shown for x in texts):
                        return shown
                    await self.pilot.pause(0.01)
        except TimeoutError:
            raise AssertionError(f"not {texts}, or {gone}: {self.text}") from None


def play(socket: str, part: Play, size: tuple[int, int] = (80, 24)) -> None:
    """Has somebody use top on a screen of a size."""

    async def main() -> None:
        app = Top(socket, INTERVAL)
        async with app.run_test(size=size) as pilot:
            await part(Screen(pilot))

    asyncio.run(main())


def line_of(shown: str, text: str) -> str:
    return next(line for line in shown.splitlines() if text in line)
