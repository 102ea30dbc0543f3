"""What a program hears of its locks: that they are overdue, and that others wait."""

import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

import lockd
from client.adapters import Thread
from client.reentry import at_each_step
from client.test_core import acquired, acquiring, answered, encoder, lost, shape
from lockd.client.core import ClientCore
from lockd.client.threads.grants import Grant
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient, wait_for_waiters


def hear(core: ClientCore, what: str, token: int = 7) -> None:
    told = {"what": what, "fencing_token": token, "resource": "disk"}
    core.receive(encoder.notification("notice", told))


@pytest.fixture
def core() -> ClientCore:
    return ClientCore(lambda hold: Grant(hold, Deaf()), "thread")


class Deaf:
    """The link of a grant that hears nothing by itself."""

    forked = False

    def catch_up(self) -> None:
        pass

    def release(self, *grants: Any) -> list[Any]:
        raise NotImplementedError


# The core.


def test_grant_says_what_was_heard_of_it(core: ClientCore) -> None:
    grant = acquired(core)
    assert (grant.wanted, grant.overdue) == (False, False)
    hear(core, "wanted")
    assert (grant.wanted, grant.overdue) == (True, False)
    hear(core, "overdue")
    hear(core, "unwanted")
    assert (grant.wanted, grant.overdue) == (False, True)
    hear(core, "something new")
    hear(core, "wanted", token=8)
    assert (grant.wanted, grant.overdue) == (False, True)


def test_notice_without_a_token_is_no_notice(core: ClientCore) -> None:
    core.receive(encoder.notification("notice", {"what": "wanted"}))
    assert core.ended


def test_news_have_each_grant_once_and_only_until_it_is_released(
    core: ClientCore,
) -> None:
    early, other = acquired(core, 7), acquired(core, 8)
    hear(core, "wanted", 7)
    news = core.open_news()
    for _ in range(3):
        hear(core, "wanted", 8)
        hear(core, "unwanted", 8)
    assert news.take() is early
    assert news.take() is other
    with pytest.raises(IndexError):
        news.take()
    hear(core, "wanted", 7)
    lost(core, 7)
    assert news.take() is early
    assert early.lost
    third, fourth = acquired(core, 9), acquired(core, 10)
    hear(core, "wanted", 9)
    core.release(third)
    lost(core, 9)
    hear(core, "wanted", 10)
    answered(core, core.release(fourth))
    assert news.take() is third
    with pytest.raises(IndexError):
        news.take()
    core.close_news(news)
    core.close_news(news)
    hear(core, "wanted", 8)
    assert not news.done
    assert other.wanted


def test_news_end_with_the_connection(core: ClientCore) -> None:
    news = core.open_news()
    woken: list[bool] = []
    news.wake_with(lambda: woken.append(news.done))
    core.end("over")
    assert woken == [True]
    with pytest.raises(lockd.ConnectionLostError):
        news.take()


def test_old_notice_that_is_processed_again_changes_nothing(core: ClientCore) -> None:
    """Other code may process all that has arrived while a notice is taken in."""
    grant = acquired(core)
    again: list[bytes] = []

    def come_in() -> None:
        while again:
            core.receive(again.pop())

    news = core.open_news()
    news.wake_with(come_in)
    told = {"fencing_token": 7}
    again.append(encoder.notification("notice", told | {"what": "unwanted"}))
    core.receive(encoder.notification("notice", told | {"what": "wanted"}))
    assert not grant.wanted


def test_hold_that_is_counted_again_knows_what_the_first_heard(
    core: ClientCore,
) -> None:
    first = acquired(core, mode="shared")
    hear(core, "wanted")
    second = acquiring(core, "shared")
    answered(core, second, {"grant": shape(7, "shared")})
    assert second.grants[0].wanted
    hear(core, "unwanted")
    assert not second.grants[0].wanted
    assert not first.wanted


# Both clients, and a real daemon.


@pytest.fixture
def client(sock: str) -> Iterator[lockd.Client]:
    with lockd.connect(sock, name="client") as client:
        yield client


def test_thread_hears_that_others_wait_and_that_it_is_late(
    client: lockd.Client, watcher: WireClient
) -> None:
    grant = client.acquire("cache", wanted=True, max_hold=0.3)
    with client.notices() as notices:
        asked = watcher.send("acquire", resource="cache")
        assert next(notices) is grant
        while not (grant.wanted and grant.overdue):
            assert next(notices) is grant
        watcher.call("cancel", request=asked)
        while grant.wanted:
            assert next(notices) is grant
    client.release(grant)


def test_what_was_told_before_comes_first(
    client: lockd.Client, watcher: WireClient
) -> None:
    grants = client.acquire_all(["a", "b", "c"], wanted=True)
    watcher.send("acquire", resource="b")
    wait_for_waiters(watcher, "b", 1)
    client.query("b")  # what was sent to the client before is there
    assert [grant.wanted for grant in grants] == [False, True, False]
    with client.notices() as notices:
        assert next(notices) is grants[1]


