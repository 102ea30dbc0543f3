"""The async client's lock, and who may use what: which loop, which task."""

import asyncio
import inspect
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

import lockd
from client.conformance import freeze, holders, wait_until_free
from client.test_arguments import Case, arguments_of, methods_of
from lockd.client.tasks import link as tasklink
from support.daemon_process import DaemonProcess
from support.wire_client import PATIENCE, WireClient, wait_for_waiters

Main = Callable[..., Awaitable[Any]]
Run = Callable[[Main], Any]

LOOPS: dict[str, Run] = {
    "asyncio": lambda main: anyio.run(main, backend="asyncio"),
    "trio": lambda main: anyio.run(main, backend="trio"),
}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return LOOPS[request.param]


# As `anyio.Lock` has it: each case is played with both.


async def take_turns(lock: Any, say: Callable[[object], None]) -> None:
    async def visit(number: int) -> None:
        async with lock:
            say(f"{number} comes")
            await anyio.lowlevel.checkpoint()
            say(f"{number} goes")

    await lock.acquire()
    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(visit, number)
            await anyio.wait_all_tasks_blocked()
        say(lock.locked())
        lock.release()
    say(lock.locked())


async def give_up(lock: Any, say: Callable[[object], None]) -> None:
    async def visit(name: str) -> None:
        async with lock:
            say(name)

    await lock.acquire()
    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def be_cancelled() -> None:
            with scope:
                await visit("cancelled")

        tasks.start_soon(be_cancelled)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(visit, "patient")
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        lock.release()
    say(lock.locked())


async def take_again(lock: Any, say: Callable[[object], None]) -> None:
    for _ in range(3):
        await lock.acquire()
        say(lock.locked())
        lock.release()
        say(lock.locked())
    async with lock:
        say(lock.locked())


async def fail_inside(lock: Any, say: Callable[[object], None]) -> None:
    try:
        async with lock:
            raise KeyError("own")
    except KeyError as error:
        say(str(error))
    say(lock.locked())


async def tell(lock: Any, say: Callable[[object], None]) -> None:
    def known() -> None:
        found = lock.statistics()
        mine = found.owner == anyio.get_current_task()
        say((found.locked, found.owner is None, mine, found.tasks_waiting))

    async def visit() -> None:
        async with lock:
            known()

    known()
    async with anyio.create_task_group() as tasks:
        await lock.acquire()
        known()
        for _ in range(2):
            tasks.start_soon(visit)
            await anyio.wait_all_tasks_blocked()
        known()
        lock.release()
    known()


async def serve_a_condition(lock: Any, say: Callable[[object], None]) -> None:
    condition = anyio.Condition(lock)

    async def wait() -> None:
        async with condition:
            say("waits")
            await condition.wait()
            say("was told")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        while not condition.statistics().tasks_waiting:
            await anyio.lowlevel.checkpoint()
        async with condition:
            say("tells")
            condition.notify()
    say(lock.locked())


async def misuse(lock: Any, say: Callable[[object], None]) -> None:
    try:
        lock.release()
    except Exception:
        say("not held")
    async with lock:
        try:
            async with lock:
                say("entered twice")
        except Exception:
            say("already held")
    say(lock.locked())


