"""What the end of a `with` body releases, and what `release` does, of one lock object.

A shared lock shows it, for several hold it at once.
"""

import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import anyio
import pytest

import lockd
from client.adapters import Thread, ThreadBody
from lockd.terms import Mode
from support.wire_client import PATIENCE, WireClient

MOVES = ("enter", "leave", "acquire", "release")

#: By turns, each of these is how a thread or task uses one lock object.
PROGRAMS = list(product(MOVES, repeat=4))


class Expected:
    """What one thread holds through a lock object, as numbers of its moves.

    The end of a body ends what the body entered; or if that was released, the last
    that was acquired. A release ends the last that was acquired, or else entered.
    """

    def __init__(self) -> None:
        self._held: list[int] = []
        self._bodies: list[int] = []
        self._number = 0

    def move(self, move: str) -> bool:
        """Returns whether the move is possible."""
        if move in ("enter", "acquire"):
            self._held.append(self._number)
            if move == "enter":
                self._bodies.append(self._number)
            self._number += 1
            return True
        body = self._bodies.pop() if move == "leave" and self._bodies else None
        acquired = [number for number in self._held if number not in self._bodies]
        if move == "leave":
            found = [] if body is None else acquired
            found = [body] if body in self._held else found
        else:
            found = acquired or self._held
        if not found:
            return False
        self._held.remove(found[-1])
        return True

    def held(self) -> list[int]:
        return self._held


async def play(
    program: tuple[str, ...],
    lock: Any,
    holders: Callable[[], Awaitable[int]],
    perform: Callable[[Any, str], Awaitable[None]],
) -> None:
    """Plays a program; after each of its moves, it compares what is held."""
    expected = Expected()
    grants: list[Any] = []
    for move in program:
        possible = expected.move(move)
        try:
            await perform(lock, move)
        except lockd.NotHeldError:
            assert not possible, program
            continue
        assert possible, program
        if move in ("enter", "acquire"):
            grants.append(lock.grant)
        held = [number for number, grant in enumerate(grants) if grant.held]
        assert held == expected.held(), program
        assert lock.locked() == bool(held)
    # What this client takes for held, the daemon does, too: bodies of one thread or
    # task are one grant, which is counted.
    assert await holders() == len(
        {grants[number].fencing_token for number in held_of(grants)}
    )


def held_of(grants: list[Any]) -> list[int]:
    return [number for number, grant in enumerate(grants) if grant.held]


async def perform_blocking(lock: Any, move: str) -> None:
    calls = {
        "enter": lock.__enter__,
        "leave": partial(lock.__exit__, None, None, None),
        "acquire": lock.acquire,
        "release": lock.release,
    }
    calls[move]()


async def perform_async(lock: Any, move: str) -> None:
    calls = {
        "enter": lock.__aenter__,
        "leave": partial(lock.__aexit__, None, None, None),
        "acquire": lock.acquire,
        "release": lock.release,
    }
    await calls[move]()


@pytest.fixture
def client(sock: str) -> Iterator[lockd.Client]:
    with lockd.connect(sock) as client:
        yield client


@pytest.mark.parametrize("kind", ["threads", "trio", "asyncio"])
def test_bodies_and_acquires_of_one_lock_are_released_in_any_order(
    kind: str, sock: str
) -> None:
    async def play_all(client: Any, query: Any, perform: Any) -> None:
        async def holders() -> int:
            # The client asks: the daemon takes its requests in order.
            count = (await query("disk"))["holder_count"]
            assert isinstance(count, int)
            return count

        for program in PROGRAMS:
            lock = client.lock("disk", mode=lockd.SHARED)
            await play(program, lock, holders, perform)
            while lock.locked():
                await perform(lock, "release")
            assert await holders() == 0, program

    async def main() -> None:
        if kind == "threads":
            with lockd.connect(sock) as client:

                async def query(resource: str) -> dict[str, Any]:
                    return client.query(resource)

                await play_all(client, query, perform_blocking)
        else:
            async with lockd.aio.connect(sock) as tasks:
                await play_all(tasks, tasks.query, perform_async)

    anyio.run(main, backend="trio" if kind == "threads" else kind)


