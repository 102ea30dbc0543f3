"""Threads and tasks of one client that want the same locks: who gets which."""

import gc
import unittest
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import lockd
from client.adapters import (
    AsyncPeer,
    BlockingPeer,
    Thread,
    async_shell,
    blocking_shell,
)
from client.conformance import holders, wait_until_free
from lockd.client.strands import LoneStrand
from support.daemon_process import DaemonProcess
from support.processes import idle, in_child
from support.wire_client import WireClient, wait_for_waiters

AnyPeer = BlockingPeer | AsyncPeer

SHELLS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "threads": blocking_shell,
    "trio": partial(async_shell, "trio"),
    "asyncio": partial(async_shell, "asyncio"),
}


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Iterator[Any]:
    with SHELLS[request.param]() as shell:
        yield shell


@pytest.fixture
def peer(shell: Any, sock: str) -> AnyPeer:
    peer: AnyPeer = shell.connect(sock, name="us")
    return peer


@pytest.fixture
def client(sock: str) -> Iterator[lockd.Client]:
    with lockd.connect(sock, name="us") as client:
        yield client


def grant_of(lock: Any) -> Any:
    """Returns what a lock holds; `Lock.grant` belongs to the event loop."""
    return [*lock._holds][-1].grant


def break_it(peer: AnyPeer, lock: Any, watcher: WireClient) -> None:
    watcher.call("break", fencing_token=grant_of(lock).fencing_token, reason="why")
    # By the next turn the daemon has told everybody of this one.
    watcher.call("statistics")


# The end of a hold.


ENDS: dict[str, Callable[[AnyPeer, Any, WireClient], object]] = {
    "lock.release()": lambda peer, lock, _: peer.run(lock.release).result(),
    "grant.release()": lambda peer, lock, _: peer.run(grant_of(lock).release).result(),
    "client.release(lock)": lambda peer, lock, _: peer.call("release", lock),
    "client.release(grant)": lambda peer, lock, _: peer.call("release", grant_of(lock)),
    "broken": break_it,
}


@pytest.mark.parametrize("end", ENDS)
def test_next_in_line_has_the_lock_however_it_ended(
    end: str, peer: AnyPeer, watcher: WireClient
) -> None:
    first: Any = peer.client.lock("disk")
    second: Any = peer.client.lock("disk")
    peer.run(first.acquire).result()
    waiting = peer.run(second.acquire)
    wait_for_waiters(watcher, "disk", 1)
    ENDS[end](peer, first, watcher)
    assert waiting.result()
    assert second.locked()
    assert not first.locked()
    peer.run(second.release).result()
    assert holders(watcher, "disk") == []


def test_next_in_line_has_the_lock_after_a_release_by_name(
    peer: AnyPeer, watcher: WireClient
) -> None:
    grant = peer.call("acquire", "disk")
    second: Any = peer.client.lock("disk")
    waiting = peer.run(second.acquire)
    wait_for_waiters(watcher, "disk", 1)
    peer.call("release", "disk")
    assert waiting.result()
    assert not grant.held
    assert second.locked()


@pytest.mark.parametrize("end", ["disconnected", "daemon gone", "closed"])
def test_whole_line_hears_of_the_end_of_the_connection(
    end: str, peer: AnyPeer, watcher: WireClient, daemon: DaemonProcess
) -> None:
    locks: list[Any] = [peer.client.lock("disk") for _ in range(3)]
    peer.run(locks[0].acquire).result()
    waiting = []
    for place, lock in enumerate(locks[1:], 1):
        waiting.append(peer.run(lock.acquire))
        wait_for_waiters(watcher, "disk", place)
    if end == "disconnected":
        watcher.call("disconnect", session=peer.session, reason="why")
    elif end == "daemon gone":
        daemon.kill()
    else:
        peer.close()
    for pending in waiting:
        with pytest.raises(lockd.ConnectionLostError):
            pending.result()


# Whose it is.


def test_name_is_that_of_the_callers_own_lock(
    peer: AnyPeer, watcher: WireClient
) -> None:
    others = peer.start("acquire", "disk", mode=lockd.SHARED).result()
    words = "you do not hold 'disk'; it is held shared by another .* of this program "
    for method, args in (("release", ()), ("convert", (lockd.EXCLUSIVE,))):
        with pytest.raises(lockd.NotHeldError, match=words):
            peer.call(method, "disk", *args)
    own = peer.call("acquire", "disk", mode=lockd.SHARED)
    assert own.fencing_token != others.fencing_token
    assert holders(watcher, "disk") == ["us", "us"]
    peer.call("release", "disk")
    assert (own.held, others.held) == (False, True)
    # By its grant, anybody may change it and release it.
    assert peer.call("convert", others, lockd.EXCLUSIVE) is others
    assert others.mode == lockd.EXCLUSIVE
    peer.call("release", others)
    assert not others.held
    assert holders(watcher, "disk") == []


