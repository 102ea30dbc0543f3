"""`lockctl top` on a screen that textual makes up, against a real daemon."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Input, Static

from ctl.processes import LOCKCTL, Lockctl, Terminal
from daemon_process import DaemonProcess
from lockd import Client, LockLostError, connect
from lockd.client import aio
from lockd.ctl.top import dialogs
from lockd.ctl.top.app import Tables, Top
from lockd.ctl.top.follower import Follower
from lockd.ctl.top.lines import Lines
from lockd.ctl.top.look import Look
from lockd.terms import OnDisconnect, ResourceKey

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


def test_locks_are_there_and_follow_what_happens(sock: str, client: Client) -> None:
    grant = client.acquire("backup", reason="nightly")

    async def part(screen: Screen) -> None:
        shown = await screen.until("backup", "the test", "1 held")
        assert line_of(shown, "backup").startswith("> ")
        client.acquire("second")
        await screen.until("second", "2 held")
        client.release(grant)
        await screen.until("1 held", gone=("> backup",))

    play(sock, part)


@pytest.mark.parametrize("size", [(80, 24), (200, 50), (60, 10)])
def test_fits_every_screen(sock: str, client: Client, size: tuple[int, int]) -> None:
    client.acquire("backup", reason="nightly dump")
    client.acquire("日本語の名前ロック" * 9)
    wide, _ = size

    async def part(screen: Screen) -> None:
        for number in "134":
            await screen.press(number)
            shown = await screen.until(f"[{number} ", "2 held", "> ")
            lines = screen.pilot.app.screen.query_one(Lines).render().plain
            assert {cell_len(line) for line in lines.splitlines()} == {wide}
        await screen.press("1")
        shown = await screen.until("[1 ", "> backup ", "sessions, ")
        for widget in screen.pilot.app.screen.query("#facts, #tabs, #said"):
            assert widget.size.height == 1
        assert ("nightly dump" in shown) is (wide >= 100)

    play(sock, part, size)


def test_waits_sessions_and_holds_have_tables(sock: str, client: Client) -> None:
    client.acquire("job")
    with connect(sock, name="other") as other:

        async def part(screen: Screen) -> None:
            waiting = asyncio.create_task(asyncio.to_thread(acquire, other))
            try:
                await screen.press("2")
                shown = await screen.until("[2 waits]", "other")
                assert line_of(shown, "> job").split()[1:4] == ["job", "1", "other"]
                await screen.press("tab")
                await screen.until("[3 holds]", "job")
                await screen.press("tab")
                await screen.until("[4 sessions]", "other", "the test")
                await screen.press("tab")
                await screen.until("[1 locks]")
            finally:
                client.release("job")
                await waiting

        play(sock, part)


def test_nothing_is_said_to_be_there_only_once_it_was_read(
    sock: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()
    ask = Follower._ask_sessions

    async def late(follower: Follower, client: aio.Client) -> None:
        asked.set()
        await answered.wait()
        await ask(follower, client)

    monkeypatch.setattr(Follower, "_ask_sessions", late)

    async def part(screen: Screen) -> None:
        await screen.until("0 held", "Nothing.", gone=("Not read yet.",))
        await screen.press("4")
        await asked.wait()
        await screen.until("[4 sessions]", "Not read yet.", gone=("Nothing.",))
        answered.set()
        await screen.until("the test", gone=("Not read yet.",))

    play(sock, part)


def acquire(client: Client) -> None:
    client.acquire("job")


def test_filters_as_one_types_and_forgets_it(sock: str, client: Client) -> None:
    client.acquire("backup")
    client.acquire("db-migrate")

    async def part(screen: Screen) -> None:
        await screen.until("backup", "db-migrate")
        await screen.press("slash")
        await screen.type("MIG")
        await screen.until("1 of 2", "db-migrate", gone=("backup",))
        await screen.press("enter")
        assert screen.pilot.app.screen.query_one(Input).display is False
        await screen.until("1 of 2")
        await screen.press("escape")
        await screen.until("backup", "db-migrate", gone=("filter '",))

    play(sock, part)


def test_keys_of_a_filter_are_no_commands(sock: str, client: Client) -> None:
    client.acquire("quick")

    async def part(screen: Screen) -> None:
        await screen.until("quick")
        await screen.press("slash")
        await screen.type("q1")
        await screen.until("[1 locks]", "0 of 1", "Nothing has this text")

    play(sock, part)


def test_sorts_by_any_column_and_turns_around(sock: str, client: Client) -> None:
    for name in ("b", "a", "c"):
        client.acquire(name)

    async def part(screen: Screen) -> None:
        await screen.until("3 held", "by WAIT")
        while "by NAME" not in screen.text:
            await screen.press("s")
        assert names(screen) == ["a", "b", "c"]
        await screen.press("r")
        assert names(screen) == ["c", "b", "a"]
        await screen.press("s", "S")
        assert "by NAME" in screen.text

    play(sock, part)


def names(screen: Screen) -> list[str]:
    lines = screen.pilot.app.screen.query_one(Lines).render().plain.splitlines()
    return [line[2:].split()[0] for line in lines[1:]]


def test_choice_stays_with_its_lock_while_lines_move(sock: str, client: Client) -> None:
    for name in ("b", "c", "d"):
        client.acquire(name)

    async def part(screen: Screen) -> None:
        await screen.until("3 held", "d  ")
        await screen.press("down", "j")
        assert line_of(screen.text, "> ").split()[1] == "d"
        client.acquire("a")
        shown = await screen.until("4 held", "a  ")
        assert line_of(shown, "> ").split()[1] == "d"
        await screen.press("home")
        assert line_of(screen.text, "> ").split()[1] == "a"

    play(sock, part)


def test_scrolls_through_more_than_fits(sock: str, client: Client) -> None:
    for number in range(60):
        client.acquire(f"lock-{number:02}")

    async def part(screen: Screen) -> None:
        await screen.until("60 held", "lock-00")
        await screen.press("end")
        await screen.until("> lock-59", gone=("lock-00",))
        await screen.press("pageup", "pageup", "pageup")
        await screen.until("> lock-0")

    play(sock, part)


def test_looks_into_a_lock(sock: str, client: Client) -> None:
    client.release(client.acquire("job"))
    client.acquire("job", reason="nightly")

    async def part(screen: Screen) -> None:
        await screen.until("job", "1 held")
        await screen.press("enter")
        shown = await screen.until("holds", "held by 1, waited for by 0")
        assert "held last by the test" in shown
        assert "released" in shown
        await screen.press("escape")
        await screen.until("[1 locks]")

    play(sock, part)


@pytest.mark.parametrize("size", [(60, 10), (80, 24), (100, 24), (200, 50)])
def test_look_shows_all_of_the_line_that_is_chosen(
    sock: str, client: Client, size: tuple[int, int]
) -> None:
    client.acquire("job", mode="shared", reason="nightly dump")
    with connect(sock, name="other") as other:
        grant = other.acquire("job", mode="shared", reason="a copy of it")

        async def part(screen: Screen) -> None:
            await screen.until("job", "2 held", "the test +1")
            await screen.press("enter")
            shown = await screen.until("nightly dump", "COMMAND")
            assert shown.count("nightly dump") == 1
            await screen.press("down")
            await screen.until("a copy of it")
            lines = screen.pilot.app.screen.query_one(Lines)
            assert lines.size.height >= 3
            if size[1] > 10:
                await screen.until(str(grant.fencing_token))

        play(sock, part, size)


def test_breaks_a_lock_when_a_reason_is_given(sock: str) -> None:
    with connect(sock, name="victim") as client:
        grant = client.acquire("job", reason="nightly")

        async def part(screen: Screen) -> None:
            await screen.until("job", "1 held")
            await screen.press("b")
            shown = await screen.until("Break this lock?")
            for fact in ("victim", str(grant.fencing_token), "nightly", "exclusive"):
                assert fact in shown
            await screen.press("enter")
            await screen.until("Break this lock?")  # not without a reason
            await screen.type("stuck")
            await screen.press("enter")
            await screen.until("the lock of victim on 'job' was broken", "0 held")

        play(sock, part)
        with pytest.raises(LockLostError, match="stuck"):
            client.release(grant)


def test_whose_lock_is_broken_is_seen_on_a_small_screen(
    sock: str, client: Client
) -> None:
    client.acquire("job", reason="nightly " * 30)

    async def part(screen: Screen) -> None:
        await screen.until("job", "1 held")
        await screen.press("b")
        await screen.until("Break this lock?")
        await screen.pilot.pause()
        assert screen.pilot.app.screen.max_scroll_y == 0
        victim = screen.pilot.app.screen.query_one("#victim")
        shown = line_of(screen.text, "holder")
        assert f"the test, pid {os.getpid()}, user " in shown
        assert (victim.region.y, victim.region.height) == (1, 6)
        assert victim.max_scroll_y > 0
        await screen.press("down", "down")
        assert victim.scroll_y == 2

    play(sock, part, (60, 10))


def test_nothing_is_broken_by_escape(sock: str, client: Client) -> None:
    grant = client.acquire("job")

    async def part(screen: Screen) -> None:
        await screen.until("job", "1 held")
        await screen.press("b")
        await screen.until("Break this lock?")
        await screen.type("oh no")
        await screen.press("escape")
        await screen.until("nothing was broken")

    play(sock, part)
    grant.check()
    assert client.check("job", grant.fencing_token)


@pytest.mark.parametrize(
    ("where", "keys"),
    [((), "Enter look  b break"), (("enter",), "Esc back  b break")],
)
def test_keys_come_back_to_the_last_line(
    sock: str,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    where: tuple[str, ...],
    keys: str,
) -> None:
    monkeypatch.setattr(dialogs, "SAID", 3)
    client.acquire("job")

    async def part(screen: Screen) -> None:
        await screen.until("job", "1 held")
        await screen.press(*where)
        await screen.until(keys)
        await screen.press("b")
        await screen.until("Break this lock?")
        await screen.press("escape")
        await screen.until("nothing was broken", gone=(keys,))
        await screen.until(keys, gone=("nothing was broken",))

    play(sock, part)


@pytest.mark.parametrize(
    ("rule", "said"), [("kill", "is ended first"), ("release", "may run on")]
)
def test_who_breaks_a_lock_knows_what_becomes_of_its_holder(
    sock: str, rule: OnDisconnect, said: str
) -> None:
    with connect(sock) as client:
        client.register("guest", on_disconnect=rule)
        grant = client.acquire("job")

        async def part(screen: Screen) -> None:
            await screen.until("job", "1 held")
            await screen.press("b")
            await screen.until("Break this lock?", said)

        play(sock, part)
        client.release(grant)


def test_holder_that_went_meanwhile_is_told_and_nobody_else_suffers(
    sock: str, client: Client
) -> None:
    grant = client.acquire("job")
    with connect(sock, name="innocent") as innocent:

        async def part(screen: Screen) -> None:
            await screen.until("job", "1 held")
            await screen.press("b")
            await screen.until("Break this lock?")
            client.release(grant)
            innocent.acquire("job")
            await screen.type("stuck")
            await screen.press("enter")
            await screen.until(str(grant.fencing_token), gone=("Break this lock?",))

        play(sock, part)
        assert innocent.query("job")["holders"][0]["name"] == "innocent"


def test_shared_locks_are_broken_one_by_one(sock: str, client: Client) -> None:
    client.acquire("site", mode="shared")
    with connect(sock, name="other") as other:
        other.acquire("site", mode="shared")

        async def part(screen: Screen) -> None:
            await screen.until("the test +1")
            await screen.press("b")
            await screen.until("Enter shows the holders to choose from")
            await screen.press("enter")
            await screen.until("held by 2", "other")
            await screen.press("down", "b")
            await screen.until("Break this lock?", "other")
            await screen.type("why")
            await screen.press("enter")
            await screen.until("held by 1", "the lock of other on 'site' was broken")

        play(sock, part)
    assert [x["name"] for x in client.query("site")["holders"]] == ["the test"]


def test_an_answer_that_comes_as_the_screen_goes_does_no_harm(
    sock: str, client: Client
) -> None:
    client.acquire("site")

    async def part(screen: Screen) -> None:
        asked, gone, again = asyncio.Event(), asyncio.Event(), asyncio.Event()
        app = screen.pilot.app
        assert isinstance(app, Top)
        follower = app.tables.follower
        query = follower.query

        async def late(key: ResourceKey) -> dict[str, Any]:
            if gone.is_set():
                again.set()
            found = await query(key)
            asked.set()
            await gone.wait()
            return found

        await screen.until("site")
        follower.query = late  # type: ignore[method-assign]
        await screen.press("enter")
        await asked.wait()
        await app.screen.query("*").remove()
        gone.set()
        # It asks on: the answer did it no harm.
        async with asyncio.timeout(LIMIT):
            await again.wait()

    play(sock, part)


NAMES = {
    "slash": "/",
    "question_mark": "?",
    "escape": "Esc",
    "enter": "Enter",
    "up": "Up",
    "down": "Down",
    "tab": "1",
    "backspace": "Esc",
    **dict.fromkeys(("pageup", "pagedown", "home", "end"), "Up"),
}
"""What a key is called in the help; Tab and the far ones stand in its sentences."""


def keys_of(*classes: type[Widget]) -> set[str]:
    found = set()
    for binding in (x for cls in classes for x in cls.BINDINGS):
        assert isinstance(binding, Binding)
        found |= {NAMES.get(key, key) for key in binding.key.split(",")}
    return found


def test_help_has_every_key(sock: str, client: Client) -> None:
    async def part(screen: Screen) -> None:
        await screen.until("0 held")
        await screen.press("question_mark")
        shown = await screen.until("Esc goes back.")
        assert max(len(line) for line in shown.splitlines()) <= 80
        assert len(shown.splitlines()) <= 24
        listed = {
            key for line in shown.splitlines() for key in line[2:16].split() if key
        }
        assert keys_of(Tables, Look, Lines) <= listed
        await screen.press("escape")
        await screen.until("[1 locks]")

    play(sock, part)


def test_help_is_scrolled_where_it_does_not_fit(sock: str, client: Client) -> None:
    async def part(screen: Screen) -> None:
        await screen.until("0 held")
        await screen.press("question_mark")
        await screen.until("Esc goes back.")
        page = screen.pilot.app.screen.query_one(VerticalScroll)
        assert page.max_scroll_y > 0
        await screen.press("end")
        while page.scroll_y < page.max_scroll_y:
            await screen.pilot.pause(0.01)
        await screen.press("escape")
        await screen.until("[1 locks]")

    play(sock, part, (60, 10))


def test_goes_on_after_a_restart_of_the_daemon(lockd: DaemonProcess) -> None:
    with connect(str(lockd.socket), name="before") as before:
        before.acquire("old")

        async def part(screen: Screen) -> None:
            await screen.until("old", "1 held")
            lockd.kill()
            await screen.until("NOT CONNECTED", "old")
            await screen.press("b")
            await screen.until("the daemon")
            await asyncio.to_thread(lockd.start)
            await screen.until("started anew", "0 held", gone=("> old",))
            with connect(str(lockd.socket), name="after") as after:
                after.acquire("new")
                await screen.until("new", "after", "1 held")

        play(str(lockd.socket), part)


def test_waits_for_a_daemon_that_is_not_there_yet(tmp_path: Path) -> None:
    lockd = DaemonProcess(tmp_path)

    async def part(screen: Screen) -> None:
        await screen.until("NOT CONNECTED", "cannot be reached", "Not read yet.")
        await asyncio.to_thread(lockd.start)
        await screen.until("0 held", gone=("NOT CONNECTED",))

    try:
        play(str(lockd.socket), part)
    finally:
        lockd.close()


def test_pause_lets_the_screen_stand_still(sock: str, client: Client) -> None:
    async def part(screen: Screen) -> None:
        await screen.until("0 held")
        await screen.press("p")
        await screen.until("PAUSED")
        client.acquire("job")
        await screen.press("p")
        await screen.until("job", gone=("PAUSED",))

    play(sock, part)


# The command.


def test_draws_on_a_real_terminal_and_ends_with_q(
    lockctl: Lockctl, client: Client
) -> None:
    client.acquire("backup")
    terminal = Terminal((*LOCKCTL, "top"), {**lockctl.env, "NO_COLOR": "1"})
    terminal.wait_for("backup")
    terminal.type("q")
    assert terminal.wait() == 0


def test_without_a_terminal_says_what_to_use(lockctl: Lockctl) -> None:
    done = lockctl("top")
    assert done.returncode == 64
    assert "`lockctl list`" in done.stderr


def test_without_textual_says_what_to_install(lockctl: Lockctl, tmp_path: Path) -> None:
    (tmp_path / "textual.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'textual'\", name='textual')\n"
    )
    path = f"{tmp_path}:{lockctl.env['PYTHONPATH']}"
    terminal = Terminal((*LOCKCTL, "top"), {**lockctl.env, "PYTHONPATH": path})
    assert terminal.wait() == 69
    assert "lockctl: `lockctl top` needs the Python package textual" in terminal.shown
    assert "pip install 'lockd[top]'" in terminal.shown.replace("\r\n", " ")


@pytest.mark.parametrize(
    "module", ["lockd.ctl.main", "lockd.ctl.run.run", "lockd.ctl.top"]
)
def test_textual_is_not_loaded_until_the_screen_is_drawn(module: str) -> None:
    script = (
        f"import sys, {module}, lockd.ctl.top.command; print(*sys.modules, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not {"textual", "rich", "anyio", "asyncio"} & loaded
