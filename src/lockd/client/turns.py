"""Whose turn it is among those of one program who want the same lock.

To the daemon a connection is one owner, so it cannot make threads or tasks that share a
connection wait for each other. They queue here first: first come, first served, shared
turns together. No waiting happens here.
"""

from contextlib import suppress
from typing import Any

from lockd.client.awaited import Awaited
from lockd.client.grants import Hold
from lockd.errors import AlreadyHeldError, LockdError
from lockd.names import quoted
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey


class Turn(Awaited):
    """The place of one thread or task in the line for a resource.

    Attributes:
        done: whether it is this one's turn.
        hold: what was got in it.
    """

    __slots__ = ("done", "hold", "key", "mode", "who")

    def __init__(self, key: ResourceKey, mode: Mode, who: object) -> None:
        super().__init__()
        self.key = key
        self.mode = mode
        self.who = who
        self.done = False
        self.hold: Hold | None = None

    @property
    def over(self) -> bool:
        """Whether what was got in it has ended, by a loss or behind its back."""
        return self.hold is not None and not self.hold.held

    def start(self) -> None:
        """Makes it this one's turn."""
        self.done = True
        self.rouse()

    def keep(self, hold: Hold) -> None:
        """Notes what was got in it."""
        self.hold = hold

    def facts(self) -> dict[str, Any]:
        """Returns what a refusal says about the lock."""
        return {"lockspace": self.key.lockspace, "resource": self.key.resource}


class Turns:
    """The lines of one connection, one for each resource."""

    def __init__(self) -> None:
        # Invariant: the turns that have come are at the front of their line, and are
        # either one exclusive or all shared, until the connection ends. No line is
        # empty.
        self._lines: dict[ResourceKey, list[Turn]] = {}

    def enter(self, turn: Turn) -> None:
        """Takes a place in the line; a second turn of its own would wait for ever.

        Raises:
            AlreadyHeldError: it has a turn already, and not both are shared.
        """
        # A signal handler may come in between a loss and the word of it.
        self.clear(turn.key)
        while True:
            line = self._lines.setdefault(turn.key, [])
            own = [other for other in line if other.who == turn.who]
            if not own:
                line.append(turn)
            elif turn.mode == SHARED and all(other.mode == SHARED for other in own):
                # At the front, as waiting behind somebody who waits for this very
                # holder would never end.
                line.insert(0, turn)
            else:
                raise AlreadyHeldError(
                    f"{quoted(turn.key.resource)} is already held by the same thread "
                    "or task",
                    turn.facts(),
                )
            # A signal handler that came in between may have emptied and dropped it.
            if self._lines.get(turn.key) is line:
                break
        _advance(line)

    def leave(self, turn: Turn) -> None:
        """Gives up a turn, or a place in the line; again, does nothing."""
        line = self._lines.get(turn.key, [])
        with suppress(ValueError):
            line.remove(turn)
        # No call between the tests and the removal.
        if not line and turn.key in self._lines and self._lines[turn.key] is line:
            del self._lines[turn.key]
        _advance(line)

    def keep(self, turn: Turn, hold: Hold) -> None:
        """Notes what was got in a turn, which is over if that has ended already."""
        turn.keep(hold)
        if turn.over:
            self.leave(turn)

    def clear(self, key: ResourceKey) -> None:
        """Takes those out of the line whose lock has ended."""
        for turn in list(self._lines.get(key, ())):
            if turn.over:
                self.leave(turn)

    def end(self, error: LockdError) -> None:
        """Lets every turn come: whoever waits for one finds the connection over."""
        for line in list(self._lines.values()):
            for turn in list(line):
                if not turn.done:
                    turn.start()


def time_left(timeout: float, waited: float) -> float:
    """Returns what the wait in line has left of a timeout, in seconds.

    Of a timeout that is not 0 something is left always: 0 would be a try.
    """
    return max(timeout - waited, 0.001) if timeout else 0


def _advance(line: list[Turn]) -> None:
    turns = list(line)
    for turn in turns:
        if turn is not turns[0] and EXCLUSIVE in (turn.mode, turns[0].mode):
            break
        if not turn.done:
            turn.start()