CASES = [
    *(take_turns, give_up, take_again, fail_inside),
    *(tell, serve_a_condition, misuse),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_lock_behaves_as_that_of_anyio(
    case: Callable[..., Awaitable[None]], run: Run, sock: str
) -> None:
    async def main() -> None:
        ours: list[object] = []
        theirs: list[object] = []
        await case(anyio.Lock(), theirs.append)
        async with lockd.aio.connect(sock) as client:
            await case(client.lock("disk"), ours.append)
        assert ours == theirs
        assert len(ours) > 0

    run(main)


def test_acquire_of_a_lock_is_no_tasks_own(run: Run, sock: str) -> None:
    # As that of `asyncio.Lock`; that of `anyio.Lock` belongs to its task.
    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            lock, again = client.lock("disk"), anyio.Event()

            async def release_both() -> None:
                await anyio.wait_all_tasks_blocked()
                assert not again.is_set()
                await lock.release()
                await again.wait()
                await lock.release()

            first = await lock.acquire()
            with pytest.raises(lockd.AcquireTimeoutError, match="by this program for"):
                await lock.acquire(timeout=0.01)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(release_both)
                second = await lock.acquire()
                again.set()
            assert second.fencing_token > first.fencing_token
            assert not lock.locked()

    run(main)


def test_lock_has_the_words_of_the_blocking_one() -> None:
    def words(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    ours = words(lockd.aio.Lock) - {"link"}
    assert ours - {"acquire_nowait", "statistics"} <= words(lockd.Lock)
    assert words(anyio.Lock) <= ours


def test_lock_that_is_not_free_is_refused_never_taken(
    run: Run, sock: str, watcher: WireClient
) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            lock = client.lock("disk")
            for error in (lockd.BusyError, anyio.WouldBlock):
                with pytest.raises(error, match="held exclusively by"):
                    await lock.acquire_nowait()
            with pytest.raises(lockd.AcquireTimeoutError, match=r"within 0\.02 s"):
                await lock.acquire(timeout=0.02)
            with pytest.raises(lockd.AcquireTimeoutError):
                async with client.lock("disk", timeout=0.02):
                    raise AssertionError
            assert not lock.locked()
            with pytest.raises(lockd.NotHeldError, match="acquire it first"):
                lock.grant.check()
            watcher.call("release", resource="disk")
            grant = await lock.acquire_nowait()
            assert (grant.held, lock.locked()) == (True, True)
            assert lock.fencing_token == grant.fencing_token
            lock.check()

    watcher.acquire("disk")
    run(main)


def test_shared_lock_is_held_by_several_tasks(
    run: Run, sock: str, watcher: WireClient
) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock, name="us") as client:
            lock = client.lock("disk", mode=lockd.SHARED)
            all_in = anyio.Event()
            inside = 0

            async def visit() -> None:
                nonlocal inside
                async with lock:
                    inside += 1
                    if inside == 3:
                        all_in.set()
                    await all_in.wait()

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(visit)
            assert not lock.locked()
            await client.statistics()  # the daemon takes its requests in order
            assert holders(watcher, "disk") == []

    run(main)


def test_release_that_is_not_awaited_is_done_all_the_same(
    run: Run, sock: str, watcher: WireClient
) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            lock = client.lock("disk")
            await lock.acquire()
            lock.release()
            # What is asked from now on comes after it.
            assert (await client.query("disk"))["holder_count"] == 0
            await lock.acquire()
            await lock.release()
            assert holders(watcher, "disk") == []

    run(main)


def test_any_task_releases_a_lock(run: Run, sock: str) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            lock = client.lock("disk")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lock.__aenter__)
            assert lock.locked()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lock.__aexit__, None, None, None)
            assert not lock.locked()
            await lock.acquire()
            await client.release(lock)
            assert not lock.locked()

    run(main)


def test_task_that_has_ended_is_not_taken_for_a_later_one(run: Run, sock: str) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            lock = client.lock("disk")
            refusals: list[bool] = []

            async def attempt() -> None:
                try:
                    await client.lock("disk").acquire_nowait()
                except lockd.LockdError as error:
                    refusals.append(isinstance(error, lockd.BusyError))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lock.acquire)
            # Some of the later tasks get the number of the ended one.
            for _ in range(20):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(attempt)
            assert refusals == [True] * 20

    run(main)


def test_lock_that_was_lost_says_so(run: Run, sock: str, watcher: WireClient) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            lock = client.lock("disk")

            async def lose() -> None:
                async with lock:
                    token = lock.fencing_token
                    async with client.watch() as events:
                        watcher.call("break", fencing_token=token, reason="why")
                        async for event in events:
                            if event["event"] == "released":
                                break
                    assert not lock.locked()
                    with pytest.raises(lockd.LockLostError):
                        lock.check()

            with pytest.raises(lockd.LockLostError):
                await lose()
            async with lock:
                assert lock.locked()

    run(main)


# Another loop, another thread.


def in_thread(function: Callable[[], Any]) -> Any:
    """Returns what a function returns, or raises, in a thread; it must not hang."""
    found: list[Any] = []

    def target() -> None:
        try:
            found.append(function())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it hangs"
    return found[0]


def used(target: object, called: str) -> Main:
    """Returns a function that uses a method, and whatever it returns."""
    method = getattr(target, called)
    nothing_odd = Case(called, "", inspect.Parameter.VAR_POSITIONAL, needed=False)
    args, params = arguments_of(nothing_odd, method, None)
    args.remove(None)

    async def use() -> Any:
        found = method(*args, **params)
        if inspect.isawaitable(found):
            return await found
        if isinstance(found, AbstractAsyncContextManager):
            async with found as entered:
                return entered
        if hasattr(found, "__aiter__"):
            return [item async for item in found]
        return found

    return use


def by_hand(main: Main) -> Any:
    """Runs what never waits, without any loop."""
    try:
        main().__await__().send(None)
    except StopIteration as end:
        return end.value


ELSEWHERE: dict[str, Run] = {
    "asyncio": lambda main: asyncio.run(main()),  # type: ignore[arg-type]
    "trio": trio.run,
    "no loop": by_hand,
}

