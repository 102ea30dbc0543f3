"""Keeps what the daemon says unasked until somebody takes it."""

from collections import deque
from typing import Any

from lockd.client.core import Reply
from lockd.errors import LockdError


class Inbox:
    """What has been said and not taken yet, in order, for one reader."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._awaited: Reply | None = None
        self._error: LockdError | None = None

    def put(self, item: Any) -> None:
        """Adds an item; wakes the reader if it waits."""
        if self._awaited is None:
            self._items.append(item)
        else:
            reply, self._awaited = self._awaited, None
            reply.settle(item)

    def take(self) -> Reply:
        """Returns a reply that gets done with the next item."""
        reply = Reply("", {})
        if self._items:
            reply.settle(self._items.popleft())
        elif self._error is not None:
            reply.settle(error=self._error)
        else:
            self._awaited = reply
        return reply

    def take_back(self, reply: Reply) -> None:
        """Undoes `take` for a reader that was interrupted: no item is lost by it."""
        if reply is self._awaited:
            self._awaited = None
        elif reply.done and reply.error is None:
            self._items.appendleft(reply.result)

    def end(self, error: LockdError) -> None:
        """Says that nothing more will come; what is here can still be taken."""
        self._error = error
        reply, self._awaited = self._awaited, None
        if reply is not None:
            reply.settle(error=error)
