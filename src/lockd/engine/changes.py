"""What changed in the lock table, for the records that survive a crash."""

import sys
from typing import Any, Final, Literal

COUNTS: Final = ("last_token", "last_order", "granted", "refused", "ended")
"""The engine's counters that survive a restart."""

Kind = Literal["lockspace", "owner", "session", "grant", "request", "last"]


class Changes(dict[tuple[Kind, Any], Any]):
    """Marks by kind and name: what changed since the last call of `records.changes`.

    A grant, a request and a last holder are stored with their mark. `records` looks up
    the rest when it reads the marks.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        super().__init__()
        #: The counts that were reported last. The first report always differs.
        self.counts: tuple[int, ...] = (0, 0, sys.maxsize, sys.maxsize)

    def tell_counts(self, counts: tuple[int, ...]) -> bool:
        """Returns whether the counts have changed since the last report."""
        is_new = counts != self.counts
        self.counts = counts
        return is_new
