"""Long listings in pages, each so short that it holds nobody up.

What is listed is looked up and put in order when a listing begins, piece by piece; each
page then goes on where the last one ended. So the whole costs little more than its
length, and no single turn of the loop has more of it than a page.

Short by count, and not by time: the same table makes the same pages.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from typing import Any, Final, NamedTuple, TypeVar

from msgspec.structs import replace

from lockd.errors import LimitError
from lockd.protocol.methods import ListingParams

PAGE: Final = 5
"""How many things a page has at most, whatever was asked for (protocol 6.9): it takes
about as long as two requests of anybody else, who wait for it."""

RUN: Final = 192
"""How many names are put in order, or passed over, at once."""

LISTINGS: Final = 16
"""How many listings of one user may be under way (protocol 6.9)."""

IDLE: Final = 1.0
"""Seconds after which one that nobody asked about makes room for another. If it goes on
after all it begins anew, at its place."""

Map = dict[str, Any]
Place = tuple[Any, ...]
Key = TypeVar("Key", bound=tuple[Any, ...])


class Entry(NamedTuple):
    """One thing in a listing, and the place after which the next one comes."""

    place: Place
    item: Map


Listing = Iterator[Entry | None]
"""The entries in order; None where a page may end, because there was much to do."""


class _Unfinished:
    """A listing of which the last page ended at a place."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.place: Place = ()
        self.asked_at = 0.0
        #: The entries that had no room on a page yet.
        self.rest: list[Entry] = []


class Pages:
    """The listings that are under way."""

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
        """Returns the next things of a listing, and the place where the page ended.

        Args:
            who: uid and session that ask.
            params: for which listing, and where their last page ended.
            begin: begins it after a place.
            start: a place before all others.

        The place is None when nothing more comes. A page may be empty.

        Raises:
            LimitError: too many listings of this user are under way.
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
        """Drops the listings of a session that is gone."""
        uid, session = who
        if uid in self._by_user:
            mine = self._by_user[uid]
            for key in [key for key in mine if key[0] == session]:
                del mine[key]
            if not mine:
                del self._by_user[uid]


def _make_room(mine: dict[Any, _Unfinished], now: float) -> None:
    """Drops the listing that was not asked about for longest, if there are too many.

    One that goes on is kept: else many at once would all begin anew for ever.
    """
    if len(mine) < LISTINGS:
        return
    key, idle = next(iter(mine.items()))
    if now - idle.asked_at < IDLE:
        raise LimitError(
            f"{LISTINGS} listings of this user are under way: end one, or try again",
            {"limit": "listings", "most": LISTINGS},
        )
    del mine[key]


def _take(unfinished: _Unfinished, most: int) -> list[Entry] | None:
    """Takes a page out of a listing; None if what is in `rest` is the last one."""
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
    """Goes through those keys that are wanted, in their order, with pauses (None).

    What is not there any more when its turn comes is for the caller to leave out.
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
