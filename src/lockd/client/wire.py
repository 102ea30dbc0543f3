"""Joins a socket to a core: carries bytes both ways, and never waits."""

import socket
from typing import Final

from lockd.client.core import ClientCore

_READ_SIZE: Final = 65_536


class Wire:
    """The socket of one connection, in non-blocking mode.

    Whatever is interrupted here, by the exception of a signal handler, may have lost
    bytes that are already read or sent twice what is already sent. So the connection is
    ended then, as an interrupted conversation must not go on.
    """

    def __init__(self, sock: socket.socket, core: ClientCore) -> None:
        self.sock = sock
        self._core = core
        sock.setblocking(False)

    def push(self) -> None:
        """Sends what the kernel takes; the rest stays in `core.outgoing`."""
        outgoing = self._core.outgoing
        try:
            while outgoing:
                del outgoing[: self.sock.send(outgoing, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            pass
        except OSError:
            # What the daemon said last may still be unread: the reader finds the end.
            outgoing.clear()
        except BaseException:
            self._core.end("a signal interrupted the sending of a request")
            raise

    def pull(self) -> bool:
        """Reads some of what has come and gives it to the core.

        Returns:
            Whether there may be more.
        """
        if self._core.ended:
            return False
        try:
            self._core.receive(self.sock.recv(_READ_SIZE))
        except BlockingIOError:
            return False
        except OSError as error:
            self._core.end(f"the connection to the daemon failed: {error.strerror}")
        except BaseException:
            self._core.end("a signal interrupted the reading of an answer")
            raise
        return not self._core.ended
