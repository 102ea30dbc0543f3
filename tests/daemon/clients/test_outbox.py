"""What a client does not read waits for it, as long as there is not too much of it."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgpack
import pytest

from lockd.daemon.clients.outbox import Outbox
from lockd.daemon.stores.streams import PlainFlow
from support.daemon_process import DaemonProcess
from support.wire_client import WireClient

MIB = 1024 * 1024


MOST = 1_000
"""Bytes that the client of these tests may leave unread."""


class Line:
    """An outbox, and the socket of its client, which takes little."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        self.outbox = Outbox(PlainFlow(self.ours), MOST)

    def read(self, size: int) -> bytes:
        """Returns so many bytes, of which the rest is sent meanwhile."""
        found = b""
        while len(found) < size:
            found += self.theirs.recv(size - len(found))
            self.outbox.send(b"")
        return found


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.ours.close()
    line.theirs.close()


def test_what_the_socket_takes_is_sent_at_once(line: Line) -> None:
    line.outbox.add(b"first, ")
    line.outbox.send(b"second")
    assert line.theirs.recv(100) == b"first, second"
    assert (len(line.outbox), line.outbox.unread) == (0, 0)
    assert not line.outbox.is_behind


def test_what_it_does_not_take_waits_and_leaves_in_order(line: Line) -> None:
    data = os.urandom(MIB)
    line.outbox.send(data)
    line.outbox.send(b"the end")
    assert line.outbox.is_behind
    assert line.outbox.unread == len(line.outbox) > MIB // 2
    assert line.read(MIB + 7) == data + b"the end"
    assert not line.outbox.is_behind
    assert line.outbox.unread == 0


def test_only_what_was_not_asked_for_counts_as_left(line: Line) -> None:
    line.outbox.send(bytes(MIB))
    assert line.outbox.unasked == 0
    line.outbox.send(bytes(MOST))
    assert line.outbox.unasked == MOST
    assert not line.outbox.leaves_too_much
    line.outbox.add(b"!")
    assert line.outbox.leaves_too_much
    line.read(MIB + MOST + 1)
    assert line.outbox.unasked == 0
    line.outbox.send(bytes(MIB))
    assert not line.outbox.leaves_too_much


def test_what_is_forgotten_is_not_sent(line: Line) -> None:
    line.outbox.send(bytes(MIB))
    line.outbox.forget()
    assert (len(line.outbox), line.outbox.is_behind) == (0, False)


def test_another_goes_on_where_it_was(line: Line) -> None:
    line.outbox.send(bytes(MIB))
    line.outbox.send(bytes(MOST) + b"!")
    apart, unsent, piled_up = line.outbox.dump(None)
    assert (apart, len(unsent)) == (0, line.outbox.unread)
    heir = Outbox(PlainFlow(line.ours), MOST)
    heir.load(unsent, piled_up, missed_notices=True)
    assert heir.is_behind
    assert heir.missed_notices
    heir.miss_notices(False)
    assert not heir.missed_notices
    assert heir.leaves_too_much
    line.outbox = heir
    assert line.read(MIB + MOST + 1)[-1:] == b"!"
    assert not heir.is_behind


# A real daemon.


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def sessions(client: WireClient) -> set[int]:
    return {each["session"] for each in client.call("list_sessions")["sessions"]}


def test_client_that_never_reads_gets_no_further_requests_read(
    client: WireClient, other: WireClient
) -> None:
    request = msgpack.packb([0, 1, "list_sessions", []])
    client.socket.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while sent < 2 * MIB:
            sent += client.socket.send(request * 1_000)
    assert sent < 2 * MIB, "the daemon reads although nobody reads its answers"
    for n in range(100):
        other.acquire(str(n))
        other.call("release", resource=str(n))
    client.close()


def make_lockspaces(client: WireClient, count: int) -> None:
    """Has `metrics` have some 2 KiB to tell of each."""
    for number in range(count):
        client.call("create_lockspace", name=f"space-{number}", kind="memory")


def test_answers_are_not_made_for_a_client_that_does_not_read_them(
    lockd: DaemonProcess,
) -> None:
    with WireClient(lockd.socket) as client, WireClient(lockd.socket) as other:
        make_lockspaces(other, 50)
        other.call("metrics")
        before = resident_bytes(lockd.pid)
        # Each takes some 100 KiB, all of them together 50 MiB.
        client.send_bytes(
            b"".join(msgpack.packb([0, n, "metrics", []]) for n in range(500))
        )
        assert other.call("statistics")["sessions"] == 2
        assert resident_bytes(lockd.pid) - before < 8 * MIB
        for number in range(500):
            assert len(client.result(number)["text"]) > 64 * 1024


def test_own_long_answers_are_not_held_against_a_client(lockd: DaemonProcess) -> None:
    """More than 2 MiB at once, read slowly but read."""
    with WireClient(lockd.socket) as client:
        make_lockspaces(client, 50)
        asked = [client.send("metrics") for _ in range(40)]
        total = sum(len(client.result(msgid)["text"]) for msgid in asked)
        assert total > 2 * MIB


def test_watcher_that_never_reads_is_disconnected_and_nobody_waits_for_it(
    client: WireClient, other: WireClient, common: DaemonProcess
) -> None:
    session = client.call("hello", protocol=1, client="deaf")["session"]
    client.call("watch")
    name = "x" * 255
    events = 0
    while session in sessions(other):
        for _ in range(50):
            other.send("acquire", resource=name)
            other.send("release", resource=name)
        for _ in range(100):
            assert other.receive() is not None
        events += 100
        assert events < 20_000, "it is never cut off"
    rest = client.rest()
    size = len(msgpack.packb(rest)) / len(rest)
    assert events * size > 2 * MIB, "it was cut off too early"
