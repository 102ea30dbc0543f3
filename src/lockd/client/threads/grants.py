"""The user's view of a lock, for threads."""

from lockd.client import arguments
from lockd.client.grants import AnyGrant, Link
from lockd.client.reply import Reply
from lockd.errors import LockdError
from lockd.hints import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from lockd.terms import WorkOutcome


class ReleasingLink(Link, Protocol):
    """A connection that can release grants."""

    def release(
        self, *grants: AnyGrant, outcome: "WorkOutcome" = None, wait: bool = True
    ) -> list[Reply]:
        """Releases grants."""


class Grant(AnyGrant):
    """A lock that a client holds or held. The end of a `with` statement releases it.

    Its attributes reflect all that the daemon has sent so far. The connection stays
    open while a grant refers to it, unless the client is closed.
    """

    __slots__ = ()

    link: ReleasingLink

    def release(self, outcome: "WorkOutcome" = None, *, wait: bool = True) -> None:
        """Releases the lock. A second call does nothing.

        Args:
            outcome: how the work under the lock ended: "ok", "failed" or "died". After
                the last two, the next grants of the lock have it in `previous`.
            wait: whether to wait for the daemon's answer. Then the lock is free for
                others when this returns. False is what the end of a `with` body does:
                `lockd.Client` says what follows.

        Raises:
            LockLostError: the lock had been lost.
            ForkedSessionError: it is the parent's.
        """
        arguments.checked("release", {"outcome": outcome, "wait": wait})
        for reply in self.link.release(self, outcome=outcome, wait=wait):
            reply.outcome()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        if self.link.forked:
            return  # the lock is the parent's
        try:
            self.release(wait=False)
        except LockdError:
            if exc is None:
                raise
