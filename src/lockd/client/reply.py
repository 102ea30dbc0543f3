"""One request and its answer.

A `Reply` is new (in no collection), then pending (in `_pending`), then done. A done
reply has a result or an error, and never changes again. A reply may be abandoned at any
time, because its waiter was cancelled. The client then releases what it brings, so no
lock is left behind.
"""

from collections.abc import Iterator

from lockd.client.awaited import Awaited
from lockd.errors import LockdError
from lockd.hints import TYPE_CHECKING, Any
from lockd.terms import EXCLUSIVE, SHARED

if TYPE_CHECKING:
    from lockd.terms import Mode


class Reply(Awaited):
    """One request and, once it is done, its answer.

    Attributes:
        msgid: the number under which it is sent; None before.
        done: whether it has a result or an error.
        abandoned: whether its waiter was cancelled.
        grants: of an acquire, the new grants; of a release, the grants to release.
        unsent: its bytes, until they are queued. The iterator yields them once, so a
            second attempt to queue them queues nothing twice.
        strand: the strand that it acts for. 0: the session as a whole.
        undo_mode: of a conversion, the mode before it.
    """

    msgid: int | None = None
    unsent: Iterator[bytes] | None = None
    done = False
    abandoned = False
    result: Any = None
    error: LockdError | None = None
    undo_mode: "Mode | None" = None

    def __init__(
        self,
        method: str,
        params: dict[str, Any],
        grants: tuple[Any, ...] = (),
        *,
        name: str = "",
        strand: int = 0,
    ) -> None:
        self.method = method
        self.params = params
        self.grants = grants
        self.strand: int = params.get("strand", strand)
        self._name = name

    @property
    def names(self) -> list[str]:
        """The resources that it is about, for people."""
        if self.grants:
            return [grant.resource for grant in self.grants]
        params = self.params
        return params.get("resources") or [params.get("resource", self._name)]

    def assign(self, msgid: int) -> None:
        """Sets the number under which it is sent."""
        self.msgid = msgid

    def keep(self, data: bytes) -> None:
        """Sets its bytes, unless it has some."""
        unsent = iter((data,))
        # No call between the test and the store.
        if self.unsent is None:
            self.unsent = unsent

    def give_up(self) -> bool:
        """Abandons it. Returns whether it was not abandoned before."""
        new, self.abandoned = not self.abandoned, True
        return new

    def bring(self, grants: tuple[Any, ...]) -> None:
        """Sets its grants, unless it has some."""
        # No call between the test and the store.
        if not self.grants:
            self.grants = grants

    def note_mode(self, mode: "Mode") -> None:
        """Notes the mode before its conversion, once."""
        # No call between the tests and the store.
        if not self.grants and self.undo_mode is None:
            self.undo_mode = mode

    def give_up_mode(self) -> bool:
        """Returns whether it made a shared lock exclusive; true once."""
        raised = self.undo_mode == SHARED and self.params["mode"] == EXCLUSIVE
        # No call between the test and the store.
        if raised:
            self.undo_mode = None
        return raised

    def settle(self, result: Any = None, error: LockdError | None = None) -> None:
        """Makes the reply done and wakes its waiter."""
        if not self.done:
            self.result, self.error, self.done = result, error, True
        wake = self._wake
        if wake is not None:
            wake()

    def outcome(self) -> Any:
        """Returns the result of a done reply, or raises its error."""
        if self.error is not None:
            raise self.error
        return self.result
