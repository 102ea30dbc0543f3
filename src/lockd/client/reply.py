"""One request and its answer.

A `Reply` goes through these states: new (in no collection), pending (in `_pending`),
done. A done reply has either a result or an error, and never changes again. A reply may
be abandoned at any moment, because whoever waited for it was cancelled: what it brings
then is given back, so that nothing is held that nobody knows of.
"""

from collections.abc import Iterator
from typing import Any

from lockd.client.awaited import Awaited
from lockd.errors import LockdError
from lockd.terms import EXCLUSIVE, SHARED, Mode


class Reply(Awaited):
    """One request and, once it is done, its answer.

    Attributes:
        done: whether the answer is here, or will never come.
        grants: of an acquire, what was granted; of a release, what it is to release.
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
    )

    def __init__(
        self, method: str, params: dict[str, Any], grants: tuple[Any, ...] = ()
    ) -> None:
        super().__init__()
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

    def assign(self, msgid: int) -> None:
        """Says under which number it is sent."""
        self.msgid = msgid

    def keep_pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Keeps its bytes, unless it has some; returns what is kept."""
        # No call between the test and the store.
        if self.pieces is None:
            self.pieces = pieces
        return self.pieces

    def give_up(self) -> bool:
        """Abandons it; returns whether that is new."""
        new, self.abandoned = not self.abandoned, True
        return new

    def bring(self, grants: tuple[Any, ...]) -> None:
        """Notes its grants, unless it has some."""
        # No call between the test and the store.
        if not self.grants:
            self.grants = grants

    def note_mode(self, mode: Mode) -> None:
        """Notes the mode that its conversion changes, unless that has been done."""
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
        """Makes the reply done and wakes whoever waits for it."""
        if not self.done:
            self.result, self.error, self.done = result, error, True
        self.rouse()

    def outcome(self) -> Any:
        """Returns the result of a reply that is done, or raises its error."""
        if self.error is not None:
            raise self.error
        return self.result
