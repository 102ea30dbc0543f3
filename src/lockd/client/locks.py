"""What the locks of threads and those of tasks share: what they hold, and for whom."""

from typing import Any, Generic, NamedTuple, TypeVar

from lockd.client import arguments
from lockd.client.grants import AnyGrant, Uncopied
from lockd.client.local_queues import Ticket
from lockd.client.reply import Reply
from lockd.errors import AcquireTimeoutError, BusyError, NotHeldError, RequestError
from lockd.names import quoted
from lockd.terms import EXCLUSIVE, Mode, ResourceKey

GrantT = TypeVar("GrantT", bound=AnyGrant)


class Held(NamedTuple, Generic[GrantT]):
    """A grant, and the ticket with which it was got."""

    ticket: Ticket
    grant: GrantT


class AnyLock(Uncopied, Generic[GrantT]):
    """One lock of the daemon, and what is held through this object.

    Args:
        params: those of each request for it.
        timeout: seconds to wait if `acquire` is given none; None waits for ever.
    """

    def __init__(self, params: dict[str, Any], timeout: float | None) -> None:
        self._params = params
        self._key = ResourceKey(params["lockspace"], params["resource"])
        self._mode: Mode = params.get("mode", EXCLUSIVE)
        self._timeout = -1 if timeout is None else timeout
        self._holds: list[Held[GrantT]] = []

    def __repr__(self) -> str:
        state = "held" if self.locked() else "not held"
        return f"<Lock {self._key} {self._mode} {state}>"

    @property
    def grant(self) -> GrantT:
        """What is held; by the calling thread or task, if several hold it.

        Raises:
            NotHeldError: nothing is.
        """
        return self._last_held().grant

    @property
    def fencing_token(self) -> int:
        """The fencing token of what is held."""
        return self.grant.fencing_token

    def locked(self) -> bool:
        """Returns whether the lock is held through this object; not if it was lost."""
        return any(held.grant.held for held in list(self._holds))

    def check(self) -> None:
        """Checks that the lock is still held, as far as the daemon has said.

        Raises:
            LockLostError: it was lost.
            NotHeldError: it is not held through this object.
        """
        self._check_owned()
        self.grant.check()

    def _check_owned(self) -> None:
        """Checks that the caller may use the connection."""
        raise NotImplementedError

    def _caller(self) -> object:
        """Returns what stands for the thread or task that runs here."""
        raise NotImplementedError

    def _patience(self, timeout: float | None) -> float:
        """Returns how long to wait; a negative number waits for ever."""
        if timeout is None:
            return self._timeout
        return arguments.patience("timeout", timeout)

    def _request(self) -> Reply:
        """Returns a new request for it, which waits for ever."""
        return Reply("acquire", dict(self._params))

    def _last_held(self) -> Held[GrantT]:
        """Returns what the caller holds, or else what somebody else holds."""
        holds = list(self._holds)
        if not holds:
            raise self._not_held()
        caller = self._caller()
        own = [held for held in holds if held.ticket.who == caller]
        return (own or holds)[-1]

    def _not_held(self) -> NotHeldError:
        return NotHeldError(
            f"{quoted(self._key.resource)} is not held by this lock: acquire it first"
        )


def not_admitted(
    ticket: Ticket, kind: str, timeout: float, waited: str
) -> RequestError:
    """Returns the refusal of a lock that somebody else of this process holds.

    Args:
        ticket: the one that was not admitted.
        kind: what holds it, "thread" or "task".
        timeout: how long it was waited for, in seconds.
        waited: the same as text.
    """
    held = f"{quoted(ticket.key.resource)} is held by another {kind} of this process"
    if not timeout:
        return BusyError(f"{held}: ask with a timeout to wait for it", ticket.facts())
    return AcquireTimeoutError(
        f"{held}, after {waited}: ask again with a longer timeout",
        ticket.facts() | {"waited": timeout},
    )
