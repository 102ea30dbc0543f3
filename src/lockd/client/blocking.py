"""The client for threads: sockets of the standard library, any number of threads.

Timeouts are kept by the daemon. While the daemon is stopped (SIGSTOP) every wait lasts,
until it goes on or is killed.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

from lockd.client import arguments, paths, requests
from lockd.client.grants import Uncopied
from lockd.client.reply import Reply
from lockd.client.threads.connection import Connection
from lockd.client.threads.grants import Grant
from lockd.client.threads.locks import Lock
from lockd.errors import BusyError, LockdError
from lockd.terms import EXCLUSIVE, Kind, Mode, OnDisconnect


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
    place = paths.find_socket(socket)
    if on_lost is not None:
        arguments.function("on_lost", on_lost)
    return Client(Connection(place, name, on_lost, reconnect=reconnect))


class Client(Uncopied):
    """A session with the daemon: what it holds is released when it is closed.

    Every method may raise what the daemon refuses with, a `RequestError`, and
    `ConnectionLostError`, and in a forked child `ForkedSessionError`.

    `lock` is for threads that exclude each other; `acquire` and `release` speak for the
    session as a whole, so a second acquire of the same name is `AlreadyHeldError`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

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
        """Returns a lock to be used in a `with` statement, or like `threading.Lock`."""
        key = requests.key_of(resource, lockspace)
        options = {"create": create, "label": label, "reason": reason}
        arguments.checked("acquire", {"mode": mode, "lockspace": lockspace, **options})
        patience = None if timeout is None else arguments.patience("timeout", timeout)
        return Lock(self._connection, key, mode, patience, options)

    def acquire(
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
        self._call(reply)
        grant: Grant = reply.grants[0]
        return grant

    def try_acquire(
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
            self._call(reply)
        except BusyError:
            return None
        grant: Grant = reply.grants[0]
        return grant

    def acquire_all(
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
        self._call(reply)
        return reply.grants

    def release(
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
        replies = self._connection.last.release(*grants)
        outcomes = [reply.outcome for reply in replies]
        outcomes += [target.release for target in targets if isinstance(target, Lock)]
        outcomes += [partial(self._call, reply) for reply in by_name]
        failures: list[LockdError] = []
        for outcome in outcomes:
            try:
                outcome()
            except LockdError as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def convert(
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
        self._call(reply)
        grant: Grant = reply.grants[0]
        return grant

    # Who holds what.

    def query(
        self, resource: requests.Name, *, lockspace: str | None = None
    ) -> dict[str, Any]:
        """Returns who holds a lock, who waits, and who held it last."""
        reply = requests.about("query", resource, lockspace)
        found: dict[str, Any] = self._call(reply)
        return found

    def check(
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
        current: bool = self._call(reply)["current"]
        return current

    def list_resources(
        self, lockspace: str | None = None, **wanted: Any
    ) -> Iterator[dict[str, Any]]:
        """Yields the resources that are held or waited for, in the order of names.

        Args:
            wanted: which of them: `owner`, `uid`, `pid`, `unit`, `path`, `waiting` of
                protocol 6.9.
        """
        return self._listed("list", "resources", lockspace=lockspace, **wanted)

    def list_waiters(self, lockspace: str | None = None) -> Iterator[dict[str, Any]]:
        """Yields those who wait, in the order of names and of turns."""
        return self._listed("list_waiters", "waiters", lockspace=lockspace)

    def list_lockspaces(self) -> list[dict[str, Any]]:
        """Returns all lockspaces."""
        return list(self._listed("list_lockspaces", "lockspaces"))

    def list_sessions(self) -> list[dict[str, Any]]:
        """Returns all sessions."""
        return list(self._listed("list_sessions", "sessions"))

    def _listed(
        self, method: str, name: str, **params: Any
    ) -> Iterator[dict[str, Any]]:
        after = None
        while True:
            page = self._call(requests.page(method, after, **params))
            yield from page[name]
            after = page["next"]
            if after is None:
                return

    def statistics(self) -> dict[str, Any]:
        """Returns the daemon's counters."""
        counters: dict[str, Any] = self.call("statistics")
        return counters

    def reload(self) -> None:
        """Has the daemon take up its configuration and its program; for admins.

        Returns when both count: every lock and every connection goes on.

        Raises:
            UnavailableError: nothing has changed; the error says why.
        """
        self.call("reload")

    def metrics(self) -> str:
        """Returns what the daemon counts, as OpenMetrics; for admins."""
        text: str = self.call("metrics")["text"]
        return text

    @contextmanager
    def watch(self, lockspace: str | None = None) -> Iterator[Iterator[dict[str, Any]]]:
        """Brings what happens in a lockspace, or in all, while the body runs."""
        link = self._connection.link()
        inbox = link.open_events()
        try:
            self.call("watch", lockspace=lockspace)
            # Unlike a generator it can be asked again after an interruption.
            yield iter(partial(link.wait_item, inbox), None)
        finally:
            link.close_events(inbox)

    # The session, and administration.

    def register(
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
        owner: dict[str, Any] = self._call(reply)["owner"]
        return owner

    def restrict(self) -> None:
        """Gives up the right to do more than release, cancel, query and check."""
        self.call("restrict")

    def create_lockspace(
        self, name: str, kind: Kind, path: str | os.PathLike[str] | None = None
    ) -> None:
        """Makes a lockspace."""
        self.call("create_lockspace", name=name, kind=kind, path=path)

    def create_resource(self, resource: requests.Name, *, lockspace: str) -> None:
        """Makes the file of a resource; it stays until it is deleted."""
        self.call("create_resource", lockspace=lockspace, resource=resource)

    def delete_resource(self, resource: requests.Name, *, lockspace: str) -> None:
        """Removes the file of a resource that nobody holds."""
        self.call("delete_resource", lockspace=lockspace, resource=resource)

    def break_grant(self, fencing_token: int, reason: str) -> None:
        """Takes a lock away from its holder, who is told why."""
        self.call("break", fencing_token=fencing_token, reason=reason)

    def disconnect_session(self, session: int, reason: str) -> None:
        """Ends another session."""
        self.call("disconnect", session=session, reason=reason)

    def call(self, method: str, **params: Any) -> Any:
        """Sends any request of the protocol and returns its bare result."""
        return self._call(requests.request(method, **params))

    def _call(self, reply: Reply) -> Any:
        link = self._connection.link()
        try:
            link.perform(reply)
            return reply.outcome()
        except BaseException:
            # A signal, just now: nobody would know of what was granted.
            link.abandon(reply)
            raise
