"""What is said to the service manager about descriptors, with a socket in its place."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockd.daemon.system import fdstore


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The end of the notification socket that the manager has."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", sock.getsockname())
        yield sock


def test_descriptor_is_stored_under_its_name(manager: socket.socket) -> None:
    fd = os.memfd_create("state")
    assert fdstore.store("kept-state", fd)
    text, (stored,), flags, _ = socket.recv_fds(manager, 4096, 10)
    # Without FDPOLL=0 it would go when a peer hangs up.
    assert text == b"FDSTORE=1\nFDNAME=kept-state\nFDPOLL=0"
    assert not flags & socket.MSG_CTRUNC
    assert os.fstat(stored).st_ino == os.fstat(fd).st_ino
    os.close(stored)
    os.close(fd)


def test_descriptor_is_removed_by_its_name(manager: socket.socket) -> None:
    assert fdstore.remove("kept-state")
    text, fds, _, _ = socket.recv_fds(manager, 4096, 10)
    assert (text, fds) == (b"FDSTOREREMOVE=1\nFDNAME=kept-state", [])


def test_manager_that_does_not_read_holds_nobody_up(manager: socket.socket) -> None:
    sent = [fdstore.store("kept-a", 0) for _ in range(2_000)]
    assert sent[0]
    assert not sent[-1]
    assert not fdstore.remove("kept-a")


def test_nobody_stores_anything_without_a_manager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not fdstore.store("kept-a", 0)
    assert not fdstore.remove("kept-a")


@pytest.mark.parametrize(
    "name", ["", "kept-a:b", "kept-\n", "kept-ä", "kept-" + 251 * "a"]
)
def test_wrong_name_is_refused(name: str, manager: socket.socket) -> None:
    with pytest.raises(ValueError, match="no name"):
        fdstore.store(name, 0)
    with pytest.raises(ValueError, match="no name"):
        fdstore.remove(name)
    with pytest.raises(BlockingIOError):
        manager.recv(1)


@pytest.mark.parametrize(
    ("manager_says", "unit_says", "number"),
    [
        ("64", None, 64),
        (None, "32", 32),
        ("64", "32", 64),
        ("0", "32", 0),
        ("", "32", 32),
        (None, None, 0),
        ("x", None, 0),
        (None, "-1", 0),
    ],
)
def test_store_is_offered_by_the_environment(
    manager_says: str | None,
    unit_says: str | None,
    number: int,
    manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("FDSTORE", manager_says), ("LOCKD_KEEP", unit_says)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert fdstore.is_offered() == number
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert fdstore.is_offered() == 0
