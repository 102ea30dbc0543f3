"""The command line and unit of a process, at most a moment old."""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from lockd.engine.commands import Owner
from lockd.procs import command_of, unit_of

REMEMBERED: Final = 2.0
"""Seconds for which listings reuse the command and unit of a process. It may execute
another program, or move to another unit, at any time."""

_MAX_REMEMBERED: Final = 16_384

Faces = tuple[str | None, str | None]
Look = Callable[[Owner, float], Faces]
"""Returns command and unit of an owner, for an answer at a given time."""


@lru_cache(maxsize=256)
def _faces_of(pid: int, now: float) -> Faces:
    return (command_of(pid), unit_of(pid)) if pid else (None, None)


def look_up(owner: Owner, now: float) -> Faces:
    """Returns command and unit of an owner. Looks them up once for each answer."""
    return _faces_of(owner.pid, now)


class Memory:
    """Looks up processes for listings, which name the same ones again and again.

    Attributes:
        misses: how many lookups were made.
    """

    def __init__(self) -> None:
        self.misses = 0
        self._known: dict[int, tuple[float, Faces]] = {}

    def __call__(self, owner: Owner, now: float) -> Faces:
        """Returns command and unit of an owner, at most `REMEMBERED` seconds old."""
        pid = owner.pid
        until, found = self._known.get(pid, (0.0, (None, None)))
        if now < until:
            return found
        self.misses += 1
        if len(self._known) >= _MAX_REMEMBERED:
            self._known.clear()
        found = (command_of(pid), unit_of(pid)) if pid else (None, None)
        self._known[pid] = now + REMEMBERED, found
        return found
