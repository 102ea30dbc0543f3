"""The requests that wait for time, the earliest first."""

import heapq
from typing import Final

from lockd.engine.session import Request

_FEW: Final = 64


class Deadlines(list[tuple[float, int, Request]]):
    """A heap of when, turn and request; what was answered meanwhile is passed over."""

    def add(self, when: float, request: Request, waiting: int) -> None:
        """Enters when a request is due; `waiting` is how many requests wait at all."""
        if len(self) > _FEW + 4 * waiting:
            # Most belong to requests that were answered long before their time.
            self[:] = [entry for entry in self if not _is_stale(entry)]
            heapq.heapify(self)
        heapq.heappush(self, (when, request.order, request))

    def first(self) -> float | None:
        """Returns when the earliest is due; None if nothing waits for time."""
        while self and _is_stale(self[0]):
            heapq.heappop(self)
        return self[0][0] if self else None

    def take_first(self) -> Request:
        """Takes out the earliest, which must be there."""
        return heapq.heappop(self)[2]


def _is_stale(entry: tuple[float, int, Request]) -> bool:
    when, _, request = entry
    return request.answered or when not in (request.deadline, request.retry_at)
