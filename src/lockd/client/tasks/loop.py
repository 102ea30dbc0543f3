"""The event loop of a connection: whether the caller runs in it, and in which task.

anyio could tell both, but each of its answers takes as long as a whole request. So this
asks trio or asyncio.
"""

import asyncio
from collections.abc import Callable

from anyio.lowlevel import current_token


class Loop:
    """The event loop that runs where this object is made.

    Attributes:
        task: returns an object that identifies the current task.
    """

    def __init__(self) -> None:
        self._loop = current_token().native_token
        self._current: Callable[[], object]
        self.task: Callable[[], object]
        if isinstance(self._loop, asyncio.AbstractEventLoop):
            self._current, self.task = asyncio.get_running_loop, asyncio.current_task
        else:
            from trio import lowlevel

            self._current, self.task = (
                lowlevel.current_trio_token,
                lowlevel.current_task,
            )

    @property
    def runs_here(self) -> bool:
        """Whether the caller runs in it."""
        try:
            return self._current() is self._loop
        except RuntimeError:  # no loop runs in this thread
            return False