@pytest.mark.parametrize("first", ["acquire", "lose"])
def test_body_that_ends_leaves_the_other_hold_and_its_fate_alone(
    first: str, client: lockd.Client, watcher: WireClient
) -> None:
    lock = client.lock("disk", mode=lockd.SHARED)
    entered = lock.__enter__().grant
    token = entered.fencing_token
    if first == "acquire":
        assert lock.acquire()
        watcher.call("break", fencing_token=token, reason="why")
    else:
        watcher.call("break", fencing_token=token, reason="why")
        assert lock.acquire()
    client.query("disk")  # Now the client knows.
    with pytest.raises(lockd.LockLostError) as caught:
        lock.__exit__(None, None, None)
    assert caught.value.fencing_token == token
    assert lock.locked()
    lock.release()
    assert not lock.locked()


def test_result_of_an_acquire_shows_its_truth_and_why(
    client: lockd.Client, watcher: WireClient
) -> None:
    lock = client.lock("a")
    acquired = lock.acquire()
    assert repr(acquired) == f"<Acquired True: {lock.grant!r}>"
    lock.release()
    watcher.acquire("a")
    refused = repr(lock.acquire(blocking=False))
    assert refused.startswith("<Acquired False: 'a' is held exclusively by ")


def test_lock_names_its_slot(sock: str, client: lockd.Client) -> None:
    lock = client.lock("gpu", slots=2)
    with pytest.raises(lockd.NotHeldError):
        _ = lock.slot

    async def other() -> None:
        async with lockd.aio.connect(sock) as second, second.lock("gpu", slots=2) as it:
            assert it.slot == 1

    with lock:
        assert lock.slot == 0
        anyio.run(other)
    with client.lock("plain") as plain:
        assert plain.slot is None


def test_body_of_an_acquire_releases_this_acquire(client: lockd.Client) -> None:
    lock = client.lock("disk", mode=lockd.SHARED)
    with lock.acquire(timeout=5):
        first = lock.grant
        with lock:
            second = lock.grant
            lock.acquire()
            third = lock.grant
        assert [first.held, second.held, third.held] == [True, False, True]
    assert [first.held, second.held, third.held] == [False, False, True]


def test_body_of_an_acquire_that_another_thread_leaves_releases_it(
    client: lockd.Client,
) -> None:
    lock = client.lock("disk", mode=lockd.SHARED)
    body = lock.acquire()
    body.__enter__()
    first = lock.grant
    lock.acquire()
    second = lock.grant
    Thread(partial(body.__exit__, None, None, None)).result()
    assert [first.held, second.held] == [False, True]


def test_body_never_ends_the_acquire_of_another_thread(client: lockd.Client) -> None:
    lock = client.lock("disk", mode=lockd.SHARED)
    Thread(lock.acquire).result()
    theirs = lock.grant
    lock.__enter__()
    assert lock.grant is not theirs
    lock.release()
    with pytest.raises(lockd.NotHeldError):
        lock.__exit__(None, None, None)
    assert theirs.held
    lock.release()
    assert not theirs.held


def test_lock_serves_as_that_of_a_condition(client: lockd.Client) -> None:
    lock: Any = client.lock("disk")
    condition = threading.Condition(lock)
    said: list[str] = []

    def wait() -> None:
        with condition:
            said.append("waits")
            assert condition.wait_for(lambda: "told" in said, PATIENCE)

    waiter = Thread(wait)
    while True:
        with condition:
            if said:
                said.append("told")
                condition.notify()
                break
    waiter.result()
    with client.lock("disk", timeout=0):
        pass


@pytest.mark.parametrize("mode", [lockd.EXCLUSIVE, lockd.SHARED])
@pytest.mark.parametrize("by", ["with", "acquire"])
def test_body_that_gave_its_lock_back_does_not_end_that_of_another(
    by: str, mode: Mode, client: lockd.Client
) -> None:
    lock = client.lock("disk", mode=mode)
    body = lock if by == "with" else lock.acquire()
    body.__enter__()
    lock.release()
    other = ThreadBody(lock)
    theirs = other.grant()
    with pytest.raises(lockd.NotHeldError):
        body.__exit__(None, None, None)
    assert theirs.held
    other.leave()
    other.result()
    assert not lock.locked()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_body_of_a_task_does_not_end_that_of_another(sock: str, backend: str) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            lock = client.lock("disk")
            entered, may_leave = anyio.Event(), anyio.Event()

            async def other() -> None:
                async with lock:
                    entered.set()
                    await may_leave.wait()
                    assert lock.locked()

            async with anyio.create_task_group() as tasks:
                await lock.__aenter__()
                await lock.release()
                tasks.start_soon(other)
                await entered.wait()
                with pytest.raises(lockd.NotHeldError):
                    await lock.__aexit__(None, None, None)
                assert lock.locked()
                may_leave.set()
            assert not lock.locked()

    anyio.run(main, backend=backend)
