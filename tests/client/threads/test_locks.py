"""`Client.lock()` where `threading.Lock` or `filelock.FileLock` was."""

import math
import threading
from collections.abc import Iterator

import pytest

import lockd
from client.adapters import Thread
from support.processes import in_child
from support.wire_client import WireClient, wait_for_waiters


@pytest.fixture
def client(sock: str) -> Iterator[lockd.Client]:
    with lockd.connect(sock) as client:
        yield client


def break_and_fail(watcher: WireClient, lock: lockd.Lock) -> Exception:
    watcher.call("break", fencing_token=lock.fencing_token, reason="why")
    # By the next turn the daemon has told everybody of this one.
    watcher.call("statistics")
    return ZeroDivisionError()


def held_by_anybody(watcher: WireClient) -> bool:
    found = watcher.call("query", resource="disk")
    assert isinstance(found["holder_count"], int)
    return found["holder_count"] > 0


def test_lock_is_used_like_a_threading_lock(
    client: lockd.Client, watcher: WireClient
) -> None:
    lock = client.lock("disk")
    assert not lock.locked()
    assert lock.acquire()
    assert lock.locked()
    assert held_by_anybody(watcher)
    lock.release()
    assert not lock.locked()
    assert not held_by_anybody(watcher)
    with lock as entered:
        assert entered is lock
        assert held_by_anybody(watcher)
    client.statistics()  # The daemon takes the requests of a client in order.
    assert not held_by_anybody(watcher)


def test_lock_that_somebody_holds_is_not_acquired(
    client: lockd.Client, watcher: WireClient
) -> None:
    watcher.acquire("disk")
    lock = client.lock("disk")
    assert not lock.acquire(blocking=False)
    assert not lock.acquire(timeout=0.01)
    assert not lock.acquire(timeout=0)
    assert not lock.locked()
    watcher.call("release", resource="disk")
    assert lock.acquire(True, -1)


@pytest.mark.parametrize("timeout", [-1, 0, 5, 1e9 + 1, threading.TIMEOUT_MAX])
def test_timeouts_are_those_of_a_threading_lock(
    timeout: float, client: lockd.Client
) -> None:
    lock = client.lock("disk", timeout=timeout)
    with lock, pytest.raises(ValueError, match="does not wait"):
        lock.acquire(False, 1)
    assert lock.acquire(timeout=timeout)


def test_each_acquire_says_its_own_timeout_and_thread(
    client: lockd.Client, watcher: WireClient
) -> None:
    """A lock object keeps the bytes of its last request."""
    lock = client.lock("disk")
    with lock:
        assert not lock.acquire(blocking=False)
        assert not lock.acquire(timeout=0.001)
        with pytest.raises(lockd.AlreadyHeldError):
            lock.__enter__()
        thread = Thread(lock.__enter__)
        wait_for_waiters(watcher, "disk", 1)
    assert thread.result() is lock
    with pytest.raises(lockd.BusyError):
        client.acquire("disk", timeout=0)


def test_infinite_timeout_waits_without_a_limit(client: lockd.Client) -> None:
    assert client.lock("disk").acquire(timeout=math.inf)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (-100, ValueError),
        (-0.001, ValueError),
        (math.nan, ValueError),
        (threading.TIMEOUT_MAX + 1, OverflowError),
        (1e100, OverflowError),
        (10**400, OverflowError),
    ],
)
def test_timeout_that_a_threading_lock_rejects_is_rejected(
    timeout: float, error: type[Exception], client: lockd.Client
) -> None:
    lock = client.lock("disk")
    for kind in (error, lockd.InvalidRequestError):
        with pytest.raises(kind):
            lock.acquire(timeout=timeout)
        with pytest.raises(kind):
            client.lock("disk", timeout=timeout)


def test_lock_begins_anew_in_a_child(sock: str) -> None:
    with lockd.connect(sock) as client:
        lock = client.lock("disk")
        lock.acquire()

        def child() -> str:
            lock._at_fork_reinit()
            return str(lock.locked())

        assert in_child(child) == "False"
        lock.check()
        lock._at_fork_reinit()
        assert not lock.locked()
        assert client.lock("disk").acquire(blocking=False)