def test_name_is_that_of_the_session_as_a_whole_without_a_lock_of_ones_own(
    peer: AnyPeer, watcher: WireClient
) -> None:
    peer.call("call", "acquire", resource="disk", mode="shared")
    own = peer.call("acquire", "disk", mode=lockd.SHARED)
    assert len(holders(watcher, "disk")) == 2
    peer.call("release", "disk")
    assert not own.held
    assert len(holders(watcher, "disk")) == 1
    peer.call("release", "disk")
    assert holders(watcher, "disk") == []


def test_counted_lock_is_released_by_name_as_often_as_it_was_acquired(
    peer: AnyPeer, watcher: WireClient
) -> None:
    for _ in range(2):
        peer.call("acquire", "disk", mode=lockd.SHARED)
    peer.call("release", "disk")
    assert holders(watcher, "disk") == ["us"]
    peer.call("release", "disk")
    assert holders(watcher, "disk") == []
    with pytest.raises(lockd.NotHeldError):
        peer.call("release", "disk")


def test_second_of_two_upgrades_in_one_program_is_a_deadlock(
    peer: AnyPeer, watcher: WireClient
) -> None:
    first = peer.start("acquire", "disk", mode=lockd.SHARED).result()
    second = peer.call("acquire", "disk", mode=lockd.SHARED)
    waiting = peer.start("convert", first, lockd.EXCLUSIVE)
    wait_for_waiters(watcher, "disk", 1)
    with pytest.raises(lockd.DeadlockError, match=r"this t.* by another t"):
        peer.call("convert", second, lockd.EXCLUSIVE)
    peer.call("release", second)
    assert waiting.result().mode == lockd.EXCLUSIVE


def test_session_that_acts_for_another_process_is_one_party(
    shell: Any, sock: str, watcher: WireClient
) -> None:
    with idle() as child:
        helper, other = shell.connect(sock), shell.connect(sock)
        for peer in (helper, other):
            peer.call("register", "guest", pid=child.pid)
        taken = helper.start("acquire", "disk").result()
        ways: list[Callable[[], object]] = [
            partial(peer.call, "acquire", "disk") for peer in (helper, other)
        ]
        lock: Any = helper.client.lock("disk")
        ways.append(lambda: helper.run(lock.acquire).result())
        ways.append(lambda: helper.run(lock.__enter__).result())
        if isinstance(helper, AsyncPeer):
            ways[-1] = lambda: helper.run(lock.__aenter__).result()
        for ask in ways:
            with pytest.raises(lockd.AlreadyHeldError, match="by guest"):
                ask()
        # Whoever acts for the process releases by name what it holds.
        other.call("release", "disk")
        assert holders(watcher, "disk") == []
        with pytest.raises(lockd.NotHeldError):
            helper.call("release", taken)


# Deadlocks.


def test_threads_with_one_lock_each_block_nobody_crosswise(
    shell: Any, sock: str, watcher: WireClient
) -> None:
    """Two clients: each holds what a thread or task of the other one waits for."""
    first, second = shell.connect(sock), shell.connect(sock)
    held, waiting = [], []
    for peer, name in ((first, "a"), (second, "b"), (first, "c"), (second, "d")):
        held.append((peer, peer.start("acquire", name).result()))
    for peer, name in ((first, "b"), (second, "a"), (first, "d"), (second, "c")):
        waiting.append((peer, peer.start("acquire", name)))
        wait_for_waiters(watcher, name, 1)
    for peer, grant in held:
        peer.call("release", grant)
    for _, pending in waiting:
        assert pending.result().held


@pytest.mark.parametrize("bare", [False, True])
def test_deadlock_of_two_threads_is_refused_and_names_both(
    client: lockd.Client, watcher: WireClient, bare: bool
) -> None:
    """In a `with` statement, it is; a bare acquire belongs to no thread."""
    words = (
        "waiting for 'a' would never end; this thread waits for 'a', held or queued "
        "for by another thread of this program, who waits for 'b', held or queued for "
        "by this thread"
    )

    def other() -> None:
        with client.lock("a"), client.lock("b"):
            pass

    with client.lock("b"):
        thread = Thread(other)
        wait_for_waiters(watcher, "b", 1)
        if bare:
            assert not client.lock("a").acquire(timeout=0.01)
        else:
            with pytest.raises(lockd.DeadlockError, match=words), client.lock("a"):
                raise AssertionError
            with pytest.raises(lockd.DeadlockError, match=words):
                client.acquire("a")
    thread.result()
    wait_until_free(watcher, "a")


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_deadlock_of_two_tasks_is_refused_and_names_both(
    sock: str, watcher: WireClient, backend: str
) -> None:
    async def main() -> None:
        async def other(client: lockd.aio.Client) -> None:
            async with client.hold("a"), client.hold("b"):
                pass

        words = "this task waits for 'a', .* by another task of this program"
        async with (
            lockd.aio.connect(sock) as client,
            anyio.create_task_group() as tasks,
            client.hold("b"),
        ):
            tasks.start_soon(other, client)
            await anyio.to_thread.run_sync(wait_for_waiters, watcher, "b", 1)
            with pytest.raises(lockd.DeadlockError, match=words):
                async with client.hold("a"):
                    raise AssertionError
            with pytest.raises(lockd.DeadlockError, match=words):
                await client.acquire("a")

    anyio.run(main, backend=backend)


