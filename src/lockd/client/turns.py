"""Whose turn it is among those of one program who want the same lock.

To the daemon a connection is one owner, so it cannot make threads or tasks that share a
connection wait for each other. They queue here first: first come, first served, shared
turns together. No waiting happens here; `Turn.wake` is for whoever does.
"""

from collections.abc import Callable
from typing import Any

from lockd.errors import AlreadyHeldError, LockdError
from lockd.names import quoted
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey


class Turn:
    """The place of one thread or task in the line for a resource.

    Attributes:
        come: whether it is this one's turn.
        wake: called once, when the turn comes.
    """

    __slots__ = ("come", "key", "mode", "wake", "who")

    def __init__(self, key: ResourceKey, mode: Mode, who: object) -> None:
        self.key = key
        self.mode = mode
        self.who = who
        self.come = False
        self.wake: Callable[[], None] | None = None

    def start(self) -> None:
        """Makes it this one's turn."""
        self.come = True
        wake, self.wake = self.wake, None
        if wake is not None:
            wake()

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

    def enter(self, key: ResourceKey, mode: Mode, who: object) -> Turn:
        """Takes a place in the line.

        Args:
            key: what is wanted.
            mode: how it is wanted.
            who: the thread or task; a second turn of its own would wait for ever.

        Raises:
            AlreadyHeldError: it has a turn already, and not both are shared.
        """
        turn = Turn(key, mode, who)
        line = self._lines.setdefault(key, [])
        own = [other for other in line if other.who == who]
        if not own:
            line.append(turn)
        elif mode == SHARED and all(other.mode == SHARED for other in own):
            # At the front, as waiting behind somebody who waits for this very holder
            # would never end.
            line.insert(0, turn)
        else:
            raise AlreadyHeldError(
                f"{quoted(key.resource)} is already held by the same thread or task",
                turn.facts(),
            )
        _advance(line)
        return turn

    def leave(self, turn: Turn) -> None:
        """Gives up a turn, or a place in the line."""
        line = self._lines[turn.key]
        line.remove(turn)
        if line:
            _advance(line)
        else:
            del self._lines[turn.key]

    def end(self, error: LockdError) -> None:
        """Lets every turn come: whoever waits for one finds the connection over."""
        for line in self._lines.values():
            for turn in line:
                if not turn.come:
                    turn.start()


def time_left(timeout: float, waited: float) -> float:
    """Returns what the wait in line has left of a timeout, in seconds.

    Of a timeout that is not 0 something is left always: 0 would be a try.
    """
    return max(timeout - waited, 0.001) if timeout else 0


def _advance(line: list[Turn]) -> None:
    for turn in line:
        if turn is not line[0] and EXCLUSIVE in (turn.mode, line[0].mode):
            break
        if not turn.come:
            turn.start()
