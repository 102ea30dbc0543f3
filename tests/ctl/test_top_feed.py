"""How `lockctl top` keeps what it knows true, without a screen."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgpack
import pytest
import trio

from lockd import Client, connect
from lockd.ctl.top import feed as feed_module
from lockd.ctl.top.board import Board
from lockd.ctl.top.feed import REST, Feed
from lockd.terms import ResourceKey

KEY = ResourceKey("default", "job")


@asynccontextmanager
async def running(socket: str, *shown: ResourceKey) -> AsyncIterator[Feed]:
    feed = Feed(Board(), socket, 0.01, lambda: (list(shown), True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run)
        await until(lambda: bool(feed.board.facts))
        yield feed
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 (nobody sets an event)
            await trio.sleep(0.005)


async def test_reads_what_is_held_then_follows_it(sock: str, client: Client) -> None:
    for number in range(600):  # several pages
        client.acquire(f"lock-{number}")
    async with running(sock) as feed:
        await until(lambda: len(feed.board.locks) == 600)
        client.acquire("job")
        await until(lambda: KEY in feed.board.locks)
        client.release("job")
        await until(lambda: KEY not in feed.board.locks)
        assert feed.progress is None


async def test_asks_again_for_what_is_shown_when_an_event_told_of_it(
    sock: str, client: Client
) -> None:
    async with running(sock, KEY) as feed:
        client.acquire("job", reason="nightly")
        await until(lambda: KEY in feed.board.locks and not feed.board.locks[KEY].vague)
        assert feed.board.locks[KEY].holders[0].told["reason"] == "nightly"


async def test_does_not_ask_for_what_is_not_shown(sock: str, client: Client) -> None:
    async with running(sock) as feed:
        client.acquire("job", reason="nightly")
        await until(lambda: KEY in feed.board.locks)
        before = feed.board.facts
        await until(lambda: feed.board.facts is not before)
        assert feed.board.locks[KEY].vague


async def test_who_waited_and_left_is_missed_where_it_is_shown(
    sock: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event tells of a session that ends while it waits."""
    monkeypatch.setattr(feed_module, "STALE", 0.01)
    client.acquire("job")
    async with running(sock, KEY) as feed:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_and_leave, sock, feed)
        await until(lambda: feed.board.locks[KEY].waiter_count == 0)


async def wait_and_leave(sock: str, feed: Feed) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(sock)
        raw.sendall(msgpack.packb([0, 1, "acquire", [{"resource": "job"}]]))
        await until(lambda: feed.board.locks[KEY].waiter_count == 1)


async def test_where_too_much_happens_it_reads_now_and_then(
    sock: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "FLOOD", 10)
    monkeypatch.setattr(feed_module, "RETRY", 0.01)
    client.acquire("job")
    async with running(sock) as feed:
        await until(lambda: feed.is_watching)
        for _ in range(20):
            client.release(client.acquire("hot"))
        await until(lambda: "not watched" in (feed.news or ""))
        await until(lambda: not feed.is_watching and KEY in feed.board.locks)
        client.acquire("new")
        await until(lambda: ResourceKey("default", "new") in feed.board.locks)
        client.release("job")
        await until(lambda: KEY not in feed.board.locks)
        assert not feed.is_watching


async def test_watches_again_when_the_flood_is_over(
    sock: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "FLOOD", 10)
    monkeypatch.setattr(feed_module, "RETRY", 0.01)
    monkeypatch.setattr(feed_module, "UNFOLLOWED", 0.05)
    async with running(sock) as feed:
        await until(lambda: feed.is_watching)
        for _ in range(20):
            client.release(client.acquire("hot"))
        await until(lambda: "not watched" in (feed.news or ""))
        await until(lambda: feed.is_watching)
        client.acquire("job")
        await until(lambda: KEY in feed.board.locks)


async def test_rests_nine_times_as_long_as_an_answer_took(
    autojump_clock: trio.abc.Clock,
) -> None:
    feed = Feed(Board(), "/nowhere", 1, lambda: ([], False))

    async def answer() -> str:
        await trio.sleep(2)
        return "it"

    began = trio.current_time()
    assert await feed._paid(answer()) == "it"
    assert trio.current_time() - began == 2 * (1 + REST)


async def test_sessions_are_asked_for_where_they_are_shown(sock: str) -> None:
    with connect(sock, name="somebody"):
        async with running(sock) as feed:
            await until(lambda: len(feed.board.sessions or ()) == 2)
            names = {x.told["name"] for x in feed.board.sessions or ()}
            assert "somebody" in names
