"""What changed in the lock table, for the records that survive a crash."""

import sys
from typing import Any, Final, Literal

COUNTS: Final = ("last_token", "last_order", "granted", "refused", "ended")
"""The engine's counters that survive a restart."""

Kind = Literal["lockspace", "owner", "session", "request"]


class Changes:
    """Marks what changed since the last call of `records.changes`.

    Attributes:
        grants: the grants by fencing token; None for one that ended.
        last_holders: by resource, the rank and the last holder; None if it is
            forgotten.
        others: by kind and name. A request is stored with its mark; `records` looks up
            the rest when it reads the marks.
        counts: the counts that were reported last.
    """

    def __init__(self) -> None:
        self.grants: dict[int, Any] = {}
        self.last_holders: dict[Any, Any] = {}
        self.others: dict[tuple[Kind, Any], Any] = {}
        #: The first report always differs.
        self.counts: tuple[int, ...] = (0, 0, sys.maxsize, sys.maxsize)

    def tell_counts(self, counts: tuple[int, ...]) -> bool:
        """Returns whether the counts have changed since the last report."""
        is_new = counts != self.counts
        self.counts = counts
        return is_new

    def clear(self) -> None:
        """Removes all marks."""
        self.grants.clear()
        self.last_holders.clear()
        self.others.clear()
