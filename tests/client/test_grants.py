"""What grants and locks say of themselves, held against what the daemon says."""

import copy
import gc
import os
import pickle
import signal
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest

import lockd
from client.adapters import BlockingPeer, Thread
from client.conformance import break_unheard
from lockd.client.threads import connection
from lockd.client.threads.connection import open_link
from lockd.client.threads.link import ThreadLink
from support.daemon_process import DaemonProcess
from support.processes import in_child
from support.wire_client import PATIENCE, WireClient, wait_for_sessions


def listed(watcher: WireClient, token: int) -> bool:
    """Whether the daemon lists the lock with a token as held."""
    found = watcher.call("list")["resources"]
    return token in [x["fencing_token"] for found in found for x in found["holders"]]


class Case:
    """A client that holds `disk`, by a grant or by a lock."""

    def __init__(self, sock: str, daemon: DaemonProcess, watcher: WireClient) -> None:
        self.daemon = daemon
        self.watcher = watcher
        self.client = lockd.connect(sock, name="client")
        self.lock = self.client.lock("disk")
        self.lock.__enter__()
        self.grant = self.lock.grant

    def answers(self) -> dict[str, bool]:
        """Returns whether the lock is held, by each way to ask."""
        return {
            "grant.held": self.grant.held,
            "grant.check": not raises(self.grant.check) and self.grant.held,
            "repr of the grant": " held>" in repr(self.grant),
            "lock.locked": self.lock.locked(),
            "lock.is_locked": self.lock.is_locked,
            "repr of the lock": repr(self.lock).startswith("<locked "),
        }


def raises(ask: Callable[[], Any]) -> bool:
    try:
        ask()
    except lockd.LockdError:
        return True
    return False


def nothing(case: Case) -> None:
    pass


def converted(case: Case) -> None:
    case.client.convert(case.grant, lockd.SHARED)
    assert case.grant.mode == lockd.SHARED


def closed(case: Case) -> None:
    case.client.close()
    wait_for_sessions(case.watcher, 1)


def collected(case: Case) -> None:
    del case.client
    gc.collect()


def break_grant(watcher: WireClient, grant: lockd.Grant) -> None:
    watcher.call("break", fencing_token=grant.fencing_token, reason="why")
    # By the next turn the daemon has told everybody of this one.
    watcher.call("statistics")


def broken(case: Case) -> None:
    break_grant(case.watcher, case.grant)


def disconnected(case: Case) -> None:
    case.watcher.call("disconnect", session=case.client.session, reason="why")
    case.watcher.call("statistics")


def released(case: Case) -> None:
    case.grant.release()


def released_by_lock(case: Case) -> None:
    case.client.release(case.lock)


def released_by_name(case: Case) -> None:
    case.client.release("disk")


def released_by_another_thread(case: Case) -> None:
    Thread(partial(case.client.release, case.grant)).result()


EVENTS = [
    nothing,
    converted,
    closed,
    collected,
    broken,
    disconnected,
    released,
    released_by_lock,
    released_by_name,
    released_by_another_thread,
]


@pytest.mark.parametrize("event", EVENTS)
def test_grants_agree_with_the_daemon(
    sock: str,
    daemon: DaemonProcess,
    watcher: WireClient,
    event: Callable[[Case], None],
) -> None:
    case = Case(sock, daemon, watcher)
    event(case)
    held = listed(watcher, case.grant.fencing_token)
    assert held == (event in (nothing, converted, collected))
    assert case.answers() == dict.fromkeys(case.answers(), held)
    assert case.grant.lost == (event in (broken, disconnected))
    case.lock._connection.link().close()


def test_grants_of_a_daemon_that_died_are_lost(
    sock: str, daemon: DaemonProcess, watcher: WireClient
) -> None:
    case = Case(sock, daemon, watcher)
    daemon.kill()
    assert case.answers() == dict.fromkeys(case.answers(), False)
    assert case.grant.lost
    with pytest.raises(lockd.LockLostError):
        case.grant.release()
    case.client.close()


def test_grants_of_the_parent_are_not_held_in_a_forked_child(
    sock: str, daemon: DaemonProcess, watcher: WireClient
) -> None:
    case = Case(sock, daemon, watcher)
    said = in_child(lambda: (any(case.answers().values()), case.grant.lost))
    assert said == "(False, False)"
    assert "of the parent process" in in_child(lambda: repr(case.grant))
    assert "ForkedSessionError" in in_child(case.grant.check)
    assert "ForkedSessionError" in in_child(case.grant.release)
    assert all(case.answers().values())
    case.client.close()


def test_grant_keeps_its_connection_open_and_nothing_else_does(
    sock: str, watcher: WireClient
) -> None:
    def take() -> lockd.Grant:
        return lockd.connect(sock).acquire("disk")

    grant = take()
    token = grant.fencing_token
    assert grant.held
    assert listed(watcher, token)
    link = weakref.ref(grant.link)
    with pytest.warns(ResourceWarning):
        del grant
    # No cycle keeps it: the lock is free as soon as nobody refers to it.
    assert link() is None
    assert watcher.acquire("disk", timeout=PATIENCE)


def test_lock_that_was_lost_can_be_taken_again_by_the_same_thread(
    sock: str, daemon: DaemonProcess, watcher: WireClient
) -> None:
    case = Case(sock, daemon, watcher)
    broken(case)
    assert case.lock.acquire()
    assert case.lock.grant.held
    assert case.lock.grant is not case.grant
    case.lock.release()
    assert not case.lock.locked()
    case.client.close()


