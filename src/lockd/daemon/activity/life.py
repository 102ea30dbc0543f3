"""The life of the daemon, over all programs and processes that carry it on."""

from typing import Any


class Life:
    """What is counted over that life.

    Args:
        started: when it began (CLOCK_MONOTONIC).
        last_number: of the youngest session or owner.
        upgrades: how often another program took over without a pause.
        revivals: how often another process took over after a crash.
        left_at: when the process before stopped to serve; None if there was none.

    Attributes:
        took_over: seconds for which clients waited for this process to take over.
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
        """Returns the number of a new session or owner: never given twice."""
        self.last_number += 1
        return self.last_number

    def serves(self, now: float) -> None:
        """Notes that clients are served from now on."""
        if self._left_at is not None:
            self.took_over = now - self._left_at

    def dump(self) -> dict[str, Any]:
        """Returns what a successor begins with, by the names of the parameters."""
        return {
            "last_number": self.last_number,
            "started": self.started,
            "upgrades": self.upgrades,
            "revivals": self.revivals,
        }
