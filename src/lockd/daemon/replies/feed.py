"""What happened, on its way to those who watch.

An event is encoded once, whoever watches. It is told at once, and so recorded with what
it tells of, if its user has few watchers. If there are many, some are told in each turn
in which their user has time left: who watches with a thousand connections does not hold
up those who cause the events. Meanwhile an event is here, once for all; whoever is too
far behind loses its connection.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from lockd.daemon.clients.peer import Peer
from lockd.daemon.clients.shares import Shares
from lockd.daemon.replies.events import Event
from lockd.protocol.codec import Encoder

logger = logging.getLogger(__name__)

AT_ONCE: Final = 16
"""How many watchers of one user are told in a turn. Sending is most of the work, and
comes after it."""

Told = tuple[str, bytes]
"""An event as it is sent, and in which lockspace it happened."""


class Feed:
    """The events that somebody has still to be told, and how far each watcher is."""

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._events: list[Told] = []
        #: The number of the first of them, and of the one that comes next.
        self._first = self._end = 0
        #: Bytes of them.
        self._size = 0
        #: Of each user the watchers, and which event is the next for each: whoever
        #: waits longest is the first.
        self._next: dict[int, dict[Peer, int]] = {}

    @property
    def is_watched(self) -> bool:
        """Whether anybody wants to know."""
        return bool(self._next)

    def add(self, peer: Peer) -> None:
        """Tells a peer what happens from now on."""
        self._next.setdefault(peer.user, {}).setdefault(peer, self._end)

    def remove(self, peer: Peer) -> None:
        """Tells it nothing any more."""
        uid = peer.user
        watchers = self._next.get(uid, {})
        watchers.pop(peer, None)
        if not watchers:
            self._next.pop(uid, None)

    def append(self, event: Event) -> None:
        """Takes in what happened."""
        message = self._encoder.notification("event", event)
        self._events.append((event["lockspace"], message))
        self._size += len(message)
        self._end += 1

    def behind(self) -> Iterator[int]:
        """Goes through the users some of whose watchers have not heard all."""
        for uid, watchers in self._next.items():
            if next(iter(watchers.values())) < self._end:
                yield uid

    def tell(
        self, shares: Shares, tell: Callable[[Peer, Iterable[Told]], None]
    ) -> None:
        """Tells some watchers what they have not heard, as far as there is time.

        Args:
            tell: called with a watcher, and with what it is to be told.
        """
        for uid in list(self.behind()):
            is_crowd = len(self._next[uid]) > AT_ONCE
            for _ in range(AT_ONCE):
                if is_crowd and not shares.has_time(uid):
                    break
                if not self._tell_next(uid, tell):
                    break

    def tell_all(self, tell: Callable[[Peer, Iterable[Told]], None]) -> None:
        """Tells all of them everything, however long that takes."""
        for uid in list(self.behind()):
            while self._tell_next(uid, tell):
                pass

    def _tell_next(
        self, uid: int, tell: Callable[[Peer, Iterable[Told]], None]
    ) -> bool:
        watchers = self._next[uid]
        peer, heard = next(iter(watchers.items()))
        if heard == self._end:
            return False
        del watchers[peer]
        watchers[peer] = self._end
        tell(peer, self._events[max(heard - self._first, 0) :])
        return True

    def forget(self, most: int) -> list[Peer]:
        """Forgets what all have heard, and what is too much.

        Args:
            most: bytes that may wait for who is behind.

        Returns:
            Those who missed something.
        """
        heard = min((next(iter(x.values())) for x in self._next.values()), default=None)
        done = len(self._events) if heard is None else max(heard - self._first, 0)
        size = self._size - sum(len(message) for _, message in self._events[:done])
        while size > most:
            size -= len(self._events[done][1])
            done += 1
        del self._events[:done]
        self._first += done
        self._size = size
        if heard is None or heard >= self._first:
            return []
        return [
            peer
            for watchers in self._next.values()
            for peer, heard in watchers.items()
            if heard < self._first
        ]
