"""The driver `lockd://`, beside what tooz's own tests say of it (`make test-peers`)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tooz
from tooz import coordination

from lockd.compat.tooz import LockdDriver
from support.daemon_process import DaemonProcess
from support.wire_client import PATIENCE, WireClient, wait_for_waiters


@pytest.fixture
def coordinator(sock: str) -> Iterator[Any]:
    coordinator = coordination.get_coordinator(f"lockd://{sock}", b"me")
    coordinator.start()
    yield coordinator
    coordinator.stop()


def test_url_finds_the_driver_and_the_daemon(sock: str) -> None:
    for url in (f"lockd://{sock}", "lockd://"):
        coordinator = coordination.get_coordinator(url, b"me")
        assert isinstance(coordinator, LockdDriver)
        coordinator.start()
        assert not coordinator.requires_beating
        coordinator.stop()


def test_lock_is_one_of_the_lockspace_default(
    coordinator: Any, watcher: WireClient
) -> None:
    with coordinator.get_lock(b"backup"):
        found = watcher.call("query", resource="backup", lockspace="default")
        assert [holder["name"] for holder in found["holders"]] == ["me"]
    long = b"\xff" * 300
    lock = coordinator.get_lock(long)
    assert lock.name == long
    with lock:
        assert not coordinator.get_lock(long).acquire(blocking=False)


def test_lock_waits_for_as_long_as_it_is_told(
    coordinator: Any, watcher: WireClient
) -> None:
    watcher.acquire("backup")
    lock = coordinator.get_lock(b"backup")
    assert not lock.acquire(blocking=False)
    assert not lock.acquire(blocking=0.01)
    assert not lock.acquire(timeout=0.01)
    with pytest.raises(coordination.LockAcquireFailed), lock(timeout=0.01):
        raise AssertionError
    with ThreadPoolExecutor() as pool:
        acquired = pool.submit(lock.acquire)
        wait_for_waiters(watcher, "backup", 1)
        watcher.call("release", resource="backup")
        assert acquired.result(PATIENCE) is True
    assert lock.release()
    assert not lock.release()


def test_shared_lock_is_counted(coordinator: Any) -> None:
    lock, other = (coordinator.get_lock("backup") for _ in range(2))
    assert lock.acquire(shared=True)
    assert lock.acquire(shared=True)
    assert lock.release()
    assert lock.is_still_owner()
    assert not other.acquire(blocking=False)
    assert other.acquire(shared=True)
    assert lock.release()
    assert not lock.is_still_owner()


def test_broken_lock_is_not_released(coordinator: Any) -> None:
    lock, other = (coordinator.get_lock("backup") for _ in range(2))
    assert not other.break_()
    lock.acquire()
    assert other.break_()
    assert other.acquire(timeout=PATIENCE)
    assert not lock.is_still_owner()
    assert not lock.release()
    assert other.is_still_owner()


def test_coordinator_survives_the_end_of_the_daemon(
    coordinator: Any, daemon: DaemonProcess
) -> None:
    lock = coordinator.get_lock(b"backup")
    lock.acquire()
    daemon.stop()
    assert not lock.release()
    with pytest.raises(coordination.ToozConnectionError):
        lock.acquire()
    daemon.start()
    with lock:
        assert lock.is_still_owner()


def test_daemon_that_is_not_there_is_a_connection_error() -> None:
    coordinator = coordination.get_coordinator("lockd:///nowhere/lockd.sock", b"me")
    with pytest.raises(coordination.ToozConnectionError):
        coordinator.start()
    with pytest.raises(tooz.ToozError):
        coordinator.get_lock(b"backup")


def test_groups_and_leaders_are_not_implemented(coordinator: Any) -> None:
    for method in ("get_groups", "run_watchers", "run_elect_coordinator"):
        with pytest.raises(tooz.NotImplemented):
            getattr(coordinator, method)()
    for what in ("join_group", "leave_group", "elected_as_leader"):
        with pytest.raises(tooz.NotImplemented):
            getattr(coordinator, f"watch_{what}")(b"group", print)
