"""Queues the threads or tasks of one program that want the same lock.

For the daemon a connection is one owner. So the daemon cannot make threads or tasks of
one connection wait for each other; they queue here first. They get the lock in order of
arrival, and shared ones together. This module does not wait itself.
"""

from contextlib import suppress
from typing import Any

from lockd.client.awaited import Awaited
from lockd.client.grants import Hold
from lockd.errors import AlreadyHeldError, LockdError
from lockd.names import quoted
from lockd.terms import EXCLUSIVE, SHARED, Mode, ResourceKey


class Ticket(Awaited):
    """The place of one thread or task, its owner, in the queue for a resource.

    Attributes:
        done: whether its owner is admitted, so that it may ask the daemon.
        hold: the lock that its owner acquired.
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
        """Whether the lock that its owner acquired has ended."""
        return self.hold is not None and not self.hold.held

    def admit(self) -> None:
        """Lets its owner ask the daemon."""
        self.done = True
        self.rouse()

    def keep(self, hold: Hold) -> None:
        """Notes the lock that its owner acquired."""
        self.hold = hold

    def facts(self) -> dict[str, Any]:
        """Returns the facts of an error about the lock."""
        return {"lockspace": self.key.lockspace, "resource": self.key.resource}


class LocalQueues:
    """The queues of one connection, one for each resource."""

    def __init__(self) -> None:
        # Invariant until the connection ends: the admitted tickets are at the front of
        # their queue, and are either one exclusive or all shared. No queue is empty.
        self._queues: dict[ResourceKey, list[Ticket]] = {}

    def enter(self, ticket: Ticket) -> None:
        """Adds a ticket to its queue.

        Raises:
            AlreadyHeldError: its owner has a ticket there, and not both are shared. It
                would wait for itself.
        """
        # A signal handler may run between a loss and `on_free`.
        self.clear(ticket.key)
        while True:
            queue = self._queues.setdefault(ticket.key, [])
            own = [other for other in queue if other.who == ticket.who]
            if not own:
                queue.append(ticket)
            elif ticket.mode == SHARED and all(other.mode == SHARED for other in own):
                # At the front: a waiter in between may wait for this very holder.
                queue.insert(0, ticket)
            else:
                raise AlreadyHeldError(
                    f"{quoted(ticket.key.resource)} is already held by the same thread "
                    "or task",
                    ticket.facts(),
                )
            # A signal handler may have emptied and removed the queue meanwhile.
            if self._queues.get(ticket.key) is queue:
                break
        _advance(queue)

    def leave(self, ticket: Ticket) -> None:
        """Removes a ticket from its queue, if it is there."""
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
        """Notes the lock of a ticket's owner.

        Removes the ticket if the lock has ended.
        """
        ticket.keep(hold)
        if ticket.over:
            self.leave(ticket)

    def clear(self, key: ResourceKey) -> None:
        """Removes the tickets whose lock has ended."""
        for ticket in list(self._queues.get(key, ())):
            if ticket.over:
                self.leave(ticket)

    def end(self, error: LockdError) -> None:
        """Admits all tickets: their owners find that the connection has ended."""
        for queue in list(self._queues.values()):
            for ticket in list(queue):
                if not ticket.done:
                    ticket.admit()


def time_left(timeout: float, waited: float) -> float:
    """Returns what the wait in a queue has left of a timeout, in seconds.

    The result is 0 only for a timeout of 0, which does not wait at all.
    """
    return max(timeout - waited, 0.001) if timeout else 0


def _advance(queue: list[Ticket]) -> None:
    tickets = list(queue)
    for ticket in tickets:
        if ticket is not tickets[0] and EXCLUSIVE in (ticket.mode, tickets[0].mode):
            break
        if not ticket.done:
            ticket.admit()
