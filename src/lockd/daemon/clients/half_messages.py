"""When incomplete messages must be complete (protocol 3.5).

The time is that of a message, not of its last bytes. A client that sends message after
message always has an incomplete one, and each of them has its own time.
"""

from collections.abc import Callable, Iterator
from math import inf

from lockd.daemon.clients.peer import Peer


class HalfMessages:
    """The deadline of each incomplete message."""

    def __init__(self) -> None:
        #: The deadline, and where the message begins; the earliest deadline first.
        self._of: dict[Peer, tuple[float, int]] = {}

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._of

    def __len__(self) -> int:
        return len(self._of)

    @property
    def next_deadline(self) -> float:
        """The earliest deadline; infinite without incomplete messages."""
        return next((when for when, _ in self._of.values()), inf)

    def look(self, peer: Peer, deadline: float) -> None:
        """Starts, keeps or removes the deadline of a peer that has been read from.

        Args:
            peer: the peer.
            deadline: that of its message, if this is a new one.
        """
        begun_at = peer.connection.begun_at
        if not peer.connection.has_partial:
            self.forget(peer)
        elif self._of.get(peer, (0, -1))[1] != begun_at:
            self.put_off(peer, begun_at, deadline)

    def put_off(self, peer: Peer, begun_at: int, deadline: float) -> None:
        """Sets the deadline of a message."""
        self.forget(peer)
        self._of[peer] = deadline, begun_at

    def forget(self, peer: Peer) -> None:
        """Removes the deadline of a peer."""
        self._of.pop(peer, None)

    def overdue(self, now: float) -> Iterator[tuple[Peer, int]]:
        """Removes and yields each peer that is late, and where its message begins."""
        while self.next_deadline <= now:
            peer = next(iter(self._of))
            yield peer, self._of.pop(peer)[1]


def completes(peer: Peer, begun_at: int, read: Callable[[Peer], None]) -> bool:
    """Reads all that has arrived. Returns whether it completes a message.

    The rest may have arrived while this process was not running.

    Args:
        peer: has sent a part of the message before.
        begun_at: where the message begins.
        read: reads from the peer, and carries out what is complete.
    """
    conversation, known = peer.connection, -1
    while conversation.partial_bytes > known:
        known = conversation.partial_bytes
        read(peer)
        if peer.has_more or conversation.begun_at != begun_at:
            return True
    return not conversation.has_partial
