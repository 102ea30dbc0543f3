"""One request and its answer.

A `Reply` is new (in no collection), then pending (in `_pending`), then done. A done
reply has a result or an error, and never changes again. A reply may be abandoned at any
time, because its waiter was cancelled. The client then releases what it brings, so no
lock is left behind.

The daemon takes the requests of a session in order. So the end of a `with` body sends a
release and does not wait for the answer. That is nearly always the same. If it is a
refusal, somebody must hear of it later: `LeftReleases`.
"""

from collections.abc import Iterator

from lockd.client.awaited import Awaited
from lockd.errors import LockdError
from lockd.hints import TYPE_CHECKING, Any, Final
from lockd.names import quoted
from lockd.terms import EXCLUSIVE, SHARED

if TYPE_CHECKING:
    from lockd.terms import Mode

MOST_LEFT: Final = 64
"""How many of them may be unanswered. The next one is waited for, so neither side has
to store more."""

_MOST_REFUSED: Final = 64

PATIENCE: Final = 5.0
"""Seconds to wait for the daemon's answers when the caller wants to leave."""


class Reply(Awaited):
    """One request and, once it is done, its answer.

    Attributes:
        msgid: the number under which it is sent; None before.
        checked: whether each of its parameters is known to be within the limits of the
            protocol.
        rest: its bytes after the number, if they are known already.
        done: whether it has a result or an error.
        abandoned: whether its waiter was cancelled.
        grants: of an acquire or a conversion, what it brought.
        holds: of a release, the holds to release. Not their grants: these keep the
            connection open.
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
    grants: tuple[Any, ...] = ()

    def __init__(
        self,
        method: str,
        params: dict[str, Any],
        *,
        holds: tuple[Any, ...] = (),
        name: str = "",
        strand: int = 0,
        checked: bool = False,
        rest: bytes | None = None,
    ) -> None:
        self.method = method
        self.params = params
        self.holds = holds
        self.strand: int = params.get("strand", strand)
        self.checked = checked
        self.rest = rest
        self._name = name

    @property
    def names(self) -> list[str]:
        """The resources that it is about, for people."""
        holds = self.holds or [grant.hold for grant in self.grants]
        if holds:
            return [hold.key.resource for hold in holds]
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

    def take(self, holds: tuple[Any, ...]) -> None:
        """Sets its holds, unless it has some."""
        # No call between the test and the store.
        if not self.holds:
            self.holds = holds

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

    def fate(self) -> str | None:
        """Says what happened to it, if an exception interrupted its waiter."""
        what = ", ".join(quoted(name) for name in self.names)
        granted = self.done and self.error is None
        if self.method == "release":
            if self.done:
                return f"{what} is released"
            return f"the release of {what} was sent"
        if self.method == "acquire":
            if granted:
                return f"{what} had been granted already, and was released"
            return f"the request for {what} was cancelled"
        if self.method == "convert":
            if granted and self.undo_mode is not None:
                return f"{what} is {self.params['mode']} now"
            return f"the conversion of {what} was cancelled"
        return None if self.done else f"the answer to {self.method} was not waited for"


class LeftReleases:
    """The releases of one connection that are unanswered, or were refused.

    Attributes:
        refused: why some were refused, until somebody is told.
        unanswered: those that are unanswered.
    """

    def __init__(self) -> None:
        self.refused: dict[Reply, LockdError] = {}
        self.unanswered: dict[Reply, None] = {}

    def add(self, reply: Reply) -> None:
        """Adds a release for whose answer nobody waits."""
        # No call between the test and the store.
        if not reply.done:
            self.unanswered[reply] = None

    def remove(self, reply: Reply) -> None:
        """Removes one that was answered, or for which somebody waits after all."""
        self.unanswered.pop(reply, None)
        if self.refused:
            self.refused.pop(reply, None)

    def refuse(self, reply: Reply, error: LockdError) -> None:
        """Notes a refusal, if nobody waits for it."""
        if reply in self.unanswered:
            self.refused[reply] = error
            for oldest in list(self.refused)[:-_MOST_REFUSED]:
                self.refused.pop(oldest, None)
            self.unanswered.pop(reply, None)

    def tell(self, strand: int | None) -> None:
        """Raises why a release was refused, each once.

        Args:
            strand: the strand that asks. It is told of its own locks, and of those that
                belonged to no thread or task. None: of all.

        Raises:
            LockdError: one was refused.
        """
        for reply in list(self.refused):
            of = reply.holds[0].strand
            if strand is None or of == strand or not of % 2:
                error = self.refused.pop(reply, None)
                if error is not None:
                    error.add_note("lockd: the lock had been given back meanwhile")
                    raise error

    def inherit(self, other: "LeftReleases") -> None:
        """Takes over the refusals of another connection."""
        self.refused.update(other.refused)

    def end(self) -> None:
        """Forgets what is unanswered: the end of the connection releases it."""
        self.unanswered.clear()
