"""Descriptors in a queue: their messages, their labels, and its ends."""

import os
import socket

import pytest

from daemon.stores.conftest import Make
from daemon.stores.kept import contents, copies, inode
from lockd.daemon.stores import in_flight as keeper_module
from lockd.daemon.stores.in_flight import InFlight
from lockd.daemon.stores.queues import SO_PEEK_OFF

pytestmark = pytest.mark.usefixtures("many_descriptors")


def test_recovery_that_was_cut_off_is_begun_anew(
    keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    fds = [memfd() for _ in range(20)]
    for i, fd in enumerate(fds):
        keeper.keep(b"%d" % i, fd)
    # Where a recovery stopped stands in the socket, which outlives it.
    receiver = socket.socket(fileno=os.dup(ends[1]))
    receiver.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    for _ in range(10):
        receiver.recv(1024, socket.MSG_PEEK)
    receiver.close()
    assert len(contents(ends)) == 20


@pytest.mark.parametrize("length", [1, 200, 201, 5_000])
def test_labels_have_any_bytes(
    length: int, keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    fd = memfd()
    labels = [bytes([i]) * length for i in range(256)]
    for label in labels:
        keeper.keep(label, fd)
    assert set(contents(ends)) == set(labels)


@pytest.mark.parametrize("length", [0, 5_001])
def test_labels_of_another_length_are_refused(length: int, keeper: InFlight) -> None:
    with pytest.raises(ValueError, match="label"):
        keeper.keep(b"x" * length, 0)


def test_kernel_has_room_for_the_longest_labels(keeper: InFlight, memfd: Make) -> None:
    fd = memfd()
    keeper.limit = 10_000_000
    room = keeper_module.YOUNG * 2
    for i in range(room):
        keeper.keep(b"%0200d" % i, fd)
    assert keeper.count == room


def test_ends_never_block(keeper: InFlight) -> None:
    assert not any(os.get_blocking(fd) for fd in keeper.ends)


@pytest.mark.parametrize(
    "text",
    [
        b"\x02\x00\x01\x00" + bytes(8) + b"\x01a",
        b"\x01\x00\x02\x00" + bytes(8) + b"\x01a",
        b"\x01\x00\x01\x00" + bytes(8) + b"\x02a",
        b"\x01\x01\x01\x00",
        b"\x01",
    ],
)
def test_message_that_cannot_be_read_stays_and_is_reported(
    text: bytes, keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    good, strange = memfd(), memfd()
    sender = socket.socket(fileno=os.dup(keeper.ends[0]))
    keeper.keep(b"good", good)
    socket.send_fds(sender, [text], [strange])
    sender.close()
    successor = InFlight(copies(keeper.ends))
    found = dict(successor.recover())
    assert len(successor.problems) == 1
    assert inode(found.pop(b"good")) == inode(good)
    ((label, fd),) = found.items()
    assert label.startswith(b"unreadable-")
    assert inode(fd) == inode(strange)
    keeper.close()
    successor.close()


@pytest.mark.parametrize("count", [0, 3, 5])
def test_other_numbers_of_ends_are_refused(
    count: int, keeper: InFlight, ends: list[int]
) -> None:
    with pytest.raises(ValueError, match="ends"):
        InFlight(keeper.ends[:count])


def test_other_descriptors_are_no_ends(
    keeper: InFlight, ends: list[int], memfd: Make
) -> None:
    fd = memfd()
    with pytest.raises(ValueError, match=f"descriptor {fd} is no end"):
        InFlight([*keeper.ends[:3], fd])
    here, there = socket.socketpair()
    with here, there, pytest.raises(ValueError, match="is no end"):
        InFlight([*keeper.ends[:3], here.fileno()])
    assert inode(fd)
    keeper.keep(b"still", fd)
