"""Clients come when there are too many of them."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from conftest import StartDaemon
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
    complaints = [line for line in narrow.said if "are rejected" in line]
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
