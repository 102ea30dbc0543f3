"""Those of one client who want the same lock: however it ends, the next one has it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

import lockd
from client.adapters import AsyncPeer, BlockingPeer, async_shell, blocking_shell
from lockd.terms import ResourceKey
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient

AnyPeer = BlockingPeer | AsyncPeer

SHELLS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "threads": blocking_shell,
    "trio": partial(async_shell, "trio"),
    "asyncio": partial(async_shell, "asyncio"),
}


@pytest.fixture(params=SHELLS)
def peer(request: pytest.FixtureRequest, sock: str) -> Iterator[AnyPeer]:
    with SHELLS[request.param]() as shell:
        yield shell.connect(sock, name="us")


def wait_for_queue(peer: AnyPeer, count: int) -> None:
    """Waits until so many hold the lock or queue for it."""
    if isinstance(peer, BlockingPeer):
        queues = peer.client._connection.last._queues._queues
    else:
        queues = peer.client._link._queues._queues
    for _ in range(1_000_000):
        if len(queues.get(ResourceKey("default", "disk"), ())) == count:
            return
    raise AssertionError(queues)


def grant_of(lock: Any) -> Any:
    """Returns what a lock holds; `Lock.grant` belongs to the event loop."""
    return lock._holds[-1].grant


def break_it(peer: AnyPeer, lock: Any, watcher: WireClient) -> None:
    watcher.call("break", fencing_token=grant_of(lock).fencing_token, reason="why")


ENDS: dict[str, Callable[[AnyPeer, Any, WireClient], object]] = {
    "lock.release()": lambda peer, lock, _: peer.run(lock.release).result(),
    "grant.release()": lambda peer, lock, _: peer.run(grant_of(lock).release).result(),
    "client.release(lock)": lambda peer, lock, _: peer.call("release", lock),
    "client.release(grant)": lambda peer, lock, _: peer.call("release", grant_of(lock)),
    "client.release(name)": lambda peer, lock, _: peer.call("release", "disk"),
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
    wait_for_queue(peer, 2)
    ENDS[end](peer, first, watcher)
    assert waiting.result()
    assert second.locked()
    assert not first.locked()
    wait_for_queue(peer, 1)
    peer.run(second.release).result()
    wait_for_queue(peer, 0)


@pytest.mark.parametrize("end", ["disconnected", "daemon gone", "closed"])
def test_whole_line_hears_of_the_end_of_the_connection(
    end: str, peer: AnyPeer, watcher: WireClient, daemon: DaemonProcess
) -> None:
    locks: list[Any] = [peer.client.lock("disk") for _ in range(3)]
    peer.run(locks[0].acquire).result()
    waiting = []
    for place, lock in enumerate(locks[1:], 2):
        waiting.append(peer.run(lock.acquire))
        wait_for_queue(peer, place)
    if end == "disconnected":
        watcher.call("disconnect", session=peer.session, reason="why")
    elif end == "daemon gone":
        daemon.kill()
    else:
        peer.close()
    for pending in waiting:
        with pytest.raises(lockd.ConnectionLostError):
            pending.result()


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
