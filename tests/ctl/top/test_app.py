"""`lockctl top` on a screen that textual makes up, against a real daemon."""

import asyncio
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.widgets import Input

from ctl.top.screen import Screen, line_of, play
from lockd import Client, connect
from lockd.client import aio
from lockd.ctl.top.follower import Follower
from lockd.ctl.top.lines import Lines
from support.daemon_process import DaemonProcess


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
        await screen.until("[1 locks]", "0 of 1", "No line has this text")

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


"""What a key is called in the help; Tab and the far ones stand in its sentences."""


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
            await screen.until("lost all locks", "0 held", gone=("> old",))
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
