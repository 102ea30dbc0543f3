"""Many threads, one connection: who reads, who sleeps, who is interrupted."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest

import lockd
from client.adapters import BlockingPeer, Thread
from client.conformance import break_unheard, freeze
from lockd.client.reply import Reply
from lockd.client.threads import link as threadlink
from lockd.terms import Mode
from support.daemon_process import DaemonProcess
from support.wire_client import (
    PATIENCE,
    WireClient,
    wait_for_sessions,
    wait_for_waiters,
)


class Interruption(BaseException):
    """Stands for KeyboardInterrupt, which would end pytest if a test failed."""


@pytest.fixture
def client(sock: str) -> Iterator[lockd.Client]:
    with lockd.connect(sock, name="client") as client:
        yield client


@contextmanager
def interrupted_when(happens: Callable[[], object]) -> Iterator[None]:
    """Runs a body in which a signal raises an exception, and expects that it does."""

    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise Interruption

    def wait_and_send() -> None:
        happens()
        # Just before a thread enters poll(2), a signal does not keep it from waiting.
        while not interrupted.wait(0.05):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    thread = Thread(wait_and_send)
    try:
        with pytest.raises(Interruption):
            yield
        thread.result()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def is_free(watcher: WireClient, resource: str) -> bool:
    watcher.acquire(resource)
    watcher.call("release", resource=resource)
    return True


# Many threads.


def test_many_threads_share_one_connection(client: lockd.Client) -> None:
    def work(number: int) -> None:
        for _ in range(30):
            grant = client.acquire(f"own {number}")
            assert grant.resource == f"own {number}"
            assert client.query(f"own {number}")["holder_count"] == 1
            client.release(grant)

    for thread in [Thread(partial(work, i)) for i in range(12)]:
        thread.result()
    assert client.statistics()["held"] == 0
    assert "0 pending" in repr(client)
    assert "0 waiting" in repr(client)


def test_threads_with_locks_of_one_name_exclude_each_other(
    client: lockd.Client,
) -> None:
    inside: list[int] = []
    tokens: list[int] = []

    def work(number: int) -> None:
        for _ in range(15):
            with client.lock("disk") as lock:
                inside.append(number)
                client.query("disk")
                tokens.append(lock.fencing_token)
                assert inside == [number]
                inside.clear()

    for thread in [Thread(partial(work, i)) for i in range(8)]:
        thread.result()
    assert len(tokens) == 120
    assert tokens == sorted(set(tokens))


def test_threads_in_line_are_served_in_order(
    client: lockd.Client, watcher: WireClient
) -> None:
    served: list[int] = []

    def work(number: int) -> None:
        with client.lock("disk"):
            served.append(number)

    threads = []
    with client.lock("disk"):
        for number in range(5):
            threads.append(Thread(partial(work, number)))
            wait_for_waiters(watcher, "disk", number + 1)
    for thread in threads:
        thread.result()
    assert served == list(range(5))


def test_waiting_thread_holds_up_no_other(
    client: lockd.Client, watcher: WireClient
) -> None:
    watcher.acquire("disk")
    threads = [Thread(lambda: client.acquire("disk"))]
    wait_for_waiters(watcher, "disk", 1)
    for number in range(20):
        assert client.acquire(f"other {number}").held
    watcher.call("release", resource="disk")
    assert threads[0].result().held


MODES: list[tuple[Mode, Mode]] = [
    (lockd.EXCLUSIVE, lockd.EXCLUSIVE),
    (lockd.EXCLUSIVE, lockd.SHARED),
    (lockd.SHARED, lockd.EXCLUSIVE),
]


@pytest.mark.parametrize(("held", "wanted"), MODES)
def test_same_thread_is_refused_at_once(
    client: lockd.Client, held: Mode, wanted: Mode
) -> None:
    ways: list[Callable[[], object]] = [
        client.lock("disk", mode=wanted).__enter__,
        partial(client.acquire, "disk", mode=wanted),
        partial(client.acquire, "disk", mode=wanted, timeout=PATIENCE),
        partial(client.acquire_all, ["disk", "other"], mode=wanted),
        partial(client.try_acquire, "disk", mode=wanted),
    ]
    with client.lock("disk", mode=held):
        for ask in ways:
            with pytest.raises(lockd.AlreadyHeldError, match=r"held .* by this thread"):
                ask()
    with client.lock("disk", mode=wanted):
        pass


def test_acquire_of_a_lock_is_no_threads_own(
    client: lockd.Client, watcher: WireClient
) -> None:
    with client.lock("disk"):
        # It waits, although no other thread could release it.
        assert not client.lock("disk").acquire(timeout=0.01)
        assert not client.lock("disk").acquire(blocking=False)
        waiting = Thread(lambda: bool(client.lock("disk").acquire()))
        wait_for_waiters(watcher, "disk", 1)
    assert waiting.result() is True


def test_shared_lock_of_the_same_thread_is_counted(
    client: lockd.Client, watcher: WireClient
) -> None:
    lock = client.lock("disk", mode=lockd.SHARED)
    with lock:
        token = lock.fencing_token
        waiting = watcher.send("acquire", resource="disk")
        with WireClient(client._connection._address.path) as other:
            wait_for_waiters(other, "disk", 1)
        # It overtakes the waiter, which may wait for this very thread.
        with lock:
            assert lock.fencing_token == token
        assert lock.locked()
    assert watcher.result(waiting)["grant"]["fencing_token"] > token


def test_shared_lock_of_another_thread_overtakes_nobody(
    client: lockd.Client, watcher: WireClient
) -> None:
    with client.lock("disk", mode=lockd.SHARED):
        writer = Thread(partial(client.acquire, "disk"))
        wait_for_waiters(watcher, "disk", 1)
        reader = Thread(partial(client.acquire, "disk", mode=lockd.SHARED))
        wait_for_waiters(watcher, "disk", 2)
    client.release(writer.result())
    assert reader.result().held


@pytest.mark.parametrize("by", ["lock", "client"])
def test_thread_that_has_ended_is_not_taken_for_a_later_one(
    client: lockd.Client, by: str
) -> None:
    grants: list[lockd.Grant] = []
    lock = client.lock("disk")

    def acquire() -> None:
        if by == "lock":
            lock.acquire()
            grants.append(lock.grant)
        else:
            grants.append(client.acquire("disk"))

    ended = threading.Thread(target=acquire)
    ended.start()
    ended.join()
    later: SimpleQueue[object] = SimpleQueue()
    # The later thread gets the number of the ended one.
    thread = threading.Thread(target=lambda: later.put(outcome_of_try(client)))
    thread.start()
    thread.join()
    assert later.get() is lockd.AcquireTimeoutError
    with pytest.raises(
        lockd.NotHeldError,
        match=r"is held exclusively by (an|th)",
    ):
        client.release("disk")
    client.release(*grants)
    assert outcome_of_try(client) is None


def outcome_of_try(client: lockd.Client) -> type[Exception] | None:
    try:
        with client.lock("disk", timeout=0.01):
            return None
    except lockd.LockdError as error:
        return type(error)


def test_more_than_the_socket_takes_passes_at_once(client: lockd.Client) -> None:
    def work(number: int) -> None:
        # They are refused for their names, each by its own answer.
        name = f"{number} {'x' * 16_000}"
        replies = [Reply("check", {"resource": name}) for _ in range(10)]
        client._connection.last.perform(*replies)
        for reply in replies:
            with pytest.raises(lockd.InvalidRequestError):
                reply.outcome()

    for thread in [Thread(partial(work, i)) for i in range(16)]:
        thread.result()


# A thread that is interrupted.


def test_interrupted_wait_leaves_the_queue(
    client: lockd.Client, watcher: WireClient
) -> None:
    watcher.acquire("disk")
    with interrupted_when(lambda: wait_for_waiters(watcher, "disk", 1)):
        client.acquire("disk")
    assert watcher.call("query", resource="disk")["waiter_count"] == 0
    watcher.call("release", resource="disk")
    assert client.acquire("disk").held


def test_interrupted_reader_hands_the_reading_on(
    client: lockd.Client, watcher: WireClient
) -> None:
    watcher.acquire("disk")
    watcher.acquire("other")
    threads = []

    def start_another() -> None:
        wait_for_waiters(watcher, "disk", 1)
        threads.append(Thread(lambda: client.acquire("other")))
        wait_for_waiters(watcher, "other", 1)

    with interrupted_when(start_another):
        client.acquire("disk")
    watcher.call("release", resource="other")
    assert threads[0].result().held


def test_interrupted_sleeper_leaves_the_reader_alone(
    client: lockd.Client, watcher: WireClient
) -> None:
    watcher.acquire("disk")
    watcher.acquire("other")
    thread = Thread(lambda: client.acquire("other"))
    wait_for_waiters(watcher, "other", 1)
    with interrupted_when(lambda: wait_for_waiters(watcher, "disk", 1)):
        client.acquire("disk")
    assert watcher.call("query", resource="disk")["waiter_count"] == 0
    watcher.call("release", resource="other")
    assert thread.result().held


@pytest.mark.parametrize("first", ["release", "cancel"])
def test_grant_that_races_with_an_interruption_is_given_back(
    client: lockd.Client,
    sock: str,
    daemon: DaemonProcess,
    watcher: WireClient,
    first: str,
) -> None:
    watcher.acquire("disk")

    def stop_the_daemon() -> None:
        wait_for_waiters(watcher, "disk", 1)
        freeze(daemon)
        if first == "release":
            watcher.send("release", resource="disk")

    def go_on() -> None:
        # The main thread waits for the answer to its cancel: that it has sent it shows
        # in what its core waits for.
        deadline = time.monotonic() + PATIENCE
        while (
            len(client._connection.last._core._pending) < 2
            and time.monotonic() < deadline
        ):
            pass
        if first == "cancel":
            watcher.send("release", resource="disk")
        os.kill(daemon.pid, signal.SIGCONT)

    thread = Thread(go_on)
    with interrupted_when(stop_the_daemon):
        client.acquire("disk")
    thread.result()
    assert is_free(watcher, "disk")


def test_interrupted_wait_in_line_lets_the_next_one_in(
    client: lockd.Client, watcher: WireClient
) -> None:
    may_leave, holding = threading.Event(), threading.Event()
    threads: list[Thread] = []

    def hold() -> None:
        with client.lock("disk"):
            holding.set()
            assert may_leave.wait(PATIENCE)

    def start_another() -> None:
        wait_for_waiters(watcher, "disk", 1)
        threads.append(Thread(lambda: bool(client.lock("disk").acquire())))
        wait_for_waiters(watcher, "disk", 2)

    holder = Thread(hold)
    assert holding.wait(PATIENCE)
    with interrupted_when(start_another):
        client.lock("disk").acquire()
    wait_for_waiters(watcher, "disk", 1)
    may_leave.set()
    holder.result()
    assert threads[0].result() is True


def test_interrupted_lock_leaves_nothing_behind(
    client: lockd.Client, watcher: WireClient
) -> None:
    watcher.acquire("disk")
    lock = client.lock("disk")
    with interrupted_when(lambda: wait_for_waiters(watcher, "disk", 1)):
        lock.acquire()
    assert not lock.locked()
    watcher.call("release", resource="disk")
    with lock:
        assert lock.locked()
    client.statistics()  # The daemon takes the requests of a client in order.
    assert is_free(watcher, "disk")


def test_body_that_raises_gives_the_lock_back(
    client: lockd.Client, watcher: WireClient
) -> None:
    with pytest.raises(ZeroDivisionError), client.lock("disk"):
        raise ZeroDivisionError
    client.statistics()  # The daemon takes the requests of a client in order.
    assert is_free(watcher, "disk")


# The end of the connection, and what is lost.


def test_end_of_the_daemon_wakes_every_thread(
    client: lockd.Client, daemon: DaemonProcess, watcher: WireClient
) -> None:
    lock = client.lock("disk")
    lock.acquire()
    threads = []
    for number in range(5):
        watcher.acquire(f"disk {number}")
        threads.append(Thread(partial(client.acquire, f"disk {number}")))
        wait_for_waiters(watcher, f"disk {number}", 1)
    for in_line in range(2):
        threads.append(Thread(client.lock("disk").acquire))
        wait_for_waiters(watcher, "disk", in_line + 1)
    daemon.kill()
    for thread in threads:
        with pytest.raises(lockd.ConnectionLostError):
            thread.result()
    with pytest.raises(lockd.LockLostError):
        lock.release()


def test_refusal_that_another_thread_reads_at_once_is_raised_once(
    client: lockd.Client, watcher: WireClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = client.acquire("disk")
    link: Any = grant.link
    start, push = link._start_release, link._wire.push

    def lose_and_push() -> None:
        watcher.call("break", fencing_token=grant.fencing_token, reason="why")
        push()

    def start_and_let_another_read(*args: Any, **options: Any) -> list[Reply]:
        replies: list[Reply] = start(*args, **options)
        monkeypatch.undo()
        # The daemon takes the requests of a client in order.
        Thread(client.statistics).result()
        return replies

    monkeypatch.setattr(link._wire, "push", lose_and_push)
    monkeypatch.setattr(link, "_start_release", start_and_let_another_read)
    with pytest.raises(lockd.LockLostError, match="why"):
        grant.release(wait=False)
    assert client.acquire("disk").held


def test_close_wakes_every_thread(client: lockd.Client, watcher: WireClient) -> None:
    threads = []
    for number in range(3):
        watcher.acquire(f"disk {number}")
        threads.append(Thread(partial(client.acquire, f"disk {number}")))
        wait_for_waiters(watcher, f"disk {number}", 1)
    client.close()
    client.close()
    for thread in threads:
        with pytest.raises(lockd.ConnectionLostError, match="the client is closed"):
            thread.result()
    wait_for_sessions(watcher, 1)
    assert client._connection.last.sock.fileno() == -1


def test_losses_are_told_as_they_happen(
    sock: str, daemon: DaemonProcess, watcher: WireClient
) -> None:
    told: SimpleQueue[lockd.Grant] = SimpleQueue()
    with lockd.connect(sock, on_lost=told.put) as client:
        first, second = client.acquire("a"), client.acquire("b")
        client.release(client.acquire("c"))
        watcher.call("break", fencing_token=first.fencing_token, reason="why")
        assert told.get(timeout=PATIENCE) is first
        assert second.held
        daemon.kill()
        assert told.get(timeout=PATIENCE) is second
    assert told.empty()


def test_close_is_no_loss(sock: str) -> None:
    told: SimpleQueue[lockd.Grant] = SimpleQueue()
    with lockd.connect(sock, on_lost=told.put) as client:
        client.acquire("disk")
    for thread in threading.enumerate():
        if thread.name == "lockd-on-lost":
            thread.join(PATIENCE)
    assert told.empty()


def test_thread_that_checks_takes_no_answer_from_another(
    client: lockd.Client,
) -> None:
    def ask() -> None:
        for _ in range(300):
            client.statistics()

    with client.lock("disk") as lock:
        thread = Thread(ask)
        for _ in range(3_000):
            lock.check()
        thread.result()


def test_check_hears_of_a_loss(client: lockd.Client, watcher: WireClient) -> None:
    lock = client.lock("disk")
    lock.acquire()
    lock.check()
    watcher.call("break", fencing_token=lock.fencing_token, reason="it hangs")
    client.statistics()
    with pytest.raises(lockd.LockLostError, match="it hangs"):
        lock.check()
    with pytest.raises(lockd.LockLostError):
        lock.release()
    with lock:
        lock.check()


# Releases that nobody waits for.


def test_release_reaches_the_daemon_before_the_end_of_the_program(
    sock: str, watcher: WireClient
) -> None:
    child = os.fork()
    if child == 0:
        grant = lockd.connect(sock).acquire("disk")
        grant.release("failed", wait=False)
        os._exit(0)
    os.waitpid(child, 0)
    found = watcher.call("acquire", resource="disk")["grant"]["previous"]
    assert (found["ended"], found["outcome"]) == ("released", "failed")


def test_release_that_is_sent_before_a_hang_up_counts(
    sock: str, watcher: WireClient
) -> None:
    with WireClient(sock) as other:
        token = other.acquire("disk")["fencing_token"]
        other.send("release", fencing_token=token, outcome="failed")
    found = watcher.call("acquire", resource="disk")["grant"]["previous"]
    assert (found["ended"], found["outcome"]) == ("released", "failed")


def test_close_does_not_wait_long_for_a_daemon_that_hangs(
    sock: str, daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threadlink, "PATIENCE", 0.01)
    with lockd.connect(sock) as client, client.lock("disk"):
        freeze(daemon)
    assert "1 pending" not in repr(client)
    os.kill(daemon.pid, signal.SIGCONT)


def test_error_of_the_program_comes_before_a_late_loss(
    sock: str, daemon: DaemonProcess
) -> None:
    client = lockd.connect(sock)
    with client.lock("disk") as lock:
        break_unheard(daemon, BlockingPeer(client), lock.grant)
    os.kill(daemon.pid, signal.SIGCONT)
    with pytest.raises(ZeroDivisionError), client:
        raise ZeroDivisionError


def test_what_belonged_to_no_thread_is_told_to_any(
    client: lockd.Client, daemon: DaemonProcess
) -> None:
    lock = client.lock("disk")
    lock.acquire()
    breaking = break_unheard(daemon, BlockingPeer(client), lock.grant)
    lock.release(wait=False)
    assert not lock.locked()
    os.kill(daemon.pid, signal.SIGCONT)
    breaking.result()
    with pytest.raises(lockd.LockLostError, match="why"):
        Thread(partial(client.acquire, "other")).result()
    assert client.acquire("other").held


def test_close_hears_out_what_another_thread_reads(
    client: lockd.Client, daemon: DaemonProcess, watcher: WireClient
) -> None:
    watcher.acquire("taken")
    waiting = Thread(partial(client.acquire, "taken"))
    wait_for_waiters(watcher, "taken", 1)
    with client.lock("disk") as lock:
        break_unheard(daemon, BlockingPeer(client), lock.grant)
    closing = Thread(client.close)
    os.kill(daemon.pid, signal.SIGCONT)
    with pytest.raises(lockd.LockLostError, match="why"):
        closing.result()
    with pytest.raises(lockd.ConnectionLostError, match="the client is closed"):
        waiting.result()


# Events.


def test_events_come_to_who_watches(client: lockd.Client, watcher: WireClient) -> None:
    with client.watch("default") as events:
        watcher.acquire("disk")
        event = next(events)
        assert (event["event"], event["resource"]) == ("granted", "disk")
        watcher.call("release", resource="disk")
        assert next(events)["event"] == "released"


def test_interrupted_reader_of_events_loses_none(
    client: lockd.Client, watcher: WireClient
) -> None:
    with client.watch() as events:

        def wait_for_reader() -> None:
            while not client._connection.last._reading:
                pass

        with interrupted_when(wait_for_reader):
            next(events)
        watcher.acquire("disk")
        client.statistics()
        assert next(events)["event"] == "granted"


def test_watch_ends_with_the_connection(
    client: lockd.Client, daemon: DaemonProcess
) -> None:
    with client.watch() as events:
        daemon.kill()
        with pytest.raises(lockd.ConnectionLostError):
            next(events)
    with pytest.raises(lockd.ConnectionLostError), client.watch():
        raise AssertionError
