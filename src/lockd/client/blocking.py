"""The client for threads: sockets of the standard library, any number of threads.

Timeouts are kept by the daemon. While the daemon is stopped (SIGSTOP) every wait lasts,
until it goes on or is killed.
"""

import os
from collections.abc import Callable
from typing import Self

from lockd.client import arguments, paths
from lockd.client.threads.connection import Connection
from lockd.client.threads.grants import Grant
from lockd.client.threads.methods import Methods


def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    on_lost: Callable[[Grant], None] | None = None,
    reconnect: bool = False,
) -> "Client":
    """Opens a session with the daemon.

    Args:
        socket: the path; else `$LOCKD_SOCKET`, the user's daemon if there is one, the
            system's, as lockctl(1) has it under FINDING THE DAEMON.
        name: on whose behalf locks are held, as others see it.
        on_lost: called with each grant that is lost, as soon as that is known, in a
            thread that the client starts for it. It must not raise.
        reconnect: whether the client outlives the end of the daemon. What it held is
            lost then, and says so, and what is under way fails; each later call opens
            another session if the daemon is there again.

    Raises:
        ConnectionLostError: no daemon listens there.
        DeniedError: this user may not connect there.
    """
    address = paths.find_socket(socket)
    if on_lost is not None:
        arguments.function("on_lost", on_lost)
    return Client(Connection(address, name, on_lost, reconnect=reconnect))


class Client(Methods):
    """A session with the daemon: what it holds is released when it is closed.

    Every method may raise what the daemon refuses with, a `RequestError`, and
    `ConnectionLostError`, and in a forked child `ForkedSessionError`.

    `lock` is for threads that exclude each other; `acquire` and `release` speak for the
    session as a whole, so a second acquire of the same name is `AlreadyHeldError`.
    """

    @property
    def session(self) -> int:
        """The number by which the daemon knows this session."""
        session: int = self._connection.welcome["session"]
        return session

    @property
    def epoch(self) -> int:
        """Which run of the daemon this is."""
        epoch: int = self._connection.welcome["epoch"]
        return epoch

    def __repr__(self) -> str:
        return f"<Client session {self.session} {self._connection.last!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session; in a forked child, does nothing."""
        self._connection.close()
