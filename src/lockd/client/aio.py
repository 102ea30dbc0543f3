"""The client for trio and asyncio programs, on anyio.

Cancellation: a request that waits for a lock is taken back, and a grant that comes
nevertheless is released, before the cancellation goes on. No lock is ever held that
nobody knows of.
"""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

from lockd.client import arguments, paths, requests
from lockd.client.grants import Uncopied
from lockd.client.inbox import Inbox
from lockd.client.reply import Reply
from lockd.client.tasks.link import Grant, TaskLink, open_link
from lockd.client.tasks.locks import Body, Lock, Released
from lockd.errors import BusyError, LockdError, WrongTaskError
from lockd.terms import EXCLUSIVE, Kind, Mode, OnDisconnect

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
    return _Session(socket, name)


class _Session(AbstractAsyncContextManager["Client", bool | None]):
    def __init__(self, socket: str | os.PathLike[str] | None, name: str | None) -> None:
        self._place = paths.find_socket(socket)
        self._opened = open_link(self._place, partial(requests.opening, name))

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


class Client(Uncopied):
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
        self._link = link
        self.session: int = welcome["session"]
        self.epoch: int = welcome["epoch"]

    def __repr__(self) -> str:
        return f"<Client session {self.session} {self._link!r}>"

    # Locks.

    def lock(
        self,
        resource: requests.Name,
        *,
        lockspace: str | None = None,
        mode: Mode = EXCLUSIVE,
        timeout: float | None = None,
        create: bool | None = None,
        label: str | None = None,
        reason: str | None = None,
    ) -> Lock:
        """Returns a lock to be used in `async with`, or like `anyio.Lock`.

        The arguments are those of `acquire`; `timeout` may be negative, too: for ever.
        """
        key = requests.key_of(resource, lockspace)
        options = {"create": create, "label": label, "reason": reason}
        arguments.checked("acquire", {"mode": mode, "lockspace": lockspace, **options})
        patience = None if timeout is None else arguments.patience("timeout", timeout)
        return Lock(self._link, key, mode, patience, options)

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

    async def acquire(
        self,
        resource: requests.Name,
        *,
        lockspace: str | None = None,
        mode: Mode = EXCLUSIVE,
        timeout: float | None = None,
        create: bool | None = None,
        label: str | None = None,
        reason: str | None = None,
    ) -> Grant:
        """Waits for a lock.

        Args:
            resource: its name; one that begins with a slash, or a `pathlib.Path`, is
                the path of a file.
            lockspace: `direct` for a file, else `default`, if not given.
            mode: "exclusive" or "shared".
            timeout: seconds to wait; None waits for ever, 0 does not wait.
            create: whether to make the file of a directory lockspace if it is missing.
            label: what the name stands for, for people.
            reason: what the lock is held for, for people.

        Raises:
            AcquireTimeoutError: it was not granted in time; `facts` tell who holds it.
            BusyError: with `timeout` 0, somebody holds it or waits for it.
            AlreadyHeldError: this session holds it, or waits for it.
            DeadlockError: waiting would close a cycle.
        """
        options = {"create": create, "label": label, "reason": reason}
        reply = requests.about(
            "acquire", resource, lockspace, mode=mode, timeout=timeout, **options
        )
        await self._call(reply)
        grant: Grant = reply.grants[0]
        return grant

    async def try_acquire(
        self,
        resource: requests.Name,
        *,
        lockspace: str | None = None,
        mode: Mode = EXCLUSIVE,
        create: bool | None = None,
        label: str | None = None,
        reason: str | None = None,
    ) -> Grant | None:
        """Takes a lock if it is free now; returns None if it is busy."""
        options = {"create": create, "label": label, "reason": reason}
        reply = requests.about(
            "acquire", resource, lockspace, mode=mode, timeout=0, **options
        )
        try:
            await self._call(reply)
        except BusyError:
            return None
        grant: Grant = reply.grants[0]
        return grant

    async def acquire_all(
        self,
        resources: Iterable[requests.Name],
        *,
        lockspace: str | None = None,
        mode: Mode = EXCLUSIVE,
        timeout: float | None = None,
        create: bool | None = None,
        label: str | None = None,
        reason: str | None = None,
    ) -> tuple[Grant, ...]:
        """Waits for several locks of one lockspace: all are granted together, or none.

        Raises:
            RequestError: as for `acquire`.
        """
        options = {"create": create, "label": label, "reason": reason}
        reply = requests.acquire_all(
            resources, lockspace, mode, timeout=timeout, **options
        )
        await self._call(reply)
        return reply.grants

    async def release(
        self, *targets: Grant | Lock | requests.Name, lockspace: str | None = None
    ) -> None:
        """Releases locks: by their grants, by the `Lock`s that hold them, or by name.

        A grant is released exactly: never a later one of the same name. To release it
        again does nothing.

        Raises:
            LockLostError: a grant had been lost.
            NotHeldError: nothing of that name is held, or nothing by that `Lock`.
            LockdError: if several fail, the error of one. All others have been
                released.
            TypeError: one of them is something else. Nothing has been released.
        """
        requests.check_releasable(targets, Grant, Lock)
        grants = [target for target in targets if isinstance(target, Grant)]
        names = [x for x in targets if not isinstance(x, Grant | Lock)]
        by_name = [requests.about("release", name, lockspace) for name in names]
        replies = self._link.start_release(*grants)
        started = [Released(self._link, reply) for reply in replies]
        starts = [target.release for target in targets if isinstance(target, Lock)]
        starts += [partial(self._start_release, reply) for reply in by_name]
        failures: list[LockdError] = []
        # All are on their way before the first wait, which may be cancelled.
        for start in starts:
            try:
                started.append(start())
            except LockdError as failure:
                failures.append(failure)
        for released in started:
            try:
                await released
            except LockdError as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def _start_release(self, reply: Reply) -> Released:
        self._link.start(reply)
        return Released(self._link, reply)

    async def convert(
        self,
        target: Grant | requests.Name,
        mode: Mode,
        *,
        lockspace: str | None = None,
        timeout: float | None = None,
    ) -> Grant:
        """Changes the mode of a lock that is held; its fencing token stays.

        Raises:
            DeadlockError: another holder waits to convert, too.
            RequestError: as for `acquire`.
        """
        reply = requests.about("convert", target, lockspace, mode=mode, timeout=timeout)
        await self._call(reply)
        grant: Grant = reply.grants[0]
        return grant

    # Who holds what.

    async def query(
        self, resource: requests.Name, *, lockspace: str | None = None
    ) -> dict[str, Any]:
        """Returns who holds a lock, who waits, and who held it last."""
        reply = requests.about("query", resource, lockspace)
        found: dict[str, Any] = await self._call(reply)
        return found

    async def check(
        self,
        resource: requests.Name,
        fencing_token: int,
        *,
        lockspace: str | None = None,
    ) -> bool:
        """Returns whether a fencing token is that of a lock held now, by anybody."""
        reply = requests.about(
            "check", resource, lockspace, fencing_token=fencing_token
        )
        current: bool = (await self._call(reply))["current"]
        return current

    def list_resources(
        self, lockspace: str | None = None, **wanted: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields the resources that are held or waited for, in the order of names.

        Args:
            wanted: which of them: `owner`, `uid`, `pid`, `unit`, `path`, `waiting` of
                protocol 6.9.
        """
        return self._listed("list", "resources", lockspace=lockspace, **wanted)

    def list_waiters(
        self, lockspace: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields those who wait, in the order of names and of turns."""
        return self._listed("list_waiters", "waiters", lockspace=lockspace)

    async def list_lockspaces(self) -> list[dict[str, Any]]:
        """Returns all lockspaces."""
        return [x async for x in self._listed("list_lockspaces", "lockspaces")]

    async def list_sessions(self) -> list[dict[str, Any]]:
        """Returns all sessions."""
        return [x async for x in self._listed("list_sessions", "sessions")]

    async def _listed(
        self, method: str, name: str, **params: Any
    ) -> AsyncIterator[dict[str, Any]]:
        after = None
        while True:
            page = await self._call(requests.page(method, after, **params))
            for found in page[name]:
                yield found
            after = page["next"]
            if after is None:
                return

    async def statistics(self) -> dict[str, Any]:
        """Returns the daemon's counters."""
        counters: dict[str, Any] = await self.call("statistics")
        return counters

    async def reload(self) -> None:
        """Has the daemon take up its configuration and its program; for admins.

        Returns when both count: every lock and every connection goes on.

        Raises:
            UnavailableError: nothing has changed; the error says why.
        """
        await self.call("reload")

    async def metrics(self) -> str:
        """Returns what the daemon counts, as OpenMetrics; for admins."""
        text: str = (await self.call("metrics"))["text"]
        return text

    @asynccontextmanager
    async def watch(self, lockspace: str | None = None) -> AsyncIterator["Events"]:
        """Brings what happens in a lockspace, or in all, while the body runs."""
        inbox = self._link.open_events()
        try:
            await self.call("watch", lockspace=lockspace)
            yield Events(self._link, inbox)
        finally:
            self._link.close_events(inbox)

    # The session, and administration.

    async def register(
        self,
        name: str,
        *,
        uuid: str | None = None,
        owner_id: int | None = None,
        pid: int | None = None,
        on_disconnect: OnDisconnect | None = None,
    ) -> dict[str, Any]:
        """Names the owner for whom this session acts; once, before any lock."""
        reply = requests.register(name, uuid, owner_id, pid, on_disconnect)
        owner: dict[str, Any] = (await self._call(reply))["owner"]
        return owner

    async def restrict(self) -> None:
        """Gives up the right to do more than release, cancel, query and check."""
        await self.call("restrict")

    async def create_lockspace(
        self, name: str, kind: Kind, path: str | os.PathLike[str] | None = None
    ) -> None:
        """Makes a lockspace."""
        await self.call("create_lockspace", name=name, kind=kind, path=path)

    async def create_resource(self, resource: requests.Name, *, lockspace: str) -> None:
        """Makes the file of a resource; it stays until it is deleted."""
        await self.call("create_resource", lockspace=lockspace, resource=resource)

    async def delete_resource(self, resource: requests.Name, *, lockspace: str) -> None:
        """Removes the file of a resource that nobody holds."""
        await self.call("delete_resource", lockspace=lockspace, resource=resource)

    async def break_grant(self, fencing_token: int, reason: str) -> None:
        """Takes a lock away from its holder, who is told why."""
        await self.call("break", fencing_token=fencing_token, reason=reason)

    async def disconnect_session(self, session: int, reason: str) -> None:
        """Ends another session."""
        await self.call("disconnect", session=session, reason=reason)

    async def call(self, method: str, **params: Any) -> Any:
        """Sends any request of the protocol and returns its bare result."""
        return await self._call(requests.request(method, **params))

    async def _call(self, reply: Reply) -> Any:
        await self._link.perform(reply)
        return reply.outcome()


class Events:
    """What happens, event by event; to be used with `async for`."""

    def __init__(self, link: TaskLink, inbox: Inbox) -> None:
        self._link = link
        self._inbox = inbox

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        event: dict[str, Any] = await self._link.wait_item(self._inbox)
        return event
