"""Clients come and go, also when there are too many of them."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgpack
import pytest

from conftest import StartDaemon
from daemon.served import Served
from support.daemon_process import DaemonProcess
from support.processes import cpu_seconds
from support.wire_client import WireClient, wait_for_sessions, wait_for_waiters


def is_served(client: WireClient) -> bool:
    """Tells whether a client was taken in, and not turned away."""
    with suppress(BrokenPipeError):
        client.send_message([0, 1, "statistics", []])
    return client.receive() is not None


@pytest.fixture
def narrow(start_daemon: StartDaemon) -> DaemonProcess:
    """A daemon that may have 41 descriptors, so that in the end none is left.

    A client takes two: where one is left over, a file can still be opened.
    """
    return start_daemon(prefix=["prlimit", "--nofile=41:41"])


@pytest.fixture
def crowd(narrow: DaemonProcess) -> Iterator[list[WireClient]]:
    """More clients than it can take."""
    with ExitStack() as stack:
        yield [stack.enter_context(WireClient(narrow.socket)) for _ in range(60)]


def test_too_many_clients_are_turned_away_and_the_others_keep_their_locks(
    narrow: DaemonProcess,
) -> None:
    with ExitStack() as stack:
        holder = stack.enter_context(WireClient(narrow.socket))
        waiter = stack.enter_context(WireClient(narrow.socket))
        token = holder.acquire("a")["fencing_token"]
        waiting = waiter.send("acquire", resource="a")
        wait_for_waiters(holder, "a", 1)
        crowd = [stack.enter_context(WireClient(narrow.socket)) for _ in range(60)]
        served = [client for client in crowd if is_served(client)]
        assert 5 < len(served) < 38
        check = {"resource": "a", "fencing_token": token}
        assert holder.call("check", **check) == {"current": True}
        holder.call("release", resource="a")
        assert waiter.result(waiting)["grant"]["resource"] == "a"
        assert all(is_served(client) for client in served)


def test_it_serves_new_clients_when_others_have_left(
    narrow: DaemonProcess, crowd: list[WireClient]
) -> None:
    served = [client for client in crowd if is_served(client)]
    assert len(served) < len(crowd)
    last = served.pop()
    for client in served:
        client.close()
    wait_for_sessions(last, 1)
    with WireClient(narrow.socket) as new:
        new.acquire("a")


def test_turning_away_costs_no_processor_time_and_one_line(
    narrow: DaemonProcess, crowd: list[WireClient]
) -> None:
    served = [client for client in crowd if is_served(client)]
    used = cpu_seconds(narrow.pid)
    first, second = served[:2]
    first.acquire("a")
    assert second.refusal("acquire", resource="a", timeout=1).code == "timeout"
    assert cpu_seconds(narrow.pid) - used < 0.3
    narrow.stop()
    complaints = [line for line in narrow.said if "turned away" in line]
    assert len(complaints) == 1
    assert "Too many open files" in complaints[0]


def test_file_that_cannot_be_opened_for_want_of_descriptors_is_unavailable(
    narrow: DaemonProcess, crowd: list[WireClient], tmp_path: Path
) -> None:
    served = [client for client in crowd if is_served(client)]
    file = tmp_path / "disk"
    file.touch()
    refusal = served[0].refusal("acquire", lockspace="direct", resource=str(file))
    assert refusal.code == "unavailable"
    assert "Too many open files" in refusal.sentence
    served[0].acquire("a")
    spare = served.pop()
    for client in served[1:]:
        client.close()
    wait_for_sessions(spare, 2)
    assert served[0].acquire(str(file), lockspace="direct")["resource"] == str(file)


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
