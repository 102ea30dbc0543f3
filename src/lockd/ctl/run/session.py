"""The session of `lockctl run` and `hold`: one connection, one owner, its locks.

It drives the client's link itself, as it needs what other programs do not: the bare
socket, to hear of a loss by SIGIO and to leave the session to an executed command.
"""

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from lockd.client import paths, requests
from lockd.client.reply import Reply
from lockd.client.threads.connection import open_link
from lockd.client.threads.grants import Grant
from lockd.errors import (
    AlreadyHeldError,
    DeniedError,
    InvalidRequestError,
    LockLostError,
)
from lockd.names import quoted
from lockd.terms import Mode


class Session:
    """A session that is opened by the request for its locks, not before.

    So a child that is forked first has no part in it.

    Args:
        socket: the path of the daemon's socket; None for the usual one.
        client: what the daemon is told who asks.

    Attributes:
        socket: the path of the daemon's socket.
        grants: what is locked.
        is_owner: whether the locks end with the connection, not with another process.
    """

    def __init__(self, socket: str | None, client: str) -> None:
        self._client = client
        self._place = paths.find_socket(socket)
        self.socket = os.path.abspath(self._place.path)
        self.grants: Sequence[Grant] = ()
        self.is_owner = True

    def acquire(
        self,
        names: Sequence[str],
        lockspace: str,
        *,
        mode: Mode,
        timeout: float | None,
        label: str | None,
        reason: str | None,
        owner: str,
        owner_pid: int | None,
        inheritable: bool | None = None,
    ) -> None:
        """Connects, names the owner, and waits for all the locks.

        Args:
            inheritable: whether the locks last as long as any process has inherited
                the connection, although this one has ended.

        Raises:
            ConnectionLostError: there is no daemon, or it went away.
            AlreadyHeldError: the command that we are part of runs under one of them.
            RequestError: the locks were refused.
        """
        opening = partial(requests.opening, None, self._client)
        self._link, _ = open_link(self._place, opening)
        self._check_not_held_above(names, lockspace)
        self._register(owner, owner_pid, inheritable)
        acquire = requests.acquire_all(
            names, lockspace, mode, timeout=timeout, label=label, reason=reason
        )
        self._perform(acquire)
        self.grants = acquire.grants

    def _register(self, owner: str, pid: int | None, inheritable: bool | None) -> None:
        """Says for whom we act: the process `pid`, if the daemon knows it as that."""
        if pid is not None:
            with suppress(DeniedError):
                self._register_process(owner, pid)
                self.is_owner = False
                return
            # In a container: our pids mean nothing to a daemon outside. The process
            # inherits the connection instead (`to_bequeath`).
            inheritable = True
        self._perform(requests.register(owner, inheritable=inheritable))

    def _register_process(self, owner: str, pid: int) -> None:
        try:
            self._perform(requests.register(owner, pid=pid, until="both"))
        except InvalidRequestError:  # by a daemon that is older than `until`
            self._perform(requests.register(owner, pid=pid))

    def fileno(self) -> int:
        """Returns the socket's descriptor: readable when the daemon says something."""
        return self._link.sock.fileno()

    def check(self) -> None:
        """Checks, without waiting, that no lock has been lost.

        Raises:
            LockLostError: one has.
        """
        self._link.catch_up()
        for grant in self.grants:
            grant.check()

    def release(self) -> None:
        """Releases what is still held, and waits until it is free.

        Raises:
            LockdError: a lock had ended already, or the daemon is gone.
        """
        for reply in self._link.release(*self.grants):
            reply.outcome()

    def broken(self) -> LockLostError | None:
        """Returns why somebody took a lock away, if that is why it ended."""
        try:
            for grant in self.grants:
                grant.check()
        except LockLostError as error:
            return error if error.cause == "broken" else None
        return None

    def signal_input(self) -> None:
        """Makes the kernel send this process SIGIO when the daemon says something."""
        fcntl.fcntl(self._link.sock, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(self._link.sock, fcntl.F_GETFL)
        fcntl.fcntl(self._link.sock, fcntl.F_SETFL, flags | os.O_ASYNC)

    def to_bequeath(self) -> list[int]:
        """Returns the descriptors by which the command holds its lock if we die.

        None, if it is known to the daemon as the owner.
        """
        return [self.fileno()] if self.is_owner else []

    def outlive_exec(self) -> None:
        """Leaves the connection to the program that this process is about to become."""
        self._link.sock.set_inheritable(True)

    def _check_not_held_above(self, names: Sequence[str], lockspace: str) -> None:
        """Refuses to wait for what is held for the very command that we are part of.

        The holder is our ancestor, another owner to the daemon, and would wait for us.
        What its environment tells is believed only if the grant is still current.
        """
        told = os.environ
        here = (self.socket, lockspace)
        if (told.get("LOCKD_SOCKET"), told.get("LOCKD_LOCKSPACE")) != here:
            return
        tokens = told.get("LOCKD_TOKEN", "").split("\n")
        above = dict(zip(told.get("LOCKD_NAME", "").split("\n"), tokens, strict=False))
        for name in names:
            token = above.get(name, "")
            if token.isdecimal() and self._is_current(lockspace, name, int(token)):
                raise AlreadyHeldError(
                    f"{quoted(name)} is held already for the command that this is "
                    f"part of (fencing token {token})"
                )

    def _is_current(self, lockspace: str, name: str, token: int) -> bool:
        request = requests.request(
            "check", lockspace=lockspace, resource=name, fencing_token=token
        )
        return bool(self._perform(request)["current"])

    def _perform(self, request: Reply) -> Any:
        self._link.perform(request)
        return request.outcome()
