"""One epoll set for all descriptors of the daemon."""

import select
import time
from collections.abc import Callable
from contextlib import suppress

Action = Callable[[int], None]


class Poller:
    """Which descriptors are watched, and what happens when they are ready.

    Itself a descriptor that is readable when one of them is ready, so that a single
    task can wait for all.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._actions: dict[int, Action] = {}
        #: When waiting ended the last time, or was left out.
        self.woke = 0.0

    def fileno(self) -> int:
        """Returns the descriptor to wait for."""
        return self._epoll.fileno()

    def watch(self, fd: int, events: int, action: Action) -> None:
        """Has an action called with the events that came, whenever there are some."""
        self._epoll.register(fd, events)
        self._actions[fd] = action

    def change(self, fd: int, events: int) -> None:
        """Waits for other events of a watched descriptor."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stops watching, if it is watched; to be called before it is closed."""
        if self._actions.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def stay_awake(self) -> None:
        """Leaves out waiting: there is work to do already."""
        self.woke = time.monotonic()

    def act(self, patience: float = 0) -> bool:
        """Calls the actions of all descriptors that are ready.

        Args:
            patience: seconds to block if none is ready.

        Returns:
            Whether there was one.
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
        """Stops watching what nobody waits for: it would wake us for ever."""
        with suppress(OSError):
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Closes the set, not the descriptors in it."""
        self._epoll.close()
