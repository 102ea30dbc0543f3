"""When requests time out or try again, and when grants become overdue."""

import heapq
from collections.abc import Iterator
from typing import Final

from lockd.engine.effects import Grant
from lockd.engine.session import OwnerState, Request

_FEW: Final = 64

Deadline = tuple[float, int, Request | OwnerState]
"""The time, the order, and the thing that is due."""


class Deadlines:
    """A heap of what is due: requests, and grants that become overdue.

    An entry is a time and a request with its order, or an owner with the token of a
    grant as a negative number. Entries are skipped once their request is answered, or
    their grant has ended.
    """

    def __init__(self) -> None:
        self._heap: list[Deadline] = []
        self._most = _FEW

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Deadline]:
        return iter(self._heap)

    def add(self, when: float, order: int, thing: Request | OwnerState) -> None:
        """Adds the time at which a request or a grant is due."""
        if len(self._heap) >= self._most:
            # Most entries belong to what ended long before its time.
            self._heap = [entry for entry in self._heap if not _is_stale(*entry)]
            heapq.heapify(self._heap)
            self._most = _FEW + 4 * len(self._heap)
        heapq.heappush(self._heap, (when, order, thing))

    def first(self) -> float | None:
        """Returns when the earliest one is due; None without any."""
        heap = self._heap
        while heap and _is_stale(*heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take_first(self) -> Request | Grant:
        """Removes and returns the earliest one. `first` has returned its time."""
        _, order, thing = heapq.heappop(self._heap)
        return thing if isinstance(thing, Request) else thing.grants[-order]


def _is_stale(when: float, order: int, thing: Request | OwnerState) -> bool:
    if isinstance(thing, Request):
        return thing.is_answered or when not in (thing.deadline, thing.retry_at)
    grant = thing.grants.get(-order)
    notices = None if grant is None else grant.notices
    return notices is None or notices.overdue or notices.due != when
