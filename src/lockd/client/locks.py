"""The common part of the locks for threads and for tasks."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import ref

from lockd.client import arguments
from lockd.client.encoding import encode_rest
from lockd.client.grants import AnyGrant, Uncopied
from lockd.client.reply import Reply
from lockd.client.strands import Strand
from lockd.errors import NotHeldError
from lockd.names import quoted
from lockd.terms import EXCLUSIVE, Mode, key_of

GrantT = TypeVar("GrantT", bound=AnyGrant)


class Held(Generic[GrantT]):
    """A grant that a `Lock` object holds.

    Attributes:
        who: the thread or task that acquired it.
    """

    __slots__ = ("grant", "who")

    def __init__(self, who: object, grant: GrantT) -> None:
        self.who = who
        self.grant = grant


class AnyLock(Uncopied, Generic[GrantT]):
    """One lock of the daemon, and the grants of it through this object.

    Args:
        params: the parameters of each request for it.
        timeout: the default timeout of `acquire` in seconds; None waits without a
            limit.
        caller: returns an object that identifies the current thread or task.
    """

    def __init__(
        self,
        params: dict[str, Any],
        timeout: float | None,
        caller: Callable[[], object],
    ) -> None:
        self._params = params
        self._key = key_of((params["lockspace"], params["resource"]))
        self._mode: Mode = params.get("mode", EXCLUSIVE)
        self._timeout = -1 if timeout is None else timeout
        self._caller = caller
        #: The last request: its timeout and strand, its parameters, and their bytes.
        self._asked: tuple[float, Strand | None, dict[str, Any], bytes] | None = None
        # In order; a value is what `pop` returns.
        self._holds: dict[Held[GrantT], bool] = {}
        #: What the open `with` bodies have entered. Some of it may be released already.
        self._bodies: dict[Held[GrantT], bool] = {}
        #: The threads or tasks that have entered bodies, while they exist.
        self._guests: set[ref[Any]] = set()

    def __repr__(self) -> str:
        state = "locked" if self.locked() else "unlocked"
        return f"<{state} Lock object ({self._key}, {self._mode}) at {id(self):#x}>"

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

    @property
    def slot(self) -> int | None:
        """Which slot `grant` is, from 0 to its `slots` - 1; None in another mode."""
        return self.grant.slot

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

    def _patience(self, timeout: float | None) -> float:
        """Returns the timeout in seconds; -1 waits without a limit."""
        if timeout is None:
            return self._timeout
        return arguments.patience("timeout", timeout)

    def _request(self, timeout: float, strand: Strand | None) -> Reply:
        """Returns a new request for the lock.

        Args:
            timeout: in seconds; -1 waits without a limit.
            strand: the strand that acquires it; None: the session as a whole.
        """
        asked = self._asked
        if asked is None or asked[0] != timeout or asked[1] is not strand:
            params = self._params.copy()
            if timeout >= 0:
                params["timeout"] = timeout
            if strand is not None:
                params["strand"] = strand
            asked = timeout, strand, params, encode_rest("acquire", params)
            self._asked = asked
        return Reply("acquire", asked[2], rest=asked[3])

    def _last_held(self) -> Held[GrantT]:
        """Returns the caller's grant, or else that of another thread or task."""
        holds = list(self._holds)
        if not holds:
            raise self._not_held()
        caller = self._caller()
        own = [held for held in holds if held.who == caller]
        return (own or holds)[-1]

    def _to_release(self) -> Held[GrantT]:
        """Returns the hold that a release ends.

        The caller's own come first, then those that no body has entered, then the last
        one.
        """
        holds, bodies, caller = list(self._holds), list(self._bodies), self._caller()
        if not holds:
            raise self._not_held()
        return max(
            reversed(holds), key=lambda held: (held.who == caller, held not in bodies)
        )

    def _to_leave(self, entered: Held[GrantT] | None = None) -> Held[GrantT]:
        """Returns the hold that the end of a `with` body ends.

        That is what the body has entered. If it was released, that is what the same
        thread or task has acquired since, as `threading.Condition` does. It is never
        what another one holds.

        Args:
            entered: what the body has entered; None for what the caller has entered
                last. A caller that never entered this lock leaves the last body of
                another one, as a generator does that is finalized elsewhere.
        """
        body = entered or self._last_body()
        if body is None:
            raise self._not_held()
        self._bodies.pop(body, None)  # it may not have come so far
        if body in self._holds:
            return body
        holds = list(self._holds)
        bodies = list(self._bodies)
        since = [x for x in holds if x.who == body.who and x not in bodies]
        if not since:
            raise self._not_held()
        return since[-1]

    def _last_body(self) -> Held[GrantT] | None:
        caller = self._caller()
        bodies = list(self._bodies)
        for body in reversed(bodies):
            if body.who is caller:
                return body
        if not bodies or ref(caller) in self._guests:
            return None
        return bodies[-1]

    def _open_body(self, held: Held[GrantT]) -> None:
        """Notes that a body has entered what was acquired."""
        if self._bodies:
            self._close_old_bodies(held.who)
        if ref(held.who) not in self._guests:
            self._guests.add(ref(held.who, self._guests.discard))
        self._bodies[held] = True

    def _close_old_bodies(self, who: object) -> None:
        # An interruption may have kept an earlier body from beginning, or ending.
        holds = list(self._holds)
        for body in list(self._bodies):
            if body.who == who and body not in holds:
                self._bodies.pop(body, None)

    def _forget_ended(self) -> None:
        """Forgets what the caller acquired and lost, but not what a body must leave."""
        bodies, caller = list(self._bodies), self._caller()
        for held in list(self._holds):
            if held.who == caller and held not in bodies and not held.grant.held:
                self._holds.pop(held, None)

    def _not_held(self) -> NotHeldError:
        return NotHeldError(
            f"{quoted(self._key.resource)} is not held by this lock: acquire it first"
        )
