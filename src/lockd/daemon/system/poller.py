"""One epoll set for all descriptors of the daemon."""

import select
import time
from collections.abc import Callable
from contextlib import suppress

Action = Callable[[int], None]


class Poller:
    """Watches descriptors, and calls an action when one is ready.

    It is itself a descriptor that is readable when one of them is ready, so that a
    single task can wait for all.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._actions: dict[int, Action] = {}
        #: When the last wait ended or was skipped.
        self.woke = 0.0

    def fileno(self) -> int:
        """Returns the descriptor to wait for."""
        return self._epoll.fileno()

    def watch(self, fd: int, events: int, action: Action) -> None:
        """Calls an action with the events of a descriptor whenever there are some."""
        self._epoll.register(fd, events)
        self._actions[fd] = action

    def change(self, fd: int, events: int) -> None:
        """Changes the events of a watched descriptor."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stops watching a descriptor, if it is watched.

        Call this before closing it.
        """
        if self._actions.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def stay_awake(self) -> None:
        """Notes that the loop skips the wait, because it has work."""
        self.woke = time.monotonic()

    def act(self, patience: float = 0) -> bool:
        """Calls the actions of all ready descriptors.

        Args:
            patience: seconds to block if none is ready.

        Returns:
            Whether one was ready.
        """
        ready = self._epoll.poll(patience)
        if patience:
            self.woke = time.monotonic()
        actions = self._actions
        for fd, events, action in [(fd, x, actions.get(fd)) for fd, x in ready]:
            if action is None:
                self._ignore(fd)
            # An earlier action of this round may have closed it, and another may have
            # got its number.
            elif actions.get(fd) is action:
                action(events)
        return bool(ready)

    def _ignore(self, fd: int) -> None:
        """Stops watching a descriptor without an action: it would wake us for ever."""
        with suppress(OSError):
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Closes the set, but not its descriptors."""
        self._epoll.close()
