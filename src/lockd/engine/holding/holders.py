"""The holders of a resource."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from lockd.engine.effects import Grant
from lockd.engine.session import Strand
from lockd.hints import mypyc_attr


@mypyc_attr(acyclic=True)
class Holders:
    """A grant for each strand that holds a resource, in the order of the grants.

    Almost every resource has one holder. It needs no dict, which would take more memory
    than the grant.
    """

    __slots__ = ("_grant", "_several", "_strand")

    def __init__(self) -> None:
        #: The only holder, and what it holds.
        self._strand: Strand | None = None
        self._grant: Grant | None = None
        #: All holders if there are several.
        self._several: dict[Strand, Grant] | None = None

    def __len__(self) -> int:
        if self._several is not None:
            return len(self._several)
        return 0 if self._grant is None else 1

    def __bool__(self) -> bool:
        return self._grant is not None or self._several is not None

    def __contains__(self, strand: Strand) -> bool:
        return self.get(strand) is not None

    def __iter__(self) -> Iterator[Strand]:
        return iter([strand for strand, _ in self.items()])

    def __getitem__(self, strand: Strand) -> Grant:
        grant = self.get(strand)
        if grant is None:
            raise KeyError(strand)
        return grant

    def __setitem__(self, strand: Strand, grant: Grant) -> None:
        if self._several is not None:
            self._several[strand] = grant
        elif self._strand is None or self._grant is None or self._strand is strand:
            self._strand, self._grant = strand, grant
        else:
            self._several = {self._strand: self._grant, strand: grant}
            self._strand = self._grant = None

    def __delitem__(self, strand: Strand) -> None:
        if self._several is None:
            if strand is not self._strand:
                raise KeyError(strand)
            self._strand = self._grant = None
            return
        del self._several[strand]
        if len(self._several) == 1:
            ((self._strand, self._grant),) = self._several.items()
            self._several = None

    def get(self, strand: Strand) -> Grant | None:
        """Returns what a strand holds."""
        if self._several is not None:
            return self._several.get(strand)
        return self._grant if strand is self._strand else None

    @property
    def first(self) -> Grant | None:
        """The eldest grant."""
        if self._several is not None:
            return next(iter(self._several.values()))
        return self._grant

    def values(self) -> Collection[Grant]:
        """Returns the grants."""
        if self._several is not None:
            return self._several.values()
        return () if self._grant is None else (self._grant,)

    def items(self) -> Collection[tuple[Strand, Grant]]:
        """Returns the strands, each with its grant."""
        if self._several is not None:
            return self._several.items()
        if self._strand is None or self._grant is None:
            return ()
        return ((self._strand, self._grant),)
