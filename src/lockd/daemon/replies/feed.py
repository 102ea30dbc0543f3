"""Sends events to watchers.

It encodes an event once for all watchers. If a user has few watchers, it sends the
event to them at once, so that it is recorded with its cause. If there are many, each
turn sends to some while their user has time left. So a thousand watching connections do
not delay the clients that cause the events. Meanwhile the event is stored once. A
watcher that is too far behind loses its connection.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from lockd.daemon.clients.peer import Peer
from lockd.daemon.clients.shares import Shares
from lockd.daemon.replies.events import Event
from lockd.protocol.plain import notification

logger = logging.getLogger(__name__)

AT_ONCE: Final = 16
"""How many watchers of one user get events in a turn. Sending is most of the work, and
happens later."""

Told = tuple[str, bytes]
"""The lockspace of an event, and its encoded message."""


class Feed:
    """The events that some watcher still has to get, and each watcher's position.

    Attributes:
        is_watched: whether there are watchers.
    """

    def __init__(self) -> None:
        self._events: list[Told] = []
        #: The number of the first event, and of the next one to come.
        self._first = self._end = 0
        #: The bytes of the events.
        self._size = 0
        #: The watchers of each user, with the number of the next event for each. The
        #: watcher that waits longest is the first.
        self._next: dict[int, dict[Peer, int]] = {}
        self.is_watched = False

    def add(self, peer: Peer) -> None:
        """Adds a watcher, which gets all later events."""
        self._next.setdefault(peer.user, {}).setdefault(peer, self._end)
        self.is_watched = True

    def remove(self, peer: Peer) -> None:
        """Removes a watcher."""
        uid = peer.user
        watchers = self._next.get(uid, {})
        watchers.pop(peer, None)
        if not watchers:
            self._next.pop(uid, None)
        self.is_watched = bool(self._next)

    def close(self) -> None:
        """Removes all watchers."""
        self._next.clear()
        self.is_watched = False

    def append(self, event: Event) -> None:
        """Adds an event."""
        message = notification("event", event)
        self._events.append((event["lockspace"], message))
        self._size += len(message)
        self._end += 1

    def behind(self) -> Iterator[int]:
        """Yields the users with watchers that are behind."""
        for uid, watchers in self._next.items():
            if next(iter(watchers.values())) < self._end:
                yield uid

    def tell(
        self, shares: Shares, tell: Callable[[Peer, Iterable[Told]], None]
    ) -> None:
        """Gives some watchers their events, as time allows.

        Args:
            shares: the time of each user.
            tell: called with a watcher and its events.
        """
        for uid in list(self.behind()):
            is_crowd = len(self._next[uid]) > AT_ONCE
            for _ in range(AT_ONCE):
                if is_crowd and not shares.has_time(uid):
                    break
                if not self._tell_next(uid, tell):
                    break

    def tell_all(self, tell: Callable[[Peer, Iterable[Told]], None]) -> None:
        """Gives all watchers their events, however long that takes."""
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
        """Drops the events that all watchers have, and those that exceed a limit.

        Args:
            most: the most bytes of waiting events.

        Returns:
            The watchers that have missed an event.
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
