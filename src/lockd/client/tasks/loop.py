"""The event loop of a connection, and what a connection needs of it.

anyio could do all of this, but it asks at each call which loop runs. Some of its
answers take as long as a whole request. So this asks trio or asyncio.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from socket import socket
from typing import Any, Protocol

import anyio
from anyio.lowlevel import current_token


class Flag(Protocol):
    """An `Event` of trio or asyncio."""

    def set(self) -> Any:
        """Wakes all that wait."""

    async def wait(self) -> Any:
        """Waits until it is set."""


class Scope(AbstractContextManager[Any, bool | None], Protocol):
    """A cancel scope of trio or anyio."""

    def cancel(self) -> Any:
        """Cancels the body."""


class Loop:
    """An event loop.

    Attributes:
        task: returns an object that identifies the current task.
        event: returns a new event.
        scope: returns a new cancel scope.
    """

    def __init__(
        self,
        native: object,
        current: Callable[[], object],
        task: Callable[[], object],
        event: Callable[[], Flag],
        scope: Callable[[], Scope],
    ) -> None:
        self.task = task
        self.event = event
        self.scope = scope
        self._native = native
        self._current = current

    @property
    def runs_here(self) -> bool:
        """Whether the caller runs in it."""
        try:
            return self._current() is self._native
        except RuntimeError:  # no loop runs in this thread
            return False

    def runs(self, task: object) -> bool:
        """Returns whether this task, of this loop, is the caller."""
        try:
            return self.task() is task
        except RuntimeError:  # no loop runs in this thread
            return False

    async def while_readable(self, sock: socket, take: Callable[[], bool]) -> None:
        """Calls a function whenever a socket is readable, until it returns false."""
        raise NotImplementedError


def current_loop() -> Loop:
    """Returns the event loop that runs here."""
    native = current_token().native_token
    if isinstance(native, asyncio.AbstractEventLoop):
        return _Asyncio(native)
    return _Trio(native)


class _Trio(Loop):
    def __init__(self, native: object) -> None:
        import trio  # it is loaded, as it runs

        current, task = trio.lowlevel.current_trio_token, trio.lowlevel.current_task
        super().__init__(native, current, task, trio.Event, trio.CancelScope)
        self._wait_readable = trio.lowlevel.wait_readable

    async def while_readable(self, sock: socket, take: Callable[[], bool]) -> None:
        goes_on = True
        while goes_on:
            await self._wait_readable(sock)
            goes_on = take()


class _Asyncio(Loop):
    def __init__(self, native: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            native,
            asyncio.get_running_loop,
            asyncio.current_task,
            asyncio.Event,
            # The class itself: `anyio.CancelScope` looks for it at each call.
            type(anyio.CancelScope()),
        )
        self._loop = native

    async def while_readable(self, sock: socket, take: Callable[[], bool]) -> None:
        # The loop calls the function itself. A task would have to be woken for it, and
        # asyncio would watch the socket anew each time.
        end = self._loop.create_future()

        def call() -> None:
            try:
                if take() or end.done():
                    return
                end.set_result(None)
            except BaseException as error:
                if end.done():
                    raise
                end.set_exception(error)

        self._loop.add_reader(sock, call)
        try:
            await end
        finally:
            self._loop.remove_reader(sock)
