"""Processes that a lock daemon may kill, whose connections are used from here.

A daemon takes whoever called connect(2) for its client, and kills it when the
connection ends with locks of its own. A guest connects, and passes the connection.
"""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from support.libvirt_client import LibvirtClient

_PID: Final = struct.Struct("I")

# It forks all guests, and has no connection that a guest could inherit. It ignores
# SIGCHLD: who is killed is gone at once, and no zombie that kill(2) still finds.
_SCRIPT: Final = """
import os, signal, socket, struct, sys

def live(orders):
    while path := orders.recv(108):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            socket.send_fds(orders, [b"x"], [connection.fileno()])
    os._exit(0)

nursery = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while nursery.recv(1):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        nursery.close()
        ours.close()
        live(theirs)
    theirs.close()
    pidfd = os.pidfd_open(pid)
    socket.send_fds(nursery, [struct.pack("I", pid)], [ours.fileno(), pidfd])
    ours.close()
    os.close(pidfd)
"""


class Guest:
    """A process that does nothing but connect where it is told."""

    def __init__(self, pid: int, orders: socket.socket, pidfd: int) -> None:
        self.pid = pid
        self._orders = orders
        self._pidfd = pidfd
        self._poll = select.poll()
        self._poll.register(pidfd, select.POLLIN)

    def connect(self, path: Path) -> LibvirtClient:
        """Has it connect; returns its connection, which nobody else has."""
        self._orders.send(os.fsencode(path))
        _, [descriptor], _, _ = socket.recv_fds(self._orders, 1, 1)
        return LibvirtClient(socket.socket(fileno=descriptor))

    def wait_until_dead(self, seconds: float = 0) -> bool:
        """Returns whether it died within so many seconds."""
        return bool(self._poll.poll(seconds * 1000))

    def kill(self) -> None:
        """Ends it as a crash would; returns when it is dead."""
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._poll.poll()

    def close(self) -> None:
        self.kill()
        self._orders.close()
        os.close(self._pidfd)


class Nursery:
    """Makes guests; those that are not closed end with it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SCRIPT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._process.wait()

    def guest(self) -> Guest:
        self._socket.send(b"x")
        pid, descriptors, _, _ = socket.recv_fds(self._socket, _PID.size, 2)
        orders, pidfd = descriptors
        (number,) = _PID.unpack(pid)
        return Guest(number, socket.socket(fileno=orders), pidfd)
