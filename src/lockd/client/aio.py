"""The client for trio and asyncio programs, on anyio.

Cancellation: before it continues, the client cancels a waiting request, and releases a
grant that arrives nevertheless. So a cancelled task never leaves a lock behind.
"""

import os
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

from lockd.client import paths, requests
from lockd.client.tasks.link import Grant, TaskLink, open_link
from lockd.client.tasks.locks import Body, Lock
from lockd.client.tasks.methods import Events, Methods, Notices
from lockd.errors import WrongTaskError
from lockd.terms import EXCLUSIVE, Mode

__all__ = ["Client", "Events", "Grant", "Lock", "Notices", "connect"]


def connect(
    socket: str | os.PathLike[str] | None = None, *, name: str | None = None
) -> AbstractAsyncContextManager["Client"]:
    """Opens a session with the daemon, which ends with the `async with` body.

    The task that enters the body must leave it. All tasks of its event loop may use the
    client.

    Args:
        socket: the path of the socket. If None: `$LOCKD_SOCKET`, else the user's
            daemon, else the system's (lockctl(1), FINDING THE DAEMON).
        name: the name of the owner of the locks, as others see it.

    Raises:
        ConnectionLostError: no daemon listens there.
        DeniedError: this user may not connect there.
        WrongTaskError: another task left the body; the session has ended nevertheless.
    """
    return _ClientContext(socket, name)


class _ClientContext(AbstractAsyncContextManager["Client", bool | None]):
    def __init__(self, socket: str | os.PathLike[str] | None, name: str | None) -> None:
        self._address = paths.find_socket(socket)
        self._opened = open_link(self._address, requests.Opening(name))

    async def __aenter__(self) -> "Client":
        self._link, welcome = await self._opened.__aenter__()
        self._task = self._link.loop.task()
        return Client(self._link, welcome)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        loop = self._link.loop
        if not loop.runs_here or self._task != loop.task():
            # Only the task that entered a nursery may leave it.
            self._link.hang_up()
            raise WrongTaskError(
                "only the task that opened a client may leave it; another task left "
                "this one, so its session has ended and its locks are released"
            )
        return await self._opened.__aexit__(exc_type, exc, traceback)


class Client(Methods):
    """A session with the daemon. Its end releases all its locks.

    Every method may raise:

    - a `RequestError`: the daemon rejected the request;
    - `ConnectionLostError`: the connection ended;
    - `ForkedSessionError`: this is a forked child;
    - `WrongTaskError`: this is another event loop or thread than that of `connect`.

    Its tasks exclude each other like tasks of two clients, and the daemon detects
    deadlocks between them. A task that asks again for what it holds gets
    `AlreadyHeldError`. (`Lock.acquire` acts for no task.) Note that `asyncio.gather`,
    and `asyncio.wait_for` before Python 3.12, run a call in a task of its own.

    The end of an `async with` body sends the release of its lock, and does not wait for
    the answer. So another program may find the lock held for a moment; this client
    cannot, because the daemon takes its requests in order. If the lock was lost before
    the body ended, the end of the body raises `LockLostError`. If the daemon refuses
    the release later, the next call of the same task that has not done anything yet
    raises the error; without such a call, the end of the session does. `release` waits
    for the answer.

    Attributes:
        session: the daemon's number of this session.
        epoch: the number of the daemon's current run.
        instance: the name of the daemon among all daemons; "" if it is too old.
    """

    def __init__(self, link: TaskLink, welcome: dict[str, Any]) -> None:
        super().__init__(link)
        self.session: int = welcome["session"]
        self.epoch: int = welcome["epoch"]
        self.instance: str = welcome.get("instance", "")

    def __repr__(self) -> str:
        return f"<Client session {self.session} {self._link!r}>"

    def hold(
        self,
        resource: requests.Name,
        *,
        lockspace: str | None = None,
        mode: Mode = EXCLUSIVE,
        slots: int | None = None,
        timeout: float | None = None,
        max_waiting: int | None = None,
        create: bool | None = None,
        whole: bool | None = None,
        max_hold: float | None = None,
        wanted: bool | None = None,
        label: str | None = None,
        reason: str | None = None,
    ) -> AbstractAsyncContextManager[Grant]:
        """Holds a lock while the `async with` body runs.

        All tasks and all clients exclude each other, first come, first served. If the
        lock or the connection is lost, the body is cancelled at once. The task that
        enters the body must leave it.

        Raises:
            LockLostError: the lock was lost, and the body raised nothing else.
            WrongTaskError: another task left the body.
            RequestError: as for `acquire`.
        """
        options = {"create": create, "whole": whole, "label": label, "reason": reason}
        hears = {"max_hold": max_hold, "wanted": wanted}
        params = requests.params_about(
            "acquire",
            resource,
            lockspace,
            timeout=timeout,
            max_waiting=max_waiting,
            **requests.in_mode(mode, slots),
            **options,
            **hears,
        )
        return Body(self._link, params)
