"""What passes between the daemon and systemd, with real sockets and processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockd.daemon.system import systemd
from lockd.notify import is_listening, notify

Environment = dict[str, str]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The end of the notification socket that systemd has."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", sock.getsockname())
        yield sock


def test_manager_is_told(manager: socket.socket) -> None:
    assert is_listening()
    assert notify("READY=1\nSTATUS=ünf")
    assert manager.recv(100) == "READY=1\nSTATUS=ünf".encode()


def test_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0lockd-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@lockd-test-{os.getpid()}")
        assert notify("READY=1")
        assert sock.recv(100) == b"READY=1"


def test_manager_that_does_not_read_holds_nobody_up(manager: socket.socket) -> None:
    sent = [notify("WATCHDOG=1") for _ in range(5_000)]
    assert sent[0]
    assert not sent[-1]


@pytest.mark.parametrize("address", ["", "relative", "/no/such/socket"])
def test_nobody_to_tell_is_no_error(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


def test_no_notification_without_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not is_listening()
    assert not notify("READY=1")


@pytest.mark.parametrize(
    ("microseconds", "pid", "interval"),
    [
        ("3000000", "{self}", 1.5),
        ("3000000", None, 1.5),
        ("3000000", "1", None),
        ("0", "{self}", None),
        ("", "{self}", None),
        ("x", "{self}", None),
        (None, None, None),
    ],
)
def test_watchdog_is_petted_twice_in_its_time(
    microseconds: str | None,
    pid: str | None,
    interval: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value.format(self=os.getpid()))
    assert systemd.watchdog_interval() == interval


TAKE = """
import os, socket, sys
from lockd.daemon.system import systemd
from lockd.errors import ConfigError
if "wrong" not in os.environ:
    os.environ["LISTEN_PID"] = str(os.getpid())
try:
    taken = systemd.take_passed()
except ConfigError as error:
    print("refused:", error)
else:
    for name, sock in taken.listeners.items():
        print(name, sock.fileno(), sock.getsockname(),
              os.get_inheritable(sock.fileno()), sock.getblocking())
    for name, fd in taken.kept:
        print(name, fd, os.readlink(f"/proc/self/fd/{fd}"), os.get_inheritable(fd))
