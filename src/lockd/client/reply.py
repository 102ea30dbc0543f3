"""One request and its answer.

A `Reply` goes through these states: new (in no collection), pending (in `_pending`),
done. A done reply has either a result or an error, and never changes again. A reply may
be abandoned at any moment, because whoever waited for it was cancelled: what it brings
then is given back, so that nothing is held that nobody knows of.
"""

from collections.abc import Callable, Iterator
from typing import Any

from lockd.errors import LockdError
from lockd.terms import Mode


class Reply:
    """One request and, once it is done, its answer.

    Attributes:
        done: whether the answer is here, or will never come.
        grants: of an acquire, what was granted; of a release, what it is to release.
        wake: called when the reply gets done, perhaps twice; for whoever waits.
        pieces: its bytes, until they are queued. An iterator brings each of them once,
            so whoever queues them again queues nothing.
    """

    __slots__ = (
        "abandoned",
        "done",
        "error",
        "grants",
        "method",
        "msgid",
        "params",
        "pieces",
        "result",
        "undo_mode",
        "wake",
    )

    def __init__(
        self, method: str, params: dict[str, Any], grants: tuple[Any, ...] = ()
    ) -> None:
        self.method = method
        self.params = params
        self.grants = grants
        self.msgid: int | None = None
        self.pieces: Iterator[bytes] | None = None
        self.done = False
        self.abandoned = False
        self.result: Any = None
        self.error: LockdError | None = None
        self.undo_mode: Mode | None = None
        self.wake: Callable[[], None] | None = None

    def settle(self, result: Any = None, error: LockdError | None = None) -> None:
        """Makes the reply done and wakes whoever waits for it."""
        if not self.done:
            self.result, self.error, self.done = result, error, True
        wake = self.wake
        if wake is not None:
            wake()

    def outcome(self) -> Any:
        """Returns the result of a reply that is done, or raises its error."""
        if self.error is not None:
            raise self.error
        return self.result
