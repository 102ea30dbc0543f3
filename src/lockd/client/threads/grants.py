"""What a thread gets of a lock that the client holds."""

from types import TracebackType
from typing import Protocol, Self

from lockd.client.grants import AnyGrant, Link
from lockd.client.local_queues import Ticket
from lockd.client.reply import Reply
from lockd.errors import LockdError


class ReleasingLink(Link, Protocol):
    """A connection that can be waited for."""

    def release(self, *grants: AnyGrant) -> list[Reply]:
        """Releases grants and waits until the daemon has done so."""

    def leave_queue(self, ticket: Ticket) -> None:
        """Takes a ticket out of its queue, if it is there."""


class Grant(AnyGrant):
    """One lock that a client holds, or held; in a `with` statement, until its end.

    What it says is what the daemon has said so far, to the last byte that has come.
    While it is referred to its connection stays open, unless the client is closed.
    """

    __slots__ = ()

    link: ReleasingLink

    def release(self) -> None:
        """Releases the lock; to release it again does nothing.

        Raises:
            LockLostError: it had been lost.
            ForkedSessionError: it is the parent's.
        """
        for reply in self.link.release(self):
            reply.outcome()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.link.forked:
            return  # the lock is the parent's
        try:
            self.release()
        except LockdError:
            if exc is None:
                raise
