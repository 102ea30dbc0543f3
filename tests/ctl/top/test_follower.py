"""How `lockctl top` keeps what it knows true, without a screen."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgpack
import pytest
import trio

from lockd import Client, connect
from lockd.client.aio import Client as AsyncClient
from lockd.ctl.top import follower as follower_module
from lockd.ctl.top.board import Board
from lockd.ctl.top.follower import REST, Follower
from lockd.terms import ResourceKey

KEY = ResourceKey("default", "job")


@asynccontextmanager
async def running(socket: str, *shown: ResourceKey) -> AsyncIterator[Follower]:
    follower = Follower(Board(), socket, 0.01, lambda: (list(shown), True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        await until(lambda: bool(follower.board.facts))
        yield follower
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 (nobody sets an event)
            await trio.sleep(0.005)


async def next_facts(follower: Follower) -> None:
    before = follower.board.facts
    await until(lambda: follower.board.facts is not before)


async def test_reads_what_is_held_then_follows_it(sock: str, client: Client) -> None:
    for number in range(600):  # several pages
        client.acquire(f"lock-{number}")
    async with running(sock) as follower:
        await until(lambda: len(follower.board.locks) == 600)
        client.acquire("job")
        await until(lambda: KEY in follower.board.locks)
        client.release("job")
        await until(lambda: KEY not in follower.board.locks)
        assert follower.progress is None


async def test_asks_again_for_what_is_shown_when_an_event_told_of_it(
    sock: str, client: Client
) -> None:
    async with running(sock, KEY) as follower:
        client.acquire("job", reason="nightly")
        await until(
            lambda: KEY in follower.board.locks and not follower.board.locks[KEY].vague
        )
        assert follower.board.locks[KEY].holders[0].told["reason"] == "nightly"


async def test_does_not_ask_for_what_is_not_shown(sock: str, client: Client) -> None:
    async with running(sock) as follower:
        client.acquire("job", reason="nightly")
        await until(lambda: KEY in follower.board.locks)
        await next_facts(follower)
        assert follower.board.locks[KEY].vague


async def test_who_waited_and_left_is_missed_where_it_is_shown(
    sock: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event tells of a session that ends while it waits."""
    monkeypatch.setattr(follower_module, "STALE", 0.01)
    client.acquire("job")
    async with running(sock, KEY) as follower:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_and_leave, sock, follower)
        await until(lambda: follower.board.locks[KEY].waiter_count == 0)


async def test_who_waited_and_left_is_missed_where_nobody_looks(
    sock: str, client: Client
) -> None:
    client.acquire("job")
    async with running(sock) as follower:
        for _ in range(3):
            await wait_and_leave(sock, follower)
            await until(lambda: follower.board.locks[KEY].waiter_count == 0)


async def test_who_waits_for_several_locks_is_no_reason_to_read_all_for_ever(
    sock: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings, read_all = [], Follower._read_all

    async def counted(follower: Follower, told: AsyncClient) -> None:
        readings.append(follower)
        await read_all(follower, told)

    monkeypatch.setattr(Follower, "_read_all", counted)
    client.acquire("job")
    client.acquire("other")
    async with running(sock) as follower:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(sock)
            wanted = {"resources": ["job", "other"]}
            raw.sendall(msgpack.packb([0, 1, "acquire", [wanted]]))
            await until(lambda: len(readings) == 2)  # at first, and for this one
            for _ in range(5):
                await next_facts(follower)
            assert len(readings) == 2
            # And it does not hide who leaves.
            await wait_and_leave(sock, follower, waiters=2)
            await until(lambda: follower.board.locks[KEY].waiter_count == 1)
        await until(lambda: follower.board.locks[KEY].waiter_count == 0)


async def wait_and_leave(sock: str, follower: Follower, waiters: int = 1) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(sock)
        raw.sendall(msgpack.packb([0, 1, "acquire", [{"resource": "job"}]]))
        await until(lambda: follower.board.locks[KEY].waiter_count == waiters)


async def test_where_too_much_happens_it_reads_now_and_then(
    sock: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "FLOOD", 10)
    monkeypatch.setattr(follower_module, "RETRY", 0.01)
    client.acquire("job")
    async with running(sock) as follower:
        await until(lambda: follower.is_watching)
        for _ in range(20):
            client.release(client.acquire("hot"))
        await until(lambda: "top polls" in (follower.news or ""))
        await until(lambda: not follower.is_watching and KEY in follower.board.locks)
        client.acquire("new")
        await until(lambda: ResourceKey("default", "new") in follower.board.locks)
        client.release("job")
        await until(lambda: KEY not in follower.board.locks)
        assert not follower.is_watching


async def test_watches_again_when_the_flood_is_over(
    sock: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "FLOOD", 10)
    monkeypatch.setattr(follower_module, "RETRY", 0.01)
    monkeypatch.setattr(follower_module, "UNFOLLOWED", 0.05)
    async with running(sock) as follower:
        await until(lambda: follower.is_watching)
        for _ in range(20):
            client.release(client.acquire("hot"))
        await until(lambda: "top polls" in (follower.news or ""))
        await until(lambda: follower.is_watching)
        client.acquire("job")
        await until(lambda: KEY in follower.board.locks)


async def test_rests_nine_times_as_long_as_an_answer_took(
    autojump_clock: trio.abc.Clock,
) -> None:
    follower = Follower(Board(), "/nowhere", 1, lambda: ([], False))

    async def answer() -> str:
        await trio.sleep(2)
        return "it"

    began = trio.current_time()
    assert await follower._paid(answer()) == "it"
    assert trio.current_time() - began == 2 * (1 + REST)


async def test_sessions_are_asked_for_where_they_are_shown(sock: str) -> None:
    with connect(sock, name="somebody"):
        async with running(sock) as follower:
            await until(lambda: len(follower.board.sessions or ()) == 2)
            names = {x.told["name"] for x in follower.board.sessions or ()}
            assert "somebody" in names
