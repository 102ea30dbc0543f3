"""The client for threads: sockets of the standard library, any number of threads.

The daemon enforces timeouts. If the daemon is stopped (SIGSTOP), every wait lasts until
it continues or dies.
"""

import os
from collections.abc import Callable
from typing import Self

from lockd.client import arguments, paths
from lockd.client.threads.connection import Connection
from lockd.client.threads.grants import Grant
from lockd.client.threads.methods import Methods
from lockd.errors import LockdError


def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    on_lost: Callable[[Grant], None] | None = None,
    reconnect: bool = False,
) -> "Client":
    """Opens a session with the daemon.

    Args:
        socket: the path of the socket. If None: `$LOCKD_SOCKET`, else the user's
            daemon, else the system's (lockctl(1), FINDING THE DAEMON).
        name: the name of the owner of the locks, as others see it.
        on_lost: called with each grant that is lost, at once, in a thread of the
            client. It must not raise.
        reconnect: whether the client survives the end of the daemon. All locks are then
            lost, and pending calls fail. Later calls open another session when the
            daemon is back.

    Raises:
        ConnectionLostError: no daemon listens there.
        DeniedError: this user may not connect there.
    """
    address = paths.find_socket(socket)
    if on_lost is not None:
        arguments.function("on_lost", on_lost)
    return Client(Connection(address, name, on_lost, reconnect=reconnect))


class Client(Methods):
    """A session with the daemon. Closing it releases all its locks.

    Every method may raise:

    - a `RequestError`: the daemon rejected the request;
    - `ConnectionLostError`: the connection ended;
    - `ForkedSessionError`: this is a forked child.

    Its threads exclude each other like threads of two clients, and the daemon detects
    deadlocks between them. A thread that asks again for what it holds gets
    `AlreadyHeldError`. (`Lock.acquire` acts for no thread.)

    The end of a `with` body sends the release of its lock, and does not wait for the
    answer. So another program may find the lock held for a moment; this client cannot,
    because the daemon takes its requests in order. If the lock was lost before the body
    ended, the end of the body raises `LockLostError`. If the daemon refuses the release
    later, the next call of the same thread that has not done anything yet raises the
    error; without such a call, `close` does. `release` waits for the answer.
    """

    @property
    def session(self) -> int:
        """The daemon's number of this session."""
        session: int = self._connection.welcome["session"]
        return session

    @property
    def epoch(self) -> int:
        """The number of the daemon's current run."""
        epoch: int = self._connection.welcome["epoch"]
        return epoch

    @property
    def instance(self) -> str:
        """The name of the daemon among all daemons; "" if it is too old."""
        instance: str = self._connection.welcome.get("instance", "")
        return instance

    def __repr__(self) -> str:
        return f"<Client session {self.session} {self._connection.last!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        try:
            self.close()
        except LockdError:
            if exc is None:
                raise

    def close(self) -> None:
        """Ends the session. Does nothing in a forked child.

        Raises:
            LockdError: a lock had been lost, or its release was refused, and nobody has
                been told yet. The session has ended nevertheless.
        """
        self._connection.close()
