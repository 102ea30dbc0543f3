"""What the records of a round say: who held what when, and whether that may be."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Final

from torture.board import CONVERTED, EXCLUSIVE, KILLED, MAY_OVERTAKE, Board, Record
from torture.places import PLACES

_SHOWN: Final = 5
"""Violations of a kind that are told in full."""


class Judge:
    """Judges rounds one after the other: fencing tokens rise through all of them."""

    def __init__(self) -> None:
        self._greatest = 0
        self.found: dict[str, int] = defaultdict(int)
        self.told: list[str] = []
        self.records = 0
        self.killed = 0

    @property
    def count(self) -> int:
        """How much was found so far."""
        return sum(self.found.values())

    def judge(self, board: Board) -> None:
        """Judges the round on the board, at its end."""
        by_resource: dict[int, list[Record]] = defaultdict(list)
        records = list(board.records())
        self.records += len(records)
        self.killed += sum(bool(r.flags & KILLED) for r in records)
        for record in records:
            by_resource[record.resource].append(record)
            if not record.ended:
                self._find("harness", f"{record} was never given up")
        for resource, held in by_resource.items():
            tree = _Tree(held)
            for level in tree.levels():
                self._overlaps(level)
            for one, other in tree.unsure():
                self._find("overlap", f"{_say(one)} and {_say(other)}")
            self._counter(held, board.counter(resource))
            self._rise(_grants(held))
        granted = _grants(records)
        by_queue: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
        for record in granted:
            if record.flags & MAY_OVERTAKE:
                continue
            place = PLACES[record.resource]
            by_queue[place.lockspace, place.name, record.around].append(record)
        for queue in by_queue.values():
            self._order("queue order", [(r.queued or r.granted, r) for r in queue])
        self._order("token", [(r.granted, r) for r in granted])
        self._tokens(granted)
        for kind, what, _ in board.complaints():
            self._find(kind, what)

    def say(self, kind: str, what: str) -> None:
        """Adds what was found in another way."""
        self._find(kind, what)

    def _find(self, kind: str, what: str) -> None:
        self.found[kind] += 1
        if self.found[kind] <= _SHOWN:
            self.told.append(f"{kind}: {what}")

    def _overlaps(self, held: list[Record]) -> None:
        """Nobody holds while somebody holds exclusively.

        Of some it is only known until when they hold for sure; it may be before they
        knew that they do.
        """
        held = [record for record in held if record.ended > record.granted]
        last: Record | None = None  # whose end is the latest
        last_exclusive: Record | None = None
        for record in sorted(held, key=lambda r: r.granted):
            other = last if record.mode == EXCLUSIVE else last_exclusive
            if other is not None and other.ended > record.granted:
                by = (other.ended - record.granted) / 1e6
                self._find("overlap", f"{by:.3f} ms: {_say(other)} and {_say(record)}")
            if last is None or record.ended > last.ended:
                last = record
            if record.mode == EXCLUSIVE and (
                last_exclusive is None or record.ended > last_exclusive.ended
            ):
                last_exclusive = record

    def _rise(self, held: list[Record]) -> None:
        """Of two who exclude each other the later one has the greater token."""
        held = sorted(held, key=lambda r: r.granted)
        for one, other in pairwise(held):
            is_ordered = EXCLUSIVE in (one.mode, other.mode)
            if is_ordered and one.token >= other.token:
                self._find("token", f"{_say(one)} before {_say(other)}")

    def _counter(self, held: list[Record], counter: int) -> None:
        """Everybody who counted counted once; of the killed it is not known."""
        counted = [r for r in held if r.value >= 0 and not r.flags & KILLED]
        unsure = sum(r.value >= 0 and bool(r.flags & KILLED) for r in held)
        name = PLACES[held[0].resource].name
        if not len(counted) <= counter <= len(counted) + unsure:
            self._find(
                "counter", f"{name} is {counter} after {len(counted)} (+{unsure}) holds"
            )
        if len({r.value for r in counted}) != len(counted):
            self._find("counter", f"two who held {name} read the same")

    def _order(self, kind: str, sure: Iterable[tuple[int, Record]]) -> None:
        """Who was sure of a place before another asked has the smaller token."""
        pairs = sorted(sure, key=lambda pair: pair[0])
        asked = sorted((record for _, record in pairs), key=lambda r: r.sent)
        at, greatest = 0, None
        for record in asked:
            while at < len(pairs) and pairs[at][0] < record.sent:
                if greatest is None or pairs[at][1].token > greatest.token:
                    greatest = pairs[at][1]
                at += 1
            if greatest is not None and greatest.token >= record.token:
                self._find(kind, f"{_say(greatest)} before {_say(record)}")

    def _tokens(self, granted: list[Record]) -> None:
        tokens = [record.token for record in granted]
        if len(set(tokens)) != len(tokens):
            self._find("token", f"{len(tokens) - len(set(tokens))} were given twice")
        if tokens and min(tokens) <= self._greatest:
            self._find("token", f"{min(tokens)} after {self._greatest}")
        self._greatest = max([self._greatest, *tokens])


def _grants(records: list[Record]) -> list[Record]:
    """Returns those with a token of their own."""
    return [r for r in records if r.token and not r.flags & CONVERTED]


class _Tree:
    """The holds of a resource, of which some are inside others."""

    def __init__(self, held: list[Record]) -> None:
        self._held = held
        self._unsure = [r for r in held if r.flags & MAY_OVERTAKE]
        self._inside: dict[int, list[Record]] = defaultdict(list)
        tokens = {record.token for record in held} - {0}
        for record in held:
            if not record.flags & MAY_OVERTAKE:
                around = record.around if record.around in tokens else -1
                self._inside[around].append(record)

    def levels(self) -> list[list[Record]]:
        """Returns who excludes each other: those outside, and all inside the same lock.

        A lock with others inside counts until the last of them is done, and so nobody
        else has it before.
        """
        return [
            [replace(r, ended=self._end(r)) for r in level]
            if len(self._inside) > 1
            else level
            for level in self._inside.values()
        ]

    def unsure(self) -> Iterator[tuple[Record, Record]]:
        """Yields those who may have been inside, and whom they were beside.

        If they were, they went before others inside, but were beside none of them.
        """
        for one in self._unsure:
            within, end = set(self._within(one)), self._end(one)
            for other in self._held:
                is_beside = other.granted < end and one.granted < other.ended
                if is_beside and other is not one and other not in within:
                    yield one, other

    def _within(self, record: Record) -> Iterator[Record]:
        for other in self._inside.get(record.token, ()):
            yield other
            yield from self._within(other)

    def _end(self, record: Record) -> int:
        return max([record.ended, *(other.ended for other in self._within(record))])


def _say(record: Record) -> str:
    def seconds(at: int) -> str:
        return f"{at / 1e9:.6f}"

    mode = "X" if record.mode == EXCLUSIVE else "S"
    return (
        f"[{PLACES[record.resource].name} {mode} slot {record.slot}: "
        f"asked {seconds(record.sent)}, queued {seconds(record.queued)}, granted "
        f"{seconds(record.granted)}, ended {seconds(record.ended)}, token "
        f"{record.token}{f', inside {record.around}' if record.around else ''}"
        f"{', killed' if record.flags & KILLED else ''}]"
    )