def test_lock_object_hears_too(client: lockd.Client, watcher: WireClient) -> None:
    with client.lock("cache", wanted=True) as lock:
        assert not lock.grant.wanted
        watcher.send("acquire", resource="cache")
        wait_for_waiters(watcher, "cache", 1)
        client.query("cache")
        assert lock.grant.wanted
    grant = client.try_acquire("other", wanted=True, max_hold=5)
    assert grant is not None
    grant.release()


def test_notices_end_with_the_client(sock: str) -> None:
    client = lockd.connect(sock)
    began = threading.Event()

    def listen() -> None:
        with client.notices() as notices:
            began.set()
            next(notices)

    thread = Thread(listen)
    assert began.wait(50)
    client.close()
    with pytest.raises(lockd.ConnectionLostError):
        thread.result()


def test_user_code_may_use_the_client_while_it_hears(
    client: lockd.Client, watcher: WireClient
) -> None:
    """It runs in the thread of the program: a cache that yields when it is wanted."""
    client.acquire("cache", wanted=True)

    def serve() -> None:
        with client.notices() as notices:
            for grant in notices:
                if grant.wanted:
                    client.release(grant)
                    return

    thread = Thread(serve)
    assert watcher.acquire("cache")["resource"] == "cache"
    thread.result()
    watcher.call("release", resource="cache")


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_task_hears_that_others_wait_and_that_it_is_late(
    sock: str, watcher: WireClient, backend: str
) -> None:
    heard: list[tuple[bool, bool]] = []

    async def main() -> None:
        async with (
            lockd.aio.connect(sock) as client,
            client.hold("cache", wanted=True, max_hold=0.3) as grant,
            client.notices() as notices,
        ):
            watcher.send("acquire", resource="cache")
            async for told in notices:
                assert told is grant
                heard.append((grant.wanted, grant.overdue))
                if grant.wanted and grant.overdue:
                    break

    anyio.run(main, backend=backend)
    assert heard[-1] == (True, True)
    assert watcher.call("query", resource="cache")["last_holder"]["ended"] == "released"


def test_thread_hears_that_its_lock_is_lost(
    client: lockd.Client, watcher: WireClient
) -> None:
    """Also of a lock that asked for nothing; a release is no loss."""
    client.acquire("other").release()
    grant = client.acquire("cache", wanted=True)
    plain = client.acquire("plain")
    with client.notices() as notices:
        for lost in (grant, plain):
            watcher.call("break", fencing_token=lost.fencing_token, reason="stuck")
            assert next(notices) is lost
            assert (lost.held, lost.cause) == (False, "broken")
        client.acquire("more").release()
        kept = client.acquire("last", max_hold=0.1)
        assert next(notices) is kept


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_task_hears_that_its_lock_is_lost(
    sock: str, watcher: WireClient, backend: str
) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock) as client, client.notices() as notices:
            grant = await client.acquire("cache", wanted=True)
            watcher.call("break", fencing_token=grant.fencing_token, reason="stuck")
            async for told in notices:
                assert told is grant
                break
            assert (grant.held, grant.cause) == (False, "broken")

    anyio.run(main, backend=backend)


def test_locks_come_as_lost_before_the_end_of_the_connection(
    daemon: DaemonProcess, client: lockd.Client
) -> None:
    grant = client.acquire("cache", wanted=True)
    with client.notices() as notices:
        daemon.stop()
        assert next(notices) is grant
        assert grant.cause == "disconnected"
        with pytest.raises(lockd.ConnectionLostError):
            next(notices)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), 1e9 + 1])
def test_time_to_hold_is_checked(client: lockd.Client, wrong: float) -> None:
    said = "max_hold must be a number above 0, at most 1e9"
    with pytest.raises(lockd.InvalidRequestError, match=said):
        client.acquire("a", max_hold=wrong)
    with pytest.raises(TypeError, match=said):
        client.lock("a", max_hold=True)
    with pytest.raises(TypeError, match="wanted must be True or False"):
        client.acquire("a", wanted=1)  # type: ignore[arg-type]


def test_client_is_re_entrant_while_it_hears(
    client: lockd.Client, watcher: WireClient
) -> None:
    """A signal at each step of hearing, whose handler hears as well."""
    seen: set[bool] = set()

    def program() -> None:
        with client.notices() as notices:
            grant = client.acquire("cache", wanted=True)
            asked = watcher.send("acquire", resource="cache")
            assert next(notices) is grant
            seen.add(grant.wanted)
            watcher.call("cancel", request=asked)
            while grant.wanted:
                next(notices)
        grant.release()

    def comes_in() -> None:
        with client.notices():
            client.query("cache")

    for _ in at_each_step(program, comes_in, 41):
        watcher.kept.clear()
    assert seen == {True}
    assert "0 pending, 0 held" in repr(client)