print(sorted(set(os.environ) & {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}))
"""


def taken(environment: Environment, *socks: socket.socket) -> list[str]:
    """Runs a process with sockets as its descriptors from 3 on; returns its lines."""
    shell = " ".join(f"{3 + i}<&{s.fileno()}" for i, s in enumerate(socks))
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, TAKE],
        env=os.environ | environment,
        pass_fds=[s.fileno() for s in socks],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.splitlines()


def kept() -> socket.socket:
    """Returns one end of a pair, out of the way of those that the child gets."""
    here, there = socket.socketpair()
    there.close()
    high = socket.socket(fileno=os.dup2(here.fileno(), 60, False))
    here.close()
    return high


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    # Out of the way of those that the child gets.
    high = socket.socket(fileno=os.dup2(sock.fileno(), 40 + len(path.name), False))
    sock.close()
    return high


def test_sockets_are_taken_by_their_names(tmp_path: Path) -> None:
    with listening(tmp_path / "a") as a, listening(tmp_path / "bb") as b:
        lines = taken({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "admin:client"}, a, b)
    assert lines == [
        f"admin 3 {tmp_path}/a False False",
        f"client 4 {tmp_path}/bb False False",
        "[]",
    ]


@pytest.mark.parametrize("names", [None, "lockd.socket", "client"])
def test_single_socket_is_that_of_the_clients(
    names: str | None, tmp_path: Path
) -> None:
    environment = {"LISTEN_FDS": "1"} | ({"LISTEN_FDNAMES": names} if names else {})
    with listening(tmp_path / "a") as a:
        lines = taken(environment, a)
    assert lines[0] == f"client 3 {tmp_path}/a False False"


def test_sockets_of_another_process_are_not_ours(tmp_path: Path) -> None:
    with listening(tmp_path / "a") as a:
        environment = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "wrong": "1"}
        assert taken(environment, a) == ["[]"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_was_stored_is_told_from_listening_sockets(
    place: int, tmp_path: Path
) -> None:
    with listening(tmp_path / "a") as a, listening(tmp_path / "bb") as b, kept() as k:
        names = ["admin", "client"]
        names.insert(place, "kept-x")
        socks = [a, b]
        socks.insert(place, k)
        environment = {"LISTEN_FDS": "3", "LISTEN_FDNAMES": ":".join(names)}
        lines = taken(environment, *socks)
        admin, client = (3 + socks.index(x) for x in (a, b))
    assert lines == [
        f"admin {admin} {tmp_path}/a False False",
        f"client {client} {tmp_path}/bb False False",
        f"kept-x {3 + place} {lines[2].split()[2]} False",
        "[]",
    ]


@pytest.mark.parametrize("names", ["lockd.socket:kept-x", "kept-x:client"])
def test_single_socket_beside_what_was_stored_is_that_of_the_clients(
    names: str, tmp_path: Path
) -> None:
    with listening(tmp_path / "a") as a, kept() as k:
        socks = [k, a] if names.startswith("kept") else [a, k]
        lines = taken({"LISTEN_FDS": "2", "LISTEN_FDNAMES": names}, *socks)
        fd = 3 + socks.index(a)
    assert lines[0] == f"client {fd} {tmp_path}/a False False"
    assert lines[1].startswith(f"kept-x {7 - fd} socket:")


def test_only_what_was_stored_is_no_error() -> None:
    with kept() as k:
        lines = taken({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "kept-x:kept-x"}, k, k)
    assert [line.split()[:2] for line in lines[:2]] == [
        ["kept-x", "3"],
        ["kept-x", "4"],
    ]


@pytest.mark.parametrize(
    ("count", "names", "why"),
    [
        ("2", "client:client", "no two may have"),
        ("2", "client", "2 descriptors were passed"),
        ("1", "stranger", "client, admin, virtlockd or metrics"),
        ("x", "client", "not a number"),
        ("2", "kept-x", "2 descriptors were passed"),
        ("1", "client:kept-x", "1 descriptors were passed"),
        ("2", "client:admin", "descriptor 4"),
    ],
)
def test_what_is_passed_wrongly_is_refused(
    count: str, names: str, why: str, tmp_path: Path
) -> None:
    with listening(tmp_path / "a") as a:
        lines = taken({"LISTEN_FDS": count, "LISTEN_FDNAMES": names}, a)
    assert lines[0].startswith("refused: ")
    assert why in lines[0]
    assert lines[-1] == "[]"


def test_socket_of_another_kind_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "d"))
        high = socket.socket(fileno=os.dup2(sock.fileno(), 50, False))
        with high:
            lines = taken({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "client"}, high)
    assert "not a listening UNIX stream socket" in lines[0]


def test_metrics_may_be_asked_for_at_a_loopback_address(tmp_path: Path) -> None:
    with (
        listening(tmp_path / "a") as clients,
        socket.create_server(("127.0.0.1", 0)) as metrics,
    ):
        names = {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "client:metrics"}
        lines = taken(names, clients, metrics)
        assert lines[1] == f"metrics 4 {metrics.getsockname()} False False"
        # Only those, and only for metrics.
        names = {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "client:admin"}
        assert taken(names, clients, metrics)[0].startswith("refused: the admin socket")
    with (
        listening(tmp_path / "b") as clients,
        socket.create_server(("0.0.0.0", 0)) as everybody,
    ):
        names = {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "client:metrics"}
        said = taken(names, clients, everybody)[0]
        assert said.endswith(
            "not a listening UNIX stream socket or at a loopback address"
        )
