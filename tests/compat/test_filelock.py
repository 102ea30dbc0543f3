"""`lockd.FileLock`, beside what filelock's own tests say of it (`make test-peers`)."""

import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import filelock
import pytest

import lockd
from client.adapters import Thread
from lockd.compat.filelock import FileLock
from lockd.names import name_of_path
from support.daemon_process import DaemonProcess
from support.processes import in_child
from support.wire_client import PATIENCE, WireClient, wait_for_waiters


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.lock"


def holders(watcher: WireClient, name: str) -> int:
    found = watcher.call("query", resource=name, lockspace="default")
    count = found["holder_count"]
    assert isinstance(count, int)
    return count


def test_path_is_a_name_and_no_file(path: Path, watcher: WireClient) -> None:
    lock = lockd.FileLock(path)
    with lock:
        assert lock.is_locked
        assert holders(watcher, str(path)) == 1
        assert not path.exists()
    assert not lock.is_locked
    assert holders(watcher, str(path)) == 0
    assert isinstance(lock, filelock.BaseFileLock)


def test_every_spelling_of_a_path_is_one_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path.parent / "link").symlink_to(path.parent)
    monkeypatch.chdir(path.parent)
    for spelling in (path, path.parent / "link" / ".." / path.parent / path.name):
        assert name_of_path(str(spelling)) == str(path)
    with FileLock("a.lock"), pytest.raises(filelock.Timeout):
        FileLock(path.parent / "link" / "a.lock", timeout=0).acquire()


@pytest.mark.parametrize("name", ["x" * 255, "tab\t", "\udcff"])
def test_path_that_is_no_name_is_hashed(
    name: str, tmp_path: Path, watcher: WireClient
) -> None:
    path = tmp_path / name
    with lockd.FileLock(path):
        assert holders(watcher, lockd.hashed_name(path)) == 1


def test_holder_is_named_in_the_log(
    path: Path, watcher: WireClient, caplog: pytest.LogCaptureFixture
) -> None:
    watcher.call("register", owner={"name": "somebody"})
    watcher.acquire(str(path), lockspace="default")
    for timeout in (0, 0.01):
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, "lockd.compat.filelock"),
            pytest.raises(filelock.Timeout) as caught,
        ):
            lockd.FileLock(path).acquire(timeout=timeout)
        assert caught.value.lock_file == str(path)
        assert "is held exclusively by somebody" in caplog.text


def test_lock_is_reentrant(path: Path) -> None:
    lock = lockd.FileLock(path)
    with lock, lock.acquire(timeout=0):
        assert lock.lock_counter == 2
    assert lock.lock_counter == 0
    single = [lockd.FileLock(path, is_singleton=True) for _ in range(2)]
    with single[0], single[1]:
        assert single[0] is single[1]


def test_threads_wait_in_the_queue_of_the_daemon(
    path: Path, watcher: WireClient
) -> None:
    watcher.acquire(str(path), lockspace="default")
    order: list[int] = []

    def use(number: int) -> None:
        with lockd.FileLock(path):
            order.append(number)

    threads = []
    for number in range(5):
        threads.append(Thread(partial(use, number)))
        wait_for_waiters(watcher, str(path), number + 1)
    # filelock lets nobody fork while it takes a lock; waiting is not that.
    assert in_child(lambda: "done") == "done"
    watcher.call("release", resource=str(path), lockspace="default")
    for thread in threads:
        thread.result()
    assert order == [0, 1, 2, 3, 4]


def test_wait_can_be_cancelled(path: Path, watcher: WireClient) -> None:
    watcher.acquire(str(path), lockspace="default")
    asked: list[bool] = []

    def cancelled() -> bool:
        asked.append(True)
        return len(asked) > 2

    lock = lockd.FileLock(path, poll_interval=0.01)
    with pytest.raises(filelock.Timeout):
        lock.acquire(cancel_check=cancelled)
    assert len(asked) == 3


def test_other_processes_are_excluded(path: Path) -> None:
    def child() -> None:
        lockd.FileLock(path, timeout=0).acquire()

    lock = lockd.FileLock(path)
    with lock:
        assert "Timeout" in in_child(child)
        # A child inherits no lock.
        assert "RuntimeError" in in_child(lock.acquire)
        assert in_child(lock.release) == "None"
        assert "Timeout" in in_child(child)
    assert in_child(child) == "None"


def test_lock_that_was_lost_is_not_released_in_silence(
    path: Path, watcher: WireClient
) -> None:
    lock = lockd.FileLock(path)
    lock.acquire()
    (holder,) = watcher.call("query", resource=str(path), lockspace="default")[
        "holders"
    ]
    token = holder["fencing_token"]
    watcher.call("break", fencing_token=token, reason="why")
    with pytest.raises(lockd.LockLostError):
        lock.release()
    assert not lock.is_locked
    with lock:
        assert lock.is_locked


@pytest.mark.parametrize("way", [lockd.FileLock.release, lockd.FileLock.__del__])
def test_lock_is_released_when_a_daemon_is_back(
    way: Callable[[lockd.FileLock], None], path: Path, daemon: DaemonProcess
) -> None:
    lock = lockd.FileLock(path)
    lock.acquire()
    daemon.stop()
    if way is lockd.FileLock.release:
        with pytest.raises(lockd.LockLostError):
            lock.release()
    else:
        del lock
    with pytest.raises(lockd.ConnectionLostError):
        lockd.FileLock(path).acquire()
    daemon.start()
    with lockd.FileLock(path, timeout=0):
        pass


def test_shell_excludes_a_program(path: Path) -> None:
    command = [sys.executable, "-m", "lockd", "run", "-n"]
    words = ["--lockspace", "default", str(path), "--", "true"]
    with lockd.FileLock(path):
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, timeout=PATIENCE
        )
    assert done.returncode == 75
    assert str(path) in done.stderr


def test_what_needs_a_file_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="on_acquired is not supported"):
        lockd.FileLock(path, on_acquired=print)
    with pytest.warns(UserWarning, match="lockd breaks no lock by its age"):
        lockd.FileLock(path, lifetime=5)
