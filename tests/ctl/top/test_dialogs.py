"""The keys of `lockctl top`, and what it asks before it breaks a lock."""

import asyncio
import os
from typing import Any

import pytest
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widget import Widget

from ctl.top.screen import LIMIT, Screen, line_of, play
from lockd import Client, LockLostError, connect
from lockd.ctl.top import dialogs
from lockd.ctl.top.app import Tables, Top
from lockd.ctl.top.lines import Lines
from lockd.ctl.top.look import Look
from lockd.terms import OnDisconnect, ResourceKey

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


def keys_of(*classes: type[Widget]) -> set[str]:
    found = set()
    for binding in (x for cls in classes for x in cls.BINDINGS):
        assert isinstance(binding, Binding)
        found |= {NAMES.get(key, key) for key in binding.key.split(",")}
    return found


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
    ("rule", "said"), [("kill", "kills its process first"), ("release", "may run on")]
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
