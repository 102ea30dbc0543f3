"""The base of everything that a thread or a task waits for.

A thread waits for a lock or in poll(2), a task for an event. So the waiter says how to
wake it, and then looks at `done`.
"""

from collections.abc import Callable


class Awaited:
    """An event. The waiter waits until `done` is true."""

    _wake: Callable[[], None] | None = None

    def wake_with(self, wake: Callable[[], None] | None) -> None:
        """Sets the function that wakes the waiter, perhaps twice.

        None: nobody waits.
        """
        self._wake = wake

    def rouse(self) -> None:
        """Wakes the waiter."""
        wake = self._wake
        if wake is not None:
            wake()
