"""The user's view of a lock, for threads."""

from typing import Protocol, Self

from lockd.client.grants import AnyGrant, Link
from lockd.client.reply import Reply
from lockd.errors import LockdError


class ReleasingLink(Link, Protocol):
    """A connection that can release grants."""

    def release(self, *grants: AnyGrant) -> list[Reply]:
        """Releases grants and waits for the daemon's answers."""


class Grant(AnyGrant):
    """A lock that a client holds or held. The end of a `with` statement releases it.

    Its attributes reflect all that the daemon has sent so far. The connection stays
    open while a grant refers to it, unless the client is closed.
    """

    __slots__ = ()

    link: ReleasingLink

    def release(self) -> None:
        """Releases the lock. A second call does nothing.

        Raises:
            LockLostError: the lock had been lost.
            ForkedSessionError: it is the parent's.
        """
        for reply in self.link.release(self):
            reply.outcome()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        if self.link.forked:
            return  # the lock is the parent's
        try:
            self.release()
        except LockdError:
            if exc is None:
                raise
