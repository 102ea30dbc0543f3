"""What changed in the engine since somebody was told: marks, made into records later.

A mark is an entry in a dict; while nobody wants to know, there are none. It names what
changed by kind and name; `records` looks at it when it is asked.
"""

import sys
from typing import Any, Literal

Kind = Literal["lockspace", "owner", "session", "grant", "request", "last"]


class Changes(dict[tuple[Kind, Any], Any]):
    """The marks. A grant, a request and a last holder come along, as they are now."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        super().__init__()
        #: What was told last: versions, token, turn, statistics. Before, nobody knows.
        self.counts: tuple[int, ...] = (0, 0, sys.maxsize, sys.maxsize)
