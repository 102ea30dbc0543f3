"""Those who get inside what workers hold, one at a time, and some deeper inside."""

import time
from collections.abc import Callable
from typing import Any

from torture.board import EXCLUSIVE, MAY_OVERTAKE, Board
from torture.places import TREES, Place
from torture.worker import Worker


class Insider(Worker):
    """As a program that was started by a command that holds a lock: it wants the same.

    It is a session of its own, and lives on when the one around it is killed.

    Args:
        instance: as the daemon calls itself; nothing: it does not know yet.
        around: the tokens of the locks that it says it is within.
    """

    def __init__(
        self,
        board: Board,
        slot: int,
        seed: int,
        instance: str = "",
        around: tuple[int, ...] = (),
    ) -> None:
        super().__init__(board, slot, seed)
        self._instance, self._around = instance, around
        # Of these, the one that was held for sure when it asked.
        self._sure = 0

    def _steps(self) -> list[tuple[Callable[[], None], float]]:
        return [(self._go_inside, 1)]

    def _within(self) -> dict[str, object]:
        return {"within": [f"{self._instance}:{token}" for token in self._around]}

    def _is_queued(self, place: Place) -> None:
        """If what was around it then is still held, it has its place inside."""
        if self._board.outer(place.number) == self._around[0]:
            self._sure = self._around[0]

    def _around_of(self, grant: dict[str, Any]) -> tuple[int, int]:
        around = self._sure or (grant.get("inside") or [0])[-1]
        return 0 if around else MAY_OVERTAKE, around

    def _go_inside(self) -> None:
        place = self._chance.choice(TREES)
        token = self._board.outer(place.number)
        if not token or not self._instance:
            self._session()
            time.sleep(0.002)
            return
        self._leave()  # a session says once what it is within
        self._around, self._sure = (token,), 0
        # Whoever is around it may have gone: then it is one of those outside.
        self._acquire([place], EXCLUSIVE, is_queued=True)
        (hold,) = self._holds
        self._board.tally(self._slot, "inside", self._sure != 0)
        hold.count(self._spin())
        if self._chance.random() < 0.3:
            self._go_deeper(place, hold.token)
        time.sleep(self._chance.choice((0, 0.005, 0.02)))
        self._release()

    def _go_deeper(self, place: Place, token: int) -> None:
        """Has another session get inside what this one holds."""
        around = (*self._around, token)
        seed = self._chance.randrange(2**32)
        child = Insider(self._board, self._slot, seed, self._instance, around)
        child._sure = token
        try:
            child._acquire([place], EXCLUSIVE, is_queued=False)
            child._holds[0].count(self._spin())
            child._release()
            child._leave()
        finally:
            child._drop()
        self._board.tally(self._slot, "deeper inside")
