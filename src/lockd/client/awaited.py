"""What somebody waits for.

A thread waits for a lock or in poll(2), a task for an event. So whoever waits says how
to be woken, and looks then whether it is here.
"""

from collections.abc import Callable


class Awaited:
    """What somebody waits for, until its `done` is true."""

    __slots__ = ("_wake",)

    def __init__(self) -> None:
        self._wake: Callable[[], None] | None = None

    def wake_with(self, wake: Callable[[], None] | None) -> None:
        """Says what to call when it is here, perhaps twice; None: nobody waits."""
        self._wake = wake

    def rouse(self) -> None:
        """Wakes whoever waits."""
        wake = self._wake
        if wake is not None:
            wake()
