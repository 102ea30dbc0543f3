"""Queues the threads or tasks of one program that want the same lock.

To the daemon a connection is one owner, so it cannot make threads or tasks that share a
connection wait for each other. They queue here before they ask it: first come, first
served, shared ones together. No waiting happens here.
"""

from contextlib import suppress
from typing import Any

from lockd.client.awaited import Awaited
from lockd.client.grants import Hold
from lockd.errors import AlreadyHeldError, LockdError
from lockd.names import quoted
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey


class Ticket(Awaited):
    """The place of one thread or task in the queue for a resource.

    Attributes:
        done: whether its owner is admitted: it may ask the daemon now.
        hold: what its owner got.
    """

    __slots__ = ("done", "hold", "key", "mode", "who")

    def __init__(self, key: ResourceKey, mode: Mode, who: object) -> None:
        super().__init__()
        self.key = key
        self.mode = mode
        self.who = who
        self.done = False
        self.hold: Hold | None = None

    @property
    def over(self) -> bool:
        """Whether what its owner got has ended, by a loss or behind its back."""
        return self.hold is not None and not self.hold.held

    def admit(self) -> None:
        """Lets its owner ask the daemon."""
        self.done = True
        self.rouse()

    def keep(self, hold: Hold) -> None:
        """Notes what its owner got."""
        self.hold = hold

    def facts(self) -> dict[str, Any]:
        """Returns what a refusal says about the lock."""
        return {"lockspace": self.key.lockspace, "resource": self.key.resource}


class LocalQueues:
    """The queues of one connection, one for each resource."""

    def __init__(self) -> None:
        # Invariant: the admitted tickets are at the front of their queue, and are
        # either one exclusive or all shared, until the connection ends. No queue is
        # empty.
        self._queues: dict[ResourceKey, list[Ticket]] = {}

    def enter(self, ticket: Ticket) -> None:
        """Puts a ticket into its queue.

        A second one of the same owner would wait for ever.

        Raises:
            AlreadyHeldError: its owner has a ticket already, and not both are shared.
        """
        # A signal handler may come in between a loss and the word of it.
        self.clear(ticket.key)
        while True:
            queue = self._queues.setdefault(ticket.key, [])
            own = [other for other in queue if other.who == ticket.who]
            if not own:
                queue.append(ticket)
            elif ticket.mode == SHARED and all(other.mode == SHARED for other in own):
                # At the front, as waiting behind somebody who waits for this very
                # holder would never end.
                queue.insert(0, ticket)
            else:
                raise AlreadyHeldError(
                    f"{quoted(ticket.key.resource)} is already held by the same thread "
                    "or task",
                    ticket.facts(),
                )
            # A signal handler that came in between may have emptied and dropped it.
            if self._queues.get(ticket.key) is queue:
                break
        _advance(queue)

    def leave(self, ticket: Ticket) -> None:
        """Takes a ticket out of its queue, if it is there."""
        queue = self._queues.get(ticket.key, [])
        with suppress(ValueError):
            queue.remove(ticket)
        # No call between the tests and the removal.
        if (
            not queue
            and ticket.key in self._queues
            and self._queues[ticket.key] is queue
        ):
            del self._queues[ticket.key]
        _advance(queue)

    def keep(self, ticket: Ticket, hold: Hold) -> None:
        """Notes what the owner of a ticket got; drops the ticket if that has ended."""
        ticket.keep(hold)
        if ticket.over:
            self.leave(ticket)

    def clear(self, key: ResourceKey) -> None:
        """Takes those out of the queue whose lock has ended."""
        for ticket in list(self._queues.get(key, ())):
            if ticket.over:
                self.leave(ticket)

    def end(self, error: LockdError) -> None:
        """Admits everybody, to find that the connection has ended."""
        for queue in list(self._queues.values()):
            for ticket in list(queue):
                if not ticket.done:
                    ticket.admit()


def time_left(timeout: float, waited: float) -> float:
    """Returns what the wait in a queue has left of a timeout, in seconds.

    Of a timeout that is not 0 something is left always: 0 would be a try.
    """
    return max(timeout - waited, 0.001) if timeout else 0


def _advance(queue: list[Ticket]) -> None:
    tickets = list(queue)
    for ticket in tickets:
        if ticket is not tickets[0] and EXCLUSIVE in (ticket.mode, tickets[0].mode):
            break
        if not ticket.done:
            ticket.admit()
