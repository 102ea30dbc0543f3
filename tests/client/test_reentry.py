"""The client is entered while it is inside itself, at every step of its code."""

import gc
from collections.abc import Callable, Iterator

import pytest

import lockd
from client.adapters import Thread
from client.reentry import at_each_step
from support.wire_client import WireClient


class Interruption(BaseException):
    """Stands for KeyboardInterrupt, or the time-out of a program's own SIGALRM."""


@pytest.fixture
def client(sock: str) -> Iterator[lockd.Client]:
    with lockd.connect(sock, name="client") as client:
        yield client


def holders(watcher: WireClient, resource: str) -> int:
    count = watcher.call("query", resource=resource)["holder_count"]
    assert isinstance(count, int)
    return count


def use_a_lock(client: lockd.Client) -> None:
    with client.lock("work") as lock:
        assert lock.locked()


def use_a_grant(client: lockd.Client) -> None:
    grant = client.acquire("work", mode=lockd.SHARED)
    client.convert(grant, lockd.EXCLUSIVE)
    assert grant.mode == lockd.EXCLUSIVE
    grant.release()
    assert not grant.held


PROGRAMS = [use_a_lock, use_a_grant]


def take_another_lock(client: lockd.Client) -> None:
    with client.lock("flag") as lock:
        assert lock.locked()


def ask(client: lockd.Client) -> None:
    assert client.query("flag")["holder_count"] == 0


def collect_a_generator(client: lockd.Client) -> None:
    def hold() -> Iterator[None]:
        with client.lock("flag"):
            yield

    generator = hold()
    next(generator)
    cycle = [generator]
    cycle.append(cycle)  # type: ignore[arg-type]
    del generator, cycle
    gc.collect(0)


@pytest.mark.parametrize("comes_in", [take_another_lock, ask, collect_a_generator])
@pytest.mark.parametrize("program", PROGRAMS)
def test_whatever_comes_in_between_is_served(
    client: lockd.Client,
    watcher: WireClient,
    program: Callable[[lockd.Client], None],
    comes_in: Callable[[lockd.Client], None],
) -> None:
    steps = 0
    # A prime: with each program and each that comes in other steps are met.
    for _ in at_each_step(lambda: program(client), lambda: comes_in(client), 7):
        steps += 1
        client.query("work")  # The daemon takes the requests of a client in order.
        assert holders(watcher, "work") == holders(watcher, "flag") == 0
    assert steps > 50
    client.query("work")
    assert "0 pending, 0 held" in repr(client)
    assert "0 waiting" in repr(client)


@pytest.mark.parametrize("program", PROGRAMS)
def test_exception_leaves_the_client_usable_and_nothing_held_unknown(
    client: lockd.Client,
    watcher: WireClient,
    program: Callable[[lockd.Client], None],
) -> None:
    def interrupt() -> None:
        raise Interruption

    for step in at_each_step(lambda: program(client), interrupt, 5, Interruption):
        client.query("work")  # What was sent and not waited for is done then.
        if holders(watcher, "work"):
            client.release("work")
        assert holders(watcher, "work") == 0, step
        assert client.query("work")["holder_count"] == 0
        assert "connected" in repr(client)


def test_interrupted_request_says_what_became_of_it(
    client: lockd.Client, watcher: WireClient
) -> None:
    said: set[str] = set()

    def interrupt() -> None:
        raise Interruption

    lock = client.lock("work")

    def program() -> None:
        try:
            with lock:
                pass
        except Interruption as error:
            said.update(getattr(error, "__notes__", ()))
            raise

    for step in at_each_step(program, interrupt, 5, Interruption):
        # The lock tells the truth: at its own end a body may be interrupted, too.
        client.query("work")
        assert lock.locked() == bool(holders(watcher, "work")), step
        if lock.locked():
            lock.release()
        assert holders(watcher, "work") == 0, step
    assert {
        "lockd: the request for 'work' was cancelled",
        "lockd: 'work' had been granted already, and was released",
    } <= said


def test_handler_may_wait_for_what_another_thread_holds(client: lockd.Client) -> None:
    def body() -> None:
        with client.lock("flag"):
            client.query("flag")

    threads: list[Thread] = []

    def comes_in() -> None:
        threads.append(Thread(body))
        with client.lock("flag"):
            pass

    for _ in at_each_step(lambda: use_a_lock(client), comes_in, 23):
        threads.pop().result()
