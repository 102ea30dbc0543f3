"""The wire alone: a pair of sockets, and a kernel that takes little at once."""

import socket
from collections.abc import Iterator

import pytest

from lockd.client.core import ClientCore
from lockd.client.grants import AnyGrant, Hold
from lockd.client.wire import Wire


def no_grant(hold: Hold) -> AnyGrant:
    raise AssertionError(hold)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        yield near, far


def drained(far: socket.socket) -> bytes:
    found = bytearray()
    while True:
        try:
            found += far.recv(1_000_000)
        except BlockingIOError:
            return bytes(found)


# The first is the least that the kernel allows.
@pytest.mark.parametrize("buffer", [1, 4_096, 8_192, 16_384, 212_992])
@pytest.mark.parametrize("size", [1, 1_000, 65_536])
def test_every_byte_is_sent_once_however_small_the_buffer_is(
    pair: tuple[socket.socket, socket.socket], buffer: int, size: int
) -> None:
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    core = ClientCore(no_grant, "thread")
    wire = Wire(near, core)
    pieces = [bytes([number]) * size for number in range(100)]
    core.outgoing.extend(pieces)
    found = b""
    while core.outgoing:
        wire.push()
        came = drained(far)
        assert came
        found += came
    assert found == b"".join(pieces)


def test_what_is_sent_to_nobody_is_dropped_and_the_reader_finds_the_end(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    core = ClientCore(no_grant, "thread")
    wire = Wire(near, core)
    far.close()
    core.outgoing.append(b"x")
    wire.push()
    assert not core.outgoing
    wire.pull()
    assert core.ended