TASKS, NAMES, ROUNDS = 10, 20, 10


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_tasks_that_hold_one_lock_at_a_time_are_never_refused(
    sock: str, backend: str
) -> None:
    """Two programs of tasks want the same few names; no task holds two locks."""

    async def work(client: lockd.aio.Client, number: int) -> None:
        for step in range(ROUNDS):
            for way in range(3):
                name = f"name {(number * 7 + step * (way + 3)) % NAMES}"
                if way == 0:
                    async with client.hold(name):
                        await client.statistics()
                elif way == 1:
                    async with await client.acquire(name):
                        await client.statistics()
                else:
                    async with client.lock(name) as lock:
                        lock.check()

    async def main() -> dict[str, int]:
        async with lockd.aio.connect(sock) as client:
            async with anyio.create_task_group() as tasks:
                for number in range(TASKS):
                    tasks.start_soon(work, client, number)
            return await client.statistics()

    programs = [Thread(partial(anyio.run, main, backend=backend)) for _ in range(2)]
    for program in programs:
        assert program.result()["refused"] == 0


def test_threads_that_hold_one_lock_at_a_time_are_never_refused(sock: str) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(lockd.connect(sock)) for _ in range(2)]

        def work(client: lockd.Client, number: int) -> None:
            for step in range(3 * ROUNDS):
                name = f"name {(number + step * 3) % 6}"
                with client.lock(name) if step % 2 else client.acquire(name):
                    client.query(name)

        threads = [
            Thread(partial(work, client, number))
            for number in range(4)
            for client in clients
        ]
        for thread in threads:
            thread.result()
        assert clients[0].statistics()["refused"] == 0


# Like the locks of Python.


def make_test_case(name: str, client: lockd.Client) -> unittest.TestCase:
    """Returns a test of CPython of its own lock, for ours."""
    numbers = count()
    why = "CPython's own tests are not installed (Debian: libpython3-testsuite)"
    lock_tests: Any = pytest.importorskip("test.lock_tests", reason=why)

    class OurLock(lock_tests.LockTests):  # type: ignore[misc]
        def locktype(self) -> lockd.Lock:
            return client.lock(f"lock {next(numbers)}")

    case: unittest.TestCase = OurLock(name)
    return case


@pytest.mark.parametrize(
    "name",
    [
        "test_acquire_contended",
        "test_acquire_destroy",
        "test_acquire_release",
        "test_different_thread",
        "test_reacquire",
        "test_state_after_timeout",
        "test_thread_leak",
        "test_try_acquire",
        "test_try_acquire_contended",
        "test_weakref_deleted",
        "test_weakref_exists",
        "test_with",
    ],
)
def test_lock_passes_the_tests_of_pythons_own(name: str, client: lockd.Client) -> None:
    result = unittest.TestResult()
    make_test_case(name, client).run(result)
    assert result.testsRun == 1
    assert not result.skipped
    assert not result.failures + result.errors, result.failures + result.errors


def test_second_acquire_of_a_thread_is_granted_when_another_one_releases(
    client: lockd.Client, watcher: WireClient
) -> None:
    lock = client.lock("disk")
    assert lock.acquire()
    assert not lock.acquire(timeout=0.01)
    again = Thread(lambda: [bool(lock.acquire()), bool(lock.acquire())])
    for _ in range(2):
        wait_for_waiters(watcher, "disk", 1)
        lock.release()
    assert again.result() == [True, True]
    lock.release()
    assert not lock.locked()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_lock_is_acquired_and_released_by_threads_of_a_pool(
    client: lockd.Client, backend: str
) -> None:
    """The thread that releases is seldom the one that acquired."""
    inside: list[int] = []

    async def main() -> None:
        limiter = anyio.CapacityLimiter(64)

        async def work(number: int) -> None:
            lock = client.lock("disk")
            await anyio.to_thread.run_sync(lock.acquire, limiter=limiter)
            inside.append(number)
            await anyio.to_thread.run_sync(client.statistics, limiter=limiter)
            assert inside == [number]
            inside.clear()
            await anyio.to_thread.run_sync(lock.release, limiter=limiter)

        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(work, number)

    anyio.run(main, backend=backend)
    assert client.statistics()["held"] == 0