HARMLESS = {"Client.lock", "Lock.locked"}
"""What asks the daemon nothing."""


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_client_is_refused_to_another_loop_and_to_other_threads(
    run: Run, elsewhere: str, sock: str
) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            lock = client.lock("held")
            async with lock:
                for kind, target in (
                    (lockd.aio.Client, client),
                    (lockd.aio.Lock, lock),
                ):
                    for called, _ in methods_of(kind):
                        if called in HARMLESS:
                            continue
                        use = used(target, called.split(".")[1])
                        answer = in_thread(partial(ELSEWHERE[elsewhere], use))
                        assert isinstance(answer, lockd.WrongTaskError), called
                        assert "open a client in each loop" in str(answer)
                # Nothing of it was asked, or changed.
                assert lock.locked()
                assert (await client.query("held"))["holder_count"] == 1

    run(main)


def test_bodies_are_not_left_in_another_loop(run: Run, sock: str) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            body = client.hold("disk")
            grant = await body.__aenter__()
            leave = partial(body.__aexit__, None, None, None)
            answer = in_thread(partial(trio.run, leave))
            assert isinstance(answer, lockd.WrongTaskError)
            assert grant.held
            await body.__aexit__(None, None, None)
            assert not grant.held

    run(main)


# Another task.


def test_body_that_another_task_leaves_is_refused_and_the_lock_free(
    run: Run, sock: str, watcher: WireClient
) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            body = client.hold("disk")
            refused = anyio.Event()

            async def enter() -> None:
                await body.__aenter__()
                entered.set()
                await refused.wait()

            entered = anyio.Event()
            # Its cancel scope stays open in the task that entered it, so that task
            # cannot end well.
            with suppress(Exception, BaseExceptionGroup):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(enter)
                    await entered.wait()
                    with pytest.raises(lockd.WrongTaskError, match="any task may"):
                        await body.__aexit__(None, None, None)
                    wait_until_free(watcher, "disk")
                    said.append("free")
                    refused.set()

    said: list[str] = []
    with suppress(Exception, BaseExceptionGroup):
        run(main)
    assert said == ["free"]


def test_session_that_another_task_leaves_ends_and_says_so(
    run: Run, sock: str, watcher: WireClient
) -> None:
    async def main() -> None:
        session = lockd.aio.connect(sock)
        entered = anyio.Event()

        async def enter() -> None:
            client = await session.__aenter__()
            await client.acquire("disk")
            entered.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter)
            await entered.wait()
            with pytest.raises(lockd.WrongTaskError, match="its session has ended"):
                await session.__aexit__(None, None, None)
            wait_until_free(watcher, "disk")
            said.append("free")
            tasks.cancel_scope.cancel()

    said: list[str] = []

    def attempt() -> None:
        with suppress(Exception, BaseExceptionGroup):
            run(main)

    in_thread(attempt)
    assert said == ["free"]


# A daemon that hangs.


@pytest.mark.parametrize("doing", ["acquire", "lock", "hold", "body", "release"])
def test_who_is_cancelled_does_not_wait_for_a_daemon_that_hangs(
    doing: str,
    run: Run,
    sock: str,
    daemon: DaemonProcess,
    watcher: WireClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasklink, "PATIENCE", 0.01)

    async def act(
        client: lockd.aio.Client, ready: anyio.Event, frozen: anyio.Event
    ) -> None:
        if doing == "body":
            async with client.hold("free"):
                ready.set()
                await anyio.sleep_forever()
        if doing == "release":
            grant = await client.acquire("free")
            ready.set()
            await anyio.lowlevel.checkpoint()
            while True:  # the daemon hangs by now, or soon
                await client.release(grant)
                grant = await client.acquire("free")
        ready.set()
        if doing == "acquire":
            await client.acquire("disk")
        elif doing == "lock":
            await client.lock("disk").acquire()
        elif doing == "hold":
            async with client.hold("disk"):
                raise AssertionError

    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            async with anyio.create_task_group() as tasks:
                ready, frozen = anyio.Event(), anyio.Event()
                tasks.start_soon(act, client, ready, frozen)
                await ready.wait()
                if doing in ("acquire", "lock", "hold"):
                    await anyio.to_thread.run_sync(wait_for_waiters, watcher, "disk", 1)
                freeze(daemon)
                frozen.set()
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
            os.kill(daemon.pid, signal.SIGCONT)
            # What it was asked is taken back or given back all the same.
            await anyio.to_thread.run_sync(wait_until_free, watcher, "free")
            watcher.call("release", resource="disk")
            await anyio.to_thread.run_sync(wait_until_free, watcher, "disk")

    watcher.acquire("disk")
    run(main)
