"""Splits listings into pages that are short enough to delay nobody.

A listing looks up and sorts its names at its beginning, piece by piece. Each page then
continues at the end of the last one. So the whole costs little more than its length,
and no turn of the loop does more than a page.

The length of a page depends on counts and not on time: the same state gives the same
pages.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from typing import Any, Final, NamedTuple, TypeVar

from msgspec.structs import replace

from lockd.errors import LimitError
from lockd.protocol.methods import ListingParams

PAGE: Final = 5
"""The most entries of a page (protocol 6.9). A page takes about as long as two requests
of other clients, which wait for it."""

RUN: Final = 192
"""How many names to sort or to skip at once."""

LISTINGS: Final = 16
"""The most unfinished listings of one user (protocol 6.9)."""

IDLE: Final = 1.0
"""Seconds without a request after which another listing may replace one. If its reader
continues nevertheless, it starts again at its place."""

Map = dict[str, Any]
Place = tuple[Any, ...]
Key = TypeVar("Key", bound=tuple[Any, ...])


class Entry(NamedTuple):
    """One entry of a listing, and its place in the order."""

    place: Place
    item: Map


Listing = Iterator[Entry | None]
"""The entries in order. None marks a point where a page may end."""


class _Unfinished:
    """A listing whose last page ended at a place."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.place: Place = ()
        self.asked_at = 0.0
        #: Entries that did not fit on a page.
        self.rest: list[Entry] = []


class Pages:
    """The unfinished listings."""

    def __init__(self) -> None:
        self._by_user: defaultdict[int, dict[Any, _Unfinished]] = defaultdict(dict)

    def page(
        self,
        who: tuple[int, int],
        params: ListingParams,
        begin: Callable[[Place], Listing],
        start: Place,
        now: float,
    ) -> tuple[list[Map], Any]:
        """Returns the next entries of a listing, and the place where the page ends.

        The place is None after the last entry. A page may be empty.

        Args:
            who: uid and session of the reader.
            params: the kind of listing, and the place where the last page ended.
            begin: starts the listing after a place.
            start: a place before all entries.
            now: the time.

        Raises:
            LimitError: this user has too many unfinished listings.
        """
        uid, session = who
        mine = self._by_user[uid]
        what = replace(params, after=None, limit=None)
        after: Any = params.after
        if after is not None and not isinstance(after, tuple):
            after = (after,)
        unfinished = mine.pop((session, what), None)
        if unfinished is None or unfinished.place != after:
            _make_room(mine, now)
            unfinished = _Unfinished(begin(after or start))
        found = _take(unfinished, min(params.limit or PAGE, PAGE))
        if found is None:
            if not mine:
                del self._by_user[uid]
            return [x.item for x in unfinished.rest], None
        place = found[-1].place if found else after or start
        unfinished.place = place
        unfinished.asked_at = now
        mine[session, what] = unfinished
        return [x.item for x in found], place if len(place) > 1 else place[0]

    def forget(self, who: tuple[int, int]) -> None:
        """Drops the listings of a session that has ended."""
        uid, session = who
        if uid in self._by_user:
            mine = self._by_user[uid]
            for key in [key for key in mine if key[0] == session]:
                del mine[key]
            if not mine:
                del self._by_user[uid]


def _make_room(mine: dict[Any, _Unfinished], now: float) -> None:
    """Drops the listing that has been idle longest, if there are too many.

    It keeps a listing that is in use: otherwise many at once would restart for ever.
    """
    if len(mine) < LISTINGS:
        return
    key, idle = next(iter(mine.items()))
    if now - idle.asked_at < IDLE:
        raise LimitError(
            f"this user has {LISTINGS} listings in progress: end one, or try again",
            {"limit": "listings", "most": LISTINGS},
        )
    del mine[key]


def _take(unfinished: _Unfinished, most: int) -> list[Entry] | None:
    """Takes a page from a listing; None if `rest` is the last one."""
    found = unfinished.rest
    for entry in unfinished.listing:
        if entry is not None:
            found.append(entry)
        else:
            break
        if len(found) > most:
            break
    else:
        if len(found) <= most:
            return None
    unfinished.rest = found[most:]
    return found[:most]


def in_order(
    keys: Iterable[Key], wanted: Callable[[Key], bool]
) -> Iterator[Key | None]:
    """Yields the wanted keys in order, with pauses (None).

    The caller must skip keys that have disappeared meanwhile.
    """
    every = list(keys)
    runs = []
    for start in range(0, len(every), RUN):
        if start:
            yield None
        runs.append(sorted(filter(wanted, every[start : start + RUN])))
    del every
    for number, key in enumerate(merge(*runs), 1):
        yield key
        if number % RUN == 0:
            yield None
