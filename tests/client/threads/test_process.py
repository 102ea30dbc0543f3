"""`lockd.lock`: each process has a connection of its own, from its first use on.

A forked child of the test has not used any: what it does begins anew.
"""

import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import lockd
from client.adapters import Thread
from support.daemon_process import DaemonProcess
from support.processes import in_child
from support.wire_client import PATIENCE, WireClient, wait_for_waiters


@pytest.fixture(autouse=True)
def _found(sock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKD_SOCKET", sock)


def sessions_of(pid: int, watcher: WireClient) -> int:
    found = watcher.call("list_sessions")["sessions"]
    return sum(session["pid"] == pid for session in found)


def test_lock_is_held_in_the_third_line_of_a_program(watcher: WireClient) -> None:
    program = """\
import lockd

with lockd.lock("disk"):
    input()
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, text=True) as process:
        watcher.call("watch")
        watcher.notification("event")
        (holder,) = watcher.call("query", resource="disk")["holders"]
        assert holder["pid"] == process.pid
        _, complaints = process.communicate("\n", timeout=PATIENCE)
    assert (process.returncode, complaints) == (0, "")


def test_arguments_are_those_of_a_client() -> None:
    ours = inspect.signature(lockd.lock)
    theirs = inspect.signature(lockd.Client.lock)
    assert list(ours.parameters.values()) == list(theirs.parameters.values())[1:]
    with pytest.raises(lockd.InvalidRequestError):
        lockd.lock("")
    with pytest.raises(TypeError):
        lockd.lock("disk", timeout="5")  # type: ignore[arg-type]


def test_connection_is_made_at_the_first_use(
    daemon: DaemonProcess, watcher: WireClient
) -> None:
    def child() -> str:
        lock = lockd.lock("disk", timeout=5)
        before = sessions_of(os.getpid(), watcher)
        with lock, lockd.lock("other"):
            return f"{before} {sessions_of(os.getpid(), watcher)}"

    assert in_child(child) == "0 1"


def test_first_use_says_that_there_is_no_daemon(daemon: DaemonProcess) -> None:
    daemon.stop()
    assert "ConnectionLostError" in in_child(lockd.lock("disk").acquire)


def test_threads_that_begin_together_have_one_connection(watcher: WireClient) -> None:
    def child() -> str:
        count = 8
        lock = lockd.lock("disk")
        together = threading.Barrier(count)
        inside: list[int] = []

        def use() -> bool:
            together.wait(PATIENCE)
            for _ in range(20):
                with lock:
                    inside.append(1)
                    alone = len(inside) == 1
                    inside.pop()
                    if not alone:
                        return False
            return True

        threads = [Thread(use) for _ in range(count)]
        assert all(thread.result() for thread in threads)
        return str(sessions_of(os.getpid(), watcher))

    assert in_child(child) == "1"


def test_child_neither_holds_nor_ends_what_its_parent_holds(
    watcher: WireClient,
) -> None:
    def parent() -> str:
        lock = lockd.lock("disk")

        def child() -> str:
            assert not lock.locked()
            with pytest.raises(lockd.ForkedSessionError):
                lock.release()
            assert not lock.acquire(blocking=False)
            with lockd.lock("other") as other:
                assert other.locked()
                assert sessions_of(os.getpid(), watcher) == 1
            return "done"

        with lock:
            said = in_child(child)
            lock.check()
            assert watcher.call("query", resource="disk")["holder_count"] == 1
        assert lock.acquire(blocking=False)
        return said

    assert in_child(parent) == "done"


def test_child_uses_the_lock_object_of_its_parent(watcher: WireClient) -> None:
    def parent() -> str:
        lock = lockd.lock("disk")

        def child() -> str:
            with lock:
                assert lock.locked()
            lock.acquire()
            lock.release()
            with pytest.raises(lockd.NotHeldError):
                lock.release()
            return "done"

        lock.acquire()
        lock.release()
        return in_child(child)

    assert in_child(parent) == "done"


def test_child_that_leaves_the_body_of_its_parent_releases_nothing() -> None:
    def parent() -> str:
        lock = lockd.lock("disk")
        with lock:
            said = in_child(lambda: lock.__exit__(None, None, None))
            lock.check()
        return said

    assert in_child(parent) == "None"


def test_children_exclude_each_other(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")

    def parent() -> str:
        lock = lockd.lock("counter")
        with lock:
            pass

        def count() -> None:
            for _ in range(25):
                with lock:
                    counter.write_text(str(int(counter.read_text()) + 1))

        children = [Thread(lambda: in_child(count)) for _ in range(4)]
        assert [child.result() for child in children] == ["None"] * 4
        return counter.read_text()

    assert in_child(parent) == "100"


PROGRAM = """
import lockd

lock = lockd.lock("disk")
try:
    with lock:
        input("held\\n")
except lockd.LockLostError:
    print("lost", lock.locked(), flush=True)
try:
    lock.acquire()
except lockd.ConnectionLostError:
    input("gone\\n")
with lock:
    print("held again")
"""


def test_process_survives_the_end_of_its_daemon(daemon: DaemonProcess) -> None:
    command = [sys.executable, "-c", PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        daemon.stop()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "lost False\n"
        assert process.stdout.readline() == "gone\n"
        daemon.start()
        said, _ = process.communicate("\n", timeout=PATIENCE)
    assert (process.returncode, said) == (0, "held again\n")


def test_waiting_call_ends_with_the_daemon_and_a_later_one_does_not(
    daemon: DaemonProcess, watcher: WireClient
) -> None:
    watcher.acquire("disk")
    told = os.pipe()

    def child() -> str:
        lock = lockd.lock("disk")
        with pytest.raises(lockd.ConnectionLostError):
            lock.acquire()
        os.read(told[0], 1)
        with lock:
            return "done"

    thread = Thread(lambda: in_child(child))
    wait_for_waiters(watcher, "disk", 1)
    daemon.stop()
    daemon.start()
    os.write(told[1], b".")
    assert thread.result() == "done"
    for descriptor in told:
        os.close(descriptor)
