"""Real forks: the parent's locks stay with the parent, whatever the child does."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial

import anyio
import pytest

import lockd
from client.adapters import Thread
from lockd.client.threads.link import ThreadLink
from support.processes import in_child
from support.wire_client import PATIENCE, WireClient, wait_for_waiters


@pytest.fixture
def client(sock: str) -> Iterator[lockd.Client]:
    with lockd.connect(sock, name="parent") as client:
        yield client


def holder(watcher: WireClient) -> list[str]:
    found = watcher.call("query", resource="disk")["holders"]
    return [party["name"] for party in found]


def test_exit_of_a_child_drops_nothing(
    client: lockd.Client, watcher: WireClient
) -> None:
    with client.lock("disk") as lock:
        assert in_child(lambda: "done") == "done"
        lock.check()
        assert holder(watcher) == ["parent"]
    client.statistics()  # The daemon takes the requests of a client in order.
    assert holder(watcher) == []


def test_everything_that_a_child_asks_for_is_refused(
    client: lockd.Client, watcher: WireClient
) -> None:
    lock = client.lock("disk")
    lock.acquire()
    grant = lock.grant

    def watched() -> None:
        with client.watch():
            pass

    for ask in (
        lock.release,
        lock.check,
        client.lock("other").acquire,
        lambda: client.release(grant),
        lambda: client.release("disk"),
        lambda: client.acquire("other"),
        lambda: client.query("disk"),
        lambda: client.convert(grant, lockd.SHARED),
        client.statistics,
        watched,
    ):
        assert "ForkedSessionError" in in_child(ask)
        assert holder(watcher) == ["parent"]
    lock.check()
    lock.release()
    assert holder(watcher) == []


def test_child_that_closes_the_client_ends_nothing(
    client: lockd.Client, watcher: WireClient
) -> None:
    grant = client.acquire("disk")
    assert in_child(client.close) == "None"
    assert holder(watcher) == ["parent"]
    client.release(grant)


def test_child_that_leaves_the_body_releases_nothing(
    sock: str, watcher: WireClient
) -> None:
    def parent() -> None:
        with lockd.connect(sock, name="parent") as client, client.lock("disk") as lock:
            pid = os.fork()
            if pid == 0:
                return
            assert os.waitpid(pid, 0)[1] == 0
            lock.check()
            assert holder(watcher) == ["parent"]

    here = os.getpid()
    try:
        parent()
    finally:
        if os.getpid() != here:
            os._exit(1 if sys.exc_info()[0] else 0)
    assert holder(watcher) == []


def test_child_may_open_a_connection_of_its_own(
    client: lockd.Client, sock: str, watcher: WireClient
) -> None:
    def child() -> object:
        with lockd.connect(sock, name="child") as own, own.lock("other"):
            return own.try_acquire("disk"), own.query("other")["holder_count"]

    client.acquire("disk")
    assert in_child(child) == "(None, 1)"
    assert holder(watcher) == ["parent"]


def test_child_says_nothing_on_the_wire() -> None:
    ours, theirs = socket.socketpair()
    link = ThreadLink(ours)

    def child() -> str:
        link.close()
        link.catch_up()
        with pytest.raises(lockd.ForkedSessionError):
            link.check_owned()
        return str(ours.fileno())

    with theirs:
        assert in_child(child) == "-1"
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        link.close()
        assert theirs.recv(1) == b""


def test_child_of_a_killed_parent_keeps_no_lock(sock: str, watcher: WireClient) -> None:
    script = f"""
import os, signal, lockd
client = lockd.connect({sock!r})
client.acquire("disk")
if os.fork() == 0:
    print("ready", flush=True)
    input()
    os._exit(0)
signal.pause()
"""
    command = [sys.executable, "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        assert watcher.refusal("acquire", resource="disk", timeout=0).code == "busy"
        parent.kill()
        # The child goes on: it has the other end of the pipe still open.
        assert watcher.acquire("disk", timeout=PATIENCE)
        assert parent.stdin is not None
        parent.stdin.write("\n")


def test_fork_beside_a_waiting_thread_holds_up_nobody(
    client: lockd.Client, watcher: WireClient
) -> None:
    watcher.acquire("disk")
    thread = Thread(lambda: client.acquire("disk"))
    wait_for_waiters(watcher, "disk", 1)
    assert "ForkedSessionError" in in_child(lambda: client.acquire("other"))
    watcher.call("release", resource="disk")
    assert thread.result().held


def test_fork_while_a_thread_holds_the_mutex_holds_up_nobody(
    client: lockd.Client, watcher: WireClient
) -> None:
    may_leave, inside = threading.Event(), threading.Event()

    def hold_mutex() -> None:
        with client._connection.last._mutex:
            inside.set()
            assert may_leave.wait(PATIENCE)

    lock = client.lock("disk")
    lock.acquire()
    thread = Thread(hold_mutex)
    assert inside.wait(PATIENCE)

    def child() -> str:
        client.close()
        lock.__exit__(None, None, None)
        with pytest.raises(lockd.ForkedSessionError):
            lock.release()
        with pytest.raises(lockd.ForkedSessionError), client.watch():
            pass
        return "done"

    said = in_child(child)
    may_leave.set()
    thread.result()
    assert said == "done"
    lock.release()


def test_child_of_an_async_program_is_refused(sock: str, watcher: WireClient) -> None:
    async def main() -> None:
        async with (
            lockd.aio.connect(sock, name="parent") as client,
            client.hold("disk") as grant,
        ):
            # The child has no event loop: what would wait is refused before it does.
            for ask in (client.query, client.acquire, client.release):
                coroutine = ask("disk")
                said = in_child(partial(coroutine.send, None))
                assert "ForkedSessionError" in said
                coroutine.close()
            await client.statistics()
            grant.check()
            assert holder(watcher) == ["parent"]

    for backend in ("trio", "asyncio"):
        anyio.run(main, backend=backend)
