"""Guests as libvirt starts and stops them, in virtlockd's protocol, for both daemons.

A guest connects, registers its process, and acquires its disks, one call after the
other's answer. How it stops decides what can be measured:

- When a guest ends, its process closes the connection by dying, locks held. virtlockd
  sends it a SIGTERM, and if the process is not reaped yet, which it never is when the
  kernel has just closed its sockets, waits 200 ms, and everybody with it. To compare
  that would compare one sleep.
- So here somebody else acts for the guest, as libvirtd does for QEMU, and releases
  before closing. The owner is a process that sleeps: were it the client, virtlockd
  would kill it for the locks that its other connections hold.
- Or the guest is killed, and reaped, before the last descriptor of its connection is
  closed. virtlockd does not wait then. What the guest's process costs the kernel, both
  have to wait for alike.
"""

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.measure import Round
from benchmarks.wires import RefusedError, VirtlockdWire

_ANSWER_BYTES: Final = 28
_SILENCE_SECONDS: Final = 20
_STATUS: Final = struct.Struct(">24xI")


@dataclass
class Guest:
    """What one guest says, from its registration to its last release."""

    register: bytes
    acquires: list[bytes]
    releases: list[bytes]

    @classmethod
    def of(cls, wire: VirtlockdWire, pid: int, disks: Sequence[str]) -> "Guest":
        """Makes one that speaks about a lockspace as a wire does."""
        return cls(
            VirtlockdWire.encode_register(pid),
            [wire.encode_acquire(disk, n) for n, disk in enumerate(disks)],
            [wire.encode_release(disk, n) for n, disk in enumerate(disks)],
        )


def starts_and_stops(path: Path, guests: Sequence[Guest]) -> Round:
    """Returns the round in which each guest starts, releases and closes, all the time.

    All of them do so at the same time. What they say comes from this process.
    """

    def work(seconds: float) -> float:
        start = time.perf_counter()
        sessions = live(path, guests, lambda _: time.perf_counter() - start < seconds)
        return (time.perf_counter() - start) / sessions

    return work


def live(path: Path, guests: Sequence[Guest], goes_on: Callable[[int], bool]) -> int:
    """Lets each guest start, release and close, again and again, all at the same time.

    Args:
        path: the socket.
        guests: what they say.
        goes_on: returns whether another one starts, after so many.

    Returns:
        How many have started and closed.
    """
    started = 0
    with select.epoll() as epoll:
        running: dict[int, _Session] = {}

        def begin(guest: Guest) -> None:
            nonlocal started
            session = _Session(path, guest)
            running[session.socket.fileno()] = session
            epoll.register(session.socket, select.EPOLLIN)
            started += 1

        for guest in guests:
            begin(guest)
        while running:
            for descriptor, _ in epoll.poll(_SILENCE_SECONDS):
                session = running[descriptor]
                if session.goes_on():
                    continue
                del running[descriptor]
                session.socket.close()
                if goes_on(started):
                    begin(session.guest)
    return started


class _Session:
    """One guest from its start to its stop."""

    def __init__(self, path: Path, guest: Guest) -> None:
        self.guest = guest
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.sendall(guest.register)
        self._calls = iter([*guest.acquires, *guest.releases])

    def goes_on(self) -> bool:
        """Reads an answer and sends the next call, if there is one."""
        _check(self.socket)
        call = next(self._calls, None)
        if call is not None:
            self.socket.sendall(call)
        return call is not None


def _check(connection: socket.socket) -> None:
    answer = connection.recv(_ANSWER_BYTES, socket.MSG_WAITALL)
    if len(answer) < _ANSWER_BYTES or _STATUS.unpack(answer) != (0,):
        raise RefusedError(f"a guest was refused: {answer!r}")


def starts_and_deaths(
    path: Path, guests: Sequence[Guest], monitor: VirtlockdWire
) -> Round:
    """Returns the round in which each guest starts, is killed, and so closes.

    Args:
        monitor: a connection whose two round trips tell when the daemon is done.
    """

    def work(seconds: float) -> float:
        sessions, elapsed = 0, 0.0
        while elapsed < seconds:
            with ExitStack() as stack:
                processes = [stack.enter_context(Process(path)) for _ in guests]
                start = time.perf_counter()
                connections = [process.connect() for process in processes]
                for connection, process in zip(connections, processes, strict=True):
                    connection.sendall(VirtlockdWire.encode_register(process.pid))
                for turn in range(len(guests[0].acquires)):
                    for connection, guest in zip(connections, guests, strict=True):
                        _check(connection)
                        connection.sendall(guest.acquires[turn])
                for connection in connections:
                    _check(connection)
                for process in processes:
                    process.kill()
                for connection in connections:
                    connection.close()
                for _ in range(2):
                    monitor.round_trip()
                elapsed += time.perf_counter() - start
                sessions += len(guests)
        return elapsed / sessions

    return work


class Process:
    """A process that sleeps, connects if asked, and can be killed."""

    def __init__(self, path: Path) -> None:
        self._orders, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._orders.close()
                theirs.recv(1)
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(str(path))
                socket.send_fds(theirs, [b"x"], [connection.fileno()])
                theirs.recv(1)
            finally:
                os._exit(0)
        theirs.close()

    def connect(self) -> socket.socket:
        self._orders.send(b"x")
        _, [descriptor], _, _ = socket.recv_fds(self._orders, 1, 1)
        return socket.socket(fileno=descriptor)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pid = 0

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid:
            self.kill()
        self._orders.close()