def test_lock_that_another_thread_holds_is_not_acquired(client: lockd.Client) -> None:
    lock = client.lock("disk")
    lock.acquire()

    def outcomes() -> list[bool]:
        ways = [(False, None), (True, 0.01)]
        return [bool(client.lock("disk").acquire(*way)) for way in ways]

    assert Thread(outcomes).result() == [False, False]
    assert not lock.acquire(blocking=False)
    lock.release()
    assert Thread(lambda: bool(lock.acquire(blocking=False))).result()


def test_any_thread_may_release(client: lockd.Client, watcher: WireClient) -> None:
    lock = client.lock("disk")
    lock.acquire()
    Thread(lock.release).result()
    assert not held_by_anybody(watcher)
    assert lock.acquire(blocking=False)


def test_lock_that_is_not_held_cannot_be_released(client: lockd.Client) -> None:
    lock = client.lock("disk")
    with pytest.raises(lockd.NotHeldError):
        lock.release()
    lock.acquire()
    lock.release()
    for ask in (lock.release, lock.check, lambda: lock.fencing_token):
        with pytest.raises(lockd.NotHeldError):
            ask()


def test_lock_is_used_like_a_file_lock(
    client: lockd.Client, watcher: WireClient
) -> None:
    lock = client.lock("disk", timeout=0.01)
    with lock.acquire(timeout=5) as entered:
        assert entered is lock
        assert lock.is_locked
        assert held_by_anybody(watcher)
    assert not lock.is_locked
    client.statistics()  # The daemon takes the requests of a client in order.
    assert not held_by_anybody(watcher)


def test_lock_that_is_entered_but_not_acquired_raises_why(
    client: lockd.Client, watcher: WireClient
) -> None:
    watcher.acquire("disk")
    lock = client.lock("disk", timeout=0.01)
    with pytest.raises(TimeoutError), lock:
        raise AssertionError
    with pytest.raises(lockd.AcquireTimeoutError) as caught, lock.acquire(timeout=0.02):
        raise AssertionError
    assert caught.value.facts["holder_count"] == 1
    with pytest.raises(lockd.BusyError), lock.acquire(blocking=False):
        raise AssertionError


def test_lock_says_what_is_held(client: lockd.Client, watcher: WireClient) -> None:
    lock = client.lock("disk", reason="why", label="what")
    assert repr(lock) == f"<unlocked Lock object (disk, exclusive) at {id(lock):#x}>"
    with lock:
        assert lock.fencing_token == lock.grant.fencing_token
        assert repr(lock).startswith("<locked Lock object (disk, exclusive) at ")
        (holder,) = watcher.call("query", resource="disk")["holders"]
        assert (holder["reason"], holder["label"]) == ("why", "what")


def test_threads_of_a_shared_lock_release_their_own_hold(client: lockd.Client) -> None:
    lock = client.lock("disk", mode=lockd.SHARED)
    lock.acquire()
    Thread(lock.acquire).result()
    lock.release()
    # The other thread's turn is still there, this one's is not: it would be refused.
    assert not client.lock("disk", timeout=0.01).acquire()
    assert lock.locked()
    lock.release()
    assert client.lock("disk", timeout=0.01).acquire()


def test_error_of_a_body_comes_before_a_lost_lock(
    client: lockd.Client, watcher: WireClient
) -> None:
    lock = client.lock("disk")
    with pytest.raises(ZeroDivisionError), lock:
        raise break_and_fail(watcher, lock)
    with client.lock("disk"):
        pass


def test_refusal_that_is_no_matter_of_time_is_raised(client: lockd.Client) -> None:
    lock = client.lock("disk", lockspace="nowhere")
    for _ in range(2):
        with pytest.raises(lockd.NotFoundError):
            lock.acquire(blocking=False)
