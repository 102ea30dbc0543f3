"""The client for trio and asyncio programs, on anyio.

Cancellation: a request that waits for a lock is taken back, and a grant that comes
nevertheless is released, before the cancellation goes on. No lock is ever held that
nobody knows of.
"""

import os
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any

from lockd.client import arguments, paths, requests
from lockd.client.tasks.link import Grant, TaskLink, open_link
from lockd.client.tasks.locks import Body, Lock
from lockd.client.tasks.methods import Events, Methods
from lockd.errors import WrongTaskError
from lockd.terms import EXCLUSIVE, Mode

__all__ = ["Client", "Events", "Grant", "Lock", "connect"]


def connect(
    socket: str | os.PathLike[str] | None = None, *, name: str | None = None
) -> AbstractAsyncContextManager["Client"]:
    """Opens a session with the daemon, which ends with the `async with` body.

    The task that enters the body has to leave it; all tasks of its event loop may use
    the client.

    Args:
        socket: the path; else `$LOCKD_SOCKET`, the user's daemon if there is one, the
            system's, as lockctl(1) has it under FINDING THE DAEMON.
        name: on whose behalf locks are held, as others see it.

    Raises:
        ConnectionLostError: no daemon listens there.
        DeniedError: this user may not connect there.
        WrongTaskError: another task left the body; the session has ended all the same.
    """
    return _ClientContext(socket, name)


class _ClientContext(AbstractAsyncContextManager["Client", bool | None]):
    def __init__(self, socket: str | os.PathLike[str] | None, name: str | None) -> None:
        self._address = paths.find_socket(socket)
        self._opened = open_link(self._address, partial(requests.opening, name))

    async def __aenter__(self) -> "Client":
        self._link, welcome = await self._opened.__aenter__()
        self._task = self._link.task()
        return Client(self._link, welcome)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if not self._link.runs_here or self._task != self._link.task():
            # A nursery can only be left where it was entered.
            self._link.hang_up()
            raise WrongTaskError(
                "a client can only be left by the task that opened it, and another one "
                "did: its session has ended, and its locks are released"
            )
        return await self._opened.__aexit__(exc_type, exc, traceback)


class Client(Methods):
    """A session with the daemon: what it holds is released when it ends.

    Every method may raise what the daemon refuses with, a `RequestError`, and
    `ConnectionLostError`, in a forked child `ForkedSessionError`, and in another event
    loop or thread than that of `connect` `WrongTaskError`.

    `hold` and `lock` are for tasks that exclude each other; `acquire` and `release`
    speak for the session as a whole, so a second acquire of the same name is
    `AlreadyHeldError`.

    Attributes:
        session: the number by which the daemon knows this session.
        epoch: which run of the daemon this is.
    """

    def __init__(self, link: TaskLink, welcome: dict[str, Any]) -> None:
        super().__init__(link)
        self.session: int = welcome["session"]
        self.epoch: int = welcome["epoch"]

    def __repr__(self) -> str:
        return f"<Client session {self.session} {self._link!r}>"

    def hold(
        self,
        resource: requests.Name,
        *,
        lockspace: str | None = None,
        mode: Mode = EXCLUSIVE,
        timeout: float | None = None,
        create: bool | None = None,
        label: str | None = None,
        reason: str | None = None,
    ) -> AbstractAsyncContextManager[Grant]:
        """Holds a lock while the `async with` body runs.

        The tasks of one client exclude each other, first come, first served. When the
        lock or the connection is lost, the body is cancelled at once. The task that
        enters it has to leave it.

        Raises:
            LockLostError: the lock was lost, and the body raised nothing else.
            WrongTaskError: another task left it.
            RequestError: as for `acquire`.
        """
        arguments.checked("acquire", {"timeout": timeout})
        return Body(
            self.lock(
                resource,
                lockspace=lockspace,
                mode=mode,
                timeout=timeout,
                create=create,
                label=label,
                reason=reason,
            )
        )