def test_release_by_name_lets_the_next_thread_in(sock: str) -> None:
    with lockd.connect(sock) as client:
        client.acquire("disk")
        thread = Thread(lambda: bool(client.lock("disk").acquire(timeout=PATIENCE)))
        client.release("disk")
        assert thread.result() is True


def test_grant_is_released_at_the_end_of_a_body(sock: str, watcher: WireClient) -> None:
    with lockd.connect(sock) as client:
        with client.acquire("disk") as grant:
            assert listed(watcher, grant.fencing_token)
        client.statistics()  # The daemon takes the requests of a client in order.
        assert not listed(watcher, grant.fencing_token)
        grant.release()
        with pytest.raises(lockd.LockLostError), client.acquire("disk") as grant:
            break_grant(watcher, grant)
        with pytest.raises(ZeroDivisionError), client.acquire("disk"):
            raise ZeroDivisionError
        assert client.statistics()["held"] == 0


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_grant_of_an_async_client_is_released_by_itself(
    sock: str, watcher: WireClient, backend: str
) -> None:
    async def main() -> None:
        async with lockd.aio.connect(sock) as client:
            async with await client.acquire("disk") as grant:
                assert listed(watcher, grant.fencing_token)
                assert grant.held
            assert not grant.held
            await client.statistics()  # the daemon takes its requests in order
            assert not listed(watcher, grant.fencing_token)
            kept = await client.acquire("disk")
            await kept.release()
            await kept.release()
            assert not listed(watcher, kept.fencing_token)
            last = await client.acquire("disk")
        assert not last.held
        assert not last.lost

    anyio.run(main, backend=backend)


def test_nothing_of_a_connection_can_be_copied(sock: str) -> None:
    with lockd.connect(sock) as client, client.lock("disk") as lock:
        for thing in (client, lock, lock.grant):
            for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied or pickled"):
                    attempt(thing)


@pytest.mark.parametrize("wrong", [1, None, True, 1.5, b"disk", ["disk"], object()])
def test_release_refuses_what_does_not_say_what_to_release(
    sock: str, watcher: WireClient, wrong: Any
) -> None:
    with lockd.connect(sock) as client:
        grant = client.acquire("disk")
        for targets in ((wrong,), (grant, wrong), (wrong, grant)):
            with pytest.raises(TypeError, match="pass what acquire returned"):
                client.release(*targets)
            assert listed(watcher, grant.fencing_token)


def test_release_refuses_the_bare_token_of_a_lock(sock: str) -> None:
    with lockd.connect(sock) as client:
        grant = client.acquire("disk")
        with pytest.raises(TypeError):
            client.release(grant.fencing_token)  # type: ignore[arg-type]
        assert grant.held


# A client that outlives the daemon.


def test_client_that_reconnects_outlives_the_daemon(
    sock: str, daemon: DaemonProcess
) -> None:
    told: list[lockd.Grant] = []
    with lockd.connect(sock, name="me", reconnect=True, on_lost=told.append) as client:
        grant = client.acquire("disk")
        lock = client.lock("other")
        lock.acquire()
        daemon.kill()
        assert grant.lost
        assert not lock.locked()
        with pytest.raises(lockd.ConnectionLostError, match="start it with"):
            client.statistics()
        daemon.start()
        assert grant.lost
        again = client.acquire("disk")
        assert again.fencing_token > grant.fencing_token
        with lock:
            assert lock.locked()
        with pytest.raises(lockd.LockLostError):
            client.release(grant)
        (holder,) = client.query("disk")["holders"]
        assert holder["name"] == "me"
    assert not again.held
    with pytest.raises(lockd.ConnectionLostError, match="closed"):
        client.statistics()


def test_client_that_reconnects_tells_what_it_has_not_told(
    sock: str, daemon: DaemonProcess
) -> None:
    with lockd.connect(sock, reconnect=True) as client:
        grant = client.acquire("disk")
        breaking = break_unheard(daemon, BlockingPeer(client), grant)
        grant.release(wait=False)
        os.kill(daemon.pid, signal.SIGCONT)
        breaking.result()
        Thread(client.statistics).result()  # it reads the refusal, and is not told
        daemon.kill()
        daemon.start()
        with pytest.raises(lockd.LockLostError, match="why"):
            client.acquire("disk")
        assert client.acquire("disk").held


def test_client_that_is_closed_while_it_reconnects_is_closed(
    sock: str, daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[ThreadLink] = []

    def open_and_close(*args: Any) -> tuple[ThreadLink, Any]:
        link, welcome = open_link(*args)
        opened.append(link)
        client.close()  # in another thread, say
        return link, welcome

    with lockd.connect(sock, reconnect=True) as client:
        daemon.kill()
        daemon.start()
        monkeypatch.setattr(connection, "open_link", open_and_close)
        for _ in range(2):
            with pytest.raises(lockd.ConnectionLostError, match="the client is closed"):
                client.acquire("disk")
        (link,) = opened
        assert link.sock.fileno() == -1
    with lockd.connect(sock) as other:
        assert other.acquire("disk", timeout=0).held


def test_client_that_does_not_reconnect_stays_lost(
    sock: str, daemon: DaemonProcess
) -> None:
    with lockd.connect(sock) as client:
        daemon.kill()
        daemon.start()
        for _ in range(2):
            with pytest.raises(lockd.ConnectionLostError, match="connect again"):
                client.statistics()
