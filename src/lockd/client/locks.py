"""The common part of the locks for threads and for tasks."""

from typing import Any, Generic, NamedTuple, TypeVar

from lockd.client import arguments
from lockd.client.grants import AnyGrant, Uncopied
from lockd.client.reply import Reply
from lockd.client.strands import Strand
from lockd.errors import NotHeldError
from lockd.names import quoted
from lockd.terms import EXCLUSIVE, Mode, ResourceKey

GrantT = TypeVar("GrantT", bound=AnyGrant)


class Held(NamedTuple, Generic[GrantT]):
    """A grant, and the thread or task that acquired it."""

    who: object
    grant: GrantT


class AnyLock(Uncopied, Generic[GrantT]):
    """One lock of the daemon, and the grants of it through this object.

    Args:
        params: the parameters of each request for it.
        timeout: the default timeout of `acquire` in seconds; None waits without a
            limit.
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
        """The grant; that of the calling thread or task, if several hold the lock.

        Raises:
            NotHeldError: the lock is not held through this object.
        """
        return self._last_held().grant

    @property
    def fencing_token(self) -> int:
        """The fencing token of `grant`."""
        return self.grant.fencing_token

    def locked(self) -> bool:
        """Returns whether the lock is held through this object. False after a loss."""
        return any(held.grant.held for held in list(self._holds))

    def check(self) -> None:
        """Checks that the lock is still held, by all that the daemon has sent so far.

        Raises:
            LockLostError: it was lost.
            NotHeldError: it is not held through this object.
        """
        self._check_owned()
        self.grant.check()

    def _check_owned(self) -> None:
        """Raises an error if the caller may not use the connection."""
        raise NotImplementedError

    def _caller(self) -> object:
        """Returns an object that identifies the current thread or task."""
        raise NotImplementedError

    def _patience(self, timeout: float | None) -> float:
        """Returns the timeout in seconds. A negative number waits without a limit."""
        if timeout is None:
            return self._timeout
        return arguments.patience("timeout", timeout)

    def _request(self, timeout: float, strand: Strand | None) -> Reply:
        """Returns a new request for the lock.

        Args:
            timeout: in seconds. A negative number waits without a limit.
            strand: the strand that acquires it; None: the session as a whole.
        """
        params = dict(self._params)
        if timeout >= 0:
            params["timeout"] = timeout
        if strand is not None:
            params["strand"] = strand
        return Reply("acquire", params)

    def _last_held(self) -> Held[GrantT]:
        """Returns the caller's grant, or else that of another thread or task."""
        holds = list(self._holds)
        if not holds:
            raise self._not_held()
        caller = self._caller()
        own = [held for held in holds if held.who == caller]
        return (own or holds)[-1]

    def _not_held(self) -> NotHeldError:
        return NotHeldError(
            f"{quoted(self._key.resource)} is not held by this lock: acquire it first"
        )
