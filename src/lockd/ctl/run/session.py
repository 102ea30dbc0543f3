"""The session of `lockctl run` and `hold`: one connection, one owner, its locks.

It uses the client's link directly, because it needs the bare socket: SIGIO reports a
loss, and an executed command inherits the session.
"""

import fcntl
import os
import time
from collections.abc import Sequence
from contextlib import suppress

from lockd.client import paths, requests, within
from lockd.client.reply import Reply
from lockd.client.threads.connection import open_link
from lockd.client.threads.grants import Grant
from lockd.errors import (
    DeniedError,
    InvalidRequestError,
    LockLostError,
)
from lockd.hints import TYPE_CHECKING, Any
from lockd.text import duration

if TYPE_CHECKING:
    from lockd.terms import Mode, WorkOutcome

#: Seconds by which an answer may be late.
_MOMENT = 0.5


class Session:
    """A session that opens with the request for its locks, and not before.

    So a child that is forked earlier does not share it.

    Args:
        socket: the path of the daemon's socket; None for the default.
        client: the name of the client for the daemon.

    Attributes:
        socket: the path of the daemon's socket.
        grants: its locks.
        number: its number at the daemon, once it is connected.
        asks_for: the names for which it waits at this moment.
        is_owner: whether the locks end with the connection, not with another process.
    """

    def __init__(self, socket: str | None, client: str) -> None:
        self._client = client
        self._place = paths.find_socket(socket)
        self.socket = os.path.abspath(self._place.path)
        self.grants: Sequence[Grant] = ()
        self.number = 0
        self.asks_for: Sequence[str] = ()
        self.is_owner = True
        self._granted_at = 0.0

    def acquire(
        self,
        names: Sequence[str],
        lockspace: str,
        *,
        mode: "Mode",
        timeout: float | None,
        max_waiting: int | None,
        label: str | None,
        reason: str | None,
        owner: str,
        owner_pid: int | None,
        inheritable: bool | None = None,
        whole: bool | None = None,
        max_hold: int | None = None,
        slots: int | None = None,
    ) -> None:
        """Connects, registers the owner, and waits for all locks.

        Args:
            names: the resources.
            lockspace: their lockspace.
            mode: "exclusive", "shared" or "slot".
            slots: how many slots there are; True: as many as others say.
            timeout: seconds to wait; None waits without a limit.
            whole: whether to lock every byte of files.
            max_hold: seconds after which the locks are overdue; None: never.
            max_waiting: how many others may wait already; None: any number.
            label, reason: for people.
            owner: the name of the owner.
            owner_pid: the process that owns the locks; None: this session.
            inheritable: whether the locks last while any process has inherited the
                connection, even if this one has ended.

        Raises:
            ConnectionLostError: the daemon does not run, or the connection ended.
            AlreadyHeldError: the command around this one only shares one of the locks.
            RequestError: the daemon rejected the request.
        """
        opening = requests.Opening(None, self._client)
        self._link, welcome = open_link(self._place, opening)
        self._instance, self.number = welcome.get("instance", ""), welcome["session"]
        self._register(owner, owner_pid, inheritable)
        until = None if timeout is None else time.monotonic() + timeout
        for part in self._parts(names, lockspace):
            left = None if until is None else max(until - time.monotonic(), 0)
            acquire = requests.acquire_all(
                *(part, lockspace, mode),
                timeout=left,
                max_waiting=max_waiting,
                whole=whole,
                max_hold=max_hold,
                slots=slots,
                label=label,
                reason=reason,
            )
            self.asks_for = part
            self._perform(acquire)
            self.asks_for = ()
            self._granted_at = self._granted_at or time.monotonic()
            self.grants = [*self.grants, *acquire.grants]
        self.grants = sorted(self.grants, key=lambda x: names.index(x.resource))

    def _register(self, owner: str, pid: int | None, inheritable: bool | None) -> None:
        """Registers the owner: the process `pid`, if the daemon accepts it."""
        if pid is not None:
            with suppress(DeniedError):
                self._register_process(owner, pid)
                self.is_owner = False
                return
            # In a container our pids mean nothing to a daemon outside. The process then
            # inherits the connection (`to_bequeath`).
            inheritable = True
        self._perform(requests.register(owner, inheritable=inheritable))

    def _register_process(self, owner: str, pid: int) -> None:
        try:
            self._perform(requests.register(owner, pid=pid, until="both"))
        except InvalidRequestError:  # the daemon is older than `until`
            self._perform(requests.register(owner, pid=pid))

    def fileno(self) -> int:
        """Returns the socket's descriptor: readable when the daemon sends something."""
        return self._link.sock.fileno()

    def check(self) -> None:
        """Raises an error if a lock has been lost; does not wait.

        Raises:
            LockLostError: a lock has been lost.
        """
        self._link.catch_up()
        for grant in self.grants:
            grant.check()

    @property
    def is_overdue(self) -> bool:
        """Whether a lock is known to be held for longer than `max_hold`."""
        return any(grant.hold.overdue for grant in self.grants)

    def limit_passed(self, max_hold: int | None) -> str:
        """Names the time that an overdue lock has passed, just after it has.

        Args:
            max_hold: what was asked for. The lockspace may have a shorter time.
        """
        most, held = max_hold or 0, time.monotonic() - self._granted_at
        # lockctl hears of the grant a moment later than it begins.
        if held < most - _MOMENT:
            return f"max_hold of the lockspace ({duration(held)})"
        return f"--max-hold ({duration(most)})"

    def release(self, outcome: "WorkOutcome" = None) -> None:
        """Releases all locks and waits for the daemon's answer.

        Args:
            outcome: how the work under the locks ended.

        Raises:
            LockdError: a lock had ended already, or the daemon is gone.
        """
        replies = self._link.release(*self.grants, outcome=outcome)
        if any(isinstance(reply.error, InvalidRequestError) for reply in replies):
            replies = self._link.release(*self.grants)  # an older daemon
        for reply in replies:
            reply.outcome()

    def broken(self) -> LockLostError | None:
        """Returns the error if an admin has broken a lock; None otherwise."""
        try:
            for grant in self.grants:
                grant.check()
        except LockLostError as error:
            return error if error.cause == "broken" else None
        return None

    def signal_input(self) -> None:
        """Makes the kernel send SIGIO when the daemon sends something."""
        fcntl.fcntl(self._link.sock, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(self._link.sock, fcntl.F_GETFL)
        fcntl.fcntl(self._link.sock, fcntl.F_SETFL, flags | os.O_ASYNC)

    def to_bequeath(self) -> list[int]:
        """Returns the descriptors that keep the lock for the command if lockctl dies.

        Empty if the daemon has registered the command as the owner.
        """
        return [self.fileno()] if self.is_owner else []

    def within(self) -> str:
        """Returns `LOCKD_WITHIN` for the command, which runs within the locks."""
        tokens = [grant.fencing_token for grant in self.grants]
        return within.value(self._instance, tokens)

    def outlive_exec(self) -> None:
        """Leaves the connection to the program that replaces this process."""
        os.set_inheritable(self.fileno(), True)

    def _parts(self, names: Sequence[str], lockspace: str) -> list[list[str]]:
        """Returns the names in the parts to ask for one after the other."""

        def holds(name: str, token: int) -> bool:
            about = {"lockspace": lockspace, "resource": name, "fencing_token": token}
            found = self._perform(requests.request("check", **about))
            return bool(found["current"])

        return within.apart(names, within.tokens_of(self._instance), holds)

    def _perform(self, request: Reply) -> Any:
        self._link.perform(request)
        return request.outcome()
