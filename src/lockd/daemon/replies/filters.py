"""Which resources and holders a listing is asked for (protocol 6.9)."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from lockd.daemon.clients.faces import Look, Memory
from lockd.engine.commands import Owner
from lockd.engine.lock_engine import ResourceView
from lockd.protocol.methods import ListParams

T = TypeVar("T")

MISSES: Final = 4
"""The most process lookups for a page: each costs as much as several entries."""

PASSED: Final = 96
"""The most entries to skip for a page."""

PARTIES: Final = 512
"""The most holders and waiters to compare with the filters for a page. A resource with
more of them has a page of its own."""


class Looked:
    """Counts what a listing looks at for a page.

    Args:
        memory: looks up processes.

    Attributes:
        passed: the entries that were skipped.
        parties: the holders and waiters that were compared with the filters.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._misses = memory.misses
        self.passed = self.parties = 0

    def at(self, parties: Iterable[T]) -> Iterator[T]:
        """Yields the parties, and counts them."""
        for party in parties:
            self.parties += 1
            yield party

    def skip(self) -> None:
        """Counts an entry that does not match."""
        self.passed += 1

    def keep(self) -> None:
        """Notes that an entry matches."""
        self.passed = 0

    def enough(self) -> bool:
        """Returns whether it is enough for a page, and then begins anew."""
        enough = (
            self._memory.misses - self._misses >= MISSES
            or self.passed >= PASSED
            or self.parties >= PARTIES
        )
        if enough:
            self._misses, self.passed, self.parties = self._memory.misses, 0, 0
        return enough


def is_of_somebody(wanted: ListParams) -> bool:
    """Returns whether the filters ask for certain holders or waiters."""
    return (wanted.owner, wanted.uid, wanted.pid, wanted.unit).count(None) < 4


def means(wanted: ListParams, owner: Owner, look: Look, now: float) -> bool:
    """Returns whether an owner matches the filters."""
    return (
        wanted.owner in (None, owner.name, owner.uuid)
        and wanted.uid in (None, owner.uid)
        and wanted.pid in (None, owner.pid)
        and (wanted.unit is None or wanted.unit == look(owner, now)[1])
    )


def parties_of(found: ResourceView) -> Iterator[tuple[Owner, str | None]]:
    """Yields the holders and waiters of a resource, each with its label."""
    for grant in found.holders.values():
        yield grant.owner, grant.label
    for request in found.line():
        yield request.owner.identity, request.wish.label


def leads_to(path: str) -> Callable[[str], bool]:
    """Returns a function: whether a name stands for a file, or for one below it."""
    hashed = hashlib.sha256(os.fsencode(path)).hexdigest()
    below = path.rstrip("/") + "/"
    return lambda name: name in (path, hashed) or name.startswith(below)
