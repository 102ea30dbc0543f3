"""The life of the daemon over all its programs and processes."""

from typing import Any


class Life:
    """Numbers that outlive a program.

    Args:
        started: when the life began (CLOCK_MONOTONIC, seconds).
        last_number: the number of the youngest session or owner.
        upgrades: how often another program took over without a pause.
        revivals: how often another process took over after a crash.
        left_at: when the predecessor stopped serving; None without one.

    Attributes:
        took_over: seconds that clients waited for this process; None without a
            predecessor.
    """

    def __init__(
        self,
        started: float,
        last_number: int = 0,
        upgrades: int = 0,
        revivals: int = 0,
        left_at: float | None = None,
    ) -> None:
        self.started = started
        self.last_number = last_number
        self.upgrades = upgrades
        self.revivals = revivals
        self.took_over: float | None = None
        self._left_at = left_at

    def new_number(self) -> int:
        """Returns the number of a new session or owner. No number is given twice."""
        self.last_number += 1
        return self.last_number

    def serves(self, now: float) -> None:
        """Notes that clients are served from now on."""
        if self._left_at is not None:
            self.took_over = now - self._left_at

    def dump(self) -> dict[str, Any]:
        """Returns the parameters for a successor."""
        return {
            "last_number": self.last_number,
            "started": self.started,
            "upgrades": self.upgrades,
            "revivals": self.revivals,
        }
