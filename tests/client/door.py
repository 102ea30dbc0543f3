"""A socket behind which nobody stays: connections end there unanswered."""

import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.wire_client import PATIENCE


class Door:
    """Ends connections, until it leads to a daemon.

    Attributes:
        path: where to connect.
        ended: how many connections have been ended.
    """

    def __init__(
        self, path: Path, *, reads: bool, says: bytes, leads_to: str | None, after: int
    ) -> None:
        self.path = str(path)
        self.ended = 0
        self._reads = reads
        self._says = says
        self._leads_to = leads_to
        self._after = after
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.path)
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._socket.close()

    def _serve(self) -> None:
        while self.ended < self._after:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # it was closed
                return
            with connection:
                # What was not read is for the client a connection that was reset.
                select.select([connection], [], [], PATIENCE)
                if self._reads:
                    connection.recv(65_536)
                connection.sendall(self._says)
                self.ended += 1
                if self.ended == self._after and self._leads_to is not None:
                    os.symlink(self._leads_to, f"{self.path}.new")
                    os.replace(f"{self.path}.new", self.path)


@contextmanager
def open_door(
    path: Path,
    *,
    reads: bool = True,
    says: bytes = b"",
    leads_to: str | None = None,
    after: int = 100,
) -> Iterator[Door]:
    """Has connections end at a path.

    Args:
        reads: whether what the client sent is read.
        says: what the client hears before the end.
        leads_to: the socket to which the path leads in the end.
        after: so many connections.
    """
    door = Door(path, reads=reads, says=says, leads_to=leads_to, after=after)
    try:
        yield door
    finally:
        door.close()
