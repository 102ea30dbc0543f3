"""Limits how much of a turn each user has, so that none can block the others.

Users share a turn, not connections: a thousand connections of a user delay others no
more than one does. A user who wants more than the share rests a while if there are
others. The loop then sleeps, and the kernel wakes it at once for them, while the
flooding user has to wait like everybody.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Final

import trio

from lockd.daemon.clients.peer import Peer

SHARE: Final = 0.001
"""Seconds of a turn for all clients of one user together."""

REST: Final = 0.004
"""Seconds for which a user rests who wanted more."""

Waiting = dict[int, dict[Peer, None]]
"""Peers by uid, the longest waiting first."""


class Shares:
    """The time that each user has used of this turn, and the resting users.

    Args:
        is_shared: returns whether more than one user is connected.
        share: seconds of a turn for each user.
    """

    def __init__(self, is_shared: Callable[[], bool], share: float = SHARE) -> None:
        self._is_shared = is_shared
        self._share = share
        #: Like `trio.current_time`, which looks the clock up each time.
        self.now = trio.lowlevel.current_clock().current_time
        self._spent: dict[int, float] = {}
        #: The resting users, and until when.
        self._resting: dict[int, float] = {}

    def begin(self) -> None:
        """Begins a turn."""
        self._spent.clear()
        if self._resting:
            now = trio.current_time()
            for uid in [x for x, until in self._resting.items() if until <= now]:
                del self._resting[uid]

    def charge(self, uid: int, began: float) -> None:
        """Charges a user for the time since `began`."""
        spent = self._spent.get(uid, 0.0)
        self._spent[uid] = spent + self.now() - began

    def charge_all(self, uids: Sequence[int], began: float) -> None:
        """Charges several users for the time since `began`, in equal parts."""
        share = (self.now() - began) / len(uids)
        for uid in uids:
            self._spent[uid] = self._spent.get(uid, 0.0) + share

    def has_time(self, uid: int) -> bool:
        """Returns whether a user may have more of this turn.

        The user may begin to rest.
        """
        if uid in self._resting:
            return False
        if self._spent.get(uid, 0.0) <= self._share:
            return True
        if self._is_shared():
            self._resting[uid] = trio.current_time() + REST
        return False

    def rests(self, uid: int) -> bool:
        """Returns whether a user is resting."""
        return uid in self._resting

    @property
    def deadline(self) -> float:
        """When the first of the resting users may continue."""
        return min(self._resting.values(), default=inf)


def drop(waiting: Waiting, peer: Peer) -> None:
    """Removes a peer, if it waits."""
    uid = peer.user
    peers = waiting.get(uid)
    if peers is not None:
        peers.pop(peer, None)
        if not peers:
            del waiting[uid]