@pytest.mark.slow
def test_thousand_threads_stand_in_line_before_a_stranger_who_comes_last(
    tmp_path: Path,
) -> None:
    served: list[str] = []

    def work(client: lockd.Client, number: int) -> None:
        with client.lock("disk"):
            served.append(f"thread {number}")

    # With a thousand waiters, checks after each request would take minutes.
    daemon = DaemonProcess(tmp_path, checks=False)
    sock = daemon.socket
    daemon.start()
    with (
        closing(daemon),
        lockd.connect(sock) as client,
        WireClient(sock) as watcher,
        WireClient(sock) as stranger,
    ):
        with client.lock("disk"):
            threads = [Thread(partial(work, client, n)) for n in range(1_000)]
            wait_for_waiters(watcher, "disk", 1_000)
            request = stranger.send("acquire", resource="disk")
            wait_for_waiters(watcher, "disk", 1_001)
            assert served == []
        stranger.result(request)
        # Each was served before the stranger.
        assert len(set(served)) == 1_000
        for thread in threads:
            thread.result()


# Several at once.


@pytest.mark.parametrize("kind", ["lock", "grant", "name"])
def test_release_of_several_goes_on_after_one_that_fails(
    kind: str, peer: AnyPeer, watcher: WireClient
) -> None:
    broken: Any = peer.client.lock("broken")
    kept: Any = peer.client.lock("kept")
    for lock in (broken, kept):
        peer.run(lock.acquire).result()
    grant = peer.call("acquire", "granted")
    peer.call("acquire", "named")
    failing = {"lock": broken, "grant": grant_of(broken), "name": "broken"}[kind]
    break_it(peer, broken, watcher)
    error = lockd.NotHeldError if kind == "name" else lockd.LockLostError
    with pytest.raises(error, match="broken"):
        peer.call("release", failing, kept, grant, "named", "never held")
    for name in ("kept", "granted", "named"):
        assert watcher.call("query", resource=name)["holder_count"] == 0, name
    assert not kept.locked()
    assert not grant.held


def test_release_of_what_a_lock_does_not_hold_keeps_nothing_else(
    peer: AnyPeer, watcher: WireClient
) -> None:
    grant = peer.call("acquire", "granted")
    kept: Any = peer.client.lock("kept")
    peer.run(kept.acquire).result()
    with pytest.raises(lockd.NotHeldError, match="free"):
        peer.call("release", peer.client.lock("free"), kept, grant)
    assert not kept.locked()
    assert not grant.held
    assert watcher.call("query", resource="kept")["holder_count"] == 0


# What is left behind.


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_tasks_leave_nothing_behind(sock: str, backend: str) -> None:
    numbers: set[int] = set()

    async def main() -> None:
        async with lockd.aio.connect(sock) as client:

            async def work(number: int) -> None:
                async with client.hold(f"lock {number}") as grant:
                    numbers.add(int(grant.hold.strand))

            for _ in range(50):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(work, 0)
                    tasks.start_soon(work, 1)
                gc.collect()
            assert len(client._link._strands) == 0
            await client.statistics()  # the daemon takes its requests in order
            assert not client._link._core._holds._tokens

    anyio.run(main, backend=backend)
    assert len(numbers) < 50


def test_threads_and_locks_leave_nothing_behind(client: lockd.Client) -> None:
    lock = client.lock("lock")
    before = LoneStrand()
    for _ in range(50):
        Thread(partial(lock.acquire)).result()
        Thread(lock.release).result()
    assert not client._connection.last._core._holds._tokens
    assert LoneStrand() < before + 50


def test_child_has_strands_of_its_own_sessions(client: lockd.Client, sock: str) -> None:
    """It has the number of its parent's thread, in another session."""

    def child() -> str:
        with lockd.connect(sock, name="child") as own:
            assert own.try_acquire("disk") is None
            with own.lock("other"), pytest.raises(lockd.AlreadyHeldError):
                own.acquire("other")
            return "done"

    with client.lock("disk"):
        assert in_child(child) == "done"
        with pytest.raises(lockd.AlreadyHeldError):
            client.acquire("disk")


def test_client_that_reconnects_has_the_strands_of_its_threads(
    sock: str, daemon: DaemonProcess
) -> None:
    with lockd.connect(sock, reconnect=True) as client:
        lost = client.acquire("disk")
        daemon.kill()
        daemon.start()
        again = client.acquire("disk")
        with pytest.raises(lockd.AlreadyHeldError, match="this thread"):
            client.acquire("disk")
        with pytest.raises(lockd.LockLostError):
            client.release(lost)
        client.release("disk")
        assert not again.held
