"""Clients come and go, and the daemon hears all that they say."""

import time
from contextlib import ExitStack
from pathlib import Path

import msgpack
import pytest

from daemon.served import Served
from lockd.terms import ResourceKey
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient, wait_for_sessions, wait_for_waiters


def test_a_hundred_clients_are_taken_in_at_once(lockd: DaemonProcess) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(WireClient(lockd.socket)) for _ in range(100)]
        asked = [client.send("acquire", resource="a") for client in clients]
        for client, msgid in zip(clients, asked, strict=True):
            client.result(msgid)
            client.call("release", resource="a")


def test_client_that_went_before_it_was_taken_in_is_no_trouble(
    lockd: DaemonProcess,
) -> None:
    for _ in range(50):
        WireClient(lockd.socket).close()
    with WireClient(lockd.socket) as client:
        wait_for_sessions(client, 1)


def test_every_client_sees_the_end(lockd: DaemonProcess) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(WireClient(lockd.socket)) for _ in range(20)]
        for n, client in enumerate(clients):
            client.acquire("a" if n == 0 else "b", mode="shared")
        lockd.stop()
        assert all(client.rest() == [] for client in clients)


def test_grants_of_a_daemon_that_ends_are_for_nobody_and_told_to_nobody(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        with Served(tmp_path, kept=False) as served:
            watcher, holder, both, behind = (
                stack.enter_context(WireClient(served.socket)) for _ in range(4)
            )
            holder.acquire("s1")
            both.send("acquire", resources=["s1", "s2"])
            wait_for_waiters(holder, "s1", 1)
            behind.send("acquire", resource="s2")
            wait_for_waiters(holder, "s2", 2)
            watcher.call("watch")
        assert all(client.rest() == [] for client in (watcher, both, behind))
    parts = served.service.parts
    assert parts.engine.last_token > 1, "no lock moved on"
    assert parts.answers.counts.spaces["default"].granted == 1
    for name, known in ("s1", ["waiting"]), ("s2", ["waiting", "waiting"]):
        events = parts.runtime.history.of(ResourceKey("default", name), [])
        assert [x.what for x in events] == known


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("size", [10, 16_000])
def test_message_that_comes_while_the_daemon_is_held_up_is_complete(
    tmp_path: Path, kept: bool, size: int
) -> None:
    message = msgpack.packb([0, 1, "acquire", [{"resource": "a", "x": "x" * size}]])
    with (
        Served(tmp_path, kept=kept) as served,
        WireClient(served.socket) as client,
    ):
        client.call("statistics")
        server = served.service.parts.server

        def be_held_up() -> None:
            client.send_bytes(message[:9])
            server.take_turn()
            client.send_bytes(message[9:])
            time.sleep(2 * served.service.config.limits.message_timeout)
            server._keep_deadlines()
            server.end_turn()

        served.call(be_held_up)
        assert "`x`" in client.refused(1).sentence
        client.acquire("a")


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("more", [1, 8_000, 15_000])
def test_message_whose_next_bytes_come_at_its_deadline_is_incomplete_still(
    tmp_path: Path, kept: bool, more: int
) -> None:
    message = msgpack.packb([0, 1, "acquire", [{"resource": "a", "x": "x" * 16_000}]])
    with (
        Served(tmp_path, kept=kept) as served,
        WireClient(served.socket) as client,
    ):
        client.call("statistics")
        server = served.service.parts.server

        def come_at_the_deadline() -> None:
            client.send_bytes(message[:9])
            server.take_turn()
            time.sleep(2 * served.service.config.limits.message_timeout)
            client.send_bytes(message[9 : 9 + more])
            server._keep_deadlines()
            server.end_turn()

        served.call(come_at_the_deadline)
        (said,) = client.rest()
        assert said[2][1].startswith("protocol: a message was not complete after")


def test_message_after_one_that_is_complete_at_its_deadline_has_its_own_time(
    tmp_path: Path,
) -> None:
    message = msgpack.packb([0, 1, "statistics", [{}]])
    with (
        Served(tmp_path, kept=False) as served,
        WireClient(served.socket) as client,
    ):
        client.call("statistics")
        server = served.service.parts.server

        def come_at_the_deadline() -> None:
            client.send_bytes(message[:9])
            server.take_turn()
            time.sleep(2 * served.service.config.limits.message_timeout)
            client.send_bytes(message[9:] + message[:9])
            server._keep_deadlines()
            # The second one has begun just now.
            server._keep_deadlines()
            client.send_bytes(message[9:])
            server.take_turn()
            server.end_turn()

        served.call(come_at_the_deadline)
        for _ in range(2):
            assert client.result(1)["sessions"] == 1
