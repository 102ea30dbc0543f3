"""The methods of both clients, written for tasks.

`make sync` generates `threads/methods.py` from this file (tools/unasync.py). So every
docstring here must be true for threads too.
"""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Self

from lockd.client import arguments, requests
from lockd.client.grants import Uncopied
from lockd.client.inbox import Inbox, News
from lockd.client.reply import Reply
from lockd.client.tasks.link import Grant, TaskLink
from lockd.client.tasks.locks import Lock, release_all
from lockd.errors import BusyError
from lockd.terms import EXCLUSIVE, Kind, Mode, OnDisconnect, Until


class Methods(Uncopied):
    """The methods of a client."""

    def __init__(self, link: TaskLink) -> None:
        self._link = link

    # Locks.

    def lock(
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
    ) -> Lock:
        """Returns a lock to use in `async with`, or like `anyio.Lock`.

        The arguments are those of `acquire`; a `timeout` of -1 waits without a limit
        too.
        """
        options = {"create": create, "whole": whole, "label": label, "reason": reason}
        hears = {"max_hold": max_hold, "wanted": wanted}
        params = requests.params_about(
            "acquire",
            resource,
            lockspace,
            max_waiting=max_waiting,
            **requests.in_mode(mode, slots),
            **options,
            **hears,
        )
        patience = None if timeout is None else arguments.patience("timeout", timeout)
        return Lock(self._link, params, patience)

    async def acquire(
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
    ) -> Grant:
        """Waits for a lock.

        Args:
            resource: the name. A `pathlib.Path`, or a name that begins with a slash, is
                the path of a file.
            lockspace: if None, `direct` for a file, else `default`.
            mode: "exclusive", "shared" or "slot".
            slots: take one of so many slots, and the mode is "slot". True: of as many
                as are configured, or as others use. `Grant.slot` says which.
            timeout: seconds to wait; None waits without a limit, 0 does not wait.
            max_waiting: raise `BusyError` instead of waiting behind so many; None
                waits behind any number, 0 does not wait.
            create: whether to create a missing file in a directory lockspace.
            whole: lock every byte of a file in a direct lockspace, so that programs
                that do not use lockd do not get in either, this program included.
            max_hold: seconds after which the daemon tells that the lock is still held:
                `Grant.overdue`, `notices`. Nothing else happens, unless the lockspace
                says so.
            wanted: whether the daemon tells that others wait for the lock, and that
                nobody does any more: `Grant.wanted`, `notices`. It tells at most 64
                holders of a lock.
            label: a readable name for the lock, for people.
            reason: why the lock is held, for people.

        Raises:
            AcquireTimeoutError: the timeout passed; `facts` name the holders.
            BusyError: the lock has a holder or a waiter, and `timeout` or `max_waiting`
                is 0; or `max_waiting` others wait.
            AlreadyHeldError: this thread or task holds the lock or waits for it.
            DeadlockError: waiting would close a cycle.
            InvalidRequestError: a parameter is not allowed, or the lock has another
                number of slots.
        """
        options = {"create": create, "whole": whole, "label": label, "reason": reason}
        hears = {"max_hold": max_hold, "wanted": wanted}
        reply = requests.about(
            "acquire",
            resource,
            lockspace,
            timeout=timeout,
            max_waiting=max_waiting,
            strand=self._link.strand(),
            **requests.in_mode(mode, slots),
            **options,
            **hears,
        )
        return await self._granted(reply)

    async def try_acquire(
        self,
        resource: requests.Name,
        *,
        lockspace: str | None = None,
        mode: Mode = EXCLUSIVE,
        slots: int | None = None,
        create: bool | None = None,
        whole: bool | None = None,
        max_hold: float | None = None,
        wanted: bool | None = None,
        label: str | None = None,
        reason: str | None = None,
    ) -> Grant | None:
        """Acquires a lock if it is free; returns None if it is busy."""
        options = {"create": create, "whole": whole, "label": label, "reason": reason}
        hears = {"max_hold": max_hold, "wanted": wanted}
        reply = requests.about(
            "acquire",
            resource,
            lockspace,
            timeout=0,
            strand=self._link.strand(),
            **requests.in_mode(mode, slots),
            **options,
            **hears,
        )
        try:
            return await self._granted(reply)
        except BusyError:
            return None

    async def acquire_all(
        self,
        resources: Iterable[requests.Name],
        *,
        lockspace: str | None = None,
        mode: Mode = EXCLUSIVE,
        timeout: float | None = None,
        max_waiting: int | None = None,
        create: bool | None = None,
        whole: bool | None = None,
        max_hold: float | None = None,
        wanted: bool | None = None,
        label: str | None = None,
        reason: str | None = None,
    ) -> tuple[Grant, ...]:
        """Waits for several locks of one lockspace; acquires all of them or none.

        Raises:
            RequestError: as for `acquire`.
        """
        options = {"create": create, "whole": whole, "label": label, "reason": reason}
        hears = {"max_hold": max_hold, "wanted": wanted}
        reply = requests.acquire_all(
            resources,
            lockspace,
            mode,
            timeout=timeout,
            max_waiting=max_waiting,
            strand=self._link.strand(),
            **options,
            **hears,
        )
        await self._link.ask(reply)
        return reply.grants

    async def release(
        self, *targets: Grant | Lock | requests.Name, lockspace: str | None = None
    ) -> None:
        """Releases locks: by grant, by `Lock` object, or by name.

        A grant releases exactly its own lock, never a later one of the same name.
        Releasing it again does nothing. A name releases what this thread or task
        acquired. Any thread or task may release a grant, or a `Lock`.

        Raises:
            LockLostError: a grant had been lost.
            NotHeldError: this thread or task does not hold the name, or the `Lock` is
                not held.
            LockdError: if several releases fail, the error of one. All others have
                succeeded.
            TypeError: a target has another type. Nothing has been released.
        """
        requests.check_releasable(targets, Grant, Lock)
        grants = [target for target in targets if isinstance(target, Grant)]
        locks = [target for target in targets if isinstance(target, Lock)]
        names = [x for x in targets if not isinstance(x, Grant | Lock)]
        find = self._link.find_held
        by_name = [requests.of_held("release", x, lockspace, find) for x in names]
        await release_all(self._link, grants, locks, by_name)

    async def convert(
        self,
        target: Grant | requests.Name,
        mode: Mode,
        *,
        lockspace: str | None = None,
        timeout: float | None = None,
    ) -> Grant:
        """Changes the mode of a held lock; the fencing token stays the same.

        A name means what this thread or task acquired.

        A slot cannot be converted.

        Raises:
            DeadlockError: another holder also waits to convert.
            RequestError: as for `acquire`.
        """
        options = {"mode": mode, "timeout": timeout}
        find = self._link.find_held
        reply = requests.of_held("convert", target, lockspace, find, **options)
        return await self._granted(reply)

    async def _granted(self, reply: Reply) -> Grant:
        await self._link.ask(reply)
        grant: Grant = reply.grants[0]
        return grant

    # Asking about locks.

    async def query(
        self, resource: requests.Name, *, lockspace: str | None = None
    ) -> dict[str, Any]:
        """Returns the holders, the waiters and the last holder of a lock."""
        reply = requests.about("query", resource, lockspace)
        found: dict[str, Any] = await self._link.ask(reply)
        return found

    async def check(
        self,
        resource: requests.Name,
        fencing_token: int,
        *,
        lockspace: str | None = None,
    ) -> bool:
        """Returns whether somebody holds a resource with this fencing token."""
        reply = requests.about(
            "check", resource, lockspace, fencing_token=fencing_token
        )
        found: dict[str, bool] = await self._link.ask(reply)
        return found["current"]

    async def list_resources(
        self, lockspace: str | None = None, **wanted: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields the resources with a holder or a waiter, sorted by name.

        Each names at most 4 holders. With a filter for parties, it names all that
        match.

        Args:
            lockspace: only this one; None: all.
            wanted: filters: `owner`, `uid`, `pid`, `unit`, `path`, `waiting` of
                protocol 6.9.
        """
        last: dict[str, Any] | None = None
        listed = self._listed("list", "resources", lockspace=lockspace, **wanted)
        async for found in listed:
            if last is None or not requests.is_more_of(found, last):
                if last is not None:
                    yield last
                last = found
        if last is not None:
            yield last

    def list_waiters(
        self, lockspace: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields the waiting requests, sorted by name and place in the queue."""
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
            page = await self._link.ask(requests.page(method, after, **params))
            for found in page[name]:
                yield found
            after = page["next"]
            if after is None:
                return

    async def statistics(self) -> dict[str, Any]:
        """Returns the daemon's counters."""
        counters: dict[str, Any] = await self.call("statistics")
        return counters

    async def metrics(self) -> str:
        """Returns the daemon's metrics in OpenMetrics format; for admins."""
        found: dict[str, str] = await self.call("metrics")
        return found["text"]

    @asynccontextmanager
    async def watch(self, lockspace: str | None = None) -> AsyncIterator["Events"]:
        """Watches a lockspace, or all, while the body runs; yields the `Events`."""
        inbox = self._link.open_events()
        try:
            await self.call("watch", lockspace=lockspace)
            yield Events(self._link, inbox)
        finally:
            self._link.close_events(inbox)

    @asynccontextmanager
    async def notices(self) -> AsyncIterator["Notices"]:
        """Yields the `Notices` of the locks of this client, while the body runs.

        A lock that was acquired with `max_hold` or `wanted` has some. Each lock that is
        lost has one.
        """
        news = self._link.open_notices()
        try:
            yield Notices(self._link, news)
        finally:
            self._link.close_notices(news)

    # The session, and administration.

    async def register(
        self,
        name: str,
        *,
        uuid: str | None = None,
        owner_id: int | None = None,
        pid: int | None = None,
        on_disconnect: OnDisconnect | None = None,
        until: Until | None = None,
    ) -> dict[str, Any]:
        """Registers the owner for whom this session acts.

        Call it before the first lock. With the `pid` of another process, all threads
        and tasks of all sessions that act for it are one party. They do not wait for
        each other: whoever asks for what the process holds gets `AlreadyHeldError`.

        Args:
            name, uuid, owner_id: as others see the owner.
            pid: the process that holds the locks; None: this session.
            on_disconnect: whether to "kill" the process before its locks end.
            until: when the locks of another process end. "either" (the default): when
                it dies. "both": when it is dead, and no session that acts for it is
                left.
        """
        reply = requests.register(name, uuid, owner_id, pid, on_disconnect, until=until)
        found: dict[str, dict[str, Any]] = await self._link.ask(reply)
        return found["owner"]

    async def restrict(self) -> None:
        """Restricts this session to release, cancel, query and check."""
        await self.call("restrict")

    async def reload(self) -> None:
        """Reloads the daemon's configuration and its program; for admins.

        Returns when both are in force. All locks and connections survive.

        Raises:
            UnavailableError: nothing has changed; the error says why.
        """
        await self.call("reload")

    async def create_lockspace(
        self, name: str, kind: Kind, path: str | os.PathLike[str] | None = None
    ) -> None:
        """Creates a lockspace."""
        await self.call("create_lockspace", name=name, kind=kind, path=path)

    async def create_resource(self, resource: requests.Name, *, lockspace: str) -> None:
        """Creates the file of a resource. It stays until `delete_resource`."""
        await self.call("create_resource", lockspace=lockspace, resource=resource)

    async def delete_resource(self, resource: requests.Name, *, lockspace: str) -> None:
        """Removes the file of a resource that nobody holds."""
        await self.call("delete_resource", lockspace=lockspace, resource=resource)

    async def break_grant(self, fencing_token: int, reason: str) -> None:
        """Takes a lock away from its holder, who gets the reason."""
        await self.call("break", fencing_token=fencing_token, reason=reason)

    async def disconnect_session(self, session: int, reason: str) -> None:
        """Ends another session."""
        await self.call("disconnect", session=session, reason=reason)

    async def call(self, method: str, **params: Any) -> Any:
        """Sends any request of the protocol and returns its result."""
        arguments.printable_name("method", method)
        return await self._link.ask(requests.request(method, **params))


class Notices:
    """The grants of which the daemon said something new, for use with `async for`.

    Look at `Grant.overdue` and `Grant.wanted` of each. They show the latest: what
    changed twice meanwhile comes once. Grants that are overdue or wanted at the
    beginning come first. A lost grant comes too: then `Grant.held` is False, and
    `Grant.cause` says why. What this program releases does not come.
    """

    def __init__(self, link: TaskLink, news: News) -> None:
        self._link = link
        self._news = news

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Grant:
        grant: Grant = await self._link.wait_item(self._news)
        return grant


class Events:
    """The events of a watch, for use with `async for`.

    Unlike a generator, it can continue after an exception interrupts a wait.
    """

    def __init__(self, link: TaskLink, inbox: Inbox) -> None:
        self._link = link
        self._inbox = inbox

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        event: dict[str, Any] = await self._link.wait_item(self._inbox)
        return event
