"""How a connection ends, and what with it: protocol 1.1, at every kind of daemon."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from support.daemon_process import DaemonProcess
from support.places import TESTS
from support.processes import cpu_seconds
from support.service_manager import ServiceManager
from support.wire_client import WireClient, wait_for_sessions, wait_for_waiters

Daemon = DaemonProcess | ServiceManager


@pytest.fixture(params=[DaemonProcess, ServiceManager])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that reads plainly, and one whose clients outlive it."""
    made: Daemon = request.param(tmp_path)
    made.start()
    yield made
    made.close()


@pytest.fixture
def address(daemon: Daemon) -> Path:
    return daemon.socket


def replace(daemon: Daemon) -> None:
    """Has another process go on, as far as that can be."""
    daemon.upgrade()
    if isinstance(daemon, ServiceManager):
        daemon.kill_and_start()


# The client says no more, and listens on.


def test_holder_that_shuts_down_its_sending_side_holds_until_the_hang_up(
    daemon: Daemon, client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    client.socket.shutdown(socket.SHUT_WR)
    assert other.refusal("acquire", resource="a", timeout=0).code == "busy"
    replace(daemon)
    assert other.refusal("acquire", resource="a", timeout=0).code == "busy"
    waiting = other.send("acquire", resource="a")
    client.close()
    assert other.result(waiting)["grant"]["resource"] == "a"


def test_waiter_that_says_no_more_is_answered_in_its_turn(
    daemon: Daemon, client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    waiting = other.send("acquire", resource="a")
    other.socket.shutdown(socket.SHUT_WR)
    wait_for_waiters(client, "a", 1)
    replace(daemon)
    wait_for_waiters(client, "a", 1)
    client.call("release", resource="a")
    assert other.result(waiting)["grant"]["resource"] == "a"
    assert client.refusal("acquire", resource="a", timeout=0).code == "busy"
    other.close()
    client.acquire("a")


def test_watcher_that_says_no_more_is_told_on(
    client: WireClient, other: WireClient
) -> None:
    client.call("watch")
    client.socket.shutdown(socket.SHUT_WR)
    other.acquire("a")
    assert client.notification("event")["resource"] == "a"


def test_who_says_no_more_and_has_nothing_gets_its_answers_and_the_end(
    client: WireClient,
) -> None:
    names = [str(n) for n in range(20)]
    client.call("acquire", resources=names, reason="x" * 1_000)
    # All of it has room in the socket at once; the answers have not.
    sent = [client.send("query", resource=str(n) * 500) for n in range(10)]
    sent += [client.send("list") for _ in range(45)]
    sent.append(client.send("release", resources=names))
    client.socket.shutdown(socket.SHUT_WR)
    assert [message[1] for message in client.rest()] == sent


def test_loss_of_its_last_lock_ends_who_says_no_more(
    client: WireClient, other: WireClient
) -> None:
    token = client.acquire("a")["fencing_token"]
    client.socket.shutdown(socket.SHUT_WR)
    other.call("break", fencing_token=token, reason="x")
    assert [message[1] for message in client.rest()] == ["lost"]


def test_who_says_no_more_costs_no_processor_time(
    daemon: Daemon, client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    client.socket.shutdown(socket.SHUT_WR)
    other.call("query", resource="a")
    used = cpu_seconds(daemon.pid)
    assert other.refusal("acquire", resource="a", timeout=1).code == "timeout"
    assert cpu_seconds(daemon.pid) - used < 0.2


def test_child_that_shuts_down_its_copy_does_not_take_the_lock_of_its_parent(
    client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    child = client.socket.dup()
    child.shutdown(socket.SHUT_WR)
    child.close()
    assert other.refusal("acquire", resource="a", timeout=0).code == "busy"
    # The parent hears of it as soon as it says anything.
    with pytest.raises(BrokenPipeError):
        client.send("release", resource="a")
    client.close()
    other.acquire("a", timeout=20)


def test_child_that_ends_both_directions_is_noticed_by_its_parent(
    client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    child = client.socket.dup()
    child.shutdown(socket.SHUT_RDWR)
    child.close()
    assert client.rest() == []
    other.acquire("a", timeout=20)


# The process that connected dies, and another has its connection.


PARENT = """
import os, signal, sys
from support.wire_client import WireClient
client = WireClient(sys.argv[1])
client.call("register", owner={"name": "parent"}, **eval(sys.argv[2]))
client.acquire("a")
if (child := os.fork()):
    print(child, flush=True)
    sys.stdin.readline()
    client.send("acquire", resource="b")
    os._exit(0)
signal.pause()
"""

LIBVIRTD = """
import os, signal, sys
from support.libvirt_client import ACQUIRE, LibvirtClient, resource
client = LibvirtClient(sys.argv[1])
if (guest := os.fork()):
    client.register(pid=guest)
    client.done(ACQUIRE, resource("", sys.argv[2]))
    print(guest, flush=True)
    sys.stdin.readline()
    os._exit(0)
signal.pause()
"""

Parent = subprocess.Popen[str]


@pytest.fixture
def start_parent() -> Iterator[Callable[..., tuple[Parent, int]]]:
    """Starts a process, and gets to know the child that has its connection, too."""
    with ExitStack() as stack:

        def start(script: str, path: Path, parameter: str) -> tuple[Parent, int]:
            parent = subprocess.Popen(
                [sys.executable, "-c", script, str(path), parameter],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(TESTS)},
            )
            stack.enter_context(parent)
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            stack.callback(end, child)
            return parent, child

        yield start


def end(child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def die(parent: Parent) -> None:
    assert parent.stdin is not None
    parent.stdin.write("die\n")
    parent.stdin.flush()
    parent.wait()


def test_session_ends_with_its_process_though_a_child_has_the_connection(
    daemon: Daemon, client: WireClient, start_parent: Callable[..., tuple[Parent, int]]
) -> None:
    parent, _ = start_parent(PARENT, daemon.socket, "{}")
    client.call("watch", lockspace="default")
    die(parent)
    client.acquire("a", timeout=20)
    # What it said at last was carried out before.
    while client.notification("event")["resource"] != "b":
        pass
    wait_for_sessions(client, 1)


def test_inheritable_session_lasts_as_long_as_anybody_has_the_connection(
    daemon: Daemon, client: WireClient, start_parent: Callable[..., tuple[Parent, int]]
) -> None:
    parent, child = start_parent(PARENT, daemon.socket, "{'inheritable': True}")
    die(parent)
    while client.call("query", resource="b")["holder_count"] == 0:
        pass
    replace(daemon)
    assert client.refusal("acquire", resource="a", timeout=0).code == "busy"
    waiting = client.send("acquire", resource="a")
    os.kill(child, signal.SIGKILL)
    assert client.result(waiting)["grant"]["resource"] == "a"


def test_process_that_dies_while_there_is_no_daemon_is_found_dead(
    tmp_path: Path, start_parent: Callable[..., tuple[Parent, int]]
) -> None:
    manager = ServiceManager(tmp_path)
    manager.start()
    try:
        parent, _ = start_parent(PARENT, manager.socket, "{}")
        manager.kill()
        die(parent)
        manager.start()
        with WireClient(manager.socket) as client:
            client.acquire("a", timeout=20)
    finally:
        manager.close()


def test_connection_of_libvirt_goes_on_with_the_guest_that_has_it(
    daemon: Daemon,
    client: WireClient,
    start_parent: Callable[..., tuple[Parent, int]],
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    parent, guest = start_parent(LIBVIRTD, daemon.virtlockd_socket, str(disk))
    die(parent)
    for _ in range(2):
        assert client.call("statistics")["sessions"] == 2
        replace(daemon)
    os.kill(guest, signal.SIGKILL)
    wait_for_sessions(client, 1)


# Bytes that no read returns.


def test_byte_out_of_band_ends_the_connection(
    daemon: Daemon, client: WireClient, other: WireClient
) -> None:
    client.acquire("a")
    client.socket.send(b"x", socket.MSG_OOB)
    assert client.refused(None).code == "protocol"
    assert client.rest() == []
    other.acquire("a", timeout=20)
