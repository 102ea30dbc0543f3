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

PAGE: Final = 16
"""How many things a page has at most, whatever was asked for (protocol 6.9)."""

RUN: Final = 192
"""How many names are put in order, or passed over, at once."""

LISTINGS: Final = 4
"""How many unfinished listings of one user are remembered: others begin anew where
they are asked to go on."""

Map = dict[str, Any]
Key = TypeVar("Key", bound=tuple[Any, ...])


class Found(NamedTuple):
    """One thing in a listing, and the place after which the next one comes."""

    place: tuple[Any, ...]
    item: Map


Listing = Iterator[Found | None]
"""What is found, in order; None where a page may end, because there was much to do."""


class _Unfinished:
    """A listing of which the last page ended at a place."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.place: tuple[Any, ...] = ()
        #: What was found and had no room.
        self.rest: list[Found] = []


class Pages:
    """The listings that are under way."""

    def __init__(self) -> None:
        self._by_user: defaultdict[int, dict[Any, _Unfinished]] = defaultdict(dict)

    def page(
        self,
        who: tuple[int, int],
        what: Any,
        after: tuple[Any, ...] | None,
        limit: int | None,
        begin: Callable[[tuple[Any, ...]], Listing],
        start: tuple[Any, ...],
    ) -> tuple[list[Map], tuple[Any, ...] | None]:
        """Returns the next things of a listing, and the place where the page ended.

        Args:
            who: uid and session that ask.
            what: which listing, in their words.
            after: where their last page ended.
            begin: begins such a listing after a place.
            start: a place before all others.

        The place is None when nothing more comes. A page may be empty.
        """
        uid, session = who
        mine = self._by_user[uid]
        unfinished = mine.pop((session, what), None)
        begun = unfinished is None or unfinished.place != after
        if unfinished is None or begun:
            unfinished = _Unfinished(begin(after or start))
        # One that begins in its middle was forgotten: its pages must come to an end.
        has_to_find = begun and after is not None
        found = _take(unfinished, min(limit or PAGE, PAGE), has_to_find)
        if found is None:
            if not mine:
                del self._by_user[uid]
            return [x.item for x in unfinished.rest], None
        unfinished.place = found[-1].place if found else after or start
        mine[session, what] = unfinished
        if len(mine) > LISTINGS:
            del mine[next(iter(mine))]
        return [x.item for x in found], unfinished.place

    def forget(self, who: tuple[int, int]) -> None:
        """Drops the listings of a session that is gone."""
        uid, session = who
        if uid in self._by_user:
            mine = self._by_user[uid]
            for key in [key for key in mine if key[0] == session]:
                del mine[key]
            if not mine:
                del self._by_user[uid]


def _take(unfinished: _Unfinished, most: int, has_to_find: bool) -> list[Found] | None:
    """Takes a page out of a listing; None if what is in `rest` is the last one."""
    found = unfinished.rest
    for thing in unfinished.listing:
        if thing is not None:
            found.append(thing)
        elif found or not has_to_find:
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
