"""How much of the loop each user has, so that one cannot keep it from the others.

A turn of the loop is shared by users, not by connections: a thousand of them must not
make the others wait longer than one would. Whoever asks for more than its share rests
a while, if there are others: then the loop sleeps, its answers to them come from a
process that the kernel wakes at once, and who floods it has to wait like everybody.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Final

import trio

SHARE: Final = 0.001
"""Seconds of a turn for all clients of one user together."""

REST: Final = 0.004
"""Seconds for which a user is passed over who wanted more than that."""


class Shares:
    """Who had how much of this turn, and who rests.

    Args:
        is_shared: tells whether more than one user is connected.
        share: seconds of a turn for each user.
    """

    def __init__(self, is_shared: Callable[[], bool], share: float = SHARE) -> None:
        self._is_shared = is_shared
        self._share = share
        #: As `trio.current_time`, which finds the clock anew each time.
        self.now = trio.lowlevel.current_clock().current_time
        self._spent: dict[int, float] = {}
        #: Until when.
        self._resting: dict[int, float] = {}

    def begin(self) -> None:
        """Begins a turn."""
        self._spent.clear()
        if self._resting:
            now = trio.current_time()
            for uid in [x for x, until in self._resting.items() if until <= now]:
                del self._resting[uid]

    def charge(self, uid: int, began: float) -> None:
        """Counts the time since a moment for a user."""
        spent = self._spent.get(uid, 0.0)
        self._spent[uid] = spent + self.now() - began

    def charge_all(self, uids: Sequence[int], began: float) -> None:
        """Counts the time since a moment for several users, for each the same."""
        share = (self.now() - began) / len(uids)
        for uid in uids:
            self._spent[uid] = self._spent.get(uid, 0.0) + share

    def has_time(self, uid: int) -> bool:
        """Tells whether a user may have more of this turn; it may have to rest now."""
        if uid in self._resting:
            return False
        if self._spent.get(uid, 0.0) <= self._share:
            return True
        if self._is_shared():
            self._resting[uid] = trio.current_time() + REST
        return False

    def rests(self, uid: int) -> bool:
        """Tells whether a user has to wait for a later turn."""
        return uid in self._resting

    @property
    def deadline(self) -> float:
        """When the first of those who rest has its turn again."""
        return min(self._resting.values(), default=inf)
